//! Gaussian mixtures over a few values, drawn with guidance by candidates.
//!
//! A draw needs a few numbers of each row, and their logarithms, exponentials and sums decide which value is kept: all
//! of it is computed in f64 on the host, so that every backend keeps the same candidate.
//!
//! Source: Zhao et al. 2025, arXiv:2503.02883, section 3.3; Tschannen et al. 2023, arXiv:2312.02116 (GIVT), section 3.2,
//! whose guidance this replaces.

use std::f64::consts::TAU;

use smalti::{Float, Tensor};

use crate::decode::Chance;
use crate::{Error, Result};

/// A mixture for each row: means, logarithms of variances, logits of the components.
pub struct Mixtures {
    components: usize,
    /// Values that one draw gives.
    values: usize,
    /// Component by component, value by value; then as many logarithms of variances, then the logits.
    rows: Vec<Vec<f64>>,
}

impl Mixtures {
    /// Reads `[rows, 2 components values + components]`.
    ///
    /// # Errors
    /// If a row has another length or the device fails.
    pub fn read<T: Float>(parameters: &Tensor<T>, components: usize, values: usize) -> Result<Self> {
        let length = (2 * values + 1) * components;
        if length == 0 || parameters.shape().last() != Some(&length) {
            let shape = parameters.shape();
            return Err(Error::Request(format!("mixtures of shape {shape:?}, expected rows of {length} parameters")));
        }
        let all: Vec<f64> = parameters.to_vec()?.iter().map(|parameter| parameter.to_f64()).collect();
        Ok(Self { components, values, rows: all.chunks(length).map(<[f64]>::to_vec).collect() })
    }

    /// Means, logarithms of variances and logits of a row.
    fn parts(&self, row: usize) -> [&[f64]; 3] {
        let (means, rest) = self.rows[row].split_at(self.components * self.values);
        let (log_variances, logits) = rest.split_at(self.components * self.values);
        [means, log_variances, logits]
    }

    /// The natural logarithm of a row's density at `x`.
    ///
    /// `ln sum over g of w[g] prod over c of N(x[c]; mean[g, c], exp(log_variance[g, c]))`, `w = softmax(logits)`
    #[must_use]
    pub fn log_density(&self, row: usize, x: &[f64]) -> f64 {
        let [means, log_variances, logits] = self.parts(row);
        let of_component = |component: usize| {
            let at = component * self.values..(component + 1) * self.values;
            let normals = x.iter().zip(&means[at.clone()]).zip(&log_variances[at]);
            let exponent: f64 = normals.map(|((x, mean), log)| (x - mean).powi(2) / log.exp() + log + TAU.ln()).sum();
            logits[component] - exponent / 2.0
        };
        log_sum_exp((0..self.components).map(of_component)) - log_sum_exp(logits.iter().copied())
    }

    /// The value of a row whose component `uniform` chooses: its mean, and `temperature` standard deviations times its
    /// own of `normals` (`[components, values]`).
    fn draw(&self, row: usize, temperature: f64, normals: &[f64], uniform: f64) -> Vec<f64> {
        let [means, log_variances, logits] = self.parts(row);
        let component = choose(logits, uniform);
        let at = component * self.values..(component + 1) * self.values;
        let of_value = |((mean, log), normal): ((&f64, &f64), &f64)| mean + (log / 2.0).exp() * temperature * normal;
        means[at.clone()].iter().zip(&log_variances[at.clone()]).zip(&normals[at]).map(of_value).collect()
    }

    /// One draw for each row: `[rows, values]`. Guided by `(scale, candidates)`, the second half of the mixtures are the
    /// first half's without the condition, and of so many candidates of the conditional mixture one is kept, drawn by
    /// its ratio of densities to the power of `scale - 1`.
    ///
    /// # Errors
    /// Whatever `chance` returns.
    pub fn sample(
        &self,
        guide: Option<(f64, usize)>,
        temperature: f64,
        chance: &mut dyn Chance,
    ) -> Result<Vec<Vec<f64>>> {
        let rows = if guide.is_some() { self.rows.len() / 2 } else { self.rows.len() };
        let candidates = guide.map_or(1, |(_, candidates)| candidates.max(1));
        let each = self.components * self.values;
        let normals = chance.normals(rows, candidates * each)?;
        let uniforms = chance.uniforms(rows, candidates)?;
        let of_row = |(row, (normals, uniforms)): (usize, (&[f64], &[f64]))| -> Vec<Vec<f64>> {
            let draws = normals.chunks(each).zip(uniforms);
            draws.map(|(normals, uniform)| self.draw(row, temperature, normals, *uniform)).collect()
        };
        let drawn = normals.chunks(candidates * each).zip(uniforms.chunks(candidates)).enumerate().map(of_row);
        let Some((scale, _)) = guide else { return Ok(drawn.flatten().collect()) };
        let kept = chance.uniforms(rows, 1)?;
        let keep = |((row, mut candidates), kept): ((usize, Vec<Vec<f64>>), &f64)| {
            let ratio = |x: &Vec<f64>| (scale - 1.0) * (self.log_density(row, x) - self.log_density(rows + row, x));
            let ratios: Vec<_> = candidates.iter().map(ratio).collect();
            candidates.swap_remove(choose(&ratios, *kept))
        };
        Ok(drawn.enumerate().zip(&kept).map(keep).collect())
    }
}

/// `ln sum exp`; of nothing but minus infinity, that.
fn log_sum_exp(logits: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest.is_finite() { largest + logits.map(|logit| (logit - largest).exp()).sum::<f64>().ln() } else { largest }
}

/// The index that a number in [0, 1) chooses by the softmax of `logits`: how many cumulative probabilities are at most
/// that number. Never one that is out of range, whatever the logits are.
fn choose(logits: &[f64], uniform: f64) -> usize {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights = logits.iter().map(|logit| (logit - largest).exp());
    let target = uniform * weights.clone().sum::<f64>();
    let mut sum = 0.0;
    let below = weights.take_while(|weight| {
        sum += weight;
        sum <= target
    });
    below.count().min(logits.len().saturating_sub(1))
}
