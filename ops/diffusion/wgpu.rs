//! Launchers of the WGSL kernels.

use super::{Coefficients, Denoised};
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, output_offset, params, to_u32};
use crate::{Float, Result};

const WORKGROUP: usize = 64;

params! {
    struct EulerParams {
        elements: u32,
        x_offset: u32,
        velocity_offset: u32,
        uncond_offset: u32,
        y_offset: u32,
        guided: u32,
        step: f32,
        scale: f32,
    }
}

/// [`super::flow_euler`] into `y`; all contiguous and of one shape. `y` starts on an even element, since two elements of
/// a half type share a word.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn euler(
    recorder: &mut Recorder<'_>,
    x: Operand<'_>,
    velocity: Operand<'_>,
    guide: Option<(Operand<'_>, f32)>,
    step: f32,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "euler";
    let elements = x.layout.elements();
    let (uncond, scale) = guide.unwrap_or((velocity, 1.0));
    let params = EulerParams {
        elements: to_u32(OP, "x", elements)?,
        x_offset: dense_offset(OP, "x", x)?,
        velocity_offset: dense_offset(OP, "velocity", velocity)?,
        uncond_offset: dense_offset(OP, "uncond", uncond)?,
        y_offset: output_offset(OP, y)?,
        guided: u32::from(guide.is_some()),
        step,
        scale,
    };
    let entry = format!("{OP}_{}", x.dtype);
    let workgroups = fold(OP, elements.div_ceil(2 * WORKGROUP))?;
    recorder.dispatch(&entry, &params, &[x.buffer, velocity.buffer, uncond.buffer, y.buffer], workgroups)
}

params! {
    struct DenoiseParams {
        elements: u32,
        channels: u32,
        x_offset: u32,
        model_offset: u32,
        noise_offset: u32,
        learned: u32,
        from_x: f32,
        from_epsilon: f32,
        mean_x0: f32,
        mean_x: f32,
        mean_epsilon: f32,
        least: f32,
        most: f32,
        amount: f32,
        bound: f32,
    }
}

/// [`super::ddpm_step`] and [`super::ddim_step`]: `x`, `model` and `noise`, contiguous, into tensors made for it.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub(crate) fn denoise<T: Float>(
    recorder: &mut Recorder<'_>,
    [x, model, noise]: [Operand<'_>; 3],
    coefficients: Coefficients,
    denoised: &Denoised<T>,
) -> Result<()> {
    const OP: &str = "denoise";
    let elements = x.layout.elements();
    let [least, most] = coefficients.learned.unwrap_or_default();
    let params = DenoiseParams {
        elements: to_u32(OP, "x", elements)?,
        channels: to_u32(OP, "x", x.shape().last().copied().unwrap_or(1))?,
        x_offset: dense_offset(OP, "x", x)?,
        model_offset: dense_offset(OP, "model", model)?,
        noise_offset: dense_offset(OP, "noise", noise)?,
        learned: u32::from(coefficients.learned.is_some()),
        from_x: coefficients.from_x as f32,
        from_epsilon: coefficients.from_epsilon as f32,
        mean_x0: coefficients.mean_x0 as f32,
        mean_x: coefficients.mean_x as f32,
        mean_epsilon: coefficients.mean_epsilon as f32,
        least: least as f32,
        most: most as f32,
        amount: coefficients.amount as f32,
        bound: coefficients.bound as f32,
    };
    let entry = format!("{OP}_{}", x.dtype);
    let outputs = [&denoised.x0, &denoised.mean, &denoised.log_variance, &denoised.y].map(|y| y.operand().buffer);
    let buffers = [&[x.buffer, model.buffer, noise.buffer], outputs.as_slice()].concat();
    recorder.dispatch(&entry, &params, &buffers, fold(OP, elements.div_ceil(2 * WORKGROUP))?)
}
