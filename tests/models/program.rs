//! The program as a person runs it: what it prints, what it writes, how it ends.

mod parts;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use smalti::{Device, Tensor};
use smalti_models::tokenizer::video::VideoTokenizer;
use smalti_models::weights::Checkpoint;
use smalti_models::{Given, Sampling, zoo};

use parts::Part;

fn smalti(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smalti")).args(arguments).output().expect("the program starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("not ended by a signal")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// That the program refuses these arguments with exit status 2 and a message that says `part`.
fn refused(arguments: &[&str], part: &str) {
    let output = smalti(arguments);
    assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
    assert!(stderr(&output).contains(part), "{arguments:?}: {}", stderr(&output));
}

fn weights(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("weights/emoji_{model}.safetensors"))
}

#[test]
fn generate_writes_a_picture_and_says_how() {
    let folder = folder();
    let out = folder.path().join("grid.png");
    std::fs::write(&out, "an older file").unwrap();
    let arguments = ["generate", "--device", "cpu", "--count", "2", "--class", "heart", "--json", "--out", text(&out)];
    let output = smalti(&arguments);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["device"], "cpu");
    assert_eq!(report["pictures"], 2);
    assert_eq!(report["seed"], 1);
    assert!(std::fs::read(&out).unwrap().starts_with(b"\x89PNG"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn generate_draws_in_every_dtype_on_every_device() {
    let folder = folder();
    let checkpoint = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/checkpoints").join(name);
    let listed = stdout(&smalti(&["devices"]));
    for device in ["cpu", "wgpu", "cuda"].into_iter().filter(|device| {
        // Absent ones are listed too, with the reason.
        listed.lines().any(|line| line.starts_with(device) && !line.contains("absent:"))
    }) {
        for files in [["gpt_zip.pt", "vq_legacy.pt"], ["var_legacy.pth", "vae_zip.pth"]] {
            let [transformer, tokenizer] = files.map(checkpoint);
            for dtype in ["f32", "f16", "bf16"] {
                let out = folder.path().join(format!("{device}_{dtype}.png"));
                let output = smalti(&[
                    "generate",
                    "--device",
                    device,
                    "--dtype",
                    dtype,
                    "--count",
                    "1",
                    "--out",
                    text(&out),
                    "--weights",
                    text(&transformer),
                    "--weights",
                    text(&tokenizer),
                ]);
                assert_eq!(code(&output), 0, "{files:?} {device} {dtype}: {}", stderr(&output));
                assert!(std::fs::read(&out).expect("a picture").starts_with(b"\x89PNG"));
            }
        }
    }
}

/// A file with the weights of a dump without the rest, and, if told, without its tokenizer.
fn weights_of_dump(folder: &Path, dump: &str, tokenizer: bool) -> PathBuf {
    let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/dumps/models/{dump}.safetensors"));
    let bytes = std::fs::read(dump).expect("a dump");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a dump");
    let held = safetensors::SafeTensors::deserialize(&bytes).expect("a dump");
    let weights: Vec<_> = held
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("w.")?, tensor)))
        .filter(|(name, _)| tokenizer || !(name.starts_with("vae.") || name.starts_with("vq.")))
        .collect();
    let mut notes = header.metadata().clone().expect("a dump has notes");
    notes.remove("system");
    let file = folder.join("weights.safetensors");
    safetensors::serialize_to_file(weights, Some(notes), &file).expect("room");
    file
}

/// LlamaGen's tokenizer, of whose codes 64 are kept, so that every model here knows them.
const LLAMAGENS: Part<'_> =
    Part::new("llamagen_c2i", "w.vq.", "vq.").resized(&[("vq.quantize.embedding.weight", 96, 64)]);

#[test]
fn generate_draws_captions_under_a_control_picture() {
    use safetensors::{Dtype, tensor::TensorView};
    let folder = folder();
    let [out, captions, control] = ["o.safetensors", "c.safetensors", "c.png"].map(|name| folder.path().join(name));
    let file = weights_of_dump(folder.path(), "controlar_t2i", false);
    let values: Vec<u8> = (0..3 * 6 * 24).flat_map(|at| ((at % 7) as f32 * 0.1).to_le_bytes()).collect();
    let features = TensorView::new(Dtype::F32, vec![3, 6, 24], &values).expect("as many bytes");
    safetensors::serialize_to_file([("features", features)], None, &captions).expect("room");
    let mut encoder = png::Encoder::new(std::fs::File::create(&control).expect("room"), 8, 8);
    encoder.set_color(png::ColorType::Grayscale);
    let edge: Vec<u8> = (0..64).map(|at| if at % 8 == 3 { 255 } else { 0 }).collect();
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&edge)).expect("room");

    let all = ["generate", "--device", "cpu", "--count", "2", "--weights", text(&file), "--out", text(&out)];
    let [with_captions, with_control] = [["--captions", text(&captions)], ["--control", text(&control)]];
    refused(&[&all[..], &with_captions].concat(), "controlar draws under a control picture: give --control PNG");
    refused(&[&all[..], &with_control].concat(), "draw from text: give the features of captions with --captions FILE");
    let both = [&all[..], &with_captions, &with_control].concat();
    refused(&[&both[..], &["--class", "3"]].concat(), "no such class");
    let output = smalti(&[&both[..], &["--class", "2"]].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let bytes = std::fs::read(&out).expect("what was drawn");
    let drawn = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    assert_eq!(drawn.tensor("tokens").expect("tokens").shape(), [2, 16]);
    assert_eq!(drawn.tensor("labels").expect("captions").data(), [2, 0, 0, 0, 2, 0, 0, 0]);
    let no_features = [&all[..], &with_control, &["--captions", text(&file)]].concat();
    refused(&no_features, "\"features\" has shape None, expected [captions, rows, channels]");
    let own = ["generate", "--device", "cpu"];
    refused(&[&own[..], &with_captions].concat(), "conditioned on classes, not on captions");
    refused(&[&own[..], &with_control].concat(), "--control: llamagen takes no control picture");
}

