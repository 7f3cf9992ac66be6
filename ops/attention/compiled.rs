//! Masks for given lengths: a range of keys per query, and tiles where ranges do not say it all.

use super::mask::{Bits, Lengths, Mask, ScalesKind, position, scale_of, signed, tokens};
use crate::{Device, Error, Result, Tensor};

/// Queries of a block: those that share a list of tiles.
pub const BLOCK: usize = 16;
/// Keys of a tile: a bit each in a word.
pub const TILE: usize = 64;

/// A mask for given lengths: what each query may see at most, and the tiles that are visited.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The first key that a query sees and one past the last: one entry per query, for every batch entry if they
    /// differ. A query that sees none has a range without keys.
    pub ranges: Vec<[u32; 2]>,
    /// Batch entries in `ranges` and `tiles`: 1 or all.
    pub batches: usize,
    /// Which keys within its range a query sees; absent if it is all of them.
    pub tiles: Option<Tiles>,
    /// Of the keys that are left, zeros hide more: broadcast to `[batch, q_len, k_len]`.
    pub given: Option<Tensor<u8>>,
}

/// For each block of [`BLOCK`] queries the tiles of [`TILE`] keys that any of them sees.
#[derive(Debug, Clone, Default)]
pub struct Tiles {
    /// The first entry of each block and one past the last block's, for every batch entry if they differ.
    pub starts: Vec<u32>,
    /// The tiles of each block in ascending order.
    pub entries: Vec<Entry>,
    /// A word for each query of the block, for each partial tile: the lowest bit is the tile's first key.
    pub bits: Vec<u64>,
}

/// A tile that is visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its first key over [`TILE`].
    pub tile: u32,
    /// Where its bits are, counted in partial tiles; [`Entry::FULL`] if every query sees every key.
    pub bits: u32,
}

impl Entry {
    /// Instead of bits: all are seen.
    pub const FULL: u32 = u32::MAX;
}

/// A mask together with its compiled form, for use in many calls of the same lengths.
#[derive(Debug)]
pub struct Prepared {
    /// What it does, whatever the lengths.
    pub(super) mask: Mask,
    #[cfg_attr(not(any(feature = "cpu", feature = "cuda", feature = "wgpu")), allow(dead_code))]
    pub(super) lengths: Lengths,
    #[cfg_attr(not(any(feature = "cpu", feature = "cuda", feature = "wgpu")), allow(dead_code))]
    pub(super) compiled: Compiled,
    /// [`Compiled::words`] on the device it was prepared for, if that is a GPU.
    #[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code))]
    pub(super) words: Option<Tensor<u32>>,
}

/// A compiled mask that is used now: made for this call or before it.
#[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
#[derive(Debug)]
pub(crate) enum Plan<'a> {
    Made(Box<Compiled>),
    Before(&'a Prepared),
}

/// Which keys the queries see, apart from a given mask, as kernels read it from an operand of theirs.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
#[derive(Debug, Clone, Copy)]
pub enum Visible<Operand> {
    /// All see the same keys: the first, and one past the last.
    Same([u32; 2]),
    /// What [`Compiled::words`] gives: u32, contiguous.
    Words {
        /// The words.
        words: Operand,
        /// [`Compiled::batches`].
        batches: usize,
        /// How many tiles are visited, if there are tiles.
        entries: Option<usize>,
    },
}

/// Where [`Compiled::words`] has the starts, the entries and the bits.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(super) fn words_at(q_len: usize, batches: usize, entries: usize) -> [usize; 3] {
    let starts = 2 * q_len * batches;
    let first_entry = starts + q_len.div_ceil(BLOCK) * batches + 1;
    [starts, first_entry, first_entry + 2 * entries]
}

#[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
impl Plan<'_> {
    pub(crate) fn compiled(&self) -> &Compiled {
        match self {
            Self::Made(compiled) => compiled,
            Self::Before(prepared) => &prepared.compiled,
        }
    }

    /// [`Compiled::words`] on a GPU; absent if all queries see the same range.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    pub(crate) fn words(&self, device: &Device) -> Result<Option<Tensor<u32>>> {
        let compiled = self.compiled();
        if compiled.tiles.is_none() && compiled.ranges.iter().all(|range| *range == compiled.first()) {
            return Ok(None);
        }
        if let Self::Before(Prepared { words: Some(words), .. }) = self
            && words.device().same(device)
        {
            return Ok(Some(words.clone()));
        }
        let words = compiled.words();
        Tensor::from_vec(device, &[words.len()], words).map(Some)
    }
}

