//! VAR's block: layer norm without weights, modulated by the condition; attention and a GELU network. Its halves stand
//! alone, for blocks that put something between them.
//!
//! Source: Tian et al. 2024, arXiv:2404.02905, section 3.3; names from VAR's `basic_var.py`.

use std::ops::Range;
use std::sync::OnceLock;

use smalti::attention::{self, KvCache, Options};
use smalti::{Device, Float, Tensor, Weight, activation, elementwise, linear, norm};

use super::vit::Linear;
use crate::weights::Loader;
use crate::{Error, Result};

/// A norm over the last axis.
pub(crate) enum Norm {
    /// A layer norm, which may have a weight and a bias.
    Layer(Option<[Tensor<f32>; 2]>, f32),
    /// An RMS norm with its weight.
    Rms(Tensor<f32>, f32),
}

impl Norm {
    /// `NAME`: an RMS norm if it has a weight, else a layer norm without.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn bare_or_rms(loader: &Loader<'_>, name: &str, dim: usize, eps: f32) -> Result<Self> {
        match loader.has(name) {
            true => Ok(Self::Rms(loader.at(name).vector("weight", &[dim])?, eps)),
            false => Ok(Self::Layer(None, eps)),
        }
    }

    /// `NAME`: a layer norm if it has a bias beside its weight, else an RMS norm.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn layer_or_rms(loader: &Loader<'_>, name: &str, dim: usize, eps: f32) -> Result<Self> {
        let at = loader.at(name);
        let weight = at.vector("weight", &[dim])?;
        match at.shape("bias") {
            Some(_) => Ok(Self::Layer(Some([weight, at.vector("bias", &[dim])?]), eps)),
            None => Ok(Self::Rms(weight, eps)),
        }
    }

    /// The norm of each row.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        Ok(match self {
            Self::Layer(None, eps) => norm::layer_norm(x, None, None, *eps)?,
            Self::Layer(Some([weight, bias]), eps) => norm::layer_norm(x, Some(weight), Some(bias), *eps)?,
            Self::Rms(weight, eps) => norm::rms_norm(x, Some(weight), *eps)?,
        })
    }
}

/// How queries and keys become scores.
enum Scores<T: smalti::Element> {
    /// Scaled by the options.
    Scaled,
    /// Unit vectors, times a learned factor per head, `[1, heads, 1, 1]`.
    Unit { factor: Tensor<T> },
}

/// VAR's attention of a sequence to itself: keys have no bias, scores may be those of unit vectors.
pub(crate) struct SelfAttention<T: smalti::Element> {
    heads: usize,
    scores: Scores<T>,
    qkv: Weight,
    /// Queries' and values' biases, with zeros for the keys between.
    qkv_bias: Tensor<f32>,
    proj: Linear,
}

