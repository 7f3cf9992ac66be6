//! Launcher of the WGSL kernel.

use crate::Result;
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, output_offset, params, to_u32};

params! {
    struct ResizeParams {
        count: u32,
        height: u32,
        width: u32,
        rows: u32,
        columns: u32,
        weight_count: u32,
        y_offset: u32,
        x_offset: u32,
        plan_offset: u32,
        weights_offset: u32,
    }
}

/// [`super::resize`] over contiguous operands. `plan` holds, per row and then per column of `y`, the first place it
/// reads and where its weights start (`[rows + columns, 2]`); a run of weights ends where the next one starts.
/// `y` starts on an even element.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn resize(
    recorder: &mut Recorder<'_>,
    x: Operand<'_>,
    plan: Operand<'_>,
    weights: Operand<'_>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "resize";
    let (&[_, _, height, width], &[_, _, rows, columns]) = (x.shape(), y.shape()) else {
        return Err(crate::Error::shape(OP, "x", x.shape(), "four axes: [batch, channels, height, width]"));
    };
    let count = y.layout.elements();
    let params = ResizeParams {
        count: to_u32(OP, "y", count)?,
        height: to_u32(OP, "x", height)?,
        width: to_u32(OP, "x", width)?,
        rows: to_u32(OP, "y", rows)?,
        columns: to_u32(OP, "y", columns)?,
        weight_count: to_u32(OP, "weights", weights.layout.elements())?,
        y_offset: output_offset(OP, y)?,
        x_offset: dense_offset(OP, "x", x)?,
        plan_offset: dense_offset(OP, "plan", plan)?,
        weights_offset: dense_offset(OP, "weights", weights)?,
    };
    let entry = format!("resize_{}", x.dtype);
    let workgroups = fold(OP, count.div_ceil(2 * 64))?;
    recorder.dispatch(&entry, &params, &[x.buffer, plan.buffer, weights.buffer, y.buffer], workgroups)
}
