//! Vectors of 16 floats, and the widest instructions this processor has for them, chosen at run time.
//!
//! A [`Kernel`] is written once over [`Simd`] and compiled for each instruction set. Every method of a kernel, and all
//! that it calls in its loops, must be `#[inline(always)]`: what is not inlined is compiled for the narrowest set.
#![expect(unsafe_code, reason = "intrinsics, called for processors that were found to have them")]

use std::sync::OnceLock;

use crate::element::rounded;
use crate::{bf16, f16};

/// Floats in a vector.
pub(crate) const LANES: usize = 16;

/// What fills a vector, where a cache line starts: a load that crosses from one line into the next takes twice as long.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; LANES]);

impl Line {
    /// As floats.
    #[inline(always)]
    pub(crate) fn f32s(&self) -> &[f32; LANES] {
        bytemuck::cast_ref(&self.0)
    }
    /// As floats.
    #[inline(always)]
    pub(crate) fn f32s_mut(&mut self) -> &mut [f32; LANES] {
        bytemuck::cast_mut(&mut self.0)
    }
    /// As brain floats.
    #[inline(always)]
    pub(crate) fn bf16s(&self) -> &[bf16; 2 * LANES] {
        bytemuck::cast_ref(&self.0)
    }
}

/// Code that runs on vectors of any kind.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Runs with the instructions that `simd` stands for.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// A set of instructions; its value is the proof that the processor has them. Each lane is computed alone, and
/// [`Simd::mul_add`] rounds once on every set that has such an instruction.
pub(crate) trait Simd: Copy + Send + Sync {
    /// 16 floats.
    type F32s: Copy;
    /// 16 pairs of brain floats.
    type Pairs: Copy;
    /// Whether 31 vectors fit the registers; if not, count on 7.
    const MANY_REGISTERS: bool;

    fn splat(self, value: f32) -> Self::F32s;
    fn load(self, from: &[f32; LANES]) -> Self::F32s;
    fn store(self, value: Self::F32s, to: &mut [f32; LANES]);
    fn load_f16(self, from: &[f16; LANES]) -> Self::F32s;
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F32s;
    fn load_i8(self, from: &[i8; LANES]) -> Self::F32s;

    fn add(self, a: Self::F32s, b: Self::F32s) -> Self::F32s;
    fn mul(self, a: Self::F32s, b: Self::F32s) -> Self::F32s;
    /// `a b + c`.
    fn mul_add(self, a: Self::F32s, b: Self::F32s, c: Self::F32s) -> Self::F32s;
    /// The larger; `b` if one is NaN.
    fn max(self, a: Self::F32s, b: Self::F32s) -> Self::F32s;
    /// The largest lane; if one is NaN, any.
    fn largest(self, a: Self::F32s) -> f32;
    /// Whether any lane of four vectors is less than `limit`.
    fn any_below(self, vectors: [Self::F32s; 4], limit: f32) -> bool;
    /// 2 to the power of each `x`, to about 1e-7 of it; 0 below -160 or earlier, for `x` up to 127. NaN stays.
    fn exp2(self, x: Self::F32s) -> Self::F32s;
    /// The sum of the lanes of each of four vectors, in an order that is the same for all four.
    fn sums(self, vectors: [Self::F32s; 4]) -> [f32; 4];

    /// Exchanges rows and columns.
    fn transpose(self, block: &mut [Line; LANES]) {
        let rows = *block;
        *block = std::array::from_fn(|column| Line(rows.map(|row| row.0[column])));
    }

    /// Rounds to nearest, ties to even; subnormal values may become 0.
    fn narrow_bf16(self, value: Self::F32s) -> [bf16; LANES];
    fn splat_pair(self, pair: u32) -> Self::Pairs;
    fn load_pairs(self, from: &[bf16; 2 * LANES]) -> Self::Pairs;
    /// Adds to each lane of `sums` the products of both halves of its pairs. Subnormal operands and sums may count
    /// as 0.
    fn dot(self, a: Self::Pairs, b: Self::Pairs, sums: Self::F32s) -> Self::F32s;

