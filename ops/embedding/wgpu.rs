//! Launchers of the WGSL kernels.

use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, output_offset, params, to_u32};
use crate::{Error, Result};

const WORKGROUP: usize = 64;

params! {
    struct EmbeddingParams {
        entries: u32,
        channels: u32,
        elements: u32,
        ids_offset: u32,
        table_offset: u32,
        scale_offset: u32,
        y_offset: u32,
        has_scale: u32,
    }
}

/// [`super::embedding`] into `y`, over contiguous operands; `scale` is that of an int8 table. `y` starts on an even
/// element, since two elements of a half type share a word.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit or an operand is not contiguous.
pub fn embedding(
    recorder: &mut Recorder<'_>,
    ids: Operand<'_>,
    table: Operand<'_>,
    scale: Option<Operand<'_>>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "embedding";
    let &[entries, channels] = table.shape() else {
        return Err(Error::shape(OP, "table", table.shape(), "two axes: entries and channels"));
    };
    if let Some(scale) = scale
        && scale.shape() != [entries]
    {
        return Err(Error::shape(OP, "scale", scale.shape(), format!("[{entries}]")));
    }
    let elements = y.layout.elements();
    if elements != ids.layout.elements() * channels {
        return Err(Error::shape(OP, "y", y.shape(), format!("{channels} channels for each of ids {:?}", ids.shape())));
    }
    let params = EmbeddingParams {
        entries: to_u32(OP, "table", entries)?,
        channels: to_u32(OP, "table", channels)?,
        elements: to_u32(OP, "y", elements)?,
        ids_offset: dense_offset(OP, "ids", ids)?,
        table_offset: dense_offset(OP, "table", table)?,
        scale_offset: scale.map_or(Ok(0), |scale| dense_offset(OP, "scale", scale))?,
        y_offset: output_offset(OP, y)?,
        has_scale: u32::from(scale.is_some()),
    };
    let entry = format!("embedding_{}_table_{}", y.dtype, table.dtype);
    let scale = scale.map_or(ids.buffer, |scale| scale.buffer);
    let workgroups = fold(OP, elements.div_ceil(2 * WORKGROUP))?;
    recorder.dispatch(&entry, &params, &[ids.buffer, table.buffer, scale, y.buffer], workgroups)
}
