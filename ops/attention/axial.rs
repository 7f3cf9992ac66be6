//! Attention along axes of a grid.

use super::{Align, Attention, Mask, Options, attention};
use crate::{Error, Float, Layout, Result, Tensor, copy};

/// What a cell sees of its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Along {
    /// All of it.
    All,
    /// The cells up to its own.
    Causal,
    /// The cells before its own; the first cell gives zeros.
    Before,
    /// What [`Along::Causal`] gives the cell before it; the first cell gives zeros.
    Shifted,
}

/// [`attention`] within each line of a grid.
///
/// A line is the cells that differ along `axes` alone; several axes, which must be neighbours, make one sequence with
/// the last the fastest. So rows, columns, time and planes of pictures and videos are lines.
///
/// | operand       | shape                                 | element        | layout                                |
/// |---------------|---------------------------------------|----------------|---------------------------------------|
/// | `q`, `k`, `v` | `[batch, cells.., heads, head_dim]`   | f32, f16, bf16 | no copy if the axes before the line lie one inside the other, those of the line too, and those after it with the heads |
/// | returned      | as `q`                                | as `q`         | a view: as [`attention`] wrote it     |
///
/// `axes` counts from 0, the batch; for `[batch, h, w, heads, head_dim]` rows are `2..3` and columns `1..2`. A contiguous
/// operand is never copied: the axes before the line are batch entries, those after it more heads. [`Along::Shifted`]
/// copies its result once, to make room for the first cell.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ or have fewer than four axes; [`Error::Value`] if `axes` is empty or not among
/// the cells' axes, or the scale is not finite; [`Error::Place`] if a device differs.
///
/// # Source
/// Ho et al. 2019, arXiv:1912.12180, sections 3.1 and 3.2.
pub fn axial<T: Float>(
    q: &Tensor<T>,
    k: &Tensor<T>,
    v: &Tensor<T>,
    axes: std::ops::Range<usize>,
    along: Along,
    scale: f32,
) -> Result<Tensor<T>> {
    const OP: &str = "axial_attention";
    let shape = q.shape();
    let Some(heads_axis) = shape.len().checked_sub(2).filter(|axis| *axis >= 2) else {
        return Err(Error::shape(OP, "q", shape, "[batch, cells.., heads, head_dim]"));
    };
    for (operand, tensor) in [("k", k), ("v", v)] {
        if tensor.shape() != shape {
            return Err(Error::shape(OP, operand, tensor.shape(), format!("{shape:?}, as q has")));
        }
    }
    if axes.is_empty() || axes.start < 1 || axes.end > heads_axis {
        let expected = format!("some of the cells' axes, 1..{heads_axis}");
        return Err(Error::value(OP, "axes", format!("{axes:?}"), expected));
    }
    let line: usize = shape[axes.clone()].iter().product();
    let [q, k, v] = [lines(q, &axes)?, lines(k, &axes)?, lines(v, &axes)?];
    let options = Options::new(scale).mask(match along {
        Along::All => Mask::Full,
        Along::Causal | Along::Shifted => Mask::Causal { align: Align::TopLeft },
        Along::Before => Mask::ranks(&(0..u32::try_from(line).unwrap_or(u32::MAX)).collect::<Vec<_>>(), true),
    });
    let y = if along == Along::Shifted && line > 0 {
        let before = |x: &Tensor<T>| x.narrow(2, 0, line - 1);
        let Attention { y: part, .. } = attention(&before(&q)?, &before(&k)?, &before(&v)?, &options)?;
        let mut y = Tensor::zeros(q.device(), q.shape())?;
        copy::copy_into_slice(&part, &mut y, 2, 1)?;
        y
    } else {
        attention(&q, &k, &v, &options)?.y
    };
    // [before, (after, heads), line, head_dim], as attention wrote it, back in the order of the grid.
    let (before, inside, after) = (&shape[..axes.start], &shape[axes.clone()], &shape[axes.end..=heads_axis]);
    let apart: Vec<usize> = [before, after, inside, &shape[heads_axis + 1..]].concat();
    let (start, end) = (before.len(), before.len() + after.len());
    let order: Vec<usize> =
        (0..start).chain(end..end + inside.len()).chain(start..end).chain([heads_axis + 1]).collect();
    y.reshape(&apart)?.permute(&order)
}

/// `[before, (after, heads), line, head_dim]`, by strides if these can express it.
fn lines<T: Float>(x: &Tensor<T>, axes: &std::ops::Range<usize>) -> Result<Tensor<T>> {
    let heads = x.shape().len() - 2;
    let view = |layout: &Layout| {
        let parts =
            [joined(layout, 0..axes.start)?, joined(layout, axes.end..heads + 1)?, joined(layout, axes.clone())?];
        let [lengths, strides] = [0, 1].map(|which| parts.map(|part| part[which]));
        let shape = [&lengths[..], &layout.shape()[heads + 1..]].concat();
        let strides = [&strides[..], &layout.strides()[heads + 1..]].concat();
        Layout::strided(&shape, &strides, layout.offset()).ok()
    };
    match view(x.layout()) {
        Some(layout) => x.view_as(layout),
        None => {
            let dense = x.contiguous()?;
            let layout = view(dense.layout()).expect("axes of a contiguous layout lie one inside the other");
            dense.view_as(layout)
        }
    }
}

/// Length and stride of several axes as one, if they lie one inside the other.
fn joined(layout: &Layout, axes: std::ops::Range<usize>) -> Option<[usize; 2]> {
    let mut joined = [1, 1];
    for axis in axes.rev() {
        let (len, stride) = (layout.shape()[axis], layout.strides()[axis]);
        if joined[0] == 1 {
            joined = [len, stride];
        } else if len == 1 || joined[0] == 0 || stride == joined[0] * joined[1] {
            joined[0] *= len;
        } else {
            return None;
        }
    }
    Some(joined)
}
