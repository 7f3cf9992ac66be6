//! Who touched which byte last, and whether that was ordered.
//!
//! Every warp has a clock, which barriers and `bar.warp.sync` advance, and knows of every other warp's clock up to
//! which time it is ordered after it. Of every byte all accesses are kept, as the thread and its warp's clock then, that
//! nothing since makes superfluous: the last write, reads since, and, where strong accesses meet, earlier ones that
//! nothing orders before the last write. An access is a race if one of them is by another thread, at a time that the
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

    /// Whether whatever comes later and races with a read here races with one at `now` too.
    fn is_superseded(self, now: Self, seen: &Clocks) -> bool {
        let before = self.thread() == now.thread() || !self.is_concurrent(now, seen);
        before && (self.is_strong() || !now.is_strong())
    }

    /// Whether an access of another warp that races with one at `other` races with this too; so does one of the same
    /// warp, unless it is this thread's.
    fn covers(self, other: Self) -> bool {
        self.0 != 0
            && Agent::of_thread(self.thread()) == Agent::of_thread(other.thread())
            && self.clock() >= other.clock()
            && (!self.is_strong() || other.is_strong())
    }

    /// Whether it is of another thread of the same warp, at the same time and as strong.
    fn is_beside(self, other: Self) -> bool {
        const LANE: u32 = 31;
        self.0 != other.0 && (self.0 ^ other.0) & !LANE == 0 && Agent::of_thread(self.thread()).words().is_none()
    }

    /// Whether an access that races with one here races with one of `kept` anyway: of a warp, two threads' suffice,
    /// since the later access is of one thread at most.
    fn is_covered(self, kept: impl Iterator<Item = Self>) -> bool {
        let mut first = None;
        for one in kept.filter(|one| one.covers(self)) {
            if one.thread() == self.thread() || first.is_some_and(|first| first != one.thread()) {
                return true;
            }
            first = Some(one.thread());
        }
        false
    }
}

#[derive(Clone, Copy)]
struct Entry {
    write: Stamp,
    reads: [Stamp; 2],
    /// Where in [`Others`] what has no room here is; 0: there is none.
    others: u32,
}

const EMPTY: Entry = Entry { write: Stamp::NONE, reads: [Stamp::NONE; 2], others: 0 };

/// An access for which its entry has no room.
#[derive(Clone, Copy)]
struct Other {
    stamp: Stamp,
    wrote: bool,
}

/// Accesses for which their entries have no room: where several warps read the same, or strong accesses meet.
#[derive(Default)]
struct Others {
    /// The first is never used: its number says that there is no list.
    lists: Vec<Vec<Other>>,
    free: Vec<u32>,
}

impl Others {
    fn clear(&mut self) {
        self.free.clear();
        self.free.extend(1..self.lists.len() as u32);
    }

    fn of(&self, list: u32) -> &[Other] {
        self.lists.get(list as usize).map_or(&[], Vec::as_slice)
    }

    /// An entry's reads, or its writes.
    fn stamps(&self, entry: Entry, wrote: bool) -> impl Iterator<Item = Stamp> {
        let here = if wrote { [entry.write, Stamp::NONE] } else { entry.reads };
        let others = self.of(entry.others).iter().filter(move |other| other.wrote == wrote);
        here.into_iter().chain(others.map(|other| other.stamp))
    }

    /// An empty list's number.
    fn list(&mut self) -> u32 {
        let list = self.free.pop().unwrap_or_else(|| {
            let next = self.lists.len().max(1);
            self.lists.resize_with(next + 1, Vec::new);
            next as u32
        });
        self.lists[list as usize].clear();
        list
    }

    fn push(&mut self, entry: &mut Entry, other: Other) {
        if entry.others == 0 {
            entry.others = self.list();
        }
        self.lists[entry.others as usize].push(other);
    }

    /// The same entry for another byte.
    fn copy(&mut self, entry: &Entry) -> Entry {
        let mut copy = *entry;
        if entry.others != 0 {
            copy.others = self.list();
            self.lists[copy.others as usize] = self.lists[entry.others as usize].clone();
        }
        copy
    }

    /// Keeps a read.
    fn read(&mut self, entry: &mut Entry, now: Stamp, seen: &Clocks) {
        let [one, other] = entry.reads;
        // What most reads of a warp at one place are.
        if now.is_beside(one) && now.is_beside(other) && one != other {
            return;
        }
        if let Some(old) = entry.reads.iter_mut().find(|old| old.is_superseded(now, seen)) {
            *old = now;
            return;
        }
        if now.is_covered(self.stamps(*entry, false)) {
            return;
        }
        let other = Other { stamp: now, wrote: false };
        let mut old = self.lists.get_mut(entry.others as usize).into_iter().flatten();
        match old.find(|old| !old.wrote && old.stamp.is_superseded(now, seen)) {
            Some(old) => *old = other,
            None => self.push(entry, other),
        }
    }

    /// Keeps a write, in place of all that is ordered before it.
    fn write(&mut self, entry: &mut Entry, now: Stamp, seen: &Clocks) {
        let old = *entry;
        *entry = Entry { write: now, ..EMPTY };
        // A race has been reported by now, so nothing is concurrent to it but strong accesses to a strong one.
        if now.is_strong() {
            let reads = old.reads.map(|stamp| Other { stamp, wrote: false });
            let before = [&reads[..], &[Other { stamp: old.write, wrote: true }], self.of(old.others)].concat();
            for other in before.into_iter().filter(|other| other.stamp.is_concurrent(now, seen)) {
                if !other.stamp.is_covered(self.stamps(*entry, other.wrote)) {
                    self.push(entry, other);
                }
            }
        }
        if old.others != 0 {
            self.free.push(old.others);
        }
    }
}

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
    others: Others,
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
        self.others.clear();
        self.index.clear();
        self.last = None;
    }

    /// The pages touched, in the order in which they first were.
    pub fn touched(&self) -> impl Iterator<Item = (u64, &Touched)> {
        self.pages[..self.used].iter().map(|page| (page.address, &page.touched))
    }

    /// Where in `pages` the page of an address is.
    fn page(&mut self, address: u64) -> usize {
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
        index as usize
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
        let index = self.page(address);
        let Self { pages, others, .. } = self;
        let page = &mut pages[index];
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
            page.entries = page.entries.iter().flat_map(|entry| [(); 4].map(|()| others.copy(entry))).collect();
        }
        let (first, count) = if page.by_word { (offset / 4, bytes as usize / 4) } else { (offset, bytes as usize) };
        for entry in &mut page.entries[first..first + count] {
            let Observer { stamp: now, seen, .. } = by;
            if !(action == Action::Write && unchanged)
                && let Some(write) = others.stamps(*entry, true).find(|write| write.races(now, seen))
            {
                return Err(Conflict { thread: write.thread(), earlier: Earlier::Write });
            }
            if let Some(memory) = by.proxy
                && let Some(write) = others.stamps(*entry, true).find(|write| write.is_unfenced(memory, seen))
            {
                return Err(Conflict { thread: write.thread(), earlier: Earlier::Unfenced });
            }
            if action == Action::Read {
                others.read(entry, now, seen);
                continue;
            }
            if let Some(read) = others.stamps(*entry, false).find(|read| read.races(now, seen)) {
                return Err(Conflict { thread: read.thread(), earlier: Earlier::Read });
            }
            others.write(entry, now, seen);
        }
        Ok(())
    }
}
