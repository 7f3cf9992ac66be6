//! The systems in one table: what each is made of, and what it does here.
//!
//! The file is long because every system is an entry of eight lines; there is hardly any code.

/// What runs of a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Runs {
    /// `smalti generate` draws pictures with it, given its weights.
    Pictures,
    /// It draws tokens; its tokenizer is not here yet.
    Tokens,
    /// `smalti generate --decoder` draws pictures with it on another system's network.
    Decoder,
    /// `smalti conform` alone runs it: there is nothing to draw.
    Conform,
}

impl Runs {
    /// A word for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pictures => "pictures",
            Self::Tokens => "tokens",
            Self::Decoder => "decoder",
            Self::Conform => "conform",
        }
    }
}

/// One system.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct System {
    /// As in a dump's metadata.
    pub name: &'static str,
    /// Where it is described.
    pub paper: &'static str,
    /// What it is made of, as its module's documentation has it in full.
    pub parts: &'static str,
    /// What it is asked with: classes, captions, frames before.
    pub condition: &'static str,
    /// What of it runs here.
    pub runs: Runs,
    /// Forward passes of the backbone for one picture of `n` places, as its authors sample.
    pub passes: &'static str,
}

impl System {
    /// What `smalti generate` does with it besides drawing whole pictures from its condition: resolutions by `--grid`,
    /// drafts by `--decoder`.
    #[must_use]
    pub fn also(&self) -> &'static str {
        match self.name {
            "arpg" | "hmar" | "mar" | "maskgil" | "mvar" | "var" => "inpaint, outpaint, edit",
            "flexvar" | "randar" => "inpaint, outpaint, edit, resolution",
            "larp" => "video, drafts",
            "nar" => "video",
            "controlar" | "dar" | "dar_diffusion" | "llamagen" | "rar" => "drafts",
            _ => "",
        }
    }
}

