//! MAR's dumps.

use smalti::Float;

use super::{needed, sampled, weights};
use crate::Result;
use crate::conform::{Computed, Dump};
use crate::zoo::mar::Mar;

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = Mar::load(&weights(dump)?, dump.device)?;
    let labels = dump.counts("labels")?;
    let masked: Vec<_> = dump.checkpoint.floats("in.plain_mask")?.iter().map(|masked| *masked != 0.0).collect();
    let [encoder, decoder] = model.transformer().plain::<T>(&labels, &dump.tensor("plain_tokens")?, &masked)?;
    let times: Vec<_> = dump.counts("head_t")?.into_iter().map(f64::from).collect();
    let states = decoder.reshape(&[times.len(), decoder.shape()[2]])?;
    let condition = model.head().condition(&states, &[])?;
    let head = model.head().run(&dump.tensor::<T>("head_x")?, &times, &condition)?;

    let orders = dump.counts("order")?;
    let orders: Vec<Vec<_>> = orders
        .chunks(orders.len() / labels.len().max(1))
        .map(|order| order.iter().map(|cell| *cell as usize).collect())
        .collect();
    let mut drawn = 0;
    let normals = |cells: &[(usize, usize)], channels: usize| {
        let values = dump.checkpoint.floats(&format!("in.noise.{drawn:04}"))?;
        drawn += 1;
        // Under guidance the official code draws for both halves; the second is never used.
        Ok(values.iter().take(cells.len() * channels).map(|value| f64::from(*value)).collect())
    };
    let latents = model.generate::<T>(&labels, &orders, &sampled(dump)?, normals, |_| Ok(()))?;
    Ok(vec![
        Computed::floats("plain_encoder", &encoder)?,
        Computed::floats("plain_decoder", &decoder)?,
        Computed::floats("head", &head)?,
        Computed::floats("latents", &latents)?,
        Computed::floats("image", &needed(dump, model.tokenizer())?.decode(&latents)?)?,
    ])
}
