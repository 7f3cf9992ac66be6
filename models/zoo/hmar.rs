//! HMAR: next-scale prediction that sees one scale at a time, and refines the small ones by masking.
//!
//! | part      | here                                                                                           |
//! |-----------|------------------------------------------------------------------------------------------------|
//! | tokenizer | VAR's ([`MultiScaleTokenizer`])                                                                |
//! | backbone  | VAR's blocks ([`AdaLn`]); the last of them twice, for either head                              |
//! | order     | scale by scale; within a small scale some cells again, those least likely first                |
//! | mask      | a scale sees itself alone: the latents so far enter as input, so no cache is needed            |
//! | position  | a learned vector per place, one per scale                                                      |
//! | head      | one for a whole scale, one for masked cells of a scale                                         |
//! | decoder   | one pass per scale, then one per masked step                                                   |
//! | guidance  | `(1 + t) cond - t uncond`, `t` growing linearly over the scales, next to nothing in masked steps |
//!
//! A part of a picture is drawn anew without further training (the paper's abstract): tokens that stay are never masked.
//!
//! Paper: Kumbong et al. 2025, arXiv:2506.04421, sections 3 and 4. Upstream: NVlabs/HMAR, `models/hmar.py`.
//!
//! The file is long because one scale is predicted by two heads, each with blocks and inputs of its own, and because
//! the masked steps choose by likelihood which cells to draw again; a preview has to tell which are settled.

use smalti::attention::{Mask, ScalesKind};
use smalti::resize::{self, Mode};
use smalti::sample::{self, Filter, Guidance};
use smalti::{Device, Float, Tensor, Weight, copy, elementwise, linear};

use super::class_names;
use super::codes::{per_entry, to_host};
use super::maskgil::probability;
use crate::backbone::adaln::{AdaLn, Condition, ModulatedHead, scale_positions};
use crate::backbone::condition::ClassTable;
use crate::decode::{Random, Sampler, concatenate, guide, twice};
use crate::generator::{around, drawn_cells};
use crate::tokenizer::multi_scale::MultiScaleTokenizer;
use crate::weights::Checkpoint;
use crate::{About, Drawn, Generator, Result, Sampling, Seen, Wanted, Watch};

/// The official scales, and how many cells each step of a scale settles.
pub(super) const PATCH_NUMS: [usize; 10] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16];
pub(super) const SCHEDULE: [&[usize]; 3] = [&[1], &[1, 3], &[1, 1, 2, 5]];

/// The model with its weights on a device.
pub struct Hmar<T: smalti::Element> {
    device: Device,
    patch_nums: Vec<usize>,
    schedule: Vec<Vec<usize>>,
    classes: ClassTable,
    start: Tensor<T>,
    /// `[1, places, dim]`.
    positions: Tensor<T>,
    word_embed: Weight,
    /// `[1, 1, dim]`.
    word_bias: Tensor<T>,
    /// `[1, 1, dim]`.
    masked: Tensor<T>,
    /// Shared blocks, then those of the next-scale head, then those of the mask head.
    blocks: AdaLn<T>,
    shared: usize,
    own: usize,
    next_scale_head: ModulatedHead,
    mask_head: ModulatedHead,
    names: Vec<String>,
    sampling: Sampling,
    masked_cfg: f32,
    tokenizer: MultiScaleTokenizer,
}

/// One call of the network.
pub struct Call<'a, T: Float> {
    /// Which scale, and which step of it; 0 is the next-scale head's.
    pub scale: usize,
    /// See `scale`.
    pub step: usize,
    /// Guided, of all cells of the scale: `[batch, cells, vocabulary]`.
    pub logits: &'a Tensor<T>,
    /// Drawn at all cells, `[batch, cells]`.
    pub drawn: &'a [u32],
    /// The scale's tokens after the call.
    pub tokens: &'a [u32],
    /// Which cells the call saw masked.
    pub masked: &'a [bool],
    /// Which cells are masked in the next call.
    pub open: &'a [bool],
    /// What the scales before add up to.
    pub latents: &'a Tensor<T>,
}

