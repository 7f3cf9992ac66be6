//! The definition: plain loops in f64 over contiguous operands.

use super::Metric;
use crate::{Float, View, ViewMut};

/// [`super::nearest_l2`] and [`super::nearest_cosine`].
pub fn nearest<T: Float>(x: View<'_, T>, codebook: View<'_, f32>, metric: Metric, mut y: ViewMut<'_, u32>) {
    let [codes, dim] = [codebook.shape()[0], codebook.shape()[1]];
    let rows = x.as_slice().expect("contiguous").chunks(dim);
    for (x, y) in rows.zip(y.as_mut_slice().expect("contiguous")) {
        let mut best = f64::INFINITY;
        for code in 0..codes {
            let pairs = || (0..dim).map(|d| (x[d].to_f64(), f64::from(codebook.at(&[code, d]))));
            let distance = match metric {
                Metric::L2 => pairs().map(|(x, c)| (x - c).powi(2)).sum::<f64>(),
                Metric::Cosine => {
                    let length = pairs().map(|(_, c)| c * c).sum::<f64>().sqrt();
                    let product = pairs().map(|(x, c)| x * c).sum::<f64>();
                    if length > 0.0 { -product / length } else { 0.0 }
                }
            };
            if distance < best {
                best = distance;
                *y = code as u32;
            }
        }
    }
}
