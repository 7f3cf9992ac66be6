//! LlamaGen: next-token prediction in raster order with a plain Llama.
//!
//! | part      | here                                                                             |
//! |-----------|----------------------------------------------------------------------------------|
//! | tokenizer | VQ, codes on the unit sphere ([`VqTokenizer`])                                   |
//! | backbone  | Llama blocks ([`Llama`])                                                         |
//! | order     | raster                                                                           |
//! | mask      | causal; captions are padded at the left, and padding is seen by nothing but itself |
//! | position  | RoPE over rows and columns, interleaved; the condition's rows of the table are 0  |
//! | head      | softmax over codes                                                               |
//! | decoder   | sequential with a cache; or drafts are tested ([`speculative`])                   |
//! | guidance  | `uncond + cfg (cond - uncond)` on the logits                                     |
//!
//! Paper: Sun et al. 2024, arXiv:2406.06525. Upstream: FoundationVision/LlamaGen, `autoregressive/models/gpt.py`.

use std::marker::PhantomData;

use smalti::attention::{Align, KvCache, Mask, Options};
use smalti::rope::{NullRows, Table};
use smalti::sample::{self, Draws, Filter, Guidance};
use smalti::{Device, Float, Tensor, Weight, copy, embedding, linear};

use super::captions::CaptionFeatures;
use super::class_names;
use super::codes::go_on;
use crate::backbone::condition::{Captions, padding_bias};
use crate::backbone::llama::{Llama, Sizes};
use crate::decode::speculative::{Drafter, Law, Luck, OfPicture, Pass, Rewind, Speculation, forget, speculative};
use crate::decode::{Cells, Network, Step, Steps, at_tokens, watched};
use crate::generator::whole_only;
use crate::tokenizer::vq::VqTokenizer;
use crate::weights::Checkpoint;
use crate::{About, Drawn, Error, Generator, Result, Sampling, Seen, Wanted, Watch};

/// What the pictures are conditioned on.
#[expect(clippy::large_enum_variant, reason = "a model holds one, so its size does not matter")]
enum Condition {
    /// A row per class, and one for none.
    Class { table: Weight, classes: usize },
    /// Features of captions.
    Captions(Captions),
}

/// The model with its weights on a device.
pub struct LlamaGen<T: smalti::Element> {
    device: Device,
    condition: Condition,
    tokens: Weight,
    llama: Llama,
    output: Weight,
    table: Table,
    condition_len: usize,
    grid: usize,
    classes: Vec<String>,
    sampling: Sampling,
    tokenizer: Option<VqTokenizer>,
    /// What it computes in.
    element: PhantomData<T>,
    /// Without, one token after the other.
    decoder: Option<Speculation>,
    /// Who drafts for the decoder, if that does not by itself.
    second: Option<Box<LlamaGen<T>>>,
    /// What a model of captions draws.
    captions: Option<CaptionFeatures>,
}

/// The network in the middle of a sequence.
struct Running<'a, T: Float> {
    model: &'a LlamaGen<T>,
    caches: Vec<KvCache<T>>,
    /// Which rows of captions are not padding, `[pictures, condition_len]`, 1 or 0.
    visible: Option<&'a [f32]>,
}

/// Far more tokens to a picture than any published model draws.
const MOST_PLACES: usize = 1 << 16;