/// Which head a pass ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    NextScale,
    Masked,
}

impl<T: Float> Hmar<T> {
    /// Loads official names under `hmar.` and `vae.`; without the tokenizer's encoder it draws whole pictures.
    ///
    /// # Errors
    /// [`crate::Error::Weights`] with every tensor that does not fit; [`crate::Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        let unread = ["ema_vocab_hit_SV", "attn_bias_for_masking", "lvl_1L", "zero_k_bias"];
        checkpoint.build(device, &unread, |root, notes| {
            let hmar = root.at("hmar");
            let patch_nums = config.counts("patch_nums").unwrap_or_else(|| PATCH_NUMS.to_vec());
            let [dim, channels] = hmar.lengths("word_embed.weight");
            let depth = hmar.count("base_blocks") + hmar.count("ns_blocks");
            let heads = config.count("heads").unwrap_or(depth).max(1);
            let norm_eps = config.number("norm_eps").unwrap_or(1e-6);
            let schedule = config.lists("mask_schedule").unwrap_or_else(|| {
                let whole = |side: &usize| vec![side * side];
                let listed = SCHEDULE.iter().map(|steps| steps.to_vec());
                listed.chain(patch_nums.iter().skip(SCHEDULE.len()).map(whole)).collect()
            });
            let cells = patch_nums.iter().map(|side| side * side);
            if !schedule.iter().map(|steps| steps.iter().sum::<usize>()).eq(cells) {
                notes.add(format!("the mask schedule {schedule:?} does not settle the scales {patch_nums:?}"));
                return Err(notes.error(checkpoint));
            }
            let classes = ClassTable::load(&hmar, "class_emb.weight", dim)?;
            Ok(Self {
                device: device.clone(),
                start: copy::convert(&hmar.vector("pos_start", &[1, 1, dim])?)?,
                positions: copy::convert(&scale_positions(&hmar, &patch_nums, dim)?)?,
                word_embed: hmar.weight("word_embed.weight", &[dim, channels])?,
                word_bias: copy::convert(&hmar.vector("word_embed_bias", &[dim])?.reshape(&[1, 1, dim])?)?,
                masked: copy::convert(&hmar.vector("mask_embed.weight", &[1, dim])?.reshape(&[1, 1, dim])?)?,
                blocks: AdaLn::load(&hmar, &["base_blocks", "ns_blocks", "mask_blocks"], dim, heads, norm_eps)?,
                shared: hmar.count("base_blocks"),
                own: hmar.count("ns_blocks"),
                next_scale_head: ModulatedHead::load(&hmar, "ns_head_nm", "ns_head", dim, norm_eps)?,
                mask_head: ModulatedHead::load(&hmar, "mask_head_nm", "mask_head", dim, norm_eps)?,
                names: class_names(checkpoint, classes.classes()),
                sampling: Sampling { cfg: 1.7, temperature: 1.0, top_k: 1000, top_p: 1.0, seed: 0 }.noted(&config),
                masked_cfg: config.number("mask_ratio_step").unwrap_or(1e-6),
                tokenizer: MultiScaleTokenizer::load(&root.at("vae"), notes, &patch_nums, &config)?,
                classes,
                patch_nums,
                schedule,
            })
        })
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &MultiScaleTokenizer {
        &self.tokenizer
    }

    /// The logits of `x` (`[batch, seq, dim]`, positions included) under a condition.
    fn logits(&self, x: &Tensor<T>, condition: &Condition<T>, head: Head, mask: Mask) -> Result<Tensor<T>> {
        let options = self.blocks.options().mask(mask);
        let h = self.blocks.run_some(0..self.shared, x, condition, None, &options)?;
        let (skip, own, head) = match head {
            Head::NextScale => (0, self.own, &self.next_scale_head),
            Head::Masked => (self.own, self.blocks.depth() - self.shared - self.own, &self.mask_head),
        };
        let start = self.shared + skip;
        head.run(&self.blocks.run_some(start..start + own, &h, condition, None, &options)?, &condition.given)
    }

