//! Launchers of the PTX kernels.

use crate::backend::cuda::{Argument, Operand, Stream, blocks, dense, dense_or_absent, to_u32};
use crate::{Error, Result, Weight};

/// Rows from which a tile of them is worth its empty places.
const ROWS_FOR_A_TILE: usize = 17;
/// Rows and outputs of a tile.
const TILE: usize = 64;
/// Outputs of a block of the kernel for few rows.
const OUTPUTS: usize = 16;
/// Inputs that the kernels can count.
const MAX_INPUTS: usize = (1 << 31) - 1;

/// A [`Weight`] as the launchers take it: the stored values and, for an int8 one, the scale.
pub(crate) fn operands(weight: &Weight) -> (Operand<'_>, Option<Operand<'_>>) {
    match weight {
        Weight::F32(weight) => (weight.cuda_operand(), None),
        Weight::F16(weight) => (weight.cuda_operand(), None),
        Weight::Bf16(weight) => (weight.cuda_operand(), None),
        Weight::Int8 { values, scale } => (values.cuda_operand(), Some(scale.cuda_operand())),
    }
}

/// [`super::linear`] and [`super::matmul`] into `y` `[batch, rows, outputs]`, over contiguous operands: `x`
/// `[batch, rows, inputs]`, `weight` `[batch or 1, outputs, inputs]`, `scale` and `bias` `[outputs]`.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit or an operand is not contiguous.
pub fn linear(
    stream: &Stream<'_>,
    x: Operand<'_>,
    weight: Operand<'_>,
    scale: Option<Operand<'_>>,
    bias: Option<Operand<'_>>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "linear";
    let &[batch, rows, inputs] = x.shape() else {
        return Err(Error::shape(OP, "x", x.shape(), "[batch, rows, inputs]"));
    };
    let &[entries, outputs, columns] = weight.shape() else {
        return Err(Error::shape(OP, "weight", weight.shape(), "[batch or 1, outputs, inputs]"));
    };
    if columns != inputs || (entries != batch && entries != 1) {
        return Err(Error::shape(OP, "weight", weight.shape(), format!("[{batch} or 1, outputs, {inputs}]")));
    }
    if inputs > MAX_INPUTS {
        return Err(Error::shape(OP, "x", x.shape(), format!("at most {MAX_INPUTS} inputs")));
    }
    if y.shape() != [batch, rows, outputs] {
        return Err(Error::shape(OP, "y", y.shape(), format!("{:?}", [batch, rows, outputs])));
    }
    for (operand, vector) in [("scale", scale), ("bias", bias)] {
        if let Some(vector) = vector
            && vector.shape() != [outputs]
        {
            return Err(Error::shape(OP, operand, vector.shape(), format!("[{outputs}]")));
        }
    }
    let arguments = [
        dense(OP, "x", x)?,
        dense(OP, "weight", weight)?,
        dense_or_absent(OP, "scale", scale)?,
        dense_or_absent(OP, "bias", bias)?,
        dense(OP, "y", y)?,
        Argument::U64(if entries > 1 { (outputs * inputs) as u64 } else { 0 }),
        Argument::U32(to_u32(OP, "x", batch)?),
        Argument::U32(to_u32(OP, "x", rows)?),
        Argument::U32(to_u32(OP, "x", inputs)?),
        Argument::U32(to_u32(OP, "y", outputs)?),
    ];
    let Variant { kernel, suffix, rows_of_block, outputs_of_block, threads } = variant(rows);
    let entry = format!("{kernel}_{}_weight_{}{suffix}", x.dtype, weight.dtype);
    let grid = blocks(OP, outputs.div_ceil(outputs_of_block) * rows.div_ceil(rows_of_block) * batch, 1)?;
    stream.launch(&entry, [grid, 1, 1], [threads, 1, 1], 0, &arguments)
}

/// A kernel, the end of its entry point's name, and what one of its blocks makes.
#[derive(Debug, PartialEq, Eq)]
struct Variant {
    kernel: &'static str,
    suffix: &'static str,
    rows_of_block: usize,
    outputs_of_block: usize,
    threads: u32,
}

/// The kernel for so many rows. All add in the same order.
fn variant(rows: usize) -> Variant {
    let few = |suffix, rows_of_block| Variant {
        kernel: "linear",
        suffix,
        rows_of_block,
        outputs_of_block: OUTPUTS,
        threads: 128,
    };
    match rows {
        0..=1 => few("_r1", 1),
        2..ROWS_FOR_A_TILE => few("_r4", 4),
        _ => Variant { kernel: "linear_tile", suffix: "", rows_of_block: TILE, outputs_of_block: TILE, threads: 256 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_choose_the_kernel() {
        let kernel = |rows| (variant(rows).kernel, variant(rows).suffix);
        assert_eq!(kernel(1), ("linear", "_r1"));
        assert_eq!(kernel(2), ("linear", "_r4"));
        assert_eq!(kernel(16), ("linear", "_r4"));
        assert_eq!(kernel(17), ("linear_tile", ""));
    }
}
