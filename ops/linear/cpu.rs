//! Dot products of rows of `x` with rows of the weight, both read along `in`, a few of each at a time.
//!
//! Every product has one vector of partial sums of its own: entry `l` takes the inputs `l`, `l + lanes`, and so on.
//! However many rows and outputs share a pass, and on whatever thread, its sum is the same.

use rayon::prelude::*;

use crate::backend::cpu::{Cpu, vectorised, widen_f16};
use crate::{Float, View, ViewMut, Weight, bf16, f16};

/// Rows are padded with zeros to a multiple of this, the widest vector that any processor has.
const PAD: usize = 16;
/// Outputs that a task widens at once: their weights stay in the second level cache.
const OUTPUTS_PER_BLOCK: usize = 24;
/// Rows that a task takes at once, where there are many.
const ROWS_PER_BLOCK: usize = 64;
/// Products below which another thread costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 17;

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
        let columns = T::as_f32(columns).unwrap_or_else(|| {
            wide.resize(columns.len(), 0.0);
            T::widen(columns, &mut wide);
            &wide
        });
        product(cpu, size, a, Matrix::F32(columns), None, y);
    }
}

#[derive(Clone, Copy)]
struct Size {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

fn product<T: Float>(cpu: &Cpu, size: Size, x: &[T], matrix: Matrix<'_>, bias: Option<&[f32]>, y: &mut [T]) {
    let Size { rows, inputs, outputs } = size;
    if y.is_empty() {
        return;
    }
    let threads = if rows * outputs * inputs.max(1) < WORTH_A_THREAD { 1 } else { cpu.threads() };
    if rows >= 8 * threads {
        // Many rows: a task takes some of them through all outputs.
        let rows_per_task = rows.div_ceil(threads).next_multiple_of(4).min(ROWS_PER_BLOCK);
        let task = |(block, y): (usize, &mut [T])| {
            let x = &x[block * rows_per_task * inputs..];
            let rows = y.len() / outputs;
            let (mut wide_x, mut wide_weight, mut sums) = (Vec::new(), Vec::new(), Vec::new());
            let x = padded(&x[..rows * inputs], inputs, &mut wide_x);
            let mut all_outputs = |sums: &mut [f32]| {
                for first in (0..outputs).step_by(OUTPUTS_PER_BLOCK) {
                    let last = (first + OUTPUTS_PER_BLOCK).min(outputs);
                    let weight = matrix.rows(inputs, first..last, &mut wide_weight);
                    let len = inputs.next_multiple_of(PAD);
                    multiply(Block { x, weight, len, sums: &mut sums[first..], row_stride: outputs, output_stride: 1 });
                }
                for sums in sums.chunks_mut(outputs) {
                    finish(matrix, bias, 0, 1, sums);
                }
            };
            if let Some(sums) = T::as_f32_mut(y) {
                all_outputs(sums);
            } else {
                sums.resize(y.len(), 0.0);
                all_outputs(&mut sums);
                T::narrow(&sums, y);
            }
        };
        let blocks = y.chunks_mut(rows_per_task * outputs);
        if threads == 1 {
            blocks.enumerate().for_each(task);
        } else {
            cpu.run(|| y.par_chunks_mut(rows_per_task * outputs).enumerate().for_each(task));
        }
        return;
    }
    // Few rows: a task takes all of them through some outputs, so that the weight is read once.
    let outputs_per_task = if rows > 4 { OUTPUTS_PER_BLOCK } else { 6 };
    let mut wide_x = Vec::new();
    let x = padded(x, inputs, &mut wide_x);
    let mut sums = vec![0.0; outputs * rows];
    let task = |wide_weight: &mut Vec<f32>, (block, sums): (usize, &mut [f32])| {
        let first = block * outputs_per_task;
        let weight = matrix.rows(inputs, first..first + sums.len() / rows, wide_weight);
        let len = inputs.next_multiple_of(PAD);
        multiply(Block { x, weight, len, sums, row_stride: 1, output_stride: rows });
        finish(matrix, bias, first, rows, sums);
    };
    if threads == 1 {
        let mut wide_weight = Vec::new();
        sums.chunks_mut(outputs_per_task * rows).enumerate().for_each(|block| task(&mut wide_weight, block));
    } else {
        cpu.run(|| {
            sums.par_chunks_mut(outputs_per_task * rows).enumerate().for_each_init(Vec::new, task);
        });
    }
    if rows == 1 {
        T::narrow(&sums, y);
        return;
    }
    for (row, y) in y.chunks_mut(outputs).enumerate() {
        for (y, sums) in y.iter_mut().zip(sums.chunks(rows)) {
            *y = T::from_f32(sums[row]);
        }
    }
}

/// Turns sums into outputs: `repeat` of them in a row belong to each output from `first` on.
fn finish(matrix: Matrix<'_>, bias: Option<&[f32]>, first: usize, repeat: usize, sums: &mut [f32]) {
    if let Matrix::Int8 { scale, .. } = matrix {
        for (sums, scale) in sums.chunks_mut(repeat).zip(&scale[first..]) {
            sums.iter_mut().for_each(|sum| *sum *= scale);
        }
    }
    if let Some(bias) = bias {
        for (sums, bias) in sums.chunks_mut(repeat).zip(&bias[first..]) {
            sums.iter_mut().for_each(|sum| *sum += bias);
        }
    }
}

/// Rows of `x` in f32, each padded with zeros; `x` itself where that changes nothing.
fn padded<'a, T: Float>(x: &'a [T], inputs: usize, wide: &'a mut Vec<f32>) -> &'a [f32] {
    match T::as_f32(x) {
        Some(x) if inputs.is_multiple_of(PAD) => x,
        _ => widen_rows(x, inputs, wide, T::widen),
    }
}

fn widen_rows<'a, T>(from: &[T], inputs: usize, wide: &'a mut Vec<f32>, widen: impl Fn(&[T], &mut [f32])) -> &'a [f32] {
    if inputs == 0 {
        return &[];
    }
    let len = inputs.next_multiple_of(PAD);
    // What is left from an earlier block is overwritten, but for the padding, which is zeros already.
    wide.resize(from.len() / inputs * len, 0.0);
    if len == inputs {
        widen(from, wide);
    } else {
        for (from, to) in from.chunks(inputs).zip(wide.chunks_mut(len)) {
            widen(from, &mut to[..inputs]);
        }
    }
    wide
}

