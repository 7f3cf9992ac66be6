//! DAR: along the anti-diagonals there and back, each token knowing where the next one lies.
//!
//! | part      | here                                                                              |
//! |-----------|-----------------------------------------------------------------------------------|
//! | tokenizer | one VQ code per place; its codebook is the table of tokens too                    |
//! | backbone  | Llama blocks ([`Trunk`])                                                          |
//! | order     | anti-diagonals, there and back ([`order::zigzag`])                                |
//! | mask      | causal                                                                            |
//! | position  | 4-D RoPE: row and column of a token, then of the next; a direction is added to it |
//! | head      | softmax over codes                                                                |
//! | decoder   | sequential with a cache, or drafts are tested                                     |
//! | guidance  | `uncond + s (cond - uncond)`                                                      |
//!
//! Unusual: the line breaks of a raster are avoided, so that what is next in the order is next in the picture
//! (the paper's diagonal scanning order); since the next cell may lie in any of four directions, both modules tell of it
//! (its direction-aware modules, 4D-RoPE and direction embeddings); tokens are the tokenizer's codes, brought to the
//! model's channels (its codebook as token embeddings).
//!
//! What the paper leaves open is chosen as LlamaGen has it: a class is one token before the others, with no position
//! and no direction; each of the four coordinates turns a quarter of the pairs. The names of weights are LlamaGen's, and
//! `tok_projection`, `direction_embeddings` of right, down, down and left, up and right.
//!
//! Paper: Xu et al. 2025, arXiv:2503.11129.
//!
//! The file is long because each token is told where the next lies, by a table of directions and by rotary positions
//! of pairs of cells.

use smalti::attention::KvCache;
use smalti::rope::{Frequencies, NullRows, Positions, Table};
use smalti::{Device, Float, Tensor, Weight, copy, elementwise};

use super::codes::{Codes, DrawsCodes, WantedCodes};
use crate::backbone::condition::ClassTable;
use crate::backbone::trunk::Trunk;
use crate::backbone::vit::Linear;
use crate::decode::speculative::{Rewind, causal, forget};
use crate::decode::{Network, Order, Steps, concatenate, from_raster};
use crate::order;
use crate::weights::Checkpoint;
use crate::{Error, Result};

/// The generator with its weights on a device.
pub struct Dar {
    codes: Codes,
    classes: ClassTable,
    trunk: Trunk,
    /// `[1, places - 1, dim]`: of each token but the last, the direction in which the next lies.
    directions: Tensor<f32>,
    table: Table,
    cells: Vec<usize>,
}

struct Running<'a, T: Float> {
    model: &'a Dar,
    caches: Vec<KvCache<T>>,
}