#[test]
fn generate_without_a_tokenizer_writes_tokens_or_latents_and_says_so() {
    let folder = folder();
    let out = folder.path().join("drawn.safetensors");
    for (dump, system, name, shape) in [
        ("maskgil_linear", "maskgil", "tokens", vec![2, 16]),
        ("arinar_gmm_nocfg", "arinar", "latents", vec![2, 8, 4, 4]),
        ("dar_diffusion_gpt", "dar_diffusion", "tokens", vec![2, 16]),
    ] {
        let file = weights_of_dump(folder.path(), dump, false);
        let arguments = ["generate", "--device", "cpu", "--count", "2", "--model", system, "--weights", text(&file)];
        let output = smalti(&[&arguments[..], &["--out", text(&out)]].concat());
        assert_eq!(code(&output), 0, "{system}: {}", stderr(&output));
        let said = format!("{name} of 2 pictures, for {} holds no tokenizer", text(&file));
        assert!(stdout(&output).contains(&said), "{}", stdout(&output));
        let bytes = std::fs::read(&out).expect("what was drawn");
        let drawn = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        assert_eq!(drawn.tensor(name).expect("what was said").shape(), shape, "{system}");
        assert_eq!(drawn.tensor("labels").expect("classes").shape(), [2]);
        // Another system's name for the same file.
        refused(&[&arguments[..6], &["parseq", "--weights", text(&file)]].concat(), "draws nothing");
    }
    refused(&["generate", "--device", "cpu", "--model", "maskgil"], "give --weights FILE");
}

/// A dump whose weights draw, for each system that draws.
const DRAWING: [&str; 28] = [
    "aim_plain",
    "arinar_flow",
    "arinar_gmm",
    "arpg_cosine",
    "controlar_c2i",
    "dar_diffusion_gpt",
    "dar_small",
    "far_mask",
    "flexvar_var_cfg",
    "hart_plain",
    "hmar_l2",
    "infinity_plain",
    "larp_ar_class",
    "llamagen_c2i",
    "llamagen_t2i",
    "lpd_linear",
    "mar_nocfg",
    "maskgil_warm_up",
    "mvar_l2",
    "nar_c2i",
    "nar_video",
    "par_four",
    "randar_parallel",
    "rar_pow",
    "spherear_constant",
    "transdiff_mrar",
    "var_l2",
    "xar_sde",
];

#[test]
fn generate_draws_every_system_that_draws_and_traces_its_cells() {
    use safetensors::{Dtype, tensor::TensorView};
    let folder = folder();
    let [out, trace, captions, control, steps] =
        ["o", "t.json", "c.safetensors", "c.png", "steps"].map(|name| folder.path().join(name));
    let mut encoder = png::Encoder::new(std::fs::File::create(&control).expect("room"), 8, 8);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&[90; 64])).expect("room");
    let mut drawn = std::collections::BTreeSet::new();
    for dump in DRAWING {
        let file = weights_of_dump(folder.path(), dump, true);
        let system = smalti_models::zoo::SYSTEMS
            .iter()
            .filter(|system| dump.starts_with(system.name))
            .max_by_key(|system| system.name.len())
            .expect("dumps are called after their systems");
        let mut arguments = vec!["generate", "--device", "cpu", "--count", "2", "--model", system.name, "--json"];
        arguments.extend(["--weights", text(&file), "--out", text(&out), "--trace", text(&trace)]);
        // What the dump's text encoder would give.
        let of_texts = ["hart_plain", "infinity_plain", "llamagen_t2i"].iter().position(|texts| *texts == dump);
        if let Some(of_texts) = of_texts {
            let channels = [24, 128, 24][of_texts];
            let values: Vec<u8> = (0..2 * 6 * channels).flat_map(|at| ((at % 7) as f32 * 0.1).to_le_bytes()).collect();
            let features = TensorView::new(Dtype::F32, vec![2, 6, channels], &values).expect("as many bytes");
            safetensors::serialize_to_file([("features", features)], None, &captions).expect("room");
            arguments.extend(["--captions", text(&captions)]);
        }
        if system.name == "controlar" {
            arguments.extend(["--control", text(&control)]);
        }
        // These dumps hold their tokenizers' decoders too.
        let pictures = matches!(dump, "hmar_l2" | "llamagen_c2i" | "mar_nocfg" | "spherear_constant" | "var_l2");
        if pictures {
            arguments.extend(["--preview", text(&steps)]);
        }
        let output = smalti(&arguments);
        assert_eq!(code(&output), 0, "{dump}: {}", stderr(&output));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        assert_eq!(report["system"], system.name, "{dump}");
        assert_eq!(report["kind"] == "pictures", pictures, "{dump}: {report}");
        let bytes = std::fs::read(&out).expect("what was drawn");
        if pictures {
            assert!(bytes.starts_with(b"\x89PNG"), "{dump}");
            let shown = std::fs::read_dir(&steps).expect("previews").count();
            assert!(shown > 0 || system.name == "spherear", "{dump}: no preview");
            std::fs::remove_dir_all(&steps).expect("a folder");
        } else {
            safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        }
        // Cells that settle do so once, but HMAR's that are masked again.
        let (of_pictures, places) = traced(&trace);
        assert_eq!(of_pictures.len(), 2, "{dump}");
        for steps in &of_pictures {
            let mut cells = steps.concat();
            cells.sort_unstable();
            if system.name == "hmar" {
                cells.dedup();
            }
            assert!(cells.is_empty() || cells.into_iter().eq(0..places), "{dump}: {steps:?}");
        }
        drawn.insert(system.name);
    }
    let draws = |system: &&smalti_models::zoo::System| {
        use smalti_models::zoo::Runs;
        matches!(system.runs, Runs::Pictures | Runs::Tokens)
    };
    assert!(smalti_models::zoo::SYSTEMS.iter().filter(draws).all(|system| drawn.contains(system.name)), "{drawn:?}");
}

