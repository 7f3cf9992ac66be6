//! Loops in f32: these steps are over a few channels per token, so that one thread is as good as many.

use super::Coefficients;
use crate::{Float, View, ViewMut};

/// [`super::flow_euler`] over contiguous operands.
pub fn flow_euler<T: Float>(
    x: View<'_, T>,
    velocity: View<'_, T>,
    guide: Option<(View<'_, T>, f32)>,
    step: f32,
    mut y: ViewMut<'_, T>,
) {
    let slice = |view: View<'_, T>| wide(view.as_slice().expect("contiguous"));
    let (mut x, mut velocity) = (slice(x), slice(velocity));
    if let Some((uncond, scale)) = guide {
        for (v, base) in velocity.iter_mut().zip(slice(uncond)) {
            *v = base + scale * (*v - base);
        }
    }
    x.iter_mut().zip(&velocity).for_each(|(x, v)| *x += step * v);
    T::narrow(&x, y.as_mut_slice().expect("contiguous"));
}

/// [`super::ddpm_step`] and [`super::ddim_step`] over contiguous operands: `x`, `model` and `noise` give `x0`, `mean`,
/// `log_variance`, `y`.
pub fn denoise<T: Float>([x, model, noise]: [View<'_, T>; 3], c: Coefficients, mut outputs: [ViewMut<'_, T>; 4]) {
    let channels = x.shape()[x.shape().len() - 1];
    let width = model.shape()[model.shape().len() - 1];
    let [x, model, noise] = [x, model, noise].map(|view| wide(view.as_slice().expect("contiguous")));
    let [x0, mean, log_variance, y] = outputs.each_mut().map(|view| view.as_mut_slice().expect("contiguous"));
    let f = |coefficient: f64| coefficient as f32;
    for at in 0..x.len() {
        let first = at / channels * width + at % channels;
        let epsilon = model[first];
        let implied = f(c.from_x) * x[at] - f(c.from_epsilon) * epsilon;
        let outside = c.bound > 0.0 && implied.abs() > f(c.bound);
        let clean = if outside { f(c.bound).copysign(implied) } else { implied };
        let middle = f(c.mean_x0) * clean + f(c.mean_x) * x[at] + f(c.mean_epsilon) * epsilon;
        let mut deviation = 1.0;
        if let Some([least, most]) = c.learned {
            let r = (model[first + channels] + 1.0) * 0.5;
            let variance = r * f(most) + (1.0 - r) * f(least);
            log_variance[at] = T::from_f32(variance);
            deviation = (0.5 * variance).exp();
        }
        let drawn = if c.amount == 0.0 { 0.0 } else { f(c.amount) * noise[at] };
        x0[at] = T::from_f32(clean);
        mean[at] = T::from_f32(middle);
        y[at] = T::from_f32(middle + deviation * drawn);
    }
}

fn wide<T: Float>(values: &[T]) -> Vec<f32> {
    let mut wide = vec![0.0; values.len()];
    T::widen(values, &mut wide);
    wide
}
