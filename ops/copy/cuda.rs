//! Launchers of the PTX kernels.

use crate::backend::cuda::{Argument, Operand, Stream, blocks, dense, eight, to_u32};
use crate::{Error, Result};

const BLOCK: u32 = 256;

/// [`super::copy_into`].
///
/// # Errors
/// [`Error::Shape`] if the shapes differ or there are more than 8 axes.
pub fn copy_into(stream: &Stream<'_>, x: Operand<'_>, y: Operand<'_>) -> Result<()> {
    const OP: &str = "copy_into";
    if x.shape() != y.shape() {
        return Err(Error::shape(OP, "y", y.shape(), format!("{:?}, as x has", x.shape())));
    }
    let elements = x.layout.elements();
    let (shape, x_strides, y_strides) =
        (eight(OP, x.shape(), 1)?, eight(OP, x.layout.strides(), 0)?, eight(OP, y.layout.strides(), 0)?);
    let arguments = [
        Argument::Address(x.address()),
        Argument::Address(y.address()),
        Argument::Words(&shape),
        Argument::Words(&x_strides),
        Argument::Words(&y_strides),
        Argument::U32(to_u32(OP, "x", elements)?),
    ];
    let grid = blocks(OP, elements, BLOCK as usize)?;
    stream.launch(&format!("copy_b{}", 8 * x.dtype.bytes()), [grid, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}

/// [`super::convert`] into a contiguous `y`.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ, `y` is not contiguous or there are more than 8 axes.
pub fn convert(stream: &Stream<'_>, x: Operand<'_>, y: Operand<'_>) -> Result<()> {
    const OP: &str = "convert";
    if x.shape() != y.shape() {
        return Err(Error::shape(OP, "y", y.shape(), format!("{:?}, as x has", x.shape())));
    }
    let elements = x.layout.elements();
    let (shape, x_strides) = (eight(OP, x.shape(), 1)?, eight(OP, x.layout.strides(), 0)?);
    let arguments = [
        Argument::Address(x.address()),
        dense(OP, "y", y)?,
        Argument::Words(&shape),
        Argument::Words(&x_strides),
        Argument::U32(to_u32(OP, "x", elements)?),
    ];
    let grid = blocks(OP, elements, BLOCK as usize)?;
    stream.launch(&format!("convert_{}_to_{}", x.dtype, y.dtype), [grid, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}
