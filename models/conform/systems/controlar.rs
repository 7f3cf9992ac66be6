//! ControlAR's dumps.

use smalti::{Float, Tensor};

use super::{cos_sin, generated, greedy, sampled, weights};
use crate::conform::{Computed, Dump, Values};
use crate::decode::{Random, Sampler};
use crate::zoo::codes::DrawsCodes;
use crate::zoo::controlar::ControlAr;
use crate::zoo::llamagen::Condition;
use crate::{Error, Result};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = ControlAr::load(&weights(dump)?, dump.device)?;
    let pixels = dump.tensor::<T>("control_image")?;
    let mut computed = Vec::new();
    if let Some(resized) = model.resized(&pixels)? {
        computed.push(Computed::floats("resized_image", &resized)?);
    }
    let control = model.control(&pixels)?;
    computed.push(Computed::floats("encoder", &control.encoded)?);
    computed.push(Computed::floats("adapter", &control.adapted)?);
    let each = control.tokens.iter().map(Tensor::to_vec).collect::<smalti::Result<Vec<_>>>()?;
    let values = each.concat().iter().map(|value| value.to_f64()).collect();
    let shape = [&[control.tokens.len()], control.adapted.shape()].concat();
    computed.push(Computed { output: "control_tokens".to_owned(), shape, values: Values::Floats(values) });
    computed.push(cos_sin(model.table())?);

    let labels = dump.counts("labels").unwrap_or_default();
    let condition = |visible: Option<Vec<f32>>| match dump.has("caption") {
        true => Ok::<_, Error>(Condition::Captions { features: dump.tensor::<T>("caption")?, visible }),
        false => Ok(Condition::Classes(&labels)),
    };
    let dropped = dump.checkpoint.elements::<u8>("in.teacher_dropped")?;
    let dropped: Vec<_> = dropped.iter().map(|dropped| *dropped != 0).collect();
    let tokens = dump.indices("tokens")?;
    let tokens = tokens.narrow(1, 0, tokens.shape()[1] - 1)?.contiguous()?;
    let teacher = model.teacher(&condition(None)?, &control, &dropped, &tokens)?;
    computed.push(Computed::floats("teacher_logits", &teacher)?);

    let uniforms = dump.checkpoint.floats("in.uniforms")?;
    let visible = if dump.has("caption") { Some(dump.checkpoint.floats("in.caption_mask")?) } else { None };
    let condition = condition(visible)?;
    let strength = dump.number("control_strength")?;
    let runs =
        [(greedy(dump)?, "greedy_guided_logits", "greedy_tokens"), (sampled(dump)?, "guided_logits", "sampled_tokens")];
    for (sampling, logits, tokens) in runs {
        let random = Random::Recorded { uniforms: &uniforms, orders: &[] };
        let sampler = Sampler::new(sampling, random, model.codes().places());
        let run = generated::<T>(|steps| model.generate(&condition, &control, strength, &sampler, None, steps))?;
        computed.push(run.logits.computed(logits));
        computed.push(Computed::integers(tokens, &run.tokens)?);
    }
    Ok(computed)
}
