//! ARPG: any order; queries that hold only a position read a cache that only tokens write.
//!
//! | part      | here                                                                                           |
//! |-----------|------------------------------------------------------------------------------------------------|
//! | tokenizer | LlamaGen's ([`VqTokenizer`](crate::tokenizer::vq::VqTokenizer))                                |
//! | backbone  | half Llama blocks over tokens, half cross-attention blocks of queries to their keys and values |
//! | order     | random, one for the whole run; more and more cells per step                                    |
//! | mask      | tokens see all settled before their step and their own; queries see all tokens, never each other |
//! | position  | RoPE over rows and columns, the token's cell for keys, the wanted cell for queries             |
//! | head      | softmax over codes                                                                             |
//! | decoder   | arccos or cosine schedule                                                                      |
//! | guidance  | `uncond + s (cond - uncond)`, `s` constant or rising with the cells settled after the step     |
//!
//! Paper: Li et al. 2025, arXiv:2503.10568, section 3. Upstream: hp-l33/ARPG, `models/arpg.py`.
//!
//! The file is long because the backbone is its own: half of its blocks make a cache that the queries of the other half
//! read, so tokens and queries carry rotary rows of different cells.

use std::f64::consts::FRAC_PI_2;

use smalti::attention::{Align, KvCache, Mask, Options, attention};
use smalti::rope::{NullRows, Pairing, Table, rope};
use smalti::sample::{Guidance, Schedule};
use smalti::{Device, Float, Tensor, Weight, elementwise, embedding, linear, norm};

use super::codes::{Codes, DrawsCodes, WantedCodes};
use crate::backbone::llama::FeedForward;
use crate::decode::{Order, Steps, guidance_over_steps, guide, in_groups, twice};
use crate::order;
use crate::weights::Checkpoint;
use crate::{Error, Result};

/// A block of either half; queries of the second half have no keys and values of their own.
struct Block {
    norm: Tensor<f32>,
    to_q: Weight,
    to_kv: Option<[Weight; 2]>,
    proj: Weight,
    feed_forward: FeedForward,
}

/// The model with its weights on a device.
pub struct Arpg {
    codes: Codes,
    /// Codes, the mask token, classes, no class.
    table: Weight,
    rotary: Table,
    tokens: Vec<Block>,
    memory_norm: Tensor<f32>,
    to_memory: [Weight; 2],
    queries: Vec<Block>,
    norm: Tensor<f32>,
    head: Weight,
    heads: usize,
    norm_eps: f32,
    steps: usize,
    arccos: bool,
    guidance: Schedule,
}

/// Keys and values of the token blocks, then those that all queries read.
struct Caches<T: Float> {
    tokens: Vec<KvCache<T>>,
    memory: KvCache<T>,
}

