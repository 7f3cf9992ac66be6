//! Launchers of the WGSL kernels.

use super::{OP, Pairing};
use crate::backend::wgpu::{Operand, Recorder, fold, params, to_u32};
use crate::{Dtype, Error, Layout, Result};

/// Invocations in a workgroup, each of which makes two elements, or turns two pairs in place.
const WORKGROUP: usize = 64;

params! {
    struct RopeParams {
        x_strides: [u32; 4],
        y_strides: [u32; 4],
        elements: u32,
        heads: u32,
        seq: u32,
        head_dim: u32,
        pairs: u32,
        interleaved: u32,
        cos_batch_stride: u32,
        cos_stride: u32,
        sin_batch_stride: u32,
        sin_stride: u32,
        x_offset: u32,
        cos_offset: u32,
        sin_offset: u32,
        y_offset: u32,
    }
}

params! {
    struct RopeInPlaceParams {
        x_strides: [u32; 4],
        units: u32,
        heads: u32,
        seq: u32,
        pairs: u32,
        interleaved: u32,
        cos_batch_stride: u32,
        cos_stride: u32,
        sin_batch_stride: u32,
        sin_stride: u32,
        x_offset: u32,
        cos_offset: u32,
        sin_offset: u32,
    }
}

/// Whether [`rope`] can write such a `y`: its last axis is dense and, unless the rows lie without gaps, no word holds
/// elements of two rows.
#[must_use]
pub fn writable(y: &Layout, dtype: Dtype) -> bool {
    if y.is_contiguous() {
        return y.offset().is_multiple_of(per_word(dtype));
    }
    y.shape().last().is_some_and(|width| width.is_multiple_of(2)) && starts_words(y, dtype)
}

/// Whether [`rope_in_place`] can turn such an `x`: its last axis is dense, every row starts on a whole word, and no
/// word holds channels of two units.
#[must_use]
pub fn turnable(x: &Layout, dtype: Dtype, pairing: Pairing, pairs: usize) -> bool {
    let split = pairing == Pairing::Interleaved || pairs.is_multiple_of(per_word(dtype));
    split && starts_words(x, dtype)
}

fn per_word(dtype: Dtype) -> usize {
    if dtype.bytes() == 2 { 2 } else { 1 }
}

/// Whether every row is dense and starts on a whole word.
fn starts_words(layout: &Layout, dtype: Dtype) -> bool {
    let whole = |count: &usize| count.is_multiple_of(per_word(dtype));
    let Some((last, rest)) = layout.strides().split_last() else { return false };
    *last == 1 && whole(&layout.offset()) && rest.iter().all(whole)
}

/// [`super::rope`] into a [`writable`] `y`; the last axis of `x`, `cos` and `sin` is dense, and the latter two are
/// `[batch, seq, pairs]`.
///
/// # Errors
/// [`Error::Shape`] if an operand has not the axes it should, or `y` is not writable; [`Error::Value`] if an index
/// does not fit 32 bits.
pub fn rope(
    recorder: &mut Recorder<'_>,
    x: Operand<'_>,
    cos: Operand<'_>,
    sin: Operand<'_>,
    pairing: Pairing,
    y: Operand<'_>,
) -> Result<()> {
    let [_, heads, seq, head_dim] = shape_of("x", x)?;
    if y.shape() != x.shape() || !writable(y.layout, y.dtype) {
        return Err(Error::shape(OP, "y", y.layout.strides(), "rows that the kernel can write, of the shape of x"));
    }
    let ([cos_batch_stride, cos_stride, pairs], [sin_batch_stride, sin_stride, _]) =
        (table_strides("cos", cos)?, table_strides("sin", sin)?);
    let elements = x.layout.elements();
    let params = RopeParams {
        x_strides: strides_of("x", x)?,
        y_strides: strides_of("y", y)?,
        elements: to_u32(OP, "x", elements)?,
        heads: to_u32(OP, "x", heads)?,
        seq: to_u32(OP, "x", seq)?,
        head_dim: to_u32(OP, "x", head_dim)?,
        pairs,
        interleaved: u32::from(pairing == Pairing::Interleaved),
        cos_batch_stride,
        cos_stride,
        sin_batch_stride,
        sin_stride,
        x_offset: to_u32(OP, "x", x.layout.offset())?,
        cos_offset: to_u32(OP, "cos", cos.layout.offset())?,
        sin_offset: to_u32(OP, "sin", sin.layout.offset())?,
        y_offset: to_u32(OP, "y", y.layout.offset())?,
    };
    let entry = format!("rope_{}", x.dtype);
    let buffers = [x.buffer, cos.buffer, sin.buffer, y.buffer];
    recorder.dispatch(&entry, &params, &buffers, fold(OP, elements.div_ceil(2 * WORKGROUP))?)
}

