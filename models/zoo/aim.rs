//! AiM: LlamaGen's tokens drawn by Mamba-2 in place of attention.
//!
//! | part      | here                                                                                           |
//! |-----------|------------------------------------------------------------------------------------------------|
//! | tokenizer | LlamaGen's ([`Codes`])                                                                         |
//! | backbone  | Mamba-2 mixers ([`Mamba2`]), modulated by the class; groups of layers may share a modulation   |
//! |           | (section 3.3)                                                                                  |
//! | order     | raster                                                                                         |
//! | mask      | none: a recurrence sees what came before                                                       |
//! | position  | a learned vector per place of the sequence                                                     |
//! | head      | softmax over codes, by the table of codes itself                                               |
//! | decoder   | sequential; a layer remembers a state and the last three inputs of its convolution             |
//! | guidance  | `uncond + cfg (cond - uncond)`                                                                 |
//!
//! While drawing, the official code gives a token the position of its place in the sequence, where the class is at 0; in
//! a pass over known tokens it gives the first of them position 0. Both are repeated here.
//!
//! Paper: Li et al. 2024, arXiv:2408.12245. Upstream: hp-l33/AiM, `models/stage2/mixer_seq_simple.py`.
//!
//! The file is long because its blocks are its own: Mamba-2 mixers modulated one by one or in groups, whose states
//! take the place of keys and values.

use smalti::activation::{Activation, activation};
use smalti::{Device, Float, Tensor, Weight, elementwise, embedding, linear, norm};

use super::codes::{Codes, DrawsCodes, WantedCodes};
use crate::Result;
use crate::backbone::adaln::{Modulation, Norm};
use crate::backbone::condition::ClassTable;
use crate::backbone::mamba::{Mamba2, MambaState};
use crate::backbone::vit::Linear;
use crate::decode::{Guided, Network, Order, Steps, concatenate, sequential};
use crate::weights::Checkpoint;

/// The model with its weights on a device.
pub struct Aim {
    codes: Codes,
    classes: ClassTable,
    tokens: Weight,
    /// `[1, 1 + places, dim]`.
    positions: Tensor<f32>,
    /// The modulations that groups of layers share, and how many groups there are.
    groups: Option<(Linear, usize)>,
    layers: Vec<Layer>,
    norm: Norm,
    last_norm: Norm,
    last_modulation: Linear,
}

struct Layer {
    norm: Norm,
    /// Shift, scale, gate.
    modulation: Modulation,
    mixer: Mamba2,
}

/// A sequence that is being drawn or read.
struct Running<'a, T: Float> {
    model: &'a Aim,
    /// Shift, scale and gate of each layer.
    modulations: Vec<Vec<Tensor<T>>>,
    /// Shift and scale of the last norm.
    last: [Tensor<T>; 2],
    states: Vec<MambaState<T>>,
    /// Places so far.
    len: usize,
}

