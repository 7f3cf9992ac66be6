//! Which query sees which key: masks as predicates.

use std::sync::Arc;

use super::compiled::{Prepared, did};
use crate::{Device, Error, Result, Tensor};

/// Where query 0 stands among the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Align {
    /// At key 0: query `i` stands at key `i`.
    TopLeft,
    /// The last query stands at the last key: query `i` stands at key `i + k_len - q_len`, as in a cache.
    #[default]
    BottomRight,
}

/// Which scales a token of a pyramid of scales sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScalesKind {
    /// Its own scale and all before it.
    BlockCausal,
    /// Its own scale alone.
    MarkovSelf,
    /// The scale before its own alone; scale 0 sees itself.
    MarkovPrevious,
    /// Its own scale and the one before it.
    MarkovPreviousAndSelf,
}

/// Which query sees which key.
///
/// Query `i` stands at position `p = i + offset`, where `offset` follows from [`Align`] and may be negative.
///
/// | mask         | query `i` sees key `j` iff                                                   |
/// |--------------|------------------------------------------------------------------------------|
/// | `Full`       | always                                                                       |
/// | `Causal`     | `j <= p`                                                                     |
/// | `Window`     | `p - left <= j <= p + right`                                                 |
/// | `Prefix`     | `j < prefix` or `j <= p`                                                     |
/// | `Frames`     | `j / frame <= floor(p / frame)`                                              |
/// | `KeyLengths` | `j < lengths[batch]`                                                         |
/// | `Scales`     | its [`ScalesKind`] holds; the queries are the last `q_len` of `k_len` tokens |
/// | `Packed`     | both lie in the same sequence (and, if causal, `j` is not after `i` in it)   |
/// | `Ranks`      | `keys[j] <= queries[i]`, or `<` if strict                                    |
/// | `Bits`       | its bit says so                                                              |
/// | `Given`      | the tensor holds anything but 0 there                                        |
/// | `And`        | all of them say so; none: always                                             |
/// | `Or`         | any of them says so; none: never                                             |
/// | `Prepared`   | the mask that was prepared says so                                           |
///
/// The functions of this type make the masks of the papers out of these. None but [`Mask::from_fn`] visits pairs of
/// query and key: neither to make a mask nor to compile it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Mask {
    /// Every query sees every key.
    Full,
    /// No query sees what comes after it.
    Causal {
        /// Where query 0 stands.
        align: Align,
    },
    /// A query sees its neighbourhood.
    Window {
        /// How many keys before its own position.
        left: usize,
        /// How many keys after its own position.
        right: usize,
        /// Where query 0 stands.
        align: Align,
    },
    /// Causal, but all see the first `prefix` keys.
    Prefix {
        /// How many keys are seen by all.
        prefix: usize,
        /// Where query 0 stands.
        align: Align,
    },
    /// Causal over frames of this many tokens; within a frame all see all.
    Frames {
        /// Tokens in a frame, at least 1.
        frame: usize,
        /// Where query 0 stands.
        align: Align,
    },
    /// How many keys each batch entry has.
    KeyLengths(Vec<usize>),
    /// Scale `s` has `patch_nums[s]²` tokens.
    Scales {
        /// The side of each scale's grid.
        patch_nums: Vec<usize>,
        /// Which scales see which.
        kind: ScalesKind,
    },
    /// Sequences of different lengths, one after another without gaps.
    Packed {
        /// The queries of each sequence.
        q_lengths: Vec<usize>,
        /// The keys of each sequence.
        k_lengths: Vec<usize>,
        /// Within a sequence nothing after the query is seen; its last query stands at its last key.
        causal: bool,
    },
    /// By the step in which each token is made.
    Ranks {
        /// Of each query; one list for all batch entries, or one after another.
        queries: Vec<u32>,
        /// Of each key, likewise.
        keys: Vec<u32>,
        /// Whether equal ranks do not see each other.
        strict: bool,
    },
    /// A bit per pair, from [`Mask::from_fn`].
    Bits(Arc<Bits>),
    /// The mask itself: `[q_len, k_len]`, or `[batch, q_len, k_len]` where `batch` may be 1; on the device of the
    /// operands. It saves bandwidth alone: for what it hides no tile is skipped.
    Given(Tensor<u8>),
    /// What all of these let pass.
    And(Vec<Mask>),
    /// What any of these lets pass.
    Or(Vec<Mask>),
    /// A mask with its compiled form, from [`Mask::prepare`].
    Prepared(Arc<Prepared>),
}

