//! Dumps of PyTorch repeated by the parts of this crate.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use smalti::{Device, Dtype};
use smalti_models::decode::{Random, Sampler, Step, watched};
use smalti_models::weights::Checkpoint;
use smalti_models::zoo::arpg::Arpg;
use smalti_models::zoo::captions::CaptionFeatures;
use smalti_models::zoo::codes::{DrawsCodes, WantedCodes};
use smalti_models::zoo::maskgil::MaskGil;
use smalti_models::zoo::randar::RandAr;
use smalti_models::{Error, Sampling, conform, zoo};

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

/// For the seeds from 1 on: one of them, which takes minutes where CUDA is emulated, or as many as `SMALTI_SEEDS` says.
fn draws_the_tokens_of_the_cpu(gpu: &Device) {
    let seeds = std::env::var("SMALTI_SEEDS").map_or(1, |seeds| seeds.parse().expect("a number of seeds"));
    for model in ["llamagen", "var"] {
        let checkpoint = smalti_models::weights::embedded(model).expect("weights in the program");
        let [here, there] = [&on("cpu"), gpu].map(|device| zoo::load::<f32>(&checkpoint, device).unwrap());
        for seed in 1..=seeds {
            let [expected, got] = [&here, &there].map(|generator| {
                let sampling = Sampling { seed, ..generator.about().sampling };
                let go_on = &mut |_, _| ControlFlow::Continue(());
                generator.draw(&[(seed % 10) as u32], 0, &sampling, go_on).unwrap().tokens
            });
            assert_eq!(got, expected, "{model} {gpu}, seed {seed}");
        }
    }
}

/// Features of captions, each its own rows and then padding, as a file of them holds them.
fn captions(features: &[f32], [captions, rows, channels]: [usize; 3], lengths: &[usize]) -> CaptionFeatures {
    let features: Vec<u8> = features.iter().flat_map(|value| value.to_le_bytes()).collect();
    let lengths: Vec<u8> = lengths.iter().flat_map(|length| (*length as i32).to_le_bytes()).collect();
    let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).expect("as many bytes");
    let tensors = [
        ("features", view(safetensors::Dtype::F32, &[captions, rows, channels], &features)),
        ("lengths", view(safetensors::Dtype::I32, &[captions], &lengths)),
    ];
    let bytes = safetensors::serialize(tensors, None).expect("two tensors");
    CaptionFeatures::read(&Checkpoint::from_bytes("captions", bytes.into()).expect("whole")).expect("as they must be")
}

#[test]
fn generators_that_are_given_captions_draw_the_greedy_tokens_of_dumps() {
    for (name, input, greedy) in [
        ("llamagen_t2i", "in.caption", "out.greedy_tokens"),
        ("controlar_t2i", "in.caption", "out.greedy_tokens"),
        ("hart_plain", "in.text", "out.greedy_tokens"),
        ("infinity_plain", "in.text", "out.greedy_bits"),
        ("infinity_patchify", "in.text", "out.greedy_bits"),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/dumps/models/{name}.safetensors"));
        let dump = Checkpoint::open(&path).expect("a dump");
        let (config, features) = (dump.config().unwrap(), dump.floats(input).unwrap());
        let mut generator = zoo::load::<f32>(&dump.under("w.").unwrap(), &on("cpu")).expect("its weights");
        let before = generator.about().sampling;
        assert!(
            generator.draw(&[0], 0, &before, &mut |_, _| ControlFlow::Continue(())).is_err(),
            "{name}: no captions"
        );
        let features = match (config.counts("text_lens"), dump.shape(input)) {
            // Rows one caption after another.
            (Some(lengths), Some(&[_, channels])) => {
                let longest = lengths.iter().copied().max().unwrap();
                let (mut rows, mut padded) = (features.chunks(channels), Vec::new());
                for length in &lengths {
                    rows.by_ref().take(*length).for_each(|row| padded.extend_from_slice(row));
                    padded.resize(padded.len() + (longest - length) * channels, 0.0);
                }
                captions(&padded, [lengths.len(), longest, channels], &lengths)
            }
            // Padding is before a caption, or after it.
            (None, Some(&[count, rows, channels])) => {
                let before = dump.floats("in.caption_mask").ok();
                let after = dump.elements::<u8>("in.text_mask").ok();
                let own = before.clone().unwrap_or_else(|| after.unwrap().into_iter().map(f32::from).collect());
                let lengths: Vec<_> = own.chunks(rows).map(|own| own.iter().sum::<f32>() as usize).collect();
                let mut turned = features.clone();
                if before.is_some() {
                    for (caption, length) in turned.chunks_mut(rows * channels).zip(&lengths) {
                        caption.rotate_left((rows - length) * channels);
                    }
                }
                captions(&turned, [count, rows, channels], &lengths)
            }
            other => panic!("{name}: {other:?}"),
        };
        generator.use_captions(features).expect("features of its encoder");
        let cfg = config.number("cfg").unwrap_or(before.cfg);
        let sampling = Sampling { cfg, temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };
        let expected = dump.elements::<i32>(greedy).unwrap();
        let expected: Vec<_> = expected.chunks(expected.len() / generator.about().classes.len()).collect();
        for (caption, expected) in (0..).zip(expected) {
            if let Some([height, width]) = generator.control_size() {
                let controls = dump.floats("in.control_image").unwrap();
                generator
                    .use_control(&controls[caption as usize * 3 * height * width..][..3 * height * width])
                    .unwrap();
            }
            let drawn = generator.draw(&[caption], 0, &sampling, &mut |_, _| ControlFlow::Continue(())).unwrap();
            assert!(drawn.tokens[0].iter().map(|token| *token as i32).eq(expected.iter().copied()), "{name} {caption}");
        }
    }
}

