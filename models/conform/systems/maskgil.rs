//! MaskGIL's dumps.

use smalti::sample::Draws;
use smalti::{Float, Tensor};

use super::{cos_sin, weights};
use crate::Result;
use crate::conform::{Computed, Dump, Values};
use crate::zoo::codes::DrawsCodes as _;
use crate::zoo::maskgil::{MaskGil, Noise};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = MaskGil::load(&weights(dump)?, dump.device)?;
    let labels = dump.counts("labels")?;
    let dropped = dump.checkpoint.elements::<u8>("in.plain_dropped")?;
    let plain: Vec<_> = labels.iter().zip(dropped).map(|(label, dropped)| (dropped == 0).then_some(*label)).collect();
    let plain = model.logits::<T>(&dump.indices("plain_code")?, &plain)?;

    let shape = [labels.len(), model.codes().places()];
    let noise = |step: usize| {
        let input = |name: &str| dump.checkpoint.floats(&format!("in.{name}.{step:04}"));
        let choice = input("gumbel").or_else(|_| input("rand")).unwrap_or_default();
        let choice = choice.iter().map(|number| f64::from(*number)).collect();
        Ok(Noise { tokens: Draws::Uniform(input("uniform")?), choice })
    };
    let temperature = dump.number("sm_temp")?;
    let (mut logits, mut kept) = (Vec::new(), 0);
    let (mut candidates, mut confidence, mut open) = (Vec::new(), Vec::new(), Vec::new());
    let tokens = model.settle::<T>(&labels, &[], dump.number("w")?, 1.0 / temperature, noise, |step| {
        kept = step.logits.shape()[2];
        let scaled = step.logits.to_vec()?.into_iter().map(|logit| logit.to_f64() * f64::from(temperature));
        logits.extend(scaled);
        candidates.extend(step.candidates.iter().map(|token| i64::from(*token)));
        // The dump's word for a settled place.
        confidence.extend(step.confidence.iter().map(|confidence| confidence.max(-1e30)));
        open.extend(step.open.iter().map(|open| f64::from(u8::from(*open))));
        Ok(())
    })?;
    let steps = model.counts().len();
    let each_step = [steps, shape[0], shape[1]];
    let floats = |output: &str, shape: &[usize], values: Vec<f64>| Computed {
        output: output.to_owned(),
        shape: shape.to_vec(),
        values: Values::Floats(values),
    };
    Ok(vec![
        cos_sin(model.table())?,
        Computed::floats("plain_logits", &plain)?,
        Computed::counts("counts", model.counts()),
        floats("scaled_logits", &[&each_step[..], &[kept]].concat(), logits),
        Computed { output: "candidates".to_owned(), shape: each_step.to_vec(), values: Values::Integers(candidates) },
        floats("confidence", &each_step, confidence),
        floats("still_masked", &each_step, open),
        Computed::integers("tokens", &Tensor::from_vec(dump.device, &shape, tokens)?)?,
    ])
}
