//! VAR's dumps.

use smalti::{Float, Tensor, copy};

use super::{generated, greedy, mapped, weights};
use crate::Result;
use crate::conform::{Computed, Dump};
use crate::decode::{Random, Sampler};
use crate::zoo::var::Var;

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let checkpoint = weights(dump)?;
    let model = Var::<T>::load(&checkpoint, dump.device)?;
    let sampling = greedy(dump)?;
    let labels = dump.counts("labels")?;
    let tokenizer = model.tokenizer();
    let mut computed = Vec::new();

    let latents = tokenizer.latents(&dump.tensor::<T>("image")?)?;
    computed.push(Computed::floats("latent", &latents)?);
    let scales = tokenizer.quantiser().quantise(&latents)?;
    let batch = labels.len();
    let places = scales.iter().map(|tokens| tokens.shape()[1]).sum();
    let mut tokens = Tensor::<u32>::zeros(dump.device, &[batch, places])?;
    let mut settled = 0;
    for scale in &scales {
        copy::copy_into_slice(scale, &mut tokens, 1, settled)?;
        settled += scale.shape()[1];
    }
    computed.push(Computed::integers("tokens_of_image", &tokens)?);
    let pixels = tokenizer.decode::<T>(&tokenizer.quantiser().dequantise(&scales)?)?;
    computed.push(mapped("reconstruction", &pixels, |pixel| pixel.clamp(-1.0, 1.0))?);
    computed.push(Computed::floats("teacher_logits", &model.teacher(&labels, &dump.tensor("teacher_input")?)?)?);

    let sampler = Sampler::new(sampling, Random::Philox { first_picture: 0 }, model.places());
    let mut latents = None;
    let run = generated::<T>(|steps| {
        let (tokens, sum) = model.generate(&labels, &[], &sampler, steps)?;
        latents = Some(sum);
        Ok(tokens)
    })?;
    computed.push(run.logits.computed("greedy_guided_logits"));
    computed.push(Computed::integers("greedy_tokens", &run.tokens)?);
    let latents = latents.expect("a run that went well has set it");
    let pixels = tokenizer.decode(&latents)?;
    computed.push(mapped("greedy_image", &pixels, |pixel| (pixel.clamp(-1.0, 1.0) + 1.0) / 2.0)?);
    Ok(computed)
}
