//! A row per thread.

use rayon::prelude::*;

use super::integer::{Plan, Row};
use crate::backend::cpu::Cpu;
use crate::{Float, Result, View};

/// [`super::sample`].
///
/// # Errors
/// [`crate::Error::Value`] if a row has a NaN, `+inf`, or no finite logit.
pub fn sample<T: Float>(cpu: &Cpu, logits: View<'_, T>, plan: Plan, fractions: &[u32]) -> Result<Vec<u32>> {
    let each = |(kept, wide): &mut (Row, Vec<f32>), row: usize, logits: &[T]| {
        wide.resize(logits.len(), 0.0);
        T::widen(logits, wide);
        kept.fill("sample", row, wide, plan)?;
        Ok(kept.draw(fractions[row]))
    };
    rows(cpu, logits, each)
}

/// [`super::filter`]: probabilities, and 1 for each kept token.
///
/// # Errors
/// [`crate::Error::Value`] if a row has a NaN, `+inf`, or no finite logit.
pub fn filter<T: Float>(cpu: &Cpu, logits: View<'_, T>, plan: Plan) -> Result<(Vec<f32>, Vec<u32>)> {
    let each = |(kept, wide): &mut (Row, Vec<f32>), row: usize, logits: &[T]| {
        wide.resize(logits.len(), 0.0);
        T::widen(logits, wide);
        kept.fill("filter", row, wide, plan)?;
        let total = kept.total() as f64;
        let share = |(kept, weight): (&bool, &u32)| if *kept { (f64::from(*weight) / total) as f32 } else { 0.0 };
        let probabilities: Vec<f32> = kept.kept.iter().zip(&kept.weights).map(share).collect();
        Ok((probabilities, kept.kept.iter().map(|kept| u32::from(*kept)).collect::<Vec<_>>()))
    };
    let rows = rows(cpu, logits, each)?;
    let (probabilities, kept): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    Ok((probabilities.concat(), kept.concat()))
}

fn rows<T: Float, R: Send>(
    cpu: &Cpu,
    logits: View<'_, T>,
    each: impl Fn(&mut (Row, Vec<f32>), usize, &[T]) -> Result<R> + Sync + Send,
) -> Result<Vec<R>> {
    let vocabulary = logits.shape()[1];
    let logits = logits.as_slice().expect("contiguous");
    if cpu.threads() == 1 || logits.len() < 1 << 14 {
        let mut scratch = Default::default();
        return logits.chunks(vocabulary).enumerate().map(|(row, logits)| each(&mut scratch, row, logits)).collect();
    }
    cpu.run(|| {
        let rows = logits.par_chunks(vocabulary).enumerate();
        rows.map_init(Default::default, |scratch, (row, logits)| each(scratch, row, logits)).collect()
    })
}
