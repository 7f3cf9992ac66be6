//! Launchers of the WGSL kernels.

use super::compiled::words_at;
use super::{BLOCK, MAX_HEAD_DIM, Scoring, Visible};
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, output_offset, params, to_u32};
use crate::{Dtype, Error, Result};

/// Queries of a workgroup where there is more than one.
const ROWS: usize = 8;
/// Keys of a segment, as the kernels have it.
const SEGMENT: usize = 512;
/// Queries up to which the keys are split: each then reads them for itself.
const FEW_QUERIES: usize = 4;

/// Invocations in a workgroup of the merge, each of which makes two elements.
const MERGE_WORKGROUP: usize = 64;

params! {
    struct AttentionParams {
        q_strides: [u32; 4],
        k_strides: [u32; 4],
        v_strides: [u32; 4],
        bias_or_pages_strides: [u32; 4],
        given_strides: [u32; 4],
        q_offset: u32,
        k_offset: u32,
        v_offset: u32,
        bias_or_pages_offset: u32,
        given_offset: u32,
        words_offset: u32,
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
        visibility: u32,
        ranges_batch_stride: u32,
        starts_at: u32,
        entries_at: u32,
        bits_at: u32,
        blocks_batch_stride: u32,
        page_size: u32,
        segments: u32,
        first_key: u32,
        end_key: u32,
        scale: f32,
        softcap: f32,
        minus_infinity: u32,
    }
}

params! {
    struct AttentionFoldParams {
        rows: u32,
        segments: u32,
        head_dim: u32,
        parts_offset: u32,
        y_offset: u32,
        y_stride: u32,
        lse_offset: u32,
        minus_infinity: u32,
    }
}

/// What the kernel reads beside queries, keys and values.
#[derive(Debug, Clone, Copy)]
pub enum Beside<'a> {
    /// Nothing.
    Nothing,
    /// Broadcast to `[batch, heads, q_len, k_len]`.
    Bias(Operand<'a>),
    /// Where the keys are: `k` and `v` are `[pages, kv_heads, page_size, head_dim]`, and key `j` of a batch entry is
    /// slot `j mod page_size` of the page that its row of the table, u32 `[batch, most pages]`, names.
    Pages(Operand<'a>),
}

/// Into how many segments the keys of a call should be split: 1 for one workgroup per block of queries. Results do
/// not depend on it.
#[must_use]
pub fn segments(batch: usize, heads: usize, q_len: usize, k_len: usize) -> usize {
    /// Workgroups beyond which a device has enough to do without splitting.
    const ENOUGH: usize = 256;
    match k_len.div_ceil(SEGMENT) {
        segments if segments > 1 && q_len <= FEW_QUERIES && batch * heads * q_len < ENOUGH => segments,
        _ => 1,
    }
}

/// [`super::attention`] over operands whose last axis is dense. `given` is broadcast to `[batch, q_len, k_len]`. `lse` is
/// contiguous, and so is `y`, except that its rows may be longer than `head_dim`: for a half type they start on even
/// elements. With `parts`, f32 `[batch, heads, q_len, segments, head_dim + 2]`, contiguous, the keys are split into
/// [`segments`].
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
    beside: Beside<'_>,
    visible: Visible<Operand<'_>>,
    given: Option<Operand<'_>>,
    parts: Option<Operand<'_>>,
    y: Operand<'_>,
    lse: Operand<'_>,
) -> Result<()> {
    const OP: &str = "attention";
    let (&[batch, heads, q_len, head_dim], &[_, kv_heads, page_size, _]) = (q.shape(), k.shape()) else {
        return Err(Error::shape(OP, "q", q.shape(), "[batch, heads, q_len, head_dim], as k"));
    };
    if !(1..=MAX_HEAD_DIM).contains(&head_dim) {
        return Err(Error::shape(OP, "q", q.shape(), format!("a head_dim of 1 to {MAX_HEAD_DIM}")));
    }
    let rows = if q_len == 1 || parts.is_some() { 1 } else { ROWS };
    let segments = parts.and_then(|parts| parts.shape().get(3).copied()).unwrap_or(1);
    let workgroups = batch * heads * q_len.div_ceil(rows) * segments;
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
    let blocks = q_len.div_ceil(BLOCK);
    let mut words = Words { buffer: q.buffer, offset: 0, visibility: 0, batches: 1, entries: 0, range: [0, 0] };
    match visible {
        Visible::Same(range) => words.range = range,
        Visible::Words { words: operand, batches, entries } => {
            words.buffer = operand.buffer;
            words.offset = dense_offset(OP, "mask", operand)?;
            words.visibility = 1 + u32::from(entries.is_some());
            (words.batches, words.entries) = (batches, entries.unwrap_or(0));
        }
    }
    let [starts_at, entries_at, bits_at] = words_at(q_len, words.batches, words.entries);
    let of_each = |count: usize| if words.batches == 1 { Ok(0) } else { to_u32(OP, "mask", count) };
    let (bias_or_pages, keys) = match beside {
        Beside::Nothing => (None, ""),
        Beside::Bias(bias) => (Some(bias), ""),
        Beside::Pages(pages) => (Some(pages), "_paged"),
    };
    // The split kernel writes its parts in place of the result.
    let y_offset = match parts {
        Some(parts) => dense_offset(OP, "parts", parts)?,
        None => to_u32(OP, "y", y.layout.offset())?,
    };
    let params = AttentionParams {
        q_strides: four("q", q)?,
        k_strides: four("k", k)?,
        v_strides: four("v", v)?,
        bias_or_pages_strides: bias_or_pages.map_or(Ok([0; 4]), |bias| four("bias", bias))?,
        given_strides: given.map_or(Ok([0; 4]), |given| four("mask", given))?,
        q_offset: offset("q", q)?,
        k_offset: offset("k", k)?,
        v_offset: offset("v", v)?,
        bias_or_pages_offset: bias_or_pages.map_or(Ok(0), |bias| offset("bias", bias))?,
        given_offset: given.map_or(Ok(0), |given| offset("mask", given))?,
        words_offset: words.offset,
        y_offset,
        y_stride: to_u32(OP, "y", y_stride)?,
        lse_offset: dense_offset(OP, "lse", lse)?,
        count: to_u32(OP, "q", workgroups)?,
        heads: to_u32(OP, "q", heads)?,
        group: to_u32(OP, "q", (heads / kv_heads.max(1)).max(1))?,
        q_len: to_u32(OP, "q", q_len)?,
        head_dim: to_u32(OP, "q", head_dim)?,
        has_bias: u32::from(matches!(beside, Beside::Bias(_))),
        has_given: u32::from(given.is_some()),
        visibility: words.visibility,
        ranges_batch_stride: of_each(2 * q_len)?,
        starts_at: to_u32(OP, "mask", starts_at)?,
        entries_at: to_u32(OP, "mask", entries_at)?,
        bits_at: to_u32(OP, "mask", bits_at)?,
        blocks_batch_stride: of_each(blocks)?,
        page_size: to_u32(OP, "k", page_size)?,
        segments: to_u32(OP, "parts", segments)?,
        first_key: words.range[0],
        end_key: words.range[1],
        scale: scoring.scale,
        softcap: scoring.softcap.unwrap_or(0.0),
        minus_infinity: f32::NEG_INFINITY.to_bits(),
    };
    let bias_or_pages = bias_or_pages.map_or(q.buffer, |operand| operand.buffer);
    let given = given.map_or(q.buffer, |given| given.buffer);
    let inputs = [q.buffer, k.buffer, v.buffer, bias_or_pages, words.buffer, given];
    let Some(parts) = parts else {
        let entry = format!("attention_{}_q{rows}{keys}", q.dtype);
        let buffers = [&inputs[..], &[y.buffer, lse.buffer]].concat();
        return recorder.dispatch(&entry, &params, &buffers, fold(OP, workgroups)?);
    };
    let entry = format!("attention_split_{}{keys}", q.dtype);
    recorder.dispatch(&entry, &params, &[&inputs[..], &[parts.buffer]].concat(), fold(OP, workgroups)?)?;
    let fold_params = AttentionFoldParams {
        rows: to_u32(OP, "q", batch * heads * q_len)?,
        segments: params.segments,
        head_dim: params.head_dim,
        parts_offset: y_offset,
        y_offset: to_u32(OP, "y", y.layout.offset())?,
        y_stride: params.y_stride,
        lse_offset: params.lse_offset,
        minus_infinity: params.minus_infinity,
    };
    let entry = format!("attention_fold_{}", q.dtype);
    let buffers = [parts.buffer, y.buffer, lse.buffer];
    recorder.dispatch(&entry, &fold_params, &buffers, fold(OP, batch * heads * q_len)?)
}

