//! MaskGIT: all masked places are drawn at once, and the least confident of them masked again.

use super::{Filter, Places, Weights, check_draws, fractions, integer, logarithm, weigh};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::device::Handle;
use crate::{Error, Float, Result, Tensor};

/// What stands in a place without a token.
pub const MASKED: u32 = u32::MAX;

/// Which share of the places is masked after a step, as progress `r` goes from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Curve {
    /// `cos(pi r / 2)`: MaskGIT's.
    Cosine,
    /// `acos(r) / (pi / 2)`: Muse's and ARPG's.
    Arccos,
    /// `1 - r^power`: 1 is linear, 2 square, 3 cubic, 0.5 the square root.
    Power(f32),
}

impl Curve {
    /// The share at progress `r`.
    #[must_use]
    pub fn at(self, r: f64) -> f64 {
        match self {
            Self::Cosine => (std::f64::consts::FRAC_PI_2 * r).cos(),
            Self::Arccos => r.acos() / std::f64::consts::FRAC_PI_2,
            Self::Power(power) => 1.0 - r.powf(f64::from(power)),
        }
    }
}

/// One step of a MaskGIT generation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskGit {
    /// From 0 on.
    pub step: usize,
    /// How many there are.
    pub steps: usize,
    /// Places masked at the start of the generation: all but those that were given.
    pub masked_at_start: usize,
    /// The share left after each step.
    pub curve: Curve,
    /// How much noise the choice of places has: it is multiplied with `1 - r`, `r = (step + 1) / steps`. Below 256.
    pub choice_temperature: f32,
}

/// The random numbers of a step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum MaskGitDraws {
    /// Words 0 (the token) and 1 (the choice) of Philox for each place; the round should be the step.
    Philox(Places),
    /// Given ones, `[batch, places]`.
    Given {
        /// In [0, 1): which token.
        tokens: Vec<f32>,
        /// Gumbel noise of the choice, finite.
        gumbel: Vec<f32>,
    },
}

/// What a step gives; all `[batch, places]` but for the counts.
#[derive(Debug, Clone)]
pub struct MaskGitStep {
    /// [`MASKED`] where a place is masked again.
    pub tokens: Tensor<u32>,
    /// The known tokens, and those just drawn for the masked places; on a GPU [`MASKED`] where logits could not be
    /// drawn from.
    pub sampled: Tensor<u32>,
    /// `ln p(token) + choice_temperature (1 - r) gumbel` in units of 2^-22 for the places that were masked, else
    /// `i32::MAX`. `p` is the token's weight over the sum of its row's.
    pub confidence: Tensor<i32>,
    /// `[batch]`: how many places are masked again.
    pub counts: Tensor<u32>,
}

impl MaskGitStep {
    /// For kernels to fill.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    fn empty(device: &crate::Device, shape: [usize; 2]) -> Result<Self> {
        Ok(Self {
            tokens: Tensor::empty(device, &shape)?,
            sampled: Tensor::empty(device, &shape)?,
            confidence: Tensor::empty(device, &shape)?,
            counts: Tensor::empty(device, &shape[..1])?,
        })
    }
}

