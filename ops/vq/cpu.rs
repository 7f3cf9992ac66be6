//! A tile of codes at a time, transposed, so that a vector meets many codes in one pass.

use super::Metric;
use crate::backend::cpu::{Cpu, vectorised};
use crate::{Float, View, ViewMut};

/// Codes that share a pass.
const TILE: usize = 64;
/// Vectors of one task: they share a tile while it is in the cache.
const VECTORS: usize = 16;

/// [`super::nearest_l2`] and [`super::nearest_cosine`] over contiguous operands.
pub fn nearest<T: Float>(cpu: &Cpu, x: View<'_, T>, codebook: View<'_, f32>, metric: Metric, mut y: ViewMut<'_, u32>) {
    let [codes, dim] = [codebook.shape()[0], codebook.shape()[1]];
    let tiles = transposed(codebook.as_slice().expect("contiguous"), codes, dim, metric);
    let x = x.as_slice().expect("contiguous");
    let y = y.as_mut_slice().expect("contiguous");
    let each = |task: usize, y: &mut [u32]| {
        let x = &x[task * VECTORS * dim..][..y.len() * dim];
        let mut wide = vec![0.0; x.len()];
        T::widen(x, &mut wide);
        let mut best = [f32::INFINITY; VECTORS];
        y.fill(0);
        for (index, tile) in tiles.chunks(TILE * dim).enumerate() {
            let present = TILE.min(codes - index * TILE);
            for ((x, best), y) in wide.chunks(dim).zip(&mut best).zip(&mut *y) {
                let distances = distances(x, tile, metric);
                for (code, distance) in distances[..present].iter().enumerate() {
                    if distance < best {
                        *best = *distance;
                        *y = (index * TILE + code) as u32;
                    }
                }
            }
        }
    };
    use rayon::prelude::*;
    if cpu.threads() == 1 || y.len() <= VECTORS {
        y.chunks_mut(VECTORS).enumerate().for_each(|(task, y)| each(task, y));
    } else {
        cpu.run(|| y.par_chunks_mut(VECTORS).enumerate().for_each(|(task, y)| each(task, y)));
    }
}

/// [`super::nearest`]; the codebook is `[groups, codes, dim]`.
pub fn nearest_list<T: Float>(
    cpu: &Cpu,
    x: View<'_, T>,
    codebook: View<'_, f32>,
    metric: Metric,
    mut indices: ViewMut<'_, u32>,
    mut distances_out: ViewMut<'_, f32>,
) {
    use rayon::prelude::*;
    let &[groups, codes, dim] = codebook.shape() else { unreachable!("the op reshaped it") };
    let count = indices.layout.shape()[indices.layout.shape().len() - 1];
    let books = codebook.as_slice().expect("contiguous").chunks(codes * dim);
    let books: Vec<_> = books.map(|book| transposed(book, codes, dim, metric)).collect();
    let x = x.as_slice().expect("contiguous");
    let each = |n: usize, indices: &mut [u32], out: &mut [f32]| {
        let mut wide = vec![0.0; dim];
        T::widen(&x[n * dim..][..dim], &mut wide);
        // The nearest so far in ascending order, and their number.
        let mut found = 0;
        for (index, tile) in books[n % groups].chunks(TILE * dim).enumerate() {
            let present = TILE.min(codes - index * TILE);
            for (code, distance) in distances(&wide, tile, metric)[..present].iter().enumerate() {
                // Later codes have higher indices: among equals they come last.
                if distance.is_nan() || (found == count && *distance >= out[count - 1]) {
                    continue;
                }
                let place = out[..found].partition_point(|other| *other <= *distance);
                found = (found + 1).min(count);
                out[place..found].rotate_right(1);
                indices[place..found].rotate_right(1);
                out[place] = *distance;
                indices[place] = (index * TILE + code) as u32;
            }
        }
        out[found..].fill(f32::NAN);
        indices[found..].fill(0);
        if metric == Metric::Cosine {
            let length = wide.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
            out.iter_mut().for_each(|distance| *distance = (-f64::from(*distance) / length) as f32);
        }
    };
    let indices = indices.as_mut_slice().expect("contiguous");
    let out = distances_out.as_mut_slice().expect("contiguous");
    cpu.run(|| {
        let rows = indices.par_chunks_mut(count).zip(out.par_chunks_mut(count)).with_min_len(VECTORS);
        rows.enumerate().for_each(|(n, (indices, out))| each(n, indices, out));
    });
}

