//! LPD: groups of cells in parallel, asked for by queries that know only their place.
//!
//! | part      | here                                                                                         |
//! |-----------|----------------------------------------------------------------------------------------------|
//! | tokenizer | LlamaGen's ([`VqTokenizer`](crate::tokenizer::vq::VqTokenizer))                              |
//! | backbone  | ViT blocks ([`Vit`])                                                                         |
//! | order     | near the context, far from each other ([`locality`])                                         |
//! | mask      | tokens see all groups up to their own; a group's queries see those before it and each other  |
//! | position  | learned, on tokens and queries alike                                                         |
//! | head      | softmax over codes                                                                           |
//! | decoder   | a pass takes the last group's tokens in and asks for the next; queries leave the cache again |
//! | guidance  | `uncond + s (cond - uncond)`, `s` constant or rising from place to place                     |
//!
//! Paper: Zhang et al. 2025, arXiv:2507.01957, section 3. Upstream: mit-han-lab/lpd, `models/lpd.py`.
//!
//! The file is long because it knows its mask twice, for a whole sequence of tokens and queries and for a step that
//! reads a cache, and because it draws the order of its groups and guides each place by a scale of its own.

use std::f64::consts::FRAC_PI_2;
use std::ops::Range;

use smalti::attention::{KvCache, Mask};
use smalti::sample::Schedule;
use smalti::{Device, Float, Tensor, Weight, copy, elementwise, embedding, linear};

use super::codes::{Codes, DrawsCodes, WantedCodes};
use crate::backbone::vit::{LayerNorm, Vit};
use crate::decode::{Order, Sampler, Steps, concatenate, guidance_over_steps, in_groups, twice};
use crate::order::locality::{self, Chance, Thresholds};
use crate::weights::Checkpoint;
use crate::{Error, Result};

/// The model with its weights on a device.
pub struct Lpd {
    codes: Codes,
    /// Classes, `[classes, dim]`, and what stands for none, `[1, dim]`.
    classes: Weight,
    none: Tensor<f32>,
    tokens: Weight,
    /// `[1, dim]`.
    query: Tensor<f32>,
    /// The condition's position, then the cells'. `[1 + places, dim]`.
    positions: Weight,
    input_norm: LayerNorm,
    blocks: Vit,
    norm: LayerNorm,
    head: Weight,
    group_sizes: Vec<usize>,
    guidance: Schedule,
}

