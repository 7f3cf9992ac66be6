//! Dot products of rows of `x` with rows of the weight, both read along `in`, in tiles of a few of each.
//!
//! Every product has one vector of partial sums of its own, to which the inputs are added in steps from the first to
//! the last: lane `l` takes the inputs `l`, `l + 16`, and so on; where both operands are bf16, pairs of inputs instead.
//! At the end the lanes are added in one fixed order. However many rows and outputs share a tile, in however many parts
//! `in` is read, and on whatever thread, its sum is the same: a single row takes the same steps as a thousand.
//!
//! One or two rows read the weight as it is stored and wait for memory alone. More rows share a copy of some outputs,
//! packed (and widened) so that a tile reads neighbouring addresses.

use std::ops::Range;

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::tile::{self, Arithmetic, Pairs, STREAM_OUTPUTS, Single, Stored, TILE_OUTPUTS, TILE_ROWS};
use crate::backend::cpu::Cpu;
use crate::backend::simd::{self, Kernel, LANES, Simd};
use crate::{Float, View, ViewMut, Weight, bf16, f16};

/// Products below which another thread costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 17;
/// Rows of a thread from which on it takes rows rather than outputs: each task then packs all outputs for itself.
const MANY_ROWS: usize = 48;
/// Rows that a task takes at once, at most.
const ROWS_PER_TASK: usize = 96;
/// Steps that are packed at a time: with them a tile's operands stay in the first level cache.
const PART_STEPS: usize = 32;
/// Outputs that are packed at a time: with their sums they stay in the second level cache.
const BLOCK_OUTPUTS: usize = 32;

/// A matrix `[outputs, in]` as it is stored.
#[derive(Clone, Copy)]
enum Matrix<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    Int8 { values: &'a [i8], scale: &'a [f32] },
}

/// [`super::linear`] over contiguous operands, `x` being `[rows, in]`.
///
/// # Panics
/// If the weight is on a GPU.
pub fn linear<T: Float>(
    cpu: &Cpu,
    x: View<'_, T>,
    weight: &Weight,
    bias: Option<View<'_, f32>>,
    mut y: ViewMut<'_, T>,
) {
    const DENSE: &str = "contiguous";
    let matrix = match weight {
        Weight::F32(weight) => Matrix::F32(weight.host().as_slice().expect(DENSE)),
        Weight::F16(weight) => Matrix::F16(weight.host().as_slice().expect(DENSE)),
        Weight::Bf16(weight) => Matrix::Bf16(weight.host().as_slice().expect(DENSE)),
        Weight::Int8 { values, scale } => Matrix::Int8 {
            values: values.host().as_slice().expect(DENSE),
            scale: scale.host().as_slice().expect(DENSE),
        },
    };
    let size = Size { rows: x.shape()[0], inputs: x.shape()[1], outputs: weight.shape()[0] };
    let bias = bias.map(|bias| bias.as_slice().expect(DENSE));
    product(cpu, size, x.as_slice().expect(DENSE), matrix, bias, y.as_mut_slice().expect(DENSE));
}

/// [`super::matmul`] over contiguous operands: `a` `[batch, m, k]` and the transposed `b`, `[batch, n, k]`.
pub fn matmul<T: Float>(cpu: &Cpu, a: View<'_, T>, columns: View<'_, T>, mut y: ViewMut<'_, T>) {
    let size = Size { rows: a.shape()[1], inputs: a.shape()[2], outputs: columns.shape()[1] };
    let (a, columns) = (a.as_slice().expect("contiguous"), columns.as_slice().expect("contiguous"));
    let y = y.as_mut_slice().expect("contiguous");
    if y.is_empty() {
        return;
    }
    let mut wide = Vec::new();
    for (entry, y) in y.chunks_mut(size.rows * size.outputs).enumerate() {
        let a = &a[entry * size.rows * size.inputs..][..size.rows * size.inputs];
        let columns = &columns[entry * size.outputs * size.inputs..][..size.outputs * size.inputs];
        let matrix = match T::as_bf16(columns) {
            Some(columns) => Matrix::Bf16(columns),
            None => Matrix::F32(as_f32(columns, &mut wide)),
        };
        product(cpu, size, a, matrix, None, y);
    }
}

/// The values themselves, or widened.
fn as_f32<'a, T: Float>(x: &'a [T], wide: &'a mut Vec<f32>) -> &'a [f32] {
    T::as_f32(x).unwrap_or_else(|| {
        wide.resize(x.len(), 0.0);
        T::widen(x, wide);
        wide
    })
}

