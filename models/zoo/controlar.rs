//! ControlAR: LlamaGen led by a picture of edges, depth or segments, a control token for each token.
//!
//! | part      | here                                                                                          |
//! |-----------|-----------------------------------------------------------------------------------------------|
//! | tokenizer | LlamaGen's ([`Codes`])                                                                        |
//! | backbone  | Llama blocks ([`Blocks`]); a ViT reads the control picture ([`Vit`])                          |
//! | order     | raster                                                                                        |
//! | mask      | causal; captions are padded at the left, and padding is seen by nothing but itself            |
//! | position  | as LlamaGen; a grid of any shape reads the rows of the table in order                         |
//! | head      | softmax over codes                                                                            |
//! | decoder   | sequential with a cache; before the first, the middle and the last third of the blocks the    |
//! |           | control token of the token to be predicted is added (section 3.2: conditional decoding)       |
//! | guidance  | `uncond + cfg (cond - uncond)`, without a class or caption and without control                |
//!
//! Paper: Li et al. 2024, arXiv:2410.02705. Upstream: hustvl/ControlAR, `autoregressive/models/gpt_t2i.py`.

use smalti::attention::{Align, KvCache, Mask, Options};
use smalti::resize::{self, Mode};
use smalti::rope::{NullRows, Table};
use smalti::{Device, Float, Tensor, Weight, elementwise, embedding, linear, norm};

use super::captions::CaptionFeatures;
use super::codes::{Codes, DrawsCodes, WantedCodes};
use crate::backbone::condition::{Captions, ClassTable, Projection, padding_bias};
use crate::backbone::llama::{Blocks, Sizes};
use crate::backbone::vit::{LayerNorm, Names, PatchEmbedding, Vit};
use crate::decode::speculative::{Rewind, Speculation, causal, forget};
use crate::decode::{Network, Sampler, Steps, concatenate};
use crate::weights::{Checkpoint, Loader, Notes};
use crate::{Error, Result};

/// Places where control comes in: before each third of the blocks.
const ENTRIES: usize = 3;

/// The model with its weights on a device.
pub struct ControlAr {
    codes: Codes,
    asked: Asked,
    condition_len: usize,
    encoder: Encoder,
    adapter: Projection,
    control: Projection,
    entries: Vec<Projection>,
    tokens: Weight,
    blocks: Blocks,
    norm: Tensor<f32>,
    output: Weight,
    table: Table,
    /// How much of the control comes in.
    strength: f32,
    /// What pictures are drawn from.
    captions: Option<CaptionFeatures>,
    /// `[3, height, width]`.
    picture: Option<Vec<f32>>,
}

#[expect(clippy::large_enum_variant, reason = "a model holds one, so its size does not matter")]
enum Asked {
    Classes(ClassTable),
    Captions(Captions),
}

