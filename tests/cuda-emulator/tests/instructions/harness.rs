//! Runs one piece of PTX over many operands.

use cuda_emulator::{Architecture, Counts, Launch, Machine, Module, TensorMap};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Operands per thread that an instruction under test sees in registers `a`, `b`, `c` and `e`.
pub const NAMES: [&str; 4] = ["a", "b", "c", "e"];

/// A machine that runs everything.
pub fn machine() -> Machine {
    Machine::new(Architecture::parse("sm_90a").expect("an architecture"))
}

/// Runs `body` once for each tuple of operands. It finds operand `i` in the register of [`NAMES`]`[i]`, of
/// `widths[i]` bits, and leaves its result in `d`, of `width` bits. Registers `h<4>`, `r<4>`, `l<4>` and predicates
/// `p`, `q` are free.
pub fn apply(body: &str, widths: &[u32], width: u32, operands: &[Vec<u64>]) -> Vec<u64> {
    assert_eq!(widths.len(), operands.len());
    let count = operands[0].len();
    let mut declare = String::new();
    let mut load = String::new();
    let mut parameters = String::new();
    for (at, operand_width) in widths.iter().enumerate() {
        let (name, bytes) = (NAMES[at], operand_width / 8);
        declare += &format!(".reg .b{operand_width} {name};\n");
        parameters += &format!(".param .u64 {name}_values, ");
        load += &format!(
            "ld.param.u64 base, [{name}_values];
             mul.wide.u32 offset, index, {bytes};
             add.u64 base, base, offset;
             ld.global.b{operand_width} {name}, [base];\n"
        );
    }
    let bytes = width / 8;
    let text = format!(
        ".version 8.2
        .target sm_90a
        .address_size 64
        .visible .entry test({parameters}.param .u64 results, .param .u32 count)
        {{
            .reg .b64 base, offset, l<4>;
            .reg .b32 index, block, size, limit, r<4>;
            .reg .b16 h<4>;
            .reg .pred p, q, outside;
            .reg .b{width} d;
            {declare}
            mov.u32 index, %tid.x;
            mov.u32 block, %ctaid.x;
            mov.u32 size, %ntid.x;
            mad.lo.u32 index, block, size, index;
            ld.param.u32 limit, [count];
            setp.ge.u32 outside, index, limit;
            @outside ret;
            {load}
            {body}
            ld.param.u64 base, [results];
            mul.wide.u32 offset, index, {bytes};
            add.u64 base, base, offset;
            st.global.b{width} [base], d;
        }}"
    );
    let module = Module::parse(&text).unwrap_or_else(|error| panic!("{body}: {error}"));
    let machine = machine();
    let mut bytes_of_parameters = Vec::new();
    let mut kept = Vec::new();
    for (values, operand_width) in operands.iter().zip(widths) {
        assert_eq!(values.len(), count);
        let bytes: Vec<u8> =
            values.iter().flat_map(|value| value.to_le_bytes()[..(operand_width / 8) as usize].to_vec()).collect();
        let address = machine.allocate(bytes.len() as u64).expect("room for the operands");
        machine.write(address, &bytes).expect("an allocation of this size");
        bytes_of_parameters.extend(address.to_le_bytes());
        kept.push(bytes);
    }
    let results = machine.allocate(count as u64 * u64::from(bytes)).expect("room for the results");
    bytes_of_parameters.extend(results.to_le_bytes());
    bytes_of_parameters.extend((count as u32).to_le_bytes());
    let kernel = module.function("test").expect("the text defines it");
    let launch = Launch {
        grid: [count.div_ceil(256) as u32, 1, 1],
        block: [256, 1, 1],
        shared_bytes: 0,
        parameters: &bytes_of_parameters,
    };
    machine.launch(&module, kernel, launch).unwrap_or_else(|fault| panic!("{body}: {fault}"));
    let mut out = vec![0; count * bytes as usize];
    machine.read(results, &mut out).expect("an allocation of this size");
    let sizes: Vec<usize> = kept.iter().map(Vec::len).collect();
    let about = json!({ "body": body, "count": count, "operands": sizes, "results": out.len() });
    record(&text, &about, &[kept.concat(), out.clone()].concat());
    out.chunks_exact(bytes as usize)
        .map(|chunk| {
            let mut value = [0; 8];
            value[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(value)
        })
        .collect()
}

/// An argument of a kernel.
pub enum Argument<'a> {
    /// These bytes.
    Value(&'a [u8]),
    /// The address of memory that holds these bytes.
    Memory(&'a [u8]),
    /// A tensor map, of memory that holds these bytes.
    Map(&'a TensorMap, &'a [u8]),
    /// The address of such a map in memory.
    MapInMemory(&'a TensorMap, &'a [u8]),
}

/// Runs the kernel `test` of this text in one block. Returns what each argument's memory holds afterwards, and the counts.
pub fn launch(
    name: &str,
    text: &str,
    threads: u32,
    shared_bytes: u32,
    arguments: &[Argument<'_>],
) -> (Vec<Vec<u8>>, Counts) {
    let module = Module::parse(text).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
    let kernel = module.function("test").expect("the text defines it");
    let machine = machine();
    let upload = |bytes: &[u8]| {
        let address = machine.allocate(bytes.len() as u64).expect("room");
        machine.write(address, bytes).expect("an allocation of this size");
        address
    };
    let mut parameters = vec![0; kernel.parameter_bytes() as usize];
    let mut memory = Vec::new();
    let mut about = Vec::new();
    let mut inputs = Vec::new();
    for (parameter, argument) in kernel.parameters().iter().zip(arguments) {
        let (kind, bytes) = match argument {
            Argument::Value(bytes) => ("value", *bytes),
            Argument::Memory(bytes) => ("memory", *bytes),
            Argument::Map(_, bytes) => ("map", *bytes),
            Argument::MapInMemory(_, bytes) => ("map in memory", *bytes),
        };
        inputs.extend_from_slice(bytes);
        let mut description = json!({ "kind": kind, "bytes": bytes.len() });
        let value = match argument {
            Argument::Value(bytes) => bytes.to_vec(),
            Argument::Memory(_) => {
                let address = upload(bytes);
                memory.push((address, bytes.len()));
                address.to_le_bytes().to_vec()
            }
            Argument::Map(map, _) | Argument::MapInMemory(map, _) => {
                let address = upload(bytes);
                memory.push((address, bytes.len()));
                description["element"] = json!(map.element_bytes);
                description["extents"] = json!(map.extents);
                description["strides"] = json!(map.strides);
                description["box"] = json!(map.box_extents);
                description["swizzle"] = json!(map.swizzle as u32);
                let map = TensorMap { address, ..(*map).clone() }.encode().expect("a map as the driver allows");
                if kind == "map" { map.to_vec() } else { upload(&map).to_le_bytes().to_vec() }
            }
        };
        let start = parameter.offset as usize;
        parameters[start..start + value.len()].copy_from_slice(&value);
        about.push(description);
    }
    let launch = Launch { grid: [1; 3], block: [threads, 1, 1], shared_bytes, parameters: &parameters };
    let counts = machine.launch(&module, kernel, launch).unwrap_or_else(|fault| panic!("{name}: {fault}"));
    let read = |(address, bytes): &(u64, usize)| {
        let mut out = vec![0; *bytes];
        machine.read(*address, &mut out).expect("an allocation of this size");
        out
    };
    let out: Vec<Vec<u8>> = memory.iter().map(read).collect();
    let about = json!({ "body": name, "threads": threads, "shared": shared_bytes, "arguments": about });
    record(text, &about, &[inputs, out.concat()].concat());
    (out, counts)
}

/// With `CUDA_EMULATOR_RECORD` set to a folder, keeps there what was run and what came out, for `compare.py` to run on
/// a GPU: the PTX, a line that describes the rest, and what went in and came out as it lies in memory.
fn record(text: &str, about: &Value, data: &[u8]) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let Some(folder) = std::env::var_os("CUDA_EMULATOR_RECORD") else { return };
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = std::path::Path::new(&folder);
    for (extension, bytes) in [("ptx", text.as_bytes()), ("json", about.to_string().as_bytes()), ("bin", data)] {
        std::fs::write(folder.join(format!("{number:05}.{extension}")), bytes).expect("a folder that can be written");
    }
}

/// Compares what `body` leaves in `d` with `expected` for every tuple of operands.
pub fn check(body: &str, widths: &[u32], width: u32, operands: &[Vec<u64>], expected: impl Fn(&[u64]) -> u64) {
    check_by(body, widths, width, operands, expected, |_, got, wanted| got == wanted);
}

/// As [`check`], with the test that decides: operands, got, expected.
pub fn check_by(
    body: &str,
    widths: &[u32],
    width: u32,
    operands: &[Vec<u64>],
    expected: impl Fn(&[u64]) -> u64,
    agree: impl Fn(&[u64], u64, u64) -> bool,
) {
    let got = apply(body, widths, width, operands);
    for (at, got) in got.iter().enumerate() {
        let tuple: Vec<u64> = operands.iter().map(|values| values[at]).collect();
        let wanted = expected(&tuple);
        assert!(agree(&tuple, *got, wanted), "{body}: {tuple:#x?} gave {got:#x}, expected {wanted:#x}");
    }
}

/// Random bits, the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea and Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number of random size: small ones are as likely as large ones.
    pub fn sized(&mut self, width: u32) -> u64 {
        let bits = self.next() % u64::from(width) + 1;
        self.next() >> (64 - bits)
    }
}

/// The lowest `width` bits.
pub fn low(value: u64, width: u32) -> u64 {
    if width == 64 { value } else { value & ((1 << width) - 1) }
}

/// The lowest `width` bits as a signed number.
pub fn signed(value: u64, width: u32) -> i128 {
    let value = i128::from(low(value, width));
    if value >> (width - 1) & 1 == 1 { value - (1 << width) } else { value }
}

/// Integers at which something changes.
pub fn integer_edges(width: u32) -> Vec<u64> {
    let mut edges: Vec<u64> = vec![0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 127, 128, 255, 256];
    for bit in [7, 8, 15, 16, 23, 24, 31, 32, 47, 48, 62, 63] {
        if bit < width {
            edges.extend([1 << bit, (1 << bit) - 1, (1 << bit) + 1]);
        }
    }
    let negated: Vec<u64> = edges.iter().map(|edge| edge.wrapping_neg()).collect();
    edges.extend(negated);
    for edge in &mut edges {
        *edge = low(*edge, width);
    }
    edges.sort_unstable();
    edges.dedup();
    edges
}

/// Floats at which something changes, of a format with so many bits of exponent and mantissa.
pub fn float_edges(exponent: u32, mantissa: u32) -> Vec<u64> {
    let bias = (1u64 << (exponent - 1)) - 1;
    let infinity = ((1 << exponent) - 1) << mantissa;
    let mut edges = vec![0, 1, 2, 3, (1 << mantissa) - 1, 1 << mantissa, (1 << mantissa) + 1];
    edges.extend([infinity, infinity - 1, infinity - 2, infinity | 1 << (mantissa - 1), infinity | 1]);
    // Other NaNs: with every bit of the mantissa, and with some.
    edges.extend([infinity | ((1 << mantissa) - 1), infinity | 5 << (mantissa - 4), infinity | 13 << (mantissa - 4)]);
    for steps in 0..=mantissa as i64 + 3 {
        for sign in [-1, 1] {
            let biased = bias as i64 + sign * steps;
            if biased > 0 && biased < (1 << exponent) - 1 {
                let power = (biased as u64) << mantissa;
                edges.extend([power, power + 1, power - 1, power | 1 << (mantissa - 1), power | ((1 << mantissa) - 1)]);
            }
        }
    }
    let sign = 1u64 << (exponent + mantissa);
    let negative: Vec<u64> = edges.iter().map(|edge| edge | sign).collect();
    edges.extend(negative);
    edges.sort_unstable();
    edges.dedup();
    edges
}

/// Tuples as one list per operand: each of `lists` with each.
pub fn product(lists: &[&[u64]]) -> Vec<Vec<u64>> {
    let mut out = vec![Vec::new(); lists.len()];
    let total: usize = lists.iter().map(|list| list.len()).product();
    for mut index in 0..total {
        for (out, list) in out.iter_mut().zip(lists) {
            out.push(list[index % list.len()]);
            index /= list.len();
        }
    }
    out
}

/// Every pair of 8-bit numbers, each filled up with its sign, then edges with edges, then random ones.
pub fn integer_pairs(width: u32) -> Vec<Vec<u64>> {
    let bytes: Vec<u64> = (0..256u64).map(|byte| low(byte as i8 as i64 as u64, width)).collect();
    let edges = integer_edges(width);
    let mut pairs = product(&[&bytes, &bytes]);
    let more = product(&[&edges, &edges]);
    let mut random = Random::new(u64::from(width));
    for (list, more) in pairs.iter_mut().zip(more) {
        list.extend(more);
    }
    for _ in 0..20_000 {
        for list in &mut pairs {
            list.push(random.sized(width));
        }
    }
    pairs
}

/// Triples of edges and of random numbers; at most about 60 000.
pub fn triples(edges: &[u64], width: u32) -> Vec<Vec<u64>> {
    let stride = edges.len().div_ceil(24);
    let few: Vec<u64> = edges.iter().copied().step_by(stride).collect();
    let mut triples = product(&[&few, &few, &few]);
    let mut random = Random::new(u64::from(width) + 3);
    for _ in 0..10_000 {
        for list in &mut triples {
            let value = if random.next().is_multiple_of(4) {
                edges[random.next() as usize % edges.len()]
            } else {
                random.next()
            };
            list.push(low(value, width));
        }
    }
    triples
}

/// Pairs of edges, and random ones.
pub fn pairs(edges: &[u64], width: u32) -> Vec<Vec<u64>> {
    let mut pairs = product(&[edges, edges]);
    let mut random = Random::new(u64::from(width) + 2);
    for _ in 0..10_000 {
        for list in &mut pairs {
            list.push(low(random.next(), width));
        }
    }
    pairs
}

/// Every 16-bit value.
pub fn all_16() -> Vec<u64> {
    (0..1 << 16).collect()
}

/// Edges and random values.
pub fn some(edges: &[u64], width: u32) -> Vec<u64> {
    let mut random = Random::new(u64::from(width) + 1);
    edges.iter().copied().chain((0..20_000).map(|_| low(random.next(), width))).collect()
}
