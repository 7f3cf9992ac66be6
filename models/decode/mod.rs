//! From logits to settled places: guidance and draws, the same for every order.

pub mod cascade;
mod chance;
mod groups;
mod sequential;
pub mod speculative;

use std::ops::ControlFlow;

use smalti::sample::{self, Draws, Guidance, Schedule};
use smalti::{Element, Float, Tensor, copy, rng};

use crate::weights::Config;
use crate::{Error, Result, Sampling};

pub use chance::{Chance, OfPlaces};
pub use groups::in_groups;
pub use sequential::{Network, sequential};

/// What one step of a generation has settled.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a, T: Element> {
    /// Places of each picture settled so far.
    pub settled: usize,
    /// The guided logits that it drew from, `[batch, places of the step, vocabulary]`.
    pub logits: &'a Tensor<T>,
    /// What it drew, `[batch, places of the step]`.
    pub tokens: &'a Tensor<u32>,
    /// Which cells these are.
    pub cells: Cells<'a>,
    /// What a decoder would be fed now, `[batch, channels, side, side]`, where the codes of scales add up.
    pub latents: Option<&'a Tensor<T>>,
}

/// The cells of a step, counted row by row, or scale after scale.
#[derive(Debug, Clone, Copy)]
pub enum Cells<'a> {
    /// The next ones from here on.
    From(usize),
    /// The same in every picture.
    Same(&'a [usize]),
    /// Those of each picture.
    Each(&'a [Vec<usize>]),
}

impl Cells<'_> {
    /// Those of one picture of the batch, of a step of `count` places.
    #[must_use]
    pub fn of(&self, picture: usize, count: usize) -> Vec<usize> {
        match self {
            Self::From(first) => (*first..first + count).collect(),
            Self::Same(cells) => cells.to_vec(),
            Self::Each(cells) => cells[picture].clone(),
        }
    }
}

/// The cell that each place of a picture is, in decoding order.
#[derive(Debug, Clone, Copy)]
pub enum Order<'a> {
    /// So many cells row by row, or codes that are no cells.
    Raster(usize),
    /// These cells, each once.
    Cells(&'a [usize]),
}

impl<'a> Order<'a> {
    /// How many places there are.
    #[must_use]
    pub fn places(self) -> usize {
        match self {
            Self::Raster(places) => places,
            Self::Cells(cells) => cells.len(),
        }
    }

    /// The cells of `count` places from `first` on.
    #[must_use]
    pub fn cells(self, first: usize, count: usize) -> Cells<'a> {
        match self {
            Self::Raster(_) => Cells::From(first),
            Self::Cells(cells) => Cells::Same(&cells[first..first + count]),
        }
    }

    /// Tokens `[batch, places]` in decoding order, put into their cells.
    ///
    /// # Errors
    /// If the device fails.
    pub fn in_raster(self, tokens: Tensor<u32>) -> Result<Tensor<u32>> {
        match self {
            Self::Raster(_) => Ok(tokens),
            Self::Cells(cells) => to_raster(&tokens, cells),
        }
    }
}

/// Called after each step.
pub type Steps<'a, T> = &'a mut dyn FnMut(Step<'_, T>) -> ControlFlow<()>;

/// Where the random numbers of a generation come from. Either way a place of a picture has its own, so that splitting
/// a batch or a step changes no token.
#[derive(Debug, Clone, Copy)]
pub enum Random<'a> {
    /// Philox, keyed by the seed, the picture's number in the run and the place.
    Philox {
        /// The number of the first picture of the batch.
        first_picture: u64,
    },
    /// As dumps record them.
    Recorded {
        /// Numbers in [0, 1), `[batch, places]` in decoding order.
        uniforms: &'a [f32],
        /// The cells in decoding order, `[places]` or `[batch, places]`, for systems whose order is random.
        orders: &'a [u32],
    },
}

/// Runs a generation, and `each` after its steps; an error of that ends it.
///
/// # Errors
/// As `each` and `generate`.
pub fn watched<T: Float, M>(
    mut each: impl FnMut(Step<'_, T>) -> Result<()>,
    generate: impl FnOnce(Steps<'_, T>) -> Result<M>,
) -> Result<M> {
    let mut failed = None;
    let made = generate(&mut |step| match each(step) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    });
    made.map_err(|error| failed.unwrap_or(error))
}

/// What guidance follows, besides its scale, where one token is drawn after another ([`sequential`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Guided {
    /// Nothing: `uncond + scale (cond - uncond)`.
    #[default]
    Plain,
    /// How unsure the conditional prediction of the token is ([`sample::entropy_guidance`]).
    ByEntropy,
    /// How unsure the tokens before were when they were drawn: their values fade in what the rows without a condition attend
    /// to ([`sample::soft_guidance`], SoftCFG).
    Soft,
}

