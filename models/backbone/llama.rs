//! The Llama block: RMS norm, rotary attention with a cache, SwiGLU.
//!
//! Source: Touvron et al. 2023, arXiv:2302.13971, section 2.2; names from LlamaGen's `gpt.py`.

use std::ops::Range;

use smalti::attention::{self, KvCache, Options};
use smalti::rope::{self, Pairing, Table};
use smalti::{Device, Float, Tensor, Weight, activation, elementwise, linear, norm};

use crate::weights::{Config, Loader};
use crate::{Error, Result};

/// Sizes that shapes alone cannot tell.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Channels of the residual stream.
    pub dim: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Of every RMS norm.
    pub norm_eps: f32,
}

impl Sizes {
    /// Of blocks of `dim` channels: the configuration's `n_head`, `n_kv_head` and `norm_eps`, or what is official: heads of
    /// 64 channels, but for 3B and 7B, which have 32, and as many for keys as the first block's matrix has rows.
    #[must_use]
    pub fn read(loader: &Loader<'_>, config: &Config, dim: usize) -> Self {
        let heads = config.count("n_head").unwrap_or(if matches!(dim, 3200 | 4096) { 32 } else { dim / 64 });
        let head_dim = dim / heads.max(1);
        // Its rows are queries, keys and values.
        let kv_heads = match loader.length("layers.0.attention.wqkv.weight", 0) / head_dim.max(1) {
            0 => heads,
            all => all.saturating_sub(heads) / 2,
        };
        let kv_heads = config.count("n_kv_head").unwrap_or(kv_heads);
        Self { dim, heads, kv_heads, norm_eps: config.number("norm_eps").unwrap_or(1e-5) }
    }

    /// Whether the heads share the channels, and heads of keys those of queries.
    #[must_use]
    pub fn fit(&self) -> bool {
        self.dim > 0 && self.dim.is_multiple_of(self.heads) && self.heads.is_multiple_of(self.kv_heads)
    }

    /// Channels of one head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.dim / self.heads.max(1)
    }
}

struct Block {
    attention_norm: Tensor<f32>,
    wqkv: Weight,
    wo: Weight,
    feed_forward: FeedForward,
}

/// The second half of a block: RMS norm, SwiGLU, residual.
pub struct FeedForward {
    norm: Tensor<f32>,
    norm_eps: f32,
    w1: Weight,
    w2: Weight,
    /// `w1` holds both where it is absent.
    w3: Option<Weight>,
}

impl FeedForward {
    /// Loads `ffn_norm` and `NAME.w1` to `NAME.w3` for `dim` channels; or `w3` is the lower half of `w1`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, name: &str, dim: usize, norm_eps: f32) -> Result<Self> {
        let at = loader.at(name);
        let rows = at.length("w1.weight", 0);
        let both = !at.has("w3") && at.shape("w2.weight").is_some_and(|shape| shape.get(1) == Some(&(rows / 2)));
        let hidden = if both { rows / 2 } else { rows };
        Ok(Self {
            norm: loader.vector("ffn_norm.weight", &[dim])?,
            norm_eps,
            w1: at.weight("w1.weight", &[rows, dim])?,
            w2: at.weight("w2.weight", &[dim, hidden])?,
            w3: if both { None } else { Some(at.weight("w3.weight", &[hidden, dim])?) },
        })
    }

    /// `x + w2 (silu(w1 h) * w3 h)` with `h` the norm of `x`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let h = norm::rms_norm(x, Some(&self.norm), self.norm_eps)?;
        let gate = linear::linear(&h, &self.w1, None)?;
        let h = match &self.w3 {
            Some(w3) => activation::swiglu(&gate, &linear::linear(&h, w3, None)?)?,
            None => gated_by_half(&gate)?,
        };
        let h = linear::linear(&h, &self.w2, None)?;
        Ok(elementwise::add(x, &h)?)
    }
}

/// `silu(gate) * up` of `[.., gate up]`.
///
/// # Errors
/// If the last axis is odd or the device fails.
pub fn gated_by_half<T: Float>(both: &Tensor<T>) -> Result<Tensor<T>> {
    let axis = both.shape().len().saturating_sub(1);
    let hidden = both.shape().last().copied().unwrap_or(0) / 2;
    Ok(activation::swiglu(&both.narrow(axis, 0, hidden)?, &both.narrow(axis, hidden, hidden)?)?)
}

/// A stack of Llama blocks.
pub struct Blocks {
    sizes: Sizes,
    blocks: Vec<Block>,
}

impl Blocks {
    /// Loads `layers.N` under the loader's prefix.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, sizes: Sizes) -> Result<Self> {
        let dim = sizes.dim;
        let qkv = (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim();
        let blocks = (0..loader.count("layers")).map(|index| {
            let at = loader.at("layers").at(index);
            Ok(Block {
                attention_norm: at.vector("attention_norm.weight", &[dim])?,
                wqkv: at.weight("attention.wqkv.weight", &[qkv, dim])?,
                wo: at.weight("attention.wo.weight", &[dim, dim])?,
                feed_forward: FeedForward::load(&at, "feed_forward", dim, sizes.norm_eps)?,
            })
        });
        Ok(Self { sizes, blocks: blocks.collect::<Result<_>>()? })
    }

