//! Kernels in plain CUDA C++, as nvcc compiles them for speed and for a debugger, against the same on the CPU.
//!
//! `strangers/compile` makes the PTX.

use cuda_emulator::{Architecture, Counts, Launch, Machine, Module, Swizzle, TensorMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Runs `test` with the module as compiled in each way.
fn each(name: &str, test: impl Fn(&Stranger)) {
    each_of(name, "sm_80", &["ptx", "debug.ptx"], test);
}

fn each_of(name: &str, architecture: &str, variants: &[&str], test: impl Fn(&Stranger)) {
    for variant in variants {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("strangers").join(format!("{name}.{variant}"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let module = Module::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let machine = Machine::new(Architecture::parse(architecture).expect("an architecture"));
        test(&Stranger { module, machine, file: format!("{name}.{variant}") });
    }
}

struct Stranger {
    module: Module,
    machine: Machine,
    file: String,
}

/// Numbers that a kernel takes or gives in memory.
trait Plain: Copy {
    const BYTES: usize;
    fn put(self) -> Vec<u8>;
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($kind:ty),*) => {$(
        impl Plain for $kind {
            const BYTES: usize = size_of::<$kind>();
            fn put(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn get(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("as many bytes as the type has"))
            }
        }
    )*};
}
plain!(u8, i32, u32, i64, u64, f32, f64);

impl Plain for half::f16 {
    const BYTES: usize = 2;
    fn put(self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
    fn get(bytes: &[u8]) -> Self {
        Self::from_le_bytes(bytes.try_into().expect("two bytes"))
    }
}

impl Plain for half::bf16 {
    const BYTES: usize = 2;
    fn put(self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
    fn get(bytes: &[u8]) -> Self {
        Self::from_le_bytes(bytes.try_into().expect("two bytes"))
    }
}

/// An argument of a launch.
enum Argument {
    Address(u64),
    I32(i32),
    F32(f32),
    Map(TensorMap),
}

impl Stranger {
    fn upload<T: Plain>(&self, values: &[T]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.put()).collect();
        let address = self.machine.allocate(bytes.len() as u64).expect("room");
        self.machine.write(address, &bytes).expect("an allocation of this size");
        address
    }

    /// Memory that the kernel is to write before it reads.
    fn room<T: Plain>(&self, count: usize) -> u64 {
        self.machine.allocate((count * T::BYTES) as u64).expect("room")
    }

    fn download<T: Plain>(&self, address: u64, count: usize) -> Vec<T> {
        let mut bytes = vec![0; count * T::BYTES];
        self.machine.read(address, &mut bytes).expect("an allocation of this size");
        bytes.chunks_exact(T::BYTES).map(T::get).collect()
    }

    fn launch(&self, name: &str, grid: [u32; 3], block: [u32; 3], shared_bytes: u32, arguments: &[Argument]) -> Counts {
        let function = self.module.function(name).unwrap_or_else(|| panic!("{} has no {name}", self.file));
        let mut parameters = vec![0; function.parameter_bytes() as usize];
        assert_eq!(function.parameters().len(), arguments.len(), "{name}");
        for (parameter, argument) in function.parameters().iter().zip(arguments) {
            let bytes = match argument {
                Argument::Address(value) => value.put(),
                Argument::I32(value) => value.put(),
                Argument::F32(value) => value.put(),
                Argument::Map(map) => map.encode().expect("a map as the driver allows").to_vec(),
            };
            let start = parameter.offset as usize;
            parameters[start..start + bytes.len()].copy_from_slice(&bytes);
        }
        let launch = Launch { grid, block, shared_bytes, parameters: &parameters };
        self.machine.launch(&self.module, function, launch).unwrap_or_else(|fault| panic!("{}: {fault}", self.file))
    }
}

use Argument::{Address, F32, I32, Map};

fn random(count: usize, seed: u64) -> Vec<u32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32
        })
        .collect()
}

/// Floats of both signs, up to `most`, with few bits, so that sums of many are exact.
fn floats(count: usize, seed: u64, most: f32) -> Vec<f32> {
    random(count, seed).iter().map(|bits| ((bits % 2048) as f32 / 1024.0 - 1.0) * most).collect()
}

fn line(count: u32) -> [u32; 3] {
    [count, 1, 1]
}

