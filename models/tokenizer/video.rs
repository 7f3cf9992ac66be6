//! LARP's tokenizer: learned queries gather a whole video, and patches are asked back from their codes.
//!
//! Encoder and decoder are transformers over two sequences that see each other. A code belongs to no place of the
//! video, so the order of the codes is free, and a generator's prior shapes it in training.
//!
//! Source: Wang et al. 2024, arXiv:2410.21264, sections 3.1 and 3.2; names from LARP's `larp_tokenizer.py`.

use smalti::attention::l2_normalise;
use smalti::sample::{self, Draws, Filter};
use smalti::{Float, Tensor, Weight, copy, embedding, linear, vq};

use super::vq::unit_rows;
use crate::backbone::vit::{LayerNorm, Linear, Names, PatchEmbedding, Vit};
use crate::decode::concatenate;
use crate::weights::{Config, Loader};
use crate::{Error, Result};

/// Encoder, codebook, decoder.
pub struct VideoTokenizer {
    patches: PatchEmbedding,
    /// Patches along time, height and width.
    grid: [usize; 3],
    /// `[1, patches, dim]`, fixed.
    patch_positions: Tensor<f32>,
    /// `[1, queries, dim]`.
    queries: Tensor<f32>,
    encoder: Vit,
    to_codes: Linear,
    /// Its rows have length 1.
    codebook: Weight,
    from_codes: Linear,
    /// `[1, queries, dim]`, fixed.
    latent_positions: Tensor<f32>,
    /// `[1, patches, dim]`, fixed but for what they have in common.
    patch_queries: Tensor<f32>,
    decoder: Vit,
    last_norm: LayerNorm,
    last: Linear,
    temperature: f32,
}

impl VideoTokenizer {
    /// Loads the official names under the loader's prefix.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, config: &Config) -> Result<Self> {
        let device = loader.device();
        let patches = PatchEmbedding::load_of_frames(loader, "x_embedder.proj")?;
        let [height, width] = patches.patch();
        let (size, frames) = (config.count("input_size").unwrap_or(128), config.count("frame_num").unwrap_or(16));
        let along = |pixels: usize, patch: usize| pixels.checked_div(patch).unwrap_or(0);
        let grid = [along(frames, patches.frames()), along(size, height), along(size, width)];
        let [queries, dim] = loader.lengths("encoder_latent_query_embed");
        let width_of_decoder = loader.length("final_layer.linear.weight", 1);
        let pixels = 3 * patches.frames() * height * width;
        let code = loader.lengths::<2>("bottleneck.regularizer.embedding.weight");
        // Every official size has heads of 64.
        let heads = |dim: usize| config.count("heads").unwrap_or(dim / 64).max(1);
        let eps = config.number("block_norm_eps").unwrap_or(1e-5);
        let stack = |name: &str, dim: usize| {
            Vit::load_as(&loader.at(name), "blocks", Names::TimmUnbiased, dim, heads(dim), eps)
        };
        let fixed = |values: Vec<f64>, rows: usize, dim: usize| {
            Tensor::from_vec(device, &[1, rows, dim], values.into_iter().map(|value| value as f32).collect())
        };
        let mut patch_queries = patch_waves(width_of_decoder, grid);
        let shared = "decoder_patch_query_token_type_embed";
        if loader.shape(shared).is_some() {
            let shared = loader.vector(shared, &[1, 1, width_of_decoder])?.to_vec()?;
            let shared = shared.iter().copied().cycle();
            patch_queries.iter_mut().zip(shared).for_each(|(query, shared)| *query += f64::from(shared));
        }
        let latent_waves = (0..queries).flat_map(|query| waves(width_of_decoder, query)).collect();
        let places = grid.iter().product();
        Ok(Self {
            patch_positions: fixed(patch_waves(dim, grid), places, dim)?,
            queries: loader.vector("encoder_latent_query_embed", &[queries, dim])?.reshape(&[1, queries, dim])?,
            encoder: stack("encoder", dim)?,
            to_codes: Linear::load(loader, "bottleneck.in_linear", [code[1], dim])?,
            codebook: unit_rows(&loader.weight("bottleneck.regularizer.embedding.weight", &code)?)?,
            from_codes: Linear::load(loader, "bottleneck.out_linear", [width_of_decoder, code[1]])?,
            latent_positions: fixed(latent_waves, queries, width_of_decoder)?,
            patch_queries: fixed(patch_queries, places, width_of_decoder)?,
            decoder: stack("decoder", width_of_decoder)?,
            last_norm: LayerNorm::load(loader, "final_layer.norm_final", width_of_decoder, 1e-6)?,
            last: Linear::load(loader, "final_layer.linear", [pixels, width_of_decoder])?,
            temperature: config.number("stochastic_temperature").unwrap_or(0.03),
            patches,
            grid,
        })
    }

    /// Fixed positions of the encoder's patches, of the decoder's latents, and of its queries, in which their common
    /// learned part is included: each `[1, places, dim]`.
    #[must_use]
    pub fn positions(&self) -> [&Tensor<f32>; 3] {
        [&self.patch_positions, &self.latent_positions, &self.patch_queries]
    }

    /// Frames, height and width of a video.
    #[must_use]
    pub fn size(&self) -> [usize; 3] {
        let ([height, width], [time, rows, columns]) = (self.patches.patch(), self.grid);
        [time * self.patches.frames(), rows * height, columns * width]
    }

    /// What the queries gather of videos `[batch, 3, frames, height, width]` in [-1, 1], `[batch, queries, code_dim]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn projected<T: Float>(&self, videos: &Tensor<T>) -> Result<Tensor<T>> {
        let patches = self.patches.run(videos)?;
        let patches = smalti::elementwise::add(&patches, &copy::convert(&self.patch_positions)?)?;
        let queries = repeated(&self.queries, patches.shape()[0])?;
        self.to_codes.run(&second(&self.encoder, &patches, &queries)?)
    }

    /// The nearest codes of what was gathered, `[batch, queries]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn tokens<T: Float>(&self, projected: &Tensor<T>) -> Result<Tensor<u32>> {
        Ok(vq::nearest_cosine(projected, &self.codebook)?)
    }

    /// Codes drawn by their cosine over a temperature, as in training (section 3.2, stochastic quantization), with a
    /// uniform number for each: `[batch, queries]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn drawn<T: Float>(&self, projected: &Tensor<T>, uniforms: &[f32]) -> Result<Tensor<u32>> {
        let &[batch, queries, dim] = projected.shape() else {
            return Err(Error::Request(format!("a projection of shape {:?}", projected.shape())));
        };
        let unit = l2_normalise(&projected.reshape(&[batch, 1, queries, dim])?)?.reshape(&[batch * queries, dim])?;
        let cosines = linear::linear(&unit, &self.codebook, None)?;
        let filter = Filter { temperature: self.temperature, ..Filter::default() };
        let tokens = sample::sample(&cosines, &filter, &Draws::Uniform(uniforms.to_vec()))?;
        Ok(tokens.reshape(&[batch, queries])?)
    }

    /// Latents of codes, `[batch, queries, dim]`.
    ///
    /// # Errors
    /// If a token is out of range or the device fails.
    pub fn latents<T: Float>(&self, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        self.from_codes.run(&embedding::embedding(&self.codebook, tokens)?)
    }

    /// Latents to videos `[batch, 3, frames, height, width]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn decode<T: Float>(&self, latents: &Tensor<T>) -> Result<Tensor<T>> {
        let batch = latents.shape()[0];
        let latents = smalti::elementwise::add(latents, &copy::convert(&self.latent_positions)?)?;
        let x = second(&self.decoder, &latents, &repeated(&self.patch_queries, batch)?)?;
        let x = self.last.run(&self.last_norm.run(&x)?)?;
        let ([time, rows, columns], [height, width]) = (self.grid, self.patches.patch());
        let frames = self.patches.frames();
        let x = x.reshape(&[batch, time, rows, columns, frames, height, width, 3])?;
        let x = x.permute(&[0, 7, 1, 4, 2, 5, 3, 6])?.contiguous()?;
        Ok(x.reshape(&[batch, 3, time * frames, rows * height, columns * width])?)
    }
}

