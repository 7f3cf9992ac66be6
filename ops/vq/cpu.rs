//! A tile of codes at a time, transposed, so that vectors of registers meet many codes in one pass; some queries share
//! what is read of it. The terms of a distance are added from the first to the last, whatever shares the pass.

use super::Metric;
use crate::backend::cpu::Cpu;
use crate::backend::simd::{self, Kernel, LANES, Line, Simd};
use crate::{Float, View, ViewMut};

/// Codes that share a pass.
const TILE: usize = 4 * LANES;
/// Queries that share a pass, where the registers hold their sums.
const GROUP: usize = 6;
/// Queries of one task: they share a tile while it is in the cache.
const QUERIES: usize = 16 * GROUP;

/// [`super::nearest_l2`] and [`super::nearest_cosine`] over contiguous operands.
pub fn nearest<T: Float>(cpu: &Cpu, x: View<'_, T>, codebook: View<'_, f32>, metric: Metric, mut y: ViewMut<'_, u32>) {
    let [codes, dim] = [codebook.shape()[0], codebook.shape()[1]];
    let tiles = transposed(cpu, codebook.as_slice().expect("contiguous"), dim, metric);
    let x = x.as_slice().expect("contiguous");
    let y = y.as_mut_slice().expect("contiguous");
    // Few queries are shared out in whole groups.
    let queries = y.len().div_ceil(cpu.threads()).next_multiple_of(GROUP).min(QUERIES);
    let each = |(task, y): (usize, &mut [u32])| {
        let mut wide = vec![0.0; y.len() * dim];
        T::widen(&x[task * queries * dim..][..y.len() * dim], &mut wide);
        simd::dispatch(Search { x: &wide, dim, tiles: &tiles, codes, metric, y });
    };
    cpu.share(y.chunks_mut(queries.max(1)).enumerate(), each);
}

/// The nearest code of each query.
struct Search<'a> {
    x: &'a [f32],
    dim: usize,
    tiles: &'a [[Line; 4]],
    codes: usize,
    metric: Metric,
    y: &'a mut [u32],
}

impl Kernel for Search<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.metric {
            Metric::L2 => self.tiles::<S, false>(simd),
            Metric::Cosine => self.tiles::<S, true>(simd),
        }
    }
}

impl Search<'_> {
    #[inline(always)]
    fn tiles<S: Simd, const COSINE: bool>(self, simd: S) {
        let Self { x, dim, tiles, codes, y, .. } = self;
        let mut best = vec![f32::INFINITY; y.len()];
        y.fill(0);
        for (index, tile) in tiles.chunks(dim).enumerate() {
            let first = index * TILE;
            let present = TILE.min(codes - first);
            let groups = x.chunks(GROUP * dim).zip(best.chunks_mut(GROUP)).zip(y.chunks_mut(GROUP));
            for ((x, best), y) in groups {
                if S::MANY_REGISTERS && y.len() == GROUP {
                    let sums = distances::<S, COSINE, GROUP>(simd, x, dim, tile);
                    for row in 0..GROUP {
                        nearer(simd, sums[row], first, present, &mut best[row], &mut y[row]);
                    }
                } else {
                    for row in 0..y.len() {
                        let [sums] = distances::<S, COSINE, 1>(simd, &x[row * dim..], dim, tile);
                        nearer(simd, sums, first, present, &mut best[row], &mut y[row]);
                    }
                }
            }
        }
    }
}

/// Takes the first of the nearest codes of a tile if it is nearer than the best so far, which is rare.
#[inline(always)]
fn nearer<S: Simd>(simd: S, sums: [S::F32s; 4], first: usize, present: usize, best: &mut f32, y: &mut u32) {
    if simd.any_below(sums, *best) {
        for (code, distance) in spilled(simd, sums)[..present].iter().enumerate() {
            if distance < best {
                *best = *distance;
                *y = (first + code) as u32;
            }
        }
    }
}