#[test]
fn reductions() {
    each("reduce", |stranger| {
        let values = floats(10_000, 1, 1.0);
        let wanted: f32 = values.iter().sum();
        let (from, total) = (stranger.upload(&values), stranger.upload(&[0f32]));
        stranger.launch("reduce_sum", line(7), line(256), 0, &[Address(from), Address(total), I32(10_000)]);
        assert_eq!(stranger.download::<f32>(total, 1), [wanted]);

        let (partials, total) = (stranger.room::<f32>(9), stranger.room::<f32>(1));
        let arguments = [Address(from), Address(partials), Address(total), I32(10_000)];
        // Twice: the ticket starts again by itself.
        for _ in 0..2 {
            stranger.launch("reduce_last_block", line(9), line(128), 0, &arguments);
            assert_eq!(stranger.download::<f32>(total, 1), [wanted]);
        }
    });
}

#[test]
fn scans() {
    each("scan", |stranger| {
        let values: Vec<i32> = random(1024, 2).iter().map(|bits| (bits % 1000) as i32 - 500).collect();
        let wanted: Vec<i32> = values
            .chunks(256)
            .flat_map(|block| {
                let mut sum = 0;
                block.iter().map(move |value| {
                    sum += value;
                    sum
                })
            })
            .collect();
        for name in ["scan_inclusive", "scan_by_warps"] {
            let (from, to) = (stranger.upload(&values), stranger.room::<i32>(1024));
            stranger.launch(name, line(4), line(256), 0, &[Address(from), Address(to)]);
            assert_eq!(stranger.download::<i32>(to, 1024), wanted, "{name}");
        }
    });
}

#[test]
fn sorts() {
    each("sort", |stranger| {
        let mut keys = random(1024, 3);
        let at = stranger.upload(&keys);
        stranger.launch("sort_bitonic", line(2), line(512), 0, &[Address(at)]);
        keys.chunks_mut(512).for_each(<[u32]>::sort_unstable);
        assert_eq!(stranger.download::<u32>(at, 1024), keys);

        let mut values: Vec<i32> = random(16 * 96, 4).iter().map(|bits| *bits as i32).collect();
        let at = stranger.upload(&values);
        stranger.launch("sort_in_local_memory", line(3), line(32), 0, &[Address(at)]);
        values.chunks_mut(16).for_each(<[i32]>::sort_unstable);
        assert_eq!(stranger.download::<i32>(at, 16 * 96), values);
    });
}

#[test]
fn products() {
    each("product", |stranger| {
        let (rows, columns, inner) = (37, 29, 50);
        let (a, b) = (floats(rows * inner, 5, 1.0), floats(inner * columns, 6, 1.0));
        let arguments = [
            Address(stranger.upload(&a)),
            Address(stranger.upload(&b)),
            Address(stranger.room::<f32>(rows * columns)),
            I32(rows as i32),
            I32(columns as i32),
            I32(inner as i32),
        ];
        let Address(c) = arguments[2] else { unreachable!("written above") };
        stranger.launch("product_tiled", [2, 3, 1], [16, 16, 1], 0, &arguments);
        for (at, got) in stranger.download::<f32>(c, rows * columns).iter().enumerate() {
            let (row, column) = (at / columns, at % columns);
            let wanted: f64 =
                (0..inner).map(|k| f64::from(a[row * inner + k]) * f64::from(b[k * columns + column])).sum();
            assert!((f64::from(*got) - wanted).abs() < 1e-4, "[{row}, {column}]: {got}, expected {wanted}");
        }

        let (from, to) = (stranger.upload(&a), stranger.room::<f32>(rows * inner));
        let arguments = [Address(from), Address(to), I32(rows as i32), I32(inner as i32)];
        let counts = stranger.launch("product_transpose", [2, 2, 1], [32, 8, 1], 0, &arguments);
        let wanted: Vec<f32> = (0..rows * inner).map(|at| a[at % rows * inner + at / rows]).collect();
        assert_eq!(stranger.download::<f32>(to, rows * inner), wanted);
        assert_eq!(counts.shared_loads.bank_conflicts, 0, "the padding is there for that");
    });
}

