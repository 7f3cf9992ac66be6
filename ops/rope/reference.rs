//! The definition of each op: plain loops in f64.

use super::Pairing;
use crate::{Float, View, ViewMut};

/// [`super::rope`]; the tables are `[batch, seq, pairs]`.
pub fn rope<T: Float>(x: View<'_, T>, cos: View<'_, f32>, sin: View<'_, f32>, pairing: Pairing, mut y: ViewMut<'_, T>) {
    let &[batch, heads, seq, head_dim] = x.shape() else { unreachable!("the op checked it") };
    let pairs = cos.shape()[2];
    for b in 0..batch {
        for h in 0..heads {
            for i in 0..seq {
                for j in 0..pairs {
                    let [first, second] = pairing.channels(j, pairs);
                    let (cos, sin) = (f64::from(cos.at(&[b, i, j])), f64::from(sin.at(&[b, i, j])));
                    let (a, c) = (x.at(&[b, h, i, first]).to_f64(), x.at(&[b, h, i, second]).to_f64());
                    y.set(&[b, h, i, first], T::from_f64(a * cos - c * sin));
                    y.set(&[b, h, i, second], T::from_f64(a * sin + c * cos));
                }
                for c in 2 * pairs..head_dim {
                    y.set(&[b, h, i, c], x.at(&[b, h, i, c]));
                }
            }
        }
    }
}
