//! A step of speculative Jacobi decoding over a window of drafts, from logits to the next window.

use serde_json::json;
use smalti::Tensor;
use smalti::jacobi::{self, Proposal, Rule, VerifyDraws};
use smalti::sample::{self, Draws, Filter, Places};
use smalti_bench::{Bench, Failure, Operand, Task, numbers, run};

const VOCABULARY: usize = 8192;
const TOP_K: usize = 2000;

fn compare(bench: &mut Bench) -> smalti::Result<()> {
    let device = bench.device();
    for drafts in [16, 64] {
        let shape = [1, drafts, VOCABULARY];
        let all: Vec<f32> = numbers::<f32>(2 * drafts * VOCABULARY).iter().map(|logit| 5.0 * logit).collect();
        let (old, logits) = all.split_at(drafts * VOCABULARY);
        let operands = [
            Operand { name: "logits", shape: &shape[1..], values: logits },
            Operand { name: "old", shape: &shape[1..], values: old },
        ];
        bench.pytorch.prepare(json!({"task": "jacobi", "top_k": TOP_K}), &operands);
        let filter = Filter { top_k: TOP_K, ..Filter::default() };
        let old = Tensor::from_slice(&device, &shape[1..], old)?;
        let logits = Tensor::from_slice(&device, &shape, logits)?;
        let draws = Draws::Philox { seed: 1, streams: (0..drafts as u64).collect(), position: 0 };
        let tokens = sample::sample(&old, &filter, &draws)?.reshape(&[1, drafts])?;
        let proposal = Proposal { tokens, weights: sample::weigh(&old, None, &filter)? };
        let draws = VerifyDraws::Philox(Places { seed: 2, streams: vec![0], starts: vec![0], round: 0 });
        let task = Task {
            name: format!("f32 {drafts} drafts, {VOCABULARY} tokens, top-k {TOP_K}"),
            bytes: (2 * drafts * VOCABULARY * 4) as f64,
            operations: 0.0,
            place: None,
        };
        let ours = || {
            let step = jacobi::step(&logits, None, &filter, &proposal, None, Rule::Coupled, &draws);
            std::hint::black_box(step.expect("finite logits"));
        };
        bench.compare::<f32, _>(task, ours, &mut []);
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    run("jacobi", compare)
}
