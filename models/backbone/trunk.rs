//! A table of codes, Llama blocks and a softmax head over codes: what LlamaGen's descendants are built on.
//!
//! Source: Sun et al. 2024, arXiv:2406.06525, section 2.2; names from LlamaGen's `gpt.py`.

use smalti::attention::{Align, KvCache, Mask, Options};
use smalti::rope::Table;
use smalti::{Float, Tensor, Weight, embedding, linear};

use super::llama::{Llama, Sizes};
use crate::Result;
use crate::weights::{Config, Loader};

/// The parts between tokens and logits.
pub struct Trunk {
    tokens: Weight,
    llama: Llama,
    output: Weight,
}

impl Trunk {
    /// Loads `layers`, `norm`, `output` and the table of codes, whose name differs among systems; sizes as [`Sizes::read`].
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, config: &Config, tokens: &str) -> Result<Self> {
        let [rows, dim] = loader.lengths(tokens);
        Self::load_after(loader, config, loader.weight(tokens, &[rows, dim])?)
    }

    /// The same after a table of codes that comes from elsewhere.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load_after(loader: &Loader<'_>, config: &Config, tokens: Weight) -> Result<Self> {
        let dim = tokens.shape()[1];
        let sizes = Sizes::read(loader, config, dim);
        let sizes = Sizes { heads: sizes.heads.max(1), ..sizes };
        Ok(Self {
            tokens,
            llama: Llama::load(loader, sizes)?,
            output: loader.weight("output.weight", &[loader.length("output.weight", 0), dim])?,
        })
    }

    /// Channels of the residual stream.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.llama.sizes().dim
    }

    /// Channels of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.llama.sizes().head_dim()
    }

    /// How many blocks there are.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.llama.depth()
    }

    /// How many tokens the head tells apart.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.output.shape()[0]
    }

    /// The table of codes, and how many of them the head tells apart.
    #[must_use]
    pub fn drafted(&self) -> (&Weight, usize) {
        (&self.tokens, self.vocabulary())
    }

    /// The rows of tokens `[batch, seq]`: `[batch, seq, dim]`.
    ///
    /// # Errors
    /// If a token is out of range or the device fails.
    pub fn embed<T: Float>(&self, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        Ok(embedding::embedding(&self.tokens, tokens)?)
    }

    /// Empty caches for sequences of at most `capacity` places.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn caches<T: Float>(&self, batch: usize, capacity: usize) -> Result<Vec<KvCache<T>>> {
        self.llama.caches(batch, capacity)
    }

    /// Scaled scores and this mask.
    #[must_use]
    pub fn options(&self, mask: Mask) -> Options {
        Options::new((self.head_dim() as f32).powf(-0.5)).mask(mask)
    }

    /// [`Trunk::options`] with a causal mask, the queries being the last places.
    #[must_use]
    pub fn causal(&self) -> Options {
        self.options(Mask::Causal { align: Align::BottomRight })
    }

    /// The logits of `x` (`[batch, seq, dim]`), run as [`Llama::run`].
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn logits<T: Float>(
        &self,
        x: &Tensor<T>,
        table: &Table,
        caches: &mut [KvCache<T>],
        options: &Options,
    ) -> Result<Tensor<T>> {
        Ok(linear::linear(&self.llama.run(x, table, caches, options)?, &self.output, None)?)
    }

    /// The logits of `x`, run as [`Llama::run_at`].
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn logits_at<T: Float>(
        &self,
        x: &Tensor<T>,
        rotary: (&Table, usize),
        caches: &mut [KvCache<T>],
        options: &Options,
    ) -> Result<Tensor<T>> {
        Ok(linear::linear(&self.llama.run_at(x, rotary, caches, options)?, &self.output, None)?)
    }

    /// The logits of `x`, run as [`Llama::run_led`].
    ///
    /// # Errors
    /// As there.
    pub fn logits_led<T: Float>(
        &self,
        x: &Tensor<T>,
        rotary: (&Table, usize),
        caches: &mut [KvCache<T>],
        options: &Options,
        before: impl FnMut(usize, Tensor<T>) -> Result<Tensor<T>>,
    ) -> Result<Tensor<T>> {
        Ok(linear::linear(&self.llama.run_led(x, rotary, caches, options, before)?, &self.output, None)?)
    }
}
