//! Launcher of the PTX kernel.

use super::Metric;
use crate::backend::cuda::{Argument, Operand, Stream, aligned, blocks, dense, to_u32};
use crate::{Error, Result};

/// Vectors that a block of the kernel takes, and its threads.
const VECTORS: usize = 4;
const BLOCK: u32 = 128;

/// [`super::nearest_l2`] and [`super::nearest_cosine`] into `y`, over contiguous operands; the codebook in f32.
///
/// # Errors
/// [`Error::Shape`] if the codebook has not two axes or an operand is not contiguous.
pub fn nearest(
    stream: &Stream<'_>,
    x: Operand<'_>,
    codebook: Operand<'_>,
    metric: Metric,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "nearest";
    let &[codes, dim] = codebook.shape() else {
        return Err(Error::shape(OP, "codebook", codebook.shape(), "two axes: codes and dim"));
    };
    let vectors = y.layout.elements();
    let arguments = [
        dense(OP, "x", x)?,
        dense(OP, "codebook", codebook)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "x", vectors)?),
        Argument::U32(to_u32(OP, "codebook", codes)?),
        Argument::U32(to_u32(OP, "codebook", dim)?),
        Argument::U32(u32::from(metric == Metric::Cosine)),
    ];
    let entry = format!("nearest_{}{}", x.dtype, aligned(codebook.dtype, dim, &[codebook]));
    stream.launch(&entry, [blocks(OP, vectors, VECTORS)?, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}
