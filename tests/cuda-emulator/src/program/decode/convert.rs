//! `cvt`: between all integers and floats.

use super::{Parts, Result, binary, mask, operands, sign_extend, unary, unsupported};
use crate::float::{self, BF16, F16, F32, F64, Format, Rounding, TF32};
use crate::program::build::Scope;
use crate::program::{Operation, Unary};
use crate::ptx::syntax::Instruction;
use crate::ptx::types::Type;

#[derive(Clone, Copy)]
struct Modifiers {
    rounding: Option<Rounding>,
    /// `.rni` and its kin: to an integer.
    integral: Option<Rounding>,
    flush: bool,
    saturate: bool,
    relu: bool,
    /// `.satfinite`: the largest finite value instead of infinity.
    finite: bool,
}

pub(super) fn decode(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let m = Modifiers {
        rounding: parts.rounding(),
        integral: parts.take_map(|part| match part {
            "rni" => Some(Rounding::Nearest),
            "rzi" => Some(Rounding::Zero),
            "rmi" => Some(Rounding::Down),
            "rpi" => Some(Rounding::Up),
            _ => None,
        }),
        flush: parts.take("ftz"),
        saturate: parts.take("sat"),
        relu: parts.take("relu"),
        finite: parts.take("satfinite"),
    };
    let to = parts.kind()?;
    let from = parts.kind()?;
    if let Type::F16x2 | Type::BF16x2 = to {
        let format = if to == Type::F16x2 { F16 } else { BF16 };
        let (Type::F32, Some(rounding)) = (from, m.rounding) else { return unsupported(written) };
        let [destination, upper, lower] = operands(written)?;
        let sources = [scope.source(upper, from)?, scope.source(lower, from)?];
        let narrow = move |bits: u64| m.float_out(format, m.narrow(format, m.float_in(F32, bits), rounding));
        let compute = binary(move |upper, lower| narrow(upper) << 16 | narrow(lower));
        return Ok(Operation::Binary { destination: scope.register(destination)?, sources, compute });
    }
    // What the assembler refuses: bf16 has no way to and from bytes, and nothing saturates that cannot overflow.
    let bytes_and_bf16 = [(from, to), (to, from)].iter().any(|(a, b)| a.bits() == 8 && *b == Type::BF16);
    let integers = format_of(from).is_none() && format_of(to).is_none();
    let fits = match (from.is_signed(), to.is_signed()) {
        (false, true) => to.bits() > from.bits(),
        (true, false) => false,
        _ => to.bits() >= from.bits(),
    };
    if bytes_and_bf16 || m.saturate && integers && fits {
        return unsupported(written);
    }
    let [destination, a] = operands(written)?;
    let source = scope.source(a, from)?;
    let (destination, register) = scope.typed_register(destination)?;
    let Some(compute) = conversion(from, to, register.bits(), m) else { return unsupported(written) };
    Ok(Operation::Unary { destination, source, compute })
}

pub(super) fn format_of(kind: Type) -> Option<Format> {
    Some(match kind {
        Type::F16 => F16,
        Type::BF16 => BF16,
        Type::F32 => F32,
        Type::F64 => F64,
        Type::TF32 => TF32,
        _ => return None,
    })
}

impl Modifiers {
    fn float_in(self, format: Format, bits: u64) -> f64 {
        let bits = if self.flush && format == F32 && bits & format.infinity() == 0 { bits & 1 << 31 } else { bits };
        if format == F64 { f64::from_bits(bits) } else { format.widen(bits) }
    }

    fn narrow(self, format: Format, value: f64, rounding: Rounding) -> u64 {
        let subnormal = self.flush && format == F32 && format.flushes(value, rounding);
        let bits = format.narrow(if subnormal { 0f64.copysign(value) } else { value }, rounding);
        let sign = 1 << (format.bits() - 1);
        if self.finite && bits & !sign == format.infinity() { bits - 1 } else { bits }
    }

    fn float_out(self, format: Format, bits: u64) -> u64 {
        let sign = 1 << (format.bits() - 1);
        let mut bits = bits;
        let nan = format.is_nan(bits);
        if self.saturate {
            let one = format.narrow(1.0, Rounding::Nearest);
            bits = if nan || bits & sign != 0 { 0 } else { bits.min(one) };
        } else if self.relu && !nan && bits & sign != 0 {
            bits = 0;
        }
        bits
    }
}

