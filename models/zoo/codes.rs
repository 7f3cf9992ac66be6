//! What the systems share that draw one code for each cell of a grid, given a class.
//!
//! The file is long because it makes a [`Generator`] of all these systems at once: it chooses among four tokenizers,
//! keeps tokens of given pictures, hands out drafts picture by picture, and decodes previews of what is settled so far.

use std::marker::PhantomData;
use std::ops::ControlFlow;

use smalti::{Device, Float, Tensor, Weight, elementwise};

use super::captions::CaptionFeatures;
use super::class_names;
use crate::decode::speculative::Speculation;
use crate::decode::{Guided, Random, Sampler, Step, Steps, concatenate, normals_of_places, watched};
use crate::generator::whole_only;
use crate::tokenizer::flow::FlowTokenizer;
use crate::tokenizer::maskgit::MaskGitVqGan;
use crate::tokenizer::video::VideoTokenizer;
use crate::tokenizer::vq::VqTokenizer;
use crate::weights::{Checkpoint, Config, Loader, Notes};
use crate::{About, Drawn, Error, Generator, Given, Result, Sampling, Seen, Wanted, Watch};

/// What turns codes into pixels.
#[expect(clippy::large_enum_variant, reason = "a model holds one, so its size does not matter")]
enum Tokenizer {
    LlamaGen(VqTokenizer),
    MaskGit(MaskGitVqGan),
    Video(VideoTokenizer),
    Flow(FlowTokenizer),
}

/// The parts around the network: names, defaults, tokenizer.
pub struct Codes {
    /// Where the weights are.
    pub device: Device,
    /// Frames, rows and columns of cells; a picture is one frame.
    pub grid: [usize; 3],
    names: Vec<String>,
    pub(super) sampling: Sampling,
    tokenizer: Option<Tokenizer>,
}

