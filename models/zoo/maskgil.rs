//! MaskGIL: LlamaGen without the causal mask, decoded as MaskGIT does.
//!
//! | part      | here                                                                                     |
//! |-----------|------------------------------------------------------------------------------------------|
//! | tokenizer | LlamaGen's ([`VqTokenizer`](crate::tokenizer::vq::VqTokenizer))                          |
//! | backbone  | Llama blocks ([`Trunk`])                                                                 |
//! | order     | by confidence                                                                            |
//! | mask      | full                                                                                     |
//! | position  | RoPE along the raster; the class stands last, and the first cell takes the null row      |
//! | head      | softmax over codes and the mask token                                                    |
//! | decoder   | all open places are drawn, the most confident kept; the class does not count as a place  |
//! | guidance  | `(1 + w) cond - w uncond`, `w` rising with the step                                      |
//!
//! Paper: Xin et al. 2025, arXiv:2507.13032, section 3. Upstream: synbol/MaskGIL, `Network/gpt.py` and
//! `Trainer/vit.py`.
//!
//! The file is long because it has four ways to choose the places that are kept, by chance, by confidence or by both,
//! and shares its steps out anew when a part of the picture is given.

use std::f64::consts::FRAC_PI_2;

use smalti::attention::Mask;
use smalti::rope::{NullRows, Table};
use smalti::sample::{self, Draws, Filter, Guidance};
use smalti::{Device, Float, Tensor, Weight, embedding};

use super::codes::{Codes, DrawsCodes, WantedCodes, go_on};
use crate::backbone::trunk::Trunk;
use crate::decode::{Cells, Random, Sampler, Step, Steps, concatenate, guide, twice};
use crate::weights::Checkpoint;
use crate::{Error, Result};

/// How the places that are kept are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// By `ln p + r_temp (1 - r) gumbel`.
    Gumbel,
    /// At random in the first two steps, then by `p`.
    WarmUp,
    /// At random.
    Random,
    /// By `p`.
    Confidence,
}

/// The model with its weights on a device.
pub struct MaskGil {
    codes: Codes,
    trunk: Trunk,
    table: Table,
    classes: u32,
    counts: Vec<usize>,
    choice: Choice,
    choice_temperature: f64,
    /// Whether the mask token, the last of the head, is never drawn.
    drop_mask: bool,
}

/// The random numbers of a step.
pub struct Noise {
    /// Which token is drawn at every place: `[batch * places]` draws.
    pub tokens: Draws,
    /// Gumbel noise or uniforms of the choice, `[batch * places]`; empty where a step needs none.
    pub choice: Vec<f64>,
}

/// What a step did; all `[batch, places]` in raster order, but for the logits.
pub struct Commit<'a, T: Float> {
    /// Guided, `[batch, places, tokens]`.
    pub logits: &'a Tensor<T>,
    /// The token drawn at every place.
    pub candidates: &'a [u32],
    /// What the choice went by; `-inf` where a place was settled.
    pub confidence: &'a [f64],
    /// Whether a place is still open.
    pub open: &'a [bool],
    /// The tokens so far; open places hold the mask token.
    pub tokens: &'a [u32],
    /// Of each picture, the cells that were committed.
    pub cells: &'a [Vec<usize>],
}

