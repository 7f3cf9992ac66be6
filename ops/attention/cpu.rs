//! Online softmax over tiles of keys, a few queries at a time, spread over threads by head and block of queries.

use rayon::prelude::*;

use super::{BLOCK, Compiled, Entry, Lengths, Scoring, TILE};
use crate::backend::cpu::{Cpu, vectorised};
use crate::{Float, View, ViewMut};

/// Queries that share one conversion of a tile's keys and values. Tiles start on multiples of [`TILE`], whatever the
/// mask, so that the order of a row's sums follows from the row alone.
const ROWS: usize = BLOCK;
/// Partial sums of a dot product.
const LANES: usize = 16;
/// Channels of the output that are summed at a time, in registers.
const CHANNELS: usize = 32;
/// Multiplications below which another thread is not worth waking.
const WORTH_A_THREAD: usize = 1 << 16;

/// A block of queries of one head, with what it writes.
struct Task<'a, T> {
    batch: usize,
    head: usize,
    first: usize,
    y: &'a mut [T],
    lse: &'a mut [f32],
}

/// [`super::attention`] over operands whose last axis is dense; `bias` is broadcast, `y` and `lse` are contiguous.
pub fn attention<T: Float>(
    cpu: &Cpu,
    q: View<'_, T>,
    k: View<'_, T>,
    v: View<'_, T>,
    scoring: Scoring,
    bias: Option<View<'_, f32>>,
    mask: &Compiled,
    mut y: ViewMut<'_, T>,
    mut lse: ViewMut<'_, f32>,
) {
    let &[batch, heads, q_len, head_dim] = q.shape() else { unreachable!("the op checked it") };
    let &[_, kv_heads, k_len, _] = k.shape() else { unreachable!("the op checked it") };
    let (y, lse) = (y.as_mut_slice().expect("contiguous"), lse.as_mut_slice().expect("contiguous"));
    if lse.is_empty() {
        return;
    }
    let lengths = Lengths { batch, q_len, k_len };
    let head_tasks = |(index, (y, lse)): (usize, (_, _))| {
        let (y, lse): (&mut [T], &mut [f32]) = (y, lse);
        let blocks = y.chunks_mut(ROWS * head_dim).zip(lse.chunks_mut(ROWS)).enumerate();
        let task =
            move |(block, (y, lse))| Task { batch: index / heads, head: index % heads, first: block * ROWS, y, lse };
        blocks.map(task)
    };
    let head_outputs = y.chunks_mut(q_len * head_dim).zip(lse.chunks_mut(q_len));
    let tasks: Vec<_> = head_outputs.enumerate().flat_map(head_tasks).collect();
    let inputs = Inputs { q, k, v, group: heads / kv_heads, scoring, bias, mask, lengths };
    let run = |task: Task<'_, T>| block(task, &inputs);
    if cpu.threads() == 1 || batch * heads * q_len * k_len * head_dim < WORTH_A_THREAD {
        tasks.into_iter().for_each(run);
    } else {
        cpu.run(|| tasks.into_par_iter().for_each(run));
    }
}

/// What all blocks read.
struct Inputs<'a, T> {
    q: View<'a, T>,
    k: View<'a, T>,
    v: View<'a, T>,
    /// Query heads that share a head of keys.
    group: usize,
    scoring: Scoring,
    bias: Option<View<'a, f32>>,
    mask: &'a Compiled,
    lengths: Lengths,
}

/// Rows of one head as f32: borrowed, or converted into `wide`. Returns the distance between rows too.
fn rows_as_f32<'a, T: Float>(
    x: View<'a, T>,
    [batch, head]: [usize; 2],
    first: usize,
    count: usize,
    wide: &'a mut [f32],
) -> (&'a [f32], usize) {
    let (head_dim, strides) = (x.shape()[3], x.layout.strides());
    let start = x.layout.offset() + batch * strides[0] + head * strides[1] + first * strides[2];
    if let Some(x) = T::as_f32(x.data) {
        return (&x[start..start + (count - 1) * strides[2] + head_dim], strides[2]);
    }
    for (row, wide) in wide.chunks_exact_mut(head_dim).take(count).enumerate() {
        T::widen(&x.data[start + row * strides[2]..][..head_dim], wide);
    }
    (wide, head_dim)
}

/// One row's running softmax.
#[derive(Clone, Copy)]
struct Running {
    largest: f32,
    sum: f32,
}