impl Compiled {
    /// The keys that a query may see.
    #[must_use]
    pub fn range(&self, lengths: Lengths, batch: usize, query: usize) -> [usize; 2] {
        let batch = if self.batches == 1 { 0 } else { batch };
        self.ranges[batch * lengths.q_len + query].map(|key| key as usize)
    }

    /// The range of the first query.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    fn first(&self) -> [u32; 2] {
        self.ranges.first().copied().unwrap_or([0, 0])
    }

    /// What kernels take, with [`Plan::words`] as an operand of theirs.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    pub(crate) fn visible<Operand>(&self, words: Option<Operand>) -> Visible<Operand> {
        let entries = self.tiles.as_ref().map(|tiles| tiles.entries.len());
        words.map_or(Visible::Same(self.first()), |words| Visible::Words { words, batches: self.batches, entries })
    }

    /// The tiles that a block of queries visits, if ranges do not say it all.
    #[must_use]
    pub fn block(&self, lengths: Lengths, batch: usize, block: usize) -> Option<&[Entry]> {
        let tiles = self.tiles.as_ref()?;
        let batch = if self.batches == 1 { 0 } else { batch };
        let at = batch * lengths.q_len.div_ceil(BLOCK) + block;
        Some(&tiles.entries[tiles.starts[at] as usize..tiles.starts[at + 1] as usize])
    }

    /// Which keys of a tile a query sees.
    #[must_use]
    pub fn word(&self, entry: Entry, query: usize) -> u64 {
        match &self.tiles {
            Some(tiles) if entry.bits != Entry::FULL => tiles.bits[entry.bits as usize * BLOCK + query % BLOCK],
            _ => u64::MAX,
        }
    }

    /// Whether a query sees a key, but for what a given mask hides.
    #[must_use]
    pub fn sees(&self, lengths: Lengths, batch: usize, query: usize, key: usize) -> bool {
        let [first, end] = self.range(lengths, batch, query);
        let tile = || match self.block(lengths, batch, query / BLOCK) {
            None => true,
            Some(entries) => {
                let entry = entries.iter().find(|entry| entry.tile as usize == key / TILE);
                entry.is_some_and(|entry| self.word(*entry, query) >> (key % TILE) & 1 == 1)
            }
        };
        (first..end).contains(&key) && tile()
    }

    /// All of it as a GPU reads it: the ranges; then, if there are tiles, the starts, the entries (tile, bits) and
    /// the bits (low half, high half).
    #[must_use]
    pub fn words(&self) -> Vec<u32> {
        let mut words = self.ranges.concat();
        if let Some(tiles) = &self.tiles {
            words.extend(&tiles.starts);
            words.extend(tiles.entries.iter().flat_map(|entry| [entry.tile, entry.bits]));
            #[expect(clippy::cast_possible_truncation, reason = "the two halves of a word")]
            words.extend(tiles.bits.iter().flat_map(|bits| [*bits as u32, (bits >> 32) as u32]));
        }
        words
    }

    /// The share of pairs of a block and a tile that is visited.
    fn density(&self, lengths: Lengths) -> f64 {
        let blocks = lengths.q_len.div_ceil(BLOCK);
        let all = self.batches * blocks * lengths.k_len.div_ceil(TILE);
        let visited = match &self.tiles {
            Some(tiles) => tiles.entries.len(),
            None => {
                let block = |ranges: &[[u32; 2]]| {
                    let seen = ranges.iter().filter(|[start, end]| start < end);
                    let start = seen.clone().map(|range| range[0] as usize / TILE).min().unwrap_or(0);
                    seen.map(|range| (range[1] as usize).div_ceil(TILE)).max().unwrap_or(start) - start
                };
                self.ranges.chunks(lengths.q_len.max(1)).flat_map(|entry| entry.chunks(BLOCK)).map(block).sum()
            }
        };
        visited as f64 / all.max(1) as f64
    }
}

