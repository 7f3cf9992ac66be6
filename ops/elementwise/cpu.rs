//! Vectorised over runs of values along which `b` is dense or one repeated value.

use super::Operation;
use crate::backend::cpu::{Cpu, vectorised};
use crate::{Float, View, ViewMut};

/// Values that are widened at once.
const CHUNK: usize = 1024;

/// [`super::add`], [`super::mul`] and [`super::scale_add`], with `b` stretched to the shape of `a`; `a` and `y` are
/// contiguous.
pub fn binary<T: Float>(cpu: &Cpu, a: View<'_, T>, b: View<'_, T>, operation: Operation, y: ViewMut<'_, T>) {
    match operation {
        Operation::ScaleAdd { alpha: 1.0, beta: 1.0 } => map(cpu, a, b, y, |a, b| a + b),
        Operation::ScaleAdd { alpha, beta } => map(cpu, a, b, y, |a, b| alpha * a + beta * b),
        Operation::Mul => map(cpu, a, b, y, |a, b| a * b),
    }
}

fn map<T: Float>(
    cpu: &Cpu,
    a: View<'_, T>,
    b: View<'_, T>,
    mut y: ViewMut<'_, T>,
    function: impl Fn(f32, f32) -> f32 + Send + Sync,
) {
    let shape = a.shape();
    let a = a.as_slice().expect("contiguous");
    let y = y.as_mut_slice().expect("contiguous");
    let strides = b.layout.strides();
    let Run { step, axes, len } = longest_run(shape, strides);
    // One run alone is cut, so that threads can share it.
    let (len, piece_stride) = if axes == shape.len() { (CHUNK, CHUNK * step) } else { (len, 0) };
    cpu.rows(y, len, |row, y| {
        let mut start = b.layout.offset() + row * piece_stride;
        let mut rest = row;
        for axis in (0..shape.len() - axes).rev() {
            start += rest % shape[axis] * strides[axis];
            rest /= shape[axis];
        }
        let a = &a[row * len..][..y.len()];
        if step == 0 {
            let b = b.data[start].to_f32();
            apply(a, y, |_, a| a.iter_mut().for_each(|a| *a = function(*a, b)));
        } else {
            let b = &b.data[start..][..y.len()];
            apply(a, y, |first, a| {
                let mut wide = [0.0; CHUNK];
                let b = &b[first..][..a.len()];
                let b = T::as_f32(b).unwrap_or_else(|| {
                    let wide = &mut wide[..b.len()];
                    T::widen(b, wide);
                    wide
                });
                vectorised(
                    #[inline(always)]
                    || a.iter_mut().zip(b).for_each(|(a, b)| *a = function(*a, *b)),
                );
            });
        }
    });
}

/// Calls `work(first, values)` for chunks of `a` in f32, `first` being the index of the first value, and keeps what
/// it leaves in `y`.
fn apply<T: Float>(a: &[T], y: &mut [T], work: impl Fn(usize, &mut [f32])) {
    if let (Some(a), Some(y)) = (T::as_f32(a), T::as_f32_mut(y)) {
        y.copy_from_slice(a);
        return y.chunks_mut(CHUNK).enumerate().for_each(|(chunk, y)| work(chunk * CHUNK, y));
    }
    let mut wide = [0.0; CHUNK];
    for (chunk, (a, y)) in a.chunks(CHUNK).zip(y.chunks_mut(CHUNK)).enumerate() {
        let wide = &mut wide[..y.len()];
        T::widen(a, wide);
        work(chunk * CHUNK, wide);
        T::narrow(wide, y);
    }
}

/// The axes at the end through which `b` goes in steps of one size: 0, a repeated value, or 1.
struct Run {
    step: usize,
    axes: usize,
    len: usize,
}

fn longest_run(shape: &[usize], strides: &[usize]) -> Run {
    let of_step = |step: usize| {
        let mut run = Run { step, axes: 0, len: 1 };
        for (len, stride) in shape.iter().zip(strides).rev() {
            if *len != 1 && *stride != step * run.len {
                break;
            }
            run.axes += 1;
            run.len *= len;
        }
        run
    };
    let (repeated, dense) = (of_step(0), of_step(1));
    if repeated.axes > dense.axes { repeated } else { dense }
}
