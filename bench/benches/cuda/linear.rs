//! Products of the sizes of LlamaGen and VAR: a picture's or a batch's tokens, and the few rows of decoding.

use serde_json::json;
use smalti::{Weight, bf16, linear};
use smalti_bench::Task;
use smalti_bench::cuda::{Bench, Case, Shape};

/// Models with the inputs and outputs of the projection to queries, keys and values, and of the widest of the MLP.
const MODELS: [(&str, [[usize; 2]; 2]); 6] = [
    ("LlamaGen-B", [[768, 2304], [768, 2048]]),
    ("LlamaGen-L", [[1024, 3072], [2816, 1024]]),
    ("LlamaGen-XL", [[1280, 3840], [1280, 3584]]),
    ("LlamaGen-3B", [[3200, 9600], [8704, 3200]]),
    ("VAR-d16", [[1024, 3072], [1024, 4096]]),
    ("VAR-d30", [[1920, 5760], [7680, 1920]]),
];

/// All products.
pub fn all(bench: &mut Bench) {
    bench.family("linear");
    for (model, products) in &MODELS[..bench.size(MODELS.len(), 1)] {
        for sizes in products {
            for rows in [1, 4, 16, 4096] {
                product(bench, model, rows, *sizes);
            }
        }
    }
    product(bench, "square", 8192, [8192, 8192]);
}

fn product(bench: &mut Bench, model: &str, rows: usize, [inputs, outputs]: [usize; 2]) {
    let rows = rows.min(bench.size(rows, 80));
    let [inputs, outputs] = [inputs, outputs].map(|length| bench.size(length, length / 16));
    let task = Task {
        name: format!("bf16 {model} {rows} x {inputs} -> {outputs}"),
        bytes: (2 * (outputs * inputs + rows * (inputs + outputs))) as f64,
        operations: (2 * rows * inputs * outputs) as f64,
        place: None,
    };
    let copies = bench.copies(task.bytes);
    let [x_shape, weight_shape] = [[rows, inputs], [outputs, inputs]];
    let operands = [Shape { name: "x", shape: &x_shape }, Shape { name: "weight", shape: &weight_shape }];
    bench.compare::<bf16>(task, copies, &operands, |bench| {
        let x = bench.operand::<bf16>(0, &x_shape, copies)?;
        let weights = bench.operand::<bf16>(1, &weight_shape, copies)?;
        let weights: Vec<Weight> = weights.into_iter().map(Weight::from).collect();
        let ours = move |number| Ok(linear::linear(&x[number % copies], &weights[number % copies], None)?.into());
        Ok(Case { ours: Box::new(ours), rivals: Vec::new(), peer: Some(json!({"task": "linear"})) })
    });
}
