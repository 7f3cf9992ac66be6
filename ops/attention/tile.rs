//! The product in the middle of attention: numbers of a few rows, each spread over vectors, times rows of a packed tile.

use bytemuck::Pod;

use super::TILE;
use crate::backend::simd::{LANES, Line, Simd};
use crate::{Element, bf16};

/// Queries whose sums share the registers.
pub(super) const GROUP: usize = 6;

const _: () = assert!(TILE == 4 * LANES, "a tile's keys fill the four vectors of a step");

/// What products are computed in.
pub(super) trait Arithmetic: Copy {
    /// What queries, keys and values are.
    type Element: Element + 'static;
    /// What is spread over a vector: 4 bytes that hold [`Arithmetic::INPUTS`] numbers.
    type Scalar: Pod + Default;
    type Operand<S: Simd>: Copy;
    const INPUTS: usize;

    fn load<S: Simd>(simd: S, step: &Line) -> Self::Operand<S>;
    fn spread<S: Simd>(simd: S, scalar: Self::Scalar) -> Self::Operand<S>;
    fn add<S: Simd>(simd: S, a: Self::Operand<S>, b: Self::Operand<S>, sums: S::F32s) -> S::F32s;

    /// A row, or part of one, as scalars; a last one that is not full has zeros.
    fn scalars(row: &[Self::Element], to: &mut [Self::Scalar]);
    /// A row of weights as scalars.
    fn weights<S: Simd>(simd: S, weights: &[f32; TILE], to: &mut [Self::Scalar; TILE]);
    /// Some channels of the values of the [`Arithmetic::INPUTS`] keys of a step; a key without a value gets zeros.
    fn values<'a>(value: impl Fn(usize) -> Option<&'a [Self::Element]>, first: usize, to: &mut Line);
}

/// In f32.
#[derive(Clone, Copy)]
pub(super) struct Single;

impl Arithmetic for Single {
    type Element = f32;
    type Scalar = f32;
    type Operand<S: Simd> = S::F32s;
    const INPUTS: usize = 1;

    #[inline(always)]
    fn load<S: Simd>(simd: S, step: &Line) -> S::F32s {
        simd.load(step.f32s())
    }
    #[inline(always)]
    fn spread<S: Simd>(simd: S, scalar: f32) -> S::F32s {
        simd.splat(scalar)
    }
    #[inline(always)]
    fn add<S: Simd>(simd: S, a: S::F32s, b: S::F32s, sums: S::F32s) -> S::F32s {
        simd.mul_add(a, b, sums)
    }
    #[inline(always)]
    fn scalars(row: &[f32], to: &mut [f32]) {
        let (vectors, rest) = row.as_chunks::<LANES>();
        for (to, vector) in to.as_chunks_mut().0.iter_mut().zip(vectors) {
            *to = *vector;
        }
        to[row.len() - rest.len()..].iter_mut().zip(rest).for_each(|(to, number)| *to = *number);
    }
    #[inline(always)]
    fn weights<S: Simd>(_simd: S, weights: &[f32; TILE], to: &mut [f32; TILE]) {
        *to = *weights;
    }
    #[inline(always)]
    fn values<'a>(value: impl Fn(usize) -> Option<&'a [f32]>, first: usize, to: &mut Line) {
        let to = to.f32s_mut();
        match value(0).map(|value| &value[first..]) {
            None => *to = [0.0; LANES],
            Some(value) => match value.first_chunk() {
                Some(all) => *to = *all,
                None => to[..value.len()].copy_from_slice(value),
            },
        }
    }
}

/// bf16 in pairs, along the channels of queries and keys and along the keys of weights and values.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

impl Arithmetic for Pairs {
    type Element = bf16;
    type Scalar = u32;
    type Operand<S: Simd> = S::Pairs;
    const INPUTS: usize = 2;

    #[inline(always)]
    fn load<S: Simd>(simd: S, step: &Line) -> S::Pairs {
        simd.load_pairs(step.bf16s())
    }
    #[inline(always)]
    fn spread<S: Simd>(simd: S, scalar: u32) -> S::Pairs {
        simd.splat_pair(scalar)
    }
    #[inline(always)]
    fn add<S: Simd>(simd: S, a: S::Pairs, b: S::Pairs, sums: S::F32s) -> S::F32s {
        simd.dot(a, b, sums)
    }
    #[inline(always)]
    fn scalars(row: &[bf16], to: &mut [u32]) {
        let (vectors, rest) = row.as_chunks::<{ 2 * LANES }>();
        for (to, vector) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(vectors) {
            *to = bytemuck::pod_read_unaligned(bytemuck::bytes_of(vector));
        }
        for (to, pair) in to[vectors.len() * LANES..].iter_mut().zip(rest.chunks(2)) {
            *to = bytemuck::cast([pair[0], pair.get(1).copied().unwrap_or(bf16::ZERO)]);
        }
    }
    #[inline(always)]
    fn weights<S: Simd>(simd: S, weights: &[f32; TILE], to: &mut [u32; TILE]) {
        for (weights, to) in weights.as_chunks().0.iter().zip(to.as_chunks_mut().0) {
            let narrow: [u32; LANES / 2] = bytemuck::cast(simd.narrow_bf16(simd.load(weights)));
            *to = narrow;
        }
    }
    #[inline(always)]
    fn values<'a>(value: impl Fn(usize) -> Option<&'a [bf16]>, first: usize, to: &mut Line) {
        let part = |key: usize| value(key).map(|value| &value[first..]);
        let (even, odd) = (part(0), part(1));
        if let (Some(even), Some(odd)) = (even.and_then(<[_]>::first_chunk), odd.and_then(<[_]>::first_chunk)) {
            let (even, odd): (&[bf16; LANES], &[bf16; LANES]) = (even, odd);
            for channel in 0..LANES {
                to.0[channel] = bytemuck::cast([even[channel], odd[channel]]);
            }
            return;
        }
        let at = |part: Option<&[bf16]>, channel: usize| -> bf16 {
            part.and_then(|part| part.get(channel).copied()).unwrap_or_default()
        };
        for channel in 0..LANES {
            to.0[channel] = bytemuck::cast([at(even, channel), at(odd, channel)]);
        }
    }
}

/// Adds to `sums`, by row and vector, each row's scalars times the steps of a packed tile.
#[inline(always)]
pub(super) fn product<S: Simd, A: Arithmetic, const MOST: usize, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    scalars: &[[A::Scalar; MOST]; GROUP],
    steps: &[[Line; 4]],
    sums: &mut [[S::F32s; VECTORS]; ROWS],
) {
    let count = steps.len().min(MOST);
    if S::MANY_REGISTERS {
        let mut local = *sums;
        for at in 0..count {
            let step: [A::Operand<S>; VECTORS] = std::array::from_fn(|vector| A::load(simd, &steps[at][vector]));
            for row in 0..ROWS {
                let scalar = A::spread(simd, scalars[row][at]);
                for vector in 0..VECTORS {
                    local[row][vector] = A::add(simd, scalar, step[vector], local[row][vector]);
                }
            }
        }
        *sums = local;
        return;
    }
    for vector in 0..VECTORS {
        let mut local: [S::F32s; ROWS] = std::array::from_fn(|row| sums[row][vector]);
        for at in 0..count {
            let step = A::load(simd, &steps[at][vector]);
            for row in 0..ROWS {
                local[row] = A::add(simd, A::spread(simd, scalars[row][at]), step, local[row]);
            }
        }
        for row in 0..ROWS {
            sums[row][vector] = local[row];
        }
    }
}
