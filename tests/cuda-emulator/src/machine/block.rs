//! A block: its shared memory, barriers and warps.

use super::execute::{self, Outcome, lanes};
use super::launch::Context;
use super::shadow::Shadow;
use super::warp::{Local, Stop, Warp};
use crate::counts::Counts;
use crate::error::{Fault, FaultKind, Problem};
use crate::program::{BarrierReduction, Special, WARP};

/// Instructions that a warp runs before the next one has its turn. Only warps that wait for each other without a
/// barrier see it.
const TURN: u64 = 10_000;

/// A barrier that warps are arriving at.
#[derive(Clone, Copy, Default)]
struct Barrier {
    arrived: u32,
    expected: u32,
    waiting: u32,
    clocks: [u32; WARP],
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

/// A block that runs.
pub struct Block {
    pub index: [u32; 3],
    pub linear: u64,
    pub counts: Counts,
    pub shared: Vec<u8>,
    pub shared_valid: Vec<bool>,
    /// Line of the asynchronous copy that will write a byte, or 0.
    pub in_flight: Vec<u32>,
    pub shared_shadow: Shadow,
    pub global_shadow: Shadow,
    /// Clocks that strong writes have published.
    pub published: [u32; WARP],
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
            published: [0; WARP],
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
        let bytes = context.shared_bytes as usize;
        self.shared.clear();
        self.shared.resize(bytes, 0xff);
        self.shared_valid.clear();
        self.shared_valid.resize(bytes, false);
        self.in_flight.clear();
        self.in_flight.resize(bytes, 0);
        self.shared_shadow.clear();
        self.global_shadow.clear();
        self.published = [0; WARP];
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
                for release in std::mem::take(&mut self.releases) {
                    for waiting in lanes(release.barrier.waiting) {
                        release.let_go(&mut warps[waiting]);
                    }
                }
            }
            if ran {
                continue;
            }
            let waiting = |warp: &&Warp| matches!(warp.stop, Stop::Barrier(_));
            let Some(warp) = warps.iter().find(waiting) else { return Ok(()) };
            let Stop::Barrier(number) = warp.stop else { return Ok(()) };
            let barrier = self.barriers[number as usize];
            let ended = warps.iter().filter(|warp| warp.stop == Stop::Done).count();
            let detail = format!(
                "{} of {} warps came to barrier {number}, {ended} have ended, and none is left that could come",
                barrier.arrived, barrier.expected
            );
            return Err(self.fault(context, warp, FaultKind::BarrierMismatch, detail));
        }
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
        let own = warp.clock();
        for (index, clock) in barrier.clocks.iter_mut().enumerate() {
            *clock = (*clock).max(if index == warp.index as usize { own } else { warp.seen[index] });
        }
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
        for (seen, clock) in warp.seen.iter_mut().zip(&self.barrier.clocks) {
            *seen = (*seen).max(*clock);
        }
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
        seen: [0; WARP],
        acquired: [0; WARP],
        released: [0; WARP],
        copies: Vec::new(),
        groups: [0; WARP],
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
        self.seen = [0; WARP];
        self.acquired = [0; WARP];
        self.released = [0; WARP];
        self.copies.clear();
        self.groups = [0; WARP];
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