/// What the kernel reads of a mask: 0 a range for all, 1 a range each, 2 tiles too.
struct Words<'a> {
    buffer: &'a ::wgpu::Buffer,
    offset: u32,
    visibility: u32,
    batches: usize,
    entries: usize,
    range: [u32; 2],
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

params! {
    struct MergeParams {
        elements: u32,
        rows: u32,
        head_dim: u32,
        parts: u32,
        parts_offset: u32,
        lse_offset: u32,
        y_offset: u32,
        merged_offset: u32,
        minus_infinity: u32,
    }
}

/// [`super::merge`] into `y` and `merged`, over contiguous operands. `y` starts on an even element.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous, or `parts` has not five axes.
pub fn merge(
    recorder: &mut Recorder<'_>,
    parts: Operand<'_>,
    lse: Operand<'_>,
    y: Operand<'_>,
    merged: Operand<'_>,
) -> Result<()> {
    const OP: &str = "attention_merge";
    let &[count, .., head_dim] = parts.shape() else {
        return Err(Error::shape(OP, "parts", parts.shape(), "[parts, batch, heads, q_len, head_dim]"));
    };
    let elements = y.layout.elements();
    let params = MergeParams {
        elements: to_u32(OP, "y", elements)?,
        rows: to_u32(OP, "y", elements / head_dim.max(1))?,
        head_dim: to_u32(OP, "parts", head_dim)?,
        parts: to_u32(OP, "parts", count)?,
        parts_offset: dense_offset(OP, "parts", parts)?,
        lse_offset: dense_offset(OP, "lse", lse)?,
        y_offset: output_offset(OP, y)?,
        merged_offset: dense_offset(OP, "merged", merged)?,
        minus_infinity: f32::NEG_INFINITY.to_bits(),
    };
    let entry = format!("merge_{}", y.dtype);
    let buffers = [parts.buffer, lse.buffer, y.buffer, merged.buffer];
    recorder.dispatch(&entry, &params, &buffers, fold(OP, elements.div_ceil(2 * MERGE_WORKGROUP))?)
}
