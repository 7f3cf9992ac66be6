//! A generator by parts: `cargo run --release -p smalti-models --example llamagen_by_parts`.
//!
//! Tokens from the transformer, step by step, then pixels from the tokenizer.

use std::ops::ControlFlow;

use smalti::Device;
use smalti_models::decode::{Random, Sampler};
use smalti_models::zoo::codes::DrawsCodes;
use smalti_models::zoo::llamagen::{Condition, LlamaGen};
use smalti_models::{Error, Result, Sampling, weights};

fn main() -> Result<()> {
    let device = Device::best();
    let checkpoint = weights::embedded("llamagen").ok_or_else(|| Error::Request("no such weights".to_owned()))?;
    let model = LlamaGen::load(&checkpoint, &device)?;
    let sampling = Sampling { seed: 7, ..model.codes().sampling() };
    let sampler = Sampler::new(sampling, Random::Philox { first_picture: 0 }, model.codes().places());
    let heart = Condition::Classes(&[2]);
    let tokens = model.generate::<f32>(&heart, &sampler, &mut |step| {
        if step.settled % 64 == 0 {
            println!("{} tokens", step.settled);
        }
        ControlFlow::Continue(())
    })?;
    let pixels = model.codes().decode::<f32>(&tokens, &sampler)?;
    println!("tokens {:?}, pixels {:?} on {device}", tokens.shape(), pixels.shape());
    Ok(())
}