/// What is smallest for the nearest code: squared distances of a vector to the codes of a tile, or minus the products.
fn distances(x: &[f32], tile: &[f32], metric: Metric) -> [f32; TILE] {
    let mut distances = [0.0; TILE];
    vectorised(
        #[inline(always)]
        || match metric {
            Metric::L2 => {
                for (x, codes) in x.iter().zip(tile.chunks_exact(TILE)) {
                    for (distance, code) in distances.iter_mut().zip(codes) {
                        *distance += (x - code) * (x - code);
                    }
                }
            }
            Metric::Cosine => {
                for (x, codes) in x.iter().zip(tile.chunks_exact(TILE)) {
                    for (distance, code) in distances.iter_mut().zip(codes) {
                        *distance -= x * code;
                    }
                }
            }
        },
    );
    distances
}

/// The digits of [`super::fsq`] and [`super::lfq`]; as [`super::reference::digits`].
pub fn digits<T: Float>(
    cpu: &Cpu,
    x: View<'_, T>,
    bounds: View<'_, f32>,
    mut bounded: ViewMut<'_, T>,
    mut digits: ViewMut<'_, u32>,
) {
    let channels = bounds.shape()[0];
    let (x, bounds) = (x.as_slice().expect("contiguous"), bounds.as_slice().expect("contiguous"));
    let value = |at: usize| {
        let &[shift, width, offset, _] = &bounds[at % channels * 4..][..4] else { unreachable!("four to a row") };
        if width == 0.0 { x[at].to_f32() } else { (x[at].to_f32() + shift).tanh() * width - offset }
    };
    cpu.rows(digits.as_mut_slice().expect("contiguous"), channels, |row, digits| {
        for (c, digit) in digits.iter_mut().enumerate() {
            let (value, bound) = (value(row * channels + c), &bounds[c * 4..][..4]);
            *digit = if bound[1] == 0.0 { u32::from(value > 0.0) } else { (value.round_ties_even() + bound[3]) as u32 };
        }
    });
    cpu.rows(bounded.as_mut_slice().expect("contiguous"), channels, |row, bounded| {
        bounded.iter_mut().enumerate().for_each(|(c, y)| *y = T::from_f32(value(row * channels + c)));
    });
}

/// Codes from digits; as [`super::reference::codes`].
pub fn codes<T: Float>(cpu: &Cpu, digits: View<'_, u32>, scales: View<'_, f32>, mut y: ViewMut<'_, T>) {
    let channels = scales.shape()[0];
    let (digits, scales) = (digits.as_slice().expect("contiguous"), scales.as_slice().expect("contiguous"));
    cpu.rows(y.as_mut_slice().expect("contiguous"), channels, |row, y| {
        for (c, y) in y.iter_mut().enumerate() {
            *y = T::from_f32((digits[row * channels + c] as f32 - scales[2 * c]) * scales[2 * c + 1]);
        }
    });
}

/// Tiles `[dim, TILE]`, the last one filled up with zeros; for the cosine each code is brought to length 1.
fn transposed(codebook: &[f32], codes: usize, dim: usize, metric: Metric) -> Vec<f32> {
    let mut tiles = vec![0.0; codes.div_ceil(TILE) * TILE * dim];
    for (code, values) in codebook.chunks(dim).enumerate() {
        let length = values.iter().map(|c| f64::from(*c).powi(2)).sum::<f64>().sqrt();
        let scale = match metric {
            Metric::Cosine if length > 0.0 => 1.0 / length,
            _ => 1.0,
        };
        for (d, value) in values.iter().enumerate() {
            tiles[(code / TILE * dim + d) * TILE + code % TILE] = (f64::from(*value) * scale) as f32;
        }
    }
    tiles
}