/// A bit for each pair of query and key, 64 keys to a word.
#[derive(Debug, Clone)]
pub struct Bits {
    q_len: usize,
    k_len: usize,
    words: Vec<u64>,
}

impl Bits {
    /// The words of one query: the lowest bit is the first key.
    pub(super) fn row(&self, i: usize) -> &[u64] {
        let words = self.k_len.div_ceil(64);
        &self.words[i * words..][..words]
    }
}

/// The lengths that a mask is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Batch entries.
    pub batch: usize,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub k_len: usize,
}

impl Mask {
    /// A mask from any predicate of query and key. It is asked once for each pair, so that making the mask costs
    /// `q_len * k_len` calls: prefer another function of this type where one fits.
    #[must_use]
    pub fn from_fn(q_len: usize, k_len: usize, sees: impl Fn(usize, usize) -> bool) -> Self {
        let word = |i: usize, first: usize| {
            let keys = first..k_len.min(first + 64);
            keys.fold(0, |word, j| word | u64::from(sees(i, j)) << (j - first))
        };
        let words = (0..q_len).flat_map(|i| (0..k_len).step_by(64).map(move |first| (i, first)));
        let words = words.map(|(i, first)| word(i, first)).collect();
        Self::Bits(Arc::new(Bits { q_len, k_len, words }))
    }

    /// Sequences of these lengths one after another; none sees another.
    #[must_use]
    pub fn packed(lengths: &[usize], causal: bool) -> Self {
        Self::Packed { q_lengths: lengths.to_vec(), k_lengths: lengths.to_vec(), causal }
    }

    /// Each token sees those of its own rank and of lower ones (`strict`: of lower ones alone).
    #[must_use]
    pub fn ranks(ranks: &[u32], strict: bool) -> Self {
        Self::Ranks { queries: ranks.to_vec(), keys: ranks.to_vec(), strict }
    }

    /// Tokens made in the order of a permutation, each seeing itself and those made before it: `order[n]` is the
    /// token that is made as the `n`-th (RAR, RandAR, SemAIM).
    ///
    /// # Errors
    /// [`Error::Value`] if `order` is not a permutation.
    pub fn permuted(order: &[usize]) -> Result<Self> {
        Self::grouped(order, &vec![1; order.len()])
    }

    /// Tokens made in groups: the first `sizes[0]` tokens of `order` in the first step, and so on (LPD, MaskGIT's
    /// schedules). A token sees its own group and those before.
    ///
    /// # Errors
    /// [`Error::Value`] if `order` is not a permutation, or the sizes do not add up to its length.
    pub fn grouped(order: &[usize], sizes: &[usize]) -> Result<Self> {
        const OP: &str = "mask";
        if sizes.iter().sum::<usize>() != order.len() {
            let expected = format!("sizes that add up to the {} tokens of the order", order.len());
            return Err(Error::value(OP, "sizes", sizes.iter().sum::<usize>(), expected));
        }
        let mut ranks = vec![u32::MAX; order.len()];
        let steps = (0u32..).zip(sizes).flat_map(|(step, size)| std::iter::repeat_n(step, *size));
        for (token, step) in order.iter().zip(steps) {
            did(1);
            match ranks.get_mut(*token) {
                Some(rank) if *rank == u32::MAX => *rank = step,
                _ => return Err(Error::value(OP, "order", token, "each token once")),
            }
        }
        Ok(Self::ranks(&ranks, false))
    }

