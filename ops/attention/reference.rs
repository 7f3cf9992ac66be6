//! The definition of each op: plain loops in f64.

use super::Scoring;
use crate::{Float, View, ViewMut};

/// [`super::attention`]; `bias` is broadcast to `[batch, heads, q_len, k_len]`, `sees` takes batch, query, key.
pub fn attention<T: Float>(
    q: View<'_, T>,
    k: View<'_, T>,
    v: View<'_, T>,
    scoring: Scoring,
    bias: Option<View<'_, f32>>,
    sees: impl Fn(usize, usize, usize) -> bool,
    mut y: ViewMut<'_, T>,
    mut lse: ViewMut<'_, f32>,
) {
    let &[batch, heads, q_len, head_dim] = q.shape() else { unreachable!("the op checked it") };
    let &[_, kv_heads, k_len, _] = k.shape() else { unreachable!("the op checked it") };
    for b in 0..batch {
        for h in 0..heads {
            let g = h / (heads / kv_heads);
            for i in 0..q_len {
                let visible: Vec<usize> = (0..k_len).filter(|j| sees(b, i, *j)).collect();
                let mut scores = Vec::new();
                for &j in &visible {
                    let product = |c| q.at(&[b, h, i, c]).to_f64() * k.at(&[b, g, j, c]).to_f64();
                    let mut score = f64::from(scoring.scale) * (0..head_dim).map(product).sum::<f64>();
                    if let Some(cap) = scoring.softcap.map(f64::from) {
                        score = cap * (score / cap).tanh();
                    }
                    score += bias.map_or(0.0, |bias| f64::from(bias.at(&[b, h, i, j])));
                    scores.push(score);
                }
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let base = if largest == f64::NEG_INFINITY { 0.0 } else { largest };
                let weights: Vec<f64> = scores.iter().map(|score| (score - base).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for c in 0..head_dim {
                    let value = |(weight, j): (&f64, &usize)| weight * v.at(&[b, g, *j, c]).to_f64();
                    let mixed: f64 = weights.iter().zip(&visible).map(value).sum();
                    y.set(&[b, h, i, c], T::from_f64(if sum == 0.0 { 0.0 } else { mixed / sum }));
                }
                lse.set(&[b, h, i], f32::from_f64(base + sum.ln()));
            }
        }
    }
}

/// [`super::merge`] over contiguous operands.
pub fn merge<T: Float>(parts: View<'_, T>, lse: View<'_, f32>, mut y: ViewMut<'_, T>, mut merged: ViewMut<'_, f32>) {
    let &[count, batch, heads, q_len, head_dim] = parts.shape() else { unreachable!("the op checked it") };
    for b in 0..batch {
        for h in 0..heads {
            for i in 0..q_len {
                let seen: Vec<(usize, f64)> = (0..count)
                    .map(|part| (part, f64::from(lse.at(&[part, b, h, i]))))
                    .filter(|(_, lse)| *lse != f64::NEG_INFINITY)
                    .collect();
                let largest = seen.iter().map(|(_, lse)| *lse).fold(f64::NEG_INFINITY, f64::max);
                let base = if largest == f64::NEG_INFINITY { 0.0 } else { largest };
                let sum: f64 = seen.iter().map(|(_, lse)| (lse - base).exp()).sum();
                for c in 0..head_dim {
                    let term =
                        |(part, lse): &(usize, f64)| (lse - base).exp() * parts.at(&[*part, b, h, i, c]).to_f64();
                    let mixed: f64 = seen.iter().map(term).sum();
                    y.set(&[b, h, i, c], T::from_f64(if sum == 0.0 { 0.0 } else { mixed / sum }));
                }
                merged.set(&[b, h, i], f32::from_f64(base + sum.ln()));
            }
        }
    }
}

/// [`super::l2_normalise`] over contiguous operands.
pub fn l2_normalise<T: Float>(x: View<'_, T>, mut y: ViewMut<'_, T>) {
    let channels = x.shape()[x.shape().len() - 1].max(1);
    let (x, y) = (x.as_slice().expect("contiguous"), y.as_mut_slice().expect("contiguous"));
    for (x, y) in x.chunks(channels).zip(y.chunks_mut(channels)) {
        let norm = x.iter().map(|x| x.to_f64().powi(2)).sum::<f64>().sqrt();
        for c in 0..channels {
            y[c] = T::from_f64(x[c].to_f64() / norm.max(1e-12));
        }
    }
}
