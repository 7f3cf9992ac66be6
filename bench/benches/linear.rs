//! Products of the sizes of LlamaGen-B (768 channels) and VAR-d16 (1024), from one row to 512.

use serde_json::json;
use smalti::{Float, Tensor, Weight, bf16, linear};
use smalti_bench::{Bench, Failure, Operand, Task, burn, candle, numbers, run};

/// Inputs and outputs.
const SIZES: &[[usize; 2]] = &[[768, 2304], [1024, 4096], [4096, 1024]];
/// Bytes of weights that are used in turn, so that none is found in a cache.
const BEYOND_CACHES: usize = 1 << 27;

fn compare<T: Float>(bench: &mut Bench)
where
    Weight: From<Tensor<T>>,
{
    let device = &bench.device();
    for &[inputs, outputs] in SIZES {
        for count in [1, 2, 18, 128, 512] {
            let (x, weight) = (numbers::<T>(count * inputs), numbers::<T>(outputs * inputs));
            let weight_bytes = size_of_val(weight.as_slice());
            let copies = if count <= 18 { BEYOND_CACHES.div_ceil(weight_bytes) } else { 1 };
            let operands = [
                Operand { name: "x", shape: &[count, inputs], values: &x },
                Operand { name: "weight", shape: &[outputs, inputs], values: &weight },
            ];
            bench.pytorch.prepare(json!({"task": "linear", "copies": copies}), &operands);
            let mut rivals = bench.rivals(|| candle::linear(&operands, copies), || burn::linear(&operands, copies));
            let x = Tensor::from_vec(device, &[count, inputs], x).expect("room");
            let weights: Vec<Weight> = (0..copies)
                .map(|_| Tensor::from_slice(device, &[outputs, inputs], &weight).expect("room").into())
                .collect();
            let mut next = weights.iter().cycle();
            let task = Task {
                name: format!("{} {count} x {inputs} -> {outputs}", T::DTYPE),
                bytes: (weight_bytes + count * (inputs + outputs) * T::DTYPE.bytes()) as f64,
                operations: (2 * count * inputs * outputs) as f64,
                place: None,
            };
            let ours = || {
                let weight = next.next().expect("a cycle has no end");
                linear::linear(&x, weight, None).expect("shapes that fit")
            };
            bench.compare::<T, _>(task, ours, &mut rivals);
        }
    }
}

fn main() -> Result<(), Failure> {
    run("linear", |bench| {
        compare::<f32>(bench);
        if bench.on_cpu() {
            compare::<bf16>(bench);
        }
        Ok(())
    })
}
