//! Gaussian mixtures over a few values: draws and densities.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::device::Handle;
use crate::{Error, Result, Tensor};

/// A mixture for each row.
#[derive(Debug, Clone, Copy)]
pub struct Mixtures<'a> {
    /// `[rows, (2 values + 1) components]`: the means, component by component and value by value, as many natural logarithms
    /// of variances, then the components' logits.
    pub parameters: &'a Tensor<f32>,
    /// How many components a mixture has.
    pub components: usize,
}

/// Lengths of an op's axes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) rows: usize,
    pub(crate) candidates: usize,
    pub(crate) components: usize,
    pub(crate) values: usize,
}

impl Sizes {
    /// Parameters of a row.
    pub(crate) const fn parameters(self) -> usize {
        (2 * self.values + 1) * self.components
    }
}

impl Mixtures<'_> {
    /// Rows and values; `candidates` is for the caller to say.
    fn sizes(self, op: &'static str, candidates: usize) -> Result<Sizes> {
        let Self { parameters, components } = self;
        let wrong = || {
            let expected = format!("[rows, (2 values + 1) x {components} components]");
            Error::shape(op, "parameters", parameters.shape(), expected)
        };
        let &[rows, length] = parameters.shape() else { return Err(wrong()) };
        let values = length.checked_div(components).unwrap_or(0) / 2;
        let sizes = Sizes { rows, candidates, components, values };
        if values == 0 || sizes.parameters() != length { Err(wrong()) } else { Ok(sizes) }
    }
}

/// Candidates of each row, from components that were chosen and normal numbers; or one of them for each row.
///
/// `y[r, i, c] = mean[r, g, c] + exp(log_variance[r, g, c] / 2) temperature normals[r, i, g, c]`, `g = chosen[r, i]`
///
/// | operand             | shape                                    | element | layout     |
/// |---------------------|------------------------------------------|---------|------------|
/// | `mixtures`          | `[rows, (2 values + 1) components]`      | f32     | any        |
/// | `chosen`            | `[rows, candidates]`                     | u32     | any        |
/// | `normals`           | `[rows, candidates, components, values]` | f32     | any        |
/// | `kept`, if given    | `[rows]`                                 | u32     | any        |
/// | returned            | `[rows, candidates, values]`             | f32     | contiguous |
///
/// With `kept` one candidate of each row is drawn, `[rows, 1, values]`. Components and candidates beyond the last are the
/// last. `chosen` is drawn from the logits by [`sample`](crate::sample::sample); each component of a candidate has normal
/// numbers of its own, as the source draws them.
///
/// # Errors
/// [`Error::Shape`] if the operands do not fit each other; [`Error::Place`] if they are on different devices.
///
/// # Source
/// Zhao et al. 2025, arXiv:2503.02883, section 3.3.
pub fn draw(
    mixtures: Mixtures<'_>,
    chosen: &Tensor<u32>,
    normals: &Tensor<f32>,
    kept: Option<&Tensor<u32>>,
    temperature: f32,
) -> Result<Tensor<f32>> {
    const OP: &str = "draw";
    let device = mixtures.parameters.device();
    device.check_same(OP, "chosen", chosen.device())?;
    device.check_same(OP, "normals", normals.device())?;
    let sizes = mixtures.sizes(OP, chosen.shape().get(1).copied().unwrap_or(0))?;
    let Sizes { rows, candidates, components, values } = sizes;
    check(OP, "chosen", chosen.shape(), &[rows, candidates])?;
    check(OP, "normals", normals.shape(), &[rows, candidates, components, values])?;
    if let Some(kept) = kept {
        device.check_same(OP, "kept", kept.device())?;
        check(OP, "kept", kept.shape(), &[rows])?;
    }
    let count = if kept.is_some() { candidates.min(1) } else { candidates };
    let (parameters, chosen, normals) =
        (mixtures.parameters.contiguous()?, chosen.contiguous()?, normals.contiguous()?);
    let kept = kept.map(Tensor::contiguous).transpose()?;
    let mut y = Tensor::empty(device, &[rows, count, values])?;
    if y.elements() == 0 {
        return Ok(y);
    }
    match device.handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let kept = kept.as_ref().map(Tensor::cuda_operand);
            let (parameters, normals) = (parameters.cuda_operand(), normals.cuda_operand());
            let (chosen, y) = (chosen.cuda_operand(), y.cuda_operand());
            cuda::draw(&cuda.stream(), parameters, chosen, normals, kept, sizes, temperature, y)?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu.record(|recorder| {
            let kept = kept.as_ref().map(Tensor::operand);
            let (parameters, normals) = (parameters.operand(), normals.operand());
            wgpu::draw(recorder, parameters, chosen.operand(), normals, kept, sizes, temperature, y.operand())
        })?,
        _ => {
            let chosen = chosen.host().as_slice().expect("contiguous");
            let kept = kept.as_ref().map(|kept| kept.host().as_slice().expect("contiguous"));
            let [parameters, normals] = [&parameters, &normals].map(|x| x.host().as_slice().expect("contiguous"));
            let mut y = y.host_mut();
            let y = y.as_mut_slice().expect("contiguous");
            match device.handle() {
                #[cfg(feature = "cpu")]
                Handle::Cpu(_) => cpu::draw(parameters, chosen, normals, kept, sizes, temperature, y),
                _ => reference::draw(parameters, chosen, normals, kept, sizes, temperature, y),
            }
        }
    }
    Ok(y)
}

