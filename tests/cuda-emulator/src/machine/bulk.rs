//! `cp.async.bulk`: bulk copies between device and shared memory.
//!
//! A copy moves its bytes when it is issued; that no one touches them before it is known to be done is a matter of the
//! clocks of what completes it: the phase of an mbarrier, or a group that its thread waits for.

use super::access::{Access, Verb};
use super::clocks::{Agent, Clocks};
use super::execute::{Execution, Outcome, lanes, space_of};
use crate::counts::GlobalAccess;
use crate::error::{FaultKind, Problem};
use crate::program::{BulkCopy, BulkGlobal, Memory};
use crate::tensor_map::{Swizzle, TensorMap};

/// The largest piece that a copy is made of.
const PIECE: u64 = 16;
/// What a box's place in shared memory is a multiple of.
const BOX_ALIGN: u64 = 128;

/// A copy's row: where it is in device memory, and where in shared memory.
struct Row {
    global: u64,
    shared: u64,
    /// Bytes of it in shared memory, of which some before and some after those in device memory are zeros.
    bytes: u64,
    before: u64,
    inside: u64,
}

/// On whose account a copy reads and writes.
struct Accounts<'a> {
    reads: (Agent, u32),
    writes: (Agent, u32),
    seen: &'a Clocks,
}

impl Execution<'_, '_> {
    pub fn bulk_copy(&mut self, copy: &BulkCopy, active: u32) -> Outcome<()> {
        let shared = self.addresses(&copy.shared);
        let mbarriers = copy.mbarrier.as_ref().map(|mbarrier| self.addresses(mbarrier));
        for lane in lanes(active) {
            let (rows, swizzle) = self.rows(copy, lane, shared[lane])?;
            let mbarrier = match &mbarriers {
                Some(addresses) => Some(self.find_mbarrier(lane, Memory::Shared, addresses[lane])?),
                None => None,
            };
            let seen = self.warp.knowledge();
            let (index, group) = (self.warp.index, self.warp.bulk_groups[lane] + 1);
            let by_phase = mbarrier.and_then(|mbarrier| self.block.begin_copy(mbarrier));
            let accounts = Accounts {
                reads: by_phase.unwrap_or((Agent::bulk_reads(index), group)),
                writes: by_phase.unwrap_or((Agent::bulk_writes(index), group)),
                seen: &seen,
            };
            let mut bytes = 0;
            for row in &rows {
                if mbarrier.is_some() {
                    self.load_row(lane, row, swizzle, &accounts)?;
                } else {
                    self.store_row(lane, row, swizzle, &accounts)?;
                }
                bytes += row.bytes;
            }
            let counts = &mut self.block.counts;
            count(if mbarrier.is_some() { &mut counts.bulk_loads } else { &mut counts.bulk_stores }, &rows);
            match mbarrier {
                Some(mbarrier) => self.complete_bytes(lane, mbarrier, bytes as i64)?,
                None => self.warp.bulk_open |= 1 << lane,
            }
            self.warp.advance_clock();
        }
        Ok(())
    }

