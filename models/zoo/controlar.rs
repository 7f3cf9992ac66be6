//! ControlAR: LlamaGen led by a picture of edges, depth or segments, a control token for each token.
//!
//! | part      | here                                                                                          |
//! |-----------|-----------------------------------------------------------------------------------------------|
//! | tokenizer | LlamaGen's ([`Codes`])                                                                        |
//! | backbone  | LlamaGen's ([`LlamaGen`]); a ViT reads the control picture ([`Vit`])                          |
//! | order     | raster                                                                                        |
//! | mask      | causal; captions are padded at the left, and padding is seen by nothing but itself            |
//! | position  | as LlamaGen; a grid of any shape reads the rows of the table in order                         |
//! | head      | softmax over codes                                                                            |
//! | decoder   | sequential with a cache; before the first, the middle and the last third of the blocks the    |
//! |           | control token of the token to be predicted is added (section 3.2: conditional decoding)       |
//! | guidance  | `uncond + cfg (cond - uncond)`, without a class or caption and without control                |
//!
//! Paper: Li et al. 2024, arXiv:2410.02705. Upstream: hustvl/ControlAR, `autoregressive/models/gpt_t2i.py`.
//!
//! The file is long because the control picture has an encoder of its own, one of two ViTs with their names, sizes and
//! resized pictures; the rest is [`LlamaGen`], led by what that encoder makes of the picture.

use smalti::resize::{self, Mode};
use smalti::rope::Table;
use smalti::{Device, Float, Tensor, Weight, copy, elementwise};

use super::captions::CaptionFeatures;
use super::codes::{Codes, DrawsCodes, WantedCodes};
use super::llamagen::{self, Condition, LlamaGen};
use crate::backbone::condition::Projection;
use crate::backbone::vit::{LayerNorm, Names, PatchEmbedding, Vit};
use crate::decode::speculative::{Rewind, Speculation, causal};
use crate::decode::{Guided, Network, Order, Sampler, Steps, concatenate};
use crate::weights::{Checkpoint, Config, Loader, Notes};
use crate::{Error, Result};

/// Places where control comes in: before each third of the blocks.
const ENTRIES: usize = 3;

/// The model with its weights on a device.
pub struct ControlAr {
    llamagen: LlamaGen,
    encoder: Encoder,
    adapter: Projection,
    control: Projection,
    entries: Vec<Projection>,
    /// How much of the control comes in.
    strength: f32,
    /// `[3, height, width]`.
    picture: Option<Vec<f32>>,
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
    /// Loads the names of transformers' `ViTModel` or `Dinov2Model`. Of the configuration it takes `condition_type`, and
    /// `num_attention_heads` and `norm_eps` under `encoder`.
    fn load(loader: &Loader<'_>, config: &Config, notes: &Notes) -> Result<Self> {
        let at = loader.at("embeddings");
        let dino = at.shape("patch_embeddings.projection.weight").is_some_and(|shape| shape.last() == Some(&14));
        let resized = dino.then(|| match config.text("condition_type") {
            None | Some("canny" | "seg") => Mode::Nearest,
            Some(_) => Mode::Bicubic { align_corners: true },
        });
        let own = config.at("encoder");
        let eps = own.as_ref().and_then(|own| own.number("norm_eps")).unwrap_or(if dino { 1e-6 } else { 1e-12 });
        let heads = own.as_ref().and_then(|own| own.count("num_attention_heads"));
        let heads = heads.unwrap_or_else(|| loader.length("layernorm.weight", 0) / 64);
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
        let patches = elementwise::add(&patches, &copy::convert(&positions)?)?;
        let class = elementwise::add(&self.class, &self.class_position)?;
        let class = copy::convert(&class.broadcast(&[batch, 1, dim])?.contiguous()?)?;
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

/// LlamaGen's sequence under control.
struct Running<'a, T: Float> {
    sequence: llamagen::Running<'a, T>,
    /// Blocks before the next entry.
    third: usize,
    /// Rows of a picture's condition.
    condition_len: usize,
    /// What each entry adds, `[rows, places, dim]`.
    control: Vec<Tensor<T>>,
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
            let llamagen = LlamaGen::load_at(checkpoint, root, root, &config, notes)?;
            let (depth, dim) = (llamagen.trunk().depth(), llamagen.trunk().dim());
            if depth == 0 || !depth.is_multiple_of(ENTRIES) {
                notes.add(format!("{depth} layers are not {ENTRIES} thirds"));
            }
            let model = root.at("adapter.model");
            let hidden = |at: &Loader<'_>, inputs: usize| Projection::load(at, [inputs, dim]);
            let layers = (0..ENTRIES).map(|entry| hidden(&root.at("condition_layers").at(entry), dim));
            Ok(Self {
                encoder: Encoder::load(&model, &config, notes)?,
                adapter: hidden(&root.at("adapter_mlp"), model.length("layernorm.weight", 0))?,
                control: hidden(&root.at("condition_mlp.cap_proj"), dim)?,
                entries: layers.collect::<Result<_>>()?,
                llamagen,
                strength: config.number("control_strength").unwrap_or(1.0),
                picture: None,
            })
        })
    }

    /// The rotary table, the condition's rows first.
    #[must_use]
    pub fn table(&self) -> &Table {
        self.llamagen.table()
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

    /// A sequence under `strength` times these control tokens, and, for the rows beyond them, under none.
    fn running<'a, T: Float>(
        &'a self,
        rows: usize,
        condition: &'a Condition<'_, T>,
        control: &Control<T>,
        strength: f32,
    ) -> Result<Running<'a, T>> {
        let places = self.codes().places();
        let entry = |tokens: &Tensor<T>| {
            let shape = tokens.shape();
            if shape[1] != places || shape[0] > rows {
                let message = format!("controlar: {} control tokens, expected {places}", shape[1]);
                return Err(Error::Request(message));
            }
            let scaled = elementwise::scale_add(tokens, strength, tokens, 0.0)?;
            let none = Tensor::zeros(tokens.device(), &[rows - shape[0], places, shape[2]])?;
            if none.shape()[0] == 0 { Ok(scaled) } else { concatenate(&[&scaled, &none], 0) }
        };
        Ok(Running {
            sequence: self.llamagen.running(rows, condition)?,
            third: self.llamagen.trunk().depth() / ENTRIES,
            condition_len: self.llamagen.condition_len(),
            control: control.tokens[1..].iter().map(entry).collect::<Result<_>>()?,
        })
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
        let all = self.llamagen.embed(condition, true)?;
        let batch = condition.pictures();
        let chosen = |row: usize| all.narrow(0, if dropped[row] { batch + row } else { row }, 1);
        let chosen: Vec<_> = (0..batch).map(chosen).collect::<smalti::Result<_>>()?;
        let before = concatenate(&chosen.iter().collect::<Vec<_>>(), 0)?;
        let kept = dropped.iter().map(|dropped| T::from_f32(if *dropped { 0.0 } else { 1.0 })).collect();
        let kept = Tensor::from_vec(all.device(), &[batch, 1, 1], kept)?;
        let mut running = self.running(batch, condition, control, 1.0)?;
        for entry in &mut running.control {
            *entry = elementwise::mul(entry, &kept)?;
        }
        let x = concatenate(&[&before, &running.embed(tokens)?], 1)?;
        let logits = running.logits(&x)?;
        Ok(logits.narrow(1, before.shape()[1] - 1, 1 + tokens.shape()[1])?.contiguous()?)
    }

    /// Draws the tokens of a picture for each row of the condition, `[batch, places]` in raster order. `decoder` is for
    /// one picture.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails, or [`Error::Interrupted`] if `steps` breaks off.
    pub fn generate<T: Float>(
        &self,
        condition: &Condition<'_, T>,
        control: &Control<T>,
        strength: f32,
        sampler: &Sampler<'_>,
        decoder: Option<&Speculation>,
        steps: Steps<'_, T>,
    ) -> Result<Tensor<u32>> {
        let cfg = sampler.sampling.cfg;
        let before = self.llamagen.embed(condition, cfg != 1.0)?;
        let mut running = self.running(before.shape()[0], condition, control, strength)?;
        let order = Order::Raster(self.codes().places());
        causal(&mut running, before, condition.pictures(), order, |_| cfg, sampler, decoder, steps)
    }
}

