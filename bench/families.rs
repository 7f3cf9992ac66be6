//! Parallel decoding against one token after the other, with equal weights on the same machine: passes, times, and what
//! the papers claim.
//!
//! Every generator has random weights, each tensor of one shape the same ones, and draws one picture with guidance,
//! without its tokenizer. Those of codes cell by cell have LlamaGen-B's shape; the others are smaller (`names.rs`). A claim
//! is the paper's own, from its abstract or its authors' README, with what it compares; where that is another accelerator or
//! a larger batch, the number here may well be another.

use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Value, json};
use smalti::{Device, Float, Tensor};
use smalti_models::backbone::adaln::AdaLn;
use smalti_models::weights::Checkpoint;
use smalti_models::{Generator, Result, Sampling, zoo};

use crate::generators::{LLAMAGEN_B, Run, VAR_D16, save};
use crate::names::{self, Tensors, llama, with};
use crate::{Ceilings, Rated, Row, Task, decoders, median, seconds, spread};

/// Runs of each, in turns.
const TURNS: usize = 3;

/// A way to draw.
struct Way {
    system: &'static str,
    /// What the weights' notes say of how it draws.
    config: Value,
    tensors: Tensors,
    /// How many passes of the network a step is.
    passes: usize,
}

/// A parallel decoder and what its paper claims over what.
struct Family {
    name: &'static str,
    claim: &'static str,
    parallel: Way,
    /// How the same weights draw otherwise, and a name for that.
    other: (&'static str, Way),
}

fn families() -> Vec<Family> {
    let crate::generators::Shape { dim, vocabulary, .. } = LLAMAGEN_B;
    let way = |system, config, tensors| Way { system, config, tensors, passes: 1 };
    let raster = |places: usize| way("llamagen", json!({"block_size": places}), LLAMAGEN_B.tensors());
    let one_by_one = "one token a pass";
    let randar = || with(llama(), &[("pos_instruct_embeddings", &[1, dim])]);
    let par = |places: usize, regions: usize| {
        let transitions = ("spe_tok_embeddings.special_embeddings.weight", &[regions - 1, dim][..]);
        way("par", json!({"block_size": places}), with(llama(), &[transitions]))
    };
    let nar = || {
        let second = [("medusa_norm.weight", &[dim][..]), ("medusa_output.weight", &[vocabulary, dim])];
        way("nar", json!({"block_size": 256}), with(llama(), &second))
    };
    let mar = |steps: usize| way("mar", json!({"heads": 4, "num_iter": steps, "num_sampling_steps": 10}), names::mar());
    let xar = |cells: usize| way("xar", json!({"heads": 4, "cells": cells, "num_steps": 10}), names::xar());
    // A step is a round of so many passes of the decoder.
    let transdiff = |rounds: usize| {
        let config = json!({"heads": 4, "num_sampling_steps": 10});
        Way { passes: 10, ..way("transdiff", config, names::transdiff(rounds)) }
    };
    let flexvar =
        |scales: &[usize]| way("flexvar", json!({"num_heads": names::DIM / 64, "schedule": scales}), names::flexvar());
    let scales = |system, tensors| way(system, json!({"heads": names::DIM / 64}), tensors);
    let mut masked =
        with(llama(), &[("tok_emb.weight", &[vocabulary + 1002, dim]), ("output.weight", &[vocabulary + 1, dim])]);
    masked.retain(|name, _| !name.starts_with("tok_embeddings") && !name.starts_with("cls_embedding"));
    vec![
        Family {
            name: "RandAR",
            claim: "2.5 times token by token",
            parallel: way("randar", json!({"block_size": 256, "num_inference_steps": 88}), randar()),
            // So many steps that each takes the least.
            other: (one_by_one, way("randar", json!({"block_size": 256, "num_inference_steps": 1 << 20}), randar())),
        },
        Family {
            name: "ARPG",
            claim: "more than 20 times other AR models, in batches",
            parallel: way("arpg", json!({"block_size": 256, "num_iter": 64}), names::arpg()),
            other: (one_by_one, way("arpg", json!({"block_size": 256, "num_iter": 256}), names::arpg())),
        },
        Family {
            name: "PAR, 4 regions of 24 x 24",
            claim: "3.6 times raster",
            parallel: par(576, 4),
            other: ("raster", raster(576)),
        },
        Family {
            name: "PAR, 16 regions of 24 x 24",
            claim: "9.5 times raster",
            parallel: par(576, 16),
            other: ("raster", raster(576)),
        },
        Family {
            name: "NAR",
            claim: "2.4 times PAR in 4 regions",
            parallel: nar(),
            other: ("PAR in 4 regions", par(256, 4)),
        },
        Family { name: "NAR", claim: "none over raster", parallel: nar(), other: ("raster", raster(256)) },
        Family {
            name: "LPD",
            claim: "3.4 times other parallel AR models",
            parallel: way("lpd", json!({}), names::lpd()),
            other: (one_by_one, way("lpd", json!({"group_sizes": vec![1; 256]}), names::lpd())),
        },
        Family {
            name: "MaskGIL",
            claim: "8 passes in place of 256",
            parallel: way("maskgil", json!({"block_size": 256, "step": 8}), masked),
            other: ("raster", raster(256)),
        },
        Family { name: "MAR", claim: "64 passes in place of 256", parallel: mar(64), other: (one_by_one, mar(256)) },
        Family {
            name: "FAR",
            claim: "10 passes for a picture",
            parallel: way("far", json!({"heads": 4, "masked": false, "num_sampling_steps": 10}), names::far()),
            other: ("MAR", mar(64)),
        },
        Family {
            name: "xAR",
            claim: "20 times diffusion transformers",
            parallel: xar(4),
            other: ("a token each", xar(256)),
        },
        Family {
            name: "TransDiff",
            claim: "2 times AR models, 112 times diffusion models",
            parallel: transdiff(1),
            other: ("MRAR", transdiff(4)),
        },
        Family {
            name: "FlexVAR",
            claim: "any number of scales, best with 13",
            parallel: flexvar(&[1, 2, 4, 7, 11, 16]),
            other: ("its own scales", flexvar(&[1, 2, 3, 4, 5, 7, 9, 11, 13, 16])),
        },
        Family {
            name: "M-VAR",
            claim: "faster than VAR (1.5B weights against 2B)",
            parallel: scales("mvar", names::mvar()),
            other: ("VAR", scales("var", names::var())),
        },
        Family {
            name: "AiM-B",
            claim: "2 to 10 times diffusion models",
            parallel: way("aim", json!({}), names::aim()),
            other: ("LlamaGen-B", raster(256)),
        },
    ]
}

impl Way {
    /// How it draws, and in how many passes.
    fn prepare<T: Float>(&self, folder: &Path, device: &Device) -> Result<(usize, Run)> {
        let path = folder.join(self.system);
        let written = save::<T>(&path, self.system, &self.config, &self.tensors);
        written.map_err(|error| smalti_models::Error::Weights(format!("{}: {error}", path.display())))?;
        let generator = zoo::load::<T>(&Checkpoint::open(&path)?, device)?;
        let sampling = Sampling { cfg: 4.0, temperature: 1.0, top_k: 0, top_p: 1.0, seed: 1 };
        let draw = move |generator: &dyn Generator| {
            let mut passes = 0;
            generator.draw(&[7], 0, &sampling, &mut |_, _| {
                passes += 1;
                ControlFlow::Continue(())
            })?;
            Ok::<_, smalti_models::Error>(passes)
        };
        let passes = draw(generator.as_ref())?;
        Ok((passes * self.passes, Box::new(move || draw(generator.as_ref()).map(|_| ()))))
    }
}

/// Bytes of the matrices that a pass reads, and operations of one row through them.
pub(crate) fn least<'a, T: Float>(tensors: impl Iterator<Item = (&'a str, Vec<usize>)>) -> [f64; 2] {
    let matrices = tensors.filter(|(name, shape)| shape.len() == 2 && !name.contains("emb"));
    let elements: usize = matrices.map(|(_, shape)| shape.iter().product::<usize>()).sum();
    [(elements * T::DTYPE.bytes()) as f64, 2.0 * elements as f64]
}

