//! TransDiff: a transformer makes conditions, one diffusion over all tokens makes the picture; with multi-reference
//! autoregression, again and again, each picture knowing those before it.
//!
//! | part      | here                                                                                       |
//! |-----------|--------------------------------------------------------------------------------------------|
//! | tokenizer | MAR's KL autoencoder ([`KlAutoencoder`])                                                   |
//! | backbone  | ViT blocks over class vectors and mask tokens ([`Vit`])                                    |
//! | order     | all tokens at once; picture after picture, each coarser in what the next one reads (section 3.3) |
//! | mask      | full; block-causal over pictures, which a cache makes unnecessary                          |
//! | position  | learned, for encoder, conditions and decoder                                               |
//! | head      | a flow over all tokens that cross-attends the conditions ([`FlowDecoder`])                 |
//! | decoder   | one round, or one per picture; every round starts from the same noise                      |
//! | guidance  | on the velocity, `uncond + s (cond - uncond)`, `s` of each round its own                   |
//!
//! Of the pictures before, 2 x 2 latents are one token (section 3.3), so that four rounds fill the 256 places of one.
//!
//! Paper: Zhen et al. 2025, arXiv:2506.09482, sections 3.1 to 3.3. Upstream: TransDiff/TransDiff, `models/transdiff.py`,
//! `models/transdiff_mrar.py`.
//!
//! The file is long because it holds its head, a transformer over all tokens with cross-attention, and because it runs
//! one round, where the class sees the tokens, or several, which know the pictures before through a cache.

use smalti::attention::{self, Options};
use smalti::{Device, Float, Tensor, Weight, activation, copy, elementwise, embedding, norm};

use super::latents::{DrawsLatents, Latents, Partial, Progress, WantedLatents};
use crate::backbone::condition::TimeEmbedding;
use crate::backbone::masked::unpatched;
use crate::backbone::vit::{LayerNorm, Linear, Vit};
use crate::decode::{Chance, concatenate};
use crate::head::flow::Stochastic;
use crate::tokenizer::kl::KlAutoencoder;
use crate::weights::{Checkpoint, Loader};
use crate::{Error, Result, Sampling};

/// Where no configuration says otherwise.
const NORM_EPS: f32 = 1e-6;
/// Of a time from 0 to 1, before its channels.
const TIME_FACTOR: f64 = 1000.0;
/// Latents along one side of what a later round reads as one token.
const PATCH: usize = 2;

struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj1: Linear,
    norm2: LayerNorm,
    wq: Linear,
    wk: Linear,
    wv: Linear,
    proj2: Linear,
    norm3: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    /// Shift, scale, gate of the self-attention, then of the network: `[1, 6, dim]`.
    modulation: Tensor<f32>,
}

/// A flow over all tokens of a picture, which sees the conditions by cross-attention.
pub struct FlowDecoder {
    width: usize,
    heads: usize,
    input: Linear,
    /// `[1, places, width]`.
    positions: Tensor<f32>,
    time: TimeEmbedding,
    time_modulation: Linear,
    condition: Linear,
    blocks: Vec<Block>,
    /// Shift, scale: `[1, 2, width]`.
    last_modulation: Tensor<f32>,
    last: Linear,
}

/// Keys and values of the conditions in each block of a [`FlowDecoder`].
pub struct Conditions<T: smalti::Element>(Vec<[Tensor<T>; 2]>);

