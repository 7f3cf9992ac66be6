//! Vectorised over the pairs of a row, spread over threads by rows.

use super::Pairing;
use crate::backend::cpu::{Cpu, vectorised};
use crate::{Float, View, ViewMut};

/// [`super::rope`]; the tables are contiguous, with a row per position of `x`.
pub fn rope<T: Float>(
    cpu: &Cpu,
    x: View<'_, T>,
    cos: View<'_, f32>,
    sin: View<'_, f32>,
    pairing: Pairing,
    mut y: ViewMut<'_, T>,
) {
    let &[_, heads, seq, head_dim] = x.shape() else { unreachable!("the op checked it") };
    let pairs = cos.shape()[1];
    let (cos, sin) = (cos.as_slice().expect("contiguous"), sin.as_slice().expect("contiguous"));
    cpu.rows(y.as_mut_slice().expect("contiguous"), head_dim, |row, y| {
        let position = row % seq;
        let start = x.layout.index(&[row / (heads * seq), row / seq % heads, position, 0]);
        let mut wide = vec![0.0; head_dim];
        T::widen(&x.data[start..start + head_dim], &mut wide);
        let cos = &cos[position * pairs..][..pairs];
        let sin = &sin[position * pairs..][..pairs];
        vectorised(
            #[inline(always)]
            || match pairing {
                Pairing::Interleaved => {
                    for ((pair, cos), sin) in wide.chunks_exact_mut(2).zip(cos).zip(sin) {
                        let (a, b) = (pair[0], pair[1]);
                        pair[0] = a * cos - b * sin;
                        pair[1] = a * sin + b * cos;
                    }
                }
                Pairing::HalfSplit => {
                    let (first, second) = wide.split_at_mut(pairs);
                    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                    }
                }
            },
        );
        T::narrow(&wide, y);
    });
}
