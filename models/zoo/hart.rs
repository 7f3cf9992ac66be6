//! HART: VAR asked with a text, whose last scale is codes and a continuous rest that a small diffusion draws.
//!
//! | part      | here                                                                                           |
//! |-----------|------------------------------------------------------------------------------------------------|
//! | tokenizer | VAR's; what the codes of all scales leave over is a continuous token (section 3.1)             |
//! | backbone  | RMS norm (one for both halves of a block), VAR's attention (`SelfAttention`), a gated network |
//! | order     | the text, then scale by scale; the text's last place stands for the first scale                |
//! | mask      | block-causal over scales, all of the text at once, its padding too                             |
//! | position  | rotary: text along a line; cells by row and column, stretched to the last scale's grid and put |
//! |           | behind the text; a vector per scale, made of sines and cosines as times are                    |
//! | head      | softmax over codes after a norm modulated by the text's largest values; at the last scale also |
//! |           | a diffusion head for the rest ([`DiffusionHead`], section 3.2), whose clean values are held to 1 |
//! | decoder   | one pass per scale; the last one predicts all of its cells at once, as its authors sample      |
//! | guidance  | `(1 + t) cond - t uncond`, `t` growing over the scales; the last two share theirs              |
//!
//! With exponential draws the codes are soft: a softmax of logits and Gumbel noise weighs the whole codebook, colder from
//! scale to scale (the official `more_smooth`).
//!
//! Paper: Tang et al. 2024, arXiv:2410.10812. Upstream: mit-han-lab/hart,
//! `hart/modules/models/transformer/hart_transformer_t2i.py`.
//!
//! The file is long because its rotary table, which is no rotation for cells, its network and its last scale are its own.

use smalti::attention::{KvCache, Mask};
use smalti::sample::{self, Filter, Guidance};
use smalti::{Device, Float, Tensor, Weight, activation, copy, elementwise, embedding, linear, norm};

use super::captions::CaptionFeatures;
use super::codes::{go_on, per_entry, to_host, to_planes};
use crate::backbone::adaln::{ModulatedHead, Norm, SelfAttention};
use crate::backbone::condition::TimeEmbedding;
use crate::backbone::vit::Linear;
use crate::decode::{
    Cells, Chance, Normals, OfPlaces, Random, Sampler, Step, Steps, concatenate, guide, twice, watched,
};
use crate::generator::whole_only;
use crate::head::diffusion::DiffusionHead;
use crate::tokenizer::multi_scale::MultiScaleTokenizer;
use crate::weights::Checkpoint;
use crate::{About, Drawn, Error, Generator, Result, Sampling, Seen, Wanted, Watch};

/// How the authors sample.
const SAMPLING: Sampling = Sampling { cfg: 4.5, temperature: 1.0, top_k: 600, top_p: 1.0, seed: 0 };

/// The official scales, for 1024 pixels.
pub(super) const PATCH_NUMS: [usize; 14] = [1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64];
/// A side no model comes near.
const LONGEST_SIDE: usize = 256;
/// What the diffusion's values are multiplied by to become latents.
const REST_SCALE: f32 = 0.6;

/// The model with its weights on a device.
pub struct Hart<T: smalti::Element> {
    device: Device,
    patch_nums: Vec<usize>,
    dim: usize,
    heads: usize,
    theta: f64,
    text_norm: Norm,
    text_embed: Linear,
    /// From sines and cosines of a scale's number to its vector.
    level_layers: TimeEmbedding,
    word_embed: Linear,
    blocks: Vec<Block<T>>,
    head: ModulatedHead,
    rest_norm: Norm,
    rest_head: DiffusionHead,
    tokenizer: MultiScaleTokenizer,
    sampling: Sampling,
    /// Channels of a row of a text.
    text: usize,
    /// What it draws, and their numbers.
    captions: Option<CaptionFeatures>,
    names: Vec<String>,
}

struct Block<T: smalti::Element> {
    norm: Norm,
    attn: SelfAttention<T>,
    gate: Weight,
    up: Weight,
    down: Weight,
}

/// The features of some texts.
#[derive(Debug, Clone)]
pub struct Text<T: Float> {
    /// `[batch, rows, text channels]`.
    pub features: Tensor<T>,
    /// Where each row stands, `[batch, rows]`: padding before a text at -1.
    pub positions: Vec<i32>,
}

