//! Launchers of the WGSL kernels.

use super::Metric;
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, output_offset, params, to_u32};
use crate::{Error, Result};

/// Invocations in a workgroup of the kernels that make a few elements each.
const WORKGROUP: usize = 64;
/// Vectors of a workgroup of the kernel for many of them, and from how many on they are many: fewer leave it idle.
const TILE: usize = 64;
const MANY: usize = 16;

params! {
    struct NearestParams {
        vectors: u32,
        codes: u32,
        dim: u32,
        cosine: u32,
        x_offset: u32,
        codebook_offset: u32,
        y_offset: u32,
    }
}

/// [`super::nearest_l2`] and [`super::nearest_cosine`] into `y`, over contiguous operands; the codebook in f32.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn nearest(
    recorder: &mut Recorder<'_>,
    x: Operand<'_>,
    codebook: Operand<'_>,
    metric: Metric,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "nearest";
    let vectors = y.layout.elements();
    let params = NearestParams {
        vectors: to_u32(OP, "x", vectors)?,
        codes: to_u32(OP, "codebook", codebook.shape()[0])?,
        dim: to_u32(OP, "codebook", codebook.shape()[1])?,
        cosine: u32::from(metric == Metric::Cosine),
        x_offset: dense_offset(OP, "x", x)?,
        codebook_offset: dense_offset(OP, "codebook", codebook)?,
        y_offset: dense_offset(OP, "y", y)?,
    };
    let (kernel, workgroups) = match vectors {
        MANY.. => ("nearest_tile", vectors.div_ceil(TILE)),
        _ => ("nearest", vectors),
    };
    let buffers = [x.buffer, codebook.buffer, y.buffer];
    recorder.dispatch(&format!("{kernel}_{}", x.dtype), &params, &buffers, fold(OP, workgroups)?)
}

params! {
    struct NearestListParams {
        vectors: u32,
        groups: u32,
        codes: u32,
        dim: u32,
        count: u32,
        cosine: u32,
        x_offset: u32,
        codebook_offset: u32,
        indices_offset: u32,
        distances_offset: u32,
        not_a_number: u32,
    }
}

/// [`super::nearest`] into `indices` and `distances`, over contiguous operands; the codebook is f32 `[groups, codes,
/// dim]`.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous, or the codebook has not three axes.
pub fn nearest_list(
    recorder: &mut Recorder<'_>,
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
    let vectors = indices.layout.elements() / count.max(1);
    let params = NearestListParams {
        vectors: to_u32(OP, "x", vectors)?,
        groups: to_u32(OP, "codebook", groups)?,
        codes: to_u32(OP, "codebook", codes)?,
        dim: to_u32(OP, "codebook", dim)?,
        count: to_u32(OP, "indices", count)?,
        cosine: u32::from(metric == Metric::Cosine),
        x_offset: dense_offset(OP, "x", x)?,
        codebook_offset: dense_offset(OP, "codebook", codebook)?,
        indices_offset: dense_offset(OP, "indices", indices)?,
        distances_offset: dense_offset(OP, "distances", distances)?,
        not_a_number: f32::NAN.to_bits(),
    };
    let entry = format!("nearest_list_{}", x.dtype);
    let buffers = [x.buffer, codebook.buffer, indices.buffer, distances.buffer];
    recorder.dispatch(&entry, &params, &buffers, fold(OP, vectors)?)
}

params! {
    struct DigitsParams {
        elements: u32,
        channels: u32,
        x_offset: u32,
        bounds_offset: u32,
        bounded_offset: u32,
        digits_offset: u32,
    }
}

/// The digits of [`super::fsq`] and [`super::lfq`], over contiguous operands; as [`super::reference::digits`].
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn digits(
    recorder: &mut Recorder<'_>,
    x: Operand<'_>,
    bounds: Operand<'_>,
    bounded: Operand<'_>,
    digits: Operand<'_>,
) -> Result<()> {
    const OP: &str = "digits";
    let elements = x.layout.elements();
    let params = DigitsParams {
        elements: to_u32(OP, "x", elements)?,
        channels: to_u32(OP, "bounds", bounds.shape()[0])?,
        x_offset: dense_offset(OP, "x", x)?,
        bounds_offset: dense_offset(OP, "bounds", bounds)?,
        bounded_offset: output_offset(OP, bounded)?,
        digits_offset: dense_offset(OP, "digits", digits)?,
    };
    let buffers = [x.buffer, bounds.buffer, bounded.buffer, digits.buffer];
    let workgroups = fold(OP, elements.div_ceil(2 * WORKGROUP))?;
    recorder.dispatch(&format!("digits_{}", x.dtype), &params, &buffers, workgroups)
}

params! {
    struct CodesParams {
        elements: u32,
        channels: u32,
        digits_offset: u32,
        scales_offset: u32,
        y_offset: u32,
    }
}

/// Codes from digits, over contiguous operands; as [`super::reference::codes`].
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn codes(recorder: &mut Recorder<'_>, digits: Operand<'_>, scales: Operand<'_>, y: Operand<'_>) -> Result<()> {
    const OP: &str = "codes";
    let elements = y.layout.elements();
    let params = CodesParams {
        elements: to_u32(OP, "y", elements)?,
        channels: to_u32(OP, "scales", scales.shape()[0])?,
        digits_offset: dense_offset(OP, "digits", digits)?,
        scales_offset: dense_offset(OP, "scales", scales)?,
        y_offset: output_offset(OP, y)?,
    };
    let buffers = [digits.buffer, scales.buffer, y.buffer];
    let workgroups = fold(OP, elements.div_ceil(2 * WORKGROUP))?;
    recorder.dispatch(&format!("codes_{}", y.dtype), &params, &buffers, workgroups)
}

params! {
    struct PackParams {
        vectors: u32,
        channels: u32,
        digits_offset: u32,
        bases_offset: u32,
        indices_offset: u32,
    }
}

/// [`super::pack`], over contiguous operands; as [`super::reference::pack`].
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn pack(recorder: &mut Recorder<'_>, digits: Operand<'_>, bases: Operand<'_>, indices: Operand<'_>) -> Result<()> {
    const OP: &str = "pack";
    let (params, vectors) = pack_params(OP, digits, bases, indices)?;
    let buffers = [digits.buffer, bases.buffer, indices.buffer];
    recorder.dispatch(OP, &params, &buffers, fold(OP, vectors.div_ceil(WORKGROUP))?)
}

/// [`super::unpack`], over contiguous operands; as [`super::reference::unpack`].
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn unpack(
    recorder: &mut Recorder<'_>,
    indices: Operand<'_>,
    bases: Operand<'_>,
    digits: Operand<'_>,
) -> Result<()> {
    const OP: &str = "unpack";
    let (params, _) = pack_params(OP, digits, bases, indices)?;
    let buffers = [indices.buffer, bases.buffer, digits.buffer];
    recorder.dispatch(OP, &params, &buffers, fold(OP, digits.layout.elements().div_ceil(WORKGROUP))?)
}

fn pack_params(
    op: &'static str,
    digits: Operand<'_>,
    bases: Operand<'_>,
    indices: Operand<'_>,
) -> Result<(PackParams, usize)> {
    let vectors = indices.layout.elements();
    to_u32(op, "digits", digits.layout.elements())?;
    let params = PackParams {
        vectors: to_u32(op, "indices", vectors)?,
        channels: to_u32(op, "bases", bases.shape()[0])?,
        digits_offset: dense_offset(op, "digits", digits)?,
        bases_offset: dense_offset(op, "bases", bases)?,
        indices_offset: dense_offset(op, "indices", indices)?,
    };
    Ok((params, vectors))
}
