//! Comparisons and what selects by them.

use super::float::f32_of;
use super::{Parts, Result, mask, operands, sign_extend, ternary, unsupported};
use crate::float::{BF16, F16, flush};
use crate::program::build::Scope;
use crate::program::{Comparison, Lanes, Logic, Operation, WARP};
use crate::ptx::syntax::{Instruction, Operand};
use crate::ptx::types::{Class, Type};
use std::sync::Arc;

pub(super) fn decode(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    match written.name.as_str() {
        "setp" => setp(scope, written, parts),
        "set" => set(scope, written, parts),
        "testp" => testp(scope, written, parts),
        "selp" => {
            let kind = parts.kind()?;
            let [destination, a, b, condition] = operands(written)?;
            let sources = [scope.source(a, kind)?, scope.source(b, kind)?];
            let condition = scope.condition(condition)?;
            Ok(Operation::Select { destination: scope.register(destination)?, sources, condition })
        }
        _ => {
            let ftz = parts.take("ftz");
            let kind = parts.kind()?;
            let by = parts.kind()?;
            let [destination, a, b, c] = operands(written)?;
            let sources = [scope.source(a, kind)?, scope.source(b, kind)?, scope.source(c, by)?];
            let compute = match by {
                Type::S32 => ternary(|a, b, c| if c as i32 >= 0 { a } else { b }),
                Type::F32 => ternary(move |a, b, c| {
                    let c = if ftz { flush(f32_of(c)) } else { f32_of(c) };
                    if c >= 0.0 { a } else { b }
                }),
                _ => return unsupported(written),
            };
            Ok(Operation::Ternary { destination: scope.register(destination)?, sources, compute })
        }
    }
}

/// A comparison by name, given how the operands order: `None` if one is NaN.
fn relation(name: &str) -> Option<fn(Option<std::cmp::Ordering>) -> bool> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    Some(match name {
        "eq" => |order| order == Some(Equal),
        "ne" => |order| matches!(order, Some(Less | Greater)),
        "lt" | "lo" => |order| order == Some(Less),
        "le" | "ls" => |order| matches!(order, Some(Less | Equal)),
        "gt" | "hi" => |order| order == Some(Greater),
        "ge" | "hs" => |order| matches!(order, Some(Greater | Equal)),
        "equ" => |order| matches!(order, None | Some(Equal)),
        "neu" => |order| order != Some(Equal),
        "ltu" => |order| matches!(order, None | Some(Less)),
        "leu" => |order| order != Some(Greater),
        "gtu" => |order| matches!(order, None | Some(Greater)),
        "geu" => |order| order != Some(Less),
        "num" => |order| order.is_some(),
        "nan" => |order| order.is_none(),
        _ => return None,
    })
}

const RELATIONS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
];

fn lanes(test: impl Fn(u64, u64) -> bool + Send + Sync + 'static) -> Comparison {
    Arc::new(move |a: &Lanes, b: &Lanes| {
        let mut bits = 0;
        for lane in 0..WARP {
            bits |= u32::from(test(a[lane], b[lane])) << lane;
        }
        bits
    })
}

/// Compares elements of `kind` that start at bit `shift`.
fn comparison(name: &str, kind: Type, ftz: bool, shift: u32) -> Option<Comparison> {
    let holds = relation(name)?;
    let unsigned = matches!(name, "lo" | "ls" | "hi" | "hs");
    Some(match kind {
        Type::F32 => lanes(move |a, b| {
            let (a, b) = (f32_of(a), f32_of(b));
            let (a, b) = if ftz { (flush(a), flush(b)) } else { (a, b) };
            holds(a.partial_cmp(&b))
        }),
        Type::F64 => lanes(move |a, b| holds(f64::from_bits(a).partial_cmp(&f64::from_bits(b)))),
        Type::F16 | Type::F16x2 | Type::BF16 | Type::BF16x2 => {
            let format = if matches!(kind, Type::F16 | Type::F16x2) { F16 } else { BF16 };
            let value = move |bits: u64| {
                let bits = bits >> shift & 0xffff;
                format.widen(if ftz && bits & format.infinity() == 0 { bits & 0x8000 } else { bits })
            };
            lanes(move |a, b| holds(value(a).partial_cmp(&value(b))))
        }
        _ => {
            let bits = kind.bits();
            if kind.class() == Class::Signed && !unsigned {
                lanes(move |a, b| holds(Some(sign_extend(a, bits).cmp(&sign_extend(b, bits)))))
            } else {
                lanes(move |a, b| holds(Some((a & mask(bits)).cmp(&(b & mask(bits))))))
            }
        }
    })
}

