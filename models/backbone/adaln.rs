//! VAR's block: layer norm without weights, modulated by the condition; attention and a GELU network.
//!
//! Source: Tian et al. 2024, arXiv:2404.02905, section 3.3; names from VAR's `basic_var.py`.

use smalti::attention::{self, KvCache, Options};
use smalti::{Float, Tensor, Weight, activation, elementwise, linear, norm};

use crate::weights::Loader;
use crate::{Error, Result};

/// How queries and keys become scores.
enum Scores<T: smalti::Element> {
    /// A quarter of the usual scale.
    Scaled,
    /// Unit vectors, times a learned factor per head, `[1, heads, 1, 1]`.
    Unit { factor: Tensor<T> },
}

/// Where a block's six modulations come from.
enum Modulation {
    /// Its own linear layer of the condition.
    Own { weight: Weight, bias: Tensor<f32> },
    /// An offset of its own, added to modulations that all blocks share.
    Shared { offset: Tensor<f32> },
}

struct Block<T: smalti::Element> {
    modulation: Modulation,
    scores: Scores<T>,
    qkv: Weight,
    /// Queries' and values' biases, with zeros for the keys between.
    qkv_bias: Tensor<f32>,
    proj: (Weight, Tensor<f32>),
    fc1: (Weight, Tensor<f32>),
    fc2: (Weight, Tensor<f32>),
}

/// A stack of blocks.
pub struct AdaLn<T: smalti::Element> {
    dim: usize,
    heads: usize,
    norm_eps: f32,
    /// The linear layer of the modulations that all blocks share, if they do.
    shared: Option<(Weight, Tensor<f32>)>,
    blocks: Vec<Block<T>>,
}

/// A linear layer with its bias.
pub(crate) fn layer(loader: &Loader<'_>, name: &str, shape: [usize; 2]) -> Result<(Weight, Tensor<f32>)> {
    let at = loader.at(name);
    Ok((at.weight("weight", &shape)?, at.vector("bias", &shape[..1])?))
}

