//! The program: arguments in, pictures and reports out.

mod args;
mod classes;
mod conform;
mod devices;
mod generate;
mod models;
mod picture;
mod show;
mod watch;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser as _;

use args::{Arguments, Command};

/// Why a command ended without having done its work.
#[derive(Debug)]
pub enum Failure {
    /// Wrong arguments or input: exit status 2.
    Input(String),
    /// The work failed: exit status 1.
    Work(String),
    /// Ctrl-C: exit status 130.
    Interrupted,
}

/// Set by Ctrl-C; long work looks at it between steps.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether Ctrl-C was pressed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; a closed standard output is not worth another message.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    // A first Ctrl-C ends the work at the next step, so that temporary files are removed; a second one ends it now.
    let handler = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
    if let Err(error) = handler {
        eprintln!("smalti: Ctrl-C will not clean up: {error}");
    }
    let outcome = match arguments.command {
        Command::Generate(options) => generate::run(&options),
        Command::Devices(options) => {
            devices::run(&options);
            Ok(ExitCode::SUCCESS)
        }
        Command::Models(options) => {
            models::run(&options);
            Ok(ExitCode::SUCCESS)
        }
        Command::Classes(options) => classes::run(&options),
        Command::Conform(options) => conform::run(&options),
        Command::ShowMask(options) => show::mask(&options),
        Command::ShowOrder(options) => show::order(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(Failure::Input(message)) => {
            eprintln!("smalti: {message}");
            ExitCode::from(2)
        }
        Err(Failure::Work(message)) => {
            eprintln!("smalti: {message}");
            ExitCode::from(1)
        }
        Err(Failure::Interrupted) => {
            eprintln!("smalti: interrupted, nothing written");
            ExitCode::from(130)
        }
    }
}
