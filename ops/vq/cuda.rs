//! Launchers of the PTX kernels.

use super::Metric;
use crate::backend::cuda::{Argument, Operand, Stream, aligned, blocks, dense, per_thread, starts_on, to_u32};
use crate::{Dtype, Error, Result};

/// Vectors, and codes, that a block of `nearest_mma` takes at once.
const TILE: usize = 128;
/// Most codes of `nearest_mma`: one and a place in a tile share a word.
const MAX_CODES: usize = 1 << 25;
/// Shared memory of `nearest_mma`: four stages of two operands, a pair for each vector; what is to be measured, with its
/// count.
const STAGES_BYTES: u32 = (4 * 2 * 64 + 8) * TILE as u32;
const LIST_BYTES: u32 = 4 * 1024 + 16;
/// Vectors that a block of `nearest` takes.
const VECTORS: usize = 4;
/// Threads of a block of `nearest` and `nearest_list`.
const BLOCK: u32 = 128;
/// Threads of a block of the kernels without a codebook.
const ELEMENTS: u32 = 256;

/// Words that [`nearest`] needs beside its operands: of vectors and codes bf16 copies, then four words about each.
///
/// None if there are too few of either for tensor cores; then it needs nothing.
pub fn scratch([vectors, codes, dim]: [usize; 3]) -> Option<[usize; 4]> {
    // As long as a tile is well filled, and its products are more than what comes before and after them.
    if vectors < TILE / 2 || !(2 * TILE..=MAX_CODES).contains(&codes) || vectors * codes < 1 << 16 {
        return None;
    }
    let [vectors, codes] = [vectors, codes].map(|rows| rows.next_multiple_of(TILE));
    let width = dim.next_multiple_of(32);
    Some([vectors * width / 2, codes * width / 2, 4 * vectors, 4 * codes])
}

/// [`super::nearest_l2`] and [`super::nearest_cosine`] into `y`, over contiguous operands; the codebook in f32.
/// `scratch` as [`scratch`] says, in any contents; the result does not depend on it.
///
/// # Errors
/// [`Error::Shape`] if the codebook has not two axes or an operand is not contiguous.
pub fn nearest(
    stream: &Stream<'_>,
    x: Operand<'_>,
    codebook: Operand<'_>,
    metric: Metric,
    y: Operand<'_>,
    scratch: Option<[Operand<'_>; 4]>,
) -> Result<()> {
    const OP: &str = "nearest";
    if let Some(scratch) = scratch {
        return on_tensor_cores(stream, x, codebook, metric, y, scratch);
    }
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

/// [`nearest`] by its products in bf16, which leave one or two codes per vector to measure.
fn on_tensor_cores(
    stream: &Stream<'_>,
    x: Operand<'_>,
    codebook: Operand<'_>,
    metric: Metric,
    y: Operand<'_>,
    scratch: [Operand<'_>; 4],
) -> Result<()> {
    const OP: &str = "nearest";
    let &[codes, dim] = codebook.shape() else {
        return Err(Error::shape(OP, "codebook", codebook.shape(), "two axes: codes and dim"));
    };
    let vectors = y.layout.elements();
    let [x_halves, codes_halves, x_about, codes_about] = scratch.map(|scratch| Argument::Address(scratch.address()));
    let word = |value| to_u32(OP, "codebook", value).map(Argument::U32);
    let width = dim.next_multiple_of(32);
    // Of rows of length 1: rounding two values to bf16 moves their product by 2^-8, and a sum of f32 products, cut off
    // rather than rounded, by less than 2^-22 for each; a sum of squares in f32, in any order, by 2^-23 for each.
    let [products, squares] = [2f32.powi(-8) * 1.01 + dim as f32 * 2f32.powi(-22), (dim + 32) as f32 * 2f32.powi(-23)];
    let slack = if metric == Metric::Cosine { products + squares } else { products };
    let kinds = [
        (x, vectors, x_halves, x_about, 2),
        (codebook, codes, codes_halves, codes_about, u32::from(metric == Metric::Cosine)),
    ];
    for (rows_of, rows, halves, about, kind) in kinds {
        let padded = rows.next_multiple_of(TILE);
        let arguments = [
            dense(OP, "x", rows_of)?,
            halves,
            about,
            word(rows)?,
            word(padded)?,
            word(dim)?,
            word(width)?,
            Argument::U32(kind),
            Argument::F32(slack),
            Argument::F32(squares),
        ];
        let grid = blocks(OP, padded, BLOCK as usize / 32)?;
        stream.launch(&format!("nearest_rows_{}", rows_of.dtype), [grid, 1, 1], [BLOCK, 1, 1], 0, &arguments)?;
    }
    // Two blocks for each multiprocessor, as far as the codes allow.
    let across = vectors.div_ceil(TILE);
    let shares = (2 * stream.cuda().multiprocessors() as usize).div_ceil(across).min(codes.div_ceil(TILE));
    let share = codes.div_ceil(shares).next_multiple_of(TILE);
    let arguments = [
        x_halves,
        codes_halves,
        x_about,
        codes_about,
        dense(OP, "x", x)?,
        dense(OP, "codebook", codebook)?,
        word(vectors)?,
        word(codes)?,
        word(dim)?,
        word(width)?,
        word(share)?,
        Argument::F32(if metric == Metric::Cosine { 0.0 } else { squares }),
        Argument::U32(u32::from(metric == Metric::Cosine)),
    ];
    let grid = [blocks(OP, vectors, TILE)?, blocks(OP, codes, share)?, 1];
    stream.launch("nearest_mma_bound", grid, [2 * BLOCK, 1, 1], STAGES_BYTES, &arguments)?;
    let entry = format!("nearest_mma_{}", x.dtype);
    stream.launch(&entry, grid, [2 * BLOCK, 1, 1], STAGES_BYTES + LIST_BYTES, &arguments)?;
    let arguments = [x_about, dense(OP, "y", y)?, word(vectors)?];
    stream.launch("nearest_code", [blocks(OP, vectors, BLOCK as usize)?, 1, 1], [BLOCK, 1, 1], 0, &arguments)
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
