//! The definition of each op: plain loops in f64 over contiguous operands.

use std::f64::consts::TAU;

use super::Sizes;
use crate::{View, ViewMut};

/// [`super::draw`].
pub(crate) fn draw(
    parameters: &[f32],
    chosen: &[u32],
    normals: &[f32],
    kept: Option<&[u32]>,
    sizes: Sizes,
    temperature: f32,
    y: &mut [f32],
) {
    let Sizes { rows, candidates, components, values } = sizes;
    let count = y.len() / (rows * values);
    for (at, y) in y.iter_mut().enumerate() {
        let (row, value) = (at / (count * values), at % values);
        let candidate = kept.map_or(at / values % count, |kept| (kept[row] as usize).min(candidates - 1));
        let place = row * candidates + candidate;
        let component = (chosen[place] as usize).min(components - 1);
        let mean = row * sizes.parameters() + component * values + value;
        let log_variance = f64::from(parameters[mean + components * values]);
        let normal = f64::from(normals[(place * components + component) * values + value]);
        *y = (f64::from(parameters[mean]) + (log_variance / 2.0).exp() * f64::from(temperature) * normal) as f32;
    }
}

/// [`super::log_density`].
pub(crate) fn log_density(parameters: View<'_, f32>, x: View<'_, f32>, sizes: Sizes, mut y: ViewMut<'_, f32>) {
    let Sizes { candidates, components, values, .. } = sizes;
    let [parameters, x] = [parameters, x].map(|view| view.as_slice().expect("contiguous"));
    for (place, y) in y.as_mut_slice().expect("contiguous").iter_mut().enumerate() {
        let row = &parameters[place / candidates * sizes.parameters()..][..sizes.parameters()];
        let parameter = |at: usize| f64::from(row[at]);
        let logit = |component: usize| parameter(2 * components * values + component);
        let joint = |component: usize| {
            let exponent = |value: usize| {
                let (mean, log_variance) = (component * values + value, (components + component) * values + value);
                let distance = f64::from(x[place * values + value]) - parameter(mean);
                distance.powi(2) / parameter(log_variance).exp() + parameter(log_variance) + TAU.ln()
            };
            logit(component) - (0..values).map(exponent).sum::<f64>() / 2.0
        };
        *y = (log_sum_exp(components, joint) - log_sum_exp(components, logit)) as f32;
    }
}

fn log_sum_exp(count: usize, term: impl Fn(usize) -> f64) -> f64 {
    let most = (0..count).map(&term).fold(f64::NEG_INFINITY, f64::max);
    most + (0..count).map(|at| (term(at) - most).exp()).sum::<f64>().ln()
}
