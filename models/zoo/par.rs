//! PAR: regions of the picture in parallel, one cell of each at once.
//!
//! | part      | here                                                                                    |
//! |-----------|-----------------------------------------------------------------------------------------|
//! | tokenizer | LlamaGen's ([`VqTokenizer`](crate::tokenizer::vq::VqTokenizer))                         |
//! | backbone  | Llama blocks ([`Trunk`])                                                                |
//! | order     | the first cell of every region in turn, then the next cell of all regions at once       |
//! | mask      | causal; from the first group on, each group of `at_once` places sees itself whole       |
//! | position  | RoPE over rows and columns, rearranged; condition and transition tokens' rows are 0     |
//! | head      | softmax over codes                                                                      |
//! | decoder   | `at_once` single steps, then groups: a group's place i gives place i of the next        |
//! | guidance  | `uncond + cfg (cond - uncond)`, if wanted only at the start of each phase               |
//!
//! Paper: Wang et al. 2024, arXiv:2412.15119; the learned transition tokens are in section 3.3.
//! Upstream: YuqingWang1029/PAR.
//!
//! The file is long because transition tokens stand between single places and groups, which shifts the rotary rows and
//! what a place of a whole sequence sees.

use smalti::attention::Mask;
use smalti::rope::{NullRows, Table};
use smalti::sample::Guidance;
use smalti::{Device, Float, Tensor, Weight, embedding};

use super::codes::{Codes, DrawsCodes, WantedCodes};
use crate::backbone::condition::ClassTable;
use crate::backbone::trunk::Trunk;
use crate::decode::{Order, Steps, concatenate, from_raster, guide, in_groups, twice};
use crate::order;
use crate::weights::Checkpoint;
use crate::{Error, Result};

/// The model with its weights on a device.
pub struct Par {
    codes: Codes,
    classes: ClassTable,
    transition: Weight,
    trunk: Trunk,
    table: Table,
    cells: Vec<usize>,
    at_once: usize,
    guided_until: Option<usize>,
}

impl Par {
    /// Loads official names, and the tokenizer under `vq.` if it is there.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &["quantize.codebook_used"], |root, notes| {
            let trunk = Trunk::load(root, &config, "tok_embeddings.weight")?;
            let classes = ClassTable::load(root, "cls_embedding.embedding_table.weight", trunk.dim())?;
            let codes = Codes::load(checkpoint, root, &config, classes.classes())?;
            let special = "spe_tok_embeddings.special_embeddings.weight";
            let at_once = root.length(special, 0) + 1;
            if at_once.isqrt().pow(2) != at_once || !codes.side().is_multiple_of(at_once.isqrt()) {
                notes.add(format!("{at_once} regions do not tile a grid of {0} x {0}", codes.side()));
            }
            let cells = order::regions(codes.side(), at_once);

            let theta = config.number("rope_base").unwrap_or(10_000.0);
            let grid = Table::grid(device, codes.side(), codes.side(), trunk.head_dim(), theta)?;
            let grid = grid.with_null_rows(1, NullRows::Zero)?;
            // The condition, the single tokens, the transition tokens, the rest.
            let (single, rest) = cells.split_at(at_once.min(cells.len()));
            let row = |cell: &usize| 1 + cell;
            let rows = [0].into_iter().chain(single.iter().map(row)).chain(vec![0; at_once - 1]);
            let rows: Vec<_> = rows.chain(rest.iter().map(row)).collect();
            Ok(Self {
                table: order::positions(&grid, &rows)?,
                transition: root.weight(special, &[at_once - 1, trunk.dim()])?,
                guided_until: config.count("cfg_interval"),
                codes,
                classes,
                trunk,
                cells,
                at_once,
            })
        })
    }

    /// Cell of each place in decoding order.
    #[must_use]
    pub fn cells(&self) -> &[usize] {
        &self.cells
    }

    /// The rotary table, a row per place of the sequence.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Whether a place of the sequence sees another.
    #[must_use]
    pub fn sees(&self, query: usize, key: usize) -> bool {
        // Places before the first group see what is before them; a group sees itself whole.
        let end = if query < self.at_once { query + 1 } else { query / self.at_once * self.at_once + self.at_once };
        key < end
    }

    fn transition<T: Float>(&self, batch: usize) -> Result<Tensor<T>> {
        let ids: Vec<_> = (0..batch).flat_map(|_| 0..self.at_once as u32 - 1).collect();
        let ids = Tensor::from_vec(&self.codes.device, &[batch, self.at_once - 1], ids)?;
        Ok(embedding::embedding(&self.transition, &ids)?)
    }

    /// Logits of every place, `[batch, places, vocabulary]` in decoding order, from `tokens` (`[batch, places]`, in
    /// raster order).
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher<T: Float>(&self, labels: &[u32], tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        let &[batch, places] = tokens.shape() else {
            return Err(Error::Request(format!("par: tokens of shape {:?}", tokens.shape())));
        };
        let tokens = self.trunk.embed::<T>(&from_raster(tokens, &self.cells)?)?;
        let single = tokens.narrow(1, 0, self.at_once)?;
        let rest = tokens.narrow(1, self.at_once, places - 1 - self.at_once)?;
        let condition = self.classes.rows(labels, false)?;
        let x = concatenate(&[&condition, &single, &self.transition(batch)?, &rest], 1)?;
        let seq = x.shape()[1];
        let mask = Mask::from_fn(seq, seq, |query, key| self.sees(query, key));
        let options = self.trunk.options(mask);
        let logits = self.trunk.logits(&x, &self.table, &mut self.trunk.caches(batch, seq)?, &options)?;
        Ok(logits.narrow(1, 0, places)?)
    }
}

impl DrawsCodes for Par {
    const SYSTEM: &'static str = "par";

    fn codes(&self) -> &Codes {
        &self.codes
    }

    fn generate<T: Float>(&self, wanted: WantedCodes<'_>, steps: Steps<'_, T>) -> Result<Tensor<u32>> {
        let WantedCodes { labels, sampler, .. } = wanted;
        let (batch, places) = (labels.len(), self.codes.places());
        let cfg = sampler.sampling.cfg;
        let mut x: Tensor<T> = self.classes.rows(labels, cfg != 1.0)?;
        let rows = x.shape()[0];
        let mut caches = self.trunk.caches(rows, self.table.positions())?;
        // A group sees itself whole, and a single place is the last: either way all keys are seen.
        let options = self.trunk.options(Mask::Full);
        let sizes = vec![1; self.at_once].into_iter().chain(vec![self.at_once; places / self.at_once - 1]);
        let order = Order::Cells(&self.cells);
        in_groups(&self.codes.device, batch, order, sizes, &[], sampler, steps, |before, next| {
            if let Some(tokens) = before {
                x = self.trunk.embed(tokens)?;
                if next.start == self.at_once {
                    x = concatenate(&[&x, &self.transition(batch)?], 1)?;
                }
                if rows > batch {
                    x = twice(&x)?;
                }
            }
            let logits = self.trunk.logits(&x, &self.table, &mut caches, &options)?;
            let phase_start = if next.start < self.at_once { 1 } else { self.at_once };
            let off = self.guided_until.is_some_and(|until| next.start.saturating_sub(phase_start) > until);
            guide(&logits, batch, if off { 1.0 } else { cfg }, Guidance::Scale)
        })
    }
}
