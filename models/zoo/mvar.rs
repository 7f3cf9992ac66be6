//! M-VAR: VAR with attention inside a scale alone, and Mamba-2 across the scales.
//!
//! | part      | here                                                                          |
//! |-----------|-------------------------------------------------------------------------------|
//! | tokenizer | VAR's                                                                         |
//! | backbone  | VAR's halves of a block, a Mamba-2 mixer over all places between them, each with its own |
//! |           | gate, scale and shift of the class (section 3.2)                              |
//! | order     | scale by scale, all places of a scale at once                                 |
//! | mask      | a scale sees itself; what came before reaches it through the mixer alone      |
//! | position  | as VAR                                                                        |
//! | head      | as VAR                                                                        |
//! | decoder   | as VAR; instead of keys and values a block remembers the mixer's state        |
//! | guidance  | as VAR                                                                        |
//!
//! While drawing, the official code runs the mixer over all places again at each scale; handing its state on gives the
//! same.
//!
//! Paper: Ren et al. 2024, arXiv:2411.10433. Upstream: OliverRensu/MVAR, `models/basic_mvar.py`.

use smalti::attention::{Mask, ScalesKind};
use smalti::{Device, Float, Tensor, norm};

use super::var::{Backbone, Var};
use crate::Result;
use crate::backbone::adaln::{Condition, Mlp, Modulation, Norm, SelfAttention};
use crate::backbone::mamba::{Mamba2, MambaState};
use crate::weights::Loader;

/// The model with its weights on a device.
pub type MVar<T> = Var<T, Blocks<T>>;

/// Its blocks.
pub struct Blocks<T: smalti::Element> {
    norm: Norm,
    /// The scale of scores, unless they are those of unit vectors.
    scale: f32,
    blocks: Vec<Block<T>>,
}

struct Block<T: smalti::Element> {
    /// Gates of attention, mixer and network, then their scales, then their shifts.
    modulation: Modulation,
    attn: SelfAttention<T>,
    mamba: Mamba2,
    ffn: Mlp,
}

impl<T: smalti::Element> Blocks<T> {
    /// The mixer of a block.
    #[must_use]
    pub fn mixer(&self, block: usize) -> Option<&Mamba2> {
        self.blocks.get(block).map(|block| &block.mamba)
    }
}

impl<T: Float> Backbone<T> for Blocks<T> {
    const SYSTEM: &'static str = "mvar";
    type State = Vec<MambaState<T>>;

    fn load(loader: &Loader<'_>, dim: usize, heads: usize, norm_eps: f32) -> Result<Self> {
        let blocks = (0..loader.count("blocks")).map(|index| {
            let at = loader.at("blocks").at(index);
            Ok(Block {
                modulation: Modulation::load(&at, false, 9, dim)?,
                attn: SelfAttention::load(&at.at("attn"), "mat_qkv", dim, heads)?,
                mamba: Mamba2::load(&at.at("mamba"), dim, 1e-5)?,
                ffn: Mlp::load(&at.at("ffn"), dim)?,
            })
        });
        let scale = 0.25 / ((dim / heads.max(1)) as f32).sqrt();
        Ok(Self { norm: Norm::Layer(None, norm_eps), scale, blocks: blocks.collect::<Result<_>>()? })
    }

    fn start(&self, device: &Device, batch: usize, _places: usize) -> Result<Self::State> {
        self.blocks.iter().map(|block| block.mamba.start(device, batch)).collect()
    }

    fn condition(&self, condition: &Tensor<T>) -> Result<Condition<T>> {
        Condition::new(condition, None, self.blocks.len())
    }

    fn run(
        &self,
        x: &Tensor<T>,
        condition: &Condition<T>,
        state: &mut Self::State,
        sides: &[usize],
    ) -> Result<Tensor<T>> {
        let mask = Mask::Scales { patch_nums: sides.to_vec(), kind: ScalesKind::MarkovSelf };
        let mut x = x.clone();
        for (index, (block, state)) in self.blocks.iter().zip(state).enumerate() {
            let nine = block.modulation.run(condition, index)?;
            let inner = |x: &Tensor<T>, part: usize| -> Result<Tensor<T>> {
                Ok(norm::modulate(&self.norm.run(x)?, &nine[3 + part], &nine[6 + part])?)
            };
            let options = block.attn.options(self.scale).mask(mask.clone());
            x = norm::gated_add(&x, &nine[0], &block.attn.run(&inner(&x, 0)?, Ok, None, &options)?)?;
            x = norm::gated_add(&x, &nine[1], &block.mamba.run(&inner(&x, 1)?, state)?)?;
            x = norm::gated_add(&x, &nine[2], &block.ffn.run(&inner(&x, 2)?)?)?;
        }
        Ok(x)
    }
}
