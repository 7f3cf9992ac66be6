//! Whole generators with random weights, as the benches run them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Value, json};
use smalti::{Device, Dtype, Float, Tensor};
use smalti_models::Sampling;
use smalti_models::backbone::adaln::{AdaLn, ModulatedHead};
use smalti_models::decode::{Random, Sampler};
use smalti_models::weights::Checkpoint;
use smalti_models::zoo::llamagen::{Condition, LlamaGen};

use crate::numbers;

/// A generator's shape.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// What it is called.
    pub name: &'static str,
    /// `llamagen` or `var`.
    pub system: &'static str,
    /// Channels.
    pub dim: usize,
    /// Heads of attention.
    pub heads: usize,
    /// Blocks.
    pub layers: usize,
    /// Channels inside the MLP.
    pub hidden: usize,
    /// Tokens that there are.
    pub vocabulary: usize,
    /// Sides of the grids of tokens: VAR's scales, LlamaGen's one.
    pub sides: &'static [usize],
}

/// LlamaGen-B, 256 pixels.
pub const LLAMAGEN_B: Shape = Shape {
    name: "LlamaGen-B",
    system: "llamagen",
    dim: 768,
    heads: 12,
    layers: 12,
    hidden: 2048,
    vocabulary: 16384,
    sides: &[16],
};

/// VAR-d16, 256 pixels.
pub const VAR_D16: Shape = Shape {
    name: "VAR-d16",
    system: "var",
    dim: 1024,
    heads: 16,
    layers: 16,
    hidden: 4096,
    vocabulary: 4096,
    sides: &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
};

impl Shape {
    /// Official names with their shapes.
    #[must_use]
    pub fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
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

    /// Numbers that were learned.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.tensors().values().map(|shape| shape.iter().product::<usize>()).sum()
    }

    /// Writes a safetensors file of random numbers.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save<T: Float>(&self, path: &Path) -> std::io::Result<()> {
        save::<T>(path, self.system, &json!({"block_size": self.tokens()}), &self.tensors())
    }

    /// Bytes of the weights and of the caches of keys and values, two rows for guidance.
    #[must_use]
    pub fn held<T: Float>(&self) -> u64 {
        let cached = 2 * self.layers * 2 * self.tokens() * self.dim;
        ((self.parameters() + cached) * T::DTYPE.bytes()) as u64
    }

    /// Places of a picture.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.sides.iter().map(|side| side * side).sum()
    }

    /// Bytes of weights that are read, and operations that are done, by all steps together.
    #[must_use]
    pub fn floor<T: Float>(&self) -> [f64; 2] {
        let (mut bytes, mut operations) = (0, 0);
        for (name, shape) in self.tensors() {
            let count: usize = shape.iter().product();
            let steps = if self.system == "llamagen" { self.tokens() } else { self.sides.len() };
            // Of the tables of embeddings a few rows are read.
            if name.contains("embedding") {
                continue;
            }
            // Modulations follow from the condition: the blocks' once, the head's at every step.
            let steps = if name.contains("blocks") && name.contains("ada_lin") { 1 } else { steps };
            let rows = 2 * if name.contains("ada_lin") { steps } else { self.tokens() };
            bytes += count * T::DTYPE.bytes() * steps;
            operations += 2 * count * rows;
        }
        [bytes as f64, operations as f64]
    }

    /// What the peer is told.
    #[must_use]
    pub fn task(&self, path: &Path) -> Value {
        json!({"task": self.system, "path": path, "dim": self.dim, "heads": self.heads, "sides": self.sides,
            "cfg": 4.0, "label": 7})
    }

    /// A picture's tokens, again and again: LlamaGen's, or the logits of VAR's transformer over all its scales.
    ///
    /// # Errors
    /// If the file does not hold the shape's weights, or the device has no room for them.
    pub fn prepare<T: Float>(&self, path: &Path, device: &Device) -> smalti_models::Result<Run> {
        let checkpoint = Checkpoint::open(path)?;
        let device = device.clone();
        if self.system == "llamagen" {
            let model = LlamaGen::load(&checkpoint, &device)?;
            let sampling = Sampling { cfg: 4.0, temperature: 1.0, top_k: 0, top_p: 1.0, seed: 1 };
            let sampler = Sampler::new(sampling, Random::Philox { first_picture: 0 }, self.tokens());
            return Ok(Box::new(move || {
                model.generate::<T>(&Condition::Classes(&[7]), &sampler, &mut |_| ControlFlow::Continue(()))?;
                Ok(())
            }));
        }
        let (backbone, head) = checkpoint.build(&device, &[], |root, _| {
            let backbone = AdaLn::<T>::load(root, &["blocks"], self.dim, self.heads, 1e-6)?;
            Ok((backbone, ModulatedHead::load(root, "head_nm", "head", self.dim, 1e-6)?))
        })?;
        let Self { dim, sides, .. } = *self;
        let places = self.tokens();
        let input = |shape: &[usize]| Tensor::from_vec(&device, shape, vec![T::from_f32(0.1); shape.iter().product()]);
        let condition = input(&[2, dim])?;
        let inputs = sides.iter().map(|side| input(&[2, side * side, dim])).collect::<smalti::Result<Vec<_>>>()?;
        Ok(Box::new(move || {
            let mut caches = backbone.caches(&device, 2, places)?;
            let modulated = backbone.condition(&condition)?;
            for x in &inputs {
                let x = backbone.run(x, &modulated, &mut caches, &backbone.options())?;
                head.run(&x, &condition)?;
            }
            Ok(())
        }))
    }
}

/// Writes a safetensors file of random numbers.
///
/// # Errors
/// If the file cannot be written.
pub fn save<T: Float>(
    path: &Path,
    system: &str,
    config: &Value,
    tensors: &BTreeMap<String, Vec<usize>>,
) -> std::io::Result<()> {
    use std::io::Write;
    let dtype = if T::DTYPE == Dtype::Bf16 { "BF16" } else { "F32" };
    let mut header = json!({"__metadata__": {"system": system, "config": config.to_string()}});
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * T::DTYPE.bytes();
        header[name] = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
    }
    let header = header.to_string();
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for shape in tensors.values() {
        // Norms and biases are small too: only time matters here.
        let values: Vec<T> =
            numbers::<f32>(shape.iter().product()).iter().map(|number| T::from_f32(0.03 * number)).collect();
        file.write_all(bytemuck::cast_slice(&values))?;
    }
    file.flush()
}

/// Makes a picture's tokens once.
pub type Run = Box<dyn FnMut() -> smalti_models::Result<()>>;
