//! The definition of each recurrence: plain loops in f64 over contiguous operands.

use super::{Linear, Ssd};
use crate::{Float, View};

fn wide<T: Float>(view: View<'_, T>) -> Vec<f64> {
    view.as_slice().expect("contiguous").iter().map(|x| x.to_f64()).collect()
}

/// [`super::linear_attention`]: `y`, and the state in f32.
pub fn linear_attention<T: Float>(
    [q, k, v]: [View<'_, T>; 3],
    decay: Option<View<'_, f32>>,
    plan: Linear,
) -> (Vec<T>, Vec<f32>) {
    let Linear { heads, seq, key_dim, value_dim, causal, normalise } = plan;
    let feature = |x: f64| match normalise {
        true if x > 0.0 => x + 1.0,
        true => x.exp(),
        false => x,
    };
    let lines = q.shape()[0] * heads;
    let [q, k] = [q, k].map(|view| wide(view).into_iter().map(feature).collect::<Vec<_>>());
    let v = wide(v);
    let mut y = vec![T::zeroed(); lines * seq * value_dim];
    let mut states = Vec::new();
    for line in 0..lines {
        let keep = decay.map_or(1.0, |decay| f64::from(decay.at(&[line % heads])));
        let mut state = vec![0.0; key_dim * value_dim];
        let mut sums = vec![0.0; key_dim];
        let mut read = |position: usize, state: &[f64], sums: &[f64]| {
            let q = &q[(line * seq + position) * key_dim..][..key_dim];
            let total: f64 = (0..key_dim).map(|d| q[d] * sums[d]).sum();
            for column in 0..value_dim {
                let sum: f64 = (0..key_dim).map(|d| q[d] * state[d * value_dim + column]).sum();
                let sum = if normalise { sum / total } else { sum };
                y[(line * seq + position) * value_dim + column] = T::from_f64(sum);
            }
        };
        for position in 0..seq {
            let at = line * seq + position;
            for d in 0..key_dim {
                let key = k[at * key_dim + d];
                sums[d] = keep * sums[d] + key;
                for column in 0..value_dim {
                    let s = &mut state[d * value_dim + column];
                    *s = keep * *s + key * v[at * value_dim + column];
                }
            }
            if causal {
                read(position, &state, &sums);
            }
        }
        if !causal {
            (0..seq).for_each(|position| read(position, &state, &sums));
        }
        states.extend(state.iter().map(|s| *s as f32));
    }
    (y, states)
}

/// [`super::ssd_scan`] with `A`, `D` and the state before: `y`, and the state in f32.
pub fn ssd_scan<T: Float>(
    [x, dt, b, c]: [View<'_, T>; 4],
    (a, d, before): (View<'_, f32>, Option<View<'_, f32>>, Option<View<'_, f32>>),
    plan: Ssd,
) -> (Vec<T>, Vec<f32>) {
    let Ssd { batch, seq, heads, head_dim, groups, states } = plan;
    let mut y = vec![T::zeroed(); batch * seq * heads * head_dim];
    let mut after = Vec::new();
    for index in 0..batch * heads * head_dim {
        let (entry, head, channel) = (index / head_dim / heads, index / head_dim % heads, index % head_dim);
        let group = head / (heads / groups);
        let mut h: Vec<f64> =
            (0..states).map(|n| before.map_or(0.0, |h| f64::from(h.at(&[entry, head, channel, n])))).collect();
        for t in 0..seq {
            let own = x.at(&[entry, t, head, channel]).to_f64();
            let time = dt.at(&[entry, t, head]).to_f64();
            let mut sum = d.map_or(0.0, |d| f64::from(d.at(&[head]))) * own;
            for (n, h) in h.iter_mut().enumerate() {
                let shared = [entry, t, group, n];
                *h = (time * f64::from(a.at(&[head]))).exp() * *h + time * own * b.at(&shared).to_f64();
                sum += *h * c.at(&shared).to_f64();
            }
            y[((entry * seq + t) * heads + head) * head_dim + channel] = T::from_f64(sum);
        }
        after.extend(h.iter().map(|h| *h as f32));
    }
    (y, after)
}
