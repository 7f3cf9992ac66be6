//! Loads, stores, atomic operations and asynchronous copies, with everything that is checked about them.

use super::block::{Block, MBARRIER};
use super::clocks::{Agent, Clocks, Proxied};
use super::execute::{Execution, Outcome, lanes, space_of};
use super::memory::Allocation;
use super::shadow::{Action, Conflict, Earlier, Observer, Stamp};
use super::warp::AsyncCopy;
use crate::counts::{GlobalAccess, SharedAccess};
use crate::error::{FaultKind, Problem};
use crate::program::{Address, Base, Condition, Element, Lanes, Memory, Register, Source, Strength, Update, WARP};

/// The widest vector of a load or store.
const MOST: usize = 8;

fn name(memory: Memory) -> &'static str {
    match memory {
        Memory::Generic => "generic",
        Memory::Global => "global",
        Memory::Shared => "shared",
        Memory::Local => "local",
        Memory::Parameters => "parameter",
    }
}

/// What is being done, for messages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Load,
    Store,
    Update,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Store => "store",
            Self::Update => "atomic operation",
        }
    }

    fn action(self) -> Action {
        match self {
            Self::Load => Action::Read,
            Self::Store => Action::Write,
            Self::Update => Action::Update,
        }
    }
}

/// An access by one lane, resolved to its space.
#[derive(Clone, Copy)]
pub(super) struct Access<'a> {
    lane: usize,
    pub memory: Memory,
    /// In its space.
    pub address: u64,
    pub bytes: u32,
    verb: Verb,
    strong: bool,
    /// What holds the address, in device memory.
    allocation: Option<&'a Allocation>,
}

impl Access<'_> {
    fn new(lane: usize, memory: Memory, address: u64, bytes: u32, verb: Verb, strong: bool) -> Self {
        Self { lane, memory, address, bytes, verb, strong, allocation: None }
    }

    /// The same by another lane, elsewhere in what holds the address.
    fn at(self, lane: usize, address: u64) -> Self {
        Self { lane, address, ..self }
    }

    pub fn problem(&self, kind: FaultKind, detail: impl std::fmt::Display) -> Problem {
        let text = format!("{} of {} bytes of {} memory{detail}", self.verb.word(), self.bytes, name(self.memory));
        Problem::new(kind, text).lane(self.lane).address(self.address)
    }
}