impl Codes {
    /// Reads what the checkpoint says besides its network: `latent_shape` or `block_size`, how to sample, class names, and the tokenizer
    /// under `vq.` if it is there.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(checkpoint: &Checkpoint, root: &Loader<'_>, config: &Config, classes: usize) -> Result<Self> {
        let side = config.count("block_size").or_else(|| config.count("image_seq_len")).unwrap_or(256).isqrt();
        // A scale, or where it starts and ends.
        let cfg = ["cfg", "guidance_scale", "w"].iter().find_map(|key| config.number(key));
        let cfg = cfg.or_else(|| config.numbers("cfg_scales")?.last().copied());
        let grid = config.counts("latent_shape").and_then(|shape| shape.try_into().ok());
        let sampling = Sampling { cfg: 4.0, temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0 };
        Ok(Self {
            device: root.device().clone(),
            grid: grid.unwrap_or([1, side, side]),
            names: class_names(checkpoint, classes),
            sampling: Sampling { cfg: cfg.unwrap_or(4.0), ..sampling.noted(config) },
            tokenizer: if root.has("vq.post_quant_conv") {
                let l2_norm = config.flag("codebook_l2_norm").unwrap_or(true);
                let groups = config.count("norm_groups").unwrap_or(32);
                Some(Tokenizer::LlamaGen(VqTokenizer::load(&root.at("vq"), groups, l2_norm)?))
            } else if root.has("vq.bottleneck") {
                Some(Tokenizer::Video(VideoTokenizer::load(&root.at("vq"), config)?))
            } else if root.has("vq.diff_decoder") {
                Some(Tokenizer::Flow(FlowTokenizer::load(&root.at("vq"), config)?))
            } else if root.has("vq") {
                Some(Tokenizer::MaskGit(MaskGitVqGan::load(&root.at("vq"))?))
            } else {
                None
            },
        })
    }

    /// Draws captions, by their numbers.
    pub(super) fn set_captions(&mut self, captions: &CaptionFeatures) {
        self.names = captions.names();
    }

    /// Notes if the tokenizer has fewer codes than the network draws from.
    pub(super) fn hold(&self, vocabulary: usize, notes: &Notes) {
        let codes = self.codebook().map_or(vocabulary, |codebook| codebook.shape()[0]);
        if codes < vocabulary {
            notes.add(format!("the transformer draws from {vocabulary} codes, the tokenizer has {codes}"));
        }
    }

    /// How the authors sample.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// LlamaGen's tokenizer, if it is that.
    #[must_use]
    pub fn vq(&self) -> Option<&VqTokenizer> {
        match &self.tokenizer {
            Some(Tokenizer::LlamaGen(tokenizer)) => Some(tokenizer),
            _ => None,
        }
    }

    /// The codes on the sphere that tokens stand for, where there are such.
    #[must_use]
    pub fn codebook(&self) -> Option<&Weight> {
        self.vq().map(VqTokenizer::codebook)
    }

    /// Cells of the grid.
    #[must_use]
    pub fn places(&self) -> usize {
        self.grid.iter().product()
    }

    /// Cells along one side of a picture.
    #[must_use]
    pub fn side(&self) -> usize {
        self.grid[1]
    }

    /// Frames side by side in a picture.
    fn frames(&self) -> usize {
        match &self.tokenizer {
            Some(Tokenizer::Video(tokenizer)) => tokenizer.size()[0],
            _ => self.grid[0],
        }
    }

    /// Tokens `[batch, places]` of pictures to pixels `[batch, 3, height, width]` in [-1, 1]. The frames of a video
    /// stand side by side. Tokenizers that start from noise take it from `sampler`.
    ///
    /// # Errors
    /// [`Error::Request`] if the checkpoint has no tokenizer; [`Error::Op`] if the device fails.
    pub fn decode<T: Float>(&self, tokens: &Tensor<u32>, sampler: &Sampler<'_>) -> Result<Tensor<T>> {
        self.decode_first(tokens, self.places(), sampler)
    }

    /// The same where only the first `settled` tokens have been drawn, which matters where tokens are steps.
    fn decode_first<T: Float>(&self, tokens: &Tensor<u32>, settled: usize, sampler: &Sampler<'_>) -> Result<Tensor<T>> {
        let missing = || Error::Request("the checkpoint holds no tokenizer (no vq.*)".to_owned());
        let grid = [self.grid[1], self.grid[2]];
        match self.tokenizer.as_ref().ok_or_else(missing)? {
            Tokenizer::LlamaGen(tokenizer) => tokenizer.decode(tokens, grid),
            Tokenizer::MaskGit(tokenizer) => {
                let pixels = tokenizer.decode::<T>(&tokenizer.quantised(tokens, grid)?)?;
                let ones = Tensor::from_vec(&self.device, &[1], vec![T::from_f32(1.0)])?;
                let ones = ones.broadcast(pixels.shape())?.contiguous()?;
                Ok(elementwise::scale_add(&pixels, 2.0, &ones, -1.0)?)
            }
            Tokenizer::Video(tokenizer) => {
                let video = tokenizer.decode::<T>(&tokenizer.latents(tokens)?)?;
                let [frames, height, width] = tokenizer.size();
                let frames_last = video.permute(&[0, 1, 3, 2, 4])?.contiguous()?;
                Ok(frames_last.reshape(&[tokens.shape()[0], 3, height, frames * width])?)
            }
            Tokenizer::Flow(tokenizer) => {
                let (batch, side) = (tokens.shape()[0], tokenizer.side());
                let pictures: Vec<_> = (0..batch).map(|picture| (picture, 0)).collect();
                let noise = normals_of_places(sampler, &pictures, 3 * side * side, 0);
                let noise = noise.into_iter().map(T::from_f64).collect();
                let noise = Tensor::from_vec(&self.device, &[batch, 3, side, side], noise)?;
                let condition = tokenizer.condition(&tokenizer.quantised(tokens)?)?;
                tokenizer.decode(&condition, &noise, Some(tokenizer.steps_of(settled)), |_| Ok(()))
            }
        }
    }

    /// The tokens of a given picture that stay: those of cells without a pixel that is drawn anew.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no encoder or the picture has another size; [`Error::Op`] if the device fails.
    pub fn known<T: Float>(&self, given: Given<'_>) -> Result<Vec<Option<u32>>> {
        let missing = || Error::Request("the checkpoint holds no encoder of pictures".to_owned());
        let tokenizer = self.vq().ok_or_else(missing)?;
        let size = self.picture_size();
        let tokens = tokenizer.tokens(&tokenizer.latents(&given.pixels::<T>(&self.device, size)?)?)?.to_vec()?;
        let grid = [self.grid[1], self.grid[2]];
        let stays = |cell: usize| given.anew_share(size, grid, cell) == 0.0;
        Ok(tokens.into_iter().enumerate().map(|(cell, token)| stays(cell).then_some(token)).collect())
    }

    /// Height and width of a picture in pixels; in cells without a tokenizer.
    #[must_use]
    pub fn picture_size(&self) -> [usize; 2] {
        let of_grid = |factor: usize| [self.grid[1] * factor, self.grid[2] * factor];
        match &self.tokenizer {
            Some(Tokenizer::LlamaGen(tokenizer)) => of_grid(tokenizer.factor()),
            Some(Tokenizer::MaskGit(tokenizer)) => of_grid(tokenizer.factor()),
            Some(Tokenizer::Video(tokenizer)) => {
                let [frames, height, width] = tokenizer.size();
                [height, frames * width]
            }
            Some(Tokenizer::Flow(tokenizer)) => [tokenizer.side(); 2],
            None => of_grid(1),
        }
    }
}