impl Mask {
    /// This mask with its compiled form for these lengths, on `device` where that is a GPU: calls with the same lengths
    /// then do not compile it again. With other lengths it still works, at the cost of compiling.
    ///
    /// # Errors
    /// As [`attention`](super::attention) for a mask that does not fit the lengths; [`Error::Device`] if the device
    /// has no room.
    pub fn prepare(self, device: &Device, lengths: Lengths) -> Result<Self> {
        const OP: &str = "mask";
        self.check(OP, device, lengths)?;
        let compiled = self.compiled(OP, lengths)?;
        let words = match device.backend() {
            crate::Backend::Cpu | crate::Backend::Reference => None,
            _ => {
                let words = compiled.words();
                Some(Tensor::from_vec(device, &[words.len()], words)?)
            }
        };
        Ok(Self::Prepared(std::sync::Arc::new(Prepared { mask: self, lengths, compiled, words })))
    }

    /// What kernels read of this mask for these lengths, to look at or to run kernels of your own with.
    ///
    /// # Errors
    /// As [`Mask::prepare`] on the host.
    pub fn compile(&self, lengths: Lengths) -> Result<Compiled> {
        const OP: &str = "mask";
        self.check(OP, &Device::reference(), lengths)?;
        self.compiled(OP, lengths)
    }

    /// The share of the tiles that are visited for these lengths: what attention costs, over what it costs without a
    /// mask. (A given mask skips none.)
    ///
    /// # Errors
    /// As [`Mask::prepare`] on the host.
    pub fn density(&self, lengths: Lengths) -> Result<f64> {
        Ok(self.compile(lengths)?.density(lengths))
    }

