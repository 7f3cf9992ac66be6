//! Launchers of the PTX kernels.

use super::hopper;
use crate::backend::cuda::{Argument, Operand, Stream, blocks, dense, dense_or_absent, to_u32};
use crate::{Dtype, Error, Result, Weight};

/// Rows from which a tile of them is worth its empty places, without tensor cores.
const ROWS_FOR_A_TILE: usize = 17;
/// Inputs that the kernels can count.
const MAX_INPUTS: usize = (1 << 31) - 1;
/// Segments that a sum on tensor cores has at most, and what their length is a multiple of.
const SEGMENTS: usize = 8;
const STEP: usize = 32;

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
/// Two orders of summation: one on tensor cores, where `x` and `weight` are of one half type, and one elsewhere. Each
/// has kernels for few and for many rows that give the same bits.
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
    let mut arguments = vec![
        dense(OP, "x", x)?,
        dense(OP, "weight", weight)?,
        dense_or_absent(OP, "scale", scale)?,
        dense_or_absent(OP, "bias", bias)?,
        dense(OP, "y", y)?,
        Argument::U64(if entries > 1 { (outputs * inputs) as u64 } else { 0 }),
        Argument::U32(to_u32(OP, "x", rows)?),
        Argument::U32(to_u32(OP, "x", inputs)?),
        Argument::U32(to_u32(OP, "y", outputs)?),
    ];
    let tensor_cores = on_tensor_cores(x.dtype, weight.dtype);
    let multiprocessors = stream.cuda().multiprocessors() as usize;
    if tensor_cores && scale.is_none() && hopper::linear(stream, x, weight, bias, y)? {
        return Ok(());
    }
    let variant = variant(tensor_cores, [batch, rows, outputs], multiprocessors);
    let entry = if tensor_cores {
        arguments.push(Argument::U32(to_u32(OP, "x", segment(inputs))?));
        format!("{}_{}{}", variant.kernel, x.dtype, variant.suffix)
    } else {
        format!("{}_{}_weight_{}{}", variant.kernel, x.dtype, weight.dtype, variant.suffix)
    };
    let grid = blocks(OP, variant.blocks([batch, rows, outputs]), 1)?;
    stream.launch(&entry, [grid, 1, 1], [variant.threads, 1, 1], 0, &arguments)
}

fn on_tensor_cores(dtype: Dtype, weight_dtype: Dtype) -> bool {
    dtype == weight_dtype && matches!(dtype, Dtype::F16 | Dtype::Bf16)
}

/// Inputs that tensor cores sum in one go.
pub(super) fn segment(inputs: usize) -> usize {
    inputs.div_ceil(SEGMENTS).next_multiple_of(STEP).max(STEP)
}

/// A kernel, the end of its entry point's name, and what one of its blocks makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Variant {
    kernel: &'static str,
    suffix: &'static str,
    rows: usize,
    outputs: usize,
    threads: u32,
}

impl Variant {
    fn blocks(self, [batch, rows, outputs]: [usize; 3]) -> usize {
        outputs.div_ceil(self.outputs) * rows.div_ceil(self.rows) * batch
    }
}

const ONE: Variant = Variant { kernel: "linear", suffix: "_r1", rows: 1, outputs: 16, threads: 128 };
const FOUR: Variant = Variant { kernel: "linear", suffix: "_r4", rows: 4, outputs: 16, threads: 128 };
const TILE: Variant = Variant { kernel: "linear_tile", suffix: "", rows: 64, outputs: 64, threads: 256 };
const MMA_8: Variant = Variant { kernel: "linear_mma", suffix: "_r8", rows: 8, outputs: 16, threads: 256 };
const MMA_16: Variant = Variant { kernel: "linear_mma", suffix: "_r16", rows: 16, outputs: 16, threads: 256 };
const MMA_TILE_64: Variant = Variant { kernel: "linear_mma_tile", suffix: "_t64", rows: 64, outputs: 64, threads: 128 };
const MMA_TILE_128: Variant =
    Variant { kernel: "linear_mma_tile", suffix: "_t128", rows: 128, outputs: 128, threads: 256 };

/// Rows for which tensor cores read the weight at memory's speed.
pub(super) const FEW_ROWS: usize = MMA_16.rows;

/// The kernel for so many rows and outputs. The larger a tile, the less is read; but its blocks must occupy the
/// device, and those for few rows share the inputs among their warps.
fn variant(tensor_cores: bool, shape: [usize; 3], multiprocessors: usize) -> Variant {
    let [_, rows, _] = shape;
    match (tensor_cores, rows) {
        (false, 0..=1) => ONE,
        (false, 2..ROWS_FOR_A_TILE) => FOUR,
        (false, _) => TILE,
        (true, _) if rows <= MMA_8.rows => MMA_8,
        (true, _) if rows <= FEW_ROWS => MMA_16,
        _ if MMA_TILE_128.blocks(shape) >= multiprocessors => MMA_TILE_128,
        _ if 2 * MMA_TILE_64.blocks(shape) >= multiprocessors => MMA_TILE_64,
        _ => MMA_16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_the_inputs() {
        for inputs in [0, 1, 31, 32, 33, 256, 257, 1024, 4097] {
            assert!(segment(inputs) * SEGMENTS >= inputs && segment(inputs).is_multiple_of(STEP), "{inputs}");
        }
    }

    #[test]
    fn tensor_cores_take_one_half_type() {
        assert!(on_tensor_cores(Dtype::F16, Dtype::F16) && on_tensor_cores(Dtype::Bf16, Dtype::Bf16));
        assert!(!on_tensor_cores(Dtype::F32, Dtype::F32) && !on_tensor_cores(Dtype::F16, Dtype::Bf16));
    }

    #[test]
    fn the_shape_and_the_device_choose_the_kernel() {
        assert_eq!(variant(false, [1, 1, 4096], 132), ONE);
        assert_eq!(variant(false, [1, 16, 4096], 132), FOUR);
        assert_eq!(variant(false, [1, 17, 64], 132), TILE);
        assert_eq!(variant(true, [1, 8, 4096], 132), MMA_8);
        assert_eq!(variant(true, [1, 16, 65536], 132), MMA_16);
        assert_eq!(variant(true, [1, 64, 768], 132), MMA_16);
        assert_eq!(variant(true, [1, 256, 2048], 132), MMA_TILE_64);
        assert_eq!(variant(true, [1, 256, 2048], 32), MMA_TILE_128);
        assert_eq!(variant(true, [40, 256, 256], 132), MMA_TILE_128);
    }
}
