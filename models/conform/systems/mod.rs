//! Whole models: each system's inputs, run as its dump was.

mod aim;
mod arinar;
mod arpg;
mod axial;
mod cascade;
mod controlar;
mod dar;
mod dar_diffusion;
mod far;
mod flexvar;
mod gsd;
mod hart;
mod hmar;
mod infinity;
mod larp;
mod llamagen;
mod lpd;
mod mar;
mod maskgil;
mod mvar;
mod nar;
mod par;
mod parseq;
mod randar;
mod rar;
mod semaim;
mod sjd;
mod spherear;
mod transdiff;
mod var;
mod xar;

use smalti::rope::Table;
use smalti::{Float, Tensor};

use super::{Computed, Dump, Values};
use crate::backbone::mamba::Mamba2;
use crate::decode::{Chance, Random, Sampler, Step, Steps, watched};
use crate::weights::Checkpoint;
use crate::zoo::codes::{DrawsCodes, WantedCodes};
use crate::{Error, Result, Sampling};

/// Repeats a model dump.
pub(super) fn run<T: Float>(system: &str, dump: &Dump<'_>) -> Result<Vec<Computed>> {
    match system {
        "aim" => aim::run::<T>(dump),
        "axial" => axial::run::<T>(dump),
        "arinar" => arinar::run::<T>(dump),
        "arpg" => arpg::run::<T>(dump),
        "cascade" => cascade::run(dump),
        "controlar" => controlar::run::<T>(dump),
        "dar" => dar::run::<T>(dump),
        "dar_diffusion" => dar_diffusion::run::<T>(dump),
        "far" => far::run::<T>(dump),
        "flexvar" => flexvar::run::<T>(dump),
        "gsd" => gsd::run(dump),
        "hart" => hart::run::<T>(dump),
        "hmar" => hmar::run::<T>(dump),
        "infinity" => infinity::run::<T>(dump),
        "larp" => larp::run::<T>(dump),
        "llamagen" => llamagen::run::<T>(dump),
        "lpd" => lpd::run::<T>(dump),
        "mar" => mar::run::<T>(dump),
        "maskgil" => maskgil::run::<T>(dump),
        "mvar" => mvar::run::<T>(dump),
        "nar" => nar::run::<T>(dump),
        "par" => par::run::<T>(dump),
        "parseq" => parseq::run::<T>(dump),
        "randar" => randar::run::<T>(dump),
        "rar" => rar::run::<T>(dump),
        "semaim" => semaim::run::<T>(dump),
        "sjd" => sjd::run::<T>(dump),
        "spherear" => spherear::run::<T>(dump),
        "transdiff" => transdiff::run::<T>(dump),
        "var" => var::run::<T>(dump),
        "xar" => xar::run::<T>(dump),
        other => Err(Error::Request(format!("{}: system \"{other}\" is not known here", dump.checkpoint.name()))),
    }
}

/// The dump's weights without their `w.`.
fn weights(dump: &Dump<'_>) -> Result<Checkpoint> {
    dump.checkpoint.under("w.")
}

/// A tokenizer that this dump needs.
fn needed<'a, T>(dump: &Dump<'_>, tokenizer: Option<&'a T>) -> Result<&'a T> {
    tokenizer.ok_or_else(|| Error::Weights(format!("{}: holds no tokenizer", dump.checkpoint.name())))
}

/// How the dump's sampled run drew.
fn sampled(dump: &Dump<'_>) -> Result<Sampling> {
    // Some dumps write 0 for "off".
    let top_p = dump.config.number("top_p").filter(|top_p| *top_p > 0.0).unwrap_or(1.0);
    let temperature = dump.number("temperature").or_else(|_| dump.number("randomize_temperature")).unwrap_or(1.0);
    let top_k = dump.count("top_k").unwrap_or(0);
    Ok(Sampling { temperature, top_k, top_p, ..greedy(dump)? })
}

