//! Launchers of the WGSL kernels.

use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, output_offset, params, to_u32};
use crate::{Dtype, Error, Result, Weight};

/// Rows from which a tile of them is worth its empty places.
const ROWS_FOR_A_TILE: usize = 12;
/// Rows and outputs of a tile.
const TILE: usize = 64;
/// Elements of `y` that a workgroup of the kernel for few rows makes.
const TOGETHER: usize = 8;
/// Segments that a sum over the inputs has at most, and what their length is a multiple of.
const SEGMENTS: usize = 32;
const CHUNK: usize = 16;

params! {
    struct LinearParams {
        batch: u32,
        rows: u32,
        inputs: u32,
        outputs: u32,
        segment: u32,
        x_offset: u32,
        weight_offset: u32,
        weight_stride: u32,
        scale_offset: u32,
        bias_offset: u32,
        y_offset: u32,
        has_scale: u32,
        has_bias: u32,
    }
}

/// A [`Weight`] as the launchers take it: the stored values and, for an int8 one, the scale.
pub(crate) fn operands(weight: &Weight) -> (Operand<'_>, Option<Operand<'_>>) {
    match weight {
        Weight::F32(weight) => (weight.operand(), None),
        Weight::F16(weight) => (weight.operand(), None),
        Weight::Bf16(weight) => (weight.operand(), None),
        Weight::Int8 { values, scale } => (values.operand(), Some(scale.operand())),
    }
}

/// [`super::linear`] and [`super::matmul`] into `y` `[batch, rows, outputs]`, over contiguous operands: `x`
/// `[batch, rows, inputs]`, `weight` `[batch or 1, outputs, inputs]`, `scale` and `bias` `[outputs]`. `y` starts on
/// an even element, since two elements of a half type share a word.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit or an operand is not contiguous.
pub fn linear(
    recorder: &mut Recorder<'_>,
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
    let elements = y.layout.elements();
    to_u32(OP, "y", elements)?;
    let params = LinearParams {
        batch: to_u32(OP, "x", batch)?,
        rows: to_u32(OP, "x", rows)?,
        inputs: to_u32(OP, "x", inputs)?,
        outputs: to_u32(OP, "y", outputs)?,
        segment: to_u32(OP, "x", segment(inputs))?,
        x_offset: dense_offset(OP, "x", x)?,
        weight_offset: dense_offset(OP, "weight", weight)?,
        weight_stride: if entries > 1 { to_u32(OP, "weight", outputs * inputs)? } else { 0 },
        scale_offset: scale.map_or(Ok(0), |scale| dense_offset(OP, "scale", scale))?,
        bias_offset: bias.map_or(Ok(0), |bias| dense_offset(OP, "bias", bias))?,
        y_offset: output_offset(OP, y)?,
        has_scale: u32::from(scale.is_some()),
        has_bias: u32::from(bias.is_some()),
    };
    let buffers = [
        x.buffer,
        weight.buffer,
        scale.map_or(x.buffer, |scale| scale.buffer),
        bias.map_or(x.buffer, |bias| bias.buffer),
        y.buffer,
    ];
    let variant = format!("{}_weight_{}", x.dtype, weight.dtype);
    match tiles(x.dtype, [batch, rows, outputs]) {
        Some(workgroups) => recorder.dispatch(&format!("linear_tile_{variant}"), &params, &buffers, workgroups),
        None => {
            let workgroups = fold(OP, elements.div_ceil(TOGETHER))?;
            recorder.dispatch(&format!("linear_{variant}"), &params, &buffers, workgroups)
        }
    }
}

/// Inputs that are summed in one go.
fn segment(inputs: usize) -> usize {
    inputs.div_ceil(SEGMENTS).next_multiple_of(CHUNK).max(CHUNK)
}

/// The workgroups of the kernel for many rows, where it is the one to take: a tile ends on whole words of `y`, and
/// a dispatch has at most 65535 workgroups to an axis.
fn tiles(dtype: Dtype, [batch, rows, outputs]: [usize; 3]) -> Option<[u32; 3]> {
    let whole_words = dtype == Dtype::F32 || outputs.is_multiple_of(2);
    let axis = |count: usize| u16::try_from(count).ok().map(u32::from);
    if rows < ROWS_FOR_A_TILE || !whole_words {
        return None;
    }
    Some([axis(outputs.div_ceil(TILE))?, axis(rows.div_ceil(TILE))?, axis(batch)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_the_inputs() {
        for inputs in [0, 1, 15, 16, 17, 512, 513, 1024, 4097] {
            assert!(segment(inputs) * SEGMENTS >= inputs && segment(inputs).is_multiple_of(CHUNK), "{inputs}");
        }
    }

    #[test]
    fn a_tile_is_taken_for_many_rows_that_end_on_whole_words() {
        assert_eq!(tiles(Dtype::F16, [1, 65, 128]), Some([2, 2, 1]));
        assert_eq!(tiles(Dtype::F16, [1, 65, 127]), None);
        assert_eq!(tiles(Dtype::F32, [3, 64, 127]), Some([2, 1, 3]));
        assert_eq!(tiles(Dtype::F32, [1, 11, 64]), None);
        assert_eq!(tiles(Dtype::F32, [65_536, 64, 64]), None);
    }
}
