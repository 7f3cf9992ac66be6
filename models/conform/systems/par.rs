//! PAR's dumps.

use smalti::Float;

use super::{cos_sin, greedy_and_sampled, weights};
use crate::Result;
use crate::conform::{Computed, Dump};
use crate::zoo::par::Par;

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = Par::load(&weights(dump)?, dump.device)?;
    let seq = model.table().positions();
    let mask: Vec<_> = (0..seq * seq).map(|at| usize::from(model.sees(at / seq, at % seq))).collect();
    let teacher = model.teacher::<T>(&dump.counts("labels")?, &dump.indices("tokens")?)?;
    let mut computed = vec![
        Computed::counts("cells", model.cells()),
        Computed::counts("mask", &mask).shaped(dump),
        cos_sin(model.table())?,
        Computed::floats("teacher_logits", &teacher)?,
    ];
    computed.extend(greedy_and_sampled::<T>(dump, &model, "guided_logits")?);
    Ok(computed)
}
