//! VAR's block: layer norm without weights, modulated by the condition; attention and a GELU network.
//!
//! Source: Tian et al. 2024, arXiv:2404.02905, section 3.3; names from VAR's `basic_var.py`.

use std::ops::Range;

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
    /// Loads `NAME.N` for each of the names, one stack after the other, and, if it is there, `shared_ada_lin` under the
    /// loader's prefix.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, names: &[&str], dim: usize, heads: usize, norm_eps: f32) -> Result<Self> {
        let device = loader.device();
        let shared =
            if loader.has("shared_ada_lin") { Some(layer(loader, "shared_ada_lin.1", [6 * dim, dim])?) } else { None };
        let all = names.iter().flat_map(|name| (0..loader.count(name)).map(move |index| (*name, index)));
        let blocks = all.map(|(name, index)| {
            let at = loader.at(name).at(index);
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
            bias.extend(match attn.shape("zero_k_bias") {
                // A buffer that some official checkpoints leave out.
                None => vec![0.0; dim],
                Some(_) => attn.vector("zero_k_bias", &[dim])?.to_vec()?,
            });
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

    /// How many blocks there are.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.blocks.len()
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
        self.run_some(0..self.blocks.len(), x, condition, Some(caches), options)
    }

    /// The same through the blocks `range` alone, with one cache for each of these, or with none: then the places see
    /// each other only.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run_some(
        &self,
        range: Range<usize>,
        x: &Tensor<T>,
        condition: &Tensor<T>,
        mut caches: Option<&mut [KvCache<T>]>,
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
        for (index, block) in self.blocks[range].iter().enumerate() {
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
            let mut v = qkv.narrow(1, 2 * heads, heads)?;
            if let Some(caches) = &mut caches {
                caches[index].append(&k, &v)?;
                (k, v) = (caches[index].k(), caches[index].v());
            }
            let h = attention::attention(&q, &k, &v, options)?.y;
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

/// A modulated norm and a softmax head.
pub struct ModulatedHead {
    modulation: (Weight, Tensor<f32>),
    head: (Weight, Tensor<f32>),
    norm_eps: f32,
}

impl ModulatedHead {
    /// Loads `NORM.ada_lin.1` and `HEAD`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, norm: &str, head: &str, dim: usize, norm_eps: f32) -> Result<Self> {
        let vocabulary = loader.at(head).length("weight", 0);
        Ok(Self {
            modulation: layer(loader, &format!("{norm}.ada_lin.1"), [2 * dim, dim])?,
            head: layer(loader, head, [vocabulary, dim])?,
            norm_eps,
        })
    }

    /// Logits of states `[batch, seq, dim]` under a condition `[batch, dim]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, x: &Tensor<T>, condition: &Tensor<T>) -> Result<Tensor<T>> {
        let (rows, dim) = (condition.shape()[0], condition.shape()[1]);
        let active = activation::activation(condition, activation::Activation::Silu)?;
        let two = linear::linear(&active, &self.modulation.0, Some(&self.modulation.1))?;
        let two = two.reshape(&[rows, 2, 1, dim])?;
        let part = |index: usize| two.narrow(1, index, 1)?.reshape(&[rows, 1, dim]);
        let h = norm::layer_norm(x, None, None, self.norm_eps)?;
        let h = norm::modulate(&h, &part(0)?, &part(1)?)?;
        Ok(linear::linear(&h, &self.head.0, Some(&self.head.1))?)
    }
}

/// A learned vector per place plus one per scale, `[1, places, dim]`: `pos_1LC` and `lvl_embed`.
///
/// # Errors
/// If the device has no room.
pub fn scale_positions(loader: &Loader<'_>, patch_nums: &[usize], dim: usize) -> Result<Tensor<f32>> {
    let places: usize = patch_nums.iter().map(|side| side * side).sum();
    let mut positions = loader.vector("pos_1LC", &[1, places, dim])?.to_vec()?;
    let levels = loader.vector("lvl_embed.weight", &[patch_nums.len(), dim])?.to_vec()?;
    let level_of_place =
        patch_nums.iter().enumerate().flat_map(|(level, side)| std::iter::repeat_n(level, side * side));
    for (position, level) in positions.chunks_mut(dim.max(1)).zip(level_of_place) {
        for (position, level) in position.iter_mut().zip(&levels[level * dim..]) {
            *position += level;
        }
    }
    Ok(Tensor::from_vec(loader.device(), &[1, places, dim], positions)?)
}
