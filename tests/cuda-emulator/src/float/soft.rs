//! f64 arithmetic in any rounding mode, on integers.

use super::{F64, Rounding};

/// A finite value other than zero: `significand * 2^exponent`, the significand's leading bit at [`TOP`].
#[derive(Clone, Copy)]
struct Number {
    negative: bool,
    exponent: i32,
    significand: u128,
}

/// Where a significand's leading bit stands: one bit is left above it for a carry.
const TOP: u32 = 126;

impl Number {
    fn new(value: f64) -> Self {
        let bits = value.to_bits();
        let biased = (bits >> 52 & 0x7ff) as i32;
        let mantissa = bits & ((1 << 52) - 1);
        let (exponent, significand) = if biased == 0 { (-1074, mantissa) } else { (biased - 1075, mantissa | 1 << 52) };
        Self::normal(value.is_sign_negative(), exponent, u128::from(significand))
    }

    fn normal(negative: bool, exponent: i32, significand: u128) -> Self {
        let shift = significand.leading_zeros() as i32 - (127 - TOP as i32);
        if shift < 0 {
            return Self { negative, exponent: exponent + 1, significand: jam(significand, 1) };
        }
        Self { negative, exponent: exponent - shift, significand: significand << shift }
    }

    fn round(self, rounding: Rounding) -> f64 {
        f64::from_bits(F64.encode(self.negative, self.significand, self.exponent, rounding))
    }
}

/// `value >> shift`, with the bits that fall off kept as a one in the last place.
fn jam(value: u128, shift: u32) -> u128 {
    if shift == 0 {
        value
    } else if shift > 127 {
        u128::from(value != 0)
    } else {
        value >> shift | u128::from(value & ((1 << shift) - 1) != 0)
    }
}

/// `a * b + c`, rounded once.
pub fn fma(rounding: Rounding, a: f64, b: f64, c: f64) -> f64 {
    let nearest = a.mul_add(b, c);
    if rounding == Rounding::Nearest || !a.is_finite() || !b.is_finite() || !c.is_finite() {
        return nearest;
    }
    let product_negative = a.is_sign_negative() != b.is_sign_negative();
    if a == 0.0 || b == 0.0 {
        if c != 0.0 {
            return c;
        }
        return signed_zero(rounding, product_negative, c.is_sign_negative());
    }
    let (x, y) = (Number::new(a), Number::new(b));
    // The leading 53 bits of each are all there is, so the product of the upper halves is exact.
    let product = Number::normal(
        product_negative,
        x.exponent + y.exponent + 2 * 63,
        (x.significand >> 63) * (y.significand >> 63),
    );
    if c == 0.0 {
        return product.round(rounding);
    }
    let z = Number::new(c);
    let (large, small) = if (product.exponent, product.significand) >= (z.exponent, z.significand) {
        (product, z)
    } else {
        (z, product)
    };
    let aligned = jam(small.significand, (large.exponent - small.exponent) as u32);
    let sum = if large.negative == small.negative { large.significand + aligned } else { large.significand - aligned };
    if sum == 0 {
        return signed_zero(rounding, large.negative, small.negative);
    }
    Number::normal(large.negative, large.exponent, sum).round(rounding)
}

fn signed_zero(rounding: Rounding, a: bool, b: bool) -> f64 {
    let negative = if a == b { a } else { rounding == Rounding::Down };
    if negative { -0.0 } else { 0.0 }
}

/// `a + b`.
pub fn add(rounding: Rounding, a: f64, b: f64) -> f64 {
    fma(rounding, a, 1.0, b)
}

/// `a * b`.
pub fn multiply(rounding: Rounding, a: f64, b: f64) -> f64 {
    let negative = a.is_sign_negative() != b.is_sign_negative();
    fma(rounding, a, b, if negative { -0.0 } else { 0.0 })
}

/// `a / b`.
pub fn divide(rounding: Rounding, a: f64, b: f64) -> f64 {
    let nearest = a / b;
    if rounding == Rounding::Nearest || !a.is_finite() || !b.is_finite() || a == 0.0 || b == 0.0 {
        return nearest;
    }
    let (x, y) = (Number::new(a), Number::new(b));
    // 126 + 1 bits over 53 bits leave at least 73 bits of quotient.
    let (dividend, divisor) = (x.significand, y.significand >> (TOP - 52));
    let quotient = ((dividend / divisor) << 1) | u128::from(dividend % divisor != 0);
    let exponent = x.exponent - (y.exponent + TOP as i32 - 52) - 1;
    Number::normal(x.negative != y.negative, exponent, quotient).round(rounding)
}

/// The square root.
pub fn sqrt(rounding: Rounding, a: f64) -> f64 {
    let nearest = a.sqrt();
    if rounding == Rounding::Nearest || !nearest.is_finite() || nearest == 0.0 {
        return nearest;
    }
    let x = Number::new(a);
    let odd = x.exponent.rem_euclid(2);
    let radicand = if odd == 1 { x.significand << 1 } else { x.significand };
    let root = radicand.isqrt();
    let sticky = root << 1 | u128::from(root * root != radicand);
    Number::normal(false, (x.exponent - odd) / 2 - 1, sticky).round(rounding)
}
