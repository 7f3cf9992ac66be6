//! LlamaGen: next-token prediction in raster order with a plain Llama.
//!
//! | part      | here                                                                             |
//! |-----------|----------------------------------------------------------------------------------|
//! | tokenizer | VQ, codes on the unit sphere ([`VqTokenizer`](crate::tokenizer::vq::VqTokenizer)) |
//! | backbone  | Llama blocks ([`Trunk`])                                                         |
//! | order     | raster                                                                           |
//! | mask      | causal; captions are padded at the left, and padding is seen by nothing but itself |
//! | position  | RoPE over rows and columns, interleaved; the condition's rows of the table are 0  |
//! | head      | softmax over codes                                                               |
//! | decoder   | sequential with a cache; or drafts are tested ([`speculative`])                   |
//! | guidance  | `uncond + cfg (cond - uncond)` on the logits; or by entropy, or soft               |
//!
//! Paper: Sun et al. 2024, arXiv:2406.06525. Upstream: FoundationVision/LlamaGen, `autoregressive/models/gpt.py`.
//!
//! The file is long because it is asked in two ways, with classes and with captions whose padding is hidden, and because
//! a second model can draft for it; ControlAR is built on its sequence.

use smalti::attention::KvCache;
use smalti::rope::{NullRows, Table};
use smalti::{Device, Float, Tensor, Weight};

use super::captions::CaptionFeatures;
use super::codes::{Codes, DrawsCodes, WantedCodes};
use crate::backbone::condition::{Captions, ClassTable, padding_bias};
use crate::backbone::llama::Sizes;
use crate::backbone::trunk::Trunk;
use crate::decode::speculative::{
    Drafter, Law, Luck, OfPicture, Pass, Rewind, Speculation, forget, speculative, steps_of_passes,
};
use crate::decode::{Guided, Network, Order, Sampler, Steps, concatenate, sequential};
use crate::weights::{Checkpoint, Config, Loader, Notes};
use crate::{Error, Result, Sampling};

/// What a model is asked with.
#[expect(clippy::large_enum_variant, reason = "a model holds one, so its size does not matter")]
enum Asked {
    Classes(ClassTable),
    Captions(Captions),
}

/// What pictures are to show.
#[derive(Debug, Clone)]
pub enum Condition<'a, T: Float> {
    /// A class for each picture.
    Classes(&'a [u32]),
    /// A caption for each picture.
    Captions {
        /// `[pictures, condition_len, features]`.
        features: Tensor<T>,
        /// Which rows are not padding, `[pictures, condition_len]`, 1 or 0; all, if it is absent.
        visible: Option<Vec<f32>>,
    },
}

impl<T: Float> Condition<'_, T> {
    /// How many pictures.
    #[must_use]
    pub fn pictures(&self) -> usize {
        match self {
            Self::Classes(labels) => labels.len(),
            Self::Captions { features, .. } => features.shape().first().copied().unwrap_or(0),
        }
    }
}

/// The model with its weights on a device.
pub struct LlamaGen {
    codes: Codes,
    asked: Asked,
    trunk: Trunk,
    /// The condition's rows first.
    table: Table,
    condition_len: usize,
    /// What a model of captions draws.
    captions: Option<CaptionFeatures>,
    /// Who drafts for the decoder, if that does not by itself.
    second: Option<Box<LlamaGen>>,
}

/// A sequence that is being drawn or read.
pub(super) struct Running<'a, T: Float> {
    model: &'a LlamaGen,
    caches: Vec<KvCache<T>>,
    /// As [`Condition::Captions`] has it.
    visible: Option<&'a [f32]>,
    /// What the values of all places are taken times, `[rows, positions]`.
    values: Option<Tensor<f32>>,
}

/// Far more tokens to a picture than any published model draws.
const MOST_PLACES: usize = 1 << 16;

