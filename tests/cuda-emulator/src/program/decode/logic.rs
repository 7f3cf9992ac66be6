//! Logic, shifts and bit fields.

use super::{Parts, Result, binary, mask, operands, sign_extend, ternary, unary, unsupported};
use crate::program::build::Scope;
use crate::program::{Logic, Operation};
use crate::ptx::syntax::{Instruction, Operand};
use crate::ptx::types::Type;

pub(super) fn decode(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    match written.name.as_str() {
        "and" | "or" | "xor" | "not" => bitwise(scope, written, parts),
        "cnot" | "popc" | "clz" | "bfind" | "brev" => counted(scope, written, parts),
        "lop3" => lop3(scope, written, parts),
        "shl" | "shr" => shift(scope, written, parts),
        "shf" => funnel_shift(scope, written, parts),
        "prmt" => permute(scope, written, parts),
        "fns" => find_nth(scope, written, parts),
        "bfe" => extract(scope, written, parts),
        "bfi" => {
            let kind = parts.kind()?;
            let [destination, a, b, position, length] = operands(written)?;
            let sources = [
                scope.source(a, kind)?,
                scope.source(b, kind)?,
                scope.source(position, Type::U32)?,
                scope.source(length, Type::U32)?,
            ];
            Ok(Operation::InsertBits { destination: scope.register(destination)?, sources, bits: kind.bits() })
        }
        "bmsk" | "szext" => {
            let clamp = parts.take_any(&["clamp", "wrap"]) == Some("clamp");
            let kind = parts.kind()?;
            let [destination, a, b] = operands(written)?;
            let sources = [scope.source(a, Type::B32)?, scope.source(b, Type::U32)?];
            let clip = move |amount: u64| if clamp { amount.min(32) } else { amount & 31 } as u32;
            let compute = if written.name == "bmsk" {
                binary(move |position, width| (mask(clip(width)) << clip(position)) & mask(32))
            } else {
                let signed = kind.is_signed();
                binary(move |value, width| match clip(width) {
                    0 => 0,
                    width if signed => sign_extend(value, width) as u64 & mask(32),
                    width => value & mask(width),
                })
            };
            Ok(Operation::Binary { destination: scope.register(destination)?, sources, compute })
        }
        _ => unsupported(written),
    }
}

fn bitwise(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let kind = parts.kind()?;
    let name = written.name.as_str();
    if kind == Type::Pred {
        let (destination, sources) = if name == "not" {
            let [destination, a] = operands(written)?;
            let a = scope.condition(a)?;
            (destination, [a, a])
        } else {
            let [destination, a, b] = operands(written)?;
            (destination, [scope.condition(a)?, scope.condition(b)?])
        };
        let logic = match name {
            "xor" => Logic::Xor,
            "or" => Logic::Or,
            _ => Logic::And,
        };
        let destination = scope.predicate(destination)?;
        return Ok(Operation::PredicateLogic { destination, logic, sources, negate: name == "not" });
    }
    let bits = kind.bits();
    if name == "not" {
        let [destination, a] = operands(written)?;
        let source = scope.source(a, kind)?;
        let compute = unary(move |a| !a & mask(bits));
        return Ok(Operation::Unary { destination: scope.register(destination)?, source, compute });
    }
    let [destination, a, b] = operands(written)?;
    let sources = [scope.source(a, kind)?, scope.source(b, kind)?];
    let compute = match name {
        "and" => binary(move |a, b| a & b & mask(bits)),
        "or" => binary(move |a, b| (a | b) & mask(bits)),
        _ => binary(move |a, b| (a ^ b) & mask(bits)),
    };
    Ok(Operation::Binary { destination: scope.register(destination)?, sources, compute })
}

