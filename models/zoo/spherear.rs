//! SphereAR: next-token prediction of continuous tokens that all have the same length.
//!
//! | part      | here                                                                                       |
//! |-----------|--------------------------------------------------------------------------------------------|
//! | tokenizer | an autoencoder with latents on a sphere ([`SphericalAutoencoder`])                         |
//! | backbone  | Llama blocks ([`Llama`]) after a norm of tokens and class vectors alike                    |
//! | order     | raster                                                                                     |
//! | mask      | causal; several class tokens stand before                                                  |
//! | position  | rotary by the centres of the cells; learned ones are added for the head                    |
//! | head      | a flow over one token ([`FlowHead`]), brought back to the sphere (section 3.2)             |
//! | decoder   | sequential with a cache                                                                    |
//! | guidance  | on the head's velocity, `uncond + s (cond - uncond)`, `s` constant or rising from 1 over the tokens; what is fed back has the same length whatever `s` is |
//!
//! At a scale of 1, as with the first token under rising guidance, the rows with and without a class draw apart from
//! each other, as in the official code.
//!
//! Paper: Ke and Xue 2025, arXiv:2509.24335, sections 3.1 and 3.2. Upstream: guolinke/SphereAR, `SphereAR/model.py`.
//!
//! The file is long because it holds its head, a flow with modulations that several layers share, and because a step
//! without guidance draws for the rows with and without a class apart.

use smalti::attention::{Align, KvCache, Mask, Options};
use smalti::rope::Table;
use smalti::sample::Schedule;
use smalti::{Device, Float, Tensor, Weight, activation, copy, elementwise, embedding, norm};

use super::latents::{DrawsLatents, Latents, Partial, Progress, WantedLatents};
use crate::backbone::condition::TimeEmbedding;
use crate::backbone::llama::{Llama, Sizes, gated_by_half};
use crate::backbone::vit::{LayerNorm, Linear};
use crate::decode::{Chance, concatenate, guidance_over_steps, twice};
use crate::head::flow::Stochastic;
use crate::tokenizer::spherical::{SphericalAutoencoder, centred_table, on_sphere};
use crate::weights::{Checkpoint, Loader};
use crate::{Error, Result, Sampling};

/// Of every norm here.
const EPS: f32 = 1e-6;
/// Of a time from 0 to 1, before its channels.
const TIME_FACTOR: f64 = 1000.0;

/// Residual SwiGLU layers over one token; a few of them share one modulation.
pub struct FlowHead {
    channels: usize,
    width: usize,
    time: TimeEmbedding,
    condition: Linear,
    input: Linear,
    modulations: Vec<Linear>,
    layers: Vec<(LayerNorm, [Linear; 2])>,
    last_modulation: Linear,
    last: Linear,
    steps: Stochastic,
}

impl FlowHead {
    fn load(loader: &Loader<'_>, dim: usize, steps: Stochastic) -> Result<Self> {
        let [width, channels] = loader.lengths("input_proj.weight");
        let layers = (0..loader.count("res_blocks")).map(|index| {
            let at = loader.at("res_blocks").at(index);
            let hidden = at.length("w2.weight", 1);
            let layers = [Linear::load(&at, "w1", [2 * hidden, width])?, Linear::load(&at, "w2", [width, hidden])?];
            Ok((LayerNorm::load(&at, "norm", width, EPS)?, layers))
        });
        let modulations = (0..loader.count("ada_ln_blocks"))
            .map(|index| Linear::load(&loader.at("ada_ln_blocks"), &index.to_string(), [3 * width, width]));
        Ok(Self {
            channels,
            width,
            time: TimeEmbedding::load(loader, "time_embed", width)?,
            condition: Linear::load(loader, "cond_embed", [width, dim])?,
            input: Linear::load(loader, "input_proj", [width, channels])?,
            modulations: modulations.collect::<Result<_>>()?,
            layers: layers.collect::<Result<_>>()?,
            last_modulation: Linear::load(loader, "final_layer.ada_ln_modulation", [2 * width, width])?,
            last: Linear::load(loader, "final_layer.linear", [channels, width])?,
            steps,
        })
    }