impl FlowDecoder {
    fn load(loader: &Loader<'_>, dim: usize, heads: usize, eps: f32) -> Result<Self> {
        let [width, channels] = loader.lengths("input_proj.weight");
        let blocks = (0..loader.count("res_blocks")).map(|index| {
            let at = loader.at("res_blocks").at(index);
            let square = |name: &str| Linear::load(&at, name, [width, width]);
            let hidden = at.length("mlp.fc1.weight", 0);
            Ok(Block {
                norm1: LayerNorm::load(&at, "norm1", width, eps)?,
                qkv: Linear::load(&at, "attn1.qkv", [3 * width, width])?,
                proj1: square("attn1.proj")?,
                norm2: LayerNorm::load(&at, "norm2", width, eps)?,
                wq: square("attn2.wq")?,
                wk: square("attn2.wk")?,
                wv: square("attn2.wv")?,
                proj2: square("attn2.proj")?,
                norm3: LayerNorm::load(&at, "norm3", width, eps)?,
                fc1: Linear::load(&at, "mlp.fc1", [hidden, width])?,
                fc2: Linear::load(&at, "mlp.fc2", [width, hidden])?,
                modulation: at.vector("scale_shift_table", &[1, 6, width])?,
            })
        });
        let (positions, last) = ("diffusion_pos_embed_learned", loader.at("final_layer"));
        let time = loader.at("time_embed");
        Ok(Self {
            width,
            heads,
            input: Linear::load(loader, "input_proj", [width, channels])?,
            positions: loader.vector(positions, &[1, loader.length(positions, 1), width])?,
            time: TimeEmbedding::load_as(&time.at("time_embedder"), ["linear_1", "linear_2"], width)?,
            time_modulation: Linear::load(&time, "time_proj", [6 * width, width])?,
            condition: Linear::load(loader, "cond_embed", [width, dim])?,
            blocks: blocks.collect::<Result<_>>()?,
            last_modulation: last.vector("scale_shift_table", &[1, 2, width])?,
            last: Linear::load(&last, "linear", [channels, width])?,
        })
    }

    /// Tokens of a picture.
    fn places(&self) -> usize {
        self.positions.shape()[1]
    }

    fn split<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let &[batch, seq, channels] = x.shape() else {
            return Err(Error::Request(format!("a sequence of shape {:?}, expected [batch, seq, dim]", x.shape())));
        };
        let head_dim = self.width / self.heads.max(1);
        let split = x.reshape(&[batch, seq, channels / head_dim.max(1), head_dim])?;
        Ok(split.permute(&[0, 2, 1, 3])?)
    }

    fn attend<T: Float>(&self, q: &Tensor<T>, k: &Tensor<T>, v: &Tensor<T>) -> Result<Tensor<T>> {
        let scale = ((self.width / self.heads.max(1)) as f32).powf(-0.5);
        let y = attention::attention(q, k, v, &Options::new(scale))?.y;
        Ok(y.permute(&[0, 2, 1, 3])?.reshape(&[q.shape()[0], q.shape()[2], self.width])?)
    }

    /// What its blocks need of conditions `[rows, tokens, dim]`; the same at all times.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn conditions<T: Float>(&self, states: &Tensor<T>) -> Result<Conditions<T>> {
        let states = self.condition.run(states)?;
        let of_block = |block: &Block| Ok([self.split(&block.wk.run(&states)?)?, self.split(&block.wv.run(&states)?)?]);
        Ok(Conditions(self.blocks.iter().map(of_block).collect::<Result<_>>()?))
    }

    /// The velocity from data to noise at tokens `x` (`[rows, places, channels]`) and `times` from 0 (data) to 1000, one
    /// per row, or one.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn velocity<T: Float>(&self, x: &Tensor<T>, times: &[f64], conditions: &Conditions<T>) -> Result<Tensor<T>> {
        let width = self.width;
        let silu = |x: &Tensor<T>| activation::activation(x, activation::Activation::Silu);
        let time = self.time.run::<T>(x.device(), times)?;
        let six = self.time_modulation.run(&silu(&time)?)?.reshape(&[times.len(), 6, width])?;
        let mut x = elementwise::add(&self.input.run(x)?, &copy::convert(&self.positions)?)?;
        for (block, [k, v]) in self.blocks.iter().zip(&conditions.0) {
            let six = elementwise::add(&six, &copy::convert(&block.modulation)?)?;
            let part = |index: usize| six.narrow(1, index, 1)?.contiguous();

            let h = norm::modulate(&block.norm1.run(&x)?, &part(1)?, &part(0)?)?;
            let qkv = self.split(&block.qkv.run(&h)?)?;
            let third = |index: usize| qkv.narrow(1, index * self.heads, self.heads);
            let h = block.proj1.run(&self.attend(&third(0)?, &third(1)?, &third(2)?)?)?;
            x = norm::gated_add(&x, &part(2)?, &h)?;

            let q = self.split(&block.wq.run(&block.norm2.run(&x)?)?)?;
            x = elementwise::add(&x, &block.proj2.run(&self.attend(&q, k, v)?)?)?;

            let h = norm::modulate(&block.norm3.run(&x)?, &part(4)?, &part(3)?)?;
            let h = activation::activation(&block.fc1.run(&h)?, activation::Activation::Gelu)?;
            x = norm::gated_add(&x, &part(5)?, &block.fc2.run(&h)?)?;
        }
        let time = time.reshape(&[times.len(), 1, width])?.broadcast(&[times.len(), 2, width])?.contiguous()?;
        let two = elementwise::add(&time, &copy::convert(&self.last_modulation)?)?;
        let part = |index: usize| two.narrow(1, index, 1)?.contiguous();
        let h = norm::modulate(&norm::layer_norm(&x, None, None, NORM_EPS)?, &part(1)?, &part(0)?)?;
        self.last.run(&h)
    }
}

