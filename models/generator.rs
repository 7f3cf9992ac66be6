//! What every picture generator offers, whatever parts it is made of.

use std::ops::ControlFlow;

use smalti::sample::Filter;
use smalti::{Device, Float, Tensor};

use crate::decode::Guided;
use crate::weights::{Checkpoint, Config};
use crate::zoo::captions::CaptionFeatures;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Guidance scale on the logits: 1 is none. Each family's own convention is in its documentation.
    pub cfg: f32,
    /// 0 always takes the likeliest token.
    pub temperature: f32,
    /// Only the likeliest `top_k` tokens; 0 is off.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability, in (0, 1].
    pub top_p: f32,
    /// The same seed draws the same pictures.
    pub seed: u64,
}

impl Sampling {
    /// What is drawn from at all.
    #[must_use]
    pub fn filter(&self) -> Filter {
        let Self { temperature, top_k, top_p, .. } = *self;
        Filter { temperature, top_k, top_p, ..Filter::default() }
    }

    /// What the weights' notes say, and otherwise this. A `top_p` of 0 is none.
    #[must_use]
    pub fn noted(self, config: &Config) -> Self {
        Self {
            cfg: config.number("cfg").unwrap_or(self.cfg),
            temperature: config.number("temperature").unwrap_or(self.temperature),
            top_k: config.count("top_k").unwrap_or(self.top_k),
            top_p: config.number("top_p").filter(|top_p| *top_p > 0.0).unwrap_or(self.top_p),
            seed: self.seed,
        }
    }
}

/// Pictures and the tokens they were decoded from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Drawn {
    /// Per picture, in the order in which the generator draws them; empty for systems whose tokens are latents.
    pub tokens: Vec<Vec<u32>>,
    /// Per picture `latent_shape`; empty for systems whose tokens are codes.
    pub latents: Vec<Vec<f32>>,
    /// The shape of one picture's latents.
    pub latent_shape: Vec<usize>,
    /// Per picture `[3, height, width]`, in [-1, 1] but for overshoot; empty if the checkpoint holds no tokenizer.
    pub planes: Vec<Vec<f32>>,
}

/// A picture of which a part is drawn anew.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// `[3, height, width]` in [-1, 1], as large as what the generator draws.
    pub planes: &'a [f32],
    /// Of each pixel, row by row, whether it is drawn anew.
    pub anew: &'a [bool],
}

impl Given<'_> {
    /// The picture on a device, `[1, 3, height, width]`.
    ///
    /// # Errors
    /// [`Error::Request`] if it has another size; [`Error::Op`] if the device has no room.
    pub(crate) fn pixels<T: Float>(&self, device: &Device, [height, width]: [usize; 2]) -> Result<Tensor<T>> {
        if self.planes.len() != 3 * height * width || self.anew.len() != height * width {
            return Err(Error::Request(format!("a given picture has {height} x {width} pixels, three values each")));
        }
        let pixels = self.planes.iter().map(|value| T::from_f32(*value)).collect();
        Ok(Tensor::from_vec(device, &[1, 3, height, width], pixels)?)
    }

    /// The share of a cell's pixels that is drawn anew, of a grid over a picture of this size.
    pub(crate) fn anew_share(&self, [height, width]: [usize; 2], [rows, columns]: [usize; 2], cell: usize) -> f64 {
        let span = |at: usize, pixels: usize, cells: usize| at * pixels / cells..((at + 1) * pixels).div_ceil(cells);
        let across = span(cell % columns, width, columns);
        let down = span(cell / columns, height, rows);
        let (changed, all) = down.fold((0, 0), |(changed, all), row| {
            let row = &self.anew[row * width..][across.clone()];
            (changed + row.iter().filter(|anew| **anew).count(), all + row.len())
        });
        changed as f64 / all as f64
    }

    /// The tokens that stay, of those of all scales, whose sides grow to the picture's grid. A cell of a coarse scale stays
    /// while less than half of it is to change: what the finer scales draw is put around it. In the finest scale a cell
    /// changes if any of its pixels does.
    ///
    /// # Source
    /// Tian et al. 2024, arXiv:2404.02905, its zero-shot in-painting and editing; which share of a cell decides is ours.
    pub(crate) fn kept_of_scales(&self, size: [usize; 2], sides: &[usize], tokens: Vec<u32>) -> Vec<Option<u32>> {
        let of_scale = |side: usize| (0..side * side).map(move |cell| (side, cell));
        let stays = |(side, cell): (usize, usize)| {
            let share = self.anew_share(size, [side; 2], cell);
            if sides.last() == Some(&side) { share == 0.0 } else { share < 0.5 }
        };
        let cells = sides.iter().copied().flat_map(of_scale);
        tokens.into_iter().zip(cells).map(|(token, cell)| stays(cell).then_some(token)).collect()
    }
}

