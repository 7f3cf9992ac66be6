//! Products of warpgroups against a plain product, and where their operands lie in shared memory, written down here
//! from the layouts that the PTX manual gives and shared with nothing.

use crate::harness::{Argument, Random, launch};
use cuda_emulator::Counts;

/// Bytes of shared memory for `a`, and for both operands.
const A_ROOM: usize = 8 << 10;
const ROOM: usize = A_ROOM + (32 << 10);

/// A way to lay out an operand.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Bytes within which 16-byte pieces are permuted; 16 for none.
    span: usize,
    /// The summed axis is not the fast one in memory.
    transposed: bool,
}

impl Layout {
    /// The descriptor's bits but for the address, and where element (`row`, `k`) of an operand of `rows` rows is, in
    /// elements of `bytes`, before the swizzle.
    fn place(self, rows: usize, bytes: usize, row: usize, k: usize) -> usize {
        let piece = 16 / bytes;
        match (self.span, self.transposed) {
            // Blocks of 8 rows by 16 bytes: all rows of the first 16 bytes, then of the second.
            (16, false) => (row * 16) + (k / piece) * rows * 16 + (k % piece) * bytes,
            (span, false) => row * span + k * bytes,
            // Blocks of 8 along the summed axis by 16 bytes: the summed axis first.
            (16, true) => (row / piece) * 2 * 128 + (k / 8) * 128 + (k % 8) * 16 + (row % piece) * bytes,
            (span, true) => {
                let across = span / bytes;
                (row / across) * 16 * span + k * span + (row % across) * bytes
            }
        }
    }

    /// The descriptor of an operand at `address`.
    fn descriptor(self, rows: usize, address: usize) -> u64 {
        let (leading, stride) = match (self.span, self.transposed) {
            (16, false) => (rows * 16, 128),
            (span, false) => (16, 8 * span),
            (16, true) => (128, 256),
            (span, true) => (16 * span, 8 * span),
        };
        let mode: u64 = match self.span {
            16 => 0,
            32 => 3,
            64 => 2,
            _ => 1,
        };
        (address >> 4) as u64 | (leading as u64 >> 4) << 16 | (stride as u64 >> 4) << 32 | mode << 62
    }

    /// What the swizzle makes of an address.
    fn swizzle(self, address: usize) -> usize {
        let pieces = self.span / 16;
        address ^ ((address / 128 % pieces) * 16)
    }
}

struct Case<'a> {
    shape: &'a str,
    n: usize,
    k: usize,
    /// Bytes of an element of a and b, and of d.
    bytes: usize,
    d_bytes: usize,
    a: Layout,
    b: Layout,
    a_in_registers: bool,
    /// The operands after d, a and b.
    rest: &'a str,
}