#[test]
fn stencils() {
    each("stencil", |stranger| {
        let (width, height) = (45, 35);
        let field = floats(width * height, 7, 10.0);
        let (from, to) = (stranger.upload(&field), stranger.room::<f32>(width * height));
        let arguments = [Address(from), Address(to), I32(width as i32), I32(height as i32)];
        stranger.launch("stencil_heat", [3, 3, 1], [16, 16, 1], 0, &arguments);
        for (at, got) in stranger.download::<f32>(to, width * height).iter().enumerate() {
            let (x, y) = (at % width, at / width);
            let border = x == 0 || y == 0 || x == width - 1 || y == height - 1;
            let wanted = if border {
                field[at]
            } else {
                let around = field[at - width] + field[at + width] + field[at - 1] + field[at + 1];
                field[at] + 0.2 * (around - 4.0 * field[at])
            };
            assert!((got - wanted).abs() < 1e-4, "({x}, {y}): {got}, expected {wanted}");
        }

        let steps = stranger.room::<i32>(width * height);
        let arguments = [Address(steps), I32(width as i32), I32(height as i32)];
        stranger.launch("stencil_mandelbrot", [6, 9, 1], [8, 4, 1], 0, &arguments);
        let got = stranger.download::<i32>(steps, width * height);
        let mut differ = 0;
        for (at, got) in got.iter().enumerate() {
            let real = 3.0 * (at % width) as f32 / width as f32 - 2.0;
            let imaginary = 2.0 * (at / width) as f32 / height as f32 - 1.0;
            let (mut a, mut b, mut step) = (0f32, 0f32, 0);
            while step < 100 && a * a + b * b < 4.0 {
                (a, b) = (a * a - b * b + real, 2.0 * a * b + imaginary);
                step += 1;
            }
            differ += usize::from(*got != step);
        }
        // A fused multiply and add in the test for leaving may move a point on the edge.
        assert!(differ <= 2, "{differ} points differ");
    });
}

#[test]
fn histograms_and_atomics() {
    each("histogram", |stranger| {
        let bytes: Vec<u8> = random(5000, 8).iter().map(|bits| (bits % 61 * (bits % 5)) as u8).collect();
        let (from, counts) = (stranger.upload(&bytes), stranger.upload(&[0u32; 256]));
        stranger.launch("histogram_bytes", line(3), line(256), 0, &[Address(from), Address(counts), I32(5000)]);
        let mut wanted = [0u32; 256];
        bytes.iter().for_each(|byte| wanted[usize::from(*byte)] += 1);
        assert_eq!(stranger.download::<u32>(counts, 256), wanted);

        let cells = stranger.upload(&[5000u32, 7, u32::MAX, 0, 0, 1000, 3, 3, 5, 0]);
        let (wide, sum) = (stranger.upload(&[1u64, 0, 0]), stranger.upload(&[0.25f64]));
        stranger.launch("histogram_atomics", line(3), line(64), 0, &[Address(cells), Address(wide), Address(sum)]);
        let threads = 192u32;
        let wraps = |start: u32| (0..threads).fold(start, |value, _| if value >= 9 { 0 } else { value + 1 });
        let falls = (0..threads).fold(3u32, |value, _| if value == 0 || value > 9 { 9 } else { value - 1 });
        let xor = (0..threads).fold(0, |value, thread| value ^ thread);
        let cells = stranger.download::<u32>(cells, 10);
        let wanted = [809, 573, 0, u32::MAX, xor, 1000 - 2 * threads, wraps(3), falls, -191i32 as u32, 77];
        assert_eq!(cells, wanted);
        let all: u64 = (0..192).sum();
        assert_eq!(stranger.download::<u64>(wide, 3), [1 + (192 << 33), 191 << 40, all]);
        assert_eq!(stranger.download::<f64>(sum, 1), [0.25 + 0.5 * all as f64]);
    });
}

