//! Steps of continuous heads: flow matching, DDPM and DDIM.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
mod schedule;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use schedule::{Level, NoiseCurve, NoiseSchedule};

use crate::device::Handle;
use crate::{Error, Float, Result, Tensor};

/// One Euler step along a velocity, with guidance.
///
/// `y = x + step (uncond + scale (velocity - uncond))`, or `y = x + step velocity` without guidance
///
/// | operand              | shape  | element        | layout     |
/// |----------------------|--------|----------------|------------|
/// | `x`                  | any    | f32, f16, bf16 | any        |
/// | `velocity`, `uncond` | as `x` | as `x`         | any        |
/// | returned             | as `x` | as `x`         | contiguous |
///
/// `guide` is `uncond` and the scale; nothing is rounded to a half type in between.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ; [`Error::Place`] if the operands are on different devices.
///
/// # Source
/// Lipman et al. 2022, arXiv:2210.02747; Euler's method.
pub fn flow_euler<T: Float>(
    x: &Tensor<T>,
    velocity: &Tensor<T>,
    guide: Option<(&Tensor<T>, f32)>,
    step: f32,
) -> Result<Tensor<T>> {
    const OP: &str = "flow_euler";
    check_same(OP, x, "velocity", velocity)?;
    if let Some((uncond, _)) = guide {
        check_same(OP, x, "uncond", uncond)?;
    }
    let (x, velocity) = (x.contiguous()?, velocity.contiguous()?);
    let uncond = guide.map(|(uncond, _)| uncond.contiguous()).transpose()?;
    let guide = guide.zip(uncond.as_ref()).map(|((_, scale), uncond)| (uncond, scale));
    let mut y = Tensor::empty(x.device(), x.shape())?;
    if x.elements() == 0 {
        return Ok(y);
    }
    match x.device().handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let guide = guide.map(|(uncond, scale)| (uncond.cuda_operand(), scale));
            let (velocity, y) = (velocity.cuda_operand(), y.cuda_operand());
            cuda::euler(&cuda.stream(), x.cuda_operand(), velocity, guide, step, y)?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu.record(|recorder| {
            let guide = guide.map(|(uncond, scale)| (uncond.operand(), scale));
            wgpu::euler(recorder, x.operand(), velocity.operand(), guide, step, y.operand())
        })?,
        #[cfg(feature = "cpu")]
        Handle::Cpu(_) => {
            let guide = guide.map(|(uncond, scale)| (uncond.host(), scale));
            cpu::flow_euler(x.host(), velocity.host(), guide, step, y.host_mut());
        }
        Handle::Reference => {
            let guide = guide.map(|(uncond, scale)| (uncond.host(), scale));
            reference::flow_euler(x.host(), velocity.host(), guide, step, y.host_mut());
        }
    }
    Ok(y)
}

/// What a step of a diffusion gives; each as `x`.
#[derive(Debug, Clone)]
pub struct Denoised<T: Float> {
    /// The state of the next step.
    pub y: Tensor<T>,
    /// The clean state that the prediction implies; [`ddpm_step_within`] alone holds it.
    pub x0: Tensor<T>,
    /// `y` without noise.
    pub mean: Tensor<T>,
    /// The learned variance's natural logarithm; zeros in [`ddim_step`].
    pub log_variance: Tensor<T>,
}

/// The coefficients of a step. `x0 = from_x x - from_epsilon epsilon`, held to `bound`,
/// `mean = mean_x0 x0 + mean_x x + mean_epsilon epsilon`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coefficients {
    /// Of `x` in `x0`.
    pub from_x: f64,
    /// Of `-epsilon` in `x0`.
    pub from_epsilon: f64,
    /// Of `x0` in the mean.
    pub mean_x0: f64,
    /// Of `x` in the mean.
    pub mean_x: f64,
    /// Of `epsilon` in the mean.
    pub mean_epsilon: f64,
    /// The logarithms of the variance between which the network chooses; without, it is 1.
    pub learned: Option<[f64; 2]>,
    /// Of the noise; 0 adds none.
    pub amount: f64,
    /// The largest magnitude of `x0`; 0 holds none.
    pub bound: f64,
}

