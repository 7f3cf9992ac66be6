//! What a class-conditional model is told of the class.

use smalti::{Float, Tensor, Weight, embedding};

use crate::weights::Loader;
use crate::{Error, Result};

/// A row per class, then one for no class.
pub struct ClassTable {
    table: Weight,
    classes: u32,
}

impl ClassTable {
    /// Loads a table of `classes + 1` rows of `dim` channels.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, name: &str, dim: usize) -> Result<Self> {
        let rows = loader.length(name, 0);
        let classes = u32::try_from(rows.saturating_sub(1));
        let classes = classes.map_err(|_| Error::Weights(format!("\"{name}\" has {rows} rows")))?;
        Ok(Self { table: loader.weight(name, &[rows, dim])?, classes })
    }

    /// How many classes there are.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes as usize
    }

    /// The rows of `labels`, then, if `guided`, as many of no class: `[batch or 2 batch, 1, dim]`.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such class; [`Error::Op`] if the device fails.
    pub fn rows<T: Float>(&self, labels: &[u32], guided: bool) -> Result<Tensor<T>> {
        if let Some(label) = labels.iter().find(|label| **label >= self.classes) {
            return Err(Error::Request(format!("class {label}, expected 0 to {}", self.classes.saturating_sub(1))));
        }
        let none = labels.iter().filter(|_| guided).map(|_| self.classes);
        let ids: Vec<_> = labels.iter().copied().chain(none).collect();
        let ids = Tensor::from_vec(self.table.device(), &[ids.len(), 1], ids)?;
        Ok(embedding::embedding(&self.table, &ids)?)
    }
}
