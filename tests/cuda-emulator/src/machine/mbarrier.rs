//! `mbarrier`: barriers in shared memory that threads and bulk copies arrive at, phase by phase.

use super::block::{Block, MBARRIER};
use super::clocks::{Agent, Clocks};
use super::execute::{Execution, Outcome, lanes, space_of};
use super::warp::Stop;
use crate::error::{FaultKind, Problem};
use crate::program::{Address, Arrival, Lanes, Memory, PhaseWait, Register, Source, WARP};

/// Bytes of an mbarrier in shared memory.
const BYTES: u64 = 8;
/// Arrivals and bytes that a phase may expect.
const MOST: u64 = (1 << 20) - 1;

/// An mbarrier.
pub struct Mbarrier {
    /// Its bulk copies among those who have clocks.
    agent: Agent,
    /// Arrivals that a phase expects, and those that its present phase still does.
    expected: u64,
    pending: u64,
    /// Bytes that are still to come in this phase.
    bytes: i64,
    /// Phases that are complete.
    phase: u64,
    /// The agent's clock when it was initialised.
    start: u32,
    /// The agent's clock of the last copy.
    copied: u32,
    /// What those who arrived in this phase know, and what those who wait for the last complete one learn.
    arriving: Clocks,
    complete: Clocks,
    /// Its last initialisation, as a warp and its clock, and the line of it.
    initialised: (Agent, u32),
    line: u32,
    valid: bool,
}

impl Mbarrier {
    /// The clock of copies in the present phase.
    fn clock(&self) -> u32 {
        self.start + self.phase as u32 + 1
    }

    /// Completes the phase if nothing is missing; says whether.
    fn advance(&mut self) -> bool {
        if self.pending != 0 || self.bytes != 0 {
            return false;
        }
        let clock = self.clock();
        self.complete.merge(&self.arriving);
        self.complete.learn(self.agent, clock);
        self.phase += 1;
        self.pending = self.expected;
        true
    }

    /// Whether somebody who knows `seen` has waited for all its copies.
    pub fn is_seen(&self, seen: &Clocks) -> bool {
        self.copied <= seen[self.agent]
    }

    /// Where it is and what it waits for.
    pub fn describe(&self, address: u64) -> String {
        format!(
            "the mbarrier at {address:#x} (of line {}) in phase {}, with {} of {} arrivals and {} bytes to come",
            self.line, self.phase, self.pending, self.expected, self.bytes
        )
    }
}

impl Block {
    /// The agent and the clock of a copy that begins now, and completes the present phase of an mbarrier.
    pub fn begin_copy(&mut self, mbarrier: u64) -> Option<(Agent, u32)> {
        let mbarrier = self.mbarriers.get_mut(&mbarrier)?;
        mbarrier.copied = mbarrier.clock();
        Some((mbarrier.agent, mbarrier.clock()))
    }

    fn advance_mbarrier(&mut self, address: u64) {
        if self.mbarriers.get_mut(&address).is_some_and(Mbarrier::advance) {
            self.progressed = true;
        }
    }
}

impl Execution<'_, '_> {
    fn mbarrier_address(&self, lane: usize, memory: Memory, address: u64) -> Outcome<u64> {
        let (memory, address) = match memory {
            Memory::Generic => space_of(address),
            memory => (memory, address),
        };
        let problem = |kind, words: &str| Err(Problem::new(kind, words).lane(lane).address(address));
        let end = address.saturating_add(BYTES);
        if memory != Memory::Shared || self.context.outside_shared(address, end).is_some() {
            return problem(FaultKind::OutOfBounds, "an mbarrier outside the block's shared memory");
        }
        if !address.is_multiple_of(BYTES) {
            return problem(FaultKind::Misaligned, "an mbarrier has 8 bytes");
        }
        Ok(address)
    }

