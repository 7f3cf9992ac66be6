//! NAR's dumps. The mask of the plain pass is an input there; here it follows from the order.

use smalti::Float;

use super::{Logits, cos_sin, greedy_and_sampled, weights};
use crate::Result;
use crate::conform::{Computed, Dump};
use crate::zoo::nar::Nar;

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = Nar::load(&weights(dump)?, dump.device)?;
    let mut computed = Vec::new();
    if let Some(table) = model.table() {
        // The dump has the table in raster order.
        let mut raster = vec![0; 1 + model.cells().len()];
        model.cells().iter().enumerate().for_each(|(place, cell)| raster[1 + cell] = 1 + place);
        computed.push(cos_sin(&crate::order::positions(table, &raster)?)?);
    }
    let mut logits = Logits::default();
    logits.push(&model.teacher::<T>(&dump.counts("labels")?, &dump.indices("tokens")?)?)?;
    computed.push(logits.in_raster(model.cells()).computed("teacher_logits"));
    computed.extend(greedy_and_sampled::<T>(dump, &model, "guided_logits")?);
    Ok(computed)
}