/// The tokens of some pictures, those that stay of a given one in their places; `kept` has an entry for each place of one
/// picture, or none at all.
pub(crate) fn around(tokens: Vec<u32>, kept: &[Option<u32>]) -> Vec<u32> {
    if kept.is_empty() {
        return tokens;
    }
    tokens.into_iter().zip(kept.iter().cycle()).map(|(drawn, kept)| kept.unwrap_or(drawn)).collect()
}

/// [`around`] of tokens `[pictures, places]` on their device.
pub(crate) fn drawn_around(drawn: Tensor<u32>, kept: &[Option<u32>]) -> Result<Tensor<u32>> {
    if kept.is_empty() {
        return Ok(drawn);
    }
    Ok(Tensor::from_vec(drawn.device(), drawn.shape(), around(drawn.to_vec()?, kept))?)
}

/// The cells of a step without those that stay of a given picture.
pub(crate) fn drawn_cells(cells: Vec<usize>, kept: &[Option<u32>]) -> Vec<usize> {
    cells.into_iter().filter(|cell| kept.get(*cell).is_none_or(Option::is_none)).collect()
}

/// What a call of a generator is to draw.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// One picture each, of this class or caption.
    pub labels: &'a [u32],
    /// Which picture of the run the first one is.
    pub first_picture: u64,
    /// How tokens are drawn.
    pub sampling: &'a Sampling,
    /// The picture of which a part is drawn anew, if so.
    pub given: Option<Given<'a>>,
}

/// What a step of a generation shows.
pub struct Seen<'a> {
    /// Tokens settled so far, over the whole batch.
    pub settled: usize,
    /// Tokens in all.
    pub all: usize,
    /// The first picture of the batch that the step is of: it may be of one alone.
    pub first: usize,
    /// Of each picture that the step is of, the cells that it settled, counted row by row, grid after grid of
    /// [`About::grids`]; empty where tokens do not settle cell by cell.
    pub cells: &'a [Vec<usize>],
    /// The pictures as they are now, as [`Drawn::planes`]; empty where there are none before the end.
    pub pictures: &'a dyn Fn() -> Result<Vec<Vec<f32>>>,
}

impl<'a> Seen<'a> {
    /// A step of a whole batch, of whose pictures' `places` each so many have settled.
    pub(crate) fn of_batch(
        [settled, places]: [usize; 2],
        cells: &'a [Vec<usize>],
        pictures: &'a dyn Fn() -> Result<Vec<Vec<f32>>>,
    ) -> Self {
        let batch = cells.len();
        Self { settled: settled * batch, all: places * batch, first: 0, cells, pictures }
    }
}

/// Sees each step of a generation.
pub type Watch<'a> = &'a mut dyn FnMut(Seen<'_>) -> Result<()>;

/// That a system which draws whole pictures was given none.
pub(crate) fn whole_only(system: &str, given: Option<Given<'_>>) -> Result<()> {
    match given {
        None => Ok(()),
        Some(_) => Err(Error::Request(format!("{system} draws whole pictures only"))),
    }
}

/// What a generator draws.
#[derive(Debug, Clone)]
pub struct About<'a> {
    /// The system's name, as in a dump's metadata.
    pub system: &'static str,
    /// Class names in label order; numbers as text where the weights name none, or of captions.
    pub classes: &'a [String],
    /// How the weights' authors sample.
    pub sampling: Sampling,
    /// How many tokens are drawn for one picture.
    pub tokens_per_picture: usize,
    /// Whether the checkpoint holds the tokenizer, without which tokens or latents are drawn but no pixels.
    pub has_tokenizer: bool,
    /// Height and width in pixels; in cells without a tokenizer.
    pub picture_size: [usize; 2],
    /// How many frames stand side by side in a picture: more than 1 in a video; 1 too where only the tokenizer, which is
    /// not there, would tell.
    pub frames: usize,
    /// Rows and columns of the grids whose cells are tokens, one for each scale or frame; none where tokens are no cells.
    pub grids: Vec<[usize; 2]>,
}

