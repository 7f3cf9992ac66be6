//! NAR: all neighbours of what is settled at once, for pictures and videos.
//!
//! | part      | here                                                                                        |
//! |-----------|---------------------------------------------------------------------------------------------|
//! | tokenizer | LlamaGen's for pictures, LARP's for videos                                                  |
//! | backbone  | Llama blocks ([`Blocks`]); the heads branch off at different depths                         |
//! | order     | planes of equal distance `t + h + w` from the first cell ([`order::planes`])                |
//! | mask      | a cell sees its own plane and all before it                                                 |
//! | position  | pictures: RoPE over rows and columns; videos: learned                                       |
//! | head      | one per axis, for the next cell along it; a cell takes the mean over its settled neighbours |
//! | decoder   | a plane per step                                                                            |
//! | guidance  | `uncond + cfg (cond - uncond)`                                                              |
//!
//! Paper: He et al. 2025, arXiv:2503.10696, sections 3.2 and 3.3. Upstream: ThisisBillhe/NAR,
//! `NAR-images/autoregressive/models/gpt.py` and `NAR-videos/models/larp_ar.py`.
//!
//! The file is long because a cell is predicted by up to three heads that leave the blocks at different depths, and
//! pictures and videos have names and positions of their own.

use std::ops::Range;

use smalti::attention::{KvCache, Mask, Options};
use smalti::rope::{NullRows, Table};
use smalti::sample::Guidance;
use smalti::{Device, Float, Tensor, Weight, elementwise, embedding, linear, norm};

use super::codes::{Codes, DrawsCodes, WantedCodes};
use crate::backbone::condition::ClassTable;
use crate::backbone::llama::{Blocks, Sizes};
use crate::decode::{Order, Steps, concatenate, from_raster, guide, in_groups, twice};
use crate::order;
use crate::weights::Checkpoint;
use crate::{Error, Result};

/// Predicts the next cell along one axis.
struct Head {
    /// Blocks before it.
    depth: usize,
    norm: Tensor<f32>,
    output: Weight,
    /// 0 for frames, 1 for rows, 2 for columns.
    axis: usize,
}

/// How positions enter: a row per place in decoding order, the class first.
enum Position {
    Rotary(Table),
    /// `[1, 1 + places, dim]`.
    Learned(Weight),
}

/// The model with its weights on a device.
pub struct Nar {
    codes: Codes,
    classes: ClassTable,
    tokens: Weight,
    blocks: Blocks,
    heads: Vec<Head>,
    position: Position,
    planes: Vec<Vec<usize>>,
    cells: Vec<usize>,
}

impl Nar {
    /// Loads official names, and the tokenizer under `vq.` if it is there. A video model has `abs_pe`.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &["quantize.codebook_used"], |root, _| {
            let [vocabulary, dim] = root.lengths("tok_embeddings.weight");
            let sizes = Sizes::read(root, &config, dim);
            let classes = ClassTable::load(root, "cls_embedding.embedding_table.weight", dim)?;
            let codes = Codes::load(checkpoint, root, &config, classes.classes())?;
            let blocks = Blocks::load(root, sizes)?;

            // Blocks that only later heads pass through.
            let own = |key: &str| config.count(key).unwrap_or(1);
            let (down, back) = (own("attn_num_down"), own("attn_num_back"));
            let video = root.shape("abs_pe").is_some();
            let branches: &[_] = if video {
                &[("norm_R", "output_R", down + back, 2), ("norm_D", "output_D", down, 1), ("norm_B", "output_B", 0, 0)]
            } else {
                &[("norm", "output", own("medusa_attention_num"), 2), ("medusa_norm", "medusa_output", 0, 1)]
            };
            let head = |&(norm, output, after, axis): &(&str, &str, usize, usize)| {
                let norm = root.vector(&format!("{norm}.weight"), &[dim])?;
                let output = root.weight(&format!("{output}.weight"), &[vocabulary, dim])?;
                Ok(Head { depth: blocks.depth().saturating_sub(after), norm, output, axis })
            };
            let heads = branches.iter().map(head).collect::<Result<_>>()?;

