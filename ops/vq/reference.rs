//! The definition of each op: plain loops in f64 over contiguous operands.

use super::Metric;
use crate::{Float, View, ViewMut};

/// [`super::nearest_l2`] and [`super::nearest_cosine`].
pub fn nearest<T: Float>(x: View<'_, T>, codebook: View<'_, f32>, metric: Metric, mut y: ViewMut<'_, u32>) {
    let [codes, dim] = [codebook.shape()[0], codebook.shape()[1]];
    let rows = x.as_slice().expect("contiguous").chunks(dim);
    for (x, y) in rows.zip(y.as_mut_slice().expect("contiguous")) {
        let mut best = f64::INFINITY;
        for code in 0..codes {
            let distance = distance(x, |d| f64::from(codebook.at(&[code, d])), metric);
            if distance < best {
                best = distance;
                *y = code as u32;
            }
        }
    }
}

/// [`super::nearest`]; the codebook is `[groups, codes, dim]`.
pub fn nearest_list<T: Float>(
    x: View<'_, T>,
    codebook: View<'_, f32>,
    metric: Metric,
    mut indices: ViewMut<'_, u32>,
    mut distances: ViewMut<'_, f32>,
) {
    let &[groups, codes, dim] = codebook.shape() else { unreachable!("the op reshaped it") };
    let count = indices.layout.shape()[indices.layout.shape().len() - 1];
    let vectors = x.as_slice().expect("contiguous").chunks(dim);
    let indices = indices.as_mut_slice().expect("contiguous").chunks_mut(count);
    let distances = distances.as_mut_slice().expect("contiguous").chunks_mut(count);
    for (n, ((x, indices), distances)) in vectors.zip(indices).zip(distances).enumerate() {
        let mut found: Vec<(f64, u32)> = (0..codes)
            .map(|code| (distance(x, |d| f64::from(codebook.at(&[n % groups, code, d])), metric), code as u32))
            .filter(|(distance, _)| !distance.is_nan())
            .collect();
        found.sort_by(|a, b| a.partial_cmp(b).expect("no NaN is left"));
        let length = x.iter().map(|x| x.to_f64().powi(2)).sum::<f64>().sqrt().max(1e-12);
        for place in 0..count {
            let (distance, index) = found.get(place).copied().unwrap_or((f64::NAN, 0));
            indices[place] = index;
            distances[place] = f32::from_f64(match metric {
                Metric::L2 => distance,
                Metric::Cosine => -distance / length,
            });
        }
    }
}

/// What is smallest for the nearest code: the squared distance, or minus the product with the code at length 1.
fn distance<T: Float>(x: &[T], code: impl Fn(usize) -> f64, metric: Metric) -> f64 {
    let pairs = || x.iter().enumerate().map(|(d, x)| (x.to_f64(), code(d)));
    match metric {
        Metric::L2 => pairs().map(|(x, c)| (x - c).powi(2)).sum(),
        Metric::Cosine => {
            let length = pairs().map(|(_, c)| c * c).sum::<f64>().sqrt();
            let product = pairs().map(|(x, c)| x * c).sum::<f64>();
            if length > 0.0 { -product / length } else { 0.0 }
        }
    }
}

/// The digits of [`super::fsq`], and of [`super::lfq`]: a row of `bounds` (shift, width, offset, half) for each channel,
/// where a width of 0 asks for the sign.
pub fn digits<T: Float>(
    x: View<'_, T>,
    bounds: View<'_, f32>,
    mut bounded: ViewMut<'_, T>,
    mut digits: ViewMut<'_, u32>,
) {
    let channels = bounds.shape()[0];
    let (x, bounded) = (x.as_slice().expect("contiguous"), bounded.as_mut_slice().expect("contiguous"));
    for (at, digit) in digits.as_mut_slice().expect("contiguous").iter_mut().enumerate() {
        let [shift, width, offset, half] = [0, 1, 2, 3].map(|n| f64::from(bounds.at(&[at % channels, n])));
        let x = x[at].to_f64();
        if width == 0.0 {
            bounded[at] = T::from_f64(x);
            *digit = u32::from(x > 0.0);
        } else {
            let value = (x + shift).tanh() * width - offset;
            bounded[at] = T::from_f64(value);
            *digit = (value.round_ties_even() + half) as u32;
        }
    }
}

/// Codes from digits: `(digit - offset) scale`, a row of `scales` (offset, scale) for each channel.
pub fn codes<T: Float>(digits: View<'_, u32>, scales: View<'_, f32>, mut y: ViewMut<'_, T>) {
    let channels = scales.shape()[0];
    let digits = digits.as_slice().expect("contiguous");
    for (at, y) in y.as_mut_slice().expect("contiguous").iter_mut().enumerate() {
        let [offset, scale] = [0, 1].map(|n| f64::from(scales.at(&[at % channels, n])));
        *y = T::from_f64((f64::from(digits[at]) - offset) * scale);
    }
}

/// [`super::pack`]; a row of `bases` (what a digit counts, levels) for each channel. Integers, so this is the CPU's too.
pub fn pack(digits: View<'_, u32>, bases: View<'_, u32>, mut indices: ViewMut<'_, u32>) {
    let channels = bases.shape()[0];
    let rows = digits.as_slice().expect("contiguous").chunks(channels);
    for (digits, index) in rows.zip(indices.as_mut_slice().expect("contiguous")) {
        let terms = digits.iter().enumerate().map(|(c, digit)| digit.wrapping_mul(bases.at(&[c, 0])));
        *index = terms.fold(0, u32::wrapping_add);
    }
}

/// [`super::unpack`]; `bases` as in [`pack`].
pub fn unpack(indices: View<'_, u32>, bases: View<'_, u32>, mut digits: ViewMut<'_, u32>) {
    let channels = bases.shape()[0];
    let indices = indices.as_slice().expect("contiguous");
    for (at, digit) in digits.as_mut_slice().expect("contiguous").iter_mut().enumerate() {
        let [base, levels] = [0, 1].map(|n| bases.at(&[at % channels, n]));
        *digit = indices[at / channels] / base % levels;
    }
}
