//! The network of a continuous head: residual layers over one token, modulated by a time and the transformer's state there.
//!
//! Source: Li et al. 2024, arXiv:2406.11838, section 3.2 and appendix; names from MAR's `diffloss.py`.

use smalti::{Float, Tensor, activation, elementwise, norm};

use crate::backbone::condition::TimeEmbedding;
use crate::backbone::vit::{LayerNorm, Linear};
use crate::weights::Loader;
use crate::{Error, Result};

/// Of every norm here.
const EPS: f32 = 1e-6;

struct Block {
    norm: LayerNorm,
    mlp: [Linear; 2],
    modulation: Linear,
}

/// The network.
pub struct ModulatedMlp {
    channels: usize,
    width: usize,
    time: TimeEmbedding,
    condition: Linear,
    /// Of a level that the token belongs to, where the weights have it.
    level: Option<Linear>,
    input: Linear,
    blocks: Vec<Block>,
    last_modulation: Linear,
    last: Linear,
}

fn silu<T: Float>(x: &Tensor<T>) -> Result<Tensor<T>> {
    Ok(activation::activation(x, activation::Activation::Silu)?)
}

impl ModulatedMlp {
    /// Loads the official names under the loader's prefix.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>) -> Result<Self> {
        let [width, channels] = loader.lengths("input_proj.weight");
        let condition = loader.length("cond_embed.weight", 1);
        let outputs = loader.length("final_layer.linear.weight", 0);
        let square = |at: &Loader<'_>, name: &str| Linear::load(at, name, [width, width]);
        let blocks = (0..loader.count("res_blocks")).map(|index| {
            let at = loader.at("res_blocks").at(index);
            Ok(Block {
                norm: LayerNorm::load(&at, "in_ln", width, EPS)?,
                mlp: [square(&at, "mlp.0")?, square(&at, "mlp.2")?],
                modulation: Linear::load(&at, "adaLN_modulation.1", [3 * width, width])?,
            })
        });
        Ok(Self {
            channels,
            width,
            time: TimeEmbedding::load(loader, "time_embed", width)?,
            condition: Linear::load(loader, "cond_embed", [width, condition])?,
            level: match loader.has("index_cond_embed") {
                true => Some(Linear::load(loader, "index_cond_embed", [width, 1])?),
                false => None,
            },
            input: Linear::load(loader, "input_proj", [width, channels])?,
            blocks: blocks.collect::<Result<_>>()?,
            last_modulation: Linear::load(loader, "final_layer.adaLN_modulation.1", [2 * width, width])?,
            last: Linear::load(loader, "final_layer.linear", [outputs, width])?,
        })
    }

    /// Values of a token.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// What it takes of the states `z` (`[rows, dim]`) and, if it knows levels, of one per row or one for all:
    /// `[rows, width]`.
    ///
    /// # Errors
    /// [`Error::Request`] if there are levels and it knows none, or the reverse; [`Error::Op`] if shapes do not fit or
    /// the device fails.
    pub fn condition<T: Float>(&self, z: &Tensor<T>, levels: &[f32]) -> Result<Tensor<T>> {
        let condition = self.condition.run(z)?;
        match &self.level {
            None if levels.is_empty() => Ok(condition),
            Some(level) if !levels.is_empty() => {
                let values = levels.iter().copied().map(T::from_f32).collect();
                let levels = level.run(&Tensor::from_vec(z.device(), &[levels.len(), 1], values)?)?;
                Ok(elementwise::add(&condition, &levels)?)
            }
            Some(_) => Err(Error::Request("a head that is told of levels was told of none".to_owned())),
            None => Err(Error::Request("a head that knows no levels was told of some".to_owned())),
        }
    }

    /// What it predicts of tokens `x` (`[rows, channels]`) at `times` (one per row, or one) under a
    /// [`ModulatedMlp::condition`]: `[rows, outputs]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, x: &Tensor<T>, times: &[f64], condition: &Tensor<T>) -> Result<Tensor<T>> {
        let rows = x.shape()[0];
        let y = silu(&elementwise::add(condition, &self.time.run(x.device(), times)?)?)?;
        let mut h = self.input.run(x)?.reshape(&[rows, 1, self.width])?;
        let parts = |modulation: &Linear, count: usize| {
            let all = modulation.run(&y)?.reshape(&[rows, count, 1, self.width])?;
            let part = |index: usize| all.narrow(1, index, 1)?.reshape(&[rows, 1, self.width]);
            (0..count).map(part).collect::<smalti::Result<Vec<_>>>().map_err(Error::from)
        };
        for block in &self.blocks {
            let parts = parts(&block.modulation, 3)?;
            let inner = norm::modulate(&block.norm.run(&h)?, &parts[1], &parts[0])?;
            let inner = block.mlp[1].run(&silu(&block.mlp[0].run(&inner)?)?)?;
            h = norm::gated_add(&h, &parts[2], &inner)?;
        }
        let parts = parts(&self.last_modulation, 2)?;
        let h = norm::modulate(&norm::layer_norm(&h, None, None, EPS)?, &parts[1], &parts[0])?;
        let y = self.last.run(&h)?;
        Ok(y.reshape(&[rows, y.shape()[2]])?)
    }
}
