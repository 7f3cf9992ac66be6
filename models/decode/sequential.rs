//! One place after the other, each from all before it.

use smalti::sample::Guidance;
use smalti::{Float, Tensor};

use super::{Order, Sampler, Steps, guide, in_groups, twice};
use crate::{Error, Result};

/// The network as a sequence sees it.
pub trait Network<T: Float> {
    /// Logits of the places of `x` (`[rows, seq, dim]`), which come after all that it was given before:
    /// `[rows, seq, vocabulary]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    fn logits(&mut self, x: &Tensor<T>) -> Result<Tensor<T>>;

    /// What stands for tokens `[rows, seq]`: `[rows, seq, dim]`.
    ///
    /// # Errors
    /// If a token is out of range or the device fails.
    fn embed(&mut self, tokens: &Tensor<u32>) -> Result<Tensor<T>>;
}

/// Draws the tokens of `batch` pictures, `[batch, places]` in raster order, place by place of `order`, after a condition of
/// `batch` rows or, with guidance, as many without a condition below them (`[rows, seq, dim]`). `scale` is the guidance
/// scale of a place; the guided logits are `uncond + scale (cond - uncond)`.
///
/// # Errors
/// As the network, or [`Error::Interrupted`] if `steps` breaks off.
pub fn sequential<T: Float>(
    network: &mut impl Network<T>,
    condition: Tensor<T>,
    batch: usize,
    order: Order<'_>,
    scale: impl Fn(usize) -> f32,
    sampler: &Sampler<'_>,
    steps: Steps<'_, T>,
) -> Result<Tensor<u32>> {
    let rows = condition.shape().first().copied().unwrap_or(0);
    if rows != batch && rows != 2 * batch {
        return Err(Error::Request(format!("a condition of {rows} rows for {batch} pictures")));
    }
    let (device, sizes) = (condition.device(), vec![1; order.places()]);
    in_groups(device, batch, order, sizes, &[], sampler, steps, |before, place| {
        let logits = match before {
            None => network.logits(&condition)?,
            Some(token) => {
                let x = network.embed(&if rows > batch { twice(token)? } else { token.clone() })?;
                network.logits(&x)?
            }
        };
        let last = logits.narrow(1, logits.shape()[1] - 1, 1)?;
        guide(&last, batch, scale(place.start), Guidance::Scale)
    })
}
