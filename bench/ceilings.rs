//! What this machine can do, measured in the run that it is compared with.

use std::time::Instant;

use smalti::{Device, Float, Tensor, Weight, bf16, linear};

use crate::numbers;

/// What this machine can do with the threads at hand, measured now.
#[derive(Debug, Clone, Copy)]
pub struct Ceilings {
    /// Bytes that a sum over a large array reads in a second.
    pub read: f64,
    /// Bytes read and written by a large copy in a second.
    pub copy: f64,
    /// Operations of a large f32 product in a second.
    pub f32: f64,
    /// Operations of a large bf16 product in a second.
    pub bf16: f64,
}

impl Ceilings {
    /// Of a device that was not measured.
    pub const UNKNOWN: Self = Self { read: f64::NAN, copy: f64::NAN, f32: f64::NAN, bf16: f64::NAN };

    /// Measures for about three seconds: the best of several, since a ceiling is not a typical value.
    #[must_use]
    pub fn measure(device: &Device, threads: usize) -> Self {
        let from = vec![1.0f32; 1 << 26];
        let mut to = vec![0.0f32; 1 << 26];
        let part = from.len().div_ceil(threads);
        let bytes = size_of_val(from.as_slice()) as f64;
        let read = best(|| {
            std::thread::scope(|scope| {
                from.chunks(part).for_each(|part| {
                    scope.spawn(|| std::hint::black_box(sum(part)));
                });
            });
        });
        let copy = best(|| {
            std::thread::scope(|scope| {
                from.chunks(part).zip(to.chunks_mut(part)).for_each(|(from, to)| {
                    scope.spawn(|| to.copy_from_slice(from));
                });
            });
        });
        let product = best(large_product::<f32>(device));
        let half_product = best(large_product::<bf16>(device));
        let operations = 2.0 * (SIDE * SIDE * SIDE) as f64;
        Self {
            read: bytes / read,
            copy: 2.0 * bytes / copy,
            f32: operations / product,
            bf16: operations / half_product,
        }
    }

    /// Of products in `T`.
    #[must_use]
    pub fn product<T: Float>(&self) -> f64 {
        if T::DTYPE == smalti::Dtype::Bf16 { self.bf16 } else { self.f32 }
    }
}

/// Rows, inputs and outputs of the product that shows the ceiling.
const SIDE: usize = 1024;

fn large_product<T: Float>(device: &Device) -> impl FnMut()
where
    Weight: From<Tensor<T>>,
{
    let square = || Tensor::from_vec(device, &[SIDE, SIDE], numbers::<T>(SIDE * SIDE)).expect("room");
    let (x, weight) = (square(), Weight::from(square()));
    move || {
        std::hint::black_box(linear::linear(&x, &weight, None).expect("shapes that fit"));
    }
}

fn sum(part: &[f32]) -> f32 {
    let mut sums = [0.0f32; 64];
    for part in part.as_chunks::<64>().0 {
        sums.iter_mut().zip(part).for_each(|(sum, number)| *sum += number);
    }
    sums.iter().sum()
}

/// The least seconds of several runs.
fn best(mut work: impl FnMut()) -> f64 {
    let run = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..10).map(run).fold(f64::INFINITY, f64::min)
}
