//! Launchers of the WGSL kernels.

use super::Sizes;
use crate::Result;
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, params, to_u32};

const WORKGROUP: usize = 64;

params! {
    struct DrawParams {
        elements: u32,
        count: u32,
        candidates: u32,
        components: u32,
        values: u32,
        parameters_offset: u32,
        chosen_offset: u32,
        normals_offset: u32,
        kept_offset: u32,
        y_offset: u32,
        one: u32,
        temperature: f32,
    }
}

/// [`super::draw`] into `y`; all contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub(crate) fn draw(
    recorder: &mut Recorder<'_>,
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
    // Something must be bound where nothing is read.
    let picks = kept.unwrap_or(chosen);
    let params = DrawParams {
        elements: to_u32(OP, "y", elements)?,
        count: to_u32(OP, "y", y.shape()[1])?,
        candidates: to_u32(OP, "chosen", sizes.candidates)?,
        components: to_u32(OP, "parameters", sizes.components)?,
        values: to_u32(OP, "parameters", sizes.values)?,
        parameters_offset: dense_offset(OP, "parameters", parameters)?,
        chosen_offset: dense_offset(OP, "chosen", chosen)?,
        normals_offset: dense_offset(OP, "normals", normals)?,
        kept_offset: dense_offset(OP, "kept", picks)?,
        y_offset: dense_offset(OP, "y", y)?,
        one: u32::from(kept.is_some()),
        temperature,
    };
    let buffers = [parameters.buffer, chosen.buffer, normals.buffer, picks.buffer, y.buffer];
    recorder.dispatch(OP, &params, &buffers, fold(OP, elements.div_ceil(WORKGROUP))?)
}

params! {
    struct DensityParams {
        places: u32,
        candidates: u32,
        components: u32,
        values: u32,
        parameters_offset: u32,
        x_offset: u32,
        y_offset: u32,
    }
}

/// [`super::log_density`] into `y`; all contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub(crate) fn log_density(
    recorder: &mut Recorder<'_>,
    parameters: Operand<'_>,
    x: Operand<'_>,
    sizes: Sizes,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "mixture_density";
    let places = y.layout.elements();
    let params = DensityParams {
        places: to_u32(OP, "y", places)?,
        candidates: to_u32(OP, "x", sizes.candidates)?,
        components: to_u32(OP, "parameters", sizes.components)?,
        values: to_u32(OP, "parameters", sizes.values)?,
        parameters_offset: dense_offset(OP, "parameters", parameters)?,
        x_offset: dense_offset(OP, "x", x)?,
        y_offset: dense_offset(OP, "y", y)?,
    };
    let buffers = [parameters.buffer, x.buffer, y.buffer];
    recorder.dispatch(OP, &params, &buffers, fold(OP, places.div_ceil(WORKGROUP))?)
}
