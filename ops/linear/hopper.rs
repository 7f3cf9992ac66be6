//! Hopper's own kernel of products: what it takes, and its launch.

use super::cuda::{FEW_ROWS, segment};
use crate::backend::cuda::{Argument, Operand, Stream, blocks, dense_or_absent, has_tensor_map, to_u32};
use crate::{Layout, Result};

const OP: &str = "linear";
/// Rows of a piece of work.
const ROWS: usize = 128;
/// Its outputs, by variant.
const COLUMNS: [usize; 3] = [192, 128, 64];
const THREADS: u32 = 384;

/// Enqueues the kernel if it takes the operands, contiguous and of one half type, and says whether it did. It adds in
/// the same order as the kernels for all tensor cores. That it gives the same bits rests on `wgmma` adding 16 products
/// at a time as `mma.sync` does there (Xie et al. 2025, arXiv:2511.10909).
pub(super) fn linear(
    stream: &Stream<'_>,
    x: Operand<'_>,
    weight: Operand<'_>,
    bias: Option<Operand<'_>>,
    y: Operand<'_>,
) -> Result<bool> {
    let (&[batch, rows, inputs], &[entries, outputs, _]) = (x.shape(), weight.shape()) else {
        unreachable!("the caller checked the shapes")
    };
    let multiprocessors = stream.cuda().multiprocessors() as usize;
    let Some(columns) = columns([batch, rows, outputs], multiprocessors) else { return Ok(false) };
    let shapes = [[1, batch, rows, inputs], [1, entries, outputs, inputs], [1, batch, rows, outputs]];
    let layout = |operand: Operand<'_>, shape: [usize; 4]| -> Option<Layout> { operand.layout.reshape(&shape) };
    let (Some(of_x), Some(of_weight), Some(of_y)) =
        (layout(x, shapes[0]), layout(weight, shapes[1]), layout(y, shapes[2]))
    else {
        return Ok(false);
    };
    let x = Operand { layout: &of_x, ..x };
    let weight = Operand { layout: &of_weight, ..weight };
    let y = Operand { layout: &of_y, ..y };
    if !stream.cuda().has("sm_90a") || ![x, weight, y].into_iter().all(has_tensor_map) {
        return Ok(false);
    }
    let maps = [
        stream.tensor_map(x, shapes[0], 64)?,
        stream.tensor_map(weight, shapes[1], to_u32(OP, "weight", columns)?)?,
        stream.tensor_map(y, shapes[2], 64)?,
    ];
    let works = works([batch, rows, outputs], columns);
    let arguments = [
        maps[0].argument(),
        maps[1].argument(),
        maps[2].argument(),
        dense_or_absent(OP, "bias", bias)?,
        Argument::U32(to_u32(OP, "weight", entries)?),
        Argument::U32(to_u32(OP, "x", rows)?),
        Argument::U32(to_u32(OP, "x", inputs)?),
        Argument::U32(to_u32(OP, "y", outputs)?),
        Argument::U32(to_u32(OP, "x", segment(inputs))?),
        Argument::U32(blocks(OP, works, 1)?),
    ];
    let grid = blocks(OP, works.min(multiprocessors), 1)?;
    let entry = format!("linear_wgmma_{}_o{columns}", x.dtype);
    stream.launch(&entry, [grid, 1, 1], [THREADS, 1, 1], shared_bytes(columns), &arguments)?;
    Ok(true)
}

/// Pieces of work.
fn works([batch, rows, outputs]: [usize; 3], columns: usize) -> usize {
    batch * rows.div_ceil(ROWS) * outputs.div_ceil(columns)
}

/// Shared memory: four stages of 64 inputs, results, barriers.
fn shared_bytes(columns: usize) -> u32 {
    u32::try_from(128 * (4 * (ROWS + columns) + ROWS * columns / 64) + 64).expect("at most 213056")
}

/// The outputs of a piece of work with which the blocks are done first. None for so few rows that reading the weight is
/// all the work, and for so little work that most multiprocessors would have none.
fn columns(shape: [usize; 3], multiprocessors: usize) -> Option<usize> {
    if shape[1] <= FEW_ROWS || 2 * works(shape, 64) < multiprocessors {
        return None;
    }
    let time = |columns: &usize| works(shape, *columns).div_ceil(multiprocessors) * (columns + 32);
    COLUMNS.into_iter().min_by_key(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_comes_in_few_and_even_pieces() {
        assert_eq!(columns([1, 128, 1024], 132), None);
        assert_eq!(columns([1, 16, 9600], 132), None);
        assert_eq!(columns([1, 17, 9600], 132), Some(128));
        assert_eq!(columns([1, 256, 2304], 132), Some(64));
        assert_eq!(columns([1, 8192, 8192], 132), Some(192));
        // One piece for each multiprocessor, and not one for one of them more.
        assert_eq!(columns([1, 128 * 12, 128 * 11], 132), Some(128));
        for columns in COLUMNS {
            assert!(shared_bytes(columns) <= 227 << 10, "{columns}");
        }
    }
}
