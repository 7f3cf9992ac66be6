//! RAR: trained on random orders, each place told where the next one lies; it generates in raster order.
//!
//! | part      | here                                                                                       |
//! |-----------|--------------------------------------------------------------------------------------------|
//! | tokenizer | MaskGIT-VQGAN, plain L2 codes ([`MaskGitVqGan`](crate::tokenizer::maskgit::MaskGitVqGan))  |
//! | backbone  | ViT blocks with normed queries and keys, modulated by class and step ([`Vit`])             |
//! | order     | raster                                                                                     |
//! | mask      | causal                                                                                     |
//! | position  | learned, the place's own and that of its target                                            |
//! | head      | softmax over codes, modulated                                                              |
//! | decoder   | sequential with a cache, or drafts are tested                                              |
//! | guidance  | `uncond + s (cond - uncond)`, `s` a power-cosine of the step                               |
//!
//! Paper: Yu et al. 2024, arXiv:2411.00776, sections 3.2 and 3.3. Upstream: bytedance/1d-tokenizer, `modeling/rar.py`.
//!
//! The file is long because one table holds codes and classes, and places have learned vectors of three kinds: their
//! own, their target's, their step's.

use smalti::attention::{Align, KvCache, Mask};
use smalti::sample::Schedule;
use smalti::{Device, Float, Tensor, Weight, activation, copy, elementwise, embedding, norm};

use super::codes::{Codes, DrawsCodes, WantedCodes};
use crate::backbone::vit::{Linear, Vit};
use crate::decode::speculative::{Rewind, causal, forget};
use crate::decode::{Network, Order, Steps, concatenate};
use crate::order;
use crate::weights::Checkpoint;
use crate::{Error, Result};

/// The model with its weights on a device.
pub struct Rar {
    codes: Codes,
    /// Codes, the mask token, classes, no class.
    table: Weight,
    /// `[1, 1, dim]`.
    start: Tensor<f32>,
    /// Own positions: of the start, the condition, then the cells. `[2 + places, dim]`.
    own: Tensor<f32>,
    /// Positions of targets: the cells. `[places, dim]`.
    target: Tensor<f32>,
    /// Added to the condition at each place of the sequence. `[2 + places, dim]`.
    step: Tensor<f32>,
    blocks: Vit,
    head_modulation: Linear,
    head: Linear,
    vocabulary: u32,
    power: f32,
    norm_eps: f32,
}

/// The network in the middle of a sequence.
struct Running<'a, T: Float> {
    model: &'a Rar,
    /// `[rows, 1]`.
    conditions: Tensor<u32>,
    caches: Vec<KvCache<T>>,
}