    /// Finds the mbarrier that a lane names, which must have been initialised before, in an order that this warp knows.
    pub fn find_mbarrier(&self, lane: usize, memory: Memory, address: u64) -> Outcome<u64> {
        let address = self.mbarrier_address(lane, memory, address)?;
        let problem = |kind, detail: String| Err(Problem::new(kind, detail).lane(lane).address(address));
        let Some(mbarrier) = self.block.mbarriers.get(&address).filter(|mbarrier| mbarrier.valid) else {
            return problem(FaultKind::Mbarrier, "no mbarrier has been initialised there".into());
        };
        let (warp, clock) = mbarrier.initialised;
        if warp != self.warp.agent() && clock > self.warp.seen[warp] {
            let detail = format!("the mbarrier was initialised at line {} with no barrier in between", mbarrier.line);
            return problem(FaultKind::Race, detail);
        }
        Ok(address)
    }

    pub fn mbarrier_init(&mut self, memory: Memory, address: &Address, count: Source, active: u32) -> Outcome<()> {
        let (addresses, counts) = (self.addresses(address), *self.source(count));
        for lane in lanes(active) {
            let address = self.mbarrier_address(lane, memory, addresses[lane])?;
            let problem = |kind, detail: String| Err(Problem::new(kind, detail).lane(lane).address(address));
            if !(1..=MOST).contains(&counts[lane]) {
                return problem(FaultKind::Operand, format!("an mbarrier for {} arrivals", counts[lane]));
            }
            let slots = self.block.mbarriers.len() as u32;
            let (agent, start) = match self.block.mbarriers.get(&address) {
                Some(old) if old.valid => {
                    let detail = format!("an mbarrier initialised again, after line {}, with no inval", old.line);
                    return problem(FaultKind::Mbarrier, detail);
                }
                Some(old) => (old.agent, old.clock()),
                None if slots < Agent::MBARRIERS => (Agent::mbarrier(slots), 0),
                None => {
                    let detail = format!("more than {} mbarriers in a block are not supported", Agent::MBARRIERS);
                    return problem(FaultKind::Operand, detail);
                }
            };
            let range = address as usize..(address + BYTES) as usize;
            self.block.in_flight[range].fill(MBARRIER);
            self.block.mbarriers.insert(
                address,
                Mbarrier {
                    agent,
                    expected: counts[lane],
                    pending: counts[lane],
                    bytes: 0,
                    phase: 0,
                    start,
                    copied: 0,
                    arriving: Clocks::default(),
                    complete: Clocks::default(),
                    initialised: (self.warp.agent(), self.warp.clock()),
                    line: self.warp.line,
                    valid: true,
                },
            );
        }
        Ok(())
    }

    pub fn mbarrier_invalidate(&mut self, memory: Memory, address: &Address, active: u32) -> Outcome<()> {
        let addresses = self.addresses(address);
        for lane in lanes(active) {
            let address = self.find_mbarrier(lane, memory, addresses[lane])?;
            if let Some(mbarrier) = self.block.mbarriers.get_mut(&address) {
                mbarrier.valid = false;
            }
            let range = address as usize..(address + BYTES) as usize;
            self.block.in_flight[range.clone()].fill(0);
            self.block.shared_valid[range].fill(false);
        }
        Ok(())
    }

