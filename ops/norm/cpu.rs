//! Vectorised over the channels of a row, spread over threads by rows.

use super::Groups;
use crate::activation::cpu::exp;
use crate::backend::cpu::{Cpu, vectorised};
use crate::{Float, View, ViewMut};

/// Partial sums of a row: enough to hide an addition's latency, and always the same, so that a row's sum depends on
/// nothing but the row.
const LANES: usize = 32;

/// [`super::rms_norm`] over contiguous operands.
pub fn rms_norm<T: Float>(cpu: &Cpu, x: View<'_, T>, weight: Option<View<'_, f32>>, eps: f32, mut y: ViewMut<'_, T>) {
    let channels = x.shape()[x.shape().len() - 1];
    let weight = weight.map(|weight| weight.as_slice().expect("contiguous"));
    cpu.rows_in_f32(
        x.as_slice().expect("contiguous"),
        channels,
        y.as_mut_slice().expect("contiguous"),
        #[inline(always)]
        |_, x, y| {
            let scale = 1.0 / (sum(x, square) / channels as f32 + eps).sqrt();
            match weight {
                Some(weight) => {
                    y.iter_mut().zip(x).zip(weight).for_each(|((y, x), weight)| *y = x * (scale * weight));
                }
                None => y.iter_mut().zip(x).for_each(|(y, x)| *y = x * scale),
            }
        },
    );
}

/// [`super::layer_norm`] and [`super::group_norm`] over contiguous operands.
pub fn normalise<T: Float>(
    cpu: &Cpu,
    x: View<'_, T>,
    groups: Groups,
    weight: Option<View<'_, f32>>,
    bias: Option<View<'_, f32>>,
    eps: f32,
    mut y: ViewMut<'_, T>,
) {
    let weight = weight.map(|weight| weight.as_slice().expect("contiguous"));
    let bias = bias.map(|bias| bias.as_slice().expect("contiguous"));
    let count = groups.len as f32;
    cpu.rows_in_f32(
        x.as_slice().expect("contiguous"),
        groups.len,
        y.as_mut_slice().expect("contiguous"),
        #[inline(always)]
        |row, x, y| {
            let mean = sum(
                x,
                #[inline(always)]
                |x| x,
            ) / count;
            let variance = sum(
                x,
                #[inline(always)]
                |x| square(x - mean),
            ) / count;
            let scale = 1.0 / (variance + eps).sqrt();
            let first = groups.channel(row, 0);
            if groups.run > 1 {
                for (index, (x, y)) in x.chunks(groups.run).zip(y.chunks_mut(groups.run)).enumerate() {
                    let scale = scale * weight.map_or(1.0, |weight| weight[first + index]);
                    let bias = bias.map_or(0.0, |bias| bias[first + index]);
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean) * scale + bias);
                }
                return;
            }
            let outputs = y.iter_mut().zip(x);
            match (weight.map(|weight| &weight[first..]), bias.map(|bias| &bias[first..])) {
                (None, None) => outputs.for_each(|(y, x)| *y = (x - mean) * scale),
                (Some(weight), None) => {
                    outputs.zip(weight).for_each(|((y, x), weight)| *y = (x - mean) * scale * weight);
                }
                (None, Some(bias)) => outputs.zip(bias).for_each(|((y, x), bias)| *y = (x - mean) * scale + bias),
                (Some(weight), Some(bias)) => {
                    let outputs = outputs.zip(weight).zip(bias);
                    outputs.for_each(|(((y, x), weight), bias)| *y = (x - mean) * scale * weight + bias);
                }
            }
        },
    );
}

/// [`super::softmax`] of contiguous rows of `channels` values.
pub fn softmax<T: Float>(cpu: &Cpu, x: View<'_, T>, channels: usize, mut y: ViewMut<'_, T>) {
    cpu.rows_in_f32(
        x.as_slice().expect("contiguous"),
        channels,
        y.as_mut_slice().expect("contiguous"),
        #[inline(always)]
        |_, x, y| {
            let largest = largest(x);
            for (y, x) in y.iter_mut().zip(x) {
                *y = if *x == f32::NEG_INFINITY { 0.0 } else { exp(*x - largest) };
            }
            let sum = sum(
                y,
                #[inline(always)]
                |y| y,
            );
            // A row that holds nothing stays 0.
            let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            y.iter_mut().for_each(|y| *y *= scale);
        },
    );
}

/// [`super::modulate`] into a contiguous `y`.
pub fn modulate<T: Float>(cpu: &Cpu, x: View<'_, T>, scale: View<'_, T>, shift: View<'_, T>, y: ViewMut<'_, T>) {
    combine(
        cpu,
        x,
        scale,
        shift,
        y,
        #[inline(always)]
        |x, scale, shift| x * (1.0 + scale) + shift,
    );
}

/// [`super::gated_add`] into a contiguous `y`.
pub fn gated_add<T: Float>(cpu: &Cpu, x: View<'_, T>, gate: View<'_, T>, h: View<'_, T>, y: ViewMut<'_, T>) {
    combine(
        cpu,
        x,
        gate,
        h,
        y,
        #[inline(always)]
        |x, gate, h| x + gate * h,
    );
}

/// Row by row, each row in f32 on its way through.
fn combine<T: Float>(
    cpu: &Cpu,
    x: View<'_, T>,
    a: View<'_, T>,
    b: View<'_, T>,
    mut y: ViewMut<'_, T>,
    formula: impl Fn(f32, f32, f32) -> f32 + Send + Sync,
) {
    let &[_, seq, channels] = x.shape() else { unreachable!("checked by the op: three axes") };
    let y = y.as_mut_slice().expect("contiguous");
    cpu.rows_with(
        y,
        channels,
        || vec![0.0; 3 * channels],
        |wide, row, y| {
            for (view, wide) in [x, a, b].iter().zip(wide.chunks_mut(channels)) {
                let start = view.layout.index(&[row / seq, row % seq, 0]);
                match view.layout.strides()[2] {
                    1 => T::widen(&view.data[start..start + channels], wide),
                    stride => (0..channels).for_each(|c| wide[c] = view.data[start + c * stride].to_f32()),
                }
            }
            let (x, wide) = wide.split_at_mut(channels);
            let (a, b) = wide.split_at(channels);
            vectorised(
                #[inline(always)]
                || {
                    for ((x, a), b) in x.iter_mut().zip(a).zip(b) {
                        *x = formula(*x, *a, *b);
                    }
                },
            );
            T::narrow(x, y);
        },
    );
}

/// NaNs are left out.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks.chain(std::iter::once(rest)) {
        for (most, x) in most.iter_mut().zip(chunk) {
            *most = if *x > *most { *x } else { *most };
        }
    }
    most.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn square(x: f32) -> f32 {
    x * x
}

#[inline(always)]
fn sum(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let chunks = x.chunks_exact(LANES);
    for (sum, x) in sums.iter_mut().zip(chunks.remainder()) {
        *sum = of(*x);
    }
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += of(*x);
        }
    }
    sums.iter().sum()
}
