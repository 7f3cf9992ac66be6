//! Exact floating-point arithmetic in the formats and rounding modes of PTX.
//!
//! Formats of at most 24 bits of precision are computed in f64 *rounded to odd* and then rounded once more to the
//! format: with 53 bits in between, the second rounding sees everything it needs, in any mode. Only f64 itself in a
//! mode other than to nearest needs [`soft`].

pub mod soft;

/// How an inexact result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// `.rn`: to nearest, ties to even.
    Nearest,
    /// `.rna`: to nearest, ties away from zero.
    Away,
    /// `.rz`: towards zero.
    Zero,
    /// `.rm`: towards minus infinity.
    Down,
    /// `.rp`: towards plus infinity.
    Up,
}

/// A binary format with infinities and NaN, as IEEE 754 lays them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits of the exponent.
    pub exponent: u32,
    /// Bits of the mantissa that are stored.
    pub mantissa: u32,
}

/// IEEE half.
pub const F16: Format = Format { exponent: 5, mantissa: 10 };
/// The upper half of an f32.
pub const BF16: Format = Format { exponent: 8, mantissa: 7 };
/// IEEE single.
pub const F32: Format = Format { exponent: 8, mantissa: 23 };
/// IEEE double.
pub const F64: Format = Format { exponent: 11, mantissa: 52 };
/// An f32 with 10 bits of mantissa, stored in the upper 19 of 32 bits.
pub const TF32: Format = Format { exponent: 8, mantissa: 10 };

impl Format {
    /// Bits of a value.
    pub const fn bits(self) -> u32 {
        1 + self.exponent + self.mantissa
    }

    const fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// The bits of infinity.
    pub const fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.mantissa
    }

    /// Whether `bits` are a NaN.
    pub const fn is_nan(self, bits: u64) -> bool {
        bits & ((1 << (self.exponent + self.mantissa)) - 1) > self.infinity()
    }

    /// Whether `.ftz` makes a zero of a result that is still to be rounded: if, rounded with an exponent as small as it
    /// needs, it is below the least normal number.
    pub fn flushes(self, value: f64, rounding: Rounding) -> bool {
        // Twice the value is a normal number, where that matters.
        value.abs() < power_of_two(1 - self.bias())
            && self.narrow(2.0 * value, rounding) & ((1 << (self.bits() - 1)) - 1) < 2 << self.mantissa
    }

    /// The NaN that most PTX instructions return: all bits but the sign.
    pub const fn nan(self) -> u64 {
        (1 << (self.exponent + self.mantissa)) - 1
    }

    /// The value of `bits`.
    pub fn widen(self, bits: u64) -> f64 {
        let negative = bits >> (self.bits() - 1) & 1 != 0;
        let exponent = (bits >> self.mantissa & ((1 << self.exponent) - 1)) as i32;
        let mantissa = bits & ((1 << self.mantissa) - 1);
        let magnitude = if exponent == (1 << self.exponent) - 1 {
            if mantissa == 0 { f64::INFINITY } else { f64::NAN }
        } else if exponent == 0 {
            mantissa as f64 * power_of_two(1 - self.bias() - self.mantissa as i32)
        } else {
            (mantissa | 1 << self.mantissa) as f64 * power_of_two(exponent - self.bias() - self.mantissa as i32)
        };
        if negative { -magnitude } else { magnitude }
    }

    /// `value` in this format.
    pub fn narrow(self, value: f64, rounding: Rounding) -> u64 {
        let negative = value.is_sign_negative();
        let sign = u64::from(negative) << (self.bits() - 1);
        if value.is_nan() {
            return self.nan();
        }
        if value.is_infinite() {
            return sign | self.infinity();
        }
        if value == 0.0 {
            return sign;
        }
        let bits = value.abs().to_bits();
        let (biased, mantissa) = ((bits >> 52) as i32, u128::from(bits & ((1 << 52) - 1)));
        if biased == 0 {
            self.encode(negative, mantissa, -1074, rounding)
        } else {
            self.encode(negative, mantissa | 1 << 52, biased - 1075, rounding)
        }
    }

    /// `significand * 2^exponent` in this format.
    pub fn encode(self, negative: bool, significand: u128, exponent: i32, rounding: Rounding) -> u64 {
        let sign = u64::from(negative) << (self.bits() - 1);
        if significand == 0 {
            return sign;
        }
        let leading = exponent + 127 - significand.leading_zeros() as i32;
        let least = 1 - self.bias();
        let shift = leading.max(least) - self.mantissa as i32 - exponent;
        let rounded =
            if shift >= 0 { round_shift(significand, shift as u32, rounding, negative) } else { significand << -shift }
                as u64;
        let magnitude = if leading < least {
            rounded
        } else {
            // The implicit bit in `rounded` adds the missing one to the exponent.
            (((leading.min(self.bias() + 1) + self.bias() - 1) as u64) << self.mantissa) + rounded
        };
        if magnitude >= self.infinity() {
            let away = match rounding {
                Rounding::Nearest | Rounding::Away => true,
                Rounding::Zero => false,
                Rounding::Down => negative,
                Rounding::Up => !negative,
            };
            return sign | if away { self.infinity() } else { self.infinity() - 1 };
        }
        sign | magnitude
    }
}