impl<'a> Matrix<'a> {
    /// The rows of these outputs, in f32 and padded.
    fn rows<'b>(self, inputs: usize, outputs: std::ops::Range<usize>, wide: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        let range = outputs.start * inputs..outputs.end * inputs;
        match self {
            Self::F32(weight) if inputs.is_multiple_of(PAD) => &weight[range],
            Self::F32(weight) => widen_rows(&weight[range], inputs, wide, |from, to| to.copy_from_slice(from)),
            Self::F16(weight) => widen_rows(&weight[range], inputs, wide, widen_f16),
            Self::Bf16(weight) => widen_rows(&weight[range], inputs, wide, |from, to| {
                vectorised(
                    #[inline(always)]
                    || from.iter().zip(to).for_each(|(from, to)| *to = f32::from_bits(u32::from(from.to_bits()) << 16)),
                );
            }),
            Self::Int8 { values, .. } => widen_rows(&values[range], inputs, wide, |from, to| {
                vectorised(
                    #[inline(always)]
                    || from.iter().zip(to).for_each(|(from, to)| *to = f32::from(*from)),
                );
            }),
        }
    }
}

/// Some rows times some outputs; the sum of row `r` and output `o` goes to `r * row_stride + o * output_stride`.
struct Block<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    len: usize,
    sums: &'a mut [f32],
    row_stride: usize,
    output_stride: usize,
}

fn multiply(block: Block<'_>) {
    if block.len > 0 {
        pulp::Arch::new().dispatch(block);
    }
}

impl pulp::WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, simd: S) {
        let rows = self.x.len() / self.len;
        let mut row = 0;
        // As many sums as leave registers for the operands: 12 of the 16 that AVX2 has.
        while row + 4 <= rows {
            self.outputs::<S, 4, 3>(simd, row);
            row += 4;
        }
        if row + 2 <= rows {
            self.outputs::<S, 2, 6>(simd, row);
            row += 2;
        }
        if row < rows {
            self.outputs::<S, 1, 6>(simd, row);
        }
    }
}

impl Block<'_> {
    /// All outputs for `ROWS` rows from `row` on.
    #[inline(always)]
    fn outputs<S: pulp::Simd, const ROWS: usize, const OUTPUTS: usize>(&mut self, simd: S, row: usize) {
        let outputs = self.weight.len() / self.len;
        let mut output = 0;
        while output + OUTPUTS <= outputs {
            self.tile::<S, ROWS, OUTPUTS>(simd, row, output);
            output += OUTPUTS;
        }
        while output < outputs {
            self.tile::<S, ROWS, 1>(simd, row, output);
            output += 1;
        }
    }

    #[inline(always)]
    fn tile<S: pulp::Simd, const ROWS: usize, const OUTPUTS: usize>(&mut self, simd: S, row: usize, output: usize) {
        let steps = self.len / S::F32_LANES;
        let x: [&[S::f32s]; ROWS] =
            std::array::from_fn(|r| &S::as_simd_f32s(&self.x[(row + r) * self.len..][..self.len]).0[..steps]);
        let weight: [&[S::f32s]; OUTPUTS] =
            std::array::from_fn(|o| &S::as_simd_f32s(&self.weight[(output + o) * self.len..][..self.len]).0[..steps]);
        let mut sums = [[simd.splat_f32s(0.0); OUTPUTS]; ROWS];
        for step in 0..steps {
            let weight: [S::f32s; OUTPUTS] = std::array::from_fn(|o| weight[o][step]);
            for r in 0..ROWS {
                let x = x[r][step];
                for o in 0..OUTPUTS {
                    sums[r][o] = simd.mul_add_e_f32s(x, weight[o], sums[r][o]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (o, sum) in sums.iter().enumerate() {
                let at = (row + r) * self.row_stride + (output + o) * self.output_stride;
                self.sums[at] = simd.reduce_sum_f32s(*sum);
            }
        }
    }
}