impl<T: Float> AdaLn<T> {
    /// Loads `blocks.N` and, if it is there, `shared_ada_lin` under the loader's prefix.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, dim: usize, heads: usize, norm_eps: f32) -> Result<Self> {
        let device = loader.device();
        let shared =
            if loader.has("shared_ada_lin") { Some(layer(loader, "shared_ada_lin.1", [6 * dim, dim])?) } else { None };
        let blocks = (0..loader.count("blocks")).map(|index| {
            let at = loader.at("blocks").at(index);
            let modulation = if shared.is_some() {
                Modulation::Shared { offset: at.vector("ada_gss", &[1, 1, 6, dim])?.reshape(&[1, 6 * dim])? }
            } else {
                let (weight, bias) = layer(&at, "ada_lin.1", [6 * dim, dim])?;
                Modulation::Own { weight, bias }
            };
            let attn = at.at("attn");
            let scores = if attn.shape("scale_mul_1H11").is_some() {
                let logs = attn.vector("scale_mul_1H11", &[1, heads, 1, 1])?.to_vec()?;
                // The official code caps the factor at 100.
                let factors = logs.iter().map(|log| T::from_f64(f64::from(*log).min(100f64.ln()).exp())).collect();
                Scores::Unit { factor: Tensor::from_vec(device, &[1, heads, 1, 1], factors)? }
            } else {
                Scores::Scaled
            };
            let mut bias = attn.vector("q_bias", &[dim])?.to_vec()?;
            bias.extend(attn.vector("zero_k_bias", &[dim])?.to_vec()?);
            bias.extend(attn.vector("v_bias", &[dim])?.to_vec()?);
            let hidden = at.length("ffn.fc1.weight", 0);
            Ok(Block {
                modulation,
                scores,
                qkv: attn.weight("mat_qkv.weight", &[3 * dim, dim])?,
                qkv_bias: Tensor::from_vec(device, &[3 * dim], bias)?,
                proj: layer(&attn, "proj", [dim, dim])?,
                fc1: layer(&at, "ffn.fc1", [hidden, dim])?,
                fc2: layer(&at, "ffn.fc2", [dim, hidden])?,
            })
        });
        let blocks = blocks.collect::<Result<_>>()?;
        Ok(Self { dim, heads, norm_eps, shared, blocks })
    }

    /// Empty caches for sequences of at most `capacity` places.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn caches(&self, device: &smalti::Device, batch: usize, capacity: usize) -> Result<Vec<KvCache<T>>> {
        let head_dim = self.dim / self.heads.max(1);
        self.blocks.iter().map(|_| Ok(KvCache::new(device, batch, self.heads, capacity, head_dim)?)).collect()
    }

    /// The scale of scores for [`AdaLn::run`]'s options.
    #[must_use]
    pub fn options(&self) -> Options {
        let head_dim = self.dim / self.heads.max(1);
        match self.blocks.first().map(|block| &block.scores) {
            Some(Scores::Unit { .. }) => Options::new(1.0),
            _ => Options::new(0.25 / (head_dim as f32).sqrt()),
        }
    }

    /// Runs the places of `x` (`[batch, seq, dim]`) after those in the caches, and appends them there. `condition` is
    /// `[batch, dim]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run(
        &self,
        x: &Tensor<T>,
        condition: &Tensor<T>,
        caches: &mut [KvCache<T>],
        options: &Options,
    ) -> Result<Tensor<T>> {
        let &[batch, seq, dim] = x.shape() else {
            return Err(Error::Request(format!("a sequence of shape {:?}, expected [batch, seq, dim]", x.shape())));
        };
        let heads = self.heads;
        let active = activation::activation(condition, activation::Activation::Silu)?;
        let shared = match &self.shared {
            Some((weight, bias)) => Some(linear::linear(&active, weight, Some(bias))?),
            None => None,
        };
        let mut x = x.clone();
        for (block, cache) in self.blocks.iter().zip(caches) {
            let six = match (&block.modulation, &shared) {
                (Modulation::Own { weight, bias }, _) => linear::linear(&active, weight, Some(bias))?,
                (Modulation::Shared { offset }, Some(shared)) => {
                    elementwise::add(shared, &smalti::copy::convert(offset)?)?
                }
                (Modulation::Shared { .. }, None) => unreachable!("offsets are loaded with the shared layer only"),
            };
            // Two gates, two scales, two shifts; the first of each is the attention's.
            let six = six.reshape(&[batch, 6, 1, dim])?;
            let part = |index: usize| six.narrow(1, index, 1)?.reshape(&[batch, 1, dim]);

            let h = norm::layer_norm(&x, None, None, self.norm_eps)?;
            let h = norm::modulate(&h, &part(2)?, &part(4)?)?;
            let qkv = linear::linear(&h, &block.qkv, Some(&block.qkv_bias))?;
            let qkv = qkv.reshape(&[batch, seq, 3 * heads, dim / heads])?.permute(&[0, 2, 1, 3])?;
            let (mut q, mut k) = (qkv.narrow(1, 0, heads)?, qkv.narrow(1, heads, heads)?);
            if let Scores::Unit { factor } = &block.scores {
                q = elementwise::mul(&attention::l2_normalise(&q)?, factor)?;
                k = attention::l2_normalise(&k)?;
            }
            cache.append(&k, &qkv.narrow(1, 2 * heads, heads)?)?;
            let h = attention::attention(&q, &cache.k(), &cache.v(), options)?.y;
            let h = h.permute(&[0, 2, 1, 3])?.reshape(&[batch, seq, dim])?;
            let h = linear::linear(&h, &block.proj.0, Some(&block.proj.1))?;
            x = norm::gated_add(&x, &part(0)?, &h)?;

            let h = norm::layer_norm(&x, None, None, self.norm_eps)?;
            let h = norm::modulate(&h, &part(3)?, &part(5)?)?;
            let h = linear::linear(&h, &block.fc1.0, Some(&block.fc1.1))?;
            let h = activation::activation(&h, activation::Activation::GeluTanh)?;
            let h = linear::linear(&h, &block.fc2.0, Some(&block.fc2.1))?;
            x = norm::gated_add(&x, &part(1)?, &h)?;
        }
        Ok(x)
    }
}
