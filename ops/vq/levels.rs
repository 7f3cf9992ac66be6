//! Quantizers whose codes are the points of a lattice: no codebook is stored, and an index is a number of digits.

use super::commitment;
#[cfg(feature = "cpu")]
use super::cpu;
#[cfg(feature = "cuda")]
use super::cuda;
use super::reference;
#[cfg(feature = "wgpu")]
use super::wgpu;
use crate::device::Handle;
use crate::{Backend, Device, Error, Float, Result, Tensor, attention, copy};

/// Which channel's digit counts most in an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigitOrder {
    /// The first channel's.
    HighFirst,
    /// The last channel's.
    LowFirst,
}

/// What a lattice makes of vectors.
#[derive(Debug, Clone)]
pub struct Scalar<T: Float> {
    /// The codes, `[.., channels]`.
    pub y: Tensor<T>,
    /// The level of each channel from 0 on, `[.., channels]`.
    pub digits: Tensor<u32>,
    /// The digits as one number, `[..]`; absent if the lattice has more points than 32 bits can count.
    pub indices: Option<Tensor<u32>>,
}

/// What [`bsq`] gives.
#[derive(Debug, Clone)]
pub struct Spherical<T: Float> {
    /// The codes and their digits.
    pub quantised: Scalar<T>,
    /// The vectors at length 1, `[.., channels]`.
    pub unit: Tensor<T>,
    /// Squared distances of `unit` to the codes, `[..]`.
    pub distances: Tensor<f32>,
}

/// What [`fsq`] gives.
#[derive(Debug, Clone)]
pub struct Finite<T: Float> {
    /// The codes and their digits.
    pub quantised: Scalar<T>,
    /// The channels before they were rounded, `[.., channels]`.
    pub bounded: Tensor<T>,
}

/// How a channel becomes a digit: `round(tanh(x + shift) width - offset) + half`, or whether `x > 0` if `width` is 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    shift: f64,
    width: f64,
    offset: f64,
    half: f64,
}

const SIGN: Bound = Bound { shift: 0.0, width: 0.0, offset: 0.0, half: 0.0 };

/// Lookup-free quantization: each channel by its sign.
///
/// `digit = 1` iff `x > 0`, `y = 2 digit - 1`.
///
/// | operand   | shape            | element        | layout     |
/// |-----------|------------------|----------------|------------|
/// | `x`       | `[.., channels]` | f32, f16, bf16 | any        |
/// | returned  | see [`Scalar`]   | as `x`         | contiguous |
///
/// # Errors
/// [`Error::Shape`] if `x` has no channels.
///
/// # Source
/// Yu et al. 2023, arXiv:2310.05737, equation 3.
pub fn lfq<T: Float>(x: &Tensor<T>, order: DigitOrder) -> Result<Scalar<T>> {
    let channels = channels_of("lfq", x)?;
    let (_, digits) = digits_of(x, &vec![SIGN; channels])?;
    scalar(digits, &vec![2; channels], order, |_| [0.5, 2.0])
}

/// Binary spherical quantization: a vector at length 1 goes to the corner of the cube inside the sphere.
///
/// `unit = x / max(|x|, 1e-12)`, `digit = 1` iff `x > 0`, `y = (2 digit - 1) / sqrt(channels)`; operands as [`lfq`].
///
/// # Errors
/// As [`lfq`].
///
/// # Source
/// Zhao et al. 2024, arXiv:2406.07548, section 4.1.
pub fn bsq<T: Float>(x: &Tensor<T>, order: DigitOrder) -> Result<Spherical<T>> {
    fn with<T: Float, W: Float>(x: &Tensor<T>, order: DigitOrder) -> Result<Spherical<T>> {
        let channels = channels_of("bsq", x)?;
        let unit = attention::l2_normalise(&copy::convert::<T, W>(x)?)?;
        let (_, digits) = digits_of(x, &vec![SIGN; channels])?;
        let scale = |_| [0.5, 2.0 / (channels as f64).sqrt()];
        let codes: Tensor<W> = codes_of(&digits, channels, scale)?;
        let quantised = scalar(digits, &vec![2; channels], order, scale)?;
        Ok(Spherical { quantised, distances: commitment(&unit, &codes)?, unit: copy::convert(&unit)? })
    }
    match x.device().backend() {
        Backend::Reference => with::<T, f64>(x, order),
        _ => with::<T, f32>(x, order),
    }
}

