//! FlexVAR: scale by scale without residuals, so that any schedule of scales will do.
//!
//! | part      | here                                                                                          |
//! |-----------|-----------------------------------------------------------------------------------------------|
//! | tokenizer | LlamaGen's, each scale coded by itself ([`VqTokenizer`])                                      |
//! | backbone  | VAR's blocks ([`AdaLn`])                                                                      |
//! | order     | scale by scale, all places of a scale at once                                                 |
//! | mask      | block-causal over scales; with a cache, none                                                  |
//! | position  | one learned map, resized to each scale                                                        |
//! | head      | softmax over codes, after a modulated norm                                                    |
//! | decoder   | one pass per scale; the scale's codes, resized, are the next one's input; only the last is shown |
//! | guidance  | `(1 + t) cond - t uncond`, `t` growing over the scales                                        |
//!
//! A part of a picture is drawn anew, at any schedule (the paper's abstract: in- and out-painting): what stays is coded at
//! every scale as training pictures are.
//!
//! Paper: Jiao et al. 2025, arXiv:2502.20313, section 3. Upstream: jiaosiyu1999/FlexVAR, `models/flexvar.py`.
//!
//! The file is long because every scale is coded, placed and decoded by itself: codes, positions and inputs are
//! resized where VAR's add up, and some scales take the likeliest token.

use smalti::attention::{Mask, ScalesKind};
use smalti::resize::{self, Mode};
use smalti::sample::Guidance;
use smalti::{Device, Float, Tensor, Weight, copy, elementwise, embedding, linear, vq};

use super::class_names;
use super::codes::{go_on, per_entry, to_host};
use crate::backbone::adaln::{AdaLn, Condition, ModulatedHead, layer};
use crate::backbone::condition::ClassTable;
use crate::decode::{Cells, Random, Sampler, Step, Steps, concatenate, guide, twice, watched};
use crate::generator::{drawn_around, drawn_cells};
use crate::tokenizer::autoencoder::Conv;
use crate::tokenizer::vq::{VqTokenizer, unit_rows};
use crate::weights::Checkpoint;
use crate::{About, Drawn, Error, Generator, Given, Result, Sampling, Seen, Wanted, Watch};

/// The official schedule.
pub(super) const SCHEDULE: [usize; 10] = [1, 2, 3, 4, 5, 7, 9, 11, 13, 16];
/// A side no picture comes near.
const LONGEST_SIDE: usize = 256;
/// Scales that draw; others take the likeliest token.
const DRAWN: [usize; 13] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 23, 24, 32];

/// The model with its weights on a device.
pub struct FlexVar<T: smalti::Element> {
    device: Device,
    schedule: Vec<usize>,
    classes: ClassTable,
    start: Tensor<T>,
    /// `[1, dim, side, side]`.
    positions: Tensor<T>,
    word_embed: (Weight, Tensor<f32>),
    backbone: AdaLn<T>,
    head: ModulatedHead,
    /// Codes on the unit sphere, and the convolutions around them.
    codebook: Weight,
    quant_conv: Conv,
    post_quant_conv: Conv,
    tokenizer: Option<VqTokenizer>,
    /// Logits of tokens that are never drawn become this; others are multiplied with 1.
    kept: Option<[Tensor<T>; 2]>,
    names: Vec<String>,
    sampling: Sampling,
    /// Scales beyond this side take the likeliest token, under full guidance.
    longest_drawn: usize,
    drawn: Vec<usize>,
    plain_guidance: bool,
}

