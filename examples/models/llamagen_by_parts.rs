//! A generator by parts: `cargo run --release -p smalti-models --example llamagen_by_parts`.
//!
//! Tokens from the transformer, step by step, then pixels from the tokenizer.

use std::ops::ControlFlow;

use smalti::Device;
use smalti_models::zoo::llamagen::LlamaGen;
use smalti_models::{Error, Generator, Result, Sampling, weights};

fn main() -> Result<()> {
    let device = Device::best();
    let checkpoint = weights::embedded("llamagen").ok_or_else(|| Error::Request("no such weights".to_owned()))?;
    let model = LlamaGen::<f32>::load(&checkpoint, &device)?;
    let sampling = Sampling { seed: 7, ..model.about().sampling };
    let heart = 2;
    let tokens = model.generate(&[heart], 0, &sampling, &mut |step| {
        if step.settled % 64 == 0 {
            println!("{} tokens", step.settled);
        }
        ControlFlow::Continue(())
    })?;
    let pixels = model.decode(&tokens)?;
    println!("tokens {:?}, pixels {:?} on {device}", tokens.shape(), pixels.shape());
    Ok(())
}
