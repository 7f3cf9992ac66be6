//! Launchers of the WGSL kernels.

use super::{MAX_HEAD_DIM, Scoring};
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, output_offset, params, to_u32};
use crate::{Dtype, Error, Result};

/// Queries of a workgroup where there is more than one.
const ROWS: usize = 8;

params! {
    struct AttentionParams {
        q_strides: [u32; 4],
        k_strides: [u32; 4],
        v_strides: [u32; 4],
        bias_strides: [u32; 4],
        given_strides: [u32; 4],
        q_offset: u32,
        k_offset: u32,
        v_offset: u32,
        bias_offset: u32,
        given_offset: u32,
        ranges_offset: u32,
        y_offset: u32,
        y_stride: u32,
        lse_offset: u32,
        count: u32,
        heads: u32,
        group: u32,
        q_len: u32,
        head_dim: u32,
        has_bias: u32,
        has_given: u32,
        ranges_differ: u32,
        ranges_batch_stride: u32,
        first_key: u32,
        end_key: u32,
        scale: f32,
        softcap: f32,
        minus_infinity: u32,
    }
}

/// Which keys the queries see, apart from a given mask.
#[derive(Debug, Clone, Copy)]
pub enum Ranges<'a> {
    /// All see the same keys: the first, and one past the last.
    Same([u32; 2]),
    /// Such a pair per query: u32, `[1 or batch, q_len, 2]`, contiguous.
    Each(Operand<'a>),
}

/// [`super::attention`] over operands whose last axis is dense. `bias` is broadcast to `[batch, heads, q_len,
/// k_len]`, `given` to `[batch, q_len, k_len]`. `lse` is contiguous, and so is `y`, except that its rows may be longer
/// than `head_dim`: for a half type they start on even elements.
///
/// # Errors
/// [`Error::Shape`] if a layout is none of these or reaches beyond 32 bits; [`Error::Value`] if `y` starts on an odd
/// element.
pub fn attention(
    recorder: &mut Recorder<'_>,
    q: Operand<'_>,
    k: Operand<'_>,
    v: Operand<'_>,
    scoring: Scoring,
    bias: Option<Operand<'_>>,
    ranges: Ranges<'_>,
    given: Option<Operand<'_>>,
    y: Operand<'_>,
    lse: Operand<'_>,
) -> Result<()> {
    const OP: &str = "attention";
    let (&[batch, heads, q_len, head_dim], &[_, kv_heads, ..]) = (q.shape(), k.shape()) else {
        return Err(Error::shape(OP, "q", q.shape(), "[batch, heads, q_len, head_dim], as k"));
    };
    if !(1..=MAX_HEAD_DIM).contains(&head_dim) {
        return Err(Error::shape(OP, "q", q.shape(), format!("a head_dim of 1 to {MAX_HEAD_DIM}")));
    }
    let rows = if q_len == 1 { 1 } else { ROWS };
    let workgroups = batch * heads * q_len.div_ceil(rows);
    if workgroups == 0 {
        return Ok(());
    }
    let four = |operand: &'static str, tensor: Operand<'_>| -> Result<[u32; 4]> {
        to_u32(OP, operand, tensor.layout.span())?;
        let mut strides = [0; 4];
        for (stride, from) in strides.iter_mut().zip(tensor.layout.strides()) {
            *stride = to_u32(OP, operand, *from)?;
        }
        Ok(strides)
    };
    let offset = |operand: &'static str, tensor: Operand<'_>| to_u32(OP, operand, tensor.layout.offset());
    let y_stride = y_stride(OP, y, head_dim)?;
    to_u32(OP, "y", y.layout.span())?;
    let (ranges_buffer, ranges_offset, ranges_batch_stride, [first_key, end_key]) = match ranges {
        Ranges::Same(range) => (q.buffer, 0, 0, range),
        Ranges::Each(ranges) => {
            let stride = if ranges.shape().first() == Some(&1) { 0 } else { 2 * q_len };
            (ranges.buffer, dense_offset(OP, "ranges", ranges)?, to_u32(OP, "ranges", stride)?, [0, 0])
        }
    };
    let params = AttentionParams {
        q_strides: four("q", q)?,
        k_strides: four("k", k)?,
        v_strides: four("v", v)?,
        bias_strides: bias.map_or(Ok([0; 4]), |bias| four("bias", bias))?,
        given_strides: given.map_or(Ok([0; 4]), |given| four("mask", given))?,
        q_offset: offset("q", q)?,
        k_offset: offset("k", k)?,
        v_offset: offset("v", v)?,
        bias_offset: bias.map_or(Ok(0), |bias| offset("bias", bias))?,
        given_offset: given.map_or(Ok(0), |given| offset("mask", given))?,
        ranges_offset,
        y_offset: to_u32(OP, "y", y.layout.offset())?,
        y_stride: to_u32(OP, "y", y_stride)?,
        lse_offset: dense_offset(OP, "lse", lse)?,
        count: to_u32(OP, "q", workgroups)?,
        heads: to_u32(OP, "q", heads)?,
        group: to_u32(OP, "q", (heads / kv_heads.max(1)).max(1))?,
        q_len: to_u32(OP, "q", q_len)?,
        head_dim: to_u32(OP, "q", head_dim)?,
        has_bias: u32::from(bias.is_some()),
        has_given: u32::from(given.is_some()),
        ranges_differ: u32::from(matches!(ranges, Ranges::Each(_))),
        ranges_batch_stride,
        first_key,
        end_key,
        scale: scoring.scale,
        softcap: scoring.softcap.unwrap_or(0.0),
        minus_infinity: f32::NEG_INFINITY.to_bits(),
    };
    let bias = bias.map_or(q.buffer, |bias| bias.buffer);
    let given = given.map_or(q.buffer, |given| given.buffer);
    let entry = format!("attention_{}_q{rows}", q.dtype);
    let buffers = [q.buffer, k.buffer, v.buffer, bias, ranges_buffer, given, y.buffer, lse.buffer];
    recorder.dispatch(&entry, &params, &buffers, fold(OP, workgroups)?)
}