impl Rar {
    /// Loads official names, and the tokenizer under `vq.` if it is there.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &[], |root, notes| {
            let [rows, dim] = root.lengths("embeddings.weight");
            let vocabulary = root.length("lm_head.weight", 0);
            let heads = config.count("num_attention_heads").unwrap_or(16);
            // The official tables have room to spare.
            let table = |name: &str| root.vector(name, &[1, root.length(name, 1), dim]);
            let positions = table("pos_embed")?;
            let codes = Codes::load(checkpoint, root, &config, rows.saturating_sub(vocabulary + 2))?;
            let places = codes.places();
            let first = |table: &Tensor<f32>, start: usize, count: usize| {
                let dense = table.narrow(1, start, count)?.contiguous()?;
                Ok::<_, Error>(dense.reshape(&[count, dim])?)
            };
            if positions.shape()[1] < places + 2 {
                notes.add(format!(
                    "\"pos_embed\" has {} places, expected at least {}",
                    positions.shape()[1],
                    places + 2
                ));
            }
            let norm_eps = config.number("norm_eps").unwrap_or(1e-6);
            Ok(Self {
                table: root.weight("embeddings.weight", &[rows, dim])?,
                start: root.vector("cls_token", &[1, 1, dim])?,
                own: first(&positions, 0, places + 2)?,
                target: first(&table("target_aware_pos_embed")?, 2, places)?,
                step: first(&table("timesteps_embeddings")?, 0, places + 2)?,
                blocks: Vit::load(root, "blocks", dim, heads, norm_eps)?,
                head_modulation: Linear::load(root, "adaln_before_head.adaLN_modulation.1", [2 * dim, dim])?,
                head: Linear::load(root, "lm_head", [vocabulary, dim])?,
                vocabulary: vocabulary as u32,
                power: config.number("guidance_scale_pow").unwrap_or(2.75),
                codes,
                norm_eps,
            })
        })
    }

    /// Rows of the table for classes; `None` is no class.
    fn conditions(&self, labels: &[Option<u32>]) -> Result<Vec<u32>> {
        let classes = self.table.shape()[0] as u32 - self.vocabulary - 2;
        let rows = labels.iter().map(|label| match label {
            None => Ok(self.vocabulary + 1 + classes),
            Some(label) if *label < classes => Ok(self.vocabulary + 1 + label),
            Some(label) => Err(Error::Request(format!("class {label}, expected 0 to {}", classes.saturating_sub(1)))),
        });
        rows.collect()
    }

    /// Runs `ids` (`[batch, seq]`: conditions or tokens) at the places from `from` on, place 0 being the start token
    /// and place 1 the condition. `own` and `target` are added to them (`[batch or 1, seq, dim]`).
    fn run<T: Float>(
        &self,
        x: &Tensor<T>,
        conditions: &Tensor<u32>,
        from: usize,
        caches: &mut [KvCache<T>],
    ) -> Result<Tensor<T>> {
        let &[batch, seq, dim] = x.shape() else {
            return Err(Error::Request(format!("rar: a sequence of shape {:?}", x.shape())));
        };
        let condition: Tensor<T> = embedding::embedding(&self.table, &conditions.reshape(&[batch, 1])?)?;
        let steps: Tensor<T> = copy::convert(&self.step.narrow(0, from, seq)?.contiguous()?)?;
        let steps = steps.reshape(&[1, seq, dim])?.broadcast(&[batch, seq, dim])?.contiguous()?;
        let condition = elementwise::add(&steps, &condition)?;
        let options = self.blocks.options().mask(Mask::Causal { align: Align::BottomRight });
        let h = self.blocks.run(x, Some(&condition), Some(caches), &options)?;

        let two = self.head_modulation.run(&activation::activation(&condition, activation::Activation::Silu)?)?;
        let h = norm::layer_norm(&h, None, None, self.norm_eps)?;
        let h = norm::modulate(&h, &two.narrow(2, 0, dim)?, &two.narrow(2, dim, dim)?)?;
        self.head.run(&h)
    }

    /// The embedding of places: their ids, their own position, their target's. `own` counts the start and the
    /// condition, `target` does not; a place without a target has `None`.
    fn embed<T: Float>(&self, ids: &Tensor<u32>, own: &[usize], target: &[Option<usize>]) -> Result<Tensor<T>> {
        let dim = self.own.shape()[1];
        let mut shift = order::rows(&self.own, own)?.to_vec()?;
        let cells: Vec<_> = target.iter().map(|cell| cell.unwrap_or(0)).collect();
        let targets = order::rows(&self.target, &cells)?.to_vec()?;
        for ((shift, row), target) in shift.chunks_mut(dim).zip(targets.chunks(dim)).zip(target) {
            if target.is_some() {
                shift.iter_mut().zip(row).for_each(|(shift, row)| *shift += row);
            }
        }
        let rows = own.len() / ids.shape()[1];
        let shift = Tensor::from_vec(&self.codes.device, &[rows, ids.shape()[1], dim], shift)?;
        let x: Tensor<T> = embedding::embedding(&self.table, ids)?;
        Ok(elementwise::add(&x, &copy::convert(&shift)?)?)
    }

    fn start<T: Float>(&self, batch: usize) -> Result<Tensor<T>> {
        let dim = self.own.shape()[1];
        let own = self.own.narrow(0, 0, 1)?.reshape(&[1, 1, dim])?;
        let start = elementwise::add(&self.start, &own)?;
        Ok(copy::convert(&start.broadcast(&[batch, 1, dim])?.contiguous()?)?)
    }

    /// Logits after the condition and after each of `tokens` (`[batch, places]`, raster), taken in the order of
    /// `orders` (`[batch, places]`): `[batch, 1 + places, vocabulary]`. Row i predicts the cell that comes i-th.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher<T: Float>(&self, labels: &[Option<u32>], tokens: &Tensor<u32>, orders: &[u32]) -> Result<Tensor<T>> {
        let (batch, places) = (labels.len(), self.codes.places());
        let conditions = self.conditions(labels)?;
        let raster = tokens.to_vec()?;
        let (mut ids, mut own, mut target) = (Vec::new(), Vec::new(), Vec::new());
        for ((tokens, order), condition) in raster.chunks(places).zip(orders.chunks(places)).zip(&conditions) {
            let cells = order.iter().map(|cell| *cell as usize);
            ids.push(*condition);
            ids.extend(cells.clone().map(|cell| tokens[cell]));
            own.push(1);
            own.extend(cells.clone().map(|cell| 2 + cell));
            target.extend(cells.map(Some));
            target.push(None);
        }
        let ids = Tensor::from_vec(&self.codes.device, &[batch, 1 + places], ids)?;
        let x = concatenate(&[&self.start(batch)?, &self.embed(&ids, &own, &target)?], 1)?;
        let conditions = Tensor::from_vec(&self.codes.device, &[batch], conditions)?;
        let mut caches = self.blocks.caches(&self.codes.device, batch, 2 + places)?;
        let logits = self.run(&x, &conditions, 0, &mut caches)?;
        Ok(logits.narrow(1, 1, 1 + places)?)
    }
}