/// The model with its weights on a device.
pub struct TransDiff {
    classes: Weight,
    /// `[1, dim]`.
    none: Tensor<f32>,
    /// Of patches of the pictures before; a model of one round has it without a use.
    input: Linear,
    input_norm: LayerNorm,
    /// `[1, 1 or places of the first round, dim]`.
    masks: Tensor<f32>,
    /// How often the class stands before the tokens.
    buffer: usize,
    /// `[1, buffer + places, dim]`.
    positions: Tensor<f32>,
    encoder: Vit,
    norm: LayerNorm,
    /// Of the conditions: `[1, places, dim]`.
    condition_positions: Tensor<f32>,
    decoder: FlowDecoder,
    steps: Stochastic,
    /// The guidance scale of each round.
    scales: Vec<f32>,
    latents: Latents,
}

/// One round of a generation.
pub struct Round<'a, T: smalti::Element> {
    /// What the decoder sees, `[rows, tokens, dim]`, under guidance the rows without a class below the others.
    pub conditions: &'a Tensor<T>,
    /// The picture's tokens at the end, `[batch, places, channels]`.
    pub tokens: &'a Tensor<T>,
}

impl TransDiff {
    /// Loads official names, and the tokenizer under `vae.` if it is there.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &[], |root, notes| {
            let [dim, values] = root.lengths("z_proj.weight");
            let places = root.length("diffusion_pos_embed_learned", 1);
            let buffer = root.length("encoder_pos_embed_learned", 1).saturating_sub(places);
            let masks = root.length("mask_token", 1);
            let rounds = if masks > 1 { places / masks } else { 1 };
            let heads = config.count("heads").unwrap_or(if dim == 768 { 12 } else { 16 });
            let eps = config.number("norm_eps").unwrap_or(NORM_EPS);
            let classes = root.length("class_emb.weight", 0);
            let mut scales = config.numbers("cfg").unwrap_or_else(|| vec![1.3]);
            scales.resize(rounds, scales.last().copied().unwrap_or(1.0));
            let net = root.at("diffdecoder.net");
            let decoder = FlowDecoder::load(&net, dim, heads, eps)?;
            let cfg = scales.last().copied().unwrap_or(1.0);
            let model = Self {
                classes: root.weight("class_emb.weight", &[classes, dim])?,
                none: root.vector("fake_latent", &[1, dim])?,
                input: Linear::load(root, "z_proj", [dim, values])?,
                input_norm: LayerNorm::load(root, "z_proj_ln", dim, NORM_EPS)?,
                masks: root.vector("mask_token", &[1, masks, dim])?,
                buffer,
                positions: root.vector("encoder_pos_embed_learned", &[1, buffer + places, dim])?,
                encoder: Vit::load(root, "encoder_blocks", dim, heads, eps)?,
                norm: LayerNorm::load(root, "encoder_norm", dim, eps)?,
                condition_positions: root.vector("diffusion_pos_embed_learned", &[1, places, dim])?,
                steps: Stochastic {
                    // The last step is counted, too.
                    steps: config.count("num_sampling_steps").unwrap_or(100).max(2) - 1,
                    last: 0.04,
                    last_score: true,
                    drift: config.number("scale_0").unwrap_or(0.89).into(),
                    noise: config.number("scale_1").unwrap_or(0.95).into(),
                },
                latents: Latents::load(checkpoint, root, &config, [decoder.places(), classes], cfg)?,
                decoder,
                scales,
            };
            if masks > 1 && rounds * masks != places {
                notes.add(format!("rounds of {masks} tokens do not fill {places} places"));
            }
            let channels = model.channels();
            if rounds > 1 && (values != channels * PATCH * PATCH || model.decoder.places() != masks * PATCH * PATCH) {
                let (tokens, patch) = (model.decoder.places(), PATCH * PATCH);
                notes.add(format!(
                    "{masks} tokens of {values} values do not hold {tokens} of {channels}, {patch} in each"
                ));
            }
            Ok(model)
        })
    }

    /// The decoder alone.
    #[must_use]
    pub fn decoder(&self) -> &FlowDecoder {
        &self.decoder
    }

    /// How its authors sample; `cfg` is the last round's.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        self.latents.sampling
    }

    /// Values of a latent.
    fn channels(&self) -> usize {
        self.decoder.last.outputs()
    }

    /// Each round's guidance scale: the authors' own where the last one's is `cfg`, otherwise nearer to 1 or farther from
    /// it in proportion.
    fn scales(&self, cfg: f32) -> Vec<f32> {
        let own = self.scales.last().copied().unwrap_or(1.0);
        if cfg == own || own == 1.0 {
            return if cfg == own { self.scales.clone() } else { vec![cfg; self.scales.len()] };
        }
        self.scales.iter().map(|scale| 1.0 + (scale - 1.0) * (cfg - 1.0) / (own - 1.0)).collect()
    }

    /// The class of each row as often as it stands before the tokens; then, if `guided`, as many rows of none.
    fn buffer<T: Float>(&self, labels: &[u32], guided: bool) -> Result<Tensor<T>> {
        let classes = self.latents.classes();
        if let Some(label) = labels.iter().find(|label| **label as usize >= classes) {
            return Err(Error::Request(format!("class {label}, expected 0 to {}", classes.saturating_sub(1))));
        }
        let dim = self.none.shape()[1];
        let ids = Tensor::from_vec(&self.latents.device, &[labels.len(), 1], labels.to_vec())?;
        let mut rows = embedding::embedding::<T>(&self.classes, &ids)?;
        if guided {
            let none = self.none.reshape(&[1, 1, dim])?.broadcast(&[labels.len(), 1, dim])?.contiguous()?;
            rows = concatenate(&[&rows, &copy::convert(&none)?], 0)?;
        }
        Ok(rows.broadcast(&[rows.shape()[0], self.buffer, dim])?.contiguous()?)
    }

    /// Draws latents, `[batch, channels, side, side]`.
    ///
    /// # Errors
    /// As [`crate::Generator::draw`], or whatever `progress` returns.
    pub fn generate<T: Float>(
        &self,
        labels: &[u32],
        sampling: &Sampling,
        chance: &mut dyn Chance,
        mut progress: impl FnMut(&Round<'_, T>) -> Result<()>,
    ) -> Result<Tensor<T>> {
        let scales = self.scales(sampling.cfg);
        let guided = scales.iter().any(|scale| *scale > 1.0);
        let (batch, places, dim) = (labels.len(), self.condition_positions.shape()[1], self.none.shape()[1]);
        let rows = if guided { 2 * batch } else { batch };
        let (cells, channels) = (self.decoder.places(), self.channels());
        let of_round = places / scales.len();

        let all: Vec<_> = (0..batch).flat_map(|picture| (0..cells).map(move |cell| (picture, cell))).collect();
        chance.begin(&all);
        let mut noise = || -> Result<Tensor<T>> {
            let values = chance.normals(all.len(), channels)?.into_iter().map(T::from_f64).collect();
            Ok(Tensor::from_vec(&self.latents.device, &[batch, cells, channels], values)?)
        };
        let start = noise()?;

        let mut caches = self.encoder.caches(&self.latents.device, rows, self.buffer + places)?;
        let mut run = |x: &Tensor<T>, first: usize| -> Result<Tensor<T>> {
            let positions = self.positions.narrow(1, first, x.shape()[1])?.contiguous()?;
            let x = self.input_norm.run(&elementwise::add(x, &copy::convert(&positions)?)?)?;
            self.norm.run(&self.encoder.run(&x, None, Some(&mut caches), &self.encoder.options())?)
        };
        let buffer = self.buffer::<T>(labels, guided)?;
        let masks = self.masks.broadcast(&[rows, of_round, dim])?.contiguous()?;
        let masks = copy::convert(&masks)?;
        let mut states: Option<Tensor<T>> = None;
        let mut tokens = start.clone();
        for (round, scale) in scales.iter().enumerate() {
            let next = match round {
                // A model of one round lets the class see the tokens, too.
                0 if scales.len() == 1 => {
                    run(&concatenate(&[&buffer, &masks], 1)?, 0)?.narrow(1, self.buffer, places)?.contiguous()?
                }
                0 => {
                    run(&buffer, 0)?;
                    run(&masks, self.buffer)?
                }
                _ => {
                    let patches = self.input.run(&patched(&tokens)?)?;
                    let patches = if guided { concatenate(&[&patches, &patches], 0)? } else { patches };
                    run(&patches, self.buffer + round * of_round)?
                }
            };
            let positions = self.condition_positions.narrow(1, round * of_round, of_round)?.contiguous()?;
            let next = elementwise::add(&next, &copy::convert(&positions)?)?;
            let known = match &states {
                Some(states) => concatenate(&[states, &next], 1)?,
                None => next,
            };
            let scale = Some(*scale).filter(|scale| *scale > 1.0);
            let seen = if scale.is_some() { known.clone() } else { known.narrow(0, 0, batch)?.contiguous()? };
            let conditions = self.decoder.conditions(&seen)?;
            // Here time runs from noise to data.
            let velocity = |x: &Tensor<T>, time: f64| {
                let velocity = self.decoder.velocity(x, &[TIME_FACTOR * (1.0 - time)], &conditions)?;
                Ok(elementwise::scale_add(&velocity, -1.0, &velocity, 0.0)?)
            };
            tokens = self.steps.run(start.clone(), scale, velocity, &mut noise)?;
            progress(&Round { conditions: &seen, tokens: &tokens })?;
            states = Some(known);
        }
        unpatched(&tokens, 1)
    }
}