    /// The first place of each sequence, without its position.
    fn first(&self, condition: &Condition<T>) -> Result<Tensor<T>> {
        let shape = [condition.given.shape()[0], 1, condition.given.shape()[1]];
        Ok(elementwise::add(&condition.given.reshape(&shape)?, &self.start)?)
    }

    fn words(&self, latents: &Tensor<T>) -> Result<Tensor<T>> {
        Ok(linear::linear(latents, &self.word_embed, None)?)
    }

    /// Inputs of masked cells: the latents so far, and either the scale's own tokens or the mask, by `masked`
    /// (`[batch or 1, cells]`).
    fn mask_words(&self, latents: &Tensor<T>, own: &Tensor<T>, masked: &[bool]) -> Result<Tensor<T>> {
        let cells = latents.shape()[1];
        let flags = |wanted: bool| {
            let flags = masked.iter().map(|masked| T::from_f32(f32::from(u8::from(*masked == wanted)))).collect();
            Tensor::from_vec(&self.device, &[masked.len() / cells, cells, 1], flags)
        };
        let dim = self.masked.shape()[2];
        let masks = self.masked.broadcast(&[masked.len() / cells, cells, dim])?.contiguous()?;
        let own = elementwise::mul(&self.words(own)?, &flags(false)?)?;
        let own = elementwise::add(&own, &elementwise::mul(&masks, &flags(true)?)?)?;
        Ok(elementwise::add(&elementwise::add(&self.words(latents)?, &own)?, &self.word_bias)?)
    }

    /// The codes of one scale alone, seen at its own grid: `[batch, cells, channels]`.
    fn own_map(&self, tokens: &Tensor<u32>, scale: usize) -> Result<Tensor<T>> {
        let side = self.patch_nums[scale];
        let map: Tensor<T> = self.tokenizer.quantiser().contribution(tokens, scale)?;
        self.seen(&map, side)
    }

    /// Latents at a grid of this side: `[batch, cells, channels]`.
    fn seen(&self, latents: &Tensor<T>, side: usize) -> Result<Tensor<T>> {
        let (batch, channels) = (latents.shape()[0], latents.shape()[1]);
        let seen = resize::resize(latents, [side, side], Mode::Area)?;
        Ok(seen.permute(&[0, 2, 3, 1])?.reshape(&[batch, side * side, channels])?)
    }

