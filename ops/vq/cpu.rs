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