impl Dar {
    /// Loads the names above, and the tokenizer under `vq.` if it is there.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &["quantize.codebook_used"], |root, notes| {
            let dim = root.length("tok_projection.weight", 0);
            let shape = root.lengths::<2>("tok_embeddings.weight");
            let projection = Linear::load(root, "tok_projection", [dim, shape[1]])?;
            let codebook = root.vector("tok_embeddings.weight", &shape)?;
            // What does not fit has been noted, and needs no product.
            let tokens =
                if notes.is_empty() { projection.run(&codebook)? } else { Tensor::zeros(device, &[shape[0], dim])? };
            let trunk = Trunk::load_after(root, &config, Weight::from(tokens))?;
            let classes = ClassTable::load(root, "cls_embedding.embedding_table.weight", dim)?;
            let codes = Codes::load(checkpoint, root, &config, classes.classes())?;
            let [_, height, width] = codes.grid;
            let cells = order::zigzag(height, width);
            let directions = root.vector("direction_embeddings.weight", &[4, dim])?;
            if !trunk.head_dim().is_multiple_of(8) || trunk.head_dim() == 0 {
                notes.add(format!("heads of {} channels: four coordinates take a multiple of 8", trunk.head_dim()));
                return Err(notes.error(checkpoint));
            }
            let theta = config.number("rope_base").unwrap_or(10_000.0);
            let frequencies = Frequencies::per_axis(&[trunk.head_dim() / 4; 4], theta)?;
            let table = Table::new(device, &frequencies, &Positions::directed(&cells))?;
            let of_token: Vec<_> = cells.windows(2).map(|cells| direction(cells[0], cells[1])).collect();
            Ok(Self {
                directions: order::rows(&directions, &of_token)?.reshape(&[1, of_token.len(), dim])?,
                table: table.with_null_rows(1, NullRows::Identity)?,
                cells: cells.into_iter().map(|[row, column]| row * width + column).collect(),
                codes,
                classes,
                trunk,
            })
        })
    }

    /// Cell of each place in decoding order.
    #[must_use]
    pub fn cells(&self) -> &[usize] {
        &self.cells
    }

    /// The rotary table, a row per place of the sequence, the class first.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    fn running<T: Float>(&self, rows: usize) -> Result<Running<'_, T>> {
        Ok(Running { model: self, caches: self.trunk.caches(rows, self.table.positions())? })
    }

    /// Tokens `[rows, seq]` of the places from `first` on, each with its direction: `[rows, seq, dim]`.
    fn embed<T: Float>(&self, tokens: &Tensor<u32>, first: usize) -> Result<Tensor<T>> {
        let directions = self.directions.narrow(1, first, tokens.shape()[1])?.contiguous()?;
        Ok(elementwise::add(&self.trunk.embed::<T>(tokens)?, &copy::convert(&directions)?)?)
    }

    /// Logits of every place, `[batch, places, vocabulary]` in decoding order, from `tokens` (`[batch, places]`, in
    /// raster order).
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher<T: Float>(&self, labels: &[u32], tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        if tokens.shape() != [labels.len(), self.cells.len()] {
            return Err(Error::Request(format!("dar: tokens of shape {:?}", tokens.shape())));
        }
        let tokens = from_raster(tokens, &self.cells)?.narrow(1, 0, self.cells.len() - 1)?.contiguous()?;
        let x = concatenate(&[&self.classes.rows(labels, false)?, &self.embed::<T>(&tokens, 0)?], 1)?;
        self.running(labels.len())?.logits(&x)
    }
}

/// The row of the table of directions for a step between two cells that touch.
fn direction([row, column]: [usize; 2], [next_row, next_column]: [usize; 2]) -> usize {
    match (next_row.cmp(&row), next_column < column) {
        (std::cmp::Ordering::Equal, _) => 0,
        (std::cmp::Ordering::Greater, false) => 1,
        (std::cmp::Ordering::Greater, true) => 2,
        (std::cmp::Ordering::Less, _) => 3,
    }
}

impl<T: Float> Network<T> for Running<'_, T> {
    fn logits(&mut self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let Dar { trunk, table, .. } = self.model;
        trunk.logits(x, table, &mut self.caches, &trunk.causal())
    }

    fn embed(&mut self, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        // The class came first.
        let first = self.caches.first().map_or(0, KvCache::len).saturating_sub(1);
        self.model.embed(tokens, first)
    }
}

impl<T: Float> Rewind<T> for Running<'_, T> {
    fn rewind(&mut self, places: usize) {
        forget(&mut self.caches, places);
    }
}

impl DrawsCodes for Dar {
    const SYSTEM: &'static str = "dar";

    fn codes(&self) -> &Codes {
        &self.codes
    }

    fn drafted(&self) -> Option<(&Weight, usize)> {
        Some(self.trunk.drafted())
    }

    fn generate<T: Float>(&self, wanted: WantedCodes<'_>, steps: Steps<'_, T>) -> Result<Tensor<u32>> {
        let WantedCodes { labels, sampler, decoder, .. } = wanted;
        let cfg = sampler.sampling.cfg;
        let condition = self.classes.rows(labels, cfg != 1.0)?;
        let mut running = self.running(condition.shape()[0])?;
        let order = Order::Cells(&self.cells);
        causal(&mut running, condition, labels.len(), order, |_| cfg, sampler, decoder, steps)
    }
}
