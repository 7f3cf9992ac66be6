//! From logits to tokens: guidance, filters, draws.
//!
//! A draw is made of integers, so that from bit-equal logits every backend draws the same token: a logit becomes an
//! integer weight by one subtraction, one multiplication and an integer exponential, and all sums and comparisons
//! after that are exact. See [`integer`].

mod certainty;
#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod guidance;
pub mod integer;
pub mod logarithm;
pub mod maskgit;
pub mod reference;
mod select;
mod watermark;
mod weights;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use certainty::{Certainty, certainty, soft_guidance};
pub use guidance::{Guidance, Schedule, entropy_guidance, guide, guide_rows};
pub use watermark::{Watermark, watermark};
pub use weights::{Guide, Weights, draw, gumbel, race, sample_gumbel, weigh};

use crate::device::Handle;
use crate::{Device, Error, Float, Result, Tensor, rng};

/// Which tokens may be drawn, and how sharply. The steps apply in the order of the fields, each to the softmax over
/// what the steps before kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Filter {
    /// Logits are divided by it; 0 keeps the largest logit alone, the lowest index among equals.
    pub temperature: f32,
    /// Keeps the `top_k` largest, among equals those of lowest index; 0 is off.
    pub top_k: usize,
    /// In descending order (among equals by index) keeps a token if the probability before it is below `top_p`; 1 is
    /// off.
    pub top_p: f32,
    /// Keeps a token if its probability is at least `min_p` times the largest; 0 is off.
    pub min_p: f32,
    /// In the order of how near a token's information `-ln p` is to the entropy (among equals by index) keeps a token if
    /// the probability before it is below `typical`; 1 is off. Meister et al. 2022, arXiv:2202.00666.
    pub typical: f32,
}

impl Default for Filter {
    /// Temperature 1, everything kept.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, typical: 1.0 }
    }
}

impl Filter {
    fn check(&self, op: &'static str) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::value(op, "temperature", self.temperature, "a finite number, 0 or more"));
        }
        for (option, share) in [("top_p", self.top_p), ("typical", self.typical)] {
            if !(share > 0.0 && share <= 1.0) {
                return Err(Error::value(op, option, share, "more than 0 and at most 1"));
            }
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(Error::value(op, "min_p", self.min_p, "0 to 1"));
        }
        Ok(())
    }
}

/// Where the random numbers of a draw come from.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Draws {
    /// Philox, keyed by the seed, a stream per row (such as the picture's number) and the position in the sequence:
    /// so a batch can be split in any way.
    Philox {
        /// Of the whole run.
        seed: u64,
        /// One per row.
        streams: Vec<u64>,
        /// The same for all rows.
        position: u32,
    },
    /// Given numbers in [0, 1), one per row; for [`race`] one per token.
    Uniform(Vec<f32>),
}

impl Draws {
    /// One 32-bit fraction per row, where the draw will be.
    fn fractions(&self, op: &'static str, device: &Device, rows: usize) -> Result<Tensor<u32>> {
        match self {
            Self::Philox { seed, streams, position } => {
                check_draws(op, streams.len(), rows, "one per row")?;
                #[cfg(feature = "wgpu")]
                if let Handle::Wgpu(gpu) = device.handle() {
                    let streams = Tensor::from_vec(device, &[rows, 2], words(streams))?;
                    let y = Tensor::empty(device, &[rows])?;
                    gpu.record(|recorder| wgpu::fractions(recorder, streams.operand(), *seed, *position, y.operand()))?;
                    return Ok(y);
                }
                #[cfg(feature = "cuda")]
                if let Handle::Cuda(cuda) = device.handle() {
                    let streams = Tensor::<u32>::from_vec(device, &[rows, 2], words(streams))?;
                    let y = Tensor::<u32>::empty(device, &[rows])?;
                    let (from, to) = (streams.cuda_operand(), y.cuda_operand());
                    cuda::fractions(&cuda.stream(), *seed, from, *position, to)?;
                    return Ok(y);
                }
                let fraction = |stream: &u64| rng::word(*seed, *stream, *position, 0, 0);
                Tensor::from_vec(device, &[rows], streams.iter().map(fraction).collect())
            }
            Self::Uniform(uniforms) => {
                check_draws(op, uniforms.len(), rows, "one per row")?;
                Tensor::from_vec(device, &[rows], fractions(op, uniforms)?)
            }
        }
    }
}

/// Random words for the places of a batch of sequences, from Philox: keyed by the seed, the sequence, the position in it
/// and the round, where positions are drawn for several times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Of the whole run.
    pub seed: u64,
    /// One per sequence, such as the picture's number.
    pub streams: Vec<u64>,
    /// The position of the first place of each sequence.
    pub starts: Vec<u32>,
    /// A number for each time that places are drawn for.
    pub round: u32,
}