impl Lpd {
    /// Loads official names, and the tokenizer under `vq.` if it is there.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &["quantize.codebook_used"], |root, notes| {
            let [vocabulary, dim] = root.lengths("head.weight");
            let heads = config.count("n_head").unwrap_or(if dim == 1024 { 16 } else { dim / 64 }).max(1);
            let classes = root.length("class_emb.weight", 0);
            let mut codes = Codes::load(checkpoint, root, &config, classes)?;
            let side = root.length("pos_embed", 1).saturating_sub(1).isqrt();
            codes.grid = [1, side, side];
            let places = codes.places();
            let group_sizes = config
                .counts("group_sizes")
                .unwrap_or_else(|| crate::order::counts(places, 20.min(places), |r| (FRAC_PI_2 * r).cos()));
            if group_sizes.first() != Some(&1) || group_sizes.iter().sum::<usize>() != places {
                notes.add(format!("group sizes {group_sizes:?}, expected 1 first and {places} in all"));
            }
            let positions = root.vector("pos_embed", &[1, 1 + places, dim])?;
            let norm_eps = config.number("norm_eps").unwrap_or(1e-6);
            Ok(Self {
                classes: root.weight("class_emb.weight", &[classes, dim])?,
                none: root.vector("fake_latent", &[1, dim])?,
                tokens: root.weight("token_emb.weight", &[vocabulary, dim])?,
                query: root.vector("mask_token", &[1, 1, dim])?,
                positions: positions.reshape(&[1 + places, dim])?.into(),
                input_norm: LayerNorm::load(root, "z_proj_ln", dim, config.number("z_proj_ln_eps").unwrap_or(1e-6))?,
                blocks: Vit::load(root, "blocks", dim, heads, norm_eps)?,
                norm: LayerNorm::load(root, "norm", dim, norm_eps)?,
                head: root.weight("head.weight", &[vocabulary, dim])?,
                guidance: guidance_over_steps(&config),
                codes,
                group_sizes,
            })
        })
    }

    /// The rows of classes, then, if `guided`, as many of none: `[rows, 1, dim]`.
    fn condition<T: Float>(&self, labels: &[u32], guided: bool) -> Result<Tensor<T>> {
        let classes = self.classes.shape()[0];
        if let Some(label) = labels.iter().find(|label| **label as usize >= classes) {
            return Err(Error::Request(format!("class {label}, expected 0 to {}", classes.saturating_sub(1))));
        }
        let ids = Tensor::from_vec(&self.codes.device, &[labels.len(), 1], labels.to_vec())?;
        let with = embedding::embedding::<T>(&self.classes, &ids)?;
        if !guided {
            return Ok(with);
        }
        let dim = self.none.shape()[1];
        let none = self.none.reshape(&[1, 1, dim])?.broadcast(&[labels.len(), 1, dim])?.contiguous()?;
        concatenate(&[&with, &copy::convert(&none)?], 0)
    }

    /// `x` (`[rows, seq, dim]`) with the positions of `places` (0 is the condition, then cells), normed. `places` is
    /// for every row, or `[rows, seq]`.
    fn placed<T: Float>(&self, x: &Tensor<T>, places: &[usize]) -> Result<Tensor<T>> {
        let seq = x.shape()[1];
        let ids = places.iter().map(|place| *place as u32).collect();
        let ids = Tensor::from_vec(&self.codes.device, &[places.len() / seq, seq], ids)?;
        let positions: Tensor<T> = embedding::embedding(&self.positions, &ids)?;
        self.input_norm.run(&elementwise::add(x, &positions)?)
    }

    fn queries<T: Float>(&self, rows: usize, count: usize) -> Result<Tensor<T>> {
        let shape = [rows, count, self.none.shape()[1]];
        Ok(copy::convert(&self.query.broadcast(&shape)?.contiguous()?)?)
    }

    fn logits<T: Float>(&self, states: &Tensor<T>) -> Result<Tensor<T>> {
        Ok(linear::linear(&self.norm.run(states)?, &self.head, None)?)
    }

    /// The mask of a whole sequence for groups of these sizes: condition, tokens without the last group, queries.
    #[must_use]
    pub fn sees(group_sizes: &[usize], query: usize, key: usize) -> bool {
        let places: usize = group_sizes.iter().sum();
        let tokens = 1 + places - group_sizes.last().copied().unwrap_or(0);
        // The condition is a group of its own before the first.
        let group = |place: usize| {
            let mut end = 0;
            group_sizes
                .iter()
                .take_while(|size| {
                    end += **size;
                    end <= place
                })
                .count()
        };
        let of = |at: usize| match at {
            0 => 0,
            at if at < tokens => 1 + group(at - 1),
            at => 1 + group(at - tokens),
        };
        match (query < tokens, key < tokens) {
            (true, key_is_token) => key_is_token && of(key) <= of(query),
            (false, true) => of(key) < of(query),
            (false, false) => of(key) == of(query),
        }
    }

    /// Logits of each cell in the order of `orders` (`[batch, places]`), `[batch, places, vocabulary]`, from the tokens
    /// of earlier groups; `tokens` (`[batch, places]`) is in raster order.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher<T: Float>(
        &self,
        labels: &[u32],
        tokens: &Tensor<u32>,
        orders: &[u32],
        group_sizes: &[usize],
    ) -> Result<Tensor<T>> {
        let (batch, places) = (labels.len(), self.codes.places());
        let known = places - group_sizes.last().copied().unwrap_or(0);
        let raster = tokens.to_vec()?;
        let (mut ids, mut at) = (Vec::new(), Vec::new());
        for (tokens, order) in raster.chunks(places).zip(orders.chunks(places)) {
            ids.extend(order[..known].iter().map(|cell| tokens[*cell as usize]));
            at.push(0);
            at.extend(order[..known].iter().chain(order).map(|cell| 1 + *cell as usize));
        }
        let ids = Tensor::from_vec(&self.codes.device, &[batch, known], ids)?;
        let tokens: Tensor<T> = embedding::embedding(&self.tokens, &ids)?;
        let x = concatenate(&[&self.condition(labels, false)?, &tokens, &self.queries(batch, places)?], 1)?;
        let seq = x.shape()[1];
        let mask = Mask::from_fn(seq, seq, |query, key| Self::sees(group_sizes, query, key));
        let states = self.blocks.run(&self.placed(&x, &at)?, None, None, &self.blocks.options().mask(mask))?;
        self.logits(&states.narrow(1, seq - places, places)?.contiguous()?)
    }

    /// The order of the whole run.
    fn order(&self, sampler: &Sampler<'_>) -> Vec<usize> {
        if let Some(recorded) = sampler.recorded_order(None) {
            return recorded;
        }
        let places = self.codes.places();
        let mut drawn = 1;
        let mut next = || {
            drawn += 1;
            sampler.word(None, drawn)
        };
        let next = std::cell::RefCell::new(&mut next);
        let mut chance = Chance {
            first: (sampler.word(None, 0) % places as u64) as usize,
            shuffle: &mut |cells: &mut Vec<usize>| cells.sort_by_cached_key(|_| (next.borrow_mut())()),
            start: &mut |count| ((next.borrow_mut())() % count as u64) as usize,
        };
        // The official orders of 20 steps.
        let thresholds = Thresholds { proximity: 1.0, repulsion: 2.0 };
        locality::order(self.codes.side(), &self.group_sizes, thresholds, &mut chance)
    }

    /// Guided logits of the places `next`: each has a scale of its own.
    fn guided<T: Float>(&self, logits: &Tensor<T>, batch: usize, cfg: f32, next: Range<usize>) -> Result<Tensor<T>> {
        if logits.shape()[0] == batch {
            return Ok(logits.clone());
        }
        let (with, without) = (logits.narrow(0, 0, batch)?, logits.narrow(0, batch, batch)?);
        let share = |place: usize| place as f64 / self.codes.places() as f64;
        let scales = next.clone().map(|place| T::from_f64(self.guidance.at(cfg.into(), share(place))));
        let scales = Tensor::from_vec(&self.codes.device, &[1, next.len(), 1], scales.collect())?;
        let difference = elementwise::scale_add(&with, 1.0, &without, -1.0)?;
        Ok(elementwise::add(&elementwise::mul(&difference, &scales)?, &without)?)
    }
}

