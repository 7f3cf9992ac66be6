//! Between latents, tokens and logits: the nearest code, draws, verified drafts.

use serde_json::json;
use smalti::jacobi::{self, Proposal, Rule, VerifyDraws};
use smalti::sample::{self, Draws, Filter, Places};
use smalti::{Weight, vq};
use smalti_bench::Task;
use smalti_bench::cuda::{Bench, Case, Shape};

/// Numbers between -1 and 1 over this are logits between -5 and 5.
const TEMPERATURE: f32 = 0.2;

/// Codebooks of LlamaGen (8 channels), VAR (32) and VQ-GAN (256).
pub fn nearest(bench: &mut Bench) {
    bench.family("nearest code");
    for [codes, dim] in [[16384, 8], [4096, 32], [16384, 256]] {
        for queries in [4096, 65536] {
            let [codes, queries] = [bench.size(codes, 256), bench.size(queries, queries / 512)];
            let shapes = [[queries, dim], [codes, dim]];
            let task = Task {
                name: format!("f32 {queries} queries, {codes} codes of {dim}"),
                bytes: ((codes + queries) * dim * 4 + queries * 4) as f64,
                operations: (2 * queries * codes * dim) as f64,
                place: None,
            };
            let operands = [Shape { name: "x", shape: &shapes[0] }, Shape { name: "codebook", shape: &shapes[1] }];
            bench.compare::<f32>(task, 1, &operands, |bench| {
                let x = bench.operand::<f32>(0, &shapes[0], 1)?.remove(0);
                let codebook = Weight::from(bench.operand::<f32>(1, &shapes[1], 1)?.remove(0));
                let ours = move |_| Ok(vq::nearest_l2(&x, &codebook)?.into());
                Ok(Case { ours: Box::new(ours), rivals: Vec::new(), peer: Some(json!({"task": "nearest"})) })
            });
        }
    }
}

/// Draws from LlamaGen's vocabulary, with the filters of its program.
pub fn sample(bench: &mut Bench) {
    bench.family("sample");
    for rows in [8, 64] {
        for (top_k, top_p) in [(0, 1.0), (2000, 1.0), (0, 0.9), (2000, 0.9)] {
            let shape = [bench.size(rows, 2), bench.size(16384, 4096)];
            let [rows, vocabulary] = shape;
            let bytes = (rows * vocabulary * 4) as f64;
            let name = format!("f32 {rows} x {vocabulary}, top-k {top_k}, top-p {top_p}");
            let task = Task { name, bytes, operations: 0.0, place: None };
            let copies = bench.copies(bytes);
            bench.compare::<f32>(task, copies, &[Shape { name: "logits", shape: &shape }], |bench| {
                let logits = bench.operand::<f32>(0, &shape, copies)?;
                let filter = Filter { temperature: TEMPERATURE, top_k, top_p, ..Filter::default() };
                let draws = Draws::Philox { seed: 1, streams: (0..rows as u64).collect(), position: 0 };
                let ours = move |number| Ok(sample::sample(&logits[number % copies], &filter, &draws)?.into());
                let peer = json!({"task": "sample", "temperature": TEMPERATURE, "top_k": top_k, "top_p": top_p,
                    "random": true});
                Ok(Case { ours: Box::new(ours), rivals: Vec::new(), peer: Some(peer) })
            });
        }
    }
}

/// A step of speculative Jacobi decoding over a window of drafts.
pub fn jacobi(bench: &mut Bench) {
    const TOP_K: usize = 2000;
    bench.family("jacobi");
    for drafts in [16, 64] {
        let [drafts, vocabulary] = [bench.size(drafts, 2), bench.size(8192, 4096)];
        let shape = [1, drafts, vocabulary];
        let bytes = (2 * drafts * vocabulary * 4) as f64;
        let name = format!("f32 {drafts} drafts, {vocabulary} tokens, top-k {TOP_K}");
        let task = Task { name, bytes, operations: 0.0, place: None };
        let operands = [Shape { name: "logits", shape: &shape }, Shape { name: "old", shape: &shape }];
        bench.compare::<f32>(task, 1, &operands, |bench| {
            let logits = bench.operand::<f32>(0, &shape, 1)?.remove(0);
            let old = bench.operand::<f32>(1, &shape, 1)?.remove(0).reshape(&shape[1..])?;
            let filter = Filter { temperature: TEMPERATURE, top_k: TOP_K, ..Filter::default() };
            let draws = Draws::Philox { seed: 1, streams: (0..drafts as u64).collect(), position: 0 };
            let tokens = sample::sample(&old, &filter, &draws)?.reshape(&[1, drafts])?;
            let proposal = Proposal { tokens, weights: sample::weigh(&old, None, &filter)? };
            let draws = VerifyDraws::Philox(Places { seed: 2, streams: vec![0], starts: vec![0], round: 0 });
            let ours = move |_| {
                let (verified, _) = jacobi::step(&logits, None, &filter, &proposal, None, Rule::Coupled, &draws)?;
                Ok(verified.tokens.into())
            };
            let peer = json!({"task": "jacobi", "temperature": TEMPERATURE, "top_k": TOP_K, "random": true});
            Ok(Case { ours: Box::new(ours), rivals: Vec::new(), peer: Some(peer) })
        });
    }
}