fn logic(parts: &mut Parts<'_>) -> Option<Logic> {
    parts.take_any(&["and", "or", "xor"]).map(|name| match name {
        "and" => Logic::And,
        "or" => Logic::Or,
        _ => Logic::Xor,
    })
}

fn setp(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let Some(name) = parts.take_any(&RELATIONS) else { return unsupported(written) };
    let logic = logic(parts);
    let ftz = parts.take("ftz");
    let kind = parts.kind()?;
    let (destination, a, b, combine) = match (written.operands.as_slice(), logic) {
        ([destination, a, b], None) => (destination, a, b, None),
        ([destination, a, b, c], Some(logic)) => (destination, a, b, Some((logic, scope.condition(c)?))),
        _ => return unsupported(written),
    };
    let sources = [scope.source(a, kind)?, scope.source(b, kind)?];
    let (first, second) = match destination {
        Operand::Pair(first, second) => (scope.optional_predicate(first)?, scope.optional_predicate(second)?),
        single => (scope.optional_predicate(single)?, None),
    };
    let Some(compare) = comparison(name, kind, ftz, 0) else { return unsupported(written) };
    if matches!(kind, Type::F16x2 | Type::BF16x2) {
        let Some(upper) = comparison(name, kind, ftz, 16) else { return unsupported(written) };
        return Ok(Operation::SetpPair { destinations: [first, second], sources, compare: [compare, upper], combine });
    }
    Ok(Operation::Setp { destination: first, opposite: second, sources, compare, combine })
}

fn set(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let Some(name) = parts.take_any(&RELATIONS) else { return unsupported(written) };
    let logic = logic(parts);
    let ftz = parts.take("ftz");
    let result = parts.kind()?;
    let kind = parts.kind()?;
    let (destination, a, b, combine) = match (written.operands.as_slice(), logic) {
        ([destination, a, b], None) => (destination, a, b, None),
        ([destination, a, b, c], Some(logic)) => (destination, a, b, Some((logic, scope.condition(c)?))),
        _ => return unsupported(written),
    };
    let sources = [scope.source(a, kind)?, scope.source(b, kind)?];
    let destination = scope.register(destination)?;
    let Some(compare) = comparison(name, kind, ftz, 0) else { return unsupported(written) };
    if matches!(kind, Type::F16x2 | Type::BF16x2) && combine.is_none() {
        let Some(upper) = comparison(name, kind, ftz, 16) else { return unsupported(written) };
        let truth = match result {
            Type::F16x2 => 0x3c00,
            Type::BF16x2 => 0x3f80,
            _ => 0xffff,
        };
        return Ok(Operation::Binary {
            destination,
            sources,
            compute: Arc::new(move |a, b, out| {
                let (low, high) = (compare(a, b), upper(a, b));
                for (lane, out) in out.iter_mut().enumerate() {
                    let half = |holds: u32| if holds >> lane & 1 == 1 { truth } else { 0 };
                    *out = half(low) | half(high) << 16;
                }
            }),
        });
    }
    let truth = match result {
        Type::F32 => u64::from(1f32.to_bits()),
        Type::F16 => 0x3c00,
        Type::BF16 => 0x3f80,
        kind if kind.is_float() => return unsupported(written),
        kind => mask(kind.bits()),
    };
    Ok(Operation::Set { destination, sources, compare, combine, truth })
}

fn testp(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let names = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
    let Some(name) = parts.take_any(&names) else { return unsupported(written) };
    let test: fn(f64, bool) -> bool = match name {
        "finite" => |value, _| value.is_finite(),
        "infinite" => |value, _| value.is_infinite(),
        "number" => |value, _| !value.is_nan(),
        "notanumber" => |value, _| value.is_nan(),
        // Zeros too.
        "normal" => |value, subnormal| value.is_finite() && !subnormal,
        _ => |_, subnormal| subnormal,
    };
    let kind = parts.kind()?;
    let compare = match kind {
        Type::F32 => lanes(move |a, _| test(f32_of(a).into(), f32_of(a).is_subnormal())),
        Type::F64 => lanes(move |a, _| test(f64::from_bits(a), f64::from_bits(a).is_subnormal())),
        _ => return unsupported(written),
    };
    let [destination, a] = operands(written)?;
    let source = scope.source(a, kind)?;
    Ok(Operation::Setp {
        destination: scope.optional_predicate(destination)?,
        opposite: None,
        sources: [source, source],
        compare,
        combine: None,
    })
}
