//! SemAIM's dumps.

use smalti::Float;

use super::weights;
use crate::Result;
use crate::conform::{Computed, Dump};
use crate::zoo::semaim::{SemAim, Stream};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = SemAim::load(&weights(dump)?, dump.device)?;
    let pixels = dump.tensor::<T>("image")?;
    let (states, self_attention) = model.encode(&pixels)?;
    let mut computed = vec![
        Computed::floats("encoder", &states)?,
        Computed::floats("feature_attention", &model.feature_attention(&states)?)?,
        Computed::floats("self_attention", &self_attention)?,
    ];
    let orders = dump.config.texts("orders").ok_or_else(|| dump.missing("orders"))?;
    for order in &orders {
        let keys = dump.checkpoint.floats(&format!("in.keys.{order}"))?;
        computed.push(Computed::floats(&format!("prediction.{order}"), &model.predict(&pixels, &keys)?)?);
    }
    let last = orders.last().ok_or_else(|| dump.missing("orders"))?;
    let keys = dump.checkpoint.floats(&format!("in.keys.{last}"))?;
    let patches = dump.shape(&format!("keys.{last}"))?[1];
    for (output, stream) in [("sees_content", Stream::Content), ("sees_query", Stream::Query)] {
        let seq = 1 + patches;
        let of_picture = |keys: &[f32]| {
            let pair = |at: usize| usize::from(SemAim::sees(stream, keys, at / seq, at % seq));
            (0..seq * seq).map(pair).collect::<Vec<_>>()
        };
        let sees: Vec<_> = keys.chunks(patches).flat_map(of_picture).collect();
        computed.push(Computed::counts(output, &sees).shaped(dump));
    }
    Ok(computed)
}