/// What a picture is to show, besides its control.
pub enum Condition<'a, T: Float> {
    /// A class for each picture.
    Classes(&'a [u32]),
    /// Caption features `[batch, condition_len, features]`.
    Captions(&'a Tensor<T>),
}

/// The transformer that reads the control picture.
struct Encoder {
    patches: PatchEmbedding,
    /// `[1, 1, dim]`.
    class: Tensor<f32>,
    /// `[1, dim, side, side]`, and that of the class `[1, 1, dim]`.
    positions: Tensor<f32>,
    class_position: Tensor<f32>,
    vit: Vit,
    norm: LayerNorm,
    /// How a picture becomes one of 14 pixels to a token, where patches are of that size.
    resized: Option<Mode>,
}

impl Encoder {
    /// Loads the names of transformers' `ViTModel` or `Dinov2Model`.
    fn load(loader: &Loader<'_>, heads: usize, eps: f32, resized: Option<Mode>, notes: &Notes) -> Result<Self> {
        let at = loader.at("embeddings");
        let (rows, dim) = (at.length("position_embeddings", 1), at.length("position_embeddings", 2));
        let side = rows.saturating_sub(1).isqrt();
        if side * side + 1 != rows || heads == 0 || !dim.is_multiple_of(heads) {
            notes.add(format!("{rows} positions of {dim} channels are not a class, a square and {heads} heads"));
        }
        let positions = at.vector("position_embeddings", &[1, rows, dim])?;
        let cells = positions.narrow(1, rows.min(1), side * side)?.reshape(&[1, side, side, dim])?;
        let names = if loader.at("encoder.layer.0").has("norm1") { Names::Dino } else { Names::Transformers };
        Ok(Self {
            patches: PatchEmbedding::load(&at, "patch_embeddings.projection")?,
            class: at.vector("cls_token", &[1, 1, dim])?,
            class_position: positions.narrow(1, 0, rows.min(1))?.contiguous()?,
            positions: cells.permute(&[0, 3, 1, 2])?.contiguous()?,
            vit: Vit::load_as(&loader.at("encoder"), "layer", names, dim, heads.max(1), eps)?,
            norm: LayerNorm::load(loader, "layernorm", dim, eps)?,
            resized,
        })
    }

    /// The picture that has a patch for each of these cells. Patches of 14 pixels stand for tokens of 16.
    fn picture_size(&self, grid: [usize; 2]) -> [usize; 2] {
        let patch = if self.resized.is_some() { [16, 16] } else { self.patches.patch() };
        [grid[0] * patch[0], grid[1] * patch[1]]
    }

    /// The picture as the encoder reads it, if it is not read as it is.
    fn resized<T: Float>(&self, pixels: &Tensor<T>) -> Result<Option<Tensor<T>>> {
        let (Some(mode), &[_, _, height, width]) = (self.resized, pixels.shape()) else { return Ok(None) };
        Ok(Some(resize::resize(pixels, [height / 16 * 14, width / 16 * 14], mode)?))
    }

    /// A state for each patch, `[batch, patches, dim]`.
    fn run<T: Float>(&self, pixels: &Tensor<T>) -> Result<Tensor<T>> {
        let read = self.resized(pixels)?.unwrap_or_else(|| pixels.clone());
        let patches = self.patches.run(&read)?;
        let (batch, dim) = (patches.shape()[0], patches.shape()[2]);
        let [height, width] = self.patches.patch();
        let grid = [read.shape()[2] / height, read.shape()[3] / width];
        // A table for another grid is stretched.
        let positions = resize::resize(&self.positions, grid, Mode::Bicubic { align_corners: false })?;
        let positions = positions.permute(&[0, 2, 3, 1])?.reshape(&[1, grid[0] * grid[1], dim])?;
        let patches = elementwise::add(&patches, &smalti::copy::convert(&positions)?)?;
        let class = elementwise::add(&self.class, &self.class_position)?;
        let class = smalti::copy::convert(&class.broadcast(&[batch, 1, dim])?.contiguous()?)?;
        let x = self.vit.run(&concatenate(&[&class, &patches], 1)?, None, None, &self.vit.options())?;
        Ok(self.norm.run(&x)?.narrow(1, 1, patches.shape()[1])?.contiguous()?)
    }
}

/// What the control picture becomes.
pub struct Control<T: Float> {
    /// States of the encoder, `[batch, places, encoder channels]`.
    pub encoded: Tensor<T>,
    /// In the channels of the transformer, `[batch, places, dim]`.
    pub adapted: Tensor<T>,
    /// Control tokens as all entries share them, and what each entry makes of them, each `[batch, places, dim]`.
    pub tokens: Vec<Tensor<T>>,
}

struct Running<'a, T: Float> {
    model: &'a ControlAr,
    caches: Vec<KvCache<T>>,
    /// What each entry adds, `[rows, places, dim]`.
    control: Vec<Tensor<T>>,
    /// Which rows of captions are not padding, `[pictures, condition_len]`.
    visible: Option<&'a [f32]>,
}