impl<'a> Execution<'a, '_> {
    // Instructions -------------------------------------------------------------------------------------------------

    pub fn load(
        &mut self,
        memory: Memory,
        address: &Address,
        destinations: &[Option<Register>],
        element: Element,
        strength: Strength,
        active: u32,
    ) -> Outcome<()> {
        let addresses = self.addresses(address);
        let total = element.bytes * destinations.len() as u32;
        let strong = strength != Strength::Weak;
        let mut values = [[0u64; WARP]; MOST];
        let values = &mut values[..destinations.len()];
        if memory == Memory::Parameters && address.base == Base::Nothing {
            // The same in all lanes.
            let access =
                self.resolve(active.trailing_zeros() as usize, memory, addresses[0], total, Verb::Load, strong)?;
            for (at, value) in values.iter_mut().enumerate() {
                value.fill(self.fetch(&access, at as u32 * element.bytes, element.bytes));
            }
        } else if let Some(any) = self.resolve_together(memory, &addresses, total, Verb::Load, strong, active) {
            if !self.observe_readers(any, &addresses, active) {
                // In order, for the first race.
                for lane in lanes(active) {
                    self.observe(&any.at(lane, addresses[lane]), |_| false)?;
                }
            }
            for lane in lanes(active) {
                let access = any.at(lane, addresses[lane]);
                for (at, value) in values.iter_mut().enumerate() {
                    value[lane] = self.fetch(&access, at as u32 * element.bytes, element.bytes);
                }
            }
            self.count(memory, &addresses, total, Verb::Load, active);
        } else {
            let mut resolved = [(Memory::Global, 0); WARP];
            for lane in lanes(active) {
                let access = self.resolve(lane, memory, addresses[lane], total, Verb::Load, strong)?;
                resolved[lane] = (access.memory, access.address);
                self.observe(&access, |_| false)?;
                for (at, value) in values.iter_mut().enumerate() {
                    value[lane] = self.fetch(&access, at as u32 * element.bytes, element.bytes);
                }
            }
            self.count_each(&resolved, total, Verb::Load, active);
        }
        if strong {
            self.strong_read(strength);
        }
        for (destination, value) in destinations.iter().zip(values) {
            let Some(destination) = destination else { continue };
            if element.extend_to > 8 * element.bytes {
                let shift = 64 - 8 * element.bytes;
                let keep = u64::MAX >> (64 - element.extend_to);
                *value = value.map(|value| (((value << shift) as i64) >> shift) as u64 & keep);
            }
            self.write(*destination, value, active);
        }
        Ok(())
    }

    pub fn store(
        &mut self,
        memory: Memory,
        address: &Address,
        sources: &[Source],
        bytes: u32,
        strength: Strength,
        active: u32,
    ) -> Outcome<()> {
        let addresses = self.addresses(address);
        let total = bytes * sources.len() as u32;
        let mut values = [[0u64; WARP]; MOST];
        for (value, source) in values.iter_mut().zip(sources) {
            *value = *self.source(*source);
        }
        let strong = strength != Strength::Weak;
        if strong {
            self.strong_write(strength);
        }
        let keep = u64::MAX >> (64 - 8 * bytes);
        let mut resolved = [(Memory::Global, 0); WARP];
        let together = self.resolve_together(memory, &addresses, total, Verb::Store, strong, active);
        for lane in lanes(active) {
            let access = match together {
                Some(any) => any.at(lane, addresses[lane]),
                None => self.resolve(lane, memory, addresses[lane], total, Verb::Store, strong)?,
            };
            resolved[lane] = (access.memory, access.address);
            self.observe(&access, |this| this.holds(&access, bytes, sources.len(), |at| values[at][lane] & keep))?;
            for (at, value) in values.iter().take(sources.len()).enumerate() {
                self.put(&access, at as u32 * bytes, bytes, value[lane] & keep);
            }
        }
        self.count_each(&resolved, total, Verb::Store, active);
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "an instruction's operands")]
    pub fn atomic(
        &mut self,
        memory: Memory,
        address: &Address,
        operand: Source,
        second: Option<&Lanes>,
        bytes: u32,
        strength: Strength,
        updates: &[Update; 2],
        active: u32,
    ) -> Outcome<Lanes> {
        let addresses = self.addresses(address);
        let operand = *self.source(operand);
        let keep = u64::MAX >> (64 - 8 * bytes);
        let mut old = [0; WARP];
        let mut resolved = [(Memory::Global, 0); WARP];
        for lane in lanes(active) {
            let access = self.resolve(lane, memory, addresses[lane], bytes, Verb::Update, true)?;
            resolved[lane] = (access.memory, access.address);
            if access.memory == Memory::Global && !self.block.late {
                self.context.wait_for_earlier_blocks(self.block.linear);
                self.block.late = true;
            }
            self.observe(&access, |_| false)?;
            let value = self.fetch(&access, 0, bytes);
            let operand = operand[lane] & keep;
            let second = second.map_or(0, |second| second[lane] & keep);
            let update = &updates[usize::from(access.memory != Memory::Global)];
            self.put(&access, 0, bytes, update(value, operand, second) & keep);
            old[lane] = value;
        }
        self.strong_read(strength);
        self.strong_write(strength);
        self.count_each(&resolved, bytes, Verb::Update, active);
        Ok(old)
    }

    pub fn copy_async(
        &mut self,
        to: &Address,
        from: &Address,
        bytes: u32,
        source_bytes: Option<Source>,
        ignore: Option<Condition>,
        active: u32,
    ) -> Outcome<()> {
        let (to, from) = (self.addresses(to), self.addresses(from));
        let source_bytes = source_bytes.map(|source| *self.source(source));
        let ignored = ignore.map_or(0, |condition| self.condition(condition));
        let mut read = [(Memory::Global, 0); WARP];
        let mut written = [(Memory::Shared, 0); WARP];
        let mut reading = 0;
        for lane in lanes(active) {
            let wanted = match &source_bytes {
                _ if ignored >> lane & 1 == 1 => 0,
                None => bytes,
                Some(source) if source[lane] <= u64::from(bytes) => source[lane] as u32,
                Some(source) => {
                    let detail = format!("cp.async reads {} of {bytes} bytes", source[lane]);
                    return Err(Problem::new(FaultKind::Operand, detail).lane(lane));
                }
            };
            let target = self.resolve(lane, Memory::Shared, to[lane], bytes, Verb::Store, false)?;
            written[lane] = (Memory::Shared, target.address);
            let mut data = [0; 16];
            if !from[lane].is_multiple_of(u64::from(bytes)) {
                let access = Access::new(lane, Memory::Global, from[lane], bytes, Verb::Load, false);
                return Err(access.problem(FaultKind::Misaligned, " by cp.async"));
            }
            let mut at = 0;
            while at < wanted {
                // The part that is read may end anywhere.
                let step = if wanted - at >= 4 { 4 } else { 1 };
                let source = self.resolve(lane, Memory::Global, from[lane] + u64::from(at), step, Verb::Load, false)?;
                self.observe(&source, |_| false)?;
                let value = self.fetch(&source, 0, step);
                data[at as usize..(at + step) as usize].copy_from_slice(&value.to_le_bytes()[..step as usize]);
                at += step;
            }
            if wanted != 0 {
                reading |= 1 << lane;
                read[lane] = (Memory::Global, from[lane]);
            }
            let start = target.address as usize;
            self.block.in_flight[start..start + bytes as usize].fill(self.warp.line);
            let group = self.warp.groups[lane];
            let copy = AsyncCopy { lane: lane as u8, to: target.address, bytes: bytes as u8, data, group };
            self.warp.copies.push(copy);
        }
        self.count_each(&read, bytes, Verb::Load, reading);
        self.count_each(&written, bytes, Verb::Store, active);
        Ok(())
    }

    /// Completes copies of each lane's groups but the last `pending`, or all copies.
    pub fn finish_copies(&mut self, pending: Option<u32>, active: u32) -> Outcome<()> {
        let copies = std::mem::take(&mut self.warp.copies);
        for copy in copies {
            let lane = usize::from(copy.lane);
            let committed = self.warp.groups[lane];
            let done =
                active >> lane & 1 == 1 && pending.is_none_or(|pending| copy.group < committed.saturating_sub(pending));
            if !done {
                self.warp.copies.push(copy);
                continue;
            }
            let start = copy.to as usize;
            self.block.in_flight[start..start + usize::from(copy.bytes)].fill(0);
            let access = Access::new(lane, Memory::Shared, copy.to, u32::from(copy.bytes), Verb::Store, false);
            self.observe(&access, |_| false)?;
            for at in (0..copy.bytes).step_by(4) {
                let word = &copy.data[usize::from(at)..usize::from(at) + 4];
                let value = u32::from_le_bytes(word.try_into().expect("copies are of 4, 8 or 16 bytes"));
                self.put(&access, u32::from(at), 4, u64::from(value));
            }
        }
        Ok(())
    }

    // Order between warps ------------------------------------------------------------------------------------------

    /// What comes before is ordered before later strong writes, and what strong reads saw before what comes after.
    pub fn fence(&mut self) {
        self.warp.released = self.warp.knowledge();
        self.warp.seen.merge(&self.warp.acquired);
        self.warp.advance_clock();
    }

    fn strong_read(&mut self, strength: Strength) {
        self.warp.acquired.merge(&self.block.published);
        let own = self.warp.agent();
        self.warp.acquired[own] = 0;
        if strength == Strength::Ordered {
            self.fence();
        }
    }

    fn strong_write(&mut self, strength: Strength) {
        if strength == Strength::Ordered {
            self.fence();
        }
        self.block.published.merge(&self.warp.released);
    }

    // Lanes together -----------------------------------------------------------------------------------------------

    /// One lane's access, of which those of the others differ by lane and address alone, if [`resolve`](Self::resolve)
    /// would find nothing wrong with any: most accesses are such, and are looked at much faster together.
    fn resolve_together(
        &mut self,
        memory: Memory,
        addresses: &Lanes,
        bytes: u32,
        verb: Verb,
        strong: bool,
        active: u32,
    ) -> Option<Access<'a>> {
        let (mut first, mut last, mut bits) = (u64::MAX, 0, 0);
        for (lane, address) in addresses.iter().enumerate() {
            let runs = active >> lane & 1 == 1;
            first = first.min(if runs { *address } else { u64::MAX });
            last = last.max(if runs { *address } else { 0 });
            bits |= if runs { *address } else { 0 };
        }
        if bits & u64::from(bytes - 1) != 0 || !bytes.is_power_of_two() {
            return None;
        }
        let end = last.checked_add(u64::from(bytes))?;
        let mut any = Access::new(active.trailing_zeros() as usize, memory, first, bytes, verb, strong);
        let is_fine = match memory {
            Memory::Global => {
                let held = |allocation: &&Allocation| allocation.contains(first, end - first);
                let allocation = match self.last.filter(held) {
                    Some(allocation) => allocation,
                    None => self.context.memory.find(first).filter(held)?,
                };
                self.last = Some(allocation);
                any.allocation = Some(allocation);
                let step = bytes.min(8);
                match verb {
                    Verb::Load => lanes(active).all(|lane| {
                        let offset = addresses[lane] - allocation.address;
                        (0..bytes)
                            .step_by(step as usize)
                            .all(|at| allocation.first_invalid(offset + u64::from(at), step).is_none())
                    }),
                    Verb::Store => !allocation.constant,
                    Verb::Update => false,
                }
            }
            Memory::Shared => {
                let is_outside = self.context.outside_shared(first, end).is_some();
                let is_fine = |lane: usize| {
                    let range = addresses[lane] as usize..addresses[lane] as usize + bytes as usize;
                    let is_still = self.block.in_flight[range.clone()].iter().fold(0, |all, line| all | line) == 0;
                    let is_valid = || self.block.shared_valid[range].iter().fold(true, |all, valid| all & valid);
                    is_still && (verb == Verb::Store || is_valid())
                };
                !is_outside && lanes(active).all(is_fine)
            }
            _ => false,
        };
        is_fine.then_some(any)
    }

    // One lane -----------------------------------------------------------------------------------------------------

    /// Finds the space and what holds the address; checks alignment, bounds, lifetime, and that a load finds
    /// something written.
    pub fn resolve(
        &mut self,
        lane: usize,
        memory: Memory,
        address: u64,
        bytes: u32,
        verb: Verb,
        strong: bool,
    ) -> Outcome<Access<'a>> {
        let (memory, address) = match memory {
            Memory::Generic => space_of(address),
            memory => (memory, address),
        };
        let mut access = Access::new(lane, memory, address, bytes, verb, strong);
        if !address.is_multiple_of(u64::from(bytes)) {
            return Err(access.problem(FaultKind::Misaligned, ""));
        }
        let end = address.saturating_add(u64::from(bytes));
        let reads = verb != Verb::Store;
        match memory {
            Memory::Global | Memory::Generic => {
                let allocation = self.allocation(&access)?;
                access.allocation = Some(allocation);
                if !reads {
                    if allocation.constant {
                        return Err(access.problem(FaultKind::ReadOnly, ""));
                    }
                    return Ok(access);
                }
                let offset = address - allocation.address;
                let step = bytes.min(8);
                for at in (0..bytes).step_by(step as usize) {
                    if let Some(first) = allocation.first_invalid(offset + u64::from(at), step) {
                        return Err(access.problem(FaultKind::Uninitialised, format!(": byte {} of them", at + first)));
                    }
                }
            }
            Memory::Shared => {
                if let Some(detail) = self.context.outside_shared(address, end) {
                    return Err(access.problem(FaultKind::OutOfBounds, detail));
                }
                let range = address as usize..end as usize;
                if let Some(line) = self.block.in_flight[range.clone()].iter().find(|line| **line != 0) {
                    if *line == MBARRIER {
                        return Err(access.problem(FaultKind::Mbarrier, ", which holds an mbarrier"));
                    }
                    let detail = format!(", to which the copy of line {line} is under way");
                    return Err(access.problem(FaultKind::AsyncCopy, detail));
                }
                if reads && let Some(first) = self.block.shared_valid[range].iter().position(|valid| !valid) {
                    return Err(access.problem(FaultKind::Uninitialised, format!(": byte {first} of them")));
                }
            }
            Memory::Local => {
                let local = &self.warp.locals[access.lane];
                if end > local.data.len() as u64 {
                    let detail = format!(": the thread has {} bytes", local.data.len());
                    return Err(access.problem(FaultKind::OutOfBounds, detail));
                }
                // Compilers copy structures with their padding, which nothing wrote: byte by byte, or in words of
                // which something is written. Without optimisation they also read a word to set some bits of it.
                if reads
                    && bytes > 1
                    && !self.context.program.debug
                    && !local.valid[address as usize..end as usize].contains(&true)
                {
                    return Err(access.problem(FaultKind::Uninitialised, ""));
                }
            }
            Memory::Parameters => {
                if !reads {
                    return Err(access.problem(FaultKind::ReadOnly, ""));
                }
                if end > self.context.parameters.len() as u64 {
                    let detail = format!(": the kernel has {} bytes", self.context.parameters.len());
                    return Err(access.problem(FaultKind::OutOfBounds, detail));
                }
            }
        }
        Ok(access)
    }

    /// The allocation that holds a whole access. Accesses mostly go where the last one went.
    fn allocation(&mut self, access: &Access<'_>) -> Outcome<&'a Allocation> {
        let (address, bytes) = (access.address, u64::from(access.bytes));
        if let Some(last) = self.last.filter(|last| last.contains(address, bytes)) {
            return Ok(last);
        }
        let memory = self.context.memory;
        if let Some(found) = memory.find(address).filter(|found| found.contains(address, bytes)) {
            self.last = Some(found);
            return Ok(found);
        }
        if memory.was_freed(address) {
            return Err(access.problem(FaultKind::UseAfterFree, ""));
        }
        let near = match memory.before(address) {
            Some(before) => format!(
                ": {} bytes past the end of the {} bytes allocated at {:#x}",
                address.saturating_add(bytes) - before.address - before.bytes,
                before.bytes,
                before.address
            ),
            None => ": no allocation is near".to_owned(),
        };
        Err(access.problem(FaultKind::OutOfBounds, near))
    }

    /// Records the access and finds the race, if it is one. A store that leaves memory as it is may meet another.
    fn observe(&mut self, access: &Access<'_>, unchanged: impl Fn(&Self) -> bool) -> Outcome<()> {
        if !matches!(access.memory, Memory::Global | Memory::Shared) {
            return Ok(());
        }
        let recorded = self.record(access, None, false);
        let Err(conflict) = recorded else { return Ok(()) };
        if conflict.earlier == Earlier::Write
            && access.verb == Verb::Store
            && unchanged(self)
            && self.record(access, None, true).is_ok()
        {
            return Ok(());
        }
        Err(self.conflict(access, conflict))
    }

    /// Records reads by all lanes that are like `any`; whether they are free of races. Of those that read the same, two
    /// are enough to find every race.
    fn observe_readers(&mut self, any: Access<'a>, addresses: &Lanes, active: u32) -> bool {
        // By address: the first lane that reads there, and the next, unless it is the same.
        let mut readers = [(0u64, u8::MAX, u8::MAX); WARP];
        let mut is_free = true;
        let mut record = |(address, lane, beside): (u64, u8, u8)| {
            let beside = (lane != beside).then_some(usize::from(beside));
            is_free &= self.record(&any.at(usize::from(lane), address), beside, false).is_ok();
        };
        for lane in lanes(active) {
            let (address, number) = (addresses[lane], lane as u8);
            let reader = &mut readers[(address >> any.bytes.trailing_zeros()) as usize % WARP];
            match *reader {
                (_, u8::MAX, _) => *reader = (address, number, number),
                (at, first, next) if at == address => {
                    if first == next {
                        reader.2 = number;
                    }
                }
                _ => record(std::mem::replace(reader, (address, number, number))),
            }
        }
        for reader in readers {
            if reader.1 != u8::MAX {
                record(reader);
            }
        }
        is_free
    }

    /// Records the access, and that of a lane `beside` that reads the same.
    fn record(&mut self, access: &Access<'_>, beside: Option<usize>, unchanged: bool) -> Result<(), Conflict> {
        // A warp that has met a million barriers is no longer looked at.
        let clock = self.warp.clock().min(Stamp::LAST_CLOCK);
        let stamp = |lane: usize| Stamp::new(self.warp.index * 32 + lane as u32, clock, access.strong);
        let by = Observer {
            stamp: stamp(access.lane),
            beside: beside.map(stamp),
            seen: &self.warp.seen,
            line: self.warp.line,
            late: self.block.late,
            proxy: None,
        };
        self.block.record(access, &by, unchanged)
    }

    /// Records an access by a copy that this warp starts, which knows `seen` and ends at `clock` of `agent`.
    pub fn observe_copy(&mut self, access: &Access<'_>, agent: Agent, clock: u32, seen: &Clocks) -> Outcome<()> {
        let by = Observer {
            stamp: Stamp::new(agent.thread(), clock.min(Stamp::LAST_CLOCK), false),
            beside: None,
            seen,
            line: self.warp.line,
            late: self.block.late,
            proxy: Some(if access.memory == Memory::Shared { Proxied::Shared } else { Proxied::Global }),
        };
        self.block.record(access, &by, false).map_err(|conflict| self.conflict(access, conflict))
    }

    fn conflict(&self, access: &Access<'_>, Conflict { thread, earlier }: Conflict) -> Problem {
        let (kind, detail) = describe(thread, earlier, &|thread| self.context.thread(thread));
        access.problem(kind, detail)
    }

    /// The value of part of an access that has been resolved.
    pub fn fetch(&self, access: &Access<'_>, offset: u32, bytes: u32) -> u64 {
        let address = access.address + u64::from(offset);
        if let Some(allocation) = access.allocation {
            return allocation.load(address - allocation.address, bytes);
        }
        let slice = match access.memory {
            Memory::Shared => &self.block.shared,
            Memory::Local => &self.warp.locals[access.lane].data,
            _ => self.context.parameters,
        };
        little_endian(&slice[address as usize..(address + u64::from(bytes)) as usize])
    }

    pub fn put(&mut self, access: &Access<'_>, offset: u32, bytes: u32, value: u64) {
        let address = access.address + u64::from(offset);
        if let Some(allocation) = access.allocation {
            allocation.store(address - allocation.address, bytes, value);
            return;
        }
        let (data, valid) = match access.memory {
            Memory::Local => {
                let local = &mut self.warp.locals[access.lane];
                (&mut local.data, &mut local.valid)
            }
            _ => (&mut self.block.shared, &mut self.block.shared_valid),
        };
        let range = address as usize..(address + u64::from(bytes)) as usize;
        data[range.clone()].copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
        valid[range].fill(true);
    }

    /// Whether shared or global memory already holds what a store would put there.
    fn holds(&self, access: &Access<'_>, bytes: u32, count: usize, value: impl Fn(usize) -> u64) -> bool {
        let valid = match access.memory {
            Memory::Shared => {
                let start = access.address as usize;
                self.block.shared_valid[start..start + access.bytes as usize].iter().all(|valid| *valid)
            }
            Memory::Global => true,
            _ => return false,
        };
        valid && (0..count).all(|at| self.fetch(access, at as u32 * bytes, bytes) == value(at))
    }

    /// The place in shared memory of a matrix's row, checked as the access it is.
    pub fn row(&mut self, lane: usize, memory: Memory, address: u64, bytes: u32, stores: bool) -> Outcome<u64> {
        let verb = if stores { Verb::Store } else { Verb::Load };
        let access = self.resolve(lane, memory, address, bytes, verb, false)?;
        if access.memory != Memory::Shared {
            return Err(access.problem(FaultKind::OutOfBounds, ": rows of a matrix are in shared memory"));
        }
        self.observe(&access, |_| false)?;
        Ok(access.address)
    }

    // Counting -----------------------------------------------------------------------------------------------------

    /// Counts an access to one memory by each lane.
    fn count(&mut self, memory: Memory, addresses: &Lanes, bytes: u32, verb: Verb, active: u32) {
        let mut compact = [0; WARP];
        let mut count = 0;
        for lane in lanes(active) {
            compact[count] = addresses[lane];
            count += 1;
        }
        self.count_in(memory, &mut compact[..count], bytes, verb);
    }

    /// Counts accesses by lanes to different memories.
    fn count_each(&mut self, resolved: &[(Memory, u64); WARP], bytes: u32, verb: Verb, active: u32) {
        if active == 0 {
            return;
        }
        let mut global = [0; WARP];
        let mut shared = [0; WARP];
        let (mut globals, mut shareds, mut locals) = (0, 0, 0);
        for lane in lanes(active) {
            let (memory, address) = resolved[lane];
            match memory {
                Memory::Global | Memory::Generic => {
                    global[globals] = address;
                    globals += 1;
                }
                Memory::Shared => {
                    shared[shareds] = address;
                    shareds += 1;
                }
                Memory::Local => locals += 1,
                Memory::Parameters => {}
            }
        }
        self.block.counts.local_bytes += locals * u64::from(bytes);
        self.count_in(Memory::Global, &mut global[..globals], bytes, verb);
        self.count_in(Memory::Shared, &mut shared[..shareds], bytes, verb);
    }

    fn count_in(&mut self, memory: Memory, addresses: &mut [u64], bytes: u32, verb: Verb) {
        if addresses.is_empty() {
            return;
        }
        let counts = &mut self.block.counts;
        if memory == Memory::Shared {
            let target = match verb {
                Verb::Load => &mut counts.shared_loads,
                Verb::Store => &mut counts.shared_stores,
                Verb::Update => &mut counts.shared_atomics,
            };
            count_shared(target, addresses, bytes);
        } else {
            let target = match verb {
                Verb::Load => &mut counts.global_loads,
                Verb::Store => &mut counts.global_stores,
                Verb::Update => &mut counts.global_atomics,
            };
            count_global(target, addresses, bytes);
        }
    }

    /// Counts a matrix of rows of 16 bytes moved to or from shared memory.
    pub fn count_rows(&mut self, rows: &[u64], stores: bool) {
        let counts = &mut self.block.counts;
        let target = if stores { &mut counts.shared_stores } else { &mut counts.shared_loads };
        count_shared(target, rows, 16);
    }
}

