//! Dot products of rows of `x` with rows of the weight, both read along `in`, in tiles of a few of each.
//!
//! Every product has one vector of partial sums of its own, to which the inputs are added in steps from the first to
//! the last: lane `l` takes the inputs `l`, `l + 16`, and so on; where both operands are bf16, pairs of inputs instead.
//! At the end the lanes are added in one fixed order. However many rows and outputs share a tile, in however many parts
//! `in` is read, and on whatever thread, its sum is the same: a single row takes the same steps as a thousand.
//!
//! One or two rows read the weight as it is stored and wait for memory alone. More rows share a copy of some outputs,
//! packed (and widened) so that a tile reads neighbouring addresses.

use std::marker::PhantomData;
use std::ops::Range;

use super::tile::{self, Arithmetic, Pairs, STREAM_OUTPUTS, Single, Stored, TILE_OUTPUTS, TILE_ROWS};
use crate::backend::cpu::{Cpu, vectorised};
use crate::backend::simd::{self, Kernel, Line, Simd};
use crate::{Float, View, ViewMut, Weight, bf16, f16};

/// Products below which another thread costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 17;
/// Rows that share a packed weight, at most: enough to pay for the packing, few enough for the third level cache.
const ROWS_AT_ONCE: usize = 768;
/// Rows whose partial sums stay in the second level cache beside a packed block; whole tiles.
const GROUP_ROWS: usize = 16 * TILE_ROWS;
/// Steps that are taken at a time: with them a tile's operands stay in the first level cache.
const PART_STEPS: usize = 32;
/// Tasks that share the packing of `x`.
const PACKING_TASKS: usize = 16;
/// Outputs that are packed at a time.
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
    let Size { rows, inputs, outputs } = size;
    let threads = if rows * outputs * inputs.max(1) < WORTH_A_THREAD { 1 } else { cpu.threads() };
    // A few tasks for each thread make up for one that is held up.
    let whole = if rows <= TILE_ROWS { STREAM_OUTPUTS } else { BLOCK_OUTPUTS };
    let outputs_per_task = outputs.div_ceil(if threads == 1 { 1 } else { 8 * threads }).next_multiple_of(whole);
    let rows_at_once = rows.div_ceil(rows.div_ceil(ROWS_AT_ONCE)).next_multiple_of(GROUP_ROWS);
    for (part, y) in y.chunks_mut(rows_at_once * outputs).enumerate() {
        let rows = y.len() / outputs;
        let range = part * rows_at_once * inputs..(part * rows_at_once + rows) * inputs;
        let x = match x {
            Operand::F32(x) => Operand::F32(&x[range]),
            Operand::Bf16(x) => Operand::Bf16(&x[range]),
        };
        let mut results: Vec<_> = (0..outputs.div_ceil(outputs_per_task)).map(|_| Columns::with_room(rows)).collect();
        for y in y.chunks_mut(outputs) {
            results.iter_mut().zip(y.chunks_mut(outputs_per_task)).for_each(|(columns, y)| columns.rows.push(y));
        }
        let mut tasks = results.iter_mut().enumerate().map(|(task, columns)| Task {
            first: task * outputs_per_task,
            outputs: columns.rows[0].len(),
            results: columns,
        });
        each_task(cpu, &mut tasks, Size { rows, ..size }, x, matrix, bias);
    }
}

/// Some outputs of all rows, which one thread computes alone, so that each part of the weight is read, and packed, once.
struct Task<'a> {
    first: usize,
    outputs: usize,
    results: &'a mut (dyn Results + Send),
}

/// Where a task's results go.
trait Results {
    /// Takes `[rows, count]` results, of the row `row` and the task's output `output` on.
    fn take(&mut self, row: usize, output: usize, count: usize, results: &[f32]);
}

/// The outputs of one task in each row.
struct Columns<'a, T> {
    rows: Vec<&'a mut [T]>,
    /// Results on their way.
    narrow: Vec<T>,
}

impl<T> Columns<'_, T> {
    fn with_room(rows: usize) -> Self {
        Self { rows: Vec::with_capacity(rows), narrow: Vec::new() }
    }
}

