//! Launchers of the WGSL kernels.

use super::Activation;
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, output_offset, params, to_u32};
use crate::{Error, Result};

const WORKGROUP: usize = 64;

params! {
    struct ActivationParams {
        x_offset: u32,
        y_offset: u32,
        elements: u32,
    }
}

params! {
    struct SwigluParams {
        gate_offset: u32,
        up_offset: u32,
        y_offset: u32,
        elements: u32,
    }
}

/// [`super::activation`] into `y`, over contiguous operands. `y` starts on an even element, since two elements of a
/// half type share a word.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ or an operand is not contiguous.
pub fn activation(recorder: &mut Recorder<'_>, x: Operand<'_>, activation: Activation, y: Operand<'_>) -> Result<()> {
    const OP: &str = "activation";
    if y.shape() != x.shape() {
        return Err(Error::shape(OP, "y", y.shape(), format!("{:?}, as x has", x.shape())));
    }
    let elements = x.layout.elements();
    let params = ActivationParams {
        x_offset: dense_offset(OP, "x", x)?,
        y_offset: output_offset(OP, y)?,
        elements: to_u32(OP, "x", elements)?,
    };
    let entry = format!("activation_{}_{}", activation.name(), x.dtype);
    recorder.dispatch(&entry, &params, &[x.buffer, y.buffer], fold(OP, elements.div_ceil(2 * WORKGROUP))?)
}

/// [`super::swiglu`] into `y`, over contiguous operands. `y` starts on an even element, since two elements of a
/// half type share a word.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ or an operand is not contiguous.
pub fn swiglu(recorder: &mut Recorder<'_>, gate: Operand<'_>, up: Operand<'_>, y: Operand<'_>) -> Result<()> {
    const OP: &str = "swiglu";
    for (operand, view) in [("up", up), ("y", y)] {
        if view.shape() != gate.shape() {
            return Err(Error::shape(OP, operand, view.shape(), format!("{:?}, as gate has", gate.shape())));
        }
    }
    let elements = gate.layout.elements();
    let params = SwigluParams {
        gate_offset: dense_offset(OP, "gate", gate)?,
        up_offset: dense_offset(OP, "up", up)?,
        y_offset: output_offset(OP, y)?,
        elements: to_u32(OP, "gate", elements)?,
    };
    let entry = format!("swiglu_{}", gate.dtype);
    let workgroups = fold(OP, elements.div_ceil(2 * WORKGROUP))?;
    recorder.dispatch(&entry, &params, &[gate.buffer, up.buffer, y.buffer], workgroups)
}
