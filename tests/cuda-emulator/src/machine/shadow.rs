//! Who touched which byte last, and whether that was ordered.
//!
//! Every warp has a clock, which barriers and `bar.warp.sync` advance, and knows of every other warp's clock up to
//! which time it is ordered after it. Of every byte the last write and two concurrent reads are kept, as the thread
//! and its warp's clock then. An access is a race if one of them is by another thread, at a time that the
//! accessing warp is not ordered after, and one of the two writes. What works beside the warps counts as a thread of
//! its own, with its own clock.

use super::clocks::{Agent, Clocks, Proxied};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Bytes of a page.
pub const PAGE: u64 = 256;

/// A thread and its warp's clock, or an agent beside the warps and its clock; 0 is none.
///
/// 20 bits of clock, a bit for strong accesses, 11 bits of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(u32);

impl Stamp {
    /// The last clock that fits.
    pub const LAST_CLOCK: u32 = (1 << 20) - 1;
    const NONE: Self = Self(0);

    pub fn new(thread: u32, clock: u32, strong: bool) -> Self {
        Self(clock << 12 | u32::from(strong) << 11 | thread)
    }

    /// The thread's index in its block, or an agent's number.
    pub fn thread(self) -> u32 {
        self.0 & 2047
    }

    fn clock(self) -> u32 {
        self.0 >> 12
    }

    fn is_strong(self) -> bool {
        self.0 >> 11 & 1 == 1
    }

    /// Whether `self` happened with nothing that orders it before an access at `now`. A thread's own accesses are in
    /// order; an agent's are not.
    fn is_concurrent(self, now: Self, seen: &Clocks) -> bool {
        let agent = Agent::of_thread(self.thread());
        let own = self.thread() == now.thread() && agent.words().is_none();
        self.0 != 0 && !own && self.clock() > seen[agent]
    }

    /// Whether it is a warp's write that the asynchronous proxy does not see yet.
    fn is_unfenced(self, memory: Proxied, seen: &Clocks) -> bool {
        let agent = Agent::of_thread(self.thread());
        self.0 != 0 && agent.words().is_none() && !seen.is_proxied(memory, agent, self.clock())
    }

    fn races(self, now: Self, seen: &Clocks) -> bool {
        self.is_concurrent(now, seen) && !(self.is_strong() && now.is_strong())
    }
}

#[derive(Clone, Copy)]
struct Entry {
    write: Stamp,
    reads: [Stamp; 2],
}

const EMPTY: Entry = Entry { write: Stamp::NONE, reads: [Stamp::NONE; 2] };

/// What a block did to a page's bytes, a bit for each.
#[derive(Clone, Copy, Default)]
pub struct Touched {
    /// Read before the block was ordered after earlier blocks.
    pub read: [u64; 4],
    /// Written then.
    pub written: [u64; 4],
    /// Read or written since.
    pub read_late: [u64; 4],
    pub written_late: [u64; 4],
    /// Lines of the last read and write.
    pub read_line: u32,
    pub write_line: u32,
}

struct Page {
    address: u64,
    /// An entry for each word, until something smaller is accessed; then one for each byte.
    by_word: bool,
    entries: Vec<Entry>,
    touched: Touched,
}

/// Page numbers are already spread well enough for a multiplication.
#[derive(Default)]
pub struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    }
}

/// A map from addresses of pages.
pub type PageMap<T> = HashMap<u64, T, BuildHasherDefault<PageHasher>>;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Read,
    Write,
    /// Reads and writes at once.
    Update,
}

/// An earlier access that the present one races with.
#[derive(Clone, Copy, Debug)]
pub struct Conflict {
    /// The other thread's index in the block, or an agent's number.
    pub thread: u32,
    /// What it did.
    pub earlier: Earlier,
}

/// What the earlier of two accesses was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Earlier {
    /// A write that nothing orders before.
    Write,
    /// A read that nothing orders before.
    Read,
    /// A write that is ordered before, but has not passed a fence to the asynchronous proxy.
    Unfenced,
}

