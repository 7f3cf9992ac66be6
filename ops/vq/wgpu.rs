//! Launcher of the WGSL kernel.

use super::Metric;
use crate::Result;
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, params, to_u32};

params! {
    struct NearestParams {
        vectors: u32,
        codes: u32,
        dim: u32,
        cosine: u32,
        x_offset: u32,
        codebook_offset: u32,
        y_offset: u32,
    }
}

/// [`super::nearest_l2`] and [`super::nearest_cosine`] into `y`, over contiguous operands; the codebook in f32.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn nearest(
    recorder: &mut Recorder<'_>,
    x: Operand<'_>,
    codebook: Operand<'_>,
    metric: Metric,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "nearest";
    let vectors = y.layout.elements();
    let params = NearestParams {
        vectors: to_u32(OP, "x", vectors)?,
        codes: to_u32(OP, "codebook", codebook.shape()[0])?,
        dim: to_u32(OP, "codebook", codebook.shape()[1])?,
        cosine: u32::from(metric == Metric::Cosine),
        x_offset: dense_offset(OP, "x", x)?,
        codebook_offset: dense_offset(OP, "codebook", codebook)?,
        y_offset: dense_offset(OP, "y", y)?,
    };
    let entry = format!("nearest_{}", x.dtype);
    recorder.dispatch(&entry, &params, &[x.buffer, codebook.buffer, y.buffer], fold(OP, vectors)?)
}
