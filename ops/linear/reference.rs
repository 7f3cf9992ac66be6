//! The definition of each op: plain loops in f64 over contiguous operands.

use crate::{Float, View, ViewMut, Weight};

/// [`super::linear`], of `x` `[rows, in]`.
///
/// # Panics
/// If the weight is on a GPU.
pub fn linear<T: Float>(x: View<'_, T>, weight: &Weight, bias: Option<View<'_, f32>>, mut y: ViewMut<'_, T>) {
    let &[rows, inputs] = x.shape() else { unreachable!("[rows, in]") };
    let x = x.as_slice().expect("contiguous");
    let y = y.as_mut_slice().expect("contiguous");
    let outputs = weight.shape()[0];
    for o in 0..outputs {
        let column: Vec<f64> = (0..inputs).map(|i| weight.value(&[o, i])).collect();
        let bias = bias.map_or(0.0, |bias| f64::from(bias.at(&[o])));
        for r in 0..rows {
            let products = x[r * inputs..][..inputs].iter().zip(&column).map(|(x, weight)| x.to_f64() * weight);
            y[r * outputs + o] = T::from_f64(products.sum::<f64>() + bias);
        }
    }
}

/// [`super::matmul`], of `a` `[batch, m, k]` and the transposed `b`, `[batch, n, k]`.
pub fn matmul<T: Float>(a: View<'_, T>, columns: View<'_, T>, mut y: ViewMut<'_, T>) {
    let &[batch, m, k] = a.shape() else { unreachable!("[batch, m, k]") };
    let n = columns.shape()[1];
    for entry in 0..batch {
        for i in 0..m {
            for j in 0..n {
                let products = (0..k).map(|l| a.at(&[entry, i, l]).to_f64() * columns.at(&[entry, j, l]).to_f64());
                y.set(&[entry, i, j], T::from_f64(products.sum()));
            }
        }
    }
}
