//! Draws of 8 rows from LlamaGen's vocabulary, with the filters of its program.

use serde_json::json;
use smalti::Tensor;
use smalti::sample::{self, Draws, Filter};
use smalti_bench::{Bench, Failure, Operand, Task, burn, numbers, run};

const SHAPE: [usize; 2] = [8, 16384];

fn compare(bench: &mut Bench) -> smalti::Result<()> {
    let device = bench.device();
    let logits: Vec<f32> = numbers::<f32>(SHAPE[0] * SHAPE[1]).iter().map(|logit| 5.0 * logit).collect();
    for (top_k, top_p) in [(0, 1.0), (2000, 1.0), (0, 0.9), (2000, 0.9)] {
        let operands = [Operand { name: "logits", shape: &SHAPE, values: &logits }];
        bench.pytorch.prepare(json!({"task": "sample", "top_k": top_k, "top_p": top_p}), &operands);
        let logits = Tensor::from_slice(&device, &SHAPE, &logits)?;
        let filter = Filter { top_k, top_p, ..Filter::default() };
        let draws = Draws::Philox { seed: 1, streams: (0..SHAPE[0] as u64).collect(), position: 0 };
        let bytes = (logits.elements() * 4) as f64;
        let task =
            Task { name: format!("f32 8 x 16384, top-k {top_k}, top-p {top_p}"), bytes, operations: 0.0, place: None };
        let ours = || sample::sample(&logits, &filter, &draws).expect("finite logits");
        bench.compare::<f32, _>(task, ours, &mut []);
    }
    let operand = Operand { name: "logits", shape: &SHAPE, values: &logits };
    let mut rivals = bench.rivals(Vec::new, || burn::argmax(&operand));
    let bytes = size_of_val(logits.as_slice()) as f64;
    let task = Task { name: "f32 8 x 16384, the largest".to_owned(), bytes, operations: 0.0, place: None };
    let logits = Tensor::from_slice(&device, &SHAPE, &logits)?;
    bench.compare_without_pytorch::<f32, _>(task, || sample::argmax(&logits).expect("finite logits"), &mut rivals);
    Ok(())
}

fn main() -> Result<(), Failure> {
    run("sample", compare)
}