    /// The two streams of permuted prediction: content, which sees its own token, and query, which does not.
    ///
    /// # Source
    /// Yang et al. 2019, arXiv:1906.08237, section 2.3.
    #[must_use]
    pub fn two_stream(ranks: &[u32]) -> [Self; 2] {
        [Self::ranks(ranks, false), Self::ranks(ranks, true)]
    }

    /// Queries made of positions alone: each sees the keys made before it (ARPG).
    #[must_use]
    pub fn position_queries(queries: &[u32], keys: &[u32]) -> Self {
        Self::Ranks { queries: queries.to_vec(), keys: keys.to_vec(), strict: true }
    }

    /// A grid with an axis per length that is made by diagonals (two axes) or planes (three), where the coordinates
    /// have the same sum. A cell sees the diagonals before its own and that one too if `own_diagonal`, else itself.
    /// `prefix` tokens come first: causal among themselves, blind to the grid, seen by all of it (NAR).
    #[must_use]
    pub fn diagonals(lengths: &[usize], prefix: usize, own_diagonal: bool) -> Self {
        let cells: usize = lengths.iter().product();
        let sum = |cell: usize| {
            let mut rest = cell;
            lengths.iter().rev().fold(0, |sum, length| {
                let coordinate = rest % length;
                rest /= length;
                sum + coordinate
            })
        };
        let ranks: Vec<u32> = (0..prefix).chain((0..cells).map(|cell| prefix + sum(cell))).map(rank).collect();
        if own_diagonal {
            return Self::ranks(&ranks, false);
        }
        let itself = Self::Window { left: 0, right: 0, align: Align::TopLeft };
        Self::Or(vec![Self::ranks(&ranks, true), itself])
    }

    /// A grid that is cut into `regions` along its height and width; cells of the same place in their regions are
    /// made together (PAR). The regions are those of the larger part where a side does not divide evenly.
    #[must_use]
    pub fn regions([height, width]: [usize; 2], regions: [usize; 2]) -> Self {
        let [rows, columns] = [height.div_ceil(regions[0].max(1)), width.div_ceil(regions[1].max(1))];
        let place = |cell: usize| cell / width % rows * columns + cell % width % columns;
        Self::ranks(&(0..height * width).map(place).map(rank).collect::<Vec<_>>(), false)
    }

    /// Causal line by line, but a row may start as soon as the one above is `window` cells ahead: of the `n`-th row
    /// above, a cell sees what lies less than `n * window` columns to its right, and its own column (ZipAR).
    #[must_use]
    pub fn columns([height, width]: [usize; 2], window: usize) -> Self {
        let step = |cell: usize| (cell / width).saturating_mul(window) + cell % width;
        let made = Self::ranks(&(0..height * width).map(step).map(rank).collect::<Vec<_>>(), false);
        Self::And(vec![Self::Causal { align: Align::TopLeft }, made])
    }

    /// All queries see the first `prefix` keys and those of the keys after them that are known (MAR, MaskGIL): `known`
    /// holds an entry for each of these, for all batch entries or for one after another.
    ///
    /// # Errors
    /// [`Error::Value`] if `known` has not as many entries for each of `batch`.
    pub fn known(q_len: usize, prefix: usize, batch: usize, known: &[bool]) -> Result<Self> {
        if batch == 0 || !known.len().is_multiple_of(batch) {
            return Err(Error::value("mask", "known", known.len(), format!("a multiple of {batch} entries")));
        }
        let entry = |known: &[bool]| -> Vec<u32> {
            std::iter::repeat_n(0, prefix).chain(known.iter().map(|known| u32::from(!known))).collect()
        };
        let keys = match known.len() / batch {
            0 => entry(&[]),
            each => known.chunks(each).flat_map(entry).collect(),
        };
        Ok(Self::Ranks { queries: vec![0; q_len], keys, strict: false })
    }

