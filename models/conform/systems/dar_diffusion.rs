//! D-AR's dumps.

use smalti::Float;

use super::{cos_sin, greedy, repeat, sampled, weights};
use crate::conform::{Computed, Dump, Values};
use crate::zoo::dar_diffusion::DarDiffusion;
use crate::{Error, Result};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    if dump.config.text("part") != Some("gpt") {
        return Err(Error::Request("dar_diffusion: only the generator is known here, not the tokenizer".to_owned()));
    }
    let model = DarDiffusion::load(&weights(dump)?, dump.device)?;
    let greedy = greedy(dump)?;
    let scales: Vec<_> = model.scales(greedy.cfg).into_iter().map(f64::from).collect();
    let teacher = model.teacher::<T>(&dump.counts("labels")?, &dump.indices("tokens")?)?;
    let mut computed = vec![
        cos_sin(model.table())?,
        Computed { output: "cfg_schedule".to_owned(), shape: vec![scales.len()], values: Values::Floats(scales) },
        Computed::floats("teacher_logits", &teacher)?,
    ];
    for (name, sampling) in [("greedy", greedy), ("sampled", sampled(dump)?)] {
        let run = repeat::<T>(dump, &model, sampling, "guided_logits")?;
        computed.push(run.logits.computed(&format!("{name}_guided_logits")));
        computed.push(Computed::integers(&format!("{name}_tokens"), &run.tokens)?);
    }
    Ok(computed)
}