impl ControlAr {
    /// Loads official names; the tokenizer's under `vq.` if it is there.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        // Layers that inference does not run: without control, features are zeros, which projections keep.
        let unread = [
            "condition_embeddings.weight",
            "condition_mlp.uncond_embedding",
            "condition_norm.weight",
            "embeddings.mask_token",
            "pooler.dense.weight",
            "pooler.dense.bias",
            "freqs_cis",
        ];
        checkpoint.build(device, &unread, |root, notes| {
            let [vocabulary, dim] = root.lengths("tok_embeddings.weight");
            let heads = config.count("n_head").unwrap_or(dim / 64).max(1);
            let sizes = Sizes { dim, heads, kv_heads: heads, norm_eps: config.number("norm_eps").unwrap_or(1e-5) };
            let depth = root.count("layers");
            if dim > 0 && (!dim.is_multiple_of(4 * heads) || depth == 0 || !depth.is_multiple_of(ENTRIES)) {
                notes.add(format!("{depth} layers of {dim} channels do not fit {ENTRIES} thirds and {heads} heads"));
            }
            let asked = match root.has("cls_embedding.cap_proj") {
                true => Asked::Captions(Captions::load(&root.at("cls_embedding"), dim)?),
                false => Asked::Classes(ClassTable::load(root, "cls_embedding.embedding_table.weight", dim)?),
            };
            let (classes, condition_len) = match &asked {
                Asked::Classes(table) => (table.classes(), 1),
                Asked::Captions(captions) => (0, captions.rows()),
            };
            let encoder = config.at("encoder");
            let count = |key: &str| encoder.as_ref().and_then(|encoder| encoder.count(key));
            let number = |key: &str| encoder.as_ref().and_then(|encoder| encoder.number(key));
            let model = root.at("adapter.model");
            let width = model.length("layernorm.weight", 0);
            // Patches of 14 pixels stand for tokens of 16.
            let dino = model
                .at("embeddings")
                .shape("patch_embeddings.projection.weight")
                .is_some_and(|s| s.last() == Some(&14));
            let resized = dino.then(|| match config.text("condition_type") {
                None | Some("canny" | "seg") => Mode::Nearest,
                Some(_) => Mode::Bicubic { align_corners: true },
            });
            let eps = number("norm_eps").unwrap_or(if dino { 1e-6 } else { 1e-12 });
            let codes = Codes::load(checkpoint, root, &config, classes)?;
            let side = codes.side();
            let table =
                Table::grid(device, side, side, sizes.head_dim(), config.number("rope_base").unwrap_or(10_000.0))?;
            let hidden = |at: &Loader<'_>, inputs: usize| Projection::load(at, [inputs, dim]);
            let layers = (0..ENTRIES).map(|entry| hidden(&root.at("condition_layers").at(entry), dim));
            Ok(Self {
                encoder: Encoder::load(
                    &model,
                    count("num_attention_heads").unwrap_or(width / 64),
                    eps,
                    resized,
                    notes,
                )?,
                adapter: hidden(&root.at("adapter_mlp"), width)?,
                control: hidden(&root.at("condition_mlp.cap_proj"), dim)?,
                entries: layers.collect::<Result<_>>()?,
                tokens: root.weight("tok_embeddings.weight", &[vocabulary, dim])?,
                blocks: Blocks::load(root, sizes)?,
                norm: root.vector("norm.weight", &[dim])?,
                output: root.weight("output.weight", &[vocabulary, dim])?,
                table: table.with_null_rows(condition_len, NullRows::Zero)?,
                asked,
                condition_len,
                codes,
                strength: config.number("control_strength").unwrap_or(1.0),
                captions: None,
                picture: None,
            })
        })
    }

    /// The parts around the network.
    #[must_use]
    pub fn codes(&self) -> &Codes {
        &self.codes
    }

    /// The rotary table, the condition's rows first.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The control picture as the encoder reads it, if it is not read as it is.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn resized<T: Float>(&self, pixels: &Tensor<T>) -> Result<Option<Tensor<T>>> {
        self.encoder.resized(pixels)
    }

    /// Control tokens of pictures `[batch, 3, height, width]` in [-1, 1].
    ///
    /// # Errors
    /// If patches do not tile the picture or the device fails.
    pub fn control<T: Float>(&self, pixels: &Tensor<T>) -> Result<Control<T>> {
        let encoded = self.encoder.run(pixels)?;
        let adapted = self.adapter.run(&encoded)?;
        let mut tokens = vec![self.control.run(&adapted)?];
        for entry in &self.entries {
            tokens.push(entry.run(&tokens[0])?);
        }
        Ok(Control { encoded, adapted, tokens })
    }

    /// The rows of the condition, `[batch or 2 batch, condition_len, dim]`.
    fn embed<T: Float>(&self, condition: &Condition<'_, T>, guided: bool) -> Result<Tensor<T>> {
        match (condition, &self.asked) {
            (Condition::Classes(labels), Asked::Classes(classes)) => classes.rows(labels, guided),
            (Condition::Captions(features), Asked::Captions(captions)) => captions.project(features, guided),
            (Condition::Classes(_), Asked::Captions(_)) => {
                Err(Error::Request("controlar: this model is conditioned on captions, not on classes".to_owned()))
            }
            (Condition::Captions(_), Asked::Classes(_)) => {
                Err(Error::Request("controlar: this model is conditioned on classes, not on captions".to_owned()))
            }
        }
    }

    /// A sequence under `strength` times these control tokens, and, for the rows beyond them, under none.
    fn running<'a, T: Float>(
        &'a self,
        rows: usize,
        control: &Control<T>,
        strength: f32,
        visible: Option<&'a [f32]>,
    ) -> Result<Running<'a, T>> {
        let places = self.codes.places();
        let entry = |tokens: &Tensor<T>| {
            let shape = tokens.shape();
            if shape[1] != places || shape[0] > rows {
                let message = format!("controlar: {} control tokens, expected {places}", shape[1]);
                return Err(Error::Request(message));
            }
            let scaled = elementwise::scale_add(tokens, strength, tokens, 0.0)?;
            let none = Tensor::zeros(tokens.device(), &[rows - shape[0], shape[1], shape[2]])?;
            if shape[0] == rows { Ok(scaled) } else { concatenate(&[&scaled, &none], 0) }
        };
        let control = control.tokens[1..].iter().map(entry).collect::<Result<_>>()?;
        let caches = self.blocks.caches(&self.codes.device, rows, self.condition_len + places)?;
        Ok(Running { model: self, caches, control, visible })
    }

    /// Logits of all places, `[batch, places, vocabulary]`, given the tokens of all but the last, under full control.
    /// Rows that are `dropped` have neither condition nor control.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher<T: Float>(
        &self,
        condition: &Condition<'_, T>,
        control: &Control<T>,
        dropped: &[bool],
        tokens: &Tensor<u32>,
    ) -> Result<Tensor<T>> {
        let all = self.embed(condition, true)?;
        let batch = all.shape()[0] / 2;
        let chosen = |row: usize| all.narrow(0, if dropped[row] { batch + row } else { row }, 1);
        let chosen: Vec<_> = (0..batch).map(chosen).collect::<smalti::Result<_>>()?;
        let before = concatenate(&chosen.iter().collect::<Vec<_>>(), 0)?;
        let kept = dropped.iter().map(|dropped| T::from_f32(if *dropped { 0.0 } else { 1.0 })).collect();
        let kept = Tensor::from_vec(&self.codes.device, &[batch, 1, 1], kept)?;
        let mut running = self.running(batch, control, 1.0, None)?;
        for entry in &mut running.control {
            *entry = elementwise::mul(entry, &kept)?;
        }
        let x = concatenate(&[&before, &embedding::embedding::<T>(&self.tokens, tokens)?], 1)?;
        let logits = running.logits(&x)?;
        Ok(logits.narrow(1, self.condition_len - 1, 1 + tokens.shape()[1])?.contiguous()?)
    }

    /// Draws the tokens of a picture for each row of the condition, `[batch, places]` in raster order. `visible`
    /// (`[batch, condition_len]`, 1 or 0) tells captions from padding; `decoder` is for one picture.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails, or [`Error::Interrupted`] if `steps` breaks off.
    pub fn generate<T: Float>(
        &self,
        condition: &Condition<'_, T>,
        visible: Option<&[f32]>,
        control: &Control<T>,
        strength: f32,
        sampler: &Sampler<'_>,
        decoder: Option<&Speculation>,
        steps: Steps<'_, T>,
    ) -> Result<Tensor<u32>> {
        let cfg = sampler.sampling.cfg;
        let before = self.embed(condition, cfg != 1.0)?;
        let batch = control.tokens[0].shape()[0];
        if visible.is_some_and(|visible| visible.len() != batch * self.condition_len) {
            return Err(Error::Request(format!("controlar: visible rows for other than {batch} captions")));
        }
        let mut running = self.running(before.shape()[0], control, strength, visible)?;
        causal(&mut running, before, batch, self.codes.places(), |_| cfg, sampler, decoder, steps)
    }
}