#[test]
fn warps() {
    each("warp", |stranger| {
        let values: Vec<i32> = random(200, 9).iter().map(|bits| (bits % 1000) as i32).collect();
        let (from, to) = (stranger.upload(&values), stranger.room::<i32>(200));
        let count = stranger.upload(&[0i32]);
        stranger.launch("warp_filter", line(2), line(128), 0, &[Address(from), Address(to), Address(count), I32(200)]);
        let wanted: Vec<i32> = values.iter().copied().filter(|value| value % 2 == 1).collect();
        assert_eq!(stranger.download::<i32>(count, 1), [wanted.len() as i32]);
        assert_eq!(stranger.download::<i32>(to, wanted.len()), wanted);

        let keys: Vec<i32> = (0..128).map(|at| if at / 32 == 2 { 3 } else { at * 7 % 5 }).collect();
        let values: Vec<i32> = (0..128).map(|at| at * at % 37).collect();
        let sums = stranger.room::<i32>(128);
        let arguments = [Address(stranger.upload(&keys)), Address(stranger.upload(&values)), Address(sums)];
        stranger.launch("warp_groups", line(2), line(64), 0, &arguments);
        for (at, got) in stranger.download::<i32>(sums, 128).into_iter().enumerate() {
            let warp = at / 32 * 32..at / 32 * 32 + 32;
            let same: Vec<usize> = warp.clone().filter(|other| keys[*other] == keys[at]).collect();
            let wanted = if at / 32 == 2 {
                1_234_567
            } else if same[0] == at {
                same.iter().map(|other| values[*other]).sum()
            } else {
                -warp.map(|other| values[other]).max().expect("32 lanes")
            };
            assert_eq!(got, wanted, "thread {at}");
        }

        let values = floats(64, 10, 1.0);
        let (from, to) = (stranger.upload(&values), stranger.room::<f32>(64));
        stranger.launch("warp_segments", line(1), line(64), 0, &[Address(from), Address(to)]);
        let wanted: Vec<f32> = (0..64).map(|at| values[at / 8 * 8..at / 8 * 8 + 8].iter().sum()).collect();
        assert_eq!(stranger.download::<f32>(to, 64), wanted);
    });
}

#[test]
fn functions() {
    each("functions", |stranger| {
        let (a, b) = (floats(40, 11, 5.0), floats(40, 12, 5.0));
        let out = stranger.room::<f32>(40);
        let arguments = [Address(stranger.upload(&a)), Address(stranger.upload(&b)), Address(out)];
        stranger.launch("functions_structures", line(1), line(40), 0, &arguments);
        let wanted: Vec<f32> = (0..40).map(|at| (a[at] - b[at]).abs() + (at % 5 + 1) as f32).collect();
        assert_eq!(stranger.download::<f32>(out, 40), wanted);

        let out = stranger.room::<i32>(48);
        stranger.launch("functions_recursion", line(1), line(48), 0, &[Address(out)]);
        let numbers = [0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89];
        let wanted: Vec<i32> = (0..48).map(|at| numbers[at % 12]).collect();
        assert_eq!(stranger.download::<i32>(out, 48), wanted);

        let wide = |seed| -> Vec<i64> {
            let (high, low) = (random(96, seed), random(96, seed + 1));
            (0..96).map(|at| (i64::from(high[at] as i32) << (at % 33) ^ i64::from(low[at])) | 1).collect()
        };
        let (x, y) = (wide(13), wide(15));
        let codes: Vec<i32> = (0..96).map(|at| at * 5 % 9).collect();
        let out = stranger.room::<i64>(96);
        let uploaded = [stranger.upload(&x), stranger.upload(&y)];
        let arguments = [Address(stranger.upload(&codes)), Address(uploaded[0]), Address(uploaded[1]), Address(out)];
        stranger.launch("functions_switch", line(3), line(32), 0, &arguments);
        for (at, got) in stranger.download::<i64>(out, 96).into_iter().enumerate() {
            let (x, y) = (x[at], y[at]);
            let wanted = match codes[at] {
                0 => x.wrapping_add(y),
                1 => x.wrapping_sub(y),
                2 => x.wrapping_mul(y),
                3 => x.wrapping_div(y),
                4 => x.wrapping_rem(y),
                5 => (x as u64 / y as u64) as i64,
                6 => x >> (y & 63),
                7 => x ^ y,
                _ => -1,
            };
            assert_eq!(got, wanted, "{}: {x} {y}", codes[at]);
        }

        let out = stranger.room::<u32>(200);
        stranger.launch("functions_collatz", line(2), line(100), 0, &[Address(out)]);
        let wanted: Vec<u32> = (1..=200u64)
            .map(|start| {
                let (mut value, mut steps) = (start, 0);
                while value != 1 {
                    value = if value % 2 == 1 { 3 * value + 1 } else { value / 2 };
                    steps += 1;
                }
                steps
            })
            .collect();
        assert_eq!(stranger.download::<u32>(out, 200), wanted);
    });
}

