//! One place after the other, each from all before it.

use smalti::sample::{self, Filter, Guidance};
use smalti::{Float, Tensor};

use super::{Guided, Order, Sampler, Steps, at_tokens, guide, in_groups, twice};
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

    /// From now on the values of the tokens so far, and of the one that comes next, are taken times these in the rows without
    /// a condition: a factor per token, for each of the pictures, whose conditional rows come first.
    ///
    /// # Errors
    /// [`Error::Request`] if the network cannot; if the device has no room.
    fn fade(&mut self, factors: &[Vec<f32>]) -> Result<()> {
        let _ = factors;
        Err(Error::Request("this network attends to no values that soft guidance could fade".to_owned()))
    }
}

/// Draws the tokens of `batch` pictures, `[batch, places]` in raster order, place by place of `order`, after a condition of
/// `batch` rows or, with guidance, as many without a condition below them (`[rows, seq, dim]`). `scale` is the guidance
/// scale of a place, which [`Sampler::guided`] may change; the guided logits are `uncond + scale (cond - uncond)`. Soft
/// guidance waits for the device at each token.
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
    let guided = if rows > batch { sampler.guided } else { Guided::Plain };
    // Of each picture, the largest chance in the laws of the tokens so far.
    let mut largest = vec![Vec::new(); batch];
    in_groups(device, batch, order, sizes, &[], sampler, steps, |before, place| {
        let logits = match before {
            None => network.logits(&condition)?,
            Some(token) => {
                if guided == Guided::Soft {
                    let fade =
                        |largest: &Vec<f32>| sample::soft_guidance(largest).iter().map(|weight| 1.0 - weight).collect();
                    network.fade(&largest.iter().map(fade).collect::<Vec<_>>())?;
                }
                let x = network.embed(&if rows > batch { twice(token)? } else { token.clone() })?;
                network.logits(&x)?
            }
        };
        let last = logits.narrow(1, logits.shape()[1] - 1, 1)?;
        let scale = scale(place.start);
        if guided == Guided::Plain {
            return guide(&last, batch, scale, Guidance::Scale);
        }
        let vocabulary = last.shape()[2];
        let [with, without] = [0, batch].map(|first| last.narrow(0, first, batch));
        let (with, without) = (with?, without?);
        let law = sample::weigh(&with.reshape(&[batch, vocabulary])?, None, &Filter::default());
        let certainty = sample::certainty(&law.map_err(|error| at_tokens(error, place.start, 1))?)?;
        if guided == Guided::ByEntropy {
            let scales = sample::entropy_guidance(&certainty, vocabulary, scale)?.reshape(&[batch, 1])?;
            return Ok(sample::guide_rows(&with, &without, &scales, Guidance::Scale)?);
        }
        largest.iter_mut().zip(certainty.largest.to_vec()?).for_each(|(largest, next)| largest.push(next));
        Ok(sample::guide(&with, &without, scale, Guidance::Scale)?)
    })
}