impl Arpg {
    /// Loads official names, and the tokenizer under `vq.` if it is there.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &["quantize.codebook_used"], |root, _| {
            let [vocabulary, dim] = root.lengths("head.weight");
            let rows = root.length("embeddings.weight", 0);
            let heads = config.count("n_head").unwrap_or(dim / 64).max(1);
            let norm_eps = config.number("norm_eps").unwrap_or(1e-5);
            // Besides codes and classes: the mask token, no class, and a token that only the paper's guidance uses.
            let codes = Codes::load(checkpoint, root, &config, rows.saturating_sub(vocabulary + 3))?;
            let layers = root.at("layers");
            let block = |kind: &str, index: usize| {
                let at = layers.at(kind).at(index);
                let square = |name: &str| at.weight(&format!("attn.{name}.weight"), &[dim, dim]);
                Ok::<_, Error>(Block {
                    norm: at.vector("attn_norm.weight", &[dim])?,
                    to_q: square("to_q")?,
                    to_kv: if kind == "self_dec" { Some([square("to_k")?, square("to_v")?]) } else { None },
                    proj: square("proj")?,
                    feed_forward: FeedForward::load(&at, "ffn", dim, norm_eps)?,
                })
            };
            let blocks = |kind: &str| (0..layers.count(kind)).map(|index| block(kind, index)).collect::<Result<_>>();
            let theta = config.number("rope_base").unwrap_or(10_000.0);
            let rotary = Table::grid(device, codes.side(), codes.side(), dim / heads, theta)?;
            Ok(Self {
                table: root.weight("embeddings.weight", &[rows, dim])?,
                rotary: rotary.with_null_rows(1, NullRows::Zero)?,
                tokens: blocks("self_dec")?,
                memory_norm: layers.vector("norm.weight", &[dim])?,
                to_memory: [layers.weight("to_k.weight", &[dim, dim])?, layers.weight("to_v.weight", &[dim, dim])?],
                queries: blocks("cross_dec")?,
                norm: root.vector("norm.weight", &[dim])?,
                head: root.weight("head.weight", &[vocabulary, dim])?,
                steps: config.count("num_iter").unwrap_or(64),
                arccos: config.text("sample_schedule").is_none_or(|schedule| schedule == "arccos"),
                guidance: guidance_over_steps(&config),
                codes,
                heads,
                norm_eps,
            })
        })
    }

    /// The rotary table, the condition's row first.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.rotary
    }

    fn vocabulary(&self) -> u32 {
        self.head.shape()[0] as u32
    }

    /// `[batch, seq, dim]` to `[batch, heads, seq, head_dim]` through a weight.
    fn project<T: Float>(&self, x: &Tensor<T>, weight: &Weight) -> Result<Tensor<T>> {
        let [batch, seq, dim] = [x.shape()[0], x.shape()[1], x.shape()[2]];
        let y = linear::linear(x, weight, None)?.reshape(&[batch, seq, self.heads, dim / self.heads])?;
        Ok(y.permute(&[0, 2, 1, 3])?)
    }

    fn turned<T: Float>(&self, x: &Tensor<T>, weight: &Weight, table: &Table) -> Result<Tensor<T>> {
        Ok(rope(&self.project(x, weight)?, table, 0, Pairing::Interleaved)?)
    }

    fn attend<T: Float>(
        &self,
        block: &Block,
        x: &Tensor<T>,
        q: &Tensor<T>,
        cache: &KvCache<T>,
        mask: Mask,
    ) -> Result<Tensor<T>> {
        let scale = (q.shape()[3] as f32).powf(-0.5);
        let h = attention(q, &cache.k(), &cache.v(), &Options::new(scale).mask(mask))?.y;
        let h = h.permute(&[0, 2, 1, 3])?.reshape(x.shape())?;
        let x = elementwise::add(x, &linear::linear(&h, &block.proj, None)?)?;
        block.feed_forward.run(&x)
    }

    /// Takes the places of `ids` (`[batch, seq]`) in, then predicts the cells `wanted`; `here` and `there` are the
    /// rotary rows of both. The mask is that of both halves.
    fn predict<T: Float>(
        &self,
        ids: &Tensor<u32>,
        here: &Table,
        there: &Table,
        wanted: usize,
        caches: &mut Caches<T>,
        mask: &Mask,
    ) -> Result<Tensor<T>> {
        let mut x: Tensor<T> = embedding::embedding(&self.table, ids)?;
        for (block, cache) in self.tokens.iter().zip(&mut caches.tokens) {
            let h = norm::rms_norm(&x, Some(&block.norm), self.norm_eps)?;
            let q = self.turned(&h, &block.to_q, here)?;
            if let Some([to_k, to_v]) = &block.to_kv {
                cache.append(&self.turned(&h, to_k, here)?, &self.project(&h, to_v)?)?;
            }
            x = self.attend(block, &x, &q, cache, mask.clone())?;
        }
        let h = norm::rms_norm(&x, Some(&self.memory_norm), self.norm_eps)?;
        let [to_k, to_v] = &self.to_memory;
        caches.memory.append(&self.turned(&h, to_k, here)?, &self.project(&h, to_v)?)?;

        let batch = ids.shape()[0];
        let masks = Tensor::from_vec(ids.device(), &[batch, wanted], vec![self.vocabulary(); batch * wanted])?;
        let mut x: Tensor<T> = embedding::embedding(&self.table, &masks)?;
        for block in &self.queries {
            let q = self.turned(&norm::rms_norm(&x, Some(&block.norm), self.norm_eps)?, &block.to_q, there)?;
            x = self.attend(block, &x, &q, &caches.memory, mask.clone())?;
        }
        let h = norm::rms_norm(&x, Some(&self.norm), self.norm_eps)?;
        Ok(linear::linear(&h, &self.head, None)?)
    }

    fn caches<T: Float>(&self, batch: usize, capacity: usize) -> Result<Caches<T>> {
        let head_dim = self.head.shape()[1] / self.heads;
        let cache = || KvCache::new(&self.codes.device, batch, self.heads, capacity, head_dim);
        Ok(Caches { tokens: self.tokens.iter().map(|_| cache()).collect::<smalti::Result<_>>()?, memory: cache()? })
    }

    /// Classes as rows of the table, then, if guided, as many of no class: `[rows, 1]`.
    fn condition(&self, labels: &[u32], guided: bool) -> Result<Vec<u32>> {
        let classes = self.table.shape()[0] as u32 - self.vocabulary() - 3;
        if let Some(label) = labels.iter().find(|label| **label >= classes) {
            return Err(Error::Request(format!("class {label}, expected 0 to {}", classes.saturating_sub(1))));
        }
        let first = self.vocabulary() + 1;
        let none = labels.iter().filter(|_| guided).map(|_| first + classes);
        Ok(labels.iter().map(|label| first + label).chain(none).collect())
    }

    /// Logits of the cells in the order of `orders` (`[batch, places]`), `[batch, places, vocabulary]`, each from the
    /// tokens of the cells before it; `tokens` (`[batch, places]`) is in raster order.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher<T: Float>(&self, labels: &[u32], tokens: &Tensor<u32>, orders: &[u32]) -> Result<Tensor<T>> {
        let places = self.codes.places();
        let condition = self.condition(labels, false)?;
        let raster = tokens.to_vec()?;
        let mut ids = Vec::new();
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for ((tokens, order), class) in raster.chunks(places).zip(orders.chunks(places)).zip(&condition) {
            let cells = order.iter().map(|cell| *cell as usize);
            let before = cells.clone().take(places - 1);
            ids.push(*class);
            ids.extend(before.clone().map(|cell| tokens[cell]));
            here.push(0);
            here.extend(before.map(|cell| 1 + cell));
            there.extend(cells.map(|cell| 1 + cell));
        }
        let ids = Tensor::from_vec(&self.codes.device, &[labels.len(), places], ids)?;
        let rows = |rows: &[usize]| order::positions_of_batch(&self.rotary, labels.len(), rows);
        let mask = Mask::Causal { align: Align::TopLeft };
        let mut caches = self.caches(labels.len(), places)?;
        self.predict(&ids, &rows(&here)?, &rows(&there)?, places, &mut caches, &mask)
    }
}

