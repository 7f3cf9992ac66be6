//! Integer arithmetic.

use super::{Parts, Result, binary, mask, operands, sign_extend, ternary, unary, unsupported};
use crate::program::build::Scope;
use crate::program::{Operation, Source};
use crate::ptx::syntax::Instruction;
use crate::ptx::types::{Class, Type};
use std::sync::Arc;

pub(super) fn decode(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let name = written.name.as_str();
    if matches!(name, "dp4a" | "dp2a") {
        return dot_product(scope, written, parts);
    }
    let carry_out = parts.take("cc");
    if carry_out || matches!(name, "addc" | "subc" | "madc") {
        return carrying(scope, written, parts, carry_out);
    }
    let half = parts.take_any(&["hi", "lo", "wide"]);
    let saturate = parts.take("sat");
    if let Some(packed) = parts.take_any(&["u16x2", "s16x2"]) {
        return pairs(scope, written, packed == "s16x2");
    }
    let kind = parts.kind()?;
    let (bits, signed) = (kind.bits(), kind.is_signed());
    if !matches!(kind.class(), Class::Signed | Class::Unsigned | Class::Bits) || bits < 16 {
        return unsupported(written);
    }
    match name {
        "abs" | "neg" => {
            let [destination, a] = operands(written)?;
            let compute = if name == "neg" {
                unary(move |a| a.wrapping_neg() & mask(bits))
            } else {
                unary(move |a| sign_extend(a, bits).unsigned_abs() & mask(bits))
            };
            let source = scope.source(a, kind)?;
            Ok(Operation::Unary { destination: scope.register(destination)?, source, compute })
        }
        "mad" | "mad24" | "sad" => {
            let [destination, a, b, c] = operands(written)?;
            let wide = half == Some("wide");
            let sum_kind = if wide { widened(kind, written)? } else { kind };
            let sources = [scope.source(a, kind)?, scope.source(b, kind)?, scope.source(c, sum_kind)?];
            let destination = scope.register(destination)?;
            let compute = match (name, half, bits) {
                ("sad", None, _) => ternary(move |a, b, c| {
                    let difference = if signed {
                        sign_extend(a, bits).abs_diff(sign_extend(b, bits))
                    } else {
                        (a & mask(bits)).abs_diff(b & mask(bits))
                    };
                    c.wrapping_add(difference) & mask(bits)
                }),
                ("mad", Some("lo"), 32) => {
                    ternary(|a, b, c| u64::from((a as u32).wrapping_mul(b as u32).wrapping_add(c as u32)))
                }
                ("mad", Some(half), _) => {
                    let multiply = product(bits, signed, half);
                    let out = mask(if wide { 2 * bits } else { bits });
                    if saturate {
                        if (kind, half) != (Type::S32, "hi") {
                            return unsupported(written);
                        }
                        ternary(move |a, b, c| {
                            let sum = sign_extend(multiply(a, b), 32) + sign_extend(c, 32);
                            sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u64 & mask(32)
                        })
                    } else {
                        ternary(move |a, b, c| multiply(a, b).wrapping_add(c) & out)
                    }
                }
                ("mad24", Some(half @ ("lo" | "hi")), 32) => {
                    let multiply = product24(signed, half == "hi");
                    ternary(move |a, b, c| multiply(a, b).wrapping_add(c) & mask(32))
                }
                _ => return unsupported(written),
            };
            Ok(Operation::Ternary { destination, sources, compute })
        }
        _ => {
            let [destination, a, b] = operands(written)?;
            let sources = [scope.source(a, kind)?, scope.source(b, kind)?];
            let destination = scope.register(destination)?;
            let compute = match (name, half, bits) {
                ("add", None, 32) if !saturate => binary(|a, b| u64::from((a as u32).wrapping_add(b as u32))),
                ("add", None, _) if !saturate => binary(move |a, b| a.wrapping_add(b) & mask(bits)),
                ("sub", None, _) if !saturate => binary(move |a, b| a.wrapping_sub(b) & mask(bits)),
                ("add" | "sub", None, 32) if kind == Type::S32 => {
                    let subtract = name == "sub";
                    binary(move |a, b| {
                        let (a, b) = (a as i32, b as i32);
                        let sum = if subtract { a.saturating_sub(b) } else { a.saturating_add(b) };
                        u64::from(sum as u32)
                    })
                }
                ("mul", Some("lo"), 32) => binary(|a, b| u64::from((a as u32).wrapping_mul(b as u32))),
                ("mul", Some(half), _) => {
                    if half == "wide" {
                        widened(kind, written)?;
                    }
                    let multiply = product(bits, signed, half);
                    binary(multiply)
                }
                ("mul24", Some(half @ ("lo" | "hi")), 32) => binary(product24(signed, half == "hi")),
                ("div", None, _) => binary(move |a, b| divide(a, b, bits, signed).0),
                ("rem", None, _) => binary(move |a, b| divide(a, b, bits, signed).1),
                ("min" | "max", None, _) => {
                    let largest = name == "max";
                    binary(move |a, b| {
                        let greater = if signed {
                            sign_extend(a, bits) > sign_extend(b, bits)
                        } else {
                            a & mask(bits) > b & mask(bits)
                        };
                        (if greater == largest { a } else { b }) & mask(bits)
                    })
                }
                _ => return unsupported(written),
            };
            Ok(Operation::Binary { destination, sources, compute })
        }
    }
}