impl Guided {
    /// All of them, by the names that [`Guided::named`] takes.
    pub const NAMES: [(&'static str, Self); 3] =
        [("plain", Self::Plain), ("entropy", Self::ByEntropy), ("soft", Self::Soft)];

    /// The one of this name.
    ///
    /// # Errors
    /// [`Error::Request`] that names all, if there is none.
    pub fn named(name: &str) -> Result<Self> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, guided)| *guided);
        known.ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name).join(", ");
            Error::Request(format!("no guidance \"{name}\", only {names}"))
        })
    }
}

/// Draws the tokens of `batch` pictures of `places` places each.
#[derive(Debug, Clone, Copy)]
pub struct Sampler<'a> {
    /// Temperature, filters, seed. Guidance comes before, in [`guide`].
    pub sampling: Sampling,
    /// Where the random numbers come from.
    pub random: Random<'a>,
    /// Places of one picture.
    pub places: usize,
    /// What guidance follows; only [`sequential`] looks at it.
    pub guided: Guided,
}

impl<'a> Sampler<'a> {
    /// With guidance that follows nothing.
    #[must_use]
    pub fn new(sampling: Sampling, random: Random<'a>, places: usize) -> Self {
        Self { sampling, random, places, guided: Guided::Plain }
    }
}

impl Sampler<'_> {
    /// One token for each row of `logits` (`[batch, count, vocabulary]`), which are the places from `first` on in
    /// decoding order: `[batch, count]`.
    ///
    /// # Errors
    /// [`Error::Op`] if an option is outside its range, a row has no finite logit, or the device fails.
    pub fn draw<T: Float>(&self, logits: &Tensor<T>, first: usize) -> Result<Tensor<u32>> {
        let &[batch, count, vocabulary] = logits.shape() else {
            return Err(Error::Request(format!("logits of shape {:?}", logits.shape())));
        };
        let draws = match self.random {
            Random::Philox { first_picture } => {
                let seed = self.sampling.seed;
                let stream = |picture: usize, place: usize| ((first_picture + picture as u64) << 24) | place as u64;
                let streams = (0..batch).flat_map(|picture| (first..first + count).map(move |at| stream(picture, at)));
                Draws::Philox { seed, streams: streams.collect(), position: 0 }
            }
            Random::Recorded { uniforms, .. } => {
                let rows = uniforms.chunks(self.places).take(batch).flat_map(|row| &row[first..first + count]);
                Draws::Uniform(rows.copied().collect())
            }
        };
        let tokens = sample::sample(&logits.reshape(&[batch * count, vocabulary])?, &self.sampling.filter(), &draws);
        let tokens = tokens.map_err(|error| at_tokens(error, first, count))?;
        Ok(tokens.reshape(&[batch, count])?)
    }
}

/// The error of drawing `count` tokens of each picture from token `first` on, so that bad logits name theirs.
pub(crate) fn at_tokens(error: smalti::Error, first: usize, count: usize) -> Error {
    match error {
        smalti::Error::Value { operand: "logits", .. } if count == 1 => {
            Error::Request(format!("token {first}: {error}"))
        }
        smalti::Error::Value { operand: "logits", .. } => {
            Error::Request(format!("token {first} or one of the {} after it: {error}", count - 1))
        }
        other => Error::Op(other),
    }
}

impl Sampler<'_> {
    /// The random order of the cells of one picture of the batch, or, for `None`, of all pictures of the run.
    #[must_use]
    pub fn order(&self, picture: Option<usize>) -> Vec<usize> {
        self.recorded_order(picture).unwrap_or_else(|| {
            let mut cells: Vec<_> = (0..self.places).collect();
            cells.sort_by_key(|cell| (self.word(picture, *cell), *cell));
            cells
        })
    }

    /// The order that a dump records; none if it records none, or one for fewer places.
    #[must_use]
    pub fn recorded_order(&self, picture: Option<usize>) -> Option<Vec<usize>> {
        let Random::Recorded { orders, .. } = self.random else { return None };
        let first = picture.filter(|_| orders.len() > self.places).unwrap_or(0) * self.places;
        Some(orders.get(first..first + self.places)?.iter().map(|cell| *cell as usize).collect())
    }

    /// Random bits for orders: number `index` of one picture of the batch, or of the whole run.
    #[must_use]
    pub fn word(&self, picture: Option<usize>, index: usize) -> u64 {
        let first_picture = match self.random {
            Random::Philox { first_picture } => first_picture,
            Random::Recorded { .. } => 0,
        };
        let seed = self.sampling.seed;
        let stream = picture.map_or(u64::MAX, |picture| first_picture + picture as u64);
        let counter = [stream as u32, (stream >> 32) as u32, index as u32, ORDER];
        let [high, low, ..] = rng::philox4x32([seed as u32, (seed >> 32) as u32], counter);
        u64::from(high) << 32 | u64::from(low)
    }
}

