//! Infinity's dumps.

use smalti::resize::Mode;
use smalti::{Float, Tensor};

use super::{generated, weights};
use crate::conform::{Computed, Dump, Values};
use crate::decode::{Random, Sampler, concatenate};
use crate::zoo::infinity::{Infinity, Text};
use crate::{Result, Sampling};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = Infinity::<T>::load(&weights(dump)?, dump.device)?;
    let quantiser = model.quantiser();
    let features = dump.tensor::<T>("feature")?;
    let joined = |parts: Vec<Tensor<T>>| concatenate(&parts.iter().collect::<Vec<_>>(), 1);

    let scales = quantiser.quantise(&features, |_, bits| Ok(bits.clone()))?;
    let bits: Vec<_> = scales.iter().map(|said| &said.bits).collect();
    let mut computed = vec![Computed::integers("bits", &concatenate(&bits, 1)?)?];
    let last = scales.last().map_or(&features, |said| &said.so_far);
    computed.push(Computed::floats("quantized", last)?);
    let next = scales.iter().zip(1..scales.len()).map(|(said, next)| quantiser.seen(&said.so_far, next, Mode::Area));
    computed.push(Computed::floats("next_inputs", &joined(next.collect::<Result<_>>()?)?)?);

    // Per flipped scale a share of its bits.
    let shares: Vec<_> = dump.counts("flip_strengths")?.iter().map(|draw| (f64::from(*draw) * 0.01) as f32).collect();
    let uniforms = dump.checkpoint.floats("in.flip_uniforms")?;
    let channels = features.shape()[1];
    let requantised = dump.config.flag("flip_requant").unwrap_or(true);
    let cells = |scale: usize| quantiser.cells(scale).iter().product::<usize>();
    let before = |scale: usize| (0..scale).map(cells).sum::<usize>() * channels;
    let (input, labels) = model.corrected(&features, |scale, bit| {
        let (of_picture, of_scale) = (before(shares.len()), cells(scale) * channels);
        let at = bit / of_scale * of_picture + before(scale) + bit % of_scale;
        requantised && shares.get(scale).is_some_and(|share| uniforms[at] < *share)
    })?;
    computed.push(Computed::floats("corrected_input", &input)?);
    computed.push(Computed::integers("corrected_labels", &labels)?);

    let table = model.table();
    let both = [table.cos.to_vec()?, table.sin.to_vec()?].concat().into_iter().map(f64::from).collect();
    let shape = [&[2], table.cos.shape()].concat();
    computed.push(Computed { output: "rope_cos_sin".to_owned(), shape, values: Values::Floats(both) });

    let lengths = dump.config.counts("text_lens").ok_or_else(|| dump.missing("text_lens"))?;
    let text = dump.checkpoint.floats("in.text")?;
    let text = Text::packed(dump.device, &text, dump.count("text_channels")?, lengths)?;
    computed.push(Computed::floats("teacher_logits", &model.teacher(&text, &input)?)?);

    let uniforms = dump.checkpoint.floats("in.uniforms")?;
    for (name, temperature) in [("greedy", 0.0), ("sampled", 1.0)] {
        let sampling = Sampling { cfg: 1.0, temperature, top_k: 0, top_p: 1.0, seed: 0 };
        let random = Random::Recorded { uniforms: &uniforms, orders: &[] };
        let sampler = Sampler::new(sampling, random, model.places() * model.bits());
        let mut features = None;
        let run = generated::<T>(|steps| {
            let (bits, sum) = model.generate(&text, model.schedule(), &sampler, steps)?;
            features = Some(sum);
            Ok(bits)
        })?;
        computed.push(run.logits.computed(&format!("{name}_logits")));
        computed.push(Computed::integers(&format!("{name}_bits"), &run.tokens)?);
        let features = features.expect("a run that went well has set it");
        computed.push(Computed::floats(&format!("{name}_features"), &features)?);
    }
    Ok(computed)
}
