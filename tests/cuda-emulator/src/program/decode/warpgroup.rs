//! `wgmma` and `setmaxnreg`.

use super::{Parts, Result, operands, unsupported};
use crate::program::build::Scope;
use crate::program::{MatrixElement, Operation, WARP, WarpgroupMatrix, WarpgroupOperand};
use crate::ptx::syntax::{Instruction, Operand};
use crate::ptx::types::Type;

pub(super) fn decode(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let action = parts.take_any(&["fence", "commit_group", "wait_group", "mma_async", "inc", "dec"]);
    if !parts.take("sync") || !parts.take("aligned") {
        return unsupported(written);
    }
    match (written.name.as_str(), action) {
        ("wgmma", Some("fence")) => {
            let [] = operands(written)?;
            Ok(Operation::WarpgroupFence)
        }
        ("wgmma", Some("commit_group")) => {
            let [] = operands(written)?;
            Ok(Operation::WarpgroupCommit)
        }
        ("wgmma", Some("wait_group")) => {
            let [Operand::Integer(groups)] = operands(written)? else { return unsupported(written) };
            Ok(Operation::WarpgroupWait(*groups as u32))
        }
        ("wgmma", Some("mma_async")) => multiply(scope, written, parts),
        ("setmaxnreg", Some(action @ ("inc" | "dec"))) => {
            if parts.kind()? != Type::U32 {
                return unsupported(written);
            }
            let [Operand::Integer(count)] = operands(written)? else { return unsupported(written) };
            if !(24..=256).contains(count) || !count.is_multiple_of(8) {
                return Err(format!("{} of {count}: a multiple of 8 from 24 to 256 is needed", written.opcode()));
            }
            Ok(Operation::SetRegisters { count: *count as u32, increase: action == "inc" })
        }
        _ => unsupported(written),
    }
}

fn multiply(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    use MatrixElement as E;
    let name = written.parts.iter().filter(|part| !["mma_async", "sync", "aligned"].contains(&part.as_str()));
    let name = name.cloned().collect::<Vec<_>>().join(".");
    let shape = parts.take_map(|part| {
        let (n, k) = part.strip_prefix("m64n")?.split_once('k')?;
        Some((n.parse::<usize>().ok()?, k.parse::<usize>().ok()?))
    });
    let Some((n, k)) = shape else { return unsupported(written) };
    let saturate = parts.take("satfinite");
    let mut kinds = Vec::new();
    while let Some(kind) = parts.take_map(|part| {
        Some(match part {
            "f16" => E::F16,
            "bf16" => E::BF16,
            "tf32" => E::TF32,
            "s8" => E::S8,
            "u8" => E::U8,
            "f32" => E::F32,
            "s32" => E::S32,
            _ => return None,
        })
    }) {
        kinds.push(kind);
    }
    let [d_element, a_element, b_element] = kinds[..] else { return unsupported(written) };
    let integers = d_element == E::S32;
    let agree = match a_element {
        E::F16 => b_element == E::F16 && matches!(d_element, E::F16 | E::F32),
        E::BF16 | E::TF32 => b_element == a_element && d_element == E::F32,
        E::S8 | E::U8 => matches!(b_element, E::S8 | E::U8) && integers,
        E::F32 | E::S32 => false,
    };
    // Products of bytes come in steps of 8 columns up to 32, then of 16.
    let columns = n.is_multiple_of(8) && (8..=256).contains(&n) && (!integers || n <= 24 || n.is_multiple_of(16));
    if !agree || !columns || k * a_element.bits() != 256 || saturate && !integers {
        return unsupported(written);
    }
    let [d, a, b, scale_d, rest @ ..] = written.operands.as_slice() else { return unsupported(written) };
    let Operand::Vector(d) = d else { return unsupported(written) };
    let d = d.iter().map(|member| scope.register(member)).collect::<Result<Vec<_>>>()?;
    let expected = 64 * n * d_element.bits() / 32 / (4 * WARP);
    if d.len() != expected {
        return Err(format!("{} with {} registers of d, expected {expected}", written.opcode(), d.len()));
    }
    let a = match a {
        Operand::Vector(members) if members.len() == 4 => {
            let registers = members.iter().map(|member| scope.source(member, Type::B32)).collect::<Result<_>>()?;
            WarpgroupOperand::Registers(registers)
        }
        Operand::Vector(members) => {
            return Err(format!("{} with {} registers of a, expected 4", written.opcode(), members.len()));
        }
        descriptor => WarpgroupOperand::Shared(scope.source(descriptor, Type::B64)?),
    };
    let b = scope.source(b, Type::B64)?;
    let scale_d = scope.condition(scale_d)?;
    let immediates = rest
        .iter()
        .map(|operand| match operand {
            Operand::Integer(value) => Ok(*value as i64),
            other => Err(format!("{} with {other:?} where a constant is needed", written.opcode())),
        })
        .collect::<Result<Vec<_>>>()?;
    let flag = |value: i64| match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(format!("{} with {value} to transpose: 0 or 1", written.opcode())),
    };
    let sign = |value: i64| match value {
        1 => Ok(false),
        -1 => Ok(true),
        _ => Err(format!("{} with a scale of {value}: 1 or -1", written.opcode())),
    };
    let in_registers = matches!(a, WarpgroupOperand::Registers(_));
    let halves = matches!(a_element, E::F16 | E::BF16);
    let (negate, transposed) = match immediates[..] {
        [] if integers => ([false; 2], [false; 2]),
        [a, b] if !halves && !integers => ([sign(a)?, sign(b)?], [false; 2]),
        [a, b, transpose] if halves && in_registers => ([sign(a)?, sign(b)?], [false, flag(transpose)?]),
        [a, b, first, second] if halves && !in_registers => ([sign(a)?, sign(b)?], [flag(first)?, flag(second)?]),
        _ => return unsupported(written),
    };
    Ok(Operation::WarpgroupMatrix(Box::new(WarpgroupMatrix {
        name,
        n,
        k,
        a_element,
        b_element,
        d_element,
        d,
        a,
        b,
        scale_d,
        negate,
        transposed,
        saturate,
    })))
}
