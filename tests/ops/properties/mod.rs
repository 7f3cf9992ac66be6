//! Ops at shapes, layouts, masks and parameters that nobody chose, against their references. A failure is shrunk to a
//! small case, which it prints.

mod attention;
mod copy;
mod dense;
mod diffusion;
mod grid;
mod jacobi;
mod mixture;
mod rope;
mod sample;
mod scan;
mod vq;

use proptest::prelude::*;
use smalti::{Device, Element, Float, Layout, Tensor};

use crate::common::uniform;

/// Each case runs on every device and in every dtype, so a few go a long way.
fn config() -> ProptestConfig {
    ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() }
}

/// Where the elements of a tensor lie in a larger buffer.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Rows before the first.
    offset: usize,
    /// Elements between a row and the next.
    gap: usize,
    /// Whether the axes before the last one lie the other way round.
    swapped: bool,
}

fn places() -> impl Strategy<Value = Place> {
    (0usize..3, 0usize..3, any::<bool>()).prop_map(|(offset, gap, swapped)| Place { offset, gap, swapped })
}

/// A tensor of numbers in [-2, 2) that lies at `place` in a buffer of its own.
fn placed<T: Float>(device: &Device, shape: &[usize], place: Place, seed: u64) -> Tensor<T> {
    placed_as(device, shape, place, seed, |x| 2.0 * x)
}

/// The same with what becomes of numbers in [-1, 1).
fn placed_as<T: Float>(
    device: &Device,
    shape: &[usize],
    place: Place,
    seed: u64,
    of: impl Fn(f64) -> f64,
) -> Tensor<T> {
    lying(device, shape, place, seed, |x| T::from_f64(of(x)))
}

/// Whole numbers below `limit`, or 0.
fn placed_below(device: &Device, shape: &[usize], limit: usize, place: Place, seed: u64) -> Tensor<u32> {
    lying(device, shape, place, seed, |x| (x.abs() * limit as f64) as u32)
}

/// Elements of any type.
fn lying<T: Element>(device: &Device, shape: &[usize], place: Place, seed: u64, of: impl Fn(f64) -> T) -> Tensor<T> {
    let Place { offset, gap, swapped } = place;
    let (&columns, leading) = shape.split_last().expect("a row at least");
    let row = columns + gap;
    let mut strides = vec![1; shape.len()];
    let mut rows = 1;
    for at in 0..leading.len() {
        let axis = if swapped { at } else { leading.len() - 1 - at };
        strides[axis] = rows * row;
        rows *= leading[axis];
    }
    let elements = (offset + rows) * row;
    let values = uniform(seed, elements).into_iter().map(of).collect::<Vec<_>>();
    let start = if shape.contains(&0) { 0 } else { offset * row };
    let layout = Layout::strided(shape, &strides, start).expect("small");
    Tensor::from_vec(device, &[elements], values).expect("room").view_as(layout).expect("inside the buffer")
}
