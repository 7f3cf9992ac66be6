//! Launchers of the PTX kernels.

use crate::Result;
use crate::backend::cuda::{Argument, Operand, Stream, aligned, dense, rows_launch, to_u32};

/// [`super::l2_normalise`] into `y`, over contiguous operands. `y` may be `x` itself.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn l2_normalise(stream: &Stream<'_>, x: Operand<'_>, y: Operand<'_>) -> Result<()> {
    const OP: &str = "l2_normalise";
    let channels = *x.shape().last().unwrap_or(&1);
    let rows = x.layout.elements() / channels.max(1);
    let arguments = [
        dense(OP, "x", x)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "x", rows)?),
        Argument::U32(to_u32(OP, "x", channels)?),
    ];
    let entry = format!("l2_normalise_{}{}", x.dtype, aligned(x.dtype, channels, &[x, y]));
    let (grid, block) = rows_launch(OP, rows, channels)?;
    stream.launch(&entry, grid, block, 0, &arguments)
}
