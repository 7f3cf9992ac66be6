//! A row per thread.

use super::Guidance;
use super::integer::{Plan, Row, draw};
use crate::backend::cpu::Cpu;
use crate::{Float, Result, View, ViewMut};

/// [`super::sample`].
///
/// # Errors
/// [`crate::Error::Value`] if a row has a NaN, `+inf`, or no finite logit.
pub fn sample<T: Float>(cpu: &Cpu, logits: View<'_, T>, plan: Plan, fractions: View<'_, u32>) -> Result<Vec<u32>> {
    let fractions = fractions.as_slice().expect("contiguous");
    let (vocabulary, logits) = (logits.shape()[1], logits.as_slice().expect("contiguous"));
    let each = |(kept, wide): &mut (Row, Vec<f32>), row: usize| {
        let logits = &logits[row * vocabulary..][..vocabulary];
        wide.resize(logits.len(), 0.0);
        T::widen(logits, wide);
        kept.fill("sample", row, wide, plan)?;
        Ok(draw(&kept.weights, fractions[row]).expect("the largest token is always kept"))
    };
    rows(cpu, logits.len() / vocabulary, logits.len(), each)
}

/// [`super::guide`] of contiguous operands, with the scale of each row.
pub fn guide<T: Float>(
    cpu: &Cpu,
    cond: View<'_, T>,
    uncond: View<'_, T>,
    scale: impl Fn(usize) -> f32 + Sync,
    kind: Guidance,
    mut y: ViewMut<'_, T>,
) {
    let length = cond.shape().last().copied().unwrap_or(1).max(1);
    let (cond, uncond) = (cond.as_slice().expect("contiguous"), uncond.as_slice().expect("contiguous"));
    cpu.rows(y.as_mut_slice().expect("contiguous"), length, |row, y| {
        let (from, scale) = (row * length, scale(row));
        for ((y, cond), uncond) in y.iter_mut().zip(&cond[from..]).zip(&uncond[from..]) {
            *y = T::from_f32(kind.guided(cond.to_f32(), uncond.to_f32(), scale));
        }
    });
}

/// [`super::filter`]: probabilities, and 1 for each kept token.
///
/// # Errors
/// [`crate::Error::Value`] if a row has a NaN, `+inf`, or no finite logit.
pub fn filter<T: Float>(cpu: &Cpu, logits: View<'_, T>, plan: Plan) -> Result<(Vec<f32>, Vec<u32>)> {
    let (vocabulary, logits) = (logits.shape()[1], logits.as_slice().expect("contiguous"));
    let each = |(kept, wide): &mut (Row, Vec<f32>), row: usize| {
        let logits = &logits[row * vocabulary..][..vocabulary];
        wide.resize(logits.len(), 0.0);
        T::widen(logits, wide);
        kept.fill("filter", row, wide, plan)?;
        let total: f64 = kept.weights.iter().map(|weight| f64::from(*weight)).sum();
        let probabilities: Vec<f32> = kept.weights.iter().map(|weight| (f64::from(*weight) / total) as f32).collect();
        Ok((probabilities, kept.kept.iter().map(|kept| u32::from(*kept)).collect::<Vec<_>>()))
    };
    let rows = rows(cpu, logits.len() / vocabulary, logits.len(), each)?;
    let (probabilities, kept): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    Ok((probabilities.concat(), kept.concat()))
}

/// Calls `each` with scratch for every row; the results in order. `elements` are those of all rows.
///
/// # Errors
/// The first that a row gives.
pub fn rows<S: Default, R: Send>(
    cpu: &Cpu,
    rows: usize,
    elements: usize,
    each: impl Fn(&mut S, usize) -> Result<R> + Sync + Send,
) -> Result<Vec<R>> {
    if cpu.threads() == 1 || elements < 1 << 14 {
        let mut scratch = S::default();
        return (0..rows).map(|row| each(&mut scratch, row)).collect();
    }
    cpu.map(rows, S::default, each).into_iter().collect()
}