impl<T: Float> Results for Columns<'_, T> {
    fn take(&mut self, row: usize, output: usize, count: usize, results: &[f32]) {
        let rows = self.rows[row..].iter_mut().map(|row| &mut row[output..][..count]);
        if results.len() == count {
            rows.zip(results.chunks(count)).for_each(|(row, results)| T::narrow(results, row));
        } else {
            self.narrow.resize(results.len(), T::zeroed());
            T::narrow(results, &mut self.narrow);
            rows.zip(self.narrow.chunks(count)).for_each(|(row, results)| row.copy_from_slice(results));
        }
    }
}

/// Runs all tasks. Not generic, so that the kernels are compiled once and with this crate.
fn each_task(
    cpu: &Cpu,
    tasks: &mut (dyn ExactSizeIterator<Item = Task<'_>> + Send),
    size: Size,
    x: Operand<'_>,
    matrix: Matrix<'_>,
    bias: Option<&[f32]>,
) {
    match (x, matrix) {
        (Operand::Bf16(x), Matrix::Bf16(weight)) => spread::<Pairs, _, _>(cpu, tasks, size, x, weight, matrix, bias),
        (Operand::Bf16(_), _) => unreachable!("a bf16 operand meets a bf16 matrix alone"),
        (Operand::F32(x), Matrix::F32(weight)) => spread::<Single, _, _>(cpu, tasks, size, x, weight, matrix, bias),
        (Operand::F32(x), Matrix::F16(weight)) => spread::<Single, _, _>(cpu, tasks, size, x, weight, matrix, bias),
        (Operand::F32(x), Matrix::Bf16(weight)) => spread::<Single, _, _>(cpu, tasks, size, x, weight, matrix, bias),
        (Operand::F32(x), Matrix::Int8 { values, .. }) => {
            spread::<Single, _, _>(cpu, tasks, size, x, values, matrix, bias);
        }
    }
}

/// Spreads a product over the threads.
fn spread<A: Arithmetic, X: Stored<A>, W: Stored<A>>(
    cpu: &Cpu,
    tasks: &mut (dyn ExactSizeIterator<Item = Task<'_>> + Send),
    size: Size,
    x: &[X],
    weight: &[W],
    matrix: Matrix<'_>,
    bias: Option<&[f32]>,
) {
    let arithmetic = PhantomData::<A>;
    let Size { rows, inputs, .. } = size;
    let steps = inputs.div_ceil(tile::step::<A, X>());
    let mut packed = vec![Line::default(); rows * steps];
    if inputs > 0 {
        let rows_per_task = (rows / PACKING_TASKS).next_multiple_of(TILE_ROWS).max(TILE_ROWS);
        let to = packed.chunks_mut(rows_per_task * steps);
        cpu.share(x.chunks(rows_per_task * inputs).zip(to), |(x, to)| pack_rows::<A, X>(x, inputs, steps, to));
    }
    cpu.share_with(tasks, Scratch::default, |scratch, Task { first, outputs, results }| {
        let weight = &weight[first * inputs..][..outputs * inputs];
        let mut give = |row: usize, output: usize, count: usize, sums: &mut [f32]| {
            finish(matrix, bias, first + output, count, sums);
            results.take(row, output, count, sums);
        };
        match (rows, steps) {
            (_, 0) => give(0, 0, outputs, scratch.zeros(rows * outputs)),
            (1 | 2, _) => {
                let sums = scratch.zeros(rows * outputs);
                simd::dispatch(Stream { arithmetic, x: &packed, weight, inputs, steps, sums: &mut *sums });
                give(0, 0, outputs, sums);
            }
            _ => tiles(arithmetic, &packed, weight, inputs, steps, scratch, give),
        }
    });
}

/// What a thread uses again from task to task.
#[derive(Default)]
struct Scratch {
    sums: Vec<f32>,
    /// Packed outputs.
    packed: Vec<Line>,
    /// Sums of the steps before, by row tile, output tile and row.
    partial: Vec<[Line; TILE_OUTPUTS]>,
}

impl Scratch {
    fn zeros(&mut self, count: usize) -> &mut [f32] {
        self.sums.clear();
        self.sums.resize(count, 0.0);
        &mut self.sums
    }
}

/// Turns sums, `[rows, count]` of the outputs from `first` on, into results.
fn finish(matrix: Matrix<'_>, bias: Option<&[f32]>, first: usize, count: usize, sums: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for sums in sums.chunks_mut(count) {
                if let Matrix::Int8 { scale, .. } = matrix {
                    sums.iter_mut().zip(&scale[first..]).for_each(|(sum, scale)| *sum *= scale);
                }
                if let Some(bias) = bias {
                    sums.iter_mut().zip(&bias[first..]).for_each(|(sum, bias)| *sum += bias);
                }
            }
        },
    );
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
fn pack_rows<A: Arithmetic, X: Stored<A>>(x: &[X], inputs: usize, steps: usize, to: &mut [Line]) {
    let arithmetic = PhantomData::<A>;
    let count = x.len() / inputs;
    let mut row = 0;
    while row < count {
        let rows = tile_rows(count - row);
        let (from, to) = (&x[row * inputs..][..rows * inputs], &mut to[row * steps..][..rows * steps]);
        simd::dispatch(Pack { arithmetic, from, stride: inputs, taken: inputs, rows, to });
        row += rows;
    }
}

