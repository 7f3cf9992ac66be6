//! LARP: videos as tokens of learned queries, drawn one after the other.
//!
//! | part      | here                                                                                   |
//! |-----------|----------------------------------------------------------------------------------------|
//! | tokenizer | holistic queries over a video ([`VideoTokenizer`](crate::tokenizer::video::VideoTokenizer)) |
//! | backbone  | Llama blocks ([`Blocks`])                                                              |
//! | order     | that of the queries                                                                    |
//! | mask      | causal                                                                                 |
//! | position  | learned, or one sine and cosine table                                                  |
//! | head      | softmax over codes                                                                     |
//! | decoder   | sequential with a cache, or drafts are tested                                          |
//! | guidance  | `uncond + cfg (cond - uncond)`, if wanted only at the start; none after earlier frames |
//!
//! Paper: Wang et al. 2024, arXiv:2410.21264, section 3. Upstream: hywang66/LARP, `models/larp_ar.py`.
//!
//! The file is long because some checkpoints know classes and others continue earlier frames, and because it puts its
//! network around the bare blocks itself, with learned positions and places that can be taken back.

use smalti::attention::{Align, KvCache, Mask, Options};
use smalti::{Device, Float, Tensor, Weight, elementwise, embedding, linear, norm};

use super::codes::{Codes, DrawsCodes, WantedCodes};
use crate::backbone::condition::ClassTable;
use crate::backbone::llama::{Blocks, Sizes};
use crate::decode::speculative::{Rewind, Speculation, causal, forget};
use crate::decode::{Network, Order, Sampler, Steps, concatenate};
use crate::weights::Checkpoint;
use crate::{Error, Result};

/// The generator with its weights on a device.
pub struct Larp {
    codes: Codes,
    /// None: it continues tokens of earlier frames.
    classes: Option<ClassTable>,
    tokens: Weight,
    /// A row per place of the sequence, the condition first.
    positions: Weight,
    blocks: Blocks,
    norm: Tensor<f32>,
    output: Weight,
    guided_until: Option<usize>,
}

/// What the tokens follow.
pub enum Condition<'a> {
    /// A class for each video.
    Classes(&'a [u32]),
    /// Tokens of the frames so far and a separator, `[batch, seq]`.
    Frames(&'a Tensor<u32>),
}

struct Running<'a, T: Float> {
    model: &'a Larp,
    caches: Vec<KvCache<T>>,
}

