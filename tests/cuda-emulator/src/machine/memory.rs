//! Device memory: allocations far apart, so that an address past the end of one is in none.

use crate::MemoryError;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

/// Where the first allocation goes.
const FIRST: u64 = 0x7000_0000_0000;
/// Allocations start at multiples of this.
const ALIGN: u64 = 512;
/// No allocation follows another within this many bytes.
const GAP: u64 = 1 << 16;
/// Freed ranges that are remembered for the message of a use after free.
const REMEMBERED: usize = 1 << 16;

/// A range of device memory. Its words are atomic because blocks run on several threads of the host; orders between
/// blocks come from the scheduler.
#[derive(Debug)]
pub struct Allocation {
    /// Its first byte.
    pub address: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Kernels must not write it.
    pub constant: bool,
    words: Box<[AtomicU32]>,
    /// A bit for each byte of a word: something wrote it.
    valid: Box<[AtomicU8]>,
}

impl Allocation {
    fn new(address: u64, bytes: u64, constant: bool) -> Self {
        let words = bytes.div_ceil(4) as usize;
        Self {
            address,
            bytes,
            constant,
            // All ones are a NaN in every format: what was never written shows.
            words: std::iter::repeat_with(|| AtomicU32::new(u32::MAX)).take(words).collect(),
            valid: std::iter::repeat_with(|| AtomicU8::new(0)).take(words).collect(),
        }
    }

    /// Whether it holds all of a range.
    pub fn contains(&self, address: u64, bytes: u64) -> bool {
        address >= self.address
            && address - self.address <= self.bytes
            && bytes <= self.bytes - (address - self.address)
    }

    /// The first byte of a range within 8 that nothing wrote. `offset` is aligned to the size: 1, 2, 4 or 8 bytes.
    pub fn first_invalid(&self, offset: u64, bytes: u32) -> Option<u32> {
        let word = (offset >> 2) as usize;
        match bytes {
            8 => {
                let valid = self.valid[word].load(Relaxed) | self.valid[word + 1].load(Relaxed) << 4;
                (valid != 0xff).then(|| valid.trailing_ones())
            }
            4 => {
                let valid = self.valid[word].load(Relaxed);
                (valid != 15).then(|| valid.trailing_ones())
            }
            _ => {
                let valid = self.valid[word].load(Relaxed) >> (offset & 3);
                (valid.trailing_ones() < bytes).then(|| valid.trailing_ones())
            }
        }
    }

    /// Loads 1, 2, 4 or 8 bytes at an offset that is aligned to them.
    pub fn load(&self, offset: u64, bytes: u32) -> u64 {
        let at = (offset >> 2) as usize;
        let word = u64::from(self.words[at].load(Relaxed));
        match bytes {
            8 => word | u64::from(self.words[at + 1].load(Relaxed)) << 32,
            4 => word,
            2 => word >> (8 * (offset & 3)) & 0xffff,
            _ => word >> (8 * (offset & 3)) & 0xff,
        }
    }

    /// Stores 1, 2, 4 or 8 bytes at an offset that is aligned to them.
    pub fn store(&self, offset: u64, bytes: u32, value: u64) {
        let at = (offset >> 2) as usize;
        match bytes {
            8 => {
                self.store_word(at, value as u32);
                self.store_word(at + 1, (value >> 32) as u32);
            }
            4 => self.store_word(at, value as u32),
            _ => {
                let shift = 8 * (offset & 3) as u32;
                let mask = ((1u32 << (8 * bytes)) - 1) << shift;
                let bits = (value as u32) << shift & mask;
                // The word's other bytes may belong to other blocks.
                let mut old = self.words[at].load(Relaxed);
                while let Err(now) = self.words[at].compare_exchange_weak(old, old & !mask | bits, Relaxed, Relaxed) {
                    old = now;
                }
                let valid = ((1u8 << bytes) - 1) << (offset & 3);
                if self.valid[at].load(Relaxed) & valid != valid {
                    self.valid[at].fetch_or(valid, Relaxed);
                }
            }
        }
    }

    fn store_word(&self, at: usize, value: u32) {
        self.words[at].store(value, Relaxed);
        self.valid[at].store(15, Relaxed);
    }

    fn byte(&self, offset: u64) -> u8 {
        self.load(offset, 1) as u8
    }

