//! The innermost loops of products: how elements meet, how they are packed, and tiles of sums that stay in registers.
#![expect(unsafe_code, reason = "rows at a constant distance, read without a check for each step")]

use bytemuck::{Pod, Zeroable};

use crate::backend::simd::{LANES, Line, Simd};
use crate::{bf16, f16};

/// Rows of the tile that most of many rows pass through: with [`TILE_OUTPUTS`], as many sums as leave registers for the
/// operands.
pub(super) const TILE_ROWS: usize = 6;
/// Outputs of a tile.
pub(super) const TILE_OUTPUTS: usize = 4;
/// Outputs of a tile of [`stream`], which has one or two rows.
pub(super) const STREAM_OUTPUTS: usize = 8;

/// What products are computed in. A packed [`Line`] is what one step takes of a row.
pub(super) trait Arithmetic: Copy + Send + Sync {
    type Operand<S: Simd>: Copy;
    fn load<S: Simd>(simd: S, from: &Line) -> Self::Operand<S>;
    fn add<S: Simd>(simd: S, x: Self::Operand<S>, weight: Self::Operand<S>, sums: S::F32s) -> S::F32s;
}

/// A lane takes one input in a step.
#[derive(Clone, Copy)]
pub(super) struct Single;

impl Arithmetic for Single {
    type Operand<S: Simd> = S::F32s;
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &Line) -> S::F32s {
        simd.load(from.f32s())
    }
    #[inline(always)]
    fn add<S: Simd>(simd: S, x: S::F32s, weight: S::F32s, sums: S::F32s) -> S::F32s {
        simd.mul_add(x, weight, sums)
    }
}

/// Both operands are bf16: a lane takes a pair of inputs in a step.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

impl Arithmetic for Pairs {
    type Operand<S: Simd> = S::Pairs;
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &Line) -> S::Pairs {
        simd.load_pairs(from.bf16s())
    }
    #[inline(always)]
    fn add<S: Simd>(simd: S, x: S::Pairs, weight: S::Pairs, sums: S::F32s) -> S::F32s {
        simd.dot(x, weight, sums)
    }
}

/// An element as it is stored, read for the arithmetic `A`.
pub(super) trait Stored<A: Arithmetic>: Pod + Sync {
    /// As many as one step takes.
    type Step: Pod;
    fn load<S: Simd>(simd: S, from: &Self::Step) -> A::Operand<S>;
    fn pack<S: Simd>(simd: S, from: &Self::Step) -> Line;
}

macro_rules! stored {
    ($($element:ty, $load:ident);*) => {$(
        impl Stored<Single> for $element {
            type Step = [$element; LANES];
            #[inline(always)]
            fn load<S: Simd>(simd: S, from: &Self::Step) -> S::F32s {
                simd.$load(from)
            }
            #[inline(always)]
            fn pack<S: Simd>(simd: S, from: &Self::Step) -> Line {
                let mut to = Line::default();
                simd.store(simd.$load(from), to.f32s_mut());
                to
            }
        }
    )*};
}
stored!(f32, load; f16, load_f16; bf16, load_bf16; i8, load_i8);

impl Stored<Pairs> for bf16 {
    type Step = [bf16; 2 * LANES];
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &Self::Step) -> S::Pairs {
        simd.load_pairs(from)
    }
    #[inline(always)]
    fn pack<S: Simd>(_simd: S, from: &Self::Step) -> Line {
        Line(bytemuck::pod_read_unaligned(bytemuck::bytes_of(from)))
    }
}

/// How many elements one step takes.
pub(super) const fn step<A: Arithmetic, E: Stored<A>>() -> usize {
    size_of::<E::Step>() / size_of::<E>()
}

/// Elements as one step takes them, with zeros after the last.
#[inline(always)]
fn padded<A: Arithmetic, E: Stored<A>>(from: &[E]) -> E::Step {
    let mut to = E::Step::zeroed();
    bytemuck::cast_slice_mut::<E::Step, E>(std::slice::from_mut(&mut to))[..from.len()].copy_from_slice(from);
    to
}

/// Lays rows of `stride` elements side by side: step `s` of row `r` at `to[s * rows + r]`. `from` starts with the first
/// element to take of the first row; `taken` elements are taken of each.
#[inline(always)]
pub(super) fn pack<S: Simd, A: Arithmetic, E: Stored<A>>(
    simd: S,
    from: &[E],
    stride: usize,
    taken: usize,
    rows: usize,
    to: &mut [Line],
) {
    let step = step::<A, E>();
    for row in 0..from.len().div_ceil(stride).min(rows) {
        let from = &from[row * stride..][..taken];
        let whole: &[E::Step] = bytemuck::cast_slice(&from[..taken / step * step]);
        for (from, to) in whole.iter().zip(to[row..].iter_mut().step_by(rows)) {
            // Memory is what this waits for: ask for what the next tile reads.
            simd.prefetch(std::ptr::from_ref(from).cast::<E>().wrapping_add(rows * stride));
            *to = E::pack(simd, from);
        }
        if !taken.is_multiple_of(step) {
            to[whole.len() * rows + row] = E::pack(simd, &padded(&from[whole.len() * step..]));
        }
    }
}