/// What a system that draws codes is to draw.
#[derive(Clone, Copy)]
pub struct WantedCodes<'a> {
    /// One picture each.
    pub labels: &'a [u32],
    /// An entry per cell where some tokens are given; else empty, as always without [`DrawsCodes::FILLS`].
    pub known: &'a [Option<u32>],
    /// How tokens are drawn.
    pub sampler: &'a Sampler<'a>,
    /// How drafts of the one picture are tested; only systems of [`DrawsCodes::drafted`] are given any.
    pub decoder: Option<&'a Speculation>,
}

/// A system that draws codes. [`InDtype`] makes a [`Generator`] of it.
pub trait DrawsCodes {
    /// The system's name, as in a dump's metadata.
    const SYSTEM: &'static str;

    /// The parts around the network.
    fn codes(&self) -> &Codes;

    /// See [`Generator::use_grids`].
    ///
    /// # Errors
    /// As there.
    fn use_grids(&mut self, _sides: &[usize]) -> Result<()> {
        Err(Error::Request(format!("{} draws no grid but its own", Self::SYSTEM)))
    }

    /// See [`Generator::use_captions`].
    ///
    /// # Errors
    /// As there.
    fn use_captions(&mut self, _captions: CaptionFeatures) -> Result<()> {
        Err(Error::Request(format!("{} draws from classes, not from captions", Self::SYSTEM)))
    }

    /// See [`Generator::control_size`].
    fn control_size(&self) -> Option<[usize; 2]> {
        None
    }

    /// See [`Generator::use_control`].
    ///
    /// # Errors
    /// As there.
    fn use_control(&mut self, _planes: &[f32]) -> Result<()> {
        Err(Error::Request(format!("{} takes no control picture", Self::SYSTEM)))
    }

    /// If its network is causal and can forget, so that drafts can be tested: the rows that it is fed for tokens, and how
    /// many of them it draws.
    fn drafted(&self) -> Option<(&Weight, usize)> {
        None
    }

    /// What its guidance can follow.
    fn guidances(&self) -> &'static [Guided] {
        // Those that are drawn token by token.
        if self.drafted().is_some() { &[Guided::Plain, Guided::ByEntropy] } else { &[Guided::Plain] }
    }

    /// Takes the weights of a second network that drafts, or none.
    ///
    /// # Errors
    /// [`Error::Request`] if there can be none, or it does not fit; [`Error::Weights`] if its weights do not.
    fn use_second(&mut self, second: Option<&Checkpoint>) -> Result<()> {
        match second {
            None => Ok(()),
            Some(_) => Err(Error::Request(format!("{} has no second model that drafts, llamagen has", Self::SYSTEM))),
        }
    }

    /// Whether it draws parts of pictures anew.
    const FILLS: bool = false;

    /// Whether its tokens are cells of a grid; otherwise they are a sequence.
    const CELLS: bool = true;

    /// Draws the tokens of one picture per label, `[batch, places]` in raster order, computing in `T`.
    ///
    /// # Errors
    /// As [`Generator::draw`].
    fn generate<T: Float>(&self, wanted: WantedCodes<'_>, steps: Steps<'_, T>) -> Result<Tensor<u32>>;
}

