//! LARP's dumps.

use smalti::Float;

use super::{generated, greedy, sampled, weights};
use crate::conform::{Computed, Dump};
use crate::decode::{Random, Sampler};
use crate::zoo::codes::DrawsCodes as _;
use crate::zoo::larp::{Condition, Larp};
use crate::{Error, Result};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    if dump.config.text("part") != Some("ar") {
        return Err(Error::Request("larp: only the generator is known here, not the tokenizer".to_owned()));
    }
    let model = Larp::load(&weights(dump)?, dump.device)?;
    let (labels, frames) = (dump.counts("cond")?, dump.indices("cond")?);
    let condition = if frames.shape().len() == 1 { Condition::Classes(&labels) } else { Condition::Frames(&frames) };
    let teacher = model.teacher::<T>(&condition, &dump.indices("tokens")?)?;
    let mut computed = vec![Computed::floats("teacher_logits", &teacher)?];
    let uniforms = dump.checkpoint.floats("in.uniforms")?;
    for (name, sampling) in [("greedy", greedy(dump)?), ("sampled", sampled(dump)?)] {
        let random = Random::Recorded { uniforms: &uniforms, orders: &[] };
        let sampler = Sampler { sampling, random, places: model.codes().places() };
        let run = generated::<T>(|steps| model.continued(&condition, &sampler, steps))?;
        computed.push(run.logits.computed(&format!("{name}_guided_logits")));
        computed.push(Computed::integers(&format!("{name}_tokens"), &run.tokens)?);
    }
    Ok(computed)
}
