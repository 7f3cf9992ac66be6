//! Norms, softmax and rotary positions: what reads and writes each number once.

use serde_json::json;
use smalti::rope::{self, Pairing, Table};
use smalti::{Tensor, bf16, norm};
use smalti_bench::Task;
use smalti_bench::cuda::{Bench, Case, Shape};

/// All of them.
pub fn all(bench: &mut Bench) {
    bench.family("norm");
    for (op, [rows, channels]) in [
        ("rms_norm", [16, 1024]),
        ("rms_norm", [16384, 1280]),
        ("layer_norm", [16384, 1024]),
        ("layer_norm", [16384, 1920]),
        ("softmax", [64, 16384]),
        ("softmax", [16384, 4096]),
    ] {
        norms(bench, op, [rows.min(bench.size(rows, 4)), channels]);
    }
    bench.family("rope");
    for (side, batch) in [(16, 64), (64, 4)] {
        rotations(bench, bench.size(side, 4), bench.size(batch, 1));
    }
}

fn norms(bench: &mut Bench, op: &'static str, shape: [usize; 2]) {
    let [rows, channels] = shape;
    let bytes = (2 * 2 * rows * channels) as f64;
    let task = Task { name: format!("bf16 {op} {rows} x {channels}"), bytes, operations: 0.0, place: None };
    let copies = bench.copies(bytes);
    bench.compare::<bf16>(task, copies, &[Shape { name: "x", shape: &shape }], |bench| {
        let x = bench.operand::<bf16>(0, &shape, copies)?;
        let weight = Tensor::from_vec(bench.device(), &[channels], vec![1.0; channels])?;
        let ours = move |number| {
            let x = &x[number % copies];
            let y = match op {
                "rms_norm" => norm::rms_norm(x, Some(&weight), 1e-5),
                "layer_norm" => norm::layer_norm(x, Some(&weight), Some(&weight), 1e-5),
                _ => norm::softmax(x),
            };
            Ok(y?.into())
        };
        Ok(Case { ours: Box::new(ours), rivals: Vec::new(), peer: Some(json!({"task": "norm", "op": op})) })
    });
}

fn rotations(bench: &mut Bench, side: usize, batch: usize) {
    const HEADS: usize = 16;
    const HEAD_DIM: usize = 64;
    let shape = [batch, HEADS, side * side, HEAD_DIM];
    let bytes = (2 * 2 * shape.iter().product::<usize>()) as f64;
    let name = format!("bf16 {batch} x {HEADS} heads of {HEAD_DIM}, {} tokens", side * side);
    let copies = bench.copies(bytes);
    let task = Task { name, bytes, operations: 0.0, place: None };
    bench.compare::<bf16>(task, copies, &[Shape { name: "x", shape: &shape }], |bench| {
        let x = bench.operand::<bf16>(0, &shape, copies)?;
        let table = Table::grid(bench.device(), side, side, HEAD_DIM, 10_000.0)?;
        let ours = move |number| Ok(rope::rope(&x[number % copies], &table, 0, Pairing::Interleaved)?.into());
        Ok(Case { ours: Box::new(ours), rivals: Vec::new(), peer: Some(json!({"task": "rope", "side": side})) })
    });
}