    /// The mask for these lengths, which [`Mask::check`] has passed.
    #[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
    pub(crate) fn plan(&self, op: &'static str, lengths: Lengths) -> Result<Plan<'_>> {
        match self {
            Self::Prepared(prepared) if prepared.lengths == lengths => Ok(Plan::Before(prepared)),
            _ => Ok(Plan::Made(Box::new(self.compiled(op, lengths)?))),
        }
    }

    fn compiled(&self, op: &'static str, lengths: Lengths) -> Result<Compiled> {
        let Lengths { batch, q_len, k_len } = lengths;
        if u32::try_from(k_len).is_err() {
            return Err(Error::shape(op, "k", &[k_len], "fewer than 2^32 keys"));
        }
        let batches = if self.depends_on_batch(lengths) { batch } else { 1 };
        let given = self.given(lengths)?;
        if self.is_range() || k_len == 0 {
            let ranges =
                (0..batches).flat_map(|batch| self.ranges(lengths, batch)).map(|range| range.map(key)).collect();
            return Ok(Compiled { ranges, batches, tiles: None, given });
        }
        let mut compiled = Compiled { ranges: Vec::new(), batches, tiles: Some(Tiles::default()), given };
        for batch in 0..batches {
            let source = Source::new(self, lengths, batch)?;
            // Many blocks at a time, since a mask of ranks goes through all keys for each lot.
            for first in (0..q_len).step_by(LOT) {
                compiled.add(op, &source.rows(lengths, first, LOT.min(q_len - first)), k_len)?;
            }
        }
        if let Some(tiles) = &mut compiled.tiles {
            tiles.starts.push(count(op, tiles.entries.len())?);
        }
        Ok(compiled)
    }

    /// Whether each query sees one range of keys, apart from what a given mask hides.
    fn is_range(&self) -> bool {
        match self {
            Self::And(all) => all.iter().all(Self::is_range),
            Self::Prepared(prepared) => prepared.mask.is_range(),
            Self::Or(_) | Self::Ranks { .. } | Self::Bits(_) => false,
            _ => true,
        }
    }

    /// The range of keys that each query sees, of a mask that is one.
    fn ranges(&self, lengths: Lengths, batch: usize) -> Vec<[usize; 2]> {
        let Lengths { q_len, k_len, .. } = lengths;
        let below = |key: isize| usize::try_from(key).unwrap_or(0).min(k_len);
        let each = |range: &dyn Fn(usize) -> [usize; 2]| {
            did(q_len);
            (0..q_len).map(range).collect()
        };
        match self {
            Self::Full | Self::Given(_) | Self::Or(_) | Self::Ranks { .. } | Self::Bits(_) => each(&|_| [0, k_len]),
            Self::Causal { align } => each(&|i| [0, below(position(i, *align, lengths) + 1)]),
            Self::Window { left, right, align } => each(&|i| {
                let p = position(i, *align, lengths);
                [below(p - signed(*left)), below(p + signed(*right) + 1)]
            }),
            Self::Prefix { prefix, align } => {
                each(&|i| [0, below(position(i, *align, lengths) + 1).max((*prefix).min(k_len))])
            }
            Self::Frames { frame, align } => each(&|i| {
                let p = position(i, *align, lengths);
                [0, below((p.div_euclid(signed(*frame)) + 1).saturating_mul(signed(*frame)))]
            }),
            Self::KeyLengths(key_lengths) => each(&|_| [0, key_lengths[batch]]),
            Self::Scales { patch_nums, kind } => each(&|i| {
                let scale = scale_of(patch_nums, i + k_len - q_len);
                let start = |scale: usize| tokens(&patch_nums[..scale]).min(k_len);
                let before = scale.saturating_sub(1);
                match kind {
                    ScalesKind::BlockCausal => [0, start(scale + 1)],
                    ScalesKind::MarkovSelf => [start(scale), start(scale + 1)],
                    ScalesKind::MarkovPrevious => [start(before), start(before + 1)],
                    ScalesKind::MarkovPreviousAndSelf => [start(before), start(scale + 1)],
                }
            }),
            Self::Packed { q_lengths, k_lengths, causal } => {
                // Sequence by sequence: there may be as many as queries.
                let mut ranges = Vec::with_capacity(q_len);
                let mut start = 0;
                for (queries, keys) in q_lengths.iter().zip(k_lengths) {
                    did(1 + queries);
                    let first = signed(start) + signed(*keys) - signed(*queries);
                    let end = start + keys;
                    ranges.extend((0..*queries).map(|i| match causal {
                        true => [start, below(first + signed(i) + 1).clamp(start, end)],
                        false => [start, end],
                    }));
                    start = end;
                }
                ranges
            }
            Self::And(all) => {
                let mut seen = vec![[0, k_len]; q_len];
                for mask in all {
                    did(q_len);
                    for ([start, end], [other_start, other_end]) in seen.iter_mut().zip(mask.ranges(lengths, batch)) {
                        (*start, *end) = ((*start).max(other_start), (*end).min(other_end));
                    }
                }
                seen
            }
            Self::Prepared(prepared) => prepared.mask.ranges(lengths, batch),
        }
    }

    fn depends_on_batch(&self, lengths: Lengths) -> bool {
        match self {
            Self::KeyLengths(_) => true,
            Self::Ranks { queries, keys, .. } => queries.len() != lengths.q_len || keys.len() != lengths.k_len,
            // Inside of an `or` given masks become bits.
            Self::Or(all) => all.iter().any(|mask| mask.holds_given() || mask.depends_on_batch(lengths)),
            Self::And(all) => all.iter().any(|mask| mask.depends_on_batch(lengths)),
            Self::Prepared(prepared) => prepared.mask.depends_on_batch(lengths),
            _ => false,
        }
    }

    fn holds_given(&self) -> bool {
        match self {
            Self::Given(_) => true,
            Self::And(all) | Self::Or(all) => all.iter().any(Self::holds_given),
            Self::Prepared(prepared) => prepared.mask.holds_given(),
            _ => false,
        }
    }

    /// The given masks that all must pass, as one.
    fn given(&self, lengths: Lengths) -> Result<Option<Tensor<u8>>> {
        fn collect<'a>(mask: &'a Mask, found: &mut Vec<&'a Tensor<u8>>) {
            match mask {
                Mask::Given(given) => found.push(given),
                Mask::And(all) => all.iter().for_each(|mask| collect(mask, found)),
                Mask::Prepared(prepared) => collect(&prepared.mask, found),
                _ => {}
            }
        }
        let Lengths { batch, q_len, k_len } = lengths;
        let mut found = Vec::new();
        collect(self, &mut found);
        Ok(match found[..] {
            [] => None,
            [one] => Some(one.broadcast(&[batch, q_len, k_len])?),
            // Several become one in host memory: rare, and a GPU would have to wait either way.
            [first, ..] => {
                let mut all = vec![1u8; batch * q_len * k_len];
                for given in &found {
                    let given = given.broadcast(&[batch, q_len, k_len])?.to_vec()?;
                    all.iter_mut().zip(given).for_each(|(all, given)| *all &= u8::from(given != 0));
                }
                Some(Tensor::from_vec(first.device(), &[batch, q_len, k_len], all)?)
            }
        })
    }
}

