//! MAR: masked autoregression over continuous tokens, each drawn by a small diffusion.
//!
//! | part      | here                                                                                       |
//! |-----------|--------------------------------------------------------------------------------------------|
//! | tokenizer | a KL autoencoder ([`KlAutoencoder`])                                                       |
//! | backbone  | ViT encoder over what is settled, ViT decoder over all ([`Vit`])                           |
//! | order     | random, each picture its own                                                               |
//! | mask      | full; the encoder sees settled tokens only, the class stands before them several times     |
//! | position  | learned, one table for each of encoder, decoder and head                                   |
//! | head      | diffusion ([`DiffusionHead`])                                                              |
//! | decoder   | more and more cells per step, by a cosine                                                  |
//! | guidance  | on the head's noise, `uncond + s (cond - uncond)`, `s` constant or rising with the cells settled |
//!
//! Paper: Li et al. 2024, arXiv:2406.11838, sections 3 and 4. Upstream: LTH14/mar, `models/mar.py`.

use std::f64::consts::FRAC_PI_2;
use std::ops::ControlFlow;

use smalti::sample::Schedule;
use smalti::{Device, Float, Tensor, Weight, copy, elementwise, embedding, linear};

use super::class_names;
use super::codes::go_on;
use crate::backbone::vit::{LayerNorm, Linear, Vit};
use crate::decode::{Normals, Random, Sampler, concatenate, normals_of_places, twice};
use crate::head::diffusion::DiffusionHead;
use crate::order;
use crate::tokenizer::kl::KlAutoencoder;
use crate::weights::{Checkpoint, Loader, Notes};
use crate::{Drawn, Error, Generator, Result, Sampling};

/// The model with its weights on a device.
pub struct Mar {
    device: Device,
    side: usize,
    patch: usize,
    classes: Weight,
    /// `[1, dim]`.
    none: Tensor<f32>,
    /// How often the class stands before the tokens.
    buffer: usize,
    input: Linear,
    input_norm: LayerNorm,
    /// `[1, buffer + places, dim]`.
    encoder_positions: Tensor<f32>,
    encoder: Vit,
    encoder_norm: LayerNorm,
    middle: Linear,
    /// `[1, 1, dim]`.
    mask_token: Tensor<f32>,
    decoder_positions: Tensor<f32>,
    decoder: Vit,
    decoder_norm: LayerNorm,
    /// `[1, places, dim]`.
    head_positions: Tensor<f32>,
    head: DiffusionHead,
    tokenizer: KlAutoencoder,
    steps: usize,
    guidance: Schedule,
    names: Vec<String>,
    sampling: Sampling,
}