    /// What a plain pass over the tokens of all scales (`[batch, places]`) is fed at every scale but the first: the
    /// latents before it, and its own tokens. Both `[batch, places - 1, channels]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher_inputs(&self, tokens: &Tensor<u32>) -> Result<[Tensor<T>; 2]> {
        let (mut before, mut own) = (Vec::new(), Vec::new());
        let mut latents: Option<Tensor<T>> = None;
        let mut start = 0;
        for (scale, &side) in self.patch_nums.iter().enumerate() {
            let of_scale = tokens.narrow(1, start, side * side)?.contiguous()?;
            if let Some(latents) = &latents {
                before.push(self.seen(latents, side)?);
                own.push(self.own_map(&of_scale, scale)?);
            }
            let part = self.tokenizer.quantiser().contribution(&of_scale, scale)?;
            latents = Some(match latents {
                None => part,
                Some(latents) => elementwise::add(&latents, &part)?,
            });
            start += side * side;
        }
        let joined = |parts: &[Tensor<T>]| concatenate(&parts.iter().collect::<Vec<_>>(), 1);
        Ok([joined(&before)?, joined(&own)?])
    }

    /// Logits of all places under the next-scale head, or, with `masked` cells (of every scale but the first), under
    /// the mask head: `[batch, places, vocabulary]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher(&self, labels: &[u32], inputs: &[Tensor<T>; 2], masked: Option<&[bool]>) -> Result<Tensor<T>> {
        let condition = self.condition(labels, false)?;
        let words = match masked {
            None => elementwise::add(&self.words(&inputs[0])?, &self.word_bias)?,
            Some(masked) => self.mask_words(&inputs[0], &inputs[1], &masked.repeat(labels.len()))?,
        };
        let x = concatenate(&[&self.first(&condition)?, &words], 1)?;
        let x = elementwise::add(&x, &self.positions)?;
        let mask = Mask::Scales { patch_nums: self.patch_nums.clone(), kind: ScalesKind::MarkovSelf };
        let head = if masked.is_some() { Head::Masked } else { Head::NextScale };
        self.logits(&x, &condition, head, mask)
    }

    fn condition(&self, labels: &[u32], guided: bool) -> Result<Condition<T>> {
        let rows: Tensor<T> = self.classes.rows(labels, guided)?;
        self.blocks.condition(&rows.reshape(&[rows.shape()[0], rows.shape()[2]])?)
    }

    /// Draws pictures: the latents that all scales add up to. `observe` sees every call of the network. Where some tokens
    /// are given `kept` has an entry per place; else it is empty. These are never masked, and the steps of a scale share
    /// out the others.
    ///
    /// # Errors
    /// As [`Generator::draw`], or whatever `observe` returns.
    pub fn generate(
        &self,
        labels: &[u32],
        kept: &[Option<u32>],
        sampler: &Sampler<'_>,
        mut observe: impl FnMut(Call<'_, T>) -> Result<()>,
    ) -> Result<Tensor<T>> {
        let batch = labels.len();
        let cfg = sampler.sampling.cfg;
        let quantiser = self.tokenizer.quantiser();
        let full = self.patch_nums.last().copied().unwrap_or(1);
        let condition = self.condition(labels, true)?;
        let mut latents = Tensor::<T>::zeros(&self.device, &[batch, quantiser.channels(), full, full])?;
        let (mut place, mut asked) = (0, 0);
        for (scale, &side) in self.patch_nums.iter().enumerate() {
            let cells = side * side;
            let positions = self.positions.narrow(1, place, cells)?.contiguous()?;
            let ratio = scale as f32 / (self.patch_nums.len() - 1).max(1) as f32;
            let before = self.seen(&latents, side)?;
            let mut masked = vec![false; batch * cells];
            let mut tokens = vec![0; batch * cells];
            let kept = kept.get(place..place + cells).unwrap_or_default();
            let free: Vec<_> = (0..cells).filter(|cell| kept.get(*cell).is_none_or(Option::is_none)).collect();
            for step in 0..self.schedule[scale].len() {
                let map = Tensor::from_slice(&self.device, &[batch, cells], &tokens)?;
                let (x, head, t) = match (scale, step) {
                    (0, 0) => (self.first(&condition)?, Head::NextScale, cfg * ratio),
                    (_, 0) => {
                        let words = elementwise::add(&self.words(&before)?, &self.word_bias)?;
                        (twice(&words)?, Head::NextScale, cfg * ratio)
                    }
                    _ => {
                        let words = self.mask_words(&before, &self.own_map(&map, scale)?, &masked)?;
                        (twice(&words)?, Head::Masked, cfg * self.masked_cfg)
                    }
                };
                let x = elementwise::add(&x, &positions)?;
                let logits = guide(&self.logits(&x, &condition, head, Mask::Full)?, batch, t, Guidance::Extra)?;
                let drawn = sampler.draw(&logits, asked)?.to_vec()?;
                for (at, token) in around(drawn.clone(), kept).into_iter().enumerate() {
                    if step == 0 || masked[at] {
                        tokens[at] = token;
                    }
                }
                let seen = masked.clone();
                asked += cells;

                let open: usize = self.schedule[scale][step + 1..].iter().sum();
                if open > 0 {
                    // A greedy run ranks by the probabilities that it does not draw from.
                    let Sampling { temperature, top_k, top_p, .. } = sampler.sampling;
                    let temperature = if temperature == 0.0 { 1.0 } else { temperature };
                    let filter = Filter { temperature, top_k, top_p, ..Filter::default() };
                    let rows = logits.reshape(&[batch * cells, logits.shape()[2]])?;
                    let likely = probability(&sample::filter(&rows, &filter)?.probabilities, &tokens)?;
                    let open = open * free.len() / cells;
                    for picture in 0..batch {
                        let own = free.iter().map(|cell| picture * cells + cell);
                        let mut ranked: Vec<_> = own.filter(|at| step == 0 || masked[*at]).collect();
                        ranked.sort_by(|a, b| likely[*a].total_cmp(&likely[*b]));
                        ranked.iter().enumerate().for_each(|(rank, at)| masked[*at] = rank < open);
                    }
                } else {
                    masked.fill(false);
                }
                let (drawn, latents) = (&drawn[..], &latents);
                observe(Call {
                    scale,
                    step,
                    logits: &logits,
                    drawn,
                    tokens: &tokens,
                    masked: &seen,
                    open: &masked,
                    latents,
                })?;
            }
            let map = Tensor::from_vec(&self.device, &[batch, cells], tokens)?;
            latents = elementwise::add(&latents, &quantiser.contribution(&map, scale)?)?;
            place += cells;
        }
        Ok(latents)
    }

    /// Cells that the network is asked for in all, some more than once.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.patch_nums.iter().zip(&self.schedule).map(|(side, steps)| side * side * steps.len()).sum()
    }
}

