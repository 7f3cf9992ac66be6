//! The arithmetic of a draw, in integers: written alike here and in `kernels-wgsl/sample/sample.wgsl`.
//!
//! `d = (largest - logit) * log2(e) / temperature` takes one subtraction and one multiplication of f32, which every
//! device rounds alike. `weight = 2^30 * 2^-d` is then computed in integers. The largest token has the weight 2^30; 31
//! halvings below it the weight is 0. A row's weights sum to at most 2^48.

use super::Filter;
use super::logarithm::exponential;
use super::select::{Boundary, Select};
use crate::backend::vectorised;
use crate::{Error, Result};

/// The weight of the largest logit.
pub const LARGEST: u32 = 1 << 30;

/// `ln(2)^k / k!` for k = 1 to 11, times 2^32: with alternating signs, the series of `2^-z`.
pub const COEFFICIENTS: [u32; 11] = coefficients();

const fn coefficients() -> [u32; 11] {
    let mut coefficients = [0; 11];
    let mut term = 4_294_967_296.0;
    let mut k = 0;
    while k < 11 {
        term *= std::f64::consts::LN_2 / (k + 1) as f64;
        coefficients[k] = (term + 0.5) as u32;
        k += 1;
    }
    coefficients
}

/// A filter in the numbers that the draw computes with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// `log2(e) / temperature`.
    pub factor: f32,
    /// How many of the largest are kept; `u32::MAX` if all are.
    pub top_k: u32,
    /// `top_p * 2^32`; 0 if all are kept.
    pub top_p: u32,
    /// The smallest weight kept.
    pub least: u32,
    /// `typical * 2^32`; 0 if all are kept.
    pub typical: u32,
}

impl Plan {
    /// Temperature 0 is the largest logit alone.
    #[must_use]
    pub fn new(filter: &Filter) -> Self {
        let greedy = filter.temperature == 0.0;
        let temperature = if greedy { 1.0 } else { f64::from(filter.temperature) };
        let top_k = if greedy { 1 } else { filter.top_k };
        // Below one part in 2^32 only the first token is kept, as with that part.
        let part = |share: f32| if share < 1.0 { fraction_of(share).max(1) } else { 0 };
        Self {
            // Finite, so that a distance of 0 stays 0 at any temperature.
            factor: (std::f64::consts::LOG2_E / temperature).min(f64::from(f32::MAX)) as f32,
            top_k: if top_k == 0 { u32::MAX } else { u32::try_from(top_k).unwrap_or(u32::MAX) },
            top_p: part(filter.top_p),
            least: (f64::from(filter.min_p) * f64::from(LARGEST)).ceil() as u32,
            typical: part(filter.typical),
        }
    }
}

/// A number that orders f32 values as they are, -0 below 0.
#[must_use]
#[inline(always)]
pub fn order(logit: f32) -> u32 {
    // So that the two zeros tie, as they do in a comparison.
    let bits = (logit + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 }
}

/// A number in [0, 1) in units of 2^-32.
#[must_use]
pub fn fraction_of(uniform: f32) -> u32 {
    (f64::from(uniform) * 4_294_967_296.0) as u32
}

/// The weight of a logit.
#[must_use]
#[inline(always)]
pub fn weight(logit: f32, largest: f32, factor: f32) -> u32 {
    distance(logit, largest, factor).map_or(0, halved)
}

/// How many octaves a logit's weight is below the largest, in units of 2^-24; none from 31 octaves on.
#[inline(always)]
fn distance(logit: f32, largest: f32, factor: f32) -> Option<u32> {
    let d = (largest - logit) * factor;
    (d < 31.0).then_some((d * 16_777_216.0) as u32)
}

/// The weights of shares (such as probabilities) that are finite and not negative: the largest is 2^29 to 2^30, and only
/// what falls below 1 is rounded. None if a number is not such, or all are 0.
pub fn weights_of_shares(shares: &[f32], weights: &mut [u32]) -> Option<()> {
    let largest = shares.iter().copied().fold(0.0, f32::max);
    if !shares.iter().all(|share| (0.0..=f32::MAX).contains(share)) || largest == 0.0 {
        return None;
    }
    // A subnormal number has the exponent of the least normal one, and no leading bit.
    let exponent = |share: f32| ((share.to_bits() >> 23) & 0xff).max(1);
    for (weight, share) in weights.iter_mut().zip(shares) {
        let leading = if *share >= f32::MIN_POSITIVE { 1 << 23 } else { 0 };
        let mantissa = (share.to_bits() & 0x7f_ffff) | leading;
        *weight = (mantissa << 6).checked_shr(exponent(largest) - exponent(*share)).unwrap_or(0);
    }
    Some(())
}