fn counted(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let shift_amount = parts.take("shiftamt");
    let kind = parts.kind()?;
    let (bits, signed) = (kind.bits(), kind.is_signed());
    let [destination, a] = operands(written)?;
    let source = scope.source(a, kind)?;
    let compute = match written.name.as_str() {
        "cnot" => unary(move |a| u64::from(a & mask(bits) == 0)),
        "popc" => unary(move |a| u64::from((a & mask(bits)).count_ones())),
        "clz" => unary(move |a| u64::from((a & mask(bits)).leading_zeros() - (64 - bits))),
        "brev" => unary(move |a| a.reverse_bits() >> (64 - bits)),
        _ => unary(move |a| {
            let a = if signed && sign_extend(a, bits) < 0 { !a } else { a } & mask(bits);
            match a.checked_ilog2() {
                None => mask(32),
                Some(highest) if shift_amount => u64::from(bits - 1 - highest),
                Some(highest) => u64::from(highest),
            }
        }),
    };
    Ok(Operation::Unary { destination: scope.register(destination)?, source, compute })
}

fn lop3(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let combine = parts.take_any(&["and", "or"]);
    if parts.kind()? != Type::B32 {
        return unsupported(written);
    }
    let (destination, sources, table, condition): (_, _, _, Option<&Operand>) = match written.operands.as_slice() {
        [destination, a, b, c, table] => (destination, [a, b, c], table, None),
        [destination, a, b, c, table, condition] => (destination, [a, b, c], table, Some(condition)),
        _ => return unsupported(written),
    };
    let Operand::Integer(table) = *table else { return Err("the table of lop3 is not a constant".into()) };
    let sources = [
        scope.source(sources[0], Type::B32)?,
        scope.source(sources[1], Type::B32)?,
        scope.source(sources[2], Type::B32)?,
    ];
    let compute = ternary(move |a, b, c| {
        let mut out = 0;
        for minterm in 0..8u32 {
            if table >> minterm & 1 == 1 {
                let a = if minterm & 4 != 0 { a } else { !a };
                let b = if minterm & 2 != 0 { b } else { !b };
                let c = if minterm & 1 != 0 { c } else { !c };
                out |= a & b & c;
            }
        }
        out & mask(32)
    });
    let (Some(combine), Some(condition)) = (combine, condition) else {
        return Ok(Operation::Ternary { destination: scope.register(destination)?, sources, compute });
    };
    let Operand::Pair(destination, predicate) = destination else { return unsupported(written) };
    let logic = if combine == "and" { Logic::And } else { Logic::Or };
    Ok(Operation::LogicPredicate {
        destination: scope.optional_register(destination)?,
        predicate: scope.predicate(predicate)?,
        sources,
        compute,
        combine: (logic, scope.condition(condition)?),
    })
}

fn shift(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let kind = parts.kind()?;
    let (bits, signed) = (kind.bits(), kind.is_signed());
    let [destination, a, amount] = operands(written)?;
    let sources = [scope.source(a, kind)?, scope.source(amount, Type::U32)?];
    let compute = if written.name == "shl" {
        binary(move |a, amount| {
            let amount = amount & mask(32);
            if amount >= u64::from(bits) { 0 } else { a << amount & mask(bits) }
        })
    } else if signed {
        binary(move |a, amount| {
            let amount = (amount & mask(32)).min(u64::from(bits - 1));
            (sign_extend(a, bits) >> amount) as u64 & mask(bits)
        })
    } else {
        binary(move |a, amount| {
            let amount = amount & mask(32);
            if amount >= u64::from(bits) { 0 } else { (a & mask(bits)) >> amount }
        })
    };
    Ok(Operation::Binary { destination: scope.register(destination)?, sources, compute })
}