impl Mar {
    /// Loads official names under `mar.` and `vae.`.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        let notes = Notes::default();
        let root = Loader::new(checkpoint, device, &notes);
        let mar = root.at("mar");
        let places = mar.length("diffusion_pos_embed_learned", 1);
        let (dim, token) = (mar.length("z_proj.weight", 0), mar.length("z_proj.weight", 1));
        let width = mar.length("decoder_embed.weight", 0);
        let buffer = mar.length("encoder_pos_embed_learned", 1).saturating_sub(places);
        let heads = config.count("heads").unwrap_or(if dim == 768 { 12 } else { 16 });
        let eps = config.number("norm_eps").unwrap_or(1e-6);
        let classes = mar.length("class_emb.weight", 0);
        let model = Self {
            device: device.clone(),
            side: places.isqrt(),
            patch: config.count("patch_size").unwrap_or(1).max(1),
            classes: mar.weight("class_emb.weight", &[classes, dim])?,
            none: mar.vector("fake_latent", &[1, dim])?,
            buffer,
            input: Linear::load(&mar, "z_proj", [dim, token])?,
            input_norm: LayerNorm::load(&mar, "z_proj_ln", dim, 1e-6)?,
            encoder_positions: mar.vector("encoder_pos_embed_learned", &[1, buffer + places, dim])?,
            encoder: Vit::load(&mar, "encoder_blocks", dim, heads, eps)?,
            encoder_norm: LayerNorm::load(&mar, "encoder_norm", dim, eps)?,
            middle: Linear::load(&mar, "decoder_embed", [width, dim])?,
            mask_token: mar.vector("mask_token", &[1, 1, width])?,
            decoder_positions: mar.vector("decoder_pos_embed_learned", &[1, buffer + places, width])?,
            decoder: Vit::load(&mar, "decoder_blocks", width, heads, eps)?,
            decoder_norm: LayerNorm::load(&mar, "decoder_norm", width, eps)?,
            head_positions: mar.vector("diffusion_pos_embed_learned", &[1, places, width])?,
            head: DiffusionHead::load(&mar.at("diffloss.net"), config.count("num_sampling_steps").unwrap_or(100))?,
            tokenizer: KlAutoencoder::load(
                &root.at("vae"),
                config.count("norm_groups").unwrap_or(32),
                config.number("latent_scale").unwrap_or(0.2325),
            )?,
            steps: config.count("num_iter").unwrap_or(64).clamp(1, places.max(1)),
            guidance: match config.text("cfg_schedule") {
                Some("constant") => Schedule::Constant,
                _ => Schedule::Linear,
            },
            names: class_names(checkpoint, classes),
            sampling: Sampling {
                cfg: config.number("cfg").unwrap_or(3.0),
                temperature: config.number("temperature").unwrap_or(1.0),
                top_k: 0,
                top_p: 1.0,
                seed: 0,
            },
        };
        notes.finish(checkpoint, &[])?;
        Ok(model)
    }

    /// The head alone.
    #[must_use]
    pub fn head(&self) -> &DiffusionHead {
        &self.head
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &KlAutoencoder {
        &self.tokenizer
    }

    fn places(&self) -> usize {
        self.head_positions.shape()[1]
    }

    /// The rows of classes, then, if `guided`, as many of none: `[rows, 1, dim]`.
    fn condition<T: Float>(&self, labels: &[u32], guided: bool) -> Result<Tensor<T>> {
        let classes = self.classes.shape()[0];
        if let Some(label) = labels.iter().find(|label| **label as usize >= classes) {
            return Err(Error::Request(format!("class {label}, expected 0 to {}", classes.saturating_sub(1))));
        }
        let ids = Tensor::from_vec(&self.device, &[labels.len(), 1], labels.to_vec())?;
        let with = embedding::embedding::<T>(&self.classes, &ids)?;
        if !guided {
            return Ok(with);
        }
        let dim = self.none.shape()[1];
        let none = self.none.reshape(&[1, 1, dim])?.broadcast(&[labels.len(), 1, dim])?.contiguous()?;
        concatenate(&[&with, &copy::convert(&none)?], 0)
    }

    /// The states of the settled tokens, the class before them: `[rows, buffer + settled, dim]`. `tokens` is `[rows,
    /// places, channels]`; `settled` are each row's cells, as many in each.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn encode<T: Float>(
        &self,
        tokens: &Tensor<T>,
        settled: &[Vec<usize>],
        condition: &Tensor<T>,
    ) -> Result<Tensor<T>> {
        let (rows, dim) = (condition.shape()[0], condition.shape()[2]);
        let buffer = condition.broadcast(&[rows, self.buffer, dim])?.contiguous()?;
        let x = concatenate(&[&buffer, &self.input.run(tokens)?], 1)?;
        let x = self.input_norm.run(&elementwise::add(&x, &copy::convert(&self.encoder_positions)?)?)?;
        let kept: Vec<_> = settled.iter().map(|cells| self.with_buffer(cells)).collect();
        let x = select(&kept, &x)?;
        self.encoder_norm.run(&self.encoder.run(&x, None, None, &self.encoder.options())?)
    }

    /// The states of all cells, `[rows, places, dim]`, from those of the settled ones.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn decode<T: Float>(&self, states: &Tensor<T>, settled: &[Vec<usize>]) -> Result<Tensor<T>> {
        let states = self.middle.run(states)?;
        let rows = states.shape()[0];
        let all = self.buffer + self.places();
        let kept: Vec<_> = settled.iter().map(|cells| self.with_buffer(cells)).collect();
        let placed = linear::matmul(&selection(&states, &kept, all)?.permute(&[0, 2, 1])?.contiguous()?, &states)?;
        // The mask token wherever nothing was placed.
        let mut open = vec![T::from_f32(1.0); rows * all];
        for (open, kept) in open.chunks_mut(all).zip(&kept) {
            kept.iter().for_each(|place| open[*place] = T::from_f32(0.0));
        }
        let open = Tensor::from_vec(&self.device, &[rows, all, 1], open)?;
        let masks = self.mask_token.broadcast(&[rows, all, self.mask_token.shape()[2]])?.contiguous()?;
        let x = elementwise::add(&placed, &elementwise::mul(&copy::convert::<_, T>(&masks)?, &open)?)?;
        let x = elementwise::add(&x, &copy::convert(&self.decoder_positions)?)?;
        let x = self.decoder_norm.run(&self.decoder.run(&x, None, None, &self.decoder.options())?)?;
        let x = x.narrow(1, self.buffer, self.places())?.contiguous()?;
        Ok(elementwise::add(&x, &copy::convert(&self.head_positions)?)?)
    }

    /// Places of the encoder: the buffer, then these cells in raster order.
    fn with_buffer(&self, cells: &[usize]) -> Vec<usize> {
        let mut cells = cells.to_vec();
        cells.sort_unstable();
        (0..self.buffer).chain(cells.into_iter().map(|cell| self.buffer + cell)).collect()
    }

    /// Encoder and decoder of a plain pass: `masked` (`[batch, places]`) cells are hidden.
    ///
    /// # Errors
    /// If shapes do not fit, rows hide different numbers of cells, or the device fails.
    pub fn plain<T: Float>(&self, labels: &[u32], tokens: &Tensor<T>, masked: &[bool]) -> Result<[Tensor<T>; 2]> {
        let settled: Vec<Vec<_>> = masked
            .chunks(self.places())
            .map(|masked| (0..masked.len()).filter(|cell| !masked[*cell]).collect())
            .collect();
        let states = self.encode(tokens, &settled, &self.condition(labels, false)?)?;
        let all = self.decode(&states, &settled)?;
        Ok([states, all])
    }

    /// Draws latents, `[batch, channels, side, side]`, in each picture's own order. `normals` gives the noise of a
    /// step's head, in the order it is used, for the cells that it is told of: (picture, cell).
    ///
    /// # Errors
    /// As [`Generator::draw`], or whatever `progress` returns.
    pub fn generate<T: Float>(
        &self,
        labels: &[u32],
        orders: &[Vec<usize>],
        sampling: &Sampling,
        mut normals: impl FnMut(&[(usize, usize)], usize) -> Result<Vec<f64>>,
        mut progress: impl FnMut(usize) -> Result<()>,
    ) -> Result<Tensor<T>> {
        let (batch, places) = (labels.len(), self.places());
        let guided = sampling.cfg != 1.0;
        let condition = self.condition::<T>(labels, guided)?;
        let mut tokens = Tensor::<T>::zeros(&self.device, &[batch, places, self.head.channels()])?;
        let mut settled = 0;
        for count in order::counts(places, self.steps, |r| (FRAC_PI_2 * r).cos()) {
            let known: Vec<Vec<_>> = orders.iter().map(|order| order[order.len() - settled..].to_vec()).collect();
            let known = if guided { [&known[..], &known[..]].concat() } else { known };
            let input = if guided { twice(&tokens)? } else { tokens.clone() };
            let z = self.decode(&self.encode(&input, &known, &condition)?, &known)?;
            // The official order is that of being hidden: the last cell is settled first.
            let mut next: Vec<Vec<_>> = orders
                .iter()
                .map(|order| order[order.len() - settled - count..order.len() - settled].to_vec())
                .collect();
            next.iter_mut().for_each(|cells| cells.sort_unstable());
            let asked = if guided { [&next[..], &next[..]].concat() } else { next.clone() };
            let z = select(&asked, &z)?;
            let z = z.reshape(&[z.shape()[0] * count, z.shape()[2]])?;
            let cells: Vec<_> = next
                .iter()
                .enumerate()
                .flat_map(|(picture, cells)| cells.iter().map(move |cell| (picture, *cell)))
                .collect();
            // One cell counts as hidden to the end.
            let hidden = (places - settled - count).max(1);
            let share = (places - hidden) as f64 / places as f64;
            let scale = guided.then(|| self.guidance.at(sampling.cfg.into(), share) as f32);
            let mut of_step = |rows: usize, channels: usize| {
                debug_assert_eq!(rows, cells.len());
                normals(&cells, channels)
            };
            let of_step: &mut Normals<'_> = &mut of_step;
            let drawn: Tensor<T> = self.head.sample(&z, scale, sampling.temperature, of_step)?;
            let drawn = drawn.reshape(&[batch, count, self.head.channels()])?;
            let placed = linear::matmul(&selection(&drawn, &next, places)?.permute(&[0, 2, 1])?.contiguous()?, &drawn)?;
            tokens = elementwise::add(&tokens, &placed)?;
            settled += count;
            progress(settled)?;
        }
        // Each token is a patch of the latents.
        let (p, channels) = (self.patch, self.head.channels() / (self.patch * self.patch));
        let grid = tokens.reshape(&[batch, self.side, self.side, channels, p, p])?.permute(&[0, 3, 1, 4, 2, 5])?;
        Ok(grid.contiguous()?.reshape(&[batch, channels, self.side * p, self.side * p])?)
    }
}

