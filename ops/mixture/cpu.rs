//! Loops in f32; rows of candidates are shared among threads where densities are computed.

use std::f32::consts::TAU;

use super::Sizes;
use crate::backend::cpu::Cpu;
use crate::{View, ViewMut};

/// [`super::draw`] over contiguous operands.
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
    for (at, y) in y.chunks_mut(values).enumerate() {
        let row = at / count;
        let candidate = kept.map_or(at % count, |kept| (kept[row] as usize).min(candidates - 1));
        let place = row * candidates + candidate;
        let component = (chosen[place] as usize).min(components - 1);
        let means = &parameters[row * sizes.parameters() + component * values..][..values];
        let log_variances = &parameters[row * sizes.parameters() + (components + component) * values..][..values];
        let normals = &normals[(place * components + component) * values..][..values];
        for (value, y) in y.iter_mut().enumerate() {
            *y = means[value] + (0.5 * log_variances[value]).exp() * temperature * normals[value];
        }
    }
}

/// [`super::log_density`] over contiguous operands.
pub(crate) fn log_density(
    cpu: &Cpu,
    parameters: View<'_, f32>,
    x: View<'_, f32>,
    sizes: Sizes,
    mut y: ViewMut<'_, f32>,
) {
    let Sizes { candidates, components, values, .. } = sizes;
    let [parameters, x] = [parameters, x].map(|view| view.as_slice().expect("contiguous"));
    cpu.rows(y.as_mut_slice().expect("contiguous"), candidates, |row, y| {
        let parameters = &parameters[row * sizes.parameters()..][..sizes.parameters()];
        let (means, rest) = parameters.split_at(components * values);
        let (log_variances, logits) = rest.split_at(components * values);
        let whole = log_sum_exp(components, |component| logits[component]);
        let x = x[row * candidates * values..].chunks(values);
        for (y, x) in y.iter_mut().zip(x) {
            let joint = |component: usize| {
                let at = component * values..(component + 1) * values;
                let terms = x.iter().zip(&means[at.clone()]).zip(&log_variances[at]);
                let exponent = |((x, mean), log_variance): ((&f32, &f32), &f32)| {
                    (x - mean) * (x - mean) * (-log_variance).exp() + log_variance + TAU.ln()
                };
                logits[component] - 0.5 * terms.map(exponent).sum::<f32>()
            };
            *y = log_sum_exp(components, joint) - whole;
        }
    });
}

fn log_sum_exp(count: usize, term: impl Fn(usize) -> f32) -> f32 {
    let most = (0..count).map(&term).fold(f32::NEG_INFINITY, f32::max);
    most + (0..count).map(|at| (term(at) - most).exp()).sum::<f32>().ln()
}