/// The error function, by its series; good to f64 for the arguments here.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn numbers() {
    each("numbers", |stranger| {
        let x: Vec<f64> = (0..64).map(|at| f64::from(at) * 0.37 - 11.0).collect();
        let out = stranger.room::<f64>(256);
        stranger.launch("numbers_f64", line(1), line(64), 0, &[Address(stranger.upload(&x)), Address(out)]);
        let got = stranger.download::<f64>(out, 256);
        for (at, v) in x.iter().enumerate() {
            let wanted = [
                ((v * 0.5 + 1.25) * v - 3.0) * v + 0.125,
                v.abs().sqrt() / (1.0 + v * v),
                (-v * v).exp() + v.abs().ln_1p(),
                v.sin() * v.cos() + v.abs().powf(1.5),
            ];
            for (got, wanted) in got[4 * at..].iter().zip(wanted) {
                assert!((got - wanted).abs() <= 1e-13 * (1.0 + wanted.abs()), "{v}: {got}, expected {wanted}");
            }
        }

        let x: Vec<f32> = (0..64).map(|at| at as f32 * 0.1 - 3.2).collect();
        let out = stranger.room::<f32>(512);
        stranger.launch("numbers_f32", line(1), line(64), 0, &[Address(stranger.upload(&x)), Address(out)]);
        let got = stranger.download::<f32>(out, 512);
        for (at, v) in x.iter().enumerate() {
            let v = f64::from(*v);
            let wanted = [
                v.sin(),
                v.cos(),
                v.exp(),
                (v.abs() + 1.0).ln(),
                v.abs().powf(0.75),
                v.tanh(),
                erf(v),
                v.exp() + v / 3.0 + 1.0 / (v.abs() + 1.0).sqrt() + v % f64::from(0.7f32),
            ];
            for (got, wanted) in got[8 * at..].iter().zip(wanted) {
                assert!(
                    (f64::from(*got) - wanted).abs() <= 2e-6 * (1.0 + wanted.abs()),
                    "{v}: {got}, expected {wanted}"
                );
            }
        }

        use half::{bf16, f16};
        let x: Vec<f16> = floats(128, 17, 4.0).into_iter().map(f16::from_f32).collect();
        let y: Vec<f16> = floats(128, 18, 4.0).into_iter().map(f16::from_f32).collect();
        let out = stranger.room::<f16>(256);
        let arguments = [Address(stranger.upload(&x)), Address(stranger.upload(&y)), Address(out), F32(1.7)];
        stranger.launch("numbers_half", line(1), line(64), 0, &arguments);
        let got = stranger.download::<f16>(out, 256);
        let factor = f16::from_f32(1.7).to_f64();
        for pair in 0..64 {
            let sum = |half: usize| f16::from_f64(factor * x[2 * pair + half].to_f64() + y[2 * pair + half].to_f64());
            let root = f16::from_f64(sum(0).to_f64().abs().sqrt());
            let chosen = if sum(1) > x[2 * pair] { f16::ONE } else { f16::from_f32(-2.0) };
            assert_eq!(got[4 * pair..4 * pair + 2], [sum(0), sum(1)]);
            assert!((got[4 * pair + 2].to_f32() - root.to_f32()).abs() <= 1e-3 * root.to_f32(), "{root}");
            assert_eq!(got[4 * pair + 3], chosen);
        }

        let x: Vec<bf16> = floats(64, 19, 4.0).into_iter().map(bf16::from_f32).collect();
        let y: Vec<bf16> = floats(64, 20, 4.0).into_iter().map(bf16::from_f32).collect();
        let out = stranger.room::<bf16>(192);
        let arguments = [Address(stranger.upload(&x)), Address(stranger.upload(&y)), Address(out)];
        stranger.launch("numbers_bfloat", line(1), line(64), 0, &arguments);
        let got = stranger.download::<bf16>(out, 192);
        for at in 0..64 {
            let product = bf16::from_f64(x[at].to_f64() * y[at].to_f64());
            let wanted = [product, bf16::from_f64(product.to_f64() + 0.5), bf16::from_f32(x[at].to_f32() / 3.0)];
            assert_eq!(got[3 * at..3 * at + 3], wanted);
        }

        let x: Vec<u32> = random(64, 21).iter().map(|bits| bits << 1 | bits >> 20 & 1).collect();
        let out = stranger.room::<u32>(512);
        stranger.launch("numbers_bits", line(1), line(64), 0, &[Address(stranger.upload(&x)), Address(out)]);
        let got = stranger.download::<u32>(out, 512);
        for (at, v) in x.iter().copied().enumerate() {
            let w = v.wrapping_mul(2_654_435_761);
            let bytes = [v.to_le_bytes(), w.to_le_bytes()].concat();
            let first = if v == 0 { 0 } else { v.trailing_zeros() + 1 };
            let low24 = |value: u32| ((value << 8) as i32 >> 8) as i64;
            let wanted = [
                v.reverse_bits(),
                v.leading_zeros() | v.count_ones() << 8 | first << 16,
                u32::from_le_bytes([bytes[5], bytes[1], bytes[7], bytes[3]]),
                ((u64::from(w) << 32 | u64::from(v)) << (at % 32) >> 32) as u32,
                ((u64::from(v) * u64::from(w)) >> 32) as u32,
                ((u64::from(v) + u64::from(w)) / 2) as u32,
                (v & 0xffff).wrapping_add(w & 0xffff) & 0xffff | (v >> 16).wrapping_add(w >> 16) << 16,
                v.abs_diff(w).wrapping_add(5) ^ (low24(v) * low24(w)) as u32,
            ];
            assert_eq!(got[8 * at..8 * at + 8], wanted, "{v:#x}");
        }
    });
}