    /// The velocity at tokens `x` (`[rows, channels]`) and `times` (one per row, or one) under states `[rows, dim]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn velocity<T: Float>(&self, x: &Tensor<T>, times: &[f64], states: &Tensor<T>) -> Result<Tensor<T>> {
        let (rows, width) = (x.shape()[0], self.width);
        let silu = |x: &Tensor<T>| activation::activation(x, activation::Activation::Silu);
        let times: Vec<_> = times.iter().map(|time| TIME_FACTOR * time).collect();
        let time = self.time.run(x.device(), &times)?;
        let y = silu(&elementwise::add(&self.condition.run(states)?, &time)?)?;
        let parts = |modulation: &Linear, count: usize| -> Result<Vec<Tensor<T>>> {
            let all = modulation.run(&y)?.reshape(&[rows, count, 1, width])?;
            (0..count).map(|index| Ok(all.narrow(1, index, 1)?.reshape(&[rows, 1, width])?)).collect()
        };
        let mut h = self.input.run(x)?.reshape(&[rows, 1, width])?;
        let of_one = (self.layers.len() / self.modulations.len().max(1)).max(1);
        for (layers, modulation) in self.layers.chunks(of_one).zip(&self.modulations) {
            let parts = parts(modulation, 3)?;
            for (norm, [w1, w2]) in layers {
                let inner = norm::modulate(&norm.run(&h)?, &parts[0], &parts[1])?;
                h = norm::gated_add(&h, &parts[2], &w2.run(&gated_by_half(&w1.run(&inner)?)?)?)?;
            }
        }
        let parts = parts(&self.last_modulation, 2)?;
        let h = norm::modulate(&norm::layer_norm(&h, None, None, EPS)?, &parts[0], &parts[1])?;
        Ok(self.last.run(&h)?.reshape(&[rows, self.channels])?)
    }

    /// Draws a token for each row of `states` (`[rows, dim]`): `[rows, channels]`, of any length. With a guidance
    /// `scale`, the second half of the states is without a class. `normals` are those of each of `pictures` one after
    /// the other: for each of its rows the start, then the noise of every step.
    fn sample<T: Float>(
        &self,
        states: &Tensor<T>,
        scale: Option<f32>,
        pictures: usize,
        normals: &[f64],
    ) -> Result<Tensor<T>> {
        let rows = if scale.is_some() { states.shape()[0] / 2 } else { states.shape()[0] };
        let (draws, of_row) = (self.steps.steps + 1, (self.steps.steps + 1) * self.channels);
        let mut draw = 0;
        let mut next = || -> Result<Tensor<T>> {
            // Row by row: first the pictures with their class, then without.
            let row = |row: usize| {
                let start = ((row % pictures) * (rows / pictures) + row / pictures) * of_row + draw * self.channels;
                &normals[start..start + self.channels]
            };
            let values = (0..rows).flat_map(row).map(|value| T::from_f64(*value)).collect();
            debug_assert!(draw < draws);
            draw += 1;
            Ok(Tensor::from_vec(states.device(), &[rows, self.channels], values)?)
        };
        let start = next()?;
        self.steps.run(start, scale, |x, time| self.velocity(x, &[time], states), next)
    }
}

/// The model with its weights on a device.
pub struct SphereAr {
    /// A row per class, and one for none; each holds several tokens.
    classes: Weight,
    class_tokens: usize,
    input: Linear,
    input_norm: Tensor<f32>,
    llama: Llama,
    /// `[places, dim]`.
    head_positions: Tensor<f32>,
    head: FlowHead,
    guidance: Schedule,
    latents: Latents<SphericalAutoencoder>,
}

/// One token of a generation.
pub struct Step<'a, T: smalti::Element> {
    /// The states that the head was given, `[rows, dim]`, under guidance those without a class below the others.
    pub states: &'a Tensor<T>,
    /// What it drew, before it was brought to the sphere: as many rows, or, guided together, half of them.
    pub drawn: &'a Tensor<T>,
}

