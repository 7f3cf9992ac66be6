//! VAR: next-scale prediction.
//!
//! | part      | here                                                                           |
//! |-----------|--------------------------------------------------------------------------------|
//! | tokenizer | residual codes over growing grids ([`MultiScaleTokenizer`])                    |
//! | backbone  | blocks modulated by the class ([`AdaLn`])                                      |
//! | order     | scale by scale, all places of a scale at once                                  |
//! | mask      | block-causal over scales; with a cache, none                                   |
//! | position  | a learned vector per place, one per scale                                      |
//! | head      | softmax over codes, after a modulated norm                                     |
//! | decoder   | one pass per scale; the latents so far, resized, are the next scale's input    |
//! | guidance  | `(1 + t) cond - t uncond`, `t` growing linearly from 0 to `cfg` over the scales |
//!
//! Paper: Tian et al. 2024, arXiv:2404.02905. Upstream: FoundationVision/VAR, `models/var.py`.
//!
//! The file is long because M-VAR is built on it, with another backbone, and because it has to find out from the lengths of
//! tensors which of the official models a checkpoint is.

use smalti::attention::{KvCache, Mask, ScalesKind};
use smalti::sample::Guidance;
use smalti::{Device, Float, Tensor, Weight, copy, elementwise, embedding, linear};

use super::class_names;
use super::codes::{go_on, per_entry, to_host};
use crate::backbone::adaln::{AdaLn, Condition, ModulatedHead, layer, scale_positions};
use crate::decode::{Cells, Random, Sampler, Step, Steps, concatenate, guide, twice, watched};
use crate::generator::{drawn_around, drawn_cells};
use crate::tokenizer::multi_scale::MultiScaleTokenizer;
use crate::weights::{Checkpoint, Loader};
use crate::{About, Drawn, Error, Generator, Result, Sampling, Seen, Wanted, Watch};

/// The official models' scales, for 256, 512 and 1024 pixels: checkpoints do not name theirs, and are told apart by
/// the number of places.
const PATCH_NUMS: [&[usize]; 3] = [
    &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
    &[1, 2, 3, 4, 6, 9, 13, 18, 24, 32],
    &[1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64],
];
/// A side no published model comes near.
const LONGEST_SIDE: usize = 256;

/// What the places of scales run through.
pub trait Backbone<T: Float>: Sized {
    /// The system's name, and the prefix of its tensors.
    const SYSTEM: &'static str;
    /// What it remembers of earlier scales.
    type State;

    /// Loads `blocks` and what they share.
    ///
    /// # Errors
    /// If the device has no room.
    fn load(loader: &Loader<'_>, dim: usize, heads: usize, norm_eps: f32) -> Result<Self>;

    /// What it remembers before the first of `places` places.
    ///
    /// # Errors
    /// If the device has no room.
    fn start(&self, device: &Device, batch: usize, places: usize) -> Result<Self::State>;

    /// A condition `[batch, dim]`, for all scales.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    fn condition(&self, condition: &Tensor<T>) -> Result<Condition<T>>;

    /// Runs the next scales, whose grids have these sides: `x` is `[batch, their places, dim]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    fn run(
        &self,
        x: &Tensor<T>,
        condition: &Condition<T>,
        state: &mut Self::State,
        sides: &[usize],
    ) -> Result<Tensor<T>>;
}

impl<T: Float> Backbone<T> for AdaLn<T> {
    const SYSTEM: &'static str = "var";
    type State = Vec<KvCache<T>>;

    fn load(loader: &Loader<'_>, dim: usize, heads: usize, norm_eps: f32) -> Result<Self> {
        Self::load(loader, &["blocks"], dim, heads, norm_eps)
    }

    fn start(&self, device: &Device, batch: usize, places: usize) -> Result<Self::State> {
        self.caches(device, batch, places)
    }

    fn condition(&self, condition: &Tensor<T>) -> Result<Condition<T>> {
        self.condition(condition)
    }