/// Queries whose bits are held at a time: whole blocks.
const LOT: usize = 64 * BLOCK;

/// A mask of one batch entry, ready to give the bits of its queries.
enum Source<'a> {
    /// One range per query.
    Ranges(Vec<[usize; 2]>),
    /// Key ranks in ascending order with their keys, and the query ranks.
    Ranks {
        keys: Vec<(u32, usize)>,
        queries: &'a [u32],
        strict: bool,
    },
    Bits(&'a Bits),
    /// The bytes of a given mask, `[q_len, k_len]`.
    Given(Vec<u8>),
    And(Vec<Source<'a>>),
    Or(Vec<Source<'a>>),
}

impl<'a> Source<'a> {
    fn new(mask: &'a Mask, lengths: Lengths, batch: usize) -> Result<Self> {
        Self::of(mask, lengths, batch, false)
    }

    /// Given masks outside of an `or` are left to the kernels.
    fn of(mask: &'a Mask, lengths: Lengths, batch: usize, inside_or: bool) -> Result<Self> {
        let all = |masks: &'a [Mask], inside_or| {
            masks.iter().map(|mask| Self::of(mask, lengths, batch, inside_or)).collect::<Result<Vec<_>>>()
        };
        Ok(match mask {
            Mask::And(masks) => Self::And(all(masks, inside_or)?),
            Mask::Or(masks) => Self::Or(all(masks, true)?),
            Mask::Prepared(prepared) => Self::of(&prepared.mask, lengths, batch, inside_or)?,
            Mask::Bits(bits) => Self::Bits(bits),
            Mask::Ranks { queries, keys, strict } => {
                let part = |ranks: &'a [u32], len: usize| {
                    if ranks.len() == len { ranks } else { &ranks[batch * len..][..len] }
                };
                let mut sorted: Vec<_> =
                    part(keys, lengths.k_len).iter().enumerate().map(|(key, rank)| (*rank, key)).collect();
                sorted.sort_unstable();
                Self::Ranks { keys: sorted, queries: part(queries, lengths.q_len), strict: *strict }
            }
            Mask::Given(given) if inside_or => {
                let whole = given.broadcast(&[lengths.batch, lengths.q_len, lengths.k_len])?;
                Self::Given(whole.narrow(0, batch, 1)?.to_vec()?)
            }
            _ => Self::Ranges(mask.ranges(lengths, batch)),
        })
    }

    /// The bits of `count` queries from `first` on, a row of words for each.
    fn rows(&self, lengths: Lengths, first: usize, count: usize) -> Vec<u64> {
        let width = lengths.k_len.div_ceil(TILE);
        let mut rows = vec![0; count * width];
        if width == 0 {
            return rows;
        }
        did(rows.len());
        match self {
            Self::Ranges(ranges) => {
                for (row, range) in rows.chunks_mut(width).zip(&ranges[first..]) {
                    fill(row, *range);
                }
            }
            Self::Ranks { keys, queries, strict } => {
                // Keys become visible one after another as the queries' ranks rise: no pair is looked at.
                let mut order: Vec<usize> = (0..count).collect();
                order.sort_unstable_by_key(|i| queries[first + i]);
                let mut seen = vec![0; width];
                let mut next = 0;
                for i in order {
                    let rank = queries[first + i];
                    did(1);
                    while let Some((key_rank, key)) = keys.get(next)
                        && (*key_rank < rank || (!strict && *key_rank == rank))
                    {
                        seen[key / TILE] |= 1 << (key % TILE);
                        next += 1;
                        did(1);
                    }
                    rows[i * width..][..width].copy_from_slice(&seen);
                }
            }
            Self::Bits(bits) => {
                for (i, row) in rows.chunks_mut(width).enumerate() {
                    row.copy_from_slice(bits.row(first + i));
                }
            }
            Self::Given(bytes) => {
                for (i, row) in rows.chunks_mut(width).enumerate() {
                    did(lengths.k_len);
                    for (key, byte) in bytes[(first + i) * lengths.k_len..][..lengths.k_len].iter().enumerate() {
                        row[key / TILE] |= u64::from(*byte != 0) << (key % TILE);
                    }
                }
            }
            Self::And(all) => {
                rows.chunks_mut(width).for_each(|row| fill(row, [0, lengths.k_len]));
                for source in all {
                    let others = source.rows(lengths, first, count);
                    did(others.len());
                    rows.iter_mut().zip(others).for_each(|(word, other)| *word &= other);
                }
            }
            Self::Or(all) => {
                for source in all {
                    let others = source.rows(lengths, first, count);
                    did(others.len());
                    rows.iter_mut().zip(others).for_each(|(word, other)| *word |= other);
                }
            }
        }
        rows
    }
}

