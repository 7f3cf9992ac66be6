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
    let x = x.as_slice().expect("contiguous");
    let weight = weight.as_slice().expect("contiguous");
    // The part of the kernel, from `start` on in the padded picture, that meets the picture.
    let inside = |start: usize, kernel: usize, padding: usize, length: usize| {
        padding.saturating_sub(start)..kernel.min((padding + length).saturating_sub(start))
    };
    for b in 0..g.batch {
        for o in 0..g.channels_out {
            for r in 0..g.rows {
                let us = inside(r * g.stride, g.kernel_height, g.top, g.height);
                for c in 0..g.columns {
                    let vs = inside(c * g.stride, g.kernel_width, g.left, g.width);
                    let mut sum = bias.map_or(0.0, |bias| f64::from(bias.at(&[o])));
                    if !vs.is_empty() {
                        for i in 0..g.channels_in {
                            for u in us.clone() {
                                let row = (b * g.channels_in + i) * g.height + r * g.stride + u - g.top;
                                let x = &x[row * g.width + c * g.stride + vs.start - g.left..][..vs.len()];
                                let row = (o * g.channels_in + i) * g.kernel_height + u;
                                let weight = &weight[row * g.kernel_width + vs.start..][..vs.len()];
                                for (x, weight) in x.iter().zip(weight) {
                                    sum += x.to_f64() * f64::from(*weight);
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
