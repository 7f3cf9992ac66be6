//! RandAR: any order, told by tokens that hold nothing but the place that comes next.
//!
//! | part      | here                                                                                              |
//! |-----------|---------------------------------------------------------------------------------------------------|
//! | tokenizer | LlamaGen's ([`VqTokenizer`](crate::tokenizer::vq::VqTokenizer))                                   |
//! | backbone  | Llama blocks ([`Trunk`])                                                                          |
//! | order     | random, each picture its own; more and more cells per step                                        |
//! | mask      | causal over class, instruction, token, instruction, token, ...                                    |
//! | position  | RoPE over rows and columns; an instruction is one learned vector, turned by its cell beforehand   |
//! | head      | softmax over codes, read at the instructions                                                      |
//! | decoder   | several instructions at once; they are run again, interleaved with their tokens, in the next step |
//! | guidance  | `uncond + s (cond - uncond)`, `s` rising linearly with the cells settled                          |
//!
//! What is settled beforehand (a part of a picture, a coarser picture) simply comes first in the order.
//!
//! Paper: Pang et al. 2024, arXiv:2412.01827, sections 3 and 4. Upstream: ziqipang/RandAR, `model/randar_gpt.py` and
//! `applications/resolution_extrapolation.py`.
//!
//! The file is long because it also draws pictures of twice the side: a coarse picture comes first, the rotary table is
//! stretched, and a third copy of each sequence, which does not see all of the coarse picture, guides.

use std::cell::RefCell;
use std::f64::consts::FRAC_PI_2;
use std::ops::Range;

use smalti::rope::{NullRows, Pairing, Table, rope};
use smalti::sample::Guidance;
use smalti::{Device, Float, Tensor, copy, elementwise};

use super::codes::{Codes, DrawsCodes, WantedCodes, go_on};
use crate::backbone::condition::ClassTable;
use crate::backbone::trunk::Trunk;
use crate::decode::{Cells, Sampler, Step, Steps, concatenate, guide, twice};
use crate::order;
use crate::weights::{Checkpoint, Config};
use crate::{Error, Result};

/// Guidance by the places of a coarse picture, from the first cell to the last.
const SPATIAL_CFG: [f32; 2] = [2.5, 2.5];

/// The model with its weights on a device.
pub struct RandAr {
    /// Of the grid that is drawn.
    codes: Codes,
    /// Cells along a side of the grid that it learned.
    side: usize,
    classes: ClassTable,
    trunk: Trunk,
    /// `[dim]`.
    instruction: Tensor<f32>,
    table: Table,
    theta: f32,
    steps: usize,
    first_cfg: f32,
    config: Config,
}

/// Sequences of several copies of a batch, each picture in its own order.
struct Sequences<'a, T: Float> {
    /// Per picture.
    orders: &'a [Vec<usize>],
    /// Rows of the whole batch per picture.
    copies: usize,
    /// A row per cell, the condition's first.
    table: &'a Table,
    /// `[copies * batch, places, dim]`.
    instructions: Tensor<T>,
}

