//! The block of a vision transformer: layer norm, attention, GELU network; modulated where the weights say so.
//!
//! Source: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1; modulation of Peebles and Xie 2022,
//! arXiv:2212.09748, section 3.2; names from timm's `vision_transformer.py` and DiT's `models.py`.

use std::ops::Range;

use smalti::attention::{self, KvCache, Options};
use smalti::{Device, Float, Tensor, Weight, activation, copy, elementwise, linear, norm};

use super::adaln::layer;
use crate::weights::Loader;
use crate::{Error, Result};

/// A layer norm's weight and bias.
pub struct LayerNorm {
    weight: Tensor<f32>,
    bias: Tensor<f32>,
    eps: f32,
}

impl LayerNorm {
    /// Loads `NAME.weight` and `NAME.bias`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, name: &str, dim: usize, eps: f32) -> Result<Self> {
        let at = loader.at(name);
        Ok(Self { weight: at.vector("weight", &[dim])?, bias: at.vector("bias", &[dim])?, eps })
    }

    /// The norm over the last axis.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        Ok(norm::layer_norm(x, Some(&self.weight), Some(&self.bias), self.eps)?)
    }
}

/// A linear layer, with or without a bias.
pub struct Linear(Weight, Option<Tensor<f32>>);

impl Linear {
    /// A layer of this weight (`[outputs, inputs]`) and bias (`[outputs]`).
    #[must_use]
    pub fn new(weight: Weight, bias: Tensor<f32>) -> Self {
        Self(weight, Some(bias))
    }

    /// A layer of this weight (`[outputs, inputs]`) alone.
    #[must_use]
    pub fn unbiased(weight: Weight) -> Self {
        Self(weight, None)
    }

    /// Loads `NAME.weight` and `NAME.bias`, `shape` being outputs, inputs.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, name: &str, shape: [usize; 2]) -> Result<Self> {
        let (weight, bias) = layer(loader, name, shape)?;
        Ok(Self(weight, Some(bias)))
    }

    /// Loads `NAME.weight` of a layer without a bias.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load_unbiased(loader: &Loader<'_>, name: &str, shape: [usize; 2]) -> Result<Self> {
        Ok(Self::unbiased(loader.at(name).weight("weight", &shape)?))
    }

    /// Channels it gives.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.0.shape()[0]
    }

    /// The layer's output.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        Ok(linear::linear(x, &self.0, self.1.as_ref())?)
    }
}

struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    /// Norms of each head's queries and keys.
    qk_norm: Option<[LayerNorm; 2]>,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    /// Shift, scale, gate of the attention, then of the network.
    modulation: Option<Linear>,
    /// `[1, 1, dim]` each: fixed gates of the attention and of the network.
    gates: Option<[Tensor<f32>; 2]>,
}

/// Whose names the blocks have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// timm's, and DiT's modulation.
    Timm,
    /// The same where queries, keys and values have no bias.
    TimmUnbiased,
    /// Those of transformers' `ViTModel`.
    Transformers,
    /// Those of transformers' `Dinov2Model`, with its fixed gates.
    Dino,
}

/// Queries, keys and values that are stored apart, as one layer.
fn joined(loader: &Loader<'_>, dim: usize) -> Result<Linear> {
    let (mut weight, mut bias) = (Vec::new(), Vec::new());
    for name in ["query", "key", "value"] {
        let at = loader.at(name);
        weight.extend(at.vector("weight", &[dim, dim])?.to_vec()?);
        bias.extend(at.vector("bias", &[dim])?.to_vec()?);
    }
    let weight = Tensor::from_vec(loader.device(), &[3 * dim, dim], weight)?;
    Ok(Linear::new(weight.into(), Tensor::from_vec(loader.device(), &[3 * dim], bias)?))
}

/// A stack of blocks.
pub struct Vit {
    dim: usize,
    heads: usize,
    blocks: Vec<Block>,
}

