//! LARP's dumps.

use smalti::{Float, Tensor, elementwise};

use super::{generated, greedy, sampled, weights};
use crate::Result;
use crate::conform::{Computed, Dump};
use crate::decode::{Random, Sampler};
use crate::tokenizer::video::VideoTokenizer;
use crate::zoo::codes::DrawsCodes as _;
use crate::zoo::larp::{Condition, Larp};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    if dump.config.text("part") == Some("tokenizer") {
        return tokenizer::<T>(dump);
    }
    let model = Larp::load(&weights(dump)?, dump.device)?;
    let (labels, frames) = (dump.counts("cond")?, dump.indices("cond")?);
    let condition = if frames.shape().len() == 1 { Condition::Classes(&labels) } else { Condition::Frames(&frames) };
    let teacher = model.teacher::<T>(&condition, &dump.indices("tokens")?)?;
    let mut computed = vec![Computed::floats("teacher_logits", &teacher)?];
    let uniforms = dump.checkpoint.floats("in.uniforms")?;
    for (name, sampling) in [("greedy", greedy(dump)?), ("sampled", sampled(dump)?)] {
        let random = Random::Recorded { uniforms: &uniforms, orders: &[] };
        let sampler = Sampler::new(sampling, random, model.codes().places());
        let run = generated::<T>(|steps| model.continued(&condition, &sampler, None, steps))?;
        computed.push(run.logits.computed(&format!("{name}_guided_logits")));
        computed.push(Computed::integers(&format!("{name}_tokens"), &run.tokens)?);
    }
    Ok(computed)
}

fn tokenizer<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let checkpoint = weights(dump)?;
    // The dump has the queries without what they have in common.
    let shared = "decoder_patch_query_token_type_embed";
    let tokenizer = checkpoint.build(dump.device, &[], |root, _| {
        root.length(shared, 0);
        VideoTokenizer::load(root, &dump.config)
    })?;
    let [patches, latents, queries] = tokenizer.positions();
    let shared = checkpoint.floats(shared)?;
    let shared = Tensor::from_vec(dump.device, &[1, 1, shared.len()], shared)?;
    let queries = elementwise::add(queries, &elementwise::scale_add(&shared, -1.0, &shared, 0.0)?)?;
    let projected = tokenizer.projected::<T>(&dump.tensor("video")?)?;
    let tokens = tokenizer.tokens(&projected)?;
    let drawn = tokenizer.drawn(&projected, &dump.checkpoint.floats("in.uniforms")?)?;
    let codes = tokenizer.latents::<T>(&tokens)?;
    Ok(vec![
        Computed::floats("encoder_patch_pe", patches)?.shaped(dump),
        Computed::floats("decoder_latent_pe", latents)?.shaped(dump),
        Computed::floats("decoder_patch_query_embed", &queries)?.shaped(dump),
        Computed::floats("projected", &projected)?,
        Computed::integers("tokens_of_video", &tokens)?,
        Computed::integers("drawn_tokens", &drawn)?,
        Computed::floats("latents", &codes)?,
        Computed::floats("video", &tokenizer.decode(&codes)?)?,
    ])
}