#[derive(Clone, Copy)]
struct Size {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

/// Rows of `x` as the arithmetic takes them.
#[derive(Clone, Copy)]
enum Operand<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

fn product<T: Float>(cpu: &Cpu, size: Size, x: &[T], matrix: Matrix<'_>, bias: Option<&[f32]>, y: &mut [T]) {
    if y.is_empty() {
        return;
    }
    let mut wide = Vec::new();
    let x = match (T::as_bf16(x), matrix) {
        (Some(x), Matrix::Bf16(_)) => Operand::Bf16(x),
        _ => Operand::F32(as_f32(x, &mut wide)),
    };
    if let Some(y) = T::as_f32_mut(y) {
        return sums_of(cpu, size, x, matrix, bias, y);
    }
    let mut sums = vec![0.0; y.len()];
    sums_of(cpu, size, x, matrix, bias, &mut sums);
    cpu.rows(y, size.outputs, |row, y| T::narrow(&sums[row * size.outputs..][..size.outputs], y));
}

/// Not generic, so that the kernels are compiled once and with this crate.
fn sums_of(cpu: &Cpu, size: Size, x: Operand<'_>, matrix: Matrix<'_>, bias: Option<&[f32]>, y: &mut [f32]) {
    match (x, matrix) {
        (Operand::Bf16(x), Matrix::Bf16(weight)) => spread::<Pairs, _, _>(cpu, size, x, weight, matrix, bias, y),
        (Operand::Bf16(_), _) => unreachable!("a bf16 operand meets a bf16 matrix alone"),
        (Operand::F32(x), Matrix::F32(weight)) => spread::<Single, _, _>(cpu, size, x, weight, matrix, bias, y),
        (Operand::F32(x), Matrix::F16(weight)) => spread::<Single, _, _>(cpu, size, x, weight, matrix, bias, y),
        (Operand::F32(x), Matrix::Bf16(weight)) => spread::<Single, _, _>(cpu, size, x, weight, matrix, bias, y),
        (Operand::F32(x), Matrix::Int8 { values, .. }) => {
            spread::<Single, _, _>(cpu, size, x, values, matrix, bias, y);
        }
    }
}

/// Spreads a product over the threads.
fn spread<A: Arithmetic, X: Stored<A>, W: Stored<A>>(
    cpu: &Cpu,
    size: Size,
    x: &[X],
    weight: &[W],
    matrix: Matrix<'_>,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let Size { rows, inputs, outputs } = size;
    let threads = if rows * outputs * inputs.max(1) < WORTH_A_THREAD { 1 } else { cpu.threads() };
    let steps = inputs.div_ceil(tile::step::<A, X>());
    let mut packed: Vec<A::Step> = vec![A::Step::zeroed(); rows * steps];
    if inputs > 0 {
        let pack = |(x, to): (&[X], &mut [A::Step])| pack_rows::<A, X>(x, inputs, steps, to);
        if threads == 1 || rows <= TILE_ROWS {
            x.chunks(TILE_ROWS * inputs).zip(packed.chunks_mut(TILE_ROWS * steps)).for_each(pack);
        } else {
            let to = packed.par_chunks_mut(TILE_ROWS * steps);
            cpu.run(|| x.par_chunks(TILE_ROWS * inputs).zip(to).for_each(pack));
        }
    }
    let block = |x: &[A::Step], weight: &[W], sums: &mut [f32]| match x.len().checked_div(steps) {
        None => sums.fill(0.0),
        Some(1 | 2) => simd::dispatch(Stream { x, weight, inputs, steps, sums }),
        Some(_) => tiles(x, weight, inputs, steps, sums),
    };
    if rows >= MANY_ROWS * threads {
        // A task takes some rows through all outputs; all threads have as many tasks.
        let tasks = rows.div_ceil(threads * ROWS_PER_TASK) * threads;
        let rows_per_task = rows.div_ceil(tasks).next_multiple_of(TILE_ROWS);
        let task = |(task, y): (usize, &mut [f32])| {
            block(&packed[task * rows_per_task * steps..][..y.len() / outputs * steps], weight, y);
            finish(matrix, bias, 0, outputs, y);
        };
        if threads == 1 {
            y.chunks_mut(rows_per_task * outputs).enumerate().for_each(task);
        } else {
            cpu.run(|| y.par_chunks_mut(rows_per_task * outputs).enumerate().for_each(task));
        }
        return;
    }
    // A task takes all rows through some outputs, so that the weight is read once; a few tasks for each thread make up
    // for one that is held up.
    let outputs_per_task = outputs.div_ceil(8 * threads).next_multiple_of(STREAM_OUTPUTS);
    let mut sums = vec![0.0; outputs * rows];
    let task = |(task, sums): (usize, &mut [f32])| {
        let (first, count) = (task * outputs_per_task, sums.len() / rows);
        block(&packed, &weight[first * inputs..][..count * inputs], sums);
        finish(matrix, bias, first, count, sums);
    };
    if threads == 1 {
        sums.chunks_mut(outputs_per_task * rows).enumerate().for_each(task);
    } else {
        cpu.run(|| sums.par_chunks_mut(outputs_per_task * rows).enumerate().for_each(task));
    }
    for (task, sums) in sums.chunks(outputs_per_task * rows).enumerate() {
        let count = sums.len() / rows;
        for (row, sums) in sums.chunks(count).enumerate() {
            y[row * outputs + task * outputs_per_task..][..count].copy_from_slice(sums);
        }
    }
}

/// Turns sums, `[rows, count]` of the outputs from `first` on, into results.
fn finish(matrix: Matrix<'_>, bias: Option<&[f32]>, first: usize, count: usize, sums: &mut [f32]) {
    for sums in sums.chunks_mut(count) {
        if let Matrix::Int8 { scale, .. } = matrix {
            sums.iter_mut().zip(&scale[first..]).for_each(|(sum, scale)| *sum *= scale);
        }
        if let Some(bias) = bias {
            sums.iter_mut().zip(&bias[first..]).for_each(|(sum, bias)| *sum += bias);
        }
    }
}

/// The rows of the next tile, of those that are left.
fn tile_rows(left: usize) -> usize {
    match left {
        TILE_ROWS.. => TILE_ROWS,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Packs rows of `x`, tile after tile.
fn pack_rows<A: Arithmetic, X: Stored<A>>(x: &[X], inputs: usize, steps: usize, to: &mut [A::Step]) {
    let count = x.len() / inputs;
    let mut row = 0;
    while row < count {
        let rows = tile_rows(count - row);
        let (from, to) = (&x[row * inputs..][..rows * inputs], &mut to[row * steps..][..rows * steps]);
        simd::dispatch(Pack { from, stride: inputs, taken: inputs, rows, to });
        row += rows;
    }
}

/// Many rows of `x`, packed, times some outputs: `sums` is `[rows, outputs]`.
fn tiles<A: Arithmetic, W: Stored<A>>(x: &[A::Step], weight: &[W], inputs: usize, steps: usize, sums: &mut [f32]) {
    let (rows, outputs) = (x.len() / steps, weight.len() / inputs);
    // What a single tile of rows reads once need not be kept.
    let block = if rows <= TILE_ROWS { TILE_OUTPUTS } else { BLOCK_OUTPUTS };
    let mut packed = vec![A::Step::zeroed(); block * PART_STEPS.min(steps)];
    let mut partial = vec![[[0.0; LANES]; TILE_OUTPUTS]; rows * block / TILE_OUTPUTS];
    for first in (0..outputs).step_by(block) {
        let count = block.min(outputs - first);
        for part in (0..steps).step_by(PART_STEPS) {
            let part_steps = PART_STEPS.min(steps - part);
            let start = part * tile::step::<A, W>();
            let taken = (part_steps * tile::step::<A, W>()).min(inputs - start);
            let from = &weight[first * inputs..][..count * inputs][start..];
            let to = &mut packed[..count.next_multiple_of(TILE_OUTPUTS) * part_steps];
            simd::dispatch(Pack { from, stride: inputs, taken, rows: TILE_OUTPUTS, to });
            simd::dispatch(Part::<A> {
                x,
                weight: to,
                steps,
                range: part..part + part_steps,
                outputs: [first, first + count, outputs],
                partial: &mut partial,
                sums,
            });
        }
    }
}

/// Packs rows, as many to a tile as `rows`.
struct Pack<'a, A: Arithmetic, X> {
    from: &'a [X],
    stride: usize,
    taken: usize,
    rows: usize,
    to: &'a mut [A::Step],
}

impl<A: Arithmetic, X: Stored<A>> Kernel for Pack<'_, A, X> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { from, stride, taken, rows, to } = self;
        let steps = taken.div_ceil(tile::step::<A, X>());
        for (from, to) in from.chunks(rows * stride).zip(to.chunks_mut(rows * steps)) {
            tile::pack(simd, from, stride, taken, rows, to);
        }
    }
}

