//! Vectorised over the pairs of a row, spread over threads by rows.

use super::Pairing;
use crate::backend::cpu::{Cpu, vectorised};
use crate::{Float, View, ViewMut};

/// [`super::rope`]; the tables are `[batch, seq, pairs]`, and the last axis of every operand is dense.
pub fn rope<T: Float>(
    cpu: &Cpu,
    x: View<'_, T>,
    cos: View<'_, f32>,
    sin: View<'_, f32>,
    pairing: Pairing,
    y: ViewMut<'_, T>,
) {
    let head_dim = x.shape()[3];
    each_row(cpu, y, |[batch, head, position], y| {
        let start = x.layout.index(&[batch, head, position, 0]);
        let mut wide = vec![0.0; head_dim];
        T::widen(&x.data[start..start + head_dim], &mut wide);
        turn(&mut wide, row_of(cos, batch, position), row_of(sin, batch, position), pairing);
        T::narrow(&wide, y);
    });
}

/// [`super::rope_in_place`]; the tables are `[batch, seq, pairs]`, and the last axis of every operand is dense.
pub fn rope_in_place<T: Float>(cpu: &Cpu, cos: View<'_, f32>, sin: View<'_, f32>, pairing: Pairing, x: ViewMut<'_, T>) {
    each_row(cpu, x, |[batch, _, position], x| {
        let mut wide = vec![0.0; x.len()];
        T::widen(x, &mut wide);
        turn(&mut wide, row_of(cos, batch, position), row_of(sin, batch, position), pairing);
        T::narrow(&wide, x);
    });
}

/// Calls `work` for each row with its batch entry, head and position; over threads if the rows lie without gaps.
fn each_row<T: Float>(cpu: &Cpu, mut y: ViewMut<'_, T>, work: impl Fn([usize; 3], &mut [T]) + Send + Sync) {
    let &[batch, heads, seq, head_dim] = y.layout.shape() else { unreachable!("the op checked it") };
    if head_dim == 0 {
        return;
    }
    let place = |row: usize| [row / (heads * seq), row / seq % heads, row % seq];
    if let Some(y) = y.as_mut_slice() {
        return cpu.rows(y, head_dim, |row, y| work(place(row), y));
    }
    for row in 0..batch * heads * seq {
        let [batch, head, position] = place(row);
        let start = y.layout.index(&[batch, head, position, 0]);
        work([batch, head, position], &mut y.data[start..start + head_dim]);
    }
}

fn row_of<'a>(table: View<'a, f32>, batch: usize, position: usize) -> &'a [f32] {
    let pairs = table.shape()[2];
    if pairs == 0 {
        return &[];
    }
    &table.data[table.layout.index(&[batch, position, 0])..][..pairs]
}

fn turn(x: &mut [f32], cos: &[f32], sin: &[f32], pairing: Pairing) {
    vectorised(
        #[inline(always)]
        || match pairing {
            Pairing::Interleaved => {
                for ((pair, cos), sin) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
                    let (a, b) = (pair[0], pair[1]);
                    pair[0] = a * cos - b * sin;
                    pair[1] = a * sin + b * cos;
                }
            }
            Pairing::HalfSplit => {
                let (first, second) = x.split_at_mut(cos.len());
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        },
    );
}