impl<T: Float> FlexVar<T> {
    /// Loads official names under `var.` and `vq.`.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &["attn_bias_for_masking", "zero_k_bias", "quantize.codebook_used"], |root, _| {
            let (var, quantiser) = (root.at("var"), root.at("vq"));
            let [dim, channels] = var.lengths("word_embed.weight");
            let vocabulary = var.length("head.weight", 0);
            let heads = config.count("num_heads").unwrap_or_else(|| var.count("blocks")).max(1);
            let norm_eps = config.number("norm_eps").unwrap_or(1e-6);
            let classes = ClassTable::load(&var, "class_emb.weight", dim)?;
            let side = var.length("pos_1LC", 3);
            let codebook = quantiser.weight("quantize.embedding.weight", &[vocabulary, channels])?;
            let invalid = config.counts("invalid_ids").unwrap_or_default();
            let kept = match invalid.as_slice() {
                [] => None,
                invalid => {
                    let flags = (0..vocabulary).map(|token| !invalid.contains(&token));
                    let row = |values: Vec<T>| Tensor::from_vec(device, &[1, 1, vocabulary], values);
                    Some([
                        row(flags.clone().map(|kept| T::from_f32(f32::from(u8::from(kept)))).collect())?,
                        row(flags.map(|kept| T::from_f32(if kept { 0.0 } else { -100.0 })).collect())?,
                    ])
                }
            };
            Ok(Self {
                device: device.clone(),
                schedule: config.counts("schedule").unwrap_or_else(|| SCHEDULE.to_vec()),
                start: copy::convert(&var.vector("pos_start", &[1, 1, dim])?)?,
                positions: copy::convert(&var.vector("pos_1LC", &[1, dim, side, side])?)?,
                word_embed: layer(&var, "word_embed", [dim, channels])?,
                backbone: AdaLn::load(&var, &["blocks"], dim, heads, norm_eps)?,
                head: ModulatedHead::load(&var, "head_nm", "head", dim, norm_eps)?,
                codebook: unit_rows(&codebook)?,
                quant_conv: Conv::load(&quantiser, "quant_conv")?,
                post_quant_conv: Conv::load(&quantiser, "post_quant_conv")?,
                tokenizer: if quantiser.has("decoder") {
                    Some(VqTokenizer::load(&quantiser, config.count("norm_groups").unwrap_or(32), true)?)
                } else {
                    None
                },
                kept,
                names: class_names(checkpoint, classes.classes()),
                sampling: Sampling { cfg: 2.5, temperature: 1.0, top_k: 900, top_p: 1.0, seed: 0 }.noted(&config),
                longest_drawn: config.count("max_pn").unwrap_or(16),
                drawn: config.counts("scales_not_forced_greedy").unwrap_or_else(|| DRAWN.to_vec()),
                plain_guidance: config.flag("llamagen_cfg").unwrap_or(false),
                classes,
            })
        })
    }

    /// Places of all scales.
    #[must_use]
    pub fn places(&self) -> usize {
        self.schedule.iter().map(|side| side * side).sum()
    }

    /// The positions of all scales, `[1, places, dim]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn positions(&self) -> Result<Tensor<T>> {
        let scales = self.schedule.iter().map(|side| self.positions_of(*side)).collect::<Result<Vec<_>>>()?;
        concatenate(&scales.iter().collect::<Vec<_>>(), 1)
    }

    fn positions_of(&self, side: usize) -> Result<Tensor<T>> {
        rows(&resize::resize(&self.positions, [side, side], Mode::Area)?)
    }

    /// The codes of an encoder's features `[batch, channels, height, width]` at every scale, `[batch, places]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn tokens(&self, features: &Tensor<T>) -> Result<Tensor<u32>> {
        let scales = self.schedule.iter().map(|&side| {
            let latents = self.quant_conv.run(&resize::resize(features, [side, side], Mode::Area)?)?;
            Ok(vq::nearest_cosine(&rows(&latents)?, &self.codebook)?)
        });
        let scales = scales.collect::<Result<Vec<_>>>()?;
        concatenate(&scales.iter().collect::<Vec<_>>(), 1)
    }

    /// The codes of one scale, `[batch, channels, side, side]`.
    fn map(&self, tokens: &Tensor<u32>, side: usize) -> Result<Tensor<T>> {
        let codes: Tensor<T> = embedding::embedding(&self.codebook, tokens)?;
        let (batch, channels) = (codes.shape()[0], codes.shape()[2]);
        Ok(codes.reshape(&[batch, side, side, channels])?.permute(&[0, 3, 1, 2])?.contiguous()?)
    }

    fn condition(&self, labels: &[u32], guided: bool) -> Result<Condition<T>> {
        let rows: Tensor<T> = self.classes.rows(labels, guided)?;
        self.backbone.condition(&rows.reshape(&[rows.shape()[0], rows.shape()[2]])?)
    }

    fn first(&self, condition: &Condition<T>) -> Result<Tensor<T>> {
        let shape = [condition.given.shape()[0], 1, condition.given.shape()[1]];
        Ok(elementwise::add(&condition.given.reshape(&shape)?, &self.start)?)
    }

    fn words(&self, codes: &Tensor<T>) -> Result<Tensor<T>> {
        Ok(linear::linear(codes, &self.word_embed.0, Some(&self.word_embed.1))?)
    }

    /// Logits of all places, `[batch, places, vocabulary]`; `inputs` (`[batch, places - 1, channels]`) are the codes of
    /// the scale before, resized.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher(&self, labels: &[u32], inputs: &Tensor<T>) -> Result<Tensor<T>> {
        let condition = self.condition(labels, false)?;
        let x = concatenate(&[&self.first(&condition)?, &self.words(inputs)?], 1)?;
        let x = elementwise::add(&x, &self.positions()?)?;
        let mask = Mask::Scales { patch_nums: self.schedule.clone(), kind: ScalesKind::BlockCausal };
        let mut caches = self.backbone.caches(&self.device, labels.len(), self.places())?;
        let x = self.backbone.run(&x, &condition, &mut caches, &self.backbone.options().mask(mask))?;
        self.head.run(&x, &condition.given)
    }

    /// The tokens that stay of a picture of which a part is drawn anew, an entry per place of all scales.
    fn kept(&self, given: Given<'_>) -> Result<Vec<Option<u32>>> {
        let missing = || Error::Request("the checkpoint holds no encoder of pictures".to_owned());
        let (size, tokenizer) = (self.about().picture_size, self.tokenizer.as_ref().ok_or_else(missing)?);
        let tokens = self.tokens(&tokenizer.features(&given.pixels::<T>(&self.device, size)?)?)?.to_vec()?;
        Ok(given.kept_of_scales(size, &self.schedule, tokens))
    }

    /// Draws the tokens of all scales, `[batch, places]`. Where some are given `kept` has an entry per place; else it is
    /// empty.
    ///
    /// # Errors
    /// As [`Generator::draw`].
    pub fn generate(
        &self,
        labels: &[u32],
        kept: &[Option<u32>],
        sampler: &Sampler<'_>,
        steps: Steps<'_, T>,
    ) -> Result<Tensor<u32>> {
        let (batch, places) = (labels.len(), self.places());
        let cfg = sampler.sampling.cfg;
        let condition = self.condition(labels, true)?;
        let mut caches = self.backbone.caches(&self.device, 2 * batch, places)?;
        let mut tokens = Tensor::<u32>::zeros(&self.device, &[batch, places])?;
        let mut x = self.first(&condition)?;
        let mut settled = 0;
        for (scale, &side) in self.schedule.iter().enumerate() {
            let x_placed = elementwise::add(&x, &self.positions_of(side)?)?;
            let h = self.backbone.run(&x_placed, &condition, &mut caches, &self.backbone.options())?;
            let mut logits = self.head.run(&h, &condition.given)?;
            if let Some([kept, never]) = &self.kept {
                logits = elementwise::add(&elementwise::mul(&logits, kept)?, never)?;
            }
            let ramp = cfg * scale as f32 / (self.schedule.len() - 1).clamp(1, 9) as f32;
            let guided = match (self.plain_guidance, side > self.longest_drawn) {
                (true, _) => guide(&logits, batch, cfg, Guidance::Scale)?,
                (false, true) => guide(&logits, batch, cfg, Guidance::Extra)?,
                (false, false) => guide(&logits, batch, ramp, Guidance::Extra)?,
            };
            let forced = side > self.longest_drawn || !self.drawn.contains(&side);
            let temperature = if forced { 0.0 } else { sampler.sampling.temperature };
            let sampling = Sampling { temperature, ..sampler.sampling };
            let kept = kept.get(settled..settled + side * side).unwrap_or_default();
            let drawn = drawn_around(Sampler { sampling, ..*sampler }.draw(&guided, settled)?, kept)?;
            copy::copy_into_slice(&drawn, &mut tokens, 1, settled)?;
            let cells = Cells::From(settled);
            settled += side * side;
            go_on(steps(Step { settled, logits: &guided, tokens: &drawn, cells, latents: None }))?;
            if let Some(&next) = self.schedule.get(scale + 1) {
                let map = self.map(&drawn, side)?;
                let map = resize::resize(&map, [next, next], Mode::Bicubic { align_corners: false })?;
                x = twice(&self.words(&rows(&map)?)?)?;
            }
        }
        Ok(tokens)
    }

    /// What the decoder is fed: the codes of the last scale after a convolution, `[batch, channels, side, side]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn latents(&self, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        let side = self.schedule.last().copied().unwrap_or(1);
        let last = tokens.narrow(1, self.places() - side * side, side * side)?.contiguous()?;
        self.post_quant_conv.run(&self.map(&last, side)?)
    }
}