    /// Asks for the memory at `at`, which need not be valid, to be brought near.
    fn prefetch<T>(self, at: *const T);
}

/// The sets of instructions, each with all that the ones before it have.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

impl Level {
    /// The best that this processor has, but none above what `SMALTI_SIMD` names, so that each can be tested.
    fn chosen() -> Self {
        static CHOSEN: OnceLock<Level> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let limit = std::env::var("SMALTI_SIMD").unwrap_or_default();
            let found = Self::found();
            match limit.as_str() {
                "portable" => Self::Portable,
                #[cfg(target_arch = "x86_64")]
                "avx2" if found > Self::Avx2 => Self::Avx2,
                #[cfg(target_arch = "x86_64")]
                "avx512" if found > Self::Avx512 => Self::Avx512,
                _ => found,
            }
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn found() -> Self {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match (avx2, avx512) {
            (false, _) => Self::Portable,
            (true, false) => Self::Avx2,
            (true, true) if is_x86_feature_detected!("avx512bf16") => Self::Avx512Bf16,
            (true, true) => Self::Avx512,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn found() -> Self {
        Self::Portable
    }
}

/// Runs a kernel with the best instructions that this processor has.
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    match Level::chosen() {
        Level::Portable => kernel.run(Portable),
        // SAFETY: a level is chosen only where all its features were detected.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::with_avx2(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { x86::with_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Bf16 => unsafe { x86::with_avx512_bf16(kernel) },
    }
}

/// Coefficients of 2^x for x in [-0.5, 0.5], from the highest power down to the first: a polynomial of degree 5 whose
/// largest relative error is 1.1e-7. The constant is 1.
const EXP2: [f32; 5] = [1.326_472_6e-3, 9.671_513e-3, 5.550_733_6e-2, 2.402_224_2e-1, 6.931_470_4e-1];

/// Plain loops over arrays, for any processor.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn lanes<T>(lane: impl FnMut(usize) -> T) -> [T; LANES] {
    std::array::from_fn(lane)
}

impl Simd for Portable {
    type F32s = [f32; LANES];
    type Pairs = [u32; LANES];
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F32s {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F32s {
        *from
    }
    #[inline(always)]
    fn store(self, value: Self::F32s, to: &mut [f32; LANES]) {
        *to = value;
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::F32s {
        from.map(f16::to_f32)
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F32s {
        from.map(|from| f32::from_bits(u32::from(from.to_bits()) << 16))
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::F32s {
        from.map(f32::from)
    }
    #[inline(always)]
    fn add(self, a: Self::F32s, b: Self::F32s) -> Self::F32s {
        lanes(|lane| a[lane] + b[lane])
    }
    #[inline(always)]
    fn mul(self, a: Self::F32s, b: Self::F32s) -> Self::F32s {
        lanes(|lane| a[lane] * b[lane])
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F32s, b: Self::F32s, c: Self::F32s) -> Self::F32s {
        lanes(|lane| a[lane] * b[lane] + c[lane])
    }
    #[inline(always)]
    fn max(self, a: Self::F32s, b: Self::F32s) -> Self::F32s {
        lanes(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    fn largest(self, a: Self::F32s) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, |most, a| if most > a { most } else { a })
    }
    #[inline(always)]
    fn any_below(self, vectors: [Self::F32s; 4], limit: f32) -> bool {
        vectors.as_flattened().iter().any(|lane| *lane < limit)
    }
    #[inline(always)]
    fn exp2(self, x: Self::F32s) -> Self::F32s {
        // 1.5 * 2^23: adding it rounds to an integer, which its lowest bits then hold.
        const ROUND: f32 = 12_582_912.0;
        x.map(|x| {
            let x = if x < -127.0 { -127.0 } else { x };
            let rounded = x + ROUND;
            let rest = x - (rounded - ROUND);
            let series = EXP2.iter().fold(0.0, |series, term| series * rest + term) * rest + 1.0;
            // Of a NaN the bits are of no account: the series is NaN. At -127 they are 0, and so is the scale.
            series * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
        })
    }
    #[inline(always)]
    fn sums(self, vectors: [Self::F32s; 4]) -> [f32; 4] {
        vectors.map(|mut lanes| {
            for half in [8, 4, 2, 1] {
                for lane in 0..half {
                    lanes[lane] += lanes[lane + half];
                }
            }
            lanes[0]
        })
    }
    #[inline(always)]
    fn narrow_bf16(self, value: Self::F32s) -> [bf16; LANES] {
        value.map(rounded)
    }
    #[inline(always)]
    fn splat_pair(self, pair: u32) -> Self::Pairs {
        [pair; LANES]
    }
    #[inline(always)]
    fn load_pairs(self, from: &[bf16; 2 * LANES]) -> Self::Pairs {
        bytemuck::pod_read_unaligned(bytemuck::bytes_of(from))
    }
    #[inline(always)]
    fn dot(self, a: Self::Pairs, b: Self::Pairs, sums: Self::F32s) -> Self::F32s {
        let low = |pairs: Self::Pairs| pairs.map(|pair| f32::from_bits(pair << 16));
        let high = |pairs: Self::Pairs| pairs.map(|pair| f32::from_bits(pair & 0xffff_0000));
        self.mul_add(high(a), high(b), self.mul_add(low(a), low(b), sums))
    }
    #[inline(always)]
    fn prefetch<T>(self, _at: *const T) {}
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Every `unsafe` block here calls instructions that the token `self` proves to be there; loads and stores go
    //! through references to arrays of the vector's size, and no instruction asks for alignment.

    use std::arch::x86_64::*;

    use super::{EXP2, Kernel, LANES, Line, Simd};
    use crate::{bf16, f16};

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    pub(super) fn with_avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx512::<true>(()))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) fn with_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx512::<false>(()))
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx2(()))
    }

