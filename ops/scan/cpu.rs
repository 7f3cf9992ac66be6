//! A line per thread, vectorised over the columns of its state.

use super::{Linear, Ssd};
use crate::backend::cpu::{Cpu, vectorised};
use crate::{Float, View};

fn wide<T: Float>(view: View<'_, T>) -> Vec<f32> {
    let from = view.as_slice().expect("contiguous");
    let mut wide = vec![0.0; from.len()];
    T::widen(from, &mut wide);
    wide
}

fn narrow<T: Float>(from: &[f32]) -> Vec<T> {
    let mut narrow = vec![T::zeroed(); from.len()];
    T::narrow(from, &mut narrow);
    narrow
}

/// [`super::linear_attention`] over contiguous operands: `y`, and the state.
pub fn linear_attention<T: Float>(
    cpu: &Cpu,
    [q, k, v]: [View<'_, T>; 3],
    decay: Option<View<'_, f32>>,
    plan: Linear,
) -> (Vec<T>, Vec<f32>) {
    let Linear { heads, seq, key_dim, value_dim, causal, normalise } = plan;
    let feature = |x: f32| match normalise {
        true if x > 0.0 => x + 1.0,
        true => x.exp(),
        false => x,
    };
    let lines = q.shape()[0] * heads;
    let [q, k] = [q, k].map(|view| wide(view).into_iter().map(feature).collect::<Vec<_>>());
    let v = wide(v);
    let each = |line: usize| {
        let keep = decay.map_or(1.0, |decay| decay.at(&[line % heads]));
        let mut state = vec![0.0f32; key_dim * value_dim];
        let mut sums = vec![0.0f32; key_dim];
        let mut y = vec![0.0f32; seq * value_dim];
        vectorised(
            #[inline(always)]
            || {
                let mut read = |position: usize, state: &[f32], sums: &[f32]| {
                    let q = &q[(line * seq + position) * key_dim..][..key_dim];
                    let y = &mut y[position * value_dim..][..value_dim];
                    for d in 0..key_dim {
                        let state = &state[d * value_dim..][..value_dim];
                        y.iter_mut().zip(state).for_each(|(y, s)| *y += q[d] * s);
                    }
                    if normalise {
                        let total: f32 = q.iter().zip(sums).map(|(q, sum)| q * sum).sum();
                        y.iter_mut().for_each(|y| *y /= total);
                    }
                };
                for position in 0..seq {
                    let at = line * seq + position;
                    let v = &v[at * value_dim..][..value_dim];
                    for d in 0..key_dim {
                        let key = k[at * key_dim + d];
                        sums[d] = keep * sums[d] + key;
                        let state = &mut state[d * value_dim..][..value_dim];
                        state.iter_mut().zip(v).for_each(|(s, v)| *s = keep * *s + key * v);
                    }
                    if causal {
                        read(position, &state, &sums);
                    }
                }
                if !causal {
                    (0..seq).for_each(|position| read(position, &state, &sums));
                }
            },
        );
        (y, state)
    };
    let (y, state): (Vec<_>, Vec<_>) = cpu.map(lines, || (), |(), line| each(line)).into_iter().unzip();
    (narrow(&y.concat()), state.concat())
}

/// [`super::ssd_scan`] over contiguous operands with `A`, `D` and the state before: `y`, and the state.
pub fn ssd_scan<T: Float>(
    cpu: &Cpu,
    [x, dt, b, c]: [View<'_, T>; 4],
    (a, d, before): (View<'_, f32>, Option<View<'_, f32>>, Option<View<'_, f32>>),
    plan: Ssd,
) -> (Vec<T>, Vec<f32>) {
    let Ssd { batch, seq, heads, head_dim, groups, states } = plan;
    let [x, dt, b, c] = [x, dt, b, c].map(wide);
    let before = before.map(|before| before.as_slice().expect("contiguous"));
    let lines = batch * heads;
    let each = |line: usize| {
        let (entry, head) = (line / heads, line % heads);
        let group = head / (heads / groups);
        let size = head_dim * states;
        let mut state = before.map_or_else(|| vec![0.0f32; size], |h| h[line * size..][..size].to_vec());
        let mut y = vec![0.0f32; seq * head_dim];
        let (forget, through) = (a.at(&[head]), d.map_or(0.0, |d| d.at(&[head])));
        vectorised(
            #[inline(always)]
            || {
                for t in 0..seq {
                    let at = entry * seq + t;
                    let time = dt[at * heads + head];
                    let factor = (time * forget).exp();
                    let shared = (at * groups + group) * states;
                    let (b, c) = (&b[shared..][..states], &c[shared..][..states]);
                    for channel in 0..head_dim {
                        let own = x[(at * heads + head) * head_dim + channel];
                        let state = &mut state[channel * states..][..states];
                        let mut sum = through * own;
                        for n in 0..states {
                            state[n] = factor * state[n] + time * own * b[n];
                            sum += state[n] * c[n];
                        }
                        y[t * head_dim + channel] = sum;
                    }
                }
            },
        );
        (y, state)
    };
    let (parts, state): (Vec<_>, Vec<_>) = cpu.map(lines, || (), |(), line| each(line)).into_iter().unzip();
    let mut y = vec![0.0; batch * seq * heads * head_dim];
    for (line, part) in parts.iter().enumerate() {
        for (t, from) in part.chunks(head_dim.max(1)).enumerate() {
            let row = (line / heads * seq + t) * heads + line % heads;
            y[row * head_dim..][..head_dim].copy_from_slice(from);
        }
    }
    (narrow(&y), state.concat())
}