fn widened(kind: Type, written: &Instruction) -> Result<Type> {
    Ok(match kind {
        Type::U16 => Type::U32,
        Type::S16 => Type::S32,
        Type::U32 => Type::U64,
        Type::S32 => Type::S64,
        _ => return unsupported(written),
    })
}

/// The product's lower or upper half, or all of it.
fn product(bits: u32, signed: bool, half: &str) -> impl Fn(u64, u64) -> u64 + Copy + Send + Sync + 'static {
    let shift = if half == "hi" { bits } else { 0 };
    let keep = mask(if half == "wide" { 2 * bits } else { bits });
    move |a, b| {
        let product = if signed {
            i128::from(sign_extend(a, bits)) * i128::from(sign_extend(b, bits))
        } else {
            (u128::from(a & mask(bits)) * u128::from(b & mask(bits))) as i128
        };
        (product >> shift) as u64 & keep
    }
}

/// `mul24`: bits 0 to 31 or 16 to 47 of the product of the lower 24 bits.
fn product24(signed: bool, high: bool) -> impl Fn(u64, u64) -> u64 + Copy + Send + Sync + 'static {
    move |a, b| {
        let product =
            if signed { sign_extend(a, 24) * sign_extend(b, 24) } else { ((a & mask(24)) * (b & mask(24))) as i64 };
        (product >> if high { 16 } else { 0 }) as u64 & mask(32)
    }
}

/// Quotient and remainder. PTX leaves division by zero open; here it gives all ones and the dividend, as GPUs do.
fn divide(a: u64, b: u64, bits: u32, signed: bool) -> (u64, u64) {
    let (a, b) = (a & mask(bits), b & mask(bits));
    if b == 0 {
        return (mask(bits), a);
    }
    if signed {
        let (a, b) = (sign_extend(a, bits), sign_extend(b, bits));
        (a.wrapping_div(b) as u64 & mask(bits), a.wrapping_rem(b) as u64 & mask(bits))
    } else {
        (a / b, a % b)
    }
}

fn pairs(scope: &mut Scope<'_>, written: &Instruction, signed: bool) -> Result<Operation> {
    let [destination, a, b] = operands(written)?;
    let sources = [scope.source(a, Type::B32)?, scope.source(b, Type::B32)?];
    let destination = scope.register(destination)?;
    let name = written.name.clone();
    let half: fn(u64, u64, bool) -> u64 = match name.as_str() {
        "add" => |a, b, _| a.wrapping_add(b) & 0xffff,
        "min" | "max" => |a, b, signed| {
            let greater = if signed { sign_extend(a, 16) > sign_extend(b, 16) } else { a > b };
            if greater { a } else { b }
        },
        _ => return unsupported(written),
    };
    let least = name == "min";
    let compute = binary(move |a, b| {
        let mut out = 0;
        for shift in [0, 16] {
            let (a, b) = (a >> shift & 0xffff, b >> shift & 0xffff);
            let largest = half(a, b, signed);
            out |= if least { a ^ b ^ largest } else { largest } << shift;
        }
        out
    });
    Ok(Operation::Binary { destination, sources, compute })
}

