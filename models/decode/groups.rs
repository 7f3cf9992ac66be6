//! Group after group of places, each from all before it.

use std::ops::Range;

use smalti::{Device, Float, Tensor, copy};

use super::{Order, Sampler, Step, Steps};
use crate::Result;
use crate::generator::drawn_around;
use crate::zoo::codes::go_on;

/// Draws the tokens of `batch` pictures, `[batch, places]` in raster order, in groups of these sizes along `order`. `logits`
/// gives the guided logits of a group's places, `[batch, count, vocabulary]`, given the tokens of the group before it, if
/// there was one. Where some cells are `known`, an entry for each, these take their own tokens, whatever is drawn.
///
/// # Errors
/// As `logits`, or [`crate::Error::Interrupted`] if `steps` breaks off.
pub fn in_groups<T: Float>(
    device: &Device,
    batch: usize,
    order: Order<'_>,
    sizes: impl IntoIterator<Item = usize>,
    known: &[Option<u32>],
    sampler: &Sampler<'_>,
    steps: Steps<'_, T>,
    mut logits: impl FnMut(Option<&Tensor<u32>>, Range<usize>) -> Result<Tensor<T>>,
) -> Result<Tensor<u32>> {
    let mut drawn = Tensor::<u32>::zeros(device, &[batch, order.places()])?;
    let mut before = None;
    let mut settled = 0;
    for count in sizes {
        let logits = logits(before.as_ref(), settled..settled + count)?;
        let cells = order.cells(settled, count);
        let known: Vec<_> = cells.of(0, count).into_iter().filter_map(|cell| known.get(cell).copied()).collect();
        let tokens = drawn_around(sampler.draw(&logits, settled)?, &known)?;
        copy::copy_into_slice(&tokens, &mut drawn, 1, settled)?;
        settled += count;
        go_on(steps(Step { settled, logits: &logits, tokens: &tokens, cells, latents: None }))?;
        before = Some(tokens);
    }
    order.in_raster(drawn)
}
