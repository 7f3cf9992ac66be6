//! VAR's tokenizer: residual codes over growing grids, one codebook for all scales.
//!
//! Source: Tian et al. 2024, arXiv:2404.02905, section 3.2 and algorithms 1 and 2; names from VAR's `vqvae.py` and
//! `quant.py`.

use smalti::vq::Scales;
use smalti::{Device, Float, Tensor};

use super::autoencoder::{Conv, Decoder, Encoder, Names};
use crate::decode::concatenate;
use crate::weights::{Config, Loader, Notes};
use crate::{Error, Given, Result};

/// Encoder, multi-scale quantiser, decoder.
pub struct MultiScaleTokenizer {
    /// With the convolution after it; absent where a checkpoint can only draw.
    encoder: Option<(Encoder, Conv)>,
    quantiser: Scales,
    /// With the convolution before it; absent where a checkpoint holds the codes alone.
    decoder: Option<(Conv, Decoder)>,
}

impl MultiScaleTokenizer {
    /// Loads the official names under the loader's prefix, encoder and decoder if they are there. The weights'
    /// notes may say `norm_groups` (32) and `quant_resi` (0.5), the share of phi's convolution.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, notes: &Notes, patch_nums: &[usize], config: &Config) -> Result<Self> {
        let groups = config.count("norm_groups").unwrap_or(32);
        let quantize = loader.at("quantize");
        let shape = quantize.lengths::<2>("embedding.weight");
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
        let decoder = if loader.has("decoder") {
            let post_quant_conv = Conv::load_from(loader, "post_quant_conv", channels, None, 3)?;
            let decoder = Decoder::load(&loader.at("decoder"), Names::Var, post_quant_conv.channels(), groups)?;
            Some((post_quant_conv, decoder))
        } else {
            None
        };
        Ok(Self {
            encoder,
            quantiser: Scales {
                codebook,
                cosine: false,
                phi,
                phi_ratio: config.number("quant_resi").unwrap_or(0.5),
                phi_of_scale,
                patch_nums,
            },
            decoder,
        })
    }

    /// The quantiser between encoder and decoder.
    #[must_use]
    pub fn quantiser(&self) -> &Scales {
        &self.quantiser
    }

    /// Whether the checkpoint holds the encoder.
    #[must_use]
    pub fn has_encoder(&self) -> bool {
        self.encoder.is_some()
    }

    /// Whether the checkpoint holds the decoder.
    #[must_use]
    pub fn has_decoder(&self) -> bool {
        self.decoder.is_some()
    }

    /// Pixels per token of the last scale, along one side; 1 without a decoder.
    #[must_use]
    pub fn factor(&self) -> usize {
        self.decoder.as_ref().map_or(1, |(_, decoder)| 1 << decoder.doublings())
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

    /// The tokens that stay of a picture of which a part is drawn anew, an entry for each place of all scales.
    ///
    /// # Errors
    /// [`Error::Request`] if the checkpoint has no encoder or the picture has another size; [`Error::Op`] if the device fails.
    pub(crate) fn kept<T: Float>(&self, given: Given<'_>, device: &Device) -> Result<Vec<Option<u32>>> {
        let sides = &self.quantiser.patch_nums;
        let size = [sides.last().unwrap_or(&1) * self.factor(); 2];
        let scales = self.quantiser.quantise(&self.latents(&given.pixels::<T>(device, size)?)?)?;
        let tokens = concatenate(&scales.iter().collect::<Vec<_>>(), 1)?.to_vec()?;
        Ok(given.kept_of_scales(size, sides, tokens))
    }

    /// Latents to pixels, clamped to [-1, 1] by whoever shows them.
    ///
    /// # Errors
    /// [`Error::Request`] if the checkpoint has no decoder; [`Error::Op`] if shapes do not fit or the device fails.
    pub fn decode<T: Float>(&self, latents: &Tensor<T>) -> Result<Tensor<T>> {
        let missing = || Error::Request("the checkpoint holds no decoder of latents (no vae.decoder)".to_owned());
        let (post_quant_conv, decoder) = self.decoder.as_ref().ok_or_else(missing)?;
        decoder.run(&post_quant_conv.run(latents)?)
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