impl<T: Float> SelfAttention<T> {
    /// Loads `QKV.weight`, `q_bias`, `v_bias`, `proj` and, if it is there, `scale_mul_1H11`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, qkv: &str, dim: usize, heads: usize) -> Result<Self> {
        let scores = if loader.shape("scale_mul_1H11").is_some() {
            let logs = loader.vector("scale_mul_1H11", &[1, heads, 1, 1])?.to_vec()?;
            // The official code caps the factor at 100.
            let factors = logs.iter().map(|log| T::from_f64(f64::from(*log).min(100f64.ln()).exp())).collect();
            Scores::Unit { factor: Tensor::from_vec(loader.device(), &[1, heads, 1, 1], factors)? }
        } else {
            Scores::Scaled
        };
        let mut bias = loader.vector("q_bias", &[dim])?.to_vec()?;
        bias.extend(match loader.shape("zero_k_bias") {
            // A buffer that some official checkpoints leave out.
            None => vec![0.0; dim],
            Some(_) => loader.vector("zero_k_bias", &[dim])?.to_vec()?,
        });
        bias.extend(loader.vector("v_bias", &[dim])?.to_vec()?);
        Ok(Self {
            heads,
            scores,
            qkv: loader.at(qkv).weight("weight", &[3 * dim, dim])?,
            qkv_bias: Tensor::from_vec(loader.device(), &[3 * dim], bias)?,
            proj: Linear::load(loader, "proj", [dim, dim])?,
        })
    }

    /// The scale of scores, `plain` unless they are those of unit vectors.
    pub fn options(&self, plain: f32) -> Options {
        match self.scores {
            Scores::Unit { .. } => Options::new(1.0),
            Scores::Scaled => Options::new(plain),
        }
    }

    /// An empty cache for sequences of at most `capacity` places.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn cache(&self, device: &Device, batch: usize, capacity: usize) -> Result<KvCache<T>> {
        let head_dim = self.qkv.shape()[1] / self.heads.max(1);
        Ok(KvCache::new(device, batch, self.heads, capacity, head_dim)?)
    }

    /// Attends from the places of `x` (`[batch, seq, dim]`) to those in the cache and to themselves, and appends them
    /// there. `turn` is applied to queries and to keys (`[batch, heads, seq, head_dim]`).
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run(
        &self,
        x: &Tensor<T>,
        turn: impl Fn(Tensor<T>) -> Result<Tensor<T>>,
        cache: Option<&mut KvCache<T>>,
        options: &Options,
    ) -> Result<Tensor<T>> {
        let &[batch, seq, dim] = x.shape() else {
            return Err(Error::Request(format!("a sequence of shape {:?}, expected [batch, seq, dim]", x.shape())));
        };
        let heads = self.heads;
        let qkv = linear::linear(x, &self.qkv, Some(&self.qkv_bias))?;
        let qkv = qkv.reshape(&[batch, seq, 3 * heads, dim / heads])?.permute(&[0, 2, 1, 3])?;
        let (mut q, mut k) = (qkv.narrow(1, 0, heads)?, qkv.narrow(1, heads, heads)?);
        if let Scores::Unit { factor } = &self.scores {
            q = elementwise::mul(&attention::l2_normalise(&q)?, factor)?;
            k = attention::l2_normalise(&k)?;
        }
        (q, k) = (turn(q)?, turn(k)?);
        let mut v = qkv.narrow(1, 2 * heads, heads)?;
        if let Some(cache) = cache {
            cache.append(&k, &v)?;
            (k, v) = (cache.k(), cache.v());
        }
        let h = attention::attention(&q, &k, &v, options)?.y;
        self.proj.run(&h.permute(&[0, 2, 1, 3])?.reshape(&[batch, seq, dim])?)
    }
}

/// A network of two layers with a GELU between: `fc1`, `fc2`.
pub(crate) struct Mlp([Linear; 2]);

impl Mlp {
    /// Loads both layers under the loader's prefix.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, dim: usize) -> Result<Self> {
        let hidden = loader.length("fc1.weight", 0);
        Ok(Self([Linear::load(loader, "fc1", [hidden, dim])?, Linear::load(loader, "fc2", [dim, hidden])?]))
    }

    /// The network's output.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        self.0[1].run(&activation::activation(&self.0[0].run(x)?, activation::Activation::GeluTanh)?)
    }
}

/// Where a block's modulations come from: vectors of `dim` channels, first the gates, then the scales, then the shifts.
pub(crate) enum Modulation {
    /// Its own linear layer of the condition.
    Own(Linear),
    /// An offset of its own, added to modulations that all blocks share.
    Shared(Tensor<f32>),
}

/// A condition as blocks take it, with the modulations that they have made of it: these are the same for all places and
/// passes.
pub struct Condition<T: smalti::Element> {
    /// The condition itself, `[batch, dim]`.
    pub(crate) given: Tensor<T>,
    /// After its activation.
    active: Tensor<T>,
    /// The modulations that blocks share, `[batch, vectors * dim]`.
    shared: Option<Tensor<T>>,
    /// Of each block, once it has run.
    made: Vec<OnceLock<Vec<Tensor<T>>>>,
}

