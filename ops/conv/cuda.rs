//! Launcher of the PTX kernel.

use super::Geometry;
use crate::backend::cuda::{Argument, Operand, Stream, blocks, dense, dense_or_absent, to_u32};
use crate::{Error, Result};

/// Places and output channels that a block of the kernel makes; it has a thread per place.
const PLACES: usize = 128;
const OUTPUTS: usize = 8;

/// [`super::conv2d`] over contiguous operands; the weight in f32, f16 or bf16.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous; [`Error::Value`] if a kernel or a plane of `y` has 2^31 elements
/// or more.
pub fn conv2d(
    stream: &Stream<'_>,
    x: Operand<'_>,
    weight: Operand<'_>,
    bias: Option<Operand<'_>>,
    g: Geometry,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "conv2d";
    let taps = g.channels_in * g.kernel_height * g.kernel_width;
    for (operand, count) in [("weight", taps), ("y", g.rows * g.columns)] {
        if i32::try_from(count).is_err() {
            return Err(Error::value(OP, operand, count, "fewer than 2^31 elements for each output channel"));
        }
    }
    let size = |value: usize| Ok(Argument::U32(to_u32(OP, "x", value)?));
    let arguments = [
        dense(OP, "x", x)?,
        dense(OP, "weight", weight)?,
        dense_or_absent(OP, "bias", bias)?,
        dense(OP, "y", y)?,
        size(g.channels_in)?,
        size(g.height)?,
        size(g.width)?,
        size(g.channels_out)?,
        size(g.kernel_height)?,
        size(g.kernel_width)?,
        size(g.rows)?,
        size(g.columns)?,
        size(g.stride)?,
        size(g.top)?,
        size(g.left)?,
    ];
    let entry = format!("conv2d_{}_w{}", x.dtype, weight.dtype);
    let work = g.batch * (g.rows * g.columns).div_ceil(PLACES) * g.channels_out.div_ceil(OUTPUTS);
    stream.launch(&entry, [blocks(OP, work, 1)?, 1, 1], [PLACES as u32, 1, 1], 0, &arguments)
}