impl LlamaGen {
    /// Loads official names under `gpt.`, and `vq.` if the tokenizer is there too.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        // Buffers: how often each code was used in training, and what the official program keeps while it draws.
        let unread = ["quantize.codebook_used", "freqs_cis", "kv_cache.k_cache", "kv_cache.v_cache"];
        checkpoint.build(device, &unread, |root, notes| {
            let mut model = Self::load_at(checkpoint, root, &root.at("gpt"), &config, notes)?;
            model.codes.sampling.top_k = config.count("top_k").unwrap_or(2000);
            Ok(model)
        })
    }

    /// The same with the transformer's names where `gpt` stands.
    pub(super) fn load_at(
        checkpoint: &Checkpoint,
        root: &Loader<'_>,
        gpt: &Loader<'_>,
        config: &Config,
        notes: &Notes,
    ) -> Result<Self> {
        let [vocabulary, dim] = gpt.lengths("tok_embeddings.weight");
        let sizes = Sizes::read(gpt, config, dim);
        if !sizes.fit() || !sizes.head_dim().is_multiple_of(4) {
            if dim > 0 {
                let Sizes { heads, kv_heads, .. } = sizes;
                notes.add(format!("{heads} heads, {kv_heads} for keys, do not fit {dim} channels and 2-axis RoPE"));
            }
            return Err(notes.error(checkpoint));
        }
        let places = config.count("block_size").unwrap_or(256);
        if places.isqrt().pow(2) != places || !(1..=MOST_PLACES).contains(&places) {
            notes.add(format!("block_size {places} is not a square from 1 to {MOST_PLACES}"));
            return Err(notes.error(checkpoint));
        }

        let at = gpt.at("cls_embedding");
        let asked = match at.has("cap_proj") {
            true => Asked::Captions(Captions::load(&at, dim)?),
            false => Asked::Classes(ClassTable::load(&at, "embedding_table.weight", dim)?),
        };
        let (classes, condition_len) = match &asked {
            Asked::Classes(table) => (table.classes(), 1),
            Asked::Captions(captions) => (0, captions.rows()),
        };
        if let (Asked::Classes(_), Some(noted)) = (&asked, config.count("num_classes"))
            && noted != classes
        {
            notes.add(format!("{noted} classes and none do not fit a table of {} rows", classes + 1));
        }
        let codes = Codes::load(checkpoint, root, config, classes)?;
        codes.hold(vocabulary, notes);
        let trunk = Trunk::load(gpt, config, "tok_embeddings.weight")?;
        if trunk.vocabulary() != vocabulary {
            gpt.note("output.weight", format!("has {} rows, expected {vocabulary}", trunk.vocabulary()));
        }
        let theta = config.number("rope_base").unwrap_or(10_000.0);
        let table = Table::grid(root.device(), codes.side(), codes.side(), sizes.head_dim(), theta)?;
        Ok(Self {
            // The official table has rows of zeros here: queries and keys of the condition vanish.
            table: table.with_null_rows(condition_len, NullRows::Zero)?,
            codes,
            asked,
            trunk,
            condition_len,
            captions: None,
            second: None,
        })
    }

    /// The rotary table, the condition's rows first.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// What stands for tokens and what draws them.
    pub(super) fn trunk(&self) -> &Trunk {
        &self.trunk
    }

    /// Rows of a picture's condition.
    pub(super) fn condition_len(&self) -> usize {
        self.condition_len
    }

    /// The rows of a condition and, if `guided`, as many of none below them: `[batch or 2 batch, condition_len, dim]`.
    pub(super) fn embed<T: Float>(&self, condition: &Condition<'_, T>, guided: bool) -> Result<Tensor<T>> {
        match (condition, &self.asked) {
            (Condition::Classes(labels), Asked::Classes(classes)) => classes.rows(labels, guided),
            (Condition::Captions { features, .. }, Asked::Captions(captions)) => captions.project(features, guided),
            (Condition::Classes(_), Asked::Captions(_)) => {
                Err(Error::Request("this model is conditioned on captions, not on classes".to_owned()))
            }
            (Condition::Captions { .. }, Asked::Classes(_)) => Err(only_classes()),
        }
    }

    /// A sequence of `rows` rows, of which nothing has been read.
    pub(super) fn running<'a, T: Float>(
        &'a self,
        rows: usize,
        condition: &'a Condition<'_, T>,
    ) -> Result<Running<'a, T>> {
        let visible = match condition {
            Condition::Captions { visible, .. } => visible.as_deref(),
            Condition::Classes(_) => None,
        };
        if let Some(visible) = visible.filter(|visible| visible.len() != condition.pictures() * self.condition_len) {
            let (given, pictures) = (visible.len(), condition.pictures());
            return Err(Error::Request(format!("{given} flags of padding for {pictures} captions")));
        }
        let caches = self.trunk.caches(rows, self.table.positions())?;
        Ok(Running { model: self, caches, visible, values: None })
    }

    /// What pictures of these classes, or of these captions, are to show.
    pub(super) fn condition<'a, T: Float>(&self, labels: &'a [u32]) -> Result<Condition<'a, T>> {
        Ok(match (&self.asked, &self.captions) {
            (Asked::Captions(known), Some(captions)) => {
                let shape = [known.rows(), known.features()];
                let (features, visible) = captions.last(&self.codes.device, labels, shape)?;
                Condition::Captions { features, visible: Some(visible) }
            }
            _ => Condition::Classes(labels),
        })
    }

    /// Logits after the condition and after each of `tokens` (`[batch, len]`): `[batch, 1 + len, vocabulary]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher<T: Float>(&self, condition: &Condition<'_, T>, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        let before = self.embed(condition, false)?;
        let x = concatenate(&[&before, &self.trunk.embed(tokens)?], 1)?;
        let logits = self.running(x.shape()[0], condition)?.logits(&x)?;
        Ok(logits.narrow(1, self.condition_len - 1, 1 + tokens.shape()[1])?.contiguous()?)
    }

    /// Draws the tokens of pictures one after another, `[batch, places]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails, or [`Error::Interrupted`] if `steps` breaks off.
    pub fn generate<T: Float>(
        &self,
        condition: &Condition<'_, T>,
        sampler: &Sampler<'_>,
        steps: Steps<'_, T>,
    ) -> Result<Tensor<u32>> {
        let cfg = sampler.sampling.cfg;
        let before = self.embed(condition, cfg != 1.0)?;
        let mut running = self.running(before.shape()[0], condition)?;
        let order = Order::Raster(self.codes.places());
        sequential(&mut running, before, condition.pictures(), order, |_| cfg, sampler, steps)
    }

    /// Draws the tokens of one picture by testing drafts, those of `second` if it is given; `steps` sees each pass.
    ///
    /// # Errors
    /// If the device fails, or whatever `steps` returns.
    pub fn speculate<T: Float>(
        &self,
        label: u32,
        sampling: &Sampling,
        speculation: &Speculation,
        second: Option<&Self>,
        luck: &mut dyn Luck,
        steps: &mut dyn FnMut(&Pass<'_, T>) -> Result<()>,
    ) -> Result<Vec<u32>> {
        let (labels, guided) = ([label], sampling.cfg != 1.0);
        let condition = self.condition(&labels)?;
        let before = self.embed(&condition, guided)?;
        let mut running = self.running(before.shape()[0], &condition)?;
        let law = Law { scale: &|_| sampling.cfg, filter: &sampling.filter() };
        let asked = second.map(|second| second.condition(&labels)).transpose()?;
        let mut drafting = match (second, &asked) {
            (Some(second), Some(condition)) => {
                let before = second.embed(condition, guided)?;
                Some((second.running(before.shape()[0], condition)?, before))
            }
            _ => None,
        };
        let drafter = drafting.as_mut().map(|(running, before)| Drafter::new(running, before.clone()));
        speculative(&mut running, &before, self.codes.places(), law, speculation, drafter, luck, steps)
    }
}

