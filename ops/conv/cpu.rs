//! Output planes in blocks of channels: each input value that is read serves several outputs.

use super::Geometry;
use crate::backend::cpu::{Cpu, vectorised};
use crate::{Float, View, ViewMut};

/// Output channels that share a pass over the input.
const BLOCK: usize = 4;

/// [`super::conv2d`] over contiguous operands.
///
/// The grid is copied once with its padding and, for a stride, with its columns sorted by remainder, so that the inner
/// loop runs over a whole output row at neighbouring addresses. An output is summed over channels, then rows, then
/// columns of the kernel, whatever the block it lies in.
pub fn conv2d<T: Float>(
    cpu: &Cpu,
    x: View<'_, T>,
    weight: View<'_, f32>,
    bias: Option<View<'_, f32>>,
    g: Geometry,
    mut y: ViewMut<'_, T>,
) {
    let weight = weight.as_slice().expect("contiguous");
    let bias = bias.map(|bias| bias.as_slice().expect("contiguous"));
    let y = y.as_mut_slice().expect("contiguous");
    let padded = Padded::new(x.as_slice().expect("contiguous"), g);
    let plane = g.rows * g.columns;
    let blocks = g.channels_out.div_ceil(BLOCK);
    // A task is one picture's block of output channels; a picture's last block may be narrower.
    let mut tasks: Vec<(usize, usize, &mut [T])> = Vec::with_capacity(g.batch * blocks);
    for (picture, mut planes) in y.chunks_mut(g.channels_out * plane).enumerate() {
        for block in 0..blocks {
            let channels = BLOCK.min(g.channels_out - block * BLOCK);
            let (these, rest) = planes.split_at_mut(channels * plane);
            planes = rest;
            tasks.push((picture, block * BLOCK, these));
        }
    }
    let run = |(picture, first, planes): &mut (usize, usize, &mut [T])| {
        let channels = planes.len() / plane;
        let mut sums = vec![0.0f32; planes.len()];
        if let Some(bias) = bias {
            for (sums, bias) in sums.chunks_mut(plane).zip(&bias[*first..]) {
                sums.fill(*bias);
            }
        }
        vectorised(
            #[inline(always)]
            || match channels {
                1 => accumulate::<1>(&padded, *picture, *first, weight, &mut sums),
                2 => accumulate::<2>(&padded, *picture, *first, weight, &mut sums),
                3 => accumulate::<3>(&padded, *picture, *first, weight, &mut sums),
                _ => accumulate::<BLOCK>(&padded, *picture, *first, weight, &mut sums),
            },
        );
        T::narrow(&sums, planes);
    };
    if cpu.threads() == 1 || tasks.len() == 1 {
        tasks.iter_mut().for_each(run);
    } else {
        use rayon::prelude::*;
        cpu.run(|| tasks.par_iter_mut().for_each(run));
    }
}

/// A batch with its zeros around it; column `c` of a row lies at `(c % stride) * phase + c / stride`.
struct Padded {
    data: Vec<f32>,
    g: Geometry,
    row: usize,
    phase: usize,
    rows: usize,
}

impl Padded {
    fn new<T: Float>(x: &[T], g: Geometry) -> Self {
        let rows = (g.rows - 1) * g.stride + g.kernel_height;
        let columns = (g.columns - 1) * g.stride + g.kernel_width;
        let phase = columns.div_ceil(g.stride);
        let row = phase * g.stride;
        let mut data = vec![0.0; g.batch * g.channels_in * rows * row];
        let mut wide = vec![0.0; g.width];
        for (plane, x) in data.chunks_mut(rows * row).zip(x.chunks(g.height * g.width)) {
            for (r, x) in x.chunks(g.width).enumerate() {
                let Some(line) = plane.chunks_mut(row).nth(r + g.top) else { break };
                T::widen(x, &mut wide);
                for (c, x) in wide.iter().enumerate() {
                    let c = c + g.left;
                    if c < columns {
                        line[c % g.stride * phase + c / g.stride] = *x;
                    }
                }
            }
        }
        Self { data, g, row, phase, rows }
    }
}

#[inline(always)]
fn accumulate<const CHANNELS: usize>(padded: &Padded, picture: usize, first: usize, weight: &[f32], sums: &mut [f32]) {
    let g = padded.g;
    let kernel = g.kernel_height * g.kernel_width;
    let plane = padded.rows * padded.row;
    for i in 0..g.channels_in {
        let x = &padded.data[(picture * g.channels_in + i) * plane..][..plane];
        for u in 0..g.kernel_height {
            for v in 0..g.kernel_width {
                let weights: [f32; CHANNELS] = std::array::from_fn(|channel| {
                    weight[((first + channel) * g.channels_in + i) * kernel + u * g.kernel_width + v]
                });
                for r in 0..g.rows {
                    let start = (r * g.stride + u) * padded.row + v % g.stride * padded.phase + v / g.stride;
                    let x = &x[start..start + g.columns];
                    for (channel, weight) in weights.iter().enumerate() {
                        let sums = &mut sums[(channel * g.rows + r) * g.columns..][..g.columns];
                        for (sum, x) in sums.iter_mut().zip(x) {
                            *sum += x * weight;
                        }
                    }
                }
            }
        }
    }
}
