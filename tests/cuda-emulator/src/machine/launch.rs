//! Spreads a grid's blocks over threads of the host, such that the result does not depend on how many there are.
//!
//! Blocks start in order. A block's first atomic operation on device memory waits until all earlier blocks have
//! ended, so that sums of floats, tickets and queues come out as if blocks had run one after another. What a block
//! touched is compared with what earlier blocks touched when its turn comes in that same order.

use super::block::Block;
use super::memory::Memory;
use super::shadow::{PAGE, PageMap, Touched};
use crate::counts::Counts;
use crate::error::{Fault, FaultKind};
use crate::program::build::Parts;
use crate::program::{Function, Lanes, Special, WARP};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What all blocks of a launch share.
pub(crate) struct Context<'a> {
    pub program: &'a Parts,
    /// The kernel's index.
    pub function: usize,
    /// Constants of every function, in all lanes.
    pub constants: Vec<Vec<Lanes>>,
    /// Addresses of the module's symbols, in all lanes.
    pub symbols: Vec<Lanes>,
    pub memory: &'a Memory,
    pub parameters: &'a [u8],
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Where the block's shared memory begins; the system's is before.
    pub shared_start: u64,
    pub shared_bytes: u64,
    pub dynamic_shared_bytes: u64,
    pub multiprocessors: u32,
    pub step_budget: u64,
    progress: Mutex<Progress>,
    ended: Condvar,
}

/// How far the grid is.
#[derive(Default)]
struct Progress {
    /// The next block to start.
    next: u64,
    /// All blocks before this one have ended and been merged.
    merged: u64,
    /// Blocks that have ended but wait for earlier ones.
    waiting: BTreeMap<u64, Ended>,
    counts: Counts,
    touched: PageMap<Merged>,
    output: String,
    fault: Option<Fault>,
}

struct Ended {
    counts: Counts,
    touched: Vec<(u64, Touched)>,
    output: String,
    fault: Option<Fault>,
}

/// What merged blocks did to a page.
#[derive(Default)]
struct Merged {
    read: [u64; 4],
    written: [u64; 4],
    reader: (u64, u32),
    writer: (u64, u32),
}

