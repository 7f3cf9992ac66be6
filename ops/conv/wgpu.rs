//! Launcher of the WGSL kernel.

use super::Geometry;
use crate::Result;
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, output_offset, params, to_u32};

params! {
    struct Conv2dParams {
        count: u32,
        channels_in: u32,
        height: u32,
        width: u32,
        channels_out: u32,
        kernel_height: u32,
        kernel_width: u32,
        rows: u32,
        columns: u32,
        stride: u32,
        top: u32,
        left: u32,
        y_offset: u32,
        x_offset: u32,
        weight_offset: u32,
        bias_offset: u32,
        has_bias: u32,
    }
}

/// [`super::conv2d`] over contiguous operands; the weight in f32, f16 or bf16. `y` starts on an even element.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn conv2d(
    recorder: &mut Recorder<'_>,
    x: Operand<'_>,
    weight: Operand<'_>,
    bias: Option<Operand<'_>>,
    g: Geometry,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "conv2d";
    let count = y.layout.elements();
    let size = |value: usize| to_u32(OP, "x", value);
    let params = Conv2dParams {
        count: to_u32(OP, "y", count)?,
        channels_in: size(g.channels_in)?,
        height: size(g.height)?,
        width: size(g.width)?,
        channels_out: size(g.channels_out)?,
        kernel_height: size(g.kernel_height)?,
        kernel_width: size(g.kernel_width)?,
        rows: size(g.rows)?,
        columns: size(g.columns)?,
        stride: size(g.stride)?,
        top: size(g.top)?,
        left: size(g.left)?,
        y_offset: output_offset(OP, y)?,
        x_offset: dense_offset(OP, "x", x)?,
        weight_offset: dense_offset(OP, "weight", weight)?,
        bias_offset: bias.map_or(Ok(0), |bias| dense_offset(OP, "bias", bias))?,
        has_bias: u32::from(bias.is_some()),
    };
    let entry = format!("conv2d_{}_w{}", x.dtype, weight.dtype);
    let bias = bias.map_or(weight.buffer, |bias| bias.buffer);
    let workgroups = fold(OP, count.div_ceil(2 * 64))?;
    recorder.dispatch(&entry, &params, &[x.buffer, weight.buffer, bias, y.buffer], workgroups)
}
