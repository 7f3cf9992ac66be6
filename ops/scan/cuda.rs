//! Launchers of the PTX kernels.

use super::{Linear, Ssd};
use crate::Result;
use crate::backend::cuda::{Argument, Operand, Stream, blocks, dense, dense_or_absent, to_u32};

const BLOCK: u32 = 128;

/// The recurrence of [`super::linear_attention`], from the state it finds, into `y` in f32; all contiguous. Without `v`
/// its values are 1, and `plan.value_dim` is 1: then `y` is the denominators.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn linear_attention(
    stream: &Stream<'_>,
    [q, k]: [Operand<'_>; 2],
    v: Option<Operand<'_>>,
    decay: Option<Operand<'_>>,
    denominators: Option<Operand<'_>>,
    plan: Linear,
    state: Operand<'_>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "linear_attention";
    let columns = q.shape().first().copied().unwrap_or(0) * plan.heads * plan.value_dim;
    let arguments = [
        dense(OP, "q", q)?,
        dense(OP, "k", k)?,
        dense_or_absent(OP, "v", v)?,
        dense_or_absent(OP, "decay", decay)?,
        dense_or_absent(OP, "denominators", denominators)?,
        dense(OP, "state", state)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "v", columns)?),
        Argument::U32(to_u32(OP, "q", plan.heads)?),
        Argument::U32(to_u32(OP, "q", plan.seq)?),
        Argument::U32(to_u32(OP, "q", plan.key_dim)?),
        Argument::U32(to_u32(OP, "v", plan.value_dim)?),
        Argument::U32(u32::from(plan.causal)),
        Argument::U32(u32::from(plan.normalise)),
    ];
    let grid = blocks(OP, columns, BLOCK as usize)?;
    stream.launch(&format!("{OP}_{}", q.dtype), [grid, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}

/// [`super::ssd_scan`] of `x`, `dt`, `b` and `c`, from the state it finds, into `y` in f32; all contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn ssd(
    stream: &Stream<'_>,
    [x, dt, b, c]: [Operand<'_>; 4],
    a: Operand<'_>,
    d: Option<Operand<'_>>,
    plan: Ssd,
    state: Operand<'_>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "ssd";
    let channels = plan.batch * plan.heads * plan.head_dim;
    let arguments = [
        dense(OP, "x", x)?,
        dense(OP, "dt", dt)?,
        dense(OP, "b", b)?,
        dense(OP, "c", c)?,
        dense(OP, "a", a)?,
        dense_or_absent(OP, "d", d)?,
        dense(OP, "state", state)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "x", channels)?),
        Argument::U32(to_u32(OP, "x", plan.seq)?),
        Argument::U32(to_u32(OP, "x", plan.heads)?),
        Argument::U32(to_u32(OP, "x", plan.head_dim)?),
        Argument::U32(to_u32(OP, "b", plan.groups)?),
        Argument::U32(to_u32(OP, "b", plan.states)?),
    ];
    let grid = blocks(OP, channels, BLOCK as usize)?;
    stream.launch(&format!("{OP}_{}", x.dtype), [grid, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}
