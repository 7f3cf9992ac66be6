//! Norms and softmax of rows as wide as the models' channels and vocabularies.

use serde_json::json;
use smalti::{Float, Tensor, bf16, norm};
use smalti_bench::{Bench, Failure, Operand, Task, burn, candle, numbers, run};

fn compare<T: Float>(bench: &mut Bench) -> smalti::Result<()> {
    let device = bench.device();
    for (op, [rows, channels]) in [
        ("rms_norm", [2, 768]),
        ("rms_norm", [512, 1024]),
        ("layer_norm", [512, 1024]),
        ("layer_norm", [4096, 1920]),
        ("softmax", [8, 16384]),
        ("softmax", [4096, 1024]),
    ] {
        let x = numbers::<T>(rows * channels);
        let operand = Operand { name: "x", shape: &[rows, channels], values: &x };
        bench.pytorch.prepare(json!({"task": "norm", "op": op}), &[operand]);
        let mut rivals = bench.rivals(|| candle::norm(op, &operand), || burn::norm(op, &operand));
        let x = Tensor::from_vec(&device, &[rows, channels], x)?;
        let weight = Tensor::from_vec(&device, &[channels], vec![1.0; channels])?;
        let task = Task {
            name: format!("{} {op} {rows} x {channels}", T::DTYPE),
            bytes: (2 * rows * channels * T::DTYPE.bytes()) as f64,
            operations: 0.0,
            place: None,
        };
        let ours = || {
            let y = match op {
                "rms_norm" => norm::rms_norm(&x, Some(&weight), 1e-5),
                "layer_norm" => norm::layer_norm(&x, Some(&weight), Some(&weight), 1e-5),
                _ => norm::softmax(&x),
            };
            y.expect("shapes that fit")
        };
        bench.compare::<T, _>(task, ours, &mut rivals);
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    run("norm", |bench| {
        compare::<f32>(bench)?;
        if bench.on_cpu() { compare::<bf16>(bench) } else { Ok(()) }
    })
}
