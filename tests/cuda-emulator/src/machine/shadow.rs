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
    #[inline]
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

    /// Whether it is of a thread of the same warp at the same time, both of them weak.
    fn is_beside(self, other: Self) -> bool {
        const LANE: u32 = 31;
        (self.0 ^ other.0) & !LANE == 0
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

/// Weak reads by one warp's threads at one time: two of them are enough, see [`Stamp::is_covered`].
type Readers = [Stamp; 2];

const NOBODY: Readers = [Stamp::NONE; 2];

/// Room for this many warps' reads is made at once: where two warps read, others mostly follow.
const WARPS_AT_ONCE: usize = 8;

/// Keeps a warp's weak read, if there is room; else the readers there are of another warp and may race yet.
#[inline]
fn keep_reader(readers: &mut Readers, now: Stamp, seen: &Clocks) -> bool {
    let [one, other] = *readers;
    if now.is_beside(one) {
        if other == Stamp::NONE && now != one {
            readers[1] = now;
        }
        return true;
    }
    // They have one clock, and no clock is 0.
    let is_over = one.clock() <= seen[Agent::of_thread(one.thread())];
    if is_over {
        *readers = [now, Stamp::NONE];
    }
    is_over
}

#[derive(Clone, Copy)]
struct Entry {
    write: Stamp,
    /// Weak reads, of one warp.
    readers: Readers,
    /// Where in [`Others`] what has no room here is; 0: there is none.
    others: u32,
}

const EMPTY: Entry = Entry { write: Stamp::NONE, readers: NOBODY, others: 0 };

/// An access that is strong, or of what works beside the warps.
#[derive(Clone, Copy)]
struct Other {
    stamp: Stamp,
    wrote: bool,
}

/// What an entry has no room for.
#[derive(Clone, Default)]
struct List {
    /// Weak reads, of each warp: where several warps read the same.
    by_warp: Vec<Readers>,
    rest: Vec<Other>,
}

/// Accesses for which their entries have no room.
#[derive(Default)]
struct Others {
    /// The first is never used: its number says that there is no list.
    lists: Vec<List>,
    free: Vec<u32>,
}

impl Others {
    fn clear(&mut self) {
        self.free.clear();
        self.free.extend(1..self.lists.len() as u32);
    }

    fn rest(&self, entry: Entry, wrote: bool) -> impl Iterator<Item = Stamp> {
        let list = self.lists.get(entry.others as usize).map_or(&[][..], |list| &list.rest);
        list.iter().filter(move |other| other.wrote == wrote).map(|other| other.stamp)
    }

    fn writes(&self, entry: Entry) -> impl Iterator<Item = Stamp> {
        std::iter::once(entry.write).chain(self.rest(entry, true))
    }

    #[inline]
    fn racing_write(&self, entry: Entry, now: Stamp, seen: &Clocks) -> Option<Stamp> {
        if entry.write.races(now, seen) {
            return Some(entry.write);
        }
        if entry.others == 0 { None } else { self.rest(entry, true).find(|write| write.races(now, seen)) }
    }

    fn reads(&self, entry: Entry) -> impl Iterator<Item = Stamp> {
        let by_warp = self.lists.get(entry.others as usize).map_or(&[][..], |list| &list.by_warp);
        entry.readers.into_iter().chain(by_warp.iter().copied().flatten()).chain(self.rest(entry, false))
    }

    /// An entry's list, which it gets if it has none.
    fn list(&mut self, entry: &mut Entry) -> &mut List {
        if entry.others == 0 {
            entry.others = self.free.pop().unwrap_or_else(|| {
                let next = self.lists.len().max(1);
                self.lists.resize_with(next + 1, List::default);
                next as u32
            });
            let list = &mut self.lists[entry.others as usize];
            list.by_warp.clear();
            list.rest.clear();
        }
        &mut self.lists[entry.others as usize]
    }

    /// The same entry for another byte.
    fn copy(&mut self, entry: &Entry) -> Entry {
        let mut copy = Entry { others: 0, ..*entry };
        if entry.others != 0 {
            let list = self.lists[entry.others as usize].clone();
            *self.list(&mut copy) = list;
        }
        copy
    }

    /// Keeps a read.
    #[inline]
    fn read(&mut self, entry: &mut Entry, now: Stamp, seen: &Clocks) {
        match Agent::of_thread(now.thread()).warp_index() {
            Some(warp) if !now.is_strong() => {
                // A warp's earlier reads are always over, so there is room in its own place.
                let kept = match self.lists.get_mut(entry.others as usize) {
                    Some(list) if !list.by_warp.is_empty() => {
                        list.by_warp.get_mut(warp).is_some_and(|readers| keep_reader(readers, now, seen))
                    }
                    _ => keep_reader(&mut entry.readers, now, seen),
                };
                if !kept {
                    self.spread(entry, now, warp, seen);
                }
            }
            _ => self.read_otherwise(entry, now, seen),
        }
    }

    /// Keeps a warp's weak read where another warp has read.
    #[cold]
    fn spread(&mut self, entry: &mut Entry, now: Stamp, warp: usize, seen: &Clocks) {
        let earlier = std::mem::replace(&mut entry.readers, NOBODY);
        let by_warp = &mut self.list(entry).by_warp;
        if let Some(other) = Agent::of_thread(earlier[0].thread()).warp_index().filter(|_| earlier != NOBODY) {
            by_warp.resize((other + 1).next_multiple_of(WARPS_AT_ONCE), NOBODY);
            by_warp[other] = earlier;
        }
        if by_warp.len() <= warp {
            by_warp.resize((warp + 1).next_multiple_of(WARPS_AT_ONCE), NOBODY);
        }
        keep_reader(&mut by_warp[warp], now, seen);
    }

    fn read_otherwise(&mut self, entry: &mut Entry, now: Stamp, seen: &Clocks) {
        let other = Other { stamp: now, wrote: false };
        let mut old = self.lists.get_mut(entry.others as usize).into_iter().flat_map(|list| &mut list.rest);
        if let Some(old) = old.find(|old| !old.wrote && old.stamp.is_superseded(now, seen)) {
            *old = other;
        } else if !now.is_covered(self.reads(*entry)) {
            self.list(entry).rest.push(other);
        }
    }

    /// Keeps a write, in place of all that is ordered before it.
    fn write(&mut self, entry: &mut Entry, now: Stamp, seen: &Clocks) {
        let old = *entry;
        *entry = Entry { write: now, ..EMPTY };
        // A race has been reported by now, so nothing is concurrent to it but strong accesses to a strong one.
        if now.is_strong() {
            let rest = self.lists.get(old.others as usize).map_or(&[][..], |list| &list.rest);
            let before = [rest, &[Other { stamp: old.write, wrote: true }]].concat();
            for other in before.into_iter().filter(|other| other.stamp.is_concurrent(now, seen)) {
                let is_covered = if other.wrote {
                    other.stamp.is_covered(self.writes(*entry))
                } else {
                    other.stamp.is_covered(self.reads(*entry))
                };
                if !is_covered {
                    self.list(entry).rest.push(other);
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
pub struct Shadow {
    pages: Vec<Page>,
    used: usize,
    others: Others,
    index: PageMap<u32>,
    /// Pages found lately, by the last bits of their numbers.
    recent: [Option<(u64, u32)>; RECENT],
}

/// How many pages are found without a look into the index.
const RECENT: usize = 64;

impl Default for Shadow {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            used: 0,
            others: Others::default(),
            index: PageMap::default(),
            recent: [None; RECENT],
        }
    }
}

/// Who accesses, when, and what it is ordered after.
#[derive(Clone, Copy)]
pub struct Observer<'a> {
    pub stamp: Stamp,
    /// Another thread of the warp that does the same: for reads only, of which more threads' would tell no more.
    pub beside: Option<Stamp>,
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
        self.recent = [None; RECENT];
    }

    /// The pages touched, in the order in which they first were.
    pub fn touched(&self) -> impl Iterator<Item = (u64, &Touched)> {
        self.pages[..self.used].iter().map(|page| (page.address, &page.touched))
    }

    /// Where in `pages` the page of an address is.
    fn page(&mut self, address: u64) -> usize {
        let start = address & !(PAGE - 1);
        let recent = (start / PAGE) as usize % RECENT;
        let index = match self.recent[recent] {
            Some((page, index)) if page == start => index,
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
                self.recent[recent] = Some((start, index));
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
        by: &Observer<'_>,
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
            let Observer { stamp: now, seen, .. } = *by;
            if !(action == Action::Write && unchanged) {
                let mut racing = others.racing_write(*entry, now, seen);
                if let Some(beside) = by.beside {
                    racing = racing.or_else(|| others.racing_write(*entry, beside, seen));
                }
                if let Some(write) = racing {
                    return Err(Conflict { thread: write.thread(), earlier: Earlier::Write });
                }
            }
            if let Some(memory) = by.proxy
                && let Some(write) = others.writes(*entry).find(|write| write.is_unfenced(memory, seen))
            {
                return Err(Conflict { thread: write.thread(), earlier: Earlier::Unfenced });
            }
            if action == Action::Read {
                others.read(entry, now, seen);
                if let Some(beside) = by.beside {
                    others.read(entry, beside, seen);
                }
                continue;
            }
            if let Some(read) = others.reads(*entry).find(|read| read.races(now, seen)) {
                return Err(Conflict { thread: read.thread(), earlier: Earlier::Read });
            }
            others.write(entry, now, seen);
        }
        Ok(())
    }
}
