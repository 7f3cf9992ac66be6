//! Launchers of the PTX kernels.

use super::Activation;
use crate::backend::cuda::{Argument, Operand, Stream, aligned, blocks, dense, per_thread, to_u32};
use crate::{Error, Result};

const BLOCK: u32 = 256;

/// [`super::activation`] into `y`, over contiguous operands. `y` may be `x` itself.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ or an operand is not contiguous.
pub fn activation(stream: &Stream<'_>, x: Operand<'_>, activation: Activation, y: Operand<'_>) -> Result<()> {
    const OP: &str = "activation";
    launch(stream, OP, &format!("{OP}_{}", activation.name()), &[("x", x), ("y", y)])
}

/// [`super::swiglu`] into `y`, over contiguous operands. `y` may be `gate` or `up` itself.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ or an operand is not contiguous.
pub fn swiglu(stream: &Stream<'_>, gate: Operand<'_>, up: Operand<'_>, y: Operand<'_>) -> Result<()> {
    launch(stream, "swiglu", "swiglu", &[("gate", gate), ("up", up), ("y", y)])
}

/// A kernel that takes contiguous operands of one shape and the number of their elements.
fn launch(stream: &Stream<'_>, op: &'static str, kernel: &str, operands: &[(&'static str, Operand<'_>)]) -> Result<()> {
    let [(first_name, first), ..] = *operands else { return Ok(()) };
    let mut arguments = Vec::with_capacity(operands.len() + 1);
    for (name, operand) in operands {
        if operand.shape() != first.shape() {
            let expected = format!("{:?}, as {first_name} has", first.shape());
            return Err(Error::shape(op, name, operand.shape(), expected));
        }
        arguments.push(dense(op, name, *operand)?);
    }
    let elements = first.layout.elements();
    arguments.push(Argument::U32(to_u32(op, first_name, elements)?));
    let operands: Vec<_> = operands.iter().map(|(_, operand)| *operand).collect();
    let aligned = aligned(first.dtype, elements, &operands);
    let grid = blocks(op, elements, BLOCK as usize * per_thread(first.dtype, aligned))?;
    stream.launch(&format!("{kernel}_{}{aligned}", first.dtype), [grid, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}
