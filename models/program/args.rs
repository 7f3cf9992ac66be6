//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, Subcommand, ValueEnum};

/// Draws pictures with autoregressive generators, on a GPU or without one.
#[derive(Parser, Debug)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  smalti generate                                   draw all classes, write smalti.png
  smalti generate --model var --class heart --count 4 --seed 3
  smalti devices                                    what is here to draw on
  smalti conform dump.safetensors --device wgpu     compare a port with PyTorch

Exit status: 0 done; 1 the work failed (conform: an output departs); 2 wrong arguments or input; 130 interrupted."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Draw pictures into one PNG
    Generate(Generate),
    /// List the devices that ops can run on, and why a backend is absent
    Devices(Devices),
    /// List the systems: papers, parts, what runs of each
    Models(Models),
    /// List the classes that a model draws
    Classes(Classes),
    /// Compare every output of dumps from PyTorch with this implementation
    Conform(Conform),
}

/// Which weights to draw with.
#[derive(clap::Args, Debug)]
pub struct Model {
    /// Which model: llamagen, var, or a file of weights
    #[arg(long, value_name = "llamagen|var|FILE", default_value = "llamagen")]
    pub model: String,
    /// A file to take the weights from, instead of those in the program: safetensors, or PyTorch's .pt and .pth; given
    /// twice where the transformer and the tokenizer are in two files
    #[arg(long, value_name = "FILE")]
    pub weights: Vec<PathBuf>,
    /// Tokens along one side of a picture, for LlamaGen's files, which do not say [default: 16; 24 for 384 pixels]
    #[arg(long, value_name = "N")]
    pub grid: Option<usize>,
}

/// Options of `smalti generate`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  smalti generate --class smiley --class heart --count 8 --out faces.png
  smalti generate --weights model.safetensors --temperature 0 --device cpu --json
  smalti generate --weights c2i_B_256.pt --weights vq_ds16_c2i.pt --class 207 --count 1
  smalti generate --count 1000 --shard 3/8 --out part-3.png    the third of eight parts of one run")]
pub struct Generate {
    #[command(flatten)]
    pub model: Model,
    /// A class by name or number; may be given several times [default: all]
    #[arg(long = "class", value_name = "NAME|NUMBER")]
    pub classes: Vec<String>,
    /// How many pictures in all, going round the classes
    #[arg(long, default_value_t = 20)]
    pub count: usize,
    /// The seed; the same seed draws the same pictures
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Guidance scale: 1 is none [default: the model's]
    #[arg(long, allow_negative_numbers = true)]
    pub cfg: Option<f32>,
    /// Softmax temperature; 0 always takes the likeliest token [default: the model's]
    #[arg(long, allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Draw from the likeliest K tokens only; 0 is off [default: the model's]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Draw from the likeliest tokens that together have this probability, in (0, 1] [default: the model's]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Decode another way than the model's own: jacobi, sjd or gsd, where the network is causal
    #[arg(long, value_name = "NAME")]
    pub decoder: Option<String>,
    /// The device, as `smalti devices` lists it [default: the best that is not software]
    #[arg(long)]
    pub device: Option<String>,
    /// The element type of activations
    #[arg(long, value_enum, default_value_t)]
    pub dtype: DtypeOption,
    /// Threads of the CPU; 0 is one per core
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Draw only this part of the run, as 3/8
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// The picture to write; an existing one is replaced
    #[arg(long, default_value = "smalti.png")]
    pub out: PathBuf,
    /// Report as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Options of `smalti models`.
#[derive(clap::Args, Debug)]
pub struct Models {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `smalti devices`.
#[derive(clap::Args, Debug)]
pub struct Devices {
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `smalti classes`.
#[derive(clap::Args, Debug)]
pub struct Classes {
    #[command(flatten)]
    pub model: Model,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `smalti conform`.
#[derive(clap::Args, Debug)]
pub struct Conform {
    /// Dumps, or folders that are searched for dumps
    #[arg(required = true, value_name = "FILE")]
    pub paths: Vec<PathBuf>,
    /// The device, as `smalti devices` lists it
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Run model dumps in this type and report without a verdict
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeOption>,
    /// One JSON object a line per output
    #[arg(long)]
    pub json: bool,
}

/// An element type for activations.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DtypeOption {
    /// 32-bit floats
    #[default]
    F32,
    /// IEEE 16-bit floats
    F16,
    /// Brain floats
    Bf16,
}

/// One part of a run: the `index`-th of `parts`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    pub index: usize,
    /// At least 1.
    pub parts: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(index, parts)| Some((index.parse().ok()?, parts.parse().ok()?)));
        match parsed {
            Some((index, parts)) if (1..=parts).contains(&index) => Ok(Self { index, parts }),
            _ => Err("expected I/N with 1 <= I <= N, as 3/8".to_owned()),
        }
    }
}

impl Shard {
    /// Which of `count` pictures belong to this part.
    pub fn of(self, count: usize) -> std::ops::Range<usize> {
        let edge = |part: usize| {
            let edge = part as u128 * count as u128 / self.parts as u128;
            usize::try_from(edge).expect("at most count")
        };
        edge(self.index - 1)..edge(self.index)
    }
}
