//! The definition of each op: plain loops in f64 over contiguous operands.

use std::f64::consts::{FRAC_1_PI, FRAC_1_SQRT_2};

use super::Activation;
use crate::{Float, View, ViewMut};

/// [`super::activation`].
pub fn activation<T: Float>(x: View<'_, T>, activation: Activation, mut y: ViewMut<'_, T>) {
    let (x, y) = (x.as_slice().expect("contiguous"), y.as_mut_slice().expect("contiguous"));
    for (x, y) in x.iter().zip(y) {
        let x = x.to_f64();
        *y = T::from_f64(match activation {
            Activation::Silu => x * sigmoid(x),
            Activation::Gelu => x * (1.0 + erf(x * FRAC_1_SQRT_2)) / 2.0,
            Activation::GeluTanh => x * (1.0 + ((2.0 * FRAC_1_PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()) / 2.0,
            Activation::Relu if x < 0.0 => 0.0,
            Activation::Relu => x,
            Activation::Sigmoid => sigmoid(x),
            Activation::Tanh => x.tanh(),
            Activation::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        });
    }
}

/// [`super::swiglu`].
pub fn swiglu<T: Float>(gate: View<'_, T>, up: View<'_, T>, mut y: ViewMut<'_, T>) {
    let (gate, up) = (gate.as_slice().expect("contiguous"), up.as_slice().expect("contiguous"));
    let y = y.as_mut_slice().expect("contiguous");
    for ((gate, up), y) in gate.iter().zip(up).zip(y) {
        let gate = gate.to_f64();
        *y = T::from_f64(gate * sigmoid(gate) * up.to_f64());
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The error function: Abramowitz and Stegun 7.1.6, a series without cancellation.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let mut term = x;
    let mut sum = x;
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    2.0 * FRAC_1_PI.sqrt() * (-x * x).exp() * sum
}
