//! The element types a [`Tensor`](crate::Tensor) can hold.

use std::fmt;

pub use half::{bf16, f16};

use crate::backend::vectorised;

/// An element type as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// 64-bit float, on [`Device::reference`](crate::Device::reference) only.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE 16-bit float.
    F16,
    /// Brain float: the upper half of an `F32`.
    Bf16,
    /// 32-bit signed integer.
    I32,
    /// 32-bit unsigned integer: tokens, indices.
    U32,
    /// 8-bit signed integer: quantized weights.
    I8,
    /// 8-bit unsigned integer: masks, pictures.
    U8,
}

impl Dtype {
    /// The size of one element in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I8 | Self::U8 => 1,
        }
    }

    /// The name used in kernels' entry points and in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I8 => "i8",
            Self::U8 => "u8",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A type that a [`Tensor`](crate::Tensor) can hold. Sealed: the kernels know exactly these.
pub trait Element: bytemuck::Pod + PartialEq + PartialOrd + fmt::Debug + Send + Sync + sealed::Sealed {
    /// This type as a value.
    const DTYPE: Dtype;
}

/// A float element: `f32`, `f16`, `bf16`, and `f64` on the reference device.
pub trait Float: Element {
    /// The distance from 1 to the next value, which is 2 to the power of minus the stored mantissa bits.
    const EPSILON: f64;
    /// Rounds to nearest, ties to even.
    fn from_f64(value: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
    /// Exact, but for an `f64`, which is rounded.
    fn to_f32(self) -> f32;
    /// Converts a slice; the two have the same length. Vectorised where the CPU can.
    fn widen(from: &[Self], to: &mut [f32]);
    /// Converts a slice; the two have the same length. Vectorised where the CPU can.
    fn narrow(from: &[f32], to: &mut [Self]);
    /// The slice itself where `Self` is `f32`: no conversion needed.
    fn as_f32(slice: &[Self]) -> Option<&[f32]> {
        let _ = slice;
        None
    }
    /// The slice itself where `Self` is `bf16`.
    fn as_bf16(slice: &[Self]) -> Option<&[bf16]> {
        let _ = slice;
        None
    }
    /// The slice itself where `Self` is `f32`: no conversion needed.
    fn as_f32_mut(slice: &mut [Self]) -> Option<&mut [f32]> {
        let _ = slice;
        None
    }
}

macro_rules! element {
    ($($type:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
        }
    )*};
}
element!(f64 => F64, f32 => F32, f16 => F16, bf16 => Bf16, i32 => I32, u32 => U32, i8 => I8, u8 => U8);

impl Float for f64 {
    const EPSILON: f64 = f64::EPSILON;
    fn from_f64(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn from_f32(value: f32) -> Self {
        f64::from(value)
    }
    #[expect(clippy::cast_possible_truncation, reason = "rounding is this method's contract")]
    fn to_f32(self) -> f32 {
        self as f32
    }
    fn widen(from: &[Self], to: &mut [f32]) {
        from.iter().zip(to).for_each(|(from, to)| *to = from.to_f32());
    }
    fn narrow(from: &[f32], to: &mut [Self]) {
        from.iter().zip(to).for_each(|(from, to)| *to = f64::from(*from));
    }
}

impl Float for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;
    #[expect(clippy::cast_possible_truncation, reason = "rounding is this method's contract")]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f32(value: f32) -> Self {
        value
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
    fn as_f32(slice: &[Self]) -> Option<&[f32]> {
        Some(slice)
    }
    fn as_f32_mut(slice: &mut [Self]) -> Option<&mut [f32]> {
        Some(slice)
    }
}

macro_rules! half_float {
    ($type:ident: $($slices:item)*) => {
        impl Float for $type {
            const EPSILON: f64 = <$type>::EPSILON.to_f64_const();
            fn from_f64(value: f64) -> Self {
                // `half`'s own looks at the upper half of an f64 alone, so that it takes what is a little above a tie for
                // one.
                <$type>::from_f32(rounded_to_odd(value))
            }
            fn to_f64(self) -> f64 {
                <$type>::to_f64(self)
            }
            fn from_f32(value: f32) -> Self {
                <$type>::from_f32(value)
            }
            fn to_f32(self) -> f32 {
                <$type>::to_f32(self)
            }
            $($slices)*
        }
    };
}
half_float! {
    f16:
    fn widen(from: &[Self], to: &mut [f32]) {
        half::slice::HalfFloatSliceExt::convert_to_f32_slice(from, to);
    }
    fn narrow(from: &[f32], to: &mut [Self]) {
        half::slice::HalfFloatSliceExt::convert_from_f32_slice(to, from);
    }
}
half_float! {
    bf16:
    fn widen(from: &[Self], to: &mut [f32]) {
        vectorised(
            #[inline(always)]
            || from.iter().zip(to).for_each(|(from, to)| *to = f32::from_bits(u32::from(from.to_bits()) << 16)),
        );
    }
    fn narrow(from: &[f32], to: &mut [Self]) {
        vectorised(
            #[inline(always)]
            || from.iter().zip(to).for_each(|(from, to)| *to = rounded(*from)),
        );
    }
    fn as_bf16(slice: &[Self]) -> Option<&[bf16]> {
        Some(slice)
    }
}

/// The f32 that rounds to a half type as `value` does: what it cannot hold leaves its last bit 1.
fn rounded_to_odd(value: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "the error is looked at next")]
    let near = value as f32;
    if f64::from(near) == value || value.is_nan() {
        return near;
    }
    let away_from_zero = f64::from(near).abs() > value.abs();
    f32::from_bits((near.to_bits() - u32::from(away_from_zero)) | 1)
}

/// Rounds to nearest, ties to even, without a branch: unlike `bf16::from_f32`, a loop of it is vectorised.
#[inline(always)]
pub(crate) fn rounded(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // A NaN whose bits are only in the lower half would round to an infinity.
    let quiet = bits >> 16 | 0x40;
    #[expect(clippy::cast_possible_truncation, reason = "the upper half, shifted down")]
    bf16::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
}