/// The accesses of one block to one space.
#[derive(Default)]
pub struct Shadow {
    pages: Vec<Page>,
    used: usize,
    index: PageMap<u32>,
    /// The page found last.
    last: Option<(u64, u32)>,
}

/// Who accesses, when, and what it is ordered after.
#[derive(Clone, Copy)]
pub struct Observer<'a> {
    pub stamp: Stamp,
    pub seen: &'a Clocks,
    pub line: u32,
    /// The block is ordered after all earlier blocks.
    pub late: bool,
    /// The access is by the asynchronous proxy, to this memory.
    pub proxy: Option<Proxied>,
}

impl Shadow {
    /// Forgets everything, for the next block.
    pub fn clear(&mut self) {
        self.used = 0;
        self.index.clear();
        self.last = None;
    }

    /// The pages touched, in the order in which they first were.
    pub fn touched(&self) -> impl Iterator<Item = (u64, &Touched)> {
        self.pages[..self.used].iter().map(|page| (page.address, &page.touched))
    }

    fn page(&mut self, address: u64) -> &mut Page {
        let start = address & !(PAGE - 1);
        let index = match self.last {
            Some((last, index)) if last == start => index,
            _ => {
                let next = self.used as u32;
                let index = *self.index.entry(start).or_insert(next);
                if index == next {
                    if self.pages.len() == self.used {
                        let entries = Vec::with_capacity(64);
                        self.pages.push(Page { address: 0, by_word: true, entries, touched: Touched::default() });
                    }
                    let page = &mut self.pages[self.used];
                    page.address = start;
                    page.by_word = true;
                    page.touched = Touched::default();
                    page.entries.clear();
                    page.entries.resize(64, EMPTY);
                    self.used += 1;
                }
                self.last = Some((start, index));
                index
            }
        };
        &mut self.pages[index as usize]
    }

    /// Records an access of 1, 2, 4, 8 or 16 aligned bytes. `unchanged` tells whether a write leaves memory as it
    /// is: two threads may write the same.
    pub fn access(
        &mut self,
        address: u64,
        bytes: u32,
        action: Action,
        by: Observer<'_>,
        unchanged: bool,
    ) -> Result<(), Conflict> {
        let page = self.page(address);
        let offset = (address & (PAGE - 1)) as usize;
        let bits = (((1u128 << bytes) - 1) as u64) << (offset & 63);
        let touched = &mut page.touched;
        if action != Action::Write {
            let read = if by.late { &mut touched.read_late } else { &mut touched.read };
            read[offset >> 6] |= bits;
            touched.read_line = by.line;
        }
        if action != Action::Read {
            let written = if by.late { &mut touched.written_late } else { &mut touched.written };
            written[offset >> 6] |= bits;
            touched.write_line = by.line;
        }
        if page.by_word && bytes < 4 {
            page.by_word = false;
            page.entries = page.entries.iter().flat_map(|entry| [*entry; 4]).collect();
        }
        let (first, count) = if page.by_word { (offset / 4, bytes as usize / 4) } else { (offset, bytes as usize) };
        for entry in &mut page.entries[first..first + count] {
            if entry.write.races(by.stamp, by.seen) && !(action == Action::Write && unchanged) {
                return Err(Conflict { thread: entry.write.thread(), earlier: Earlier::Write });
            }
            if let Some(memory) = by.proxy
                && entry.write.is_unfenced(memory, by.seen)
            {
                return Err(Conflict { thread: entry.write.thread(), earlier: Earlier::Unfenced });
            }
            if action == Action::Read {
                let replaceable =
                    |read: &Stamp| read.thread() == by.stamp.thread() || !read.is_concurrent(by.stamp, by.seen);
                let free = entry.reads.iter().position(replaceable);
                if let Some(free) = free {
                    entry.reads[free] = by.stamp;
                }
                continue;
            }
            if let Some(read) = entry.reads.iter().find(|read| read.races(by.stamp, by.seen)) {
                return Err(Conflict { thread: read.thread(), earlier: Earlier::Read });
            }
            *entry = Entry { write: by.stamp, reads: EMPTY.reads };
        }
        Ok(())
    }
}
