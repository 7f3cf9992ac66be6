//! ARPG's dumps.

use smalti::Float;

use super::{cos_sin, greedy_and_sampled, weights};
use crate::Result;
use crate::conform::{Computed, Dump};
use crate::zoo::arpg::Arpg;

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = Arpg::load(&weights(dump)?, dump.device)?;
    let orders = dump.counts("teacher_order")?;
    let teacher = model.teacher::<T>(&dump.counts("labels")?, &dump.indices("tokens")?, &orders)?;
    let mut computed = vec![cos_sin(model.table())?, Computed::floats("teacher_logits", &teacher)?];
    computed.extend(greedy_and_sampled::<T>(dump, &model, "scaled_logits")?);
    Ok(computed)
}
