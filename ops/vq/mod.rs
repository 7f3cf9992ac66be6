//! Vector quantization.

mod composed;
#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod levels;
pub mod reference;
mod scales;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use composed::{Grouped, Residual, commitment, grouped, lookup, residual, soft_lookup};
pub use levels::{DigitOrder, Finite, Scalar, Spherical, bsq, bsq_codes, fsq, fsq_codes, lfq, lfq_codes, pack, unpack};
pub use scales::Scales;

use crate::device::Handle;
use crate::{Error, Float, Result, Tensor, Weight, copy};

/// How many codes [`nearest`] returns at most.
pub const MAX_NEAREST: usize = 256;

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
/// gets index 0. For many vectors CUDA first takes products in bf16 on tensor cores, which leave one or two codes of each
/// to measure; the result is the same to the bit.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit or the codebook is empty; [`Error::Place`] if the devices differ.
///
/// # Source
/// Van den Oord et al. 2017, arXiv:1711.00937, equation 1.
pub fn nearest_l2<T: Float>(x: &Tensor<T>, codebook: &Weight) -> Result<Tensor<u32>> {
    nearest_one("nearest_l2", x, codebook, Metric::L2)
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
    nearest_one("nearest_cosine", x, codebook, Metric::Cosine)
}

fn nearest_one<T: Float>(op: &'static str, x: &Tensor<T>, codebook: &Weight, metric: Metric) -> Result<Tensor<u32>> {
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
    let codebook = table_of(op, codebook)?;
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
            let words = |words| Tensor::<u32>::empty(x.device(), &[words]);
            let scratch = cuda::scratch([y.elements(), codes, dim]);
            let scratch = match scratch {
                Some([a, b, c, d]) => Some([words(a)?, words(b)?, words(c)?, words(d)?]),
                None => None,
            };
            let scratch = scratch.as_ref().map(|scratch| scratch.each_ref().map(Tensor::cuda_operand));
            cuda::nearest(
                &cuda.stream(),
                x.cuda_operand(),
                codebook.cuda_operand(),
                metric,
                y.cuda_operand(),
                scratch,
            )?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            gpu.record(|recorder| wgpu::nearest(recorder, x.operand(), codebook.operand(), metric, y.operand()))?
        }
    }
    Ok(y)
}

/// Codes and how far they are.
#[derive(Debug, Clone)]
pub struct Nearest {
    /// The nearest code first; among equals the lowest index first.
    pub indices: Tensor<u32>,
    /// For each of them the squared distance ([`Metric::L2`]) or the cosine ([`Metric::Cosine`]).
    pub distances: Tensor<f32>,
}

/// The `count` codes nearest to each vector, and how far they are.
///
/// [`Metric::L2`]: `distance = sum over d of (x[.., d] - codebook[i, d])²`; [`Metric::Cosine`]:
/// `distance = (x . codebook[i]) / (max(|x|, 1e-12) |codebook[i]|)`, 0 for a code of length 0.
///
/// | operand     | shape                                  | element        | layout     |
/// |-------------|----------------------------------------|----------------|------------|
/// | `x`         | `[.., dim]`, or `[.., groups, dim]`    | f32, f16, bf16 | any        |
/// | `codebook`  | `[codes, dim]`, or `[groups, codes, dim]` | f32, f16, bf16 | any     |
/// | `indices`   | `[.., count]`                          | u32            | contiguous |
/// | `distances` | `[.., count]`                          | f32            | contiguous |
///
/// With groups each vector of a group meets the codes of its own group. Distances are summed in f32, in the same order
/// for every code; no matrix of them is written. A vector with a NaN gets indices 0 and NaNs.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit; [`Error::Value`] if `count` is 0, above [`MAX_NEAREST`] or above the codes;
/// [`Error::Dtype`] if the codebook is of 8 bits; [`Error::Place`] if the devices differ.
///
/// # Source
/// As [`nearest_l2`] and [`nearest_cosine`].
pub fn nearest<T: Float>(x: &Tensor<T>, codebook: &Weight, metric: Metric, count: usize) -> Result<Nearest> {
    const OP: &str = "nearest";
    let (groups, codes, code_dim) = match *codebook.shape() {
        [codes, dim] => (1, codes, dim),
        [groups, codes, dim] => (groups, codes, dim),
        ref shape => return Err(Error::shape(OP, "codebook", shape, "[codes, dim] or [groups, codes, dim]")),
    };
    let Some((&dim, outer)) = x.shape().split_last() else {
        return Err(Error::shape(OP, "x", x.shape(), "at least one axis: the last one holds the channels"));
    };
    let grouped = codebook.shape().len() == 2 || outer.last() == Some(&groups);
    if dim != code_dim || dim == 0 || !grouped {
        let expected = format!("[codes, {dim}], or with the groups before, for x of {:?}", x.shape());
        return Err(Error::shape(OP, "codebook", codebook.shape(), expected));
    }
    if !(1..=MAX_NEAREST.min(codes)).contains(&count) {
        let expected = format!("1 to {}, the codes being {codes}", MAX_NEAREST.min(codes));
        return Err(Error::value(OP, "count", count, expected));
    }
    x.device().check_same(OP, "codebook", codebook.device())?;
    let shape = [outer, &[count]].concat();
    let x = x.contiguous()?;
    let codebook = table_of(OP, codebook)?.reshape(&[groups, codes, dim])?;
    let mut indices = Tensor::empty(x.device(), &shape)?;
    let mut distances = Tensor::empty(x.device(), &shape)?;
    if indices.elements() == 0 {
        return Ok(Nearest { indices, distances });
    }
    match x.device().handle() {
        Handle::Reference => {
            reference::nearest_list(x.host(), codebook.host(), metric, indices.host_mut(), distances.host_mut());
        }
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => {
            cpu::nearest_list(cpu, x.host(), codebook.host(), metric, indices.host_mut(), distances.host_mut());
        }
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let (indices, distances) = (indices.cuda_operand(), distances.cuda_operand());
            let codebook = codebook.cuda_operand();
            cuda::nearest_list(&cuda.stream(), x.cuda_operand(), codebook, metric, indices, distances)?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu.record(|recorder| {
            let (x, codebook) = (x.operand(), codebook.operand());
            wgpu::nearest_list(recorder, x, codebook, metric, indices.operand(), distances.operand())
        })?,
    }
    Ok(Nearest { indices, distances })
}

/// A codebook as the kernels read it.
fn table_of(op: &'static str, codebook: &Weight) -> Result<Tensor<f32>> {
    Ok(match codebook {
        Weight::F32(table) => table.contiguous()?,
        Weight::F16(table) => copy::convert(table)?,
        Weight::Bf16(table) => copy::convert(table)?,
        Weight::Int8 { .. } => {
            let expected = "a float type: distances of an 8-bit codebook are not of use".to_owned();
            return Err(Error::Dtype { op, operand: "codebook", got: codebook.dtype(), expected });
        }
    })
}