/// Matrices that pick places: `[rows, picked, places]`, on the device of `like`.
fn selection<T: Float>(like: &Tensor<T>, picked: &[Vec<usize>], places: usize) -> Result<Tensor<T>> {
    let count = picked.first().map_or(0, Vec::len);
    let mut values = vec![T::from_f32(0.0); picked.len() * count * places];
    for (row, place) in picked.iter().flatten().enumerate() {
        values[row * places + place] = T::from_f32(1.0);
    }
    Ok(Tensor::from_vec(like.device(), &[picked.len(), count, places], values)?)
}

/// The picked places of each row of `x` (`[rows, places, dim]`): `[rows, picked, dim]`. A product with ones and zeros
/// changes no value, and runs wherever products do.
fn select<T: Float>(picked: &[Vec<usize>], x: &Tensor<T>) -> Result<Tensor<T>> {
    if picked.iter().any(|places| Some(places.len()) != picked.first().map(Vec::len)) {
        return Err(Error::Request("mar: rows with different numbers of hidden cells".to_owned()));
    }
    Ok(linear::matmul(&selection(x, picked, x.shape()[1])?, x)?)
}

/// A generator that computes in `T`.
pub struct MarIn<T>(Mar, std::marker::PhantomData<T>);

impl<T> MarIn<T> {
    /// Fixes the element type.
    #[must_use]
    pub fn new(model: Mar) -> Self {
        Self(model, std::marker::PhantomData)
    }
}