impl<T: Float> LlamaGen<T> {
    /// Loads official names under `gpt.`, and `vq.` if the tokenizer is there too.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        // Buffers: how often each code was used in training, and what the official program keeps while it draws.
        let unread = ["quantize.codebook_used", "freqs_cis", "kv_cache.k_cache", "kv_cache.v_cache"];
        checkpoint.build(device, &unread, |root, notes| {
            let gpt = root.at("gpt");
            let [vocabulary, dim] = gpt.lengths("tok_embeddings.weight");
            // The official sizes have heads of 64 channels, but for 3B and 7B, which have 32 heads.
            let heads = config.count("n_head").unwrap_or(if matches!(dim, 3200 | 4096) { 32 } else { dim / 64 });
            let head_dim = dim / heads.max(1);
            // The rows of this matrix are queries, keys and values.
            let kv_heads = match gpt.length("layers.0.attention.wqkv.weight", 0) / head_dim.max(1) {
                0 => heads,
                all => all.saturating_sub(heads) / 2,
            };
            let kv_heads = config.count("n_kv_head").unwrap_or(kv_heads);
            let sizes = Sizes { dim, heads, kv_heads, norm_eps: config.number("norm_eps").unwrap_or(1e-5) };
            let places = config.count("block_size").unwrap_or(256);
            let grid = places.isqrt();
            let whole = head_dim.is_multiple_of(4) && dim.is_multiple_of(heads) && heads.is_multiple_of(kv_heads);
            if !whole || dim == 0 {
                if dim > 0 {
                    notes.add(format!("{heads} heads, {kv_heads} for keys, do not fit {dim} channels and 2-axis RoPE"));
                }
                return Err(notes.error(checkpoint));
            }
            if grid * grid != places || !(1..=MOST_PLACES).contains(&places) {
                notes.add(format!("block_size {places} is not a square from 1 to {MOST_PLACES}"));
                return Err(notes.error(checkpoint));
            }

            let embedding = gpt.at("cls_embedding");
            let condition = if embedding.has("cap_proj") {
                Condition::Captions(Captions::load(&embedding, dim)?)
            } else {
                let rows = embedding.length("embedding_table.weight", 0);
                let classes = config.count("num_classes").unwrap_or(rows.saturating_sub(1));
                if rows > 0 && !(1..rows).contains(&classes) {
                    notes.add(format!("{classes} classes and none do not fit a table of {rows} rows"));
                }
                let classes = classes.min(rows);
                Condition::Class { table: embedding.weight("embedding_table.weight", &[rows, dim])?, classes }
            };
            let (classes, condition_len) = match &condition {
                Condition::Class { classes, .. } => (class_names(checkpoint, *classes), 1),
                Condition::Captions(captions) => (Vec::new(), captions.rows()),
            };

            let theta = config.number("rope_base").unwrap_or(10_000.0);
            let table = Table::grid(device, grid, grid, sizes.head_dim(), theta)?;
            let model = Self {
                device: device.clone(),
                condition,
                tokens: gpt.weight("tok_embeddings.weight", &[vocabulary, dim])?,
                llama: Llama::load(&gpt, sizes)?,
                output: gpt.weight("output.weight", &[vocabulary, dim])?,
                // The official table has rows of zeros here: queries and keys of the condition vanish.
                table: table.with_null_rows(condition_len, NullRows::Zero)?,
                condition_len,
                grid,
                classes,
                sampling: Sampling { cfg: 4.0, temperature: 1.0, top_k: 2000, top_p: 1.0, seed: 0 }.noted(&config),
                tokenizer: if root.has("vq") {
                    let l2_norm = config.flag("codebook_l2_norm").unwrap_or(true);
                    Some(VqTokenizer::load(&root.at("vq"), config.count("norm_groups").unwrap_or(32), l2_norm)?)
                } else {
                    None
                },
                element: PhantomData,
                decoder: None,
                second: None,
                captions: None,
            };
            if let Some(codes) = model.tokenizer.as_ref().map(VqTokenizer::codes)
                && codes < vocabulary
            {
                notes.add(format!("the transformer draws from {vocabulary} codes, the tokenizer has {codes}"));
            }
            Ok(model)
        })
    }

    /// The tokenizer, if the checkpoint holds one.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&VqTokenizer> {
        self.tokenizer.as_ref()
    }

    /// The rotary table, the condition's rows first.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Tokens along one side.
    #[must_use]
    pub fn grid(&self) -> usize {
        self.grid
    }

    /// The condition of each label, `[batch, 1, dim]`; `None` is no class.
    fn embed_labels(&self, labels: &[Option<u32>]) -> Result<Tensor<T>> {
        let Condition::Class { table, classes } = &self.condition else {
            return Err(Error::Request("llamagen: this model is conditioned on captions, not on classes".to_owned()));
        };
        let none = u32::try_from(*classes).map_err(|_| Error::Request("llamagen: too many classes".to_owned()))?;
        if let Some(label) = labels.iter().flatten().find(|label| **label >= none) {
            return Err(Error::Request(format!("llamagen: class {label}, expected 0 to {}", none.saturating_sub(1))));
        }
        let rows = labels.iter().map(|label| label.unwrap_or(none)).collect();
        let rows = Tensor::from_vec(&self.device, &[labels.len(), 1], rows)?;
        Ok(embedding::embedding(table, &rows)?)
    }

    /// Caption features `[batch, condition_len, features]` and as many of no caption, projected.
    fn embed_captions(&self, captions: &Tensor<T>) -> Result<Tensor<T>> {
        let Condition::Captions(known) = &self.condition else {
            return Err(Error::Request("llamagen: this model is conditioned on classes, not on captions".to_owned()));
        };
        known.project(captions, true)
    }

    fn causal(&self) -> Options {
        Options::new((self.llama.sizes().head_dim() as f32).powf(-0.5)).mask(Mask::Causal { align: Align::BottomRight })
    }

    fn logits(&self, x: &Tensor<T>, caches: &mut [KvCache<T>], options: &Options) -> Result<Tensor<T>> {
        Ok(linear::linear(&self.llama.run(x, &self.table, caches, options)?, &self.output, None)?)
    }

    /// Logits after the condition and after each of `tokens` (`[batch, len]`): `[batch, 1 + len, vocabulary]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher(&self, labels: &[u32], tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        let labels: Vec<_> = labels.iter().copied().map(Some).collect();
        let condition = self.embed_labels(&labels)?;
        let &[batch, seq] = tokens.shape() else {
            return Err(Error::Request(format!("llamagen: tokens of shape {:?}", tokens.shape())));
        };
        let dim = self.llama.sizes().dim;
        let mut x = Tensor::<T>::zeros(&self.device, &[batch, 1 + seq, dim])?;
        copy::copy_into_slice(&condition, &mut x, 1, 0)?;
        copy::copy_into_slice(&embedding::embedding(&self.tokens, tokens)?, &mut x, 1, 1)?;
        self.logits(&x, &mut self.llama.caches(batch, 1 + seq)?, &self.causal())
    }

    /// Draws a grid of tokens for each label. See [`LlamaGen::decode`].
    ///
    /// # Errors
    /// As [`Generator::draw`].
    pub fn generate(
        &self,
        labels: &[u32],
        first_picture: u64,
        sampling: &Sampling,
        steps: Steps<'_, T>,
    ) -> Result<Tensor<u32>> {
        let (condition, visible) = self.asked(labels, sampling.cfg != 1.0)?;
        self.sequence(&condition, labels.len(), visible.as_deref(), first_picture, sampling, steps)
    }

    /// The decoder of this name; `second` tells whether a second network drafts.
    ///
    /// # Errors
    /// As [`Speculation::named`].
    pub fn speculation(&self, name: &str, second: bool) -> Result<Speculation> {
        let codes = self.tokenizer.as_ref().map(VqTokenizer::codebook);
        let vocabulary = self.tokens.shape()[0];
        Speculation::named(name, self.grid * self.grid, vocabulary, &self.tokens, codes, second)
    }

    /// Draws the tokens of one picture by testing drafts, those of `second` if it is given; `steps` sees each pass.
    ///
    /// # Errors
    /// As [`Generator::draw`], or whatever `steps` returns.
    pub fn speculate(
        &self,
        label: u32,
        sampling: &Sampling,
        speculation: &Speculation,
        second: Option<&Self>,
        luck: &mut dyn Luck,
        steps: &mut dyn FnMut(&Pass<'_, T>) -> Result<()>,
    ) -> Result<Vec<u32>> {
        let places = self.grid * self.grid;
        let (condition, visible) = self.asked(&[label], sampling.cfg != 1.0)?;
        let mut running = self.running(condition.shape()[0], visible.as_deref())?;
        let law = Law { scale: &|_| sampling.cfg, filter: &filter(sampling) };
        let asked = second.map(|second| second.asked(&[label], sampling.cfg != 1.0)).transpose()?;
        let mut drafting = match (second, &asked) {
            (Some(second), Some((condition, visible))) => {
                Some((second.running(condition.shape()[0], visible.as_deref())?, condition))
            }
            _ => None,
        };
        let drafter = drafting.as_mut().map(|(running, condition)| Drafter::new(running, condition.clone()));
        speculative(&mut running, &condition, places, law, speculation, drafter, luck, steps)
    }

    /// The condition of pictures, the rows of no condition below it if `guided`, and which rows of captions are not
    /// padding.
    fn asked(&self, labels: &[u32], guided: bool) -> Result<(Tensor<T>, Option<Vec<f32>>)> {
        if let (Some(captions), Condition::Captions(known)) = (&self.captions, &self.condition) {
            let (features, visible) = captions.last(&self.device, labels, [known.rows(), known.features()])?;
            return Ok((self.embed_captions(&features)?, Some(visible)));
        }
        let none = labels.iter().filter(|_| guided).map(|_| None);
        let rows: Vec<_> = labels.iter().copied().map(Some).chain(none).collect();
        Ok((self.embed_labels(&rows)?, None))
    }

    fn running<'a>(&'a self, rows: usize, visible: Option<&'a [f32]>) -> Result<Running<'a, T>> {
        let caches = self.llama.caches(rows, self.condition_len + self.grid * self.grid)?;
        Ok(Running { model: self, caches, visible })
    }

    /// The same for caption features `[batch, condition_len, features]`; `visible` (`[batch, condition_len]`, 1 or 0)
    /// tells captions from padding.
    ///
    /// # Errors
    /// As [`Generator::draw`].
    pub fn generate_captions(
        &self,
        captions: &Tensor<T>,
        visible: Option<&[f32]>,
        first_picture: u64,
        sampling: &Sampling,
        steps: Steps<'_, T>,
    ) -> Result<Tensor<u32>> {
        let condition = self.embed_captions(captions)?;
        self.sequence(&condition, captions.shape()[0], visible, first_picture, sampling, steps)
    }

    /// One token after the other from the condition `[batch or 2 batch, condition_len, dim]` on.
    fn sequence(
        &self,
        condition: &Tensor<T>,
        batch: usize,
        visible: Option<&[f32]>,
        first_picture: u64,
        sampling: &Sampling,
        steps: Steps<'_, T>,
    ) -> Result<Tensor<u32>> {
        let places = self.grid * self.grid;
        let rows = condition.shape()[0];
        let filter = filter(sampling);
        let pictures: Vec<_> = (0..batch as u64).map(|picture| first_picture + picture).collect();
        let mut running = self.running(rows, visible)?;
        let mut drawn = Tensor::<u32>::zeros(&self.device, &[batch, places])?;
        let mut x = condition.clone();
        for place in 0..places {
            let logits = running.logits(&x)?;
            let last = logits.narrow(1, x.shape()[1] - 1, 1)?.reshape(&[rows, logits.shape()[2]])?;
            let guided = if rows == batch {
                last
            } else {
                let (with, without) = (last.narrow(0, 0, batch)?, last.narrow(0, batch, batch)?);
                sample::guide(&with, &without, sampling.cfg, Guidance::Scale)?
            };
            let position = u32::try_from(place).expect("a grid's places fit");
            let draws = Draws::Philox { seed: sampling.seed, streams: pictures.clone(), position };
            let token = sample::sample(&guided, &filter, &draws).map_err(|error| at_tokens(error, place, 1))?;
            let token = token.reshape(&[batch, 1])?;
            copy::copy_into_slice(&token, &mut drawn, 1, place)?;
            let cells = Cells::From(place);
            go_on(steps(Step { settled: place + 1, logits: &guided, tokens: &token, cells, latents: None }))?;
            let token: Tensor<T> = embedding::embedding(&self.tokens, &token)?;
            x = if rows == batch { token } else { join(&token, &token)? };
        }
        Ok(drawn)
    }

    /// Tokens `[batch, grid * grid]` to pixels `[batch, 3, height, width]`.
    ///
    /// # Errors
    /// [`Error::Request`] if the checkpoint has no tokenizer; [`Error::Op`] if the device fails.
    pub fn decode(&self, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        let missing = || Error::Request("llamagen: the checkpoint holds no tokenizer (no vq.*)".to_owned());
        self.tokenizer.as_ref().ok_or_else(missing)?.decode(tokens, [self.grid, self.grid])
    }
}