/// One or two rows of `x`, packed, times some outputs, read once as they are stored: `sums` is `[rows, outputs]`.
struct Stream<'a, A: Arithmetic, W> {
    x: &'a [A::Step],
    weight: &'a [W],
    inputs: usize,
    /// Of a row of `x`.
    steps: usize,
    sums: &'a mut [f32],
}

impl<A: Arithmetic, W: Stored<A>> Kernel for Stream<'_, A, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.x.len() / self.steps {
            1 => self.rows::<S, 1>(simd),
            _ => self.rows::<S, 2>(simd),
        }
    }
}

impl<A: Arithmetic, W: Stored<A>> Stream<'_, A, W> {
    #[inline(always)]
    fn rows<S: Simd, const ROWS: usize>(self, simd: S) {
        let Self { x, weight, inputs, sums, .. } = self;
        let outputs = weight.len() / inputs;
        // The last tile ends with the last output: what it shares with the one before is computed twice, alike. With
        // fewer outputs than a tile has, each is all of a tile.
        let (step, stride, kept) =
            if outputs < STREAM_OUTPUTS { (1, 0, 1) } else { (STREAM_OUTPUTS, inputs, STREAM_OUTPUTS) };
        for output in (0..outputs).step_by(step) {
            let output = output.min(outputs - kept);
            let tile = tile::stream::<S, A, W, ROWS>(simd, x, &weight[output * inputs..], inputs, stride);
            for (tile, sums) in tile.iter().zip(sums.chunks_mut(outputs)) {
                let (fours, _) = tile.as_chunks::<4>();
                for (four, sums) in fours.iter().zip(sums[output..][..kept].chunks_mut(4)) {
                    sums.copy_from_slice(&simd.sums(*four)[..sums.len()]);
                }
            }
        }
    }
}

