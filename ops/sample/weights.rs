//! Draws in two steps: a row of weights, then a token of it.

use super::integer::{self, Plan, Row};
use super::{Draws, Filter, Guidance, MAX_VOCABULARY, check_draws, check_logits, cpu_rows, fractions, logarithm};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::device::Handle;
use crate::{Device, Error, Float, Result, Tensor, rng};

/// What tokens weigh in a draw: `[rows, vocabulary]`, integers of at most 2^30, 0 for a token that is never drawn. A
/// token's probability is its weight over the sum of its row.
///
/// All that is drawn from weights is exact: on every backend the same token, and in the long run this very
/// distribution.
#[derive(Debug, Clone)]
pub struct Weights(Tensor<u32>);

impl Weights {
    /// The weights of probabilities, or of any other shares: numbers that are finite and not negative, with one above 0
    /// in each row. Their scale does not matter. What is below 2^-30 of a row's largest may become 0.
    ///
    /// | operand  | shape                | element | layout |
    /// |----------|----------------------|---------|--------|
    /// | `shares` | `[rows, vocabulary]` | f32     | any    |
    ///
    /// # Errors
    /// [`Error::Shape`] if `shares` has not two axes, an empty vocabulary or one above 2^18; [`Error::Value`], on host
    /// devices, if a row has other numbers or only zeros. On a GPU such a row becomes all 0.
    pub fn from_shares(shares: &Tensor<f32>) -> Result<Self> {
        const OP: &str = "weigh_shares";
        let [rows, vocabulary] = check_logits(OP, "shares", shares)?;
        let shares = shares.contiguous()?;
        match shares.device().handle() {
            #[cfg(feature = "cuda")]
            Handle::Cuda(cuda) => {
                let weights = Tensor::empty(shares.device(), shares.shape())?;
                super::cuda::weigh_shares(&cuda.stream(), shares.cuda_operand(), weights.cuda_operand())?;
                Ok(Self(weights))
            }
            #[cfg(feature = "wgpu")]
            Handle::Wgpu(gpu) => {
                let weights = Tensor::empty(shares.device(), shares.shape())?;
                gpu.record(|recorder| super::wgpu::weigh_shares(recorder, shares.operand(), weights.operand()))?;
                Ok(Self(weights))
            }
            _ => {
                let mut weights = vec![0; rows * vocabulary];
                let from = shares.host().as_slice().expect("contiguous").chunks(vocabulary);
                for (row, (shares, weights)) in from.zip(weights.chunks_mut(vocabulary)).enumerate() {
                    integer::weights_of_shares(shares, weights).ok_or_else(|| {
                        let got = format!("negative, not finite or all 0 in row {row}");
                        Error::value(OP, "shares", got, "finite numbers, none negative and one above 0")
                    })?;
                }
                Ok(Self(Tensor::from_vec(shares.device(), shares.shape(), weights)?))
            }
        }
    }

    /// Every token alike.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has no room.
    pub fn uniform(device: &Device, rows: usize, vocabulary: usize) -> Result<Self> {
        Self::from_tensor(Tensor::from_vec(device, &[rows, vocabulary], vec![1; rows * vocabulary])?)
    }

    /// One token each, for certain.
    ///
    /// # Errors
    /// [`Error::Value`] if a token is outside the vocabulary; [`Error::Device`] if the device has no room.
    pub fn certain(device: &Device, tokens: &[u32], vocabulary: usize) -> Result<Self> {
        let mut weights = vec![0; tokens.len() * vocabulary];
        for (row, token) in weights.chunks_mut(vocabulary.max(1)).zip(tokens) {
            let weight = row.get_mut(*token as usize);
            *weight.ok_or_else(|| Error::value("weights", "tokens", token, format!("tokens below {vocabulary}")))? = 1;
        }
        Self::from_tensor(Tensor::from_vec(device, &[tokens.len(), vocabulary], weights)?)
    }

    /// Weights that something else made: each must be at most 2^30, which is not checked.
    ///
    /// # Errors
    /// [`Error::Shape`] if the tensor has not two axes, an empty vocabulary or one above 2^18.
    pub fn from_tensor(weights: Tensor<u32>) -> Result<Self> {
        match *weights.shape() {
            [_, vocabulary] if (1..=MAX_VOCABULARY).contains(&vocabulary) => Ok(Self(weights.contiguous()?)),
            _ => {
                let expected = format!("[rows, vocabulary] with a vocabulary of 1 to {MAX_VOCABULARY}");
                Err(Error::shape("weights", "tensor", weights.shape(), expected))
            }
        }
    }

    /// The integers, contiguous.
    #[must_use]
    pub fn tensor(&self) -> &Tensor<u32> {
        &self.0
    }

