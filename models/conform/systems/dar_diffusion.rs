//! D-AR's dumps.

use smalti::Float;

use super::{cos_sin, greedy, repeat, sampled, weights};
use crate::Result;
use crate::conform::{Computed, Dump, Values};
use crate::tokenizer::flow::FlowTokenizer;
use crate::zoo::dar_diffusion::DarDiffusion;

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    if dump.config.text("part") == Some("tokenizer") {
        return tokenizer::<T>(dump);
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

fn tokenizer<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let tokenizer = weights(dump)?.build(dump.device, &[], |root, _| FlowTokenizer::load(root, &dump.config))?;
    let pixels = dump.tensor::<T>("image")?;
    let projected = tokenizer.projected(&pixels)?;
    let tokens = tokenizer.tokens(&projected)?;
    let quantised = tokenizer.quantised::<T>(&tokens)?;
    let condition = tokenizer.condition(&quantised)?;
    let patch = dump.count("encoder_patch_size")?;
    let grid = [pixels.shape()[2] / patch, pixels.shape()[3] / patch];
    let times: Vec<_> = dump.checkpoint.floats("in.plain_time")?.into_iter().map(f64::from).collect();
    let plain = tokenizer.velocity(&dump.tensor("plain_x")?, &times, &tokenizer.group(&condition, 0)?)?;

    let mut velocities = Vec::new();
    let image = tokenizer.decode(&condition, &dump.tensor("noise")?, None, |velocity| {
        velocities.extend(velocity.to_vec()?.into_iter().map(T::to_f64));
        Ok(())
    })?;
    let velocities =
        Computed { output: "velocities".to_owned(), shape: vec![velocities.len()], values: Values::Floats(velocities) };
    let clip = Some(dump.count("clip_steps")?);
    let preview = tokenizer.decode(&condition, &dump.tensor("noise_preview")?, clip, |_| Ok(()))?;
    Ok(vec![
        cos_sin(&tokenizer.table(dump.device, grid, 0)?)?,
        Computed::floats("query_output", &projected)?,
        Computed::integers("tokens_of_image", &tokens)?,
        Computed::floats("quantised", &quantised)?,
        Computed::floats("cond", &condition)?,
        Computed::floats("plain_velocity", &plain)?,
        velocities.shaped(dump),
        Computed::floats("image", &image)?,
        Computed::floats("preview", &preview)?,
    ])
}
