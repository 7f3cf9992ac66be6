//! Launchers of the PTX kernels.

use super::Sizes;
use crate::Result;
use crate::backend::cuda::{Argument, Operand, Stream, blocks, dense, dense_or_absent, to_u32};

const BLOCK: u32 = 128;

/// [`super::draw`] into `y`; all contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub(crate) fn draw(
    stream: &Stream<'_>,
    parameters: Operand<'_>,
    chosen: Operand<'_>,
    normals: Operand<'_>,
    kept: Option<Operand<'_>>,
    sizes: Sizes,
    temperature: f32,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "mixture_draw";
    let elements = y.layout.elements();
    let arguments = [
        dense(OP, "parameters", parameters)?,
        dense(OP, "chosen", chosen)?,
        dense(OP, "normals", normals)?,
        dense_or_absent(OP, "kept", kept)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "y", elements)?),
        Argument::U32(to_u32(OP, "y", y.shape()[1])?),
        Argument::U32(to_u32(OP, "chosen", sizes.candidates)?),
        Argument::U32(to_u32(OP, "parameters", sizes.components)?),
        Argument::U32(to_u32(OP, "parameters", sizes.values)?),
        Argument::F32(temperature),
    ];
    stream.launch(OP, [blocks(OP, elements, BLOCK as usize)?, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}

/// [`super::log_density`] into `y`; all contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub(crate) fn log_density(
    stream: &Stream<'_>,
    parameters: Operand<'_>,
    x: Operand<'_>,
    sizes: Sizes,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "mixture_density";
    let places = y.layout.elements();
    let arguments = [
        dense(OP, "parameters", parameters)?,
        dense(OP, "x", x)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "y", places)?),
        Argument::U32(to_u32(OP, "x", sizes.candidates)?),
        Argument::U32(to_u32(OP, "parameters", sizes.components)?),
        Argument::U32(to_u32(OP, "parameters", sizes.values)?),
    ];
    stream.launch(OP, [blocks(OP, places, BLOCK as usize)?, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}