    fn run(
        &self,
        x: &Tensor<T>,
        condition: &Condition<T>,
        state: &mut Self::State,
        sides: &[usize],
    ) -> Result<Tensor<T>> {
        let mask = match sides {
            // One scale sees all of itself and of what came before.
            [_] => Mask::Full,
            _ => Mask::Scales { patch_nums: sides.to_vec(), kind: ScalesKind::BlockCausal },
        };
        self.run(x, condition, state, &self.options().mask(mask))
    }
}

/// The model with its weights on a device.
pub struct Var<T: smalti::Element, B = AdaLn<T>> {
    device: Device,
    patch_nums: Vec<usize>,
    dim: usize,
    class_embedding: Weight,
    start: Tensor<T>,
    /// Position and scale together, `[1, places, dim]`.
    positions: Tensor<T>,
    word_embed: (Weight, Tensor<f32>),
    backbone: B,
    head: ModulatedHead,
    classes: Vec<String>,
    sampling: Sampling,
    tokenizer: MultiScaleTokenizer,
}

impl<T: Float, B: Backbone<T>> Var<T, B> {
    /// Loads official names under `var.`, or the prefix of the backbone, and `vae.`.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        // Buffers: how often each code was used, and masks that the official code saves.
        let unread = ["ema_vocab_hit_SV", "attn_bias_for_masking", "lvl_1L", "attn.patch_nums"];
        checkpoint.build(device, &unread, |root, notes| {
            let var = root.at(B::SYSTEM);
            let held = var.length("pos_1LC", 1);
            let places = |sides: &[usize]| sides.iter().map(|side| side * side).sum::<usize>();
            let official = PATCH_NUMS.iter().find(|sides| places(sides) == held).or(PATCH_NUMS.first());
            let patch_nums = config.counts("patch_nums").or_else(|| Some(official?.to_vec())).unwrap_or_default();
            let grows = patch_nums.is_sorted() && patch_nums.len() <= LONGEST_SIDE;
            if patch_nums.is_empty() || !grows || patch_nums.iter().any(|side| !(1..=LONGEST_SIDE).contains(side)) {
                notes.add(format!("patch_nums {patch_nums:?} are not growing sides from 1 to {LONGEST_SIDE}"));
                return Err(notes.error(checkpoint));
            }
            let [dim, channels] = var.lengths("word_embed.weight");
            let rows = var.length("class_emb.weight", 0);
            let vocabulary = var.length("head.weight", 0);
            // One factor per head, if scores are those of unit vectors; and the official models have as many heads as blocks.
            let factors = var.shape("blocks.0.attn.scale_mul_1H11").and_then(|shape| shape.get(1).copied());
            let heads = config.count("heads").or(factors).unwrap_or_else(|| var.count("blocks")).max(1);
            if !dim.is_multiple_of(heads) {
                notes.add(format!("{heads} heads do not fit {dim} channels"));
                return Err(notes.error(checkpoint));
            }
            let classes = config.count("num_classes").unwrap_or(rows.saturating_sub(1));
            if rows > 0 && !(1..rows).contains(&classes) {
                notes.add(format!("{classes} classes and none do not fit a table of {rows} rows"));
            }
            let classes = classes.min(rows);
            let norm_eps = config.number("norm_eps").unwrap_or(1e-6);

            let positions = scale_positions(&var, &patch_nums, dim)?;
            let model = Self {
                device: device.clone(),
                dim,
                class_embedding: var.weight("class_emb.weight", &[rows, dim])?,
                start: copy::convert(&var.vector("pos_start", &[1, 1, dim])?)?,
                positions: copy::convert(&positions)?,
                word_embed: layer(&var, "word_embed", [dim, channels])?,
                backbone: B::load(&var, dim, heads, norm_eps)?,
                head: ModulatedHead::load(&var, "head_nm", "head", dim, norm_eps)?,
                classes: class_names(checkpoint, classes),
                sampling: Sampling { cfg: 1.5, temperature: 1.0, top_k: 900, top_p: 0.96, seed: 0 }.noted(&config),
                tokenizer: MultiScaleTokenizer::load(&root.at("vae"), notes, &patch_nums, &config)?,
                patch_nums,
            };
            let quantiser = model.tokenizer.quantiser();
            if channels > 0 && channels != quantiser.channels() {
                let codes = quantiser.channels();
                notes.add(format!("the transformer reads {channels} channels, the tokenizer's codes have {codes}"));
            }
            if quantiser.codes() < vocabulary {
                let codes = quantiser.codes();
                notes.add(format!("the transformer draws from {vocabulary} codes, the tokenizer has {codes}"));
            }
            Ok(model)
        })
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &MultiScaleTokenizer {
        &self.tokenizer
    }