    /// 512-bit vectors, with a product of brain floats or without. Made by the functions above alone.
    #[derive(Clone, Copy)]
    pub(super) struct Avx512<const BF16: bool>(());

    impl<const BF16: bool> Simd for Avx512<BF16> {
        type F32s = __m512;
        type Pairs = __m512i;
        const MANY_REGISTERS: bool = true;

        #[inline(always)]
        fn splat(self, value: f32) -> __m512 {
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        fn load(self, from: &[f32; LANES]) -> __m512 {
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, value: __m512, to: &mut [f32; LANES]) {
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
        }
        #[inline(always)]
        fn load_f16(self, from: &[f16; LANES]) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
        }
        #[inline(always)]
        fn load_bf16(self, from: &[bf16; LANES]) -> __m512 {
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
        }
        #[inline(always)]
        fn load_i8(self, from: &[i8; LANES]) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        fn largest(self, a: __m512) -> f32 {
            unsafe { _mm512_reduce_max_ps(a) }
        }
        #[inline(always)]
        fn any_below(self, [a, b, c, d]: [__m512; 4], limit: f32) -> bool {
            unsafe {
                let limit = _mm512_set1_ps(limit);
                let ab = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, limit) | _mm512_cmp_ps_mask::<_CMP_LT_OQ>(b, limit);
                let cd = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(c, limit) | _mm512_cmp_ps_mask::<_CMP_LT_OQ>(d, limit);
                ab | cd != 0
            }
        }
        #[inline(always)]
        fn exp2(self, x: __m512) -> __m512 {
            unsafe {
                let x = _mm512_max_ps(_mm512_set1_ps(-160.0), x);
                let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
                let rest = _mm512_sub_ps(x, whole);
                let mut series = _mm512_set1_ps(EXP2[0]);
                for term in [EXP2[1], EXP2[2], EXP2[3], EXP2[4], 1.0] {
                    series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(term));
                }
                _mm512_scalef_ps(series, whole)
            }
        }
        #[inline(always)]
        fn sums(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
            unsafe {
                // Lanes 0 + 2 and 1 + 3 of each quarter, a and b in turn; then the four sums of each quarter.
                let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                let quarters = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
                let halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps::<1>(quarters));
                let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
                let mut to = [0.0; 4];
                _mm_storeu_ps(to.as_mut_ptr(), sums);
                to
            }
        }
        #[inline(always)]
        fn transpose(self, block: &mut [Line; LANES]) {
            unsafe {
                // Loops, since a closure would be compiled without these instructions.
                let mut rows = [_mm512_setzero_si512(); LANES];
                for (row, from) in rows.iter_mut().zip(&*block) {
                    *row = _mm512_load_si512(from.0.as_ptr().cast());
                }
                // Within each quarter: pairs of rows, then fours.
                let mut pairs = rows;
                for two in 0..8 {
                    pairs[2 * two] = _mm512_unpacklo_epi32(rows[2 * two], rows[2 * two + 1]);
                    pairs[2 * two + 1] = _mm512_unpackhi_epi32(rows[2 * two], rows[2 * two + 1]);
                }
                // Quarter `q` of `fours[4 * f + c]` holds column `4 * q + c` of rows `4 * f` to `4 * f + 3`.
                let mut fours = pairs;
                for four in 0..4 {
                    for half in 0..2 {
                        let (a, b) = (pairs[4 * four + half], pairs[4 * four + 2 + half]);
                        fours[4 * four + 2 * half] = _mm512_unpacklo_epi64(a, b);
                        fours[4 * four + 2 * half + 1] = _mm512_unpackhi_epi64(a, b);
                    }
                }
                // Then the quarters themselves.
                for column in 0..4 {
                    let [a, b, c, d] = [fours[column], fours[4 + column], fours[8 + column], fours[12 + column]];
                    let even = [_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d)];
                    let odd = [_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d)];
                    let columns = [
                        _mm512_shuffle_i32x4::<0x88>(even[0], even[1]),
                        _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]),
                        _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]),
                        _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]),
                    ];
                    for (quarter, value) in columns.into_iter().enumerate() {
                        _mm512_store_si512(block[4 * quarter + column].0.as_mut_ptr().cast(), value);
                    }
                }
            }
        }
        #[inline(always)]
        fn narrow_bf16(self, value: __m512) -> [bf16; LANES] {
            unsafe {
                if BF16 {
                    // Both are 32 bytes of any content.
                    std::mem::transmute::<__m256bh, [bf16; LANES]>(_mm512_cvtneps_pbh(value))
                } else {
                    let mut lanes = [0.0; LANES];
                    self.store(value, &mut lanes);
                    lanes.map(super::rounded)
                }
            }
        }
        #[inline(always)]
        fn splat_pair(self, pair: u32) -> __m512i {
            unsafe { _mm512_set1_epi32(pair.cast_signed()) }
        }
        #[inline(always)]
        fn load_pairs(self, from: &[bf16; 2 * LANES]) -> __m512i {
            unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
        }
        #[inline(always)]
        fn dot(self, a: __m512i, b: __m512i, sums: __m512) -> __m512 {
            unsafe {
                if BF16 {
                    // Both types are 64 bytes of any content.
                    let [a, b] = [a, b].map(|pairs| std::mem::transmute::<__m512i, __m512bh>(pairs));
                    _mm512_dpbf16_ps(sums, a, b)
                } else {
                    let low = |pairs| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
                    let upper = _mm512_set1_epi32(!0xffff);
                    let high = |pairs| _mm512_castsi512_ps(_mm512_and_si512(pairs, upper));
                    _mm512_fmadd_ps(high(a), high(b), _mm512_fmadd_ps(low(a), low(b), sums))
                }
            }
        }
        #[inline(always)]
        fn prefetch<T>(self, at: *const T) {
            // A prefetch of an address that is not valid does nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }

    /// Two 256-bit vectors at a time. Made by `with_avx2` alone.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(());

    impl Simd for Avx2 {
        type F32s = [__m256; 2];
        type Pairs = [__m256i; 2];
        const MANY_REGISTERS: bool = false;

        #[inline(always)]
        fn splat(self, value: f32) -> [__m256; 2] {
            unsafe { [_mm256_set1_ps(value); 2] }
        }
        #[inline(always)]
        fn load(self, from: &[f32; LANES]) -> [__m256; 2] {
            unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())] }
        }
        #[inline(always)]
        fn store(self, value: [__m256; 2], to: &mut [f32; LANES]) {
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), value[0]);
                _mm256_storeu_ps(to[8..].as_mut_ptr(), value[1]);
            }
        }
        #[inline(always)]
        fn load_f16(self, from: &[f16; LANES]) -> [__m256; 2] {
            unsafe { [0, 8].map(|at| _mm256_cvtph_ps(_mm_loadu_si128(from[at..].as_ptr().cast()))) }
        }
        #[inline(always)]
        fn load_bf16(self, from: &[bf16; LANES]) -> [__m256; 2] {
            unsafe {
                [0, 8].map(|at| {
                    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from[at..].as_ptr().cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                })
            }
        }
        #[inline(always)]
        fn load_i8(self, from: &[i8; LANES]) -> [__m256; 2] {
            unsafe {
                [0, 8].map(|at| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from[at..].as_ptr().cast()))))
            }
        }
        #[inline(always)]
        fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn largest(self, a: [__m256; 2]) -> f32 {
            unsafe {
                let four = _mm256_max_ps(a[0], a[1]);
                let four = _mm_max_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps::<1>(four));
                let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }
        #[inline(always)]
        fn any_below(self, vectors: [[__m256; 2]; 4], limit: f32) -> bool {
            unsafe {
                let limit = _mm256_set1_ps(limit);
                let mut below = _mm256_setzero_ps();
                for half in vectors.as_flattened() {
                    below = _mm256_or_ps(below, _mm256_cmp_ps::<_CMP_LT_OQ>(*half, limit));
                }
                _mm256_movemask_ps(below) != 0
            }
        }
        #[inline(always)]
        fn exp2(self, x: [__m256; 2]) -> [__m256; 2] {
            x.map(|x| unsafe {
                let x = _mm256_max_ps(_mm256_set1_ps(-127.0), x);
                let whole = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
                let rest = _mm256_sub_ps(x, whole);
                let mut series = _mm256_set1_ps(EXP2[0]);
                for term in [EXP2[1], EXP2[2], EXP2[3], EXP2[4], 1.0] {
                    series = _mm256_fmadd_ps(series, rest, _mm256_set1_ps(term));
                }
                // The bits of a power of 2; at -127 they are those of 0.
                let power = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
                _mm256_mul_ps(series, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(power)))
            })
        }
        #[inline(always)]
        fn sums(self, vectors: [[__m256; 2]; 4]) -> [f32; 4] {
            unsafe {
                let [a, b, c, d] = vectors.map(|[first, second]| _mm256_add_ps(first, second));
                let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                let halves = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
                let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
                let mut to = [0.0; 4];
                _mm_storeu_ps(to.as_mut_ptr(), sums);
                to
            }
        }
        #[inline(always)]
        fn narrow_bf16(self, value: [__m256; 2]) -> [bf16; LANES] {
            let mut lanes = [0.0; LANES];
            self.store(value, &mut lanes);
            lanes.map(super::rounded)
        }
        #[inline(always)]
        fn splat_pair(self, pair: u32) -> [__m256i; 2] {
            unsafe { [_mm256_set1_epi32(pair.cast_signed()); 2] }
        }
        #[inline(always)]
        fn load_pairs(self, from: &[bf16; 2 * LANES]) -> [__m256i; 2] {
            unsafe { [0, 16].map(|at| _mm256_loadu_si256(from[at..].as_ptr().cast())) }
        }
        #[inline(always)]
        fn dot(self, a: [__m256i; 2], b: [__m256i; 2], sums: [__m256; 2]) -> [__m256; 2] {
            unsafe {
                let low = |pairs| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs));
                let upper = _mm256_set1_epi32(!0xffff);
                let high = |pairs| _mm256_castsi256_ps(_mm256_and_si256(pairs, upper));
                let half = |a, b, sums| _mm256_fmadd_ps(high(a), high(b), _mm256_fmadd_ps(low(a), low(b), sums));
                [half(a[0], b[0], sums[0]), half(a[1], b[1], sums[1])]
            }
        }
        #[inline(always)]
        fn prefetch<T>(self, at: *const T) {
            // A prefetch of an address that is not valid does nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }
}
