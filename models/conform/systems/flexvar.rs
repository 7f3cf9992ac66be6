//! FlexVAR's dumps.

use smalti::Float;

use super::{generated, sampled, weights};
use crate::conform::{Computed, Dump};
use crate::decode::{Random, Sampler};
use crate::zoo::flexvar::FlexVar;
use crate::{Result, Sampling};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = FlexVar::<T>::load(&weights(dump)?, dump.device)?;
    let labels = dump.counts("labels")?;
    let mut computed = vec![
        Computed::integers("tokens_of_feature", &model.tokens(&dump.tensor("feature")?)?)?,
        Computed::floats("positions", &model.positions()?)?,
        Computed::floats("teacher_logits", &model.teacher(&labels, &dump.tensor("teacher_input")?)?)?,
    ];
    let uniforms = dump.checkpoint.floats("in.uniforms")?;
    let sampled = sampled(dump)?;
    for (name, sampling) in [("greedy", Sampling { temperature: 0.0, ..sampled }), ("sampled", sampled)] {
        let random = Random::Recorded { uniforms: &uniforms, orders: &[] };
        let sampler = Sampler::new(sampling, random, model.places());
        let run = generated::<T>(|steps| model.generate(&labels, &[], &sampler, steps))?;
        computed.push(run.logits.computed(&format!("{name}_guided_logits")));
        computed.push(Computed::integers(&format!("{name}_tokens"), &run.tokens)?);
        computed.push(Computed::floats(&format!("{name}_latent"), &model.latents(&run.tokens)?)?);
    }
    Ok(computed)
}
