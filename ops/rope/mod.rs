//! Rotary positions.

#[cfg(feature = "cpu")]
pub mod cpu;
pub mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::attention::dense_rows;
use crate::device::Handle;
use crate::{Device, Error, Float, Layout, Result, Tensor};

/// Which channels turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// Pair `j` is channels `2 j` and `2 j + 1`.
    Interleaved,
    /// Pair `j` is channels `j` and `j + pairs`.
    HalfSplit,
}

/// What rows without a position hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NullRows {
    /// Cosine 1, sine 0: what is turned by it stays as it is.
    Identity,
    /// Cosine 0, sine 0: what is turned by it becomes 0.
    Zero,
}

/// Cosines and sines, a row per position and a column per pair of channels.
#[derive(Debug, Clone)]
pub struct Table {
    /// `[positions, pairs]`.
    pub cos: Tensor<f32>,
    /// `[positions, pairs]`.
    pub sin: Tensor<f32>,
}

impl Table {
    /// Row `p`, pair `j` of `head_dim / 2` turn by `p theta^(-2 j / head_dim)`.
    ///
    /// # Errors
    /// [`Error::Value`] if `head_dim` is odd, or `theta` is not a finite number above 0; [`Error::Device`] if the
    /// device has no room.
    pub fn one_d(device: &Device, positions: usize, head_dim: usize, theta: f32) -> Result<Self> {
        check_axis("head_dim", head_dim, 2, theta)?;
        let frequencies = frequencies(head_dim, theta);
        Self::from_angles(device, positions, head_dim / 2, |p, j| p as f64 * frequencies[j])
    }

    /// A row per cell of a grid, line by line. The first half of the pairs turn by the cell's row, the second by its
    /// column: pair `i` of a half by `theta^(-2 i / (head_dim / 2))` times that.
    ///
    /// # Errors
    /// [`Error::Value`] if `head_dim` is not a multiple of 4, or `theta` is not a finite number above 0;
    /// [`Error::Device`] if the device has no room.
    pub fn grid(device: &Device, height: usize, width: usize, head_dim: usize, theta: f32) -> Result<Self> {
        check_axis("head_dim", head_dim, 4, theta)?;
        let half = head_dim / 4;
        let frequencies = frequencies(head_dim / 2, theta);
        let cells = height.checked_mul(width);
        let cells = cells.ok_or_else(|| Error::value(OP, "height", height, "a count of cells that fits memory"))?;
        Self::from_angles(device, cells, head_dim / 2, |cell, j| {
            let place = if j < half { cell / width } else { cell % width };
            place as f64 * frequencies[j % half]
        })
    }

    /// Any table: `angle` takes a position and a pair. Cosines and sines are computed in f64.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has no room.
    pub fn from_angles(
        device: &Device,
        positions: usize,
        pairs: usize,
        angle: impl Fn(usize, usize) -> f64,
    ) -> Result<Self> {
        let elements = Layout::contiguous(&[positions, pairs])?.elements();
        let angles: Vec<f64> = (0..elements).map(|index| angle(index / pairs, index % pairs)).collect();
        let rounded = |value: fn(f64) -> f64| angles.iter().map(|angle| f32::from_f64(value(*angle))).collect();
        Ok(Self {
            cos: Tensor::from_vec(device, &[positions, pairs], rounded(f64::cos))?,
            sin: Tensor::from_vec(device, &[positions, pairs], rounded(f64::sin))?,
        })
    }

    /// With `rows` rows for tokens without a position before all others.
    ///
    /// # Errors
    /// [`Error::Shape`] if the table has not two axes; [`Error::Device`] if the device has no room.
    pub fn with_null_rows(self, rows: usize, kind: NullRows) -> Result<Self> {
        let &[positions, pairs] = self.cos.shape() else {
            return Err(Error::shape(OP, "cos", self.cos.shape(), "[positions, pairs]"));
        };
        let longer = |table: &Tensor<f32>, fill: f32| {
            let mut values = vec![fill; rows * pairs];
            values.extend(table.to_vec()?);
            Tensor::from_vec(table.device(), &[rows + positions, pairs], values)
        };
        let fill = match kind {
            NullRows::Identity => 1.0,
            NullRows::Zero => 0.0,
        };
        Ok(Self { cos: longer(&self.cos, fill)?, sin: longer(&self.sin, 0.0)? })
    }

