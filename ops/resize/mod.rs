//! Changing the size of a grid.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::device::Handle;
use crate::{Error, Float, Result, Tensor};

/// How a place of the new grid reads the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// The place at `floor(i * in / out)`.
    Nearest,
    /// The place at `floor((i + 0.5) * in / out)`.
    NearestExact,
    /// Linear between the two nearest places along each axis.
    Bilinear {
        /// Corner places lie on corner places, instead of corners on corners.
        align_corners: bool,
    },
    /// Cubic through the four nearest places along each axis (Keys' kernel, a = -0.75); borders repeat.
    Bicubic {
        /// Corner places lie on corner places, instead of corners on corners.
        align_corners: bool,
    },
    /// The mean of the places from `floor(i * in / out)` to `ceil((i + 1) * in / out)`.
    Area,
}

/// Resizes each channel of a picture.
///
/// Every mode works along rows and columns alike: `y[r, c] = sum over u, v of x[u, v] * row_weight[r, u] *
/// column_weight[c, v]`, with the few weights that [`Mode`] describes.
///
/// | operand  | shape                              | element        | layout     |
/// |----------|------------------------------------|----------------|------------|
/// | `x`      | `[batch, channels, height, width]` | f32, f16, bf16 | any        |
/// | returned | `[batch, channels, size[0], size[1]]` | as `x`      | contiguous |
///
/// # Errors
/// [`Error::Shape`] if `x` has not four axes or an empty grid; [`Error::Value`] if a size is 0.
///
/// # Source
/// As `torch.nn.functional.interpolate` without antialiasing; area is `adaptive_avg_pool2d`.
pub fn resize<T: Float>(x: &Tensor<T>, size: [usize; 2], mode: Mode) -> Result<Tensor<T>> {
    const OP: &str = "resize";
    let &[batch, channels, height, width] = x.shape() else {
        return Err(Error::shape(OP, "x", x.shape(), "four axes: [batch, channels, height, width]"));
    };
    if height == 0 || width == 0 {
        return Err(Error::shape(OP, "x", x.shape(), "at least one row and one column"));
    }
    if size.contains(&0) {
        return Err(Error::value(OP, "size", format!("{size:?}"), "at least one row and one column"));
    }
    let x = x.contiguous()?;
    let mut y = Tensor::empty(x.device(), &[batch, channels, size[0], size[1]])?;
    if y.elements() == 0 {
        return Ok(y);
    }
    let [rows, columns] = [taps(height, size[0], mode), taps(width, size[1], mode)];
    match x.device().handle() {
        Handle::Reference => reference::resize(x.host(), &rows, &columns, y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::resize(cpu, x.host(), &rows, &columns, y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let (plan, weights) = planned(x.device(), &rows, &columns)?;
            let (plan, weights) = (plan.cuda_operand(), weights.cuda_operand());
            cuda::resize(&cuda.stream(), x.cuda_operand(), plan, weights, y.cuda_operand())?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let (plan, weights) = planned(x.device(), &rows, &columns)?;
            gpu.record(|recorder| wgpu::resize(recorder, x.operand(), plan.operand(), weights.operand(), y.operand()))?;
        }
    }
    Ok(y)
}

/// Which places along one axis a new place reads, from `first` on, and how much of each.
#[derive(Debug, Clone, PartialEq)]
pub struct Taps {
    /// The first place read.
    pub first: usize,
    /// One weight per place read.
    pub weights: Vec<f64>,
}

/// On the device, per row and then per column of the result: the first place it reads and where its weights start; and
/// the weights.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn planned(device: &crate::Device, rows: &[Taps], columns: &[Taps]) -> Result<(Tensor<u32>, Tensor<f32>)> {
    let mut plan = Vec::with_capacity(2 * (rows.len() + columns.len()));
    let mut weights = Vec::new();
    for taps in rows.iter().chain(columns) {
        plan.extend([taps.first as u32, weights.len() as u32]);
        weights.extend(taps.weights.iter().map(|weight| *weight as f32));
    }
    let plan = Tensor::from_vec(device, &[rows.len() + columns.len(), 2], plan)?;
    Ok((plan, Tensor::from_vec(device, &[weights.len()], weights)?))
}

/// The taps of every place along an axis of `to` places that reads one of `from`.
#[must_use]
pub fn taps(from: usize, to: usize, mode: Mode) -> Vec<Taps> {
    let last = from - 1;
    let one = |first: usize| Taps { first: first.min(last), weights: vec![1.0] };
    // PyTorch computes positions in f32; at sizes where f64 rounds otherwise, its choice is the contract.
    let scale = |align_corners: bool| match (align_corners, to) {
        (true, 1) => 0.0,
        (true, _) => last as f32 / (to - 1) as f32,
        (false, _) => from as f32 / to as f32,
    };
    let position = |i: usize, align_corners: bool| match align_corners {
        true => scale(true) * i as f32,
        false => scale(false) * (i as f32 + 0.5) - 0.5,
    };
    (0..to)
        .map(|i| match mode {
            Mode::Nearest => one((i as f32 * scale(false)).floor() as usize),
            Mode::NearestExact => one(((i as f32 + 0.5) * scale(false)).floor() as usize),
            Mode::Bilinear { align_corners } => {
                let at = position(i, align_corners).max(0.0);
                let first = (at.floor() as usize).min(last);
                let fraction = f64::from(at - first as f32);
                if first == last {
                    Taps { first, weights: vec![1.0] }
                } else {
                    Taps { first, weights: vec![1.0 - fraction, fraction] }
                }
            }
            Mode::Bicubic { align_corners } => {
                let at = position(i, align_corners);
                let floor = at.floor();
                let fraction = f64::from(at - floor);
                let mut taps = Taps { first: (floor - 1.0).clamp(0.0, last as f32) as usize, weights: Vec::new() };
                for (tap, weight) in cubic(fraction).into_iter().enumerate() {
                    // Beyond a border its place is read again.
                    let place = (floor as i64 - 1 + tap as i64).clamp(0, last as i64) as usize;
                    let index = place - taps.first;
                    if taps.weights.len() <= index {
                        taps.weights.resize(index + 1, 0.0);
                    }
                    taps.weights[index] += weight;
                }
                taps
            }
            Mode::Area => {
                let first = i * from / to;
                let end = ((i + 1) * from).div_ceil(to);
                let count = end - first;
                Taps { first, weights: vec![1.0 / count as f64; count] }
            }
        })
        .collect()
}

/// Keys' cubic convolution with a = -0.75: the weights of the places at -1, 0, 1, 2 for a position in [0, 1).
fn cubic(t: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}