#[inline(always)]
fn spilled<S: Simd>(simd: S, sums: [S::F32s; 4]) -> [f32; TILE] {
    let mut all = [0.0; TILE];
    for (sum, lanes) in sums.iter().zip(all.as_chunks_mut().0) {
        simd.store(*sum, lanes);
    }
    all
}

/// What is smallest for the nearest code: squared distances of `ROWS` queries to the codes of a tile, or minus the
/// products.
#[inline(always)]
fn distances<S: Simd, const COSINE: bool, const ROWS: usize>(
    simd: S,
    x: &[f32],
    dim: usize,
    tile: &[[Line; 4]],
) -> [[S::F32s; 4]; ROWS] {
    let mut sums = [[simd.splat(0.0); 4]; ROWS];
    for (d, codes) in tile.iter().enumerate().take(dim) {
        for row in 0..ROWS {
            let minus = simd.splat(-x[row * dim + d]);
            for vector in 0..4 {
                let code = simd.load(codes[vector].f32s());
                let sum = sums[row][vector];
                sums[row][vector] = if COSINE {
                    simd.mul_add(minus, code, sum)
                } else {
                    let difference = simd.add(code, minus);
                    simd.mul_add(difference, difference, sum)
                };
            }
        }
    }
    sums
}

/// The distances of one query.
struct Distances<'a> {
    x: &'a [f32],
    tile: &'a [[Line; 4]],
    metric: Metric,
}

impl Kernel for Distances<'_> {
    type Output = [f32; TILE];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f32; TILE] {
        let Self { x, tile, metric } = self;
        let [sums] = match metric {
            Metric::L2 => distances::<S, false, 1>(simd, x, x.len(), tile),
            Metric::Cosine => distances::<S, true, 1>(simd, x, x.len(), tile),
        };
        spilled(simd, sums)
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
    let &[groups, codes, dim] = codebook.shape() else { unreachable!("the op reshaped it") };
    let count = indices.layout.shape()[indices.layout.shape().len() - 1];
    let books = codebook.as_slice().expect("contiguous").chunks(codes * dim);
    let books: Vec<_> = books.map(|book| transposed(cpu, book, dim, metric)).collect();
    let x = x.as_slice().expect("contiguous");
    let each = |n: usize, indices: &mut [u32], out: &mut [f32]| {
        let mut wide = vec![0.0; dim];
        T::widen(&x[n * dim..][..dim], &mut wide);
        // The nearest so far in ascending order, and their number.
        let mut found = 0;
        for (index, tile) in books[n % groups].chunks(dim).enumerate() {
            let present = TILE.min(codes - index * TILE);
            let distances = simd::dispatch(Distances { x: &wide, tile, metric });
            for (code, distance) in distances[..present].iter().enumerate() {
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
    let tasks = indices.chunks_mut(QUERIES * count).zip(out.chunks_mut(QUERIES * count)).enumerate();
    cpu.share(tasks, |(task, (indices, out))| {
        for (n, (indices, out)) in indices.chunks_mut(count).zip(out.chunks_mut(count)).enumerate() {
            each(task * QUERIES + n, indices, out);
        }
    });
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
fn transposed(cpu: &Cpu, codebook: &[f32], dim: usize, metric: Metric) -> Vec<[Line; 4]> {
    let mut tiles = vec![[Line::default(); 4]; codebook.len().div_ceil(TILE * dim) * dim];
    cpu.rows(&mut tiles, dim, |index, tile| {
        let codes = codebook[index * TILE * dim..].chunks(dim).take(TILE);
        for (code, values) in codes.enumerate() {
            let scale = match metric {
                Metric::L2 => 1.0,
                Metric::Cosine => match values.iter().map(|c| f64::from(*c).powi(2)).sum::<f64>().sqrt() {
                    length if length > 0.0 => 1.0 / length,
                    _ => 1.0,
                },
            };
            for (tile, value) in tile.iter_mut().zip(values) {
                tile[code / LANES].f32s_mut()[code % LANES] = (f64::from(*value) * scale) as f32;
            }
        }
    });
    tiles
}
