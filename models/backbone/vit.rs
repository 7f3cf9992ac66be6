//! The block of a vision transformer: layer norm, attention, GELU network; modulated where the weights say so.
//!
//! Source: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1; modulation of Peebles and Xie 2022,
//! arXiv:2212.09748, section 3.2; names from timm's `vision_transformer.py` and DiT's `models.py`.

use smalti::attention::{self, KvCache, Options};
use smalti::{Device, Float, Tensor, Weight, activation, elementwise, linear, norm};

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

/// A linear layer with its bias.
pub struct Linear(Weight, Tensor<f32>);

impl Linear {
    /// Loads `NAME.weight` and `NAME.bias`, `shape` being outputs, inputs.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, name: &str, shape: [usize; 2]) -> Result<Self> {
        let (weight, bias) = layer(loader, name, shape)?;
        Ok(Self(weight, bias))
    }

    /// The layer's output.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        Ok(linear::linear(x, &self.0, Some(&self.1))?)
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
}

/// A stack of blocks.
pub struct Vit {
    dim: usize,
    heads: usize,
    blocks: Vec<Block>,
}

impl Vit {
    /// Loads `NAME.N` under the loader's prefix.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, name: &str, dim: usize, heads: usize, eps: f32) -> Result<Self> {
        let head_dim = dim / heads.max(1);
        let blocks = (0..loader.count(name)).map(|index| {
            let at = loader.at(name).at(index);
            let hidden = at.length("mlp.fc1.weight", 0);
            let head_norm = |name: &str| LayerNorm::load(&at, name, head_dim, eps);
            Ok(Block {
                norm1: LayerNorm::load(&at, "norm1", dim, eps)?,
                qkv: Linear::load(&at, "attn.qkv", [3 * dim, dim])?,
                qk_norm: match at.has("attn.q_norm") {
                    true => Some([head_norm("attn.q_norm")?, head_norm("attn.k_norm")?]),
                    false => None,
                },
                proj: Linear::load(&at, "attn.proj", [dim, dim])?,
                norm2: LayerNorm::load(&at, "norm2", dim, eps)?,
                fc1: Linear::load(&at, "mlp.fc1", [hidden, dim])?,
                fc2: Linear::load(&at, "mlp.fc2", [dim, hidden])?,
                modulation: match at.has("adaLN_modulation") {
                    true => Some(Linear::load(&at, "adaLN_modulation.1", [6 * dim, dim])?),
                    false => None,
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
        for (index, block) in self.blocks.iter().enumerate() {
            let six = match (&block.modulation, &active) {
                (Some(modulation), Some(active)) => Some(modulation.run(active)?),
                (Some(_), None) => return Err(Error::Request("modulated blocks need a condition".to_owned())),
                (None, _) => None,
            };
            let part = |index: usize| six.as_ref().map(|six| six.narrow(2, index * dim, dim)).transpose();

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
            x = gated(&x, part(2)?, &h)?;

            let h = modulated(&block.norm2.run(&x)?, part(3)?, part(4)?)?;
            let h = activation::activation(&block.fc1.run(&h)?, activation::Activation::Gelu)?;
            x = gated(&x, part(5)?, &block.fc2.run(&h)?)?;
        }
        Ok(x)
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
