//! Loads, stores, atomic operations, asynchronous copies and fences.

use super::float::{f32_bits, f32_of};
use super::movement::memory_of;
use super::{Parts, Result, mask, operands, sign_extend, unary, unsupported};
use crate::float::{self, BF16, F16, Format, Rounding, flush};
use crate::program::build::Scope;
use crate::program::{Arrival, Base, Element, Memory, Operation, Strength, Update};
use crate::ptx::syntax::{Instruction, Operand};
use crate::ptx::types::{Space, Type};
use std::sync::Arc;

pub(super) fn decode(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    match written.name.as_str() {
        "ld" | "ldu" => load(scope, written, parts),
        "st" => store(scope, written, parts),
        "atom" | "red" => atomic(scope, written, parts),
        "cp" => copy_async(scope, written, parts),
        "fence" if parts.take("proxy") => {
            // Tensor maps are read when a copy starts, so what their fences order is in order here.
            let proxies = ["async", "async::generic", "alias", "tensormap::generic", "generic::tensormap"];
            let Some(proxy) = parts.take_any(&proxies) else { return unsupported(written) };
            let spaces = ["shared::cta", "shared::cluster", "global"];
            let restricted = ["sync_restrict::shared::cta", "sync_restrict::shared::cluster"];
            let space = parts.take_any(&spaces).or_else(|| parts.take_any(&restricted));
            while parts.take_any(&["acquire", "release", "cta", "cluster", "gpu", "sys"]).is_some() {}
            let (shared, global) = (space != Some("global"), space.is_none_or(|space| space == "global"));
            Ok(if proxy.starts_with("async") { Operation::ProxyFence { shared, global } } else { Operation::Fence })
        }
        "fence" if parts.take("mbarrier_init") => {
            if !parts.take("release") || !parts.take("cluster") {
                return unsupported(written);
            }
            Ok(Operation::Fence)
        }
        "membar" | "fence" => {
            while parts
                .take_any(&["cta", "gl", "sys", "gpu", "cluster", "sc", "acq_rel", "acquire", "release"])
                .is_some()
            {}
            Ok(Operation::Fence)
        }
        // A policy for the caches is opaque: one value for all.
        "createpolicy" => {
            while parts.take_map(|_| Some(())).is_some() {}
            let Some(destination) = written.operands.first() else { return unsupported(written) };
            let (destination, source) = (scope.register(destination)?, scope.constant(0));
            Ok(Operation::Unary { destination, source, compute: unary(|value| value) })
        }
        // Hints to the caches: nothing to do, nothing to check.
        _ => {
            while parts.take_map(|_| Some(())).is_some() {}
            Ok(Operation::Nothing)
        }
    }
}

/// Takes what says how caches should behave; returns the access's strength.
pub(super) fn hints(parts: &mut Parts<'_>) -> Strength {
    let mut strength = Strength::Weak;
    loop {
        let found = parts.take_map(|part| match part {
            "weak" | "ca" | "cg" | "cs" | "lu" | "wb" | "wt" | "nc" | "unified" | "noftz" => Some(Strength::Weak),
            "cta" | "cluster" | "gpu" | "sys" => Some(Strength::Weak),
            "volatile" | "relaxed" | "cv" | "mmio" => Some(Strength::Relaxed),
            "acquire" | "release" | "acq_rel" => Some(Strength::Ordered),
            hint if hint.starts_with("L1::") || hint.starts_with("L2::") => Some(Strength::Weak),
            _ => None,
        });
        match found {
            None => return strength,
            Some(Strength::Weak) => {}
            Some(strong) => strength = strong,
        }
    }
}

fn lanes_of(parts: &mut Parts<'_>) -> usize {
    parts.take_any(&["v2", "v4", "v8"]).map_or(1, |part| part[1..].parse().expect("one of the three parts above"))
}

/// The memory that an operand's space and place lead to.
pub(super) fn memory(scope: &Scope<'_>, space: Option<Space>, base: Base) -> Memory {
    match space.map(memory_of) {
        None => Memory::Generic,
        // Parameters of device functions live in their frame.
        Some(Memory::Parameters) if base == Base::Frame || !scope.is_entry() => Memory::Local,
        Some(memory) => memory,
    }
}

