//! VAR's tokenizer: residual codes over growing grids, one codebook for all scales.
//!
//! Source: Tian et al. 2024, arXiv:2404.02905, section 3.2 and algorithms 1 and 2; names from VAR's `vqvae.py` and
//! `quant.py`.

use smalti::conv::{self, Padding};
use smalti::resize::{self, Mode};
use smalti::{Float, Tensor, Weight, elementwise, embedding, vq};

use super::autoencoder::{Conv, Decoder, Encoder, Names};
use crate::weights::{Loader, Notes};
use crate::{Error, Result};

/// Encoder, multi-scale quantiser, decoder.
pub struct MultiScaleTokenizer {
    /// With the convolution after it; absent where a checkpoint can only draw.
    encoder: Option<(Encoder, Conv)>,
    quantiser: ScaleQuantiser,
    post_quant_conv: Conv,
    decoder: Decoder,
}

/// Residual quantization over growing grids.
pub struct ScaleQuantiser {
    /// `[codes, channels]`, shared by the scales.
    pub codebook: Weight,
    /// Whether the nearest code is that of largest cosine instead of smallest distance.
    pub cosine: bool,
    /// The smoothing convolutions: 3x3 kernels with their biases.
    pub phi: Vec<(Weight, Tensor<f32>)>,
    /// How much of a scale passes through its convolution; the rest passes as it is.
    pub phi_ratio: f32,
    /// Which convolution follows each scale.
    pub phi_of_scale: Vec<usize>,
    /// The side of each scale's grid; the last one is the latents' own.
    pub patch_nums: Vec<usize>,
}

impl MultiScaleTokenizer {
    /// Loads the official names under the loader's prefix, the encoder if it is there. `phi_ratio` is the official
    /// `quant_resi`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(
        loader: &Loader<'_>,
        notes: &Notes,
        patch_nums: &[usize],
        groups: usize,
        phi_ratio: f32,
    ) -> Result<Self> {
        let quantize = loader.at("quantize");
        let shape = [quantize.length("embedding.weight", 0), quantize.length("embedding.weight", 1)];
        let channels = shape[1];
        let list = quantize.at("quant_resi.qresi_ls");
        let phi = (0..quantize.count("quant_resi.qresi_ls")).map(|index| {
            let at = list.at(index);
            Ok((at.weight("weight", &[channels, channels, 3, 3])?, at.vector("bias", &[channels])?))
        });
        let phi = phi.collect::<Result<Vec<_>>>()?;
        if phi.is_empty() {
            notes.add("no \"quantize.quant_resi.qresi_ls.0\": only partially shared phi is known here".to_owned());
        }
        let phi_of_scale =
            (0..patch_nums.len()).map(|scale| nearest_tick(phi.len(), scale, patch_nums.len())).collect();
        let codebook = quantize.weight("embedding.weight", &shape)?;
        let patch_nums = patch_nums.to_vec();
        let encoder = if loader.has("encoder") {
            let encoder = Encoder::load(&loader.at("encoder"), Names::Var, groups)?;
            let quant_conv = Conv::load_from(loader, "quant_conv", encoder.channels(), Some(channels), 3)?;
            Some((encoder, quant_conv))
        } else {
            None
        };
        let post_quant_conv = Conv::load_from(loader, "post_quant_conv", channels, None, 3)?;
        Ok(Self {
            encoder,
            quantiser: ScaleQuantiser { codebook, cosine: false, phi, phi_ratio, phi_of_scale, patch_nums },
            decoder: Decoder::load(&loader.at("decoder"), Names::Var, post_quant_conv.channels(), groups)?,
            post_quant_conv,
        })
    }

    /// The quantiser between encoder and decoder.
    #[must_use]
    pub fn quantiser(&self) -> &ScaleQuantiser {
        &self.quantiser
    }

    /// Pixels per token of the last scale, along one side.
    #[must_use]
    pub fn factor(&self) -> usize {
        1 << self.decoder.doublings()
    }

    /// Pixels `[batch, 3, height, width]` in [-1, 1] to latents `[batch, channels, side, side]`.
    ///
    /// # Errors
    /// [`Error::Request`] if the checkpoint has no encoder; [`Error::Op`] if shapes do not fit or the device fails.
    pub fn latents<T: Float>(&self, pixels: &Tensor<T>) -> Result<Tensor<T>> {
        let missing = || Error::Request("the checkpoint holds no encoder".to_owned());
        let (encoder, quant_conv) = self.encoder.as_ref().ok_or_else(missing)?;
        quant_conv.run(&encoder.run(pixels)?)
    }

    /// Latents to pixels, clamped to [-1, 1] by whoever shows them.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn decode<T: Float>(&self, latents: &Tensor<T>) -> Result<Tensor<T>> {
        self.decoder.run(&self.post_quant_conv.run(latents)?)
    }
}

