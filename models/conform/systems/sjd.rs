//! SJD's dumps: one picture of a LlamaGen, pass by pass.

use std::cell::Cell;

use smalti::Float;
use smalti::jacobi::{Rule, VerifyDraws};
use smalti::sample::{self, Draws, Weights};

use super::{Logits, sampled, weights};
use crate::conform::{Computed, Dump, Values};
use crate::decode::speculative::{Drafts, Luck, Speculation, Test};
use crate::zoo::llamagen::LlamaGen;
use crate::{Error, Result};

/// Random numbers as recorded. What a pass has used is told from outside.
struct Recorded<'a> {
    first: Vec<f32>,
    samples: Vec<f32>,
    accepts: Vec<f32>,
    redraws: Vec<f32>,
    drafts: std::vec::IntoIter<u32>,
    fed: &'a Cell<usize>,
    rejected: &'a Cell<usize>,
}

impl Luck for Recorded<'_> {
    fn fresh(&mut self, start: usize, count: usize, _: u32) -> Draws {
        let numbers = if start == 0 { &self.first[..] } else { self.samples.get(self.fed.get()..).unwrap_or(&[]) };
        Draws::Uniform(numbers.iter().copied().take(count).collect())
    }

    fn test(&mut self, _: usize, count: usize, _: u32) -> VerifyDraws {
        let of_pass = |numbers: &[f32], skipped: usize, count: usize| -> Vec<f32> {
            // Nothing is recorded where nothing is used.
            numbers.iter().skip(skipped).take(count).map(|number| number.max(0.0)).collect()
        };
        let fresh = of_pass(&self.samples, self.fed.get(), count);
        // The first input is no draft, and after the last one nothing is tested.
        let mut accept = of_pass(&self.accepts, self.fed.get() + 1, count - 1);
        accept.push(0.0);
        // One place at most is drawn anew; the last one has no draft and is drawn like any other.
        let mut couple = vec![self.redraws.get(self.rejected.get()).copied().unwrap_or(0.0); count - 1];
        couple.extend(fresh.last());
        VerifyDraws::Given { fresh, accept, couple }
    }

    fn drafts(&mut self, count: usize, _: usize) -> Vec<u32> {
        self.drafts.by_ref().take(count).collect()
    }
}

/// Each row as probabilities.
fn probabilities(weights: &Weights) -> Result<Vec<f64>> {
    let values = weights.tensor().to_vec()?;
    let of_row = |row: &[u32]| -> Vec<f64> {
        let whole: f64 = row.iter().map(|weight| f64::from(*weight)).sum();
        row.iter().map(|weight| f64::from(*weight) / whole).collect()
    };
    Ok(values.chunks(weights.shape()[1]).flat_map(of_row).collect())
}

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = LlamaGen::load(&weights(dump)?.prefixed(), dump.device)?;
    let test = match dump.config.text("scheme") {
        Some("speculative_jacobi") => Test::Ratio(Rule::Fresh),
        Some("jacobi") => Test::Same,
        scheme => return Err(Error::Request(format!("sjd: scheme {scheme:?}"))),
    };
    let verifies = matches!(test, Test::Ratio(_));
    let (window, until) = (dump.count("max_num_new_tokens")?, dump.count("jacobi_loop_interval_r")?);
    let speculation = Speculation { test, drafts: Drafts::Random, window, until };
    let floats = |name: &str| -> Result<Vec<f32>> {
        if dump.has(name) { dump.checkpoint.floats(&format!("in.{name}")) } else { Ok(Vec::new()) }
    };
    let (fed, rejected) = (Cell::new(0), Cell::new(0));
    let samples = floats("sample_uniforms")?;
    let mut luck = Recorded {
        first: floats("first_uniform")?,
        samples: samples.clone(),
        accepts: floats("accept_uniforms")?,
        redraws: floats("resample_uniforms")?,
        drafts: dump.counts("new_drafts")?.into_iter(),
        fed: &fed,
        rejected: &rejected,
    };
    let label = dump.counts("label")?.first().copied().unwrap_or(0);
    let (mut counts, mut matched) = (Vec::new(), Vec::new());
    let (mut inputs, mut drawn, mut verified) = (Vec::new(), Vec::new(), Vec::new());
    let (mut drawn_from, mut probs, mut logits) = (Vec::new(), Vec::new(), Logits::default());
    let tokens = model.speculate::<T>(label, &sampled(dump)?, &speculation, None, &mut luck, &mut |pass| {
        let count = pass.inputs.len();
        let numbers = samples.iter().copied().skip(fed.get()).take(count).collect();
        drawn.extend(sample::draw(pass.weights, &Draws::Uniform(numbers))?.to_vec()?);
        inputs.extend_from_slice(pass.inputs);
        verified.extend_from_slice(pass.tokens);
        drawn_from.extend(probabilities(pass.drawn_from)?);
        probs.extend(probabilities(pass.weights)?);
        logits.push(pass.logits)?;
        counts.push(count);
        matched.push(pass.settled);
        fed.set(fed.get() + count);
        rejected.set(rejected.get() + usize::from(pass.settled < count));
        Ok(())
    })?;
    let integers = |output: &str, values: &[u32]| Computed {
        output: output.to_owned(),
        shape: vec![values.len()],
        values: Values::Integers(values.iter().map(|value| i64::from(*value)).collect()),
    };
    let floats = |output: &str, values: Vec<f64>| {
        Computed { output: output.to_owned(), shape: vec![values.len()], values: Values::Floats(values) }.shaped(dump)
    };
    let mut computed = vec![
        Computed::counts("counts", &counts),
        integers("inputs", &inputs),
        floats("input_probs", drawn_from),
        logits.one_after_the_other("guided_logits").shaped(dump),
        floats("probs", probs),
        integers("sampled", &drawn),
        Computed::counts("matched", &matched),
        integers("tokens", &tokens).shaped(dump),
    ];
    if verifies {
        computed.insert(6, integers("verified", &verified));
    }
    Ok(computed)
}