impl<T: Float> Network<T> for Running<'_, T> {
    fn logits(&mut self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let start = self.caches.first().map_or(0, KvCache::len);
        self.model.run(x, &self.conditions, start, &mut self.caches)
    }

    fn embed(&mut self, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        // The start and the condition came first.
        let start = self.caches.first().map_or(0, KvCache::len);
        let own: Vec<_> = (start..start + tokens.shape()[1]).collect();
        let places = self.model.codes.places();
        let target: Vec<_> = own.iter().map(|own| Some(own - 1).filter(|place| *place < places)).collect();
        self.model.embed(tokens, &own, &target)
    }
}

impl<T: Float> Rewind<T> for Running<'_, T> {
    fn rewind(&mut self, places: usize) {
        forget(&mut self.caches, places);
    }
}

impl DrawsCodes for Rar {
    const SYSTEM: &'static str = "rar";

    fn codes(&self) -> &Codes {
        &self.codes
    }

    fn drafted(&self) -> Option<(&Weight, usize)> {
        Some((&self.table, self.vocabulary as usize))
    }

    fn generate<T: Float>(&self, wanted: WantedCodes<'_>, steps: Steps<'_, T>) -> Result<Tensor<u32>> {
        let WantedCodes { labels, sampler, decoder, .. } = wanted;
        let places = self.codes.places();
        let cfg = sampler.sampling.cfg;
        let guided = cfg != 0.0;
        let both = labels.iter().copied().map(Some).chain(labels.iter().filter(|_| guided).map(|_| None));
        let conditions = self.conditions(&both.collect::<Vec<_>>())?;
        let rows = conditions.len();
        let conditions = Tensor::from_vec(&self.codes.device, &[rows, 1], conditions)?;
        let caches = self.blocks.caches(&self.codes.device, rows, 2 + places)?;
        let first = self.embed(&conditions, &[1], &[Some(0)])?;
        let before = concatenate(&[&self.start(rows)?, &first], 1)?;
        let mut running: Running<'_, T> = Running { model: self, conditions, caches };
        let schedule = Schedule::PowerCosine { power: self.power };
        let scale = |place: usize| schedule.at(cfg.into(), place as f64 / places as f64) as f32;
        causal(&mut running, before, labels.len(), Order::Raster(places), scale, sampler, decoder, steps)
    }
}