/// Gives as many standard normal numbers as rows times channels, row by row.
pub type Normals<'a> = dyn FnMut(usize, usize) -> Result<Vec<f64>> + 'a;

/// Normal numbers for cells (picture of the batch, cell), each its own: `[cells, channels]`. `round` tells one call
/// from another.
#[must_use]
pub fn normals_of_places(sampler: &Sampler<'_>, cells: &[(usize, usize)], channels: usize, round: usize) -> Vec<f64> {
    let unit = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let normal = |picture: usize, cell: usize, channel: usize| {
        let index = ((round * sampler.places + cell) * channels + channel) * 2;
        let [radius, angle] = [index, index + 1].map(|index| unit(sampler.word(Some(picture), index)));
        // Box and Muller.
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    };
    let each =
        |(picture, cell): &(usize, usize)| (0..channels).map(|channel| normal(*picture, *cell, channel)).collect();
    cells.iter().flat_map(|place: &(usize, usize)| -> Vec<f64> { each(place) }).collect()
}

/// The last word of the counters that orders are drawn with; draws of tokens have 0 there.
const ORDER: u32 = 1;

/// How the guidance scale grows over the steps, as the weights' notes have it: `cfg_schedule` is constant, or else linear.
pub(crate) fn guidance_over_steps(config: &Config) -> Schedule {
    if config.text("cfg_schedule") == Some("constant") { Schedule::Constant } else { Schedule::Linear }
}

/// Guides logits whose first axis holds `batch` conditional rows, then, if guidance is on, as many unconditional ones.
///
/// # Errors
/// If the device fails.
pub fn guide<T: Float>(logits: &Tensor<T>, batch: usize, scale: f32, kind: Guidance) -> Result<Tensor<T>> {
    let with = logits.narrow(0, 0, batch)?;
    if logits.shape()[0] == batch {
        return Ok(with);
    }
    let without = logits.narrow(0, batch, batch)?;
    Ok(sample::guide(&with, &without, scale, kind)?)
}

/// `x` once more below itself along the first axis: what both halves of a guided batch are fed.
///
/// # Errors
/// If the device has no room.
pub fn twice<T: Element>(x: &Tensor<T>) -> Result<Tensor<T>> {
    concatenate(&[x, x], 0)
}

/// Tensors one after the other along an axis.
///
/// # Errors
/// If their other axes differ or the device has no room.
pub fn concatenate<T: Element>(parts: &[&Tensor<T>], axis: usize) -> Result<Tensor<T>> {
    let Some(first) = parts.first() else {
        return Err(Error::Request("nothing to concatenate".to_owned()));
    };
    let mut shape = first.shape().to_vec();
    shape[axis] = parts.iter().map(|part| part.shape()[axis]).sum();
    let mut whole = Tensor::zeros(first.device(), &shape)?;
    let mut start = 0;
    for part in parts {
        copy::copy_into_slice(part, &mut whole, axis, start)?;
        start += part.shape()[axis];
    }
    Ok(whole)
}

/// Tokens `[batch, places]` in decoding order, put into the cells `cells[place]`.
///
/// # Errors
/// If the device fails.
pub fn to_raster(tokens: &Tensor<u32>, cells: &[usize]) -> Result<Tensor<u32>> {
    rearranged(tokens, |from, to| from.iter().zip(cells).for_each(|(token, cell)| to[*cell] = *token))
}

/// Tokens `[batch, places]` in raster order, in the order of `cells`.
///
/// # Errors
/// If the device fails.
pub fn from_raster(tokens: &Tensor<u32>, cells: &[usize]) -> Result<Tensor<u32>> {
    rearranged(tokens, |from, to| to.iter_mut().zip(cells).for_each(|(to, cell)| *to = from[*cell]))
}

fn rearranged(tokens: &Tensor<u32>, rearrange: impl Fn(&[u32], &mut [u32])) -> Result<Tensor<u32>> {
    let places = tokens.shape().last().copied().unwrap_or(0).max(1);
    let from = tokens.to_vec()?;
    let mut to = vec![0; from.len()];
    from.chunks(places).zip(to.chunks_mut(places)).for_each(|(from, to)| rearrange(from, to));
    Ok(Tensor::from_vec(tokens.device(), tokens.shape(), to)?)
}
