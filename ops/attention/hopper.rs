//! Hopper's own kernel of attention: what it takes, and its launch.

use super::cuda::Sees;
use super::{MAX_HEAD_DIM, Scoring};
use crate::backend::cuda::{Argument, Operand, Stream, blocks, dense, dense_or_absent, has_tensor_map, to_u32};
use crate::{Error, Result};

const OP: &str = "attention";
/// Queries that a block has at a time.
const QUERIES: usize = 128;
/// Queries that are done again together.
const AGAIN: usize = 64;
const THREADS: u32 = 384;

/// How many words of zeros [`super::cuda::attention`] should be given as `notes`: where Hopper's own kernel takes the
/// operands (q, k, v, y) and a mask hides keys. Blocks then share out work of different lengths, and what is not finite must
/// be kept from the queries that do not see it, for which those that it reached are done again.
#[must_use]
pub fn notes(stream: &Stream<'_>, operands: [Operand<'_>; 4], scoring: Scoring) -> Option<usize> {
    takes(stream, operands, scoring).then(|| words(operands[0]))
}

/// A counter, and a word for each 64 queries.
fn words(q: Operand<'_>) -> usize {
    let &[batch, heads, q_len, _] = q.shape() else { unreachable!("an operand with a tensor map") };
    1 + batch * heads * q_len.div_ceil(AGAIN)
}

/// Whether the kernel can take these operands at all: half types that the copy engine reads in place, more queries than
/// one of its warpgroups has, nothing but a positive scale on the scores.
fn takes(stream: &Stream<'_>, operands: [Operand<'_>; 4], scoring: Scoring) -> bool {
    let [q, ..] = operands;
    stream.cuda().has("sm_90a")
        && q.shape().get(2).is_some_and(|q_len| *q_len > QUERIES / 2)
        && scoring.scale > 0.0
        && scoring.softcap.is_none()
        && operands.into_iter().all(has_tensor_map)
}

/// Where `notes` says which queries are to be done again.
pub(super) fn again(notes: Operand<'_>) -> Argument<'static> {
    Argument::Address(notes.address() + 4)
}

/// Enqueues the kernel if it takes the operands, and says whether it did. Without `notes` it does so only where all
/// queries see all keys.
pub(super) fn attention(
    stream: &Stream<'_>,
    operands: [Operand<'_>; 4],
    scoring: Scoring,
    sees: &Sees,
    lse: Option<Operand<'_>>,
    notes: Option<Operand<'_>>,
) -> Result<bool> {
    if !(sees.plain() || notes.is_some()) || !takes(stream, operands, scoring) {
        return Ok(false);
    }
    let [q, k, v, y] = operands;
    let (&[batch, heads, q_len, head_dim], &[_, kv_heads, k_len, _]) = (q.shape(), k.shape()) else {
        unreachable!("operands with tensor maps")
    };
    if let Some(notes) = notes.filter(|notes| notes.layout.elements() < words(q)) {
        return Err(Error::shape(OP, "notes", notes.shape(), format!("at least {} words", words(q))));
    }
    let width = width(head_dim);
    let keys = if width <= 128 { 128 } else { 64 };
    // Copies bring zeros for keys past the last one, of which there are none where nothing else is hidden.
    let seen = if sees.plain() { k_len.min(sees.keys[1] as usize).max(1) } else { k_len };
    let maps = [
        stream.tensor_map(q, [batch, heads, q_len, head_dim], 64)?,
        stream.tensor_map(k, [batch, kv_heads, seen, head_dim], keys)?,
        stream.tensor_map(v, [batch, kv_heads, seen, head_dim], keys)?,
        stream.tensor_map(y, [batch, heads, q_len, head_dim], 64)?,
    ];
    let works = batch * heads * q_len.div_ceil(QUERIES);
    let arguments = [
        maps[0].argument(),
        maps[1].argument(),
        maps[2].argument(),
        maps[3].argument(),
        sees.lists[0],
        sees.lists[1],
        sees.lists[2],
        sees.lists[3],
        dense_or_absent(OP, "lse", lse)?,
        notes.map_or(Argument::Address(0), again),
        notes.map_or(Ok(Argument::Address(0)), |notes| dense(OP, "notes", notes))?,
        sees.strides[0],
        sees.strides[1],
        Argument::U32(to_u32(OP, "q", heads)?),
        Argument::U32(to_u32(OP, "q", heads / kv_heads)?),
        Argument::U32(to_u32(OP, "q", q_len)?),
        Argument::U32(to_u32(OP, "q", batch * heads)?),
        Argument::U32(to_u32(OP, "k", together([k_len, head_dim], batch * heads, heads / kv_heads))?),
        Argument::U32(blocks(OP, works, 1)?),
        Argument::U32(sees.keys[0]),
        Argument::U32(sees.keys[1]),
        Argument::F32(scoring.scale),
    ];
    let grid = blocks(OP, works.min(stream.cuda().multiprocessors() as usize), 1)?;
    let entry = format!("attention_wgmma_{}_d{width}", q.dtype);
    stream.launch(&entry, [grid, 1, 1], [THREADS, 1, 1], shared_bytes(width), &arguments)?;
    Ok(true)
}

/// How many query heads are done at a time: so many as have their keys and values in a third of the cache together,
/// since blocks of a head that run at the same time read them from there.
fn together([k_len, head_dim]: [usize; 2], heads: usize, group: usize) -> usize {
    const CACHE_BYTES: usize = 16 << 20;
    (CACHE_BYTES / (4 * k_len * head_dim) * group).clamp(1, heads)
}

/// The head's width in the kernel.
fn width(head_dim: usize) -> usize {
    [64, 128].into_iter().find(|width| *width >= head_dim).unwrap_or(MAX_HEAD_DIM)
}

/// Shared memory: places for queries, stages of keys and of values, barriers.
fn shared_bytes(width: usize) -> u32 {
    let [places, keys, stages] = match width {
        64 => [2, 128, 4],
        128 => [2, 128, 2],
        _ => [1, 64, 2],
    };
    let bytes = 2 * width * (places * QUERIES + 2 * stages * keys) + 20 * places + 32 * stages;
    u32::try_from(bytes).expect("at most 196712")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_done_together_as_their_keys_fit_the_cache() {
        assert_eq!(together([512, 128], 512, 1), 64);
        assert_eq!(together([16384, 128], 16, 1), 2);
        assert_eq!(together([16384, 128], 16, 4), 8, "heads of a group share them");
        assert_eq!(together([1 << 20, 256], 16, 1), 1);
        assert_eq!(together([8, 8], 3, 1), 3);
    }

    #[test]
    fn widths_are_those_that_kernels_are_rendered_for() {
        for (head_dim, expected) in [(8, 64), (64, 64), (72, 128), (128, 128), (136, 256), (256, 256)] {
            assert_eq!(width(head_dim), expected);
            assert!(shared_bytes(expected) <= 227 << 10, "{head_dim}");
        }
    }
}