/// All rows times some steps of some outputs, packed in tiles.
struct Part<'a, A: Arithmetic> {
    x: &'a [A::Step],
    weight: &'a [A::Step],
    /// Of a row, and which of them these are.
    steps: usize,
    range: Range<usize>,
    /// The first of these, one past the last, and how many there are in all.
    outputs: [usize; 3],
    /// Sums of the steps before, by row tile, output tile and row.
    partial: &'a mut [[[f32; LANES]; TILE_OUTPUTS]],
    sums: &'a mut [f32],
}

impl<A: Arithmetic> Kernel for Part<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let count = self.x.len() / self.steps;
        let mut row = 0;
        while row < count {
            match tile_rows(count - row) {
                TILE_ROWS => self.rows::<S, TILE_ROWS>(simd, row),
                4 => self.rows::<S, 4>(simd, row),
                2 => self.rows::<S, 2>(simd, row),
                _ => self.rows::<S, 1>(simd, row),
            }
            row += tile_rows(count - row);
        }
    }
}

impl<A: Arithmetic> Part<'_, A> {
    /// A tile of rows, to the partial sums or at last to `sums`.
    #[inline(always)]
    fn rows<S: Simd, const ROWS: usize>(&mut self, simd: S, row: usize) {
        let [first, end, outputs] = self.outputs;
        let x = &self.x[row * self.steps + self.range.start * ROWS..][..self.range.len() * ROWS];
        let tiles = (end - first).div_ceil(TILE_OUTPUTS);
        let (partial, _) = self.partial[row * tiles..][..ROWS * tiles].as_chunks_mut::<ROWS>();
        for (tile, (weight, partial)) in self.weight.chunks(TILE_OUTPUTS * self.range.len()).zip(partial).enumerate() {
            let mut sums = [[simd.splat(0.0); TILE_OUTPUTS]; ROWS];
            if self.range.start > 0 {
                for (sums, partial) in sums.iter_mut().zip(&*partial) {
                    for (sum, partial) in sums.iter_mut().zip(partial) {
                        *sum = simd.load(partial);
                    }
                }
            }
            let sums = tile::tile::<S, A, ROWS>(simd, x, weight, sums);
            if self.range.end < self.steps {
                for (sums, partial) in sums.iter().zip(partial) {
                    for (sum, partial) in sums.iter().zip(partial) {
                        simd.store(*sum, partial);
                    }
                }
                continue;
            }
            let output = first + tile * TILE_OUTPUTS;
            let kept = TILE_OUTPUTS.min(end - output);
            for (next, sums) in sums.into_iter().enumerate() {
                self.sums[(row + next) * outputs + output..][..kept].copy_from_slice(&simd.sums(sums)[..kept]);
            }
        }
    }
}
