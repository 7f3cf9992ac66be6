//! Rotary positions.
//!
//! Queries are turned in place, keys on their way into the [cache](crate::attention::KvCache::append_rope), each once.
//! Attention does not turn what it loads, for that does not pay: every block of up to 64 queries would turn all its keys
//! again, and every step of decoding those of all steps before, to save one pass over the queries and the new keys.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod pairing;
pub mod reference;
mod table;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use pairing::{Pairing, reorder_bias, reorder_weight};
pub use table::{Extrapolation, Frequencies, NullRows, Positions, Table, sections, spread};

use crate::attention::dense_rows;
use crate::device::Handle;
use crate::{Error, Float, Result, Tensor, copy};

const OP: &str = "rope";

/// Turns pairs of channels by the angles of their position.
///
/// A pair `(a, b)` of `x[.., i, ..]` becomes `(a cos - b sin, a sin + b cos)` with the cosines and sines of row
/// `start + i` of the table. Channels beyond twice the table's pairs stay as they are.
///
/// | operand    | shape                                                  | element        | layout                                 |
/// |------------|--------------------------------------------------------|----------------|----------------------------------------|
/// | `x`        | `[batch, heads, seq, head_dim]`                        | f32, f16, bf16 | any; no copy if the last axis is dense |
/// | cos, sin   | `[positions, pairs]` or `[batch, positions, pairs]`    | f32            | likewise                               |
/// | returned   | as `x`                                                 | as `x`         | contiguous                             |
///
/// Arithmetic is in f32.
///
/// # Errors
/// [`Error::Shape`] if `x` has not four axes, the table has more pairs than `x`, not the rows that are asked for or not
/// the batch entries, or its two parts differ in shape; [`Error::Place`] if a device differs.
///
/// # Source
/// Su et al. 2021, arXiv:2104.09864, equation 34.
pub fn rope<T: Float>(x: &Tensor<T>, table: &Table, start: usize, pairing: Pairing) -> Result<Tensor<T>> {
    let rows = rows_of(x, table, start)?;
    let mut y = Tensor::empty(x.device(), x.shape())?;
    turn(&dense_rows(x)?, &rows, pairing, &mut y)?;
    Ok(y)
}

/// [`rope`] into `y`, as a view of a cache: of the shape of `x`, other memory, any layout in which no two elements
/// share a place. No copy if the last axis of `y` is dense and, on wgpu, consists of whole words of 4 bytes.
///
/// # Errors
/// As [`rope`]; [`Error::Shape`] if the shapes differ; as [`copy::copy_into`] where a copy is needed.
pub fn rope_into<T: Float>(
    x: &Tensor<T>,
    table: &Table,
    start: usize,
    pairing: Pairing,
    y: &mut Tensor<T>,
) -> Result<()> {
    let rows = rows_of(x, table, start)?;
    x.device().check_same(OP, "y", y.device())?;
    if y.shape() != x.shape() {
        return Err(Error::shape(OP, "y", y.shape(), format!("{:?}, as x has", x.shape())));
    }
    if !writable(y) {
        return copy::copy_into(&rope(x, table, start, pairing)?, y);
    }
    turn(&dense_rows(x)?, &rows, pairing, y)
}

/// [`rope`] in place. No copy if the last axis of `x` is dense and, for a half type on wgpu, offset, strides and (with
/// [`Pairing::HalfSplit`]) the table's pairs are even.
///
/// # Errors
/// As [`rope_into`].
pub fn rope_in_place<T: Float>(x: &mut Tensor<T>, table: &Table, start: usize, pairing: Pairing) -> Result<()> {
    #[cfg_attr(not(any(feature = "cpu", feature = "cuda", feature = "wgpu")), allow(unused_variables))]
    let [cos, sin] = rows_of(x, table, start)?;
    match x.device().clone().handle() {
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) if is_dense(x) => cpu::rope_in_place(cpu, cos.host(), sin.host(), pairing, x.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) if is_dense(x) => {
            let x = x.cuda_operand();
            cuda::rope(&cuda.stream(), x, cos.cuda_operand(), sin.cuda_operand(), pairing, x)?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) if wgpu::turnable(x.layout(), T::DTYPE, pairing, cos.shape()[2]) => {
            gpu.record(|recorder| wgpu::rope_in_place(recorder, x.operand(), cos.operand(), sin.operand(), pairing))?
        }
        _ => copy::copy_into(&rope(x, table, start, pairing)?, x)?,
    }
    Ok(())
}

/// Cosines and sines of the rows for `x`, each `[batch, seq, pairs]` with a dense last axis, after all checks.
fn rows_of<T: Float>(x: &Tensor<T>, table: &Table, start: usize) -> Result<[Tensor<f32>; 2]> {
    let &[batch, _, seq, head_dim] = x.shape() else {
        return Err(Error::shape(OP, "x", x.shape(), "[batch, heads, seq, head_dim]"));
    };
    x.device().check_same(OP, "cos", table.cos.device())?;
    x.device().check_same(OP, "sin", table.sin.device())?;
    let shape = table.cos.shape();
    let fits = match *shape {
        [positions, pairs] => Some((positions, pairs)),
        [entries, positions, pairs] if entries == batch => Some((positions, pairs)),
        _ => None,
    };
    let pairs = match fits {
        Some((positions, pairs)) if pairs <= head_dim / 2 && positions >= start.saturating_add(seq) => pairs,
        _ => {
            let expected = format!(
                "[at least {start} + {seq}, at most {head_dim} / 2], or with {batch} entries before, as x is {:?}",
                x.shape()
            );
            return Err(Error::shape(OP, "cos", shape, expected));
        }
    };
    if table.sin.shape() != shape {
        return Err(Error::shape(OP, "sin", table.sin.shape(), format!("{shape:?}, as cos has")));
    }
    let rows =
        |table: &Tensor<f32>| dense_rows(&table.narrow(shape.len() - 2, start, seq)?)?.broadcast(&[batch, seq, pairs]);
    Ok([rows(&table.cos)?, rows(&table.sin)?])
}

/// Whether kernels can write each row of `y` by itself.
fn writable<T: Float>(y: &Tensor<T>) -> bool {
    match y.device().handle() {
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(_) => wgpu::writable(y.layout(), T::DTYPE),
        _ => is_dense(y),
    }
}

/// Whether the elements of its last axis are neighbours.
fn is_dense<T: Float>(x: &Tensor<T>) -> bool {
    matches!((x.shape().last(), x.layout().strides().last()), (Some(0 | 1), _) | (_, Some(1)))
}

/// Dispatches; all operands have been checked.
fn turn<T: Float>(x: &Tensor<T>, [cos, sin]: &[Tensor<f32>; 2], pairing: Pairing, y: &mut Tensor<T>) -> Result<()> {
    match x.device().handle() {
        Handle::Reference => reference::rope(x.host(), cos.host(), sin.host(), pairing, y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::rope(cpu, x.host(), cos.host(), sin.host(), pairing, y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let (cos, sin) = (cos.cuda_operand(), sin.cuda_operand());
            cuda::rope(&cuda.stream(), x.cuda_operand(), cos, sin, pairing, y.cuda_operand())?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu
            .record(|recorder| wgpu::rope(recorder, x.operand(), cos.operand(), sin.operand(), pairing, y.operand()))?,
    }
    Ok(())
}
