//! Dumps from PyTorch, repeated here output by output.
//!
//! A dump is a safetensors file that says what it is in its metadata: `op` for one op's inputs and outputs, `system`
//! for a whole model's weights, inputs and outputs.

mod ops;
mod systems;

use std::path::Path;

use smalti::{Backend, Device, Dtype, Float, Tensor};

use crate::weights::{Checkpoint, Config};
use crate::{Error, Result};

/// What became of one output.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its name, without `out.`.
    pub output: String,
    /// As the dump has it.
    pub shape: Vec<usize>,
    /// The largest difference; for integers the number of unequal entries.
    pub max_abs: f64,
    /// `max_abs` over the largest finite magnitude of the dump's output.
    pub max_rel: f64,
    /// How large `max_abs` may be.
    pub allowed: f64,
    /// Whether it agrees.
    pub agrees: bool,
    /// Where it departs first, if it does.
    pub first: Option<Vec<usize>>,
}

/// What became of one dump.
#[derive(Debug, Clone)]
pub struct Report {
    /// `op` or `model`.
    pub kind: &'static str,
    /// The op or the system.
    pub name: String,
    /// What it ran in.
    pub dtype: Dtype,
    /// Per output, in the order of computation.
    pub outcomes: Vec<Outcome>,
}

/// Whether the file's metadata says that it is a dump.
#[must_use]
pub fn is_dump(checkpoint: &Checkpoint) -> bool {
    let has_outputs = || checkpoint.names().any(|name| name.starts_with("out."));
    (checkpoint.metadata("op").is_some() || checkpoint.metadata("system").is_some()) && has_outputs()
}

/// Repeats a dump on a device: an op in its own dtype, a model in `dtype` (f64 on the reference).
///
/// # Errors
/// [`Error::Request`] if the op or the system is not known, or needs something that is not there; [`Error::Weights`]
/// if the file does not hold what its kind needs; [`Error::Op`] if an op fails.
pub fn run(path: &Path, device: &Device, dtype: Dtype) -> Result<Report> {
    let checkpoint = Checkpoint::open(path)?;
    let dump = |config: &str| -> Result<Dump<'_>> {
        let text = checkpoint.metadata(config).unwrap_or("{}");
        let config = Config::parse(text).map_err(|error| Error::Weights(format!("{}: {error}", checkpoint.name())))?;
        Ok(Dump { checkpoint: &checkpoint, config, device })
    };
    if let Some(op) = checkpoint.metadata("op") {
        let dump = dump("params")?;
        let dtype = match dump.config.text("dtype").unwrap_or("f32") {
            "f16" => Dtype::F16,
            "bf16" => Dtype::Bf16,
            _ => Dtype::F32,
        };
        let computed = match dtype {
            Dtype::F16 => ops::run::<smalti::f16>(op, &dump)?,
            Dtype::Bf16 => ops::run::<smalti::bf16>(op, &dump)?,
            _ => ops::run::<f32>(op, &dump)?,
        };
        let outcomes = compare(&dump, &computed, |output, expected| ops::allowed(&dump, dtype, output, expected))?;
        return Ok(Report { kind: "op", name: op.to_owned(), dtype, outcomes });
    }
    let Some(system) = checkpoint.metadata("system") else {
        let message = format!("{}: no dump: its metadata has neither \"op\" nor \"system\"", checkpoint.name());
        return Err(Error::Request(message));
    };
    let dump = dump("config")?;
    let (dtype, computed) = match (device.backend(), dtype) {
        (Backend::Reference, _) => (Dtype::F64, systems::run::<f64>(system, &dump)?),
        (_, Dtype::F16) => (dtype, systems::run::<smalti::f16>(system, &dump)?),
        (_, Dtype::Bf16) => (dtype, systems::run::<smalti::bf16>(system, &dump)?),
        _ => (Dtype::F32, systems::run::<f32>(system, &dump)?),
    };
    let share = share(device, system, &dump.config);
    let outcomes = compare(&dump, &computed, |output, expected| Ok(share(output) * largest(expected)))?;
    Ok(Report { kind: "model", name: system.to_owned(), dtype, outcomes })
}

