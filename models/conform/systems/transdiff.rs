//! TransDiff's dumps.

use smalti::{Float, Tensor};

use super::weights;
use crate::conform::{Computed, Dump};
use crate::decode::{Chance, concatenate};
use crate::zoo::transdiff::TransDiff;
use crate::{Error, Result};

/// The start, then the noise of every step of every round.
struct Recorded(std::vec::IntoIter<f32>);

impl Chance for Recorded {
    fn begin(&mut self, _: &[(usize, usize)]) {}

    fn normals(&mut self, rows: usize, count: usize) -> Result<Vec<f64>> {
        let numbers: Vec<_> = self.0.by_ref().take(rows * count).map(f64::from).collect();
        let enough = numbers.len() == rows * count;
        if enough { Ok(numbers) } else { Err(Error::Weights("\"in.noise\" has too few numbers".to_owned())) }
    }

    fn uniforms(&mut self, _: usize, _: usize) -> Result<Vec<f64>> {
        Err(Error::Request("the dump records no uniform numbers".to_owned()))
    }
}

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = TransDiff::load(&weights(dump)?, dump.device)?;
    let labels = dump.counts("labels")?;
    let mut numbers = dump.checkpoint.floats("in.start")?;
    numbers.extend(dump.checkpoint.floats("in.noise")?);
    let (mut conditions, mut stages) = (Vec::new(), Vec::new());
    let mut recorded = Recorded(numbers.into_iter());
    let latents = model.generate::<T>(&labels, &model.sampling(), &mut recorded, |round| {
        conditions.push(round.conditions.clone());
        stages.push(round.tokens.reshape(&[&[1], round.tokens.shape()].concat())?);
        Ok(())
    })?;
    let mut computed = Vec::new();
    for (round, condition) in conditions.iter().enumerate() {
        computed.push(Computed::floats(&format!("condition.{round:04}"), condition)?);
    }
    if let Some(last) = conditions.last() {
        let with_class = model.decoder().conditions(&last.narrow(0, 0, labels.len())?.contiguous()?)?;
        let times: Vec<_> = dump.checkpoint.floats("in.head_t")?.into_iter().map(f64::from).collect();
        let velocity = model.decoder().velocity(&dump.tensor("head_x")?, &times, &with_class)?;
        computed.push(Computed::floats("velocity", &velocity)?);
    }
    let stages: Vec<&Tensor<T>> = stages.iter().collect();
    computed.push(Computed::floats("stages", &concatenate(&stages, 0)?)?);
    computed.push(Computed::floats("latents", &latents)?);
    Ok(computed)
}