impl Compiled {
    /// Adds rows of bits, block by block.
    fn add(&mut self, op: &'static str, rows: &[u64], k_len: usize) -> Result<()> {
        let width = k_len.div_ceil(TILE);
        let Some(tiles) = &mut self.tiles else { return Ok(()) };
        // Whether any query sees it, whether all do, and the hull.
        did(3 * rows.len());
        let whole = |tile: usize| u64::MAX >> (TILE - TILE.min(k_len - tile * TILE));
        for block in rows.chunks(BLOCK * width.max(1)) {
            tiles.starts.push(count(op, tiles.entries.len())?);
            for tile in 0..width {
                let column = || block.iter().skip(tile).step_by(width);
                if column().all(|word| *word == 0) {
                    continue;
                }
                let mut bits = Entry::FULL;
                if column().any(|word| *word != whole(tile)) {
                    bits = count(op, tiles.bits.len() / BLOCK)?;
                    tiles.bits.extend(column());
                    tiles.bits.resize((bits as usize + 1) * BLOCK, 0);
                }
                tiles.entries.push(Entry { tile: count(op, tile)?, bits });
            }
        }
        self.ranges.extend(rows.chunks(width.max(1)).map(hull));
        Ok(())
    }
}

/// From the first key that a row sees to one past the last.
fn hull(row: &[u64]) -> [u32; 2] {
    let first = row.iter().position(|word| *word != 0);
    let last = row.iter().rposition(|word| *word != 0);
    match (first, last) {
        (Some(first), Some(last)) => {
            let start = first * TILE + row[first].trailing_zeros() as usize;
            [start, (last + 1) * TILE - row[last].leading_zeros() as usize].map(key)
        }
        _ => [0, 0],
    }
}

