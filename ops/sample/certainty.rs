//! How sure a prediction is, for guidance that follows it.

use super::Weights;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::device::Handle;
use crate::{Result, Tensor};

/// How sure each row is.
#[derive(Debug, Clone)]
pub struct Certainty {
    /// `[rows]`: the largest probability.
    pub largest: Tensor<f32>,
    /// `[rows]`: the entropy, in natural units.
    pub entropy: Tensor<f32>,
}

/// The largest probability and the entropy of each row: `max p` and `- sum p ln p`. On a GPU both are 0 for a row that
/// cannot be drawn from.
///
/// # Errors
/// [`crate::Error::Device`] if the device has no room.
pub fn certainty(weights: &Weights) -> Result<Certainty> {
    let device = weights.tensor().device();
    let [rows, _] = weights.shape();
    match device.handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let certainty =
                Certainty { largest: Tensor::empty(device, &[rows])?, entropy: Tensor::empty(device, &[rows])? };
            super::cuda::certainty(&cuda.stream(), weights.tensor().cuda_operand(), &certainty)?;
            Ok(certainty)
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let certainty =
                Certainty { largest: Tensor::empty(device, &[rows])?, entropy: Tensor::empty(device, &[rows])? };
            gpu.record(|recorder| super::wgpu::certainty(recorder, weights.tensor().operand(), &certainty))?;
            Ok(certainty)
        }
        _ => {
            let each = |row: &[u32]| {
                let total: f64 = row.iter().map(|weight| f64::from(*weight)).sum();
                let probabilities = || row.iter().filter(|w| **w > 0).map(|weight| f64::from(*weight) / total);
                let entropy: f64 = probabilities().map(|p| -p * p.ln()).sum();
                (probabilities().fold(0.0, f64::max) as f32, entropy as f32)
            };
            let (largest, entropy) = weights.host_rows().map(each).unzip();
            Ok(Certainty {
                largest: Tensor::from_vec(device, &[rows], largest)?,
                entropy: Tensor::from_vec(device, &[rows], entropy)?,
            })
        }
    }
}

/// How strongly the token at each place is taken out of the unconditional context, from the largest probability it was
/// drawn under: `1 - largest`, so that what was certain stays. Together they are at most 1, so that the perturbation does
/// not grow with the sequence. The values of place `i` in the unconditional cache are multiplied by one minus this.
///
/// # Source
/// Xu et al. 2025, arXiv:2510.00996 (SoftCFG): the certainty weights, and a bound on their sum.
#[must_use]
pub fn soft_guidance(largest: &[f32]) -> Vec<f32> {
    let weights: Vec<f32> = largest.iter().map(|largest| 1.0 - largest.clamp(0.0, 1.0)).collect();
    let scale = weights.iter().sum::<f32>().max(1.0);
    weights.iter().map(|weight| weight / scale).collect()
}