/// Runs two sequences as one and gives the second.
fn second<T: Float>(stack: &Vit, first: &Tensor<T>, second: &Tensor<T>) -> Result<Tensor<T>> {
    let all = stack.run(&concatenate(&[first, second], 1)?, None, None, &stack.options())?;
    Ok(all.narrow(1, first.shape()[1], second.shape()[1])?.contiguous()?)
}

/// `[1, places, dim]` for each of `batch` entries.
fn repeated<T: Float>(table: &Tensor<f32>, batch: usize) -> Result<Tensor<T>> {
    let shape = [batch, table.shape()[1], table.shape()[2]];
    Ok(copy::convert(&table.broadcast(&shape)?.contiguous()?)?)
}

/// Sines, then cosines, of a position at geometrically spaced frequencies.
fn waves(dim: usize, position: usize) -> Vec<f64> {
    let angle = |index: usize| position as f64 * 10_000f64.powf(-(index as f64) / (dim / 2) as f64);
    let angles = (0..dim / 2).map(angle);
    angles.clone().map(f64::sin).chain(angles.map(f64::cos)).collect()
}

/// Column in the first half of the channels, row in the second; time is added to all of them.
fn patch_waves(dim: usize, [time, rows, columns]: [usize; 3]) -> Vec<f64> {
    let places =
        (0..time * rows * columns).map(|place| (place / (rows * columns), place / columns % rows, place % columns));
    let of_place = |(time, row, column): (usize, usize, usize)| {
        let within = waves(dim / 2, column).into_iter().chain(waves(dim / 2, row));
        within.zip(waves(dim, time)).map(|(within, time)| within + time).collect::<Vec<_>>()
    };
    places.flat_map(of_place).collect()
}