    /// What this lets pass and `other` too.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self::And(vec![self, other])
    }

    /// What this lets pass or `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self::Or(vec![self, other])
    }

    /// That the mask fits the lengths and its tensors are on `device`.
    pub(crate) fn check(&self, op: &'static str, device: &Device, lengths: Lengths) -> Result<()> {
        let Lengths { batch, q_len, k_len } = lengths;
        match self {
            Self::Full | Self::Causal { .. } | Self::Window { .. } | Self::Prefix { .. } => Ok(()),
            Self::Frames { frame, .. } => match frame {
                0 => Err(Error::value(op, "mask's frame", frame, "at least 1 token")),
                _ => Ok(()),
            },
            Self::KeyLengths(key_lengths) => {
                if key_lengths.len() != batch {
                    let expected = format!("[{batch}]: one length per batch entry");
                    return Err(Error::shape(op, "mask's key lengths", &[key_lengths.len()], expected));
                }
                match key_lengths.iter().find(|length| **length > k_len) {
                    Some(long) => Err(Error::value(op, "a key length", long, format!("at most k_len, {k_len}"))),
                    None => Ok(()),
                }
            }
            Self::Scales { patch_nums, .. } => {
                let tokens = tokens(patch_nums);
                if k_len > tokens || q_len > k_len {
                    let expected = format!("q_len {q_len} <= k_len {k_len} <= their tokens, {tokens}");
                    return Err(Error::shape(op, "mask's patch_nums", patch_nums, expected));
                }
                Ok(())
            }
            Self::Given(given) => {
                device.check_same(op, "mask", given.device())?;
                let shape = given.shape();
                if !(2..=3).contains(&shape.len()) || given.layout().broadcast(&[batch, q_len, k_len]).is_none() {
                    let expected = format!("[{q_len}, {k_len}] or [{batch} or 1, {q_len}, {k_len}]");
                    return Err(Error::shape(op, "mask", shape, expected));
                }
                Ok(())
            }
            Self::Packed { q_lengths, k_lengths, .. } => {
                let sum = |lengths: &[usize]| lengths.iter().fold(0usize, |sum, length| sum.saturating_add(*length));
                if q_lengths.len() != k_lengths.len() || [sum(q_lengths), sum(k_lengths)] != [q_len, k_len] {
                    let expected = format!("as many as q_lengths, adding up to {k_len} (those to {q_len})");
                    return Err(Error::shape(op, "mask's k_lengths", k_lengths, expected));
                }
                Ok(())
            }
            Self::Ranks { queries, keys, .. } => {
                for (operand, ranks, len) in [("mask's query ranks", queries, q_len), ("mask's key ranks", keys, k_len)]
                {
                    if ranks.len() != len && ranks.len() != batch * len {
                        return Err(Error::shape(op, operand, &[ranks.len()], format!("[{len}] or [{batch} * {len}]")));
                    }
                }
                Ok(())
            }
            Self::Bits(bits) => match [bits.q_len, bits.k_len] == [q_len, k_len] {
                true => Ok(()),
                false => Err(Error::shape(op, "mask", &[bits.q_len, bits.k_len], format!("[{q_len}, {k_len}]"))),
            },
            Self::And(all) | Self::Or(all) => all.iter().try_for_each(|mask| mask.check(op, device, lengths)),
            Self::Prepared(prepared) => prepared.mask.check(op, device, lengths),
        }
    }

    /// Whether query `i` of batch entry `batch` sees key `j`: the definition. Given masks are in host memory.
    pub(crate) fn sees(&self, lengths: Lengths, batch: usize, i: usize, j: usize) -> bool {
        did(1);
        let key = signed(j);
        match self {
            Self::Full => true,
            Self::Causal { align } => key <= position(i, *align, lengths),
            Self::Window { left, right, align } => {
                let p = position(i, *align, lengths);
                p - signed(*left) <= key && key <= p + signed(*right)
            }
            Self::Prefix { prefix, align } => j < *prefix || key <= position(i, *align, lengths),
            Self::Frames { frame, align } => {
                signed(j / frame) <= position(i, *align, lengths).div_euclid(signed(*frame))
            }
            Self::KeyLengths(key_lengths) => j < key_lengths[batch],
            Self::Scales { patch_nums, kind } => {
                let query_scale = scale_of(patch_nums, i + lengths.k_len - lengths.q_len);
                let key_scale = scale_of(patch_nums, j);
                let previous = key_scale + 1 == query_scale;
                match kind {
                    ScalesKind::BlockCausal => key_scale <= query_scale,
                    ScalesKind::MarkovSelf => key_scale == query_scale,
                    ScalesKind::MarkovPrevious => previous || (query_scale == 0 && key_scale == 0),
                    ScalesKind::MarkovPreviousAndSelf => previous || key_scale == query_scale,
                }
            }
            Self::Given(given) => {
                let view = given.host();
                let last = given.shape().len() - 2;
                let index = [if last == 1 && given.shape()[0] > 1 { batch } else { 0 }, i, j];
                let strides = view.layout.strides();
                let at: usize = index[1 - last..].iter().zip(strides).map(|(index, stride)| index * stride).sum();
                view.data[view.layout.offset() + at] != 0
            }
            Self::Packed { q_lengths, k_lengths, causal } => {
                let ([start, end], last) = packed_keys(q_lengths, k_lengths, i);
                (start..end).contains(&j) && (!causal || key <= last)
            }
            Self::Ranks { queries, keys, strict } => {
                let query = queries[if queries.len() == lengths.q_len { i } else { batch * lengths.q_len + i }];
                let key = keys[if keys.len() == lengths.k_len { j } else { batch * lengths.k_len + j }];
                key < query || (!strict && key == query)
            }
            Self::Bits(bits) => bits.row(i)[j / 64] >> (j % 64) & 1 == 1,
            Self::And(all) => all.iter().all(|mask| mask.sees(lengths, batch, i, j)),
            Self::Or(all) => all.iter().any(|mask| mask.sees(lengths, batch, i, j)),
            Self::Prepared(prepared) => prepared.mask.sees(lengths, batch, i, j),
        }
    }
}

