//! The convolutional encoder and decoder of VQGAN, which LlamaGen's and VAR's tokenizers share under different names.
//!
//! Source: Esser, Rombach and Ommer 2021, arXiv:2012.09841, appendix A; names from LlamaGen's `vq_model.py` and VAR's
//! `basic_vae.py`.

use smalti::attention::{self, Options};
use smalti::conv::{self, Padding};
use smalti::resize::{self, Mode};
use smalti::{Float, Tensor, Weight, activation, elementwise, norm};

use crate::Result;
use crate::weights::Loader;

/// Every group norm of this network.
const EPS: f32 = 1e-6;

/// Whose names the tensors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// `conv_blocks.N.res.M`, `mid.0`, separate `q`, `k`, `v`; the decoder counts its levels from the coarsest.
    LlamaGen,
    /// `down.N.block.M`, `up.N.block.M`, `mid.block_1`, one `qkv`; the decoder counts its levels from the finest.
    Var,
}

/// A convolution, most with a bias.
pub struct Conv {
    weight: Weight,
    bias: Option<Tensor<f32>>,
    stride: usize,
    padding: Padding,
}

/// A group norm.
pub(crate) struct Norm {
    weight: Tensor<f32>,
    bias: Tensor<f32>,
    groups: usize,
}

struct ResBlock {
    norms: [Norm; 2],
    convs: [Conv; 2],
    shortcut: Option<Conv>,
}

/// One head over all places of the grid.
struct AttentionBlock {
    norm: Norm,
    /// Three of `channels` each, or one of three times as many.
    projections: Vec<Conv>,
    out: Conv,
}

struct Level {
    blocks: Vec<(ResBlock, Option<AttentionBlock>)>,
    resample: Option<Conv>,
}

struct Middle {
    before: ResBlock,
    attention: AttentionBlock,
    after: ResBlock,
}

/// Pixels to latents.
pub struct Encoder {
    conv_in: Conv,
    levels: Vec<Level>,
    middle: Middle,
    norm_out: Norm,
    conv_out: Conv,
}

/// Latents to pixels.
pub struct Decoder {
    conv_in: Conv,
    middle: Middle,
    levels: Vec<Level>,
    norm_out: Norm,
    conv_out: Conv,
}

impl Conv {
    /// A convolution of the checkpoint's own shape with "same" padding.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, name: &str) -> Result<Self> {
        let bias = loader.at(name);
        let channels = bias.length("weight", 0);
        Ok(Self { bias: Some(bias.vector("bias", &[channels])?), ..Self::load_without_bias(loader, name)? })
    }

    /// The same for a convolution that has no bias.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load_without_bias(loader: &Loader<'_>, name: &str) -> Result<Self> {
        let at = loader.at(name);
        let shape: [usize; 4] = at.lengths("weight");
        let padding = Padding::same(shape[2].max(1));
        Ok(Self { weight: at.weight("weight", &shape)?, bias: None, stride: 1, padding })
    }

    /// A convolution from `input` channels with "same" padding and a bias. How many it puts out is the checkpoint's to
    /// tell, if it is not given.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load_from(
        loader: &Loader<'_>,
        name: &str,
        input: usize,
        output: Option<usize>,
        kernel: usize,
    ) -> Result<Self> {
        let at = loader.at(name);
        let output = output.unwrap_or_else(|| at.length("weight", 0));
        let weight = at.weight("weight", &[output, input, kernel, kernel])?;
        let bias = Some(at.vector("bias", &[output])?);
        Ok(Self { weight, bias, stride: 1, padding: Padding::same(kernel) })
    }

    /// The same kernel at every `stride`-th place.
    pub(crate) fn strided(self, stride: usize, padding: Padding) -> Self {
        Self { stride, padding, ..self }
    }

    /// How many channels it puts out.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.weight.shape().first().copied().unwrap_or(0)
    }

    /// Applies it.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        Ok(conv::conv2d(x, &self.weight, self.bias.as_ref(), self.stride, self.padding)?)
    }
}

impl Norm {
    /// A norm of as many channels as the checkpoint has.
    pub(crate) fn load(loader: &Loader<'_>, name: &str, groups: usize) -> Result<Self> {
        Self::load_for(loader, name, loader.at(name).length("weight", 0), groups)
    }

    fn load_for(loader: &Loader<'_>, name: &str, channels: usize, groups: usize) -> Result<Self> {
        let at = loader.at(name);
        if !channels.is_multiple_of(groups) {
            at.note("weight", format!("has {channels} channels, which {groups} groups do not divide"));
        }
        Ok(Self { weight: at.vector("weight", &[channels])?, bias: at.vector("bias", &[channels])?, groups })
    }

    fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        Ok(norm::group_norm(x, self.groups, Some(&self.weight), Some(&self.bias), EPS)?)
    }

    pub(crate) fn run_silu<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        Ok(activation::activation(&self.run(x)?, activation::Activation::Silu)?)
    }
}

impl ResBlock {
    fn load(loader: &Loader<'_>, input: usize, groups: usize) -> Result<Self> {
        let norm1 = Norm::load_for(loader, "norm1", input, groups)?;
        let conv1 = Conv::load_from(loader, "conv1", input, None, 3)?;
        let output = conv1.channels();
        let norm2 = Norm::load_for(loader, "norm2", output, groups)?;
        let conv2 = Conv::load_from(loader, "conv2", output, Some(output), 3)?;
        let shortcut = if input != output || loader.has("nin_shortcut") {
            Some(Conv::load_from(loader, "nin_shortcut", input, Some(output), 1)?)
        } else {
            None
        };
        Ok(Self { norms: [norm1, norm2], convs: [conv1, conv2], shortcut })
    }

    fn channels(&self) -> usize {
        self.convs[1].channels()
    }

    fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let h = self.convs[0].run(&self.norms[0].run_silu(x)?)?;
        let h = self.convs[1].run(&self.norms[1].run_silu(&h)?)?;
        Ok(match &self.shortcut {
            Some(shortcut) => elementwise::add(&shortcut.run(x)?, &h)?,
            None => elementwise::add(x, &h)?,
        })
    }
}

impl AttentionBlock {
    fn load(loader: &Loader<'_>, channels: usize, groups: usize) -> Result<Self> {
        let names: &[&str] = if loader.has("qkv") { &["qkv"] } else { &["q", "k", "v"] };
        let projection = |name: &&str| Conv::load_from(loader, name, channels, Some(3 / names.len() * channels), 1);
        Ok(Self {
            norm: Norm::load_for(loader, "norm", channels, groups)?,
            projections: names.iter().map(projection).collect::<Result<_>>()?,
            out: Conv::load_from(loader, "proj_out", channels, Some(channels), 1)?,
        })
    }

    fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let &[batch, channels, height, width] = x.shape() else {
            return Err(crate::Error::Request(format!("attention over a grid of shape {:?}", x.shape())));
        };
        let h = self.norm.run(x)?;
        let projected = self.projections.iter().map(|conv| conv.run(&h)).collect::<Result<Vec<_>>>()?;
        let [q, k, v] = [0, 1, 2].map(|third| -> Result<Tensor<T>> {
            let part = match projected.as_slice() {
                [all] => all.narrow(1, third * channels, channels)?,
                three => three[third].clone(),
            };
            let places = part.reshape(&[batch, 1, channels, height * width])?;
            Ok(places.permute(&[0, 1, 3, 2])?.contiguous()?)
        });
        let options = Options::new((channels as f32).powf(-0.5));
        let h = attention::attention(&q?, &k?, &v?, &options)?.y;
        let h = h.permute(&[0, 1, 3, 2])?.reshape(&[batch, channels, height, width])?;
        Ok(elementwise::add(x, &self.out.run(&h)?)?)
    }
}

impl Level {
    /// `channels` come in, and those that go out are left there.
    fn load(loader: &Loader<'_>, names: Names, resample: &str, channels: &mut usize, groups: usize) -> Result<Self> {
        let res = if names == Names::LlamaGen { "res" } else { "block" };
        let blocks = (0..loader.count(res)).map(|index| {
            let block = ResBlock::load(&loader.at(res).at(index), *channels, groups)?;
            *channels = block.channels();
            let attention = if loader.at("attn").has(&index.to_string()) {
                Some(AttentionBlock::load(&loader.at("attn").at(index), *channels, groups)?)
            } else {
                None
            };
            Ok((block, attention))
        });
        let blocks = blocks.collect::<Result<_>>()?;
        let resample = if loader.has(resample) {
            Some(Conv::load_from(&loader.at(resample), "conv", *channels, Some(*channels), 3)?)
        } else {
            None
        };
        Ok(Self { blocks, resample })
    }

    fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let mut x = x.clone();
        for (block, attention) in &self.blocks {
            x = block.run(&x)?;
            if let Some(attention) = attention {
                x = attention.run(&x)?;
            }
        }
        Ok(x)
    }
}