impl<T: Float> Network<T> for Running<'_, T> {
    fn logits(&mut self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let Self { sequence, third, condition_len, control } = self;
        let (start, seq) = (sequence.len(), x.shape()[1]);
        // The place before the first token predicts it.
        let first = (*condition_len - 1).saturating_sub(start);
        let token = start + first - (*condition_len - 1);
        sequence.led(x, |block, x| {
            if !block.is_multiple_of(*third) {
                return Ok(x);
            }
            let part = x.narrow(1, first, seq - first)?;
            let led = elementwise::add(&part, &control[block / *third].narrow(1, token, seq - first)?)?;
            if first == 0 { Ok(led) } else { concatenate(&[&x.narrow(1, 0, first)?, &led], 1) }
        })
    }

    fn embed(&mut self, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        self.sequence.embed(tokens)
    }

    fn fade(&mut self, factors: &[Vec<f32>]) -> Result<()> {
        self.sequence.fade(factors)
    }
}

impl<T: Float> Rewind<T> for Running<'_, T> {
    fn rewind(&mut self, places: usize) {
        self.sequence.rewind(places);
    }
}

impl DrawsCodes for ControlAr {
    const SYSTEM: &'static str = "controlar";

    fn codes(&self) -> &Codes {
        self.llamagen.codes()
    }

    fn drafted(&self) -> Option<(&Weight, usize)> {
        self.llamagen.drafted()
    }

    fn guidances(&self) -> &'static [Guided] {
        self.llamagen.guidances()
    }

    fn use_captions(&mut self, captions: CaptionFeatures) -> Result<()> {
        self.llamagen.use_captions(captions)
    }

    fn control_size(&self) -> Option<[usize; 2]> {
        Some(self.encoder.picture_size([self.codes().side(); 2]))
    }

    fn use_control(&mut self, planes: &[f32]) -> Result<()> {
        let [height, width] = self.encoder.picture_size([self.codes().side(); 2]);
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
        let [height, width] = self.encoder.picture_size([self.codes().side(); 2]);
        let values = planes.iter().map(|value| T::from_f32(*value)).collect();
        let one = self.control::<T>(&Tensor::from_vec(&self.codes().device, &[1, 3, height, width], values)?)?;
        let each = |tokens: &Tensor<T>| {
            let &[_, places, dim] = tokens.shape() else { unreachable!("a projection keeps axes") };
            Ok(tokens.broadcast(&[labels.len(), places, dim])?.contiguous()?)
        };
        let control = Control { tokens: one.tokens.iter().map(each).collect::<Result<_>>()?, ..one };
        let condition = self.llamagen.condition(labels)?;
        self.generate(&condition, &control, self.strength, sampler, decoder, steps)
    }
}