/// A picture generator with its weights on a device, given classes or captions.
pub trait Generator {
    /// What there is to know before anything is drawn.
    fn about(&self) -> About<'_>;
    /// Decodes another way than the system's own from now on, by one of [`NAMES`](crate::decode::speculative::NAMES), where a network is
    /// causal. `second` are the weights of a smaller network of the same system, which drafts.
    ///
    /// # Errors
    /// [`Error::Request`] if the system has no such decoder, or the second network does not fit; [`Error::Weights`] if its
    /// weights do not; [`Error::Op`] if the device has no room.
    fn use_decoder(&mut self, name: &str, _second: Option<&Checkpoint>) -> Result<()> {
        Err(Error::Request(format!("{} has no decoder \"{name}\", only its own", self.about().system)))
    }
    /// Guides another way than plainly from now on, where one token is drawn after another.
    ///
    /// # Errors
    /// [`Error::Request`] if the system does not, or drafts are tested, which takes scales that are known beforehand.
    fn use_guidance(&mut self, guided: Guided) -> Result<()> {
        match guided {
            Guided::Plain => Ok(()),
            _ => Err(Error::Request(format!("{} has no guidance but its own", self.about().system))),
        }
    }
    /// Draws scales of these sides from now on, or pictures of one; given one side, a system of scales chooses those
    /// before it.
    ///
    /// # Errors
    /// [`Error::Request`] if the system draws no grid but its own, or not this one; [`Error::Op`] if the device has no room.
    fn use_grids(&mut self, _sides: &[usize]) -> Result<()> {
        Err(Error::Request(format!("{} draws no grid but its own", self.about().system)))
    }
    /// Draws from these captions from now on; [`About::classes`] are then their numbers.
    ///
    /// # Errors
    /// [`Error::Request`] if the system draws from classes, or the features are not those of its text encoder.
    fn use_captions(&mut self, _captions: CaptionFeatures) -> Result<()> {
        Err(Error::Request(format!("{} draws from classes, not from captions", self.about().system)))
    }
    /// Height and width of the control picture that it draws under, if it does.
    fn control_size(&self) -> Option<[usize; 2]> {
        None
    }
    /// Draws under this control picture from now on, `[3, height, width]` in [-1, 1].
    ///
    /// # Errors
    /// [`Error::Request`] if the system takes none or it has another size than [`Generator::control_size`].
    fn use_control(&mut self, _planes: &[f32]) -> Result<()> {
        Err(Error::Request(format!("{} takes no control picture", self.about().system)))
    }

    /// Draws one picture per label. Picture `i` of the call is picture `first_picture + i` of the run: that number
    /// and the seed alone choose its random numbers, so that batches and shards do not change tokens.
    ///
    /// `progress` is called after each step with the tokens settled so far and in all (over the whole batch); when it
    /// breaks, the call ends with [`Error::Interrupted`].
    ///
    /// # Errors
    /// [`Error::Op`] if an op fails (a wrong option, a lost device); [`Error::Interrupted`].
    fn draw(
        &self,
        labels: &[u32],
        first_picture: u64,
        sampling: &Sampling,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Drawn> {
        self.draw_watched(Wanted { labels, first_picture, sampling, given: None }, &mut |seen| {
            if progress(seen.settled, seen.all).is_break() { Err(Error::Interrupted) } else { Ok(()) }
        })
    }

    /// Draws a part of a given picture anew, once per label: inpainting, outpainting and, with another class,
    /// class-conditional editing. The rest is kept as far as tokens can hold it. Random numbers and `progress` are as
    /// for [`Generator::draw`].
    ///
    /// # Errors
    /// [`Error::Request`] if this system does not, its checkpoint has no encoder, or the picture has another size; as
    /// [`Generator::draw`].
    fn fill(
        &self,
        given: Given<'_>,
        labels: &[u32],
        first_picture: u64,
        sampling: &Sampling,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Drawn> {
        self.draw_watched(Wanted { labels, first_picture, sampling, given: Some(given) }, &mut |seen| {
            if progress(seen.settled, seen.all).is_break() { Err(Error::Interrupted) } else { Ok(()) }
        })
    }

    /// [`Generator::draw`], or [`Generator::fill`] where a picture is given; `watch` sees each step, and an error of it
    /// ends the call.
    ///
    /// # Errors
    /// As [`Generator::draw`], [`Generator::fill`] and `watch`.
    fn draw_watched(&self, wanted: Wanted<'_>, watch: Watch<'_>) -> Result<Drawn>;

    /// Whether [`Generator::fill`] works with this checkpoint.
    fn can_fill(&self) -> bool {
        false
    }
}

/// What can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An op refused its operands or its device failed.
    #[error(transparent)]
    Op(#[from] smalti::Error),
    /// A file of weights or a dump cannot be read, or does not hold what was asked for.
    #[error("{0}")]
    Weights(String),
    /// A request that this model or file cannot serve.
    #[error("{0}")]
    Request(String),
    /// The caller broke off the work.
    #[error("interrupted")]
    Interrupted,
}

/// [`std::result::Result`] with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