impl<T: Float> Condition<T> {
    /// Of `[batch, dim]`, for this many blocks, with the linear layer of the modulations that all share, if they do.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub(crate) fn new(given: &Tensor<T>, shared: Option<&Linear>, blocks: usize) -> Result<Self> {
        let active = activation::activation(given, activation::Activation::Silu)?;
        let shared = shared.map(|shared| shared.run(&active)).transpose()?;
        Ok(Self { given: given.clone(), active, shared, made: (0..blocks).map(|_| OnceLock::new()).collect() })
    }
}

impl Modulation {
    /// Loads `ada_gss` if blocks share modulations, else `ada_lin.1`, for this many vectors.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, shared: bool, vectors: usize, dim: usize) -> Result<Self> {
        match shared {
            true => Ok(Self::Shared(loader.vector("ada_gss", &[1, 1, vectors, dim])?.reshape(&[1, vectors * dim])?)),
            false => Ok(Self::Own(Linear::load(loader, "ada_lin.1", [vectors * dim, dim])?)),
        }
    }

    /// The vectors of this block, each `[batch, 1, dim]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, condition: &Condition<T>, block: usize) -> Result<Vec<Tensor<T>>> {
        let made = &condition.made[block];
        if made.get().is_none() {
            // If another thread was faster, its vectors are the same.
            let _ = made.set(self.make(&condition.active, condition.shared.as_ref())?);
        }
        Ok(made.get().cloned().unwrap_or_default())
    }

    /// The vectors, of a condition after its activation and the modulations that blocks share, if they do.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn make<T: Float>(&self, active: &Tensor<T>, shared: Option<&Tensor<T>>) -> Result<Vec<Tensor<T>>> {
        let all = match (self, shared) {
            (Self::Own(layer), _) => layer.run(active)?,
            (Self::Shared(offset), Some(shared)) => elementwise::add(shared, &smalti::copy::convert(offset)?)?,
            (Self::Shared(_), None) => unreachable!("offsets are loaded with the shared layer only"),
        };
        let (batch, dim) = (active.shape()[0], active.shape()[1]);
        let vectors = all.shape()[1] / dim.max(1);
        let all = all.reshape(&[batch, vectors, 1, dim])?;
        (0..vectors).map(|index| Ok(all.narrow(1, index, 1)?.reshape(&[batch, 1, dim])?)).collect()
    }
}

struct Block<T: smalti::Element> {
    modulation: Modulation,
    attn: SelfAttention<T>,
    ffn: Mlp,
}

/// A stack of blocks.
pub struct AdaLn<T: smalti::Element> {
    dim: usize,
    heads: usize,
    norm: Norm,
    /// The linear layer of the modulations that all blocks share, if they do.
    shared: Option<Linear>,
    blocks: Vec<Block<T>>,
}

/// A linear layer with its bias.
pub(crate) fn layer(loader: &Loader<'_>, name: &str, shape: [usize; 2]) -> Result<(Weight, Tensor<f32>)> {
    let at = loader.at(name);
    Ok((at.weight("weight", &shape)?, at.vector("bias", &shape[..1])?))
}

/// `shared_ada_lin` under the loader's prefix, for this many vectors, if it is there.
///
/// # Errors
/// If the device has no room.
pub(crate) fn shared_modulation(loader: &Loader<'_>, vectors: usize, dim: usize) -> Result<Option<Linear>> {
    let shared = loader.has("shared_ada_lin");
    shared.then(|| Linear::load(loader, "shared_ada_lin.1", [vectors * dim, dim])).transpose()
}

