//! The definition: plain loops in f64 over contiguous operands.

use super::Geometry;
use crate::{Float, View, ViewMut};

/// [`super::conv2d`].
pub fn conv2d<T: Float>(
    x: View<'_, T>,
    weight: View<'_, f32>,
    bias: Option<View<'_, f32>>,
    g: Geometry,
    mut y: ViewMut<'_, T>,
) {
    for b in 0..g.batch {
        for o in 0..g.channels_out {
            for r in 0..g.rows {
                for c in 0..g.columns {
                    let mut sum = bias.map_or(0.0, |bias| f64::from(bias.at(&[o])));
                    for i in 0..g.channels_in {
                        for u in 0..g.kernel_height {
                            for v in 0..g.kernel_width {
                                let (row, column) = (r * g.stride + u, c * g.stride + v);
                                let inside = (g.top..g.top + g.height).contains(&row)
                                    && (g.left..g.left + g.width).contains(&column);
                                if inside {
                                    let x = x.at(&[b, i, row - g.top, column - g.left]).to_f64();
                                    sum += x * f64::from(weight.at(&[o, i, u, v]));
                                }
                            }
                        }
                    }
                    y.set(&[b, o, r, c], T::from_f64(sum));
                }
            }
        }
    }
}