fn greedy(dump: &Dump<'_>) -> Result<Sampling> {
    let cfg = dump.number("cfg").or_else(|_| dump.number("guidance_scale"));
    // D-AR's is a text that ends with it.
    let last = || dump.config.text("cfg")?.rsplit(',').next()?.parse().ok();
    let cfg = cfg.or_else(|missing| last().ok_or(missing));
    let cfg = cfg.or_else(|missing| dump.config.numbers("cfg_scales").map_or(Err(missing), |scales| Ok(scales[1])))?;
    Ok(Sampling { cfg, temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 })
}

/// Collects `[batch, vocabulary]` or `[batch, places, vocabulary]` of each step into `[batch, all places, vocabulary]`.
#[derive(Default)]
struct Logits(Vec<(Vec<usize>, Vec<f64>)>);

impl Logits {
    fn push<T: Float>(&mut self, logits: &Tensor<T>) -> smalti::Result<()> {
        let values = logits.to_vec()?.iter().map(|value| value.to_f64()).collect();
        self.0.push((logits.shape().to_vec(), values));
        Ok(())
    }

    /// Rows that are in the order of `cells`, put in raster order; one step holds them all.
    fn in_raster(self, cells: &[usize]) -> Self {
        let reordered = |(shape, values): (Vec<usize>, Vec<f64>)| {
            let row = shape[2];
            let mut raster = values.clone();
            for (from, to) in values.chunks(shape[1] * row).zip(raster.chunks_mut(shape[1] * row)) {
                for (from, cell) in from.chunks(row).zip(cells) {
                    to[cell * row..][..row].copy_from_slice(from);
                }
            }
            (shape, raster)
        };
        Self(self.0.into_iter().map(reordered).collect())
    }

    /// All steps, each whole, one after the other.
    fn one_after_the_other(self, output: &str) -> Computed {
        let values: Vec<_> = self.0.into_iter().flat_map(|(_, step)| step).collect();
        Computed { output: output.to_owned(), shape: vec![values.len()], values: Values::Floats(values) }
    }

    fn computed(self, output: &str) -> Computed {
        let batch = self.0.first().map_or(0, |(shape, _)| shape[0]);
        let vocabulary = self.0.first().and_then(|(shape, _)| shape.last().copied()).unwrap_or(0);
        let mut values = Vec::new();
        for picture in 0..batch {
            for (_, step) in &self.0 {
                let each = step.len() / batch;
                values.extend_from_slice(&step[picture * each..][..each]);
            }
        }
        let shape = vec![batch, values.len() / (batch * vocabulary).max(1), vocabulary];
        Computed { output: output.to_owned(), shape, values: Values::Floats(values) }
    }
}

/// What a generation settled step by step.
struct Generated {
    logits: Logits,
    counts: Vec<usize>,
    tokens: Tensor<u32>,
}

/// Runs a generation and keeps the guided logits of each step.
fn generated<T: Float>(generate: impl FnOnce(Steps<'_, T>) -> Result<Tensor<u32>>) -> Result<Generated> {
    let mut logits = Logits::default();
    let mut counts = Vec::new();
    let each = |step: Step<'_, T>| {
        counts.push(step.settled - counts.iter().sum::<usize>());
        Ok(logits.push(step.logits)?)
    };
    let tokens = watched(each, generate)?;
    Ok(Generated { logits, counts, tokens })
}

/// The greedy run and the run with recorded uniforms: counts, logits, tokens.
fn greedy_and_sampled<T: Float>(dump: &Dump<'_>, model: &impl DrawsCodes, logits: &str) -> Result<Vec<Computed>> {
    let run = repeat::<T>(dump, model, greedy(dump)?, logits)?;
    let mut computed =
        vec![run.logits.computed(&format!("greedy_{logits}")), Computed::integers("greedy_tokens", &run.tokens)?];
    if dump.checkpoint.shape("out.counts").is_some() {
        computed.insert(0, Computed::counts("counts", &run.counts));
    }
    computed.extend(recorded::<T>(dump, model, logits)?);
    Ok(computed)
}

