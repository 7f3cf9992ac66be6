//! The definition: plain loops in f64 over contiguous operands.

use super::Taps;
use crate::{Float, View, ViewMut};

/// [`super::resize`].
pub fn resize<T: Float>(x: View<'_, T>, rows: &[Taps], columns: &[Taps], mut y: ViewMut<'_, T>) {
    for b in 0..x.shape()[0] {
        for channel in 0..x.shape()[1] {
            for (r, row) in rows.iter().enumerate() {
                for (c, column) in columns.iter().enumerate() {
                    let mut sum = 0.0;
                    for (u, row_weight) in row.weights.iter().enumerate() {
                        for (v, column_weight) in column.weights.iter().enumerate() {
                            let x = x.at(&[b, channel, row.first + u, column.first + v]);
                            sum += row_weight * column_weight * x.to_f64();
                        }
                    }
                    y.set(&[b, channel, r, c], T::from_f64(sum));
                }
            }
        }
    }
}
