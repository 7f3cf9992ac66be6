//! Launchers of the WGSL kernels.

use crate::backend::wgpu::{Operand, Recorder, fold, output_offset, params, to_u32};
use crate::{Error, Layout, Result};

/// How many axes a layout may have.
const MAX_AXES: usize = 8;
const WORKGROUP: usize = 64;

params! {
    struct CopyParams {
        shape: [u32; 8],
        x_strides: [u32; 8],
        y_strides: [u32; 8],
        x_offset: u32,
        y_offset: u32,
        words: u32,
    }
}

params! {
    struct CopyPartsParams {
        shape: [u32; 8],
        x_strides: [u32; 8],
        y_shape: [u32; 8],
        y_strides: [u32; 8],
        x_offset: u32,
        y_offset: u32,
        elements: u32,
        words: u32,
    }
}

params! {
    struct ConvertParams {
        shape: [u32; 8],
        x_strides: [u32; 8],
        x_offset: u32,
        y_offset: u32,
        elements: u32,
    }
}

/// [`super::copy_into`]: `y` consists of whole words of 4 bytes, or is contiguous and starts with one.
///
/// # Errors
/// [`Error::Shape`] if it does not, or if there are more than 8 axes; [`Error::Value`] if a layout reaches beyond what 32
/// bits can index.
pub fn copy_into(recorder: &mut Recorder<'_>, x: Operand<'_>, y: Operand<'_>) -> Result<()> {
    const OP: &str = "copy_into";
    let per_word = 4 / x.dtype.bytes().min(4);
    let elements = x.layout.elements();
    if elements == 0 {
        return Ok(());
    }
    to_u32(OP, "x", x.layout.span())?;
    to_u32(OP, "y", y.layout.span())?;
    if let Some((x_words, y_words)) = both_in_words(x.layout, y.layout, per_word) {
        let words = y_words.elements();
        let params = CopyParams {
            shape: eight(OP, x_words.shape(), 1)?,
            x_strides: eight(OP, x_words.strides(), 0)?,
            y_strides: eight(OP, y_words.strides(), 0)?,
            x_offset: to_u32(OP, "x", x_words.offset())?,
            y_offset: to_u32(OP, "y", y_words.offset())?,
            words: to_u32(OP, "x", words)?,
        };
        return recorder.dispatch("copy", &params, &[x.buffer, y.buffer], fold(OP, words.div_ceil(WORKGROUP))?);
    }
    let Some(y_words) = line_in_words(y.layout, per_word).or_else(|| axes_in_words(y.layout, per_word)) else {
        let expected = format!("a last axis of whole words of 4 bytes, for elements of {}", x.dtype);
        return Err(Error::shape(OP, "y", y.shape(), expected));
    };
    let words = y_words.elements();
    let params = CopyPartsParams {
        shape: eight(OP, x.shape(), 1)?,
        x_strides: eight(OP, x.layout.strides(), 0)?,
        y_shape: eight(OP, y_words.shape(), 1)?,
        y_strides: eight(OP, y_words.strides(), 0)?,
        x_offset: to_u32(OP, "x", x.layout.offset())?,
        y_offset: to_u32(OP, "y", y_words.offset())?,
        elements: to_u32(OP, "x", elements)?,
        words: to_u32(OP, "y", words)?,
    };
    recorder.dispatch(
        &format!("copy_parts_b{}", 8 * x.dtype.bytes()),
        &params,
        &[x.buffer, y.buffer],
        fold(OP, words.div_ceil(WORKGROUP))?,
    )
}

/// [`super::convert`] into a contiguous `y` that starts on an even element.
///
/// # Errors
/// [`Error::Shape`] if `y` is not contiguous or there are more than 8 axes.
pub fn convert(recorder: &mut Recorder<'_>, x: Operand<'_>, y: Operand<'_>) -> Result<()> {
    const OP: &str = "convert";
    let elements = x.layout.elements();
    to_u32(OP, "x", x.layout.span())?;
    let params = ConvertParams {
        shape: eight(OP, x.shape(), 1)?,
        x_strides: eight(OP, x.layout.strides(), 0)?,
        x_offset: to_u32(OP, "x", x.layout.offset())?,
        y_offset: output_offset(OP, y)?,
        elements: to_u32(OP, "x", elements)?,
    };
    let entry = format!("convert_{}_to_{}", x.dtype, y.dtype);
    recorder.dispatch(&entry, &params, &[x.buffer, y.buffer], fold(OP, elements.div_ceil(2 * WORKGROUP))?)
}

/// Both layouts counted in words, if both consist of the same whole ones.
fn both_in_words(x: &Layout, y: &Layout, per_word: usize) -> Option<(Layout, Layout)> {
    if x.elements().is_multiple_of(per_word)
        && let (Some(x), Some(y)) = (line_in_words(x, per_word), line_in_words(y, per_word))
    {
        return Some((x, y));
    }
    Some((axes_in_words(x, per_word)?, axes_in_words(y, per_word)?))
}

/// A contiguous layout that starts with a word; its elements may end within the last one.
fn line_in_words(layout: &Layout, per_word: usize) -> Option<Layout> {
    if !layout.is_contiguous() || !layout.offset().is_multiple_of(per_word) {
        return None;
    }
    Layout::strided(&[layout.elements().div_ceil(per_word)], &[1], layout.offset() / per_word).ok()
}

fn axes_in_words(layout: &Layout, per_word: usize) -> Option<Layout> {
    if per_word == 1 {
        return Some(layout.clone());
    }
    let (last, rest) = layout.strides().split_last()?;
    let len = layout.shape()[rest.len()];
    let whole = |count: &usize| count.is_multiple_of(per_word);
    if *last != 1 || !whole(&len) || !whole(&layout.offset()) || !rest.iter().all(whole) {
        return None;
    }
    let mut shape = layout.shape().to_vec();
    let mut strides: Vec<_> = rest.iter().map(|stride| stride / per_word).collect();
    shape[rest.len()] = len / per_word;
    strides.push(1);
    Layout::strided(&shape, &strides, layout.offset() / per_word).ok()
}

/// Padded to eight axes with leading ones.
pub(crate) fn eight(op: &'static str, values: &[usize], padding: u32) -> Result<[u32; MAX_AXES]> {
    let Some(missing) = MAX_AXES.checked_sub(values.len()) else {
        return Err(Error::shape(op, "x", values, format!("at most {MAX_AXES} axes")));
    };
    let mut padded = [padding; MAX_AXES];
    for (padded, value) in padded[missing..].iter_mut().zip(values) {
        *padded = to_u32(op, "x", *value)?;
    }
    Ok(padded)
}