    pub fn mbarrier_arrive(&mut self, arrival: &Arrival, active: u32) -> Outcome<()> {
        if arrival.after_copies {
            self.finish_copies(None, active)?;
        }
        let Arrival { memory, state, drop, release, .. } = *arrival;
        let addresses = self.addresses(&arrival.address);
        let value = |source: Option<Source>| source.map(|source| *self.source(source));
        let (arrivals, expected) = (value(arrival.arrivals), value(arrival.expected));
        let completed = value(arrival.completed);
        let knowledge = release.then(|| self.warp.knowledge());
        let mut states: Lanes = [0; WARP];
        for lane in lanes(active) {
            let address = self.find_mbarrier(lane, memory, addresses[lane])?;
            if let Some(expected) = &expected {
                self.expect_bytes(lane, address, expected[lane] as i64)?;
            }
            let Some(mbarrier) = self.block.mbarriers.get_mut(&address) else { continue };
            states[lane] = mbarrier.phase & 0xffff_ffff | mbarrier.pending << 32;
            if let Some(knowledge) = &knowledge {
                mbarrier.arriving.merge(knowledge);
            }
            if let Some(arrivals) = &arrivals {
                let count = arrivals[lane];
                if count == 0 || count > mbarrier.pending {
                    let detail = format!("{count} arrivals at {}", mbarrier.describe(address));
                    return Err(Problem::new(FaultKind::Mbarrier, detail).lane(lane).address(address));
                }
                mbarrier.pending -= count;
                mbarrier.expected -= if drop { count } else { 0 };
            }
            self.block.advance_mbarrier(address);
            if let Some(completed) = &completed {
                self.complete_bytes(lane, address, completed[lane] as i64)?;
            }
        }
        if release {
            self.warp.advance_clock();
        }
        if let Some(state) = state {
            self.write(state, &states, active);
        }
        Ok(())
    }

    fn expect_bytes(&mut self, lane: usize, address: u64, bytes: i64) -> Outcome<()> {
        let Some(mbarrier) = self.block.mbarriers.get_mut(&address) else { return Ok(()) };
        mbarrier.bytes += bytes;
        if mbarrier.bytes.unsigned_abs() > MOST {
            let detail = format!("{bytes} bytes more make too many for {}", mbarrier.describe(address));
            return Err(Problem::new(FaultKind::Mbarrier, detail).lane(lane).address(address));
        }
        Ok(())
    }

    /// A copy has brought so many bytes.
    pub fn complete_bytes(&mut self, lane: usize, address: u64, bytes: i64) -> Outcome<()> {
        self.expect_bytes(lane, address, -bytes)?;
        self.block.advance_mbarrier(address);
        Ok(())
    }

    /// Tests phases, or waits for them: says what the warp stops for, if it does.
    pub fn mbarrier_wait(&mut self, wait: &PhaseWait, active: u32) -> Outcome<Option<Stop>> {
        let PhaseWait { memory, complete, parity, patient, acquire, .. } = *wait;
        let (addresses, phases) = (self.addresses(&wait.address), *self.source(wait.phase));
        let (mut done, mut missing) = (0, None);
        for lane in lanes(active) {
            let address = self.find_mbarrier(lane, memory, addresses[lane])?;
            let Some(mbarrier) = self.block.mbarriers.get(&address) else { continue };
            if parity && phases[lane] > 1 {
                let detail = format!("a phase's parity of {}: 0 or 1", phases[lane]);
                return Err(Problem::new(FaultKind::Operand, detail).lane(lane));
            }
            let current = if parity { mbarrier.phase & 1 } else { mbarrier.phase & 0xffff_ffff };
            let asked = if parity { phases[lane] } else { phases[lane] & 0xffff_ffff };
            if asked == current {
                missing = Some(address);
            } else {
                done |= 1 << lane;
            }
        }
        if let Some(address) = missing
            && patient
            && !std::mem::take(&mut self.warp.timed_out)
        {
            return Ok(Some(Stop::Mbarrier(address)));
        }
        self.warp.timed_out = false;
        if acquire {
            for lane in lanes(done) {
                let address = self.find_mbarrier(lane, memory, addresses[lane])?;
                if let Some(mbarrier) = self.block.mbarriers.get(&address) {
                    self.warp.seen.merge(&mbarrier.complete);
                }
            }
        }
        self.block.counts.waits.mbarriers += u64::from(missing.is_none());
        self.write_predicate(complete, done, active);
        // Others have a turn before a test is made again.
        Ok(missing.is_some().then_some(Stop::Turn))
    }

    pub fn mbarrier_pending(&mut self, destination: Register, state: Source, active: u32) {
        let pending = self.source(state).map(|state| state >> 32);
        self.write(destination, &pending, active);
    }
}