    /// What the places run through.
    #[must_use]
    pub fn backbone(&self) -> &B {
        &self.backbone
    }

    /// Places of all scales.
    #[must_use]
    pub fn places(&self) -> usize {
        self.positions.shape()[1]
    }

    /// Tokens along one side of each scale.
    #[must_use]
    pub fn patch_nums(&self) -> &[usize] {
        &self.patch_nums
    }

    /// The vectors of the classes; `None` is no class.
    fn condition(&self, labels: &[Option<u32>]) -> Result<Condition<T>> {
        let none = self.classes.len();
        let rows = labels.iter().map(|label| match label {
            None => Ok(none as u32),
            Some(label) if (*label as usize) < none => Ok(*label),
            Some(label) => {
                let (system, last) = (B::SYSTEM, none.saturating_sub(1));
                Err(Error::Request(format!("{system}: class {label}, expected 0 to {last}")))
            }
        });
        let rows = Tensor::from_vec(&self.device, &[labels.len()], rows.collect::<Result<Vec<_>>>()?)?;
        self.backbone.condition(&embedding::embedding(&self.class_embedding, &rows)?)
    }

    /// The first place of each sequence, without its position.
    fn first(&self, condition: &Condition<T>) -> Result<Tensor<T>> {
        let rows = condition.given.shape()[0];
        Ok(elementwise::add(&condition.given.reshape(&[rows, 1, self.dim])?, &self.start)?)
    }

    fn positioned(&self, x: &Tensor<T>, from: usize) -> Result<Tensor<T>> {
        Ok(elementwise::add(x, &self.positions.narrow(1, from, x.shape()[1])?)?)
    }