/// Runs one product: `a` 64 by k and `b` n by k as bits, `d` 64 by n; returns d.
fn multiply(case: &Case<'_>, a: &[Vec<u64>], b: &[Vec<u64>], d: &[Vec<u64>]) -> (Vec<Vec<u64>>, Counts) {
    let count = 64 * case.n * case.d_bytes / 4 / 128;
    let list = |name: &str, count: usize| {
        let names: Vec<String> = (0..count).map(|at| format!("{name}{at}")).collect();
        format!("{{{}}}", names.join(", "))
    };
    let loads: String = (0..count).map(|at| format!("ld.global.b32 d{at}, [own+{}];\n", 512 * at)).collect();
    let stores: String = (0..count).map(|at| format!("st.global.b32 [own+{}], d{at};\n", 512 * at)).collect();
    let (a_offset, b_offset) = (0, A_ROOM);
    let a_operand = if case.a_in_registers { list("a", 4) } else { "first".into() };
    let text = format!(
        ".version 8.6
        .target sm_90a
        .address_size 64
        .extern .shared .align 1024 .b8 room[];
        .visible .entry test(.param .u64 image, .param .u64 data, .param .u64 a_place, .param .u64 b_place)
        {{
            .reg .b64 from, own, first, second, offset;
            .reg .b32 index, at, word, a<4>, d<{count}>;
            .reg .pred more, yes, no;
            setp.eq.u32 yes, 0, 0; setp.ne.u32 no, 0, 0;
            mov.u32 index, %tid.x;
            ld.param.u64 from, [image];
            ld.param.u64 own, [data];
            ld.param.u64 first, [a_place];
            ld.param.u64 second, [b_place];
            mul.wide.u32 offset, index, 4;
            add.u64 from, from, offset;
            add.u64 own, own, offset;
            mov.u32 at, room;
            // Where shared memory begins is the device's affair: the places are counted from the room.
            cvt.u64.u32 offset, at;
            shr.u64 offset, offset, 4;
            add.u64 first, first, offset;
            add.u64 second, second, offset;
            mad.lo.u32 at, index, 4, at;
            mov.u32 word, 0;
        COPY:
            ld.global.b32 a0, [from];
            st.shared.b32 [at], a0;
            add.u64 from, from, 512;
            add.u32 at, at, 512;
            add.u32 word, word, 1;
            setp.lt.u32 more, word, {};
            @more bra COPY;
            ld.global.b32 a0, [from]; ld.global.b32 a1, [from+512];
            ld.global.b32 a2, [from+1024]; ld.global.b32 a3, [from+1536];
            {loads}
            fence.proxy.async.shared::cta;
            bar.sync 0;
            wgmma.fence.sync.aligned;
            wgmma.mma_async.sync.aligned.{} {}, {a_operand}, second, {};
            wgmma.commit_group.sync.aligned;
            wgmma.wait_group.sync.aligned 0;
            {stores}
            ret;
        }}",
        ROOM / 512,
        case.shape,
        list("d", count),
        case.rest,
    );
    let mut image = vec![0u8; ROOM + 2048];
    let mut put = |at: usize, bytes: usize, value: u64| {
        image[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    };
    for (matrix, layout, offset) in [(a, case.a, a_offset), (b, case.b, b_offset)] {
        for (row, values) in matrix.iter().enumerate() {
            for (k, value) in values.iter().enumerate() {
                let at = layout.swizzle(offset + layout.place(matrix.len(), case.bytes, row, k));
                put(at, case.bytes, *value);
            }
        }
    }
    // Fragments of a: as for mma, 16 rows a warp.
    let together = 4 / case.bytes;
    for thread in 0..128 {
        for register in 0..4 {
            for part in 0..together {
                let row = thread / 32 * 16 + thread % 32 / 4 + if register % 2 == 1 { 8 } else { 0 };
                let k = thread % 4 * together + part + if register >= 2 { 4 * together } else { 0 };
                put(ROOM + register * 512 + thread * 4 + part * case.bytes, case.bytes, a[row][k]);
            }
        }
    }
    // Element i of a thread's d: PTX manual, the fragment of D.
    let together = 4 / case.d_bytes;
    let mut data = vec![0u8; 512 * count];
    let place = |thread: usize, i: usize| {
        let row = thread / 32 * 16 + thread % 32 / 4 + if i % 4 < 2 { 0 } else { 8 };
        (row, i / 4 * 8 + thread % 4 * 2 + i % 2)
    };
    let spot = |thread: usize, i: usize| i / together * 512 + thread * 4 + i % together * case.d_bytes;
    let all = || (0..128).flat_map(|thread| (0..count * together).map(move |i| (thread, i)));
    for (thread, i) in all() {
        let (row, column) = place(thread, i);
        let at = spot(thread, i);
        data[at..at + case.d_bytes].copy_from_slice(&d[row][column].to_le_bytes()[..case.d_bytes]);
    }
    let descriptors = [case.a.descriptor(64, a_offset), case.b.descriptor(case.n, b_offset)];
    let [first, second] = descriptors.map(u64::to_le_bytes);
    let name = format!("wgmma.mma_async.sync.aligned.{} {:?} {:?} {}", case.shape, case.a, case.b, case.rest);
    let arguments =
        [Argument::Memory(&image), Argument::Memory(&data), Argument::Value(&first), Argument::Value(&second)];
    let (memory, counts) = launch(&name, &text, 128, ROOM as u32, &arguments);
    let data = &memory[1];
    let mut out = vec![vec![0; case.n]; 64];
    for (thread, i) in all() {
        let (row, column) = place(thread, i);
        let at = spot(thread, i);
        let mut value = [0; 8];
        value[..case.d_bytes].copy_from_slice(&data[at..at + case.d_bytes]);
        out[row][column] = u64::from_le_bytes(value);
    }
    (out, counts)
}

/// Small integers, whose products and sums are exact in every format.
fn integers(rows: usize, columns: usize, seed: u64) -> Vec<Vec<i64>> {
    let mut random = Random::new(seed);
    (0..rows).map(|_| (0..columns).map(|_| (random.next() % 15) as i64 - 7).collect()).collect()
}

fn encode(values: &[Vec<i64>], encode: impl Fn(i64) -> u64) -> Vec<Vec<u64>> {
    values.iter().map(|row| row.iter().map(|value| encode(*value)).collect()).collect()
}

fn bf16_of(value: i64) -> u64 {
    u64::from((value as f32).to_bits() >> 16)
}

fn single_of(value: i64) -> u64 {
    u64::from((value as f32).to_bits())
}

fn half_of(value: i64) -> u64 {
    u64::from(half::f16::from_f32(value as f32).to_bits())
}

/// Checks a product of integers, which `bits` gives the elements' bits of.
fn check(case: &Case<'_>, bits: fn(i64) -> u64, sign: i64, scale: bool) {
    let (a, b) = (integers(64, case.k, 1), integers(case.n, case.k, 2));
    let d = integers(64, case.n, 3);
    let encode_d = if case.d_bytes == 2 { half_of } else { single_of };
    let (got, counts) = multiply(case, &encode(&a, bits), &encode(&b, bits), &encode(&d, encode_d));
    for row in 0..64 {
        for column in 0..case.n {
            let product: i64 = (0..case.k).map(|k| a[row][k] * b[column][k]).sum();
            let wanted = sign * product + if scale { d[row][column] } else { 0 };
            assert_eq!(
                got[row][column],
                encode_d(wanted),
                "{} {:?} {:?}: ({row}, {column})",
                case.shape,
                case.a,
                case.b
            );
        }
    }
    assert_eq!(counts.matrix.get(case.shape), Some(&1));
}

const SPANS: [usize; 4] = [16, 32, 64, 128];

#[test]
fn halves_in_every_layout() {
    for (name, bits) in [("f16", half_of as fn(i64) -> u64), ("bf16", bf16_of)] {
        for a_span in SPANS {
            for b_span in SPANS {
                for transposed in 0..4 {
                    let a = Layout { span: a_span, transposed: transposed & 1 == 1 };
                    let b = Layout { span: b_span, transposed: transposed & 2 == 2 };
                    let rest = format!("yes, 1, 1, {}, {}", transposed & 1, transposed >> 1);
                    let shape = format!("m64n128k16.f32.{name}.{name}");
                    let case = Case {
                        shape: &shape,
                        n: 128,
                        k: 16,
                        bytes: 2,
                        d_bytes: 4,
                        a,
                        b,
                        a_in_registers: false,
                        rest: &rest,
                    };
                    check(&case, bits, 1, true);
                }
            }
        }
    }
}

#[test]
fn every_width() {
    for n in (8..=256).step_by(8) {
        for in_registers in [false, true] {
            let transposed = n % 64 == 0;
            let a = Layout { span: 128, transposed: false };
            let b = Layout { span: 128, transposed };
            let rest = if in_registers {
                format!("no, 1, -1, {}", u8::from(transposed))
            } else {
                format!("1, -1, 1, 0, {}", u8::from(transposed))
            };
            let shape = format!("m64n{n}k16.f32.bf16.bf16");
            let case =
                Case { shape: &shape, n, k: 16, bytes: 2, d_bytes: 4, a, b, a_in_registers: in_registers, rest: &rest };
            check(&case, bf16_of, -1, !in_registers);
        }
    }
}

#[test]
fn other_types() {
    let layout = Layout { span: 64, transposed: false };
    for in_registers in [false, true] {
        let rest = if in_registers { "yes, 1, 1, 0" } else { "yes, 1, 1, 0, 0" };
        let case = Case {
            shape: "m64n40k16.f16.f16.f16",
            n: 40,
            k: 16,
            bytes: 2,
            d_bytes: 2,
            a: layout,
            b: layout,
            a_in_registers: in_registers,
            rest,
        };
        check(&case, half_of, 1, true);
        let case =
            Case { shape: "m64n24k8.f32.tf32.tf32", n: 24, k: 8, bytes: 4, d_bytes: 4, rest: "!no, -1, -1", ..case };
        check(&case, single_of, 1, true);
    }
    for (a_name, b_name) in [("s8", "s8"), ("u8", "s8"), ("s8", "u8"), ("u8", "u8")] {
        let shape = format!("m64n32k32.s32.{a_name}.{b_name}");
        let case = Case {
            shape: &shape,
            n: 32,
            k: 32,
            bytes: 1,
            d_bytes: 4,
            a: layout,
            b: layout,
            a_in_registers: a_name == "u8",
            rest: "1",
        };
        let mut random = Random::new(7);
        let mut bytes = |rows: usize, columns: usize| -> Vec<Vec<u64>> {
            (0..rows).map(|_| (0..columns).map(|_| random.next() & 255).collect()).collect()
        };
        let (a, b) = (bytes(64, 32), bytes(32, 32));
        let d = vec![vec![5; 32]; 64];
        let (got, _) = multiply(&case, &a, &b, &d);
        let value = |name: &str, byte: u64| if name == "s8" { i64::from(byte as u8 as i8) } else { byte as i64 };
        for row in 0..64 {
            for column in 0..32 {
                let sum: i64 = (0..32).map(|k| value(a_name, a[row][k]) * value(b_name, b[column][k])).sum();
                assert_eq!(got[row][column] as u32 as i32, sum as i32 + 5, "{shape} ({row}, {column})");
            }
        }
    }
}