impl ScaleQuantiser {
    /// How many codes there are.
    #[must_use]
    pub fn codes(&self) -> usize {
        self.codebook.shape().first().copied().unwrap_or(0)
    }

    /// Channels of a code.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.codebook.shape().get(1).copied().unwrap_or(0)
    }

    /// Tokens along one side of the last scale.
    fn full(&self) -> usize {
        self.patch_nums.last().copied().unwrap_or(1)
    }

    /// The codes of latents: per scale `[batch, side * side]`, each of what the scales before left over.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn tokens<T: Float>(&self, latents: &Tensor<T>) -> Result<Vec<Tensor<u32>>> {
        let &[batch, channels, ..] = latents.shape() else {
            return Err(Error::Request(format!("latents of shape {:?}", latents.shape())));
        };
        let mut rest = latents.clone();
        let mut tokens = Vec::with_capacity(self.patch_nums.len());
        for (scale, &side) in self.patch_nums.iter().enumerate() {
            let seen =
                if side == self.full() { rest.clone() } else { resize::resize(&rest, [side, side], Mode::Area)? };
            let places = seen.permute(&[0, 2, 3, 1])?.reshape(&[batch, side * side, channels])?;
            let codes = match self.cosine {
                true => vq::nearest_cosine(&places, &self.codebook)?,
                false => vq::nearest_l2(&places, &self.codebook)?,
            };
            rest = elementwise::scale_add(&rest, 1.0, &self.contribution(&codes, scale)?, -1.0)?;
            tokens.push(codes);
        }
        Ok(tokens)
    }

    /// What the tokens `[batch, side * side]` of one scale add to the latents.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn contribution<T: Float>(&self, tokens: &Tensor<u32>, scale: usize) -> Result<Tensor<T>> {
        let side = self.patch_nums[scale];
        let full = self.full();
        let codes: Tensor<T> = embedding::embedding(&self.codebook, tokens)?;
        let grid = codes.reshape(&[codes.shape()[0], side, side, self.channels()])?.permute(&[0, 3, 1, 2])?;
        let mut h = grid.contiguous()?;
        if side != full {
            h = resize::resize(&h, [full, full], Mode::Bicubic { align_corners: false })?;
        }
        let (weight, bias) = &self.phi[self.phi_of_scale[scale]];
        let smoothed = conv::conv2d(&h, weight, Some(bias), 1, Padding::same(3))?;
        Ok(elementwise::scale_add(&h, 1.0 - self.phi_ratio, &smoothed, self.phi_ratio)?)
    }

    /// Latents seen at the grid of the next scale: `[batch, side * side, channels]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn next_input<T: Float>(&self, latents: &Tensor<T>, scale: usize) -> Result<Tensor<T>> {
        let side = self.patch_nums[scale + 1];
        let seen = resize::resize(latents, [side, side], Mode::Area)?;
        Ok(seen.permute(&[0, 2, 3, 1])?.reshape(&[latents.shape()[0], side * side, self.channels()])?)
    }

    /// The latents that tokens of all scales add up to.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn latents_of<T: Float>(&self, tokens: &[Tensor<u32>]) -> Result<Tensor<T>> {
        let mut sum: Option<Tensor<T>> = None;
        for (scale, tokens) in tokens.iter().enumerate() {
            let part = self.contribution(tokens, scale)?;
            sum = Some(match sum {
                Some(sum) => elementwise::add(&sum, &part)?,
                None => part,
            });
        }
        sum.ok_or_else(|| Error::Request("var: no scale to decode".to_owned()))
    }
}

/// Of `count` convolutions at ticks between 0 and 1, the one nearest to the scale's relative position; among equals
/// the first. The ticks are computed as numpy's `linspace` does, since its rounding decides a scale between two.
fn nearest_tick(count: usize, scale: usize, scales: usize) -> usize {
    let edge = if count == 4 { 1.0 / 3.0 / 4.0 } else { 1.0 / 2.0 / count as f64 };
    let at = scale as f64 / (scales - 1).max(1) as f64;
    let step = ((1.0 - edge) - edge) / (count as f64 - 1.0).max(1.0);
    let distance = |index: usize| (index as f64 * step + edge - at).abs();
    (0..count).fold(0, |best, index| if distance(index) < distance(best) { index } else { best })
}