/// [`super::rope_in_place`] on a [`turnable`] `x`; the tables are as in [`rope`].
///
/// # Errors
/// As [`rope`].
pub fn rope_in_place(
    recorder: &mut Recorder<'_>,
    x: Operand<'_>,
    cos: Operand<'_>,
    sin: Operand<'_>,
    pairing: Pairing,
) -> Result<()> {
    let [batch, heads, seq, _] = shape_of("x", x)?;
    let ([cos_batch_stride, cos_stride, pairs], [sin_batch_stride, sin_stride, _]) =
        (table_strides("cos", cos)?, table_strides("sin", sin)?);
    if !turnable(x.layout, x.dtype, pairing, cos.shape()[2]) {
        return Err(Error::shape(OP, "x", x.layout.strides(), "rows that the kernel can write"));
    }
    let units = batch * heads * seq * cos.shape()[2].div_ceil(2);
    let params = RopeInPlaceParams {
        x_strides: strides_of("x", x)?,
        units: to_u32(OP, "x", units)?,
        heads: to_u32(OP, "x", heads)?,
        seq: to_u32(OP, "x", seq)?,
        pairs,
        interleaved: u32::from(pairing == Pairing::Interleaved),
        cos_batch_stride,
        cos_stride,
        sin_batch_stride,
        sin_stride,
        x_offset: to_u32(OP, "x", x.layout.offset())?,
        cos_offset: to_u32(OP, "cos", cos.layout.offset())?,
        sin_offset: to_u32(OP, "sin", sin.layout.offset())?,
    };
    let entry = format!("rope_in_place_{}", x.dtype);
    recorder.dispatch(&entry, &params, &[x.buffer, cos.buffer, sin.buffer], fold(OP, units.div_ceil(WORKGROUP))?)
}

fn shape_of(operand: &'static str, x: Operand<'_>) -> Result<[usize; 4]> {
    let wrong = |_| Error::shape(OP, operand, x.shape(), "[batch, heads, seq, head_dim]");
    <[usize; 4]>::try_from(x.shape()).map_err(wrong)
}

fn strides_of(operand: &'static str, x: Operand<'_>) -> Result<[u32; 4]> {
    to_u32(OP, operand, x.layout.span())?;
    let mut strides = [0; 4];
    for (stride, from) in strides.iter_mut().zip(x.layout.strides()) {
        *stride = to_u32(OP, operand, *from)?;
    }
    Ok(strides)
}

/// The distances between batch entries and between rows of a table, and its pairs.
fn table_strides(operand: &'static str, table: Operand<'_>) -> Result<[u32; 3]> {
    let (&[_, _, pairs], &[batch_stride, stride, _]) = (table.shape(), table.layout.strides()) else {
        return Err(Error::shape(OP, operand, table.shape(), "[batch, seq, pairs]"));
    };
    to_u32(OP, operand, table.layout.span())?;
    Ok([to_u32(OP, operand, batch_stride)?, to_u32(OP, operand, stride)?, to_u32(OP, operand, pairs)?])
}
