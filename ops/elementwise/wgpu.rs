//! Launchers of the WGSL kernels.

use super::Operation;
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, output_offset, params, to_u32};
use crate::copy::wgpu::eight;
use crate::{Error, Result};

const WORKGROUP: usize = 64;

params! {
    struct ElementwiseParams {
        shape: [u32; 8],
        b_strides: [u32; 8],
        a_offset: u32,
        b_offset: u32,
        y_offset: u32,
        elements: u32,
        b_dense: u32,
        multiply: u32,
        alpha: f32,
        beta: f32,
    }
}

/// [`super::add`], [`super::mul`] and [`super::scale_add`] into `y`, with `b` stretched to the shape of `a`; `a` and
/// `y` are contiguous. `y` starts on an even element, since two elements of a half type share a word.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ, `a` or `y` is not contiguous, or `b` has more than 8 axes and is not
/// contiguous.
pub fn binary(
    recorder: &mut Recorder<'_>,
    a: Operand<'_>,
    b: Operand<'_>,
    operation: Operation,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "elementwise";
    for (operand, view) in [("b", b), ("y", y)] {
        if view.shape() != a.shape() {
            return Err(Error::shape(OP, operand, view.shape(), format!("{:?}, as a has", a.shape())));
        }
    }
    let dense = b.layout.is_contiguous();
    let elements = a.layout.elements();
    to_u32(OP, "b", b.layout.span())?;
    let (multiply, alpha, beta) = match operation {
        Operation::ScaleAdd { alpha, beta } => (0, alpha, beta),
        Operation::Mul => (1, 1.0, 1.0),
    };
    let params = ElementwiseParams {
        shape: if dense { [1; 8] } else { eight(OP, a.shape(), 1)? },
        b_strides: if dense { [0; 8] } else { eight(OP, b.layout.strides(), 0)? },
        a_offset: dense_offset(OP, "a", a)?,
        b_offset: to_u32(OP, "b", b.layout.offset())?,
        y_offset: output_offset(OP, y)?,
        elements: to_u32(OP, "a", elements)?,
        b_dense: u32::from(dense),
        multiply,
        alpha,
        beta,
    };
    let entry = format!("elementwise_{}", a.dtype);
    let workgroups = fold(OP, elements.div_ceil(2 * WORKGROUP))?;
    recorder.dispatch(&entry, &params, &[a.buffer, b.buffer, y.buffer], workgroups)
}
