//! Exact arithmetic on floats of any format, with integers of any length, rounded once.

use num_bigint::{BigInt, BigUint};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

pub const MODES: [(&str, Rounding); 4] =
    [("rn", Rounding::Nearest), ("rz", Rounding::Zero), ("rm", Rounding::Down), ("rp", Rounding::Up)];

/// A format with so many bits of exponent and mantissa.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    pub exponent: u32,
    pub mantissa: u32,
}

pub const F16: Format = Format { exponent: 5, mantissa: 10 };
pub const BF16: Format = Format { exponent: 8, mantissa: 7 };
pub const F32: Format = Format { exponent: 8, mantissa: 23 };
pub const F64: Format = Format { exponent: 11, mantissa: 52 };

#[derive(Clone, Debug)]
enum Value {
    Nan,
    Infinity(bool),
    /// Sign and magnitude of a zero, or a number: its sign, an integer and a power of two.
    Finite(bool, BigUint, i64),
}

impl Format {
    pub fn width(self) -> u32 {
        1 + self.exponent + self.mantissa
    }

    fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.mantissa
    }

    pub fn is_nan(self, bits: u64) -> bool {
        bits & ((1 << (self.width() - 1)) - 1) > self.infinity()
    }

    fn sign(self, bits: u64) -> bool {
        bits >> (self.width() - 1) & 1 == 1
    }

    fn value(self, bits: u64) -> Value {
        let negative = self.sign(bits);
        let magnitude = bits & ((1 << (self.width() - 1)) - 1);
        if magnitude > self.infinity() {
            return Value::Nan;
        }
        if magnitude == self.infinity() {
            return Value::Infinity(negative);
        }
        let (biased, mantissa) = (magnitude >> self.mantissa, magnitude & ((1 << self.mantissa) - 1));
        let least = 1 - self.bias() - i64::from(self.mantissa);
        if biased == 0 {
            Value::Finite(negative, mantissa.into(), least)
        } else {
            Value::Finite(negative, (mantissa | 1 << self.mantissa).into(), least + biased as i64 - 1)
        }
    }

    fn bias(self) -> i64 {
        (1 << (self.exponent - 1)) - 1
    }

    /// The NaN of an operation whose operands are none.
    pub fn nan(self) -> u64 {
        if self.width() == 64 { 0xfff8 << 48 } else { (1 << (self.width() - 1)) - 1 }
    }

    /// What arithmetic makes of operands with a NaN among them: f64 keeps the first of them.
    fn first_nan(self, operands: &[u64]) -> u64 {
        let first = operands.iter().find(|bits| self.is_nan(**bits)).expect("one is");
        if self.width() == 64 { self.quiet(*first) } else { self.nan() }
    }

    /// A NaN that does not signal.
    pub fn quiet(self, nan: u64) -> u64 {
        nan | 1 << (self.mantissa - 1)
    }

    /// A number with its sign turned; a NaN stays as it is.
    pub fn negate(self, bits: u64) -> u64 {
        if self.is_nan(bits) { bits } else { bits ^ 1 << (self.width() - 1) }
    }

    /// What `.ftz` makes of operands and of the result. `compute` gets a format with the same mantissa and an exponent that
    /// nothing here is too small for, and the operands in it; there it is seen whether the result is too small for this.
    pub fn flushed<const N: usize>(
        self,
        mode: Rounding,
        operands: [u64; N],
        compute: impl Fn(Self, [u64; N]) -> u64,
    ) -> u64 {
        let wide = Self { exponent: 11, ..self };
        let result = compute(wide, operands.map(|bits| self.convert(wide, mode, self.flush(bits))));
        let sign = u64::from(wide.sign(result)) << (self.width() - 1);
        let (exponent, mantissa) = (result >> self.mantissa & 0x7ff, result & ((1 << self.mantissa) - 1));
        if wide.is_nan(result) {
            sign | self.infinity() | mantissa
        } else if (exponent as i64) < 1 + wide.bias() - self.bias() {
            sign
        } else {
            wide.convert(self, mode, result)
        }
    }

    /// `integer * 2^power`, where `sticky` says that a little more was left out.
    fn round(self, negative: bool, integer: &BigUint, power: i64, sticky: bool, rounding: Rounding) -> u64 {
        let sign = u64::from(negative) << (self.width() - 1);
        // Two more bits, so that what was left out lies below the half of the last place.
        let (integer, power) = ((integer << 2u32) | BigUint::from(u32::from(sticky)), power - 2);
        let leading = integer.bits() as i64 - 1 + power;
        let place = leading.max(1 - self.bias()) - i64::from(self.mantissa);
        let shift = place - power;
        let (mut kept, rest, half) = if shift <= 0 {
            (&integer << (-shift) as u64, BigUint::ZERO, BigUint::from(1u32))
        } else {
            let kept = &integer >> shift as u64;
            let rest = &integer - (&kept << shift as u64);
            (kept, rest, BigUint::from(1u32) << (shift - 1) as u64)
        };
        let up = match rounding {
            Rounding::Nearest => rest > half || rest == half && kept.bit(0),
            Rounding::Zero => false,
            Rounding::Down => negative && rest != BigUint::ZERO,
            Rounding::Up => !negative && rest != BigUint::ZERO,
        };
        if up {
            kept += 1u32;
        }
        let mut place = place;
        if kept.bits() > u64::from(self.mantissa) + 1 {
            kept >>= 1u32;
            place += 1;
        }
        let kept = kept.iter_u64_digits().next().unwrap_or(0);
        let biased = if kept >> self.mantissa == 0 { 0 } else { place + i64::from(self.mantissa) + self.bias() };
        if biased >= (1 << self.exponent) - 1 {
            let largest = match rounding {
                Rounding::Nearest => false,
                Rounding::Zero => true,
                Rounding::Down => !negative,
                Rounding::Up => negative,
            };
            return sign | if largest { self.infinity() - 1 } else { self.infinity() };
        }
        sign | (biased as u64) << self.mantissa | kept & ((1 << self.mantissa) - 1)
    }

    pub fn fma(self, rounding: Rounding, a: u64, b: u64, c: u64) -> u64 {
        let negative = self.sign(a) != self.sign(b);
        match (self.value(a), self.value(b), self.value(c)) {
            (Value::Nan, ..) | (_, Value::Nan, _) | (_, _, Value::Nan) => self.first_nan(&[b, c, a]),
            (Value::Infinity(_), Value::Finite(_, zero, _), _) | (Value::Finite(_, zero, _), Value::Infinity(_), _)
                if zero == BigUint::ZERO =>
            {
                self.nan()
            }
            (Value::Infinity(_), ..) | (_, Value::Infinity(_), _) => match self.value(c) {
                Value::Infinity(other) if other != negative => self.nan(),
                _ => u64::from(negative) << (self.width() - 1) | self.infinity(),
            },
            (_, _, Value::Infinity(_)) => c,
            (Value::Finite(_, x, x_power), Value::Finite(_, y, y_power), Value::Finite(c_negative, z, z_power)) => {
                let (product, power) = (x * y, x_power + y_power);
                let least = power.min(z_power);
                let signed = |negative: bool, magnitude: BigUint| {
                    let value = BigInt::from(magnitude);
                    if negative { -value } else { value }
                };
                let sum = signed(negative, product << (power - least) as u64)
                    + signed(c_negative, z << (z_power - least) as u64);
                if sum == BigInt::ZERO {
                    let negative = if negative == c_negative { negative } else { rounding == Rounding::Down };
                    return u64::from(negative) << (self.width() - 1);
                }
                let negative = sum < BigInt::ZERO;
                self.round(negative, sum.magnitude(), least, false, rounding)
            }
        }
    }

    pub fn add(self, rounding: Rounding, a: u64, b: u64) -> u64 {
        self.fma(rounding, a, self.one(), b)
    }

    pub fn multiply(self, rounding: Rounding, a: u64, b: u64) -> u64 {
        let negative = self.sign(a) != self.sign(b);
        self.fma(rounding, a, b, u64::from(negative) << (self.width() - 1))
    }

    pub fn one(self) -> u64 {
        (self.bias() as u64) << self.mantissa
    }

    pub fn divide(self, rounding: Rounding, a: u64, b: u64) -> u64 {
        let negative = self.sign(a) != self.sign(b);
        let sign = u64::from(negative) << (self.width() - 1);
        match (self.value(a), self.value(b)) {
            (Value::Nan, _) | (_, Value::Nan) => self.first_nan(&[a, b]),
            (Value::Infinity(_), Value::Infinity(_)) => self.nan(),
            (Value::Infinity(_), _) => sign | self.infinity(),
            (_, Value::Infinity(_)) => sign,
            (Value::Finite(_, x, _), Value::Finite(_, y, _)) if y == BigUint::ZERO => {
                if x == BigUint::ZERO {
                    self.nan()
                } else {
                    sign | self.infinity()
                }
            }
            (Value::Finite(_, x, x_power), Value::Finite(_, y, y_power)) => {
                if x == BigUint::ZERO {
                    return sign;
                }
                let dividend = x << 200u32;
                let quotient = &dividend / &y;
                let sticky = &quotient * &y != dividend;
                self.round(negative, &quotient, x_power - y_power - 200, sticky, rounding)
            }
        }
    }

    pub fn sqrt(self, rounding: Rounding, a: u64) -> u64 {
        match self.value(a) {
            Value::Nan => self.first_nan(&[a]),
            Value::Infinity(true) => self.nan(),
            Value::Infinity(false) => a,
            Value::Finite(_, x, _) if x == BigUint::ZERO => a,
            Value::Finite(true, ..) => self.nan(),
            Value::Finite(false, x, power) => {
                let shift = 200 + power.rem_euclid(2);
                let radicand = x << shift as u64;
                let root = radicand.sqrt();
                let sticky = &root * &root != radicand;
                self.round(false, &root, (power - shift) / 2, sticky, rounding)
            }
        }
    }

    /// A value of this format in another.
    pub fn convert(self, to: Format, rounding: Rounding, bits: u64) -> u64 {
        match self.value(bits) {
            // A bf16 is half of an f32.
            Value::Nan if self.width() == 16 && self.exponent == to.exponent => bits << 16,
            // To and from f64, the upper bits of the mantissa stay.
            Value::Nan if self.width() == 64 || to.width() == 64 => {
                let mantissa = u128::from(bits & ((1 << self.mantissa) - 1)) << 64 >> self.mantissa;
                let sign = u64::from(self.sign(bits)) << (to.width() - 1);
                sign | to.quiet(to.infinity() | (mantissa >> (64 - to.mantissa)) as u64)
            }
            Value::Nan => to.nan(),
            Value::Infinity(negative) => u64::from(negative) << (to.width() - 1) | to.infinity(),
            Value::Finite(negative, x, _) if x == BigUint::ZERO => u64::from(negative) << (to.width() - 1),
            Value::Finite(negative, x, power) => to.round(negative, &x, power, false, rounding),
        }
    }

    /// An integer in this format.
    pub fn integer(self, rounding: Rounding, value: i128) -> u64 {
        if value == 0 {
            return 0;
        }
        self.round(value < 0, &BigUint::from(value.unsigned_abs()), 0, false, rounding)
    }

    /// Subnormal numbers become zeros of their sign.
    pub fn flush(self, bits: u64) -> u64 {
        if bits & self.infinity() == 0 { bits & 1 << (self.width() - 1) } else { bits }
    }

    /// Clamped to `[0, 1]`; NaN becomes 0.
    pub fn saturate(self, bits: u64) -> u64 {
        if self.is_nan(bits) || self.sign(bits) { 0 } else { bits.min(self.one()) }
    }
}
