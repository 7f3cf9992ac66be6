//! Normalisation.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
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
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let weight = weight.as_ref().map(Tensor::cuda_operand);
            cuda::rms_norm(&cuda.stream(), x.cuda_operand(), weight, eps, y.cuda_operand())?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu.record(|recorder| {
            wgpu::rms_norm(recorder, x.operand(), weight.as_ref().map(Tensor::operand), eps, y.operand())
        })?,
    }
    Ok(y)
}

/// Brings each row of `x` to mean 0 and variance 1, then scales and shifts it per channel.
///
/// `y[.., c] = (x[.., c] - mean) / sqrt(variance + eps) * weight[c] + bias[c]`, both over the row; the variance is the
/// mean squared distance from the mean.
///
/// | operand          | shape            | element        | layout             |
/// |------------------|------------------|----------------|--------------------|
/// | `x`              | `[.., channels]` | f32, f16, bf16 | any                |
/// | `weight`, `bias` | `[channels]`     | f32            | any; absent: 1, 0  |
/// | returned         | as `x`           | as `x`         | contiguous         |
///
/// Sums are in f32, the variance from distances to the mean, so that a mean far from 0 costs no digits.
/// A NaN makes its own row NaN and no other.
///
/// # Errors
/// [`Error::Shape`] if `x` has no axis or `weight` or `bias` has not one value per channel; [`Error::Place`] if the
/// operands are on different devices.
///
/// # Source
/// Ba, Kiros and Hinton 2016, arXiv:1607.06450, equation 4; as `torch.nn.functional.layer_norm`.
pub fn layer_norm<T: Float>(
    x: &Tensor<T>,
    weight: Option<&Tensor<f32>>,
    bias: Option<&Tensor<f32>>,
    eps: f32,
) -> Result<Tensor<T>> {
    const OP: &str = "layer_norm";
    check_channels(OP, x, "weight", weight)?;
    let channels = check_channels(OP, x, "bias", bias)?;
    let groups = Groups { len: channels, per_cycle: 1, run: 1 };
    normalise(x, groups, weight, bias, eps)
}

/// Brings each group of channels of each picture to mean 0 and variance 1, then scales and shifts per channel.
///
/// As [`layer_norm`], with mean and variance over the `channels / groups` channels of a group and all places.
///
/// | operand          | shape                   | element        | layout            |
/// |------------------|-------------------------|----------------|-------------------|
/// | `x`              | `[batch, channels, ..]` | f32, f16, bf16 | any               |
/// | `weight`, `bias` | `[channels]`            | f32            | any; absent: 1, 0 |
/// | returned         | as `x`                  | as `x`         | contiguous        |
///
/// # Errors
/// [`Error::Shape`] if `x` has not two axes or `weight` or `bias` has not one value per channel; [`Error::Value`] if
/// `groups` does not divide the channels; [`Error::Place`] if the operands are on different devices.
///
/// # Source
/// Wu and He 2018, arXiv:1803.08494, equation 7; as `torch.nn.functional.group_norm`.
pub fn group_norm<T: Float>(
    x: &Tensor<T>,
    groups: usize,
    weight: Option<&Tensor<f32>>,
    bias: Option<&Tensor<f32>>,
    eps: f32,
) -> Result<Tensor<T>> {
    const OP: &str = "group_norm";
    let [_, channels, places @ ..] = x.shape() else {
        return Err(Error::shape(OP, "x", x.shape(), "at least two axes: [batch, channels, ..]"));
    };
    if groups == 0 || channels % groups != 0 {
        return Err(Error::value(OP, "groups", groups, format!("a divisor of the {channels} channels")));
    }
    for (operand, vector) in [("weight", weight), ("bias", bias)] {
        if let Some(vector) = vector {
            x.device().check_same(OP, operand, vector.device())?;
            if vector.shape() != [*channels] {
                let expected = format!("[{channels}]: one value per channel of x, which is {:?}", x.shape());
                return Err(Error::shape(OP, operand, vector.shape(), expected));
            }
        }
    }
    let run: usize = places.iter().product();
    normalise(x, Groups { len: channels / groups * run, per_cycle: groups, run }, weight, bias, eps)
}

