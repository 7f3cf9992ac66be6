//! The continuous autoencoder of latent diffusion: pixels to Gaussian latents and back.
//!
//! Source: Rombach et al. 2021, arXiv:2112.10752, section 3.1; names from MAR's `vae.py`.

use smalti::{Float, Tensor, elementwise};

use super::autoencoder::{Conv, Decoder, Encoder, Names};
use crate::Result;
use crate::weights::Loader;

/// Encoder and decoder with the convolutions between them.
pub struct KlAutoencoder {
    encoder: Encoder,
    quant_conv: Conv,
    post_quant_conv: Conv,
    decoder: Decoder,
    /// What latents were multiplied with before a generator learned them.
    scale: f32,
}

impl KlAutoencoder {
    /// Loads the official names under the loader's prefix.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, groups: usize, scale: f32) -> Result<Self> {
        let encoder = Encoder::load(&loader.at("encoder"), Names::Var, groups)?;
        let quant_conv = Conv::load_from(loader, "quant_conv", encoder.channels(), None, 1)?;
        let post_quant_conv = Conv::load_from(loader, "post_quant_conv", quant_conv.channels() / 2, None, 1)?;
        Ok(Self {
            decoder: Decoder::load(&loader.at("decoder"), Names::Var, post_quant_conv.channels(), groups)?,
            encoder,
            quant_conv,
            post_quant_conv,
            scale,
        })
    }

    /// Pixels per latent, along one side.
    #[must_use]
    pub fn factor(&self) -> usize {
        1 << self.decoder.doublings()
    }

    /// The means of pixels' latents, `[batch, channels, rows, columns]`, scaled.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn latents<T: Float>(&self, pixels: &Tensor<T>) -> Result<Tensor<T>> {
        let moments = self.quant_conv.run(&self.encoder.run(pixels)?)?;
        let means = moments.narrow(1, 0, moments.shape()[1] / 2)?.contiguous()?;
        Ok(elementwise::scale_add(&means, self.scale, &means, 0.0)?)
    }

    /// Scaled latents to pixels, in [-1, 1] but for overshoot.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn decode<T: Float>(&self, latents: &Tensor<T>) -> Result<Tensor<T>> {
        let latents = elementwise::scale_add(latents, 1.0 / self.scale, latents, 0.0)?;
        self.decoder.run(&self.post_quant_conv.run(&latents)?)
    }
}