/// What a generation draws.
#[derive(Debug, Clone)]
pub struct Hybrid<T: Float> {
    /// `[batch, places]`, scale by scale.
    pub tokens: Tensor<u32>,
    /// What every scale but the first was fed, `[batch, places - 1, channels]`.
    pub inputs: Tensor<T>,
    /// What the diffusion head was told, `[rows, cells, dim]`, cells of the last scale.
    pub condition: Tensor<T>,
    /// What it drew, `[batch, cells, channels]`.
    pub rest: Tensor<T>,
    /// What the decoder is fed, `[batch, channels, side, side]`.
    pub latents: Tensor<T>,
}

/// Cosines and sines of each row, `[rows, places, head_dim]`.
pub struct Rotary<T: Float> {
    /// Of every channel.
    pub cos: Tensor<T>,
    /// Of every channel; those of the first half are subtracted.
    pub sin: Tensor<T>,
    /// With that sign.
    signed: Tensor<T>,
}

impl<T: Float> Rotary<T> {
    /// `x cos + (-second half, first half) sin` for places from `from` on, `x` being `[rows, heads, seq, head_dim]`.
    fn turn(&self, x: &Tensor<T>, from: usize) -> Result<Tensor<T>> {
        let &[rows, _, seq, head_dim] = x.shape() else { unreachable!("the attention shapes it") };
        let half = head_dim / 2;
        let swapped = concatenate(&[&x.narrow(3, half, half)?, &x.narrow(3, 0, half)?], 3)?;
        let of_places = |table: &Tensor<T>| table.narrow(1, from, seq)?.reshape(&[rows, 1, seq, head_dim]);
        let turned = elementwise::mul(&swapped, &of_places(&self.signed)?)?;
        Ok(elementwise::add(&elementwise::mul(x, &of_places(&self.cos)?)?, &turned)?)
    }
}

/// A text as the scales see it.
struct Encoded<T: Float> {
    /// `[rows, text rows, dim]`.
    rows: Tensor<T>,
    /// The largest value of each channel over all rows, `[rows, dim]`.
    largest: Tensor<T>,
    rotary: Rotary<T>,
    /// A vector per scale, `[scales, dim]`.
    levels: Tensor<T>,
}

impl<T: Float> Encoded<T> {
    /// `x` (`[rows, seq, dim]`) with the vector of its scale.
    fn at_level(&self, x: &Tensor<T>, level: usize) -> Result<Tensor<T>> {
        Ok(elementwise::add(x, &self.levels.narrow(0, level, 1)?.reshape(&[1, 1, x.shape()[2]])?)?)
    }
}