/// A tile's sums, by row and output.
pub(super) type Sums<S, const ROWS: usize> = [[<S as Simd>::F32s; TILE_OUTPUTS]; ROWS];

/// Adds the products of packed rows of `x` and packed outputs.
#[inline(always)]
pub(super) fn tile<S: Simd, A: Arithmetic, const ROWS: usize>(
    simd: S,
    x: &[Line],
    weight: &[Line],
    mut sums: Sums<S, ROWS>,
) -> Sums<S, ROWS> {
    let steps = x.as_chunks::<ROWS>().0.iter().zip(weight.as_chunks::<TILE_OUTPUTS>().0);
    if S::MANY_REGISTERS {
        for (x, weight) in steps {
            let x: [A::Operand<S>; ROWS] = std::array::from_fn(|row| A::load(simd, &x[row]));
            for (output, weight) in weight.iter().enumerate() {
                let weight = A::load(simd, weight);
                for row in 0..ROWS {
                    sums[row][output] = A::add(simd, x[row], weight, sums[row][output]);
                }
            }
        }
        return sums;
    }
    // Three rows and two outputs at a time are what few registers hold; a row past the last is the last again.
    for (row, output) in (0..ROWS).step_by(3).flat_map(|row| [(row, 0), (row, 2)]) {
        let rows: [usize; 3] = std::array::from_fn(|next| (row + next).min(ROWS - 1));
        let mut some = rows.map(|row| [sums[row][output], sums[row][output + 1]]);
        for (x, weight) in steps.clone() {
            let weight = [A::load(simd, &weight[output]), A::load(simd, &weight[output + 1])];
            for next in 0..3 {
                let x = A::load(simd, &x[rows[next]]);
                some[next] = [A::add(simd, x, weight[0], some[next][0]), A::add(simd, x, weight[1], some[next][1])];
            }
        }
        for (row, some) in rows.iter().zip(some) {
            sums[*row][output..output + 2].copy_from_slice(&some);
        }
    }
    sums
}

/// The products of `ROWS` packed rows of `x` with [`STREAM_OUTPUTS`] rows of `weight`, read as they are stored, in one
/// pass. The rows of the weight have `inputs` elements and are `stride` apart: `inputs`, or 0 to read one row alone. What
/// is read next lies `ahead` elements further.
#[inline(always)]
pub(super) fn stream<S: Simd, A: Arithmetic, E: Stored<A>, const ROWS: usize>(
    simd: S,
    x: &[Line],
    weight: &[E],
    inputs: usize,
    stride: usize,
    ahead: usize,
) -> [[S::F32s; STREAM_OUTPUTS]; ROWS] {
    assert!(weight.len() >= (STREAM_OUTPUTS - 1) * stride + inputs);
    let step = step::<A, E>();
    let weight = weight.as_ptr();
    let mut sums = [[simd.splat(0.0); STREAM_OUTPUTS]; ROWS];
    let (x, _) = x.as_chunks::<ROWS>();
    let steps = inputs / step;
    for (at, x) in x[..steps].iter().enumerate() {
        let x: [A::Operand<S>; ROWS] = std::array::from_fn(|row| A::load(simd, &x[row]));
        let weight: [A::Operand<S>; STREAM_OUTPUTS] = std::array::from_fn(|output| {
            let weight = weight.wrapping_add(output * stride + at * step);
            // Memory is what this waits for.
            simd.prefetch(weight.wrapping_add(ahead));
            // SAFETY: the step ends before `(STREAM_OUTPUTS - 1) * stride + inputs`, which lies in the slice by the
            // assertion above. Elements are plain data, and an array is aligned as its elements are.
            E::load(simd, unsafe { &*weight.cast() })
        });
        add_outer::<S, A, ROWS>(simd, x, weight, &mut sums);
    }
    if let Some(x) = x.get(steps) {
        let mut last = [E::Step::zeroed(); STREAM_OUTPUTS];
        for (output, last) in last.iter_mut().enumerate() {
            // SAFETY: as above; the slice ends with the row.
            let weight = unsafe {
                std::slice::from_raw_parts(weight.wrapping_add(output * stride + steps * step), inputs - steps * step)
            };
            *last = padded(weight);
        }
        let x = std::array::from_fn(|row| A::load(simd, &x[row]));
        let weight = std::array::from_fn(|output| E::load(simd, &last[output]));
        add_outer::<S, A, ROWS>(simd, x, weight, &mut sums);
    }
    sums
}

/// Adds each row's product with each output.
#[inline(always)]
fn add_outer<S: Simd, A: Arithmetic, const ROWS: usize>(
    simd: S,
    x: [A::Operand<S>; ROWS],
    weight: [A::Operand<S>; STREAM_OUTPUTS],
    sums: &mut [[S::F32s; STREAM_OUTPUTS]; ROWS],
) {
    for row in 0..ROWS {
        for output in 0..STREAM_OUTPUTS {
            sums[row][output] = A::add(simd, x[row], weight[output], sums[row][output]);
        }
    }
}