/// A system that computes in `T`.
pub struct InDtype<T, M> {
    model: M,
    /// Without, the system's own.
    decoder: Option<Speculation>,
    guided: Guided,
    dtype: PhantomData<T>,
}

impl<T, M> InDtype<T, M> {
    /// Fixes the element type.
    pub fn new(model: M) -> Self {
        Self { model, decoder: None, guided: Guided::Plain, dtype: PhantomData }
    }
}

impl<T, M> InDtype<T, M> {
    /// A test of drafts weighs all of them at once, before what guidance follows is known.
    fn check_guidance(&self) -> Result<()> {
        match (self.guided, &self.decoder) {
            (Guided::Plain, _) | (_, None) => Ok(()),
            _ => Err(Error::Request("drafts are tested under plain guidance only".to_owned())),
        }
    }
}

impl<T: Float, M: DrawsCodes> Generator for InDtype<T, M> {
    fn about(&self) -> About<'_> {
        let codes = self.model.codes();
        let [frames, height, width] = codes.grid;
        About {
            system: M::SYSTEM,
            classes: &codes.names,
            sampling: codes.sampling,
            tokens_per_picture: codes.places(),
            has_tokenizer: codes.tokenizer.is_some(),
            picture_size: codes.picture_size(),
            frames: codes.frames(),
            grids: if M::CELLS { vec![[height, width]; frames] } else { Vec::new() },
        }
    }

    fn use_decoder(&mut self, name: &str, second: Option<&Checkpoint>) -> Result<()> {
        let codes = self.model.codes();
        let Some((tokens, vocabulary)) = self.model.drafted() else {
            return Err(Error::Request(format!("{} has no decoder \"{name}\", only its own", M::SYSTEM)));
        };
        let (places, codebook) = (codes.places(), codes.codebook());
        let decoder = Speculation::named(name, places, vocabulary, tokens, codebook, second.is_some())?;
        self.model.use_second(second)?;
        self.decoder = Some(decoder);
        self.check_guidance()
    }

    fn use_guidance(&mut self, guided: Guided) -> Result<()> {
        if !self.model.guidances().contains(&guided) {
            return Err(Error::Request(format!("{} has no such guidance", M::SYSTEM)));
        }
        self.guided = guided;
        self.check_guidance()
    }

    fn use_grids(&mut self, sides: &[usize]) -> Result<()> {
        self.model.use_grids(sides)
    }

    fn use_captions(&mut self, captions: CaptionFeatures) -> Result<()> {
        self.model.use_captions(captions)
    }

    fn control_size(&self) -> Option<[usize; 2]> {
        self.model.control_size()
    }

    fn use_control(&mut self, planes: &[f32]) -> Result<()> {
        self.model.use_control(planes)
    }

    fn draw_watched(&self, wanted: Wanted<'_>, watch: Watch<'_>) -> Result<Drawn> {
        let Wanted { labels, first_picture, sampling, given } = wanted;
        let (codes, batch) = (self.model.codes(), labels.len());
        let (places, all) = (codes.places(), batch * codes.places());
        if !M::FILLS {
            whole_only(M::SYSTEM, given)?;
        }
        let known = given.map(|given| codes.known::<T>(given)).transpose()?.unwrap_or_default();
        let random = Random::Philox { first_picture };
        let sampler = Sampler { guided: self.guided, ..Sampler::new(*sampling, random, places) };
        // The first picture of a step, its pictures' cells, its tokens.
        let mut so_far: Vec<(usize, Vec<Vec<usize>>, Tensor<u32>)> = Vec::new();
        // Drafts are tested for one picture at a time.
        let mut each = |first: usize, part: usize, step: Step<'_, T>| {
            let count = step.tokens.shape()[1];
            let cells = (0..part).map(|picture| step.cells.of(picture, count)).collect();
            so_far.push((first, cells, step.tokens.clone()));
            let pictures = || {
                // A flow shows something new when all tokens of a step are there.
                if let Some(Tokenizer::Flow(tokenizer)) = &codes.tokenizer
                    && tokenizer.steps_of(step.settled) == tokenizer.steps_of(step.settled - count)
                {
                    return Ok(Vec::new());
                }
                let of_cell = known.iter().map(|known| known.unwrap_or(0)).chain(std::iter::repeat(0)).take(places);
                let mut raster = of_cell.collect::<Vec<_>>().repeat(batch);
                for (first, cells, tokens) in &so_far {
                    let mut tokens = tokens.to_vec()?.into_iter();
                    for (cells, raster) in cells.iter().zip(raster.chunks_mut(places).skip(*first)) {
                        cells.iter().zip(&mut tokens).for_each(|(cell, token)| raster[*cell] = token);
                    }
                }
                let tokens = Tensor::from_vec(&codes.device, &[batch, places], raster)?;
                if codes.tokenizer.is_some() {
                    per_entry(&codes.decode_first::<T>(&tokens, step.settled, &sampler)?)
                } else {
                    Ok(Vec::new())
                }
            };
            // What stays of a given picture was not drawn.
            let drawn = |cell: &usize| known.get(*cell).is_none_or(Option::is_none);
            let of_picture = |cells: &Vec<usize>| cells.iter().copied().filter(drawn).collect();
            let cells: Vec<_> = so_far[so_far.len() - 1].1.iter().map(of_picture).collect();
            watch(Seen {
                settled: first * places + step.settled * part,
                all,
                first,
                cells: &cells,
                pictures: &pictures,
            })
        };
        let decoder = self.decoder.as_ref();
        let at_once = if decoder.is_some() { 1 } else { batch.max(1) };
        let mut parts = Vec::new();
        for first in (0..batch.max(1)).step_by(at_once) {
            let labels = &labels[first..batch.min(first + at_once)];
            let random = Random::Philox { first_picture: first_picture + first as u64 };
            let sampler = Sampler { random, ..sampler };
            let wanted = WantedCodes { labels, known: &known, sampler: &sampler, decoder };
            let each = |step: Step<'_, T>| each(first, labels.len(), step);
            parts.push(watched(each, |steps| self.model.generate::<T>(wanted, steps))?);
        }
        let tokens = concatenate(&parts.iter().collect::<Vec<_>>(), 0)?;
        let pixels = codes.tokenizer.is_some().then(|| codes.decode::<T>(&tokens, &sampler)).transpose()?;
        to_host(&tokens, pixels.as_ref())
    }

    fn can_fill(&self) -> bool {
        M::FILLS && self.model.codes().vq().is_some()
    }
}

