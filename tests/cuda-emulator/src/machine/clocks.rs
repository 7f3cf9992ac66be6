//! Vector clocks: what is ordered after what within a block.
//!
//! Warps have a clock, and so has each thing that works beside them: the products of a warpgroup, the bulk copies of a
//! warp that are waited for in groups, and those that complete a phase of an mbarrier. Whoever waits for one of them
//! learns its clock, and hands it on at every barrier, as with the clocks of warps.

use std::ops::{Index, IndexMut};

/// Warps of a block.
const WARPS: u32 = 32;
/// Warpgroups of a block.
const WARPGROUPS: u32 = WARPS / 4;
/// Threads of a block: numbers of threads that are no thread's begin here.
const THREADS: u32 = 1024;

/// Someone with a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agent(u32);

impl Agent {
    /// How many mbarriers a block may have.
    pub const MBARRIERS: u32 = 64;
    const PRODUCTS: u32 = WARPS;
    const BULK_READS: u32 = Self::PRODUCTS + WARPGROUPS;
    const BULK_WRITES: u32 = Self::BULK_READS + WARPS;
    const FIRST_MBARRIER: u32 = Self::BULK_WRITES + WARPS;
    const COUNT: u32 = Self::FIRST_MBARRIER + Self::MBARRIERS;

    /// A warp.
    pub fn warp(index: u32) -> Self {
        Self(index)
    }

    /// The matrix products of a warpgroup; the clock counts committed groups.
    pub fn products(warpgroup: u32) -> Self {
        Self(Self::PRODUCTS + warpgroup)
    }

    /// What a warp's bulk copies in groups read; the clock counts committed groups.
    pub fn bulk_reads(warp: u32) -> Self {
        Self(Self::BULK_READS + warp)
    }

    /// What they write.
    pub fn bulk_writes(warp: u32) -> Self {
        Self(Self::BULK_WRITES + warp)
    }

    /// Bulk copies that an mbarrier tracks; the clock counts phases.
    pub fn mbarrier(slot: u32) -> Self {
        Self(Self::FIRST_MBARRIER + slot)
    }

    /// The agent that a thread, or a number from [`thread`](Self::thread), belongs to.
    pub fn of_thread(thread: u32) -> Self {
        if thread < THREADS { Self(thread / 32) } else { Self(thread - THREADS + WARPS) }
    }

    /// Its number among threads, which no thread of a block has. Not for warps.
    pub fn thread(self) -> u32 {
        THREADS + self.0 - WARPS
    }

    /// Its number among warps, if it is one.
    pub fn warp_index(self) -> Option<usize> {
        (self.0 < WARPS).then_some(self.0 as usize)
    }

    /// What it is, in words; `None` for a warp.
    pub fn words(self) -> Option<&'static str> {
        if self.0 < Self::PRODUCTS {
            None
        } else if self.0 < Self::BULK_READS {
            Some("a wgmma.mma_async")
        } else {
            Some("a bulk copy")
        }
    }
}

/// Memory that the asynchronous proxy works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// The block's.
    Shared,
    /// The device's.
    Global,
}

/// Up to which clock of each agent someone is ordered after it, and up to which clock of each warp what the warp wrote
/// to shared and to device memory has passed a fence to the asynchronous proxy since.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    seen: [u32; Agent::COUNT as usize],
    proxied: [[u32; WARPS as usize]; 2],
}

impl Default for Clocks {
    fn default() -> Self {
        Self { seen: [0; Agent::COUNT as usize], proxied: [[0; WARPS as usize]; 2] }
    }
}

impl Clocks {
    /// Learns what `other` knows.
    pub fn merge(&mut self, other: &Self) {
        let all = self.seen.iter_mut().chain(self.proxied.as_flattened_mut());
        for (known, other) in all.zip(other.seen.iter().chain(other.proxied.as_flattened())) {
            *known = (*known).max(*other);
        }
    }

    /// Learns one clock.
    pub fn learn(&mut self, agent: Agent, clock: u32) {
        self[agent] = self[agent].max(clock);
    }

    /// All that is known of the warps' writes to this memory is made visible to the asynchronous proxy.
    pub fn fence_proxy(&mut self, memory: Proxied) {
        for (proxied, seen) in self.proxied[memory as usize].iter_mut().zip(&self.seen) {
            *proxied = (*proxied).max(*seen);
        }
    }

    /// Whether the asynchronous proxy sees what a warp wrote to this memory at a clock.
    pub fn is_proxied(&self, memory: Proxied, warp: Agent, clock: u32) -> bool {
        clock <= self.proxied[memory as usize][warp.0 as usize]
    }
}

impl Index<Agent> for Clocks {
    type Output = u32;
    fn index(&self, agent: Agent) -> &u32 {
        &self.seen[agent.0 as usize]
    }
}

impl IndexMut<Agent> for Clocks {
    fn index_mut(&mut self, agent: Agent) -> &mut u32 {
        &mut self.seen[agent.0 as usize]
    }
}