impl Middle {
    fn load(loader: &Loader<'_>, names: Names, channels: usize, groups: usize) -> Result<Self> {
        let [before, attention, after] = match names {
            Names::LlamaGen => ["0", "1", "2"],
            Names::Var => ["block_1", "attn_1", "block_2"],
        };
        Ok(Self {
            before: ResBlock::load(&loader.at(before), channels, groups)?,
            attention: AttentionBlock::load(&loader.at(attention), channels, groups)?,
            after: ResBlock::load(&loader.at(after), channels, groups)?,
        })
    }

    fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        self.after.run(&self.attention.run(&self.before.run(x)?)?)
    }
}

impl Encoder {
    /// The tensors under the loader's prefix; counts and channels come from their names and shapes.
    ///
    /// # Errors
    /// If the device has no room; what is missing is the loader's to tell.
    pub fn load(loader: &Loader<'_>, names: Names, groups: usize) -> Result<Self> {
        let list = if names == Names::LlamaGen { "conv_blocks" } else { "down" };
        let conv_in = Conv::load_from(loader, "conv_in", 3, None, 3)?;
        let mut channels = conv_in.channels();
        let levels = (0..loader.count(list)).map(|index| {
            let mut level = Level::load(&loader.at(list).at(index), names, "downsample", &mut channels, groups)?;
            if let Some(conv) = &mut level.resample {
                // The official code pads one row and one column, at the bottom and the right only.
                conv.stride = 2;
                conv.padding = Padding { left: 0, right: 1, top: 0, bottom: 1 };
            }
            Ok(level)
        });
        let levels = levels.collect::<Result<_>>()?;
        Ok(Self {
            conv_in,
            levels,
            middle: Middle::load(&loader.at("mid"), names, channels, groups)?,
            norm_out: Norm::load_for(loader, "norm_out", channels, groups)?,
            conv_out: Conv::load_from(loader, "conv_out", channels, None, 3)?,
        })
    }

    /// How many channels its features have.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.conv_out.channels()
    }

    /// Pixels `[batch, 3, height, width]` in [-1, 1] to features.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, pixels: &Tensor<T>) -> Result<Tensor<T>> {
        let mut x = self.conv_in.run(pixels)?;
        for level in &self.levels {
            x = level.run(&x)?;
            if let Some(down) = &level.resample {
                x = down.run(&x)?;
            }
        }
        self.conv_out.run(&self.norm_out.run_silu(&self.middle.run(&x)?)?)
    }
}

impl Decoder {
    /// The tensors under the loader's prefix, for latents of this many channels; counts and channels come from their
    /// names and shapes.
    ///
    /// # Errors
    /// If the device has no room; what is missing is the loader's to tell.
    pub fn load(loader: &Loader<'_>, names: Names, channels: usize, groups: usize) -> Result<Self> {
        let list = if names == Names::LlamaGen { "conv_blocks" } else { "up" };
        let conv_in = Conv::load_from(loader, "conv_in", channels, None, 3)?;
        let mut channels = conv_in.channels();
        let middle = Middle::load(&loader.at("mid"), names, channels, groups)?;
        let count = loader.count(list);
        let levels = (0..count).map(|index| {
            let index = if names == Names::LlamaGen { index } else { count - 1 - index };
            Level::load(&loader.at(list).at(index), names, "upsample", &mut channels, groups)
        });
        let levels = levels.collect::<Result<_>>()?;
        Ok(Self {
            conv_in,
            middle,
            levels,
            norm_out: Norm::load_for(loader, "norm_out", channels, groups)?,
            conv_out: Conv::load_from(loader, "conv_out", channels, Some(3), 3)?,
        })
    }

    /// How many times it doubles the grid.
    #[must_use]
    pub fn doublings(&self) -> usize {
        self.levels.iter().filter(|level| level.resample.is_some()).count()
    }

    /// Latents `[batch, channels, height, width]` to pixels, in [-1, 1] but for overshoot.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, latents: &Tensor<T>) -> Result<Tensor<T>> {
        let mut x = self.middle.run(&self.conv_in.run(latents)?)?;
        for level in &self.levels {
            x = level.run(&x)?;
            if let Some(up) = &level.resample {
                let [height, width] = [x.shape()[2], x.shape()[3]];
                x = up.run(&resize::resize(&x, [2 * height, 2 * width], Mode::Nearest)?)?;
            }
        }
        self.conv_out.run(&self.norm_out.run_silu(&x)?)
    }
}
