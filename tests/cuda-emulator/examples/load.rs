//! Loads PTX files and lists their kernels: `cargo run --example load -- kernel.ptx ...`.

use cuda_emulator::Module;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut failed = false;
    for path in std::env::args().skip(1) {
        match Module::parse(&std::fs::read_to_string(&path)?) {
            Ok(module) => {
                for function in module.functions() {
                    let (name, registers) = (function.name(), function.registers());
                    println!("{path}: {name}, {registers} registers, {} bytes shared", function.static_shared_bytes());
                }
            }
            Err(error) => {
                println!("{path}: {error}");
                failed = true;
            }
        }
    }
    if failed { Err("not all files are PTX that is known here".into()) } else { Ok(()) }
}
