//! Plane by plane: rows are mixed first, along whole lines, then columns.

use super::Taps;
use crate::backend::cpu::{Cpu, vectorised};
use crate::{Float, View, ViewMut};

/// [`super::resize`] over contiguous operands.
pub fn resize<T: Float>(cpu: &Cpu, x: View<'_, T>, rows: &[Taps], columns: &[Taps], mut y: ViewMut<'_, T>) {
    let &[_, _, height, width] = x.shape() else { unreachable!("checked by the op: four axes") };
    let x = x.as_slice().expect("contiguous");
    let y = y.as_mut_slice().expect("contiguous");
    let plane = height * width;
    cpu.rows(y, rows.len() * columns.len(), |index, y| {
        let mut wide = vec![0.0; plane];
        T::widen(&x[index * plane..][..plane], &mut wide);
        let mut mixed = vec![0.0f32; width];
        let mut line = vec![0.0f32; columns.len()];
        for (row, y) in rows.iter().zip(y.chunks_mut(columns.len())) {
            vectorised(
                #[inline(always)]
                || {
                    mixed.fill(0.0);
                    for (weight, x) in row.weights.iter().zip(wide[row.first * width..].chunks(width)) {
                        let weight = *weight as f32;
                        mixed.iter_mut().zip(x).for_each(|(mixed, x)| *mixed += weight * x);
                    }
                    for (column, y) in columns.iter().zip(&mut line) {
                        let x = &mixed[column.first..];
                        *y = column.weights.iter().zip(x).map(|(weight, x)| *weight as f32 * x).sum();
                    }
                },
            );
            T::narrow(&line, y);
        }
    });
}