/// Runs the inputs of a model's dump on a device in f32 and on the reference, and compares the two. What outputs the
/// file records does not matter: it may be of sizes and inputs that nobody has run elsewhere.
///
/// # Errors
/// As [`run`].
pub fn against_reference(checkpoint: &Checkpoint, device: &Device) -> Result<Report> {
    let missing = || Error::Request(format!("{}: its metadata has no \"system\"", checkpoint.name()));
    let system = checkpoint.metadata("system").ok_or_else(missing)?;
    let reference = Device::reference();
    let config = checkpoint.config()?;
    let expected = systems::run::<f64>(system, &Dump { checkpoint, config: config.clone(), device: &reference })?;
    let computed = systems::run::<f32>(system, &Dump { checkpoint, config, device })?;
    let share = share(device, system, &checkpoint.config()?);
    let allowed = |output: &str, values: &[f64]| Ok(share(output) * largest(values));
    let outcomes = expected.iter().zip(&computed);
    let outcomes = outcomes.map(|(expected, computed)| difference(expected, computed, &allowed));
    Ok(Report { kind: "model", name: system.to_owned(), dtype: Dtype::F32, outcomes: outcomes.collect::<Result<_>>()? })
}

/// How much of its largest magnitude an output of a model may be off.
fn share(device: &Device, system: &str, config: &Config) -> impl Fn(&str) -> f64 + use<> {
    let share = if matches!(device.backend(), Backend::Reference | Backend::Cpu) { 1e-4 } else { 5e-4 };
    // A flow one value wide, fed back value by value, amplifies rounding: a second run of the official code differs, too.
    let amplified: &[&str] = match (system, config.text("head_type")) {
        ("arinar", Some("ar_rect_flow")) => &["latents", "last_values", "last_z"],
        _ => &[],
    };
    move |output| if amplified.contains(&output) { 1e-2 } else { share }
}

/// An open dump and the device it is repeated on.
struct Dump<'a> {
    checkpoint: &'a Checkpoint,
    config: Config,
    device: &'a Device,
}

/// One output as computed here.
struct Computed {
    output: String,
    shape: Vec<usize>,
    values: Values,
}

enum Values {
    Floats(Vec<f64>),
    Integers(Vec<i64>),
}

impl Computed {
    fn floats<T: Float>(output: &str, tensor: &Tensor<T>) -> Result<Self> {
        let values = tensor.to_vec()?.iter().map(|value| value.to_f64()).collect();
        Ok(Self { output: output.to_owned(), shape: tensor.shape().to_vec(), values: Values::Floats(values) })
    }

    fn integers(output: &str, tensor: &Tensor<u32>) -> Result<Self> {
        let values = tensor.to_vec()?.iter().map(|value| i64::from(*value)).collect();
        Ok(Self { output: output.to_owned(), shape: tensor.shape().to_vec(), values: Values::Integers(values) })
    }

    fn counts(output: &str, counts: &[usize]) -> Self {
        let values = counts.iter().map(|count| *count as i64).collect();
        Self { output: output.to_owned(), shape: vec![counts.len()], values: Values::Integers(values) }
    }

    /// Seen under the shape that the dump has.
    fn shaped(mut self, dump: &Dump<'_>) -> Self {
        if let Some(shape) = dump.checkpoint.shape(&format!("out.{}", self.output))
            && shape.iter().product::<usize>() == self.shape.iter().product::<usize>()
        {
            self.shape = shape.to_vec();
        }
        self
    }
}

impl Dump<'_> {
    fn shape(&self, input: &str) -> Result<&[usize]> {
        let name = format!("in.{input}");
        let missing = || Error::Weights(format!("{}: no tensor \"{name}\"", self.checkpoint.name()));
        self.checkpoint.shape(&name).ok_or_else(missing)
    }

    fn has(&self, input: &str) -> bool {
        self.shape(input).is_ok()
    }

    /// A float input in `T`.
    fn tensor<T: Float>(&self, input: &str) -> Result<Tensor<T>> {
        let values = self.checkpoint.floats(&format!("in.{input}"))?;
        let values = values.iter().map(|value| T::from_f32(*value)).collect();
        Ok(Tensor::from_vec(self.device, self.shape(input)?, values)?)
    }

    /// An integer input, which must not be negative.
    fn indices(&self, input: &str) -> Result<Tensor<u32>> {
        Ok(Tensor::from_vec(self.device, self.shape(input)?, self.counts(input)?)?)
    }

    fn counts(&self, input: &str) -> Result<Vec<u32>> {
        let values = self.checkpoint.elements::<i32>(&format!("in.{input}"))?;
        let counts: Option<Vec<u32>> = values.iter().map(|value| u32::try_from(*value).ok()).collect();
        counts.ok_or_else(|| Error::Weights(format!("{}: \"in.{input}\" is negative", self.checkpoint.name())))
    }

    fn count(&self, key: &str) -> Result<usize> {
        self.config.count(key).ok_or_else(|| self.missing(key))
    }

    fn number(&self, key: &str) -> Result<f32> {
        self.config.number(key).ok_or_else(|| self.missing(key))
    }

    fn missing(&self, key: &str) -> Error {
        Error::Weights(format!("{}: the parameters have no \"{key}\"", self.checkpoint.name()))
    }
}

/// From here on a magnitude stands for infinity.
const SENTINEL: f64 = 1e29;

