//! Launchers of the PTX kernels.

use crate::backend::cuda::{Argument, Operand, Stream, blocks, dense, dense_or_absent, to_u32};
use crate::{Error, Result};

/// Rows of a block of the kernel, a warp each.
const ROWS: u32 = 8;

/// [`super::embedding`] into `y`, over contiguous operands; `scale` is that of an int8 table.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit or an operand is not contiguous.
pub fn embedding(
    stream: &Stream<'_>,
    ids: Operand<'_>,
    table: Operand<'_>,
    scale: Option<Operand<'_>>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "embedding";
    let &[entries, channels] = table.shape() else {
        return Err(Error::shape(OP, "table", table.shape(), "two axes: entries and channels"));
    };
    if let Some(scale) = scale
        && scale.shape() != [entries]
    {
        return Err(Error::shape(OP, "scale", scale.shape(), format!("[{entries}]")));
    }
    let rows = ids.layout.elements();
    if y.layout.elements() != rows * channels {
        return Err(Error::shape(OP, "y", y.shape(), format!("{channels} channels for each of ids {:?}", ids.shape())));
    }
    let arguments = [
        dense(OP, "ids", ids)?,
        dense(OP, "table", table)?,
        dense_or_absent(OP, "scale", scale)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "ids", rows)?),
        Argument::U32(to_u32(OP, "table", entries)?),
        Argument::U32(to_u32(OP, "table", channels)?),
    ];
    let entry = format!("embedding_{}_table_{}", y.dtype, table.dtype);
    let grid = blocks(OP, rows, ROWS as usize)?;
    stream.launch(&entry, [grid, 1, 1], [32, ROWS, 1], 0, &arguments)
}
