//! Checkpoints: tensors by name, from files of safetensors or PyTorch, or from the program itself.

mod config;
mod file;
mod loader;
mod official;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use smalti::{Dtype, Element, Float as _, bf16, f16};

use crate::{Error, Result};
pub use config::Config;
use file::Bytes;
pub use loader::{Loader, Notes};

/// Names and shapes of tensors, and the file's own notes. A file's bytes are read when a tensor is asked for, one
/// tensor at a time.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    name: String,
    tensors: BTreeMap<String, Stored>,
    metadata: BTreeMap<String, String>,
}

/// One tensor as it lies in its file.
#[derive(Debug, Clone)]
struct Stored {
    /// The element type, or the file's name of one that is not read here.
    dtype: std::result::Result<Dtype, String>,
    shape: Vec<usize>,
    bytes: Bytes,
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

/// Whether the names in a system's state dict tell it from all others, so that [`Checkpoint::open_all`] knows it; if
/// not, [`Checkpoint::open_as`] must be told. `None` for systems whose published names are not known here: a file must
/// have those of the system's loader.
#[must_use]
pub fn names_tell(system: &str) -> Option<bool> {
    official::names_tell(system)
}

impl Checkpoint {
    /// Opens a safetensors file, or one of PyTorch (`.pt`, `.pth`; zip or legacy), told apart by their first bytes.
    /// Of the latter nothing is executed: the pickle is read as data, and one that would call anything but what
    /// tensors are made with is refused.
    ///
    /// # Errors
    /// [`Error::Weights`] with the file's name, if it cannot be read, is not whole, or is neither.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let (tensors, metadata) = file::open(path).map_err(|reason| Error::Weights(format!("{name}: {reason}")))?;
        Ok(Self { name, tensors, metadata })
    }

    /// Opens the files that together hold one model, as LlamaGen's and VAR's authors publish theirs: the transformer
    /// in one, the tokenizer in another, each with its official names, at the top or nested under a key (`model`,
    /// `module`, `state_dict`, ...). The names get the prefixes `gpt.`, `vq.`, `var.` and `vae.`; what lies beside a
    /// nested state dict (an optimiser, an average) is left out. A file that notes its `system` stays as it is.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::Weights`] if two files hold the same tensor.
    pub fn open_all<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        Self::open_as(None, paths)
    }

    /// As [`Checkpoint::open_all`] where the system is known, which some state dicts do not tell: FlexVAR's names are
    /// VAR's, D-AR's are LlamaGen's.
    ///
    /// # Errors
    /// As [`Checkpoint::open_all`]; [`Error::Request`] if a file notes another system.
    pub fn open_as<P: AsRef<Path>>(system: Option<&str>, paths: &[P]) -> Result<Self> {
        let mut whole = Self { name: String::new(), tensors: BTreeMap::new(), metadata: BTreeMap::new() };
        for path in paths {
            let Self { name, mut tensors, metadata } = Self::open(path.as_ref())?;
            match (metadata.get("system"), system) {
                (None, _) => tensors = official::prefixed(tensors, system),
                (Some(noted), Some(system)) if noted != system => {
                    return Err(Error::Request(format!("{name}: notes system {noted}, not {system}")));
                }
                (Some(_), _) => {}
            }
            if let Some(twice) = tensors.keys().find(|tensor| whole.tensors.contains_key(*tensor)) {
                return Err(Error::Weights(format!("{name}: tensor \"{twice}\" is in {} too", whole.name)));
            }
            whole.name = if whole.name.is_empty() { name } else { format!("{} + {name}", whole.name) };
            whole.tensors.append(&mut tensors);
            whole.metadata.extend(metadata);
        }
        if let Some(system) = system {
            whole.metadata.insert("system".to_owned(), system.to_owned());
        }
        Ok(whole)
    }

    /// The same tensors with the prefixes that [`Checkpoint::open_all`] gives official names.
    #[must_use]
    pub fn prefixed(self) -> Self {
        Self { tensors: official::prefixed(self.tensors, None), ..self }
    }

    /// Takes the bytes of a safetensors file; `name` is for messages.
    ///
    /// # Errors
    /// [`Error::Weights`] if the header is corrupt or a tensor reaches beyond the end.
    pub fn from_bytes(name: &str, bytes: Cow<'static, [u8]>) -> Result<Self> {
        let (tensors, metadata) =
            file::from_memory(&Arc::new(bytes)).map_err(|reason| Error::Weights(format!("{name}: {reason}")))?;
        Ok(Self { name: name.to_owned(), tensors, metadata })
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

    /// The system it belongs to: its own note, else what the names of its tensors tell.
    #[must_use]
    pub fn system(&self) -> Option<&str> {
        self.metadata("system").or_else(|| official::system(&self.tensors))
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

    /// The element type of a tensor; none if there is no such tensor or its type is not read here.
    #[must_use]
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name)?.dtype.as_ref().ok().copied()
    }

    /// The elements of a tensor, which must hold `E`.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is no such tensor, it holds another type, or its bytes cannot be read.
    pub fn elements<E: Element>(&self, name: &str) -> Result<Vec<E>> {
        let stored = self.stored(name)?;
        let wrong = |reason: String| Error::Weights(format!("{}: tensor \"{name}\" {reason}", self.name));
        match &stored.dtype {
            Ok(dtype) if *dtype == E::DTYPE => {}
            Ok(dtype) => return Err(wrong(format!("holds {dtype}, expected {}", E::DTYPE))),
            Err(other) => return Err(wrong(format!("holds {other}, expected {}", E::DTYPE))),
        }
        let bytes = stored.bytes.read().map_err(|error| wrong(format!("cannot be read: {error}")))?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    /// The elements of a float tensor of any type, widened.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is no such tensor, it holds no floats, or its bytes cannot be read.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        match self.stored(name)?.dtype {
            Ok(Dtype::F16) => Ok(self.elements::<f16>(name)?.iter().map(|value| value.to_f32()).collect()),
            Ok(Dtype::Bf16) => Ok(self.elements::<bf16>(name)?.iter().map(|value| value.to_f32()).collect()),
            Ok(Dtype::F64) => Ok(self.elements::<f64>(name)?.iter().map(|value| value.to_f32()).collect()),
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
        Ok(Self { name: self.name.clone(), tensors, metadata: self.metadata.clone() })
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        self.tensors.get(name).ok_or_else(|| Error::Weights(format!("{}: no tensor \"{name}\"", self.name)))
    }

    /// What the file notes of hyper-parameters that shapes cannot tell; nothing, if it notes none.
    ///
    /// # Errors
    /// [`Error::Weights`] if the note is not JSON.
    pub fn config(&self) -> Result<Config> {
        let text = self.metadata("config").unwrap_or("{}");
        Config::parse(text).map_err(|error| Error::Weights(format!("{}: metadata \"config\": {error}", self.name)))
    }

    /// Adds a count to what the file notes.
    ///
    /// # Errors
    /// [`Error::Request`] if the file notes another value.
    pub fn assume(&mut self, key: &str, count: usize) -> Result<()> {
        let config = self.config()?;
        match config.count(key) {
            Some(noted) if noted != count => {
                Err(Error::Request(format!("{}: notes {key} {noted}, not {count}", self.name)))
            }
            _ => {
                self.metadata.insert("config".to_owned(), config.with(key, count).to_string());
                Ok(())
            }
        }
    }
}
