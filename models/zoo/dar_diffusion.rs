//! D-AR: tokens of a sequential diffusion tokenizer, coarse to fine, drawn one after the other.
//!
//! | part      | here                                                                          |
//! |-----------|-------------------------------------------------------------------------------|
//! | tokenizer | queries over the picture, decoded by a flow ([`FlowTokenizer`](crate::tokenizer::flow::FlowTokenizer))              |
//! | backbone  | Llama blocks ([`Trunk`])                                                      |
//! | order     | that of the flow: early tokens settle the coarse picture                      |
//! | mask      | causal                                                                        |
//! | position  | RoPE along the sequence, the class included                                   |
//! | head      | softmax over codes                                                            |
//! | decoder   | sequential with a cache, or drafts are tested                                 |
//! | guidance  | `uncond + s (cond - uncond)`, `s` rising linearly along the sequence           |
//!
//! Paper: Gao and Shou 2025, arXiv:2505.23660, its sequential diffusion tokenizer and
//! next-token prediction over it. Upstream: showlab/D-AR, `autoregressive/models`.

use smalti::attention::KvCache;
use smalti::rope::Table;
use smalti::{Device, Float, Tensor, Weight};

use super::codes::{Codes, DrawsCodes, WantedCodes};
use crate::Result;
use crate::backbone::condition::ClassTable;
use crate::backbone::trunk::Trunk;
use crate::decode::speculative::{Rewind, causal, forget};
use crate::decode::{Network, Order, Steps, concatenate};
use crate::weights::Checkpoint;

/// The generator with its weights on a device.
pub struct DarDiffusion {
    codes: Codes,
    classes: ClassTable,
    trunk: Trunk,
    table: Table,
    first_cfg: f32,
    guided_until: Option<usize>,
}

struct Running<'a, T: Float> {
    model: &'a DarDiffusion,
    caches: Vec<KvCache<T>>,
}

impl DarDiffusion {
    /// Loads official names.
    ///
    /// # Errors
    /// [`crate::Error::Weights`] with every tensor that does not fit; [`crate::Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &[], |root, _| {
            let trunk = Trunk::load(root, &config, "tok_embeddings.weight")?;
            let classes = ClassTable::load(root, "cls_embedding.embedding_table.weight", trunk.dim())?;
            let mut codes = Codes::load(checkpoint, root, &config, classes.classes())?;
            let places = config.count("block_size").unwrap_or(256);
            codes.grid = [1, 1, places];
            // The official option is a text, where the scale starts and where it ends.
            let scales: Vec<f32> = config.text("cfg").unwrap_or("1.1,10").split(',').flat_map(str::parse).collect();
            if let [_, last] = scales[..] {
                codes.sampling.cfg = last;
            }
            let theta = config.number("rope_base").unwrap_or(10_000.0);
            Ok(Self {
                table: Table::one_d(device, 1 + places, trunk.head_dim(), theta)?,
                first_cfg: scales.first().copied().unwrap_or(1.0),
                guided_until: config.count("cfg_interval"),
                codes,
                classes,
                trunk,
            })
        })
    }

    /// The rotary table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The guidance scale of each place, rising to `cfg`.
    #[must_use]
    pub fn scales(&self, cfg: f32) -> Vec<f32> {
        let places = self.codes.places();
        let share = |place: usize| place as f32 / (places - 1).max(1) as f32;
        (0..places).map(|place| self.first_cfg + (cfg - self.first_cfg) * share(place)).collect()
    }

    fn running<T: Float>(&self, rows: usize) -> Result<Running<'_, T>> {
        Ok(Running { model: self, caches: self.trunk.caches(rows, self.table.positions())? })
    }

    /// Logits after the class and after each of `tokens` (`[batch, len]`): `[batch, 1 + len, vocabulary]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher<T: Float>(&self, labels: &[u32], tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        let x = concatenate(&[&self.classes.rows(labels, false)?, &self.trunk.embed::<T>(tokens)?], 1)?;
        self.running(labels.len())?.logits(&x)
    }
}

impl<T: Float> Network<T> for Running<'_, T> {
    fn logits(&mut self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let DarDiffusion { trunk, table, .. } = self.model;
        trunk.logits(x, table, &mut self.caches, &trunk.causal())
    }

    fn embed(&mut self, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        self.model.trunk.embed(tokens)
    }
}

impl<T: Float> Rewind<T> for Running<'_, T> {
    fn rewind(&mut self, places: usize) {
        forget(&mut self.caches, places);
    }
}

impl DrawsCodes for DarDiffusion {
    const SYSTEM: &'static str = "dar_diffusion";
    const CELLS: bool = false;

    fn codes(&self) -> &Codes {
        &self.codes
    }

    fn drafted(&self) -> Option<(&Weight, usize)> {
        Some(self.trunk.drafted())
    }

    fn generate<T: Float>(&self, wanted: WantedCodes<'_>, steps: Steps<'_, T>) -> Result<Tensor<u32>> {
        let WantedCodes { labels, sampler, decoder, .. } = wanted;
        let scales = self.scales(sampler.sampling.cfg);
        let condition = self.classes.rows(labels, scales.iter().any(|scale| *scale != 1.0))?;
        let mut running = self.running(condition.shape()[0])?;
        let scale = |place: usize| match self.guided_until {
            Some(until) if place > until + 1 => 1.0,
            _ => scales[place],
        };
        causal(&mut running, condition, labels.len(), Order::Raster(scales.len()), scale, sampler, decoder, steps)
    }
}
