//! `mbarrier`.

use super::memory::memory;
use super::{Parts, Result, operands, unsupported};
use crate::program::build::Scope;
use crate::program::{Address, Arrival, Memory, Operation, PhaseWait};
use crate::ptx::syntax::{Instruction, Operand};
use crate::ptx::types::{Space, Type};

pub(super) fn decode(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let actions = ["init", "inval", "arrive", "arrive_drop", "test_wait", "try_wait", "pending_count"];
    let action = parts.take_any(&actions);
    let transaction = parts.take_any(&["expect_tx", "complete_tx"]);
    let parity = parts.take("parity");
    let strong = parts.take_any(&["release", "acquire", "relaxed"]) != Some("relaxed");
    parts.take_any(&["cta", "cluster"]);
    // Without clusters every block is its own.
    let space = if parts.take("shared::cluster") { Some(Space::Shared) } else { parts.take_map(Space::parse) };
    let no_complete = parts.take("noComplete");
    if parts.kind()? != Type::B64 || space.is_some_and(|space| space != Space::Shared) || no_complete {
        return unsupported(written);
    }
    if action == Some("pending_count") {
        let [destination, state] = operands(written)?;
        let state = scope.source(state, Type::B64)?;
        return Ok(Operation::MbarrierPending { destination: scope.register(destination)?, state });
    }
    let place = |scope: &mut Scope<'_>, operand: &Operand| -> Result<(Memory, Address)> {
        let address = scope.address(operand)?;
        Ok((memory(scope, space, address.base), address))
    };
    match (action, transaction) {
        (Some("init"), None) => {
            let [at, count] = operands(written)?;
            let (memory, address) = place(scope, at)?;
            Ok(Operation::MbarrierInit { memory, address, count: scope.source(count, Type::U32)? })
        }
        (Some("inval"), None) => {
            let [at] = operands(written)?;
            let (memory, address) = place(scope, at)?;
            Ok(Operation::MbarrierInvalidate { memory, address })
        }
        (Some("test_wait" | "try_wait"), None) => {
            let patient = action == Some("try_wait");
            let (complete, at, phase) = match written.operands.as_slice() {
                [complete, at, phase] => (complete, at, phase),
                // How long to wait at most.
                [complete, at, phase, _] if patient => (complete, at, phase),
                _ => return unsupported(written),
            };
            let (memory, address) = place(scope, at)?;
            let phase = scope.source(phase, if parity { Type::U32 } else { Type::B64 })?;
            let complete = scope.predicate(complete)?;
            Ok(Operation::MbarrierWait(Box::new(PhaseWait {
                memory,
                address,
                complete,
                phase,
                parity,
                patient,
                acquire: strong,
            })))
        }
        (Some("arrive" | "arrive_drop") | None, _) if action.is_some() || transaction.is_some() => {
            let (state, rest) = match written.operands.as_slice() {
                [first @ Operand::Address(..), rest @ ..] => (None, (first, rest)),
                [state, first, rest @ ..] if action.is_some() => (scope.optional_register(state)?, (first, rest)),
                _ => return unsupported(written),
            };
            let (at, rest) = rest;
            let (memory, address) = place(scope, at)?;
            let mut number = |operand: &Operand| scope.source(operand, Type::U32).map(Some);
            let (arrivals, expected, completed) = match (action, transaction, rest) {
                (None, Some("expect_tx"), [bytes]) => (None, number(bytes)?, None),
                (None, Some(_), [bytes]) => (None, None, number(bytes)?),
                (Some(_), Some("expect_tx"), [bytes]) => (number(&Operand::Integer(1))?, number(bytes)?, None),
                (Some(_), None, []) => (number(&Operand::Integer(1))?, None, None),
                (Some(_), None, [count]) => (number(count)?, None, None),
                _ => return unsupported(written),
            };
            Ok(Operation::MbarrierArrive(Box::new(Arrival {
                memory,
                address,
                state,
                arrivals,
                drop: action == Some("arrive_drop"),
                expected,
                completed,
                release: strong && action.is_some(),
                after_copies: false,
            })))
        }
        _ => unsupported(written),
    }
}
