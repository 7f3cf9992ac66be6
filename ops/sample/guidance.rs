//! Guidance: how predictions with and without a condition combine, and how that changes over the steps.

use super::Certainty;
#[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
use crate::device::Handle;
use crate::{Error, Float, Result, Tensor, elementwise};

/// How two predictions combine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Guidance {
    /// `uncond + scale (cond - uncond)`: 1 is no guidance. LlamaGen's, MAR's.
    Scale,
    /// `cond + scale (cond - uncond)`: 0 is no guidance. VAR's.
    Extra,
}

impl Guidance {
    /// As every device computes it.
    pub(super) fn guided(self, cond: f32, uncond: f32, scale: f32) -> f32 {
        if cond == f32::NEG_INFINITY || uncond == f32::NEG_INFINITY {
            return cond;
        }
        let step = (cond - uncond) * scale;
        match self {
            Self::Scale => uncond + step,
            Self::Extra => cond + step,
        }
    }
}

/// Classifier-free guidance of two predictions.
///
/// `y = uncond + scale (cond - uncond)`, or with [`Guidance::Extra`] `y = cond + scale (cond - uncond)`
///
/// | operand          | shape  | element        | layout     |
/// |------------------|--------|----------------|------------|
/// | `cond`, `uncond` | any    | f32, f16, bf16 | any        |
/// | returned         | as they | as they       | contiguous |
///
/// Difference, product and sum are in f32 and rounded each, so that devices give the same bits in f32. Where one of both is
/// `-inf`, `y = cond`: what is ruled out with the condition stays out, and what is ruled out without it, so that there is
/// nothing to go away from, stays as it is.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ; [`Error::Value`] if `scale` is not finite; [`Error::Place`] if the devices
/// differ.
///
/// # Source
/// Ho and Salimans 2022, arXiv:2207.12598, equation 6.
pub fn guide<T: Float>(cond: &Tensor<T>, uncond: &Tensor<T>, scale: f32, kind: Guidance) -> Result<Tensor<T>> {
    const OP: &str = "guide";
    if !scale.is_finite() {
        return Err(Error::value(OP, "scale", scale, "a finite number"));
    }
    guide_by(OP, cond, uncond, Scales::One(scale), kind)
}

/// [`guide`] with a scale for each row, `[.., 1]` or without that axis: `scales` has the shape of `cond` but for the last
/// axis. A scale that is not finite makes its row what f32 arithmetic gives.
///
/// # Errors
/// As [`guide`], and [`Error::Shape`] if there is not one scale per row.
pub fn guide_rows<T: Float>(
    cond: &Tensor<T>,
    uncond: &Tensor<T>,
    scales: &Tensor<f32>,
    kind: Guidance,
) -> Result<Tensor<T>> {
    const OP: &str = "guide_rows";
    cond.device().check_same(OP, "scales", scales.device())?;
    let rows = &cond.shape()[..cond.shape().len().saturating_sub(1)];
    if scales.shape() != rows {
        return Err(Error::shape(OP, "scales", scales.shape(), format!("{rows:?}, one for each row of cond")));
    }
    guide_by(OP, cond, uncond, Scales::Rows(&scales.contiguous()?), kind)
}

enum Scales<'a> {
    One(f32),
    Rows(&'a Tensor<f32>),
}

fn guide_by<T: Float>(
    op: &'static str,
    cond: &Tensor<T>,
    uncond: &Tensor<T>,
    scales: Scales<'_>,
    kind: Guidance,
) -> Result<Tensor<T>> {
    let device = cond.device();
    device.check_same(op, "uncond", uncond.device())?;
    if uncond.shape() != cond.shape() {
        return Err(Error::shape(op, "uncond", uncond.shape(), format!("{:?}, as cond has", cond.shape())));
    }
    let (cond, uncond) = (cond.contiguous()?, uncond.contiguous()?);
    let mut y = Tensor::empty(device, cond.shape())?;
    match device.handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let scales = match scales {
                Scales::One(scale) => (None, scale),
                Scales::Rows(scales) => (Some(scales.cuda_operand()), 0.0),
            };
            super::cuda::guide(
                &cuda.stream(),
                cond.cuda_operand(),
                uncond.cuda_operand(),
                scales,
                kind,
                y.cuda_operand(),
            )?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let scales = match scales {
                Scales::One(scale) => (None, scale),
                Scales::Rows(scales) => (Some(scales.operand()), 0.0),
            };
            gpu.record(|recorder| {
                super::wgpu::guide(recorder, cond.operand(), uncond.operand(), scales, kind, y.operand())
            })?;
        }
        handle => {
            let scale = |row: usize| match scales {
                Scales::One(scale) => scale,
                Scales::Rows(scales) => scales.host().as_slice().expect("contiguous")[row],
            };
            match handle {
                #[cfg(feature = "cpu")]
                Handle::Cpu(cpu) => super::cpu::guide(cpu, cond.host(), uncond.host(), scale, kind, y.host_mut()),
                _ => super::reference::guide(cond.host(), uncond.host(), scale, kind, y.host_mut()),
            }
        }
    }
    Ok(y)
}

/// Guidance scales that follow how unsure the conditional prediction is, one for each row, for [`guide_rows`] with
/// [`Guidance::Scale`]: `1 + (scale - 1) entropy / ln(vocabulary)`. A certain row is not guided, one that knows nothing by
/// the whole `scale`.
///
/// # Errors
/// [`Error::Value`] if `scale` is not finite or the vocabulary below 2; [`Error::Device`] if the device has no room.
///
/// # Source
/// Chen et al. 2025, arXiv:2509.26376 (ScalingAR), whose guidance follows a state of confidence that is made from token
/// entropy; the straight line through both ends is ours.
pub fn entropy_guidance(certainty: &Certainty, vocabulary: usize, scale: f32) -> Result<Tensor<f32>> {
    const OP: &str = "entropy_guidance";
    if !scale.is_finite() {
        return Err(Error::value(OP, "scale", scale, "a finite number"));
    }
    if vocabulary < 2 {
        return Err(Error::value(OP, "vocabulary", vocabulary, "at least 2"));
    }
    let entropy = &certainty.entropy;
    let slope = (f64::from(scale) - 1.0) / (vocabulary as f64).ln();
    let ones = Tensor::from_vec(entropy.device(), entropy.shape(), vec![1.0; entropy.elements()])?;
    elementwise::scale_add(entropy, slope as f32, &ones, 1.0)
}

/// How a guidance scale changes over the steps of a generation.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Schedule {
    /// `s`.
    Constant,
    /// `1 + (s - 1) r`.
    Linear,
    /// `1 + (s - 1) (1 - cos(pi r)) / 2`.
    Cosine,
    /// The cosine of `r^power`.
    PowerCosine {
        /// Above 0.
        power: f32,
    },
    /// `1 + (s - 1) r^power`.
    Power {
        /// Above 0.
        power: f32,
    },
    /// `s r`.
    Ratio,
}

impl Schedule {
    /// The scale at progress `r`, from 0 to 1, for a full scale of `s`.
    #[must_use]
    pub fn at(self, s: f64, r: f64) -> f64 {
        let cosine = |r: f64| 1.0 + (s - 1.0) * (1.0 - (std::f64::consts::PI * r).cos()) / 2.0;
        match self {
            Self::Constant => s,
            Self::Linear => 1.0 + (s - 1.0) * r,
            Self::Cosine => cosine(r),
            Self::PowerCosine { power } => cosine(r.powf(f64::from(power))),
            Self::Power { power } => 1.0 + (s - 1.0) * r.powf(f64::from(power)),
            Self::Ratio => s * r,
        }
    }
}
