//! Merging attention over parts of the keys.

#[cfg(feature = "cpu")]
use super::cpu;
#[cfg(feature = "cuda")]
use super::cuda;
#[cfg(feature = "wgpu")]
use super::wgpu;
use super::{Attention, reference};
use crate::device::Handle;
use crate::{Error, Float, Result, Tensor};

/// Attention over all keys from attention over parts of them.
///
/// `y = sum_p exp(lse[p] - L) parts[p]` with `L = ln sum_p exp(lse[p])`.
///
/// | operand  | shape                                    | element        | layout     |
/// |----------|------------------------------------------|----------------|------------|
/// | `parts`  | `[parts, batch, heads, q_len, head_dim]` | f32, f16, bf16 | any        |
/// | `lse`    | `[parts, batch, heads, q_len]`           | f32            | any        |
/// | `y`      | `[batch, heads, q_len, head_dim]`        | as `parts`     | contiguous |
/// | `lse`    | `[batch, heads, q_len]`                  | f32            | contiguous |
///
/// Exponentials and sums are in f32. A part whose lse is `-inf` saw nothing and is left out, whatever it holds; a row
/// that no part saw gives zeros and `-inf`.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit; [`Error::Place`] if a device differs.
///
/// # Source
/// Dao et al. 2022, arXiv:2205.14135, section 3.1 (the softmax of concatenated scores).
pub fn merge<T: Float>(parts: &Tensor<T>, lse: &Tensor<f32>) -> Result<Attention<T>> {
    const OP: &str = "attention_merge";
    let (&[_, batch, heads, q_len, head_dim], [rows @ .., _]) = (parts.shape(), parts.shape()) else {
        return Err(Error::shape(OP, "parts", parts.shape(), "[parts, batch, heads, q_len, head_dim]"));
    };
    parts.device().check_same(OP, "lse", lse.device())?;
    if lse.shape() != rows {
        return Err(Error::shape(OP, "lse", lse.shape(), format!("{rows:?}, as parts is {:?}", parts.shape())));
    }
    let device = parts.device();
    let (parts, lse) = (parts.contiguous()?, lse.contiguous()?);
    let mut y = Tensor::empty(device, &[batch, heads, q_len, head_dim])?;
    let mut merged = Tensor::empty(device, &[batch, heads, q_len])?;
    match device.handle() {
        Handle::Reference => reference::merge(parts.host(), lse.host(), y.host_mut(), merged.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(_) => cpu::merge(parts.host(), lse.host(), y.host_mut(), merged.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(device) => {
            let (y, merged) = (y.cuda_operand(), merged.cuda_operand());
            cuda::merge(&device.stream(), parts.cuda_operand(), lse.cuda_operand(), y, merged)?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            gpu.record(|recorder| wgpu::merge(recorder, parts.operand(), lse.operand(), y.operand(), merged.operand()))?
        }
    }
    Ok(Attention { y, lse: Some(merged) })
}
