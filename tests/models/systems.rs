//! Checkpoints that do not fit their system: what is wrong is named, and nothing panics.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::{SafeTensors, tensor::TensorView};
use smalti::{Device, Dtype};
use smalti_models::{Error, conform};

/// Weights that official checkpoints hold and inference does not read.
const UNREAD: [&str; 6] = [
    "condition_mlp.uncond_embedding",
    "condition_embeddings",
    "condition_norm",
    "ema_vocab_hit_SV",
    "mask_token",
    "zero_k_bias",
];

/// Weights without which a checkpoint is one of another kind: LARP's for frames, NAR's for pictures, RAR's transformer.
const TELLING: [(&str, &str); 3] = [
    ("larp_ar_class", "w.cls_embedding.embedding_table.weight"),
    ("nar_video", "w.abs_pe"),
    ("rar_vqgan", "w.quantize.embedding.weight"),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/dumps/models")
}

fn dump(name: &str) -> Vec<u8> {
    let path = folder().join(format!("{name}.safetensors"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The dumps of whole models by their names, which start with their system's.
fn dumps() -> BTreeMap<String, Vec<u8>> {
    let names = std::fs::read_dir(folder()).expect("dumps").filter_map(|entry| {
        Some(entry.expect("an entry").file_name().to_str()?.strip_suffix(".safetensors")?.to_owned())
    });
    names.map(|name| (name.clone(), dump(&name))).collect()
}

fn notes(whole: &[u8]) -> std::collections::HashMap<String, String> {
    SafeTensors::read_metadata(whole).expect("whole").1.metadata().clone().expect("a dump has notes")
}

/// The dump with these tensors left out, or with an axis of length 1 put before theirs.
fn changed(whole: &[u8], names: &[&str], left_out: bool, path: &Path) {
    let tensors = SafeTensors::deserialize(whole).expect("whole");
    let views = tensors.iter().filter_map(|(name, tensor)| match (names.contains(&name), left_out) {
        (true, true) => None,
        (true, false) => {
            let shape = [&[1][..], tensor.shape()].concat();
            Some((name, TensorView::new(tensor.dtype(), shape, tensor.data()).expect("as many bytes")))
        }
        (false, _) => Some((name, tensor)),
    });
    safetensors::serialize_to_file(views, Some(notes(whole)), path).expect("room for a dump");
}

fn run(path: &Path) -> Result<conform::Report, Error> {
    conform::run(path, &Device::cpu(), Dtype::F32)
}

/// Runs each dump with one weight of each kind changed in turn, those of one layer standing for all: an error that names
/// the system and the weight, or else what `accepted` says of the report.
fn each_weight_changed(left_out: bool, accepted: impl Fn(&conform::Report) -> bool) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("changed.safetensors");
    for (name, whole) in dumps() {
        let system = &notes(&whole)["system"];
        let tensors = SafeTensors::deserialize(&whole).expect("whole");
        let mut kinds = BTreeSet::new();
        for weight in tensors.names() {
            let Some(official) = weight.strip_prefix("w.") else { continue };
            if !kinds.insert(weight.replace(|c: char| c.is_ascii_digit(), "")) {
                continue;
            }
            changed(&whole, &[weight], left_out, &path);
            let unread = UNREAD.iter().any(|unread| weight.contains(unread));
            match run(&path) {
                Ok(report) => assert!(unread || accepted(&report), "{name}: nobody missed {weight}"),
                Err(_) if left_out && TELLING.contains(&(&name, weight)) => {}
                Err(Error::Weights(message)) => {
                    assert!(message.contains(official) && message.contains(system), "{name}, {weight}: {message}");
                }
                Err(other) => panic!("{name}, {weight}: {other}"),
            }
        }
    }
}

#[test]
fn a_weight_of_another_shape_is_named() {
    each_weight_changed(false, |_| false);
}

#[test]
fn a_weight_that_is_missing_is_named_or_missed() {
    each_weight_changed(true, |report| report.outcomes.iter().any(|outcome| !outcome.agrees));
}

/// Systems whose networks have the same names: only their users can tell them apart.
const ALIKE: [&str; 3] = ["dar_diffusion", "llamagen", "sjd"];

#[test]
fn weights_of_another_system_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("changed.safetensors");
    let mut dumps = dumps();
    // Some hold the decisions of a decoder without a network.
    dumps
        .retain(|_, whole| SafeTensors::deserialize(whole).expect("whole").names().iter().any(|n| n.starts_with("w.")));
    let systems: BTreeSet<_> = dumps.values().map(|whole| notes(whole)["system"].clone()).collect();
    for (name, whole) in &dumps {
        let mut notes = notes(whole);
        let own = notes["system"].clone();
        for system in systems.iter().filter(|system| **system != own) {
            if ALIKE.contains(&own.as_str()) && ALIKE.contains(&system.as_str()) {
                continue;
            }
            notes.insert("system".to_owned(), system.clone());
            let tensors = SafeTensors::deserialize(whole).expect("whole");
            safetensors::serialize_to_file(tensors.iter(), Some(notes.clone()), &path).expect("room");
            match run(&path) {
                Err(Error::Weights(message)) => {
                    assert!(message.contains(&format!("not fit {system}:")), "{name} as {system}: {message}");
                }
                other => panic!("{name} as {system}: {other:?}"),
            }
        }
    }
}

#[test]
fn all_that_does_not_fit_is_listed_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("changed.safetensors");
    let mut systems = BTreeSet::new();
    for (name, whole) in dumps() {
        let tensors = SafeTensors::deserialize(&whole).expect("whole");
        // Norms and biases tell no size, so that what does not fit about them is found only in the end.
        let plain = |name: &&str| {
            let vector = name.ends_with(".bias") || (name.contains("norm") && name.ends_with(".weight"));
            vector && name.starts_with("w.") && !UNREAD.iter().any(|unread| name.contains(unread))
        };
        let mut names: Vec<_> = tensors.names().into_iter().filter(plain).collect();
        names.sort_unstable();
        let [first, .., last] = names[..] else { continue };
        systems.insert(notes(&whole)["system"].clone());
        for left_out in [false, true] {
            changed(&whole, &[first, last], left_out, &path);
            match run(&path) {
                Err(Error::Weights(message)) => {
                    for weight in [first, last] {
                        let official = weight.trim_start_matches("w.");
                        assert!(message.contains(official), "{name}: {official} is not in {message}");
                    }
                }
                other => panic!("{name} without {first} and {last}: {other:?}"),
            }
        }
    }
    // All but the decoders without a network.
    assert_eq!(systems.len(), 28, "{systems:?}");
}
