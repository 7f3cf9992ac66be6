//! LlamaGen's dumps.

use smalti::Float;

use super::{cos_sin, generated, greedy, weights};
use crate::Result;
use crate::conform::{Computed, Dump};
use crate::zoo::llamagen::LlamaGen;

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let checkpoint = weights(dump)?;
    let model = LlamaGen::<T>::load(&checkpoint, dump.device)?;
    let sampling = greedy(dump)?;
    let mut computed = Vec::new();
    if dump.has("caption") {
        let caption = dump.tensor::<T>("caption")?;
        let visible = dump.checkpoint.floats("in.caption_mask")?;
        let run = generated::<T>(|steps| model.generate_captions(&caption, Some(&visible), 0, &sampling, steps))?;
        computed.push(run.logits.computed("greedy_guided_logits"));
        computed.push(Computed::integers("greedy_tokens", &run.tokens)?);
        let tokens =
            model.generate_captions(&caption, None, 0, &sampling, &mut |_| std::ops::ControlFlow::Continue(()))?;
        computed.push(Computed::integers("greedy_tokens_without_mask", &tokens)?);
        return Ok(computed);
    }
    computed.push(cos_sin(model.table())?);
    if let Some(tokenizer) = model.tokenizer() {
        let latents = tokenizer.latents(&dump.tensor::<T>("image")?)?;
        computed.push(Computed::floats("latent", &latents)?);
        let tokens = tokenizer.tokens(&latents)?;
        computed.push(Computed::integers("tokens_of_image", &tokens)?);
        let side = [latents.shape()[2], latents.shape()[3]];
        computed.push(Computed::floats("reconstruction", &tokenizer.decode::<T>(&tokens, side)?)?);
        let labels = dump.counts("labels")?;
        computed.push(Computed::floats("teacher_logits", &model.teacher(&labels, &tokens)?)?);
        let run = generated::<T>(|steps| model.generate(&labels, 0, &sampling, steps))?;
        computed.push(run.logits.computed("greedy_guided_logits"));
        computed.push(Computed::integers("greedy_tokens", &run.tokens)?);
        computed.push(Computed::floats("greedy_image", &model.decode(&run.tokens)?)?);
    }
    Ok(computed)
}