impl<T: Float> AdaLn<T> {
    /// Loads `NAME.N` for each of the names, one stack after the other, and, if it is there, `shared_ada_lin` under the
    /// loader's prefix.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, names: &[&str], dim: usize, heads: usize, norm_eps: f32) -> Result<Self> {
        let shared = shared_modulation(loader, 6, dim)?;
        let all = names.iter().flat_map(|name| (0..loader.count(name)).map(move |index| (*name, index)));
        let blocks = all.map(|(name, index)| {
            let at = loader.at(name).at(index);
            Ok(Block {
                modulation: Modulation::load(&at, shared.is_some(), 6, dim)?,
                attn: SelfAttention::load(&at.at("attn"), "mat_qkv", dim, heads)?,
                ffn: Mlp::load(&at.at("ffn"), dim)?,
            })
        });
        let blocks = blocks.collect::<Result<_>>()?;
        Ok(Self { dim, heads, norm: Norm::Layer(None, norm_eps), shared, blocks })
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
    pub fn caches(&self, device: &Device, batch: usize, capacity: usize) -> Result<Vec<KvCache<T>>> {
        self.blocks.iter().map(|block| block.attn.cache(device, batch, capacity)).collect()
    }

    /// The scale of scores for [`AdaLn::run`]'s options: a quarter of the usual one, unless vectors are brought to
    /// length 1.
    #[must_use]
    pub fn options(&self) -> Options {
        let head_dim = self.dim / self.heads.max(1);
        let plain = 0.25 / (head_dim as f32).sqrt();
        self.blocks.first().map_or_else(|| Options::new(plain), |block| block.attn.options(plain))
    }

    /// A condition `[batch, dim]`, for any number of runs.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn condition(&self, condition: &Tensor<T>) -> Result<Condition<T>> {
        Condition::new(condition, self.shared.as_ref(), self.blocks.len())
    }

    /// Runs the places of `x` (`[batch, seq, dim]`) after those in the caches, and appends them there.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run(
        &self,
        x: &Tensor<T>,
        condition: &Condition<T>,
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
        condition: &Condition<T>,
        mut caches: Option<&mut [KvCache<T>]>,
        options: &Options,
    ) -> Result<Tensor<T>> {
        let mut x = x.clone();
        let first = range.start;
        for (index, block) in self.blocks[range].iter().enumerate() {
            let six = block.modulation.run(condition, first + index)?;
            let h = norm::modulate(&self.norm.run(&x)?, &six[2], &six[4])?;
            let cache = caches.as_mut().map(|caches| &mut caches[index]);
            x = norm::gated_add(&x, &six[0], &block.attn.run(&h, Ok, cache, options)?)?;
            let h = norm::modulate(&self.norm.run(&x)?, &six[3], &six[5])?;
            x = norm::gated_add(&x, &six[1], &block.ffn.run(&h)?)?;
        }
        Ok(x)
    }
}

/// A modulated norm and a softmax head.
pub struct ModulatedHead {
    modulation: Linear,
    head: Linear,
    norm: Norm,
}

impl ModulatedHead {
    /// Loads `NORM.ada_lin.1` and `HEAD`; the norm is an RMS norm if it has a weight.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, norm: &str, head: &str, dim: usize, norm_eps: f32) -> Result<Self> {
        let vocabulary = loader.at(head).length("weight", 0);
        Ok(Self {
            modulation: Linear::load(loader, &format!("{norm}.ada_lin.1"), [2 * dim, dim])?,
            head: Linear::load(loader, head, [vocabulary, dim])?,
            norm: Norm::bare_or_rms(loader, &format!("{norm}.ln_wo_grad"), dim, norm_eps)?,
        })
    }

    /// How many logits it gives.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.head.outputs()
    }

    /// Logits of states `[batch, seq, dim]` under a condition `[batch, dim]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, x: &Tensor<T>, condition: &Tensor<T>) -> Result<Tensor<T>> {
        let (rows, dim) = (condition.shape()[0], condition.shape()[1]);
        let active = activation::activation(condition, activation::Activation::Silu)?;
        let two = self.modulation.run(&active)?;
        let two = two.reshape(&[rows, 2, 1, dim])?;
        let part = |index: usize| two.narrow(1, index, 1)?.reshape(&[rows, 1, dim]);
        self.head.run(&norm::modulate(&self.norm.run(x)?, &part(0)?, &part(1)?)?)
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
