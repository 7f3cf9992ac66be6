//! Launchers of the PTX kernels.

use super::Operation;
use crate::backend::cuda::{Argument, Operand, Stream, blocks, dense, eight, starts_on, to_u32};
use crate::{Error, Result};

const BLOCK: u32 = 256;
/// Bytes that a thread of the kernel for dense operands moves.
const TOGETHER: usize = 16;

/// [`super::add`], [`super::mul`] and [`super::scale_add`] into `y`, with `b` stretched to the shape of `a`; `a` and
/// `y` are contiguous. `y` may be `a` itself.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ, `a` or `y` is not contiguous, or `b` has more than 8 axes and is not
/// contiguous.
pub fn binary(stream: &Stream<'_>, a: Operand<'_>, b: Operand<'_>, operation: Operation, y: Operand<'_>) -> Result<()> {
    const OP: &str = "elementwise";
    for (operand, view) in [("b", b), ("y", y)] {
        if view.shape() != a.shape() {
            return Err(Error::shape(OP, operand, view.shape(), format!("{:?}, as a has", a.shape())));
        }
    }
    let elements = a.layout.elements();
    let (multiply, alpha, beta) = match operation {
        Operation::ScaleAdd { alpha, beta } => (0, alpha, beta),
        Operation::Mul => (1, 1.0, 1.0),
    };
    let values =
        [Argument::U32(to_u32(OP, "a", elements)?), Argument::U32(multiply), Argument::F32(alpha), Argument::F32(beta)];
    let (a_address, y_address) = (dense(OP, "a", a)?, dense(OP, "y", y)?);
    let addresses = [a_address, Argument::Address(b.address()), y_address];
    if b.layout.is_contiguous() && [a, b, y].iter().all(|operand| starts_on(TOGETHER, *operand)) {
        let grid = blocks(OP, elements, BLOCK as usize * TOGETHER / a.dtype.bytes())?;
        let arguments = [&addresses[..], &values].concat();
        return stream.launch(&format!("elementwise_together_{}", a.dtype), [grid, 1, 1], [BLOCK, 1, 1], 0, &arguments);
    }
    let (shape, strides) = match b.layout.is_contiguous() {
        true => (eight(OP, &[elements], 1)?, eight(OP, &[1], 0)?),
        false => (eight(OP, a.shape(), 1)?, eight(OP, b.layout.strides(), 0)?),
    };
    let arguments = [&addresses[..], &[Argument::Words(&shape), Argument::Words(&strides)], &values].concat();
    let grid = blocks(OP, elements, BLOCK as usize)?;
    stream.launch(&format!("elementwise_{}", a.dtype), [grid, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}
