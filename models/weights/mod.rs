//! Checkpoints: tensors by name, from a file or from the program itself.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use smalti::{Device, Dtype, Element, Float, Tensor, Weight, bf16, f16};

use crate::{Error, Result};

/// Names, shapes and bytes of tensors, and the file's own notes.
#[derive(Debug)]
pub struct Checkpoint {
    name: String,
    bytes: Cow<'static, [u8]>,
    tensors: BTreeMap<String, Stored>,
    metadata: BTreeMap<String, String>,
}

/// One tensor as it lies in the file.
#[derive(Debug, Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// The weights in the program: `llamagen` or `var`.
#[must_use]
pub fn embedded(model: &str) -> Option<Checkpoint> {
    let bytes: &'static [u8] = match model {
        "llamagen" => include_bytes!("emoji_llamagen.safetensors"),
        "var" => include_bytes!("emoji_var.safetensors"),
        _ => return None,
    };
    Checkpoint::from_bytes(model, Cow::Borrowed(bytes)).ok()
}

impl Checkpoint {
    /// Reads a safetensors file.
    ///
    /// # Errors
    /// [`Error::Weights`] if it cannot be read or is not whole, with the file's name.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| Error::Weights(format!("{name}: {error}")))?;
        Self::from_bytes(&name, Cow::Owned(bytes))
    }

    /// Takes the bytes of a safetensors file; `name` is for messages.
    ///
    /// # Errors
    /// [`Error::Weights`] if the header is corrupt or a tensor reaches beyond the end.
    pub fn from_bytes(name: &str, bytes: Cow<'static, [u8]>) -> Result<Self> {
        let wrong = |reason: String| Error::Weights(format!("{name}: {reason}"));
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes)
            .map_err(|error| wrong(format!("not a whole safetensors file: {error}")))?;
        let start = header + 8;
        let mut tensors = BTreeMap::new();
        for (tensor, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            let dtype = match info.dtype {
                safetensors::Dtype::F64 => Dtype::F64,
                safetensors::Dtype::F32 => Dtype::F32,
                safetensors::Dtype::F16 => Dtype::F16,
                safetensors::Dtype::BF16 => Dtype::Bf16,
                safetensors::Dtype::I32 => Dtype::I32,
                safetensors::Dtype::U32 => Dtype::U32,
                safetensors::Dtype::I8 => Dtype::I8,
                safetensors::Dtype::U8 | safetensors::Dtype::BOOL => Dtype::U8,
                other => return Err(wrong(format!("tensor \"{tensor}\" holds {other:?}, which is not read here"))),
            };
            let range = match (start.checked_add(from), start.checked_add(to)) {
                (Some(from), Some(to)) if from <= to && to <= bytes.len() => from..to,
                _ => {
                    let held = bytes.len();
                    return Err(wrong(format!(
                        "tensor \"{tensor}\" claims bytes {from}..{to} after the header, the file holds {held} in \
                         all: download cut short?"
                    )));
                }
            };
            let elements = info.shape.iter().try_fold(1usize, |product, len| product.checked_mul(*len));
            if elements.and_then(|elements| elements.checked_mul(dtype.bytes())) != Some(range.len()) {
                let claimed = range.len();
                return Err(wrong(format!("tensor \"{tensor}\" of shape {:?} has {claimed} bytes", info.shape)));
            }
            tensors.insert(tensor.clone(), Stored { dtype, shape: info.shape.clone(), range });
        }
        let metadata = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { name: name.to_owned(), bytes, tensors, metadata })
    }

    /// The file's name, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One of the file's own notes.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|stored| stored.shape.as_slice())
    }

    /// The element type of a tensor.
    #[must_use]
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|stored| stored.dtype)
    }

    /// The elements of a tensor, which must hold `E`.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is no such tensor or it holds another type.
    pub fn elements<E: Element>(&self, name: &str) -> Result<Vec<E>> {
        let stored = self.stored(name)?;
        if stored.dtype != E::DTYPE {
            let message = format!("{}: tensor \"{name}\" holds {}, expected {}", self.name, stored.dtype, E::DTYPE);
            return Err(Error::Weights(message));
        }
        Ok(bytemuck::pod_collect_to_vec(&self.bytes[stored.range.clone()]))
    }

    /// The elements of a float tensor of any type, widened.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is no such tensor or it holds no floats.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        match self.stored(name)?.dtype {
            Dtype::F16 => Ok(self.elements::<f16>(name)?.iter().map(|value| value.to_f32()).collect()),
            Dtype::Bf16 => Ok(self.elements::<bf16>(name)?.iter().map(|value| value.to_f32()).collect()),
            Dtype::F64 => Ok(self.elements::<f64>(name)?.iter().map(|value| value.to_f32()).collect()),
            _ => self.elements::<f32>(name),
        }
    }

    /// The tensors whose names start with `prefix`, without it.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is none.
    pub fn under(&self, prefix: &str) -> Result<Self> {
        let stripped =
            |(name, stored): (&String, &Stored)| Some((name.strip_prefix(prefix)?.to_owned(), stored.clone()));
        let tensors: BTreeMap<_, _> = self.tensors.iter().filter_map(stripped).collect();
        if tensors.is_empty() {
            return Err(Error::Weights(format!("{}: no tensor \"{prefix}...\"", self.name)));
        }
        Ok(Self { name: self.name.clone(), bytes: self.bytes.clone(), tensors, metadata: self.metadata.clone() })
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        self.tensors.get(name).ok_or_else(|| Error::Weights(format!("{}: no tensor \"{name}\"", self.name)))
    }

    /// Which of these notes' JSON, if there are any: the hyper-parameters that shapes cannot tell.
    ///
    /// # Errors
    /// [`Error::Weights`] if the note is not JSON.
    pub fn config(&self) -> Result<Config> {
        let text = self.metadata("config").unwrap_or("{}");
        Config::parse(text).map_err(|error| Error::Weights(format!("{}: metadata \"config\": {error}", self.name)))
    }
}

