//! Launchers of the WGSL kernels.

use super::{Linear, Ssd};
use crate::Result;
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, params, to_u32};

const WORKGROUP: usize = 64;

params! {
    struct LinearParams {
        lines: u32,
        heads: u32,
        seq: u32,
        key_dim: u32,
        value_dim: u32,
        q_offset: u32,
        k_offset: u32,
        v_offset: u32,
        decay_offset: u32,
        causal: u32,
        features: u32,
        ones: u32,
        has_decay: u32,
        has_denominators: u32,
    }
}

/// The recurrence of [`super::linear_attention`], from the state it finds. Without `denominators` it makes them: values are
/// 1, and `y` has one column. `Some(None)` is an attention that is not normalised. All contiguous; `state` and `y` are whole
/// buffers.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn linear_attention(
    recorder: &mut Recorder<'_>,
    [q, k, v]: [Operand<'_>; 3],
    decay: Option<Operand<'_>>,
    denominators: Option<Option<Operand<'_>>>,
    plan: Linear,
    state: Operand<'_>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "linear_attention";
    let lines = q.shape()[0] * plan.heads;
    let divided = denominators.flatten();
    let params = LinearParams {
        lines: to_u32(OP, "q", lines)?,
        heads: to_u32(OP, "q", plan.heads)?,
        seq: to_u32(OP, "q", plan.seq)?,
        key_dim: to_u32(OP, "q", plan.key_dim)?,
        value_dim: to_u32(OP, "v", plan.value_dim)?,
        q_offset: dense_offset(OP, "q", q)?,
        k_offset: dense_offset(OP, "k", k)?,
        v_offset: dense_offset(OP, "v", v)?,
        decay_offset: decay.map_or(Ok(0), |decay| dense_offset(OP, "decay", decay))?,
        causal: u32::from(plan.causal),
        features: u32::from(plan.normalise),
        ones: u32::from(denominators.is_none()),
        has_decay: u32::from(decay.is_some()),
        has_denominators: u32::from(divided.is_some()),
    };
    let decay = decay.map_or(q.buffer, |decay| decay.buffer);
    let divided = divided.map_or(q.buffer, |divided| divided.buffer);
    let entry = format!("{OP}_{}", q.dtype);
    let buffers = [q.buffer, k.buffer, v.buffer, decay, divided, state.buffer, y.buffer];
    recorder.dispatch(&entry, &params, &buffers, fold(OP, (lines * plan.value_dim).div_ceil(WORKGROUP))?)
}

params! {
    struct SsdParams {
        batch: u32,
        seq: u32,
        heads: u32,
        head_dim: u32,
        groups: u32,
        states: u32,
        x_offset: u32,
        dt_offset: u32,
        b_offset: u32,
        c_offset: u32,
    }
}

/// [`super::ssd_scan`] of `x`, `dt`, `b` and `c`, from the state it finds. `a_and_d` `[2, heads]`, `state` and `y` are whole
/// buffers; all contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn ssd(
    recorder: &mut Recorder<'_>,
    [x, dt, b, c]: [Operand<'_>; 4],
    a_and_d: Operand<'_>,
    plan: Ssd,
    state: Operand<'_>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "ssd";
    let params = SsdParams {
        batch: to_u32(OP, "x", plan.batch)?,
        seq: to_u32(OP, "x", plan.seq)?,
        heads: to_u32(OP, "x", plan.heads)?,
        head_dim: to_u32(OP, "x", plan.head_dim)?,
        groups: to_u32(OP, "b", plan.groups)?,
        states: to_u32(OP, "b", plan.states)?,
        x_offset: dense_offset(OP, "x", x)?,
        dt_offset: dense_offset(OP, "dt", dt)?,
        b_offset: dense_offset(OP, "b", b)?,
        c_offset: dense_offset(OP, "c", c)?,
    };
    let entry = format!("{OP}_{}", x.dtype);
    let buffers = [x.buffer, dt.buffer, b.buffer, c.buffer, a_and_d.buffer, state.buffer, y.buffer];
    let channels = plan.batch * plan.heads * plan.head_dim;
    recorder.dispatch(&entry, &params, &buffers, fold(OP, channels.div_ceil(WORKGROUP))?)
}
