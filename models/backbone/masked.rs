//! MAR's transformer: an encoder over what is settled, a decoder over all cells, class vectors before both.
//!
//! Source: Li et al. 2024, arXiv:2406.11838, section 3.3; He et al. 2021, arXiv:2111.06377, for the two stacks; names from
//! MAR's `mar.py`.

use std::f64::consts::FRAC_PI_2;

use smalti::{Device, Float, Tensor, Weight, copy, elementwise, embedding, linear};

use super::vit::{LayerNorm, Linear, Vit};
use crate::decode::{concatenate, twice};
use crate::order;
use crate::weights::{Config, Loader};
use crate::{Error, Result};

/// The two stacks with their tables.
pub struct MaskedTransformer {
    device: Device,
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
    /// Values of a token.
    token: usize,
}

/// What a head is asked to draw in one step.
pub struct Asked<'a, T: smalti::Element> {
    /// The states of the cells, `[cells, dim]`; under guidance those without a class below them.
    pub states: &'a Tensor<T>,
    /// Picture of the batch, cell.
    pub cells: &'a [(usize, usize)],
    /// The share of cells that are settled after this step; one counts as open to the end.
    pub share: f64,
}

impl MaskedTransformer {
    /// Loads official names under the loader's prefix. Of the configuration it takes `heads` and `norm_eps`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(mar: &Loader<'_>, config: &Config) -> Result<Self> {
        let places = mar.length("diffusion_pos_embed_learned", 1);
        let [dim, token] = mar.lengths("z_proj.weight");
        let width = mar.length("decoder_embed.weight", 0);
        let buffer = mar.length("encoder_pos_embed_learned", 1).saturating_sub(places);
        let heads = config.count("heads").unwrap_or(if dim == 768 { 12 } else { 16 });
        let eps = config.number("norm_eps").unwrap_or(1e-6);
        let classes = mar.length("class_emb.weight", 0);
        Ok(Self {
            device: mar.device().clone(),
            classes: mar.weight("class_emb.weight", &[classes, dim])?,
            none: mar.vector("fake_latent", &[1, dim])?,
            buffer,
            input: Linear::load(mar, "z_proj", [dim, token])?,
            input_norm: LayerNorm::load(mar, "z_proj_ln", dim, 1e-6)?,
            encoder_positions: mar.vector("encoder_pos_embed_learned", &[1, buffer + places, dim])?,
            encoder: Vit::load(mar, "encoder_blocks", dim, heads, eps)?,
            encoder_norm: LayerNorm::load(mar, "encoder_norm", dim, eps)?,
            middle: Linear::load(mar, "decoder_embed", [width, dim])?,
            mask_token: mar.vector("mask_token", &[1, 1, width])?,
            decoder_positions: mar.vector("decoder_pos_embed_learned", &[1, buffer + places, width])?,
            decoder: Vit::load(mar, "decoder_blocks", width, heads, eps)?,
            decoder_norm: LayerNorm::load(mar, "decoder_norm", width, eps)?,
            head_positions: mar.vector("diffusion_pos_embed_learned", &[1, places, width])?,
            token,
        })
    }

    /// Cells of a picture.
    #[must_use]
    pub fn places(&self) -> usize {
        self.head_positions.shape()[1]
    }

    /// In how many steps a picture is drawn, as the weights' notes have it: `num_iter`, or else 64.
    #[must_use]
    pub fn steps(&self, config: &Config) -> usize {
        config.count("num_iter").unwrap_or(64).clamp(1, self.places().max(1))
    }

    /// How many classes there are.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes.shape()[0]
    }

    /// Values of a token.
    #[must_use]
    pub fn values(&self) -> usize {
        self.token
    }

    /// Channels of the decoder's states.
    #[must_use]
    pub fn width(&self) -> usize {
        self.head_positions.shape()[2]
    }

    /// The rows of classes, then, if `guided`, as many of none: `[rows, 1, dim]`.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such class; [`Error::Op`] if the device fails.
    pub fn condition<T: Float>(&self, labels: &[u32], guided: bool) -> Result<Tensor<T>> {
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

    /// Draws tokens `[batch, places, values]` in each picture's own order, more and more per step, by a cosine. `head`
    /// draws the values `[cells, values]` of a step; `seen` is told the tokens after it, its cells, and how many of each
    /// picture are settled. Given tokens (zeros but for `count` cells of each picture, the last of its order) stay.
    ///
    /// # Errors
    /// [`Error::Request`] if a class is out of range; whatever `head` and `seen` return; [`Error::Op`] if the device
    /// fails.
    pub fn generate<T: Float>(
        &self,
        labels: &[u32],
        orders: &[Vec<usize>],
        given: Option<(Tensor<T>, usize)>,
        steps: usize,
        guided: bool,
        mut head: impl FnMut(Asked<'_, T>) -> Result<Tensor<T>>,
        mut seen: impl FnMut(&Tensor<T>, &[(usize, usize)], usize) -> Result<()>,
    ) -> Result<Tensor<T>> {
        let (batch, places) = (labels.len(), self.places());
        let condition = self.condition::<T>(labels, guided)?;
        let (mut tokens, mut settled) = match given {
            Some(given) => given,
            None => (Tensor::zeros(&self.device, &[batch, places, self.token])?, 0),
        };
        let open = places - settled;
        for count in order::counts(open, steps.min(open), |r| (FRAC_PI_2 * r).cos()) {
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
            let drawn = head(Asked { states: &z, cells: &cells, share })?.reshape(&[batch, count, self.token])?;
            let placed = linear::matmul(&selection(&drawn, &next, places)?.permute(&[0, 2, 1])?.contiguous()?, &drawn)?;
            tokens = elementwise::add(&tokens, &placed)?;
            settled += count;
            seen(&tokens, &cells, settled)?;
        }
        Ok(tokens)
    }
}

/// Tokens `[batch, side side, channels patch patch]` as latents `[batch, channels, side patch, side patch]`.
///
/// # Errors
/// If shapes do not fit or the device fails.
pub fn unpatched<T: Float>(tokens: &Tensor<T>, patch: usize) -> Result<Tensor<T>> {
    let &[batch, places, values] = tokens.shape() else {
        return Err(Error::Request(format!("tokens of shape {:?}, expected [batch, places, values]", tokens.shape())));
    };
    let (side, channels) = (places.isqrt(), values / (patch * patch));
    let grid = tokens.contiguous()?.reshape(&[batch, side, side, channels, patch, patch])?;
    let grid = grid.permute(&[0, 3, 1, 4, 2, 5])?.contiguous()?;
    Ok(grid.reshape(&[batch, channels, side * patch, side * patch])?)
}

/// Latents `[batch, channels, side patch, side patch]` as tokens `[batch, side side, channels patch patch]`.
///
/// # Errors
/// If shapes do not fit or the device fails.
pub fn patched<T: Float>(latents: &Tensor<T>, patch: usize) -> Result<Tensor<T>> {
    let &[batch, channels, height, width] = latents.shape() else {
        return Err(Error::Request(format!("latents of shape {:?}", latents.shape())));
    };
    let (rows, columns) = (height / patch, width / patch);
    let grid = latents.contiguous()?.reshape(&[batch, channels, rows, patch, columns, patch])?;
    let grid = grid.permute(&[0, 2, 4, 1, 3, 5])?.contiguous()?;
    Ok(grid.reshape(&[batch, rows * columns, channels * patch * patch])?)
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
        return Err(Error::Request("rows with different numbers of hidden cells".to_owned()));
    }
    Ok(linear::matmul(&selection(x, picked, x.shape()[1])?, x)?)
}