    /// Rows and vocabulary.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        let shape = self.0.shape();
        [shape[0], shape[1]]
    }

    /// `count` rows from `start` on, without a copy.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are not all there.
    pub fn rows(&self, start: usize, count: usize) -> Result<Self> {
        Ok(Self(self.0.narrow(0, start, count)?))
    }

    /// The rows in host memory.
    pub(crate) fn host_rows(&self) -> std::slice::Chunks<'_, u32> {
        self.0.host().as_slice().expect("contiguous").chunks(self.shape()[1])
    }
}

/// Guidance by a prediction without the condition.
#[derive(Debug, Clone, Copy)]
pub struct Guide<'a, T: Float> {
    /// Of the shape of the logits that it guides.
    pub uncond: &'a Tensor<T>,
    /// How strong.
    pub scale: f32,
    /// What the scale means.
    pub kind: Guidance,
}

/// The weights of each row of logits, under guidance and a filter: what [`super::sample`] draws from.
///
/// | operand                   | shape                | element        | layout |
/// |---------------------------|----------------------|----------------|--------|
/// | `logits`, `guide.uncond`  | `[rows, vocabulary]` | f32, f16, bf16 | any    |
///
/// Guidance is computed in f32 as [`super::guide`] has it, and not rounded to a half type before the filter.
///
/// # Errors
/// As [`super::sample`]; [`Error::Shape`] if `uncond` has another shape, [`Error::Place`] if it is elsewhere. On a GPU
/// a row that cannot be drawn from becomes all 0.
pub fn weigh<T: Float>(logits: &Tensor<T>, guide: Option<Guide<'_, T>>, filter: &Filter) -> Result<Weights> {
    const OP: &str = "weigh";
    let [_, vocabulary] = check_logits(OP, "logits", logits)?;
    filter.check(OP)?;
    if let Some(guide) = guide {
        logits.device().check_same(OP, "uncond", guide.uncond.device())?;
        if guide.uncond.shape() != logits.shape() {
            let expected = format!("{:?}, as the logits have", logits.shape());
            return Err(Error::shape(OP, "uncond", guide.uncond.shape(), expected));
        }
        if !guide.scale.is_finite() {
            return Err(Error::value(OP, "scale", guide.scale, "a finite number"));
        }
    }
    let plan = Plan::new(filter);
    let logits = logits.contiguous()?;
    let uncond = guide.map(|guide| guide.uncond.contiguous()).transpose()?;
    let guide = guide.zip(uncond.as_ref()).map(|(guide, uncond)| (uncond, guide.scale, guide.kind));
    match logits.device().handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let weights = Tensor::empty(logits.device(), logits.shape())?;
            let guide = guide.map(|(uncond, scale, kind)| (uncond.cuda_operand(), scale, kind));
            super::cuda::weigh(&cuda.stream(), logits.cuda_operand(), guide, plan, weights.cuda_operand())?;
            Ok(Weights(weights))
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let weights = Tensor::empty(logits.device(), logits.shape())?;
            let guide = guide.map(|(uncond, scale, kind)| (uncond.operand(), scale, kind));
            gpu.record(|recorder| super::wgpu::weigh(recorder, logits.operand(), guide, plan, weights.operand()))?;
            Ok(Weights(weights))
        }
        _ => {
            let cond = logits.host().as_slice().expect("contiguous");
            let guide = guide.map(|(uncond, scale, kind)| (uncond.host().as_slice().expect("contiguous"), scale, kind));
            let rows = cpu_rows(logits.device(), logits.shape()[0], logits.elements(), |row: &mut Row, index| {
                let from = index * vocabulary..(index + 1) * vocabulary;
                let mut wide: Vec<f32> = cond[from.clone()].iter().map(|logit| logit.to_f32()).collect();
                if let Some((uncond, scale, kind)) = guide {
                    for (cond, uncond) in wide.iter_mut().zip(&uncond[from]) {
                        *cond = kind.guided(*cond, uncond.to_f32(), scale);
                    }
                }
                row.fill(OP, index, &wide, plan)?;
                Ok(row.weights.clone())
            })?;
            Ok(Weights(Tensor::from_vec(logits.device(), logits.shape(), rows.concat())?))
        }
    }
}

/// Draws one token per row: the first, in index order, whose cumulative weight exceeds the drawn share of the whole.
///
/// # Errors
/// [`Error::Shape`] if there is not one draw per row; [`Error::Value`] if a given number is outside [0, 1) or, on host
/// devices, a row is all 0. On a GPU the token of such a row is `u32::MAX`.
pub fn draw(weights: &Weights, draws: &Draws) -> Result<Tensor<u32>> {
    const OP: &str = "draw";
    let device = weights.0.device();
    let [rows, _] = weights.shape();
    let fractions = draws.fractions(OP, device, rows)?;
    match device.handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let y = Tensor::empty(device, &[rows])?;
            let fractions = fractions.cuda_operand();
            super::cuda::draw(&cuda.stream(), weights.0.cuda_operand(), fractions, y.cuda_operand())?;
            Ok(y)
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let y = Tensor::empty(device, &[rows])?;
            gpu.record(|recorder| super::wgpu::draw(recorder, weights.0.operand(), fractions.operand(), y.operand()))?;
            Ok(y)
        }
        _ => {
            let fractions = fractions.host().as_slice().expect("contiguous");
            let drawn = weights.host_rows().zip(fractions).map(|(row, fraction)| integer::draw(row, *fraction));
            Tensor::from_vec(device, &[rows], found(OP, drawn)?)
        }
    }
}

