//! The definition of each op: plain loops in f64 over contiguous operands.

use crate::{Float, View, ViewMut};

/// [`super::rms_norm`].
pub fn rms_norm<T: Float>(x: View<'_, T>, weight: Option<View<'_, f32>>, eps: f32, mut y: ViewMut<'_, T>) {
    let channels = x.shape()[x.shape().len() - 1].max(1);
    let (x, y) = (x.as_slice().expect("contiguous"), y.as_mut_slice().expect("contiguous"));
    for (x, y) in x.chunks(channels).zip(y.chunks_mut(channels)) {
        let mean_square = x.iter().map(|x| x.to_f64().powi(2)).sum::<f64>() / channels as f64;
        for c in 0..channels {
            let weight = weight.map_or(1.0, |weight| f64::from(weight.at(&[c])));
            y[c] = T::from_f64(x[c].to_f64() * weight / (mean_square + f64::from(eps)).sqrt());
        }
    }
}
