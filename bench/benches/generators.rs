//! Whole generators with random weights: LlamaGen-B, 256 tokens with guidance, and the transformer of VAR-d16 over its
//! ten scales with guidance. Each runs in a process of its own, so that its peak memory is its own.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use smalti::{Device, Dtype, Float, Tensor, bf16};
use smalti_bench::{
    Ceilings, Memory, Operand, Peer, Rated, Row, Task, median, numbers, peak_memory, seconds, spread, threads, write,
};
use smalti_models::Sampling;
use smalti_models::backbone::adaln::{AdaLn, ModulatedHead};
use smalti_models::weights::{Checkpoint, Loader, Notes};
use smalti_models::zoo::llamagen::LlamaGen;

type Failure = Box<dyn std::error::Error>;

/// Runs of each, in turns.
const TURNS: usize = 3;
const PATCH_NUMS: [usize; 10] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16];
/// Tokens along a side of LlamaGen's grid.
const GRID: usize = 16;

/// A generator's shape.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    system: &'static str,
    dim: usize,
    heads: usize,
    layers: usize,
    hidden: usize,
    vocabulary: usize,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "LlamaGen-B", system: "llamagen", dim: 768, heads: 12, layers: 12, hidden: 2048, vocabulary: 16384 },
    Shape { name: "VAR-d16", system: "var", dim: 1024, heads: 16, layers: 16, hidden: 4096, vocabulary: 4096 },
];

impl Shape {
    /// Official names with their shapes.
    fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let Self { dim, heads, layers, hidden, vocabulary, .. } = *self;
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: &[usize]| tensors.insert(name, shape.to_vec());
        if self.system == "llamagen" {
            add("gpt.tok_embeddings.weight".into(), &[vocabulary, dim]);
            add("gpt.output.weight".into(), &[vocabulary, dim]);
            add("gpt.norm.weight".into(), &[dim]);
            add("gpt.cls_embedding.embedding_table.weight".into(), &[1001, dim]);
            for layer in 0..layers {
                let at = format!("gpt.layers.{layer}");
                add(format!("{at}.attention_norm.weight"), &[dim]);
                add(format!("{at}.ffn_norm.weight"), &[dim]);
                add(format!("{at}.attention.wqkv.weight"), &[3 * dim, dim]);
                add(format!("{at}.attention.wo.weight"), &[dim, dim]);
                add(format!("{at}.feed_forward.w1.weight"), &[hidden, dim]);
                add(format!("{at}.feed_forward.w3.weight"), &[hidden, dim]);
                add(format!("{at}.feed_forward.w2.weight"), &[dim, hidden]);
            }
            return tensors;
        }
        let mut layer = |name: String, [outputs, inputs]: [usize; 2]| {
            add(format!("{name}.weight"), &[outputs, inputs]);
            add(format!("{name}.bias"), &[outputs]);
        };
        layer("head".into(), [vocabulary, dim]);
        layer("head_nm.ada_lin.1".into(), [2 * dim, dim]);
        for block in 0..layers {
            layer(format!("blocks.{block}.ada_lin.1"), [6 * dim, dim]);
            layer(format!("blocks.{block}.attn.proj"), [dim, dim]);
            layer(format!("blocks.{block}.ffn.fc1"), [hidden, dim]);
            layer(format!("blocks.{block}.ffn.fc2"), [dim, hidden]);
        }
        for block in 0..layers {
            let at = format!("blocks.{block}.attn");
            add(format!("{at}.mat_qkv.weight"), &[3 * dim, dim]);
            add(format!("{at}.q_bias"), &[dim]);
            add(format!("{at}.v_bias"), &[dim]);
            add(format!("{at}.scale_mul_1H11"), &[1, heads, 1, 1]);
        }
        tensors
    }

    fn parameters(&self) -> usize {
        self.tensors().values().map(|shape| shape.iter().product::<usize>()).sum()
    }

    /// A safetensors file of random numbers.
    fn save<T: Float>(&self, path: &Path) -> std::io::Result<()> {
        use std::io::Write;
        let dtype = if T::DTYPE == Dtype::Bf16 { "BF16" } else { "F32" };
        let mut header = json!({"__metadata__": {"system": self.system}});
        let mut end = 0;
        for (name, shape) in self.tensors() {
            let start = end;
            end += shape.iter().product::<usize>() * T::DTYPE.bytes();
            header[name] = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        }
        let header = header.to_string();
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for shape in self.tensors().values() {
            // Norms and biases are small too: only time matters here.
            let values: Vec<T> =
                numbers::<f32>(shape.iter().product()).iter().map(|number| T::from_f32(0.03 * number)).collect();
            file.write_all(bytemuck::cast_slice(&values))?;
        }
        file.flush()
    }

    /// Bytes of the weights and of the caches of keys and values, two rows for guidance.
    fn held<T: Float>(&self) -> u64 {
        let cached = 2 * self.layers * 2 * self.tokens() * self.dim;
        ((self.parameters() + cached) * T::DTYPE.bytes()) as u64
    }

    /// Places of a picture.
    fn tokens(&self) -> usize {
        match self.system {
            "llamagen" => GRID * GRID,
            _ => PATCH_NUMS.iter().map(|side| side * side).sum(),
        }
    }

    /// Bytes of weights that are read, and operations that are done, by all steps together.
    fn floor<T: Float>(&self) -> [f64; 2] {
        let (mut bytes, mut operations) = (0, 0);
        for (name, shape) in self.tensors() {
            let count: usize = shape.iter().product();
            let steps = if self.system == "llamagen" { self.tokens() } else { PATCH_NUMS.len() };
            // Of the tables of embeddings a few rows are read.
            if name.contains("embedding") {
                continue;
            }
            // Modulations follow from the condition, once a step.
            let rows = 2 * if name.contains("ada_lin") { steps } else { self.tokens() };
            bytes += count * T::DTYPE.bytes() * steps;
            operations += 2 * count * rows;
        }
        [bytes as f64, operations as f64]
    }
}