    /// How many positions it has, null rows included.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.cos.shape().first().copied().unwrap_or(0)
    }
}

const OP: &str = "rope";

fn check_axis(operand: &'static str, head_dim: usize, multiple: usize, theta: f32) -> Result<()> {
    if head_dim == 0 || !head_dim.is_multiple_of(multiple) {
        return Err(Error::value(OP, operand, head_dim, format!("a multiple of {multiple} above 0")));
    }
    if !(theta.is_finite() && theta > 0.0) {
        return Err(Error::value(OP, "theta", theta, "a finite number above 0"));
    }
    Ok(())
}

/// `theta^(-2 j / channels)` for each pair of an axis.
fn frequencies(channels: usize, theta: f32) -> Vec<f64> {
    (0..channels / 2).map(|j| f64::from(theta).powf(-2.0 * j as f64 / channels as f64)).collect()
}

/// Turns pairs of channels by the angles of their position.
///
/// A pair `(a, b)` of `x[.., i, ..]` becomes `(a cos - b sin, a sin + b cos)` with the cosines and sines of row
/// `start + i` of the table. Channels beyond twice the table's pairs stay as they are.
///
/// | operand    | shape                           | element        | layout                                 |
/// |------------|---------------------------------|----------------|----------------------------------------|
/// | `x`        | `[batch, heads, seq, head_dim]` | f32, f16, bf16 | any; no copy if the last axis is dense |
/// | cos, sin   | `[positions, pairs]`            | f32            | any                                    |
/// | returned   | as `x`                          | as `x`         | contiguous                             |
///
/// Arithmetic is in f32.
///
/// # Errors
/// [`Error::Shape`] if `x` has not four axes, the table has more pairs than `x` or not the rows that are asked for, or
/// its two parts differ in shape; [`Error::Place`] if a device differs.
///
/// # Source
/// Su et al. 2021, arXiv:2104.09864, equation 34.
pub fn rope<T: Float>(x: &Tensor<T>, table: &Table, start: usize, pairing: Pairing) -> Result<Tensor<T>> {
    let &[_, _, seq, head_dim] = x.shape() else {
        return Err(Error::shape(OP, "x", x.shape(), "[batch, heads, seq, head_dim]"));
    };
    x.device().check_same(OP, "cos", table.cos.device())?;
    x.device().check_same(OP, "sin", table.sin.device())?;
    match *table.cos.shape() {
        [positions, pairs] if 2 * pairs <= head_dim && positions >= start.saturating_add(seq) => {}
        _ => {
            let expected = format!("[at least {start} + {seq}, at most {head_dim} / 2], as x is {:?}", x.shape());
            return Err(Error::shape(OP, "cos", table.cos.shape(), expected));
        }
    }
    if table.sin.shape() != table.cos.shape() {
        return Err(Error::shape(OP, "sin", table.sin.shape(), format!("{:?}, as cos has", table.cos.shape())));
    }
    let x = dense_rows(x)?;
    let cos = table.cos.narrow(0, start, seq)?.contiguous()?;
    let sin = table.sin.narrow(0, start, seq)?.contiguous()?;
    let mut y = Tensor::empty(x.device(), x.shape())?;
    match x.device().handle() {
        Handle::Reference => reference::rope(x.host(), cos.host(), sin.host(), pairing, y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::rope(cpu, x.host(), cos.host(), sin.host(), pairing, y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => return Err(cuda.no_kernel("rope")),
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu
            .record(|recorder| wgpu::rope(recorder, x.operand(), cos.operand(), sin.operand(), pairing, y.operand()))?,
    }
    Ok(y)
}