impl SphereAr {
    /// Loads official names.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        // Tables that follow from the sizes.
        let unread = ["freqs_cis"];
        checkpoint.build(device, &unread, |root, notes| {
            let [places, dim] = root.lengths("pos_for_diff.weight");
            let [rows, columns] = root.lengths("cls_embedding.weight");
            if dim == 0 || columns % dim != 0 {
                root.note(
                    "cls_embedding.weight",
                    format!("has rows of {columns}, expected whole tokens of {dim} channels"),
                );
            }
            let channels = root.length("proj_in.weight", 1);
            // Every official size has heads of 64.
            let heads = config.count("n_head").unwrap_or(dim / 64).max(1);
            let steps = Stochastic {
                steps: config.count("sample_steps").unwrap_or(100).max(1),
                last: config.number("last_step_size").unwrap_or(0.04).into(),
                last_score: false,
                drift: 1.0,
                noise: 1.0,
            };
            let tokenizer =
                root.has("vae").then(|| SphericalAutoencoder::load(&root.at("vae"), &config)).transpose()?;
            let of = [places, rows.saturating_sub(1)];
            let cfg = config.number("cfg").unwrap_or(4.6);
            let model = Self {
                classes: root.weight("cls_embedding.weight", &[rows, columns])?,
                class_tokens: columns / dim.max(1),
                input: Linear::load(root, "proj_in", [dim, channels])?,
                input_norm: root.vector("emb_norm.weight", &[dim])?,
                llama: Llama::load(root, Sizes { dim, heads, kv_heads: heads, norm_eps: EPS })?,
                head_positions: root.vector("pos_for_diff.weight", &[places, dim])?,
                head: FlowHead::load(&root.at("head.net"), dim, steps)?,
                guidance: guidance_over_steps(&config),
                latents: Latents::new(checkpoint, device, &config, of, cfg, tokenizer),
            };
            let of_tokenizer = model.latents.tokenizer.as_ref().map_or(channels, SphericalAutoencoder::channels);
            for (what, got) in [("head draws", model.head.channels), ("tokenizer has", of_tokenizer)] {
                if got != channels {
                    notes.add(format!("the {what} tokens of {got} values, the transformer reads {channels}"));
                }
            }
            Ok(model)
        })
    }

    /// The head alone.
    #[must_use]
    pub fn head(&self) -> &FlowHead {
        &self.head
    }

    /// The tokenizer, if the checkpoint holds one.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&SphericalAutoencoder> {
        self.latents.tokenizer.as_ref()
    }

    fn places(&self) -> usize {
        self.head_positions.shape()[0]
    }

    /// The rotary rows of class tokens and cells; the last cell is never an input.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn table(&self) -> Result<Table> {
        let head_dim = self.llama.sizes().head_dim();
        let whole = centred_table(&self.latents.device, self.places().isqrt(), head_dim, self.class_tokens)?;
        let rows = (self.class_tokens + self.places()).saturating_sub(1);
        Ok(Table { cos: whole.cos.narrow(0, 0, rows)?.contiguous()?, sin: whole.sin.narrow(0, 0, rows)?.contiguous()? })
    }

    /// The class tokens of `[rows]`, then, if `guided`, as many of none: `[rows, class tokens, dim]`.
    fn condition<T: Float>(&self, labels: &[u32], guided: bool) -> Result<Tensor<T>> {
        let none = self.latents.classes() as u32;
        if let Some(label) = labels.iter().find(|label| **label >= none) {
            return Err(Error::Request(format!("class {label}, expected 0 to {}", none.saturating_sub(1))));
        }
        let mut ids = labels.to_vec();
        ids.resize(if guided { 2 } else { 1 } * labels.len(), none);
        let ids = Tensor::from_vec(&self.latents.device, &[ids.len()], ids)?;
        let rows = embedding::embedding::<T>(&self.classes, &ids)?;
        Ok(rows.reshape(&[rows.shape()[0], self.class_tokens, self.llama.sizes().dim])?)
    }

    /// States of `x` (`[rows, seq, dim]`) after what the caches hold.
    fn run<T: Float>(&self, x: &Tensor<T>, table: &Table, caches: &mut [KvCache<T>]) -> Result<Tensor<T>> {
        let x = norm::rms_norm(x, Some(&self.input_norm), EPS)?;
        let options = Options::new((self.llama.sizes().head_dim() as f32).powf(-0.5));
        self.llama.run(&x, table, caches, &options.mask(Mask::Causal { align: Align::BottomRight }))
    }

    /// What the head is given at each of the known `latents` (`[batch, places, channels]`): `[batch, places, dim]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn plain<T: Float>(&self, labels: &[u32], latents: &Tensor<T>) -> Result<Tensor<T>> {
        let before = latents.narrow(1, 0, self.places().saturating_sub(1))?.contiguous()?;
        let x = concatenate(&[&self.condition(labels, false)?, &self.input.run(&before)?], 1)?;
        let mut caches = self.llama.caches(labels.len(), x.shape()[1])?;
        let x = self.run(&x, &self.table()?, &mut caches)?;
        let x = x.narrow(1, self.class_tokens.saturating_sub(1), self.places())?.contiguous()?;
        Ok(elementwise::add(&x, &copy::convert(&self.head_positions)?)?)
    }

    /// Draws latents on the sphere, `[batch, places, channels]`.
    ///
    /// # Errors
    /// As [`crate::Generator::draw`], or whatever `progress` returns.
    pub fn generate<T: Float>(
        &self,
        labels: &[u32],
        sampling: &Sampling,
        chance: &mut dyn Chance,
        mut progress: impl FnMut(&Step<'_, T>) -> Result<()>,
    ) -> Result<Tensor<T>> {
        let (batch, places, dim) = (labels.len(), self.places(), self.llama.sizes().dim);
        // Less than 1 is no guidance.
        let guided = sampling.cfg > 1.0;
        let table = self.table()?;
        let mut x = self.condition::<T>(labels, guided)?;
        let mut caches = self.llama.caches(x.shape()[0], self.class_tokens + places)?;
        let mut latents = Vec::with_capacity(places);
        for place in 0..places {
            let states = self.run(&x, &table, &mut caches)?;
            let (rows, seq) = (states.shape()[0], states.shape()[1]);
            let last = states.narrow(1, seq.saturating_sub(1), 1)?.contiguous()?.reshape(&[rows, dim])?;
            let position = self.head_positions.narrow(0, place, 1)?.contiguous()?;
            let states = elementwise::add(&last, &copy::convert(&position)?)?;
            let scale = self.guidance.at(sampling.cfg.into(), place as f64 / places as f64) as f32;
            let scale = Some(scale).filter(|scale| guided && *scale > 1.0);
            let apart = if scale.is_some() { 1 } else { rows / batch.max(1) };
            let cells: Vec<_> = (0..batch).map(|picture| (picture, place)).collect();
            chance.begin(&cells);
            let normals = chance.normals(batch, apart * (self.head.steps.steps + 1) * self.head.channels)?;
            let drawn = self.head.sample(&states, scale, batch, &normals)?;
            progress(&Step { states: &states, drawn: &drawn })?;
            let drawn = on_sphere(&drawn.reshape(&[drawn.shape()[0], 1, self.head.channels])?)?;
            latents.push(drawn.narrow(0, 0, batch)?.contiguous()?);
            x = self.input.run(&if scale.is_some() { twice(&drawn)? } else { drawn })?;
        }
        concatenate(&latents.iter().collect::<Vec<_>>(), 1)
    }
}

impl<T: Float> DrawsLatents<T> for SphereAr {
    const SYSTEM: &'static str = "spherear";
    type Tokenizer = SphericalAutoencoder;

    fn latents(&self) -> &Latents<SphericalAutoencoder> {
        &self.latents
    }

    fn draw_latents(
        &self,
        WantedLatents { labels, sampler, .. }: WantedLatents<'_, T>,
        chance: &mut dyn Chance,
        progress: Progress<'_, T>,
    ) -> Result<Tensor<T>> {
        let mut settled = 0;
        self.generate(labels, &sampler.sampling, chance, |_| {
            let cells: Vec<_> = (0..labels.len()).map(|picture| (picture, settled)).collect();
            settled += 1;
            progress(Partial { settled, cells: &cells, latents: None })
        })
    }
}