fn block<T: Float>(task: Task<'_, T>, inputs: &Inputs<'_, T>) {
    let Inputs { q, k, v, group, bias, mask, lengths, .. } = *inputs;
    let head_dim = q.shape()[3];
    let count = task.lse.len();
    let query_head = [task.batch, task.head];
    let key_head = [task.batch, task.head / group];
    let converted = |rows: usize| if T::as_f32(&[]).is_some() { Vec::new() } else { vec![0.0; rows * head_dim] };
    let (mut q_wide, mut k_wide, mut v_wide) = (converted(ROWS), converted(TILE), converted(TILE));
    let (q, q_stride) = rows_as_f32(q, query_head, task.first, count, &mut q_wide);
    let ranges: Vec<_> = (0..count).map(|row| mask.range(lengths, task.batch, task.first + row)).collect();
    let seen = ranges.iter().filter(|[start, end]| start < end);
    let start = seen.clone().map(|range| range[0]).min().unwrap_or(0) / TILE * TILE;
    let end = seen.map(|range| range[1]).max().unwrap_or(0);

    let mut mixed = vec![0.0; count * head_dim];
    let mut running = [Running { largest: f32::NEG_INFINITY, sum: 0.0 }; ROWS];
    let consecutive = (start..end).step_by(TILE).map(|tile| Entry { tile: (tile / TILE) as u32, bits: Entry::FULL });
    let visited = match mask.block(lengths, task.batch, task.first / BLOCK) {
        Some(entries) => entries.to_vec(),
        None => consecutive.collect(),
    };
    for entry in visited {
        let tile = entry.tile as usize * TILE;
        let tile_end = (tile + TILE).min(end);
        let (k, k_stride) = rows_as_f32(k, key_head, tile, tile_end - tile, &mut k_wide);
        let (v, v_stride) = rows_as_f32(v, key_head, tile, tile_end - tile, &mut v_wide);
        for row in 0..count {
            let from = ranges[row][0].max(tile);
            let to = ranges[row][1].min(tile_end);
            if from >= to {
                continue;
            }
            let query = task.first + row;
            let seen = match mask.word(entry, query) {
                u64::MAX => u64::MAX,
                word => word >> (from - tile),
            };
            if seen == 0 {
                continue;
            }
            let hides = mask.given.as_ref().map(|given| {
                let given = given.host();
                let at = given.layout.index(&[task.batch, query, from]);
                (&given.data[at..], given.layout.strides()[2])
            });
            let bias = bias.map(|bias| {
                let at = bias.layout.index(&[task.batch, task.head, query, from]);
                (&bias.data[at..], bias.layout.strides()[3])
            });
            vectorised(
                #[inline(always)]
                || {
                    let q = &q[row * q_stride..][..head_dim];
                    let mixed = &mut mixed[row * head_dim..][..head_dim];
                    let (k, v) = (&k[(from - tile) * k_stride..], &v[(from - tile) * v_stride..]);
                    let mut scores = [0.0; TILE];
                    let scores = &mut scores[..to - from];
                    score(q, k, k_stride, inputs.scoring, bias, hides, seen, scores);
                    accumulate(scores, v, v_stride, &mut running[row], mixed);
                },
            );
        }
    }

    for (row, mixed) in mixed.chunks_exact_mut(head_dim).enumerate() {
        let Running { largest, sum } = running[row];
        let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        mixed.iter_mut().for_each(|y| *y *= scale);
        // ln(0) is what a row that sees nothing has.
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        task.lse[row] = base + sum.ln();
    }
    T::narrow(&mixed, task.y);
}

