//! Launcher of the PTX kernel.

use super::{OP, Pairing};
use crate::backend::cuda::{Argument, Operand, Stream, blocks, to_u32};
use crate::{Error, Result};

/// Rows of a block of the kernel, a warp each.
const ROWS: u32 = 8;

/// [`super::rope`] into `y`, which may be `x` itself. The last axis of every operand is dense; `cos` and `sin` are
/// `[batch, seq, pairs]`.
///
/// # Errors
/// [`Error::Shape`] if an operand has another shape or its last axis is not dense; [`Error::Value`] if a stride does
/// not fit 32 bits.
pub fn rope(
    stream: &Stream<'_>,
    x: Operand<'_>,
    cos: Operand<'_>,
    sin: Operand<'_>,
    pairing: Pairing,
    y: Operand<'_>,
) -> Result<()> {
    let &[batch, heads, seq, head_dim] = x.shape() else {
        return Err(Error::shape(OP, "x", x.shape(), "[batch, heads, seq, head_dim]"));
    };
    if y.shape() != x.shape() {
        return Err(Error::shape(OP, "y", y.shape(), format!("{:?}, as x has", x.shape())));
    }
    let pairs = match *cos.shape() {
        [entries, positions, pairs] if [entries, positions] == [batch, seq] && pairs <= head_dim / 2 => pairs,
        _ => return Err(Error::shape(OP, "cos", cos.shape(), format!("[{batch}, {seq}, at most {head_dim} / 2]"))),
    };
    if sin.shape() != cos.shape() {
        return Err(Error::shape(OP, "sin", sin.shape(), format!("{:?}, as cos has", cos.shape())));
    }
    let rows = batch * heads * seq;
    let (x_strides, y_strides) = (strides::<3>("x", x)?, strides::<3>("y", y)?);
    let (cos_strides, sin_strides) = (strides::<2>("cos", cos)?, strides::<2>("sin", sin)?);
    let arguments = [
        Argument::Address(x.address()),
        Argument::Address(cos.address()),
        Argument::Address(sin.address()),
        Argument::Address(y.address()),
        Argument::U32(to_u32(OP, "x", rows)?),
        Argument::U32(to_u32(OP, "x", heads)?),
        Argument::U32(to_u32(OP, "x", seq)?),
        Argument::U32(to_u32(OP, "x", head_dim)?),
        Argument::U32(to_u32(OP, "cos", pairs)?),
        Argument::U32(u32::from(pairing == Pairing::Interleaved)),
        Argument::Words(&x_strides),
        Argument::Words(&y_strides),
        Argument::Words(&cos_strides),
        Argument::Words(&sin_strides),
    ];
    let grid = blocks(OP, rows, ROWS as usize)?;
    stream.launch(&format!("rope_{}", x.dtype), [grid, 1, 1], [32, ROWS, 1], 0, &arguments)
}

/// The strides of all axes but the last, which must be dense.
fn strides<const AXES: usize>(name: &'static str, operand: Operand<'_>) -> Result<[u32; AXES]> {
    let mut strides = [0; AXES];
    match (operand.layout.strides().split_last(), operand.shape().last()) {
        (Some((last, rest)), Some(len)) if *last == 1 || *len <= 1 => {
            for (stride, from) in strides.iter_mut().zip(rest) {
                *stride = to_u32(OP, name, *from)?;
            }
            Ok(strides)
        }
        _ => Err(Error::shape(OP, name, operand.layout.strides(), "strides whose last one is 1")),
    }
}