/// Sets the bits of a range of keys.
fn fill(row: &mut [u64], [start, end]: [usize; 2]) {
    for (tile, word) in row.iter_mut().enumerate() {
        let from = start.saturating_sub(tile * TILE).min(TILE);
        let to = end.saturating_sub(tile * TILE).min(TILE);
        if from < to {
            *word |= u64::MAX >> (TILE - (to - from)) << from;
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "at most k_len, which fits")]
fn key(key: usize) -> u32 {
    key as u32
}

fn count(op: &'static str, count: usize) -> Result<u32> {
    u32::try_from(count)
        .ok()
        .filter(|count| *count < Entry::FULL)
        .ok_or_else(|| Error::value(op, "mask", count, "fewer than 2^32 tiles"))
}

#[cfg(test)]
thread_local! {
    static DONE: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Counts what making masks does, in words or in single numbers, for the test that it is little.
#[cfg_attr(not(test), expect(clippy::missing_const_for_fn, reason = "it counts in tests"))]
pub(super) fn did(steps: usize) {
    #[cfg(test)]
    DONE.set(DONE.get() + steps);
    #[cfg(not(test))]
    let _ = steps;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::Align;

    type Make = Box<dyn FnOnce() -> Mask>;

    /// A picture of 256 x 256 tokens, or a video of 16 frames of 64 x 64.
    const LENGTH: usize = 65536;

    /// Steps to make a mask, and to compile it for a square of so many tokens.
    fn steps(length: usize, make: impl FnOnce() -> Mask) -> usize {
        DONE.set(0);
        let compiled = make().compile(Lengths { batch: 1, q_len: length, k_len: length }).unwrap();
        assert_eq!(compiled.ranges.len(), length);
        DONE.get()
    }

    #[test]
    fn masks_of_ranges_take_steps_by_the_query() {
        let (align, causal) = (Align::BottomRight, true);
        let scales = |kind| {
            // 1 + 4 + .. is 65,536 at no side: the last scale has one line more than it needs.
            let patch_nums: Vec<usize> = (1..59).collect();
            move || Mask::Scales { patch_nums, kind }
        };
        let cases: Vec<(&str, Make)> = vec![
            ("full", Box::new(|| Mask::Full)),
            ("causal", Box::new(move || Mask::Causal { align })),
            ("window", Box::new(move || Mask::Window { left: 900, right: 3, align })),
            ("prefix", Box::new(move || Mask::Prefix { prefix: 77, align })),
            ("frames", Box::new(move || Mask::Frames { frame: 4096, align })),
            ("key lengths", Box::new(|| Mask::KeyLengths(vec![LENGTH - 5]))),
            ("scales", Box::new(scales(ScalesKind::BlockCausal))),
            ("Markov scales", Box::new(scales(ScalesKind::MarkovPreviousAndSelf))),
            ("two sequences", Box::new(move || Mask::packed(&[LENGTH / 2; 2], causal))),
            ("a sequence for each token", Box::new(move || Mask::packed(&[1; LENGTH], causal))),
            (
                "causal in a window",
                Box::new(move || {
                    let window = Mask::Window { left: 900, right: 900, align };
                    Mask::Causal { align }.and(window)
                }),
            ),
        ];
        for (name, make) in cases {
            let steps = steps(LENGTH, make);
            assert!((LENGTH..=5 * LENGTH).contains(&steps), "{name}: {steps} steps");
        }
    }

    #[test]
    fn masks_of_tiles_take_steps_by_the_tile() {
        let tiles = LENGTH.div_ceil(BLOCK) * LENGTH.div_ceil(TILE);
        let shuffled = |length: usize| (0..length).map(move |n| n * 25_769 % length);
        // Few of these tiles are partial.
        let cases: Vec<(&str, Make)> = vec![
            ("ranks", Box::new(|| Mask::ranks(&(0..LENGTH as u32).map(|n| n / 100).collect::<Vec<_>>(), false))),
            ("raster order", Box::new(|| Mask::permuted(&(0..LENGTH).rev().collect::<Vec<_>>()).unwrap())),
            ("groups", Box::new(|| Mask::grouped(&(0..LENGTH).collect::<Vec<_>>(), &[LENGTH / 64; 64]).unwrap())),
            (
                "query stream",
                Box::new(|| {
                    let [_, query] = Mask::two_stream(&(0..LENGTH as u32).collect::<Vec<_>>());
                    query
                }),
            ),
            (
                "position queries",
                Box::new(|| {
                    let ranks: Vec<_> = (0..LENGTH as u32).collect();
                    Mask::position_queries(&ranks, &ranks)
                }),
            ),
            ("diagonals", Box::new(|| Mask::diagonals(&[256, 256], 0, true))),
            ("planes", Box::new(|| Mask::diagonals(&[16, 64, 64], 0, false))),
            ("regions", Box::new(|| Mask::regions([256, 256], [4, 4]))),
            ("columns", Box::new(|| Mask::columns([256, 256], 4))),
            ("known", Box::new(|| Mask::known(LENGTH, 64, 1, &[true; LENGTH - 64]).unwrap())),
            (
                "a window or a prefix",
                Box::new(|| {
                    let align = Align::TopLeft;
                    Mask::Window { left: 64, right: 0, align }.or(Mask::Prefix { prefix: 100, align })
                }),
            ),
        ];
        for (name, make) in cases {
            let steps = steps(LENGTH, make);
            // A tile has 16 words, and 1024 pairs. Of a mask of two parts each word is made three times, joined twice and
            // read three times.
            assert!(steps <= 9 * 16 * tiles, "{name}: {} steps to a tile", steps / tiles);
        }
        // All of these are, so that the bits of a longer one would take half a gigabyte.
        let length = LENGTH / 4;
        let order: Vec<_> = shuffled(length).collect();
        let steps = steps(length, || Mask::permuted(&order).unwrap());
        assert!(steps <= 9 * 16 * tiles / 16, "any order: {} steps to a tile", 16 * steps / tiles);
    }
}