    /// The rows of a lane's copy and how they lie in shared memory.
    fn rows(&self, copy: &BulkCopy, lane: usize, shared: u64) -> Outcome<(Vec<Row>, Swizzle)> {
        let fail = |kind, detail: String, address| Err(Problem::new(kind, detail).lane(lane).address(address));
        match &copy.global {
            BulkGlobal::Bytes { address, bytes } => {
                let (global, bytes) = (self.addresses(address)[lane], self.source(*bytes)[lane]);
                if bytes == 0 || !bytes.is_multiple_of(PIECE) {
                    let detail = format!("a bulk copy of {bytes} bytes: a multiple of 16 is needed");
                    return fail(FaultKind::Operand, detail, shared);
                }
                let room = self.context.shared_bytes;
                if bytes > room {
                    let detail = format!("a bulk copy of {bytes} bytes of shared memory: the block has {room} bytes");
                    return fail(FaultKind::OutOfBounds, detail, shared);
                }
                for (address, space) in [(global, "global"), (shared, "shared")] {
                    if !address.is_multiple_of(PIECE) {
                        let detail = format!("a bulk copy of {space} memory, whose address is a multiple of 16");
                        return fail(FaultKind::Misaligned, detail, address);
                    }
                }
                let (memory, global) = space_of(global);
                if memory != Memory::Global {
                    return fail(FaultKind::OutOfBounds, "a bulk copy outside global memory".into(), global);
                }
                Ok((vec![Row { global, shared, bytes, before: 0, inside: bytes }], Swizzle::None))
            }
            BulkGlobal::Tensor { map, coordinates } => {
                let map = self.tensor_map(lane, self.addresses(map)[lane])?;
                if map.extents.len() != coordinates.len() {
                    let detail = format!("{} coordinates in {} axes", coordinates.len(), map.extents.len());
                    return fail(FaultKind::Operand, detail, shared);
                }
                if !shared.is_multiple_of(BOX_ALIGN) {
                    let detail = "a box in shared memory, whose address is a multiple of 128";
                    return fail(FaultKind::Misaligned, detail.into(), shared);
                }
                let start: Vec<i64> =
                    coordinates.iter().map(|one| i64::from(self.source(*one)[lane] as u32 as i32)).collect();
                let stores = copy.mbarrier.is_none();
                if start[0] * i64::from(map.element_bytes) % PIECE as i64 != 0 {
                    let detail = format!(
                        "a box that starts at element {} of {} bytes: a row's place is a multiple of 16 bytes",
                        start[0], map.element_bytes
                    );
                    return fail(FaultKind::Operand, detail, shared);
                }
                if stores && start.iter().any(|one| *one < 0) {
                    let detail = format!("a box that starts at {start:?} is not stored: a coordinate is below 0");
                    return fail(FaultKind::Operand, detail, shared);
                }
                let bytes = map.row_bytes();
                if map.swizzle != Swizzle::None && bytes != map.swizzle.span() {
                    // How such rows lie is written nowhere.
                    let detail = format!(
                        "a box with rows of {bytes} bytes, swizzled over {}: not supported",
                        map.swizzle.span()
                    );
                    return fail(FaultKind::Operand, detail, shared);
                }
                let rows = (0..map.rows()).map(|row| {
                    let (global, before, inside) = map.row(&start, row);
                    // Only whole pieces are stored, the last of a row too: what follows the row there is overwritten.
                    let inside = if stores { inside.next_multiple_of(PIECE) } else { inside };
                    Row { global, shared: shared.wrapping_add(row * bytes), bytes, before, inside }
                });
                Ok((rows.collect(), map.swizzle))
            }
        }
    }

    fn tensor_map(&self, lane: usize, address: u64) -> Outcome<TensorMap> {
        let fail = |kind, detail: &str| Err(Problem::new(kind, detail).lane(lane).address(address));
        if !address.is_multiple_of(TensorMap::ALIGN) {
            return fail(FaultKind::Misaligned, "a tensor map, whose address is a multiple of 64");
        }
        let bytes = TensorMap::BYTES as u64;
        let map = match space_of(address) {
            (Memory::Parameters, offset) => {
                self.context.parameters.get(offset as usize..(offset + bytes) as usize).and_then(TensorMap::decode)
            }
            (Memory::Global, _) => self.context.memory.range(address, bytes).ok().and_then(|allocation| {
                let mut map = [0; TensorMap::BYTES];
                allocation.read(address - allocation.address, &mut map);
                TensorMap::decode(&map)
            }),
            _ => None,
        };
        match map {
            Some(map) => Ok(map),
            None if address < self.context.parameters.len() as u64 => {
                fail(FaultKind::Operand, "no tensor map there; the address of a parameter needs a cvta.param")
            }
            None => fail(FaultKind::Operand, "no tensor map there"),
        }
    }

