//! `cp.async.bulk` and its groups.

use super::{Parts, Result, operands, unsupported};
use crate::program::build::Scope;
use crate::program::{BulkCopy, BulkGlobal, Operation};
use crate::ptx::syntax::{Instruction, Operand};
use crate::ptx::types::Type;

const SPACES: [&str; 4] = ["global", "shared::cluster", "shared::cta", "shared"];
const RANKS: [&str; 5] = ["1d", "2d", "3d", "4d", "5d"];

pub(super) fn decode(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    if !parts.take("async") || !parts.take("bulk") {
        return unsupported(written);
    }
    if parts.take("commit_group") {
        let [] = operands(written)?;
        return Ok(Operation::BulkCommit);
    }
    if parts.take("wait_group") {
        let read = parts.take("read");
        let [Operand::Integer(groups)] = operands(written)? else { return unsupported(written) };
        return Ok(Operation::BulkWait { groups: *groups as u32, read });
    }
    // A hint to the cache: nothing to do, nothing to check.
    if parts.take("prefetch") {
        while parts.take_map(|_| Some(())).is_some() {}
        return Ok(Operation::Nothing);
    }
    let rank = if parts.take("tensor") {
        let Some(rank) = parts.take_any(&RANKS) else { return unsupported(written) };
        parts.take("tile");
        RANKS.iter().position(|name| *name == rank).map(|at| at + 1)
    } else {
        None
    };
    let (to, from) = (parts.take_any(&SPACES), parts.take_any(&SPACES));
    let loads = match (to, from) {
        (Some("shared::cluster" | "shared::cta"), Some("global")) => true,
        (Some("global"), Some("shared::cta")) => false,
        _ => return unsupported(written),
    };
    if !parts.take(if loads { "mbarrier::complete_tx::bytes" } else { "bulk_group" }) {
        return unsupported(written);
    }
    // The policy is one operand more.
    let policies = usize::from(parts.take("L2::cache_hint"));
    let Some(count) = written.operands.len().checked_sub(policies) else { return unsupported(written) };
    let (shared, global, bytes, mbarrier) = match (rank.is_some(), loads, &written.operands[..count]) {
        (true, true, [to, from, mbarrier]) => (to, from, None, Some(mbarrier)),
        (true, false, [to, from]) => (from, to, None, None),
        (false, true, [to, from, bytes, mbarrier]) => (to, from, Some(bytes), Some(mbarrier)),
        (false, false, [to, from, bytes]) => (from, to, Some(bytes), None),
        _ => return unsupported(written),
    };
    let global = match (rank, global) {
        (None, address) => {
            let Some(bytes) = bytes else { return unsupported(written) };
            BulkGlobal::Bytes { address: scope.address(address)?, bytes: scope.source(bytes, Type::U32)? }
        }
        (Some(rank), Operand::Tensor(map, coordinates)) => {
            let Operand::Vector(coordinates) = coordinates.as_ref() else { return unsupported(written) };
            if coordinates.len() != rank {
                return Err(format!("{} has {} coordinates", written.opcode(), coordinates.len()));
            }
            let map = scope.address(map)?;
            let coordinates = coordinates.iter().map(|one| scope.source(one, Type::S32)).collect::<Result<_>>()?;
            BulkGlobal::Tensor { map, coordinates }
        }
        _ => return unsupported(written),
    };
    let mbarrier = mbarrier.map(|mbarrier| scope.address(mbarrier)).transpose()?;
    Ok(Operation::BulkCopy(Box::new(BulkCopy { shared: scope.address(shared)?, global, mbarrier })))
}