/// How [`layer_norm`] and [`group_norm`] see their operand: rows of `len` elements that are normalised one by one. Row
/// `r` belongs to group `r % per_cycle`, and `run` elements in a row share a channel.
#[derive(Debug, Clone, Copy)]
pub struct Groups {
    /// Elements normalised together.
    pub len: usize,
    /// Groups of one picture.
    pub per_cycle: usize,
    /// Places of one channel.
    pub run: usize,
}

impl Groups {
    /// The channel of element `index` of row `row`.
    #[must_use]
    #[inline(always)]
    pub fn channel(self, row: usize, index: usize) -> usize {
        row % self.per_cycle * (self.len / self.run) + index / self.run
    }
}

fn normalise<T: Float>(
    x: &Tensor<T>,
    groups: Groups,
    weight: Option<&Tensor<f32>>,
    bias: Option<&Tensor<f32>>,
    eps: f32,
) -> Result<Tensor<T>> {
    let x = x.contiguous()?;
    let weight = weight.map(Tensor::contiguous).transpose()?;
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let mut y = Tensor::empty(x.device(), x.shape())?;
    if x.elements() == 0 {
        return Ok(y);
    }
    let (weight, bias) = (weight.as_ref(), bias.as_ref());
    match x.device().handle() {
        Handle::Reference => {
            reference::normalise(x.host(), groups, weight.map(Tensor::host), bias.map(Tensor::host), eps, y.host_mut());
        }
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => {
            cpu::normalise(cpu, x.host(), groups, weight.map(Tensor::host), bias.map(Tensor::host), eps, y.host_mut());
        }
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let (weight, bias) = (weight.map(Tensor::cuda_operand), bias.map(Tensor::cuda_operand));
            cuda::normalise(&cuda.stream(), x.cuda_operand(), groups, weight, bias, eps, y.cuda_operand())?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu.record(|recorder| {
            let (weight, bias) = (weight.map(Tensor::operand), bias.map(Tensor::operand));
            wgpu::normalise(recorder, x.operand(), groups, weight, bias, eps, y.operand())
        })?,
    }
    Ok(y)
}