/// Tokens `[batch, side side, channels]` of a picture, 2 x 2 of them as one: `[batch, side side / 4, 4 channels]`.
fn patched<T: Float>(tokens: &Tensor<T>) -> Result<Tensor<T>> {
    let (batch, places, channels) = (tokens.shape()[0], tokens.shape()[1], tokens.shape()[2]);
    let side = places.isqrt() / PATCH;
    let grid = tokens.reshape(&[batch, side, PATCH, side, PATCH, channels])?.permute(&[0, 1, 3, 5, 2, 4])?;
    Ok(grid.contiguous()?.reshape(&[batch, side * side, channels * PATCH * PATCH])?)
}

impl<T: Float> DrawsLatents<T> for TransDiff {
    const SYSTEM: &'static str = "transdiff";
    type Tokenizer = KlAutoencoder;

    fn latents(&self) -> &Latents {
        &self.latents
    }

    fn draw_latents(
        &self,
        WantedLatents { labels, sampler, .. }: WantedLatents<'_, T>,
        chance: &mut dyn Chance,
        progress: Progress<'_, T>,
    ) -> Result<Tensor<T>> {
        let mut round = 0;
        self.generate(labels, &sampler.sampling, chance, |_| {
            round += 1;
            progress(Partial::count(round * self.decoder.places() / self.scales.len()))
        })
    }
}