impl<T: Float> Hart<T> {
    /// Loads official names under `hart.` and `vae.`; of the tokenizer the codes will do.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        let unread = ["ema_vocab_hit_SV", "attn_bias_for_masking", "lvl_1L", "zero_k_bias"];
        checkpoint.build(device, &unread, |root, notes| {
            let hart = root.at("hart");
            let patch_nums = config.counts("patch_nums").unwrap_or_else(|| PATCH_NUMS.to_vec());
            let sides = patch_nums.iter().all(|side| (1..=LONGEST_SIDE).contains(side));
            if !(2..=LONGEST_SIDE).contains(&patch_nums.len()) || !sides || patch_nums[0] != 1 {
                notes.add(format!("patch_nums {patch_nums:?} are not a 1 and more sides up to {LONGEST_SIDE}"));
                return Err(notes.error(checkpoint));
            }
            let [dim, channels] = hart.lengths("word_embed.weight");
            let text = hart.length("context_embed.weight", 1);
            let heads = config.count("num_heads").unwrap_or(dim / 64).max(1);
            if !dim.is_multiple_of(4 * heads) {
                notes.add(format!("{heads} heads do not fit {dim} channels"));
                return Err(notes.error(checkpoint));
            }
            let eps = config.number("norm_eps").unwrap_or(1e-6);
            let blocks = (0..hart.count("blocks")).map(|index| {
                let at = hart.at("blocks").at(index);
                let hidden = at.length("ffn.gate_proj.weight", 0);
                Ok(Block {
                    norm: Norm::layer_or_rms(&at, "ln_wo_grad", dim, eps)?,
                    attn: SelfAttention::load(&at.at("attn"), "qkv_proj", dim, heads)?,
                    gate: at.weight("ffn.gate_proj.weight", &[hidden, dim])?,
                    up: at.weight("ffn.up_proj.weight", &[hidden, dim])?,
                    down: at.weight("ffn.down_proj.weight", &[dim, hidden])?,
                })
            });
            let blocks = blocks.collect::<Result<Vec<_>>>()?;
            let rest = hart.at("diffloss.net");
            let model = Self {
                device: device.clone(),
                dim,
                heads,
                theta: f64::from(config.number("rope_theta").unwrap_or(10_000.0)),
                text_norm: Norm::layer_or_rms(&hart, "context_norm", text, eps)?,
                text_embed: Linear::load(&hart, "context_embed", [dim, text])?,
                level_layers: TimeEmbedding::load(&hart, "lvl_embed", dim)?,
                word_embed: Linear::load(&hart, "word_embed", [dim, channels])?,
                blocks,
                head: ModulatedHead::load(&hart, "head_nm", "head", dim, eps)?,
                rest_norm: Norm::layer_or_rms(&hart, "decoder_norm", dim, eps)?,
                rest_head: DiffusionHead::load(&rest, config.count("num_sampling_steps").unwrap_or(8))?.within(1.0),
                tokenizer: MultiScaleTokenizer::load(&root.at("vae"), notes, &patch_nums, &config)?,
                patch_nums,
                text,
                captions: None,
                names: Vec::new(),
                sampling: Sampling { temperature: 1.0, ..SAMPLING.noted(&config) },
            };
            let quantiser = model.tokenizer.quantiser();
            if [channels, model.rest_head.channels()].iter().any(|read| *read != 0 && *read != quantiser.channels()) {
                let (codes, rest) = (quantiser.channels(), model.rest_head.channels());
                notes.add(format!(
                    "codes of {codes} channels, inputs of {channels}, a rest of {rest}: expected as many"
                ));
            }
            Ok(model)
        })
    }

    /// How its authors sample.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &MultiScaleTokenizer {
        &self.tokenizer
    }

    /// The diffusion head alone.
    #[must_use]
    pub fn rest_head(&self) -> &DiffusionHead {
        &self.rest_head
    }

    /// Places of all scales, that of the first at the text's end.
    #[must_use]
    pub fn places(&self) -> usize {
        self.patch_nums.iter().map(|side| side * side).sum()
    }

    /// Codes of latents `[batch, channels, side, side]`, `[batch, places]`, and what all scales but the last leave over,
    /// `[batch, cells, channels]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn hybrid_tokens(&self, latents: &Tensor<T>) -> Result<(Tensor<u32>, Tensor<T>)> {
        let quantiser = self.tokenizer.quantiser();
        let scales = quantiser.quantise(latents)?;
        let before = quantiser.dequantise(&scales[..scales.len() - 1])?;
        let rest = elementwise::scale_add(latents, 1.0, &before, -1.0)?;
        let (batch, channels) = (latents.shape()[0], latents.shape()[1]);
        let cells = self.cells();
        let rest = rest.permute(&[0, 2, 3, 1])?.reshape(&[batch, cells, channels])?;
        Ok((concatenate(&scales.iter().collect::<Vec<_>>(), 1)?, rest))
    }

    /// Cells of the last scale.
    fn cells(&self) -> usize {
        self.patch_nums.last().map_or(0, |side| side * side)
    }

    /// The table for rows of texts at these positions (`[rows, text rows]`), the cells of all scales but the first behind
    /// them.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn rotary(&self, positions: &[i32], text_rows: usize) -> Result<Rotary<T>> {
        let head_dim = self.dim / self.heads;
        let full = self.patch_nums.last().map_or(1.0, |side| *side as f64);
        let frequency = |index: usize, pairs: usize| self.theta.powf(-(index as f64) / pairs as f64);
        let line = |position: &i32| {
            let (position, pairs) = (f64::from(*position), head_dim / 2);
            (0..head_dim).map(|channel| position * frequency(channel % pairs, pairs)).collect::<Vec<_>>()
        };
        // Quarters: row, row, column, column.
        let cell = |row: f64, column: f64| {
            let pairs = head_dim / 4;
            let angle = |channel: usize| {
                let coordinate = if channel < 2 * pairs { row } else { column };
                coordinate * frequency(channel % pairs, pairs)
            };
            (0..head_dim).map(angle).collect::<Vec<_>>()
        };
        let mut angles = Vec::new();
        for positions in positions.chunks(text_rows.max(1)) {
            angles.extend(positions.iter().flat_map(line));
            let last = positions.last().map_or(0.0, |last| f64::from(*last));
            for &side in &self.patch_nums[1..] {
                let at = |index: usize| index as f64 / side as f64 * full + last;
                angles.extend((0..side * side).flat_map(|index| cell(at(index / side), at(index % side))));
            }
        }
        let rows = positions.len() / text_rows.max(1);
        let shape = [rows, angles.len() / (rows * head_dim).max(1), head_dim];
        let table = |value: &dyn Fn(usize, f64) -> f64| {
            let values = angles.iter().enumerate().map(|(index, angle)| T::from_f64(value(index, *angle)));
            Tensor::from_vec(&self.device, &shape, values.collect())
        };
        let signed =
            |index: usize, angle: f64| if index % head_dim < head_dim / 2 { -angle.sin() } else { angle.sin() };
        Ok(Rotary {
            cos: table(&|_, angle| angle.cos())?,
            sin: table(&|_, angle| angle.sin())?,
            signed: table(&signed)?,
        })
    }

    fn encode(&self, text: &Text<T>, guided: bool) -> Result<Encoded<T>> {
        let &[batch, text_rows, channels] = text.features.shape() else {
            return Err(Error::Request(format!("hart: texts of shape {:?}", text.features.shape())));
        };
        if text_rows == 0 || text.positions.len() != batch * text_rows {
            let positions = text.positions.len();
            return Err(Error::Request(format!("hart: {positions} positions for {batch} texts of {text_rows} rows")));
        }
        let (mut features, mut positions) = (text.features.clone(), text.positions.clone());
        if guided {
            features = concatenate(&[&features, &Tensor::zeros(&self.device, &[batch, text_rows, channels])?], 0)?;
            positions.resize(2 * batch * text_rows, 0);
        }
        let times: Vec<_> = (0..self.patch_nums.len()).map(|level| level as f64).collect();
        let levels = self.level_layers.run::<T>(&self.device, &times)?.reshape(&[times.len(), self.dim])?;
        let rows = self.text_embed.run(&self.text_norm.run(&features)?)?;
        let values = rows.to_vec()?;
        let largest = values.chunks(text_rows * self.dim).flat_map(|text| {
            (0..self.dim).map(|channel| {
                let of_rows = text.iter().skip(channel).step_by(self.dim);
                of_rows.copied().reduce(|a, b| if b.to_f64() > a.to_f64() { b } else { a })
            })
        });
        let largest: Option<Vec<_>> = largest.collect();
        let largest = largest.expect("there is at least one row");
        Ok(Encoded {
            largest: Tensor::from_vec(&self.device, &[rows.shape()[0], self.dim], largest)?,
            rotary: self.rotary(&positions, text_rows)?,
            levels,
            rows,
        })
    }

    /// Runs the places of `x` (`[rows, seq, dim]`), which are those from `from` on; `seen` is told what each block gives.
    fn run(
        &self,
        x: &Tensor<T>,
        from: usize,
        text: &Encoded<T>,
        mut caches: Option<&mut [KvCache<T>]>,
        mask: Mask,
        mut seen: impl FnMut(usize, &Tensor<T>),
    ) -> Result<Tensor<T>> {
        let mut x = x.clone();
        let scale = 0.25 / ((self.dim / self.heads) as f32).sqrt();
        for (index, block) in self.blocks.iter().enumerate() {
            let options = block.attn.options(scale).mask(mask.clone());
            let turn = |x: Tensor<T>| text.rotary.turn(&x, from);
            let cache = caches.as_mut().map(|caches| &mut caches[index]);
            x = elementwise::add(&x, &block.attn.run(&block.norm.run(&x)?, turn, cache, &options)?)?;
            let h = block.norm.run(&x)?;
            let (gate, up) = (linear::linear(&h, &block.gate, None)?, linear::linear(&h, &block.up, None)?);
            let h = linear::linear(&activation::swiglu(&gate, &up)?, &block.down, None)?;
            x = elementwise::add(&x, &h)?;
            seen(index, &x);
        }
        Ok(x)
    }

    /// Logits of all places, `[batch, places, vocabulary]`; `inputs` (`[batch, places - 1, channels]`) are the latents so
    /// far at every scale but the first. `seen` is told what each block gives for the text and all places.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher(
        &self,
        text: &Text<T>,
        inputs: &Tensor<T>,
        seen: impl FnMut(usize, &Tensor<T>),
    ) -> Result<Tensor<T>> {
        let text = self.encode(text, false)?;
        let text_rows = text.rows.shape()[1];
        let words = self.word_embed.run(inputs)?;
        let mut parts = vec![text.at_level(&text.rows, 0)?];
        let mut ranks = vec![0; text_rows];
        let mut start = 0;
        for (level, side) in self.patch_nums.iter().enumerate().skip(1) {
            parts.push(text.at_level(&words.narrow(1, start, side * side)?.contiguous()?, level)?);
            ranks.resize(ranks.len() + side * side, level as u32);
            start += side * side;
        }
        let x = concatenate(&parts.iter().collect::<Vec<_>>(), 1)?;
        let x = self.run(&x, 0, &text, None, Mask::ranks(&ranks, false), seen)?;
        let x = x.narrow(1, text_rows - 1, self.places())?.contiguous()?;
        self.head.run(&x, &text.largest)
    }

    /// Codes of tokens `[batch, seq]`, or, with `noise`, of the whole codebook weighed by the guided logits:
    /// `[batch, seq, channels]`.
    fn codes(
        &self,
        tokens: &Tensor<u32>,
        logits: &Tensor<T>,
        sampling: &Sampling,
        noise: Option<(&mut Normals<'_>, f32)>,
    ) -> Result<Tensor<T>> {
        let codebook = &self.tokenizer.quantiser().codebook;
        let Some((exponentials, ratio)) = noise else {
            return Ok(embedding::embedding(codebook, tokens)?);
        };
        let (batch, seq, vocabulary) = (logits.shape()[0], logits.shape()[1], logits.shape()[2]);
        let rows = logits.reshape(&[batch * seq, vocabulary])?;
        let filter = Filter { top_k: sampling.top_k, top_p: sampling.top_p, ..Filter::default() };
        let kept = sample::filter(&rows, &filter)?.kept.to_vec()?;
        // Gumbel noise; so low that nothing is left where the filter took a token away.
        let noise = exponentials(batch * seq, vocabulary)?.into_iter().zip(&kept);
        let noise = noise.map(|(draw, kept)| T::from_f64(if *kept == 0 { -1e30 } else { -draw.ln() })).collect();
        let noise = Tensor::from_vec(&self.device, &[batch * seq, vocabulary], noise)?;
        let coldness = 1.0 / (0.27 * (1.0 - 0.95 * ratio)).max(0.005);
        let scores = elementwise::scale_add(&rows, (1.0 + ratio) * coldness, &noise, coldness)?;
        let all: Vec<_> = (0..vocabulary as u32).collect();
        let all = embedding::embedding(codebook, &Tensor::from_vec(&self.device, &[vocabulary], all)?)?;
        let soft = linear::matmul(&norm::softmax(&scores)?, &all)?;
        Ok(soft.reshape(&[batch, seq, all.shape()[1]])?)
    }

    /// Draws a picture for each text. `normals` are the diffusion head's noise; with `exponentials` the codes are soft.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails, or [`Error::Interrupted`] if `steps` breaks off.
    pub fn generate(
        &self,
        text: &Text<T>,
        sampler: &Sampler<'_>,
        normals: &mut Normals<'_>,
        mut exponentials: Option<&mut Normals<'_>>,
        steps: Steps<'_, T>,
    ) -> Result<Hybrid<T>> {
        let quantiser = self.tokenizer.quantiser();
        let batch = text.features.shape().first().copied().unwrap_or(0);
        let text = self.encode(text, true)?;
        let text_rows = text.rows.shape()[1];
        let capacity = text_rows + self.places() - 1;
        let caches = self.blocks.iter().map(|block| block.attn.cache(&self.device, 2 * batch, capacity));
        let mut caches = caches.collect::<Result<Vec<_>>>()?;
        let full = self.patch_nums.last().copied().unwrap_or(1);
        let mut tokens = Tensor::<u32>::zeros(&self.device, &[batch, self.places()])?;
        let mut latents = Tensor::<T>::zeros(&self.device, &[batch, quantiser.channels(), full, full])?;
        let mut inputs: Vec<Tensor<T>> = Vec::new();
        let mut x = text.at_level(&text.rows, 0)?;
        let (mut settled, mut from, last) = (0, 0, self.patch_nums.len() - 1);
        for (scale, &side) in self.patch_nums.iter().enumerate() {
            let h = self.run(&x, from, &text, Some(&mut caches), Mask::Full, |_, _| ())?;
            from += x.shape()[1];
            // The last scale is guided as the one before.
            let ratio = scale.min(last - 1) as f32 / last as f32;
            let t = sampler.sampling.cfg * ratio;
            let count = side * side;
            let h = h.narrow(1, h.shape()[1] - count, count)?.contiguous()?;
            let guided = guide(&self.head.run(&h, &text.largest)?, batch, t, Guidance::Extra)?;
            let drawn = sampler.draw(&guided, settled)?;
            copy::copy_into_slice(&drawn, &mut tokens, 1, settled)?;
            let cells = Cells::From(settled);
            settled += count;
            let step = Step { settled, logits: &guided, tokens: &drawn, cells, latents: Some(&latents) };
            go_on(steps(step))?;
            let noise = exponentials.as_mut().map(|draws| (&mut **draws, ratio));
            let codes = self.codes(&drawn, &guided, &sampler.sampling, noise)?;
            if scale < last {
                latents = elementwise::add(&latents, &quantiser.contribution_of(&codes, scale)?)?;
                let seen = quantiser.next_input(&latents, scale)?;
                x = twice(&text.at_level(&self.word_embed.run(&seen)?, scale + 1)?)?;
                inputs.push(seen);
                continue;
            }
            // The rest, given what was drawn.
            let said = self.word_embed.run(&embedding::embedding::<T>(&quantiser.codebook, &drawn)?)?;
            let condition = self.rest_norm.run(&elementwise::add(&h, &twice(&said)?)?)?;
            let z = condition.reshape(&[2 * batch * count, self.dim])?;
            let rest = self.rest_head.sample(&self.rest_head.condition(&z, &[])?, Some(1.0 + t), 1.0, normals)?;
            let rest = elementwise::scale_add(&rest, REST_SCALE, &rest, 0.0)?.reshape(codes.shape())?;
            let map = elementwise::add(&codes, &rest)?.reshape(&[batch, side, side, quantiser.channels()])?;
            let latents = elementwise::add(&latents, &map.permute(&[0, 3, 1, 2])?.contiguous()?)?;
            let inputs = concatenate(&inputs.iter().collect::<Vec<_>>(), 1)?;
            return Ok(Hybrid { tokens, inputs, condition, rest, latents });
        }
        unreachable!("the load finds at least two scales")
    }
}

