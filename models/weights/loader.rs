//! Tensors of a checkpoint, checked and brought to a device.

use std::cell::RefCell;
use std::collections::BTreeSet;

use smalti::{Device, Dtype, Float, Tensor, Weight, bf16, f16};

use super::Checkpoint;
use crate::{Error, Result};

/// Brings tensors of a checkpoint to a device by name. What is missing, wrongly shaped or not finite is noted, so that
/// [`Checkpoint::build`] lists all of it at once; in the meantime zeros stand in.
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    prefix: String,
    notes: &'a Notes,
}

/// More than any tensor of the models here has: 2^30.
const MOST_ELEMENTS: usize = 1 << 30;

/// What a load has found so far.
#[derive(Debug, Default)]
pub struct Notes {
    problems: RefCell<Vec<String>>,
    /// Names that were asked for.
    used: RefCell<BTreeSet<String>>,
    /// Names that have a problem in the list.
    wrong: RefCell<BTreeSet<String>>,
}

impl Checkpoint {
    /// Makes something of these tensors: all of them, but for those whose names end with one of `unread`, buffers that
    /// official files carry and inference does not need. What does not fit is listed in one error, also where it made
    /// `make` itself fail, as a size that nothing tells does.
    ///
    /// # Errors
    /// [`Error::Weights`] with the system and every tensor that is missing, wrongly shaped, not finite or not asked for;
    /// what `make` gives if all fits.
    pub fn build<M>(
        &self,
        device: &Device,
        unread: &[&str],
        make: impl FnOnce(&Loader<'_>, &Notes) -> Result<M>,
    ) -> Result<M> {
        let notes = Notes::default();
        let made = make(&Loader { checkpoint: self, device, prefix: String::new(), notes: &notes }, &notes);
        if made.is_err() && !notes.is_empty() {
            return Err(notes.error(self));
        }
        let made = made?;
        notes.finish(self, unread)?;
        Ok(made)
    }
}

impl<'a> Loader<'a> {
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

    /// How many of `name.0`, `name.1`, ... there are, counting those missing between; never more than there are tensors.
    #[must_use]
    pub fn count(&self, name: &str) -> usize {
        let start = format!("{}{name}.", self.prefix);
        let indices = self
            .checkpoint
            .names()
            .filter_map(|name| name.strip_prefix(&start)?.split('.').next()?.parse::<usize>().ok());
        // A name with an absurd index is no reason to list as many missing layers.
        indices.max().map_or(0, |last| last.saturating_add(1)).min(self.checkpoint.names().count())
    }

    /// Whether any name starts with `name` and a dot.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let start = format!("{}{name}.", self.prefix);
        self.checkpoint.names().any(|name| name.starts_with(&start))
    }

    /// A length that must be there: axis `axis` of the shape of `name`; 0 and a note if it is not.
    pub fn length(&self, name: &str, axis: usize) -> usize {
        match self.told(name) {
            Some(shape) if shape.get(axis).is_some_and(|length| *length > 0) => return shape[axis],
            Some(shape) => self.note(name, format!("has shape {shape:?}, expected a length on axis {axis}")),
            None => {}
        }
        0
    }

    /// The shape of a tensor that must have so many axes; zeros and a note if it has not.
    pub fn lengths<const AXES: usize>(&self, name: &str) -> [usize; AXES] {
        if let Some(shape) = self.told(name) {
            match shape.try_into() {
                Ok(lengths) if !shape.contains(&0) => return lengths,
                _ => self.note(name, format!("has shape {shape:?}, expected {AXES} lengths above 0")),
            }
        }
        [0; AXES]
    }

