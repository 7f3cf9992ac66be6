//! M-VAR's dumps.

use smalti::Float;

use super::{generated, mixer, sampled, weights};
use crate::conform::{Computed, Dump};
use crate::decode::{Random, Sampler, concatenate};
use crate::zoo::mvar::MVar;
use crate::{Result, Sampling};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = MVar::<T>::load(&weights(dump)?, dump.device)?;
    let labels = dump.counts("labels")?;
    let scales = model.tokenizer().quantiser().quantise(&dump.tensor::<T>("feature")?)?;
    let tokens = concatenate(&scales.iter().collect::<Vec<_>>(), 1)?;
    let mut computed = vec![
        Computed::integers("tokens_of_feature", &tokens)?,
        Computed::floats("teacher_logits", &model.teacher(&labels, &dump.tensor("teacher_input")?)?)?,
    ];
    computed.extend(mixer::<T>(dump, "mamba", model.backbone().mixer(0))?);
    let uniforms = dump.checkpoint.floats("in.uniforms")?;
    let sampled = sampled(dump)?;
    for (name, sampling) in [("greedy", Sampling { temperature: 0.0, ..sampled }), ("sampled", sampled)] {
        let random = Random::Recorded { uniforms: &uniforms, orders: &[] };
        let sampler = Sampler::new(sampling, random, model.places());
        let mut latents = None;
        let run = generated::<T>(|steps| {
            let (tokens, sum) = model.generate(&labels, &[], &sampler, steps)?;
            latents = Some(sum);
            Ok(tokens)
        })?;
        computed.push(run.logits.computed(&format!("{name}_guided_logits")));
        computed.push(Computed::integers(&format!("{name}_tokens"), &run.tokens)?);
        let latents = latents.expect("a run that went well has set it");
        computed.push(Computed::floats(&format!("{name}_f_hat"), &latents)?);
    }
    Ok(computed)
}
