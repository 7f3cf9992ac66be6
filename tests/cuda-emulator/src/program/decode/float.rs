//! Float arithmetic, in every format.

use super::{Parts, Result, binary, mask, operands, ternary, unary, unsupported};
use crate::float::{self, BF16, F16, F32, Format, Rounding, flush, saturate_f32, soft};
use crate::program::build::Scope;
use crate::program::{Binary, Operation, Ternary, Unary};
use crate::ptx::syntax::Instruction;
use crate::ptx::types::Type;

/// What modifiers do to operands and results.
#[derive(Clone, Copy)]
struct Modifiers {
    rounding: Rounding,
    flush: bool,
    saturate: bool,
    relu: bool,
    /// `min.NaN`: a NaN operand makes the result NaN.
    nan: bool,
    /// `.xorsign.abs`
    xor_sign: bool,
}

/// The functions of one operand that are not exact in PTX; here they are computed in f64 and rounded once.
fn approximation(name: &str) -> Option<fn(f64) -> f64> {
    Some(match name {
        "rcp" => |a| 1.0 / a,
        "rsqrt" => |a| 1.0 / a.sqrt(),
        "sqrt" => f64::sqrt,
        "sin" => f64::sin,
        "cos" => f64::cos,
        "lg2" => f64::log2,
        "ex2" => f64::exp2,
        "tanh" => f64::tanh,
        _ => return None,
    })
}

pub(super) fn decode(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let approximate = parts.take_any(&["approx", "full"]);
    let modifiers = Modifiers {
        rounding: parts.rounding().unwrap_or(Rounding::Nearest),
        flush: parts.take("ftz"),
        saturate: parts.take("sat"),
        relu: parts.take("relu"),
        nan: parts.take("NaN"),
        xor_sign: parts.take("xorsign"),
    };
    if modifiers.xor_sign && !parts.take("abs") {
        return unsupported(written);
    }
    let kind = parts.kind()?;
    // `add.f32.bf16`, mixed precision, is of a later target.
    let compute = match written.name.as_str() {
        "fma" | "mad" => {
            let [destination, a, b, c] = operands(written)?;
            let sources = [scope.source(a, kind)?, scope.source(b, kind)?, scope.source(c, kind)?];
            let destination = scope.register(destination)?;
            let Some(compute) = fused(kind, modifiers) else { return unsupported(written) };
            return Ok(Operation::Ternary { destination, sources, compute });
        }
        "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign" => {
            let [destination, a, b] = operands(written)?;
            let sources = [scope.source(a, kind)?, scope.source(b, kind)?];
            let destination = scope.register(destination)?;
            let Some(compute) = two(&written.name, kind, modifiers, approximate) else { return unsupported(written) };
            return Ok(Operation::Binary { destination, sources, compute });
        }
        _ => one(&written.name, kind, modifiers, approximate),
    };
    let [destination, a] = operands(written)?;
    let source = scope.source(a, kind)?;
    let destination = scope.register(destination)?;
    let Some(compute) = compute else { return unsupported(written) };
    Ok(Operation::Unary { destination, source, compute })
}

