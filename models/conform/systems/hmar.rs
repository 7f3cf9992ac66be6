//! HMAR's dumps.

use smalti::Float;

use super::{Logits, mapped, sampled, weights};
use crate::conform::{Computed, Dump, Values};
use crate::decode::{Random, Sampler};
use crate::zoo::hmar::Hmar;
use crate::{Result, Sampling};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = Hmar::<T>::load(&weights(dump)?, dump.device)?;
    let labels = dump.counts("labels")?;
    let inputs = model.teacher_inputs(&dump.indices("tokens")?)?;
    let mut masked = vec![false; inputs[0].shape()[1]];
    dump.counts("mask_cells")?.iter().for_each(|cell| masked[*cell as usize] = true);
    let mut computed = vec![
        Computed::floats("ns_input", &inputs[0])?,
        Computed::floats("ns_teacher_logits", &model.teacher(&labels, &inputs, None)?)?,
        Computed::floats("mask_input", &inputs[1])?,
        Computed::floats("mask_teacher_logits", &model.teacher(&labels, &inputs, Some(&masked))?)?,
    ];
    let uniforms = dump.checkpoint.floats("in.uniforms")?;
    let batch = labels.len();
    let sampled = sampled(dump)?;
    for (name, sampling) in [("greedy", Sampling { temperature: 0.0, ..sampled }), ("sampled", sampled)] {
        let random = Random::Recorded { uniforms: &uniforms, orders: &[] };
        let sampler = Sampler::new(sampling, random, model.asked());
        let mut calls = Vec::new();
        let mut logits = Logits::default();
        // Per call, then per picture.
        let (mut drawn, mut maps, mut masked) = (Vec::new(), Vec::new(), Vec::new());
        let latents = model.generate(&labels, &[], &sampler, |call| {
            calls.extend([call.scale, call.step]);
            logits.push(call.logits)?;
            drawn.push(call.drawn.iter().map(|token| i64::from(*token)).collect::<Vec<_>>());
            maps.push(call.tokens.iter().map(|token| i64::from(*token)).collect::<Vec<_>>());
            masked.push(call.masked.iter().map(|masked| i64::from(*masked)).collect::<Vec<_>>());
            Ok(())
        })?;
        if name == "greedy" {
            computed.push(Computed::counts("calls", &calls).shaped(dump));
        }
        computed.push(logits.computed(&format!("{name}_guided_logits")));
        for (output, calls) in [("drawn_tokens", drawn), ("token_maps", maps), ("masked", masked)] {
            let of_picture = |picture: usize| {
                calls.iter().flat_map(move |call| call.chunks(call.len() / batch).nth(picture)).flatten().copied()
            };
            let values: Vec<_> = (0..batch).flat_map(of_picture).collect();
            let shape = vec![batch, values.len() / batch];
            computed.push(Computed { output: format!("{name}_{output}"), shape, values: Values::Integers(values) });
        }
        computed.push(Computed::floats(&format!("{name}_features"), &latents)?);
        let pixels = model.tokenizer().decode(&latents)?;
        let shown = |pixel: f64| (pixel.clamp(-1.0, 1.0) + 1.0) / 2.0;
        computed.push(mapped(&format!("{name}_image"), &pixels, shown)?);
    }
    Ok(computed)
}