impl<T: Float> Rewind<T> for Running<'_, T> {
    fn rewind(&mut self, places: usize) {
        forget(&mut self.caches, places);
    }
}

impl DrawsCodes for ControlAr {
    const SYSTEM: &'static str = "controlar";

    fn codes(&self) -> &Codes {
        &self.codes
    }

    fn drafted(&self) -> Option<(&Weight, usize)> {
        Some((&self.tokens, self.output.shape()[0]))
    }

    fn use_captions(&mut self, captions: CaptionFeatures) -> Result<()> {
        let Asked::Captions(known) = &self.asked else {
            return Err(Error::Request("controlar: this model is conditioned on classes, not on captions".to_owned()));
        };
        self.codes.set_captions(captions.fitting(Some(known.rows()), known.features())?);
        self.captions = Some(captions);
        Ok(())
    }

    fn control_size(&self) -> Option<[usize; 2]> {
        Some(self.encoder.picture_size([self.codes.side(); 2]))
    }

    fn use_control(&mut self, planes: &[f32]) -> Result<()> {
        let [height, width] = self.encoder.picture_size([self.codes.side(); 2]);
        if planes.len() != 3 * height * width {
            return Err(Error::Request(format!("a control picture has {height} x {width} pixels, three values each")));
        }
        self.picture = Some(planes.to_vec());
        Ok(())
    }