/// All families in turns with their other ways, in the report's rows; of names that hold `wanted`, if that is not empty.
///
/// # Errors
/// If weights cannot be written or the device fails.
pub fn measure<T: Float>(device: &Device, folder: &Path, ceilings: &Ceilings, wanted: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let asked = families().into_iter().filter(|family| family.name.contains(wanted));
    for Family { name, claim, parallel, other: (against, other) } in asked {
        let (passes, ours) = parallel.prepare::<T>(folder, device)?;
        let (other_passes, theirs) = other.prepare::<T>(folder, device)?;
        let tensors = parallel.tensors.iter().map(|(name, shape)| (name.as_str(), shape.clone()));
        let [bytes, operations] = least::<T>(tensors);
        let places = parallel.config["block_size"].as_f64().unwrap_or(256.0);
        let task = Task {
            name: format!("{name}, {passes} passes; paper: {claim}"),
            bytes: bytes * passes as f64,
            operations: 2.0 * operations * places,
            place: None,
        };
        let against = format!("{against}, {other_passes} passes");
        rows.push(in_turns::<T>(task, 1, ours, &against, theirs, ceilings)?);
    }
    if "HMAR".contains(wanted) {
        rows.push(hmar::<T>(device, ceilings)?);
    }
    if "decoders".contains(wanted) {
        rows.extend(decoders::measure::<T>(device, ceilings)?);
    }
    Ok(rows)
}

