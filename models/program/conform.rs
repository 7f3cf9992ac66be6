//! `smalti conform`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use smalti::{Device, Dtype};
use smalti_models::conform::{self, Outcome, Report};
use smalti_models::weights::Checkpoint;

use super::args::{Conform, DtypeOption};
use super::{Failure, interrupted};

/// Runs all dumps and prints a line per output.
pub fn run(options: &Conform) -> Result<ExitCode, Failure> {
    let device = Device::open(&options.device).map_err(|error| Failure::Input(error.to_string()))?;
    let (dtype, judged) = match options.dtype {
        None => (Dtype::F32, true),
        Some(DtypeOption::F32) => (Dtype::F32, true),
        Some(DtypeOption::F16) => (Dtype::F16, false),
        Some(DtypeOption::Bf16) => (Dtype::Bf16, false),
    };
    let (mut unreadable, mut departs) = (false, false);
    for path in &options.paths {
        let files = dumps(path);
        if files.is_empty() {
            unreadable = true;
            error(options, path, &device, &format!("{}: no dumps here", path.display()));
        }
        for file in files {
            if interrupted() {
                return Err(Failure::Interrupted);
            }
            match conform::run(&file, &device, dtype) {
                Ok(report) => {
                    let judged = judged || report.kind == "op";
                    departs |= judged && report.outcomes.iter().any(|outcome| !outcome.agrees);
                    print(options, &file, &device, &report, judged);
                }
                Err(reason) => {
                    unreadable = true;
                    error(options, &file, &device, &reason.to_string());
                }
            }
        }
    }
    Ok(ExitCode::from(if unreadable { 2 } else { u8::from(departs) }))
}

/// The file itself, or the dumps in a folder and below it, sorted; other safetensors files there are named.
fn dumps(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let mut found = Vec::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let kind = entry.file_type();
            if kind.as_ref().is_ok_and(std::fs::FileType::is_dir) {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "safetensors") {
                // What cannot be read is reported when it is run.
                if Checkpoint::open(&path).as_ref().map_or(true, conform::is_dump) {
                    found.push(path);
                } else {
                    eprintln!("{}: ignored, no dump", path.display());
                }
            }
        }
    }
    found.sort();
    found
}

fn error(options: &Conform, file: &Path, device: &Device, message: &str) {
    if options.json {
        let line = serde_json::json!({
            "file": file, "device": device.to_string(), "verdict": "error", "message": message,
        });
        println!("{line}");
    } else {
        println!("ERROR {message}");
    }
}

fn print(options: &Conform, file: &Path, device: &Device, report: &Report, judged: bool) {
    for outcome in &report.outcomes {
        let Outcome { output, shape, max_abs, max_rel, allowed, agrees, first } = outcome;
        let verdict = match (judged, agrees) {
            (false, _) => "not judged",
            (true, true) => "agree",
            (true, false) => "departs",
        };
        let at = first.as_ref().filter(|_| judged).map(|first| format!("first at {first:?}")).unwrap_or_default();
        if options.json {
            let key = if report.kind == "op" { "op" } else { "system" };
            let mut line = serde_json::json!({
                "file": file, "kind": report.kind, "output": output, "device": device.to_string(),
                "dtype": report.dtype.name(), "shape": shape, "max_abs": max_abs, "max_rel": max_rel,
                "allowed": allowed, "verdict": verdict, "message": at,
            });
            line[key] = serde_json::json!(report.name);
            println!("{line}");
        } else {
            println!(
                "{} {output} {shape:?} {} {device} error {max_abs:.1e} ({max_rel:.1e}) allowed {allowed:.1e} {verdict} {at}",
                file.display(),
                report.dtype
            );
        }
    }
    if report.kind == "model"
        && judged
        && let Some(first) = report.outcomes.iter().find(|outcome| !outcome.agrees)
        && !options.json
    {
        println!("{}: departs first in {}", file.display(), first.output);
    }
}