/// Hyper-parameters under the keys of the official configurations.
#[derive(Debug, Clone)]
pub struct Config(serde_json::Value);

impl Config {
    /// A count.
    #[must_use]
    pub fn count(&self, key: &str) -> Option<usize> {
        self.0.get(key)?.as_u64()?.try_into().ok()
    }

    /// A number.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<f32> {
        self.0.get(key)?.as_f64().map(|number| number.to_f32())
    }

    /// A truth value.
    #[must_use]
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.0.get(key)?.as_bool()
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// If the text is not JSON.
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text).map(Self)
    }

    /// A text.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }

    /// What stands under a key.
    #[must_use]
    pub fn at(&self, key: &str) -> Option<Self> {
        self.0.get(key).cloned().map(Self)
    }

    /// A list of configurations.
    #[must_use]
    pub fn list(&self, key: &str) -> Option<Vec<Self>> {
        Some(self.0.get(key)?.as_array()?.iter().cloned().map(Self).collect())
    }

    /// A list of counts.
    #[must_use]
    pub fn counts(&self, key: &str) -> Option<Vec<usize>> {
        self.0.get(key)?.as_array()?.iter().map(|count| count.as_u64()?.try_into().ok()).collect()
    }

    /// A list of numbers.
    #[must_use]
    pub fn numbers(&self, key: &str) -> Option<Vec<f32>> {
        self.0.get(key)?.as_array()?.iter().map(|number| Some(number.as_f64()?.to_f32())).collect()
    }
}

/// Brings tensors of a checkpoint to a device by name. What is missing, wrongly shaped or not finite is noted, so that
/// [`Notes::finish`] lists all of it at once; in the meantime zeros stand in.
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    prefix: String,
    notes: &'a Notes,
}

/// What a load has found so far.
#[derive(Debug, Default)]
pub struct Notes {
    problems: RefCell<Vec<String>>,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Loader<'a> {
    /// A loader of the whole checkpoint.
    #[must_use]
    pub fn new(checkpoint: &'a Checkpoint, device: &'a Device, notes: &'a Notes) -> Self {
        Self { checkpoint, device, prefix: String::new(), notes }
    }

    /// A loader of the names under `prefix` and a dot.
    #[must_use]
    pub fn at(&self, prefix: impl std::fmt::Display) -> Self {
        Self { prefix: format!("{}{prefix}.", self.prefix), ..*self }
    }