impl Block {
    fn record(&mut self, access: &Access<'_>, by: &Observer<'_>, unchanged: bool) -> Result<(), Conflict> {
        let shadow = match access.memory {
            Memory::Shared => &mut self.shared_shadow,
            _ => &mut self.global_shadow,
        };
        if access.bytes <= 16 {
            return shadow.access(access.address, access.bytes, access.verb.action(), by, unchanged);
        }
        // A vector is recorded in parts of at most 16 bytes, none of which leaves its page.
        for at in (0..access.bytes).step_by(16) {
            let bytes = (access.bytes - at).min(16);
            shadow.access(access.address + u64::from(at), bytes, access.verb.action(), by, unchanged)?;
        }
        Ok(())
    }
}

/// What is wrong with an access after an earlier one by `thread`.
pub(super) fn describe(thread: u32, earlier: Earlier, coordinates: &dyn Fn(u32) -> [u32; 3]) -> (FaultKind, String) {
    match (earlier, Agent::of_thread(thread).words()) {
        (Earlier::Write, Some(words)) => {
            (FaultKind::AsyncCopy, format!(", which {words} writes that nothing here has waited for"))
        }
        (_, Some(words)) => {
            (FaultKind::AsyncRead, format!(", which {words} may still read: nothing here has waited for it"))
        }
        (Earlier::Unfenced, None) => {
            let other = coordinates(thread);
            let detail = format!(", which thread {other:?} wrote, with no fence.proxy.async since");
            (FaultKind::MissingFence, detail)
        }
        (_, None) => {
            let what = if earlier == Earlier::Write { "wrote" } else { "read" };
            let other = coordinates(thread);
            (FaultKind::Race, format!(", which thread {other:?} {what} with no barrier in between"))
        }
    }
}

