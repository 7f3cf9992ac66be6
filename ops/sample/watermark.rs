//! A watermark: a green list of tokens, chosen by the token before, is made a little more likely.

use super::integer::fraction_of;
use super::{check_logits, check_shape};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::device::Handle;
use crate::{Error, Float, Result, Tensor, rng};

/// A watermark's key and strength.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Watermark {
    /// Whoever has it can tell green tokens.
    pub key: u64,
    /// Which share of the tokens is green, 0 to 1.
    pub green: f32,
    /// What is added to their logits.
    pub bias: f32,
}

impl Watermark {
    /// Whether `token` is green after `before`.
    #[must_use]
    pub fn is_green(&self, before: u32, token: u32) -> bool {
        let key = [self.key as u32, (self.key >> 32) as u32];
        let word = rng::philox4x32(key, [before, 0, 0, token / 4])[token as usize % 4];
        self.green >= 1.0 || word < fraction_of(self.green)
    }

    /// How many standard deviations the count of green tokens in a sequence is above what a text without the watermark
    /// has: above 4 once in thirty thousand. 0 for a sequence of fewer than two tokens.
    ///
    /// # Source
    /// Kirchenbauer et al. 2023, arXiv:2301.10226, equation 3.
    #[must_use]
    pub fn score(&self, tokens: &[u32]) -> f64 {
        let pairs = tokens.len().saturating_sub(1) as f64;
        let green = f64::from(self.green);
        let deviation = (pairs * green * (1.0 - green)).sqrt();
        if deviation == 0.0 {
            return 0.0;
        }
        let count = tokens.windows(2).filter(|pair| self.is_green(pair[0], pair[1])).count() as f64;
        (count - green * pairs) / deviation
    }
}

/// Adds the bias to the logits of each row's green list.
///
/// `y[r, i] = x[r, i] + bias` where word `i mod 4` of Philox under the key and the counter `[before[r], 0, 0, i / 4]` is
/// below `green 2^32`, else `x[r, i]`
///
/// | operand  | shape                | element        | layout     |
/// |----------|----------------------|----------------|------------|
/// | `logits` | `[rows, vocabulary]` | f32, f16, bf16 | any        |
/// | `before` | `[rows]`             | u32            | any        |
/// | returned | as `logits`          | as `logits`    | contiguous |
///
/// # Errors
/// [`Error::Shape`] if `logits` has not two axes or `before` not one token per row; [`Error::Value`] if `green` is not in
/// 0 to 1 or `bias` is not finite; [`Error::Place`] if the operands are on different devices.
///
/// # Source
/// Kirchenbauer et al. 2023, arXiv:2301.10226, algorithm 2.
pub fn watermark<T: Float>(logits: &Tensor<T>, before: &Tensor<u32>, watermark: &Watermark) -> Result<Tensor<T>> {
    const OP: &str = "watermark";
    let [rows, vocabulary] = check_logits(OP, "logits", logits)?;
    logits.device().check_same(OP, "before", before.device())?;
    check_shape(OP, "before", before.shape(), &[rows])?;
    if !(0.0..=1.0).contains(&watermark.green) {
        return Err(Error::value(OP, "green", watermark.green, "0 to 1"));
    }
    if !watermark.bias.is_finite() {
        return Err(Error::value(OP, "bias", watermark.bias, "a finite number"));
    }
    let (logits, before) = (logits.contiguous()?, before.contiguous()?);
    match logits.device().handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let y = Tensor::empty(logits.device(), logits.shape())?;
            let (from, before, to) = (logits.cuda_operand(), before.cuda_operand(), y.cuda_operand());
            super::cuda::watermark(&cuda.stream(), from, before, watermark, to)?;
            Ok(y)
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let y = Tensor::empty(logits.device(), logits.shape())?;
            gpu.record(|recorder| {
                super::wgpu::watermark(recorder, logits.operand(), before.operand(), watermark, y.operand())
            })?;
            Ok(y)
        }
        // The definition is short enough to be the CPU's as well. The sum is in f32, as everywhere.
        _ => {
            let before = before.host().as_slice().expect("contiguous");
            let rows = logits.host().as_slice().expect("contiguous").chunks(vocabulary).zip(before);
            let y = rows.flat_map(|(row, before)| {
                (0..).zip(row).map(move |(token, logit)| match watermark.is_green(*before, token) {
                    true => T::from_f32(logit.to_f32() + watermark.bias),
                    false => *logit,
                })
            });
            Tensor::from_vec(logits.device(), logits.shape(), y.collect())
        }
    }
}
