//! Decoders that test drafts against one token after another, on the trained LlamaGen of the program: passes, times, and
//! what the papers claim.
//!
//! Each draws a picture of every class to its pixels as the weights' notes say, one picture at a time, as with
//! `smalti generate --decoder NAME`; passes and times are means over the classes. The network is small, so that a pass
//! of many drafts costs more here than one of a single token; on a large one, whose weights a pass must read, it hardly
//! does.

use std::ops::ControlFlow;

use smalti::{Device, Float};
use smalti_models::weights::{Checkpoint, embedded};
use smalti_models::{Error, Generator, Result, Sampling, zoo};

use crate::families::{in_turns, least};
use crate::generators::Run;
use crate::{Ceilings, Row, Task};

/// Names of `--decoder`, and what their papers' abstracts claim over one token after another, on other networks and
/// accelerators. That of SJD has no number: this one is from summaries of its tables.
const DECODERS: [(&str, &str); 6] = [
    ("jacobi", "incompatible with drawing tokens (SJD's abstract)"),
    ("sjd", "about 2 times"),
    ("mc-sjd", "up to 4.2 times"),
    ("mc-sjd-gumbel", "up to 4.2 times"),
    ("gsd", "3.7 times"),
    ("lantern", "1.82 times, or so much over plain speculative decoding, with a second network that drafts"),
];

/// A picture of each class: passes of one on the mean, and how to draw them again.
fn prepare<T: Float>(weights: &Checkpoint, decoder: Option<&str>, device: &Device) -> Result<(f64, Run)> {
    let mut generator = zoo::load::<T>(weights, device)?;
    if let Some(name) = decoder {
        generator.use_decoder(name, None)?;
    }
    let sampling = Sampling { seed: 1, ..generator.about().sampling };
    let classes = generator.about().classes.len() as u32;
    // A step is a pass; the pass of the condition, whose token is drawn before the first test, shows no step.
    let unseen = usize::from(decoder.is_some());
    let draw = move |generator: &dyn Generator| {
        let mut passes = 0;
        for class in 0..classes {
            passes += unseen;
            generator.draw(&[class], class.into(), &sampling, &mut |_, _| {
                passes += 1;
                ControlFlow::Continue(())
            })?;
        }
        Ok::<_, Error>(passes as f64 / f64::from(classes))
    };
    let passes = draw(generator.as_ref())?;
    Ok((passes, Box::new(move || draw(generator.as_ref()).map(|_| ()))))
}

/// Every decoder in turns with one token after another, in the report's rows, per picture.
///
/// # Errors
/// If the device fails.
pub(crate) fn measure<T: Float>(device: &Device, ceilings: &Ceilings) -> Result<Vec<Row>> {
    let weights = embedded("llamagen").ok_or_else(|| Error::Weights("the program holds no llamagen".to_owned()))?;
    let shape = |name: &str| weights.shape(name).unwrap_or_default().to_vec();
    let network = weights.names().filter(|name| name.starts_with("gpt.")).map(|name| (name, shape(name)));
    let [bytes, operations] = least::<T>(network);
    let (places, classes) = {
        let generator = zoo::load::<T>(&weights, device)?;
        (generator.about().tokens_per_picture, generator.about().classes.len())
    };
    let row = |(decoder, claim): &(&str, &str)| {
        let (passes, ours) = prepare::<T>(&weights, Some(decoder), device)?;
        let (all, theirs) = prepare::<T>(&weights, None, device)?;
        let task = Task {
            name: format!("trained LlamaGen, {decoder}, {passes} passes a picture; paper: {claim}"),
            bytes: bytes * passes,
            // With guidance.
            operations: 2.0 * operations * places as f64,
            place: None,
        };
        in_turns::<T>(task, classes, ours, &format!("sequential, {all} passes"), theirs, ceilings)
    };
    DECODERS.iter().map(row).collect()
}