/// Finite scalar quantization: each channel is bounded and rounded to one of its levels.
///
/// `bounded = tanh(x + atanh(offset / width)) width - offset` with `width = (levels - 1) (1 + eps) / 2` and `offset`
/// 0.5 for even levels, 0 for odd; `digit = round(bounded) + floor(levels / 2)`, halves to even;
/// `y = round(bounded) / floor(levels / 2)`. In an index the first channel counts least. Operands as [`lfq`].
///
/// # Errors
/// [`Error::Shape`] if `x` has not a channel for each of `levels`; [`Error::Value`] if a level is below 2, or `eps` is not a
/// finite number of at least 0.
///
/// # Source
/// Mentzer et al. 2023, arXiv:2309.15505, section 3.1 and its appendix's code.
pub fn fsq<T: Float>(x: &Tensor<T>, levels: &[u32], eps: f32) -> Result<Finite<T>> {
    const OP: &str = "fsq";
    let channels = channels_of(OP, x)?;
    if channels != levels.len() {
        return Err(Error::shape(OP, "x", x.shape(), format!("[.., {}]: a channel for each level", levels.len())));
    }
    check_levels(OP, levels)?;
    if !(eps.is_finite() && eps >= 0.0) {
        return Err(Error::value(OP, "eps", eps, "a finite number of at least 0"));
    }
    let bound = |levels: &u32| {
        let width = f64::from(levels - 1) * (1.0 + f64::from(eps)) / 2.0;
        let offset = if levels.is_multiple_of(2) { 0.5 } else { 0.0 };
        // Two levels without eps have their bound at the offset itself, where atanh has no value.
        let shift = (offset / width).min(1.0 - f64::EPSILON).atanh();
        Bound { shift, width, offset, half: f64::from(levels / 2) }
    };
    let (bounded, digits) = digits_of(x, &levels.iter().map(bound).collect::<Vec<_>>())?;
    Ok(Finite { quantised: scalar(digits, levels, DigitOrder::LowFirst, |c| half_levels(levels[c]))?, bounded })
}

/// The codes of [`lfq`]'s indices: `[..]` to `[.., channels]`.
///
/// # Errors
/// As [`unpack`].
pub fn lfq_codes<T: Float>(indices: &Tensor<u32>, channels: usize, order: DigitOrder) -> Result<Tensor<T>> {
    codes_of(&unpack(indices, &vec![2; channels], order)?, channels, |_| [0.5, 2.0])
}

/// The codes of [`bsq`]'s indices: `[..]` to `[.., channels]`.
///
/// # Errors
/// As [`unpack`].
pub fn bsq_codes<T: Float>(indices: &Tensor<u32>, channels: usize, order: DigitOrder) -> Result<Tensor<T>> {
    let scale = 2.0 / (channels as f64).sqrt();
    codes_of(&unpack(indices, &vec![2; channels], order)?, channels, |_| [0.5, scale])
}

/// The codes of [`fsq`]'s indices: `[..]` to `[.., channels]`.
///
/// # Errors
/// As [`unpack`].
pub fn fsq_codes<T: Float>(indices: &Tensor<u32>, levels: &[u32]) -> Result<Tensor<T>> {
    let digits = unpack(indices, levels, DigitOrder::LowFirst)?;
    codes_of(&digits, levels.len(), |c| half_levels(levels[c]))
}

