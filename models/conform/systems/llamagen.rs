//! LlamaGen's dumps.

use smalti::Float;

use super::{cos_sin, generated, greedy, weights};
use crate::Result;
use crate::conform::{Computed, Dump};
use crate::decode::{Random, Sampler};
use crate::zoo::codes::DrawsCodes;
use crate::zoo::llamagen::{Condition, LlamaGen};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let checkpoint = weights(dump)?;
    let model = LlamaGen::load(&checkpoint, dump.device)?;
    let random = Random::Philox { first_picture: 0 };
    let sampler = Sampler::new(greedy(dump)?, random, model.codes().places());
    let mut computed = Vec::new();
    if dump.has("caption") {
        let features = dump.tensor::<T>("caption")?;
        let visible = Some(dump.checkpoint.floats("in.caption_mask")?);
        let masked = Condition::Captions { features: features.clone(), visible };
        let run = generated::<T>(|steps| model.generate(&masked, &sampler, steps))?;
        computed.push(run.logits.computed("greedy_guided_logits"));
        computed.push(Computed::integers("greedy_tokens", &run.tokens)?);
        let plain = Condition::Captions { features, visible: None };
        let tokens = generated::<T>(|steps| model.generate(&plain, &sampler, steps))?.tokens;
        computed.push(Computed::integers("greedy_tokens_without_mask", &tokens)?);
        return Ok(computed);
    }
    computed.push(cos_sin(model.table())?);
    if let Some(tokenizer) = model.codes().vq() {
        let latents = tokenizer.latents(&dump.tensor::<T>("image")?)?;
        computed.push(Computed::floats("latent", &latents)?);
        let tokens = tokenizer.tokens(&latents)?;
        computed.push(Computed::integers("tokens_of_image", &tokens)?);
        let side = [latents.shape()[2], latents.shape()[3]];
        computed.push(Computed::floats("reconstruction", &tokenizer.decode::<T>(&tokens, side)?)?);
        let labels = dump.counts("labels")?;
        let condition = Condition::Classes(&labels);
        computed.push(Computed::floats("teacher_logits", &model.teacher::<T>(&condition, &tokens)?)?);
        let run = generated::<T>(|steps| model.generate(&condition, &sampler, steps))?;
        computed.push(run.logits.computed("greedy_guided_logits"));
        computed.push(Computed::integers("greedy_tokens", &run.tokens)?);
        computed.push(Computed::floats("greedy_image", &model.codes().decode::<T>(&run.tokens, &sampler)?)?);
    }
    Ok(computed)
}