/// The run with recorded uniforms: logits, tokens.
fn recorded<T: Float>(dump: &Dump<'_>, model: &impl DrawsCodes, logits: &str) -> Result<Vec<Computed>> {
    let run = repeat::<T>(dump, model, sampled(dump)?, logits)?;
    Ok(vec![run.logits.computed(logits), Computed::integers("sampled_tokens", &run.tokens)?])
}

/// One run of a dump; logits that it calls scaled are divided by its temperature.
fn repeat<T: Float>(dump: &Dump<'_>, model: &impl DrawsCodes, sampling: Sampling, logits: &str) -> Result<Generated> {
    let labels = dump.counts("labels")?;
    let uniforms = dump.checkpoint.floats("in.uniforms")?;
    let orders = dump.counts("order").or_else(|_| dump.counts("cells")).unwrap_or_default();
    let random = Random::Recorded { uniforms: &uniforms, orders: &orders };
    let sampler = Sampler::new(sampling, random, model.codes().places());
    let mut run = generated::<T>(|steps| {
        model.generate(WantedCodes { labels: &labels, known: &[], sampler: &sampler, decoder: None }, steps)
    })?;
    if logits == "scaled_logits" {
        let temperature = f64::from(sampled(dump)?.temperature);
        run.logits.0.iter_mut().flat_map(|(_, step)| step).for_each(|logit| *logit /= temperature);
    }
    Ok(run)
}

/// A Mamba-2 mixer alone on `in.NAME_x`: its output, its state and its window afterwards.
fn mixer<T: Float>(dump: &Dump<'_>, name: &str, mixer: Option<&Mamba2>) -> Result<Vec<Computed>> {
    let missing = || Error::Weights(format!("{}: the model has no layers", dump.checkpoint.name()));
    let mixer = mixer.ok_or_else(missing)?;
    let x = dump.tensor::<T>(&format!("{name}_x"))?;
    let mut memory = mixer.start(dump.device, x.shape()[0])?;
    let y = mixer.run(&x, &mut memory)?;
    Ok(vec![
        Computed::floats(&format!("{name}_y"), &y)?,
        Computed::floats(&format!("{name}_state"), &memory.state)?,
        Computed::floats(&format!("{name}_window"), &memory.window)?,
    ])
}

/// Normal numbers that a dump records in one tensor, in the order of use.
struct RecordedNoise {
    values: Vec<f32>,
    used: usize,
}

impl RecordedNoise {
    fn of(dump: &Dump<'_>) -> Result<Self> {
        Ok(Self { values: dump.checkpoint.floats("in.noise")?, used: 0 })
    }
}

impl Chance for RecordedNoise {
    fn begin(&mut self, _: &[(usize, usize)]) {}

    fn normals(&mut self, rows: usize, count: usize) -> Result<Vec<f64>> {
        let missing = || Error::Weights(format!("\"in.noise\" has fewer than {} values", self.used + rows * count));
        let values = self.values.get(self.used..self.used + rows * count).ok_or_else(missing)?;
        self.used += rows * count;
        Ok(values.iter().map(|value| f64::from(*value)).collect())
    }

    fn uniforms(&mut self, _: usize, _: usize) -> Result<Vec<f64>> {
        Err(Error::Weights("uniform numbers were asked of a dump that records normal ones".to_owned()))
    }
}

/// A rotary table as pairs of cosine and sine.
fn cos_sin(table: &Table) -> Result<Computed> {
    let (cos, sin) = (table.cos.to_vec()?, table.sin.to_vec()?);
    let pairs = cos.iter().zip(&sin).flat_map(|(cos, sin)| [f64::from(*cos), f64::from(*sin)]).collect();
    let shape = [table.cos.shape(), &[2]].concat();
    Ok(Computed { output: "rope_cos_sin".to_owned(), shape, values: Values::Floats(pairs) })
}

fn mapped<T: Float>(output: &str, tensor: &Tensor<T>, map: impl Fn(f64) -> f64) -> Result<Computed> {
    let mut computed = Computed::floats(output, tensor)?;
    if let Values::Floats(values) = &mut computed.values {
        values.iter_mut().for_each(|value| *value = map(*value));
    }
    Ok(computed)
}
