//! The state of a warp.

use super::clocks::{Agent, Clocks};
use crate::program::{BarrierReduction, Function, Lanes, Special, WARP};

/// Lanes that are at the same instruction.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    pub pc: u32,
    pub mask: u32,
}

/// A call under way.
pub struct Frame {
    pub function: u32,
    /// Its first register and predicate.
    pub registers: usize,
    pub predicates: usize,
    /// Bytes of local memory below it.
    pub local: u64,
    /// Where its lanes are, the furthest behind last.
    pub paths: Vec<Path>,
}

/// A thread's local memory.
#[derive(Clone, Default)]
pub struct Local {
    pub data: Vec<u8>,
    pub valid: Vec<bool>,
}

/// An asynchronous copy under way.
pub struct AsyncCopy {
    pub lane: u8,
    /// Where in shared memory it goes.
    pub to: u64,
    pub bytes: u8,
    pub data: [u8; 16],
    /// The thread's groups that had been committed when it was issued.
    pub group: u32,
}

/// What asynchronous products have to do with a register.
#[derive(Clone, Copy, Default)]
pub struct RegisterUse {
    /// Fences that the warp had met when another instruction touched it last.
    pub touched: u32,
    /// The last group of products that reads it, and that writes it.
    pub read: u32,
    pub written: u32,
    /// Columns of that product.
    pub columns: u32,
    /// Line of the last product.
    pub line: u32,
}

/// Why a warp stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It used its turn.
    Turn,
    /// It waits at this barrier.
    Barrier(u32),
    /// It waits for a phase of the mbarrier at this address, and then runs the same instruction again.
    Mbarrier(u64),
    /// It waits for the other warps of its warpgroup, to multiply matrices.
    Warpgroup,
    /// It waits for registers, and then runs the same instruction again.
    Registers,
    /// All its threads have ended.
    Done,
}

impl Stop {
    /// Whether the warp looks again whenever something has changed.
    pub fn is_polled(self) -> bool {
        matches!(self, Self::Mbarrier(_) | Self::Registers)
    }
}

/// A warp of a block.
pub struct Warp {
    pub index: u32,
    /// Lanes that have a thread.
    pub lanes: u32,
    /// Lanes whose thread has ended.
    pub exited: u32,
    pub frames: Vec<Frame>,
    pub registers: Vec<Lanes>,
    pub predicates: Vec<u32>,
    /// The carry of `add.cc`.
    pub carry: u32,
    pub locals: Vec<Local>,
    pub specials: Box<[Lanes; Special::COUNT]>,
    /// Up to which clock of each other agent this warp is ordered after it; of itself: up to which clock its lanes are
    /// ordered after each other.
    pub seen: Clocks,
    /// What `seen` becomes at the next fence: other warps' clocks learned from strong reads.
    pub acquired: Clocks,
    /// What strong writes publish: `seen` at the last fence.
    pub released: Clocks,
    pub copies: Vec<AsyncCopy>,
    /// Groups that each lane has committed.
    pub groups: [u32; WARP],
    /// Groups of bulk copies that each lane has committed.
    pub bulk_groups: [u32; WARP],
    /// Groups of products that the warp has committed, and how many of them are known to be done.
    pub product_groups: u32,
    pub products_done: u32,
    /// Matrices have been multiplied, or bulk copies begun in these lanes, since the last group was committed.
    pub product_open: bool,
    pub bulk_open: u32,
    /// `wgmma.fence`s.
    pub product_fences: u32,
    /// What products have to do with each register, in frames of functions that multiply.
    pub register_uses: Vec<RegisterUse>,
    /// The wait for an mbarrier that it stopped at has run out of time.
    pub timed_out: bool,
    /// 32-bit registers that a thread has, and how often that has been changed.
    pub register_count: u32,
    pub resizes: u32,
    pub steps: u64,
    pub stop: Stop,
    /// Line of the instruction that runs.
    pub line: u32,
    /// What the barrier it waits at is to compute.
    pub reduction: Option<BarrierReduction>,
}

impl Warp {
    /// The warp as one that has a clock.
    pub fn agent(&self) -> Agent {
        Agent::warp(self.index)
    }

    /// The warp's clock.
    pub fn clock(&self) -> u32 {
        self.seen[self.agent()] + 1
    }

    /// What is ordered before whatever follows the warp's present instruction: its own past too.
    pub fn knowledge(&self) -> Clocks {
        let mut clocks = self.seen;
        clocks[self.agent()] = self.clock();
        clocks
    }

    /// Moves its clock on: what its lanes did before is ordered before what they do now.
    pub fn advance_clock(&mut self) {
        let agent = self.agent();
        self.seen[agent] += 1;
    }

    /// Starts a function in the lanes of `mask`.
    pub fn enter(&mut self, index: u32, function: &Function, mask: u32) {
        let (registers, predicates, local) = match self.frames.last() {
            Some(frame) => (self.registers.len(), self.predicates.len(), frame.local),
            None => (0, 0, 0),
        };
        // `local` of the new frame lies past the caller's own bytes.
        let local = if self.frames.is_empty() { 0 } else { local.max(self.locals[0].data.len() as u64) };
        self.registers.resize(registers + function.frame_registers as usize, [0; WARP]);
        self.predicates.resize(predicates + function.frame_predicates as usize, 0);
        self.register_uses.truncate(registers);
        if function.multiplies {
            self.register_uses.resize(self.registers.len(), RegisterUse::default());
        }
        let end = (local + function.frame_bytes) as usize;
        for memory in &mut self.locals {
            memory.data.resize(end, 0xff);
            memory.valid.resize(end, false);
        }
        self.frames.push(Frame { function: index, registers, predicates, local, paths: vec![Path { pc: 0, mask }] });
    }

    /// Ends the innermost function.
    pub fn leave(&mut self) -> Option<Frame> {
        let frame = self.frames.pop()?;
        self.registers.truncate(frame.registers);
        self.predicates.truncate(frame.predicates);
        for memory in &mut self.locals {
            memory.data.truncate(frame.local as usize);
            memory.valid.truncate(frame.local as usize);
        }
        Some(frame)
    }

    /// Ends the threads of `mask`, in whatever call they are.
    pub fn exit(&mut self, mask: u32) {
        self.exited |= mask;
        for frame in &mut self.frames {
            for path in &mut frame.paths {
                path.mask &= !mask;
            }
            frame.paths.retain(|path| path.mask != 0);
        }
    }
}

impl Frame {
    /// Puts lanes at an instruction, with those that are there.
    pub fn insert(&mut self, pc: u32, mask: u32) {
        if mask == 0 {
            return;
        }
        let at = self.paths.partition_point(|path| path.pc > pc);
        match self.paths.get_mut(at) {
            Some(path) if path.pc == pc => path.mask |= mask,
            _ => self.paths.insert(at, Path { pc, mask }),
        }
    }
}