    fn load_row(&mut self, lane: usize, row: &Row, swizzle: Swizzle, accounts: &Accounts<'_>) -> Outcome<()> {
        let mut data = vec![0; row.bytes as usize];
        let mut at = 0;
        while at < row.inside {
            let (address, bytes) = piece(row.global.wrapping_add(at), row.inside - at);
            let access = self.resolve(lane, Memory::Global, address, bytes, Verb::Load, false)?;
            self.observe_copy(&access, accounts.reads.0, accounts.reads.1, accounts.seen)?;
            let start = (row.before + at) as usize;
            self.fetch_bytes(&access, &mut data[start..start + bytes as usize]);
            at += u64::from(bytes);
        }
        for (at, piece) in data.chunks_exact(PIECE as usize).enumerate() {
            let address = swizzle.apply(row.shared.wrapping_add(PIECE * at as u64), 0);
            let access = self.resolve(lane, Memory::Shared, address, PIECE as u32, Verb::Store, false)?;
            self.observe_copy(&access, accounts.writes.0, accounts.writes.1, accounts.seen)?;
            self.put_bytes(&access, piece);
        }
        Ok(())
    }

    fn store_row(&mut self, lane: usize, row: &Row, swizzle: Swizzle, accounts: &Accounts<'_>) -> Outcome<()> {
        let mut data = vec![0; row.bytes as usize];
        for (at, piece) in data.chunks_exact_mut(PIECE as usize).enumerate() {
            let start = PIECE * at as u64;
            // Of what lies outside the tensor nothing is read.
            if start + PIECE <= row.before || start >= row.before + row.inside {
                continue;
            }
            let address = swizzle.apply(row.shared.wrapping_add(start), 0);
            let access = self.resolve(lane, Memory::Shared, address, PIECE as u32, Verb::Load, false)?;
            self.observe_copy(&access, accounts.reads.0, accounts.reads.1, accounts.seen)?;
            self.fetch_bytes(&access, piece);
        }
        let mut at = 0;
        while at < row.inside {
            let (address, bytes) = piece(row.global.wrapping_add(at), row.inside - at);
            let access = self.resolve(lane, Memory::Global, address, bytes, Verb::Store, false)?;
            self.observe_copy(&access, accounts.writes.0, accounts.writes.1, accounts.seen)?;
            let start = (row.before + at) as usize;
            self.put_bytes(&access, &data[start..start + bytes as usize]);
            at += u64::from(bytes);
        }
        Ok(())
    }

    fn fetch_bytes(&self, access: &Access<'_>, out: &mut [u8]) {
        let step = access.bytes.min(8);
        for (at, out) in out.chunks_exact_mut(step as usize).enumerate() {
            let value = self.fetch(access, at as u32 * step, step);
            out.copy_from_slice(&value.to_le_bytes()[..step as usize]);
        }
    }

    fn put_bytes(&mut self, access: &Access<'_>, bytes: &[u8]) {
        let step = access.bytes.min(8);
        for (at, bytes) in bytes.chunks_exact(step as usize).enumerate() {
            let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            self.put(access, at as u32 * step, step, value);
        }
    }

    /// Ends the groups of each lane but its last `groups`.
    pub fn bulk_wait(&mut self, groups: u32, read: bool, active: u32) {
        self.block.counts.waits.bulk_copies += 1;
        for lane in lanes(active) {
            let done = self.warp.bulk_groups[lane].saturating_sub(groups);
            self.warp.seen.learn(Agent::bulk_reads(self.warp.index), done);
            if !read {
                self.warp.seen.learn(Agent::bulk_writes(self.warp.index), done);
            }
        }
    }
}

/// The aligned piece of at most 16 bytes that starts at an address.
fn piece(address: u64, left: u64) -> (u64, u32) {
    let mut bytes = PIECE;
    while bytes > left || !address.is_multiple_of(bytes) {
        bytes /= 2;
    }
    (address, bytes as u32)
}

/// Counts a copy, whose rows have been found to be in memory.
fn count(target: &mut GlobalAccess, rows: &[Row]) {
    target.requests += 1;
    let mut bytes = 0;
    let mut last = None;
    for row in rows.iter().filter(|row| row.inside != 0) {
        bytes += row.inside;
        let (first, end) = (row.global / 32, (row.global + row.inside - 1) / 32);
        // Rows that lie together may share a sector.
        target.sectors += end - first + u64::from(last != Some(first));
        last = Some(end);
    }
    target.bytes += bytes;
    target.ideal_sectors += bytes.div_ceil(32);
}
