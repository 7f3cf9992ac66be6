//! Checkpoints put together from the weights of dumps, as a generator needs them.

#[path = "resized.rs"]
mod resized;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use resized::Stored;

/// Some tensors of a dump.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    dump: &'a str,
    /// What their names start with there, and here.
    names: [&'a str; 2],
    /// Axes of this length, of tensors whose names here start so, and their new length.
    lengths: &'a [(&'a str, usize, usize)],
}

impl<'a> Part<'a> {
    /// The tensors whose names start with `from`, for which `to` is put.
    pub const fn new(dump: &'a str, from: &'a str, to: &'a str) -> Self {
        Self { dump, names: [from, to], lengths: &[] }
    }

    /// With axes of other lengths, of tensors whose names start so.
    pub const fn resized(self, lengths: &'a [(&'a str, usize, usize)]) -> Self {
        Self { lengths, ..self }
    }
}

/// A file with these parts; of two tensors of one name the first counts. Of the configurations the first
/// that has a key counts, before all of them `config`, where `null` takes a key away.
pub fn weights(folder: &Path, parts: &[Part<'_>], config: &[(&str, &str)]) -> PathBuf {
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
    let mut noted: serde_json::Map<_, _> = config.iter().map(|(key, value)| ((*key).to_owned(), json(value))).collect();
    let mut tensors: BTreeMap<String, Stored> = BTreeMap::new();
    for Part { dump, names: [from, to], lengths } in parts {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/dumps/models/{dump}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a dump");
        let of_dump = json(&header.metadata().as_ref().expect("a dump has notes")["config"]);
        for (key, value) in of_dump.as_object().expect("an object") {
            noted.entry(key.clone()).or_insert(value.clone());
        }
        let held = SafeTensors::deserialize(&bytes).expect("a dump");
        let mut own: BTreeMap<_, _> = held
            .iter()
            .filter_map(|(name, tensor)| Some((format!("{to}{}", name.strip_prefix(from)?), Stored::from(tensor))))
            .collect();
        assert!(!own.is_empty(), "{dump}: nothing is named {from}");
        for (start, before, after) in *lengths {
            let named =
                own.iter_mut().filter(|(name, tensor)| name.starts_with(start) && tensor.shape.contains(before));
            let changed = named.map(|(_, tensor)| *tensor = tensor.resized(*before, *after)).count();
            assert!(changed > 0, "{dump}: {start} has no length {before}");
        }
        // What a part before has stays.
        own.into_iter().for_each(|(name, tensor)| {
            tensors.entry(name).or_insert(tensor);
        });
    }
    noted.retain(|_, value| !value.is_null());
    let notes = [("config".to_owned(), serde_json::Value::Object(noted).to_string())].into_iter().collect();
    let views = tensors.iter().map(|(name, tensor)| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).expect("as long as its shape");
        (name.as_str(), view)
    });
    let file = folder.join("parts.safetensors");
    safetensors::serialize_to_file(views, Some(notes), &file).expect("room");
    file
}