/// One step of DDPM with a learned variance, at a level of a [`NoiseSchedule`].
///
/// With `model = [epsilon | v]`, `a` the level's `alpha_bar` and `a'` that of the one before (nearer to clean):
///
/// * `x0 = x / sqrt(a) - sqrt(1 / a - 1) epsilon`
/// * `mean = beta sqrt(a') / (1 - a) x0 + (1 - a') sqrt(1 - beta) / (1 - a) x`
/// * `log_variance = r ln(beta) + (1 - r) posterior`, `r = (v + 1) / 2`
/// * `y = mean + exp(log_variance / 2) noise temperature`, without noise at level 0
///
/// | operand      | shape              | element        | layout |
/// |--------------|--------------------|----------------|--------|
/// | `x`, `noise` | `[.., channels]`   | f32, f16, bf16 | any    |
/// | `model`      | `[.., 2 channels]` | as `x`         | any    |
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit; [`Error::Place`] if the operands are on different devices.
///
/// # Source
/// Nichol and Dhariwal 2021, arXiv:2102.09672, equations 9 to 15, as in the diffusion head of Li et al. 2024,
/// arXiv:2406.11838 (MAR).
pub fn ddpm_step<T: Float>(
    x: &Tensor<T>,
    model: &Tensor<T>,
    noise: &Tensor<T>,
    level: &Level,
    temperature: f32,
) -> Result<Denoised<T>> {
    denoise("ddpm_step", x, model, noise, ddpm(level, temperature))
}

/// [`ddpm_step`] with the values of `x0` held to `-bound` to `bound`, where those of data lie: the mean is of the held
/// ones.
///
/// # Errors
/// As [`ddpm_step`]; [`Error::Value`] if `bound` is not a finite number above 0.
///
/// # Source
/// `clip_denoised` of the code of Dhariwal and Nichol 2021, arXiv:2105.05233.
pub fn ddpm_step_within<T: Float>(
    x: &Tensor<T>,
    model: &Tensor<T>,
    noise: &Tensor<T>,
    level: &Level,
    temperature: f32,
    bound: f32,
) -> Result<Denoised<T>> {
    const OP: &str = "ddpm_step_within";
    if !(bound.is_finite() && bound > 0.0) {
        return Err(Error::value(OP, "bound", bound, "a finite number above 0"));
    }
    denoise(OP, x, model, noise, Coefficients { bound: f64::from(bound), ..ddpm(level, temperature) })
}

fn ddpm(level: &Level, temperature: f32) -> Coefficients {
    let (a, before) = (level.alpha_bar, level.alpha_bar_before);
    Coefficients {
        from_x: 1.0 / a.sqrt(),
        from_epsilon: (1.0 / a - 1.0).sqrt(),
        mean_x0: level.beta * before.sqrt() / (1.0 - a),
        mean_x: (1.0 - before) * (1.0 - level.beta).sqrt() / (1.0 - a),
        mean_epsilon: 0.0,
        learned: Some([level.log_variance, level.beta.ln()]),
        amount: if level.index == 0 { 0.0 } else { f64::from(temperature) },
        bound: 0.0,
    }
}