impl MaskGil {
    /// Loads official names, and the tokenizer under `vq.` if it is there.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &["quantize.codebook_used"], |root, _| {
            let trunk = Trunk::load(root, &config, "tok_emb.weight")?;
            // Codes, the mask token, classes, no class.
            let classes = root.length("tok_emb.weight", 0).saturating_sub(trunk.vocabulary() + 1);
            let codes = Codes::load(checkpoint, root, &config, classes)?;
            let theta = config.number("rope_base").unwrap_or(10_000.0);
            let table = Table::one_d(device, codes.places(), trunk.head_dim(), theta)?;
            let mode = config.text("sched_mode").unwrap_or("arccos").to_owned();
            let share = |r: f64| match mode.as_str() {
                "root" => 1.0 - r.sqrt(),
                "linear" => 1.0 - r,
                "square" => 1.0 - r * r,
                "cosine" => (FRAC_PI_2 * r).cos(),
                _ => r.acos() / FRAC_PI_2,
            };
            Ok(Self {
                table: table.with_null_rows(1, NullRows::Zero)?,
                counts: counts(codes.places(), config.count("step").unwrap_or(12), share),
                choice: match config.text("randomize") {
                    Some("warm_up") => Choice::WarmUp,
                    Some("random") => Choice::Random,
                    Some("no") => Choice::Confidence,
                    _ => Choice::Gumbel,
                },
                choice_temperature: config.number("r_temp").unwrap_or(4.5).into(),
                drop_mask: config.flag("drop_mask_logit").unwrap_or(false),
                classes: u32::try_from(classes).map_err(|_| Error::Weights("maskgil: too many classes".to_owned()))?,
                codes,
                trunk,
            })
        })
    }

    /// The rotary table, the condition's row first.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Tokens committed per step.
    #[must_use]
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// The token that stands in an open place.
    #[must_use]
    pub fn mask_token(&self) -> u32 {
        self.trunk.vocabulary() as u32 - 1
    }

    /// Logits of all places and of the class, which comes last, `[batch, places + 1, tokens]`; `tokens` is
    /// `[batch, places]`, labels may be none.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn logits<T: Float>(&self, tokens: &Tensor<u32>, labels: &[Option<u32>]) -> Result<Tensor<T>> {
        let first = self.mask_token() + 1;
        let rows = labels.iter().map(|label| match label {
            None => Ok(first + self.classes),
            Some(label) if *label < self.classes => Ok(first + label),
            Some(label) => Err(Error::Request(format!("class {label}, expected 0 to {}", self.classes - 1))),
        });
        let classes = Tensor::from_vec(&self.codes.device, &[labels.len(), 1], rows.collect::<Result<_>>()?)?;
        let x = self.trunk.embed(&concatenate(&[tokens, &classes], 1)?)?;
        let mut caches = self.trunk.caches::<T>(labels.len(), x.shape()[1])?;
        self.trunk.logits(&x, &self.table, &mut caches, &self.trunk.options(Mask::Full))
    }

    /// How many of so many open places each step commits: the steps' shares of a whole picture.
    fn shared_out(&self, open: usize) -> Vec<usize> {
        let (places, mut before, mut settled) = (self.codes.places().max(1), 0, 0);
        let shares = self.counts.iter().map(|count| {
            before += count;
            let next = before * open / places - settled;
            settled += next;
            next
        });
        shares.collect()
    }

    /// Settles all places of one picture per label, `[batch, places]`, with the noise of each step. `known` has an entry
    /// per place, or none at all.
    ///
    /// # Errors
    /// As [`crate::Generator::draw`], or whatever `observe` returns.
    pub fn settle<T: Float>(
        &self,
        labels: &[u32],
        known: &[Option<u32>],
        cfg: f32,
        temperature: f32,
        mut noise: impl FnMut(usize) -> Result<Noise>,
        mut observe: impl FnMut(Commit<'_, T>) -> Result<()>,
    ) -> Result<Vec<u32>> {
        let (batch, places) = (labels.len(), self.codes.places());
        let guided = cfg != 0.0;
        let both = labels.iter().copied().map(Some).chain(labels.iter().filter(|_| guided).map(|_| None));
        let both: Vec<_> = both.collect();
        let of_picture = |cell: usize| known.get(cell).copied().flatten();
        let mut tokens = (0..places).map(|cell| of_picture(cell).unwrap_or(self.mask_token())).collect::<Vec<_>>();
        let mut open = (0..places).map(|cell| of_picture(cell).is_none()).collect::<Vec<_>>();
        let counts = self.shared_out(open.iter().filter(|open| **open).count());
        (tokens, open) = (tokens.repeat(batch), open.repeat(batch));
        for (step, &count) in counts.iter().enumerate() {
            let r = step as f64 / (self.counts.len() - 1).max(1) as f64;
            let noise = noise(step)?;
            let ids = Tensor::from_slice(&self.codes.device, &[batch, places], &tokens)?;
            let logits = self.logits::<T>(&if guided { twice(&ids)? } else { ids }, &both)?;
            let logits = guide(&logits.narrow(1, 0, places)?, batch, cfg * r as f32, Guidance::Extra)?;
            let kept = self.trunk.vocabulary() - usize::from(self.drop_mask);
            let logits = logits.narrow(2, 0, kept)?.contiguous()?;

            let rows = logits.reshape(&[batch * places, kept])?;
            let filter = Filter { temperature, ..Filter::default() };
            let candidates = sample::sample(&rows, &filter, &noise.tokens)?.to_vec()?;
            let probability = probability(&sample::filter(&rows, &filter)?.probabilities, &candidates)?;
            let confidence: Vec<_> = (0..batch * places)
                .map(|place| match self.choice {
                    _ if !open[place] => f64::NEG_INFINITY,
                    Choice::Gumbel => {
                        probability[place].ln() + self.choice_temperature * noise.choice[place] * (1.0 - r)
                    }
                    Choice::Random => noise.choice[place],
                    Choice::WarmUp if step < 2 => noise.choice[place],
                    Choice::WarmUp | Choice::Confidence => probability[place],
                })
                .collect();
            let mut cells = Vec::with_capacity(batch);
            for picture in 0..batch {
                let mut ranked: Vec<_> = (picture * places..(picture + 1) * places).filter(|at| open[*at]).collect();
                ranked.sort_by(|a, b| confidence[*b].total_cmp(&confidence[*a]));
                ranked.truncate(count);
                for at in &ranked {
                    (tokens[*at], open[*at]) = (candidates[*at], false);
                }
                cells.push(ranked.into_iter().map(|at| at % places).collect());
            }
            let (candidates, confidence) = (&candidates[..], &confidence[..]);
            observe(Commit { logits: &logits, candidates, confidence, open: &open, tokens: &tokens, cells: &cells })?;
        }
        // Where the head drew the mask token itself.
        Ok(tokens.into_iter().map(|token| token.min(self.mask_token() - 1)).collect())
    }
}

