//! Dumps of PyTorch repeated by the parts of this crate.

use std::path::{Path, PathBuf};

use smalti::{Device, Dtype};
use smalti_models::Error;
use smalti_models::conform;

fn dumps(kind: &str) -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/dumps").join(kind);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&own)
        .unwrap_or_else(|error| panic!("{}: {error}", own.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{}: no dumps", own.display());
    paths
}

/// Every output of every dump of this kind, all departures listed at once.
fn agree(kind: &str, device: &Device) {
    let mut departures = Vec::new();
    for path in dumps(kind) {
        match conform::run(&path, device, Dtype::F32) {
            Ok(report) => {
                assert!(!report.outcomes.is_empty(), "{}: nothing was compared", path.display());
                for outcome in report.outcomes.iter().filter(|outcome| !outcome.agrees) {
                    departures.push(format!(
                        "{} {device} {} {:?}: error {:e}, allowed {:e}, first at {:?}",
                        path.display(),
                        outcome.output,
                        outcome.shape,
                        outcome.max_abs,
                        outcome.allowed,
                        outcome.first
                    ));
                }
            }
            Err(error) => departures.push(format!("{} {device}: {error}", path.display())),
        }
    }
    assert!(departures.is_empty(), "{}", departures.join("\n"));
}

/// A GPU, software or not: `wgpu` or `cuda`. Where `SMALTI_REQUIRE` does not name it, its absence is printed.
fn gpu(id: &str) -> Option<Device> {
    match Device::open(id) {
        Ok(device) => Some(device),
        Err(reason) => {
            let required = std::env::var("SMALTI_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == id), "SMALTI_REQUIRE names {id}: {reason}");
            println!("SKIPPED on {id}: {reason}");
            None
        }
    }
}

fn on(id: &str) -> Device {
    Device::open(id).expect("a device of the host")
}

#[test]
fn ops_agree_with_their_dumps_on_the_cpu() {
    agree("ops", &on("cpu"));
}

#[test]
fn models_agree_with_their_dumps_on_the_reference() {
    agree("models", &on("reference"));
}

#[test]
fn models_agree_with_their_dumps_on_the_cpu() {
    agree("models", &on("cpu"));
}

#[test]
fn a_file_cut_short_is_an_error() {
    let whole = std::fs::read(&dumps("models")[0]).expect("a dump");
    let folder = tempfile::tempdir().expect("a folder");
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        let path = folder.path().join("cut.safetensors");
        std::fs::write(&path, &whole[..length]).expect("room for a dump");
        let outcome = conform::run(&path, &on("cpu"), Dtype::F32);
        assert!(matches!(outcome, Err(Error::Weights(_))), "cut at {length}: {outcome:?}");
    }
}

#[test]
fn ops_agree_with_their_dumps_on_wgpu() {
    if let Some(device) = gpu("wgpu") {
        agree("ops", &device);
    }
}

#[test]
fn ops_agree_with_their_dumps_on_cuda() {
    if let Some(device) = gpu("cuda") {
        agree("ops", &device);
    }
}

#[test]
fn models_agree_with_their_dumps_on_wgpu() {
    if let Some(device) = gpu("wgpu") {
        agree("models", &device);
    }
}

#[test]
fn models_agree_with_their_dumps_on_cuda() {
    if let Some(device) = gpu("cuda") {
        agree("models", &device);
    }
}

#[test]
fn the_models_here_draw_the_same_tokens_on_cpu_and_wgpu() {
    if let Some(device) = gpu("wgpu") {
        draws_the_tokens_of_the_cpu(&device);
    }
}

#[test]
fn the_models_here_draw_the_same_tokens_on_cpu_and_cuda() {
    if let Some(device) = gpu("cuda") {
        draws_the_tokens_of_the_cpu(&device);
    }
}

fn draws_the_tokens_of_the_cpu(gpu: &Device) {
    for model in ["llamagen", "var"] {
        let checkpoint = smalti_models::weights::embedded(model).expect("weights in the program");
        let draw = |device: &Device, seed: u64| {
            let generator = smalti_models::zoo::load::<f32>(&checkpoint, device).unwrap();
            let sampling = smalti_models::Sampling { seed, ..generator.sampling() };
            let go_on = &mut |_, _| std::ops::ControlFlow::Continue(());
            generator.draw(&[(seed % 10) as u32], 0, &sampling, go_on).unwrap().tokens
        };
        for seed in 1..=2 {
            assert_eq!(draw(&on("cpu"), seed), draw(gpu, seed), "{model} {gpu}, seed {seed}");
        }
    }
}

#[test]
fn an_unknown_op_or_system_is_a_request_that_names_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (key, name) in [("op", "teleport"), ("system", "hal9000")] {
        let path = folder.path().join("dump.safetensors");
        let header = format!(
            r#"{{"__metadata__":{{"{key}":"{name}"}},"out.y":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#
        );
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 4]);
        std::fs::write(&path, bytes).unwrap();
        match conform::run(&path, &on("cpu"), Dtype::F32) {
            Err(Error::Request(message)) => assert!(message.contains(name), "{message}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_table_of_systems_names_those_that_dumps_are_of() {
    let systems = smalti_models::zoo::SYSTEMS;
    assert!(systems.is_sorted_by_key(|system| system.name), "in the order of their names");
    for path in dumps("models") {
        let dump = smalti_models::weights::Checkpoint::open(&path).expect("agreement is another test's");
        let name = dump.metadata("system").expect("a dump of a model");
        assert!(systems.iter().any(|system| system.name == name), "{}: {name}", path.display());
    }
}
