//! A block: its shared memory, barriers and warps.

use super::clocks::{Agent, Clocks};
use super::execute::{self, Outcome, lanes};
use super::launch::Context;
use super::mbarrier::Mbarrier;
use super::shadow::Shadow;
use super::warp::{Local, Stop, Warp};
use super::warpgroup;
use crate::counts::Counts;
use crate::error::{Fault, FaultKind, Problem};
use crate::program::{BarrierReduction, Special, WARP};
use std::collections::BTreeMap;

/// Instructions that a warp runs before the next one has its turn. Only warps that wait for each other without a
/// barrier see it.
const TURN: u64 = 10_000;

/// Among the lines of asynchronous copies: an mbarrier's bytes.
pub const MBARRIER: u32 = u32::MAX;

/// Warps of a warpgroup.
const GROUP: usize = warpgroup::WARPS as usize;

/// Times that all warps may be stuck, and those that wait for an mbarrier be told that it takes too long, before it
/// counts as a deadlock.
const PATIENCE: u32 = 2;

/// A barrier that warps are arriving at.
#[derive(Clone, Copy, Default)]
struct Barrier {
    arrived: u32,
    expected: u32,
    waiting: u32,
    clocks: Clocks,
    population: u32,
    all: bool,
    any: bool,
    /// What the waiting warps want of the threads' predicates.
    line: u32,
}

/// A barrier that is complete: its waiting warps can go on.
struct Release {
    barrier: Barrier,
}

/// A `setmaxnreg` of a warpgroup.
pub struct Resize {
    pub group: u32,
    /// How many it had met before.
    pub ordinal: u32,
    pub line: u32,
    /// The warps that have met it.
    pub warps: u32,
}

/// A block that runs.
pub struct Block {
    pub index: [u32; 3],
    pub linear: u64,
    pub counts: Counts,
    pub shared: Vec<u8>,
    pub shared_valid: Vec<bool>,
    /// Line of the asynchronous copy that will write a byte, or 0; [`MBARRIER`] where one is.
    pub in_flight: Vec<u32>,
    pub shared_shadow: Shadow,
    pub global_shadow: Shadow,
    /// Clocks that strong writes have published.
    pub published: Clocks,
    /// The mbarriers there are or were, by address.
    pub mbarriers: BTreeMap<u64, Mbarrier>,
    /// Some mbarrier has completed a phase, or registers have been released, since the warps last looked.
    pub progressed: bool,
    /// 32-bit registers that no warp has.
    pub free_registers: u32,
    /// What `setmaxnreg` has been asked for.
    pub resizes: Vec<Resize>,
    /// The block is ordered after all earlier blocks.
    pub late: bool,
    /// What it printed.
    pub output: String,
    barriers: [Barrier; 16],
    releases: Vec<Release>,
    warps: Vec<Warp>,
}

impl Block {
    /// A block with nothing in it; [`Block::run`] can be called many times.
    pub fn new() -> Self {
        Self {
            index: [0; 3],
            linear: 0,
            counts: Counts::default(),
            shared: Vec::new(),
            shared_valid: Vec::new(),
            in_flight: Vec::new(),
            shared_shadow: Shadow::default(),
            global_shadow: Shadow::default(),
            published: Clocks::default(),
            mbarriers: BTreeMap::new(),
            progressed: false,
            free_registers: 0,
            resizes: Vec::new(),
            late: false,
            output: String::new(),
            barriers: [Barrier::default(); 16],
            releases: Vec::new(),
            warps: Vec::new(),
        }
    }

    fn reset(&mut self, context: &Context<'_>, linear: u64) {
        let [x, y, _] = context.grid.map(u64::from);
        self.linear = linear;
        self.index = [(linear % x) as u32, (linear / x % y) as u32, (linear / x / y) as u32];
        self.counts = Counts::default();
        let bytes = (context.shared_start + context.shared_bytes) as usize;
        self.shared.clear();
        self.shared.resize(bytes, 0xff);
        self.shared_valid.clear();
        self.shared_valid.resize(bytes, false);
        self.in_flight.clear();
        self.in_flight.resize(bytes, 0);
        self.shared_shadow.clear();
        self.global_shadow.clear();
        self.published = Clocks::default();
        self.mbarriers.clear();
        self.progressed = false;
        self.free_registers = 0;
        self.resizes.clear();
        self.late = linear == 0;
        self.output.clear();
        self.barriers = [Barrier::default(); 16];
        self.releases.clear();
        let threads = context.threads_per_block();
        self.warps.truncate(context.warps_per_block() as usize);
        for index in 0..context.warps_per_block() {
            let lanes = if (index + 1) * 32 <= threads { u32::MAX } else { (1 << (threads % 32)) - 1 };
            if self.warps.len() <= index as usize {
                self.warps.push(new_warp());
            }
            let warp = &mut self.warps[index as usize];
            warp.reset(index, lanes);
            warp.register_count = context.kernel().registers.next_multiple_of(8);
            context.specials(self.index, index, &mut warp.specials);
            warp.enter(context.function as u32, context.kernel(), lanes);
        }
    }