/// Scales and shifts each channel by what a condition says: `y = x * (1 + scale) + shift`.
///
/// | operand          | shape                               | element        | layout     |
/// |------------------|-------------------------------------|----------------|------------|
/// | `x`              | `[batch, seq, channels]`            | f32, f16, bf16 | any        |
/// | `scale`, `shift` | `[batch or 1, seq or 1, channels]`  | as `x`         | any        |
/// | returned         | as `x`                              | as `x`         | contiguous |
///
/// # Errors
/// [`Error::Shape`] if `scale` or `shift` does not stretch to `x`; [`Error::Place`] if the operands are on different
/// devices.
///
/// # Source
/// Peebles and Xie 2022, arXiv:2212.09748, section 3.2.
pub fn modulate<T: Float>(x: &Tensor<T>, scale: &Tensor<T>, shift: &Tensor<T>) -> Result<Tensor<T>> {
    const OP: &str = "modulate";
    let scale = stretched(OP, "scale", scale, x)?;
    let shift = stretched(OP, "shift", shift, x)?;
    let x = x.contiguous()?;
    let mut y = Tensor::empty(x.device(), x.shape())?;
    match x.device().handle() {
        Handle::Reference => reference::modulate(x.host(), scale.host(), shift.host(), y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::modulate(cpu, x.host(), scale.host(), shift.host(), y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let [x, scale, shift, y] = [x.cuda_operand(), scale.cuda_operand(), shift.cuda_operand(), y.cuda_operand()];
            cuda::combine(&cuda.stream(), cuda::Combine::Modulate, x, scale, shift, y)?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu.record(|recorder| {
            let [x, scale, shift, y] = [x.operand(), scale.operand(), shift.operand(), y.operand()];
            wgpu::combine(recorder, wgpu::Combine::Modulate, x, scale, shift, y)
        })?,
    }
    Ok(y)
}

/// Adds the output of a branch through a gate: `y = x + gate * h`.
///
/// | operand  | shape                              | element        | layout     |
/// |----------|------------------------------------|----------------|------------|
/// | `x`, `h` | `[batch, seq, channels]`           | f32, f16, bf16 | any        |
/// | `gate`   | `[batch or 1, seq or 1, channels]` | as `x`         | any        |
/// | returned | as `x`                             | as `x`         | contiguous |
///
/// # Errors
/// [`Error::Shape`] if `gate` does not stretch to `x` or `h` has another shape; [`Error::Place`] if the operands are
/// on different devices.
///
/// # Source
/// Peebles and Xie 2022, arXiv:2212.09748, section 3.2.
pub fn gated_add<T: Float>(x: &Tensor<T>, gate: &Tensor<T>, h: &Tensor<T>) -> Result<Tensor<T>> {
    const OP: &str = "gated_add";
    if h.shape() != x.shape() {
        return Err(Error::shape(OP, "h", h.shape(), format!("{:?}, as x has", x.shape())));
    }
    let gate = stretched(OP, "gate", gate, x)?;
    let h = stretched(OP, "h", h, x)?;
    let x = x.contiguous()?;
    let mut y = Tensor::empty(x.device(), x.shape())?;
    match x.device().handle() {
        Handle::Reference => reference::gated_add(x.host(), gate.host(), h.host(), y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::gated_add(cpu, x.host(), gate.host(), h.host(), y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let [x, gate, h, y] = [x.cuda_operand(), gate.cuda_operand(), h.cuda_operand(), y.cuda_operand()];
            cuda::combine(&cuda.stream(), cuda::Combine::GatedAdd, x, gate, h, y)?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu.record(|recorder| {
            let [x, gate, h, y] = [x.operand(), gate.operand(), h.operand(), y.operand()];
            wgpu::combine(recorder, wgpu::Combine::GatedAdd, x, gate, h, y)
        })?,
    }
    Ok(y)
}

/// Makes each row a distribution: `y[.., c] = exp(x[.., c]) / sum over c of exp(x[.., c])`.
///
/// | operand  | shape      | element        | layout     |
/// |----------|------------|----------------|------------|
/// | `x`      | `[.., n]`  | f32, f16, bf16 | any        |
/// | returned | as `x`     | as `x`         | contiguous |
///
/// The row's largest value is taken off first, so that no exponential overflows; sums are in f32. An entry of negative
/// infinity gets 0, and a row of nothing else is all 0. A NaN or positive infinity makes its own row NaN and no other.
///
/// # Errors
/// [`Error::Shape`] if `x` has no axis.
///
/// # Source
/// As `torch.softmax` over the last axis, but for the row that holds nothing, as in [`crate::attention`].
pub fn softmax<T: Float>(x: &Tensor<T>) -> Result<Tensor<T>> {
    let Some(&channels) = x.shape().last() else {
        return Err(Error::shape("softmax", "x", x.shape(), "at least one axis: the last one holds a distribution"));
    };
    let x = x.contiguous()?;
    let mut y = Tensor::empty(x.device(), x.shape())?;
    if x.elements() == 0 {
        return Ok(y);
    }
    match x.device().handle() {
        Handle::Reference => reference::softmax(x.host(), channels, y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::softmax(cpu, x.host(), channels, y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => cuda::softmax(&cuda.stream(), x.cuda_operand(), channels, y.cuda_operand())?,
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu.record(|recorder| wgpu::softmax(recorder, x.operand(), channels, y.operand()))?,
    }
    Ok(y)
}

/// `operand` stretched to the shape of `x`, which is `[batch, seq, channels]`.
fn stretched<T: Float>(op: &'static str, name: &'static str, operand: &Tensor<T>, x: &Tensor<T>) -> Result<Tensor<T>> {
    x.device().check_same(op, name, operand.device())?;
    if x.shape().len() != 3 {
        return Err(Error::shape(op, "x", x.shape(), "three axes: [batch, seq, channels]"));
    }
    operand
        .broadcast(x.shape())
        .map_err(|_| Error::shape(op, name, operand.shape(), format!("axes of 1 or as in x, which is {:?}", x.shape())))
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
