//! `smalti`: draws pictures, lists devices and classes, and checks a port against a dump from PyTorch.

#[path = "program/mod.rs"]
mod program;

fn main() -> std::process::ExitCode {
    program::main()
}