/// The distance between the rows of an output that has no other gaps than at their ends.
fn y_stride(op: &'static str, y: Operand<'_>, head_dim: usize) -> Result<usize> {
    let wrong = || Error::shape(op, "y", y.layout.strides(), "strides of a contiguous layout but for longer rows");
    let (&[batch, heads, q_len, width], &[batch_stride, head_stride, row_stride, channel_stride]) =
        (y.shape(), y.layout.strides())
    else {
        return Err(wrong());
    };
    let fits = |len: usize, stride: usize, expected: usize| len <= 1 || stride == expected;
    if width != head_dim
        || row_stride < head_dim
        || !fits(width, channel_stride, 1)
        || !fits(heads, head_stride, q_len * row_stride)
        || !fits(batch, batch_stride, heads * q_len * row_stride)
    {
        return Err(wrong());
    }
    let half = matches!(y.dtype, Dtype::F16 | Dtype::Bf16);
    if half && !(row_stride.is_multiple_of(2) && y.layout.offset().is_multiple_of(2)) {
        return Err(Error::value(op, "y's row stride or offset", row_stride, "an even number of elements"));
    }
    Ok(row_stride)
}

params! {
    struct L2NormaliseParams {
        rows: u32,
        channels: u32,
        y_offset: u32,
        x_offset: u32,
    }
}

/// [`super::l2_normalise`] into `y`, over contiguous operands. `y` starts on an even element.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn l2_normalise(recorder: &mut Recorder<'_>, x: Operand<'_>, y: Operand<'_>) -> Result<()> {
    const OP: &str = "l2_normalise";
    let channels = *x.shape().last().unwrap_or(&1);
    let rows = x.layout.elements() / channels.max(1);
    let params = L2NormaliseParams {
        rows: to_u32(OP, "x", rows)?,
        channels: to_u32(OP, "x", channels)?,
        y_offset: output_offset(OP, y)?,
        x_offset: dense_offset(OP, "x", x)?,
    };
    // A row that ends inside a word shares it with the next row, so both go to one workgroup.
    let workgroups = fold(OP, rows.div_ceil(1 + channels % 2))?;
    recorder.dispatch(&format!("l2_normalise_{}", x.dtype), &params, &[x.buffer, y.buffer], workgroups)
}
