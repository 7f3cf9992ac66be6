//! ARINAR's dumps.

use smalti::{Float, Tensor, copy};

use super::{sampled, weights};
use crate::conform::{Computed, Dump, Values};
use crate::decode::{Chance, Random, Sampler};
use crate::zoo::arinar::Arinar;
use crate::{Error, Result};

/// Draws as recorded, one tensor after the other.
struct Recorded<'a> {
    dump: &'a Dump<'a>,
    normals: usize,
    uniforms: usize,
}

impl Recorded<'_> {
    fn next(&self, name: &str, drawn: usize, length: usize) -> Result<Vec<f64>> {
        let name = format!("in.{name}.{drawn:04}");
        let values: Vec<_> = self.dump.checkpoint.floats(&name)?.into_iter().map(f64::from).collect();
        let wrong = || Error::Weights(format!("\"{name}\" has {} values, expected {length}", values.len()));
        if values.len() == length { Ok(values) } else { Err(wrong()) }
    }
}

impl Chance for Recorded<'_> {
    fn begin(&mut self, _: &[(usize, usize)]) {}

    /// Candidate by candidate in the dump, row by row here.
    fn normals(&mut self, rows: usize, count: usize) -> Result<Vec<f64>> {
        let recorded = self.next("noise", self.normals, rows * count)?;
        let candidates = match self.dump.shape(&format!("noise.{:04}", self.normals))? {
            [candidates, _, _, _, _] => *candidates,
            _ => 1,
        };
        self.normals += 1;
        let of_candidate = count / candidates.max(1);
        let mut values = Vec::with_capacity(recorded.len());
        for row in 0..rows {
            for candidate in recorded.chunks(rows * of_candidate) {
                values.extend_from_slice(&candidate[row * of_candidate..][..of_candidate]);
            }
        }
        Ok(values)
    }

    fn uniforms(&mut self, rows: usize, count: usize) -> Result<Vec<f64>> {
        self.uniforms += 1;
        self.next("uniform", self.uniforms - 1, rows * count)
    }
}

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = Arinar::<T>::load(&weights(dump)?, dump.device)?;
    let labels = dump.counts("labels")?;
    let masked: Vec<_> = dump.checkpoint.floats("in.plain_mask")?.iter().map(|masked| *masked != 0.0).collect();
    let tokens: Tensor<T> = dump.tensor("plain_tokens")?;
    let [_, decoder] = model.transformer().plain::<T>(&labels, &tokens, &masked)?;
    let (rows, width) = (decoder.shape()[0] * decoder.shape()[1], decoder.shape()[2]);
    let states = decoder.reshape(&[rows, width])?;
    let tokens = tokens.reshape(&[rows, tokens.shape()[2]])?;
    let inner = model.head().plain(&states, &tokens)?;
    let mut computed = vec![Computed::floats("plain_decoder", &decoder)?, Computed::floats("plain_inner", &inner)?];
    if dump.has("plain_flow_x") {
        let times: Vec<_> = dump.checkpoint.floats("in.plain_time")?.into_iter().map(f64::from).collect();
        let inner = inner.reshape(&[times.len(), inner.shape()[2]])?;
        let velocity = model.head().velocity(&dump.tensor("plain_flow_x")?, &times, &inner)?;
        computed.push(Computed::floats("plain_velocity", &velocity)?);
    } else {
        let parameters = model.head().parameters(&inner, &states)?;
        let mixtures = model.head().mixtures(&parameters)?;
        let mixed = parameters.elements() / parameters.shape()[2];
        let values = copy::convert(&tokens.reshape(&[mixed, 1, tokens.elements() / mixed])?)?;
        let densities = mixtures.log_density(&values)?;
        computed.push(Computed::floats("plain_head", &parameters)?);
        let densities = densities.reshape(&parameters.shape()[..2])?;
        computed.push(Computed::floats("plain_log_likelihood", &densities)?);
    }

    let orders = dump.counts("order")?;
    let random = Random::Recorded { uniforms: &[], orders: &orders };
    let sampler = Sampler::new(sampled(dump)?, random, model.transformer().places());
    let (mut counts, mut scales, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    let mut recorded = Recorded { dump, normals: 0, uniforms: 0 };
    let latents = model.generate(&labels, &sampler, &mut recorded, |step| {
        counts.push(step.states.shape()[0]);
        scales.push(step.scale);
        calls.push((step.states.clone(), step.tokens.clone()));
        Ok(())
    })?;
    computed.push(Computed::counts("counts", &counts));
    computed.push(Computed {
        output: "head_cfg".to_owned(),
        shape: vec![scales.len()],
        values: Values::Floats(scales),
    });
    for (name, call) in [("first", calls.first()), ("last", calls.last())] {
        let Some((states, tokens)) = call else { continue };
        computed.push(Computed::floats(&format!("{name}_z"), states)?);
        computed.push(Computed::floats(&format!("{name}_values"), tokens)?);
    }
    computed.push(Computed::floats("latents", &latents)?);
    Ok(computed)
}
