//! Launchers of the PTX kernels.

use super::{Coefficients, Denoised};
use crate::backend::cuda::{Argument, Operand, Stream, aligned, blocks, dense, dense_or_absent, per_thread, to_u32};
use crate::{Float, Result, Tensor};

const BLOCK: u32 = 256;

/// [`super::flow_euler`] into `y`; all contiguous and of one shape. `y` may be `x` itself.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn euler(
    stream: &Stream<'_>,
    x: Operand<'_>,
    velocity: Operand<'_>,
    guide: Option<(Operand<'_>, f32)>,
    step: f32,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "euler";
    let elements = x.layout.elements();
    let uncond = guide.map(|(uncond, _)| uncond);
    let arguments = [
        dense(OP, "x", x)?,
        dense(OP, "velocity", velocity)?,
        dense_or_absent(OP, "uncond", uncond)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "x", elements)?),
        Argument::F32(step),
        Argument::F32(guide.map_or(1.0, |(_, scale)| scale)),
    ];
    let operands: Vec<_> = [x, velocity, y].into_iter().chain(uncond).collect();
    let aligned = aligned(x.dtype, elements, &operands);
    let grid = blocks(OP, elements, BLOCK as usize * per_thread(x.dtype, aligned))?;
    stream.launch(&format!("{OP}_{}{aligned}", x.dtype), [grid, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}

/// [`super::ddpm_step`] and [`super::ddim_step`]: `x`, `model` and `noise`, contiguous, into tensors made for it.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub(crate) fn denoise<T: Float>(
    stream: &Stream<'_>,
    [x, model, noise]: [Operand<'_>; 3],
    coefficients: Coefficients,
    denoised: &Denoised<T>,
) -> Result<()> {
    const OP: &str = "denoise";
    let elements = x.layout.elements();
    let channels = x.shape().last().copied().unwrap_or(1);
    let [x0, mean, log_variance, y] =
        [&denoised.x0, &denoised.mean, &denoised.log_variance, &denoised.y].map(Tensor::cuda_operand);
    let [least, most] = coefficients.learned.unwrap_or_default();
    let arguments = [
        dense(OP, "x", x)?,
        dense(OP, "model", model)?,
        dense(OP, "noise", noise)?,
        dense(OP, "x0", x0)?,
        dense(OP, "mean", mean)?,
        dense(OP, "log_variance", log_variance)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "x", elements)?),
        Argument::U32(to_u32(OP, "x", channels)?),
        Argument::U32(u32::from(coefficients.learned.is_some())),
        Argument::F32(coefficients.from_x as f32),
        Argument::F32(coefficients.from_epsilon as f32),
        Argument::F32(coefficients.mean_x0 as f32),
        Argument::F32(coefficients.mean_x as f32),
        Argument::F32(coefficients.mean_epsilon as f32),
        Argument::F32(least as f32),
        Argument::F32(most as f32),
        Argument::F32(coefficients.amount as f32),
        Argument::F32(coefficients.bound as f32),
    ];
    // As many channels as whole runs fill: then each lies in one row, and so does the model's.
    let aligned = aligned(x.dtype, channels, &[x, model, noise, x0, mean, log_variance, y]);
    let grid = blocks(OP, elements, BLOCK as usize * per_thread(x.dtype, aligned))?;
    stream.launch(&format!("{OP}_{}{aligned}", x.dtype), [grid, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}