/// Draws one token per row by Gumbel-max: the largest `ln weight + gumbel`, the lowest index among equals. Noise that
/// stays the same while weights change a little mostly gives the same token.
///
/// Given numbers are one per token, row after row. Philox draws one word per token from the row's stream and the
/// position.
///
/// # Errors
/// As [`draw`], with one given number per token.
///
/// # Source
/// Maddison, Tarlow and Minka 2014, arXiv:1411.0030, section 2.
pub fn race(weights: &Weights, noise: &Draws) -> Result<Tensor<u32>> {
    const OP: &str = "race";
    let device = weights.0.device();
    let [rows, vocabulary] = weights.shape();
    let given = match noise {
        Draws::Philox { streams, .. } => {
            check_draws(OP, streams.len(), rows, "one per row")?;
            Vec::new()
        }
        Draws::Uniform(uniforms) => {
            check_draws(OP, uniforms.len(), rows * vocabulary, "one per token of each row")?;
            fractions(OP, uniforms)?
        }
    };
    match device.handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let (noise, drawn) = noise_of(noise, device, [rows, vocabulary], given)?;
            let y = Tensor::empty(device, &[rows])?;
            let (from, to) = (noise.cuda_operand(), y.cuda_operand());
            super::cuda::race(&cuda.stream(), weights.0.cuda_operand(), from, drawn, to)?;
            Ok(y)
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let (noise, drawn) = noise_of(noise, device, [rows, vocabulary], given)?;
            let y = Tensor::empty(device, &[rows])?;
            gpu.record(|recorder| {
                super::wgpu::race(recorder, weights.0.operand(), noise.operand(), drawn, y.operand())
            })?;
            Ok(y)
        }
        _ => {
            let drawn = weights.host_rows().enumerate().map(|(row, weights)| match noise {
                Draws::Philox { seed, streams, position } => {
                    integer::race(weights, gumbel_words(*seed, streams[row], *position))
                }
                Draws::Uniform(_) => integer::race(weights, given[row * vocabulary..].iter().copied()),
            });
            Tensor::from_vec(device, &[rows], found(OP, drawn)?)
        }
    }
}

/// Of noise that a kernel draws; none if it is given.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
type SeedAndPosition = Option<(u64, u32)>;

/// What the kernels of [`race`] read: the given fractions, or the streams with a seed and a position.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn noise_of(
    noise: &Draws,
    device: &Device,
    [rows, vocabulary]: [usize; 2],
    given: Vec<u32>,
) -> Result<(Tensor<u32>, SeedAndPosition)> {
    Ok(match noise {
        Draws::Philox { seed, streams, position } => {
            (Tensor::from_vec(device, &[rows, 2], super::words(streams))?, Some((*seed, *position)))
        }
        Draws::Uniform(_) => (Tensor::from_vec(device, &[rows, vocabulary], given)?, None),
    })
}

/// The word of each token, in index order.
fn gumbel_words(seed: u64, stream: u64, position: u32) -> impl Iterator<Item = u32> {
    let key = [seed as u32, (seed >> 32) as u32];
    let block =
        move |block| rng::philox4x32(key, [stream as u32, (stream >> 32) as u32, position, (1u32 << 31) | block]);
    (0..1u32 << 31).flat_map(block)
}

fn found(op: &'static str, drawn: impl Iterator<Item = Option<u32>>) -> Result<Vec<u32>> {
    let token = |(row, token): (usize, Option<u32>)| {
        token.ok_or_else(|| Error::value(op, "weights", format!("all 0 in row {row}"), "one above 0"))
    };
    drawn.enumerate().map(token).collect()
}

/// [`weigh`], then [`race`]: Gumbel-max over logits.
///
/// # Errors
/// As these two.
pub fn sample_gumbel<T: Float>(logits: &Tensor<T>, filter: &Filter, noise: &Draws) -> Result<Tensor<u32>> {
    race(&weigh(logits, None, filter)?, noise)
}

/// Gumbel noise `-ln(-ln u)` of numbers in [0, 1), which are read in units of 2^-32, 0 as one of these: within 3e-7.
///
/// # Errors
/// [`Error::Value`] if a number is outside [0, 1).
pub fn gumbel(uniforms: &[f32]) -> Result<Vec<f32>> {
    let noise = |fraction: &u32| f64::from(logarithm::gumbel(*fraction)) / 16_777_216.0;
    Ok(fractions("gumbel", uniforms)?.iter().map(|fraction| noise(fraction) as f32).collect())
}