impl RandAr {
    /// Loads official names, and the tokenizer under `vq.` if it is there.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &["quantize.codebook_used"], |root, _| {
            let trunk = Trunk::load(root, &config, "tok_embeddings.weight")?;
            let classes = ClassTable::load(root, "cls_embedding.embedding_table.weight", trunk.dim())?;
            let codes = Codes::load(checkpoint, root, &config, classes.classes())?;
            let theta = config.number("rope_base").unwrap_or(10_000.0);
            let table = Table::grid(device, codes.side(), codes.side(), trunk.head_dim(), theta)?;
            Ok(Self {
                instruction: root.vector("pos_instruct_embeddings", &[1, trunk.dim()])?,
                table: table.with_null_rows(1, NullRows::Zero)?,
                steps: match config.number("num_inference_steps") {
                    // As the authors evaluate; a negative number is one cell after another.
                    None => 88,
                    Some(steps) if steps < 1.0 => codes.places(),
                    Some(steps) => steps as usize,
                },
                first_cfg: config.numbers("cfg_scales").map_or(1.0, |scales| scales[0]),
                side: codes.side(),
                codes,
                classes,
                trunk,
                theta,
                config,
            })
        })
    }

    /// The rotary table, the condition's row first.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The instructions for cells in these orders, `[batch, places, dim]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn instructions<T: Float>(&self, table: &Table, orders: &[Vec<usize>]) -> Result<Tensor<T>> {
        let (dim, head_dim) = (self.trunk.dim(), self.trunk.head_dim());
        let (batch, places) = (orders.len(), orders[0].len());
        let rows: Vec<_> = orders.iter().flatten().map(|cell| 1 + cell).collect();
        let x = self.instruction.reshape(&[1, dim / head_dim, 1, head_dim])?;
        let x = x.broadcast(&[batch, dim / head_dim, places, head_dim])?.contiguous()?;
        let table = order::positions_of_batch(table, batch, &rows)?;
        let x = rope(&copy::convert::<_, T>(&x)?, &table, 0, Pairing::Interleaved)?;
        Ok(x.permute(&[0, 2, 1, 3])?.reshape(&[batch, places, dim])?)
    }

    fn sequences<'a, T: Float>(
        &self,
        table: &'a Table,
        orders: &'a [Vec<usize>],
        copies: usize,
    ) -> Result<Sequences<'a, T>> {
        let one = self.instructions(table, orders)?;
        let instructions = concatenate(&vec![&one; copies], 0)?;
        Ok(Sequences { orders, copies, table, instructions })
    }

    /// Logits of each cell in the order of `orders`, `[batch, places, vocabulary]`, from the tokens before it;
    /// `tokens` (`[batch, places]`) is in raster order.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher<T: Float>(&self, labels: &[u32], tokens: &Tensor<u32>, orders: &[Vec<usize>]) -> Result<Tensor<T>> {
        let (batch, places) = (labels.len(), self.codes.places());
        let sequences = self.sequences::<T>(&self.table, orders, 1)?;
        let raster = tokens.to_vec()?;
        let pictures = raster.chunks(places).zip(orders);
        let ids = pictures.flat_map(|(tokens, order)| order.iter().map(|cell| tokens[*cell])).collect();
        let ids = Tensor::from_vec(&self.codes.device, &[batch, places], ids)?;
        let x = sequences.interleaved(&self.trunk.embed(&ids)?, 0..places)?;
        let x = concatenate(&[&self.classes.rows(labels, false)?, &x], 1)?;
        let at: Vec<_> = [0].into_iter().chain((0..2 * places).map(|index| 1 + index / 2)).collect();
        let table = sequences.rotary(&at)?;
        let mut caches = self.trunk.caches(batch, 1 + 2 * places)?;
        let logits = self.trunk.logits_at(&x, (&table, 0), &mut caches, &self.trunk.causal())?;
        // Every second row from the first instruction on.
        let logits = logits.narrow(1, 1, 2 * places)?.reshape(&[batch, places, 2, self.trunk.vocabulary()])?;
        Ok(logits.narrow(2, 0, 1)?.reshape(&[batch, places, self.trunk.vocabulary()])?)
    }

    /// Settles the places of `sequences`, `counts` per step, after the first few if they are known: `[batch, count]`
    /// tokens and how the copies see them, `[rows, count, dim]`. `guide` combines the copies' logits after so many
    /// places are settled.
    fn settle<T: Float>(
        &self,
        sequences: &Sequences<'_, T>,
        condition: &Tensor<T>,
        known: Option<(&Tensor<u32>, &Tensor<T>)>,
        counts: &[usize],
        guide: impl Fn(&Tensor<T>, usize) -> Result<Tensor<T>>,
        sampler: &Sampler<'_>,
        steps: Steps<'_, T>,
    ) -> Result<Tensor<u32>> {
        let (batch, places) = (sequences.orders.len(), sequences.orders[0].len());
        let mut caches = self.trunk.caches::<T>(batch * sequences.copies, 1 + 2 * places)?;
        let mut drawn = Tensor::<u32>::zeros(&self.codes.device, &[batch, places])?;
        let mut settled = 0;
        // What the next step runs before its instructions, as embeddings and as places; 0 is the condition.
        let (mut before, mut at) = (condition.clone(), vec![0]);
        if let Some((tokens, seen)) = known {
            settled = tokens.shape()[1];
            copy::copy_into_slice(tokens, &mut drawn, 1, 0)?;
            before = concatenate(&[&before, &sequences.interleaved(seen, 0..settled)?], 1)?;
            at.extend((0..2 * settled).map(|index| 1 + index / 2));
        }
        for &count in counts {
            let x = concatenate(&[&before, &sequences.instructions.narrow(1, settled, count)?.contiguous()?], 1)?;
            at.extend(1 + settled..1 + settled + count);
            let table = sequences.rotary(&at)?;
            let logits = self.trunk.logits_at(&x, (&table, 0), &mut caches, &self.trunk.causal())?;
            let guided = guide(&logits.narrow(1, at.len() - count, count)?, settled)?;
            let tokens = sampler.draw(&guided, settled)?;
            copy::copy_into_slice(&tokens, &mut drawn, 1, settled)?;
            // These instructions but for the first run again, each just before its token.
            caches.iter_mut().for_each(|cache| cache.truncate(cache.len() + 1 - count));
            let seen = self.trunk.embed::<T>(&tokens)?;
            let seen = concatenate(&vec![&seen; sequences.copies], 0)?;
            let both = sequences.interleaved(&seen, settled..settled + count)?;
            before = both.narrow(1, 1, 2 * count - 1)?.contiguous()?;
            at = (1..2 * count).map(|index| 1 + settled + index / 2).collect();
            let cells: Vec<_> = sequences.orders.iter().map(|order| order[settled..settled + count].to_vec()).collect();
            settled += count;
            let cells = Cells::Each(&cells);
            go_on(steps(Step { settled, logits: &guided, tokens: &tokens, cells, latents: None }))?;
        }
        Ok(drawn)
    }

    /// Doubles the grid: draws the coarse picture in the order that `orders` (of the fine grid, cells of even row and
    /// column first) has for it, then the other cells around it. `dropped` are the coarse places (in decoding order,
    /// `[batch]` lists) that the third copy does not see. Returns tokens in decoding order.
    ///
    /// Guidance is `null + a (cond - spatial) + b (spatial - null)`, `a` and `b` rising linearly: `spatial` is without
    /// the class, `null` without the dropped places too.
    ///
    /// `finish` draws the last planned step, which the official loop leaves out.
    ///
    /// # Errors
    /// As [`Generator::draw`](crate::Generator::draw).
    pub fn extrapolate<T: Float>(
        &self,
        labels: &[u32],
        orders: &[Vec<usize>],
        dropped: &[Vec<usize>],
        sampler: &Sampler<'_>,
        finish: bool,
        coarse_steps: Steps<'_, T>,
        steps: Steps<'_, T>,
    ) -> Result<Extrapolated> {
        let batch = labels.len();
        let (side, fine) = (self.side, 2 * self.side);
        let coarse: Vec<Vec<_>> = orders
            .iter()
            .map(|order| order[..side * side].iter().map(|cell| cell / fine / 2 * side + cell % fine / 2).collect())
            .collect();
        let low = self.draw_in(labels, &coarse, None, sampler, coarse_steps)?;

        let table = self.extrapolated_table()?;
        let sequences = self.sequences::<T>(&table, orders, 3)?;
        let condition = self.classes.rows::<T>(labels, true)?;
        let condition = concatenate(&[&condition, &condition.narrow(0, batch, batch)?.contiguous()?], 0)?;
        let shown = self.trunk.embed::<T>(&low)?;
        let mut seen = vec![T::from_f32(1.0); batch * side * side];
        for (seen, dropped) in seen.chunks_mut(side * side).zip(dropped) {
            dropped.iter().for_each(|place| seen[*place] = T::from_f32(0.0));
        }
        let seen = Tensor::from_vec(&self.codes.device, &[batch, side * side, 1], seen)?;
        let shown = concatenate(&[&shown, &shown, &elementwise::mul(&shown, &seen)?], 0)?;

        let counts = counts(self.steps, fine * fine, side * side);
        let run = if finish { &counts[..] } else { &counts[..counts.len() - 1] };
        let of_class = [self.first_cfg, sampler.sampling.cfg];
        let of_place = self.config.numbers("spatial_cfg_scales").unwrap_or_else(|| SPATIAL_CFG.to_vec());
        let linear = |scales: &[f32], settled: usize| {
            scales[0] + (scales[1] - scales[0]) * settled as f32 / (fine * fine) as f32
        };
        let guide = |logits: &Tensor<T>, settled: usize| {
            let part = |copy: usize| logits.narrow(0, copy * batch, batch);
            let (a, b) = (linear(&of_class, settled), linear(&of_place, settled));
            // null + a (cond - spatial) + b (spatial - null)
            let class = elementwise::scale_add(&part(0)?, a, &part(1)?, b - a)?;
            Ok(elementwise::scale_add(&class, 1.0, &part(2)?, 1.0 - b)?)
        };
        let tokens = self.settle(&sequences, &condition, Some((&low, &shown)), run, guide, sampler, steps)?;
        Ok(Extrapolated { tokens, counts })
    }

    /// The table of the doubled grid: of each axis the first `ntk_boundary` frequencies turn as far as the grid is
    /// large, the others only as far as the trained one was.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn extrapolated_table(&self) -> Result<Table> {
        let (side, fine) = (self.side, 2 * self.side);
        let (half, pairs) = (self.trunk.head_dim() / 4, self.trunk.head_dim() / 2);
        let boundary = self.config.count("ntk_boundary").unwrap_or(2);
        let table = Table::from_angles(&self.codes.device, fine * fine, pairs, |cell, pair| {
            let place = (if pair < half { cell / fine } else { cell % fine }) as f64;
            let frequency = f64::from(self.theta).powf(-((pair % half) as f64) / half as f64);
            let squeezed = place * (side - 1) as f64 / (fine - 1) as f64;
            frequency * if pair % half < boundary { place } else { squeezed }
        })?;
        Ok(table.with_null_rows(1, NullRows::Zero)?)
    }

    /// Draws pictures in the given orders: tokens in decoding order, after those that are `known` (`[batch, count]`).
    fn draw_in<T: Float>(
        &self,
        labels: &[u32],
        orders: &[Vec<usize>],
        known: Option<&Tensor<u32>>,
        sampler: &Sampler<'_>,
        steps: Steps<'_, T>,
    ) -> Result<Tensor<u32>> {
        let (batch, places) = (labels.len(), self.side * self.side);
        let cfg = sampler.sampling.cfg;
        let guided = cfg > 1.0;
        let sequences = self.sequences::<T>(&self.table, orders, 1 + usize::from(guided))?;
        let condition = self.classes.rows(labels, guided)?;
        let scale = |logits: &Tensor<T>, settled: usize| {
            let share = settled as f32 / places as f32;
            guide(logits, batch, self.first_cfg + (cfg - self.first_cfg) * share, Guidance::Scale)
        };
        let seen = known.map(|known| Ok::<_, Error>(if guided { twice(known)? } else { known.clone() })).transpose()?;
        let seen = seen.map(|seen| self.trunk.embed::<T>(&seen)).transpose()?;
        let counts = counts(self.steps, places, known.map_or(0, |known| known.shape()[1]));
        self.settle(&sequences, &condition, known.zip(seen.as_ref()), &counts, scale, sampler, steps)
    }
}