impl Vit {
    /// Loads `NAME.N` under the loader's prefix, with timm's names.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, name: &str, dim: usize, heads: usize, eps: f32) -> Result<Self> {
        Self::load_as(loader, name, Names::Timm, dim, heads, eps)
    }

    /// Loads `NAME.N` under the loader's prefix.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load_as(loader: &Loader<'_>, name: &str, names: Names, dim: usize, heads: usize, eps: f32) -> Result<Self> {
        let head_dim = dim / heads.max(1);
        let [norm1, norm2, proj, fc1, fc2] = match names {
            Names::Timm | Names::TimmUnbiased => ["norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"],
            Names::Transformers => {
                let norms = ["layernorm_before", "layernorm_after"];
                [norms[0], norms[1], "attention.output.dense", "intermediate.dense", "output.dense"]
            }
            Names::Dino => ["norm1", "norm2", "attention.output.dense", "mlp.fc1", "mlp.fc2"],
        };
        let blocks = (0..loader.count(name)).map(|index| {
            let at = loader.at(name).at(index);
            let hidden = at.at(fc1).length("weight", 0);
            let gate = |name: &str| -> Result<Tensor<f32>> {
                Ok(at.at(name).vector("lambda1", &[dim])?.reshape(&[1, 1, dim])?)
            };
            let head_norm = |name: &str| LayerNorm::load(&at, name, head_dim, eps);
            Ok(Block {
                norm1: LayerNorm::load(&at, norm1, dim, eps)?,
                qkv: match names {
                    Names::Timm => Linear::load(&at, "attn.qkv", [3 * dim, dim])?,
                    Names::TimmUnbiased => Linear::load_unbiased(&at, "attn.qkv", [3 * dim, dim])?,
                    _ => joined(&at.at("attention.attention"), dim)?,
                },
                qk_norm: match at.has("attn.q_norm") {
                    true => Some([head_norm("attn.q_norm")?, head_norm("attn.k_norm")?]),
                    false => None,
                },
                proj: Linear::load(&at, proj, [dim, dim])?,
                norm2: LayerNorm::load(&at, norm2, dim, eps)?,
                fc1: Linear::load(&at, fc1, [hidden, dim])?,
                fc2: Linear::load(&at, fc2, [dim, hidden])?,
                modulation: match at.has("adaLN_modulation") {
                    true => Some(Linear::load(&at, "adaLN_modulation.1", [6 * dim, dim])?),
                    false => None,
                },
                gates: match names {
                    Names::Dino => Some([gate("layer_scale1")?, gate("layer_scale2")?]),
                    _ => None,
                },
            })
        });
        Ok(Self { dim, heads, blocks: blocks.collect::<Result<_>>()? })
    }

    /// Empty caches for sequences of at most `capacity` places, one per block.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn caches<T: Float>(&self, device: &Device, batch: usize, capacity: usize) -> Result<Vec<KvCache<T>>> {
        let head_dim = self.dim / self.heads.max(1);
        self.blocks.iter().map(|_| Ok(KvCache::new(device, batch, self.heads, capacity, head_dim)?)).collect()
    }

    /// How many blocks there are.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Queries and keys of the last block for its input `x` (`[batch, seq, dim]`), each
    /// `[batch, heads, seq, head_dim]`.
    ///
    /// # Errors
    /// If there is no block, shapes do not fit or the device fails.
    pub fn last_queries_and_keys<T: Float>(&self, x: &Tensor<T>) -> Result<[Tensor<T>; 2]> {
        let block = self.blocks.last().ok_or_else(|| Error::Request("a transformer without blocks".to_owned()))?;
        let (batch, seq, heads) = (x.shape()[0], x.shape()[1], self.heads);
        let qkv = block.qkv.run(&block.norm1.run(x)?)?.reshape(&[batch, seq, 3 * heads, self.dim / heads])?;
        let qkv = qkv.permute(&[0, 2, 1, 3])?;
        Ok([qkv.narrow(1, 0, heads)?, qkv.narrow(1, heads, heads)?])
    }

    /// The usual scale of scores, every query seeing every key.
    #[must_use]
    pub fn options(&self) -> Options {
        Options::new(((self.dim / self.heads.max(1)) as f32).powf(-0.5))
    }

    /// Runs `x` (`[batch, seq, dim]`) through all blocks. With caches, its places come after those in them and are
    /// appended. `condition` is `[batch, 1 or seq, dim]`, for blocks that are modulated.
    ///
    /// # Errors
    /// If shapes do not fit, blocks are modulated and there is no condition, or the device fails.
    pub fn run<T: Float>(
        &self,
        x: &Tensor<T>,
        condition: Option<&Tensor<T>>,
        caches: Option<&mut [KvCache<T>]>,
        options: &Options,
    ) -> Result<Tensor<T>> {
        self.run_some(0..self.blocks.len(), x, condition, caches, options)
    }

    /// The same through the blocks `range` alone, with one cache for each of these.
    ///
    /// # Errors
    /// As [`Vit::run`].
    pub fn run_some<T: Float>(
        &self,
        range: Range<usize>,
        x: &Tensor<T>,
        condition: Option<&Tensor<T>>,
        mut caches: Option<&mut [KvCache<T>]>,
        options: &Options,
    ) -> Result<Tensor<T>> {
        let &[batch, seq, dim] = x.shape() else {
            return Err(Error::Request(format!("a sequence of shape {:?}, expected [batch, seq, dim]", x.shape())));
        };
        let heads = self.heads;
        let active = match condition {
            Some(condition) => Some(activation::activation(condition, activation::Activation::Silu)?),
            None => None,
        };
        let mut x = x.clone();
        for (index, block) in self.blocks[range].iter().enumerate() {
            let six = match (&block.modulation, &active) {
                (Some(modulation), Some(active)) => Some(modulation.run(active)?),
                (Some(_), None) => return Err(Error::Request("modulated blocks need a condition".to_owned())),
                (None, _) => None,
            };
            let part = |index: usize| six.as_ref().map(|six| six.narrow(2, index * dim, dim)).transpose();
            let gate = |half: usize| -> Result<Option<Tensor<T>>> {
                match &block.gates {
                    Some(gates) => Ok(Some(copy::convert(&gates[half])?)),
                    None => Ok(part(2 + 3 * half)?),
                }
            };

            let h = modulated(&block.norm1.run(&x)?, part(0)?, part(1)?)?;
            let qkv = block.qkv.run(&h)?.reshape(&[batch, seq, 3 * heads, dim / heads])?.permute(&[0, 2, 1, 3])?;
            let (mut q, mut k) = (qkv.narrow(1, 0, heads)?, qkv.narrow(1, heads, heads)?);
            let mut v = qkv.narrow(1, 2 * heads, heads)?;
            if let Some([q_norm, k_norm]) = &block.qk_norm {
                (q, k) = (q_norm.run(&q)?, k_norm.run(&k)?);
            }
            if let Some(caches) = &mut caches {
                caches[index].append(&k, &v)?;
                (k, v) = (caches[index].k(), caches[index].v());
            }
            let h = attention::attention(&q, &k, &v, options)?.y;
            let h = block.proj.run(&h.permute(&[0, 2, 1, 3])?.reshape(&[batch, seq, dim])?)?;
            x = gated(&x, gate(0)?, &h)?;

            let h = modulated(&block.norm2.run(&x)?, part(3)?, part(4)?)?;
            let h = activation::activation(&block.fc1.run(&h)?, activation::Activation::Gelu)?;
            x = gated(&x, gate(1)?, &block.fc2.run(&h)?)?;
        }
        Ok(x)
    }
}

