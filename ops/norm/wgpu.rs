//! Launchers of the WGSL kernels.

use super::Groups;
use crate::Result;
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, output_offset, params, to_u32};

params! {
    struct RmsNormParams {
        rows: u32,
        channels: u32,
        y_offset: u32,
        x_offset: u32,
        weight_offset: u32,
        has_weight: u32,
        eps: f32,
    }
}

/// [`super::rms_norm`] into `y`, over contiguous operands. `y` starts on an even
/// element, since two elements of a half type share a word.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if an operand is not contiguous.
pub fn rms_norm(
    recorder: &mut Recorder<'_>,
    x: Operand<'_>,
    weight: Option<Operand<'_>>,
    eps: f32,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "rms_norm";
    let channels = *x.shape().last().unwrap_or(&1);
    let rows = x.layout.elements() / channels.max(1);
    // A row that ends inside a word shares it with the next row, so both go to one workgroup.
    let workgroups = rows.div_ceil(1 + channels % 2);
    let params = RmsNormParams {
        rows: to_u32(OP, "x", rows)?,
        channels: to_u32(OP, "x", channels)?,
        y_offset: output_offset(OP, y)?,
        x_offset: dense_offset(OP, "x", x)?,
        weight_offset: weight.map_or(Ok(0), |weight| dense_offset(OP, "weight", weight))?,
        has_weight: u32::from(weight.is_some()),
        eps,
    };
    let weight = weight.map_or(x.buffer, |weight| weight.buffer);
    let entry = format!("rms_norm_{}", x.dtype);
    recorder.dispatch(&entry, &params, &[x.buffer, weight, y.buffer], fold(OP, workgroups)?)
}

params! {
    struct NormaliseParams {
        rows: u32,
        len: u32,
        per_cycle: u32,
        run: u32,
        y_offset: u32,
        x_offset: u32,
        weight_offset: u32,
        bias_offset: u32,
        has_weight: u32,
        has_bias: u32,
        eps: f32,
    }
}

/// [`super::layer_norm`] and [`super::group_norm`] into `y`, over contiguous operands. `y` starts on an even element.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn normalise(
    recorder: &mut Recorder<'_>,
    x: Operand<'_>,
    groups: Groups,
    weight: Option<Operand<'_>>,
    bias: Option<Operand<'_>>,
    eps: f32,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "normalise";
    let rows = x.layout.elements() / groups.len.max(1);
    let params = NormaliseParams {
        rows: to_u32(OP, "x", rows)?,
        len: to_u32(OP, "x", groups.len)?,
        per_cycle: to_u32(OP, "groups", groups.per_cycle)?,
        run: to_u32(OP, "x", groups.run)?,
        y_offset: output_offset(OP, y)?,
        x_offset: dense_offset(OP, "x", x)?,
        weight_offset: weight.map_or(Ok(0), |weight| dense_offset(OP, "weight", weight))?,
        bias_offset: bias.map_or(Ok(0), |bias| dense_offset(OP, "bias", bias))?,
        has_weight: u32::from(weight.is_some()),
        has_bias: u32::from(bias.is_some()),
        eps,
    };
    let weight = weight.map_or(x.buffer, |weight| weight.buffer);
    let bias = bias.map_or(x.buffer, |bias| bias.buffer);
    let entry = format!("normalise_{}", x.dtype);
    // A row that ends inside a word shares it with the next row, so both go to one workgroup.
    let workgroups = fold(OP, rows.div_ceil(1 + groups.len % 2))?;
    recorder.dispatch(&entry, &params, &[x.buffer, weight, bias, y.buffer], workgroups)
}

params! {
    struct SoftmaxParams {
        rows: u32,
        channels: u32,
        y_offset: u32,
        x_offset: u32,
    }
}

/// [`super::softmax`] of contiguous rows of `channels` values into `y`, which starts on an even element.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn softmax(recorder: &mut Recorder<'_>, x: Operand<'_>, channels: usize, y: Operand<'_>) -> Result<()> {
    const OP: &str = "softmax";
    let rows = x.layout.elements() / channels.max(1);
    let params = SoftmaxParams {
        rows: to_u32(OP, "x", rows)?,
        channels: to_u32(OP, "x", channels)?,
        y_offset: output_offset(OP, y)?,
        x_offset: dense_offset(OP, "x", x)?,
    };
    let entry = format!("softmax_{}", x.dtype);
    // A row that ends inside a word shares it with the next row, so both go to one workgroup.
    let workgroups = fold(OP, rows.div_ceil(1 + channels % 2))?;
    recorder.dispatch(&entry, &params, &[x.buffer, y.buffer], workgroups)
}

/// Which formula [`combine`] computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// [`super::modulate`]: `x * (1 + a) + b`.
    Modulate,
    /// [`super::gated_add`]: `x + a * b`.
    GatedAdd,
}

params! {
    struct CombineParams {
        rows: u32,
        seq: u32,
        channels: u32,
        gated: u32,
        y_offset: u32,
        x_offset: u32,
        a_offset: u32,
        b_offset: u32,
        a_batch_stride: u32,
        a_seq_stride: u32,
        a_stride: u32,
        b_batch_stride: u32,
        b_seq_stride: u32,
        b_stride: u32,
    }
}

/// [`super::modulate`] and [`super::gated_add`]: contiguous `x` and `y` `[batch, seq, channels]`, `a` and `b` of the
/// same shape with any strides. `y` starts on an even element.
///
/// # Errors
/// [`crate::Error::Shape`] if `x` or `y` is not contiguous.
pub fn combine(
    recorder: &mut Recorder<'_>,
    formula: Combine,
    x: Operand<'_>,
    a: Operand<'_>,
    b: Operand<'_>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "combine";
    let &[batch, seq, channels] = x.shape() else {
        return Err(crate::Error::shape(OP, "x", x.shape(), "three axes: [batch, seq, channels]"));
    };
    let stride = |operand: Operand<'_>, axis: usize| to_u32(OP, "a or b", operand.layout.strides()[axis]);
    to_u32(OP, "a", a.layout.span())?;
    to_u32(OP, "b", b.layout.span())?;
    let params = CombineParams {
        rows: to_u32(OP, "x", batch * seq)?,
        seq: to_u32(OP, "x", seq)?,
        channels: to_u32(OP, "x", channels)?,
        gated: u32::from(formula == Combine::GatedAdd),
        y_offset: output_offset(OP, y)?,
        x_offset: dense_offset(OP, "x", x)?,
        a_offset: to_u32(OP, "a", a.layout.offset())?,
        b_offset: to_u32(OP, "b", b.layout.offset())?,
        a_batch_stride: stride(a, 0)?,
        a_seq_stride: stride(a, 1)?,
        a_stride: stride(a, 2)?,
        b_batch_stride: stride(b, 0)?,
        b_seq_stride: stride(b, 1)?,
        b_stride: stride(b, 2)?,
    };
    let entry = format!("combine_{}", x.dtype);
    let workgroups = fold(OP, x.layout.elements().div_ceil(2 * 64))?;
    recorder.dispatch(&entry, &params, &[x.buffer, a.buffer, b.buffer, y.buffer], workgroups)
}
