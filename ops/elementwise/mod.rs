//! Sums and products, element by element.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::device::Handle;
use crate::{Error, Float, Result, Tensor};

/// What is done with the two operands.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Operation {
    /// `alpha * a + beta * b`
    ScaleAdd {
        /// The factor of `a`.
        alpha: f32,
        /// The factor of `b`.
        beta: f32,
    },
    /// `a * b`
    Mul,
}

/// Adds two tensors.
///
/// `y[..] = a[..] + b[..]`
///
/// | operand  | shape                                                             | element        | layout     |
/// |----------|-------------------------------------------------------------------|----------------|------------|
/// | `a`      | any                                                               | f32, f16, bf16 | any        |
/// | `b`      | as `a`, or one that stretches to it: aligned at the end, 1 repeats | as `a`         | any        |
/// | returned | as `a`                                                            | as `a`         | contiguous |
///
/// # Errors
/// [`Error::Shape`] if `b` does not stretch to the shape of `a`; [`Error::Place`] if the operands are on different
/// devices.
///
/// # Source
/// As `torch.add`, of which only the second operand is stretched.
pub fn add<T: Float>(a: &Tensor<T>, b: &Tensor<T>) -> Result<Tensor<T>> {
    binary("add", a, b, Operation::ScaleAdd { alpha: 1.0, beta: 1.0 })
}

/// Multiplies two tensors element by element.
///
/// `y[..] = a[..] * b[..]`
///
/// Operands, errors and source are those of [`add`].
///
/// # Errors
/// As [`add`].
pub fn mul<T: Float>(a: &Tensor<T>, b: &Tensor<T>) -> Result<Tensor<T>> {
    binary("mul", a, b, Operation::Mul)
}

/// Adds multiples of two tensors.
///
/// `y[..] = alpha * a[..] + beta * b[..]`
///
/// | operand  | shape  | element        | layout     |
/// |----------|--------|----------------|------------|
/// | `a`      | any    | f32, f16, bf16 | any        |
/// | `b`      | as `a` | as `a`         | any        |
/// | returned | as `a` | as `a`         | contiguous |
///
/// # Errors
/// [`Error::Shape`] if the shapes differ; [`Error::Place`] if the operands are on different devices.
pub fn scale_add<T: Float>(a: &Tensor<T>, alpha: f32, b: &Tensor<T>, beta: f32) -> Result<Tensor<T>> {
    const OP: &str = "scale_add";
    if a.shape() != b.shape() {
        return Err(Error::shape(OP, "b", b.shape(), format!("{:?}, as a has", a.shape())));
    }
    binary(OP, a, b, Operation::ScaleAdd { alpha, beta })
}

fn binary<T: Float>(op: &'static str, a: &Tensor<T>, b: &Tensor<T>, operation: Operation) -> Result<Tensor<T>> {
    a.device().check_same(op, "b", b.device())?;
    let Some(layout) = b.layout().broadcast(a.shape()) else {
        return Err(Error::shape(op, "b", b.shape(), format!("axes of 1 or as in a, which is {:?}", a.shape())));
    };
    let a = a.contiguous()?;
    let b = b.view_as(layout)?;
    let mut y = Tensor::empty(a.device(), a.shape())?;
    match a.device().handle() {
        Handle::Reference => reference::binary(a.host(), b.host(), operation, y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::binary(cpu, a.host(), b.host(), operation, y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            cuda::binary(&cuda.stream(), a.cuda_operand(), b.cuda_operand(), operation, y.cuda_operand())?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            gpu.record(|recorder| wgpu::binary(recorder, a.operand(), b.operand(), operation, y.operand()))?;
        }
    }
    Ok(y)
}
