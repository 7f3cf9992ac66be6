//! Gaussian mixtures over a few values, drawn with guidance by candidates.
//!
//! Source: Zhao et al. 2025, arXiv:2503.02883, section 3.3; Tschannen et al. 2023, arXiv:2312.02116 (GIVT), section 3.2,
//! whose guidance this replaces.

use smalti::sample::{self, Draws, Filter};
use smalti::{Float, Tensor, copy, elementwise, mixture};

use crate::decode::Chance;
use crate::{Error, Result};

/// A mixture for each row: means, logarithms of variances, logits of the components.
///
/// They are f32 whatever a model computes in, since ratios of densities decide which value is kept.
pub struct Mixtures {
    parameters: Tensor<f32>,
    components: usize,
    /// Values that one draw gives.
    values: usize,
}

impl Mixtures {
    /// Reads `[.., 2 components values + components]`, a mixture for each row.
    ///
    /// # Errors
    /// If a row has another length or the device fails.
    pub fn read<T: Float>(parameters: &Tensor<T>, components: usize, values: usize) -> Result<Self> {
        let length = (2 * values + 1) * components;
        if length == 0 || parameters.shape().last() != Some(&length) {
            let shape = parameters.shape();
            return Err(Error::Request(format!("mixtures of shape {shape:?}, expected rows of {length} parameters")));
        }
        let rows = parameters.reshape(&[parameters.elements() / length, length])?;
        Ok(Self { parameters: copy::convert(&rows)?, components, values })
    }

    fn rows(&self, first: usize, count: usize) -> Result<Self> {
        let Self { components, values, .. } = *self;
        Ok(Self { parameters: self.parameters.narrow(0, first, count)?, components, values })
    }

    fn of(&self) -> mixture::Mixtures<'_> {
        mixture::Mixtures { parameters: &self.parameters, components: self.components }
    }

    /// The natural logarithm of each row's density at some values, `[rows, candidates, values]`: `[rows, candidates]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn log_density(&self, x: &Tensor<f32>) -> Result<Tensor<f32>> {
        Ok(mixture::log_density(self.of(), x)?)
    }

    /// One draw for each row: `[rows, values]`. Guided by `(scale, candidates)`, the second half of the mixtures are the
    /// first half's without the condition, and of so many candidates of the conditional mixture one is kept, drawn by
    /// its ratio of densities to the power of `scale - 1`.
    ///
    /// # Errors
    /// Whatever `chance` returns, or if the device fails.
    pub fn sample(
        &self,
        guide: Option<(f64, usize)>,
        temperature: f64,
        chance: &mut dyn Chance,
    ) -> Result<Tensor<f32>> {
        let all = self.parameters.shape()[0];
        let rows = if guide.is_some() { all / 2 } else { all };
        let candidates = guide.map_or(1, |(_, candidates)| candidates.max(1));
        let (components, values, device) = (self.components, self.values, self.parameters.device());
        let normals = chance.normals(rows, candidates * components * values)?.into_iter().map(|normal| normal as f32);
        let normals = Tensor::from_vec(device, &[rows, candidates, components, values], normals.collect())?;

        let given = self.rows(0, rows)?;
        let logits = given.parameters.narrow(1, 2 * components * values, components)?;
        let logits = logits.reshape(&[rows, 1, components])?.broadcast(&[rows, candidates, components])?;
        let logits = logits.contiguous()?.reshape(&[rows * candidates, components])?;
        let chosen = index(&logits, chance.uniforms(rows, candidates)?)?.reshape(&[rows, candidates])?;
        let draw = |kept| mixture::draw(given.of(), &chosen, &normals, kept, temperature as f32);
        let Some((scale, _)) = guide else { return Ok(draw(None)?.reshape(&[rows, values])?) };
        let drawn = draw(None)?;
        let [with, without] = [given.log_density(&drawn)?, self.rows(rows, rows)?.log_density(&drawn)?];
        let power = (scale - 1.0) as f32;
        let ratios = elementwise::scale_add(&with, power, &without, -power)?;
        let kept = index(&ratios, chance.uniforms(rows, 1)?)?;
        Ok(draw(Some(&kept))?.reshape(&[rows, values])?)
    }
}

/// The index that each of `numbers` in [0, 1) chooses by the softmax of a row of logits.
fn index(logits: &Tensor<f32>, numbers: Vec<f64>) -> Result<Tensor<u32>> {
    // What is nearest to 1 is not 1.
    let below_one = |number: f64| (number as f32).min(1.0 - f32::EPSILON / 2.0);
    let draws = Draws::Uniform(numbers.into_iter().map(below_one).collect());
    Ok(sample::sample(logits, &Filter::default(), &draws)?)
}