impl DrawsCodes for Arpg {
    const SYSTEM: &'static str = "arpg";

    fn codes(&self) -> &Codes {
        &self.codes
    }

    const FILLS: bool = true;

    /// What stays is settled first, in the same steps: each draws all its cells, and those that stay take their own.
    fn generate<T: Float>(&self, wanted: WantedCodes<'_>, steps: Steps<'_, T>) -> Result<Tensor<u32>> {
        let WantedCodes { labels, known, sampler, .. } = wanted;
        let (batch, places) = (labels.len(), self.codes.places());
        let mut cells = sampler.order(None);
        cells.sort_by_key(|cell| known.get(*cell).is_none_or(Option::is_none));
        let masked = |r: f64| if self.arccos { r.acos() / FRAC_PI_2 } else { (FRAC_PI_2 * r).cos() };
        let condition = self.condition(labels, true)?;
        let mut ids = Tensor::from_vec(&self.codes.device, &[2 * batch, 1], condition)?;
        let mut caches = self.caches::<T>(2 * batch, places)?;
        let mut there = order::positions(&self.rotary, &[0])?;
        let (order, sizes) = (Order::Cells(&cells), order::counts(places, self.steps, masked));
        in_groups(&self.codes.device, batch, order, sizes, known, sampler, steps, |before, next| {
            if let Some(tokens) = before {
                ids = twice(tokens)?;
            }
            let rows: Vec<_> = cells[next.clone()].iter().map(|cell| 1 + cell).collect();
            let here = std::mem::replace(&mut there, order::positions(&self.rotary, &rows)?);
            let logits = self.predict(&ids, &here, &there, next.len(), &mut caches, &Mask::Full)?;
            let after = next.end as f64 / places as f64;
            guide(&logits, batch, self.guidance.at(sampler.sampling.cfg.into(), after) as f32, Guidance::Scale)
        })
    }
}