/// What kernels print, kept.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic while printing").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn memory() {
    each("memory", |stranger| {
        let printed = Printed::default();
        stranger.machine.set_output(printed.clone());
        stranger.launch("memory_print", line(2), line(32), 0, &[I32(3)]);
        let text = String::from_utf8(printed.0.lock().expect("not poisoned").clone()).expect("ASCII");
        let wanted: String = (0..6)
            .map(|at| {
                let thread = at % 3;
                let quarter = f64::from(thread) * 0.25;
                format!("thread {thread} of block {}: {quarter:5.2} ok {:x} -5%\n", at / 3, 255 - thread)
            })
            .collect();
        assert_eq!(text, wanted);

        let values: Vec<i32> = (0..100).collect();
        let at = stranger.upload(&values);
        stranger.launch("memory_dynamic", line(1), line(100), 400, &[Address(at)]);
        assert_eq!(stranger.download::<i32>(at, 100), values.iter().rev().copied().collect::<Vec<_>>());

        let x = floats(32, 22, 2.0);
        let out = stranger.room::<f32>(32);
        stranger.launch("memory_variables", line(1), line(32), 0, &[Address(stranger.upload(&x)), Address(out)]);
        let coefficients = [1f32, -2.0, 0.5, 3.0];
        for (at, got) in stranger.download::<f32>(out, 32).into_iter().enumerate() {
            let v = x[at];
            let table = [[1f32, 2.0], [3.0, 4.0], [5.0, 6.0]][at % 3][at % 2];
            let wanted = ((3.0 * v + 0.5) * v - 2.0) * v + coefficients[at % 4] + table;
            assert!((got - wanted).abs() < 1e-4, "{got}, expected {wanted}");
        }
        let (calls, bytes) = stranger.machine.variable(&stranger.module, "calls").expect("a variable of the module");
        assert_eq!((stranger.download::<i32>(calls, 1), bytes), (vec![6], 4));

        let values: Vec<i32> = random(128, 23).iter().map(|bits| (bits % 1000) as i32).collect();
        let out = stranger.room::<i32>(144);
        stranger.launch("memory_groups", line(1), line(128), 0, &[Address(stranger.upload(&values)), Address(out)]);
        let sums: Vec<i32> = values.chunks(16).map(|tile| tile.iter().sum()).collect();
        assert_eq!(stranger.download::<i32>(out, 8), sums);
        let any: Vec<i32> = (0..128)
            .map(|at| {
                i32::from(values[at / 16 * 16..at / 16 * 16 + 16].iter().any(|v| *v > 900)) * 1000 + at as i32 / 16
            })
            .collect();
        assert_eq!(stranger.download::<i32>(out + 64, 128), any);

        let values: Vec<i32> = (0..1024).collect();
        let out = stranger.room::<i32>(1024);
        stranger.launch("memory_async", line(2), line(128), 0, &[Address(stranger.upload(&values)), Address(out)]);
        let wanted: Vec<i32> = (0..1024)
            .map(|at| {
                let (block, thread, part) = (at / 512, at % 512 / 4, at % 4);
                512 * block + 4 * (127 - thread) + part + i32::from(part == 0)
            })
            .collect();
        assert_eq!(stranger.download::<i32>(out, 1024), wanted);

        let at = stranger.upload(&[0u8; 500]);
        stranger.launch("memory_sieve", line(1), line(64), 0, &[Address(at), I32(500)]);
        for (number, composite) in stranger.download::<u8>(at, 500).into_iter().enumerate().skip(2) {
            let wanted = (2..number).any(|divisor| number % divisor == 0);
            assert_eq!(composite == 1, wanted, "{number}");
        }

        let at = stranger.upload(&[100i32]);
        stranger.launch("memory_lock", line(10), line(32), 0, &[Address(at)]);
        assert_eq!(stranger.download::<i32>(at, 1), [155]);
    });
}

