//! Activations: functions of one value, and the gate of a feed-forward.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::device::Handle;
use crate::{Error, Float, Result, Tensor};

/// A function of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// `x / (1 + exp(-x))`
    Silu,
    /// `x * (1 + erf(x / sqrt(2))) / 2`
    Gelu,
    /// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x³))) / 2`
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `tanh(x)`
    Tanh,
    /// `ln(1 + exp(x))`
    Softplus,
}

impl Activation {
    /// The name used in kernels' entry points.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_tanh",
            Self::Relu => "relu",
            Self::Sigmoid => "sigmoid",
            Self::Tanh => "tanh",
            Self::Softplus => "softplus",
        }
    }
}

/// Applies a function to each value.
///
/// `y[..] = activation(x[..])`
///
/// | operand  | shape  | element        | layout     |
/// |----------|--------|----------------|------------|
/// | `x`      | any    | f32, f16, bf16 | any        |
/// | returned | as `x` | as `x`         | contiguous |
///
/// A NaN gives a NaN.
///
/// # Errors
/// [`Error::Device`] if the device has no room for the result.
///
/// # Source
/// Gelu: Hendrycks and Gimpel 2016, arXiv:1606.08415. Silu: Elfwing, Uchibe and Doya 2017, arXiv:1702.03118.
pub fn activation<T: Float>(x: &Tensor<T>, activation: Activation) -> Result<Tensor<T>> {
    let x = x.contiguous()?;
    let mut y = Tensor::empty(x.device(), x.shape())?;
    match x.device().handle() {
        Handle::Reference => reference::activation(x.host(), activation, y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::activation(cpu, x.host(), activation, y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => cuda::activation(&cuda.stream(), x.cuda_operand(), activation, y.cuda_operand())?,
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            gpu.record(|recorder| wgpu::activation(recorder, x.operand(), activation, y.operand()))?;
        }
    }
    Ok(y)
}

/// Scales `up` by the silu of `gate`, as the feed-forward of a Llama block does between its matrices.
///
/// `y[..] = gate[..] / (1 + exp(-gate[..])) * up[..]`
///
/// | operand  | shape     | element        | layout     |
/// |----------|-----------|----------------|------------|
/// | `gate`   | any       | f32, f16, bf16 | any        |
/// | `up`     | as `gate` | as `gate`      | any        |
/// | returned | as `gate` | as `gate`      | contiguous |
///
/// # Errors
/// [`Error::Shape`] if the shapes differ; [`Error::Place`] if the operands are on different devices.
///
/// # Source
/// Shazeer 2020, arXiv:2002.05202, equation 6.
pub fn swiglu<T: Float>(gate: &Tensor<T>, up: &Tensor<T>) -> Result<Tensor<T>> {
    const OP: &str = "swiglu";
    if gate.shape() != up.shape() {
        return Err(Error::shape(OP, "up", up.shape(), format!("{:?}, as gate has", gate.shape())));
    }
    gate.device().check_same(OP, "up", up.device())?;
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let mut y = Tensor::empty(gate.device(), gate.shape())?;
    match gate.device().handle() {
        Handle::Reference => reference::swiglu(gate.host(), up.host(), y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::swiglu(cpu, gate.host(), up.host(), y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            cuda::swiglu(&cuda.stream(), gate.cuda_operand(), up.cuda_operand(), y.cuda_operand())?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            gpu.record(|recorder| wgpu::swiglu(recorder, gate.operand(), up.operand(), y.operand()))?;
        }
    }
    Ok(y)
}
