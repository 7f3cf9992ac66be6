//! Launchers of the PTX kernels.

use super::Groups;
use crate::backend::cuda::{Argument, Operand, Stream, aligned, blocks, dense, dense_or_absent, rows_launch, to_u32};
use crate::{Error, Result};

/// [`super::rms_norm`] into `y`, over contiguous operands. `y` may be `x` itself.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn rms_norm(
    stream: &Stream<'_>,
    x: Operand<'_>,
    weight: Option<Operand<'_>>,
    eps: f32,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "rms_norm";
    let channels = *x.shape().last().unwrap_or(&1);
    let rows = x.layout.elements() / channels.max(1);
    let operands: Vec<_> = [x, y].into_iter().chain(weight).collect();
    let arguments = [
        dense(OP, "x", x)?,
        dense_or_absent(OP, "weight", weight)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "x", rows)?),
        Argument::U32(to_u32(OP, "x", channels)?),
        Argument::F32(eps),
    ];
    let entry = format!("rms_norm_{}{}", x.dtype, aligned(x.dtype, channels, &operands));
    let (grid, block) = rows_launch(OP, rows, channels)?;
    stream.launch(&entry, grid, block, 0, &arguments)
}

/// [`super::layer_norm`] and [`super::group_norm`] into `y`, over contiguous operands. `y` may be `x` itself.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn normalise(
    stream: &Stream<'_>,
    x: Operand<'_>,
    groups: Groups,
    weight: Option<Operand<'_>>,
    bias: Option<Operand<'_>>,
    eps: f32,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "normalise";
    let rows = x.layout.elements() / groups.len.max(1);
    let arguments = [
        dense(OP, "x", x)?,
        dense_or_absent(OP, "weight", weight)?,
        dense_or_absent(OP, "bias", bias)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "x", rows)?),
        Argument::U32(to_u32(OP, "x", groups.len)?),
        Argument::U32(to_u32(OP, "groups", groups.per_cycle)?),
        Argument::U32(to_u32(OP, "x", groups.run)?),
        Argument::F32(eps),
    ];
    // With one place per channel, what a thread takes at a time has as many weights; else it must have one.
    let aligned = match groups.run {
        1 => aligned(x.dtype, groups.len, &[x, y].into_iter().chain(weight).chain(bias).collect::<Vec<_>>()),
        run => aligned(x.dtype, run, &[x, y]),
    };
    let (grid, block) = rows_launch(OP, rows, groups.len)?;
    stream.launch(&format!("normalise_{}{aligned}", x.dtype), grid, block, 0, &arguments)
}

/// [`super::softmax`] of contiguous rows of `channels` values into `y`, which may be `x` itself.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn softmax(stream: &Stream<'_>, x: Operand<'_>, channels: usize, y: Operand<'_>) -> Result<()> {
    const OP: &str = "softmax";
    let rows = x.layout.elements() / channels.max(1);
    let arguments = [
        dense(OP, "x", x)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "x", rows)?),
        Argument::U32(to_u32(OP, "x", channels)?),
    ];
    let entry = format!("softmax_{}{}", x.dtype, aligned(x.dtype, channels, &[x, y]));
    let (grid, block) = rows_launch(OP, rows, channels)?;
    stream.launch(&entry, grid, block, 0, &arguments)
}

/// Which formula [`combine`] computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// [`super::modulate`]: `x * (1 + a) + b`.
    Modulate,
    /// [`super::gated_add`]: `x + a * b`.
    GatedAdd,
}

/// [`super::modulate`] and [`super::gated_add`]: contiguous `x` and `y` `[batch, seq, channels]`, `a` and `b` of the
/// same shape with any strides. `y` may be `x` itself.
///
/// # Errors
/// [`Error::Shape`] if `x` or `y` is not contiguous.
pub fn combine(
    stream: &Stream<'_>,
    formula: Combine,
    x: Operand<'_>,
    a: Operand<'_>,
    b: Operand<'_>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "combine";
    /// Rows of a block of the kernel, a warp each.
    const ROWS: u32 = 8;
    let &[batch, seq, channels] = x.shape() else {
        return Err(Error::shape(OP, "x", x.shape(), "three axes: [batch, seq, channels]"));
    };
    for (operand, view) in [("a", a), ("b", b), ("y", y)] {
        if view.shape() != x.shape() {
            return Err(Error::shape(OP, operand, view.shape(), format!("{:?}, as x has", x.shape())));
        }
    }
    let strides = |operand: Operand<'_>| -> Result<[u32; 3]> {
        let mut strides = [0; 3];
        for (stride, from) in strides.iter_mut().zip(operand.layout.strides()) {
            *stride = to_u32(OP, "a or b", *from)?;
        }
        Ok(strides)
    };
    let (a_strides, b_strides) = (strides(a)?, strides(b)?);
    let together = (16 / x.dtype.bytes()) as u32;
    let whole = |[batch, seq, channel]: [u32; 3]| {
        batch.is_multiple_of(together) && seq.is_multiple_of(together) && channel == 1
    };
    let aligned = match whole(a_strides) && whole(b_strides) {
        true => aligned(x.dtype, channels, &[x, a, b, y]),
        false => "",
    };
    let rows = batch * seq;
    let arguments = [
        dense(OP, "x", x)?,
        Argument::Address(a.address()),
        Argument::Address(b.address()),
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "x", rows)?),
        Argument::U32(to_u32(OP, "x", seq)?),
        Argument::U32(to_u32(OP, "x", channels)?),
        Argument::U32(u32::from(formula == Combine::GatedAdd)),
        Argument::Words(&a_strides),
        Argument::Words(&b_strides),
    ];
    let grid = blocks(OP, rows, ROWS as usize)?;
    stream.launch(&format!("combine_{}{aligned}", x.dtype), [grid, 1, 1], [32, ROWS, 1], 0, &arguments)
}