/// Digits as one number each: `index = sum over c of digit[c] base[c]`, where the base of a channel is the product of the
/// levels of those that count less.
///
/// | operand  | shape            | element | layout     |
/// |----------|------------------|---------|------------|
/// | `digits` | `[.., channels]` | u32     | any        |
/// | returned | `[..]`           | u32     | contiguous |
///
/// A digit that is not below its level gives another number's index.
///
/// # Errors
/// [`Error::Shape`] if there is not a channel for each of `levels`; [`Error::Value`] if a level is 0, or there are more than
/// 2^32 numbers.
pub fn pack(digits: &Tensor<u32>, levels: &[u32], order: DigitOrder) -> Result<Tensor<u32>> {
    const OP: &str = "pack";
    let Some((_, outer)) = digits.shape().split_last().filter(|(channels, _)| **channels == levels.len()) else {
        let expected = format!("[.., {}]: a channel for each level", levels.len());
        return Err(Error::shape(OP, "digits", digits.shape(), expected));
    };
    let bases = bases(OP, digits.device(), levels, order)?;
    let digits = digits.contiguous()?;
    let mut indices = Tensor::empty(digits.device(), outer)?;
    match digits.device().handle() {
        Handle::Reference => reference::pack(digits.host(), bases.host(), indices.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(_) => reference::pack(digits.host(), bases.host(), indices.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let indices = indices.cuda_operand();
            cuda::pack(&cuda.stream(), digits.cuda_operand(), bases.cuda_operand(), indices)?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            gpu.record(|recorder| wgpu::pack(recorder, digits.operand(), bases.operand(), indices.operand()))?;
        }
    }
    Ok(indices)
}

/// The digits of numbers: the reverse of [`pack`], `[..]` to `[.., channels]`.
///
/// # Errors
/// [`Error::Value`] if there are no levels, one is 0, or there are more than 2^32 numbers.
pub fn unpack(indices: &Tensor<u32>, levels: &[u32], order: DigitOrder) -> Result<Tensor<u32>> {
    const OP: &str = "unpack";
    let bases = bases(OP, indices.device(), levels, order)?;
    let indices = indices.contiguous()?;
    let mut digits = Tensor::empty(indices.device(), &[indices.shape(), &[levels.len()]].concat())?;
    match indices.device().handle() {
        Handle::Reference => reference::unpack(indices.host(), bases.host(), digits.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(_) => reference::unpack(indices.host(), bases.host(), digits.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let digits = digits.cuda_operand();
            cuda::unpack(&cuda.stream(), indices.cuda_operand(), bases.cuda_operand(), digits)?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            gpu.record(|recorder| wgpu::unpack(recorder, indices.operand(), bases.operand(), digits.operand()))?;
        }
    }
    Ok(digits)
}

fn channels_of<T: Float>(op: &'static str, x: &Tensor<T>) -> Result<usize> {
    x.shape()
        .last()
        .copied()
        .filter(|channels| *channels > 0)
        .ok_or_else(|| Error::shape(op, "x", x.shape(), "at least one channel, along the last axis"))
}

fn check_levels(op: &'static str, levels: &[u32]) -> Result<()> {
    match levels.iter().find(|levels| **levels < 2) {
        Some(few) => Err(Error::value(op, "levels", few, "at least 2")),
        None => Ok(()),
    }
}

/// Offset and scale of the codes of levels around 0, the outermost lower one at -1.
fn half_levels(levels: u32) -> [f64; 2] {
    let half = f64::from(levels / 2);
    [half, 1.0 / half]
}

/// A row for each channel: what its digit counts, and its levels. `None` if 32 bits cannot count the numbers.
fn counted(levels: &[u32], order: DigitOrder) -> Option<Vec<[u32; 2]>> {
    let mut count = 1u64;
    let mut rows = vec![[0, 0]; levels.len()];
    let channels: Vec<usize> = match order {
        DigitOrder::LowFirst => (0..levels.len()).collect(),
        DigitOrder::HighFirst => (0..levels.len()).rev().collect(),
    };
    for c in channels {
        rows[c] = [u32::try_from(count).ok()?, levels[c]];
        count *= u64::from(levels[c]);
    }
    (count <= 1 << 32).then_some(rows)
}

fn bases(op: &'static str, device: &Device, levels: &[u32], order: DigitOrder) -> Result<Tensor<u32>> {
    if levels.is_empty() || levels.contains(&0) {
        return Err(Error::value(op, "levels", format!("{levels:?}"), "at least one, none of them 0"));
    }
    let rows = counted(levels, order)
        .ok_or_else(|| Error::value(op, "levels", format!("{levels:?}"), "a product of at most 2^32"))?;
    Tensor::from_vec(device, &[levels.len(), 2], rows.concat())
}

/// Codes and index of digits.
fn scalar<T: Float>(
    digits: Tensor<u32>,
    levels: &[u32],
    order: DigitOrder,
    scale: impl Fn(usize) -> [f64; 2],
) -> Result<Scalar<T>> {
    let y = codes_of(&digits, levels.len(), scale)?;
    let indices = match counted(levels, order) {
        Some(_) => Some(pack(&digits, levels, order)?),
        None => None,
    };
    Ok(Scalar { y, digits, indices })
}

/// Bounded channels and digits.
fn digits_of<T: Float>(x: &Tensor<T>, bounds: &[Bound]) -> Result<(Tensor<T>, Tensor<u32>)> {
    let x = x.contiguous()?;
    let rows = bounds.iter().flat_map(|bound| [bound.shift, bound.width, bound.offset, bound.half]);
    let rows: Tensor<f32> = Tensor::from_vec(x.device(), &[bounds.len(), 4], rows.map(f32::from_f64).collect())?;
    let mut bounded = Tensor::empty(x.device(), x.shape())?;
    let mut digits = Tensor::empty(x.device(), x.shape())?;
    match x.device().handle() {
        Handle::Reference => reference::digits(x.host(), rows.host(), bounded.host_mut(), digits.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::digits(cpu, x.host(), rows.host(), bounded.host_mut(), digits.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let (bounded, digits) = (bounded.cuda_operand(), digits.cuda_operand());
            cuda::digits(&cuda.stream(), x.cuda_operand(), rows.cuda_operand(), bounded, digits)?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu.record(|recorder| {
            wgpu::digits(recorder, x.operand(), rows.operand(), bounded.operand(), digits.operand())
        })?,
    }
    Ok((bounded, digits))
}

/// `(digit - offset) scale` with the offset and scale of each channel.
fn codes_of<T: Float>(digits: &Tensor<u32>, channels: usize, scale: impl Fn(usize) -> [f64; 2]) -> Result<Tensor<T>> {
    let rows = (0..channels).flat_map(scale).map(f32::from_f64).collect();
    let rows: Tensor<f32> = Tensor::from_vec(digits.device(), &[channels, 2], rows)?;
    let mut y = Tensor::empty(digits.device(), digits.shape())?;
    match digits.device().handle() {
        Handle::Reference => reference::codes(digits.host(), rows.host(), y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::codes(cpu, digits.host(), rows.host(), y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            cuda::codes(&cuda.stream(), digits.cuda_operand(), rows.cuda_operand(), y.cuda_operand())?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            gpu.record(|recorder| wgpu::codes(recorder, digits.operand(), rows.operand(), y.operand()))?;
        }
    }
    Ok(y)
}