impl Places {
    /// Three words per place, `[3, batch, places]`, where the draws will be.
    pub(crate) fn words(&self, op: &'static str, device: &Device, batch: usize, places: usize) -> Result<Tensor<u32>> {
        check_draws(op, self.streams.len(), batch, "a stream per sequence")?;
        check_draws(op, self.starts.len(), batch, "a start per sequence")?;
        let shape = [3, batch, places];
        #[cfg(any(feature = "cuda", feature = "wgpu"))]
        let sequences = || {
            let each = |(stream, start): (&u64, &u32)| [*stream as u32, (*stream >> 32) as u32, *start];
            Tensor::from_vec(device, &[batch, 3], self.streams.iter().zip(&self.starts).flat_map(each).collect())
        };
        #[cfg(feature = "cuda")]
        if let Handle::Cuda(cuda) = device.handle() {
            let (sequences, y) = (sequences()?, Tensor::empty(device, &shape)?);
            let (from, to) = (sequences.cuda_operand(), y.cuda_operand());
            cuda::words(&cuda.stream(), from, self.seed, self.round, to)?;
            return Ok(y);
        }
        #[cfg(feature = "wgpu")]
        if let Handle::Wgpu(gpu) = device.handle() {
            let sequences = sequences()?;
            let y = Tensor::empty(device, &shape)?;
            gpu.record(|recorder| wgpu::words(recorder, sequences.operand(), self.seed, self.round, y.operand()))?;
            return Ok(y);
        }
        let mut words = Vec::with_capacity(3 * batch * places);
        for word in 0..3 {
            for (stream, start) in self.streams.iter().zip(&self.starts) {
                let position = |place| start.wrapping_add(place);
                words.extend(
                    (0..).take(places).map(|place| rng::word(self.seed, *stream, position(place), self.round, word)),
                );
            }
        }
        Tensor::from_vec(device, &shape, words)
    }
}

fn check_draws(op: &'static str, got: usize, expected: usize, why: &str) -> Result<()> {
    if got != expected {
        return Err(Error::shape(op, "draws", &[got], format!("[{expected}]: {why}")));
    }
    Ok(())
}

/// Given numbers in units of 2^-32.
pub(crate) fn fractions(op: &'static str, uniforms: &[f32]) -> Result<Vec<u32>> {
    let fraction = |uniform: &f32| {
        if !(0.0..1.0).contains(uniform) {
            return Err(Error::value(op, "draws", uniform, "numbers in [0, 1)"));
        }
        Ok(integer::fraction_of(*uniform))
    };
    uniforms.iter().map(fraction).collect()
}

/// Numbers as kernels read them: two words each, the lower first.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) fn words(numbers: &[u64]) -> Vec<u32> {
    numbers.iter().flat_map(|number| [*number as u32, (*number >> 32) as u32]).collect()
}

/// Draws one token per row: the inverse of the cumulative distribution, in index order.
///
/// | operand  | shape                | element        | layout     |
/// |----------|----------------------|----------------|------------|
/// | `logits` | `[rows, vocabulary]` | f32, f16, bf16 | any        |
/// | returned | `[rows]`             | u32            | contiguous |
///
/// `-inf` is a logit like any other: its token is never drawn. Logits are read as f32. A row with a NaN, `+inf` or no
/// finite logit is an error where values can be read without waiting; on a GPU its token is `u32::MAX`.
///
/// # Errors
/// [`Error::Shape`] if `logits` has not two axes, an empty vocabulary or one above 2^18, or if there is not one draw
/// per row; [`Error::Value`] if an option is outside its range or, on host devices, a row has a NaN, `+inf`
/// or no finite logit.
pub fn sample<T: Float>(logits: &Tensor<T>, filter: &Filter, draws: &Draws) -> Result<Tensor<u32>> {
    const OP: &str = "sample";
    let [rows, _] = check_logits(OP, "logits", logits)?;
    filter.check(OP)?;
    let logits = logits.contiguous()?;
    let fractions = draws.fractions(OP, logits.device(), rows)?;
    let plan = integer::Plan::new(filter);
    match logits.device().handle() {
        Handle::Reference => reference::sample(logits.host(), plan, fractions.host())
            .and_then(|tokens| Tensor::from_vec(logits.device(), &[rows], tokens)),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::sample(cpu, logits.host(), plan, fractions.host())
            .and_then(|tokens| Tensor::from_vec(logits.device(), &[rows], tokens)),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            if plan.typical > 0 {
                return draw(&weigh(&logits, None, filter)?, draws);
            }
            let y = Tensor::empty(logits.device(), &[rows])?;
            cuda::sample(&cuda.stream(), logits.cuda_operand(), plan, fractions.cuda_operand(), y.cuda_operand())?;
            Ok(y)
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            if plan.typical > 0 {
                return draw(&weigh(&logits, None, filter)?, draws);
            }
            let y = Tensor::empty(logits.device(), &[rows])?;
            if rows > 0 {
                gpu.record(|recorder| {
                    wgpu::sample(recorder, logits.operand(), plan, fractions.operand(), y.operand())
                })?;
            }
            Ok(y)
        }
    }
}