/// Scores of consecutive keys; `-inf` for those that a given mask hides or whose bit is 0.
#[inline(always)]
fn score(
    q: &[f32],
    k: &[f32],
    k_stride: usize,
    scoring: Scoring,
    bias: Option<(&[f32], usize)>,
    given: Option<(&[u8], usize)>,
    seen: u64,
    scores: &mut [f32],
) {
    for (key, score) in scores.iter_mut().enumerate() {
        *score = dot(q, &k[key * k_stride..][..q.len()]) * scoring.scale;
    }
    if let Some(cap) = scoring.softcap {
        for score in &mut *scores {
            // tanh(x) = 1 - 2 / (exp(2 x) + 1)
            *score = cap * (1.0 - 2.0 / (exp(2.0 * *score / cap) + 1.0));
        }
    }
    if let Some((bias, stride)) = bias {
        scores.iter_mut().enumerate().for_each(|(key, score)| *score += bias[key * stride]);
    }
    if let Some((given, stride)) = given {
        for (key, score) in scores.iter_mut().enumerate() {
            if given[key * stride] == 0 {
                *score = f32::NEG_INFINITY;
            }
        }
    }
    if seen != u64::MAX {
        for (key, score) in scores.iter_mut().enumerate() {
            if seen >> key & 1 == 0 {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// Adds consecutive keys with these scores to a row; the scores become weights.
#[inline(always)]
fn accumulate(scores: &mut [f32], v: &[f32], v_stride: usize, running: &mut Running, mixed: &mut [f32]) {
    let largest = scores.iter().fold(running.largest, |most, score| if *score > most { *score } else { most });
    // Of nothing but -inf, every weight must be 0 rather than NaN.
    let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
    let shrink = exp(running.largest - base);
    scores.iter_mut().for_each(|score| *score = exp(*score - base));
    let sum = sum_of(scores);
    *running = Running { largest, sum: running.sum * shrink + sum };

    let head_dim = mixed.len();
    for first in (0..head_dim).step_by(CHANNELS) {
        let mut sums = [0.0; CHANNELS];
        if first + CHANNELS <= head_dim {
            for (key, weight) in scores.iter().enumerate() {
                let v = &v[key * v_stride + first..][..CHANNELS];
                // A hidden key adds nothing, even if its value is NaN.
                if *weight != 0.0 {
                    sums.iter_mut().zip(v).for_each(|(sum, v)| *sum += weight * v);
                }
            }
        } else {
            for (key, weight) in scores.iter().enumerate() {
                let v = &v[key * v_stride + first..][..head_dim - first];
                if *weight != 0.0 {
                    sums.iter_mut().zip(v).for_each(|(sum, v)| *sum += weight * v);
                }
            }
        }
        mixed[first..].iter_mut().zip(&sums).for_each(|(mixed, sum)| *mixed = *mixed * shrink + sum);
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a.remainder().iter().zip(b.remainder());
    for (a, b) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter_mut().zip(rest).for_each(|(sum, (a, b))| *sum += a * b);
    fold(sums)
}

#[inline(always)]
fn sum_of(x: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    for chunk in x.chunks(LANES) {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
    }
    fold(sums)
}

#[inline(always)]
fn fold(mut sums: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

/// e to the power of `x`, to 2 units in the last place; 0 below -87, and the largest power kept above 88.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: multiples of the first are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // 1.5 * 2^23: adding it rounds to an integer, which its lowest bits then hold.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > 88.0 { 88.0 } else { x };
    let clamped = if clamped < -87.0 { -87.0 } else { clamped };
    let rounded = clamped * LOG2_E + ROUND;
    let power = rounded - ROUND;
    let rest = clamped - power * LN_2[0] - power * LN_2[1];
    let mut series = 1.987_569_1e-4;
    for term in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        series = series * rest + term;
    }
    let fraction = series * rest * rest + rest + 1.0;
    // Of a NaN the bits are of no account: `fraction` is NaN.
    let scale = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { fraction * scale }
}

/// [`super::merge`] over contiguous operands.
pub fn merge<T: Float>(parts: View<'_, T>, lse: View<'_, f32>, mut y: ViewMut<'_, T>, mut merged: ViewMut<'_, f32>) {
    let head_dim = y.layout.shape()[3].max(1);
    let (parts, lse) = (parts.as_slice().expect("contiguous"), lse.as_slice().expect("contiguous"));
    let (y, merged) = (y.as_mut_slice().expect("contiguous"), merged.as_mut_slice().expect("contiguous"));
    let rows = merged.len();
    let (mut wide, mut mixed) = (vec![0.0; head_dim], vec![0.0; head_dim]);
    for (row, merged) in merged.iter_mut().enumerate() {
        let seen = || (row..lse.len()).step_by(rows).filter(|at| lse[*at] != f32::NEG_INFINITY);
        let largest = seen().map(|at| lse[at]).fold(f32::NEG_INFINITY, f32::max);
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        mixed.fill(0.0);
        let mut sum = 0.0;
        for at in seen() {
            let weight = (lse[at] - base).exp();
            sum += weight;
            if y.is_empty() {
                continue;
            }
            T::widen(&parts[at * head_dim..][..head_dim], &mut wide);
            mixed.iter_mut().zip(&wide).for_each(|(mixed, part)| *mixed += weight * part);
        }
        if !y.is_empty() {
            let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            mixed.iter_mut().for_each(|mixed| *mixed *= scale);
            T::narrow(&mixed, &mut y[row * head_dim..][..head_dim]);
        }
        *merged = base + sum.ln();
    }
}

/// [`super::l2_normalise`] over contiguous operands.
pub fn l2_normalise<T: Float>(cpu: &Cpu, x: View<'_, T>, mut y: ViewMut<'_, T>) {
    let channels = x.shape()[x.shape().len() - 1];
    let x = x.as_slice().expect("contiguous");
    cpu.rows(y.as_mut_slice().expect("contiguous"), channels, |row, y| {
        let mut wide = vec![0.0; channels];
        T::widen(&x[row * channels..][..channels], &mut wide);
        vectorised(
            #[inline(always)]
            || {
                let norm = dot(&wide, &wide).sqrt();
                let norm = if norm < 1e-12 { 1e-12 } else { norm };
                wide.iter_mut().for_each(|x| *x /= norm);
            },
        );
        T::narrow(&wide, y);
    });
}