fn conversion(from: Type, to: Type, register_bits: u32, m: Modifiers) -> Option<Unary> {
    match (format_of(from), format_of(to)) {
        (None, None) => Some(integer_to_integer(from, to, register_bits, m)),
        (None, Some(format)) => {
            let (bits, signed) = (from.bits(), from.is_signed());
            let rounding = m.rounding.unwrap_or(Rounding::Nearest);
            Some(unary(move |a| {
                let value = if signed { i128::from(sign_extend(a, bits)) } else { i128::from(a & mask(bits)) };
                m.float_out(format, format.encode(value < 0, value.unsigned_abs(), 0, rounding))
            }))
        }
        (Some(format), None) => {
            let rounding = m.integral.or(m.rounding)?;
            let wide = from == Type::F64 || to.bits() == 64;
            let bits = to.bits();
            Some(unary(move |a| {
                let value = m.float_in(format, a & mask(format.bits()));
                let integer = if value.is_nan() {
                    if wide { 1 << (bits - 1) } else { 0 }
                } else {
                    clamp(float::round_integral(value, rounding), to)
                };
                extend(integer, to, register_bits)
            }))
        }
        (Some(source), Some(format)) => Some(float_to_float(source, format, m)),
    }
}

/// Truncated to the type; clamped to its range first if asked.
fn integer_to_integer(from: Type, to: Type, register_bits: u32, m: Modifiers) -> Unary {
    let (bits, signed) = (from.bits(), from.is_signed());
    unary(move |a| {
        let value = if signed { i128::from(sign_extend(a, bits)) } else { i128::from(a & mask(bits)) };
        let value = if m.saturate {
            let (least, greatest) = if to.is_signed() {
                (-(1i128 << (to.bits() - 1)), (1i128 << (to.bits() - 1)) - 1)
            } else {
                (0, i128::from(mask(to.bits())))
            };
            value.clamp(least, greatest)
        } else {
            value
        };
        extend(value as u64 & mask(to.bits()), to, register_bits)
    })
}

fn float_to_float(source: Format, format: Format, m: Modifiers) -> Unary {
    // A tf32 is a f32 whose lower bits are 0.
    let shift = if format == TF32 { 13 } else { 0 };
    unary(move |a| {
        let a = a & mask(source.bits());
        let value = m.float_in(source, a);
        let bits = match m.integral {
            _ if source.is_nan(a) => nan(source, format, a, m),
            Some(rounding) => format.narrow(float::round_integral(value, rounding), Rounding::Nearest),
            None => m.narrow(format, value, m.rounding.unwrap_or(Rounding::Nearest)),
        };
        m.float_out(format, bits) << shift
    })
}

/// What becomes of a NaN.
fn nan(source: Format, format: Format, bits: u64, m: Modifiers) -> u64 {
    let kept = bits & mask(source.mantissa);
    let sign = bits >> (source.bits() - 1) << (format.bits() - 1);
    match (source, format) {
        // Bits move, no more.
        (BF16, F32) if !m.flush => bits << 16,
        (source, format) if source == format && m.integral.is_none() && !m.flush => bits,
        (F32, TF32) if m.rounding == Some(Rounding::Away) => bits >> 13,
        (F64, _) | (_, F64) => {
            let kept = kept << (F64.mantissa - source.mantissa) >> (F64.mantissa - format.mantissa);
            sign | format.infinity() | 1 << (format.mantissa - 1) | kept
        }
        _ => format.nan(),
    }
}

/// A whole `value` clamped to the range of `to`.
fn clamp(value: f64, to: Type) -> u64 {
    (match to {
        Type::S8 => value as i8 as i64 as u64,
        Type::S16 => value as i16 as i64 as u64,
        Type::S32 => value as i32 as i64 as u64,
        Type::S64 => value as i64 as u64,
        Type::U8 | Type::B8 => u64::from(value as u8),
        Type::U16 | Type::B16 => u64::from(value as u16),
        Type::U32 | Type::B32 => u64::from(value as u32),
        _ => value as u64,
    }) & mask(to.bits())
}

/// Fills a wider register with the sign of a signed value.
fn extend(value: u64, to: Type, register_bits: u32) -> u64 {
    if to.is_signed() { sign_extend(value, to.bits()) as u64 & mask(register_bits) } else { value }
}
