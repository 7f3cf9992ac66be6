//! `smalti conform`.

use std::process::ExitCode;

use super::Failure;
use super::args::Conform;

/// To come with the module `conform`.
pub fn run(_options: &Conform) -> Result<ExitCode, Failure> {
    Err(Failure::Input("conform: this version cannot run dumps yet".to_owned()))
}