/// One step of DDIM, at a level of a [`NoiseSchedule`].
///
/// With `a` the level's `alpha_bar` and `a'` that of the one before (nearer to clean):
///
/// * `x0 = x / sqrt(a) - sqrt(1 / a - 1) epsilon`
/// * `sigma = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a')`
/// * `y = sqrt(a') x0 + sqrt(1 - a' - sigma²) epsilon + sigma noise`, without noise at level 0
///
/// All operands have one shape. `eta` is 0 for a deterministic step and 1 for DDPM's own variance.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit; [`Error::Value`] if `eta` is not in 0 to 1; [`Error::Place`] if the
/// operands are on different devices.
///
/// # Source
/// Song, Meng and Ermon 2020, arXiv:2010.02502, equations 12 and 16.
pub fn ddim_step<T: Float>(
    x: &Tensor<T>,
    epsilon: &Tensor<T>,
    noise: &Tensor<T>,
    level: &Level,
    eta: f32,
) -> Result<Denoised<T>> {
    if !(0.0..=1.0).contains(&eta) {
        return Err(Error::value("ddim_step", "eta", eta, "0 to 1"));
    }
    let (a, before) = (level.alpha_bar, level.alpha_bar_before);
    let sigma = f64::from(eta) * ((1.0 - before) / (1.0 - a)).sqrt() * (1.0 - a / before).sqrt();
    let coefficients = Coefficients {
        from_x: 1.0 / a.sqrt(),
        from_epsilon: (1.0 / a - 1.0).sqrt(),
        mean_x0: before.sqrt(),
        mean_x: 0.0,
        mean_epsilon: (1.0 - before - sigma * sigma).max(0.0).sqrt(),
        learned: None,
        amount: if level.index == 0 { 0.0 } else { sigma },
        bound: 0.0,
    };
    denoise("ddim_step", x, epsilon, noise, coefficients)
}

fn denoise<T: Float>(
    op: &'static str,
    x: &Tensor<T>,
    model: &Tensor<T>,
    noise: &Tensor<T>,
    coefficients: Coefficients,
) -> Result<Denoised<T>> {
    check_same(op, x, "noise", noise)?;
    x.device().check_same(op, "model", model.device())?;
    let Some((channels, rows)) = x.shape().split_last() else {
        return Err(Error::shape(op, "x", x.shape(), "at least one axis: the last one holds the channels"));
    };
    let width = if coefficients.learned.is_some() { 2 * channels } else { *channels };
    if model.shape() != [rows, &[width]].concat() {
        let expected = format!("{:?} with {width} channels, as x says", rows);
        return Err(Error::shape(op, "model", model.shape(), expected));
    }
    let (x, model, noise) = (x.contiguous()?, model.contiguous()?, noise.contiguous()?);
    let empty = || Tensor::empty(x.device(), x.shape());
    // Only a learned variance is written.
    let log_variance = match coefficients.learned {
        Some(_) => empty()?,
        None => Tensor::zeros(x.device(), x.shape())?,
    };
    let mut denoised = Denoised { y: empty()?, x0: empty()?, mean: empty()?, log_variance };
    if x.elements() == 0 {
        return Ok(denoised);
    }
    match x.device().handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let inputs = [x.cuda_operand(), model.cuda_operand(), noise.cuda_operand()];
            cuda::denoise(&cuda.stream(), inputs, coefficients, &denoised)?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu.record(|recorder| {
            let inputs = [x.operand(), model.operand(), noise.operand()];
            wgpu::denoise(recorder, inputs, coefficients, &denoised)
        })?,
        #[cfg(feature = "cpu")]
        Handle::Cpu(_) => cpu::denoise([x.host(), model.host(), noise.host()], coefficients, denoised.host_mut()),
        Handle::Reference => {
            reference::denoise([x.host(), model.host(), noise.host()], coefficients, denoised.host_mut());
        }
    }
    Ok(denoised)
}

impl<T: Float> Denoised<T> {
    /// `x0`, `mean`, `log_variance`, `y`.
    fn host_mut(&mut self) -> [crate::ViewMut<'_, T>; 4] {
        [self.x0.host_mut(), self.mean.host_mut(), self.log_variance.host_mut(), self.y.host_mut()]
    }
}

fn check_same<T: Float>(op: &'static str, x: &Tensor<T>, operand: &'static str, other: &Tensor<T>) -> Result<()> {
    x.device().check_same(op, operand, other.device())?;
    if other.shape() != x.shape() {
        return Err(Error::shape(op, operand, other.shape(), format!("{:?}, as x has", x.shape())));
    }
    Ok(())
}
