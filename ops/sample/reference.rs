//! The definition of guidance and of the filters, in f64, step by step. A draw has one arithmetic on all devices.

use super::integer::{Plan, Row, draw};
use super::{Filter, Guidance};
use crate::{Error, Float, Result, View, ViewMut};

/// [`super::guide`] of contiguous operands, with the scale of each row.
pub fn guide<T: Float>(
    cond: View<'_, T>,
    uncond: View<'_, T>,
    scale: impl Fn(usize) -> f32,
    kind: Guidance,
    mut y: ViewMut<'_, T>,
) {
    let length = cond.shape().last().copied().unwrap_or(1).max(1);
    let (cond, uncond) = (cond.as_slice().expect("contiguous"), uncond.as_slice().expect("contiguous"));
    for (at, y) in y.as_mut_slice().expect("contiguous").iter_mut().enumerate() {
        let (cond, uncond) = (cond[at].to_f64(), uncond[at].to_f64());
        let base = if kind == Guidance::Scale { uncond } else { cond };
        let ruled_out = [cond, uncond].contains(&f64::NEG_INFINITY);
        *y = T::from_f64(if ruled_out { cond } else { base + f64::from(scale(at / length)) * (cond - uncond) });
    }
}

/// [`super::filter`]: probabilities, and 1 for each kept token.
///
/// # Errors
/// [`Error::Value`] if a row has a NaN, `+inf`, or no finite logit.
pub fn filter<T: Float>(logits: View<'_, T>, filter: &Filter) -> Result<(Vec<f32>, Vec<u32>)> {
    let vocabulary = logits.shape()[1];
    let (mut probabilities, mut kept) = (Vec::new(), Vec::new());
    for (row, logits) in logits.as_slice().expect("contiguous").chunks(vocabulary).enumerate() {
        let logits: Vec<f64> = logits.iter().map(|logit| logit.to_f64()).collect();
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !largest.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::value("filter", "logits", format!("not finite in row {row}"), "finite numbers or -inf"));
        }
        let mut ranked: Vec<usize> = (0..vocabulary).collect();
        ranked.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let greedy = filter.temperature == 0.0;
        let temperature = if greedy { 1.0 } else { f64::from(filter.temperature) };
        let weight = |token: &usize| ((logits[*token] - largest) / temperature).exp();
        match if greedy { 1 } else { filter.top_k } {
            0 => {}
            top_k => ranked.truncate(top_k),
        }
        if filter.top_p < 1.0 {
            let total: f64 = ranked.iter().map(weight).sum();
            let mut before = 0.0;
            ranked.retain(|token| {
                let keep = before < f64::from(filter.top_p) * total;
                before += weight(token);
                keep
            });
        }
        ranked.retain(|token| weight(token) >= f64::from(filter.min_p));
        if filter.typical < 1.0 {
            ranked.retain(|token| weight(token) > 0.0);
            let total: f64 = ranked.iter().map(weight).sum();
            let information = |token: &usize| -(weight(token) / total).ln();
            let entropy: f64 = ranked.iter().map(|token| weight(token) / total * information(token)).sum();
            let far = |token: &usize| (information(token) - entropy).abs();
            ranked.sort_by(|a, b| far(a).total_cmp(&far(b)).then(a.cmp(b)));
            let mut before = 0.0;
            ranked.retain(|token| {
                let keep = before < f64::from(filter.typical) * total;
                before += weight(token);
                keep
            });
        }
        let total: f64 = ranked.iter().map(weight).sum();
        let start = kept.len();
        probabilities.resize(start + vocabulary, 0.0);
        kept.resize(start + vocabulary, 0);
        for token in ranked {
            probabilities[start + token] = (weight(&token) / total) as f32;
            kept[start + token] = 1;
        }
    }
    Ok((probabilities, kept))
}

/// [`super::sample`], row by row.
///
/// # Errors
/// [`Error::Value`] if a row has a NaN, `+inf`, or no finite logit.
pub fn sample<T: Float>(logits: View<'_, T>, plan: Plan, fractions: View<'_, u32>) -> Result<Vec<u32>> {
    let mut kept = Row::default();
    let rows = logits.as_slice().expect("contiguous").chunks(logits.shape()[1]);
    rows.zip(fractions.as_slice().expect("contiguous"))
        .enumerate()
        .map(|(row, (logits, fraction))| {
            let logits: Vec<f32> = logits.iter().map(|logit| logit.to_f32()).collect();
            kept.fill("sample", row, &logits, plan)?;
            Ok(draw(&kept.weights, *fraction).expect("the largest token is always kept"))
        })
        .collect()
}
