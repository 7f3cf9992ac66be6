//! LlamaGen's tokenizer: one code per place, latents and codes compared on the unit sphere.
//!
//! Source: Sun et al. 2024, arXiv:2406.06525, section 2.1; names from LlamaGen's `vq_model.py`.

use smalti::{Float, Tensor, Weight, copy, embedding, vq};

use super::autoencoder::{Conv, Decoder, Encoder, Names};
use crate::weights::Loader;
use crate::{Error, Result};

/// Encoder, codebook, decoder.
pub struct VqTokenizer {
    encoder: Encoder,
    quant_conv: Conv,
    codebook: Weight,
    post_quant_conv: Conv,
    decoder: Decoder,
}

impl VqTokenizer {
    /// Loads the official names under the loader's prefix. `l2_norm`: codes lie on the unit sphere.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, groups: usize, l2_norm: bool) -> Result<Self> {
        let quantize = loader.at("quantize.embedding");
        let shape = quantize.lengths::<2>("weight");
        let mut codebook = quantize.weight("weight", &shape)?;
        if l2_norm {
            codebook = unit_rows(&codebook)?;
        }
        let encoder = Encoder::load(&loader.at("encoder"), Names::LlamaGen, groups)?;
        let post_quant_conv = Conv::load_from(loader, "post_quant_conv", shape[1], None, 1)?;
        Ok(Self {
            quant_conv: Conv::load_from(loader, "quant_conv", encoder.channels(), Some(shape[1]), 1)?,
            encoder,
            codebook,
            decoder: Decoder::load(&loader.at("decoder"), Names::LlamaGen, post_quant_conv.channels(), groups)?,
            post_quant_conv,
        })
    }

    /// The codes, `[codes, channels]`.
    #[must_use]
    pub fn codebook(&self) -> &Weight {
        &self.codebook
    }

    /// How many codes there are.
    #[must_use]
    pub fn codes(&self) -> usize {
        self.codebook.shape().first().copied().unwrap_or(0)
    }

    /// Pixels per token, along one side.
    #[must_use]
    pub fn factor(&self) -> usize {
        1 << self.decoder.doublings()
    }

    /// Pixels `[batch, 3, height, width]` in [-1, 1] to latents `[batch, code_dim, rows, columns]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn latents<T: Float>(&self, pixels: &Tensor<T>) -> Result<Tensor<T>> {
        self.quant_conv.run(&self.features(pixels)?)
    }

    /// What the encoder makes of pixels, before the convolution to the codes' channels.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn features<T: Float>(&self, pixels: &Tensor<T>) -> Result<Tensor<T>> {
        self.encoder.run(pixels)
    }

    /// The nearest codes of latents, `[batch, rows * columns]` in raster order.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn tokens<T: Float>(&self, latents: &Tensor<T>) -> Result<Tensor<u32>> {
        let &[batch, dim, rows, columns] = latents.shape() else {
            return Err(Error::Request(format!("latents of shape {:?}", latents.shape())));
        };
        let places = latents.permute(&[0, 2, 3, 1])?.reshape(&[batch, rows * columns, dim])?;
        Ok(vq::nearest_cosine(&places, &self.codebook)?)
    }

    /// Tokens `[batch, rows * columns]` to pixels `[batch, 3, height, width]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn decode<T: Float>(&self, tokens: &Tensor<u32>, [rows, columns]: [usize; 2]) -> Result<Tensor<T>> {
        let codes: Tensor<T> = embedding::embedding(&self.codebook, tokens)?;
        let &[batch, _, dim] = codes.shape() else {
            return Err(Error::Request(format!("tokens of shape {:?}", tokens.shape())));
        };
        let latents = codes.reshape(&[batch, rows, columns, dim])?.permute(&[0, 3, 1, 2])?.contiguous()?;
        self.decoder.run(&self.post_quant_conv.run(&latents)?)
    }
}

/// The rows brought to length 1, in f32, as the official code does each time it looks a code up.
pub(crate) fn unit_rows(codebook: &Weight) -> Result<Weight> {
    let table: Tensor<f32> = match codebook {
        Weight::F32(table) => table.clone(),
        Weight::F16(table) => copy::convert(table)?,
        Weight::Bf16(table) => copy::convert(table)?,
        _ => return Err(Error::Weights("a codebook is stored in a float type".to_owned())),
    };
    let dim = table.shape().get(1).copied().unwrap_or(1).max(1);
    let mut values = table.to_vec()?;
    for row in values.chunks_mut(dim) {
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
        row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    Ok(Tensor::from_vec(table.device(), table.shape(), values)?.into())
}
