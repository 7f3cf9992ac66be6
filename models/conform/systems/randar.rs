//! RandAR's dumps: generation, and extrapolation to the doubled grid.

use smalti::{Float, Tensor};

use super::{Logits, cos_sin, generated, greedy, greedy_and_sampled, weights};
use crate::Result;
use crate::conform::{Computed, Dump};
use crate::decode::{Random, Sampler, Step};
use crate::zoo::codes::DrawsCodes as _;
use crate::zoo::randar::RandAr;

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = RandAr::load(&weights(dump)?, dump.device)?;
    let labels = dump.counts("labels")?;
    let orders = per_picture(dump, "order", labels.len())?;
    if dump.has("dropped") {
        return extrapolate::<T>(dump, &model, &labels, &orders);
    }
    let teacher = model.teacher::<T>(&labels, &dump.indices("tokens")?, &orders)?;
    let mut computed = vec![
        cos_sin(model.table())?,
        Computed::floats("position_instruction_tokens", &model.instructions::<T>(model.table(), &orders)?)?,
        Computed::floats("teacher_logits", &teacher)?,
    ];
    computed.extend(greedy_and_sampled::<T>(dump, &model, "guided_logits")?);
    Ok(computed)
}

fn per_picture(dump: &Dump<'_>, input: &str, batch: usize) -> Result<Vec<Vec<usize>>> {
    let all = dump.counts(input)?;
    let each = all.len() / batch.max(1);
    Ok(all.chunks(each.max(1)).map(|row| row.iter().map(|index| *index as usize).collect()).collect())
}

fn extrapolate<T: Float>(
    dump: &Dump<'_>,
    model: &RandAr,
    labels: &[u32],
    orders: &[Vec<usize>],
) -> Result<Vec<Computed>> {
    let dropped = per_picture(dump, "dropped", labels.len())?;
    let places = orders[0].len();
    let uniforms = vec![0.0; labels.len() * places];
    let random = Random::Recorded { uniforms: &uniforms, orders: &[] };
    let sampler = Sampler::new(greedy(dump)?, random, places);
    let mut coarse = Logits::default();
    let mut counts = Vec::new();
    let fine = generated::<T>(|steps| {
        let mut keep = |step: Step<'_, T>| match coarse.push(step.logits) {
            Ok(()) => std::ops::ControlFlow::Continue(()),
            Err(_) => std::ops::ControlFlow::Break(()),
        };
        let drawn = model.extrapolate(labels, orders, &dropped, &sampler, false, &mut keep, steps)?;
        counts = drawn.counts;
        Ok(drawn.tokens)
    })?;
    let tokens = fine.tokens.to_vec()?;
    let mut raster = vec![0; tokens.len()];
    for ((tokens, order), raster) in tokens.chunks(places).zip(orders).zip(raster.chunks_mut(places)) {
        tokens.iter().zip(order).for_each(|(token, cell)| raster[*cell] = *token);
    }
    let raster = Tensor::from_vec(&smalti::Device::reference(), fine.tokens.shape(), raster)?;
    debug_assert_eq!(model.codes().places() * 4, places);
    Ok(vec![
        cos_sin(&model.extrapolated_table()?)?,
        coarse.computed("low_guided_logits"),
        Computed::counts("counts", &counts),
        fine.logits.computed("high_guided_logits"),
        Computed::integers("tokens", &raster)?,
    ])
}