fn carrying(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>, writes: bool) -> Result<Operation> {
    let half = parts.take_any(&["hi", "lo"]);
    let kind = parts.kind()?;
    let (bits, signed) = (kind.bits(), kind.is_signed());
    if bits < 32 {
        return unsupported(written);
    }
    let name = written.name.as_str();
    let reads = name.ends_with('c');
    let limit = u128::from(mask(bits)) + 1;
    let (destination, sources, compute): (_, _, crate::program::Carrying) = match (name, half) {
        ("add" | "addc", None) => {
            let [destination, a, b] = operands(written)?;
            let sources = [scope.source(a, kind)?, scope.source(b, kind)?, scope.constant(0)];
            (
                destination,
                sources,
                Arc::new(move |a, b, _, carry| {
                    let sum = u128::from(a & mask(bits)) + u128::from(b & mask(bits)) + u128::from(carry);
                    ((sum % limit) as u64, sum >= limit)
                }),
            )
        }
        ("sub" | "subc", None) => {
            let [destination, a, b] = operands(written)?;
            let sources = [scope.source(a, kind)?, scope.source(b, kind)?, scope.constant(0)];
            (
                destination,
                sources,
                Arc::new(move |a, b, _, borrow| {
                    let difference =
                        u128::from(a & mask(bits)) + limit - u128::from(b & mask(bits)) - u128::from(borrow);
                    ((difference % limit) as u64, difference < limit)
                }),
            )
        }
        ("mad" | "madc", Some(half)) => {
            let [destination, a, b, c] = operands(written)?;
            let sources: [Source; 3] = [scope.source(a, kind)?, scope.source(b, kind)?, scope.source(c, kind)?];
            let multiply = product(bits, signed, half);
            (
                destination,
                sources,
                Arc::new(move |a, b, c, carry| {
                    let sum = u128::from(multiply(a, b)) + u128::from(c & mask(bits)) + u128::from(carry);
                    ((sum % limit) as u64, sum >= limit)
                }),
            )
        }
        _ => return unsupported(written),
    };
    Ok(Operation::Carry { destination: scope.register(destination)?, sources, compute, reads, writes })
}

fn dot_product(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let four = written.name == "dp4a";
    let half = parts.take_any(&["lo", "hi"]);
    if four != half.is_none() {
        return unsupported(written);
    }
    let (a_signed, b_signed) = (parts.kind()?.is_signed(), parts.kind()?.is_signed());
    let [destination, a, b, c] = operands(written)?;
    let sources = [scope.source(a, Type::B32)?, scope.source(b, Type::B32)?, scope.source(c, Type::B32)?];
    let destination = scope.register(destination)?;
    let pick = |value: u64, shift: u32, bits: u32, signed: bool| {
        let field = value >> shift & mask(bits);
        if signed { sign_extend(field, bits) } else { field as i64 }
    };
    let b_shift = if half == Some("hi") { 16 } else { 0 };
    let compute = ternary(move |a, b, c| {
        let mut sum = c as i64;
        if four {
            for at in 0..4 {
                sum += pick(a, 8 * at, 8, a_signed) * pick(b, 8 * at, 8, b_signed);
            }
        } else {
            for at in 0..2 {
                sum += pick(a, 16 * at, 16, a_signed) * pick(b, b_shift + 8 * at, 8, b_signed);
            }
        }
        sum as u64 & mask(32)
    });
    Ok(Operation::Ternary { destination, sources, compute })
}
