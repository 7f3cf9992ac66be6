//! Instructions in which the lanes of a warp meet.

use super::{Parts, Result, operands, unsupported};
use crate::program::build::Scope;
use crate::program::{Operation, Shuffle, Vote};
use crate::ptx::syntax::{Instruction, Operand};
use crate::ptx::types::Type;

pub(super) fn decode(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    if written.name == "activemask" {
        parts.kind()?;
        let [destination] = operands(written)?;
        return Ok(Operation::ActiveMask { destination: scope.register(destination)? });
    }
    if !parts.take("sync") {
        return Err(format!("{} without .sync, which no target since sm_70 has", written.opcode()));
    }
    match written.name.as_str() {
        "shfl" => {
            let mode = match parts.take_any(&["up", "down", "bfly", "idx"]) {
                Some("up") => Shuffle::Up,
                Some("down") => Shuffle::Down,
                Some("bfly") => Shuffle::Butterfly,
                Some(_) => Shuffle::Index,
                None => return unsupported(written),
            };
            parts.kind()?;
            let [destination, a, b, c, mask] = operands(written)?;
            let sources = [scope.source(a, Type::B32)?, scope.source(b, Type::B32)?, scope.source(c, Type::B32)?];
            let mask = scope.source(mask, Type::B32)?;
            let (destination, predicate) = pair(scope, destination)?;
            let Some(destination) = destination else { return unsupported(written) };
            Ok(Operation::Shuffle { destination, predicate, mode, sources, mask })
        }
        "vote" => {
            let Some(mode) = parts.take_any(&["all", "any", "uni", "ballot"]) else { return unsupported(written) };
            parts.kind()?;
            let [destination, condition, mask] = operands(written)?;
            let condition = scope.condition(condition)?;
            let mask = scope.source(mask, Type::B32)?;
            let vote = match mode {
                "all" => Vote::All,
                "any" => Vote::Any,
                "uni" => Vote::Uniform,
                _ => return Ok(Operation::Ballot { destination: scope.register(destination)?, condition, mask }),
            };
            Ok(Operation::Vote { destination: scope.predicate(destination)?, vote, condition, mask })
        }
        "match" => {
            let Some(mode) = parts.take_any(&["any", "all"]) else { return unsupported(written) };
            let kind = parts.kind()?;
            let [destination, a, mask] = operands(written)?;
            let source = scope.source(a, kind)?;
            let mask = scope.source(mask, Type::B32)?;
            let (destination, predicate) = pair(scope, destination)?;
            let Some(destination) = destination else { return unsupported(written) };
            Ok(Operation::Match { destination, predicate, all: mode == "all", source, mask })
        }
        "redux" => {
            let Some(name) = parts.take_any(&["add", "min", "max", "and", "or", "xor"]) else {
                return unsupported(written);
            };
            let kind = parts.kind()?;
            let combine: fn(u32, u32) -> u32 = match (name, kind) {
                ("add", Type::U32 | Type::S32) => u32::wrapping_add,
                ("min", Type::U32) => u32::min,
                ("max", Type::U32) => u32::max,
                ("min", Type::S32) => |a, b| (a as i32).min(b as i32) as u32,
                ("max", Type::S32) => |a, b| (a as i32).max(b as i32) as u32,
                ("and", Type::B32) => |a, b| a & b,
                ("or", Type::B32) => |a, b| a | b,
                ("xor", Type::B32) => |a, b| a ^ b,
                _ => return unsupported(written),
            };
            let [destination, a, mask] = operands(written)?;
            let source = scope.source(a, kind)?;
            let mask = scope.source(mask, Type::B32)?;
            Ok(Operation::Reduce { destination: scope.register(destination)?, source, mask, combine })
        }
        _ => {
            let [destination, mask] = operands(written)?;
            let mask = scope.source(mask, Type::B32)?;
            let (destination, Some(predicate)) = pair(scope, destination)? else { return unsupported(written) };
            Ok(Operation::Elect { destination, predicate, mask })
        }
    }
}

/// `d|p`, or `d` alone.
fn pair(
    scope: &mut Scope<'_>,
    operand: &Operand,
) -> Result<(Option<crate::program::Register>, Option<crate::program::Predicate>)> {
    match operand {
        Operand::Pair(first, second) => Ok((scope.optional_register(first)?, scope.optional_predicate(second)?)),
        single => Ok((scope.optional_register(single)?, None)),
    }
}
