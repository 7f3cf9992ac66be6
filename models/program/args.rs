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
  smalti show-order --model randar --out order.png  look at what a paper describes

Exit status: 0 done; 1 the work failed (conform: an output departs); 2 wrong arguments or input; 130 interrupted."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
#[expect(clippy::large_enum_variant, reason = "the program parses one, so its size does not matter")]
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
    /// Draw a mask: which query sees which key, and what a kernel skips
    ShowMask(ShowMask),
    /// Draw the order in which a system settles the cells of a picture
    ShowOrder(ShowOrder),
}

/// Which weights to draw with.
#[derive(clap::Args, Debug)]
pub struct Model {
    /// Which model: llamagen or var, whose weights are in the program; any of `smalti models` with --weights; or a file
    /// of weights [default: llamagen]
    #[arg(long, value_name = "NAME|FILE")]
    pub model: Option<String>,
    /// A file to take the weights from, instead of those in the program: safetensors, or PyTorch's .pt and .pth; given
    /// twice where the transformer and the tokenizer are in two files
    #[arg(long, value_name = "FILE")]
    pub weights: Vec<PathBuf>,
    /// Tokens along one side of a picture: for LlamaGen's files, which do not say [default: 16; 24 for 384 pixels]; for
    /// RandAR twice its own, for a picture of twice the side; for FlexVAR any, or the sides of all scales, as 1,2,4,8,16
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub grid: Vec<usize>,
}

/// Options of `smalti generate`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  smalti generate --class smiley --class heart --count 8 --out faces.png
  smalti generate --weights model.safetensors --temperature 0 --device cpu --json
  smalti generate --weights c2i_B_256.pt --weights vq_ds16_c2i.pt --class 207 --count 1
  smalti generate --model var --class heart --image face.png --mask mouth.png --count 4
  smalti generate --model var --count 1 --preview steps --trace order.json
  smalti generate --model maskgil --weights maskgil.pt --weights vq_ds16_c2i.pt
  smalti generate --model controlar --weights c2i.safetensors --weights vq_ds16_c2i.pt --control edges.png --class 207
  smalti generate --count 1000 --shard 3/8 --out part-3.png    the third of eight parts of one run")]
pub struct Generate {
    #[command(flatten)]
    pub model: Model,
    /// A class by name or number; may be given several times [default: all]
    #[arg(long = "class", value_name = "NAME|NUMBER")]
    pub classes: Vec<String>,
    /// Features of captions to draw, for systems that draw from text: a safetensors file of what the system's text
    /// encoder gives, `features` [captions, rows, channels], and, if captions are padded at their ends, `lengths`
    /// [captions] (i32); --class then picks captions by number
    #[arg(long, value_name = "FILE")]
    pub captions: Option<PathBuf>,
    /// The control picture of ControlAR: edges, depth or segments, brought to the model's size
    #[arg(long, value_name = "PNG")]
    pub control: Option<PathBuf>,
    /// How many pictures in all, going round the classes
    #[arg(long, default_value_t = 20)]
    pub count: usize,
    /// The seed; the same seed draws the same pictures
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Guidance scale: 1 is none [default: the model's]
    #[arg(long, allow_negative_numbers = true)]
    pub cfg: Option<f32>,
    /// What guidance follows besides its scale, where one token is drawn after another: plain (nothing), entropy (how unsure
    /// the prediction is), or soft (SoftCFG: unsure tokens fade where there is no condition; llamagen, controlar)
    #[arg(long, value_name = "NAME", default_value = "plain")]
    pub guidance: String,
    /// Softmax temperature; 0 always takes the likeliest token [default: the model's]
    #[arg(long, allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Draw from the likeliest K tokens only; 0 is off [default: the model's]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Draw from the likeliest tokens that together have this probability, in (0, 1] [default: the model's]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Decode another way than the model's own, where the network is causal: several tokens are drafted and tested by one
    /// pass. With the law of the model's own decoder: jacobi, sjd, mc-sjd, mc-sjd-gumbel, draft; with more or less of it,
    /// and fewer passes: gsd, lantern
    #[arg(long, value_name = "NAME")]
    pub decoder: Option<String>,
    /// Weights of a smaller model of the same system, which drafts for --decoder draft or lantern
    #[arg(long, value_name = "FILE", requires = "decoder")]
    pub draft: Option<PathBuf>,
    /// A PNG of which a part is drawn anew, brought to the model's size; with --mask
    #[arg(long, value_name = "PNG", requires = "mask")]
    pub image: Option<PathBuf>,
    /// A PNG that is bright where --image is drawn anew; the dark part stays as it is
    #[arg(long, value_name = "PNG", requires = "image")]
    pub mask: Option<PathBuf>,
    /// A folder for pictures as they are between steps: after each scale, or as cells fill in, those still open in grey
    #[arg(long, value_name = "DIR")]
    pub preview: Option<PathBuf>,
    /// A JSON file for the order in which the cells of each picture were settled, step by step
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
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
    /// The file to write, an existing one is replaced: a PNG, or safetensors of tokens or latents where the weights hold
    /// no tokenizer [default: smalti.png or smalti.safetensors]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
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

/// Options of `smalti show-order`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Dark cells are settled first, bright ones last. Below, what is settled after one, two, ... of seven parts of the steps.
Orders that are random, or MaskGIT's, which the network chooses as it draws, are drawn from the seed.

Examples:
  smalti show-order --model lpd --out lpd.png
  smalti show-order --model par --grid 24 --out par.png")]
pub struct ShowOrder {
    /// A system of `smalti models`
    #[arg(long, value_name = "NAME")]
    pub model: String,
    /// Cells along one side, for systems without scales
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub grid: usize,
    /// The seed of random orders
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The picture to write; an existing one is replaced
    #[arg(long, value_name = "FILE", default_value = "order.png")]
    pub out: PathBuf,
}

/// Options of `smalti show-mask`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
A mask is one of
  full, causal, window:LEFT[,RIGHT], prefix:KEYS, frames:TOKENS, packed:LENGTH,...
  scales:SIDE,...  markov:SIDE,...  markov-self:SIDE,...  markov-previous:SIDE,...
  diagonals:HEIGHT,WIDTH  regions:HEIGHT,WIDTH,DOWN,ACROSS  columns:HEIGHT,WIDTH,WINDOW
a system of `smalti models`, or several of these joined by & (all of them must let a pair pass).
A tile is blue where all pairs are seen, orange where some are, grey where a kernel skips it.

Examples:
  smalti show-mask --mask scales:1,2,3,4,5,6,8,10,13,16 --out var.png
  smalti show-mask --mask 'causal & window:64' --queries 512 --out window.png")]
pub struct ShowMask {
    /// The mask
    #[arg(long, value_name = "MASK")]
    pub mask: String,
    /// How many queries [default: as many as the mask says, or 256]
    #[arg(long, value_name = "N")]
    pub queries: Option<usize>,
    /// How many keys [default: as many as the mask says, or as queries]
    #[arg(long, value_name = "N")]
    pub keys: Option<usize>,
    /// The picture to write; an existing one is replaced
    #[arg(long, value_name = "FILE", default_value = "mask.png")]
    pub out: PathBuf,
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