impl DrawsCodes for Lpd {
    const SYSTEM: &'static str = "lpd";

    fn codes(&self) -> &Codes {
        &self.codes
    }

    fn generate<T: Float>(&self, wanted: WantedCodes<'_>, steps: Steps<'_, T>) -> Result<Tensor<u32>> {
        let WantedCodes { labels, sampler, .. } = wanted;
        let (batch, places) = (labels.len(), self.codes.places());
        let cells = self.order(sampler);
        let cfg = sampler.sampling.cfg;
        let mut known: Tensor<T> = self.condition(labels, cfg != 1.0)?;
        let rows = known.shape()[0];
        let mut caches: Vec<KvCache<T>> = self.blocks.caches(&self.codes.device, rows, 1 + 2 * places)?;
        // The places whose tokens the next pass takes in, counted from 1; 0 is the condition.
        let mut before = 0..1;
        let (order, sizes) = (Order::Cells(&cells), self.group_sizes.iter().copied());
        in_groups(&self.codes.device, batch, order, sizes, &[], sampler, steps, |tokens, next| {
            if let Some(tokens) = tokens {
                before = before.end..1 + next.start;
                known = embedding::embedding(&self.tokens, tokens)?;
                if rows > batch {
                    known = twice(&known)?;
                }
            }
            let count = next.len();
            let at = (before.start..1 + next.end).map(|place| if place == 0 { 0 } else { 1 + cells[place - 1] });
            let x = concatenate(&[&known, &self.queries(rows, count)?], 1)?;
            let x = self.placed(&x, &at.collect::<Vec<_>>())?;
            let mask =
                Mask::from_fn(x.shape()[1], 1 + next.end, |query, key| query >= before.len() || key < before.end);
            let options = self.blocks.options().mask(mask);
            let states = self.blocks.run(&x, None, Some(&mut caches), &options)?;
            caches.iter_mut().for_each(|cache| cache.truncate(before.end));
            let logits = self.logits(&states.narrow(1, before.len(), count)?.contiguous()?)?;
            self.guided(&logits, batch, cfg, next)
        })
    }
}
