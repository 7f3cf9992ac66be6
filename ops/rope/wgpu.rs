//! Launchers of the WGSL kernels.

use super::Pairing;
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, output_offset, params, to_u32};
use crate::{Error, Result};

/// Invocations in a workgroup of the kernel, each of which makes two elements.
const WORKGROUP: usize = 64;

params! {
    struct RopeParams {
        elements: u32,
        heads: u32,
        seq: u32,
        head_dim: u32,
        pairs: u32,
        interleaved: u32,
        batch_stride: u32,
        head_stride: u32,
        seq_stride: u32,
        x_offset: u32,
        cos_offset: u32,
        sin_offset: u32,
        y_offset: u32,
    }
}

/// [`super::rope`] into a contiguous `y` that starts on an even element; the last axis of `x` is dense, and the
/// tables are contiguous with a row per position of `x`.
///
/// # Errors
/// [`Error::Shape`] if `x` has not four axes, a table not two, or an operand is not contiguous that must be.
pub fn rope(
    recorder: &mut Recorder<'_>,
    x: Operand<'_>,
    cos: Operand<'_>,
    sin: Operand<'_>,
    pairing: Pairing,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "rope";
    let (&[_, heads, seq, head_dim], &[batch_stride, head_stride, seq_stride, _]) = (x.shape(), x.layout.strides())
    else {
        return Err(Error::shape(OP, "x", x.shape(), "[batch, heads, seq, head_dim]"));
    };
    let &[_, pairs] = cos.shape() else {
        return Err(Error::shape(OP, "cos", cos.shape(), "[positions, pairs]"));
    };
    let elements = x.layout.elements();
    to_u32(OP, "x", x.layout.span())?;
    let params = RopeParams {
        elements: to_u32(OP, "x", elements)?,
        heads: to_u32(OP, "x", heads)?,
        seq: to_u32(OP, "x", seq)?,
        head_dim: to_u32(OP, "x", head_dim)?,
        pairs: to_u32(OP, "cos", pairs)?,
        interleaved: u32::from(pairing == Pairing::Interleaved),
        batch_stride: to_u32(OP, "x", batch_stride)?,
        head_stride: to_u32(OP, "x", head_stride)?,
        seq_stride: to_u32(OP, "x", seq_stride)?,
        x_offset: to_u32(OP, "x", x.layout.offset())?,
        cos_offset: dense_offset(OP, "cos", cos)?,
        sin_offset: dense_offset(OP, "sin", sin)?,
        y_offset: output_offset(OP, y)?,
    };
    let entry = format!("rope_{}", x.dtype);
    let buffers = [x.buffer, cos.buffer, sin.buffer, y.buffer];
    recorder.dispatch(&entry, &params, &buffers, fold(OP, elements.div_ceil(2 * WORKGROUP))?)
}
