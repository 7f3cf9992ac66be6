//! Vectorised over the values, with an exponential that the compiler can vectorise too.

use super::Activation;
use crate::backend::cpu::{Cpu, vectorised};
use crate::{Float, View, ViewMut};

/// Values a task takes at once.
const CHUNK: usize = 1024;

/// [`super::activation`] over contiguous operands.
pub fn activation<T: Float>(cpu: &Cpu, x: View<'_, T>, activation: Activation, y: ViewMut<'_, T>) {
    match activation {
        Activation::Silu => map(cpu, x, y, |x| x * sigmoid(x)),
        Activation::Gelu => map(cpu, x, y, gelu),
        Activation::GeluTanh => map(cpu, x, y, gelu_tanh),
        Activation::Relu => map(cpu, x, y, |x| if x < 0.0 { 0.0 } else { x }),
        Activation::Sigmoid => map(cpu, x, y, sigmoid),
        Activation::Tanh => map(cpu, x, y, tanh),
        Activation::Softplus => map(cpu, x, y, softplus),
    }
}

/// [`super::swiglu`] over contiguous operands.
pub fn swiglu<T: Float>(cpu: &Cpu, gate: View<'_, T>, up: View<'_, T>, mut y: ViewMut<'_, T>) {
    let (gate, up) = (gate.as_slice().expect("contiguous"), up.as_slice().expect("contiguous"));
    cpu.rows(y.as_mut_slice().expect("contiguous"), CHUNK, |chunk, y| {
        let (mut wide_gate, mut wide_up) = ([0.0; CHUNK], [0.0; CHUNK]);
        let (wide_gate, wide_up) = (&mut wide_gate[..y.len()], &mut wide_up[..y.len()]);
        T::widen(&gate[chunk * CHUNK..][..y.len()], wide_gate);
        T::widen(&up[chunk * CHUNK..][..y.len()], wide_up);
        vectorised(
            #[inline(always)]
            || wide_gate.iter_mut().zip(&*wide_up).for_each(|(gate, up)| *gate *= sigmoid(*gate) * up),
        );
        T::narrow(wide_gate, y);
    });
}

fn map<T: Float>(cpu: &Cpu, x: View<'_, T>, mut y: ViewMut<'_, T>, function: impl Fn(f32) -> f32 + Send + Sync) {
    cpu.rows_in_f32(
        x.as_slice().expect("contiguous"),
        CHUNK,
        y.as_mut_slice().expect("contiguous"),
        #[inline(always)]
        |_, x, y| y.iter_mut().zip(x).for_each(|(y, x)| *y = function(*x)),
    );
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x` times the normal distribution's function, which is half of erfc: the fit of Numerical Recipes (2nd edition,
/// section 6.2), whose error of 1.2e-7 is relative, so that the tail keeps its digits.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    const FIT: [f32; 10] = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ];
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    let fit = FIT.iter().fold(0.0, |sum, factor| sum * t + factor);
    let tail = 0.5 * t * exp(fit - z * z);
    x * if x > 0.0 { 1.0 - tail } else { tail }
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    /// Twice the square root of 2 / pi: `(1 + tanh(u)) / 2` is `sigmoid(2 u)`.
    const FACTOR: f32 = 1.595_769_2;
    x * sigmoid(FACTOR * (x + 0.044_715 * x * x * x))
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    // Near 0 the quotient loses digits, so there it is the series.
    let square = x * x;
    let series =
        [62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0].iter().fold(0.0, |sum, f| sum * square + f);
    let quotient = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if x.abs() < 0.25 { x * series } else { quotient }
}

/// `max(x, 0) + ln(1 + e)` with `e = exp(-|x|)`, so that nothing overflows; `ln(1 + e)` is `2 atanh(e / (2 + e))`, whose
/// argument is at most a third.
#[inline(always)]
fn softplus(x: f32) -> f32 {
    const SERIES: [f32; 7] = [1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0];
    let e = exp(-x.abs());
    let part = e / (2.0 + e);
    let square = part * part;
    let series = SERIES.iter().fold(0.0, |sum, factor| sum * square + factor);
    2.0 * part * series + if x > 0.0 { x } else { 0.0 }
}

/// e to the power of `x`, held to the range of normal floats; about 1 unit in the last place off. A NaN stays one.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding 1.5 * 2^23 leaves no bits behind the point, so the sum's lowest bits are the rounded number.
    const ROUND: f32 = 12_582_912.0;
    /// The logarithm of 2 in two parts; the first has so few bits that its product with a power is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let rest = x - power * LN_2[0] - power * LN_2[1];
    // The fit of Cephes' expf on half a logarithm of 2 to both sides of 0.
    let fit = [1.987_569_2e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]
        .iter()
        .fold(0.0, |sum, factor| sum * rest + factor);
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    (fit * rest * rest + rest + 1.0) * scale
}
