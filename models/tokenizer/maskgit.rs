//! MaskGIT's VQGAN without attention, plain L2 codes: RAR's tokenizer.
//!
//! Source: Chang et al. 2022, arXiv:2202.04200, section 3.1; names from 1d-tokenizer's `maskgit_vqgan.py`.

use smalti::resize::{self, Mode};
use smalti::{Float, Tensor, Weight, elementwise, embedding, vq};

use super::autoencoder::{Conv, Norm};
use crate::weights::Loader;
use crate::{Error, Result};

/// Every norm here has as many groups.
const GROUPS: usize = 32;

struct ResBlock {
    norms: [Norm; 2],
    convs: [Conv; 2],
    shortcut: Option<Conv>,
}

struct Level {
    blocks: Vec<ResBlock>,
    up: Option<Conv>,
}

/// Either half: a convolution, the middle blocks, levels, a norm and a convolution.
struct Half {
    conv_in: Conv,
    levels: Vec<Level>,
    middle: Vec<ResBlock>,
    norm_out: Norm,
    conv_out: Conv,
}

/// Encoder, codebook, decoder.
pub struct MaskGitVqGan {
    encoder: Half,
    codebook: Weight,
    decoder: Half,
}

impl ResBlock {
    fn load(loader: &Loader<'_>) -> Result<Self> {
        let conv = |name: &str| Conv::load_without_bias(loader, name);
        Ok(Self {
            norms: [Norm::load(loader, "norm1", GROUPS)?, Norm::load(loader, "norm2", GROUPS)?],
            convs: [conv("conv1")?, conv("conv2")?],
            // Where the number of channels changes.
            shortcut: match loader.shape("conv1.weight") {
                Some([outputs, inputs, ..]) if outputs == inputs => None,
                _ => Some(conv("nin_shortcut")?),
            },
        })
    }

    fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let h = self.convs[0].run(&self.norms[0].run_silu(x)?)?;
        let h = self.convs[1].run(&self.norms[1].run_silu(&h)?)?;
        // The official shortcut takes the block's output, not its input.
        let residual = match &self.shortcut {
            Some(shortcut) => shortcut.run(&h)?,
            None => x.clone(),
        };
        Ok(elementwise::add(&h, &residual)?)
    }
}

fn blocks(loader: &Loader<'_>, name: &str) -> Result<Vec<ResBlock>> {
    (0..loader.count(name)).map(|index| ResBlock::load(&loader.at(name).at(index))).collect()
}

impl Half {
    fn load(loader: &Loader<'_>, levels: &str) -> Result<Self> {
        let encoder = levels == "down";
        let level = |index: usize| {
            let at = loader.at(levels).at(index);
            let up = if at.has("upsample_conv") { Some(Conv::load(&at, "upsample_conv")?) } else { None };
            Ok(Level { blocks: blocks(&at, "block")?, up })
        };
        Ok(Self {
            conv_in: if encoder { Conv::load_without_bias(loader, "conv_in")? } else { Conv::load(loader, "conv_in")? },
            levels: (0..loader.count(levels)).map(level).collect::<Result<_>>()?,
            middle: blocks(loader, "mid")?,
            norm_out: Norm::load(loader, "norm_out", GROUPS)?,
            conv_out: Conv::load(loader, "conv_out")?,
        })
    }
}

fn through<T: Float>(blocks: &[ResBlock], x: Tensor<T>) -> Result<Tensor<T>> {
    blocks.iter().try_fold(x, |x, block| block.run(&x))
}

/// The grid halved or doubled.
fn resized<T: Float>(x: &Tensor<T>, by: impl Fn(usize) -> usize, mode: Mode) -> Result<Tensor<T>> {
    Ok(resize::resize(x, [by(x.shape()[2]), by(x.shape()[3])], mode)?)
}

impl MaskGitVqGan {
    /// Loads the official names under the loader's prefix.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>) -> Result<Self> {
        let quantize = loader.at("quantize.embedding");
        let shape = quantize.lengths::<2>("weight");
        Ok(Self {
            encoder: Half::load(&loader.at("encoder"), "down")?,
            codebook: quantize.weight("weight", &shape)?,
            decoder: Half::load(&loader.at("decoder"), "up")?,
        })
    }

    /// Pixels per token, along one side.
    #[must_use]
    pub fn factor(&self) -> usize {
        1 << self.decoder.levels.len().saturating_sub(1)
    }

    /// Pixels `[batch, 3, height, width]` in [0, 1] to latents `[batch, code_dim, rows, columns]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn latents<T: Float>(&self, pixels: &Tensor<T>) -> Result<Tensor<T>> {
        let half = &self.encoder;
        let mut x = half.conv_in.run(pixels)?;
        for (index, level) in half.levels.iter().enumerate() {
            x = through(&level.blocks, x)?;
            if index + 1 < half.levels.len() {
                // The mean of each 2 x 2 cells.
                x = resized(&x, |side| side / 2, Mode::Area)?;
            }
        }
        half.conv_out.run(&half.norm_out.run_silu(&through(&half.middle, x)?)?)
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
        Ok(vq::nearest_l2(&places, &self.codebook)?)
    }

    /// The codes of tokens `[batch, rows * columns]`: `[batch, code_dim, rows, columns]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn quantised<T: Float>(&self, tokens: &Tensor<u32>, [rows, columns]: [usize; 2]) -> Result<Tensor<T>> {
        let codes: Tensor<T> = embedding::embedding(&self.codebook, tokens)?;
        let &[batch, _, dim] = codes.shape() else {
            return Err(Error::Request(format!("tokens of shape {:?}", tokens.shape())));
        };
        Ok(codes.reshape(&[batch, rows, columns, dim])?.permute(&[0, 3, 1, 2])?.contiguous()?)
    }

    /// Codes `[batch, code_dim, rows, columns]` to pixels in [0, 1] but for overshoot.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn decode<T: Float>(&self, codes: &Tensor<T>) -> Result<Tensor<T>> {
        let half = &self.decoder;
        let mut x = through(&half.middle, half.conv_in.run(codes)?)?;
        for level in half.levels.iter().rev() {
            x = through(&level.blocks, x)?;
            if let Some(up) = &level.up {
                x = up.run(&resized(&x, |side| 2 * side, Mode::Nearest)?)?;
            }
        }
        half.conv_out.run(&half.norm_out.run_silu(&x)?)
    }
}