/// Runs that draw so many pictures each, in turns; seconds are those of one picture.
pub(crate) fn in_turns<T: Float>(
    task: Task,
    pictures: usize,
    mut ours: Run,
    against: &str,
    mut theirs: Run,
    ceilings: &Ceilings,
) -> Result<Row> {
    let (mut our_seconds, mut their_seconds) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let mut done = Ok(());
        our_seconds.push(seconds(|| done = ours()) / pictures as f64);
        done?;
        let mut done = Ok(());
        their_seconds.push(seconds(|| done = theirs()) / pictures as f64);
        done?;
    }
    Ok(Row {
        task,
        spread: spread(&our_seconds),
        peers: Rated::new(against, &our_seconds, &their_seconds).into_iter().collect(),
        seconds: median(our_seconds),
        product_ceiling: ceilings.product::<T>(),
        error: None,
        memory: None,
    })
}

/// HMAR's transformer, which sees one scale at a time and needs no cache, against VAR's, which keeps all of them: the same
/// blocks over the same scales, three of which HMAR runs again to draw some cells anew.
fn hmar<T: Float>(device: &Device, ceilings: &Ceilings) -> Result<Row> {
    let crate::generators::Shape { dim, heads, sides, .. } = VAR_D16;
    let folder = tempfile::tempdir().map_err(|error| smalti_models::Error::Weights(error.to_string()))?;
    let path = folder.path().join("var");
    let written = VAR_D16.save::<T>(&path);
    written.map_err(|error| smalti_models::Error::Weights(format!("{}: {error}", path.display())))?;
    let load = || {
        let unread = ["head.weight", "head.bias", "head_nm.ada_lin.1.weight", "head_nm.ada_lin.1.bias"];
        Checkpoint::open(&path)?.build(device, &unread, |root, _| AdaLn::<T>::load(root, &["blocks"], dim, heads, 1e-6))
    };
    // The schedule of the paper's benchmark: masked steps follow the second and the third scale.
    let again = [1, 2, 3];
    let passes = sides.len() + again.iter().map(|scale| scale - 1).sum::<usize>();
    let run = |markov: bool| -> Result<Run> {
        let blocks = load()?;
        let device = device.clone();
        Ok(Box::new(move || {
            let input =
                |shape: &[usize]| Tensor::from_vec(&device, shape, vec![T::from_f32(0.1); shape.iter().product()]);
            let condition = blocks.condition(&input(&[2, dim])?)?;
            let places = if markov { 256 } else { VAR_D16.tokens() };
            let mut caches = blocks.caches(&device, 2, places)?;
            for (scale, side) in sides.iter().enumerate() {
                let x = input(&[2, side * side, dim])?;
                let runs = if markov { again.get(scale).copied().unwrap_or(1) } else { 1 };
                for _ in 0..runs {
                    if markov {
                        caches.iter_mut().for_each(|cache| cache.truncate(0));
                    }
                    blocks.run(&x, &condition, &mut caches, &blocks.options())?;
                }
            }
            Ok(())
        }))
    };
    let [bytes, operations] = VAR_D16.floor::<T>();
    let name = format!("HMAR's blocks, {passes} passes without a cache; paper: 1.75 times VAR");
    let task = Task { name, bytes, operations, place: None };
    in_turns::<T>(task, 1, run(true)?, &format!("VAR, {} passes", sides.len()), run(false)?, ceilings)
}