/// Pixels `[batch, channels, height, width]`, or `[batch, channels, frames, height, width]`, as a row per patch,
/// `[batch, patches, dim]`.
pub struct PatchEmbedding {
    /// `[dim, channels * frames, height, width]` of a patch.
    weight: Weight,
    bias: Tensor<f32>,
    frames: usize,
}

impl PatchEmbedding {
    /// Loads `NAME.weight` and `NAME.bias`; patches are as large as the kernel.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, name: &str) -> Result<Self> {
        let at = loader.at(name);
        let shape: [usize; 4] = at.lengths("weight");
        Ok(Self { weight: at.weight("weight", &shape)?, bias: at.vector("bias", &shape[..1])?, frames: 1 })
    }

    /// The same for a kernel that spans frames.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load_of_frames(loader: &Loader<'_>, name: &str) -> Result<Self> {
        let at = loader.at(name);
        let shape: [usize; 5] = at.lengths("weight");
        let weight = at.weight("weight", &shape)?.reshape(&[shape[0], shape[1] * shape[2], shape[3], shape[4]])?;
        Ok(Self { weight, bias: at.vector("bias", &shape[..1])?, frames: shape[2] })
    }

    /// Frames of a patch.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Height and width of a patch.
    #[must_use]
    pub fn patch(&self) -> [usize; 2] {
        [self.weight.shape()[2], self.weight.shape()[3]]
    }

    /// The rows of the patches, in raster order, frame after frame.
    ///
    /// # Errors
    /// If the patches do not tile the picture or the device fails.
    pub fn run<T: Float>(&self, pixels: &Tensor<T>) -> Result<Tensor<T>> {
        let [height, width] = self.patch();
        let (batch, channels, frames, rows, columns) = match *pixels.shape() {
            [batch, channels, rows, columns] => (batch, channels, 1, rows, columns),
            [batch, channels, frames, rows, columns] => (batch, channels, frames, rows, columns),
            _ => return Err(Error::Request(format!("pixels of shape {:?}", pixels.shape()))),
        };
        let tiles = |length: usize, patch: usize| patch > 0 && length.is_multiple_of(patch);
        if !tiles(frames, self.frames) || !tiles(rows, height) || !tiles(columns, width) {
            let patch = format!("{} x {height} x {width}", self.frames);
            return Err(Error::Request(format!("patches of {patch} do not tile {frames} x {rows} x {columns} pixels")));
        }
        // The frames of a patch are as more channels of a picture, and a patch is a row of a product: the kernel meets
        // each pixel once.
        let (pictures, thick) = (batch * (frames / self.frames), channels * self.frames);
        let x = pixels.contiguous()?.reshape(&[batch, channels, frames / self.frames, self.frames, rows * columns])?;
        let x = x.permute(&[0, 2, 1, 3, 4])?.contiguous()?;
        let (down, across) = (rows / height, columns / width);
        let x = x.reshape(&[pictures, thick, down, height, across, width])?.permute(&[0, 2, 4, 1, 3, 5])?;
        let x = x.contiguous()?.reshape(&[batch, pictures / batch.max(1) * down * across, thick * height * width])?;
        let dim = self.weight.shape()[0];
        let flat = self.weight.reshape(&[dim, thick * height * width])?;
        Ok(linear::linear(&x, &flat, Some(&self.bias))?)
    }
}

/// `h (1 + scale) + shift`, if there are any.
fn modulated<T: Float>(h: &Tensor<T>, shift: Option<Tensor<T>>, scale: Option<Tensor<T>>) -> Result<Tensor<T>> {
    match (shift, scale) {
        (Some(shift), Some(scale)) => Ok(norm::modulate(h, &scale, &shift)?),
        _ => Ok(h.clone()),
    }
}

/// `x + gate h`, or `x + h`.
fn gated<T: Float>(x: &Tensor<T>, gate: Option<Tensor<T>>, h: &Tensor<T>) -> Result<Tensor<T>> {
    match gate {
        Some(gate) => Ok(norm::gated_add(x, &gate, h)?),
        None => Ok(elementwise::add(x, h)?),
    }
}
