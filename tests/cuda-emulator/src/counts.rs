//! What a launch did, in numbers that do not depend on the machine it ran on.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// Classes that instructions are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// Integer arithmetic, logic, shifts, predicates.
    Integer,
    /// f32 arithmetic.
    F32,
    /// f64 arithmetic.
    F64,
    /// f16 and bf16 arithmetic, packed or not.
    Half,
    /// Division, roots and the functions that are approximate on a GPU.
    Special,
    /// `cvt`
    Convert,
    /// `setp`, `set`, `testp`
    Compare,
    /// `mov`, `selp`, `cvta`
    Move,
    /// `ld`, `ldmatrix`
    Load,
    /// `st`, `stmatrix`
    Store,
    /// `atom`, `red`
    Atomic,
    /// `cp.async`, `cp.async.bulk` and their groups
    AsyncCopy,
    /// Branches, calls, returns.
    Control,
    /// Barriers, mbarriers and fences.
    Synchronise,
    /// `shfl`, `vote`, `match`, `redux`
    Warp,
    /// `mma`, `wgmma` with its fences and groups
    Matrix,
    /// All else.
    Other,
}

impl Class {
    /// How many there are.
    pub const COUNT: usize = Self::Other as usize + 1;
    const NAMES: [&str; Self::COUNT] = [
        "integer",
        "f32",
        "f64",
        "half",
        "special",
        "convert",
        "compare",
        "move",
        "load",
        "store",
        "atomic",
        "async_copy",
        "control",
        "synchronise",
        "warp",
        "matrix",
        "other",
    ];
}

/// A number per [`Class`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerClass(pub [u64; Class::COUNT]);

impl PerClass {
    /// The number of one class.
    pub fn of(&self, class: Class) -> u64 {
        self.0[class as usize]
    }

    /// The sum over all classes.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl Serialize for PerClass {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let used = self.0.iter().zip(Class::NAMES).filter(|(count, _)| **count != 0);
        let mut map = serializer.serialize_map(None)?;
        for (count, name) in used {
            map.serialize_entry(name, count)?;
        }
        map.end()
    }
}

/// Accesses of one kind to device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GlobalAccess {
    /// Instructions of a warp that reached memory; bulk copies.
    pub requests: u64,
    /// Bytes that they asked for.
    pub bytes: u64,
    /// Sectors of 32 bytes that the requests touch.
    pub sectors: u64,
    /// Sectors that the distinct bytes would fill if they lay together.
    pub ideal_sectors: u64,
}

/// Accesses of one kind to shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SharedAccess {
    /// Instructions of a warp that reached memory.
    pub requests: u64,
    /// Bytes that lanes asked for.
    pub bytes: u64,
    /// Passes over the 32 banks that the requests take.
    pub wavefronts: u64,
    /// Passes beyond those that the same number of bytes would take without conflicts.
    pub bank_conflicts: u64,
}

/// Times that something was waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Waits {
    /// `bar.sync`, `bar.red`, per warp.
    pub barriers: u64,
    /// `bar.warp.sync`
    pub warp_barriers: u64,
    /// `cp.async.wait_group`, `cp.async.wait_all`, per warp.
    pub async_copies: u64,
    /// `membar`, `fence`
    pub fences: u64,
    /// `mbarrier.test_wait` and `mbarrier.try_wait` that found their phase complete, per warp.
    pub mbarriers: u64,
    /// `cp.async.bulk.wait_group`, per warp.
    pub bulk_copies: u64,
    /// `wgmma.wait_group`, per warp.
    pub products: u64,
}

/// What a launch did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// The kernel.
    pub kernel: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Shared memory of a block, static and dynamic.
    pub shared_bytes: u64,
    /// Instructions that warps issued.
    pub warp_instructions: PerClass,
    /// The same, times the lanes in which they took effect.
    pub thread_instructions: PerClass,
    /// Branches that parted a warp's lanes.
    pub divergent_branches: u64,
    /// Loads from device memory.
    pub global_loads: GlobalAccess,
    /// Stores to device memory.
    pub global_stores: GlobalAccess,
    /// Atomic operations on device memory.
    pub global_atomics: GlobalAccess,
    /// What bulk copies read of device memory.
    pub bulk_loads: GlobalAccess,
    /// What bulk copies write to device memory.
    pub bulk_stores: GlobalAccess,
    /// Loads from shared memory.
    pub shared_loads: SharedAccess,
    /// Stores to shared memory, asynchronous copies too.
    pub shared_stores: SharedAccess,
    /// Atomic operations on shared memory.
    pub shared_atomics: SharedAccess,
    /// Bytes moved to and from local memory.
    pub local_bytes: u64,
    /// Matrix instructions by shape and type: `m16n8k16.f32.f16.f16.f32` per warp, `m64n128k16.f32.f16.f16` per
    /// warpgroup.
    pub matrix: BTreeMap<String, u64>,
    /// Times that something was waited for.
    pub waits: Waits,
}

impl Counts {
    /// The counts as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("counts are numbers, names and arrays")
    }

    /// Adds another block's counts.
    pub(crate) fn add(&mut self, other: &Self) {
        for class in 0..Class::COUNT {
            self.warp_instructions.0[class] += other.warp_instructions.0[class];
            self.thread_instructions.0[class] += other.thread_instructions.0[class];
        }
        self.divergent_branches += other.divergent_branches;
        self.global_loads.add(other.global_loads);
        self.global_stores.add(other.global_stores);
        self.global_atomics.add(other.global_atomics);
        self.bulk_loads.add(other.bulk_loads);
        self.bulk_stores.add(other.bulk_stores);
        self.shared_loads.add(other.shared_loads);
        self.shared_stores.add(other.shared_stores);
        self.shared_atomics.add(other.shared_atomics);
        self.local_bytes += other.local_bytes;
        for (shape, count) in &other.matrix {
            *self.matrix.entry(shape.clone()).or_default() += count;
        }
        self.waits.barriers += other.waits.barriers;
        self.waits.warp_barriers += other.waits.warp_barriers;
        self.waits.async_copies += other.waits.async_copies;
        self.waits.fences += other.waits.fences;
        self.waits.mbarriers += other.waits.mbarriers;
        self.waits.bulk_copies += other.waits.bulk_copies;
        self.waits.products += other.waits.products;
    }
}

impl GlobalAccess {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.sectors += other.sectors;
        self.ideal_sectors += other.ideal_sectors;
    }
}

impl SharedAccess {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.wavefronts += other.wavefronts;
        self.bank_conflicts += other.bank_conflicts;
    }
}