    /// Logits of all places, `[batch, places, vocabulary]`; `inputs` (`[batch, places - 1, channels]`) are the latents
    /// so far at every scale but the first.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher(&self, labels: &[u32], inputs: &Tensor<T>) -> Result<Tensor<T>> {
        let labels: Vec<_> = labels.iter().copied().map(Some).collect();
        let condition = self.condition(&labels)?;
        let words = linear::linear(inputs, &self.word_embed.0, Some(&self.word_embed.1))?;
        let x = self.positioned(&concatenate(&[&self.first(&condition)?, &words], 1)?, 0)?;
        let mut state = self.backbone.start(&self.device, labels.len(), self.places())?;
        let x = self.backbone.run(&x, &condition, &mut state, &self.patch_nums)?;
        self.head.run(&x, &condition.given)
    }

    /// Draws the tokens of all scales, `[batch, places]`, and the latents they add up to. Where some tokens are given `kept`
    /// has an entry per place; else it is empty.
    ///
    /// # Errors
    /// As [`Generator::draw`].
    pub fn generate(
        &self,
        labels: &[u32],
        kept: &[Option<u32>],
        sampler: &Sampler<'_>,
        steps: Steps<'_, T>,
    ) -> Result<(Tensor<u32>, Tensor<T>)> {
        let (batch, places) = (labels.len(), self.places());
        let with_none = labels.iter().copied().map(Some).chain(labels.iter().map(|_| None));
        let condition = self.condition(&with_none.collect::<Vec<_>>())?;
        let mut state = self.backbone.start(&self.device, 2 * batch, places)?;
        let mut tokens = Tensor::<u32>::zeros(&self.device, &[batch, places])?;
        let full = self.patch_nums.last().copied().unwrap_or(1);
        let mut latents =
            Tensor::<T>::zeros(&self.device, &[batch, self.tokenizer.quantiser().channels(), full, full])?;
        let mut x = self.positioned(&self.first(&condition)?, 0)?;
        let mut settled = 0;
        for (scale, &side) in self.patch_nums.iter().enumerate() {
            let h = self.backbone.run(&x, &condition, &mut state, &[side])?;
            let t = sampler.sampling.cfg * scale as f32 / (self.patch_nums.len() - 1).max(1) as f32;
            let guided = guide(&self.head.run(&h, &condition.given)?, batch, t, Guidance::Extra)?;
            let kept = kept.get(settled..settled + side * side).unwrap_or_default();
            let drawn = drawn_around(sampler.draw(&guided, settled)?, kept)?;
            copy::copy_into_slice(&drawn, &mut tokens, 1, settled)?;
            latents = elementwise::add(&latents, &self.tokenizer.quantiser().contribution(&drawn, scale)?)?;
            let cells = Cells::From(settled);
            settled += side * side;
            let step = Step { settled, logits: &guided, tokens: &drawn, cells, latents: Some(&latents) };
            go_on(steps(step))?;
            if scale + 1 < self.patch_nums.len() {
                let seen = self.tokenizer.quantiser().next_input(&latents, scale)?;
                let words = linear::linear(&seen, &self.word_embed.0, Some(&self.word_embed.1))?;
                x = twice(&self.positioned(&words, settled)?)?;
            }
        }
        Ok((tokens, latents))
    }
}

impl<T: Float, B: Backbone<T>> Var<T, B> {
    /// What was drawn, in host memory, as pixels if there is a decoder.
    fn pictures(&self, tokens: &Tensor<u32>, latents: &Tensor<T>) -> Result<Drawn> {
        let pixels = self.tokenizer.has_decoder().then(|| self.tokenizer.decode(latents)).transpose()?;
        to_host(tokens, pixels.as_ref())
    }
}

impl<T: Float, B: Backbone<T>> Generator for Var<T, B> {
    fn about(&self) -> About<'_> {
        About {
            system: B::SYSTEM,
            classes: &self.classes,
            sampling: self.sampling,
            tokens_per_picture: self.places(),
            has_tokenizer: self.tokenizer.has_decoder(),
            picture_size: [self.patch_nums.last().unwrap_or(&1) * self.tokenizer.factor(); 2],
            frames: 1,
            grids: self.patch_nums.iter().map(|side| [*side; 2]).collect(),
        }
    }

    fn draw_watched(&self, wanted: Wanted<'_>, watch: Watch<'_>) -> Result<Drawn> {
        let Wanted { labels, first_picture, sampling, given } = wanted;
        let kept = given.map(|given| self.tokenizer.kept::<T>(given, &self.device)).transpose()?.unwrap_or_default();
        let batch = labels.len();
        let sampler = Sampler::new(*sampling, Random::Philox { first_picture }, self.places());
        let each = |step: Step<'_, T>| {
            let cells = vec![drawn_cells(step.cells.of(0, step.tokens.shape()[1]), &kept); batch];
            let pictures = || match step.latents {
                Some(latents) if self.tokenizer.has_decoder() => per_entry(&self.tokenizer.decode(latents)?),
                _ => Ok(Vec::new()),
            };
            watch(Seen::of_batch([step.settled, self.places()], &cells, &pictures))
        };
        let (tokens, latents) = watched(each, |steps| self.generate(labels, &kept, &sampler, steps))?;
        self.pictures(&tokens, &latents)
    }

    fn can_fill(&self) -> bool {
        self.tokenizer.has_encoder()
    }
}