fn filter(sampling: &Sampling) -> Filter {
    let Sampling { temperature, top_k, top_p, .. } = *sampling;
    Filter { temperature, top_k, top_p, ..Filter::default() }
}

impl<T: Float> Network<T> for Running<'_, T> {
    fn logits(&mut self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let Self { model, caches, visible } = self;
        let mut options = model.causal();
        if let Some(visible) = visible {
            let keys = caches.first().map_or(0, KvCache::len) + x.shape()[1];
            let lengths = [x.shape()[0], x.shape()[1], keys];
            options = options.bias(padding_bias(&model.device, visible, model.condition_len, lengths)?);
        }
        model.logits(x, caches, &options)
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

/// Two tensors of one shape, one after the other along the first axis.
pub(crate) fn join<T: Float>(a: &Tensor<T>, b: &Tensor<T>) -> Result<Tensor<T>> {
    let mut shape = a.shape().to_vec();
    shape[0] *= 2;
    let mut both = Tensor::zeros(a.device(), &shape)?;
    copy::copy_into_slice(a, &mut both, 0, 0)?;
    copy::copy_into_slice(b, &mut both, 0, a.shape()[0])?;
    Ok(both)
}

/// Tokens, and pixels where there is a tokenizer, per picture, in host memory.
pub(crate) fn to_host<T: Float>(tokens: &Tensor<u32>, pixels: Option<&Tensor<T>>) -> Result<Drawn> {
    let per_picture = tokens.shape()[1];
    let tokens = tokens.to_vec()?;
    // What a GPU writes where a row of logits was not finite.
    if let Some(at) = tokens.iter().position(|token| *token == u32::MAX) {
        let (picture, place) = (at / per_picture.max(1), at % per_picture.max(1));
        return Err(Error::Request(format!("the logits of token {place} of picture {picture} are not finite")));
    }
    Ok(Drawn {
        tokens: tokens.chunks(per_picture.max(1)).map(<[u32]>::to_vec).collect(),
        planes: pixels.map(per_entry).transpose()?.unwrap_or_default(),
        ..Drawn::default()
    })
}

/// The values of each entry of the first axis, in host memory.
pub(crate) fn per_entry<T: Float>(x: &Tensor<T>) -> Result<Vec<Vec<f32>>> {
    let each = x.elements() / x.shape()[0].max(1);
    let values: Vec<f32> = x.to_vec()?.iter().map(|value| value.to_f32()).collect();
    Ok(values.chunks(each.max(1)).map(<[f32]>::to_vec).collect())
}

impl<T: Float> Generator for LlamaGen<T> {
    fn about(&self) -> About<'_> {
        About {
            system: "llamagen",
            classes: &self.classes,
            sampling: self.sampling,
            tokens_per_picture: self.grid * self.grid,
            has_tokenizer: self.tokenizer.is_some(),
            picture_size: [self.grid * self.tokenizer.as_ref().map_or(1, VqTokenizer::factor); 2],
            grids: vec![[self.grid; 2]],
        }
    }

    fn use_decoder(&mut self, name: &str, second: Option<&Checkpoint>) -> Result<()> {
        let vocabulary = self.tokens.shape()[0];
        self.decoder = Some(self.speculation(name, second.is_some())?);
        self.second = second.map(|file| Self::load(file, &self.device).map(Box::new)).transpose()?;
        match &self.second {
            Some(second) if second.tokens.shape()[0] != vocabulary || second.grid != self.grid => {
                let (tokens, grid) = (second.tokens.shape()[0], second.grid);
                let expected = format!("expected as the first model's: of {vocabulary}, on {} x {0}", self.grid);
                Err(Error::Request(format!(
                    "the second model draws one of {tokens} tokens on {grid} x {grid}, {expected}"
                )))
            }
            _ => Ok(()),
        }
    }

    fn use_captions(&mut self, captions: CaptionFeatures) -> Result<()> {
        let Condition::Captions(known) = &self.condition else {
            return Err(Error::Request("llamagen: this model is conditioned on classes, not on captions".to_owned()));
        };
        self.classes = captions.fitting(Some(known.rows()), known.features())?.names();
        if let Some(second) = &mut self.second {
            second.use_captions(captions.clone())?;
        }
        self.captions = Some(captions);
        Ok(())
    }

    fn draw_watched(&self, wanted: Wanted<'_>, watch: Watch<'_>) -> Result<Drawn> {
        let Wanted { labels, first_picture, sampling, given } = wanted;
        whole_only("llamagen", given)?;
        let (batch, places) = (labels.len(), self.grid * self.grid);
        let all = batch * places;
        // Cells settle in raster order: open ones have code 0.
        let pictures_of = |mut tokens: Vec<Vec<u32>>| {
            if self.tokenizer.is_none() {
                return Ok(Vec::new());
            }
            tokens.iter_mut().for_each(|tokens| tokens.resize(places, 0));
            per_entry(&self.decode(&Tensor::from_vec(&self.device, &[batch, places], tokens.concat())?)?)
        };
        let tokens = match &self.decoder {
            None => {
                let mut so_far: Vec<Tensor<u32>> = Vec::new();
                let each = |step: Step<'_, T>| {
                    so_far.push(step.tokens.clone());
                    let cells = vec![step.cells.of(0, 1); batch];
                    let pictures = || {
                        let places = so_far.iter().map(Tensor::to_vec).collect::<smalti::Result<Vec<_>>>()?;
                        let of_picture = |picture: usize| places.iter().map(|tokens| tokens[picture]).collect();
                        pictures_of((0..batch).map(of_picture).collect())
                    };
                    watch(Seen { settled: step.settled * batch, all, cells: &cells, pictures: &pictures })
                };
                watched(each, |steps| self.generate(labels, first_picture, sampling, steps))?
            }
            // Each picture settles as many places in a pass as it can.
            Some(speculation) => {
                let mut tokens = Vec::with_capacity(all);
                for (picture, label) in (first_picture..).zip(labels) {
                    let (before, mut settled) = (tokens.len(), 0);
                    let mut luck = OfPicture { seed: sampling.seed, picture, drafts: 0 };
                    let mut each = |pass: &Pass<'_, T>| {
                        let from = settled;
                        settled = (settled.max(1) + pass.settled).min(places);
                        let mut cells = vec![Vec::new(); batch];
                        cells[before / places] = (from..settled).collect();
                        watch(Seen { settled: before + settled, all, cells: &cells, pictures: &|| Ok(Vec::new()) })
                    };
                    let second = self.second.as_deref();
                    tokens.extend(self.speculate(*label, sampling, speculation, second, &mut luck, &mut each)?);
                }
                Tensor::from_vec(&self.device, &[batch, places], tokens)?
            }
        };
        let pixels = self.tokenizer.is_some().then(|| self.decode(&tokens)).transpose()?;
        to_host(&tokens, pixels.as_ref())
    }
}
