//! From noise to data along a learned velocity.
//!
//! Source: Lipman et al. 2022, arXiv:2210.02747; Liu, Gong and Liu 2022, arXiv:2209.03003; Ma et al. 2024,
//! arXiv:2401.08740 (SiT), section 2.3, for the steps with noise.

use smalti::{Float, Tensor, diffusion, elementwise};

use crate::Result;
use crate::decode::twice;

/// Euler's method from noise `x` (`[rows, ..]`) at time 0 to data at time 1, in equal steps. `velocity` is asked at a
/// point and a time; with a guidance `scale` twice the rows, the second half being without the condition.
///
/// # Errors
/// Whatever `velocity` returns; if the device fails.
pub fn euler<T: Float>(
    mut x: Tensor<T>,
    steps: usize,
    scale: Option<f32>,
    mut velocity: impl FnMut(&Tensor<T>, f64) -> Result<Tensor<T>>,
) -> Result<Tensor<T>> {
    let rows = x.shape()[0];
    for step in 0..steps {
        let time = step as f64 / steps as f64;
        let length = 1.0 / steps as f32;
        x = match scale {
            None => diffusion::flow_euler(&x, &velocity(&x, time)?, None, length)?,
            Some(scale) => {
                let both = velocity(&twice(&x)?, time)?;
                let (with, without) = (both.narrow(0, 0, rows)?, both.narrow(0, rows, rows)?);
                diffusion::flow_euler(&x, &with, Some((&without, scale)), length)?
            }
        };
    }
    Ok(x)
}

/// Steps that move along the velocity and the score, and add noise, so that the marginals stay the flow's
/// (Euler-Maruyama); then one without noise.
///
/// A step of length `h` at time `t` is `x + drift h ((1 + t) v - x) + noise sqrt(2 (1 - t) h) n`: on the straight path the
/// score is `(t v - x) / (1 - t)`, and it counts `1 - t` times.
#[derive(Debug, Clone, Copy)]
pub struct Stochastic {
    /// Steps with noise, all of one length.
    pub steps: usize,
    /// The length of the last step.
    pub last: f64,
    /// Whether the score counts in the last step, too.
    pub last_score: bool,
    /// Stretches the steps with noise.
    pub drift: f64,
    /// Stretches the noise.
    pub noise: f64,
}

impl Stochastic {
    /// From noise `x` (`[rows, ..]`) at time 0 to data at time 1; `velocity` and `scale` are as in [`euler`], `noise`
    /// gives standard normal numbers of the shape of `x`, once per step.
    ///
    /// # Errors
    /// Whatever `velocity` and `noise` return; if the device fails.
    pub fn run<T: Float>(
        &self,
        mut x: Tensor<T>,
        scale: Option<f32>,
        mut velocity: impl FnMut(&Tensor<T>, f64) -> Result<Tensor<T>>,
        mut noise: impl FnMut() -> Result<Tensor<T>>,
    ) -> Result<Tensor<T>> {
        let rows = x.shape()[0];
        let length = (1.0 - self.last) / self.steps as f64;
        for step in 0..=self.steps {
            let end = step == self.steps;
            let (time, score) = (if end { 1.0 - self.last } else { step as f64 * length }, !end || self.last_score);
            let length = if end { self.last } else { self.drift * length };
            let of_velocity = if score { length * (1.0 + time) } else { length } as f32;
            let moved = match scale {
                None => diffusion::flow_euler(&x, &velocity(&x, time)?, None, of_velocity)?,
                Some(scale) => {
                    let both = velocity(&twice(&x)?, time)?;
                    let (with, without) = (both.narrow(0, 0, rows)?, both.narrow(0, rows, rows)?);
                    diffusion::flow_euler(&x, &with, Some((&without, scale)), of_velocity)?
                }
            };
            let moved = if score { elementwise::scale_add(&moved, 1.0, &x, -length as f32)? } else { moved };
            x = if end {
                moved
            } else {
                let of_noise = self.noise * (2.0 * (1.0 - time) * (1.0 - self.last) / self.steps as f64).sqrt();
                elementwise::scale_add(&moved, 1.0, &noise()?, of_noise as f32)?
            };
        }
        Ok(x)
    }
}