/// The first token, in index order, whose cumulative weight exceeds this fraction (over 2^32) of the total; none if all
/// weights are 0.
#[must_use]
pub fn draw(weights: &[u32], fraction: u32) -> Option<u32> {
    /// Tokens whose weights are added before they are looked at one by one.
    const RUN: usize = 64;
    #[inline(always)]
    fn mass(weights: &[u32]) -> u64 {
        weights.iter().map(|weight| u64::from(*weight)).sum()
    }
    vectorised(
        #[inline(always)]
        || {
            let target = ((u128::from(mass(weights)) * u128::from(fraction)) >> 32) as u64;
            let mut sum = 0;
            for (run, weights) in (0..).step_by(RUN).zip(weights.chunks(RUN)) {
                let after = sum + mass(weights);
                if after > target {
                    return (run..).zip(weights).find_map(|(token, weight)| {
                        sum += u64::from(*weight);
                        (sum > target).then_some(token)
                    });
                }
                sum = after;
            }
            None
        },
    )
}

/// The first to arrive where each token arrives after `-log2(noise / 2^32) / weight`: Gumbel-max. Among equals the
/// lowest index; none if all weights are 0.
#[must_use]
pub fn race(weights: &[u32], noise: impl Iterator<Item = u32>) -> Option<u32> {
    let mut winner: Option<(u64, u32, u32)> = None;
    for ((token, weight), noise) in (0..).zip(weights).zip(noise).filter(|((_, weight), _)| **weight > 0) {
        let arrival = exponential(noise);
        let sooner = |(best, best_weight, _): (u64, u32, u32)| {
            u128::from(arrival) * u128::from(best_weight) < u128::from(best) * u128::from(*weight)
        };
        if winner.is_none_or(sooner) {
            winner = Some((arrival, *weight, token));
        }
    }
    winner.map(|(_, _, token)| token)
}

/// `2^30 * 2^-(fixed / 2^24)`.
#[inline(always)]
fn halved(fixed: u32) -> u32 {
    let z = fixed << 8;
    let high = |a: u32, b: u32| ((u64::from(a) * u64::from(b)) >> 32) as u32;
    let series = COEFFICIENTS[..10].iter().rev().fold(COEFFICIENTS[10], |sum, c| c - high(z, sum));
    (LARGEST - (high(z, series) >> 2)) >> (fixed >> 24)
}

/// The kept tokens of one row: in index order, with their weights.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// Per token of the vocabulary; 0 if it is not kept.
    pub weights: Vec<u32>,
    /// Per token of the vocabulary.
    pub kept: Vec<bool>,
    orders: Vec<u32>,
    select: Select,
}

impl Row {
    /// Weighs and filters a row.
    ///
    /// # Errors
    /// [`Error::Value`] if the row has a NaN, `+inf`, or no finite logit.
    pub fn fill(&mut self, op: &'static str, row: usize, logits: &[f32], plan: Plan) -> Result<()> {
        let Some(largest) = largest(logits).filter(|largest| largest.is_finite()) else {
            let nothing = logits.iter().all(|logit| *logit == f32::NEG_INFINITY);
            let got = if nothing { "without a finite logit" } else { "not finite" };
            return Err(Error::value(op, "logits", format!("{got} in row {row}"), "finite numbers or -inf"));
        };
        self.weights.resize(logits.len(), 0);
        vectorised(
            #[inline(always)]
            || {
                for (to, logit) in self.weights.iter_mut().zip(logits) {
                    *to = weight(*logit, largest, plan.factor);
                }
            },
        );
        self.kept.clear();
        self.kept.resize(logits.len(), true);
        let count = plan.top_k as usize;
        if count < logits.len() || plan.top_p > 0 {
            self.orders.resize(logits.len(), 0);
            vectorised(
                #[inline(always)]
                || self.orders.iter_mut().zip(logits).for_each(|(to, logit)| *to = order(*logit)),
            );
            let boundary = self.select.boundary(&self.orders, &self.weights, count, plan.top_p);
            if let Some(Boundary { above, equals }) = boundary {
                vectorised(
                    #[inline(always)]
                    || self.kept.iter_mut().zip(&self.orders).for_each(|(kept, order)| *kept = *order > above),
                );
                equals.iter().for_each(|token| self.kept[*token as usize] = true);
            }
        }
        if plan.least > 0 {
            for (kept, weight) in self.kept.iter_mut().zip(&self.weights) {
                *kept &= *weight >= plan.least;
            }
        }
        if plan.typical > 0 {
            self.keep_typical(logits, largest, plan);
        }
        vectorised(
            #[inline(always)]
            || self.weights.iter_mut().zip(&self.kept).for_each(|(weight, kept)| *weight *= u32::from(*kept)),
        );
        Ok(())
    }