fn members(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::Vector(members) => members,
        single => std::slice::from_ref(single),
    }
}

fn load(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let strength = hints(parts);
    let space = parts.take_map(Space::parse);
    let count = lanes_of(parts);
    let kind = parts.kind()?;
    // A third operand is a cache policy.
    let [destination, address, ..] = written.operands.as_slice() else { return unsupported(written) };
    let members = members(destination);
    if members.len() != count || kind == Type::Pred || kind.bits() > 64 {
        return unsupported(written);
    }
    let address = scope.address(address)?;
    let mut extend_to = 0;
    let mut destinations = Vec::with_capacity(count);
    for member in members {
        if *member == Operand::Sink {
            destinations.push(None);
            continue;
        }
        let (register, register_type) = scope.typed_register(member)?;
        if register_type.bits() < kind.bits() {
            return Err(format!("{} into a register of {} bits", written.opcode(), register_type.bits()));
        }
        if kind.is_signed() {
            extend_to = register_type.bits();
        }
        destinations.push(Some(register));
    }
    let element = Element { bytes: kind.bytes(), extend_to };
    Ok(Operation::Load { memory: memory(scope, space, address.base), address, destinations, element, strength })
}

fn store(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let strength = hints(parts);
    let space = parts.take_map(Space::parse);
    let count = lanes_of(parts);
    let kind = parts.kind()?;
    let [address, value, ..] = written.operands.as_slice() else { return unsupported(written) };
    let members = members(value);
    if members.len() != count || kind == Type::Pred || kind.bits() > 64 {
        return unsupported(written);
    }
    let address = scope.address(address)?;
    let sources = members.iter().map(|member| scope.source(member, kind)).collect::<Result<_>>()?;
    let memory = memory(scope, space, address.base);
    if memory == Memory::Parameters {
        return Err("a store to the kernel's own parameters".into());
    }
    Ok(Operation::Store { memory, address, sources, bytes: kind.bytes(), strength })
}

fn atomic(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    // Without a word an atomic operation is relaxed.
    let strength = match hints(parts) {
        Strength::Weak => Strength::Relaxed,
        strong => strong,
    };
    let space = parts.take_map(Space::parse);
    let Some(name) = parts.take_any(&["and", "or", "xor", "cas", "exch", "add", "inc", "dec", "min", "max"]) else {
        return unsupported(written);
    };
    let kind = parts.kind()?;
    let Some(update) = update(name, kind) else { return unsupported(written) };
    let updates = match (name, kind) {
        // Device memory adds without subnormal numbers.
        ("add", Type::F32) => {
            let number = |bits| flush(f32_of(bits));
            [Arc::new(move |old, operand, _| f32_bits(flush(number(old) + number(operand)))), update]
        }
        _ => [update.clone(), update],
    };
    let (destination, rest) = if written.name == "atom" {
        let Some((destination, rest)) = written.operands.split_first() else { return unsupported(written) };
        (scope.optional_register(destination)?, rest)
    } else {
        (None, written.operands.as_slice())
    };
    let (address, operand, second) = match (rest, name) {
        ([address, operand, second, ..], "cas") => (address, operand, Some(scope.source(second, kind)?)),
        ([address, operand, ..], _) if name != "cas" => (address, operand, None),
        _ => return unsupported(written),
    };
    let operand = scope.source(operand, kind)?;
    let address = scope.address(address)?;
    let memory = memory(scope, space, address.base);
    Ok(Operation::Atomic { memory, address, destination, operand, second, bytes: kind.bytes(), strength, updates })
}