#[test]
fn generate_does_not_depend_on_threads_or_shards() {
    let folder = folder();
    let draw = |name: &str, options: &[&str]| {
        let out = folder.path().join(name);
        let mut arguments = vec!["generate", "--device", "cpu", "--seed", "4", "--count", "2", "--out", text(&out)];
        arguments.extend(options);
        let output = smalti(&arguments);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let decoder = png::Decoder::new(std::io::Cursor::new(std::fs::read(&out).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        (reader.info().width as usize, pixels)
    };
    let (width, whole) = draw("whole.png", &["--threads", "2"]);
    assert_eq!(draw("one.png", &["--threads", "1"]), (width, whole.clone()));
    // The second picture alone: the right half of the whole.
    let (half, second) = draw("second.png", &["--shard", "2/2"]);
    for (whole, second) in whole.chunks(width * 3).zip(second.chunks(half * 3)) {
        assert_eq!(whole[(width - half) * 3..], *second);
    }
}

#[test]
fn generate_refuses_wrong_arguments_before_any_work() {
    let folder = folder();
    let out = folder.path().join("x.png");
    let with = |options: &[&str], part: &str| {
        let mut arguments = vec!["generate", "--device", "cpu", "--out", text(&out)];
        arguments.extend(options);
        refused(&arguments, part);
        assert!(!out.exists());
    };
    with(&["--temperature", "-1"], "--temperature -1: expected 0");
    with(&["--temperature", "NaN"], "--temperature NaN");
    with(&["--threads", "999999999"], "threads is 999999999, expected at most 4096");
    with(&["--top-p", "0"], "--top-p 0: expected more than 0");
    with(&["--top-p", "2"], "--top-p 2");
    with(&["--top-p", "NaN"], "--top-p NaN");
    with(&["--count", "0"], "--count 0");
    with(&["--count", "99999999"], "--count 99999999");
    with(&["--shard", "3/2"], "1 <= I <= N");
    with(&["--class", "smily"], "did you mean smiley");
    with(&["--class", "10"], "0 to 9");
    with(&["--model", "dall-e"], "expected llamagen, var, a system of `smalti models` or an existing file");
    with(&["--class", "-1"], "-1");
    with(&["--grid", "24"], "notes block_size 256, not 576");
    with(
        &["--decoder", "mcsjd"],
        "--decoder: no decoder \"mcsjd\", expected one of draft, gsd, jacobi, lantern, mc-sjd,",
    );
    with(&["--decoder", "draft"], "--decoder: draft tests a second model's drafts: give --draft FILE");
    with(&["--decoder", "draft", "--draft", "/no/such/file"], "--draft: /no/such/file");
    with(
        &["--decoder", "sjd", "--draft", text(&weights("llamagen"))],
        "--decoder: sjd drafts by itself, without --draft",
    );
    with(&["--decoder", "draft", "--draft", text(&weights("var"))], "--decoder: ");
    with(&["--draft", text(&weights("llamagen"))], "--decoder");
    with(&["--guidance", "hard"], "--guidance hard: no guidance \"hard\", only plain, entropy, soft");
    with(&["--guidance", "soft", "--decoder", "sjd"], "--guidance soft: drafts are tested under plain guidance only");
    with(&["--model", "var", "--guidance", "entropy"], "--guidance entropy: var has no guidance but its own");
    with(&["--model", "var", "--decoder", "sjd"], "--decoder: var has no decoder \"sjd\", only its own");
    refused(&["generate", "--device", "wgpu:99", "--out", text(&out)], "device wgpu:99 is not available");
    refused(&["generate", "--device", "tpu", "--out", text(&out)], "device tpu is not available");
    refused(&["generate", "--device", "cpu", "--out", text(folder.path())], "is a folder");
    refused(&["generate", "--device", "cpu", "--out", "/no/such/folder/x.png"], "/no/such/folder/x.png");
    #[cfg(target_os = "linux")]
    refused(&["generate", "--device", "cpu", "--out", "/proc/x.png"], "/proc/x.png");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_work_with_130_and_leaves_no_file() {
    let folder = folder();
    let out = folder.path().join("never.png");
    let arguments = ["generate", "--device", "cpu", "--count", "9999", "--out", text(&out)];
    let mut command = Command::new(env!("CARGO_BIN_EXE_smalti"));
    let child = command.args(arguments).stderr(std::process::Stdio::piped()).spawn().expect("the program starts");
    let files = || std::fs::read_dir(folder.path()).expect("the folder").count();
    // The place of the picture is taken before the work begins.
    while files() == 0 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill is there");
    assert!(sent.success());
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("interrupted"), "{}", stderr(&output));
    assert_eq!(files(), 0, "a file is left");
}

#[test]
fn generate_names_every_tensor_that_does_not_fit() {
    let folder = folder();
    let whole = std::fs::read(weights("llamagen")).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let out = folder.path().join("x.png");
    let with = |path: &Path, part: &str| {
        refused(&["generate", "--device", "cpu", "--out", text(&out), "--weights", text(path)], part);
    };
    with(&write("cut.safetensors", &whole[..whole.len() / 2]), "not a whole safetensors file");
    with(&write("noise.safetensors", &[0xff; 100]), "noise.safetensors");
    with(&write("empty.safetensors", &[]), "empty.safetensors");
    // Two names changed in the header, at the same length: two missing and two unexpected tensors, all listed.
    let renamed = |from: &str, to: &str, bytes: &[u8]| {
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("the name is there");
        let mut bytes = bytes.to_vec();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let bytes = renamed("\"gpt.norm.weight\"", "\"gpt.nOrm.weight\"", &whole);
    let bytes = renamed("layers.1.ffn_norm", "layers.1.ffn_nOrm", &bytes);
    let path = write("renamed.safetensors", &bytes);
    with(&path, "\"gpt.norm.weight\" is missing, expected shape [192]");
    with(&path, "\"gpt.nOrm.weight\" is unexpected");
    with(&path, "\"gpt.layers.1.ffn_norm.weight\" is missing");
}

#[test]
fn devices_lists_what_is_here_and_why_a_backend_is_absent() {
    let output = smalti(&["devices", "--json"]);
    assert_eq!(code(&output), 0);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let ids: Vec<_> = report["devices"].as_array().unwrap().iter().map(|device| device["id"].clone()).collect();
    assert!(ids.contains(&"cpu".into()) && ids.contains(&"reference".into()), "{ids:?}");
    let absent = report["absent"].as_array().unwrap();
    for backend in ["cuda", "wgpu"] {
        let reason = absent.iter().find(|absent| absent["backend"] == backend).map(|absent| absent["reason"].as_str());
        let listed = ids.iter().any(|id| id.as_str().is_some_and(|id| id.starts_with(backend)));
        assert!(listed || reason.flatten().is_some_and(|reason| !reason.is_empty()), "{backend}: {report}");
    }
}

#[test]
fn devices_says_that_a_driver_is_too_old() {
    if !stdout(&smalti(&["devices"])).contains("CUDA emulator") {
        println!("SKIPPED: only an emulated driver can be made older");
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_smalti"))
        .args(["devices"])
        .env("CUDA_EMULATOR_VERSION", "10.2")
        .output()
        .expect("the program starts");
    let said = stdout(&output);
    assert!(said.contains("cuda       absent: the driver is for CUDA 10.2, and kernels need 11.0"), "{said}");
}

/// A picture's width, height and bytes.
fn png(path: &Path) -> (usize, usize, Vec<u8>) {
    let decoder = png::Decoder::new(std::io::Cursor::new(std::fs::read(path).expect("a picture")));
    let mut reader = decoder.read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a small picture")];
    reader.next_frame(&mut pixels).expect("a whole picture");
    (reader.info().width as usize, reader.info().height as usize, pixels)
}

/// The steps of each picture of a trace, and the cells of all its grids.
fn traced(path: &Path) -> (Vec<Vec<Vec<u64>>>, u64) {
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(path).expect("a trace")).expect("JSON");
    let list = |value: &serde_json::Value| value.as_array().expect("a list").clone();
    let cells = |step: &serde_json::Value| list(step).iter().map(|cell| cell.as_u64().expect("a cell")).collect();
    let steps = |picture: &serde_json::Value| list(&picture["steps"]).iter().map(cells).collect();
    let sides =
        |grid: &serde_json::Value| list(grid).iter().map(|side| side.as_u64().expect("a side")).product::<u64>();
    let sequence = trace["sequence"].as_u64();
    let places = sequence.unwrap_or_else(|| list(&trace["grids"]).iter().map(sides).sum());
    (list(&trace["pictures"]).iter().map(steps).collect(), places)
}

#[test]
fn previews_and_traces_show_how_a_picture_came_about() {
    let folder = folder();
    let [out, trace, steps] = ["out.png", "trace.json", "steps"].map(|name| folder.path().join(name));
    let own = ["generate", "--device", "cpu", "--count", "2", "--class", "heart", "--out", text(&out)];
    let shown = ["--preview", text(&steps), "--trace", text(&trace)];
    // As many previews as scales; and of cells at most one for each sixteenth.
    for (model, previews) in [("var", None), ("llamagen", Some(16))] {
        let output = smalti(&[&own[..], &["--model", model], &shown].concat());
        assert_eq!(code(&output), 0, "{model}: {}", stderr(&output));
        let (pictures, places) = traced(&trace);
        assert_eq!(pictures.len(), 2);
        for steps in &pictures {
            let mut cells = steps.concat();
            cells.sort_unstable();
            assert!(cells.into_iter().eq(0..places), "{model}: every cell once");
        }
        let mut files: Vec<_> = std::fs::read_dir(&steps).expect("previews").map(|file| file.unwrap().path()).collect();
        files.sort();
        assert_eq!(files.len(), previews.unwrap_or(pictures[0].len()), "{model}");
        let (width, height, last) = png(&files[files.len() - 1]);
        let (final_width, final_height, whole) = png(&out);
        assert_eq!((width, height), (final_width, final_height), "{model}");
        if model == "llamagen" {
            assert_eq!(last, whole, "the last preview is the picture");
            let open = [204, 204, 204];
            assert_eq!(png(&files[0]).2[((height - 6) * width + 6) * 3..][..3], open, "what is open is grey");
        }
        files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    }
    // Where drafts are tested for one picture after another, the second is open while the first is drawn.
    let output = smalti(&[&own[..], &["--decoder", "sjd"], &shown[..2]].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let (width, height, pixels) = png(&steps.join("0000-001.png"));
    assert_eq!(pixels[((height - 6) * width + 6) * 3..][..3], [204; 3], "what is open is grey");
    let file = weights_of_dump(folder.path(), "maskgil_linear", false);
    let without =
        ["generate", "--device", "cpu", "--model", "maskgil", "--weights", text(&file), "--out", text(&trace)];
    refused(&[&without[..], &shown[..2]].concat(), "without which there are no pictures");
    refused(&[&own[..], &["--trace", text(folder.path())]].concat(), "--trace");
    refused(&[&own[..], &["--preview", text(&out)]].concat(), "out.png: is a file, expected a folder");
}

#[test]
fn a_trace_has_the_cells_of_each_picture_in_the_order_in_which_they_settle() {
    // Of a 4 x 4 grid along its anti-diagonals, the first step to the right.
    const ZIGZAG: [u64; 16] = [0, 1, 4, 8, 5, 2, 3, 6, 9, 12, 13, 10, 7, 11, 14, 15];
    let folder = folder();
    let [out, trace] = ["out.safetensors", "trace.json"].map(|name| folder.path().join(name));
    let file = weights_of_dump(folder.path(), "dar_small", true);
    let all = ["generate", "--device", "cpu", "--model", "dar", "--weights", text(&file), "--count", "3"];
    // Drafts are tested for one picture after another: none has a step while another is drawn.
    for decoder in [&[][..], &["--decoder", "sjd"]] {
        let output = smalti(&[&all[..], &["--out", text(&out), "--trace", text(&trace)], decoder].concat());
        assert_eq!(code(&output), 0, "{decoder:?}: {}", stderr(&output));
        let (pictures, _) = traced(&trace);
        assert_eq!(pictures.len(), 3, "{decoder:?}");
        for steps in pictures {
            assert_eq!(steps.concat(), ZIGZAG, "{decoder:?}");
            assert!(steps.iter().all(|cells| !cells.is_empty()), "{decoder:?}: {steps:?}");
        }
    }
}

#[test]
fn generate_draws_a_part_anew_between_latents_that_stay() {
    let folder = folder();
    let [image, mask, trace, out] = ["i.png", "m.png", "t.json", "o.png"].map(|name| folder.path().join(name));
    let file = weights_of_dump(folder.path(), "mar_nocfg", true);
    let gray = |path: &Path, pixel: &dyn Fn(usize) -> u8| {
        let mut encoder = png::Encoder::new(std::fs::File::create(path).expect("room"), 8, 8);
        encoder.set_color(png::ColorType::Grayscale);
        let pixels: Vec<u8> = (0..64).map(pixel).collect();
        encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels)).expect("room");
    };
    gray(&image, &|at| (at * 4) as u8);
    gray(&mask, &|at| if at < 32 { 255 } else { 0 });
    let all = ["generate", "--device", "cpu", "--model", "mar", "--weights", text(&file), "--count", "1"];
    let given = ["--image", text(&image), "--mask", text(&mask), "--trace", text(&trace), "--out", text(&out)];
    let output = smalti(&[&all[..], &given].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let (width, _, drawn) = png(&out);
    for at in 32..64 {
        assert_eq!(drawn[((at / 8 + 4) * width + at % 8 + 4) * 3], (at * 4) as u8, "pixel {at} stays");
    }
    let (pictures, places) = traced(&trace);
    let mut cells = pictures[0].concat();
    cells.sort_unstable();
    assert!(cells.into_iter().eq(0..places / 2), "the upper half is drawn");
    the_rest_stays(&file, "mar", 4, 8);
}

#[test]
fn a_video_is_drawn_as_its_frames_side_by_side() {
    // Twelve tokens each: LARP's are a sequence, NAR's the cells of three planes of 2 x 2.
    let larp = Part::new("larp_ar_class", "w.", "").resized(&[("tok_embeddings", 96, 64), ("output", 96, 64)]);
    let nar = Part::new("nar_video", "w.", "").resized(&[("abs_pe", 19, 13)]);
    video_is_drawn("larp", larp, ("max_seq_len", "12"), &(0..12).map(|place| vec![place]).collect::<Vec<_>>());
    let planes = [vec![0], vec![1, 2, 4], vec![3, 5, 6, 8], vec![7, 9, 10], vec![11]];
    video_is_drawn("nar", nar, ("latent_shape", "[3, 2, 2]"), &planes);
}

/// That the program's picture is what LARP's tokenizer makes of the tokens that the library draws, in these steps.
fn video_is_drawn(system: &str, network: Part<'_>, config: (&str, &str), steps: &[Vec<u64>]) {
    let folder = folder();
    let [out, trace] = ["o.png", "t.json"].map(|name| folder.path().join(name));
    let parts = [network, Part::new("larp_tokenizer", "w.", "vq.")];
    let file = parts::weights(folder.path(), &parts, &[config]);
    let all = ["generate", "--device", "cpu", "--count", "1", "--model", system, "--weights", text(&file), "--json"];
    let output = smalti(&[&all[..], &["--out", text(&out), "--trace", text(&trace)]].concat());
    assert_eq!(code(&output), 0, "{system}: {}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let said = [&report["kind"], &report["tokens"], &report["frames"]];
    assert_eq!(said, [&serde_json::json!("pictures"), &serde_json::json!(12), &serde_json::json!(4)], "{system}");
    let (pictures, places) = traced(&trace);
    assert_eq!((pictures[0].as_slice(), places), (steps, 12), "{system}");

    // What the tokenizer makes of the same tokens, frame by frame.
    let checkpoint = Checkpoint::open_as(Some(system), &[&file]).expect("weights");
    let device = Device::cpu();
    let generator = zoo::load::<f32>(&checkpoint, &device).expect("room");
    let sampling = Sampling { seed: 1, ..generator.about().sampling };
    let drawn = generator.draw(&[0], 0, &sampling, &mut |_, _| std::ops::ControlFlow::Continue(())).expect("a video");
    let parts = checkpoint.under("vq.").expect("a tokenizer");
    let config = checkpoint.config().expect("JSON");
    let tokenizer = parts.build(&device, &[], |root, _| VideoTokenizer::load(root, &config)).expect("a tokenizer");
    let tokens = Tensor::from_vec(&device, &[1, 12], drawn.tokens[0].clone()).expect("room");
    let video = tokenizer.decode::<f32>(&tokenizer.latents(&tokens).expect("codes")).expect("a video");
    let &[1, 3, frames, height, frame_width] = video.shape() else { panic!("{:?}", video.shape()) };
    let video = video.to_vec().expect("the device works");
    let (width, whole_height, pixels) = png(&out);
    assert_eq!([frames, height, frame_width], [4, 16, 16]);
    assert_eq!([width, whole_height], [4 * 16 + 8, 16 + 8], "{system}: four frames side by side in a margin");
    for (at, value) in video.iter().enumerate() {
        let [colour, frame, y, x] = [at / 1024, at / 256 % 4, at / 16 % 16, at % 16];
        let pixel = pixels[((y + 4) * width + frame * 16 + x + 4) * 3 + colour];
        let expected = (value.clamp(-1.0, 1.0) + 1.0) * 127.5;
        let off = (f32::from(pixel) - expected).abs();
        assert!(off <= 1.0, "{system}: frame {frame}, {y}, {x}: {pixel}, expected {expected}");
    }
    let frame =
        |at: usize| (0..16).flat_map(|y| &pixels[((y + 4) * width + at * 16 + 4) * 3..][..48]).collect::<Vec<_>>();
    assert!((1..4).all(|at| frame(at) != frame(at - 1)), "{system}: frames differ");
}

/// Of a picture whose upper pixel rows are drawn anew, the codes or latents of each cell.
fn filled(file: &Path, system: &str, rows: usize, seed: u64) -> Vec<Vec<f32>> {
    let checkpoint = Checkpoint::open_as(Some(system), &[file]).expect("weights");
    let generator = zoo::load::<f32>(&checkpoint, &Device::cpu()).expect("room");
    let [height, width] = generator.about().picture_size;
    let planes: Vec<_> = (0..3 * height * width).map(|at| (at * 7 % 251) as f32 / 125.5 - 1.0).collect();
    let anew: Vec<_> = (0..height * width).map(|at| at / width < rows).collect();
    let sampling = Sampling { seed, ..generator.about().sampling };
    let given = Given { planes: &planes, anew: &anew };
    let go_on = &mut |_, _| std::ops::ControlFlow::Continue(());
    let drawn = generator.fill(given, &[1], 0, &sampling, go_on).expect("a picture");
    let cells = generator.about().tokens_per_picture;
    match drawn.latents.first() {
        Some(latents) => (0..cells).map(|cell| latents[cell..].iter().step_by(cells).copied().collect()).collect(),
        None => drawn.tokens[0].iter().map(|token| vec![*token as f32]).collect(),
    }
}

/// That the cells of the pixel rows from `rows` on are the same with every seed, and some before are not: the program puts
/// the given pixels back, so that its picture does not tell.
fn the_rest_stays(file: &Path, system: &str, rows: usize, cells_anew: usize) {
    let [one, other] = [1, 2].map(|seed| filled(file, system, rows, seed));
    assert_eq!(one[cells_anew..], other[cells_anew..], "{system}: what stays is not drawn");
    assert_ne!(one[..cells_anew], other[..cells_anew], "{system}: the rest is drawn");
}

#[test]
fn generate_draws_a_part_anew_between_codes_that_stay() {
    let folder = folder();
    let [image, mask, trace, out] = ["i.png", "m.png", "t.json", "o.png"].map(|name| folder.path().join(name));
    // LlamaGen's tokenizer has four pixels to a code's side.
    for (dump, system, columns) in
        [("arpg_arccos", "arpg", 4), ("maskgil_linear", "maskgil", 4), ("randar_parallel", "randar", 4)]
    {
        let file = parts::weights(folder.path(), &[Part::new(dump, "w.", ""), LLAMAGENS], &[]);
        let side = 4 * columns;
        let gray = |path: &Path, pixel: &dyn Fn(usize) -> u8| {
            let created = std::fs::File::create(path).expect("room");
            let mut encoder = png::Encoder::new(created, side as u32, side as u32);
            encoder.set_color(png::ColorType::Grayscale);
            let pixels: Vec<u8> = (0..side * side).map(pixel).collect();
            encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels)).expect("room");
        };
        let given = |at: usize| (at * 7 % 251) as u8;
        gray(&image, &given);
        // Two rows of codes.
        gray(&mask, &|at| if at < 8 * side { 255 } else { 0 });
        let all = ["generate", "--device", "cpu", "--model", system, "--weights", text(&file), "--count", "1"];
        let options = ["--image", text(&image), "--mask", text(&mask), "--trace", text(&trace), "--out", text(&out)];
        let output = smalti(&[&all[..], &options].concat());
        assert_eq!(code(&output), 0, "{system}: {}", stderr(&output));
        let (width, _, drawn) = png(&out);
        let stays = |at: usize| drawn[((at / side + 4) * width + at % side + 4) * 3] == given(at);
        assert!((8 * side..side * side).all(stays), "{system}: the dark part stays");
        assert!(!(0..8 * side).all(stays), "{system}: the bright part is drawn");
        the_rest_stays(&file, system, 8, 2 * columns);
        let (pictures, places) = traced(&trace);
        let mut cells = pictures[0].concat();
        cells.sort_unstable();
        assert!(cells.into_iter().eq(0..2 * columns as u64) && places as usize == columns * columns, "{system}");
    }
}

#[test]
fn previews_of_a_flow_lead_to_its_picture() {
    let folder = folder();
    let [out, steps] = ["out.png", "steps"].map(|name| folder.path().join(name));
    let tokenizer = Part::new("dar_diffusion_tokenizer", "w.", "vq.");
    let file = parts::weights(folder.path(), &[Part::new("dar_diffusion_gpt", "w.", ""), tokenizer], &[]);
    let own = ["generate", "--device", "cpu", "--count", "1", "--out", text(&out)];
    let model = ["--model", "dar_diffusion", "--weights", text(&file), "--preview", text(&steps)];
    let output = smalti(&[&own[..], &model].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let mut files: Vec<_> = std::fs::read_dir(&steps).expect("previews").map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 2, "{} previews", files.len());
    let (whole, last) = (png(&out), png(&files[files.len() - 1]));
    assert_eq!(whole.0, 32 + 8, "as large as the flow's pictures");
    assert_eq!(last, whole, "the last preview is the picture");
    assert_ne!(png(&files[0]), whole, "the first is on the way to it");
}

#[test]
fn generate_draws_the_masked_part_of_a_picture_anew() {
    let folder = folder();
    let [whole, mask, out] = ["whole.png", "mask.png", "out.png"].map(|name| folder.path().join(name));
    let arguments = ["generate", "--device", "cpu", "--model", "var", "--count", "1", "--class", "smiley", "--out"];
    assert_eq!(code(&smalti(&[&arguments[..], &[text(&whole)]].concat())), 0);
    // Without its frame the picture is as large as the model's: nothing is resampled.
    let (width, _, framed) = png(&whole);
    let side = width - 8;
    let inside: Vec<u8> =
        (0..side * side * 3).map(|at| framed[((at / 3 / side + 4) * width + at / 3 % side + 4) * 3 + at % 3]).collect();
    let write = |path: &Path, colour: png::ColorType, pixels: &[u8]| {
        let mut encoder = png::Encoder::new(std::fs::File::create(path).unwrap(), side as u32, side as u32);
        encoder.set_color(colour);
        encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    };
    write(&whole, png::ColorType::Rgb, &inside);
    let lower = |at: usize| at / side >= side / 2;
    let bright: Vec<u8> = (0..side * side).map(|at| if lower(at) { 255 } else { 0 }).collect();
    write(&mask, png::ColorType::Grayscale, &bright);
    let given = ["--image", text(&whole), "--mask", text(&mask)];
    let arguments = ["generate", "--device", "cpu", "--model", "var", "--count", "1", "--class", "heart", "--out"];
    let output = smalti(&[&arguments[..], &[text(&out)], &given].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let (_, _, drawn) = png(&out);
    let changed = |at: &usize| {
        let place = (at / side + 4) * width + at % side + 4;
        drawn[place * 3..][..3] != inside[at * 3..][..3]
    };
    let changed: Vec<_> = (0..side * side).filter(changed).collect();
    assert!(changed.iter().all(|at| lower(*at)), "the dark part stays");
    assert!(changed.len() > side * side / 8, "{} pixels changed", changed.len());

    let with = |options: &[&str], part: &str| {
        refused(&[&["generate", "--device", "cpu", "--out", text(&out)], options].concat(), part);
    };
    with(&["--image", text(&whole)], "--mask");
    with(&[&["--model", "llamagen"], &given[..]].concat(), "llamagen draws whole pictures only");
    with(&["--model", "var", "--image", "/no/such.png", "--mask", text(&mask)], "/no/such.png");
    write(&mask, png::ColorType::Grayscale, &vec![0; side * side]);
    with(&[&["--model", "var"], &given[..]].concat(), "nothing is bright");
    std::fs::write(&mask, "no PNG").unwrap();
    with(&[&["--model", "var"], &given[..]].concat(), "mask.png");
}

#[test]
fn show_mask_colours_every_pair_by_its_tile() {
    let folder = folder();
    let out = folder.path().join("mask.png");
    let output = smalti(&["show-mask", "--mask", "causal", "--queries", "128", "--out", text(&out)]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    // Eight blocks of 16 queries by two tiles of 64 keys: the diagonal crosses one tile of each block.
    assert!(
        stdout(&output).contains("4 full (blue), 8 partial (orange), 4 skipped (grey); 50.4%"),
        "{}",
        stdout(&output)
    );
    let (width, height, pixels) = png(&out);
    assert_eq!((width, height), (128 * 6 + 3 * 2, 128 * 6 + 9 * 2));
    let at = |query: usize, key: usize| {
        let [x, y] = [key * 6 + 2 + key / 64 * 2, query * 6 + 2 + query / 16 * 2];
        let pixel = &pixels[(y * width + x) * 3..][..3];
        match (pixel[0] > pixel[2], pixel[2] > 200) {
            _ if pixel[0].abs_diff(pixel[2]) < 8 => "skipped",
            (false, _) => "full",
            (true, false) => "seen",
            (true, true) => "hidden",
        }
    };
    assert_eq!(
        [at(0, 0), at(0, 1), at(15, 15), at(0, 64), at(64, 0), at(127, 127)],
        ["seen", "hidden", "seen", "skipped", "full", "seen"]
    );
    for mask in
        ["var", "hmar", "hart", "par", "arpg", "xar", "causal & window:20", "packed:5,9,2", "frames:7", "columns:4,5,2"]
    {
        let output = smalti(&["show-mask", "--mask", mask, "--out", text(&out)]);
        assert_eq!(code(&output), 0, "{mask}: {}", stderr(&output));
    }
    let refuse = |mask: &str, part: &str| refused(&["show-mask", "--mask", mask, "--out", text(&out)], part);
    refuse("diagonal", "diagonal: is no mask");
    refuse("scales:4096,4096", "expected 1 to 4096");
    refuse("window", "window:32,32");
    refuse("regions:0,16,2,2", "0 cells");
    refuse("frames:0", "at least 1");
    refuse("prefix:99999999999999999999", "is no number");
    refused(&["show-mask", "--mask", "full", "--queries", "0", "--out", text(&out)], "expected 1 to 4096");
    refused(&["show-mask", "--mask", "var", "--queries", "4", "--keys", "900", "--out", text(&out)], "patch_nums");
}

#[test]
fn show_order_draws_every_system_whose_tokens_are_cells() {
    let folder = folder();
    let out = folder.path().join("order.png");
    let mut drawn = 0;
    for system in smalti_models::zoo::SYSTEMS {
        let output = smalti(&["show-order", "--model", system.name, "--out", text(&out)]);
        if code(&output) == 2 {
            assert!(stderr(&output).contains("no order to show"), "{}", stderr(&output));
            continue;
        }
        assert_eq!(code(&output), 0, "{}: {}", system.name, stderr(&output));
        let (width, _, pixels) = png(&out);
        // The first cell of a scale, or a cell of raster order, is dark.
        if matches!(system.name, "var" | "llamagen") {
            assert_eq!(pixels[(20 * width + 20) * 3..][..3], [48, 18, 94], "{}", system.name);
        }
        drawn += 1;
    }
    assert!(drawn >= 20, "{drawn} orders");
    refused(&["show-order", "--model", "pixelcnn", "--out", text(&out)], "expected a system");
    refused(&["show-order", "--model", "par", "--grid", "3", "--out", text(&out)], "another grid");
    refused(&["show-order", "--model", "nar", "--grid", "0", "--out", text(&out)], "1 to 128");
}

#[test]
fn show_order_settles_cells_as_a_generation_does() {
    let folder = folder();
    let [out, trace, order, control] = ["o", "t.json", "order.png", "c.png"].map(|name| folder.path().join(name));
    let mut encoder = png::Encoder::new(std::fs::File::create(&control).expect("room"), 1, 1);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&[90])).expect("room");
    let control = ["--control", text(&control)];
    for (dump, system) in [
        ("aim_plain", "aim"),
        ("controlar_c2i", "controlar"),
        ("dar_small", "dar"),
        ("nar_c2i", "nar"),
        ("par_four", "par"),
        ("rar_pow", "rar"),
        ("spherear_linear", "spherear"),
        ("xar_sde", "xar"),
    ] {
        let file = weights_of_dump(folder.path(), dump, false);
        let all = ["generate", "--device", "cpu", "--count", "1", "--model", system, "--weights", text(&file)];
        let more = ["--out", text(&out), "--trace", text(&trace)];
        let output = smalti(&[&all[..], &more, if system == "controlar" { &control } else { &[] }].concat());
        assert_eq!(code(&output), 0, "{system}: {}", stderr(&output));
        let (pictures, places) = traced(&trace);
        let side = places.isqrt() as usize;
        let output = smalti(&["show-order", "--model", system, "--grid", &side.to_string(), "--out", text(&order)]);
        assert_eq!(code(&output), 0, "{system}: {}", stderr(&output));
        let (width, _, pixels) = png(&order);
        // The grid is as wide as the picture without its margins of 16, but for what does not divide; later is brighter.
        let square = (width - 32) / side;
        let brightness = |cell: &u64| {
            let [x, y] = [*cell as usize % side, *cell as usize / side].map(|at| 16 + at * square + square / 2);
            let pixel = &pixels[(y * width + x) * 3..][..3];
            299 * u32::from(pixel[0]) + 587 * u32::from(pixel[1]) + 114 * u32::from(pixel[2])
        };
        let steps: Vec<Vec<_>> = pictures[0]
            .iter()
            .filter(|cells| !cells.is_empty())
            .map(|cells| cells.iter().map(brightness).collect())
            .collect();
        assert!(steps.iter().all(|step| step.iter().all(|cell| *cell == step[0])), "{system}: one colour a step");
        assert!(steps.windows(2).all(|steps| steps[0][0] < steps[1][0]), "{system}: {steps:?}");
        assert_eq!(steps.concat().len(), places as usize, "{system}: every cell");
    }
}

#[test]
fn generate_draws_other_grids_than_the_learned() {
    let folder = folder();
    let [out, trace] = ["o.png", "t.json"].map(|name| folder.path().join(name));
    // Three cells a side, and twice as many. LlamaGen's tokenizer has four pixels to a code's side.
    let file = parts::weights(folder.path(), &[Part::new("randar_extrapolate", "w.", ""), LLAMAGENS], &[]);
    let all = ["generate", "--device", "cpu", "--model", "randar", "--weights", text(&file), "--out", text(&out)];
    let draw = |options: &[&str]| {
        let output = smalti(&[&all[..], &["--trace", text(&trace)], options].concat());
        assert_eq!(code(&output), 0, "{options:?}: {}", stderr(&output));
        (png(&out), traced(&trace))
    };
    let ((width, height, pixels), (pictures, places)) = draw(&["--grid", "6", "--count", "2"]);
    assert_eq!([width, height, places as usize], [2 * 24 + 3 * 4, 24 + 2 * 4, 36]);
    assert_ne!(pictures[0], pictures[1], "each picture has its order");
    for picture in &pictures {
        let cells = picture.concat();
        let is_coarse = |cell: &u64| cell / 6 % 2 + cell % 6 % 2 == 0;
        assert!(cells.iter().take(9).all(is_coarse) && !cells.iter().skip(9).any(is_coarse), "{cells:?}");
        let mut sorted = cells;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..36), "each cell once");
    }
    let ((half, _, second), _) = draw(&["--grid", "6", "--count", "2", "--shard", "2/2"]);
    for (whole, second) in pixels.chunks(width * 3).zip(second.chunks(half * 3)) {
        assert_eq!(whole[(width - half) * 3..], *second, "a batch changes nothing");
    }
    assert_eq!(draw(&["--grid", "3", "--count", "1"]).1.1, 9);
    refused(&[&all[..], &["--grid", "5"]].concat(), "--grid: randar: grids of [5], expected 3 or 6");
    refused(&[&all[..], &["--grid", "3,6"]].concat(), "--grid: randar: grids of [3, 6], expected 3 or 6");

    let file = weights_of_dump(folder.path(), "flexvar_var_cfg", true);
    let all = ["generate", "--device", "cpu", "--count", "1", "--model", "flexvar", "--weights", text(&file)];
    let all = [&all[..], &["--out", text(&out), "--trace", text(&trace)]].concat();
    for (grid, scales) in [("1,3,3,6", vec![1, 3, 3, 6]), ("6", vec![1, 2, 3, 4, 5, 6]), ("1", vec![1])] {
        let output = smalti(&[&all[..], &["--grid", grid]].concat());
        assert_eq!(code(&output), 0, "{grid}: {}", stderr(&output));
        let (pictures, _) = traced(&trace);
        let counts: Vec<_> = pictures[0].iter().map(Vec::len).collect();
        assert_eq!(counts, scales.iter().map(|side| side * side).collect::<Vec<_>>(), "{grid}");
    }
    refused(&[&all[..], &["--grid", "2,3"]].concat(), "--grid: flexvar: scales of [2, 3], expected");
    refused(&[&all[..], &["--grid", "1,9999"]].concat(), "--grid: flexvar: scales of [1, 9999], expected");
    refused(&[&all[..], &["--grid", "0"]].concat(), "--grid: flexvar: scales of [0], expected");
    refused(&["generate", "--device", "cpu", "--model", "var", "--grid", "8"], "--grid: var draws no grid but its own");
}

#[test]
fn classes_are_numbered() {
    for model in ["llamagen", "var"] {
        let output = smalti(&["classes", "--model", model]);
        assert_eq!(code(&output), 0);
        assert!(stdout(&output).starts_with("   0 smiley\n"), "{}", stdout(&output));
    }
}

#[test]
fn conform_ends_with_two_for_what_it_cannot_run() {
    let folder = folder();
    assert_eq!(code(&smalti(&["conform", text(folder.path())])), 2, "a folder without dumps");
    let output = smalti(&["conform", "--json", text(&weights("var"))]);
    assert_eq!(code(&output), 2, "weights are no dump");
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one line");
    assert_eq!(line["verdict"], "error");
    assert_eq!(code(&smalti(&["conform", "no-such-file.safetensors"])), 2);
    assert_eq!(code(&smalti(&["conform", "--device", "tpu", text(&weights("var"))])), 2);
}