    /// Runs the block with this index to its end.
    pub fn run(&mut self, context: &Context<'_>, linear: u64) -> Result<(), Fault> {
        self.reset(context, linear);
        let mut warps = std::mem::take(&mut self.warps);
        let result = self.run_warps(context, &mut warps);
        self.warps = warps;
        result
    }

    fn run_warps(&mut self, context: &Context<'_>, warps: &mut [Warp]) -> Result<(), Fault> {
        let mut stalls = 0;
        loop {
            let mut ran = false;
            for index in 0..warps.len() {
                let warp = &mut warps[index];
                if warp.stop != Stop::Turn {
                    continue;
                }
                ran = true;
                warp.stop = execute::run(context, self, warp, TURN)?;
                if warp.steps > context.step_budget {
                    let detail = format!("a warp ran {} instructions: does a loop never end?", context.step_budget);
                    return Err(self.fault(context, warp, FaultKind::StepBudget, detail));
                }
                if warp.stop == Stop::Warpgroup {
                    let first = index / GROUP * GROUP;
                    self.run_warpgroup(context, &mut warps[first..first + GROUP])?;
                }
                for release in std::mem::take(&mut self.releases) {
                    stalls = 0;
                    for waiting in lanes(release.barrier.waiting) {
                        release.let_go(&mut warps[waiting]);
                    }
                }
                if std::mem::take(&mut self.progressed) {
                    stalls = 0;
                    for warp in warps.iter_mut().filter(|warp| warp.stop.is_polled()) {
                        warp.stop = Stop::Turn;
                    }
                }
            }
            if ran {
                continue;
            }
            if warps.iter().all(|warp| warp.stop == Stop::Done) {
                return self.check_end(context, warps);
            }
            // A wait for an mbarrier ends at some time, whatever comes; code that does not wait again may go on.
            stalls += 1;
            if stalls > PATIENCE || !warps.iter().any(|warp| matches!(warp.stop, Stop::Mbarrier(_))) {
                return Err(self.stuck(context, warps));
            }
            for warp in warps.iter_mut().filter(|warp| matches!(warp.stop, Stop::Mbarrier(_))) {
                warp.timed_out = true;
                warp.stop = Stop::Turn;
            }
        }
    }

    /// Multiplies matrices once all warps of the warpgroup have come to it.
    fn run_warpgroup(&mut self, context: &Context<'_>, warps: &mut [Warp]) -> Result<(), Fault> {
        if warps.iter().all(|warp| warp.stop == Stop::Warpgroup) {
            warpgroup::multiply(context, self, warps)?;
            for warp in warps {
                warp.stop = Stop::Turn;
            }
        }
        Ok(())
    }

    /// Nothing may work on when the block's memory and registers are given away.
    fn check_end(&self, context: &Context<'_>, warps: &[Warp]) -> Result<(), Fault> {
        let mut seen = Clocks::default();
        for warp in warps {
            seen.merge(&warp.seen);
        }
        for warp in warps {
            let fail = |kind, detail: &str| {
                let mut fault = self.fault(context, warp, kind, format!("the block ends while {detail}"));
                fault.thread = Some(context.thread(warp.index * 32));
                Err(fault)
            };
            if warp.product_open || warp.products_done < warp.product_groups {
                return fail(FaultKind::AsyncProduct, "a wgmma.mma_async is under way");
            }
            let groups = warp.bulk_groups.iter().copied().max().unwrap_or(0);
            if warp.bulk_open != 0 || groups > seen[Agent::bulk_reads(warp.index)] {
                return fail(FaultKind::AsyncRead, "bulk copies may still read its shared memory");
            }
        }
        let unseen = self.mbarriers.iter().find(|(_, mbarrier)| !mbarrier.is_seen(&seen));
        if let (Some((address, mbarrier)), Some(warp)) = (unseen, warps.first()) {
            let detail = format!(
                "the block ends while a bulk copy may still write its shared memory: {}",
                mbarrier.describe(*address)
            );
            let mut fault = self.fault(context, warp, FaultKind::AsyncCopy, detail);
            fault.address = Some(*address);
            return Err(fault);
        }
        match self.resizes.iter().find(|resize| resize.warps.count_ones() != warpgroup::WARPS) {
            Some(resize) => {
                let warp = &warps[(resize.group as usize * GROUP).min(warps.len() - 1)];
                let detail = format!("setmaxnreg by {} of a warpgroup's four warps", resize.warps.count_ones());
                let mut fault = self.fault(context, warp, FaultKind::MemberMask, detail);
                fault.line = resize.line;
                Err(fault)
            }
            None => Ok(()),
        }
    }

