//! Launchers of the WGSL kernels.

use crate::Result;
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, output_offset, params, to_u32};

params! {
    struct RmsNormParams {
        rows: u32,
        channels: u32,
        y_offset: u32,
        x_offset: u32,
        weight_offset: u32,
        has_weight: u32,
        eps: f32,
    }
}

/// [`super::rms_norm`] into `y`, over contiguous operands. `y` starts on an even
/// element, since two elements of a half type share a word.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn rms_norm(
    recorder: &mut Recorder<'_>,
    x: Operand<'_>,
    weight: Option<Operand<'_>>,
    eps: f32,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "rms_norm";
    let channels = *x.shape().last().unwrap_or(&1);
    let rows = x.layout.elements() / channels.max(1);
    // A row that ends inside a word shares it with the next row, so both go to one workgroup.
    let workgroups = rows.div_ceil(1 + channels % 2);
    let params = RmsNormParams {
        rows: to_u32(OP, "x", rows)?,
        channels: to_u32(OP, "x", channels)?,
        y_offset: output_offset(OP, y)?,
        x_offset: dense_offset(OP, "x", x)?,
        weight_offset: weight.map_or(Ok(0), |weight| dense_offset(OP, "weight", weight))?,
        has_weight: u32::from(weight.is_some()),
        eps,
    };
    let weight = weight.map_or(x.buffer, |weight| weight.buffer);
    let entry = format!("rms_norm_{}", x.dtype);
    recorder.dispatch(&entry, &params, &[x.buffer, weight, y.buffer], fold(OP, workgroups)?)
}
