//! PARSeq's dumps.

use smalti::{Float, Tensor, sample};

use super::{Logits, weights};
use crate::Result;
use crate::conform::{Computed, Dump};
use crate::zoo::parseq::ParSeq;

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = ParSeq::load(&weights(dump)?, dump.device)?;
    let memory = model.encode(&dump.tensor::<T>("image")?)?;
    let mut computed = vec![Computed::floats("memory", &memory)?];

    let target = dump.counts("target")?;
    let &[batch, len] = dump.shape("target")? else {
        return Err(crate::Error::Weights(format!("{}: in.target has not two axes", dump.checkpoint.name())));
    };
    let input: Vec<_> = target.chunks(len).flat_map(|word| &word[..len - 1]).copied().collect();
    let padding = model.ended(&input, len - 1);
    let input = Tensor::from_vec(dump.device, &[batch, len - 1], input)?;
    let (mut contents, mut queries) = (Vec::new(), Vec::new());
    let mut teacher = Logits::default();
    for permutation in dump.counts("perms")?.chunks(len) {
        let permutation: Vec<_> = permutation.iter().map(|place| *place as usize).collect();
        let [content, query] = ParSeq::hidden(&permutation);
        contents.extend(content.iter().flatten().map(|hidden| usize::from(*hidden)));
        queries.extend(query.iter().flatten().map(|hidden| usize::from(*hidden)));
        teacher.push(&model.decode(&memory, &input, 0..len - 1, &content, &query, Some(&padding))?)?;
    }
    let padding: Vec<_> = padding.into_iter().map(usize::from).collect();
    computed.extend([
        Computed::counts("content_masks", &contents).shaped(dump),
        Computed::counts("query_masks", &queries).shaped(dump),
        Computed::counts("padding_mask", &padding).shaped(dump),
        teacher.one_after_the_other("teacher_logits").shaped(dump),
    ]);

    let one_by_one = model.read(&memory, false)?;
    let at_once = model.read_at_once(&memory)?;
    let refined = model.refine(&memory, &at_once)?;
    computed.extend([
        Computed::floats("ar_logits", &one_by_one)?,
        Computed::floats("ar_test_logits", &model.read(&memory, true)?)?,
        Computed::floats("ar_refined_logits", &model.refine(&memory, &one_by_one)?)?,
        Computed::floats("nar_logits", &at_once)?,
        Computed::floats("nar_refined_logits", &model.refine(&memory, &refined)?)?,
    ]);
    for (output, logits) in [("ar_tokens", &one_by_one), ("nar_tokens", &at_once)] {
        let rows = [logits.shape()[0] * logits.shape()[1], logits.shape()[2]];
        computed.push(Computed::integers(output, &sample::argmax(&logits.reshape(&rows)?)?)?.shaped(dump));
    }
    Ok(computed)
}