/// Sorts only where lanes are not in order already.
fn count_global(target: &mut GlobalAccess, addresses: &mut [u64], bytes: u32) {
    target.requests += 1;
    target.bytes += addresses.len() as u64 * u64::from(bytes);
    if !addresses.is_sorted() {
        addresses.sort_unstable();
    }
    let (mut sectors, mut distinct) = (0, 0u64);
    let (mut last_sector, mut covered) = (None, 0);
    for address in addresses.iter() {
        let end = address + u64::from(bytes);
        distinct += end - (*address).max(covered).min(end);
        covered = covered.max(end);
        for sector in address / 32..=(end - 1) / 32 {
            if last_sector.is_none_or(|last| sector > last) {
                sectors += 1;
                last_sector = Some(sector);
            }
        }
    }
    target.sectors += sectors;
    target.ideal_sectors += distinct.div_ceil(32);
}

/// 32 banks of 4 bytes; lanes that read the same word share it. Wide accesses go in parts of 128 bytes: half a warp
/// at 8 bytes, a quarter at 16.
fn count_shared(target: &mut SharedAccess, addresses: &[u64], bytes: u32) {
    target.requests += 1;
    target.bytes += addresses.len() as u64 * u64::from(bytes);
    let words = bytes.div_ceil(4) as usize;
    let lanes_at_once = (32 / words).max(1);
    for part in addresses.chunks(lanes_at_once) {
        if is_free_of_conflicts(part, words as u64) {
            target.wavefronts += 1;
            continue;
        }
        let mut all = [0u64; WARP];
        let mut count = 0;
        for address in part {
            for word in 0..words as u64 {
                all[count] = address / 4 + word;
                count += 1;
            }
        }
        let all = &mut all[..count];
        if !all.is_sorted() {
            all.sort_unstable();
        }
        let mut banks = [0u8; 32];
        let mut last = None;
        for word in all.iter() {
            if last != Some(*word) {
                banks[(word % 32) as usize] += 1;
                last = Some(*word);
            }
        }
        let passes = u64::from(banks.iter().copied().max().unwrap_or(0));
        target.wavefronts += passes;
        target.bank_conflicts += passes - 1;
    }
}

/// Whether no two words that lanes access at once share a bank.
fn is_free_of_conflicts(addresses: &[u64], words: u64) -> bool {
    let mut held = [u64::MAX; 32];
    addresses.iter().all(|address| {
        (address / 4..address / 4 + words).all(|word| {
            let held = &mut held[(word % 32) as usize];
            let is_free = *held == u64::MAX || *held == word;
            *held = word;
            is_free
        })
    })
}

/// The value of up to 8 bytes.
fn little_endian(bytes: &[u8]) -> u64 {
    match *bytes {
        [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)),
    }
}