/// The keys of the sequence that query `i` lies in, from the first to one past the last, and where the query stands.
pub(super) fn packed_keys(q_lengths: &[usize], k_lengths: &[usize], i: usize) -> ([usize; 2], isize) {
    let (mut query, mut key) = (0, 0);
    for (q_len, k_len) in q_lengths.iter().zip(k_lengths) {
        did(1);
        if i < query + q_len {
            let place = signed(i - query) + signed(*k_len) - signed(*q_len);
            return ([key, key + k_len], signed(key) + place);
        }
        query += q_len;
        key += k_len;
    }
    ([key, key], signed(key))
}

/// Ranks come from lengths of axes; those that do not fit are alike, far beyond any grid that fits memory.
fn rank(step: usize) -> u32 {
    did(1);
    u32::try_from(step).unwrap_or(u32::MAX)
}

pub(super) fn signed(length: usize) -> isize {
    // A quarter of the range leaves room to add three of them.
    isize::try_from(length).unwrap_or(isize::MAX).min(isize::MAX / 4)
}

/// Where query `i` stands among the keys.
pub(super) fn position(i: usize, align: Align, lengths: Lengths) -> isize {
    match align {
        Align::TopLeft => signed(i),
        Align::BottomRight => signed(i) + signed(lengths.k_len) - signed(lengths.q_len),
    }
}

pub(super) fn tokens(patch_nums: &[usize]) -> usize {
    patch_nums.iter().fold(0usize, |sum, side| sum.saturating_add(side.saturating_mul(*side)))
}

/// The scale of a token; the checks have made sure that there is one.
pub(super) fn scale_of(patch_nums: &[usize], token: usize) -> usize {
    let mut end = 0;
    patch_nums
        .iter()
        .position(|side| {
            end += side * side;
            token < end
        })
        .unwrap_or(patch_nums.len().saturating_sub(1))
}
