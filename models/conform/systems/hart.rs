//! HART's dumps.

use smalti::Float;

use super::{generated, sampled, weights};
use crate::conform::{Computed, Dump};
use crate::decode::{Random, Sampler};
use crate::zoo::hart::{Hart, Text};
use crate::{Error, Result, Sampling};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = Hart::<T>::load(&weights(dump)?, dump.device)?;
    let (tokens, rest) = model.hybrid_tokens(&dump.tensor("feature")?)?;
    let features = dump.tensor::<T>("text")?;
    let positions = dump.checkpoint.elements::<i32>("in.text_position")?;
    let rotary = model.rotary(&positions, features.shape()[1])?;
    let text = Text { features, positions };
    let mut first_block = None;
    let teacher = model.teacher(&text, &dump.tensor("teacher_input")?, |block, x| {
        if block == 0 {
            first_block = Some(x.clone());
        }
    })?;
    let missing = || Error::Weights(format!("{}: the model has no blocks", dump.checkpoint.name()));
    let times: Vec<_> = dump.counts("head_t")?.into_iter().map(f64::from).collect();
    let condition = model.rest_head().condition(&dump.tensor("head_z")?, &[])?;
    let head = model.rest_head().run(&dump.tensor::<T>("head_x")?, &times, &condition)?;
    let mut computed = vec![
        Computed::integers("tokens_of_feature", &tokens)?,
        Computed::floats("continuous", &rest)?,
        Computed::floats("rope_cos", &rotary.cos)?,
        Computed::floats("rope_sin", &rotary.sin)?,
        Computed::floats("teacher_block0", &first_block.ok_or_else(missing)?)?,
        Computed::floats("teacher_logits", &teacher)?,
        Computed::floats("head", &head)?,
    ];

    let uniforms = dump.checkpoint.floats("in.sampled_uniforms")?;
    let sampled = sampled(dump)?;
    let smooth = dump.config.flag("more_smooth").unwrap_or(false);
    // Draws under numbered names; those beyond what is asked for belong to rows that are thrown away.
    let draws = |name: String| {
        let mut number = 0;
        move |rows: usize, channels: usize| -> Result<Vec<f64>> {
            let values = dump.checkpoint.floats(&format!("in.{name}.{number:04}"))?;
            number += 1;
            Ok(values.iter().take(rows * channels).map(|value| f64::from(*value)).collect())
        }
    };
    for (name, sampling) in [("greedy", Sampling { temperature: 0.0, ..sampled }), ("sampled", sampled)] {
        let random = Random::Recorded { uniforms: &uniforms, orders: &[] };
        let sampler = Sampler::new(sampling, random, model.places());
        let (mut normals, mut exponentials) = (draws(format!("{name}_noise")), draws(format!("{name}_exponential")));
        let mut hybrid = None;
        let run = generated::<T>(|steps| {
            let soft = smooth && name == "sampled";
            let exponentials: Option<&mut crate::decode::Normals<'_>> =
                if soft { Some(&mut exponentials) } else { None };
            let drawn = model.generate(&text, &sampler, &mut normals, exponentials, steps)?;
            let tokens = drawn.tokens.clone();
            hybrid = Some(drawn);
            Ok(tokens)
        })?;
        let hybrid = hybrid.expect("a run that went well has set it");
        computed.push(run.logits.computed(&format!("{name}_guided_logits")));
        computed.push(Computed::integers(&format!("{name}_tokens"), &run.tokens)?);
        computed.push(Computed::floats(&format!("{name}_next_maps"), &hybrid.inputs)?);
        computed.push(Computed::floats(&format!("{name}_head_condition"), &hybrid.condition)?);
        computed.push(Computed::floats(&format!("{name}_residual"), &hybrid.rest)?);
        computed.push(Computed::floats(&format!("{name}_f_hat"), &hybrid.latents)?);
    }
    Ok(computed)
}