/// Many rows of `x`, packed, times some outputs; calls `give(row, output, count, sums)` with `[rows, count]` sums of the
/// rows from `row` and the outputs from `output` on.
fn tiles<A: Arithmetic, W: Stored<A>>(
    arithmetic: PhantomData<A>,
    x: &[Line],
    weight: &[W],
    inputs: usize,
    steps: usize,
    Scratch { sums, packed, partial }: &mut Scratch,
    mut give: impl FnMut(usize, usize, usize, &mut [f32]),
) {
    let (rows, outputs) = (x.len() / steps, weight.len() / inputs);
    // What a single tile of rows reads once need not be kept.
    let block = if rows <= TILE_ROWS { TILE_OUTPUTS } else { BLOCK_OUTPUTS };
    let group_rows = rows.min(GROUP_ROWS);
    packed.resize(block * steps, Line::default());
    partial.resize(group_rows * block / TILE_OUTPUTS, [Line::default(); TILE_OUTPUTS]);
    sums.resize(group_rows * block, 0.0);
    for first in (0..outputs).step_by(block) {
        let count = block.min(outputs - first);
        let packed_outputs = count.next_multiple_of(TILE_OUTPUTS);
        // What is packed next comes near while this is multiplied.
        let ahead: &[u8] = bytemuck::cast_slice(&weight[(first + count) * inputs..]);
        let ahead = &ahead[..ahead.len().min(block * inputs * size_of::<W>())];
        let mut ahead =
            ahead.chunks(ahead.len().div_ceil(rows.div_ceil(GROUP_ROWS) * steps.div_ceil(PART_STEPS)).max(1));
        for (group, x) in x.chunks(GROUP_ROWS * steps).enumerate() {
            let sums = &mut sums[..x.len() / steps * count];
            for start in (0..steps).step_by(PART_STEPS) {
                let range = start..steps.min(start + PART_STEPS);
                let part = &mut packed[start * packed_outputs..][..range.len() * packed_outputs];
                if group == 0 {
                    let start = start * tile::step::<A, W>();
                    let taken = (range.len() * tile::step::<A, W>()).min(inputs - start);
                    let from = &weight[first * inputs..][..count * inputs][start..];
                    simd::dispatch(Pack { arithmetic, from, stride: inputs, taken, rows: TILE_OUTPUTS, to: part });
                }
                let ahead = ahead.next().unwrap_or_default();
                simd::dispatch(Part {
                    arithmetic,
                    x,
                    weight: part,
                    steps,
                    range,
                    outputs: count,
                    partial,
                    sums,
                    ahead,
                });
            }
            give(group * GROUP_ROWS, first, count, sums);
        }
    }
}

/// Packs rows, as many to a tile as `rows`.
struct Pack<'a, A: Arithmetic, X> {
    arithmetic: PhantomData<A>,
    from: &'a [X],
    stride: usize,
    taken: usize,
    rows: usize,
    to: &'a mut [Line],
}