fn update(name: &str, kind: Type) -> Option<Update> {
    let bits = kind.bits();
    if !(16..=64).contains(&bits) {
        return None;
    }
    let half = match kind {
        Type::F16 | Type::F16x2 => Some(F16),
        Type::BF16 | Type::BF16x2 => Some(BF16),
        _ => None,
    };
    Some(match (name, kind) {
        ("add", Type::F32) => Arc::new(|old, operand, _| f32_bits(f32_of(old) + f32_of(operand))),
        ("add", Type::F64) => Arc::new(|old, operand, _| (f64::from_bits(old) + f64::from_bits(operand)).to_bits()),
        (_, _) if half.is_some() => {
            let format = half?;
            let one: fn(Format, u64, u64) -> u64 = match name {
                "add" => |format, a, b| {
                    let sum = float::add(Rounding::Nearest, format.widen(a), format.widen(b));
                    format.narrow(sum, Rounding::Nearest)
                },
                _ => return None,
            };
            Arc::new(move |old, operand, _| {
                (0..bits / 16)
                    .map(|half| {
                        one(format, old >> (16 * half) & 0xffff, operand >> (16 * half) & 0xffff) << (16 * half)
                    })
                    .sum()
            })
        }
        ("exch", _) => Arc::new(|_, operand, _| operand),
        ("cas", _) => Arc::new(|old, operand, second| if old == operand { second } else { old }),
        (_, kind) if kind.is_float() => return None,
        ("add", _) => Arc::new(move |old, operand, _| old.wrapping_add(operand) & mask(bits)),
        ("and", _) => Arc::new(|old, operand, _| old & operand),
        ("or", _) => Arc::new(|old, operand, _| old | operand),
        ("xor", _) => Arc::new(|old, operand, _| old ^ operand),
        ("inc", _) => Arc::new(|old, operand, _| if old >= operand { 0 } else { old + 1 }),
        ("dec", _) => Arc::new(|old, operand, _| if old == 0 || old > operand { operand } else { old - 1 }),
        ("min" | "max", _) => {
            let (largest, signed) = (name == "max", kind.is_signed());
            Arc::new(move |old, operand, _| {
                let greater = if signed { sign_extend(old, bits) > sign_extend(operand, bits) } else { old > operand };
                if greater == largest { old } else { operand }
            })
        }
        _ => return None,
    })
}

fn copy_async(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    if !parts.take("async") {
        return unsupported(written);
    }
    if parts.take("commit_group") {
        return Ok(Operation::CommitGroup);
    }
    if parts.take("wait_all") {
        return Ok(Operation::WaitGroup(None));
    }
    if parts.take("wait_group") {
        let [Operand::Integer(groups)] = operands(written)? else { return unsupported(written) };
        return Ok(Operation::WaitGroup(Some(*groups as u32)));
    }
    if parts.take("mbarrier") {
        let expected = parts.take("noinc");
        let space = parts.take_map(Space::parse);
        if !parts.take("arrive") || parts.kind()? != Type::B64 || space.is_some_and(|space| space != Space::Shared) {
            return unsupported(written);
        }
        let [at] = operands(written)?;
        let address = scope.address(at)?;
        let arrivals = expected.then(|| scope.constant(1));
        return Ok(Operation::MbarrierArrive(Box::new(Arrival {
            memory: memory(scope, space, address.base),
            address,
            state: None,
            // Otherwise the phase is made to expect one more.
            arrivals,
            drop: false,
            expected: None,
            completed: None,
            release: true,
            after_copies: true,
        })));
    }
    let all_levels = parts.take("ca");
    if !all_levels && !parts.take("cg") {
        return unsupported(written);
    }
    hints(parts);
    if parts.take_any(&["shared", "shared::cta"]).is_none() || !parts.take("global") {
        return unsupported(written);
    }
    let (to, from, bytes, rest) = match written.operands.as_slice() {
        [to, from, Operand::Integer(bytes), rest @ ..] => (to, from, *bytes as u32, rest),
        _ => return unsupported(written),
    };
    if !(bytes == 16 || all_levels && matches!(bytes, 4 | 8)) {
        return Err(format!("{} of {bytes} bytes", written.opcode()));
    }
    let (mut source_bytes, mut ignore) = (None, None);
    if let Some(operand) = rest.first() {
        if scope.is_predicate(operand) {
            ignore = Some(scope.condition(operand)?);
        } else if !scope.is_wide(operand) {
            source_bytes = Some(scope.source(operand, Type::U32)?);
        }
    }
    Ok(Operation::CopyAsync { to: scope.address(to)?, from: scope.address(from)?, bytes, source_bytes, ignore })
}
