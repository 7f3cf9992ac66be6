//! LPD's dumps: generation, and the orders alone.

use smalti::Float;

use super::{greedy_and_sampled, weights};
use crate::conform::{Computed, Dump};
use crate::order::locality::{self, Chance, Thresholds};
use crate::weights::Config;
use crate::zoo::lpd::Lpd;
use crate::{Error, Result};

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    if dump.has("first.0000") {
        return orders(dump);
    }
    let model = Lpd::load(&weights(dump)?, dump.device)?;
    let sizes = dump.config.counts("teacher_group_sizes").ok_or_else(|| dump.missing("teacher_group_sizes"))?;
    let (labels, orders) = (dump.counts("labels")?, dump.counts("teacher_orders")?);
    let teacher = model.teacher::<T>(&labels, &dump.indices("tokens")?, &orders, &sizes)?;
    let places: usize = sizes.iter().sum();
    let seq = 1 + 2 * places - sizes.last().copied().unwrap_or(0);
    let mask: Vec<_> = (0..seq * seq).map(|at| usize::from(Lpd::sees(&sizes, at / seq, at % seq))).collect();
    let mut computed =
        vec![Computed::counts("teacher_mask", &mask).shaped(dump), Computed::floats("teacher_logits", &teacher)?];
    computed.extend(greedy_and_sampled::<T>(dump, &model, "guided_logits")?);
    Ok(computed)
}

/// Each run of the order's schedule, chance as recorded.
fn orders(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let runs = dump.config.list("runs").ok_or_else(|| dump.missing("runs"))?;
    runs.iter().enumerate().map(|(run, config)| one_order(dump, run, config)).collect()
}

fn one_order(dump: &Dump<'_>, run: usize, config: &Config) -> Result<Computed> {
    let input = |name: &str| -> Result<Vec<usize>> {
        Ok(dump.counts(&format!("{name}.{run:04}"))?.iter().map(|cell| *cell as usize).collect())
    };
    let threshold = |key: &str| config.number(key).map(f64::from).ok_or_else(|| dump.missing(key));
    let side = config.count("grid").ok_or_else(|| dump.missing("grid"))?;
    let thresholds =
        Thresholds { proximity: threshold("proximity_threshold")?, repulsion: threshold("repulsion_threshold")? };
    let (sizes, first, shuffles) = (input("group_sizes")?, input("first")?, input("shuffles")?);
    let starts = if dump.has(&format!("starts.{run:04}")) { input("starts")? } else { Vec::new() };
    let free: usize = sizes
        .iter()
        .scan(0, |settled, size| {
            *settled += size;
            Some(side * side - *settled)
        })
        .sum();
    if first.is_empty() || shuffles.len() < free || sizes.iter().sum::<usize>() != side * side {
        return Err(Error::Weights(format!("{}: run {run} is not whole", dump.checkpoint.name())));
    }
    let (mut shuffled, mut started) = (0, 0);
    let mut chance = Chance {
        first: first[0],
        shuffle: &mut |cells| {
            let count = cells.len();
            cells.copy_from_slice(&shuffles[shuffled..shuffled + count]);
            shuffled += count;
        },
        start: &mut |count| {
            started += 1;
            starts.get(started - 1).copied().unwrap_or(0).min(count - 1)
        },
    };
    let order = locality::order(side, &sizes, thresholds, &mut chance);
    Ok(Computed::counts(&format!("order.{run:04}"), &order))
}