/// How many places each step commits: their shares rounded, at least one, the last step taking what is left.
pub(super) fn counts(places: usize, steps: usize, share: impl Fn(f64) -> f64) -> Vec<usize> {
    let shares = (0..steps).map(|step| share(1.0 - step as f64 / (steps - 1).max(1) as f64));
    let shares: Vec<_> = shares.collect();
    let sum: f64 = shares.iter().sum();
    let rounded = |share: &f64| ((share / sum * places as f64).round_ties_even() as usize).max(1);
    let mut counts: Vec<_> = shares.iter().map(rounded).collect();
    let before: usize = counts.iter().take(steps.saturating_sub(1)).sum();
    if let Some(last) = counts.last_mut() {
        *last = places.saturating_sub(before);
    }
    counts
}

/// The probability of each row's token.
pub(crate) fn probability(probabilities: &Tensor<f32>, tokens: &[u32]) -> Result<Vec<f64>> {
    let vocabulary = probabilities.shape()[1];
    let table = Weight::from(probabilities.reshape(&[probabilities.elements(), 1])?);
    let ids = tokens.iter().enumerate().map(|(row, token)| (row * vocabulary) as u32 + token).collect();
    let ids = Tensor::from_vec(probabilities.device(), &[tokens.len()], ids)?;
    Ok(embedding::embedding::<f32>(&table, &ids)?.to_vec()?.iter().map(|p| f64::from(*p)).collect())
}

impl DrawsCodes for MaskGil {
    const SYSTEM: &'static str = "maskgil";

    fn codes(&self) -> &Codes {
        &self.codes
    }

    const FILLS: bool = true;

    fn generate<T: Float>(&self, wanted: WantedCodes<'_>, steps: Steps<'_, T>) -> Result<Tensor<u32>> {
        let WantedCodes { labels, known, sampler, .. } = wanted;
        let places = self.codes.places();
        let Random::Philox { first_picture } = sampler.random else {
            return Err(Error::Request("maskgil: recorded numbers are for each step, not for each place".to_owned()));
        };
        let pictures = 0..labels.len();
        let noise = |step: usize| {
            let index = |cell: usize| step * places + cell;
            let all = pictures.clone().flat_map(|picture| (0..places).map(move |cell| (picture, cell)));
            let stream = |(picture, cell)| (first_picture + picture as u64) << 24 | index(cell) as u64;
            let tokens =
                Draws::Philox { seed: sampler.sampling.seed, streams: all.clone().map(stream).collect(), position: 0 };
            let uniform =
                |(picture, cell)| ((sampler.word(Some(picture), index(cell)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            let gumbel = |uniform: f64| if self.choice == Choice::Gumbel { -(-uniform.ln()).ln() } else { uniform };
            Ok(Noise { tokens, choice: all.map(uniform).map(gumbel).collect() })
        };
        let Sampler { sampling, .. } = *sampler;
        let mut settled = known.iter().flatten().count();
        let tokens = self.settle::<T>(labels, known, sampling.cfg, sampling.temperature, noise, |step| {
            let count = step.cells.first().map_or(0, Vec::len);
            settled += count;
            let own = step.tokens.chunks(places).zip(step.cells);
            let tokens = own.flat_map(|(tokens, cells)| cells.iter().map(|cell| tokens[*cell])).collect();
            let tokens = Tensor::from_vec(&self.codes.device, &[labels.len(), count], tokens)?;
            let cells = Cells::Each(step.cells);
            go_on(steps(Step { settled, logits: step.logits, tokens: &tokens, cells, latents: None }))
        })?;
        Ok(Tensor::from_vec(&self.codes.device, &[labels.len(), places], tokens)?)
    }
}