    /// Of the kept, keeps those whose information is nearest to the entropy, up to the share. In octaves below the
    /// largest the normaliser is in both and cancels, so that the entropy is the mean distance.
    fn keep_typical(&mut self, logits: &[f32], largest: f32, plan: Plan) {
        let distances = |row: &Self, token: u32| {
            let distance = distance(logits[token as usize], largest, plan.factor);
            distance.filter(|_| row.kept[token as usize]).map(|distance| (token, distance))
        };
        let kept: Vec<(u32, u32)> = (0..).take(logits.len()).filter_map(|token| distances(self, token)).collect();
        let weight = |row: &Self, token: u32| u64::from(row.weights[token as usize]);
        let total: u64 = kept.iter().map(|(token, _)| weight(self, *token)).sum();
        let moment: u128 =
            kept.iter().map(|(token, distance)| u128::from(weight(self, *token)) * u128::from(*distance)).sum();
        let mean = (moment / u128::from(total)) as u32;
        let mut nearest: Vec<(u32, u32)> =
            kept.iter().map(|(token, distance)| (distance.abs_diff(mean), *token)).collect();
        nearest.sort_unstable();
        let limit = share(total, plan.typical);
        let mut before = 0;
        self.kept.fill(false);
        for (_, token) in nearest {
            if before >= limit {
                break;
            }
            self.kept[token as usize] = true;
            before += weight(self, token);
        }
    }
}

/// The largest logit; none if one is NaN.
fn largest(logits: &[f32]) -> Option<f32> {
    const LANES: usize = 32;
    #[inline(always)]
    fn take(logits: &[f32], most: &mut [f32; LANES], none: &mut [bool; LANES]) {
        for ((most, none), logit) in most.iter_mut().zip(none).zip(logits) {
            *most = if *logit > *most { *logit } else { *most };
            *none |= logit.is_nan();
        }
    }
    vectorised(
        #[inline(always)]
        || {
            let (mut most, mut none) = ([f32::NEG_INFINITY; LANES], [false; LANES]);
            let (whole, rest) = logits.as_chunks::<LANES>();
            for logits in whole {
                take(logits, &mut most, &mut none);
            }
            take(rest, &mut most, &mut none);
            let largest = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
            (!none.contains(&true)).then_some(largest)
        },
    )
}

/// The least mass that is not below this share (over 2^32) of the total.
pub(super) fn share(total: u64, fraction: u32) -> u64 {
    ((u128::from(total) * u128::from(fraction) + 0xffff_ffff) >> 32) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weight_is_within_four_units_of_the_exponential() {
        for step in 0..100_000 {
            let logit = -f64::from(step) * 2.2e-4;
            let expected = f64::from(LARGEST) * ((f64::from(logit as f32)).exp());
            let got = f64::from(weight(logit as f32, 0.0, std::f64::consts::LOG2_E as f32));
            // The logit's own rounding, and that of the product, shift the exponent by a few parts in 2^24.
            let allowed = 4.0 + expected * 4.0e-7 * (1.0 + logit.abs());
            assert!((got - expected).abs() <= allowed, "logit {logit}: {got}, expected {expected}");
        }
    }

    #[test]
    fn weight_of_the_largest_is_whole_and_of_minus_infinity_nothing() {
        assert_eq!(weight(3.5, 3.5, 1.0), LARGEST);
        assert_eq!(weight(f32::NEG_INFINITY, 3.5, 1.0), 0);
        assert_eq!(weight(-1e30, 1e30, 1e30), 0);
    }
}