/// What [`RandAr::extrapolate`] has drawn.
pub struct Extrapolated {
    /// `[batch, 4 places]` in decoding order; 0 where nothing was drawn.
    pub tokens: Tensor<u32>,
    /// Cells per step after the coarse ones, as planned.
    pub counts: Vec<usize>,
}

impl<T: Float> Sequences<'_, T> {
    /// Each of the `places` as its instruction and its token (`[rows, count, dim]`): `[rows, 2 count, dim]`.
    fn interleaved(&self, tokens: &Tensor<T>, places: Range<usize>) -> Result<Tensor<T>> {
        let &[rows, count, dim] = tokens.shape() else {
            return Err(Error::Request(format!("randar: embeddings of shape {:?}", tokens.shape())));
        };
        let instructions = self.instructions.narrow(1, places.start, count)?.contiguous()?;
        let pair = |part: &Tensor<T>| part.reshape(&[rows, count, 1, dim]);
        let both = concatenate(&[&pair(&instructions)?, &pair(tokens)?], 2)?;
        Ok(both.reshape(&[rows, 2 * count, dim])?)
    }

    /// The rotary rows of a sequence of these places, counted from 1; 0 is the condition.
    fn rotary(&self, places: &[usize]) -> Result<Table> {
        let row = |order: &[usize], place: usize| if place == 0 { 0 } else { 1 + order[place - 1] };
        let of_batch = self.orders.iter().flat_map(|order| places.iter().map(|place| row(order, *place)));
        let rows: Vec<_> = of_batch.collect();
        order::positions_of_batch(self.table, self.orders.len() * self.copies, &rows.repeat(self.copies))
    }
}