/// The largest logit of each row, the lowest index among equals: [`sample`] at temperature 0.
///
/// # Errors
/// As [`sample`].
pub fn argmax<T: Float>(logits: &Tensor<T>) -> Result<Tensor<u32>> {
    let rows = logits.shape().first().copied().unwrap_or(0);
    let greedy = Filter { temperature: 0.0, ..Filter::default() };
    sample(logits, &greedy, &Draws::Uniform(vec![0.0; rows]))
}

/// The distribution that [`sample`] draws from.
#[derive(Debug, Clone)]
pub struct Filtered {
    /// `[rows, vocabulary]`: probabilities after all steps, 0 where a token was not kept.
    pub probabilities: Tensor<f32>,
    /// `[rows, vocabulary]`: 1 where a token was kept, else 0.
    pub kept: Tensor<u32>,
}

/// What a filter keeps of each row, with the probabilities over that.
///
/// # Errors
/// As [`sample`]. On a GPU a row that cannot be drawn from keeps nothing.
pub fn filter<T: Float>(logits: &Tensor<T>, filter: &Filter) -> Result<Filtered> {
    const OP: &str = "filter";
    let shape = check_logits(OP, "logits", logits)?;
    filter.check(OP)?;
    let logits = logits.contiguous()?;
    let device = logits.device();
    let (probabilities, kept) = match device.handle() {
        Handle::Reference => reference::filter(logits.host(), filter)?,
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::filter(cpu, logits.host(), integer::Plan::new(filter))?,
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let (probabilities, kept) = (Tensor::empty(device, &shape)?, Tensor::empty(device, &shape)?);
            let plan = integer::Plan::new(filter);
            let (to, also_to) = (probabilities.cuda_operand(), kept.cuda_operand());
            if plan.typical > 0 {
                let weights = weigh(&logits, None, filter)?;
                cuda::shares(&cuda.stream(), weights.tensor().cuda_operand(), to, also_to)?;
            } else {
                cuda::filter(&cuda.stream(), logits.cuda_operand(), plan, to, also_to)?;
            }
            return Ok(Filtered { probabilities, kept });
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let (probabilities, kept) = (Tensor::empty(device, &shape)?, Tensor::empty(device, &shape)?);
            if filter.typical < 1.0 {
                let weights = weigh(&logits, None, filter)?;
                gpu.record(|recorder| {
                    wgpu::shares(recorder, weights.tensor().operand(), probabilities.operand(), kept.operand())
                })?;
                return Ok(Filtered { probabilities, kept });
            }
            gpu.record(|recorder| {
                let plan = integer::Plan::new(filter);
                wgpu::filter(recorder, logits.operand(), plan, probabilities.operand(), kept.operand())
            })?;
            return Ok(Filtered { probabilities, kept });
        }
    };
    Ok(Filtered {
        probabilities: Tensor::from_vec(device, &shape, probabilities)?,
        kept: Tensor::from_vec(device, &shape, kept)?,
    })
}

/// The largest vocabulary: sums of as many weights stay within 48 bits.
pub const MAX_VOCABULARY: usize = 1 << 18;

/// Calls `each` with scratch for every row, on the CPU's threads where the device has them.
pub(crate) fn cpu_rows<S: Default, R: Send>(
    device: &Device,
    rows: usize,
    elements: usize,
    each: impl Fn(&mut S, usize) -> Result<R> + Sync + Send,
) -> Result<Vec<R>> {
    let _ = (device, elements);
    #[cfg(feature = "cpu")]
    if let Handle::Cpu(cpu) = device.handle() {
        return cpu::rows(cpu, rows, elements, each);
    }
    let mut scratch = S::default();
    (0..rows).map(|row| each(&mut scratch, row)).collect()
}

pub(crate) fn check_shape(op: &'static str, operand: &'static str, got: &[usize], expected: &[usize]) -> Result<()> {
    if got != expected {
        return Err(Error::shape(op, operand, got, format!("{expected:?}, as the other operands say")));
    }
    Ok(())
}

fn check_logits<T: Float>(op: &'static str, operand: &'static str, logits: &Tensor<T>) -> Result<[usize; 2]> {
    match *logits.shape() {
        [rows, vocabulary] if (1..=MAX_VOCABULARY).contains(&vocabulary) => Ok([rows, vocabulary]),
        _ => {
            let expected = format!("[rows, vocabulary] with a vocabulary of 1 to {MAX_VOCABULARY}");
            Err(Error::shape(op, operand, logits.shape(), expected))
        }
    }
}