fn only_classes() -> Error {
    Error::Request("this model is conditioned on classes, not on captions".to_owned())
}

impl<T: Float> Running<'_, T> {
    /// Places read so far.
    pub(super) fn len(&self) -> usize {
        self.caches.first().map_or(0, KvCache::len)
    }

    /// [`Network::logits`] where `before` changes what a block is given.
    pub(super) fn led(
        &mut self,
        x: &Tensor<T>,
        before: impl FnMut(usize, Tensor<T>) -> Result<Tensor<T>>,
    ) -> Result<Tensor<T>> {
        let (start, LlamaGen { trunk, table, condition_len, .. }) = (self.len(), self.model);
        let mut options = trunk.causal();
        if let Some(visible) = self.visible {
            let lengths = [x.shape()[0], x.shape()[1], start + x.shape()[1]];
            options = options.bias(padding_bias(x.device(), visible, *condition_len, lengths)?);
        }
        if let Some(values) = &self.values {
            options = options.value_weights(values.narrow(1, 0, start + x.shape()[1])?);
        }
        trunk.logits_led(x, (table, start), &mut self.caches, &options, before)
    }
}

impl<T: Float> Network<T> for Running<'_, T> {
    fn logits(&mut self, x: &Tensor<T>) -> Result<Tensor<T>> {
        self.led(x, |_, x| Ok(x))
    }

    fn embed(&mut self, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        self.model.trunk.embed(tokens)
    }

    fn fade(&mut self, factors: &[Vec<f32>]) -> Result<()> {
        let LlamaGen { table, condition_len, codes, .. } = self.model;
        let positions = table.positions();
        let mut weights = vec![1.0; 2 * factors.len() * positions];
        let (_, without) = weights.split_at_mut(factors.len() * positions);
        for (row, factors) in without.chunks_mut(positions).zip(factors) {
            row[*condition_len..].iter_mut().zip(factors).for_each(|(weight, factor)| *weight = *factor);
        }
        self.values = Some(Tensor::from_vec(&codes.device, &[2 * factors.len(), positions], weights)?);
        Ok(())
    }
}