impl Larp {
    /// Loads official names.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &[], |root, _| {
            let [rows, dim] = root.lengths("tok_embeddings.weight");
            let sizes = Sizes::read(root, &config, dim);
            let classes = if root.has("cls_embedding") {
                Some(ClassTable::load(root, "cls_embedding.embedding_table.weight", dim)?)
            } else {
                None
            };
            let held = root.length("abs_pe", 1);
            let mut codes = Codes::load(checkpoint, root, &config, classes.as_ref().map_or(0, ClassTable::classes))?;
            // After a class the last token is drawn but never read, so the table has a row for each place all the same.
            codes.grid = [1, 1, config.count("max_seq_len").unwrap_or(held)];
            let vocabulary = root.length("output.weight", 0);
            let positions = root.vector("abs_pe", &[1, held, dim])?.reshape(&[held, dim])?;
            Ok(Self {
                tokens: root.weight("tok_embeddings.weight", &[rows, dim])?,
                positions: positions.into(),
                blocks: Blocks::load(root, sizes)?,
                norm: root.vector("norm.weight", &[dim])?,
                output: root.weight("output.weight", &[vocabulary, dim])?,
                guided_until: config.count("cfg_interval"),
                codes,
                classes,
            })
        })
    }

    fn embed<T: Float>(&self, condition: &Condition<'_>, guided: bool) -> Result<Tensor<T>> {
        match (condition, &self.classes) {
            (Condition::Classes(labels), Some(classes)) => classes.rows(labels, guided),
            (Condition::Frames(tokens), None) => Ok(embedding::embedding(&self.tokens, tokens)?),
            (Condition::Classes(_), None) => {
                Err(Error::Request("larp: this model continues frames, it knows no classes".to_owned()))
            }
            (Condition::Frames(_), Some(_)) => {
                Err(Error::Request("larp: this model knows classes, it continues no frames".to_owned()))
            }
        }
    }

    fn running<T: Float>(&self, rows: usize) -> Result<Running<'_, T>> {
        let capacity = self.positions.shape()[0];
        Ok(Running { model: self, caches: self.blocks.caches(&self.codes.device, rows, capacity)? })
    }

    /// Logits of the token after the condition and after each of `tokens` (`[batch, len]`):
    /// `[batch, 1 + len, vocabulary]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher<T: Float>(&self, condition: &Condition<'_>, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        let before = self.embed::<T>(condition, false)?;
        let tokens: Tensor<T> = embedding::embedding(&self.tokens, tokens)?;
        let x = concatenate(&[&before, &tokens], 1)?;
        let logits = self.running(x.shape()[0])?.logits(&x)?;
        Ok(logits.narrow(1, before.shape()[1] - 1, 1 + tokens.shape()[1])?.contiguous()?)
    }

    /// Draws the tokens of videos after a condition, `[batch, places]`; those of one by `decoder`, if it is given.
    ///
    /// # Errors
    /// As [`crate::Generator::draw`].
    pub fn continued<T: Float>(
        &self,
        condition: &Condition<'_>,
        sampler: &Sampler<'_>,
        decoder: Option<&Speculation>,
        steps: Steps<'_, T>,
    ) -> Result<Tensor<u32>> {
        let batch = match condition {
            Condition::Classes(labels) => labels.len(),
            Condition::Frames(tokens) => tokens.shape()[0],
        };
        let cfg = sampler.sampling.cfg;
        let before = self.embed::<T>(condition, cfg != 1.0)?;
        let mut running = self.running(before.shape()[0])?;
        let scale = |place: usize| match self.guided_until {
            Some(until) if place > until + 1 => 1.0,
            _ => cfg,
        };
        causal(&mut running, before, batch, Order::Raster(self.codes.places()), scale, sampler, decoder, steps)
    }
}

impl<T: Float> Network<T> for Running<'_, T> {
    fn logits(&mut self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let Larp { blocks, positions, norm, output, .. } = self.model;
        let start = self.caches.first().map_or(0, KvCache::len) as u32;
        let seq = x.shape()[1];
        let rows = Tensor::from_vec(x.device(), &[1, seq], (start..start + seq as u32).collect())?;
        let x = elementwise::add(x, &embedding::embedding::<T>(positions, &rows)?)?;
        let options = Options::new((blocks.sizes().head_dim() as f32).powf(-0.5));
        let options = options.mask(Mask::Causal { align: Align::BottomRight });
        let x = blocks.run(0..blocks.depth(), &x, None, &mut self.caches, &options)?;
        let x = norm::rms_norm(&x, Some(norm), blocks.sizes().norm_eps)?;
        Ok(linear::linear(&x, output, None)?)
    }

    fn embed(&mut self, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        Ok(embedding::embedding(&self.model.tokens, tokens)?)
    }
}

impl<T: Float> Rewind<T> for Running<'_, T> {
    fn rewind(&mut self, places: usize) {
        forget(&mut self.caches, places);
    }
}

impl DrawsCodes for Larp {
    const SYSTEM: &'static str = "larp";
    const CELLS: bool = false;

    fn codes(&self) -> &Codes {
        &self.codes
    }

    fn drafted(&self) -> Option<(&Weight, usize)> {
        Some((&self.tokens, self.output.shape()[0]))
    }

    fn generate<T: Float>(&self, wanted: WantedCodes<'_>, steps: Steps<'_, T>) -> Result<Tensor<u32>> {
        let WantedCodes { labels, sampler, decoder, .. } = wanted;
        self.continued(&Condition::Classes(labels), sampler, decoder, steps)
    }
}
