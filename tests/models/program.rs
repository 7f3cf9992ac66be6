//! The program as a person runs it: what it prints, what it writes, how it ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
    with(&["--top-p", "0"], "--top-p 0: expected more than 0");
    with(&["--top-p", "2"], "--top-p 2");
    with(&["--top-p", "NaN"], "--top-p NaN");
    with(&["--count", "0"], "--count 0");
    with(&["--count", "99999999"], "--count 99999999");
    with(&["--shard", "3/2"], "1 <= I <= N");
    with(&["--class", "smily"], "did you mean smiley");
    with(&["--class", "10"], "0 to 9");
    with(&["--model", "dall-e"], "expected llamagen, var, or an existing file");
    with(&["--class", "-1"], "-1");
    with(&["--grid", "24"], "notes block_size 256, not 576");
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