    /// Why no warp can go on.
    fn stuck(&self, context: &Context<'_>, warps: &[Warp]) -> Fault {
        let ended = warps.iter().filter(|warp| warp.stop == Stop::Done).count();
        let waiting: Vec<&Warp> = warps.iter().filter(|warp| warp.stop != Stop::Done).collect();
        // What stands behind the others' waiting, most likely.
        let group_lacks = |warp: &Warp| {
            let first = warp.index as usize / GROUP * GROUP;
            warps[first..first + GROUP].iter().any(|other| other.stop == Stop::Done)
        };
        let rank = |warp: &&&Warp| match warp.stop {
            Stop::Registers => 0,
            Stop::Warpgroup if group_lacks(warp) => 0,
            Stop::Mbarrier(_) => 1,
            Stop::Warpgroup => 2,
            _ => 3,
        };
        let first = *waiting.iter().min_by_key(rank).expect("a warp that waits: not all have ended");
        if let Stop::Barrier(number) = first.stop
            && waiting.iter().all(|warp| matches!(warp.stop, Stop::Barrier(_)))
        {
            let barrier = self.barriers[number as usize];
            let detail = format!(
                "{} of {} warps came to barrier {number}, {ended} have ended, and none is left that could come",
                barrier.arrived, barrier.expected
            );
            return self.fault(context, first, FaultKind::BarrierMismatch, detail);
        }
        let what = |warp: &Warp| match warp.stop {
            Stop::Mbarrier(address) => match self.mbarriers.get(&address) {
                Some(mbarrier) => mbarrier.describe(address),
                None => format!("an mbarrier at {address:#x}"),
            },
            Stop::Barrier(number) => format!("barrier {number}"),
            Stop::Warpgroup => "the other warps of its warpgroup, to multiply matrices".into(),
            Stop::Registers => format!("registers, of which {} are free", self.free_registers),
            Stop::Turn | Stop::Done => "nothing".into(),
        };
        // Warps that wait for the same at the same line, together.
        let mut groups: Vec<(u32, String, Vec<String>)> = Vec::new();
        for warp in &waiting {
            let what = what(warp);
            match groups.iter_mut().find(|(line, other, _)| *line == warp.line && *other == what) {
                Some((_, _, warps)) => warps.push(warp.index.to_string()),
                None => groups.push((warp.line, what, vec![warp.index.to_string()])),
            }
        }
        let groups = groups.iter().map(|(line, what, warps)| {
            let (plural, verb) = if warps.len() == 1 { ("", "waits") } else { ("s", "wait") };
            format!("warp{plural} {} at line {line} {verb} for {what}", warps.join(", "))
        });
        let detail = format!("{}; {ended} have ended", groups.collect::<Vec<_>>().join("; "));
        let kind = if first.stop == Stop::Warpgroup { FaultKind::MemberMask } else { FaultKind::Deadlock };
        let mut fault = self.fault(context, first, kind, detail);
        if let Stop::Mbarrier(address) = first.stop {
            fault.address = Some(address);
        }
        fault
    }

    fn fault(&self, context: &Context<'_>, warp: &Warp, kind: FaultKind, detail: String) -> Fault {
        let thread = (warp.lanes & !warp.exited).trailing_zeros() & 31;
        Fault {
            kind,
            kernel: context.kernel().name.clone(),
            line: warp.line,
            block: Some(self.index),
            thread: Some(context.thread(warp.index * 32 + thread)),
            address: None,
            detail,
        }
    }

