//! Rotary positions of one token and of whole pictures, two rows of 12 heads of 64 channels.

use serde_json::json;
use smalti::rope::{self, Pairing, Table};
use smalti::{Float, Tensor, bf16};
use smalti_bench::{Bench, Failure, Operand, Task, numbers, run};

fn compare<T: Float>(bench: &mut Bench) -> smalti::Result<()> {
    let device = bench.device();
    for side in [1, 16, 24, 64] {
        let shape = [2, 12, side * side, 64];
        let x = numbers::<T>(shape.iter().product());
        let angles: Vec<T> = numbers(side * side * 32);
        let operands = [
            Operand { name: "x", shape: &shape, values: &x },
            Operand { name: "angles", shape: &[side * side, 32], values: &angles },
        ];
        bench.pytorch.prepare(json!({"task": "rope"}), &operands);
        let x = Tensor::from_vec(&device, &shape, x)?;
        let table = Table::grid(&device, side, side, 64, 10_000.0)?;
        let task = Task {
            name: format!("{} {} tokens", T::DTYPE, side * side),
            bytes: (2 * x.elements() * T::DTYPE.bytes()) as f64,
            operations: 0.0,
            place: None,
        };
        let ours = || rope::rope(&x, &table, 0, Pairing::Interleaved).expect("shapes that fit");
        bench.compare::<T, _>(task, ours, &mut []);
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    run("rope", |bench| {
        compare::<f32>(bench)?;
        if bench.on_cpu() { compare::<bf16>(bench) } else { Ok(()) }
    })
}