/// A generator that is ready to run.
fn prepare<T: Float>(
    shape: &Shape,
    path: &Path,
    device: &Device,
) -> Result<Box<dyn FnMut() -> Result<(), Failure>>, Failure> {
    let checkpoint = Checkpoint::open(path)?;
    let device = device.clone();
    if shape.system == "llamagen" {
        let model = LlamaGen::<T>::load(&checkpoint, &device)?;
        let sampling = Sampling { cfg: 4.0, temperature: 1.0, top_k: 0, top_p: 1.0, seed: 1 };
        return Ok(Box::new(move || {
            model.generate(&[7], 0, &sampling, &mut |_, _| ControlFlow::Continue(()))?;
            Ok(())
        }));
    }
    let notes = Notes::default();
    let loader = Loader::new(&checkpoint, &device, &notes);
    let backbone = AdaLn::<T>::load(&loader, &["blocks"], shape.dim, shape.heads, 1e-6)?;
    let head = ModulatedHead::load(&loader, "head_nm", "head", shape.dim, 1e-6)?;
    let dim = shape.dim;
    Ok(Box::new(move || {
        let input = |shape: &[usize]| Tensor::from_vec(&device, shape, vec![T::from_f32(0.1); shape.iter().product()]);
        let condition = input(&[2, dim])?;
        let places = PATCH_NUMS.iter().map(|side| side * side).sum();
        let mut caches = backbone.caches(&device, 2, places)?;
        for side in PATCH_NUMS {
            let x = input(&[2, side * side, dim])?;
            let x = backbone.run(&x, &condition, &mut caches, &backbone.options())?;
            head.run(&x, &condition)?;
        }
        Ok(())
    }))
}

/// One generator against the peer; the result as JSON on the last line of standard output.
fn run<T: Float>(shape: &Shape, path: &Path) -> Result<Value, Failure> {
    let device = Device::cpu_with_threads(threads())?;
    let mut ours = prepare::<T>(shape, path, &device)?;
    let mut peer = Peer::pytorch(threads());
    let task = json!({"task": shape.system, "path": path, "dim": shape.dim, "heads": shape.heads, "grid": GRID,
        "cfg": 4.0, "label": 7, "patch_nums": PATCH_NUMS, "cold": true});
    peer.prepare::<T>(task, &[] as &[Operand<'_, T>]);
    let (mut our_seconds, mut peer_seconds) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let mut done = Ok(());
        our_seconds.push(seconds(|| done = ours()));
        done?;
        peer_seconds.extend(peer.run());
    }
    let rated = Rated::new("PyTorch", &our_seconds, &peer_seconds);
    Ok(json!({
        "spread": spread(&our_seconds),
        "seconds": median(our_seconds),
        "peer": rated.as_ref().map(|rated| rated.seconds),
        "ratio": rated.as_ref().map(|rated| rated.ratio),
        "peak": peak_memory(),
    }))
}

fn main() -> Result<(), Failure> {
    if let [system, dtype, path] =
        &std::env::var("SMALTI_BENCH_GENERATOR").unwrap_or_default().splitn(3, ' ').collect::<Vec<_>>()[..]
    {
        let shape = SHAPES.iter().find(|shape| shape.system == *system).ok_or("no such generator")?;
        let path = Path::new(path);
        println!("{}", if *dtype == "bf16" { run::<bf16>(shape, path)? } else { run::<f32>(shape, path)? });
        return Ok(());
    }
    let ceilings = Ceilings::measure(&Device::cpu_with_threads(threads())?, threads());
    let name = Peer::pytorch(threads()).name();
    let folder = tempfile::tempdir()?;
    let mut rows = Vec::new();
    for shape in &SHAPES {
        rows.push(row::<f32>(shape, folder.path(), &ceilings)?);
        rows.push(row::<bf16>(shape, folder.path(), &ceilings)?);
    }
    write("generators", &format!("cpu, {} threads", threads()), &[name], &ceilings, &rows)?;
    Ok(())
}

/// Runs a generator in a process of its own.
fn row<T: Float>(shape: &Shape, folder: &Path, ceilings: &Ceilings) -> Result<Row, Failure> {
    let path = folder.join(shape.system);
    shape.save::<T>(&path)?;
    let dtype = T::DTYPE.name();
    let told = format!("{} {dtype} {}", shape.system, path.display());
    let output = Command::new(std::env::current_exe()?).env("SMALTI_BENCH_GENERATOR", told).output()?;
    let answer = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        return Err(format!("{} {dtype}: {}", shape.name, String::from_utf8_lossy(&output.stderr)).into());
    }
    let answer: Value = serde_json::from_str(answer.lines().last().unwrap_or_default())?;
    let number = |key: &str| answer[key].as_f64();
    let rated = number("peer").zip(number("ratio")).map(|(seconds, ratio)| Rated {
        name: "PyTorch".to_owned(),
        seconds,
        ratio,
    });
    let [bytes, operations] = shape.floor::<T>();
    Ok(Row {
        task: Task {
            name: format!("{} {dtype}, {}M parameters", shape.name, shape.parameters() / 1_000_000),
            bytes,
            operations,
            place: None,
        },
        spread: number("spread").unwrap_or(0.0),
        seconds: number("seconds").ok_or("no time")?,
        peers: rated.into_iter().collect(),
        product_ceiling: ceilings.product::<T>(),
        error: None,
        memory: answer["peak"].as_u64().map(|peak| Memory { peak, needed: shape.held::<T>() }),
    })
}
