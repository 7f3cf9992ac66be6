//! Drafts of a diffusion head: a token is the end of a denoising path, and paths have densities under both models.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::device::Handle;
use crate::sample::{check_shape, cpu_rows};
use crate::{Error, Result, Tensor};

/// The Gaussians of a model at every step of each draft's path.
#[derive(Debug, Clone, Copy)]
pub struct Gaussians<'a> {
    /// `[batch, drafts, steps, channels]`.
    pub mean: &'a Tensor<f32>,
    /// As the means: natural logarithms.
    pub log_variance: &'a Tensor<f32>,
}

/// What is said of a window of continuous drafts.
#[derive(Debug, Clone)]
pub struct PathsVerified {
    /// `[batch, drafts]`: the logarithm of the path's density under the target over that under the draft model.
    pub log_ratio: Tensor<f32>,
    /// `[batch, drafts]`: 1 where the draft passes, also after the first that does not.
    pub kept: Tensor<u32>,
    /// `[batch]`: the drafts before the first that does not.
    pub accepted: Tensor<u32>,
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
impl PathsVerified {
    fn empty(device: &crate::Device, batch: usize, drafts: usize) -> Result<Self> {
        Ok(Self {
            log_ratio: Tensor::empty(device, &[batch, drafts])?,
            kept: Tensor::empty(device, &[batch, drafts])?,
            accepted: Tensor::empty(device, &[batch])?,
        })
    }
}

/// Verifies drafts of a diffusion head by the densities of their denoising paths.
///
/// A draft passes iff `u < min(1, q / p)`, `p` and `q` the densities of its path `x` under the draft and the target model:
/// the products over steps and channels of `N(x; mean, exp(log_variance))`. A draft that does not pass is replaced by a
/// path drawn from the target that passes [`takes_residual`]; then paths, and so tokens, have exactly the target's law.
/// Where the ratio of densities is not a number, neither lets a path pass.
///
/// | operand          | shape                              | element | layout |
/// |------------------|------------------------------------|---------|--------|
/// | `x`              | `[batch, drafts, steps, channels]` | f32     | any    |
/// | `draft`, `target`| as `x`                             | f32     | any    |
/// | `uniforms`       | `[batch, drafts]`                  | f32     | any    |
///
/// Row `t` of `x` is the state drawn in step `t`, given which the Gaussians of step `t + 1` were computed by both models.
/// Sums are in f32.
///
/// # Errors
/// [`Error::Shape`] if the operands do not fit each other; [`Error::Place`] if they are on different devices.
///
/// # Source
/// Wang et al. 2024, arXiv:2411.11925 (CSpD), section 4.
pub fn verify_paths(
    x: &Tensor<f32>,
    draft: Gaussians<'_>,
    target: Gaussians<'_>,
    uniforms: &Tensor<f32>,
) -> Result<PathsVerified> {
    const OP: &str = "verify_paths";
    let &[batch, drafts, steps, channels] = x.shape() else {
        return Err(Error::shape(OP, "x", x.shape(), "[batch, drafts, steps, channels]"));
    };
    let device = x.device();
    let inputs = [
        ("the draft's mean", draft.mean),
        ("the draft's log_variance", draft.log_variance),
        ("the target's mean", target.mean),
        ("the target's log_variance", target.log_variance),
    ];
    for (operand, other) in inputs {
        device.check_same(OP, operand, other.device())?;
        check_shape(OP, operand, other.shape(), x.shape())?;
    }
    device.check_same(OP, "uniforms", uniforms.device())?;
    check_shape(OP, "uniforms", uniforms.shape(), &[batch, drafts])?;
    let (x, uniforms) = (x.contiguous()?, uniforms.contiguous()?);
    let terms = steps * channels;
    match device.handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let [p_mean, p_spread] = [draft.mean.contiguous()?, draft.log_variance.contiguous()?];
            let [q_mean, q_spread] = [target.mean.contiguous()?, target.log_variance.contiguous()?];
            let p = Gaussians { mean: &p_mean, log_variance: &p_spread };
            let q = Gaussians { mean: &q_mean, log_variance: &q_spread };
            let verified = PathsVerified::empty(device, batch, drafts)?;
            super::cuda::path(&cuda.stream(), x.cuda_operand(), [p, q], uniforms.cuda_operand(), &verified)?;
            Ok(verified)
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            // One binding for both: WebGPU has eight.
            let together = |gaussians: Gaussians<'_>| -> Result<Tensor<f32>> {
                let both = Tensor::zeros(device, &[2, batch, drafts, steps, channels])?;
                for (row, tensor) in [(0, gaussians.mean), (1, gaussians.log_variance)] {
                    let from = tensor.reshape(&[1, batch, drafts, steps, channels])?;
                    crate::copy::copy_into(&from, &mut both.narrow(0, row, 1)?)?;
                }
                Ok(both)
            };
            let (p, q) = (together(draft)?, together(target)?);
            let verified = PathsVerified::empty(device, batch, drafts)?;
            gpu.record(|recorder| {
                let inputs = [x.operand(), p.operand(), q.operand(), uniforms.operand()];
                super::wgpu::path(recorder, inputs, terms, &verified)
            })?;
            Ok(verified)
        }
        _ => {
            let dense = [draft.mean, draft.log_variance, target.mean, target.log_variance].map(Tensor::contiguous);
            let [p_mean, p_spread, q_mean, q_spread] = dense;
            let (p_mean, p_spread, q_mean, q_spread) = (p_mean?, p_spread?, q_mean?, q_spread?);
            let slices = [&x, &p_mean, &p_spread, &q_mean, &q_spread]
                .map(|tensor| tensor.host().as_slice().expect("contiguous"));
            let ratio = |(): &mut (), row: usize| {
                let [x, p_mean, p_spread, q_mean, q_spread] = slices.map(|slice| &slice[row * terms..][..terms]);
                let density = |x: f32, mean: f32, spread: f32| {
                    let (x, mean, spread) = (f64::from(x), f64::from(mean), f64::from(spread));
                    -0.5 * ((x - mean).powi(2) * (-spread).exp() + spread)
                };
                let term =
                    |at: usize| density(x[at], q_mean[at], q_spread[at]) - density(x[at], p_mean[at], p_spread[at]);
                Ok((0..terms).map(term).sum::<f64>() as f32)
            };
            let ratios = cpu_rows(device, batch * drafts, batch * drafts * terms, ratio)?;
            let uniforms = uniforms.host().as_slice().expect("contiguous");
            // min would take a NaN for 0.
            let passes = |(ratio, u): (&f32, &f32)| !ratio.is_nan() && *u < ratio.min(0.0).exp();
            let kept: Vec<u32> = ratios.iter().zip(uniforms).map(passes).map(u32::from).collect();
            let accepted = |sequence: usize| {
                kept[sequence * drafts..][..drafts].iter().take_while(|kept| **kept == 1).count() as u32
            };
            Ok(PathsVerified {
                accepted: Tensor::from_vec(device, &[batch], (0..batch).map(accepted).collect())?,
                log_ratio: Tensor::from_vec(device, &[batch, drafts], ratios)?,
                kept: Tensor::from_vec(device, &[batch, drafts], kept)?,
            })
        }
    }
}

/// Whether a path drawn from the target stands for a rejected draft: `u < max(1 - p / q, 0)`, from the logarithm of
/// `q / p`. Else another is drawn.
#[must_use]
pub fn takes_residual(log_ratio: f32, u: f32) -> bool {
    u < 1.0 - (-log_ratio).exp()
}
