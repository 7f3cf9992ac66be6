//! FAR's dumps.

use smalti::Float;

use super::{RecordedNoise, sampled, weights};
use crate::Result;
use crate::conform::{Computed, Dump, Values};
use crate::decode::{Random, Sampler};
use crate::zoo::far::{Far, Level};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = Far::load(&weights(dump)?, dump.device)?;
    let labels = dump.counts("labels")?;
    let (places, buffer_size) = (model.backbone().places(), dump.count("buffer_size")?);
    let masked = match dump.checkpoint.shape("in.plain_mask") {
        Some(_) => dump.checkpoint.floats("in.plain_mask")?.iter().map(|masked| *masked != 0.0).collect(),
        None => vec![false; labels.len() * places],
    };
    let [encoder, decoder] = model.backbone().plain::<T>(&labels, &dump.tensor("plain_tokens")?, &masked)?;
    let times: Vec<_> = dump.counts("head_t")?.into_iter().map(f64::from).collect();
    let states = decoder.reshape(&[labels.len() * places, decoder.shape()[2]])?.narrow(0, 0, times.len())?;
    let condition = model.head().condition(&states.contiguous()?, &dump.checkpoint.floats("in.head_level")?)?;
    let mut computed = vec![
        Computed::floats("plain_encoder", &encoder.narrow(1, 0, encoder.shape()[1].min(buffer_size + 32))?)?,
        Computed::floats("plain_decoder", &decoder)?,
        Computed::floats("head", &model.head().run(&dump.tensor::<T>("head_x")?, &times, &condition)?)?,
    ];
    let sampling = sampled(dump)?;
    let levels = model.levels(sampling.cfg, sampling.temperature);
    let of_levels = |output: &str, value: fn(&Level) -> f64| Computed {
        output: output.to_owned(),
        shape: vec![levels.len()],
        values: Values::Floats(levels.iter().map(value).collect()),
    };
    computed.push(of_levels("levels", |level| level.index as f64));
    computed.push(of_levels("head_cfg", |level| level.scale));
    computed.push(of_levels("temperatures", |level| level.temperature));

    let orders = dump.counts("order").unwrap_or_default();
    let sampler = Sampler::new(sampling, Random::Recorded { uniforms: &[], orders: &orders }, places);
    let mut drawn = Vec::new();
    let latent = model.generate_levels::<T>(&labels, &sampler, &mut RecordedNoise::of(dump)?, |tokens| {
        drawn.push(tokens.clone());
        Ok(())
    })?;
    for (output, tokens) in ["sampled_first", "sampled_second"].into_iter().zip(&drawn) {
        computed.push(Computed::floats(output, tokens)?.shaped(dump));
    }
    computed.push(Computed::floats("latent", &latent)?);
    Ok(computed)
}
