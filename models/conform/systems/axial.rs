//! Dumps of the Axial Transformer.

use smalti::{Float, Tensor};

use super::weights;
use crate::Result;
use crate::conform::{Computed, Dump, Values};
use crate::zoo::axial::{Axial, Planes};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = Axial::load(&weights(dump)?, dump.device)?;
    let image = dump.counts("image")?;
    let batch = dump.shape("image")?[0];
    let channels = model.channels();
    let planes: Vec<Vec<u32>> =
        (0..channels).map(|plane| image.iter().skip(plane).step_by(channels).copied().collect()).collect();
    let (mut conditions, mut contexts, mut logits) = (Vec::new(), Vec::new(), Vec::new());
    let push = |values: &mut Vec<f64>, tensor: &Tensor<T>| -> Result<()> {
        values.extend(tensor.to_vec()?.iter().map(|value| value.to_f64()));
        Ok(())
    };
    for plane in 0..channels {
        let condition = model.condition::<T>(&planes, plane, batch)?;
        let context = model.context(&planes[plane], &condition)?;
        push(&mut conditions, &condition)?;
        push(&mut contexts, &context)?;
        let mut of_plane = Vec::new();
        push(&mut of_plane, &model.logits(&planes[plane], &context, &condition)?)?;
        logits.push(of_plane);
    }
    let floats = |output: &str, values: Vec<f64>| {
        let shape = vec![values.len()];
        Computed { output: output.to_owned(), shape, values: Values::Floats(values) }.shaped(dump)
    };
    let cells = planes[0].len();
    let mut computed =
        vec![floats("condition", conditions), floats("outer", contexts), floats("logits", interleaved(&logits, cells))];
    let gumbel = dump.checkpoint.floats("in.gumbel")?;
    for (name, noise) in [("greedy", None), ("sampled", Some(&gumbel[..]))] {
        let Planes { levels: planes, logits } = model.generate::<T>(batch, noise)?;
        computed.push(floats(&format!("{name}_logits"), interleaved(&logits, cells)));
        let tokens: Vec<_> = interleaved(&planes, cells).iter().map(|token| *token as usize).collect();
        computed.push(Computed::counts(&format!("{name}_tokens"), &tokens).shaped(dump));
    }
    Ok(computed)
}

/// Cell by cell, each plane's values of a cell one after the other.
fn interleaved<V: Copy>(planes: &[Vec<V>], cells: usize) -> Vec<V> {
    let each = planes[0].len() / cells;
    (0..cells).flat_map(|cell| planes.iter().flat_map(move |plane| &plane[cell * each..][..each])).copied().collect()
}
