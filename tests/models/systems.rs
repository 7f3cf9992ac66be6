//! Checkpoints that do not fit their system: what is wrong is named, and nothing panics.

use std::path::Path;

use safetensors::{SafeTensors, tensor::TensorView};
use smalti::{Device, Dtype};
use smalti_models::{Error, conform};

/// A dump of each system whose every weight is put to the test, and two weights that tell no size.
const DUMPS: [(&str, [&str; 2]); 8] = [
    ("aim_group", ["w.mamba.backbone.layers.0.mixer.out_proj.weight", "w.mamba.backbone.norm_f.weight"]),
    ("aim_plain", ["w.mamba.backbone.layers.0.mixer.D", "w.mamba.backbone.final_layer.norm_final.weight"]),
    ("controlar_c2i", ["w.layers.0.attention.wo.weight", "w.adapter_mlp.fc2.weight"]),
    ("controlar_t2i", ["w.norm.weight", "w.adapter.model.encoder.layer.0.norm1.bias"]),
    ("hart_plain", ["w.hart.blocks.0.attn.q_bias", "w.hart.head.bias"]),
    ("infinity_patchify", ["w.block_chunks.0.module.0.ca_norm.weight", "w.text_norm.weight"]),
    ("infinity_plain", ["w.block_chunks.0.module.0.sa.proj.bias", "w.head_nm.ada_lin.1.bias"]),
    ("mvar_l2", ["w.mvar.blocks.0.mamba.out_proj.weight", "w.mvar.head_nm.ada_lin.1.bias"]),
];

fn dump(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/dumps/models").join(format!("{name}.safetensors"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The dump with these tensors left out, or with an axis of length 1 put before theirs.
fn changed(whole: &[u8], names: &[&str], left_out: bool, path: &Path) {
    let notes = SafeTensors::read_metadata(whole).expect("whole").1.metadata().clone();
    let tensors = SafeTensors::deserialize(whole).expect("whole");
    let views = tensors.iter().filter_map(|(name, tensor)| match (names.contains(&name), left_out) {
        (true, true) => None,
        (true, false) => {
            let shape = [&[1][..], tensor.shape()].concat();
            Some((name, TensorView::new(tensor.dtype(), shape, tensor.data()).expect("as many bytes")))
        }
        (false, _) => Some((name, tensor)),
    });
    safetensors::serialize_to_file(views, notes, path).expect("room for a dump");
}

/// Weights that official checkpoints hold and inference does not read.
fn unread(weight: &str) -> bool {
    ["condition_mlp.uncond_embedding", "condition_embeddings", "condition_norm", "mask_token"]
        .iter()
        .any(|unread| weight.contains(unread))
}

fn run(path: &Path) -> Result<conform::Report, Error> {
    conform::run(path, &Device::cpu(), Dtype::F32)
}

/// Runs each dump with each weight changed in turn: an error that lists it, or else what `accepted` says of the report.
fn each_weight_changed(left_out: bool, accepted: impl Fn(&conform::Report) -> bool) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("changed.safetensors");
    for (name, _) in DUMPS {
        let whole = dump(name);
        let tensors = SafeTensors::deserialize(&whole).expect("whole");
        for weight in tensors.names().into_iter().filter(|weight| weight.starts_with("w.")) {
            changed(&whole, &[weight], left_out, &path);
            match run(&path) {
                Err(Error::Weights(_)) => {}
                Err(other) => panic!("{name}, {weight}: {other}"),
                Ok(report) => assert!(unread(weight) || accepted(&report), "{name}: nobody missed {weight}"),
            }
        }
    }
}

#[test]
fn a_weight_of_another_shape_is_an_error() {
    each_weight_changed(false, |_| false);
}

#[test]
fn a_weight_that_is_missing_is_an_error_or_is_missed() {
    each_weight_changed(true, |report| report.outcomes.iter().any(|outcome| !outcome.agrees));
}

#[test]
fn all_that_does_not_fit_is_listed_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("changed.safetensors");
    for (name, weights) in DUMPS {
        for left_out in [false, true] {
            changed(&dump(name), &weights, left_out, &path);
            match run(&path) {
                Err(Error::Weights(message)) => {
                    for weight in weights {
                        let official = weight.trim_start_matches("w.");
                        assert!(message.contains(official), "{name}: {official} is not in {message}");
                    }
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