fn largest(values: &[f64]) -> f64 {
    values.iter().map(|value| value.abs()).filter(|value| *value < SENTINEL).fold(0.0, f64::max)
}

/// Every output of the dump against what was computed; one that was not computed is an error, not a gap.
fn compare(
    dump: &Dump<'_>,
    computed: &[Computed],
    allowed: impl Fn(&str, &[f64]) -> Result<f64>,
) -> Result<Vec<Outcome>> {
    let outputs = dump.checkpoint.names().filter_map(|name| name.strip_prefix("out."));
    for output in outputs.filter(|output| *output != "naive" && !output.starts_with("naive_")) {
        if !computed.iter().any(|computed| computed.output == output) {
            let name = dump.checkpoint.name();
            return Err(Error::Request(format!("{name}: output \"{output}\" is not computed here")));
        }
    }
    computed.iter().map(|computed| outcome(dump, computed, &allowed)).collect()
}

fn outcome(dump: &Dump<'_>, computed: &Computed, allowed: &impl Fn(&str, &[f64]) -> Result<f64>) -> Result<Outcome> {
    let name = format!("out.{}", computed.output);
    let Some(shape) = dump.checkpoint.shape(&name).map(<[usize]>::to_vec) else {
        return Err(Error::Request(format!("{}: the dump has no \"{name}\"", dump.checkpoint.name())));
    };
    let values = match &computed.values {
        Values::Integers(_) => Values::Integers(match dump.checkpoint.dtype(&name) {
            Some(Dtype::U8) => dump.checkpoint.elements::<u8>(&name)?.iter().map(|x| i64::from(*x)).collect(),
            _ => dump.checkpoint.elements::<i32>(&name)?.iter().map(|x| i64::from(*x)).collect(),
        }),
        Values::Floats(_) => {
            Values::Floats(dump.checkpoint.floats(&name)?.iter().map(|value| f64::from(*value)).collect())
        }
    };
    difference(&Computed { output: computed.output.clone(), shape, values }, computed, allowed)
}

/// What was computed against what is expected.
fn difference(
    expected: &Computed,
    computed: &Computed,
    allowed: &impl Fn(&str, &[f64]) -> Result<f64>,
) -> Result<Outcome> {
    let shape = &expected.shape;
    let mut outcome = Outcome {
        output: computed.output.clone(),
        shape: shape.clone(),
        max_abs: f64::INFINITY,
        max_rel: f64::INFINITY,
        allowed: 0.0,
        agrees: false,
        first: None,
    };
    if *shape != computed.shape {
        return Ok(outcome);
    }
    let index = |mut flat: usize| {
        let mut index = vec![0; shape.len()];
        for (index, len) in index.iter_mut().zip(shape).rev() {
            *index = flat % len;
            flat /= len;
        }
        index
    };
    match (&computed.values, &expected.values) {
        (Values::Integers(values), Values::Integers(expected)) => {
            let unequal: Vec<_> = (0..values.len()).filter(|at| values[*at] != expected[*at]).collect();
            outcome.max_abs = unequal.len() as f64;
            outcome.max_rel = unequal.len() as f64 / values.len().max(1) as f64;
            outcome.agrees = unequal.is_empty();
            outcome.first = unequal.first().map(|at| index(*at));
        }
        (Values::Floats(values), Values::Floats(expected)) => {
            outcome.allowed = allowed(&computed.output, expected)?;
            let difference = |at: usize| {
                let (got, expected) = (values[at], expected[at]);
                let sentinel = |value: f64| value.abs() >= SENTINEL;
                match (sentinel(got), sentinel(expected)) {
                    (true, true) if got.is_sign_negative() == expected.is_sign_negative() => 0.0,
                    (true, _) | (_, true) => f64::INFINITY,
                    _ if got.is_nan() && expected.is_nan() => 0.0,
                    _ if got.is_nan() || expected.is_nan() => f64::INFINITY,
                    _ => (got - expected).abs(),
                }
            };
            outcome.max_abs = (0..values.len()).map(difference).fold(0.0, f64::max);
            outcome.max_rel = outcome.max_abs / largest(expected).max(f64::MIN_POSITIVE);
            outcome.agrees = outcome.max_abs <= outcome.allowed;
            outcome.first = (0..values.len()).find(|at| difference(*at) > outcome.allowed).map(index);
        }
        _ => {}
    }
    Ok(outcome)
}

/// The bits that a half type stores of a number's mantissa, as the distance from 1 to the next value.
fn epsilon(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => <smalti::f16 as Float>::EPSILON,
        Dtype::Bf16 => <smalti::bf16 as Float>::EPSILON,
        _ => f64::from(f32::EPSILON),
    }
}