/// `[batch, channels, height, width]` to `[batch, height * width, channels]`.
fn rows<T: Float>(grid: &Tensor<T>) -> Result<Tensor<T>> {
    let &[batch, channels, height, width] = grid.shape() else {
        return Err(Error::Request(format!("flexvar: a grid of shape {:?}", grid.shape())));
    };
    Ok(grid.permute(&[0, 2, 3, 1])?.reshape(&[batch, height * width, channels])?)
}

impl<T: Float> Generator for FlexVar<T> {
    fn about(&self) -> About<'_> {
        About {
            system: "flexvar",
            classes: &self.names,
            sampling: self.sampling,
            tokens_per_picture: self.places(),
            has_tokenizer: self.tokenizer.is_some(),
            picture_size: [self.schedule.last().unwrap_or(&1) * self.tokenizer.as_ref().map_or(1, VqTokenizer::factor);
                2],
            frames: 1,
            grids: self.schedule.iter().map(|side| [*side; 2]).collect(),
        }
    }

    fn use_grids(&mut self, sides: &[usize]) -> Result<()> {
        let last = *sides.last().unwrap_or(&1);
        let schedule = match sides {
            [_] => SCHEDULE.into_iter().filter(|side| *side < last).chain([last]).collect(),
            _ => sides.to_vec(),
        };
        // The class stands in for the first scale, of one token.
        if schedule.first() != Some(&1) || !schedule.is_sorted() || last > LONGEST_SIDE {
            let expected = format!("expected scales of 1, then larger ones up to {LONGEST_SIDE}");
            return Err(Error::Request(format!("flexvar: scales of {sides:?}, {expected}")));
        }
        self.schedule = schedule;
        Ok(())
    }

    fn draw_watched(&self, wanted: Wanted<'_>, watch: Watch<'_>) -> Result<Drawn> {
        let Wanted { labels, first_picture, sampling, given } = wanted;
        let kept = given.map(|given| self.kept(given)).transpose()?.unwrap_or_default();
        let batch = labels.len();
        let sampler = Sampler::new(*sampling, Random::Philox { first_picture }, self.places());
        let each = |step: Step<'_, T>| {
            let count = step.tokens.shape()[1];
            // Every scale is a picture of its own.
            let pictures = || match &self.tokenizer {
                Some(tokenizer) => per_entry(&tokenizer.decode::<T>(step.tokens, [count.isqrt(); 2])?),
                None => Ok(Vec::new()),
            };
            let cells = vec![drawn_cells(step.cells.of(0, count), &kept); batch];
            watch(Seen::of_batch([step.settled, self.places()], &cells, &pictures))
        };
        let tokens = watched(each, |steps| self.generate(labels, &kept, &sampler, steps))?;
        let Some(tokenizer) = &self.tokenizer else { return to_host::<T>(&tokens, None) };
        let side = self.schedule.last().copied().unwrap_or(1);
        let last = tokens.narrow(1, self.places() - side * side, side * side)?.contiguous()?;
        to_host(&tokens, Some(&tokenizer.decode::<T>(&last, [side, side])?))
    }

    fn can_fill(&self) -> bool {
        self.tokenizer.is_some()
    }
}