impl DrawsCodes for RandAr {
    const SYSTEM: &'static str = "randar";

    fn codes(&self) -> &Codes {
        &self.codes
    }

    const FILLS: bool = true;

    fn use_grids(&mut self, sides: &[usize]) -> Result<()> {
        let own = self.side;
        match sides {
            [side] if [own, 2 * own].contains(side) => self.codes.grid = [1, *side, *side],
            _ => return Err(Error::Request(format!("randar: grids of {sides:?}, expected {own} or {}", 2 * own))),
        }
        Ok(())
    }

    fn generate<T: Float>(&self, wanted: WantedCodes<'_>, steps: Steps<'_, T>) -> Result<Tensor<u32>> {
        let WantedCodes { labels, known, sampler, .. } = wanted;
        let mut orders: Vec<_> = (0..labels.len()).map(|picture| sampler.order(Some(picture))).collect();
        let whole = known.iter().all(Option::is_none);
        if self.codes.side() != self.side {
            if !whole {
                return Err(Error::Request("randar: pictures of twice the side are drawn whole".to_owned()));
            }
            return self.in_raster(&self.doubled(labels, &mut orders, sampler, steps)?, &orders);
        }
        if whole {
            return self.in_raster(&self.draw_in(labels, &orders, None, sampler, steps)?, &orders);
        }
        // What stays is settled first, in any order.
        orders.iter_mut().for_each(|order| order.sort_by_key(|cell| known[*cell].is_none()));
        let tokens: Vec<_> = orders.iter().flat_map(|order| order.iter().filter_map(|cell| known[*cell])).collect();
        let shape = [labels.len(), tokens.len() / labels.len().max(1)];
        let tokens = Tensor::from_vec(&self.codes.device, &shape, tokens)?;
        self.in_raster(&self.draw_in(labels, &orders, Some(&tokens), sampler, steps)?, &orders)
    }
}