impl<T: Float> Generator for MarIn<T> {
    fn system(&self) -> &'static str {
        "mar"
    }

    fn classes(&self) -> &[String] {
        &self.0.names
    }

    fn sampling(&self) -> Sampling {
        self.0.sampling
    }

    fn tokens_per_picture(&self) -> usize {
        self.0.places()
    }

    fn picture_size(&self) -> [usize; 2] {
        let side = self.0.side * self.0.patch * self.0.tokenizer.factor();
        [side, side]
    }

    fn draw(
        &self,
        labels: &[u32],
        first_picture: u64,
        sampling: &Sampling,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Drawn> {
        let places = self.0.places();
        let sampler = Sampler { sampling: *sampling, random: Random::Philox { first_picture }, places };
        let orders: Vec<_> = (0..labels.len()).map(|picture| sampler.order(Some(picture))).collect();
        let mut drawn = 0;
        let normals = |cells: &[(usize, usize)], channels: usize| {
            drawn += 1;
            Ok(normals_of_places(&sampler, cells, channels, drawn))
        };
        let all = labels.len() * places;
        let latents = self.0.generate::<T>(labels, &orders, sampling, normals, |settled| {
            go_on(progress(settled * labels.len(), all))
        })?;
        let pixels = self.0.tokenizer.decode(&latents)?;
        let plane = pixels.elements() / pixels.shape()[0].max(1);
        let pixels: Vec<f32> = pixels.to_vec()?.iter().map(|pixel| pixel.to_f32()).collect();
        Ok(Drawn { tokens: Vec::new(), planes: pixels.chunks(plane.max(1)).map(<[f32]>::to_vec).collect() })
    }
}