    /// A warp comes to a barrier of `warps` warps, with what its predicate counts.
    pub(super) fn arrive(
        &mut self,
        number: usize,
        warp: &mut Warp,
        warps: u32,
        arrive_only: bool,
        (population, all, any): (u32, bool, bool),
        reduction: Option<BarrierReduction>,
    ) -> Outcome<()> {
        let barrier = &mut self.barriers[number];
        if barrier.arrived == 0 {
            *barrier = Barrier { expected: warps, all: true, line: warp.line, ..Barrier::default() };
        }
        if barrier.expected != warps {
            let detail = format!(
                "barrier {number} for {} threads, but line {} has it for {}",
                32 * warps,
                barrier.line,
                32 * barrier.expected
            );
            return Err(Problem::new(FaultKind::BarrierMismatch, detail));
        }
        barrier.arrived += 1;
        barrier.population += population;
        barrier.all &= all;
        barrier.any |= any;
        barrier.clocks.merge(&warp.knowledge());
        warp.advance_clock();
        if !arrive_only {
            barrier.waiting |= 1 << warp.index;
            warp.reduction = reduction;
        }
        if barrier.arrived == barrier.expected {
            self.releases.push(Release { barrier: std::mem::take(barrier) });
        }
        Ok(())
    }
}

impl Release {
    fn let_go(&self, warp: &mut Warp) {
        warp.seen.merge(&self.barrier.clocks);
        warp.stop = Stop::Turn;
        let Some(frame) = warp.frames.last() else { return };
        let lanes = warp.lanes;
        let set = |target: &mut u32, value: bool| *target = *target & !lanes | if value { lanes } else { 0 };
        match warp.reduction.take() {
            None => {}
            Some(BarrierReduction::PopulationCount(register)) => {
                let register = &mut warp.registers[frame.registers + register.0 as usize];
                register.fill(u64::from(self.barrier.population));
            }
            Some(BarrierReduction::And(predicate)) => {
                set(&mut warp.predicates[frame.predicates + predicate.0 as usize], self.barrier.all);
            }
            Some(BarrierReduction::Or(predicate)) => {
                set(&mut warp.predicates[frame.predicates + predicate.0 as usize], self.barrier.any);
            }
        }
    }
}

fn new_warp() -> Warp {
    Warp {
        index: 0,
        lanes: 0,
        exited: 0,
        frames: Vec::new(),
        registers: Vec::new(),
        predicates: Vec::new(),
        carry: 0,
        locals: vec![Local::default(); WARP],
        specials: Box::new([[0; WARP]; Special::COUNT]),
        seen: Clocks::default(),
        acquired: Clocks::default(),
        released: Clocks::default(),
        copies: Vec::new(),
        groups: [0; WARP],
        bulk_groups: [0; WARP],
        product_groups: 0,
        products_done: 0,
        product_open: false,
        bulk_open: 0,
        product_fences: 0,
        register_uses: Vec::new(),
        timed_out: false,
        register_count: 0,
        resizes: 0,
        steps: 0,
        stop: Stop::Turn,
        line: 0,
        reduction: None,
    }
}

impl Warp {
    fn reset(&mut self, index: u32, lanes: u32) {
        self.index = index;
        self.lanes = lanes;
        self.exited = 0;
        self.frames.clear();
        self.registers.clear();
        self.predicates.clear();
        self.carry = 0;
        for local in &mut self.locals {
            local.data.clear();
            local.valid.clear();
        }
        self.seen = Clocks::default();
        self.acquired = Clocks::default();
        self.released = Clocks::default();
        self.copies.clear();
        self.groups = [0; WARP];
        self.bulk_groups = [0; WARP];
        self.product_groups = 0;
        self.products_done = 0;
        self.product_open = false;
        self.bulk_open = 0;
        self.product_fences = 0;
        self.register_uses.clear();
        self.timed_out = false;
        self.resizes = 0;
        self.steps = 0;
        self.stop = Stop::Turn;
        self.line = 0;
        self.reduction = None;
    }

    /// Copies bytes within each thread's local memory, written or not.
    pub fn copy_local(&mut self, from: u64, to: u64, bytes: u64) {
        let (from, to, bytes) = (from as usize, to as usize, bytes as usize);
        for local in &mut self.locals {
            local.data.copy_within(from..from + bytes, to);
            local.valid.copy_within(from..from + bytes, to);
        }
    }
}
