//! Launchers of the PTX kernels.

use super::{MAX_HEAD_DIM, Scoring};
use crate::backend::cuda::{Argument, Operand, Stream, aligned, blocks, dense, dense_or_absent, rows_launch, to_u32};
use crate::{Error, Result};

/// Threads of a block of the plain kernel.
const THREADS: u32 = 128;

/// Which keys the queries see, apart from a given mask.
#[derive(Debug, Clone, Copy)]
pub enum Ranges<'a> {
    /// All see the same keys: the first, and one past the last.
    Same([u32; 2]),
    /// Such a pair per query: u32, `[1 or batch, q_len, 2]`, contiguous.
    Each(Operand<'a>),
}

/// [`super::attention`] over operands whose last axis is dense. `bias` is broadcast to `[batch, heads, q_len,
/// k_len]`, `given` to `[batch, q_len, k_len]`. `y` and `lse` are contiguous.
///
/// # Errors
/// [`Error::Shape`] if a layout is none of these; [`Error::Value`] if a stride does not fit 32 bits.
#[expect(clippy::too_many_arguments, reason = "the operands of the op")]
pub fn attention(
    stream: &Stream<'_>,
    q: Operand<'_>,
    k: Operand<'_>,
    v: Operand<'_>,
    scoring: Scoring,
    bias: Option<Operand<'_>>,
    ranges: Ranges<'_>,
    given: Option<Operand<'_>>,
    y: Operand<'_>,
    lse: Option<Operand<'_>>,
) -> Result<()> {
    const OP: &str = "attention";
    let (&[batch, heads, q_len, head_dim], &[_, kv_heads, ..]) = (q.shape(), k.shape()) else {
        return Err(Error::shape(OP, "q", q.shape(), "[batch, heads, q_len, head_dim], as k"));
    };
    if !(1..=MAX_HEAD_DIM).contains(&head_dim) {
        return Err(Error::shape(OP, "q", q.shape(), format!("a head_dim of 1 to {MAX_HEAD_DIM}")));
    }
    let (ranges, ranges_stride, [first_key, end_key]) = match ranges {
        Ranges::Same(range) => (Argument::Address(0), 0, range),
        Ranges::Each(ranges) => {
            let stride = if ranges.shape().first() == Some(&1) { 0 } else { q_len };
            (dense(OP, "ranges", ranges)?, to_u32(OP, "ranges", stride)?, [0, 0])
        }
    };
    let address = |operand: Option<Operand<'_>>| Argument::Address(operand.map_or(0, |operand| operand.address()));
    let [q_strides, k_strides, v_strides] = [rows("q", q)?, rows("k", k)?, rows("v", v)?];
    let bias_strides = bias.map_or(Ok([0; 4]), |bias| strides("bias", bias))?;
    let given_strides = given.map_or(Ok([0; 3]), |given| strides("mask", given))?;
    let rows = if q_len <= 8 { 8 } else { 32 };
    let arguments = [
        address(Some(q)),
        address(Some(k)),
        address(Some(v)),
        address(bias),
        ranges,
        address(given),
        dense(OP, "y", y)?,
        dense_or_absent(OP, "lse", lse)?,
        Argument::Words(&q_strides),
        Argument::Words(&k_strides),
        Argument::Words(&v_strides),
        Argument::Words(&bias_strides),
        Argument::Words(&given_strides),
        Argument::U32(ranges_stride),
        Argument::U32(to_u32(OP, "q", heads)?),
        Argument::U32(to_u32(OP, "q", (heads / kv_heads.max(1)).max(1))?),
        Argument::U32(to_u32(OP, "q", q_len)?),
        Argument::U32(to_u32(OP, "q", head_dim)?),
        Argument::U32(first_key),
        Argument::U32(end_key),
        Argument::F32(scoring.scale),
        Argument::F32(scoring.softcap.unwrap_or(0.0)),
    ];
    let grid = blocks(OP, batch * heads * q_len.div_ceil(rows), 1)?;
    stream.launch(&format!("attention_{}_q{rows}", q.dtype), [grid, 1, 1], [THREADS, 1, 1], 0, &arguments)
}

/// The strides of the first axes, as kernels take them.
fn strides<const AXES: usize>(operand: &'static str, tensor: Operand<'_>) -> Result<[u32; AXES]> {
    let mut strides = [0; AXES];
    for (stride, from) in strides.iter_mut().zip(tensor.layout.strides()) {
        *stride = to_u32("attention", operand, *from)?;
    }
    Ok(strides)
}

/// The strides of batch, head and row of a tensor whose last axis is dense.
fn rows(operand: &'static str, tensor: Operand<'_>) -> Result<[u32; 3]> {
    let last = (tensor.shape().last(), tensor.layout.strides().last());
    if !matches!(last, (Some(0 | 1), _) | (_, Some(1))) {
        return Err(Error::shape("attention", operand, tensor.layout.strides(), "a stride of 1 in the last axis"));
    }
    strides(operand, tensor)
}

/// [`super::l2_normalise`] into `y`, over contiguous operands. `y` may be `x` itself.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
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
