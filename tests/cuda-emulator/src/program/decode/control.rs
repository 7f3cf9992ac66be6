//! Branches, calls and barriers.

use super::{Parts, Result, operands, unsupported};
use crate::program::build::Scope;
use crate::program::{BarrierReduction, Builtin, Operation};
use crate::ptx::syntax::{Instruction, Operand};
use crate::ptx::types::Type;

pub(super) fn decode(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    parts.take("uni");
    match written.name.as_str() {
        "bra" => {
            let [Operand::Name(label)] = operands(written)? else { return unsupported(written) };
            Ok(Operation::Branch { target: scope.label(label)? })
        }
        "brx" => {
            if !parts.take("idx") {
                return unsupported(written);
            }
            parts.take("uni");
            let [index, Operand::Name(table)] = operands(written)? else { return unsupported(written) };
            let index = scope.source(index, Type::U32)?;
            Ok(Operation::BranchTable { index, targets: scope.targets(table)? })
        }
        "call" => call(scope, written),
        "ret" => Ok(Operation::Return),
        "exit" => Ok(Operation::Exit),
        "trap" | "brkpt" => Ok(Operation::Trap),
        "bar" | "barrier" => barrier(scope, written, parts),
        _ => {
            while parts.take_map(|_| Some(())).is_some() {}
            Ok(Operation::Nothing)
        }
    }
}

fn call(scope: &mut Scope<'_>, written: &Instruction) -> Result<Operation> {
    let (results, name, arguments): (&[Operand], _, &[Operand]) = match written.operands.as_slice() {
        [Operand::Name(name)] => (&[], name, &[]),
        [Operand::Name(name), Operand::Group(arguments)] => (&[], name, arguments),
        [Operand::Group(results), Operand::Name(name)] => (results, name, &[]),
        [Operand::Group(results), Operand::Name(name), Operand::Group(arguments)] => (results, name, arguments),
        _ => return Err("an indirect call".into()),
    };
    let arguments = arguments.iter().map(|operand| scope.frame_variable(operand)).collect::<Result<Vec<_>>>()?;
    let results = results.iter().map(|operand| scope.frame_variable(operand)).collect::<Result<Vec<_>>>()?;
    let builtin = match name.as_str() {
        "vprintf" => Some(Builtin::Print),
        "__assertfail" => Some(Builtin::AssertFail),
        _ => None,
    };
    if let Some(builtin) = builtin {
        return Ok(Operation::CallBuiltin { builtin, arguments, results });
    }
    Ok(Operation::Call { function: scope.function(name)?, arguments, results })
}

fn barrier(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    if written.name == "bar" && parts.take("warp") {
        if !parts.take("sync") {
            return unsupported(written);
        }
        let [mask] = operands(written)?;
        return Ok(Operation::WarpBarrier { mask: scope.source(mask, Type::B32)? });
    }
    parts.take("cta");
    let aligned = parts.take("aligned") || written.name == "bar";
    let Some(action) = parts.take_any(&["sync", "arrive", "red"]) else { return unsupported(written) };
    let all = written.operands.as_slice();
    let (barrier, threads, reduction) = if action == "red" {
        let Some(operation) = parts.take_any(&["popc", "and", "or"]) else { return unsupported(written) };
        parts.kind()?;
        let (destination, barrier, threads, condition) = match all {
            [destination, barrier, condition] => (destination, barrier, None, condition),
            [destination, barrier, threads, condition] => (destination, barrier, Some(threads), condition),
            _ => return unsupported(written),
        };
        let reduction = match operation {
            "popc" => BarrierReduction::PopulationCount(scope.register(destination)?),
            "and" => BarrierReduction::And(scope.predicate(destination)?),
            _ => BarrierReduction::Or(scope.predicate(destination)?),
        };
        (barrier, threads, Some((reduction, scope.condition(condition)?)))
    } else {
        match all {
            [barrier] if action == "sync" => (barrier, None, None),
            [barrier, threads] => (barrier, Some(threads), None),
            _ => return unsupported(written),
        }
    };
    let threads = threads.map(|threads| scope.source(threads, Type::U32)).transpose()?;
    let barrier = scope.source(barrier, Type::U32)?;
    Ok(Operation::Barrier { arrive: action == "arrive", aligned, barrier, threads, reduction })
}