    /// A shape that tells the model's size; a note if there is no such tensor.
    fn told(&self, name: &str) -> Option<&'a [usize]> {
        let shape = self.shape(name);
        if shape.is_none() {
            self.note(name, "is missing, and its shape would tell the model's size".to_owned());
        }
        shape
    }

    /// A float tensor in f32, whatever it is stored in: for biases, norms' weights and tables.
    ///
    /// # Errors
    /// [`Error::Op`] if the device has no room.
    pub fn vector(&self, name: &str, shape: &[usize]) -> Result<Tensor<f32>> {
        let whole = format!("{}{name}", self.prefix);
        if !self.check(&whole, shape, false)? {
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
        if !self.check(&whole, shape, true)? {
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

    /// Whether the tensor is there with this shape and a type that is taken; a note if not. Ends the load if zeros
    /// could not stand in for it.
    fn check(&self, name: &str, shape: &[usize], int8: bool) -> Result<bool> {
        self.notes.used.borrow_mut().insert(name.to_owned());
        let Some(got) = self.checkpoint.shape(name) else {
            self.problem(name, format!("is missing, expected shape {shape:?}"));
            return self.stand_in(shape);
        };
        // A length of 0 is one that could not be told, which has been noted.
        if got != shape && !shape.contains(&0) {
            self.problem(name, format!("has shape {got:?}, expected {shape:?}"));
        }
        let fits = match self.checkpoint.dtype(name) {
            Some(Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F64) => true,
            Some(Dtype::I8) => int8,
            _ => false,
        };
        if !fits {
            self.problem(name, "does not hold floats".to_owned());
        }
        if got == shape && fits { Ok(true) } else { self.stand_in(shape) }
    }

    /// No, but zeros of this shape can stand in; an error with all notes so far if they would need absurd memory.
    fn stand_in(&self, shape: &[usize]) -> Result<bool> {
        let elements = shape.iter().try_fold(1usize, |product, length| product.checked_mul(*length));
        if elements.is_none_or(|elements| elements > MOST_ELEMENTS) {
            return Err(self.notes.error(self.checkpoint));
        }
        Ok(false)
    }

    fn check_finite(&self, name: &str, finite: bool) {
        if !finite {
            self.problem(name, "holds NaN or infinity".to_owned());
        }
    }

    /// Notes a problem of one tensor. Only the first of each is kept: the others follow from it.
    pub fn note(&self, name: &str, problem: String) {
        self.problem(&format!("{}{name}", self.prefix), problem);
    }

    fn problem(&self, name: &str, problem: String) {
        if self.notes.wrong.borrow_mut().insert(name.to_owned()) {
            self.notes.add(format!("\"{name}\" {problem}"));
        }
    }
}

impl Notes {
    /// Notes a problem of the model as a whole.
    pub fn add(&self, problem: String) {
        self.problems.borrow_mut().push(problem);
    }

    /// Whether nothing has been noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    /// Ends a load: every problem, and every tensor that nothing asked for, in one error.
    fn finish(&self, checkpoint: &Checkpoint, unread: &[&str]) -> Result<()> {
        let used = self.used.borrow();
        let extra = checkpoint.names().filter(|name| {
            // The scale of a tensor that was not as expected is no second problem.
            let of_used = name.strip_suffix(".scale").is_some_and(|matrix| used.contains(matrix));
            !used.contains(*name) && !of_used && !unread.iter().any(|unread| name.ends_with(unread))
        });
        self.problems.borrow_mut().extend(extra.map(|name| format!("\"{name}\" is unexpected")));
        if self.problems.borrow().is_empty() { Ok(()) } else { Err(self.error(checkpoint)) }
    }

    /// All problems so far, for a load that cannot go on.
    #[must_use]
    pub fn error(&self, checkpoint: &Checkpoint) -> Error {
        let problems = self.problems.borrow();
        let count = problems.len();
        let what = if count == 1 { "1 thing does" } else { &format!("{count} things do") };
        let list = problems.join("\n  ");
        let model = checkpoint.system().unwrap_or("this model");
        Error::Weights(format!("{}: {what} not fit {model}:\n  {list}", checkpoint.name()))
    }
}
