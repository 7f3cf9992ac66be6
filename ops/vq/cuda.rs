//! Launchers of the PTX kernels.

use super::Metric;
use crate::backend::cuda::{Argument, Operand, Stream, aligned, blocks, dense, per_thread, starts_on, to_u32};
use crate::{Dtype, Error, Result};

/// Vectors that a block of `nearest` takes.
const VECTORS: usize = 4;
/// Threads of a block of `nearest` and `nearest_list`.
const BLOCK: u32 = 128;
/// Threads of a block of the kernels without a codebook.
const ELEMENTS: u32 = 256;

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

/// [`super::nearest`] into `indices` and `distances`, over contiguous operands; the codebook is f32 `[groups, codes,
/// dim]`.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous, or the codebook has not three axes.
pub fn nearest_list(
    stream: &Stream<'_>,
    x: Operand<'_>,
    codebook: Operand<'_>,
    metric: Metric,
    indices: Operand<'_>,
    distances: Operand<'_>,
) -> Result<()> {
    const OP: &str = "nearest";
    let (&[groups, codes, dim], Some(&count)) = (codebook.shape(), indices.shape().last()) else {
        return Err(Error::shape(OP, "codebook", codebook.shape(), "[groups, codes, dim]"));
    };
    let arguments = [
        dense(OP, "x", x)?,
        dense(OP, "codebook", codebook)?,
        dense(OP, "indices", indices)?,
        dense(OP, "distances", distances)?,
        Argument::U32(to_u32(OP, "codebook", groups)?),
        Argument::U32(to_u32(OP, "codebook", codes)?),
        Argument::U32(to_u32(OP, "codebook", dim)?),
        Argument::U32(to_u32(OP, "indices", count)?),
        Argument::U32(u32::from(metric == Metric::Cosine)),
    ];
    let vectors = indices.layout.elements() / count.max(1);
    let entry = format!("nearest_list_{}{}", x.dtype, aligned(codebook.dtype, dim, &[codebook]));
    stream.launch(&entry, [blocks(OP, vectors, 1)?, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}

/// The digits of [`super::fsq`] and [`super::lfq`], over contiguous operands; as [`super::reference::digits`].
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn digits(
    stream: &Stream<'_>,
    x: Operand<'_>,
    bounds: Operand<'_>,
    bounded: Operand<'_>,
    digits: Operand<'_>,
) -> Result<()> {
    const OP: &str = "digits";
    let elements = x.layout.elements();
    let aligned = aligned(Dtype::U32, elements, &[x, bounds, bounded, digits]);
    let operands = [("x", x), ("bounds", bounds), ("bounded", bounded), ("digits", digits)];
    let entry = format!("{OP}_{}{aligned}", x.dtype);
    by_table(stream, OP, &entry, &operands, (elements, per_thread(Dtype::U32, aligned)), bounds)
}

/// Codes from digits, over contiguous operands; as [`super::reference::codes`].
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn codes(stream: &Stream<'_>, digits: Operand<'_>, scales: Operand<'_>, y: Operand<'_>) -> Result<()> {
    const OP: &str = "codes";
    let elements = y.layout.elements();
    let aligned = aligned(Dtype::U32, elements, &[digits, scales, y]);
    let operands = [("digits", digits), ("scales", scales), ("y", y)];
    let entry = format!("{OP}_{}{aligned}", y.dtype);
    by_table(stream, OP, &entry, &operands, (elements, per_thread(Dtype::U32, aligned)), scales)
}

/// [`super::pack`], over contiguous operands; as [`super::reference::pack`].
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn pack(stream: &Stream<'_>, digits: Operand<'_>, bases: Operand<'_>, indices: Operand<'_>) -> Result<()> {
    const OP: &str = "pack";
    let operands = [("digits", digits), ("bases", bases), ("indices", indices)];
    // A block counts its digits in 32 bits.
    let channels = bases.shape().first().copied().unwrap_or(1);
    let entry = if starts_on(16, digits) && channels <= 1 << 23 { "pack_together" } else { OP };
    by_table(stream, OP, entry, &operands, (indices.layout.elements(), 1), bases)
}

/// [`super::unpack`], over contiguous operands; as [`super::reference::unpack`].
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn unpack(stream: &Stream<'_>, indices: Operand<'_>, bases: Operand<'_>, digits: Operand<'_>) -> Result<()> {
    const OP: &str = "unpack";
    let elements = digits.layout.elements();
    let aligned = aligned(Dtype::U32, elements, &[bases, digits]);
    let operands = [("indices", indices), ("bases", bases), ("digits", digits)];
    let entry = format!("{OP}{aligned}");
    by_table(stream, OP, &entry, &operands, (elements, per_thread(Dtype::U32, aligned)), bases)
}

/// A thread for so many of the elements; `table` has a row for each channel.
fn by_table(
    stream: &Stream<'_>,
    op: &'static str,
    entry: &str,
    operands: &[(&'static str, Operand<'_>)],
    (elements, each): (usize, usize),
    table: Operand<'_>,
) -> Result<()> {
    let mut arguments = operands.iter().map(|(name, operand)| dense(op, name, *operand)).collect::<Result<Vec<_>>>()?;
    arguments.push(Argument::U32(to_u32(op, "elements", elements)?));
    arguments.push(Argument::U32(to_u32(op, "channels", table.shape().first().copied().unwrap_or(1))?));
    stream.launch(entry, [blocks(op, elements, ELEMENTS as usize * each)?, 1, 1], [ELEMENTS, 1, 1], 0, &arguments)
}
