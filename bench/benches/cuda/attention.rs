//! Attention: the sweep of FlashAttention's papers (16384 tokens in all, 2048 channels), the masks of VAR and HMAR, one
//! query against a cache.

use serde_json::{Value, json};
use smalti::attention::{self, Align, Lengths, Mask, Options, ScalesKind};
use smalti::{Float, Tensor, bf16, f16};
use smalti_bench::cuda::{Bench, Call, Case, Output, Shape};
use smalti_bench::{Place, Task};

/// The sides of VAR's scales at 256 and 512 pixels.
const SCALES: [[usize; 10]; 2] = [[1, 2, 3, 4, 5, 6, 8, 10, 13, 16], [1, 2, 3, 4, 6, 9, 13, 18, 24, 32]];

/// One size, and which pairs of query and key see each other.
struct Sizes {
    name: String,
    series: String,
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
    mask: Mask,
    /// As the peer names it, if it takes part.
    peer_mask: Option<Value>,
    pairs: usize,
    /// Whether the same without the mask is compared.
    without: bool,
}

impl Sizes {
    fn square(name: &str, batch: usize, heads: usize, length: usize, head_dim: usize) -> Self {
        Self {
            name: format!("d{head_dim} {name} {length}"),
            series: format!("d{head_dim} {name}"),
            batch,
            heads,
            queries: length,
            keys: length,
            head_dim,
            mask: Mask::Full,
            peer_mask: Some(json!("full")),
            pairs: length * length,
            without: false,
        }
    }

    fn causal(self) -> Self {
        let length = self.queries;
        Self {
            mask: Mask::Causal { align: Align::TopLeft },
            peer_mask: Some(json!("causal")),
            pairs: length * (length + 1) / 2,
            ..self
        }
    }

    fn run<T: Float>(self, bench: &mut Bench)
    where
        Output: From<Tensor<T>>,
    {
        let Self { batch, heads, queries, keys, head_dim, pairs, .. } = self;
        let shapes = [queries, keys, keys].map(|length| [batch, heads, length, head_dim]);
        let operands = [0, 1, 2].map(|index| Shape { name: ["q", "k", "v"][index], shape: &shapes[index] });
        let bytes = (batch * heads * head_dim * 2 * (queries + keys) * T::DTYPE.bytes()) as f64;
        let task = Task {
            name: format!("{} {}", T::DTYPE, self.name),
            bytes,
            operations: (4 * batch * heads * pairs * head_dim) as f64,
            place: Some(Place {
                series: format!("{} {}", T::DTYPE, self.series),
                across: format!("{} d{head_dim}", T::DTYPE),
                length: keys as f64,
                density: pairs as f64 / (queries * keys) as f64,
            }),
        };
        let copies = bench.copies(bytes);
        bench.compare::<T>(task, copies, &operands, |bench| {
            let [q, k, v] = [0, 1, 2].map(|index| bench.operand::<T>(index, &shapes[index], copies));
            let operands = std::rc::Rc::new((q?, k?, v?));
            let call = |mask: Mask| -> smalti::Result<Call<'_>> {
                let mask = mask.prepare(bench.device(), Lengths { batch, q_len: queries, k_len: keys })?;
                let options = Options::new(1.0 / (head_dim as f32).sqrt()).mask(mask);
                let operands = std::rc::Rc::clone(&operands);
                Ok(Box::new(move |number| {
                    let copy = number % operands.0.len();
                    let [q, k, v] = [&operands.0[copy], &operands.1[copy], &operands.2[copy]];
                    Ok(attention::attention(q, k, v, &options)?.y.into())
                }))
            };
            let rivals = if self.without { vec![("smalti without the mask", call(Mask::Full)?)] } else { Vec::new() };
            let peer = self.peer_mask.map(|mask| json!({"task": "attention", "mask": mask}));
            Ok(Case { ours: call(self.mask)?, rivals, peer })
        });
    }
}

/// Head dims and lengths of FlashAttention's papers, full and causal.
pub fn dense(bench: &mut Bench) {
    bench.family("attention");
    let (tokens, channels) = (bench.size(16384, 128), bench.size(2048, 256));
    let lengths: &[usize] = if tokens == 16384 { &[512, 1024, 2048, 4096, 8192, 16384] } else { &[64, 128] };
    for head_dim in [128, 64, 256] {
        for &length in lengths {
            let square = |name| Sizes::square(name, tokens / length, channels / head_dim, length, head_dim);
            square("full").run::<bf16>(bench);
            square("causal").causal().run::<bf16>(bench);
            if head_dim == 128 && length == bench.size(4096, 128) {
                square("full").run::<f16>(bench);
                square("causal").causal().run::<f16>(bench);
            }
        }
    }
}

/// The masks over VAR's scales, with the heads of VAR-d16 and VAR-d30.
pub fn masked(bench: &mut Bench) {
    bench.family("masks");
    for (patch_nums, heads, batch) in [(SCALES[0], 16, 24), (SCALES[1], 30, 8)] {
        let patch_nums = &patch_nums[..bench.size(10, 5)];
        let sizes: Vec<usize> = patch_nums.iter().map(|side| side * side).collect();
        for (name, kind) in [("VAR's blocks", ScalesKind::BlockCausal), ("HMAR's scales", ScalesKind::MarkovSelf)] {
            let same = kind == ScalesKind::MarkovSelf;
            let seen = (0..sizes.len()).map(|scale| if same { sizes[scale] } else { sizes[..=scale].iter().sum() });
            let pairs = sizes.iter().zip(seen).map(|(size, seen)| size * seen).sum();
            let [heads, batch] = [bench.size(heads, 1), bench.size(batch, 1)];
            let square = Sizes::square(name, batch, heads, sizes.iter().sum(), 64);
            let mask = Mask::Scales { patch_nums: patch_nums.to_vec(), kind };
            let peer_mask = Some(json!({"lengths": sizes, "same": same}));
            Sizes { mask, peer_mask, pairs, without: true, ..square }.run::<bf16>(bench);
        }
    }
}

/// What attention costs where a query sees but a part of the keys: sequences of equal lengths, packed.
pub fn density(bench: &mut Bench) {
    bench.family("density");
    let length = bench.size(4096, 128);
    for parts in [2, 4, 10, 32] {
        let lengths: Vec<usize> = (0..parts).map(|part| (part + 1) * length / parts - part * length / parts).collect();
        let pairs = lengths.iter().map(|length| length * length).sum();
        let square = Sizes::square("", bench.size(4, 1), bench.size(16, 1), length, 128);
        let (name, series) = (format!("d128 1/{parts} seen, {length}"), format!("d128 1/{parts} seen"));
        let mask = Mask::packed(&lengths, false);
        Sizes { name, series, mask, peer_mask: None, pairs, without: true, ..square }.run::<bf16>(bench);
    }
}

/// One query of each sequence against its cache.
pub fn decode(bench: &mut Bench) {
    bench.family("decode");
    let most = bench.size(1 << 19, 1 << 10);
    for keys in [1 << 10, 1 << 12, 1 << 14, 1 << 16] {
        for batch in [1, 8, 64] {
            if batch * keys > most {
                continue;
            }
            let square = Sizes::square("", batch, bench.size(16, 2), keys, 128);
            let (name, series) = (format!("batch {batch}, {keys} keys"), format!("decode, batch {batch}"));
            Sizes { name, series, queries: 1, pairs: keys, ..square }.run::<bf16>(bench);
        }
    }
}