impl<T: Float> Generator for Hart<T> {
    fn about(&self) -> About<'_> {
        About {
            system: "hart",
            classes: &self.names,
            sampling: self.sampling,
            tokens_per_picture: self.places(),
            has_tokenizer: self.tokenizer.has_decoder(),
            picture_size: [self.cells().isqrt() * self.tokenizer.factor(); 2],
            frames: 1,
            grids: self.patch_nums.iter().map(|side| [*side; 2]).collect(),
        }
    }

    fn use_captions(&mut self, captions: CaptionFeatures) -> Result<()> {
        self.names = captions.fitting(None, self.text)?.names();
        self.captions = Some(captions);
        Ok(())
    }

    fn draw_watched(&self, wanted: Wanted<'_>, watch: Watch<'_>) -> Result<Drawn> {
        let Wanted { labels, first_picture, sampling, given } = wanted;
        whole_only("hart", given)?;
        let captions = CaptionFeatures::given("hart", self.captions.as_ref())?;
        let (features, lengths) = captions.first::<T>(&self.device, labels, self.text)?;
        // Padding stands where the text ends.
        let of_text = |length: usize| (0..captions.rows()).map(move |row| row.min(length - 1) as i32);
        let positions = lengths.into_iter().flat_map(of_text).collect();
        let (places, cells) = (self.places(), self.cells());
        let sampler = Sampler::new(*sampling, Random::Philox { first_picture }, places);
        let mut chance = OfPlaces::new(&sampler);
        let last = |picture: usize| (places - cells..places).map(move |place| (picture, place));
        chance.begin(&(0..labels.len()).flat_map(last).collect::<Vec<_>>());
        let mut normals = |rows: usize, channels: usize| chance.normals(rows, channels);
        let (batch, text) = (labels.len(), Text { features, positions });
        let each = |step: Step<'_, T>| {
            let cells = vec![step.cells.of(0, step.tokens.shape()[1]); batch];
            let pictures = || match step.latents {
                Some(latents) if self.tokenizer.has_decoder() => per_entry(&self.tokenizer.decode(latents)?),
                _ => Ok(Vec::new()),
            };
            watch(Seen::of_batch([step.settled, places], &cells, &pictures))
        };
        let hybrid = watched(each, |steps| self.generate(&text, &sampler, &mut normals, None, steps))?;
        let pixels = self.tokenizer.has_decoder().then(|| self.tokenizer.decode(&hybrid.latents)).transpose()?;
        let tokens = to_host::<T>(&hybrid.tokens, None)?.tokens;
        Ok(Drawn { tokens, ..to_planes(&hybrid.latents, pixels.as_ref())? })
    }
}
