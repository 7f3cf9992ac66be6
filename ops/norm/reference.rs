//! The definition of each op: plain loops in f64 over contiguous operands.

use super::Groups;
use crate::{Float, View, ViewMut};

/// [`super::rms_norm`].
pub fn rms_norm<T: Float>(x: View<'_, T>, weight: Option<View<'_, f32>>, eps: f32, mut y: ViewMut<'_, T>) {
    let channels = x.shape()[x.shape().len() - 1].max(1);
    let (x, y) = (x.as_slice().expect("contiguous"), y.as_mut_slice().expect("contiguous"));
    for (x, y) in x.chunks(channels).zip(y.chunks_mut(channels)) {
        let mean_square = x.iter().map(|x| x.to_f64().powi(2)).sum::<f64>() / channels as f64;
        for c in 0..channels {
            let weight = weight.map_or(1.0, |weight| f64::from(weight.at(&[c])));
            y[c] = T::from_f64(x[c].to_f64() * weight / (mean_square + f64::from(eps)).sqrt());
        }
    }
}

/// [`super::layer_norm`] and [`super::group_norm`].
pub fn normalise<T: Float>(
    x: View<'_, T>,
    groups: Groups,
    weight: Option<View<'_, f32>>,
    bias: Option<View<'_, f32>>,
    eps: f32,
    mut y: ViewMut<'_, T>,
) {
    let (x, y) = (x.as_slice().expect("contiguous"), y.as_mut_slice().expect("contiguous"));
    let count = groups.len as f64;
    for (row, (x, y)) in x.chunks(groups.len).zip(y.chunks_mut(groups.len)).enumerate() {
        let mean = x.iter().map(|x| x.to_f64()).sum::<f64>() / count;
        let variance = x.iter().map(|x| (x.to_f64() - mean).powi(2)).sum::<f64>() / count;
        for (index, (x, y)) in x.iter().zip(y).enumerate() {
            let channel = groups.channel(row, index);
            let weight = weight.map_or(1.0, |weight| f64::from(weight.at(&[channel])));
            let bias = bias.map_or(0.0, |bias| f64::from(bias.at(&[channel])));
            *y = T::from_f64((x.to_f64() - mean) / (variance + f64::from(eps)).sqrt() * weight + bias);
        }
    }
}

/// [`super::modulate`].
pub fn modulate<T: Float>(x: View<'_, T>, scale: View<'_, T>, shift: View<'_, T>, y: ViewMut<'_, T>) {
    combine(x, scale, shift, y, |x, scale, shift| x * (1.0 + scale) + shift);
}

/// [`super::gated_add`].
pub fn gated_add<T: Float>(x: View<'_, T>, gate: View<'_, T>, h: View<'_, T>, y: ViewMut<'_, T>) {
    combine(x, gate, h, y, |x, gate, h| x + gate * h);
}

fn combine<T: Float>(
    x: View<'_, T>,
    a: View<'_, T>,
    b: View<'_, T>,
    mut y: ViewMut<'_, T>,
    formula: impl Fn(f64, f64, f64) -> f64,
) {
    let at = x.layout.indices().zip(a.layout.indices().zip(b.layout.indices()));
    for (y, (x_at, (a_at, b_at))) in y.as_mut_slice().expect("contiguous").iter_mut().zip(at) {
        *y = T::from_f64(formula(x.data[x_at].to_f64(), a.data[a_at].to_f64(), b.data[b_at].to_f64()));
    }
}

/// [`super::softmax`] of rows of `channels` values.
pub fn softmax<T: Float>(x: View<'_, T>, channels: usize, mut y: ViewMut<'_, T>) {
    let (x, y) = (x.as_slice().expect("contiguous"), y.as_mut_slice().expect("contiguous"));
    for (x, y) in x.chunks(channels).zip(y.chunks_mut(channels)) {
        let largest = x.iter().fold(f64::NEG_INFINITY, |largest, x| largest.max(x.to_f64()));
        let term = |x: f64| if x == f64::NEG_INFINITY { 0.0 } else { (x - largest).exp() };
        let sum: f64 = x.iter().map(|x| term(x.to_f64())).sum();
        for (x, y) in x.iter().zip(y) {
            *y = T::from_f64(if sum == 0.0 { 0.0 } else { term(x.to_f64()) / sum });
        }
    }
}
