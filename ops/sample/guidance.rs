//! Guidance: how predictions with and without a condition combine, and how that changes over the steps.

use crate::{Error, Float, Result, Tensor, elementwise};

/// How two predictions combine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Guidance {
    /// `uncond + scale (cond - uncond)`: 1 is no guidance. LlamaGen's, MAR's.
    Scale,
    /// `(1 + scale) cond - scale uncond`: 0 is no guidance. VAR's.
    Extra,
}

/// Classifier-free guidance of two predictions of one shape.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ; [`Error::Value`] if `scale` is not finite; [`Error::Place`] if the devices
/// differ.
///
/// # Source
/// Ho and Salimans 2022, arXiv:2207.12598, equation 6.
pub fn guide<T: Float>(cond: &Tensor<T>, uncond: &Tensor<T>, scale: f32, kind: Guidance) -> Result<Tensor<T>> {
    if !scale.is_finite() {
        return Err(Error::value("guide", "scale", scale, "a finite number"));
    }
    match kind {
        Guidance::Scale => elementwise::scale_add(cond, scale, uncond, 1.0 - scale),
        Guidance::Extra => elementwise::scale_add(cond, 1.0 + scale, uncond, -scale),
    }
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
