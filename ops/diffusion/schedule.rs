//! Noise schedules, in f64.

use crate::{Error, Result};

/// How the variance of the noise grows over the training times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoiseCurve {
    /// `beta[i] = min(1 - c((i + 1) / T) / c(i / T), 0.999)`, `c(t) = cos²((t + 0.008) / 1.008 π / 2)`.
    Cosine,
    /// `beta` linear from `0.1 / T` to `20 / T`.
    Linear,
}

/// One step of a schedule; index 0 is the one nearest to clean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Steps are taken from the last index down to 0.
    pub index: usize,
    /// The training time that the network is given.
    pub time: u32,
    /// How much of the signal's variance this step takes.
    pub beta: f64,
    /// What is left of it.
    pub alpha_bar: f64,
    /// What is left at the level before; 1 at index 0.
    pub alpha_bar_before: f64,
    /// The natural logarithm of the posterior variance; that of index 1 at index 0, where the variance is 0.
    pub log_variance: f64,
}

/// The levels of a diffusion, respaced to fewer steps than it was trained with.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    levels: Vec<Level>,
}

impl NoiseSchedule {
    /// `steps` of `train_steps` times: `round(i (train_steps - 1) / (steps - 1))`, halves to even; the last alone if
    /// there is one step.
    ///
    /// # Errors
    /// [`Error::Value`] if `steps` is not 1 to `train_steps`.
    ///
    /// # Source
    /// Nichol and Dhariwal 2021, arXiv:2102.09672, section 3.2 and 4 (cosine, respacing); Ho et al. 2020,
    /// arXiv:2006.11239 (linear).
    pub fn new(curve: NoiseCurve, train_steps: usize, steps: usize) -> Result<Self> {
        if steps == 0 || steps > train_steps || u32::try_from(train_steps).is_err() {
            let expected = format!("1 to {train_steps}, the training steps");
            return Err(Error::value("noise schedule", "steps", steps, expected));
        }
        let total = train_steps as f64;
        let cosine = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        let beta = |i: usize| match curve {
            NoiseCurve::Cosine => (1.0 - cosine((i + 1) as f64 / total) / cosine(i as f64 / total)).min(0.999),
            NoiseCurve::Linear if train_steps == 1 => 0.1,
            NoiseCurve::Linear => (0.1 + 19.9 * i as f64 / (total - 1.0)) / total,
        };
        let mut bars = Vec::with_capacity(train_steps);
        let mut product = 1.0;
        for i in 0..train_steps {
            product *= 1.0 - beta(i);
            bars.push(product);
        }
        let time = |i: usize| match steps {
            1 => train_steps - 1,
            _ => (i as f64 * (total - 1.0) / (steps as f64 - 1.0)).round_ties_even() as usize,
        };
        let mut levels: Vec<Level> = Vec::with_capacity(steps);
        let mut before = 1.0;
        for index in 0..steps {
            let bar = bars[time(index)];
            let beta = 1.0 - bar / before;
            let log_variance = (beta * (1.0 - before) / (1.0 - bar)).ln();
            levels.push(Level {
                index,
                time: time(index) as u32,
                beta,
                alpha_bar: bar,
                alpha_bar_before: before,
                log_variance,
            });
            before = bar;
        }
        // The variance of index 0 is 0, which has no logarithm.
        levels[0].log_variance = levels.get(1).map_or_else(|| levels[0].beta.ln(), |second| second.log_variance);
        Ok(Self { levels })
    }

    /// From the level nearest to clean to the noisiest; a generation takes them in reverse.
    #[must_use]
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }
}
