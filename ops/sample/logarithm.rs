//! Logarithms in integers, written alike here and in `kernels-wgsl/include/logarithm.wgsl`, so that Gumbel noise is the
//! same on every backend.

/// `-log2(1 - t) / t` in units of 2^-30, the lowest power of `t` first: interpolated at the Chebyshev points of
/// 0 to 1 - sqrt(1/2). Within 1.1e-8 of its size.
const SERIES: [u32; 7] = [1_549_082_017, 774_536_938, 516_579_655, 382_906_653, 350_381_167, 71_873_120, 607_083_381];

/// `sqrt(1/2) * 2^32`, rounded up.
const ROOT: u32 = 3_037_000_500;

/// `-log2(mantissa / 2^32)` in units of 2^-62, for a mantissa of at least 2^31. Within 2^-26 of its size.
#[must_use]
#[inline(always)]
pub fn octaves(mantissa: u32) -> u64 {
    let (m, half) = match mantissa {
        // Half an octave less.
        below if below < ROOT => (((u64::from(below) * u64::from(ROOT)) >> 31) as u32, 1 << 61),
        above => (above, 0),
    };
    let t = u64::from(m.wrapping_neg());
    let series = SERIES.iter().rev().fold(0, |sum, c| u64::from(*c) + ((t * sum) >> 32));
    t * series + half
}

/// `-log2(fraction / 2^32)` in units of 2^-56: an exponential variable from a random word. 0 stands for 1.
#[must_use]
#[inline(always)]
pub fn exponential(fraction: u32) -> u64 {
    let word = fraction.max(1);
    let zeros = word.leading_zeros();
    (u64::from(zeros) << 56) + (octaves(word << zeros) >> 6)
}

/// `log2` of a number above 0, in units of 2^-24, rounded up.
#[must_use]
pub fn log2(number: u64) -> u32 {
    let zeros = number.leading_zeros();
    let mantissa = ((number << zeros) >> 32) as u32;
    ((64 - zeros) << 24) - (octaves(mantissa) >> 38) as u32
}

/// Octaves as natural units: both in units of 2^-24.
#[must_use]
pub fn natural(octaves: u32) -> u32 {
    /// `ln 2` in units of 2^-32.
    const LN_2: u64 = 2_977_044_472;
    ((u64::from(octaves) * LN_2) >> 32) as u32
}

/// `-ln(-ln u)` in units of 2^-24, for `u` the fraction over 2^32: a Gumbel variable from a random word. Within 2^-22.
#[must_use]
pub fn gumbel(fraction: u32) -> i32 {
    /// `-log2(ln 2)` in units of 2^-24.
    const OF_LN_2: i32 = 8_871_228;
    // The exponential is in units of 2^-56.
    let octaves = (56 << 24) + OF_LN_2 - log2(exponential(fraction)) as i32;
    natural(octaves.unsigned_abs()) as i32 * octaves.signum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_within_their_bound() {
        let edges = [1, 2, 3, 1 << 31, (1 << 31) - 1, ROOT - 1, ROOT, ROOT + 1, u32::MAX - 1, u32::MAX];
        let spread = (0..200_000u32).map(|step| step.wrapping_mul(2_654_435_761).max(1));
        for fraction in edges.into_iter().chain(spread) {
            let u = f64::from(fraction) / 4_294_967_296.0;
            let expected = -(u - 1.0).ln_1p() / std::f64::consts::LN_2;
            let got = exponential(fraction) as f64 / 2f64.powi(56);
            // Below, the units of 2^-56 show.
            let allowed = expected * 2f64.powi(-25) + 2f64.powi(-56);
            assert!((got - expected).abs() <= allowed, "{fraction}: {got}, expected {expected}");
            let expected = -(expected * std::f64::consts::LN_2).ln();
            let got = f64::from(gumbel(fraction)) / 16_777_216.0;
            assert!((got - expected).abs() <= 2f64.powi(-22), "gumbel of {fraction}: {got}, expected {expected}");
        }
    }
}
