//! The nearest code of 4096 latents: codebooks of LlamaGen (16384 of 8 channels), VAR (4096 of 32) and VQ-GAN (16384 of
//! 256).

use serde_json::json;
use smalti::{Tensor, Weight, vq};
use smalti_bench::{Bench, Failure, Operand, Task, burn, numbers, run};

const QUERIES: usize = 4096;

fn compare(bench: &mut Bench) -> smalti::Result<()> {
    let device = bench.device();
    for [codes, dim] in [[16384, 8], [4096, 32], [16384, 256]] {
        // Not the same numbers again: else each query is a code.
        let all = numbers::<f32>((codes + QUERIES) * dim);
        let (codebook, x) = all.split_at(codes * dim);
        let shapes = [[QUERIES, dim], [codes, dim]];
        let operands = [
            Operand { name: "x", shape: &shapes[0], values: x },
            Operand { name: "codebook", shape: &shapes[1], values: codebook },
        ];
        bench.pytorch.prepare(json!({"task": "nearest"}), &operands);
        let mut rivals = bench.rivals(Vec::new, || burn::nearest(&operands));
        let x = Tensor::from_slice(&device, &shapes[0], x)?;
        let codebook = Weight::from(Tensor::from_slice(&device, &shapes[1], codebook)?);
        let task = Task {
            name: format!("f32 {QUERIES} queries, {codes} codes of {dim}"),
            bytes: ((codes + QUERIES) * dim * 4 + QUERIES * 4) as f64,
            operations: (2 * QUERIES * codes * dim) as f64,
            place: None,
        };
        let ours = || vq::nearest_l2(&x, &codebook).expect("shapes that fit");
        bench.compare::<f32, _>(task, ours, &mut rivals);
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    run("vq", compare)
}