impl<A: Arithmetic, X: Stored<A>> Kernel for Pack<'_, A, X> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { from, stride, taken, rows, to, .. } = self;
        let steps = taken.div_ceil(tile::step::<A, X>());
        for (from, to) in from.chunks(rows * stride).zip(to.chunks_mut(rows * steps)) {
            tile::pack::<S, A, X>(simd, from, stride, taken, rows, to);
        }
    }
}

/// One or two rows of `x`, packed, times some outputs, read once as they are stored: `sums` is `[rows, outputs]`.
struct Stream<'a, A: Arithmetic, W> {
    arithmetic: PhantomData<A>,
    x: &'a [Line],
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
            // What follows the last tile is another task's, and would be read twice.
            let ahead = if output + kept < outputs { kept * inputs } else { 0 };
            let tile = tile::stream::<S, A, W, ROWS>(simd, x, &weight[output * inputs..], inputs, stride, ahead);
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
    arithmetic: PhantomData<A>,
    x: &'a [Line],
    weight: &'a [Line],
    /// Of a row, and which of them these are.
    steps: usize,
    range: Range<usize>,
    outputs: usize,
    /// Sums of the steps before, by row tile, output tile and row.
    partial: &'a mut [[Line; TILE_OUTPUTS]],
    sums: &'a mut [f32],
    /// What is read soon.
    ahead: &'a [u8],
}

impl<A: Arithmetic> Kernel for Part<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let count = self.x.len() / self.steps;
        let tiles = count.div_ceil(TILE_ROWS) * self.outputs.div_ceil(TILE_OUTPUTS);
        let mut ahead = self.ahead.chunks(self.ahead.len().div_ceil(tiles).max(1));
        let mut row = 0;
        while row < count {
            match tile_rows(count - row) {
                TILE_ROWS => self.rows::<S, TILE_ROWS>(simd, row, &mut ahead),
                4 => self.rows::<S, 4>(simd, row, &mut ahead),
                2 => self.rows::<S, 2>(simd, row, &mut ahead),
                _ => self.rows::<S, 1>(simd, row, &mut ahead),
            }
            row += tile_rows(count - row);
        }
    }
}

impl<A: Arithmetic> Part<'_, A> {
    /// A tile of rows, to the partial sums or at last to `sums`.
    #[inline(always)]
    fn rows<S: Simd, const ROWS: usize>(&mut self, simd: S, row: usize, ahead: &mut std::slice::Chunks<'_, u8>) {
        let outputs = self.outputs;
        let x = &self.x[row * self.steps + self.range.start * ROWS..][..self.range.len() * ROWS];
        let tiles = outputs.div_ceil(TILE_OUTPUTS);
        let (partial, _) = self.partial[row * tiles..][..ROWS * tiles].as_chunks_mut::<ROWS>();
        for (tile, (weight, partial)) in self.weight.chunks(TILE_OUTPUTS * self.range.len()).zip(partial).enumerate() {
            // A few at a time, or the loads of the tile would wait for them.
            let lines = ahead.next().unwrap_or_default().iter().step_by(size_of::<Line>());
            lines.for_each(|line| simd.prefetch(line));
            let mut sums = [[simd.splat(0.0); TILE_OUTPUTS]; ROWS];
            if self.range.start > 0 {
                for (sums, partial) in sums.iter_mut().zip(&*partial) {
                    for (sum, partial) in sums.iter_mut().zip(partial) {
                        *sum = simd.load(partial.f32s());
                    }
                }
            }
            let sums = tile::tile::<S, A, ROWS>(simd, x, weight, sums);
            if self.range.end < self.steps {
                for (sums, partial) in sums.iter().zip(partial) {
                    for (sum, partial) in sums.iter().zip(partial) {
                        simd.store(*sum, partial.f32s_mut());
                    }
                }
                continue;
            }
            let output = tile * TILE_OUTPUTS;
            let kept = TILE_OUTPUTS.min(outputs - output);
            for (next, sums) in sums.into_iter().enumerate() {
                let sums = simd.sums(sums);
                let to = &mut self.sums[(row + next) * outputs + output..][..kept];
                match to.as_chunks_mut() {
                    ([all], []) => *all = sums,
                    (_, some) => some.copy_from_slice(&sums[..kept]),
                }
            }
        }
    }
}