/// Every system, in the order of their names.
pub const SYSTEMS: &[System] = &[
    System {
        name: "aim",
        paper: "arXiv:2408.12245",
        parts: "VQ, Mamba-2 modulated by the class, raster, sequential",
        condition: "class",
        runs: Runs::Pictures,
        passes: "256 of n = 256",
    },
    System {
        name: "arinar",
        paper: "arXiv:2503.02883",
        parts: "KL autoencoder, ViT encoder and decoder, random order, value by value: mixture or flow head",
        condition: "class",
        runs: Runs::Pictures,
        passes: "64 of n = 256",
    },
    System {
        name: "arpg",
        paper: "arXiv:2503.10568",
        parts: "VQ, Llama, position queries on a shared cache, random order, arccos groups",
        condition: "class",
        runs: Runs::Pictures,
        passes: "64 of n = 256",
    },
    System {
        name: "axial",
        paper: "arXiv:1912.12180",
        parts: "pixels, row and column attention, raster within a plane",
        condition: "none",
        runs: Runs::Conform,
        passes: "n per plane",
    },
    System {
        name: "cascade",
        paper: "arXiv:2006.01112",
        parts: "n-grams pruned by max-marginals; a decoder without a network of its own",
        condition: "none",
        runs: Runs::Conform,
        passes: "one per order",
    },
    System {
        name: "controlar",
        paper: "arXiv:2410.02705",
        parts: "VQ, Llama, a ViT over the control picture, raster, a control token added to each token",
        condition: "class or caption features, and a control picture",
        runs: Runs::Pictures,
        passes: "256 of n = 256",
    },
    System {
        name: "dar",
        paper: "arXiv:2503.11129",
        parts: "VQ whose codes are embeddings, Llama, anti-diagonals there and back, 4-D RoPE, directions",
        condition: "class",
        runs: Runs::Pictures,
        passes: "256 of n = 256",
    },
    System {
        name: "dar_diffusion",
        paper: "arXiv:2505.23660",
        parts: "1-D codes read by a flow, Llama, sequential, rising guidance",
        condition: "class",
        runs: Runs::Pictures,
        passes: "256 of n = 256",
    },
    System {
        name: "far",
        paper: "arXiv:2503.05305",
        parts: "KL autoencoder, ViT encoder and decoder, frequency by frequency, diffusion head that knows the level",
        condition: "class",
        runs: Runs::Pictures,
        passes: "one per level, 10 or 11",
    },
    System {
        name: "flexvar",
        paper: "arXiv:2502.20313",
        parts: "VQ at every scale, AdaLN, scale by scale without residuals",
        condition: "class",
        runs: Runs::Pictures,
        passes: "one per scale, 10",
    },
    System {
        name: "gsd",
        paper: "arXiv:2508.07747",
        parts: "speculative Jacobi decoding whose drafts pass with tokens like them",
        condition: "as its network",
        runs: Runs::Decoder,
        passes: "fewer than n",
    },
    System {
        name: "hart",
        paper: "arXiv:2410.10812",
        parts: "multi-scale VQ and a continuous rest, VAR's attention with RoPE, scale by scale, diffusion head",
        condition: "caption features",
        runs: Runs::Pictures,
        passes: "one per scale, 14",
    },
    System {
        name: "hmar",
        paper: "arXiv:2506.04421",
        parts: "multi-scale VQ, AdaLN, a scale sees itself, masked steps in small scales",
        condition: "class",
        runs: Runs::Pictures,
        passes: "14 of 10 scales",
    },
    System {
        name: "infinity",
        paper: "arXiv:2412.04431",
        parts: "bits at every scale, AdaLN with attention to a text, scale by scale, self-correction",
        condition: "caption features",
        runs: Runs::Tokens,
        passes: "one per scale, 13",
    },
    System {
        name: "lantern",
        paper: "arXiv:2410.03355",
        parts: "drafts that pass with what near codes lend them: Jacobi's, or a second model's",
        condition: "as its network",
        runs: Runs::Decoder,
        passes: "fewer than n",
    },
    System {
        name: "larp",
        paper: "arXiv:2410.21264",
        parts: "video codes of learned queries, Llama, sequential",
        condition: "class; frames by conform alone",
        runs: Runs::Pictures,
        passes: "1024 of n = 1024",
    },
    System {
        name: "llamagen",
        paper: "arXiv:2406.06525",
        parts: "VQ, Llama, raster, causal, sequential",
        condition: "class or caption features",
        runs: Runs::Pictures,
        passes: "256 of n = 256",
    },
    System {
        name: "lpd",
        paper: "arXiv:2507.01957",
        parts: "VQ, ViT, position queries, locality-aware groups",
        condition: "class",
        runs: Runs::Pictures,
        passes: "20 of n = 256",
    },
    System {
        name: "mar",
        paper: "arXiv:2406.11838",
        parts: "KL autoencoder, ViT encoder and decoder, random order, diffusion head",
        condition: "class",
        runs: Runs::Pictures,
        passes: "64 of n = 256",
    },
    System {
        name: "maskgil",
        paper: "arXiv:2507.13032",
        parts: "VQ, Llama without the causal mask, MaskGIT's decoder",
        condition: "class",
        runs: Runs::Pictures,
        passes: "12 of n = 256",
    },
    System {
        name: "mc-sjd",
        paper: "arXiv:2510.24211",
        parts: "speculative Jacobi decoding whose drafts are coupled from pass to pass",
        condition: "as its network",
        runs: Runs::Decoder,
        passes: "fewer than n",
    },
    System {
        name: "mvar",
        paper: "arXiv:2411.10433",
        parts: "multi-scale VQ, AdaLN, attention inside a scale, Mamba-2 across them, scale by scale",
        condition: "class",
        runs: Runs::Pictures,
        passes: "one per scale, 10",
    },
    System {
        name: "nar",
        paper: "arXiv:2503.10696",
        parts: "VQ or video codes, Llama, planes of neighbours, a head per axis",
        condition: "class",
        runs: Runs::Pictures,
        passes: "31 of n = 256",
    },
    System {
        name: "par",
        paper: "arXiv:2412.15119",
        parts: "VQ, Llama, regions in parallel, transition tokens",
        condition: "class",
        runs: Runs::Pictures,
        passes: "147 of n = 576 in 4 regions",
    },
    System {
        name: "parseq",
        paper: "arXiv:2207.06966",
        parts: "patches, ViT, two streams over permutations, cloze refinement",
        condition: "pictures of words",
        runs: Runs::Conform,
        passes: "one per character, or 1",
    },
    System {
        name: "randar",
        paper: "arXiv:2412.01827",
        parts: "VQ, Llama, random order, instruction tokens, cosine groups, the doubled grid",
        condition: "class",
        runs: Runs::Pictures,
        passes: "88 of n = 256",
    },
    System {
        name: "rar",
        paper: "arXiv:2411.00776",
        parts: "MaskGIT-VQGAN, ViT modulated by class and step, raster, target-aware positions",
        condition: "class",
        runs: Runs::Pictures,
        passes: "256 of n = 256",
    },
    System {
        name: "semaim",
        paper: "arXiv:2312.10103",
        parts: "patches, ViT, two streams, orders led by attention",
        condition: "none",
        runs: Runs::Conform,
        passes: "1",
    },
    System {
        name: "sjd",
        paper: "arXiv:2410.01699",
        parts: "speculative Jacobi decoding: a window of drafts, tested by one pass",
        condition: "as its network",
        runs: Runs::Decoder,
        passes: "fewer than n",
    },
    System {
        name: "spherear",
        paper: "arXiv:2509.24335",
        parts: "latents on a sphere, Llama, raster, causal, flow head",
        condition: "class",
        runs: Runs::Pictures,
        passes: "256 of n = 256",
    },
    System {
        name: "transdiff",
        paper: "arXiv:2506.09482",
        parts: "KL autoencoder, ViT encoder, flow decoder of all tokens; rounds that know the pictures before",
        condition: "class",
        runs: Runs::Pictures,
        passes: "1, or 4 rounds",
    },
    System {
        name: "var",
        paper: "arXiv:2404.02905",
        parts: "multi-scale VQ, AdaLN, block-causal over scales, scale by scale",
        condition: "class",
        runs: Runs::Pictures,
        passes: "one per scale, 10",
    },
    System {
        name: "xar",
        paper: "arXiv:2502.20388",
        parts: "KL autoencoder, blocks modulated by class and time, quarter by quarter, flow of a whole cell",
        condition: "class",
        runs: Runs::Pictures,
        passes: "203 for 4 cells",
    },
];
