//! Launcher of the PTX kernel.

use crate::backend::cuda::{Argument, Operand, Stream, blocks, dense, to_u32};
use crate::{Error, Result};

/// Rows of `y` that a block of the kernel makes, a warp each.
const ROWS: u32 = 8;

/// [`super::resize`] over contiguous operands. `plan` holds, per row and then per column of `y`, the first place it
/// reads and where its weights start (`[rows + columns, 2]`); a run of weights ends where the next one starts.
///
/// # Errors
/// [`Error::Shape`] if an operand has another shape or is not contiguous.
pub fn resize(
    stream: &Stream<'_>,
    x: Operand<'_>,
    plan: Operand<'_>,
    weights: Operand<'_>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "resize";
    let (&[batch, channels, height, width], &[_, _, rows, columns]) = (x.shape(), y.shape()) else {
        return Err(Error::shape(OP, "x", x.shape(), "four axes: [batch, channels, height, width]"));
    };
    let planes = batch * channels;
    to_u32(OP, "x", planes * height)?;
    to_u32(OP, "y", planes * rows)?;
    let arguments = [
        dense(OP, "x", x)?,
        dense(OP, "plan", plan)?,
        dense(OP, "weights", weights)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "x", planes)?),
        Argument::U32(to_u32(OP, "x", height)?),
        Argument::U32(to_u32(OP, "x", width)?),
        Argument::U32(to_u32(OP, "y", rows)?),
        Argument::U32(to_u32(OP, "y", columns)?),
        Argument::U32(to_u32(OP, "weights", weights.layout.elements())?),
    ];
    let grid = blocks(OP, planes * rows, ROWS as usize)?;
    stream.launch(&format!("resize_{}", x.dtype), [grid, 1, 1], [32, ROWS, 1], 0, &arguments)
}
