//! AiM's dumps.

use smalti::Float;

use super::{greedy_and_sampled, mixer, weights};
use crate::Result;
use crate::conform::{Computed, Dump};
use crate::zoo::aim::Aim;

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = Aim::load(&weights(dump)?, dump.device)?;
    let mut computed = mixer::<T>(dump, "mixer", model.mixer(0))?;
    let tokens = dump.indices("tokens")?;
    let tokens = tokens.narrow(1, 0, tokens.shape()[1] - 1)?.contiguous()?;
    computed.push(Computed::floats("teacher_logits", &model.teacher::<T>(&dump.counts("labels")?, &tokens)?)?);
    computed.extend(greedy_and_sampled::<T>(dump, &model, "guided_logits")?);
    Ok(computed)
}
