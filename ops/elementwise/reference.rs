//! The definition of each op: plain loops in f64; `a` and `y` are contiguous.

use super::Operation;
use crate::{Float, View, ViewMut};

/// [`super::add`], [`super::mul`] and [`super::scale_add`], with `b` stretched to the shape of `a`.
pub fn binary<T: Float>(a: View<'_, T>, b: View<'_, T>, operation: Operation, mut y: ViewMut<'_, T>) {
    let (a, y) = (a.as_slice().expect("contiguous"), y.as_mut_slice().expect("contiguous"));
    for ((a, at), y) in a.iter().zip(b.layout.indices()).zip(y) {
        let (a, b) = (a.to_f64(), b.data[at].to_f64());
        *y = T::from_f64(match operation {
            Operation::ScaleAdd { alpha, beta } => f64::from(alpha) * a + f64::from(beta) * b,
            Operation::Mul => a * b,
        });
    }
}