#[test]
fn bulk_copies_and_products_of_warpgroups() {
    // A matrix with rows next to each other, and the box that is copied of it.
    let map = |address, element_bytes, [columns, rows]: [u64; 2], box_extents: [u32; 2], swizzle| {
        let strides = vec![columns * u64::from(element_bytes)];
        let (extents, box_extents) = (vec![columns, rows], box_extents.to_vec());
        Map(TensorMap { address, element_bytes, extents, strides, box_extents, swizzle })
    };
    each_of("hopper", "sm_90a", &["ptx"], |stranger| {
        let values: Vec<i32> = random(256 * 5, 11).into_iter().map(|value| value as i32 % 1000).collect();
        let (from, sums) = (stranger.upload(&values), stranger.upload(&[0i32; 4]));
        let arguments = [Address(from), Address(sums), I32(5)];
        let counts = stranger.launch("hopper_chunks", [1; 3], [64, 1, 1], 0, &arguments);
        let mut expected = [0; 4];
        for (at, value) in values.iter().enumerate() {
            expected[at % 4] += value * (at as i32 / 256 + 1);
        }
        assert_eq!(stranger.download::<i32>(sums, 4), expected, "{}", stranger.file);
        assert_eq!((counts.bulk_loads.requests, counts.bulk_loads.bytes), (5, 5 * 1024));

        // Strides are multiples of 16 bytes.
        let (columns, rows, pitch) = (80, 50, 52);
        let matrix: Vec<f32> = (0..columns * rows).map(|at| at as f32).collect();
        let (from, to) = (stranger.upload(&matrix), stranger.room::<f32>(pitch * columns));
        let extents = [columns as u64, rows as u64];
        let turned = TensorMap {
            address: to,
            element_bytes: 4,
            extents: vec![rows as u64, columns as u64],
            strides: vec![4 * pitch as u64],
            box_extents: vec![32, 32],
            swizzle: Swizzle::None,
        };
        let arguments = [map(from, 4, extents, [32, 32], Swizzle::None), Map(turned)];
        stranger.launch("hopper_transpose", [3, 2, 1], [128, 1, 1], 0, &arguments);
        let got: Vec<f32> = stranger.download(to, pitch * columns);
        for row in 0..rows {
            for column in 0..columns {
                let (got, expected) = (got[column * pitch + row], matrix[row * columns + column]);
                assert_eq!(got, expected, "{} ({row}, {column})", stranger.file);
            }
        }

        let halves = |rows: usize, seed| -> Vec<half::f16> {
            random(64 * rows, seed).into_iter().map(|value| half::f16::from_f32((value % 9) as f32 - 4.0)).collect()
        };
        let (a, b) = (halves(64, 12), halves(16, 13));
        let (a_at, b_at, c) = (stranger.upload(&a), stranger.upload(&b), stranger.room::<f32>(64 * 16));
        let arguments = [
            map(a_at, 2, [64, 64], [64, 64], Swizzle::Bytes128),
            map(b_at, 2, [64, 16], [64, 16], Swizzle::Bytes128),
            Address(c),
        ];
        stranger.launch("hopper_product", [1; 3], [128, 1, 1], 10240, &arguments);
        let got: Vec<f32> = stranger.download(c, 64 * 16);
        for row in 0..64 {
            for column in 0..16 {
                let expected: f32 = (0..64).map(|k| a[64 * row + k].to_f32() * b[64 * column + k].to_f32()).sum();
                assert_eq!(got[16 * row + column], expected, "({row}, {column})");
            }
        }
    });
}
