//! Attention of the sizes of LlamaGen-B (12 heads of 64) and VAR-d16 (16 heads of 64, 680 tokens), two rows each.

use serde_json::json;
use smalti::attention::{self, Align, Lengths, Mask, Options, ScalesKind};
use smalti::{Float, Tensor, bf16};
use smalti_bench::{Bench, Failure, Operand, Place, Rival, Task, burn, candle, numbers, run};

const BATCH: usize = 2;
const HEAD_DIM: usize = 64;
/// VAR's scales at 256 pixels.
const PATCH_NUMS: [usize; 10] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16];

struct Case {
    name: &'static str,
    heads: usize,
    queries: usize,
    keys: usize,
    mask: Mask,
    /// As the peer names it.
    peer_mask: serde_json::Value,
    /// Pairs of query and key that see each other.
    pairs: usize,
}

/// Masks by groups of neighbours, as the peer gets them: a query sees a key whose group is not later, or is the same.
fn grouped(lengths: &[usize], same: bool) -> (serde_json::Value, usize) {
    let mut before = 0;
    let pairs = lengths.iter().map(|length| {
        before += length;
        length * if same { *length } else { before }
    });
    (json!({"lengths": lengths, "same": same}), pairs.sum())
}

fn cases() -> Vec<Case> {
    let square = |name, length: usize| Case {
        name,
        heads: 12,
        queries: length,
        keys: length,
        mask: Mask::Full,
        peer_mask: json!("full"),
        pairs: length * length,
    };
    let causal = |length: usize| Case {
        mask: Mask::Causal { align: Align::TopLeft },
        peer_mask: json!("causal"),
        pairs: length * (length + 1) / 2,
        ..square("causal", length)
    };
    let sizes = PATCH_NUMS.map(|side| side * side);
    let scales = |name, kind| {
        let (peer_mask, pairs) = grouped(&sizes, kind == ScalesKind::MarkovSelf);
        let mask = Mask::Scales { patch_nums: PATCH_NUMS.to_vec(), kind };
        Case { heads: 16, mask, peer_mask, pairs, ..square(name, sizes.iter().sum()) }
    };
    let packed = [410, 410, 410, 410, 410, 410, 409, 409, 409, 409];
    let (peer_mask, pairs) = grouped(&packed, true);
    let sparse = Case { mask: Mask::packed(&packed, false), peer_mask, pairs, ..square("a tenth seen", 4096) };
    let decode = Case { name: "decode", queries: 1, pairs: 256, ..square("", 256) };
    vec![
        square("full", 256),
        causal(256),
        square("full", 1024),
        causal(1024),
        square("full", 4096),
        causal(4096),
        sparse,
        scales("block-causal over scales", ScalesKind::BlockCausal),
        scales("each scale by itself", ScalesKind::MarkovSelf),
        decode,
    ]
}

fn compare<T: Float>(bench: &mut Bench) {
    let device = &bench.device();
    for Case { name, heads, queries, keys, mask, peer_mask, pairs } in cases() {
        let shapes = [queries, keys, keys].map(|length| [BATCH, heads, length, HEAD_DIM]);
        let values = shapes.map(|shape| numbers::<T>(shape.iter().product()));
        let operands = [0, 1, 2].map(|operand| Operand {
            name: ["q", "k", "v"][operand],
            shape: &shapes[operand],
            values: &values[operand],
        });
        bench.pytorch.prepare(json!({"task": "attention", "mask": peer_mask}), &operands);
        let [q, k, v] = [0, 1, 2].map(|operand| {
            Tensor::from_slice(device, &shapes[operand], &values[operand]).expect("room for an operand")
        });
        let scale = 1.0 / (HEAD_DIM as f32).sqrt();
        let causal = match mask {
            Mask::Full => Some(false),
            Mask::Causal { .. } => Some(true),
            _ => None,
        };
        let mut rivals = causal.map_or_else(Vec::new, |causal| {
            let on_cpu = || candle::attention(&operands, scale, causal);
            bench.rivals(on_cpu, || burn::attention(&operands, scale, causal))
        });
        let options = Options::new(scale).mask(mask);
        let task = Task {
            name: format!("{} {name} {queries} x {keys}, {heads} heads", T::DTYPE),
            bytes: (BATCH * heads * HEAD_DIM * 2 * (queries + keys) * T::DTYPE.bytes()) as f64,
            operations: (4 * BATCH * heads * pairs * HEAD_DIM) as f64,
            place: Some(Place {
                series: format!("{} {name}", T::DTYPE),
                across: T::DTYPE.name().to_owned(),
                length: keys as f64,
                density: pairs as f64 / (queries * keys) as f64,
            }),
        };
        let ours = || attention::attention(&q, &k, &v, &options).expect("shapes that fit").y;
        bench.compare::<T, _>(task, ours, &mut rivals);
    }
}

/// Making a mask and compiling it, and as a rival one use of it, of one head.
fn make(bench: &mut Bench) {
    const SIDE: usize = 64;
    const LENGTH: usize = SIDE * SIDE;
    let device = &bench.device();
    let shape = [1, 1, LENGTH, HEAD_DIM];
    let operand = Tensor::from_vec(device, &shape, numbers::<f32>(LENGTH * HEAD_DIM)).expect("room for an operand");
    let lengths = Lengths { batch: 1, q_len: LENGTH, k_len: LENGTH };
    // An order without any pattern: each tile is partial.
    let order: Vec<_> = (0..LENGTH).map(|n| n * 2_741 % LENGTH).collect();
    let cases: [(&str, &dyn Fn() -> Mask); 5] = [
        ("causal", &|| Mask::Causal { align: Align::TopLeft }),
        ("frames", &|| Mask::Frames { frame: 256, align: Align::TopLeft }),
        ("diagonals", &|| Mask::diagonals(&[SIDE, SIDE], 0, true)),
        ("columns", &|| Mask::columns([SIDE, SIDE], 8)),
        ("any order", &|| Mask::permuted(&order).expect("a permutation")),
    ];
    for (name, mask) in cases {
        let made = || mask().prepare(device, lengths).expect("a mask that fits");
        let options = Options::new(0.125).mask(made());
        let use_once = |_| {
            std::hint::black_box(attention::attention(&operand, &operand, &operand, &options).expect("fits"));
            None
        };
        let mut rivals = [Rival { name: "one use of it, one head", run: Box::new(use_once) }];
        let task = Task { name: format!("making a mask: {name} {LENGTH}"), bytes: 0.0, operations: 0.0, place: None };
        let ours = || {
            std::hint::black_box(made());
        };
        bench.compare_without_pytorch::<f32, _>(task, ours, &mut rivals);
    }
}

fn main() -> Result<(), Failure> {
    run("attention", |bench| {
        compare::<f32>(bench);
        if bench.on_cpu() {
            compare::<bf16>(bench);
            make(bench);
        }
        Ok(())
    })
}
