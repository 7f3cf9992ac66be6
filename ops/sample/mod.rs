//! From logits to tokens: guidance, filters, draws.
//!
//! A draw is made of integers, so that from bit-equal logits every backend draws the same token: a logit becomes an
//! integer weight by one subtraction, one multiplication and an integer exponential, and all sums and comparisons
//! after that are exact. See [`integer`].

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod integer;
pub mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::device::Handle;
use crate::{Error, Float, Result, Tensor, elementwise, rng};

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
}

impl Default for Filter {
    /// Temperature 1, everything kept.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }
}

impl Filter {
    fn check(&self, op: &'static str) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::value(op, "temperature", self.temperature, "a finite number, 0 or more"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::value(op, "top_p", self.top_p, "more than 0 and at most 1"));
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
    /// Given numbers in [0, 1), one per row.
    Uniform(Vec<f32>),
}

impl Draws {
    /// One 32-bit fraction per row.
    fn fractions(&self, op: &'static str, rows: usize) -> Result<Vec<u32>> {
        let count = match self {
            Self::Philox { streams, .. } => streams.len(),
            Self::Uniform(uniforms) => uniforms.len(),
        };
        if count != rows {
            return Err(Error::shape(op, "draws", &[count], format!("[{rows}]: one per row of the logits")));
        }
        match self {
            Self::Philox { seed, streams, position } => {
                let key = [*seed as u32, (*seed >> 32) as u32];
                let word =
                    |stream: &u64| rng::philox4x32(key, [*stream as u32, (*stream >> 32) as u32, *position, 0])[0];
                Ok(streams.iter().map(word).collect())
            }
            Self::Uniform(uniforms) => uniforms
                .iter()
                .map(|uniform| {
                    if !(0.0..1.0).contains(uniform) {
                        return Err(Error::value(op, "draws", uniform, "numbers in [0, 1)"));
                    }
                    Ok((f64::from(*uniform) * 4_294_967_296.0) as u32)
                })
                .collect(),
        }
    }
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
    let [rows, _] = check_logits(OP, logits)?;
    filter.check(OP)?;
    let fractions = draws.fractions(OP, rows)?;
    let logits = logits.contiguous()?;
    let plan = integer::Plan::new(filter);
    match logits.device().handle() {
        Handle::Reference => reference::sample(logits.host(), plan, &fractions)
            .and_then(|tokens| Tensor::from_vec(logits.device(), &[rows], tokens)),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::sample(cpu, logits.host(), plan, &fractions)
            .and_then(|tokens| Tensor::from_vec(logits.device(), &[rows], tokens)),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let fractions = match draws {
                Draws::Philox { seed, streams, position } => {
                    let words = streams.iter().flat_map(|stream| [*stream as u32, (*stream >> 32) as u32]).collect();
                    let streams = Tensor::<u32>::from_vec(logits.device(), &[rows, 2], words)?;
                    let fractions = Tensor::<u32>::empty(logits.device(), &[rows])?;
                    let (streams, words) = (streams.cuda_operand(), fractions.cuda_operand());
                    cuda::fractions(&cuda.stream(), *seed, streams, *position, words)?;
                    fractions
                }
                Draws::Uniform(_) => Tensor::from_vec(logits.device(), &[rows], fractions)?,
            };
            let y = Tensor::empty(logits.device(), &[rows])?;
            cuda::sample(&cuda.stream(), logits.cuda_operand(), plan, fractions.cuda_operand(), y.cuda_operand())?;
            Ok(y)
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let fractions = Tensor::from_vec(logits.device(), &[rows], fractions)?;
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
    let shape = check_logits(OP, logits)?;
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
            let outputs = (probabilities.cuda_operand(), kept.cuda_operand());
            cuda::filter(&cuda.stream(), logits.cuda_operand(), plan, outputs.0, outputs.1)?;
            return Ok(Filtered { probabilities, kept });
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let (probabilities, kept) = (Tensor::empty(device, &shape)?, Tensor::empty(device, &shape)?);
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

/// The largest vocabulary: sums of as many weights stay within 48 bits.
pub const MAX_VOCABULARY: usize = 1 << 18;

fn check_logits<T: Float>(op: &'static str, logits: &Tensor<T>) -> Result<[usize; 2]> {
    match *logits.shape() {
        [rows, vocabulary] if (1..=MAX_VOCABULARY).contains(&vocabulary) => Ok([rows, vocabulary]),
        _ => {
            let expected = format!("[rows, vocabulary] with a vocabulary of 1 to {MAX_VOCABULARY}");
            Err(Error::shape(op, "logits", logits.shape(), expected))
        }
    }
}