/// `2^exponent`, for exponents of normal f64 values.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// `value / 2^shift`, rounded to an integer; `negative` is the sign that goes with the magnitude `value`.
pub(crate) fn round_shift(value: u128, shift: u32, rounding: Rounding, negative: bool) -> u128 {
    if shift == 0 {
        return value;
    }
    let (kept, lost, half) = if shift > 127 {
        (0, u128::from(value != 0), 2)
    } else {
        (value >> shift, value & ((1 << shift) - 1), 1 << (shift - 1))
    };
    let up = match rounding {
        Rounding::Nearest => lost > half || lost == half && kept & 1 == 1,
        Rounding::Away => lost >= half,
        Rounding::Zero => false,
        Rounding::Down => negative && lost != 0,
        Rounding::Up => !negative && lost != 0,
    };
    kept + u128::from(up)
}

/// `nearest` rounded to odd instead, where the exact result lies at `nearest` plus something of `residual`'s sign.
fn to_odd(nearest: f64, residual: f64) -> f64 {
    if residual == 0.0 || residual.is_nan() || !nearest.is_finite() || nearest.to_bits() & 1 == 1 {
        return nearest;
    }
    if residual > 0.0 { nearest.next_up() } else { nearest.next_down() }
}

/// `a + b`, rounded to odd.
pub fn add_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let b_part = sum - a;
    let residual = (a - (sum - b_part)) + (b - b_part);
    to_odd(sum, residual)
}

/// `a / b`, rounded to odd.
pub fn divide_odd(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    if !b.is_finite() || b == 0.0 || !quotient.is_finite() {
        return quotient;
    }
    let residual = (-quotient).mul_add(b, a);
    to_odd(quotient, if b > 0.0 { residual } else { -residual })
}

/// The square root, rounded to odd.
pub fn sqrt_odd(a: f64) -> f64 {
    let root = a.sqrt();
    if !root.is_finite() || root == 0.0 {
        return root;
    }
    to_odd(root, (-root).mul_add(root, a))
}

/// `a + b`, to be narrowed with `rounding`.
pub fn add(rounding: Rounding, a: f64, b: f64) -> f64 {
    zero_sign(add_odd(a, b), rounding, a, b)
}

/// `a * b + c`, to be narrowed with `rounding`; exact products only, so `a` and `b` have at most 26 bits.
pub fn fma(rounding: Rounding, a: f64, b: f64, c: f64) -> f64 {
    add(rounding, a * b, c)
}

