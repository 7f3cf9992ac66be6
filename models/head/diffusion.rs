//! The diffusion head: a small network that denoises one token, given the transformer's state there.
//!
//! Source: Li et al. 2024, arXiv:2406.11838, section 3.2.

use smalti::diffusion::{self, NoiseCurve, NoiseSchedule};
use smalti::{Float, Tensor, sample};

use super::mlp::ModulatedMlp;
use crate::Result;
use crate::decode::Normals;
use crate::weights::Loader;

/// Times the head was trained with.
const TRAIN_STEPS: usize = 1000;

/// The network and its schedule.
pub struct DiffusionHead {
    network: ModulatedMlp,
    schedule: NoiseSchedule,
    /// The largest magnitude of a clean value.
    bound: Option<f32>,
}

impl DiffusionHead {
    /// Loads the official names under the loader's prefix; it samples in `steps` steps.
    ///
    /// # Errors
    /// If the number of steps is not 1 to 1000 or the device has no room.
    pub fn load(loader: &Loader<'_>, steps: usize) -> Result<Self> {
        Ok(Self {
            network: ModulatedMlp::load(loader)?,
            schedule: NoiseSchedule::new(NoiseCurve::Cosine, TRAIN_STEPS, steps)?,
            bound: None,
        })
    }

    /// The same head, whose clean values lie between `-bound` and `bound` at each step.
    #[must_use]
    pub fn within(mut self, bound: f32) -> Self {
        self.bound = Some(bound);
        self
    }

    /// Channels of a token.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.network.channels()
    }

    /// What the network takes of the states `z` (`[rows, dim]`) and of levels, as [`ModulatedMlp::condition`].
    ///
    /// # Errors
    /// As there.
    pub fn condition<T: Float>(&self, z: &Tensor<T>, levels: &[f32]) -> Result<Tensor<T>> {
        self.network.condition(z, levels)
    }

    /// Noise and variance of tokens `x` (`[rows, channels]`) at `times` (one per row, or one) under a
    /// [`DiffusionHead::condition`]: `[rows, 2 channels]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, x: &Tensor<T>, times: &[f64], condition: &Tensor<T>) -> Result<Tensor<T>> {
        self.network.run(x, times, condition)
    }

    /// Draws one token for each row of a [`DiffusionHead::condition`]: `[rows, channels]`. With a guidance `scale`, as
    /// many unconditional rows lie below the conditional ones.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn sample<T: Float>(
        &self,
        condition: &Tensor<T>,
        scale: Option<f32>,
        temperature: f32,
        normals: &mut Normals<'_>,
    ) -> Result<Tensor<T>> {
        let all = condition.shape()[0];
        let rows = if scale.is_some() { all / 2 } else { all };
        let channels = self.channels();
        let mut next = || -> Result<Tensor<T>> {
            let values = normals(rows, channels)?;
            let values = values.into_iter().map(T::from_f64).collect();
            Ok(Tensor::from_vec(condition.device(), &[rows, channels], values)?)
        };
        let mut x = next()?;
        for level in self.schedule.levels().iter().rev() {
            let time = [f64::from(level.time)];
            let model = match scale {
                None => self.run(&x, &time, condition)?,
                Some(scale) => {
                    let both = self.run(&crate::decode::twice(&x)?, &time, condition)?;
                    // The noise is guided, the variance is the conditional one's.
                    let part = |row: usize, start: usize| -> Result<Tensor<T>> {
                        Ok(both.narrow(0, row, rows)?.narrow(1, start, channels)?.contiguous()?)
                    };
                    let noise = sample::guide(&part(0, 0)?, &part(rows, 0)?, scale, sample::Guidance::Scale)?;
                    crate::decode::concatenate(&[&noise, &part(0, channels)?], 1)?
                }
            };
            x = match self.bound {
                None => diffusion::ddpm_step(&x, &model, &next()?, level, temperature)?.y,
                Some(bound) => diffusion::ddpm_step_within(&x, &model, &next()?, level, temperature, bound)?.y,
            };
        }
        Ok(x)
    }
}