    /// The device that tensors go to.
    #[must_use]
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// The shape that the checkpoint has for a name.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&'a [usize]> {
        self.checkpoint.shape(&format!("{}{name}", self.prefix))
    }

    /// How many of `name.0`, `name.1`, ... there are.
    #[must_use]
    pub fn count(&self, name: &str) -> usize {
        let start = format!("{}{name}.", self.prefix);
        let indices = self
            .checkpoint
            .names()
            .filter_map(|name| name.strip_prefix(&start)?.split('.').next()?.parse::<usize>().ok());
        indices.max().map_or(0, |last| last + 1)
    }

    /// Whether any name starts with `name` and a dot.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let start = format!("{}{name}.", self.prefix);
        self.checkpoint.names().any(|name| name.starts_with(&start))
    }

    /// A length that must be there: axis `axis` of the shape of `name`; 0 and a note if it is not.
    pub fn length(&self, name: &str, axis: usize) -> usize {
        let length = self.shape(name).and_then(|shape| shape.get(axis).copied());
        if length.is_none() {
            self.problem(format!("missing \"{}{name}\", whose shape tells the model's size", self.prefix));
        }
        length.unwrap_or(0)
    }

    /// A float tensor in f32, whatever it is stored in: for biases, norms' weights and tables.
    ///
    /// # Errors
    /// [`Error::Op`] if the device has no room.
    pub fn vector(&self, name: &str, shape: &[usize]) -> Result<Tensor<f32>> {
        let whole = format!("{}{name}", self.prefix);
        if !self.check(&whole, shape) {
            return Ok(Tensor::zeros(self.device, shape)?);
        }
        let values = self.checkpoint.floats(&whole)?;
        self.check_finite(&whole, values.iter().all(|value| value.is_finite()));
        Ok(Tensor::from_vec(self.device, shape, values)?)
    }

    /// A learned matrix, kernel or table, kept in the type it is stored in. An i8 tensor comes with `NAME.scale`.
    ///
    /// # Errors
    /// [`Error::Op`] if the device has no room.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let whole = format!("{}{name}", self.prefix);
        if !self.check(&whole, shape) {
            return Ok(Tensor::<f32>::zeros(self.device, shape)?.into());
        }
        Ok(match self.checkpoint.dtype(&whole) {
            Some(Dtype::F16) => self.float_weight::<f16>(&whole, shape)?.into(),
            Some(Dtype::Bf16) => self.float_weight::<bf16>(&whole, shape)?.into(),
            Some(Dtype::I8) => {
                let values = Tensor::from_vec(self.device, shape, self.checkpoint.elements::<i8>(&whole)?)?;
                let scale = self.vector(&format!("{name}.scale"), &shape[..1])?;
                Weight::int8(values, scale)?
            }
            _ => {
                let values = self.checkpoint.floats(&whole)?;
                self.check_finite(&whole, values.iter().all(|value| value.is_finite()));
                Tensor::from_vec(self.device, shape, values)?.into()
            }
        })
    }

    fn float_weight<T: Float>(&self, name: &str, shape: &[usize]) -> Result<Tensor<T>> {
        let values = self.checkpoint.elements::<T>(name)?;
        self.check_finite(name, values.iter().all(|value| value.to_f32().is_finite()));
        Ok(Tensor::from_vec(self.device, shape, values)?)
    }

    fn check(&self, name: &str, shape: &[usize]) -> bool {
        self.notes.used.borrow_mut().insert(name.to_owned());
        match self.checkpoint.shape(name) {
            None => self.problem(format!("missing \"{name}\", expected shape {shape:?}")),
            Some(got) if got != shape => self.problem(format!("\"{name}\" has shape {got:?}, expected {shape:?}")),
            Some(_) => return true,
        }
        false
    }

    fn check_finite(&self, name: &str, finite: bool) {
        if !finite {
            self.problem(format!("\"{name}\" holds NaN or infinity"));
        }
    }

    fn problem(&self, problem: String) {
        self.notes.problems.borrow_mut().push(problem);
    }
}

impl Notes {
    /// Notes a problem that is not about one tensor.
    pub fn add(&self, problem: String) {
        self.problems.borrow_mut().push(problem);
    }

    /// Ends a load: every problem, and every tensor that nothing asked for, is listed in one error. Names that end
    /// with one of `ignored` may go unused: buffers that official files carry and inference does not need.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is anything to list.
    pub fn finish(&self, checkpoint: &Checkpoint, ignored: &[&str]) -> Result<()> {
        let used = self.used.borrow();
        let mut problems = self.problems.borrow().clone();
        let extra = checkpoint.names().filter(|name| !used.contains(*name) && !name.ends_with(".scale"));
        let extra = extra.filter(|name| !ignored.iter().any(|ignored| name.ends_with(ignored)));
        problems.extend(extra.map(|name| format!("unexpected \"{name}\"")));
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::Weights(format!(
            "{}: {} tensors do not fit this model:\n  {}",
            checkpoint.name(),
            problems.len(),
            problems.join("\n  ")
        )))
    }
}