/// Ends a generation when the caller breaks off.
pub(crate) fn go_on(flow: ControlFlow<()>) -> Result<()> {
    if flow.is_break() { Err(Error::Interrupted) } else { Ok(()) }
}

/// Tokens, and pixels where there is a tokenizer, per picture, in host memory.
pub(crate) fn to_host<T: Float>(tokens: &Tensor<u32>, pixels: Option<&Tensor<T>>) -> Result<Drawn> {
    let per_picture = tokens.shape()[1];
    let tokens = tokens.to_vec()?;
    // What a GPU writes where a row of logits was not finite.
    if let Some(at) = tokens.iter().position(|token| *token == u32::MAX) {
        let (picture, place) = (at / per_picture.max(1), at % per_picture.max(1));
        return Err(Error::Request(format!("the logits of token {place} of picture {picture} are not finite")));
    }
    Ok(Drawn {
        tokens: tokens.chunks(per_picture.max(1)).map(<[u32]>::to_vec).collect(),
        planes: pixels.map(per_entry).transpose()?.unwrap_or_default(),
        ..Drawn::default()
    })
}

/// The values of each entry of the first axis, in host memory.
pub(crate) fn per_entry<T: Float>(x: &Tensor<T>) -> Result<Vec<Vec<f32>>> {
    let each = x.elements() / x.shape()[0].max(1);
    let values: Vec<f32> = x.to_vec()?.iter().map(|value| value.to_f32()).collect();
    Ok(values.chunks(each.max(1)).map(<[f32]>::to_vec).collect())
}

/// Latents `[batch, ..]`, and pixels where there is a tokenizer, picture by picture in host memory.
pub(crate) fn to_planes<T: Float>(latents: &Tensor<T>, pixels: Option<&Tensor<T>>) -> Result<Drawn> {
    Ok(Drawn {
        latents: per_entry(latents)?,
        latent_shape: latents.shape()[1..].to_vec(),
        planes: pixels.map(per_entry).transpose()?.unwrap_or_default(),
        ..Drawn::default()
    })
}