    /// Its sizes.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// How many blocks there are.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Empty caches for sequences of at most `capacity` places, one per block.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn caches<T: Float>(&self, device: &Device, batch: usize, capacity: usize) -> Result<Vec<KvCache<T>>> {
        let cache = || KvCache::new(device, batch, self.sizes.kv_heads, capacity, self.sizes.head_dim());
        self.blocks.iter().map(|_| Ok(cache()?)).collect()
    }

    /// Runs the places of `x` (`[batch, seq, dim]`) after those in the caches through the blocks `range`, and appends
    /// them to the caches of these. `options` masks the scores of these places against all that a cache then holds;
    /// `rotary` turns queries and keys: a table, and its row for the first of these places.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(
        &self,
        range: Range<usize>,
        x: &Tensor<T>,
        rotary: Option<(&Table, usize)>,
        caches: &mut [KvCache<T>],
        options: &Options,
    ) -> Result<Tensor<T>> {
        let &[batch, seq, dim] = x.shape() else {
            return Err(Error::Request(format!("a sequence of shape {:?}, expected [batch, seq, dim]", x.shape())));
        };
        let Sizes { heads, kv_heads, norm_eps, .. } = self.sizes;
        let head_dim = self.sizes.head_dim();
        let mut x = x.clone();
        for (block, cache) in self.blocks[range.clone()].iter().zip(&mut caches[range]) {
            let h = norm::rms_norm(&x, Some(&block.attention_norm), norm_eps)?;
            let qkv = linear::linear(&h, &block.wqkv, None)?;
            let qkv = qkv.reshape(&[batch, seq, heads + 2 * kv_heads, head_dim])?.permute(&[0, 2, 1, 3])?;
            let (mut q, mut k) = (qkv.narrow(1, 0, heads)?, qkv.narrow(1, heads, kv_heads)?);
            if let Some((table, start)) = rotary {
                q = rope::rope(&q, table, start, Pairing::Interleaved)?;
                k = rope::rope(&k, table, start, Pairing::Interleaved)?;
            }
            cache.append(&k, &qkv.narrow(1, heads + kv_heads, kv_heads)?)?;
            let h = attention::attention(&q, &cache.k(), &cache.v(), options)?.y;
            let h = h.permute(&[0, 2, 1, 3])?.reshape(&[batch, seq, dim])?;
            x = elementwise::add(&x, &linear::linear(&h, &block.wo, None)?)?;
            x = block.feed_forward.run(&x)?;
        }
        Ok(x)
    }
}

/// A stack of Llama blocks with its final norm.
pub struct Llama {
    blocks: Blocks,
    norm: Tensor<f32>,
}

impl Llama {
    /// Loads `layers.N` and `norm` under the loader's prefix.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, sizes: Sizes) -> Result<Self> {
        Ok(Self { blocks: Blocks::load(loader, sizes)?, norm: loader.vector("norm.weight", &[sizes.dim])? })
    }

    /// Its sizes.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.blocks.sizes
    }

    /// How many blocks there are.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.blocks.depth()
    }

    /// Empty caches for sequences of at most `capacity` places.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn caches<T: Float>(&self, batch: usize, capacity: usize) -> Result<Vec<KvCache<T>>> {
        self.blocks.caches(self.norm.device(), batch, capacity)
    }

    /// All blocks, as [`Blocks::run`], then the norm. The table has a row per place of the caches.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(
        &self,
        x: &Tensor<T>,
        table: &Table,
        caches: &mut [KvCache<T>],
        options: &Options,
    ) -> Result<Tensor<T>> {
        let start = caches.first().map_or(0, KvCache::len);
        self.run_at(x, (table, start), caches, options)
    }

    /// The same where the rows of the table are not those of the caches: `rotary` is as in [`Blocks::run`].
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run_at<T: Float>(
        &self,
        x: &Tensor<T>,
        rotary: (&Table, usize),
        caches: &mut [KvCache<T>],
        options: &Options,
    ) -> Result<Tensor<T>> {
        self.run_led(x, rotary, caches, options, |_, x| Ok(x))
    }

    /// The same where `before` changes what a block, named by its number, is given.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails, or whatever `before` returns.
    pub fn run_led<T: Float>(
        &self,
        x: &Tensor<T>,
        rotary: (&Table, usize),
        caches: &mut [KvCache<T>],
        options: &Options,
        mut before: impl FnMut(usize, Tensor<T>) -> Result<Tensor<T>>,
    ) -> Result<Tensor<T>> {
        let mut x = x.clone();
        for block in 0..self.blocks.depth() {
            x = self.blocks.run(block..block + 1, &before(block, x)?, Some(rotary), caches, options)?;
        }
        Ok(norm::rms_norm(&x, Some(&self.norm), self.blocks.sizes.norm_eps)?)
    }
}