pub(super) fn f32_of(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

/// The bits of `value`; every NaN that arithmetic makes is the same.
pub(super) fn f32_bits(value: f32) -> u64 {
    if value.is_nan() { 0x7fff_ffff } else { u64::from(value.to_bits()) }
}

/// The bit that makes a NaN a quiet one.
pub(super) const F64_QUIET: u64 = 1 << 51;

/// The bits of `value`. A NaN is the first of the operands that is one; what is none for another reason is negative.
fn f64_bits<const N: usize>(value: f64, operands: [u64; N]) -> u64 {
    if !value.is_nan() {
        return value.to_bits();
    }
    operands.into_iter().find(|bits| float::F64.is_nan(*bits)).map_or(0xfff8 << 48, |bits| bits | F64_QUIET)
}

/// A half format and whether registers hold two of it.
fn half_format(kind: Type) -> Option<(Format, bool)> {
    match kind {
        Type::F16 => Some((F16, false)),
        Type::F16x2 => Some((F16, true)),
        Type::BF16 => Some((BF16, false)),
        Type::BF16x2 => Some((BF16, true)),
        _ => None,
    }
}

impl Modifiers {
    /// A result: an approximation, in f32.
    fn finish_f32(self, value: f32) -> u64 {
        let value = if self.flush { flush(value) } else { value };
        f32_bits(if self.saturate { saturate_f32(value) } else { value })
    }

    fn input_f32(self, bits: u64) -> f32 {
        let value = f32_of(bits);
        if self.flush { flush(value) } else { value }
    }

    fn input(self, format: Format, bits: u64) -> f64 {
        let bits = if self.flush && bits & format.infinity() == 0 { bits & 1 << (format.bits() - 1) } else { bits };
        format.widen(bits)
    }

    /// A result that is still to be rounded to the format.
    fn finish(self, format: Format, value: f64) -> u64 {
        let sign = 1 << (format.bits() - 1);
        let subnormal = self.flush && format.flushes(value, self.rounding);
        let value = if subnormal { 0f64.copysign(value) } else { value };
        let mut bits = format.narrow(value, self.rounding);
        let nan = format.is_nan(bits);
        if self.saturate {
            let one = format.narrow(1.0, Rounding::Nearest);
            bits = if nan || bits & sign != 0 { 0 } else { bits.min(one) };
        } else if self.relu && !nan && bits & sign != 0 {
            bits = 0;
        }
        bits
    }

    /// Plain: what the host computes too.
    fn is_plain(self) -> bool {
        self.rounding == Rounding::Nearest && !self.flush && !self.saturate && !self.relu
    }
}

/// Applies `compute` to one element or to both halves.
fn each_half<const N: usize>(pair: bool, values: [u64; N], compute: impl Fn([u64; N]) -> u64) -> u64 {
    let low = compute(values.map(|value| value & 0xffff));
    if pair { low | compute(values.map(|value| value >> 16 & 0xffff)) << 16 } else { low }
}

fn fused(kind: Type, m: Modifiers) -> Option<Ternary> {
    Some(match kind {
        Type::F32 if m.is_plain() => ternary(|a, b, c| f32_bits(float::fma_f32(f32_of(a), f32_of(b), f32_of(c)))),
        Type::F32 => ternary(move |a, b, c| {
            let [a, b, c] = [a, b, c].map(|bits| m.input(F32, bits));
            m.finish(F32, float::fma(m.rounding, a, b, c))
        }),
        Type::F64 => ternary(move |a, b, c| {
            let value = soft::fma(m.rounding, f64::from_bits(a), f64::from_bits(b), f64::from_bits(c));
            f64_bits(value, [b, c, a])
        }),
        _ => {
            let (format, pair) = half_format(kind)?;
            ternary(move |a, b, c| {
                each_half(pair, [a, b, c], |values| {
                    let [a, b, c] = values.map(|bits| m.input(format, bits));
                    m.finish(format, float::fma(m.rounding, a, b, c))
                })
            })
        }
    })
}

fn two(name: &str, kind: Type, m: Modifiers, approximate: Option<&str>) -> Option<Binary> {
    if matches!(name, "min" | "max") {
        return extreme(name == "max", kind, m);
    }
    if name == "copysign" {
        let sign = match kind {
            Type::F32 => 1 << 31,
            Type::F64 => 1 << 63,
            _ => return None,
        };
        // The first operand gives the sign.
        return Some(binary(move |a, b| a & sign | b & (sign - 1)));
    }
    Some(match kind {
        Type::F32 => {
            let exact: fn(Rounding, f64, f64) -> f64 = match name {
                "add" => float::add,
                "sub" => |rounding, a, b| float::add(rounding, a, -b),
                "mul" => |_, a, b| a * b,
                _ => |_, a, b| float::divide_odd(a, b),
            };
            match (name, m.is_plain()) {
                ("add", true) => binary(|a, b| f32_bits(f32_of(a) + f32_of(b))),
                ("sub", true) => binary(|a, b| f32_bits(f32_of(a) - f32_of(b))),
                ("mul", true) => binary(|a, b| f32_bits(f32_of(a) * f32_of(b))),
                _ => {
                    // Beyond 2^126 the hardware's reciprocal is 0.
                    let coarse = approximate == Some("approx");
                    binary(move |a, b| {
                        let (a, b) = (m.input_f32(a), m.input_f32(b));
                        if coarse && b.is_finite() && b.abs() > 2f32.powi(126) {
                            return m.finish_f32(if a.is_finite() { 0f32.copysign(a * b.signum()) } else { f32::NAN });
                        }
                        m.finish(F32, exact(m.rounding, a.into(), b.into()))
                    })
                }
            }
        }
        Type::F64 => {
            let exact: fn(Rounding, f64, f64) -> f64 = match name {
                "add" => soft::add,
                "sub" => |rounding, a, b| soft::add(rounding, a, -b),
                "mul" => soft::multiply,
                _ => soft::divide,
            };
            // Whose NaN it is if both are.
            let first_first = name == "div";
            binary(move |a, b| {
                let value = exact(m.rounding, f64::from_bits(a), f64::from_bits(b));
                f64_bits(value, if first_first { [a, b] } else { [b, a] })
            })
        }
        _ => {
            let (format, pair) = half_format(kind)?;
            let exact: fn(Rounding, f64, f64) -> f64 = match name {
                "add" => float::add,
                "sub" => |rounding, a, b| float::add(rounding, a, -b),
                "mul" => |_, a, b| a * b,
                _ => return None,
            };
            binary(move |a, b| {
                each_half(pair, [a, b], |values| {
                    let [a, b] = values.map(|bits| m.input(format, bits));
                    m.finish(format, exact(m.rounding, a, b))
                })
            })
        }
    })
}

/// `min` and `max`: a NaN loses unless `.NaN`, and -0 is less than +0.
fn extreme(largest: bool, kind: Type, m: Modifiers) -> Option<Binary> {
    let (format, pair) = match kind {
        Type::F32 => (F32, false),
        Type::F64 => (float::F64, false),
        _ => half_format(kind)?,
    };
    let sign = 1u64 << (format.bits() - 1);
    let wide = kind == Type::F64;
    let one = move |a: u64, b: u64| {
        let input = |bits: u64| if m.flush && bits & format.infinity() == 0 { bits & sign } else { bits };
        let (mut a, mut b) = (input(a), input(b));
        let result_sign = (a ^ b) & sign;
        if m.xor_sign {
            (a, b) = (a & !sign, b & !sign);
        }
        let is_nan = |bits| format.is_nan(bits);
        let key = |bits: u64| if bits & sign != 0 { !bits & mask(format.bits()) } else { bits | sign };
        match (is_nan(a), is_nan(b)) {
            (true, true) if wide => return b | F64_QUIET,
            (true, true) => return format.nan(),
            (true, false) | (false, true) if m.nan => return format.nan(),
            (true, false) => a = b,
            (false, true) => {}
            (false, false) if (key(a) < key(b)) == largest => a = b,
            (false, false) => {}
        }
        if m.xor_sign { a | result_sign } else { a }
    };
    Some(match kind {
        Type::F32 | Type::F64 => binary(move |a, b| one(a & mask(format.bits()), b & mask(format.bits()))),
        _ => binary(move |a, b| each_half(pair, [a, b], |[a, b]| one(a, b))),
    })
}

fn one(name: &str, kind: Type, m: Modifiers, approximate: Option<&str>) -> Option<Unary> {
    if matches!(name, "abs" | "neg") {
        let (format, pair) = match kind {
            Type::F32 => (F32, false),
            Type::F64 => (float::F64, false),
            _ => half_format(kind)?,
        };
        let sign = 1u64 << (format.bits() - 1);
        let (negate, wide) = (name == "neg", kind == Type::F64);
        let one = move |bits: u64| {
            if format.is_nan(bits) {
                // In f64 it keeps its sign, too.
                return if wide { bits | F64_QUIET } else { format.nan() };
            }
            let result = if negate { bits ^ sign } else { bits & !sign };
            if m.flush && !wide && bits & format.infinity() == 0 { result & sign } else { result }
        };
        return Some(match kind {
            Type::F32 | Type::F64 => unary(move |a| one(a & mask(format.bits()))),
            _ => unary(move |a| each_half(pair, [a], |[bits]| one(bits))),
        });
    }
    let function = approximation(name)?;
    Some(match (kind, approximate) {
        (Type::F32, Some("approx")) => unary(move |a| m.finish_f32(function(m.input_f32(a).into()) as f32)),
        (Type::F32, None) => {
            let exact: fn(f64) -> f64 = match name {
                "rcp" => |a| float::divide_odd(1.0, a),
                "sqrt" => float::sqrt_odd,
                _ => return None,
            };
            unary(move |a| m.finish(F32, exact(m.input(F32, a))))
        }
        // The hardware takes the upper half of the operand, gives that of the result, and flushes subnormals.
        (Type::F64, Some("approx")) if matches!(name, "rcp" | "rsqrt") => unary(move |a| {
            let value = f64::from_bits(a & !mask(32));
            let value = if value.is_subnormal() { 0f64.copysign(value) } else { value };
            let result = function(value);
            let result = if result.is_subnormal() { 0f64.copysign(result) } else { result };
            result.to_bits() & !mask(32)
        }),
        (Type::F64, None) => match name {
            "rcp" => unary(move |a| f64_bits(soft::divide(m.rounding, 1.0, f64::from_bits(a)), [a])),
            "sqrt" => unary(move |a| f64_bits(soft::sqrt(m.rounding, f64::from_bits(a)), [a])),
            _ => return None,
        },
        (_, Some("approx")) if matches!(name, "ex2" | "tanh") => {
            let (format, pair) = half_format(kind)?;
            unary(move |a| each_half(pair, [a], |[bits]| m.finish(format, function(m.input(format, bits)))))
        }
        _ => return None,
    })
}
