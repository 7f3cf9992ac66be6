//! Output rows in tiles of a few channels, whose sums stay in registers over the whole kernel.

use super::Geometry;
use crate::backend::cpu::Cpu;
use crate::backend::simd::{self, Kernel, LANES, Simd};
use crate::{Float, View, ViewMut};

/// Output channels whose weights lie together, and that share a pass over the input where the registers hold their sums.
const BLOCK: usize = 8;
/// The same where there are few output channels, as in a last layer that makes pixels, or few registers.
const FEW: usize = 4;
/// Elements after the grid that a tile may read though none of its results are kept: two vectors.
const SLACK: usize = 2 * LANES;

/// [`super::conv2d`] over contiguous operands.
///
/// The grid is copied once with its padding and, for a stride, with its columns sorted by remainder, so that a vector of
/// outputs reads neighbouring addresses. An output is summed from its bias on over channels, then rows, then columns of
/// the kernel, whatever the tile it lies in.
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
    let block = if g.channels_out <= FEW { FEW } else { BLOCK };
    let padded = Padded::new(x.as_slice().expect("contiguous"), g);
    let packed = pack(weight, g, block);
    let taps = g.channels_in * g.kernel_height * g.kernel_width;
    let plane = g.rows * g.columns;
    // A task is one picture's block of output channels; a picture's last block may be narrower.
    let mut tasks: Vec<(usize, usize, &mut [T])> = Vec::with_capacity(g.batch * g.channels_out.div_ceil(block));
    for (picture, planes) in y.chunks_mut(g.channels_out * plane).enumerate() {
        tasks.extend(planes.chunks_mut(block * plane).enumerate().map(|(index, planes)| (picture, index, planes)));
    }
    let run = |(picture, index, planes): (usize, usize, &mut [T])| {
        let mut sums = vec![0.0f32; planes.len()];
        let mut start = [0.0; BLOCK];
        if let Some(bias) = bias {
            start.iter_mut().zip(&bias[index * block..]).for_each(|(start, bias)| *start = *bias);
        }
        simd::dispatch(Task {
            padded: &padded,
            picture,
            weight: &packed[index * block * taps..][..block * taps],
            bias: start,
            block,
            sums: &mut sums,
        });
        T::narrow(&sums, planes);
    };
    cpu.share(tasks.into_iter(), run);
}

/// The weight by blocks of output channels, `[block, tap, channel of the block]`; zeros where the last block has none.
fn pack(weight: &[f32], g: Geometry, block: usize) -> Vec<f32> {
    let taps = g.channels_in * g.kernel_height * g.kernel_width;
    let mut packed = vec![0.0; g.channels_out.next_multiple_of(block) * taps];
    for channel in 0..g.channels_out {
        for tap in 0..taps {
            packed[(channel / block * taps + tap) * block + channel % block] = weight[channel * taps + tap];
        }
    }
    packed
}

/// A batch with its zeros around it, `[batch, rows, channels_in, row]`, so that what a tile reads lies on few pages; column
/// `c` of a row lies at `(c % stride) * phase + c / stride`.
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
        let mut data = vec![0.0; g.batch * g.channels_in * rows * row + SLACK];
        if g.height * g.width == 0 {
            return Self { data, g, row, phase, rows };
        }
        let mut wide = vec![0.0; g.width];
        for (plane, x) in x.chunks(g.height * g.width).enumerate() {
            let (picture, channel) = (plane / g.channels_in, plane % g.channels_in);
            for (r, x) in x.chunks(g.width).enumerate().take_while(|(r, _)| r + g.top < rows) {
                let line = ((picture * rows + r + g.top) * g.channels_in + channel) * row;
                let line = &mut data[line..line + row];
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

/// One picture's block of output channels.
struct Task<'a> {
    padded: &'a Padded,
    picture: usize,
    weight: &'a [f32],
    bias: [f32; BLOCK],
    block: usize,
    /// The block's planes; fewer than `block` at the end.
    sums: &'a mut [f32],
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let narrow = self.padded.g.columns <= LANES;
        match (self.block, S::MANY_REGISTERS) {
            (FEW, true) => self.tiles::<S, FEW, FEW, 2>(simd),
            (FEW, false) => self.tiles::<S, FEW, FEW, 1>(simd),
            (_, true) if narrow => self.tiles::<S, BLOCK, BLOCK, 1>(simd),
            (_, true) => self.tiles::<S, BLOCK, BLOCK, 2>(simd),
            (_, false) => self.tiles::<S, BLOCK, FEW, 1>(simd),
        }
    }
}

impl Task<'_> {
    /// Of a block of `ALL` channels, `CHANNELS` at a time.
    #[inline(always)]
    fn tiles<S: Simd, const ALL: usize, const CHANNELS: usize, const VECTORS: usize>(self, simd: S) {
        let Padded { data, g, row, phase, rows } = self.padded;
        let width = LANES * VECTORS;
        for (first, planes) in (0..ALL).step_by(CHANNELS).zip(self.sums.chunks_mut(CHANNELS * g.rows * g.columns)) {
            for r in 0..g.rows {
                for c in (0..g.columns).step_by(width) {
                    let mut sums: [[S::F32s; VECTORS]; CHANNELS] =
                        std::array::from_fn(|channel| [simd.splat(self.bias[first + channel]); VECTORS]);
                    let mut weights = self.weight.chunks_exact(ALL);
                    for i in 0..g.channels_in {
                        for u in 0..g.kernel_height {
                            let from_row = self.picture * rows + r * g.stride + u;
                            let line = (from_row * g.channels_in + i) * row + c;
                            for (v, weights) in weights.by_ref().take(g.kernel_width).enumerate() {
                                let x = &data[line + v % g.stride * phase + v / g.stride..][..width];
                                let (x, _) = x.as_chunks::<LANES>();
                                let x: [S::F32s; VECTORS] = std::array::from_fn(|vector| simd.load(&x[vector]));
                                let weights = &weights[first..first + CHANNELS];
                                for channel in 0..CHANNELS {
                                    let weight = simd.splat(weights[channel]);
                                    for vector in 0..VECTORS {
                                        let sum = &mut sums[channel][vector];
                                        *sum = simd.mul_add(x[vector], weight, *sum);
                                    }
                                }
                            }
                        }
                    }
                    let kept = width.min(g.columns - c);
                    for (sums, plane) in sums.iter().zip(planes.chunks_mut(g.rows * g.columns)) {
                        let mut lanes = [[0.0; LANES]; VECTORS];
                        for (sum, lanes) in sums.iter().zip(&mut lanes) {
                            simd.store(*sum, lanes);
                        }
                        plane[r * g.columns + c..][..kept].copy_from_slice(&lanes.as_flattened()[..kept]);
                    }
                }
            }
        }
    }
}
