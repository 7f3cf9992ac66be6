//! The definition of each step: plain loops in f64 over contiguous operands.

use super::Coefficients;
use crate::{Float, View, ViewMut};

/// [`super::flow_euler`].
pub fn flow_euler<T: Float>(
    x: View<'_, T>,
    velocity: View<'_, T>,
    guide: Option<(View<'_, T>, f32)>,
    step: f32,
    mut y: ViewMut<'_, T>,
) {
    let read = |view: View<'_, T>, at: usize| view.as_slice().expect("contiguous")[at].to_f64();
    for (at, y) in y.as_mut_slice().expect("contiguous").iter_mut().enumerate() {
        let conditional = read(velocity, at);
        let v = guide.map_or(conditional, |(uncond, scale)| {
            read(uncond, at) + f64::from(scale) * (conditional - read(uncond, at))
        });
        *y = T::from_f64(read(x, at) + f64::from(step) * v);
    }
}

/// [`super::ddpm_step`] and [`super::ddim_step`]: `x`, `model` and `noise` give `x0`, `mean`, `log_variance`, `y`.
pub fn denoise<T: Float>([x, model, noise]: [View<'_, T>; 3], c: Coefficients, mut outputs: [ViewMut<'_, T>; 4]) {
    let channels = x.shape()[x.shape().len() - 1];
    let width = model.shape()[model.shape().len() - 1];
    let [x, model, noise] = [x, model, noise].map(|view| view.as_slice().expect("contiguous"));
    let [x0, mean, log_variance, y] = outputs.each_mut().map(|view| view.as_mut_slice().expect("contiguous"));
    for at in 0..x.len() {
        let (row, channel) = (at / channels, at % channels);
        let epsilon = model[row * width + channel].to_f64();
        let implied = c.from_x * x[at].to_f64() - c.from_epsilon * epsilon;
        let outside = c.bound > 0.0 && implied.abs() > c.bound;
        let clean = if outside { c.bound.copysign(implied) } else { implied };
        let middle = c.mean_x0 * clean + c.mean_x * x[at].to_f64() + c.mean_epsilon * epsilon;
        let variance = c.learned.map(|[least, most]| {
            let r = (model[row * width + channels + channel].to_f64() + 1.0) / 2.0;
            r * most + (1.0 - r) * least
        });
        let drawn = if c.amount == 0.0 { 0.0 } else { c.amount * noise[at].to_f64() };
        x0[at] = T::from_f64(clean);
        mean[at] = T::from_f64(middle);
        if let Some(variance) = variance {
            log_variance[at] = T::from_f64(variance);
        }
        y[at] = T::from_f64(middle + (variance.unwrap_or(0.0) / 2.0).exp() * drawn);
    }
}
