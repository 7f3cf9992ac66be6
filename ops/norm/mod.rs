//! Normalisation.

#[cfg(feature = "cpu")]
pub mod cpu;
pub mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::device::Handle;
use crate::{Error, Float, Result, Tensor};

/// Brings each row of `x` to root mean square 1, then scales it by `weight`.
///
/// `y[.., c] = x[.., c] * weight[c] / sqrt(mean(x[.., ..]²) + eps)`
///
/// | operand  | shape            | element        | layout               |
/// |----------|------------------|----------------|----------------------|
/// | `x`      | `[.., channels]` | f32, f16, bf16 | any                  |
/// | `weight` | `[channels]`     | f32            | any; absent: all 1   |
/// | returned | as `x`           | as `x`         | contiguous           |
///
/// `eps` has the unit of `x²`; checkpoints differ, so take it from the model's file. Sums are in f32.
/// A row of zeros gives zeros if `eps > 0`; a NaN makes its own row NaN and no other.
///
/// # Errors
/// [`Error::Shape`] if `x` has no axis or `weight` has not one value per channel; [`Error::Place`] if the operands
/// are on different devices.
///
/// # Source
/// Zhang and Sennrich 2019, arXiv:1910.07467, equation 4 (which has no `eps`).
pub fn rms_norm<T: Float>(x: &Tensor<T>, weight: Option<&Tensor<f32>>, eps: f32) -> Result<Tensor<T>> {
    const OP: &str = "rms_norm";
    check_channels(OP, x, "weight", weight)?;
    let x = x.contiguous()?;
    let weight = weight.map(Tensor::contiguous).transpose()?;
    let mut y = Tensor::empty(x.device(), x.shape())?;
    match x.device().handle() {
        Handle::Reference => reference::rms_norm(x.host(), weight.as_ref().map(Tensor::host), eps, y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::rms_norm(cpu, x.host(), weight.as_ref().map(Tensor::host), eps, y.host_mut()),
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu.record(|recorder| {
            wgpu::rms_norm(recorder, x.operand(), weight.as_ref().map(Tensor::operand), eps, y.operand())
        })?,
    }
    Ok(y)
}

/// That `x` has a last axis, and that `vector`, if there is one, has one value per entry of it and is where `x` is.
fn check_channels<T: Float>(
    op: &'static str,
    x: &Tensor<T>,
    operand: &'static str,
    vector: Option<&Tensor<f32>>,
) -> Result<usize> {
    let Some(&channels) = x.shape().last() else {
        return Err(Error::shape(op, "x", x.shape(), "at least one axis: the last one holds the channels"));
    };
    if let Some(vector) = vector {
        x.device().check_same(op, operand, vector.device())?;
        if vector.shape() != [channels] {
            let expected = format!("[{channels}]: one value per channel of x, which is {:?}", x.shape());
            return Err(Error::shape(op, operand, vector.shape(), expected));
        }
    }
    Ok(channels)
}