impl Aim {
    /// Loads official names under `mamba.backbone.`, the tokenizer's under `vq.`.
    ///
    /// # Errors
    /// [`crate::Error::Weights`] with every tensor that does not fit; [`crate::Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        // The head is the table of codes.
        let unread = ["lm_head.weight"];
        checkpoint.build(device, &unread, |root, _| {
            let at = root.at("mamba.backbone");
            let (words, places) = ("embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight");
            let (rows, dim, held) = (at.length(words, 0), at.length(words, 1), at.length(places, 0));
            let eps = config.number("norm_eps").unwrap_or(1e-5);
            let groups = if at.has("adaln_group") {
                let outputs = at.length("adaln_group.1.weight", 0);
                let groups = outputs / (3 * dim).max(1);
                if groups == 0 || outputs != groups * 3 * dim {
                    at.note("adaln_group.1.weight", format!("has {outputs} outputs, expected a multiple of 3 * {dim}"));
                }
                Some((Linear::load(&at, "adaln_group.1", [outputs, dim])?, groups.max(1)))
            } else {
                None
            };
            let layers = (0..at.count("layers")).map(|index| {
                let at = at.at("layers").at(index);
                let modulation = match &groups {
                    Some(_) => {
                        Modulation::Shared(at.vector("scale_shift_table", &[1, 3, dim])?.reshape(&[1, 3 * dim])?)
                    }
                    None => Modulation::Own(Linear::load(&at, "adaLN_modulation.1", [3 * dim, dim])?),
                };
                let mixer = Mamba2::load(&at.at("mixer"), dim, eps)?;
                Ok(Layer { norm: Norm::layer_or_rms(&at, "norm", dim, eps)?, modulation, mixer })
            });
            let last = at.at("final_layer");
            let classes = ClassTable::load(&at, "cls_embed.embedding_table.weight", dim)?;
            let mut codes = Codes::load(checkpoint, root, &config, classes.classes())?;
            let side = held.saturating_sub(1).isqrt();
            codes.grid = [1, side, side];
            let model = Self {
                tokens: at.weight(words, &[rows, dim])?,
                positions: at.vector(places, &[held, dim])?.reshape(&[1, held, dim])?,
                layers: layers.collect::<Result<_>>()?,
                norm: Norm::layer_or_rms(&at, "norm_f", dim, eps)?,
                last_norm: Norm::layer_or_rms(
                    &last,
                    "norm_final",
                    dim,
                    config.number("final_norm_eps").unwrap_or(1e-5),
                )?,
                last_modulation: Linear::load(&last, "adaLN_modulation.1", [2 * dim, dim])?,
                groups,
                codes,
                classes,
            };
            Ok(model)
        })
    }

    /// The mixer of a layer.
    #[must_use]
    pub fn mixer(&self, layer: usize) -> Option<&Mamba2> {
        self.layers.get(layer).map(|layer| &layer.mixer)
    }

    /// A sequence for the classes in the rows of `condition` (`[rows, 1, dim]`).
    fn running<T: Float>(&self, condition: &Tensor<T>) -> Result<Running<'_, T>> {
        let (rows, dim) = (condition.shape()[0], condition.shape()[2]);
        let condition = condition.reshape(&[rows, dim])?;
        let active = activation(&condition, Activation::Silu)?;
        let shared: Vec<Option<Tensor<T>>> = match &self.groups {
            Some((layer, groups)) => {
                let all = layer.run(&active)?;
                (0..*groups)
                    .map(|group| Ok(Some(all.narrow(1, group * 3 * dim, 3 * dim)?.contiguous()?)))
                    .collect::<Result<_>>()?
            }
            None => vec![None],
        };
        let layers = self.layers.iter().zip(shared.iter().cycle());
        let modulations: Vec<_> =
            layers.map(|(layer, shared)| layer.modulation.make(&active, shared.as_ref())).collect::<Result<_>>()?;
        let last = self.last_modulation.run(&active)?.reshape(&[rows, 1, 2 * dim])?;
        let last = [last.narrow(2, 0, dim)?, last.narrow(2, dim, dim)?];
        let device = &self.codes.device;
        let states = self.layers.iter().map(|layer| layer.mixer.start(device, rows)).collect::<Result<_>>()?;
        Ok(Running { model: self, modulations, last, states, len: 0 })
    }

    /// The rows of `tokens` (`[rows, seq]`), the first of which is at position `first`.
    fn embed<T: Float>(&self, tokens: &Tensor<u32>, first: usize) -> Result<Tensor<T>> {
        let words = embedding::embedding(&self.tokens, tokens)?;
        let positions = self.positions.narrow(1, first, tokens.shape()[1])?;
        Ok(elementwise::add(&words, &smalti::copy::convert(&positions)?)?)
    }

    /// Logits of the first token and of that after each of `tokens` (`[batch, len]`): `[batch, 1 + len, vocabulary]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher<T: Float>(&self, labels: &[u32], tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        let condition: Tensor<T> = self.classes.rows(labels, false)?;
        let x = concatenate(&[&condition, &self.embed(tokens, 0)?], 1)?;
        self.running(&condition)?.logits(&x)
    }
}

impl<T: Float> Network<T> for Running<'_, T> {
    fn logits(&mut self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let Aim { layers, norm, last_norm, tokens, .. } = self.model;
        let mut x = x.clone();
        for ((layer, parts), state) in layers.iter().zip(&self.modulations).zip(&mut self.states) {
            let h = norm::modulate(&layer.norm.run(&x)?, &parts[1], &parts[0])?;
            x = norm::gated_add(&x, &parts[2], &layer.mixer.run(&h, state)?)?;
        }
        self.len += x.shape()[1];
        let h = norm::modulate(&last_norm.run(&norm.run(&x)?)?, &self.last[1], &self.last[0])?;
        Ok(linear::linear(&h, tokens, None)?)
    }

    fn embed(&mut self, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        self.model.embed(tokens, self.len)
    }
}

impl DrawsCodes for Aim {
    const SYSTEM: &'static str = "aim";

    fn codes(&self) -> &Codes {
        &self.codes
    }

    fn guidances(&self) -> &'static [Guided] {
        &[Guided::Plain, Guided::ByEntropy]
    }

    fn generate<T: Float>(&self, wanted: WantedCodes<'_>, steps: Steps<'_, T>) -> Result<Tensor<u32>> {
        let WantedCodes { labels, sampler, .. } = wanted;
        let cfg = sampler.sampling.cfg;
        let condition: Tensor<T> = self.classes.rows(labels, cfg != 1.0)?;
        let mut running = self.running(&condition)?;
        sequential(&mut running, condition, labels.len(), Order::Raster(self.codes.places()), |_| cfg, sampler, steps)
    }
}
