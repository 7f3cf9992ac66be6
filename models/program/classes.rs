//! `smalti classes`.

use std::process::ExitCode;

use smalti::Device;

use super::Failure;
use super::args::{Classes, DtypeOption};
use super::generate::{load, open_weights};

/// Prints a line per class: its number and its name.
pub fn run(options: &Classes) -> Result<ExitCode, Failure> {
    let checkpoint = open_weights(&options.model)?;
    let generator = load(&checkpoint, &Device::cpu(), DtypeOption::F32)?;
    if options.json {
        println!("{}", serde_json::json!(generator.about().classes));
    } else {
        for (number, class) in generator.about().classes.iter().enumerate() {
            println!("{number:>4} {class}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