    /// Copies out from `offset` on.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        if !offset.is_multiple_of(4) {
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = self.byte(offset + at as u64);
            }
            return;
        }
        let words = &self.words[(offset / 4) as usize..];
        let mut chunks = bytes.chunks_exact_mut(4);
        let mut done = 0;
        for (chunk, word) in chunks.by_ref().zip(words) {
            chunk.copy_from_slice(&word.load(Relaxed).to_le_bytes());
            done += 4;
        }
        for (at, byte) in chunks.into_remainder().iter_mut().enumerate() {
            *byte = self.byte(offset + done + at as u64);
        }
    }

    /// Sets bytes from `offset` on.
    pub fn fill(&self, offset: u64, value: u8, bytes: u64) {
        let chunk = [value; 4096];
        let mut done = 0;
        while done < bytes {
            let step = (bytes - done).min(chunk.len() as u64);
            self.write(offset + done, &chunk[..step as usize]);
            done += step;
        }
    }

    /// Copies in from `offset` on.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        let head = (offset.next_multiple_of(4) - offset).min(bytes.len() as u64) as usize;
        let (head, body) = bytes.split_at(head);
        for byte in head {
            self.store(at, 1, u64::from(*byte));
            at += 1;
        }
        let mut chunks = body.chunks_exact(4);
        for chunk in chunks.by_ref() {
            let word = u32::from_le_bytes(chunk.try_into().expect("chunks of four bytes"));
            self.store_word((at / 4) as usize, word);
            at += 4;
        }
        for byte in chunks.remainder() {
            self.store(at, 1, u64::from(*byte));
            at += 1;
        }
    }
}

/// All device memory.
#[derive(Debug)]
pub struct Memory {
    allocations: BTreeMap<u64, Allocation>,
    /// Start and size of freed ranges, and the oldest of them first.
    freed: BTreeMap<u64, u64>,
    next: u64,
    used: u64,
    /// Bytes that may be allocated at once.
    pub capacity: u64,
}

impl Memory {
    pub fn new(capacity: u64) -> Self {
        Self { allocations: BTreeMap::new(), freed: BTreeMap::new(), next: FIRST, used: 0, capacity }
    }

    /// Bytes allocated now.
    pub fn used(&self) -> u64 {
        self.used
    }

    pub fn allocate(&mut self, bytes: u64, constant: bool) -> Result<u64, MemoryError> {
        let left = self.capacity - self.used;
        if bytes > left {
            return Err(MemoryError::Full { bytes, left, capacity: self.capacity });
        }
        let address = self.next;
        self.next = (address + bytes + GAP).next_multiple_of(ALIGN);
        self.used += bytes;
        self.allocations.insert(address, Allocation::new(address, bytes, constant));
        Ok(address)
    }

    pub fn free(&mut self, address: u64) -> Result<(), MemoryError> {
        let Some(allocation) = self.allocations.remove(&address) else {
            return Err(if self.freed.contains_key(&address) {
                MemoryError::Freed { address }
            } else {
                MemoryError::NotAllocated { address }
            });
        };
        self.used -= allocation.bytes;
        self.freed.insert(address, allocation.bytes);
        if self.freed.len() > REMEMBERED {
            self.freed.pop_first();
        }
        Ok(())
    }

    /// The allocation that holds `address`.
    pub fn find(&self, address: u64) -> Option<&Allocation> {
        let (_, allocation) = self.allocations.range(..=address).next_back()?;
        (address - allocation.address < allocation.bytes.max(1)).then_some(allocation)
    }

    /// The nearest allocation before `address`.
    pub fn before(&self, address: u64) -> Option<&Allocation> {
        self.allocations.range(..=address).next_back().map(|(_, allocation)| allocation)
    }

    /// Whether `address` was in an allocation that has been freed.
    pub fn was_freed(&self, address: u64) -> bool {
        self.freed.range(..=address).next_back().is_some_and(|(start, bytes)| address - start < *bytes)
    }

    /// The allocation that holds a whole range.
    pub fn range(&self, address: u64, bytes: u64) -> Result<&Allocation, MemoryError> {
        match self.find(address) {
            Some(allocation) if allocation.contains(address, bytes) => Ok(allocation),
            _ if self.was_freed(address) => Err(MemoryError::Freed { address }),
            _ => Err(MemoryError::OutOfBounds { address, bytes }),
        }
    }

    /// Start and size of every allocation.
    pub fn all(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.allocations.values().map(|allocation| (allocation.address, allocation.bytes))
    }

    /// Copies between allocations; what nothing wrote stays so.
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), MemoryError> {
        let (target, source) = (self.range(to, bytes)?, self.range(from, bytes)?);
        let (to, from) = (to - target.address, from - source.address);
        let one = |at: u64, width: u32| {
            if source.first_invalid(from + at, width).is_none() {
                target.store(to + at, width, source.load(from + at, width));
                return;
            }
            for at in at..at + u64::from(width) {
                if source.first_invalid(from + at, 1).is_none() {
                    target.store(to + at, 1, source.load(from + at, 1));
                }
            }
        };
        let width = if to % 4 == 0 && from % 4 == 0 { 4 } else { 1 };
        let whole = bytes / width * width;
        for at in (0..whole).step_by(width as usize) {
            one(at, width as u32);
        }
        for at in whole..bytes {
            one(at, 1);
        }
        Ok(())
    }
}