/// Draws around every third cell, which is given: they stay, and all others are drawn.
fn given_tokens_stay(model: &impl DrawsCodes, labels: &[u32], redrawn: bool) {
    let places = model.codes().places();
    let known: Vec<_> = (0..places).map(|cell| (cell % 3 == 0).then_some((cell % 5) as u32)).collect();
    let sampling = Sampling { cfg: 2.0, temperature: 1.0, top_k: 0, top_p: 1.0, seed: 3 };
    let draw = |labels: &[u32], known: &[Option<u32>], first_picture: u64| {
        let sampler = Sampler::new(sampling, Random::Philox { first_picture }, places);
        let mut cells = vec![Vec::new(); labels.len()];
        let each = |step: Step<'_, f32>| {
            let count = step.tokens.shape()[1];
            cells.iter_mut().enumerate().for_each(|(picture, cells)| cells.extend(step.cells.of(picture, count)));
            Ok(())
        };
        let drawn = watched(each, |steps| {
            model.generate(WantedCodes { labels, known, sampler: &sampler, decoder: None }, steps)
        })
        .unwrap();
        (drawn.to_vec().unwrap(), cells)
    };
    let (drawn, cells) = draw(labels, &known, 0);
    for (tokens, mut cells) in drawn.chunks(places).zip(cells) {
        cells.sort_unstable();
        assert!(cells.into_iter().eq((0..places).filter(|cell| redrawn || known[*cell].is_none())), "each cell once");
        assert!(tokens.iter().zip(&known).all(|(token, known)| known.is_none_or(|known| known == *token)));
    }
    assert_eq!(draw(&labels[1..], &known, 1).0, drawn[places..], "batches change nothing");
    let whole = draw(labels, &[], 0).0;
    assert_ne!(whole, drawn, "what is given is seen");
    assert_eq!(draw(labels, &vec![None; places], 0).0, whole, "nothing given is a whole picture");
}

#[test]
fn tokens_that_are_given_stay_and_the_others_are_drawn() {
    let weights = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/dumps/models/{name}.safetensors"));
        Checkpoint::open(&path).and_then(|dump| dump.under("w.")).expect("a dump")
    };
    given_tokens_stay(&RandAr::load(&weights("randar_parallel"), &on("cpu")).unwrap(), &[1, 0], false);
    given_tokens_stay(&MaskGil::load(&weights("maskgil_linear"), &on("cpu")).unwrap(), &[1, 0], false);
    given_tokens_stay(&Arpg::load(&weights("arpg_cosine"), &on("cpu")).unwrap(), &[1, 0], true);
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
    let systems = zoo::SYSTEMS;
    assert!(systems.is_sorted_by_key(|system| system.name), "in the order of their names");
    for path in dumps("models") {
        let dump = Checkpoint::open(&path).expect("agreement is another test's");
        let name = dump.metadata("system").expect("a dump of a model");
        assert!(systems.iter().any(|system| system.name == name), "{}: {name}", path.display());
    }
}
