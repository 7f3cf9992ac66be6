//! What the inner loops of the kernels on tensor cores cost, in figures that no GPU is needed for.
//!
//! Each kernel runs in the emulator on two lengths of what its loop goes over; the difference is the loop's alone. The
//! table of figures is `inner_loops.txt`, rewritten where `SMALTI_BLESS` is set.

use std::fmt::Write;

use serde_json::Value;
use smalti::attention::{self, Mask, Options};
use smalti::{Device, Float, Tensor, Weight, bf16, f16, linear, vq};

use crate::common::uniform;
use crate::cuda::{again_at, emulated, kernel, number};

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ops/inner_loops.txt");

const HEAD: &str = "\
# What the inner loops of kernels on tensor cores take, without a GPU: per product of matrices that a warp takes part in,
# its other instructions and its waits; bytes read over the least that there are, and sectors over those that these
# bytes would fill; conflicts of shared memory's banks.
# Changed by `tests/run --bless` alone.
";

/// What the loops run over.
const LENGTHS: [usize; 2] = [512, 1024];

/// A kernel's loop: how to run it over `length`, and the bytes that its blocks read at least for one more of it.
struct Loop {
    architecture: &'static str,
    kernel: &'static str,
    bytes: usize,
    run: fn(&Device, usize),
}

fn zeros<T: Float>(device: &Device, shape: &[usize]) -> Tensor<T> {
    Tensor::zeros(device, shape).unwrap()
}

fn product<T: Float>(device: &Device, rows: usize, inputs: usize, outputs: usize, weight: fn(Tensor<T>) -> Weight) {
    let (x, weight) = (zeros::<T>(device, &[rows, inputs]), weight(zeros(device, &[outputs, inputs])));
    linear::linear(&x, &weight, None).unwrap().to_vec().unwrap();
}

fn attend<T: Float>(device: &Device, q_len: usize, k_len: usize, head_dim: usize) {
    let (q, k) = (zeros::<T>(device, &[1, 1, q_len, head_dim]), zeros(device, &[1, 1, k_len, head_dim]));
    attention::attention(&q, &k, &k, &Options::new(1.0).mask(Mask::Full)).unwrap().y.to_vec().unwrap();
}

fn nearest(device: &Device, vectors: usize, codes: usize, dim: usize) {
    let random = |seed, rows| uniform(seed, rows * dim).into_iter().map(|value| value as f32).collect::<Vec<_>>();
    let x = Tensor::from_vec(device, &[vectors, dim], random(1, vectors)).unwrap();
    let codebook = Weight::F32(Tensor::from_vec(device, &[codes, dim], random(2, codes)).unwrap());
    vq::nearest_l2(&x, &codebook).unwrap().to_vec().unwrap();
}

const LOOPS: &[Loop] = &[
    Loop {
        architecture: "sm_80",
        kernel: "linear_mma_bf16_r8",
        bytes: 2 * (8 + 16),
        run: |device, inputs| product(device, 8, inputs, 16, Weight::Bf16),
    },
    Loop {
        architecture: "sm_80",
        kernel: "linear_mma_f16_r16",
        bytes: 2 * (16 + 16),
        run: |device, inputs| product(device, 16, inputs, 16, Weight::F16),
    },
    Loop {
        architecture: "sm_80",
        kernel: "linear_mma_tile_bf16_t64",
        bytes: 2 * 2 * (64 + 64),
        run: |device, inputs| product(device, 64, inputs, 2 * 64, Weight::Bf16),
    },
    Loop {
        architecture: "sm_80",
        kernel: "linear_mma_tile_bf16_t128",
        bytes: 2 * 4 * (128 + 128),
        run: |device, inputs| product(device, 128, inputs, 4 * 128, Weight::Bf16),
    },
    Loop {
        architecture: "sm_80",
        kernel: "attention_mma_bf16_d64_q64",
        bytes: 2 * 4 * 2 * 64,
        run: |device, keys| attend::<bf16>(device, 4 * 64, keys, 64),
    },
    Loop {
        architecture: "sm_80",
        kernel: "attention_mma_f16_d128_q64",
        bytes: 2 * 4 * 2 * 128,
        run: |device, keys| attend::<f16>(device, 4 * 64, keys, 128),
    },
    Loop {
        architecture: "sm_80",
        kernel: "nearest_mma_bound",
        bytes: 2 * 4 * (128 + 128),
        run: |device, dim| nearest(device, 128, 4 * 128, dim),
    },
    Loop {
        architecture: "sm_90a",
        kernel: "linear_wgmma_bf16_o128",
        bytes: 2 * 4 * (128 + 128),
        run: |device, inputs| product(device, 4 * 128, inputs, 128, Weight::Bf16),
    },
    Loop {
        architecture: "sm_90a",
        kernel: "attention_wgmma_bf16_d64",
        bytes: 2 * 2 * 64,
        run: |device, keys| attend::<bf16>(device, 128, keys, 64),
    },
    Loop {
        architecture: "sm_90a",
        kernel: "attention_wgmma_bf16_d128",
        bytes: 2 * 2 * 128,
        run: |device, keys| attend::<bf16>(device, 128, keys, 128),
    },
    Loop {
        architecture: "sm_90a",
        kernel: "attention_wgmma_bf16_d256",
        bytes: 2 * 2 * 256,
        run: |device, keys| attend::<bf16>(device, 128, keys, 256),
    },
];

