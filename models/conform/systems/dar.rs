//! DAR's dumps.

use smalti::Float;

use super::{cos_sin, greedy_and_sampled, weights};
use crate::Result;
use crate::conform::{Computed, Dump};
use crate::zoo::dar::Dar;

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = Dar::load(&weights(dump)?, dump.device)?;
    let teacher = model.teacher::<T>(&dump.counts("labels")?, &dump.indices("tokens")?)?;
    let mut computed = vec![
        Computed::counts("cells", model.cells()),
        cos_sin(model.table())?,
        Computed::floats("teacher_logits", &teacher)?,
    ];
    computed.extend(greedy_and_sampled::<T>(dump, &model, "guided_logits")?);
    Ok(computed)
}
