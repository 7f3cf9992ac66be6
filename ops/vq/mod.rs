//! Vector quantization.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::device::Handle;
use crate::{Error, Float, Result, Tensor, Weight, copy};

/// By what a code is near.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Metric {
    /// The smallest squared distance.
    L2,
    /// The largest cosine.
    Cosine,
}

/// The code of smallest squared distance to each vector; among equals the lowest index.
///
/// `index[..] = argmin over i of sum over d of (x[.., d] - codebook[i, d])²`
///
/// | operand    | shape          | element              | layout     |
/// |------------|----------------|----------------------|------------|
/// | `x`        | `[.., dim]`    | f32, f16, bf16       | any        |
/// | `codebook` | `[codes, dim]` | f32, f16, bf16       | any        |
/// | returned   | `[..]`         | u32                  | contiguous |
///
/// Distances are summed in f32, in the same order for every code, so that equal codes tie exactly. A vector with a NaN
/// gets index 0.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit or the codebook is empty; [`Error::Place`] if the devices differ.
///
/// # Source
/// Van den Oord et al. 2017, arXiv:1711.00937, equation 1.
pub fn nearest_l2<T: Float>(x: &Tensor<T>, codebook: &Weight) -> Result<Tensor<u32>> {
    nearest("nearest_l2", x, codebook, Metric::L2)
}

/// The code of largest cosine with each vector; among equals the lowest index.
///
/// `index[..] = argmax over i of (x[.., ..] . codebook[i, ..]) / |codebook[i, ..]|`; operands and errors as
/// [`nearest_l2`]. A code of length 0 has cosine 0.
///
/// # Errors
/// As [`nearest_l2`].
///
/// # Source
/// Yu et al. 2021, arXiv:2110.04627, section 3.2 (codes on the unit sphere).
pub fn nearest_cosine<T: Float>(x: &Tensor<T>, codebook: &Weight) -> Result<Tensor<u32>> {
    nearest("nearest_cosine", x, codebook, Metric::Cosine)
}

fn nearest<T: Float>(op: &'static str, x: &Tensor<T>, codebook: &Weight, metric: Metric) -> Result<Tensor<u32>> {
    let (Some((&dim, outer)), &[codes, code_dim]) = (x.shape().split_last(), codebook.shape()) else {
        let expected = "[codes, dim], and an x of at least one axis";
        return Err(Error::shape(op, "codebook", codebook.shape(), expected));
    };
    x.device().check_same(op, "codebook", codebook.device())?;
    if dim != code_dim || codes == 0 || dim == 0 {
        let expected = format!("[codes, {dim}] with at least one code, for x of {:?}", x.shape());
        return Err(Error::shape(op, "codebook", codebook.shape(), expected));
    }
    let x = x.contiguous()?;
    let codebook: Tensor<f32> = match codebook {
        Weight::F32(table) => table.contiguous()?,
        Weight::F16(table) => copy::convert(table)?,
        Weight::Bf16(table) => copy::convert(table)?,
        Weight::Int8 { .. } => {
            let expected = "a float type: distances of an 8-bit codebook are not of use".to_owned();
            return Err(Error::Dtype { op, operand: "codebook", got: codebook.dtype(), expected });
        }
    };
    let outer = outer.to_vec();
    let mut y = Tensor::empty(x.device(), &outer)?;
    if y.elements() == 0 {
        return Ok(y);
    }
    match x.device().handle() {
        Handle::Reference => reference::nearest(x.host(), codebook.host(), metric, y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::nearest(cpu, x.host(), codebook.host(), metric, y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            cuda::nearest(&cuda.stream(), x.cuda_operand(), codebook.cuda_operand(), metric, y.cuda_operand())?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            gpu.record(|recorder| wgpu::nearest(recorder, x.operand(), codebook.operand(), metric, y.operand()))?
        }
    }
    Ok(y)
}