/// `a * b + c`, rounded once to nearest. It has no branches and no calls, so that the lanes of a warp go through the
/// host's vector unit together, whether or not it has such an instruction.
pub fn fma_f32(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    let c_part = sum - product;
    let residual = (product - (sum - c_part)) + (c - c_part);
    // To odd first. A NaN as residual, of an infinite sum, is not above zero.
    let bits = sum.to_bits() as i64;
    let is_moved = residual.abs() > 0.0 && bits & 1 == 0;
    let away = 1 - 2 * ((bits ^ residual.to_bits() as i64) >> 63 & 1);
    f64::from_bits((bits + if is_moved { away } else { 0 }) as u64) as f32
}

/// A sum of two unlike signs that is exactly zero is negative when rounding down.
fn zero_sign(sum: f64, rounding: Rounding, a: f64, b: f64) -> f64 {
    if sum == 0.0 && rounding == Rounding::Down && a.is_sign_negative() != b.is_sign_negative() { -0.0 } else { sum }
}

/// `value` with a subnormal f32 replaced by a zero of its sign.
pub fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

/// `value` clamped to `[0, 1]`; NaN becomes +0.
pub fn saturate_f32(value: f32) -> f32 {
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

/// `value` rounded to an integer.
pub fn round_integral(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Away => value.round(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

#[cfg(test)]
mod tests {
    use super::{BF16, F16, F32, Rounding, fma, fma_f32};

    #[test]
    fn every_half_survives_widening_and_narrowing() {
        for format in [F16, BF16] {
            for bits in 0..1 << 16 {
                let value = format.widen(bits);
                if !value.is_nan() {
                    assert_eq!(format.narrow(value, Rounding::Nearest), bits);
                }
            }
        }
    }

    #[test]
    fn narrowing_to_nearest_agrees_with_the_half_crate_and_the_host() {
        let mut state = 1u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let value = f32::from_bits((state >> 32) as u32);
            if value.is_nan() {
                continue;
            }
            assert_eq!(
                F16.narrow(f64::from(value), Rounding::Nearest),
                u64::from(half::f16::from_f32(value).to_bits())
            );
            assert_eq!(
                BF16.narrow(f64::from(value), Rounding::Nearest),
                u64::from(half::bf16::from_f32(value).to_bits())
            );
            let wide = f64::from_bits(state);
            if !wide.is_nan() {
                assert_eq!(F32.narrow(wide, Rounding::Nearest), u64::from((wide as f32).to_bits()));
            }
        }
    }

    #[test]
    fn fma_agrees_with_the_host() {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            f32::from_bits((state >> 32) as u32 & 0x8fff_ffff | 0x3000_0000)
        };
        for _ in 0..200_000 {
            let (a, b, c) = (next(), next(), next());
            let got = F32.narrow(fma(Rounding::Nearest, a.into(), b.into(), c.into()), Rounding::Nearest);
            assert_eq!(got, u64::from(a.mul_add(b, c).to_bits()), "{a} {b} {c}");
        }
    }

    #[test]
    fn fma_of_lanes_agrees_with_the_host() {
        let mut state = 11u64;
        let mut next = |spread: u32| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let bits = (state >> 32) as u32;
            // All of f32, or close exponents and few bits, where sums cancel and come to lie between two numbers.
            f32::from_bits(if spread == 0 { bits } else { bits & 0x83f0_000f | 0x3c00_0000 })
        };
        for round in 0..2_000_000 {
            let (a, b, c) = (next(round % 2), next(round % 2), next(round % 2));
            let (got, expected) = (fma_f32(a, b, c), a.mul_add(b, c));
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{a} {b} {c}: {got}");
        }
        for (a, b, c) in [(0.0, -1.0, 0.0), (-0.0, 1.0, -0.0), (f32::MAX, 2.0, f32::NEG_INFINITY), (1.0, 1.0, -1.0)] {
            assert_eq!(fma_f32(a, b, c).to_bits(), a.mul_add(b, c).to_bits(), "{a} {b} {c}");
        }
    }
}
