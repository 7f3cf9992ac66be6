//! The definition of each op: plain loops in f64 over contiguous operands.

use crate::{Float, View, ViewMut, Weight};

/// [`super::embedding`], with ids that are all in the table.
///
/// # Panics
/// If an id is not in the table, or the table is on a GPU.
pub fn embedding<T: Float>(table: &Weight, ids: View<'_, u32>, mut y: ViewMut<'_, T>) {
    let channels = table.shape()[1];
    let ids = ids.as_slice().expect("contiguous");
    let y = y.as_mut_slice().expect("contiguous");
    for (row, id) in ids.iter().enumerate() {
        for c in 0..channels {
            y[row * channels + c] = T::from_f64(table.value(&[*id as usize, c]));
        }
    }
}
