//! `mov` and address conversion.

use super::{Parts, Result, mask, operands, unary, unsupported};
use crate::program::build::{Place, Scope};
use crate::program::{Logic, Memory, Operation};
use crate::ptx::syntax::{Instruction, Operand};
use crate::ptx::types::{Space, Type};

pub(super) fn decode(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    match written.name.as_str() {
        "mov" => mov(scope, written, parts),
        "cvta" => {
            let to_space = parts.take("to");
            let Some(memory) = parts.take_map(Space::parse).map(memory_of) else { return unsupported(written) };
            let kind = parts.kind()?;
            let [destination, a] = operands(written)?;
            let destination = scope.register(destination)?;
            if let Some(Place::Frame(offset)) = scope.place(a) {
                return Ok(Operation::FrameAddress { destination, offset, generic: !to_space });
            }
            let source = scope.source(a, kind)?;
            Ok(Operation::ConvertAddress { destination, source, memory, to_generic: !to_space })
        }
        _ => {
            // Without clusters a block's own shared memory is all there is.
            let space = if parts.take("shared::cluster") { Some(Space::Shared) } else { parts.take_map(Space::parse) };
            let Some(memory) = space.map(memory_of) else { return unsupported(written) };
            let [destination, a] = operands(written)?;
            let source = scope.source(a, Type::B64)?;
            Ok(Operation::IsSpace { destination: scope.predicate(destination)?, source, memory })
        }
    }
}

/// Where a space's accesses go.
pub(super) fn memory_of(space: Space) -> Memory {
    match space {
        Space::Global | Space::Constant => Memory::Global,
        Space::Shared => Memory::Shared,
        Space::Local => Memory::Local,
        Space::Param => Memory::Parameters,
    }
}

fn mov(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let kind = parts.kind()?;
    let [destination, source] = operands(written)?;
    if kind == Type::Pred {
        let condition = scope.condition(source)?;
        return Ok(Operation::PredicateLogic {
            destination: scope.predicate(destination)?,
            logic: Logic::And,
            sources: [condition, condition],
            negate: false,
        });
    }
    let bits = kind.bits();
    match (destination, source) {
        (Operand::Vector(parts), source) => {
            let width = bits / parts.len().max(1) as u32;
            let source = scope.source(source, kind)?;
            let destinations = parts.iter().map(|part| scope.optional_register(part)).collect::<Result<_>>()?;
            Ok(Operation::Unpack { destinations, source, bits: width })
        }
        (destination, Operand::Vector(parts)) => {
            let width = bits / parts.len().max(1) as u32;
            let part_type = match width {
                8 => Type::B8,
                16 => Type::B16,
                32 => Type::B32,
                _ => return unsupported(written),
            };
            let sources = parts.iter().map(|part| scope.source(part, part_type)).collect::<Result<_>>()?;
            Ok(Operation::Pack { destination: scope.register(destination)?, sources, bits: width })
        }
        (destination, Operand::Name(name))
            if matches!(name.as_str(), "%clock" | "%clock64" | "%globaltimer" | "%globaltimer_lo") =>
        {
            Ok(Operation::Clock { destination: scope.register(destination)?, bits })
        }
        (destination, source) => {
            let destination = scope.register(destination)?;
            if let Some(Place::Frame(offset)) = scope.place(source) {
                return Ok(Operation::FrameAddress { destination, offset, generic: false });
            }
            let source = scope.source(source, kind)?;
            Ok(Operation::Unary { destination, source, compute: unary(move |a| a & mask(bits)) })
        }
    }
}