impl RandAr {
    /// Draws the doubled grid, tokens in decoding order; puts the cells of the coarse picture first in each order, those of
    /// even row and column.
    fn doubled<T: Float>(
        &self,
        labels: &[u32],
        orders: &mut [Vec<usize>],
        sampler: &Sampler<'_>,
        steps: Steps<'_, T>,
    ) -> Result<Tensor<u32>> {
        let (fine, places) = (self.codes.side(), self.side * self.side);
        orders.iter_mut().for_each(|order| order.sort_by_key(|cell| cell / fine % 2 + cell % fine % 2 > 0));
        let dropped = (places as f32 * self.config.number("spatial_masking_ratio").unwrap_or(0.5)) as usize;
        let dropped = (0..labels.len()).map(|picture| {
            let mut all: Vec<_> = (0..places).collect();
            // The words before these made the order.
            all.sort_by_key(|place| (sampler.word(Some(picture), sampler.places + place), *place));
            all.truncate(dropped);
            all
        });
        let dropped: Vec<_> = dropped.collect();
        let orders = &*orders;
        let steps = RefCell::new(steps);
        let mut coarse = |step: Step<'_, T>| {
            let now = step.settled - step.tokens.shape()[1]..step.settled;
            let cells: Vec<_> = orders.iter().map(|order| order[now.clone()].to_vec()).collect();
            (*steps.borrow_mut())(Step { cells: Cells::Each(&cells), ..step })
        };
        let mut others = |step: Step<'_, T>| (*steps.borrow_mut())(step);
        // The official loop leaves out the last step, whose cells would show the first code.
        Ok(self.extrapolate(labels, orders, &dropped, sampler, true, &mut coarse, &mut others)?.tokens)
    }

    /// Tokens in the order of each picture's cells, `[batch, places]`, in raster order.
    fn in_raster(&self, drawn: &Tensor<u32>, orders: &[Vec<usize>]) -> Result<Tensor<u32>> {
        let places = self.codes.places();
        let mut raster = vec![0; orders.len() * places];
        for ((tokens, order), raster) in drawn.to_vec()?.chunks(places).zip(orders).zip(raster.chunks_mut(places)) {
            tokens.iter().zip(order).for_each(|(token, cell)| raster[*cell] = *token);
        }
        Ok(Tensor::from_vec(&self.codes.device, drawn.shape(), raster)?)
    }
}

/// How many cells each of about `steps` steps settles if `settled` of `places` are known and the first step takes one.
pub(super) fn counts(steps: usize, places: usize, mut settled: usize) -> Vec<usize> {
    let mut counts = Vec::new();
    let mut count = 1;
    while settled < places {
        counts.push(count);
        settled += count;
        let r = (counts.len() + 1) as f64 / steps as f64;
        let target = (((1.0 - (FRAC_PI_2 * r).cos()) * places as f64 + 1.0) as usize).min(places);
        count = target.saturating_sub(settled).max(1).min(places - settled);
    }
    counts
}