impl<T: Float> Generator for Hmar<T> {
    fn about(&self) -> About<'_> {
        About {
            system: "hmar",
            classes: &self.names,
            sampling: self.sampling,
            tokens_per_picture: self.positions.shape()[1],
            has_tokenizer: self.tokenizer.has_decoder(),
            picture_size: [self.patch_nums.last().unwrap_or(&1) * self.tokenizer.factor(); 2],
            frames: 1,
            grids: self.patch_nums.iter().map(|side| [*side; 2]).collect(),
        }
    }

    fn draw_watched(&self, wanted: Wanted<'_>, watch: Watch<'_>) -> Result<Drawn> {
        let Wanted { labels, first_picture, sampling, given } = wanted;
        let kept = given.map(|given| self.tokenizer.kept::<T>(given, &self.device)).transpose()?.unwrap_or_default();
        let places = self.positions.shape()[1];
        let random = Random::Philox { first_picture };
        let sampler = Sampler::new(*sampling, random, self.asked());
        let batch = labels.len();
        let mut scales: Vec<Vec<u32>> = Vec::new();
        let latents = self.generate(labels, &kept, &sampler, |call| {
            scales.truncate(call.scale);
            scales.push(call.tokens.to_vec());
            let before: usize = self.patch_nums[..call.scale].iter().map(|side| side * side).sum();
            let of_scale: usize = self.schedule[call.scale][..=call.step].iter().sum();
            let count = call.tokens.len() / batch;
            let settles = |at: usize| (call.step == 0 || call.masked[at]) && !call.open[at];
            let of_picture = |picture: usize| {
                let settled = (0..count).filter(|cell| settles(picture * count + cell)).map(|cell| before + cell);
                drawn_cells(settled.collect(), &kept)
            };
            let cells: Vec<_> = (0..batch).map(of_picture).collect();
            let pictures = || {
                if !self.tokenizer.has_decoder() {
                    return Ok(Vec::new());
                }
                let map = Tensor::from_slice(&self.device, &[batch, count], call.tokens)?;
                let part = self.tokenizer.quantiser().contribution(&map, call.scale)?;
                per_entry(&self.tokenizer.decode(&elementwise::add(call.latents, &part)?)?)
            };
            watch(Seen::of_batch([before + of_scale, places], &cells, &pictures))
        })?;
        let of_picture = |picture: usize| {
            let each = scales.iter().flat_map(|tokens| {
                let cells = tokens.len() / labels.len();
                tokens[picture * cells..][..cells].iter().copied()
            });
            each.collect::<Vec<_>>()
        };
        let tokens = (0..labels.len()).flat_map(of_picture).collect();
        let tokens = Tensor::from_vec(&self.device, &[labels.len(), places], tokens)?;
        let pixels = self.tokenizer.has_decoder().then(|| self.tokenizer.decode(&latents)).transpose()?;
        to_host(&tokens, pixels.as_ref())
    }

    fn can_fill(&self) -> bool {
        self.tokenizer.has_encoder()
    }
}