    fn generate<T: Float>(&self, wanted: WantedCodes<'_>, steps: Steps<'_, T>) -> Result<Tensor<u32>> {
        let WantedCodes { labels, sampler, decoder, .. } = wanted;
        let missing = || Error::Request("controlar draws under a control picture, which was not given".to_owned());
        let planes = self.picture.as_ref().ok_or_else(missing)?;
        let [height, width] = self.encoder.picture_size([self.codes.side(); 2]);
        let values = planes.iter().map(|value| T::from_f32(*value)).collect();
        let one = self.control::<T>(&Tensor::from_vec(&self.codes.device, &[1, 3, height, width], values)?)?;
        let each = |tokens: &Tensor<T>| {
            let &[_, places, dim] = tokens.shape() else { unreachable!("a projection keeps axes") };
            Ok(tokens.broadcast(&[labels.len(), places, dim])?.contiguous()?)
        };
        let control = Control { tokens: one.tokens.iter().map(each).collect::<Result<_>>()?, ..one };
        match (&self.asked, &self.captions) {
            (Asked::Captions(known), Some(captions)) => {
                let shape = [known.rows(), known.features()];
                let (features, visible) = captions.last::<T>(&self.codes.device, labels, shape)?;
                let condition = Condition::Captions(&features);
                self.generate(&condition, Some(&visible), &control, self.strength, sampler, decoder, steps)
            }
            _ => self.generate(&Condition::Classes(labels), None, &control, self.strength, sampler, decoder, steps),
        }
    }
}

impl<T: Float> Network<T> for Running<'_, T> {
    fn logits(&mut self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let ControlAr { blocks, table, norm, output, condition_len, .. } = self.model;
        let (rows, seq) = (x.shape()[0], x.shape()[1]);
        let start = self.caches.first().map_or(0, KvCache::len);
        let options = Options::new((blocks.sizes().head_dim() as f32).powf(-0.5));
        let mut options = options.mask(Mask::Causal { align: Align::BottomRight });
        if let Some(visible) = self.visible {
            let lengths = [rows, seq, start + seq];
            options = options.bias(padding_bias(x.device(), visible, *condition_len, lengths)?);
        }
        // The place before the first token predicts it.
        let first = (condition_len - 1).saturating_sub(start);
        let token = start + first - (condition_len - 1);
        let third = blocks.depth() / ENTRIES;
        let mut x = x.clone();
        for (entry, control) in self.control.iter().enumerate() {
            let part = x.narrow(1, first, seq - first)?;
            let led = elementwise::add(&part, &control.narrow(1, token, seq - first)?)?;
            x = if first == 0 { led } else { concatenate(&[&x.narrow(1, 0, first)?, &led], 1)? };
            x = blocks.run(entry * third..(entry + 1) * third, &x, Some((table, start)), &mut self.caches, &options)?;
        }
        let x = norm::rms_norm(&x, Some(norm), blocks.sizes().norm_eps)?;
        Ok(linear::linear(&x, output, None)?)
    }

    fn embed(&mut self, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        Ok(embedding::embedding(&self.model.tokens, tokens)?)
    }
}