/// Products of matrices, by warps or by warpgroups.
fn products(launch: &Value) -> u64 {
    let shapes = launch["matrix"].as_object().expect("a number per shape");
    shapes.values().map(|count| count.as_u64().expect("a count")).sum()
}

/// A line of the table.
fn row(one: &Loop, short: &Value, long: &Value) -> String {
    let more = |path: &str| number(long, path) - number(short, path);
    let more_of_each = |path: &str| -> Vec<(String, u64)> {
        let names = long.pointer(path).and_then(Value::as_object).expect("a number per name").keys();
        names.map(|name| (name.clone(), more(&format!("{path}/{name}")))).filter(|(_, count)| *count != 0).collect()
    };
    let warps = if one.kernel.contains("wgmma") { 4 } else { 1 };
    let products = (warps * (products(long) - products(short))) as f64;
    let instructions: u64 = more_of_each("/warp_instructions").iter().map(|(_, count)| count).sum();
    let mut row = format!("{:32}{:8.3} other", one.kernel, instructions as f64 / products - 1.0);
    for (wait, count) in more_of_each("/waits") {
        write!(row, "{:8.3} {wait}", count as f64 / products).unwrap();
    }
    let least = (one.bytes * (LENGTHS[1] - LENGTHS[0])) as f64;
    let both = |count: &str| more(&format!("/global_loads/{count}")) + more(&format!("/bulk_loads/{count}"));
    write!(row, "{:8.3} bytes", both("bytes") as f64 / least).unwrap();
    write!(row, "{:8.3} sectors", both("sectors") as f64 / both("ideal_sectors") as f64).unwrap();
    let conflicts = more("/shared_loads/bank_conflicts") + more("/shared_stores/bank_conflicts");
    write!(row, "{conflicts:4} conflicts").unwrap();
    row
}

#[test]
fn inner_loops_keep_to_their_figures() {
    let mut found = HEAD.to_owned();
    for architecture in ["sm_80", "sm_90a"] {
        let loops = || LOOPS.iter().filter(|one| one.architecture == architecture);
        let report = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("inner_loops_{architecture}.json"));
        let variables = [
            ("CUDA_EMULATOR_REPORT", report.to_str().unwrap()),
            ("CUDA_EMULATOR_ARCH", architecture),
            // So few that little work is enough for the kernels of large tiles.
            ("CUDA_EMULATOR_MULTIPROCESSORS", "4"),
        ];
        let _ = std::fs::remove_file(&report);
        if again_at("inner_loops::inner_loops_keep_to_their_figures", &variables) {
            if std::env::var("CUDA_EMULATOR_ARCH").as_deref() == Ok(architecture) {
                let device = Device::cuda(0).unwrap();
                loops().for_each(|one| LENGTHS.iter().for_each(|length| (one.run)(&device, *length)));
                return;
            }
            continue;
        }
        if !emulated() {
            return;
        }
        let launches: Vec<Value> =
            std::fs::read_to_string(&report).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for one in loops() {
            let runs: Vec<_> = launches.iter().filter(|launch| kernel(launch) == one.kernel).collect();
            let [short, long] = runs[..] else {
                let kernels: Vec<_> = launches.iter().map(kernel).collect();
                panic!("{} does not run twice: {kernels:?}", one.kernel)
            };
            writeln!(found, "{}", row(one, short, long)).unwrap();
        }
    }
    if std::env::var_os("SMALTI_BLESS").is_some() {
        std::fs::write(TABLE, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(TABLE).unwrap();
    assert!(found == expected, "{TABLE} has\n{expected}\nbut the kernels have\n{found}");
}
