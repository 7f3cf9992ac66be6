//! Which query sees which key: masks as predicates, and compiled to a range of keys per query.

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
/// | `Given`      | the tensor holds anything but 0 there                                        |
/// | `And`        | all of them say so; none: always                                             |
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
    /// The mask itself: `[q_len, k_len]`, or `[batch, q_len, k_len]` where `batch` may be 1; on the device of the
    /// operands.
    Given(Tensor<u8>),
    /// What all of these let pass.
    And(Vec<Mask>),
}

/// The lengths that a mask is read for.
#[derive(Debug, Clone, Copy)]
pub struct Lengths {
    /// Batch entries.
    pub batch: usize,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub k_len: usize,
}

/// A mask for given lengths: one range of keys per query, and at most one given mask within it.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// Start and end of the keys that a query may see: one entry per query, for every batch entry if they differ.
    pub ranges: Vec<[u32; 2]>,
    /// Batch entries in `ranges`: 1 or all.
    pub batches: usize,
    /// Broadcast to `[batch, q_len, k_len]`.
    pub given: Option<Tensor<u8>>,
}

impl Compiled {
    /// The keys that a query may see.
    #[must_use]
    pub fn range(&self, lengths: Lengths, batch: usize, query: usize) -> [usize; 2] {
        let batch = if self.batches == 1 { 0 } else { batch };
        self.ranges[batch * lengths.q_len + query].map(|key| key as usize)
    }
}

impl Mask {
    /// A given mask from any predicate of query and key.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has no room for it.
    pub fn from_fn(device: &Device, q_len: usize, k_len: usize, sees: impl Fn(usize, usize) -> bool) -> Result<Self> {
        let mask = (0..q_len).flat_map(|i| (0..k_len).map(move |j| (i, j))).map(|(i, j)| u8::from(sees(i, j)));
        Ok(Self::Given(Tensor::from_vec(device, &[q_len, k_len], mask.collect())?))
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
            Self::And(all) => all.iter().try_for_each(|mask| mask.check(op, device, lengths)),
        }
    }

    /// Whether query `i` of batch entry `batch` sees key `j`: the definition. Given masks are in host memory.
    pub(crate) fn sees(&self, lengths: Lengths, batch: usize, i: usize, j: usize) -> bool {
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
            Self::And(all) => all.iter().all(|mask| mask.sees(lengths, batch, i, j)),
        }
    }

    #[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
    /// The range of keys outside of which query `i` sees none; only a given mask hides keys inside it.
    fn range(&self, lengths: Lengths, batch: usize, i: usize) -> [usize; 2] {
        let k_len = lengths.k_len;
        let below = |key: isize| usize::try_from(key).unwrap_or(0).min(k_len);
        match self {
            Self::Full | Self::Given(_) => [0, k_len],
            Self::Causal { align } => [0, below(position(i, *align, lengths) + 1)],
            Self::Window { left, right, align } => {
                let p = position(i, *align, lengths);
                [below(p - signed(*left)), below(p + signed(*right) + 1)]
            }
            Self::Prefix { prefix, align } => [0, below(position(i, *align, lengths) + 1).max((*prefix).min(k_len))],
            Self::Frames { frame, align } => {
                let p = position(i, *align, lengths);
                [0, below((p.div_euclid(signed(*frame)) + 1).saturating_mul(signed(*frame)))]
            }
            Self::KeyLengths(key_lengths) => [0, key_lengths[batch]],
            Self::Scales { patch_nums, kind } => {
                let scale = scale_of(patch_nums, i + k_len - lengths.q_len);
                let start = |scale: usize| tokens(&patch_nums[..scale]).min(k_len);
                let before = scale.saturating_sub(1);
                match kind {
                    ScalesKind::BlockCausal => [0, start(scale + 1)],
                    ScalesKind::MarkovSelf => [start(scale), start(scale + 1)],
                    ScalesKind::MarkovPrevious => [start(before), start(before + 1)],
                    ScalesKind::MarkovPreviousAndSelf => [start(before), start(scale + 1)],
                }
            }
            Self::And(all) => all.iter().fold([0, k_len], |[start, end], mask| {
                let [other_start, other_end] = mask.range(lengths, batch, i);
                [start.max(other_start), end.min(other_end)]
            }),
        }
    }

    #[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
    fn depends_on_batch(&self) -> bool {
        match self {
            Self::KeyLengths(_) => true,
            Self::And(all) => all.iter().any(Self::depends_on_batch),
            _ => false,
        }
    }

    #[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
    fn given<'a>(&'a self, found: &mut Vec<&'a Tensor<u8>>) {
        match self {
            Self::Given(given) => found.push(given),
            Self::And(all) => all.iter().for_each(|mask| mask.given(found)),
            _ => {}
        }
    }

    #[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
    /// The mask for these lengths, which [`Mask::check`] has passed.
    pub(crate) fn compile(&self, op: &'static str, lengths: Lengths) -> Result<Compiled> {
        let Lengths { batch, q_len, k_len } = lengths;
        if u32::try_from(k_len).is_err() {
            return Err(Error::shape(op, "k", &[k_len], "fewer than 2^32 keys"));
        }
        let batches = if self.depends_on_batch() { batch } else { 1 };
        let pairs = (0..batches).flat_map(|batch| (0..q_len).map(move |i| (batch, i)));
        // Every bound is at most k_len.
        #[expect(clippy::cast_possible_truncation, reason = "at most k_len, which fits")]
        let ranges = pairs.map(|(batch, i)| self.range(lengths, batch, i).map(|key| key as u32)).collect();
        let mut found = Vec::new();
        self.given(&mut found);
        let given = match found[..] {
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
        };
        Ok(Compiled { ranges, batches, given })
    }
}

fn signed(length: usize) -> isize {
    // A quarter of the range leaves room to add three of them.
    isize::try_from(length).unwrap_or(isize::MAX).min(isize::MAX / 4)
}

/// Where query `i` stands among the keys.
fn position(i: usize, align: Align, lengths: Lengths) -> isize {
    match align {
        Align::TopLeft => signed(i),
        Align::BottomRight => signed(i) + signed(lengths.k_len) - signed(lengths.q_len),
    }
}

fn tokens(patch_nums: &[usize]) -> usize {
    patch_nums.iter().fold(0usize, |sum, side| sum.saturating_add(side.saturating_mul(*side)))
}

/// The scale of a token; the checks have made sure that there is one.
fn scale_of(patch_nums: &[usize], token: usize) -> usize {
    let mut end = 0;
    patch_nums
        .iter()
        .position(|side| {
            end += side * side;
            token < end
        })
        .unwrap_or(patch_nums.len().saturating_sub(1))
}
