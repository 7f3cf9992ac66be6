//! Parallel decoding against one token after the other, with equal weights on the same machine: passes, times, and what
//! the papers claim.
//!
//! Every generator has LlamaGen-B's shape and random weights, each tensor of one shape the same ones, and draws one
//! picture with guidance, without its tokenizer. A claim is the paper's own, with what it compares; where that is another
//! accelerator or a larger batch, the number here may well be another.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Value, json};
use smalti::{Device, Float, Tensor};
use smalti_models::backbone::adaln::AdaLn;
use smalti_models::weights::Checkpoint;
use smalti_models::{Generator, Result, Sampling, zoo};

use crate::generators::{LLAMAGEN_B, Run, VAR_D16, save};
use crate::{Ceilings, Rated, Row, Task, decoders, median, seconds, spread};

/// Runs of each, in turns.
const TURNS: usize = 3;

/// Names and shapes of weights.
type Tensors = BTreeMap<String, Vec<usize>>;

/// A way to draw.
struct Way {
    system: &'static str,
    /// What the weights' notes say of how it draws.
    config: Value,
    tensors: Tensors,
}

/// A parallel decoder and what its paper claims over what.
struct Family {
    name: &'static str,
    claim: &'static str,
    parallel: Way,
    /// How the same weights draw otherwise, and a name for that.
    other: (&'static str, Way),
}

/// LlamaGen's names, without a prefix.
fn llama() -> Tensors {
    let own = |(name, shape): (String, Vec<usize>)| (name.trim_start_matches("gpt.").to_owned(), shape);
    LLAMAGEN_B.tensors().into_iter().map(own).collect()
}

fn with(mut tensors: Tensors, more: &[(&str, &[usize])]) -> Tensors {
    tensors.extend(more.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())));
    tensors
}

/// ARPG's names: half of the blocks take tokens in, the others ask for cells.
fn arpg() -> Tensors {
    let crate::generators::Shape { dim, layers, hidden, vocabulary, .. } = LLAMAGEN_B;
    let mut tensors = with(
        Tensors::new(),
        &[
            ("embeddings.weight", &[vocabulary + 1003, dim]),
            ("layers.norm.weight", &[dim]),
            ("layers.to_k.weight", &[dim, dim]),
            ("layers.to_v.weight", &[dim, dim]),
            ("norm.weight", &[dim]),
            ("head.weight", &[vocabulary, dim]),
        ],
    );
    for layer in 0..layers {
        let (kind, index) = (["self_dec", "cross_dec"][layer % 2], layer / 2);
        let square: &[&str] = if layer % 2 == 0 { &["to_q", "to_k", "to_v", "proj"] } else { &["to_q", "proj"] };
        let mut add = |name: &str, shape: &[usize]| {
            tensors.insert(format!("layers.{kind}.{index}.{name}.weight"), shape.to_vec());
        };
        square.iter().for_each(|name| add(&format!("attn.{name}"), &[dim, dim]));
        ["attn_norm", "ffn_norm"].iter().for_each(|name| add(name, &[dim]));
        ["ffn.w1", "ffn.w3"].iter().for_each(|name| add(name, &[hidden, dim]));
        add("ffn.w2", &[dim, hidden]);
    }
    tensors
}

/// LPD's names.
fn lpd() -> Tensors {
    let crate::generators::Shape { dim, layers, vocabulary, .. } = LLAMAGEN_B;
    let mut tensors = with(
        Tensors::new(),
        &[
            ("class_emb.weight", &[1000, dim]),
            ("fake_latent", &[1, dim]),
            ("token_emb.weight", &[vocabulary, dim]),
            ("mask_token", &[1, 1, dim]),
            ("pos_embed", &[1, 257, dim]),
            ("head.weight", &[vocabulary, dim]),
        ],
    );
    let mut add = |name: &str, outputs: usize, inputs: Option<usize>| {
        let shape = [outputs].into_iter().chain(inputs).collect();
        tensors.insert(format!("{name}.weight"), shape);
        tensors.insert(format!("{name}.bias"), vec![outputs]);
    };
    ["z_proj_ln", "norm"].iter().for_each(|name| add(name, dim, None));
    for block in 0..layers {
        let at = |name: &str| format!("blocks.{block}.{name}");
        ["norm1", "norm2"].iter().for_each(|name| add(&at(name), dim, None));
        add(&at("attn.qkv"), 3 * dim, Some(dim));
        add(&at("attn.proj"), dim, Some(dim));
        add(&at("mlp.fc1"), 4 * dim, Some(dim));
        add(&at("mlp.fc2"), dim, Some(4 * dim));
    }
    tensors
}

fn families() -> Vec<Family> {
    let crate::generators::Shape { dim, vocabulary, .. } = LLAMAGEN_B;
    let way = |system, config, tensors| Way { system, config, tensors };
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
            parallel: way("arpg", json!({"block_size": 256, "num_iter": 64}), arpg()),
            other: (one_by_one, way("arpg", json!({"block_size": 256, "num_iter": 256}), arpg())),
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
            parallel: way("lpd", json!({}), lpd()),
            other: (one_by_one, way("lpd", json!({"group_sizes": vec![1; 256]}), lpd())),
        },
        Family {
            name: "MaskGIL",
            claim: "8 passes in place of 256",
            parallel: way("maskgil", json!({"block_size": 256, "step": 8}), masked),
            other: ("raster", raster(256)),
        },
    ]
}

impl Way {
    /// How it draws, and in how many steps, each of them a pass.
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
        Ok((passes, Box::new(move || draw(generator.as_ref()).map(|_| ()))))
    }
}

/// Bytes of the matrices that a pass reads, and operations of one row through them.
pub(crate) fn least<'a, T: Float>(tensors: impl Iterator<Item = (&'a str, Vec<usize>)>) -> [f64; 2] {
    let matrices = tensors.filter(|(name, shape)| shape.len() == 2 && !name.contains("emb"));
    let elements: usize = matrices.map(|(_, shape)| shape.iter().product::<usize>()).sum();
    [(elements * T::DTYPE.bytes()) as f64, 2.0 * elements as f64]
}

/// All families in turns with their other ways, in the report's rows.
///
/// # Errors
/// If weights cannot be written or the device fails.
pub fn measure<T: Float>(device: &Device, folder: &Path, ceilings: &Ceilings) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for Family { name, claim, parallel, other: (against, other) } in families() {
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
    rows.push(hmar::<T>(device, ceilings)?);
    rows.extend(decoders::measure::<T>(device, ceilings)?);
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