impl<T: Float> Rewind<T> for Running<'_, T> {
    fn rewind(&mut self, places: usize) {
        forget(&mut self.caches, places);
    }
}

impl DrawsCodes for LlamaGen {
    const SYSTEM: &'static str = "llamagen";

    fn codes(&self) -> &Codes {
        &self.codes
    }

    fn drafted(&self) -> Option<(&Weight, usize)> {
        Some(self.trunk.drafted())
    }

    fn guidances(&self) -> &'static [Guided] {
        &[Guided::Plain, Guided::ByEntropy, Guided::Soft]
    }

    fn use_second(&mut self, second: Option<&Checkpoint>) -> Result<()> {
        let second = second.map(|file| Self::load(file, &self.codes.device)).transpose()?;
        let shape = |model: &Self| (model.trunk.vocabulary(), model.codes.side());
        if let Some(second) = second.as_ref().filter(|second| shape(second) != shape(self)) {
            let ((tokens, side), (own, grid)) = (shape(second), shape(self));
            let expected = format!("expected as the first model's: of {own}, on {grid} x {grid}");
            return Err(Error::Request(format!(
                "the second model draws one of {tokens} tokens on {side} x {side}, {expected}"
            )));
        }
        self.second = second.map(Box::new);
        Ok(())
    }

    fn use_captions(&mut self, captions: CaptionFeatures) -> Result<()> {
        let Asked::Captions(known) = &self.asked else { return Err(only_classes()) };
        self.codes.set_captions(captions.fitting(Some(known.rows()), known.features())?);
        if let Some(second) = &mut self.second {
            second.use_captions(captions.clone())?;
        }
        self.captions = Some(captions);
        Ok(())
    }

    fn generate<T: Float>(&self, wanted: WantedCodes<'_>, steps: Steps<'_, T>) -> Result<Tensor<u32>> {
        let WantedCodes { labels, sampler, decoder, .. } = wanted;
        let Some(speculation) = decoder else { return self.generate(&self.condition(labels)?, sampler, steps) };
        let &[label] = labels else {
            return Err(Error::Request("drafts are tested for one picture".to_owned()));
        };
        let (device, order) = (&self.codes.device, Order::Raster(self.codes.places()));
        let mut luck = OfPicture::of(sampler)?;
        let mut each = steps_of_passes(device, order, steps);
        let second = self.second.as_deref();
        let tokens = self.speculate(label, &sampler.sampling, speculation, second, &mut luck, &mut each)?;
        Ok(Tensor::from_vec(device, &[1, order.places()], tokens)?)
    }
}