            let planes = order::planes(codes.grid);
            let cells = planes.concat();
            let rows: Vec<_> = [0].into_iter().chain(cells.iter().map(|cell| 1 + cell)).collect();
            let position = if video {
                let learned = root.vector("abs_pe", &[1, rows.len(), dim])?.reshape(&[rows.len(), dim])?;
                Position::Learned(order::rows(&learned, &rows)?.into())
            } else {
                let theta = config.number("rope_base").unwrap_or(10_000.0);
                let table = Table::grid(device, codes.side(), codes.side(), sizes.head_dim(), theta)?;
                Position::Rotary(order::positions(&table.with_null_rows(1, NullRows::Zero)?, &rows)?)
            };
            let tokens = root.weight("tok_embeddings.weight", &[vocabulary, dim])?;
            let model = Self { codes, classes, tokens, blocks, heads, position, planes, cells };
            Ok(model)
        })
    }

    /// The rotary table in decoding order, if it is a picture model.
    #[must_use]
    pub fn table(&self) -> Option<&Table> {
        match &self.position {
            Position::Rotary(table) => Some(table),
            Position::Learned(_) => None,
        }
    }

    /// Cell of each place in decoding order.
    #[must_use]
    pub fn cells(&self) -> &[usize] {
        &self.cells
    }

    /// Runs the places of `x` after those in the caches, and predicts the places `next` (in decoding order) from them:
    /// `[batch, next, vocabulary]`.
    fn predict<T: Float>(
        &self,
        x: &Tensor<T>,
        caches: &mut [KvCache<T>],
        options: &Options,
        next: Range<usize>,
    ) -> Result<Tensor<T>> {
        let (batch, seq, start) = (x.shape()[0], x.shape()[1], caches.first().map_or(0, KvCache::len));
        let mut x = match &self.position {
            Position::Rotary(_) => x.clone(),
            Position::Learned(learned) => {
                let rows = (start..start + seq).map(|row| row as u32).collect();
                let rows = Tensor::from_vec(x.device(), &[1, seq], rows)?;
                elementwise::add(x, &embedding::embedding(learned, &rows)?)?
            }
        };
        let mut depth = 0;
        let mut logits: Option<Tensor<T>> = None;
        for head in &self.heads {
            x = self.blocks.run(depth..head.depth, &x, self.table().map(|table| (table, start)), caches, options)?;
            depth = head.depth;
            let h = norm::rms_norm(&x, Some(&head.norm), self.blocks.sizes().norm_eps)?;
            let h = linear::linear(&h, &head.output, None)?;
            let shares = self.shares(head, start..start + seq, next.clone());
            let shares = shares.iter().map(|share| T::from_f64(*share)).collect();
            let shares = Tensor::from_vec(x.device(), &[1, next.len(), seq], shares)?;
            let share = linear::matmul(&shares.broadcast(&[batch, next.len(), seq])?.contiguous()?, &h)?;
            logits = Some(match logits {
                None => share,
                Some(logits) => elementwise::add(&logits, &share)?,
            });
        }
        logits.ok_or_else(|| Error::Request("nar: a model without heads".to_owned()))
    }

    /// How much of each place of `from` enters each place of `next` through a head: the mean over the heads that have a
    /// neighbour there. The first cell takes all of them at the class. Places of `from` count the class as 0.
    fn shares(&self, head: &Head, from: Range<usize>, next: Range<usize>) -> Vec<f64> {
        let [_, rows, columns] = self.codes.grid;
        let coordinates = |cell: usize| [cell / (rows * columns), cell / columns % rows, cell % columns];
        let strides = [rows * columns, columns, 1];
        let mut shares = vec![0.0; next.len() * from.len()];
        for (place, shares) in next.zip(shares.chunks_mut(from.len())) {
            let cell = self.cells[place];
            let along = coordinates(cell);
            let neighbours = self.heads.iter().filter(|head| along[head.axis] > 0).count();
            let source = match (place, along[head.axis]) {
                (0, _) => Some(0),
                (_, 0) => None,
                _ => self.cells.iter().position(|other| *other == cell - strides[head.axis]).map(|place| 1 + place),
            };
            if let Some(source) = source.filter(|source| from.contains(source)) {
                let count = if place == 0 { self.heads.len() } else { neighbours };
                shares[source - from.start] = 1.0 / count as f64;
            }
        }
        shares
    }

    /// Logits of every cell, `[batch, places, vocabulary]` in decoding order, from `tokens` (`[batch, places]`, in
    /// raster order).
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher<T: Float>(&self, labels: &[u32], tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        let tokens: Tensor<T> = embedding::embedding(&self.tokens, &from_raster(tokens, &self.cells)?)?;
        let x = concatenate(&[&self.classes.rows(labels, false)?, &tokens], 1)?;
        let [batch, seq, _] = *x.shape() else { unreachable!("three axes were just joined") };
        let mut steps = vec![0];
        for (step, plane) in (1u32..).zip(&self.planes) {
            steps.extend(vec![step; plane.len()]);
        }
        let mask = Mask::ranks(&steps, false);
        let mut caches = self.blocks.caches(&self.codes.device, batch, seq)?;
        self.predict(&x, &mut caches, &self.options(mask), 0..self.cells.len())
    }

    fn options(&self, mask: Mask) -> Options {
        Options::new((self.blocks.sizes().head_dim() as f32).powf(-0.5)).mask(mask)
    }
}

impl DrawsCodes for Nar {
    const SYSTEM: &'static str = "nar";

    fn codes(&self) -> &Codes {
        &self.codes
    }

    fn generate<T: Float>(&self, wanted: WantedCodes<'_>, steps: Steps<'_, T>) -> Result<Tensor<u32>> {
        let WantedCodes { labels, sampler, .. } = wanted;
        let (batch, places) = (labels.len(), self.cells.len());
        let cfg = sampler.sampling.cfg;
        let mut x: Tensor<T> = self.classes.rows(labels, cfg != 1.0)?;
        let rows = x.shape()[0];
        let mut caches = self.blocks.caches(&self.codes.device, rows, 1 + places)?;
        // A plane sees itself and all that is in the cache.
        let options = self.options(Mask::Full);
        let sizes = self.planes.iter().map(Vec::len);
        let order = Order::Cells(&self.cells);
        in_groups(&self.codes.device, batch, order, sizes, &[], sampler, steps, |before, next| {
            if let Some(tokens) = before {
                x = embedding::embedding(&self.tokens, tokens)?;
                if rows > batch {
                    x = twice(&x)?;
                }
            }
            guide(&self.predict(&x, &mut caches, &options, next)?, batch, cfg, Guidance::Scale)
        })
    }
}
