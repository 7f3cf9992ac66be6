//! Vectorised over the channels of a row, spread over threads by rows.

use crate::backend::cpu::{Cpu, vectorised};
use crate::{Float, View, ViewMut};

/// Partial sums of a row: enough to hide an addition's latency, and always the same, so that a row's sum depends on
/// nothing but the row.
const LANES: usize = 32;

/// [`super::rms_norm`] over contiguous operands.
pub fn rms_norm<T: Float>(cpu: &Cpu, x: View<'_, T>, weight: Option<View<'_, f32>>, eps: f32, mut y: ViewMut<'_, T>) {
    let channels = x.shape()[x.shape().len() - 1];
    let x = x.as_slice().expect("contiguous");
    let weight = weight.map(|weight| weight.as_slice().expect("contiguous"));
    let y = y.as_mut_slice().expect("contiguous");
    cpu.rows(y, channels, |row, y| {
        let mut wide = vec![0.0; channels];
        T::widen(&x[row * channels..][..channels], &mut wide);
        vectorised(
            #[inline(always)]
            || {
                let scale = 1.0 / (sum_of_squares(&wide) / channels as f32 + eps).sqrt();
                match weight {
                    Some(weight) => wide.iter_mut().zip(weight).for_each(|(x, weight)| *x *= scale * weight),
                    None => wide.iter_mut().for_each(|x| *x *= scale),
                }
            },
        );
        T::narrow(&wide, y);
    });
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let chunks = x.chunks_exact(LANES);
    for (sum, x) in sums.iter_mut().zip(chunks.remainder()) {
        *sum = x * x;
    }
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    sums.iter().sum()
}
