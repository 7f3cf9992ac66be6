//! xAR's dumps.

use smalti::{Float, Tensor};

use super::{RecordedNoise, sampled, weights};
use crate::Result;
use crate::conform::{Computed, Dump, Values};
use crate::decode::{Random, Sampler};
use crate::zoo::xar::{Xar, time_index};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = Xar::load(&weights(dump)?, dump.device)?;
    let labels = dump.counts("labels")?;
    let [encoder, velocity] = model.plain::<T>(&labels, &dump.tensor("plain_x")?, &dump.counts("plain_times")?)?;
    let indices: Vec<_> = model.times().into_iter().map(|time| i64::from(time_index(time))).collect();
    let mut computed = vec![
        doubled("rope_cos", &model.table().cos)?,
        doubled("rope_sin", &model.table().sin)?,
        Computed::floats("plain_encoder", &encoder)?,
        Computed::floats("plain_velocity", &velocity)?,
        Computed {
            output: "time_index".to_owned(),
            shape: vec![model.cells(), indices.len()],
            values: Values::Integers(indices.repeat(model.cells())),
        },
    ];

    let sampler =
        Sampler::new(sampled(dump)?, Random::Recorded { uniforms: &[], orders: &[] }, model.table().positions());
    let shown = [0, 1, indices.len() - 1];
    let mut velocities = Vec::new();
    let latent = model.generate_cells::<T>(&labels, &sampler, &mut RecordedNoise::of(dump)?, |_, step, velocity| {
        if shown.contains(&step) {
            velocities.extend(velocity.to_vec()?.into_iter().map(T::to_f64));
        }
        Ok(())
    })?;
    let velocities =
        Computed { output: "velocities".to_owned(), shape: vec![velocities.len()], values: Values::Floats(velocities) };
    computed.push(velocities.shaped(dump));
    computed.push(Computed::floats("latent", &latent)?);
    Ok(computed)
}

/// A value per pair of channels, seen as one per channel.
fn doubled(output: &str, pairs: &Tensor<f32>) -> Result<Computed> {
    let values: Vec<_> = pairs.to_vec()?.into_iter().flat_map(|value| [f64::from(value); 2]).collect();
    let shape = vec![pairs.shape()[0], 2 * pairs.shape()[1]];
    Ok(Computed { output: output.to_owned(), shape, values: Values::Floats(values) })
}