/// Draws a token for each masked place, then masks the least confident again, among equals the lower place.
///
/// | operand  | shape                         | element        | layout |
/// |----------|-------------------------------|----------------|--------|
/// | `logits` | `[batch, places, vocabulary]` | f32, f16, bf16 | any    |
/// | `tokens` | `[batch, places]`             | u32            | any    |
///
/// Masked again are `max(1, min(floor(masked_at_start share), masked - 1))` places of each sequence, `share` the curve at
/// `(step + 1) / steps`; in the last step none. All is computed in integers, so that from equal logits every backend
/// gives the same.
///
/// # Errors
/// [`Error::Shape`] if an operand does not fit the logits; [`Error::Place`] if `tokens` is on another device;
/// [`Error::Value`] if an option or a given number is outside its range, or as [`weigh`].
///
/// # Source
/// Chang et al. 2022, arXiv:2202.04200, section 3.2; noise, least and most as in its code.
pub fn maskgit_step<T: Float>(
    logits: &Tensor<T>,
    tokens: &Tensor<u32>,
    filter: &Filter,
    step: &MaskGit,
    draws: &MaskGitDraws,
) -> Result<MaskGitStep> {
    const OP: &str = "maskgit_step";
    let &[batch, places, vocabulary] = logits.shape() else {
        return Err(Error::shape(OP, "logits", logits.shape(), "[batch, places, vocabulary]"));
    };
    logits.device().check_same(OP, "tokens", tokens.device())?;
    if tokens.shape() != [batch, places] {
        let expected = format!("[{batch}, {places}], as the logits have");
        return Err(Error::shape(OP, "tokens", tokens.shape(), expected));
    }
    if step.step >= step.steps {
        return Err(Error::value(OP, "step", step.step, format!("below the number of steps, {}", step.steps)));
    }
    if !(0.0..256.0).contains(&step.choice_temperature) {
        return Err(Error::value(OP, "choice_temperature", step.choice_temperature, "0 to less than 256"));
    }
    let device = logits.device();
    let r = (step.step + 1) as f64 / step.steps as f64;
    let most = (step.masked_at_start as f64 * step.curve.at(r)).floor().max(0.0) as usize;
    let plan = Plan {
        factor: (f64::from(step.choice_temperature) * (1.0 - r) * 16_777_216.0).round() as u32,
        most: u32::try_from(most).unwrap_or(u32::MAX),
        last: step.step + 1 == step.steps,
    };
    let rows = batch * places;
    let weights = weigh(&logits.reshape(&[rows, vocabulary])?, None, filter)?;
    let (draws, noise, given) = match draws {
        MaskGitDraws::Philox(drawn) => {
            let words = drawn.words(OP, device, batch, places)?;
            let plane = |word| words.narrow(0, word, 1)?.reshape(&[rows]);
            (plane(0)?, plane(1)?, false)
        }
        MaskGitDraws::Given { tokens, gumbel } => {
            check_draws(OP, tokens.len(), rows, "one per place")?;
            check_draws(OP, gumbel.len(), rows, "one per place")?;
            if let Some(bad) = gumbel.iter().find(|noise| !noise.is_finite()) {
                return Err(Error::value(OP, "gumbel", bad, "finite numbers"));
            }
            let noise = gumbel.iter().map(|noise| (noise * 16_777_216.0) as i32 as u32).collect();
            let draws = Tensor::from_vec(device, &[rows], fractions(OP, tokens)?)?;
            (draws, Tensor::from_vec(device, &[rows], noise)?, true)
        }
    };
    let tokens = tokens.contiguous()?;
    let shape = [batch, places];
    match device.handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let step = MaskGitStep::empty(device, shape)?;
            let drawn: Tensor<u32> = Tensor::empty(device, &[rows])?;
            let stream = cuda.stream();
            let weights = weights.tensor().cuda_operand();
            super::cuda::draw(&stream, weights, draws.cuda_operand(), drawn.cuda_operand())?;
            super::cuda::confidence(
                &stream,
                weights,
                tokens.cuda_operand(),
                drawn.cuda_operand(),
                (noise.cuda_operand(), given),
                plan.factor,
                [step.sampled.cuda_operand(), step.confidence.cuda_operand()],
            )?;
            super::cuda::remask(&stream, tokens.cuda_operand(), plan, &step)?;
            Ok(step)
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let step = MaskGitStep::empty(device, shape)?;
            let drawn: Tensor<u32> = Tensor::empty(device, &[rows])?;
            gpu.record(|recorder| {
                let weights = weights.tensor().operand();
                super::wgpu::draw(recorder, weights, draws.operand(), drawn.operand())?;
                super::wgpu::confidence(
                    recorder,
                    weights,
                    tokens.operand(),
                    drawn.operand(),
                    (noise.operand(), given),
                    plan.factor,
                    [step.sampled.operand(), step.confidence.operand()],
                )?;
                super::wgpu::remask(recorder, tokens.operand(), plan, &step)
            })?;
            Ok(step)
        }
        _ => {
            let slice = |tensor: &Tensor<u32>| tensor.host().as_slice().expect("contiguous").to_vec();
            let (old, draws, noise) = (slice(&tokens), slice(&draws), slice(&noise));
            let (sampled, confidence) = confidences(&weights, &old, &draws, &noise, given, plan);
            let (mut new, mut counts) = (sampled.clone(), Vec::new());
            for (b, new) in new.chunks_mut(places.max(1)).enumerate() {
                let own = b * places..(b + 1) * places;
                counts.push(plan.remask(&old[own.clone()], &confidence[own], new));
            }
            Ok(MaskGitStep {
                tokens: Tensor::from_vec(device, &shape, new)?,
                sampled: Tensor::from_vec(device, &shape, sampled)?,
                confidence: Tensor::from_vec(device, &shape, confidence)?,
                counts: Tensor::from_vec(device, &[batch], counts)?,
            })
        }
    }
}

/// A step in the numbers that it computes with.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Of the noise, in units of 2^-24.
    pub factor: u32,
    /// How many places are masked again, unless fewer are masked.
    pub most: u32,
    /// Whether nothing is masked again.
    pub last: bool,
}

impl Plan {
    /// The noise is in units of 2^-24, the confidence in those of 2^-22.
    fn confidence(self, weight: u32, total: u64, gumbel: i32) -> i32 {
        let below = logarithm::log2(total) - logarithm::log2(u64::from(weight));
        let information = (logarithm::natural(below) >> 2) as i32;
        let scaled = (u64::from(gumbel.unsigned_abs()) * u64::from(self.factor)) >> 26;
        scaled.min(0x3fff_ffff) as i32 * gumbel.signum() - information
    }

    /// Masks the least confident of one sequence again; how many.
    fn remask(self, old: &[u32], confidence: &[i32], new: &mut [u32]) -> u32 {
        let mut masked: Vec<usize> = (0..old.len()).filter(|place| old[*place] == MASKED).collect();
        let count = match masked.len() as u32 {
            0 => 0,
            _ if self.last => 0,
            some => self.most.min(some - 1).max(1),
        };
        masked.sort_by_key(|place| (confidence[*place], *place));
        for place in &masked[..count as usize] {
            new[*place] = MASKED;
        }
        count
    }
}

fn confidences(
    weights: &Weights,
    tokens: &[u32],
    draws: &[u32],
    noise: &[u32],
    given: bool,
    plan: Plan,
) -> (Vec<u32>, Vec<i32>) {
    let each = |(place, row): (usize, &[u32])| {
        if tokens[place] != MASKED {
            return (tokens[place], i32::MAX);
        }
        let token = integer::draw(row, draws[place]).expect("weigh refuses a row without a weight");
        let gumbel = if given { noise[place] as i32 } else { logarithm::gumbel(noise[place]) };
        let total = row.iter().map(|weight| u64::from(*weight)).sum();
        (token, plan.confidence(row[token as usize], total, gumbel))
    };
    weights.host_rows().enumerate().map(each).unzip()
}
