//! Launchers of the PTX kernels.

use super::compiled::words_at;
use super::{MAX_HEAD_DIM, Scoring, Visible, compiled, hopper};
use crate::backend::cuda::{Argument, Operand, Stream, aligned, blocks, dense, dense_or_absent, rows_launch, to_u32};
use crate::{Dtype, Error, Result};

pub use super::hopper::notes;

/// Queries that one block has in every variant, and few enough to split the keys for.
const FEW_QUERIES: usize = 8;

/// Threads of a block where each has an element.
const BLOCK: u32 = 256;

/// Keys that are summed before they are added to the others, as the kernels have it.
const SEGMENT: usize = 256;

/// Into how many segments the keys of a call should be split for a device with so many multiprocessors: 1 for one block
/// of threads per block of queries. Results do not depend on it.
#[must_use]
pub fn segments([batch, heads, q_len, k_len]: [usize; 4], multiprocessors: usize) -> usize {
    match k_len.div_ceil(SEGMENT) {
        segments if segments > 1 && q_len <= FEW_QUERIES && batch * heads < 16 * multiprocessors => segments,
        _ => 1,
    }
}

/// [`super::attention`] over operands whose last axis is dense. With `pages`, u32 `[batch, most pages]`, contiguous, `k` and
/// `v` are `[pages, kv_heads, page_size, head_dim]`: key `j` of a batch entry is slot `j mod page_size` of the page that its
/// row names. `bias` is broadcast to `[batch, heads, q_len,
/// k_len]`, `given` to `[batch, q_len, k_len]`. `y` and `lse` are contiguous. With `parts`, f32 `[batch, heads, q_len,
/// segments, head_dim + 2]`, contiguous, the keys are split into [`segments`]. With `notes`, u32 zeros, as
/// many as [`notes`] says, Hopper's own kernel does the work; it does so without where all queries see all keys. Pages
/// are not for that kernel.
///
/// # Errors
/// [`Error::Shape`] if a layout is none of these; [`Error::Value`] if a stride does not fit 32 bits.
#[expect(clippy::too_many_arguments, reason = "the operands of the op")]
pub fn attention(
    stream: &Stream<'_>,
    q: Operand<'_>,
    k: Operand<'_>,
    v: Operand<'_>,
    pages: Option<Operand<'_>>,
    scoring: Scoring,
    bias: Option<Operand<'_>>,
    visible: Visible<Operand<'_>>,
    given: Option<Operand<'_>>,
    y: Operand<'_>,
    lse: Option<Operand<'_>>,
    parts: Option<Operand<'_>>,
    notes: Option<Operand<'_>>,
) -> Result<()> {
    const OP: &str = "attention";
    let (&[batch, heads, q_len, head_dim], &[_, kv_heads, k_len, _]) = (q.shape(), k.shape()) else {
        return Err(Error::shape(OP, "q", q.shape(), "[batch, heads, q_len, head_dim], as k"));
    };
    if !(1..=MAX_HEAD_DIM).contains(&head_dim) {
        return Err(Error::shape(OP, "q", q.shape(), format!("a head_dim of 1 to {MAX_HEAD_DIM}")));
    }
    let sees = Sees::new(visible, q_len)?;
    let address = |operand: Option<Operand<'_>>| Argument::Address(operand.map_or(0, |operand| operand.address()));
    let [q_strides, k_strides, v_strides] = [rows("q", q)?, rows("k", k)?, rows("v", v)?];
    let bias_strides = bias.map_or(Ok([0; 4]), |bias| strides("bias", bias))?;
    let given_strides = given.map_or(Ok([0; 3]), |given| strides("mask", given))?;
    let segments = parts.and_then(|parts| parts.shape().get(3).copied()).unwrap_or(1);
    let multiprocessors = stream.cuda().multiprocessors() as usize;
    let mut again = Argument::Address(0);
    let (pages_stride, page_size) = match pages {
        None => (0, 0),
        Some(pages) => (pages.shape().last().copied().unwrap_or(0), k_len),
    };
    let beside = pages.is_some() || bias.is_some() || given.is_some() || parts.is_some();
    let hopper = !beside && hopper::attention(stream, [q, k, v, y], scoring, &sees, lse, notes)?;
    if hopper {
        let Some(notes) = notes else { return Ok(()) };
        again = hopper::again(notes);
    }
    let mut arguments = vec![
        address(Some(q)),
        address(Some(k)),
        address(Some(v)),
        address(bias),
        sees.lists[0],
        sees.lists[1],
        sees.lists[2],
        sees.lists[3],
        address(given),
        dense(OP, "y", y)?,
        dense_or_absent(OP, "lse", lse)?,
        dense_or_absent(OP, "parts", parts)?,
        dense_or_absent(OP, "pages", pages)?,
        Argument::Words(&q_strides),
        Argument::Words(&k_strides),
        Argument::Words(&v_strides),
        Argument::Words(&bias_strides),
        Argument::Words(&given_strides),
        sees.strides[0],
        sees.strides[1],
        Argument::U32(to_u32(OP, "q", heads)?),
        Argument::U32(to_u32(OP, "q", (heads / kv_heads.max(1)).max(1))?),
        Argument::U32(to_u32(OP, "q", q_len)?),
        Argument::U32(to_u32(OP, "q", head_dim)?),
        Argument::U32(sees.keys[0]),
        Argument::U32(sees.keys[1]),
        Argument::U32(to_u32(OP, "parts", segments)?),
        Argument::U32(to_u32(OP, "pages", pages_stride)?),
        Argument::U32(to_u32(OP, "k", page_size)?),
        Argument::F32(scoring.scale),
        Argument::F32(scoring.softcap.unwrap_or(0.0)),
    ];
    let mut variant = variant(q.dtype, [batch * heads, q_len, head_dim], multiprocessors);
    if variant.width.is_some() {
        arguments.push(again);
    }
    if hopper {
        variant.rows = 64;
    }
    let grid = blocks(OP, batch * heads * q_len.div_ceil(variant.rows) * segments, 1)?;
    let entry = match variant.width {
        Some(width) => format!("attention_mma_{}_d{width}_q{}", q.dtype, variant.rows),
        None => format!("attention_{}_q{}", q.dtype, variant.rows),
    };
    stream.launch(&entry, [grid, 1, 1], [variant.threads(), 1, 1], variant.shared_bytes(), &arguments)?;
    let Some(parts) = parts else { return Ok(()) };
    let elements = y.layout.elements();
    let arguments = [
        dense(OP, "parts", parts)?,
        dense(OP, "y", y)?,
        dense_or_absent(OP, "lse", lse)?,
        Argument::U32(to_u32(OP, "y", elements)?),
        Argument::U32(to_u32(OP, "parts", segments)?),
        Argument::U32(to_u32(OP, "q", head_dim)?),
    ];
    let grid = blocks(OP, elements, BLOCK as usize)?;
    stream.launch(&format!("attention_fold_{}", y.dtype), [grid, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}

/// Which keys queries see, as the kernels take it.
pub(super) struct Sees {
    /// Ranges; of tiles the starts of lists, their entries, and bits.
    pub lists: [Argument<'static>; 4],
    /// From one batch entry to the next, in ranges and in starts.
    pub strides: [Argument<'static>; 2],
    /// The first key and the one past the last, where there are no ranges.
    pub keys: [u32; 2],
}

impl Sees {
    fn new(visible: Visible<Operand<'_>>, q_len: usize) -> Result<Self> {
        const OP: &str = "attention";
        let absent = Argument::Address(0);
        let (words, batches, entries) = match visible {
            Visible::Same(keys) => return Ok(Self { lists: [absent; 4], strides: [Argument::U32(0); 2], keys }),
            Visible::Words { words, batches, entries } => (words, batches, entries),
        };
        dense(OP, "mask", words)?;
        let at = |word: usize| Argument::Address(words.address() + 4 * word as u64);
        let listed = entries.map(|entries| words_at(q_len, batches, entries).map(at));
        let [starts, entries, bits] = listed.unwrap_or([absent; 3]);
        let of_each = |count: usize| if batches == 1 { Ok(0) } else { to_u32(OP, "mask", count) };
        let strides = [of_each(q_len)?, of_each(q_len.div_ceil(compiled::BLOCK))?].map(Argument::U32);
        Ok(Self { lists: [at(0), starts, entries, bits], strides, keys: [0, 0] })
    }

    /// Whether all queries see the same keys, from the first one on.
    pub fn plain(&self) -> bool {
        matches!(self.lists[0], Argument::Address(0)) && self.keys[0] == 0
    }
}

/// Which kernel, by what its blocks take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Variant {
    /// The head's width on tensor cores, with its padding; none for the plain kernel.
    width: Option<usize>,
    /// Queries of a block.
    rows: usize,
}

impl Variant {
    fn threads(self) -> u32 {
        match self.width {
            Some(_) if self.rows == 16 => 32,
            _ => 128,
        }
    }

    /// Dynamic shared memory: the queries, a tile of keys and one of values, in rows that are 16 bytes longer.
    fn shared_bytes(self) -> u32 {
        let Some(width) = self.width else { return 0 };
        let tile = if width <= 128 { 64 } else { 32 };
        u32::try_from((2 * width + 16) * (self.rows + 2 * tile)).expect("at most 67584")
    }
}

/// The kernel for so many `[heads of all batch entries, q_len, head_dim]`: half types on tensor cores. More queries to a
/// block read less, if the blocks still occupy the device; the results are the same.
fn variant(dtype: Dtype, [heads, q_len, head_dim]: [usize; 3], multiprocessors: usize) -> Variant {
    /// Those that kernels are rendered for.
    const WIDTHS: [usize; 6] = [32, 64, 96, 128, 192, MAX_HEAD_DIM];
    if dtype == Dtype::F32 {
        return Variant { width: None, rows: if q_len <= 8 { 8 } else { 32 } };
    }
    let few = q_len <= 16 || heads * q_len.div_ceil(64) < multiprocessors;
    Variant { width: WIDTHS.into_iter().find(|width| *width >= head_dim), rows: if few { 16 } else { 64 } }
}

/// The strides of the first axes, as kernels take them.
fn strides<const AXES: usize>(operand: &'static str, tensor: Operand<'_>) -> Result<[u32; AXES]> {
    let mut strides = [0; AXES];
    for (stride, from) in strides.iter_mut().zip(tensor.layout.strides()) {
        *stride = to_u32("attention", operand, *from)?;
    }
    Ok(strides)
}

/// The strides of batch, head and row of a tensor whose last axis is dense.
fn rows(operand: &'static str, tensor: Operand<'_>) -> Result<[u32; 3]> {
    let last = (tensor.shape().last(), tensor.layout.strides().last());
    if !matches!(last, (Some(0 | 1), _) | (_, Some(1))) {
        return Err(Error::shape("attention", operand, tensor.layout.strides(), "a stride of 1 in the last axis"));
    }
    strides(operand, tensor)
}

/// [`super::merge`] into `y` and `merged`, over contiguous operands.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn merge(
    stream: &Stream<'_>,
    parts: Operand<'_>,
    lse: Operand<'_>,
    y: Operand<'_>,
    merged: Operand<'_>,
) -> Result<()> {
    const OP: &str = "attention_merge";
    let &[count, .., head_dim] = parts.shape() else {
        return Err(Error::shape(OP, "parts", parts.shape(), "[parts, batch, heads, q_len, head_dim]"));
    };
    let elements = y.layout.elements();
    let arguments = [
        dense(OP, "parts", parts)?,
        dense(OP, "lse", lse)?,
        dense(OP, "y", y)?,
        dense(OP, "merged", merged)?,
        Argument::U32(to_u32(OP, "y", elements)?),
        Argument::U32(to_u32(OP, "y", elements / head_dim.max(1))?),
        Argument::U32(to_u32(OP, "parts", head_dim)?),
        Argument::U32(to_u32(OP, "parts", count)?),
    ];
    let grid = blocks(OP, elements, BLOCK as usize)?;
    stream.launch(&format!("merge_{}", y.dtype), [grid, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}

/// [`super::l2_normalise`] into `y`, over contiguous operands. `y` may be `x` itself.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn l2_normalise(stream: &Stream<'_>, x: Operand<'_>, y: Operand<'_>) -> Result<()> {
    const OP: &str = "l2_normalise";
    let channels = *x.shape().last().unwrap_or(&1);
    let rows = x.layout.elements() / channels.max(1);
    let arguments = [
        dense(OP, "x", x)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "x", rows)?),
        Argument::U32(to_u32(OP, "x", channels)?),
    ];
    let entry = format!("l2_normalise_{}{}", x.dtype, aligned(x.dtype, channels, &[x, y]));
    let (grid, block) = rows_launch(OP, rows, channels)?;
    stream.launch(&entry, grid, block, 0, &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_and_the_device_choose_the_kernel() {
        let of = |dtype, shape| variant(dtype, shape, 132);
        assert_eq!(of(Dtype::F32, [1, 8, 64]), Variant { width: None, rows: 8 });
        assert_eq!(of(Dtype::F32, [1, 9, 64]), Variant { width: None, rows: 32 });
        assert_eq!(of(Dtype::F16, [400, 1, 64]), Variant { width: Some(64), rows: 16 });
        assert_eq!(of(Dtype::F16, [131, 64, 64]), Variant { width: Some(64), rows: 16 });
        assert_eq!(of(Dtype::Bf16, [66, 65, 65]), Variant { width: Some(96), rows: 64 });
        assert_eq!(of(Dtype::Bf16, [132, 17, 256]), Variant { width: Some(256), rows: 64 });
    }

    #[test]
    fn few_queries_split_many_keys() {
        assert_eq!(segments([1, 16, 1, 256], 132), 1);
        assert_eq!(segments([1, 16, 1, 257], 132), 2);
        assert_eq!(segments([1, 16, 9, 4096], 132), 1, "many queries");
        assert_eq!(segments([64, 16, 1, 4096], 132), 16);
        assert_eq!(segments([132, 16, 1, 4096], 132), 1, "many heads");
    }

    #[test]
    fn shared_memory_fits_every_device() {
        for width in [32, 64, 96, 128, 192, 256] {
            for rows in [16, 64] {
                let bytes = Variant { width: Some(width), rows }.shared_bytes();
                // What sm_86, sm_89 and sm_120 have, the least of all.
                assert!(bytes <= 99 << 10, "{width}, {rows}: {bytes}");
            }
        }
    }
}