fn funnel_shift(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let left = parts.take_any(&["l", "r"]) == Some("l");
    let Some(mode) = parts.take_any(&["wrap", "clamp"]) else { return unsupported(written) };
    let clamp = mode == "clamp";
    parts.kind()?;
    let [destination, low, high, amount] = operands(written)?;
    let sources = [scope.source(low, Type::B32)?, scope.source(high, Type::B32)?, scope.source(amount, Type::U32)?];
    let compute = ternary(move |low, high, amount| {
        let amount = amount & mask(32);
        let amount = if clamp { amount.min(32) } else { amount & 31 };
        let both = high << 32 | low & mask(32);
        if left { (u128::from(both) << amount >> 32) as u64 & mask(32) } else { both >> amount & mask(32) }
    });
    Ok(Operation::Ternary { destination: scope.register(destination)?, sources, compute })
}

fn permute(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    parts.kind()?;
    let mode = mode_index(parts.take_any(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]));
    let [destination, a, b, selector] = operands(written)?;
    let sources = [scope.source(a, Type::B32)?, scope.source(b, Type::B32)?, scope.source(selector, Type::B32)?];
    let selectors = move |selector: u64| -> [u64; 4] {
        let n = selector & 3;
        match mode {
            1 => [n, n + 1, n + 2, n + 3],
            2 => [n, n.wrapping_sub(1) & 7, n.wrapping_sub(2) & 7, n.wrapping_sub(3) & 7],
            3 => [n; 4],
            4 => [n, n.max(1), n.max(2), n.max(3)],
            5 => [0, n.min(1), n.min(2), n],
            6 => {
                let low = (n & 1) * 2;
                [low, low + 1, low, low + 1]
            }
            _ => [0, 4, 8, 12].map(|shift| selector >> shift & 15),
        }
    };
    let compute = ternary(move |a, b, selector| {
        let bytes = (b << 32 | a & mask(32)).to_le_bytes();
        let picked = selectors(selector).map(|select| {
            let byte = bytes[(select & 7) as usize];
            if select & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte }
        });
        u64::from(u32::from_le_bytes(picked))
    });
    Ok(Operation::Ternary { destination: scope.register(destination)?, sources, compute })
}

fn mode_index(mode: Option<&str>) -> u32 {
    match mode {
        Some("f4e") => 1,
        Some("b4e") => 2,
        Some("rc8") => 3,
        Some("ecl") => 4,
        Some("ecr") => 5,
        Some("rc16") => 6,
        _ => 0,
    }
}

fn find_nth(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    parts.kind()?;
    let [destination, a, base, offset] = operands(written)?;
    let sources = [scope.source(a, Type::B32)?, scope.source(base, Type::B32)?, scope.source(offset, Type::B32)?];
    let compute = ternary(|a, base, offset| {
        let (base, offset) = (base as i64, sign_extend(offset, 32));
        let is_set = |at: i64| a >> at & 1 == 1;
        if !(0..32).contains(&base) {
            return mask(32);
        }
        if offset == 0 {
            return if is_set(base) { base as u64 } else { mask(32) };
        }
        let mut left = offset.abs();
        let mut at = base;
        while (0..32).contains(&at) {
            left -= i64::from(is_set(at));
            if left == 0 {
                return at as u64;
            }
            at += offset.signum();
        }
        mask(32)
    });
    Ok(Operation::Ternary { destination: scope.register(destination)?, sources, compute })
}

fn extract(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let kind = parts.kind()?;
    let (bits, signed) = (kind.bits(), kind.is_signed());
    let [destination, a, position, length] = operands(written)?;
    let sources = [scope.source(a, kind)?, scope.source(position, Type::U32)?, scope.source(length, Type::U32)?];
    let compute = ternary(move |a, position, length| {
        let (position, length) = ((position & 255) as u32, (length & 255) as u32);
        let a = a & mask(bits);
        let sign_at = (position + length).saturating_sub(1).min(bits - 1);
        let sign = signed && length != 0 && a >> sign_at & 1 == 1;
        let available = bits.saturating_sub(position).min(length);
        let field = if available == 0 { 0 } else { a >> position & mask(available) };
        if sign { (field | !mask(available)) & mask(bits) } else { field }
    });
    Ok(Operation::Ternary { destination: scope.register(destination)?, sources, compute })
}
