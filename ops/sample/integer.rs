//! The arithmetic of a draw, in integers: written alike here and in `kernels-wgsl/sample/sample.wgsl`.
//!
//! `d = (largest - logit) * log2(e) / temperature` takes one subtraction and one multiplication of f32, which every
//! device rounds alike. `weight = 2^30 * 2^-d` is then computed in integers. The largest token has the weight 2^30; 31
//! halvings below it the weight is 0. A row's weights sum to at most 2^48.

use super::Filter;
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
}

impl Plan {
    /// Temperature 0 is the largest logit alone.
    #[must_use]
    pub fn new(filter: &Filter) -> Self {
        let greedy = filter.temperature == 0.0;
        let temperature = if greedy { 1.0 } else { f64::from(filter.temperature) };
        let top_k = if greedy { 1 } else { filter.top_k };
        Self {
            // Finite, so that a distance of 0 stays 0 at any temperature.
            factor: (std::f64::consts::LOG2_E / temperature).min(f64::from(f32::MAX)) as f32,
            top_k: if top_k == 0 { u32::MAX } else { u32::try_from(top_k).unwrap_or(u32::MAX) },
            // Below one part in 2^32 only the largest token is kept, as with that part.
            top_p: if filter.top_p < 1.0 { ((f64::from(filter.top_p) * 4_294_967_296.0) as u32).max(1) } else { 0 },
            least: (f64::from(filter.min_p) * f64::from(LARGEST)).ceil() as u32,
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

/// The weight of a logit.
#[must_use]
#[inline(always)]
pub fn weight(logit: f32, largest: f32, factor: f32) -> u32 {
    let d = (largest - logit) * factor;
    if d < 31.0 { halved((d * 16_777_216.0) as u32) } else { 0 }
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
    /// Per token of the vocabulary; only those kept count.
    pub weights: Vec<u32>,
    /// Per token of the vocabulary.
    pub kept: Vec<bool>,
    ranked: Vec<u32>,
}

impl Row {
    /// Weighs and filters a row.
    ///
    /// # Errors
    /// [`Error::Value`] if the row has a NaN, `+inf`, or no finite logit.
    pub fn fill(&mut self, op: &'static str, row: usize, logits: &[f32], plan: Plan) -> Result<()> {
        let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, logit| largest.max(*logit));
        if !largest.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
            let got = if largest == f32::NEG_INFINITY { "without a finite logit" } else { "not finite" };
            return Err(Error::value(op, "logits", format!("{got} in row {row}"), "finite numbers or -inf"));
        }
        self.weights.clear();
        self.weights.extend(logits.iter().map(|logit| weight(*logit, largest, plan.factor)));
        self.kept.clear();
        let count = plan.top_k as usize;
        if count >= logits.len() && plan.top_p == 0 {
            self.kept.resize(logits.len(), true);
        } else {
            self.kept.resize(logits.len(), false);
            self.rank(logits, count);
            let total = self.ranked.iter().map(|token| u64::from(self.weights[*token as usize])).sum::<u64>();
            let target = match plan.top_p {
                0 => u64::MAX,
                top_p => share(total, top_p),
            };
            let mut before = 0;
            for token in &self.ranked {
                if before >= target {
                    break;
                }
                self.kept[*token as usize] = true;
                before += u64::from(self.weights[*token as usize]);
            }
        }
        for (kept, weight) in self.kept.iter_mut().zip(&self.weights) {
            *kept &= *weight >= plan.least;
        }
        Ok(())
    }

    /// The `count` largest logits in descending order, among equals by index.
    fn rank(&mut self, logits: &[f32], count: usize) {
        let key = |token: &u32| (std::cmp::Reverse(order(logits[*token as usize])), *token);
        self.ranked.clear();
        self.ranked.extend((0..).take(logits.len()));
        if count < logits.len() {
            self.ranked.select_nth_unstable_by_key(count, key);
            self.ranked.truncate(count);
        }
        self.ranked.sort_unstable_by_key(key);
    }

    /// The sum of the kept weights.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.kept.iter().zip(&self.weights).map(|(kept, weight)| if *kept { u64::from(*weight) } else { 0 }).sum()
    }

    /// The first token, in index order, whose cumulative weight exceeds this fraction (over 2^32) of the total.
    #[must_use]
    pub fn draw(&self, fraction: u32) -> u32 {
        let target = ((u128::from(self.total()) * u128::from(fraction)) >> 32) as u64;
        let mut sum = 0;
        for (token, (kept, weight)) in (0..).zip(self.kept.iter().zip(&self.weights)) {
            if *kept {
                sum += u64::from(*weight);
                if sum > target {
                    return token;
                }
            }
        }
        unreachable!("the largest token is always kept, so the total is above any fraction of itself")
    }
}

/// The least mass that is not below this share (over 2^32) of the total.
fn share(total: u64, fraction: u32) -> u64 {
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
