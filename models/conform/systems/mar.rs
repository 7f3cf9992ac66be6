//! MAR's dumps.

use smalti::{Float, Tensor};

use super::{needed, sampled, weights};
use crate::conform::{Computed, Dump};
use crate::decode::{Chance, Random, Sampler};
use crate::zoo::latents::{DrawsLatents, WantedLatents};
use crate::zoo::mar::Mar;
use crate::{Error, Result};

/// A tensor of normal numbers for each draw.
struct NoiseOfDraws<'a> {
    dump: &'a Dump<'a>,
    drawn: usize,
}

impl Chance for NoiseOfDraws<'_> {
    fn begin(&mut self, _: &[(usize, usize)]) {}

    fn normals(&mut self, rows: usize, count: usize) -> Result<Vec<f64>> {
        let values = self.dump.checkpoint.floats(&format!("in.noise.{:04}", self.drawn))?;
        self.drawn += 1;
        // Under guidance the official code draws for both halves; the second is never used.
        Ok(values.iter().take(rows * count).map(|value| f64::from(*value)).collect())
    }

    fn uniforms(&mut self, _: usize, _: usize) -> Result<Vec<f64>> {
        Err(Error::Weights("uniform numbers were asked of a dump that records normal ones".to_owned()))
    }
}

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
    let random = Random::Recorded { uniforms: &[], orders: &orders };
    let sampler = Sampler::new(sampled(dump)?, random, model.transformer().places());
    let mut noise = NoiseOfDraws { dump, drawn: 0 };
    let wanted = WantedLatents { labels: &labels, known: None, sampler: &sampler };
    let latents: Tensor<T> = model.draw_latents(wanted, &mut noise, &mut |_| Ok(()))?;
    Ok(vec![
        Computed::floats("plain_encoder", &encoder)?,
        Computed::floats("plain_decoder", &decoder)?,
        Computed::floats("head", &head)?,
        Computed::floats("latents", &latents)?,
        Computed::floats("image", &needed(dump, model.tokenizer())?.decode(&latents)?)?,
    ])
}
