//! Whole models: each system's inputs, run as its dump was.

use std::ops::ControlFlow;

use smalti::{Float, Tensor, copy};

use super::{Computed, Dump, Values};
use crate::weights::Checkpoint;
use crate::zoo::{llamagen::LlamaGen, var::Var};
use crate::{Error, Result, Sampling};

/// Repeats a model dump.
pub(super) fn run<T: Float>(system: &str, dump: &Dump<'_>) -> Result<Vec<Computed>> {
    match system {
        "llamagen" => llamagen::<T>(dump),
        "var" => var::<T>(dump),
        other => Err(Error::Request(format!("{}: system \"{other}\" is not known here", dump.checkpoint.name()))),
    }
}

/// The dump's weights without their `w.`.
fn weights(dump: &Dump<'_>) -> Result<Checkpoint> {
    dump.checkpoint.under("w.")
}

fn greedy(dump: &Dump<'_>) -> Result<Sampling> {
    Ok(Sampling { cfg: dump.number("cfg")?, temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 })
}

/// Collects `[batch, vocabulary]` or `[batch, places, vocabulary]` of each step into `[batch, all places, vocabulary]`.
#[derive(Default)]
struct Logits(Vec<(Vec<usize>, Vec<f64>)>);

impl Logits {
    fn push<T: Float>(&mut self, logits: &Tensor<T>) -> smalti::Result<()> {
        let values = logits.to_vec()?.iter().map(|value| value.to_f64()).collect();
        self.0.push((logits.shape().to_vec(), values));
        Ok(())
    }

    fn computed(self, output: &str) -> Computed {
        let batch = self.0.first().map_or(0, |(shape, _)| shape[0]);
        let vocabulary = self.0.first().and_then(|(shape, _)| shape.last().copied()).unwrap_or(0);
        let mut values = Vec::new();
        for picture in 0..batch {
            for (_, step) in &self.0 {
                let each = step.len() / batch;
                values.extend_from_slice(&step[picture * each..][..each]);
            }
        }
        let shape = vec![batch, values.len() / (batch * vocabulary).max(1), vocabulary];
        Computed { output: output.to_owned(), shape, values: Values::Floats(values) }
    }
}

fn llamagen<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let checkpoint = weights(dump)?;
    let model = LlamaGen::<T>::load(&checkpoint, dump.device)?;
    let sampling = greedy(dump)?;
    let mut computed = Vec::new();
    let mut logits = Logits::default();
    let mut failed = None;
    let mut keep = |logits: &mut Logits, step: &Tensor<T>| match logits.push(step) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    };
    if dump.has("caption") {
        let caption = dump.tensor::<T>("caption")?;
        let visible = dump.checkpoint.floats("in.caption_mask")?;
        let tokens =
            model.generate_captions(&caption, Some(&visible), &sampling, &mut |_, step| keep(&mut logits, step));
        let tokens = tokens.map_err(|error| failed.map_or(error, Error::Op))?;
        computed.push(logits.computed("greedy_guided_logits"));
        computed.push(Computed::integers("greedy_tokens", &tokens)?);
        let tokens = model.generate_captions(&caption, None, &sampling, &mut |_, _| ControlFlow::Continue(()))?;
        computed.push(Computed::integers("greedy_tokens_without_mask", &tokens)?);
        return Ok(computed);
    }
    let table = model.table();
    let (cos, sin) = (table.cos.to_vec()?, table.sin.to_vec()?);
    let pairs = cos.iter().zip(&sin).flat_map(|(cos, sin)| [f64::from(*cos), f64::from(*sin)]).collect();
    let shape = [table.cos.shape(), &[2]].concat();
    computed.push(Computed { output: "rope_cos_sin".to_owned(), shape, values: Values::Floats(pairs) });
    if let Some(tokenizer) = model.tokenizer() {
        let latents = tokenizer.latents(&dump.tensor::<T>("image")?)?;
        computed.push(Computed::floats("latent", &latents)?);
        let tokens = tokenizer.tokens(&latents)?;
        computed.push(Computed::integers("tokens_of_image", &tokens)?);
        let side = [latents.shape()[2], latents.shape()[3]];
        computed.push(Computed::floats("reconstruction", &tokenizer.decode::<T>(&tokens, side)?)?);
        let labels = dump.counts("labels")?;
        computed.push(Computed::floats("teacher_logits", &model.teacher(&labels, &tokens)?)?);
        let tokens = model.generate(&labels, 0, &sampling, &mut |_, step| keep(&mut logits, step));
        let tokens = tokens.map_err(|error| failed.map_or(error, Error::Op))?;
        computed.push(logits.computed("greedy_guided_logits"));
        computed.push(Computed::integers("greedy_tokens", &tokens)?);
        computed.push(Computed::floats("greedy_image", &model.decode(&tokens)?)?);
    }
    Ok(computed)
}

fn var<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let checkpoint = weights(dump)?;
    let model = Var::<T>::load(&checkpoint, dump.device)?;
    let sampling = greedy(dump)?;
    let labels = dump.counts("labels")?;
    let tokenizer = model.tokenizer();
    let mut computed = Vec::new();

    let latents = tokenizer.latents(&dump.tensor::<T>("image")?)?;
    computed.push(Computed::floats("latent", &latents)?);
    let scales = tokenizer.quantiser().tokens(&latents)?;
    let batch = labels.len();
    let places = scales.iter().map(|tokens| tokens.shape()[1]).sum();
    let mut tokens = Tensor::<u32>::zeros(dump.device, &[batch, places])?;
    let mut settled = 0;
    for scale in &scales {
        copy::copy_into_slice(scale, &mut tokens, 1, settled)?;
        settled += scale.shape()[1];
    }
    computed.push(Computed::integers("tokens_of_image", &tokens)?);
    let pixels = tokenizer.decode::<T>(&tokenizer.quantiser().latents_of(&scales)?)?;
    computed.push(mapped("reconstruction", &pixels, |pixel| pixel.clamp(-1.0, 1.0))?);
    computed.push(Computed::floats("teacher_logits", &model.teacher(&labels, &dump.tensor("teacher_input")?)?)?);

    let mut logits = Logits::default();
    let mut failed = None;
    let drawn = model.generate(&labels, 0, &sampling, &mut |_, step| match logits.push(step) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    });
    let (tokens, latents) = drawn.map_err(|error| failed.map_or(error, Error::Op))?;
    computed.push(logits.computed("greedy_guided_logits"));
    computed.push(Computed::integers("greedy_tokens", &tokens)?);
    let pixels = tokenizer.decode(&latents)?;
    computed.push(mapped("greedy_image", &pixels, |pixel| (pixel.clamp(-1.0, 1.0) + 1.0) / 2.0)?);
    Ok(computed)
}

fn mapped<T: Float>(output: &str, tensor: &Tensor<T>, map: impl Fn(f64) -> f64) -> Result<Computed> {
    let mut computed = Computed::floats(output, tensor)?;
    if let Values::Floats(values) = &mut computed.values {
        values.iter_mut().for_each(|value| *value = map(*value));
    }
    Ok(computed)
}
