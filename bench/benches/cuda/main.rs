//! All families on an NVIDIA GPU, against PyTorch there. Words among the arguments leave out what has none of them in its
//! name: `cargo bench -p smalti-bench --features cuda --bench cuda -- attention`.

mod attention;
mod linear;
mod rows;
mod tokens;
mod whole;

use std::process::ExitCode;

use smalti_bench::cuda::{Bench, Failure};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the bench on a GPU: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let Some(mut bench) = Bench::start()? else { return Ok(()) };
    attention::dense(&mut bench);
    attention::masked(&mut bench);
    attention::density(&mut bench);
    attention::decode(&mut bench);
    linear::all(&mut bench);
    rows::all(&mut bench);
    tokens::nearest(&mut bench);
    tokens::sample(&mut bench);
    tokens::jacobi(&mut bench);
    whole::all(&mut bench);
    bench.finish()
}