/// The natural logarithm of each candidate's density under the mixture of its row.
///
/// `y[r, i] = ln sum over g of w[r, g] prod over c of N(x[r, i, c]; mean[r, g, c], exp(log_variance[r, g, c]))`,
/// `w[r] = softmax(logits[r])`
///
/// | operand    | shape                               | element | layout     |
/// |------------|-------------------------------------|---------|------------|
/// | `mixtures` | `[rows, (2 values + 1) components]` | f32     | any        |
/// | `x`        | `[rows, candidates, values]`        | f32     | any        |
/// | returned   | `[rows, candidates]`                | f32     | contiguous |
///
/// Parameters are finite.
///
/// # Errors
/// [`Error::Shape`] if the operands do not fit each other; [`Error::Place`] if they are on different devices.
///
/// # Source
/// Zhao et al. 2025, arXiv:2503.02883, section 3.2.
pub fn log_density(mixtures: Mixtures<'_>, x: &Tensor<f32>) -> Result<Tensor<f32>> {
    const OP: &str = "log_density";
    let device = mixtures.parameters.device();
    device.check_same(OP, "x", x.device())?;
    let sizes = mixtures.sizes(OP, x.shape().get(1).copied().unwrap_or(0))?;
    check(OP, "x", x.shape(), &[sizes.rows, sizes.candidates, sizes.values])?;
    let (parameters, x) = (mixtures.parameters.contiguous()?, x.contiguous()?);
    let mut y = Tensor::empty(device, &[sizes.rows, sizes.candidates])?;
    if y.elements() == 0 {
        return Ok(y);
    }
    match device.handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            cuda::log_density(&cuda.stream(), parameters.cuda_operand(), x.cuda_operand(), sizes, y.cuda_operand())?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            gpu.record(|recorder| wgpu::log_density(recorder, parameters.operand(), x.operand(), sizes, y.operand()))?
        }
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::log_density(cpu, parameters.host(), x.host(), sizes, y.host_mut()),
        Handle::Reference => reference::log_density(parameters.host(), x.host(), sizes, y.host_mut()),
    }
    Ok(y)
}

fn check(op: &'static str, operand: &'static str, got: &[usize], expected: &[usize]) -> Result<()> {
    if got != expected {
        return Err(Error::shape(op, operand, got, format!("{expected:?}, as the other operands say")));
    }
    Ok(())
}
