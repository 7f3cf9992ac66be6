//! `smalti-bench compare A.json B.json`: what became slower from one `report.json` to another. Exit 1 if anything did, 2
//! if a report cannot be read.

use std::process::ExitCode;

use serde_json::Value;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [command, before, after] = &arguments[..] else {
        eprintln!("usage: smalti-bench compare A.json B.json");
        return ExitCode::from(2);
    };
    if command != "compare" {
        eprintln!("smalti-bench: no command {command:?}, only compare");
        return ExitCode::from(2);
    }
    let read = |path: &String| -> Result<Value, Box<dyn std::error::Error>> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    };
    let [before, after] = [before, after].map(|path| read(path).map_err(|error| format!("{path}: {error}")));
    match (before, after) {
        (Ok(before), Ok(after)) => {
            let (lines, slower) = smalti_bench::compare(&before, &after);
            lines.iter().for_each(|line| println!("{line}"));
            ExitCode::from(u8::from(slower))
        }
        (before, after) => {
            for error in [before.err(), after.err()].into_iter().flatten() {
                eprintln!("smalti-bench: {error}");
            }
            ExitCode::from(2)
        }
    }
}