impl<'a> Context<'a> {
    #[expect(clippy::too_many_arguments, reason = "built in one place")]
    pub fn new(
        program: &'a Parts,
        function: usize,
        symbols: &[u64],
        memory: &'a Memory,
        parameters: &'a [u8],
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared_bytes: u64,
        shared_start: u64,
        multiprocessors: u32,
        step_budget: u64,
    ) -> Self {
        let spread = |values: &[u64]| values.iter().map(|value| [*value; WARP]).collect::<Vec<Lanes>>();
        Self {
            program,
            function,
            constants: program.functions.iter().map(|function| spread(&function.constants)).collect(),
            symbols: spread(symbols),
            memory,
            parameters,
            grid,
            block,
            shared_start,
            shared_bytes: program.functions[function].static_shared_bytes + dynamic_shared_bytes,
            dynamic_shared_bytes,
            multiprocessors,
            step_budget,
            progress: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    pub fn kernel(&self) -> &Function {
        &self.program.functions[self.function]
    }

    pub fn threads_per_block(&self) -> u32 {
        self.block.iter().product()
    }

    pub fn warps_per_block(&self) -> u32 {
        self.threads_per_block().div_ceil(32)
    }

    fn blocks(&self) -> u64 {
        self.grid.iter().map(|extent| u64::from(*extent)).product()
    }

    /// What is wrong with bytes from `address` to `end` of shared memory, if they are not the block's.
    pub fn outside_shared(&self, address: u64, end: u64) -> Option<String> {
        if address < self.shared_start {
            return Some(format!(": the system has the first {} bytes", self.shared_start));
        }
        (end > self.shared_start + self.shared_bytes).then(|| format!(": the block has {} bytes", self.shared_bytes))
    }

    /// A thread's coordinates in its block.
    pub fn thread(&self, index: u32) -> [u32; 3] {
        let [x, y, _] = self.block;
        [index % x, index / x % y, index / x / y]
    }

    /// Fills in a warp's special registers.
    pub fn specials(&self, block: [u32; 3], warp: u32, out: &mut [Lanes; Special::COUNT]) {
        let linear = u64::from(block[0])
            + u64::from(self.grid[0]) * (u64::from(block[1]) + u64::from(self.grid[1]) * u64::from(block[2]));
        let mut set = |special: Special, value: u32| out[special as usize] = [u64::from(value); WARP];
        set(Special::NtidX, self.block[0]);
        set(Special::NtidY, self.block[1]);
        set(Special::NtidZ, self.block[2]);
        set(Special::CtaidX, block[0]);
        set(Special::CtaidY, block[1]);
        set(Special::CtaidZ, block[2]);
        set(Special::NctaidX, self.grid[0]);
        set(Special::NctaidY, self.grid[1]);
        set(Special::NctaidZ, self.grid[2]);
        set(Special::Warpid, warp);
        set(Special::Nwarpid, self.warps_per_block());
        set(Special::Smid, (linear % u64::from(self.multiprocessors)) as u32);
        set(Special::Nsmid, self.multiprocessors);
        set(Special::Gridid, 1);
        set(Special::DynamicSmemSize, self.dynamic_shared_bytes as u32);
        set(Special::TotalSmemSize, self.shared_bytes as u32);
        set(Special::Zero, 0);
        set(Special::One, 1);
        set(Special::WarpSize, 32);
        set(Special::ReservedShared, 1 << 31);
        let mut set_lanes = |special: Special, value: &dyn Fn(u32) -> u32| {
            out[special as usize] = std::array::from_fn(|lane| u64::from(value(lane as u32)));
        };
        set_lanes(Special::TidX, &|lane| self.thread(warp * 32 + lane)[0]);
        set_lanes(Special::TidY, &|lane| self.thread(warp * 32 + lane)[1]);
        set_lanes(Special::TidZ, &|lane| self.thread(warp * 32 + lane)[2]);
        set_lanes(Special::Laneid, &|lane| lane);
        set_lanes(Special::LanemaskEq, &|lane| 1 << lane);
        set_lanes(Special::LanemaskLt, &|lane| (1 << lane) - 1);
        set_lanes(Special::LanemaskLe, &|lane| u32::MAX >> (31 - lane));
        set_lanes(Special::LanemaskGe, &|lane| u32::MAX << lane);
        set_lanes(Special::LanemaskGt, &|lane| u32::MAX << lane << 1);
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once all blocks before this one have ended.
    pub fn wait_for_earlier_blocks(&self, block: u64) {
        let mut progress = self.lock();
        while progress.merged < block && progress.fault.is_none() {
            progress = self.ended.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs all blocks on up to `workers` threads; returns what they printed, too.
    pub fn run(&self, workers: usize) -> (String, Result<Counts, Fault>) {
        let workers = (workers as u64).min(self.blocks()).max(1);
        std::thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(|| self.work());
            }
            self.work();
        });
        let mut progress = self.lock();
        let output = std::mem::take(&mut progress.output);
        match progress.fault.take() {
            Some(fault) => (output, Err(fault)),
            None => {
                let mut counts = std::mem::take(&mut progress.counts);
                counts.kernel.clone_from(&self.kernel().name);
                counts.grid = self.grid;
                counts.block = self.block;
                counts.shared_bytes = self.shared_bytes;
                (output, Ok(counts))
            }
        }
    }

    fn work(&self) {
        let mut block = Block::new();
        loop {
            let index = {
                let mut progress = self.lock();
                if progress.next >= self.blocks() || progress.is_failing() {
                    return;
                }
                progress.next += 1;
                progress.next - 1
            };
            let fault = block.run(self, index).err();
            let ended = Ended {
                counts: std::mem::take(&mut block.counts),
                touched: block.global_shadow.touched().map(|(page, touched)| (page, *touched)).collect(),
                output: std::mem::take(&mut block.output),
                fault,
            };
            let mut progress = self.lock();
            progress.waiting.insert(index, ended);
            self.merge(&mut progress);
            drop(progress);
            self.ended.notify_all();
        }
    }

    /// Merges ended blocks for as long as the next in order is there.
    fn merge(&self, progress: &mut Progress) {
        while progress.fault.is_none() {
            let index = progress.merged;
            let Some(ended) = progress.waiting.remove(&index) else { return };
            progress.counts.add(&ended.counts);
            progress.output.push_str(&ended.output);
            progress.fault = ended.fault.or_else(|| self.merge_pages(progress, index, &ended.touched));
            progress.merged += 1;
        }
    }

    /// Finds races of this block with earlier ones, then adds what it touched.
    fn merge_pages(&self, progress: &mut Progress, index: u64, touched: &[(u64, Touched)]) -> Option<Fault> {
        for (page, now) in touched {
            let merged = progress.touched.entry(*page).or_default();
            for part in 0..4 {
                let against_writes = (now.read[part] | now.written[part]) & merged.written[part];
                let against_reads = now.written[part] & merged.read[part];
                let conflicts = against_writes | against_reads;
                if conflicts == 0 {
                    continue;
                }
                let bit = conflicts.trailing_zeros();
                let writes = now.written[part] >> bit & 1 == 1;
                let (word, line) = if writes { ("write", now.write_line) } else { ("read", now.read_line) };
                let (what, (other, other_line)) =
                    if against_writes >> bit & 1 == 1 { ("wrote", merged.writer) } else { ("read", merged.reader) };
                let place = self.coordinates(other);
                return Some(Fault {
                    kind: FaultKind::Race,
                    kernel: self.kernel().name.clone(),
                    line,
                    block: Some(self.coordinates(index)),
                    thread: None,
                    address: Some(page + 64 * part as u64 + u64::from(bit)),
                    detail: format!(
                        "{word} of global memory that block {place:?} {what} (at line {other_line}) in the same launch"
                    ),
                });
            }
            for part in 0..4 {
                merged.read[part] |= now.read[part] | now.read_late[part];
                merged.written[part] |= now.written[part] | now.written_late[part];
            }
            if now.read_line != 0 {
                merged.reader = (index, now.read_line);
            }
            if now.write_line != 0 {
                merged.writer = (index, now.write_line);
            }
        }
        None
    }

    fn coordinates(&self, block: u64) -> [u32; 3] {
        let [x, y, _] = self.grid.map(u64::from);
        [(block % x) as u32, (block / x % y) as u32, (block / x / y) as u32]
    }
}

impl Progress {
    /// Whether no further block needs to start.
    fn is_failing(&self) -> bool {
        self.fault.is_some() || self.waiting.values().any(|ended| ended.fault.is_some())
    }
}

const _: () = assert!(PAGE == 256, "the bitmaps of a page hold 256 bytes");
