//! Matrix instructions against a plain product. Where an element of a fragment lies is written down here from the
//! tables of the PTX manual, one shape at a time, and shared with nothing.

#![expect(clippy::needless_range_loop, reason = "lane and element are what places are computed from")]

use crate::exact::{BF16, F16, F32, Format, Rounding};
use crate::harness::{Argument, Random, launch};

/// Row and column of element `i` in lane `lane`, as the manual's formulas give them.
type Place = fn(lane: usize, i: usize) -> (usize, usize);

struct Shape {
    name: &'static str,
    m: usize,
    n: usize,
    k: usize,
    a: Place,
    b: Place,
}

/// The same for all shapes with 16 rows.
fn c_place(lane: usize, i: usize) -> (usize, usize) {
    (if i < 2 { lane >> 2 } else { (lane >> 2) + 8 }, (lane % 4) * 2 + (i & 1))
}

const HALF_K8: Shape = Shape {
    name: "m16n8k8",
    m: 16,
    n: 8,
    k: 8,
    a: |lane, i| (if i < 2 { lane >> 2 } else { (lane >> 2) + 8 }, (lane % 4) * 2 + (i & 1)),
    b: |lane, i| ((lane % 4) * 2 + i, lane >> 2),
};
const HALF_K16: Shape = Shape {
    name: "m16n8k16",
    m: 16,
    n: 8,
    k: 16,
    a: |lane, i| {
        let row = if i < 2 || (4..6).contains(&i) { lane >> 2 } else { (lane >> 2) + 8 };
        let column = if i < 4 { (lane % 4) * 2 + (i & 1) } else { (lane % 4) * 2 + (i & 1) + 8 };
        (row, column)
    },
    b: |lane, i| (if i < 2 { (lane % 4) * 2 + (i & 1) } else { (lane % 4) * 2 + (i & 1) + 8 }, lane >> 2),
};
const TF32_K4: Shape = Shape {
    name: "m16n8k4",
    m: 16,
    n: 8,
    k: 4,
    a: |lane, i| (if i == 0 { lane >> 2 } else { (lane >> 2) + 8 }, lane % 4),
    b: |lane, _| (lane % 4, lane >> 2),
};
const TF32_K8: Shape = Shape {
    name: "m16n8k8",
    m: 16,
    n: 8,
    k: 8,
    a: |lane, i| {
        let row = if i == 0 || i == 2 { lane >> 2 } else { (lane >> 2) + 8 };
        (row, if i < 2 { lane % 4 } else { lane % 4 + 4 })
    },
    b: |lane, i| (if i == 0 { lane % 4 } else { lane % 4 + 4 }, lane >> 2),
};
const BYTE_K16: Shape = Shape {
    name: "m16n8k16",
    m: 16,
    n: 8,
    k: 16,
    a: |lane, i| (if i < 4 { lane >> 2 } else { (lane >> 2) + 8 }, (lane % 4) * 4 + (i & 3)),
    b: |lane, i| ((lane % 4) * 4 + i, lane >> 2),
};
const BYTE_K32: Shape = Shape {
    name: "m16n8k32",
    m: 16,
    n: 8,
    k: 32,
    a: |lane, i| {
        let row = if i < 4 || (8..12).contains(&i) { lane >> 2 } else { (lane >> 2) + 8 };
        (row, if i < 8 { (lane % 4) * 4 + (i & 3) } else { (lane % 4) * 4 + (i & 3) + 16 })
    },
    b: |lane, i| (if i < 4 { (lane % 4) * 4 + (i & 3) } else { (lane % 4) * 4 + (i & 3) + 16 }, lane >> 2),
};

/// Runs `instruction`, whose fragments have `counts` registers (a, b, c, d), on fragments of 32 lanes.
fn multiply(instruction: &str, counts: [usize; 4], fragments: [&[Vec<u32>]; 3]) -> Vec<Vec<u32>> {
    let registers = |name: &str, count: usize| {
        let list: Vec<String> = (0..count).map(|at| format!("{name}{at}")).collect();
        format!("{{{}}}", list.join(", "))
    };
    let load = |name: &str, count: usize, from: usize| {
        (0..count).map(|at| format!("ld.global.b32 {name}{at}, [lane+{}];\n", 128 * (from + at))).collect::<String>()
    };
    let [a, b, c, d] = counts;
    let stores: String =
        (0..d).map(|at| format!("st.global.b32 [lane+{}], d{at};\n", 128 * (a + b + c + at))).collect();
    let text = format!(
        ".version 8.0
        .target sm_90a
        .address_size 64
        .visible .entry test(.param .u64 data)
        {{
            .reg .b64 lane, offset;
            .reg .b32 index, a<{a}>, b<{b}>, c<{c}>, d<{d}>;
            mov.u32 index, %tid.x;
            mul.wide.u32 offset, index, 4;
            ld.param.u64 lane, [data];
            add.u64 lane, lane, offset;
            {}{}{}
            {instruction} {}, {}, {}, {};
            {stores}
            ret;
        }}",
        load("a", a, 0),
        load("b", b, a),
        load("c", c, a + b),
        registers("d", d),
        registers("a", a),
        registers("b", b),
        registers("c", c),
    );
    let mut data: Vec<u8> =
        fragments.iter().flat_map(|fragment| fragment.iter().flatten()).flat_map(|word| word.to_le_bytes()).collect();
    let start = data.len();
    data.resize(start + 128 * d, 0);
    let (memory, counts) = launch(instruction, &text, 32, 0, &[Argument::Memory(&data)]);
    assert_eq!(counts.matrix.values().sum::<u64>(), 1);
    memory[0][start..].chunks_exact(128).map(words).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
}

/// A matrix's bits as a fragment: registers of 32 lanes.
fn fragment(rows: &[Vec<u64>], place: Place, count: usize, bits: usize) -> Vec<Vec<u32>> {
    let together = 32 / bits;
    (0..count)
        .map(|register| {
            (0..32)
                .map(|lane| {
                    (0..together)
                        .map(|part| {
                            let (row, column) = place(lane, register * together + part);
                            (rows[row][column] << (part * bits)) as u32
                        })
                        .sum()
                })
                .collect()
        })
        .collect()
}

fn matrix(rows: usize, columns: usize, mut element: impl FnMut() -> u64) -> Vec<Vec<u64>> {
    (0..rows).map(|_| (0..columns).map(|_| element()).collect()).collect()
}

#[test]
fn integer_products_are_exact() {
    for (shape, bytes) in [(&BYTE_K16, 16), (&BYTE_K32, 32)] {
        for (a_kind, a_signed) in [("s8", true), ("u8", false)] {
            for (b_kind, b_signed) in [("s8", true), ("u8", false)] {
                for saturate in ["", ".satfinite"] {
                    let mut random = Random::new(11);
                    let a = matrix(shape.m, shape.k, || random.next() & 255);
                    let b = matrix(shape.k, shape.n, || random.next() & 255);
                    let c = matrix(shape.m, shape.n, || {
                        let value = random.next();
                        // Some sums overflow.
                        if value.is_multiple_of(3) { 0x7fff_ffff - (value >> 40 & 0xfff) } else { value & 0xffff_ffff }
                    });
                    let counts = [bytes / 8, bytes / 16, 4, 4];
                    let name = format!("mma.sync.aligned.{}.row.col{saturate}.s32.{a_kind}.{b_kind}.s32", shape.name);
                    let d = multiply(
                        &name,
                        counts,
                        [
                            &fragment(&a, shape.a, counts[0], 8),
                            &fragment(&b, shape.b, counts[1], 8),
                            &fragment(&c, c_place, 4, 32),
                        ],
                    );
                    let value = |byte: u64, signed: bool| if signed { i64::from(byte as i8) } else { byte as i64 };
                    for lane in 0..32 {
                        for i in 0..4 {
                            let (row, column) = c_place(lane, i);
                            let mut sum = i64::from(c[row][column] as i32);
                            for inner in 0..shape.k {
                                sum += value(a[row][inner], a_signed) * value(b[inner][column], b_signed);
                            }
                            let wanted = if saturate.is_empty() {
                                sum as i32
                            } else {
                                sum.clamp(i32::MIN.into(), i32::MAX.into()) as i32
                            };
                            assert_eq!(d[i][lane] as i32, wanted, "{name} [{row}, {column}]");
                        }
                    }
                }
            }
        }
    }
}

/// Small whole numbers, whose products and sums every format holds exactly.
fn whole(format: Format, random: &mut Random) -> u64 {
    let value = (random.next() % 17) as i128 - 8;
    format.integer(Rounding::Nearest, value)
}

fn number(format: Format, bits: u64) -> f64 {
    f64::from(f32::from_bits(format.convert(F32, Rounding::Nearest, bits) as u32))
}

#[test]
fn half_products_of_whole_numbers_are_exact() {
    for (shape, registers) in [(&HALF_K8, [2, 1]), (&HALF_K16, [4, 2])] {
        for (kind, format) in [("f16", F16), ("bf16", BF16)] {
            for (sum_kind, sum_format, sum_registers) in [("f32", F32, 4), ("f16", F16, 2)] {
                if kind == "bf16" && sum_kind == "f16" {
                    continue;
                }
                let mut random = Random::new(12);
                let a = matrix(shape.m, shape.k, || whole(format, &mut random));
                let b = matrix(shape.k, shape.n, || whole(format, &mut random));
                let c = matrix(shape.m, shape.n, || whole(sum_format, &mut random));
                let counts = [registers[0], registers[1], sum_registers, sum_registers];
                let name = format!("mma.sync.aligned.{}.row.col.{sum_kind}.{kind}.{kind}.{sum_kind}", shape.name);
                let bits = sum_format.width() as usize;
                let d = multiply(
                    &name,
                    counts,
                    [
                        &fragment(&a, shape.a, counts[0], 16),
                        &fragment(&b, shape.b, counts[1], 16),
                        &fragment(&c, c_place, sum_registers, bits),
                    ],
                );
                for lane in 0..32 {
                    for i in 0..4 {
                        let (row, column) = c_place(lane, i);
                        let mut sum = number(sum_format, c[row][column]);
                        for inner in 0..shape.k {
                            sum += number(format, a[row][inner]) * number(format, b[inner][column]);
                        }
                        let together = 32 / bits;
                        let got = u64::from(d[i / together][lane]) >> (bits * (i % together)) & ((1 << bits) - 1);
                        assert_eq!(number(sum_format, got), sum, "{name} [{row}, {column}]");
                    }
                }
            }
        }
    }
}

#[test]
fn tf32_products_ignore_the_lower_bits() {
    for (shape, registers) in [(&TF32_K4, [2, 1]), (&TF32_K8, [4, 2])] {
        let mut random = Random::new(13);
        let a = matrix(shape.m, shape.k, || whole(F32, &mut random) | random.next() & 0x1fff);
        let b = matrix(shape.k, shape.n, || whole(F32, &mut random) | random.next() & 0x1fff);
        let c = matrix(shape.m, shape.n, || whole(F32, &mut random));
        let counts = [registers[0], registers[1], 4, 4];
        let name = format!("mma.sync.aligned.{}.row.col.f32.tf32.tf32.f32", shape.name);
        let d = multiply(
            &name,
            counts,
            [
                &fragment(&a, shape.a, counts[0], 32),
                &fragment(&b, shape.b, counts[1], 32),
                &fragment(&c, c_place, 4, 32),
            ],
        );
        let value = |bits: u64| f64::from(f32::from_bits(bits as u32 & !0x1fff));
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = c_place(lane, i);
                let mut sum = value(c[row][column]);
                for inner in 0..shape.k {
                    sum += value(a[row][inner]) * value(b[inner][column]);
                }
                assert_eq!(f64::from(f32::from_bits(d[i][lane])), sum, "{name} [{row}, {column}]");
            }
        }
    }
}

#[test]
fn products_of_any_numbers_are_within_an_f32s_error() {
    let mut random = Random::new(14);
    let mut half = || {
        F32.convert(F16, Rounding::Nearest, {
            let unit = (random.next() >> 40) as f32 / (1 << 24) as f32 - 0.5;
            u64::from(unit.to_bits())
        })
    };
    let a = matrix(16, 16, &mut half);
    let b = matrix(16, 8, &mut half);
    let c = matrix(16, 8, || 0);
    let d = multiply(
        "/* .approx: sums are rounded */ mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        [4, 2, 4, 4],
        [&fragment(&a, HALF_K16.a, 4, 16), &fragment(&b, HALF_K16.b, 2, 16), &fragment(&c, c_place, 4, 32)],
    );
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = c_place(lane, i);
            let terms: Vec<f64> = (0..16).map(|k| number(F16, a[row][k]) * number(F16, b[k][column])).collect();
            let (sum, size): (f64, f64) = (terms.iter().sum(), terms.iter().map(|term| term.abs()).sum());
            let got = f64::from(f32::from_bits(d[i][lane]));
            assert!((got - sum).abs() <= size * f64::from(f32::EPSILON), "[{row}, {column}]: {got}, expected {sum}");
        }
    }
}

/// Loads or stores `count` matrices of 8 by 8, matrix `i`'s row `r` at row `8 i + r` of shared memory, whose rows are
/// `row_bytes` apart; returns registers after a load, or shared memory after a store.
fn move_matrices(load: bool, count: usize, transposed: bool, row_bytes: usize) -> (Vec<u16>, Vec<Vec<u32>>) {
    let list: Vec<String> = (0..count).map(|at| format!("v{at}")).collect();
    let list = format!("{{{}}}", list.join(", "));
    let trans = if transposed { ".trans" } else { "" };
    let total = 32 * row_bytes;
    let values: String = (0..count)
        .map(|at| {
            if load {
                format!("st.global.b32 [lane+{}], v{at};\n", total + 128 * at)
            } else {
                format!("ld.global.b32 v{at}, [lane+{}];\n", total + 128 * at)
            }
        })
        .collect();
    let operation = if load {
        format!("ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {list}, [row];\n{values}")
    } else {
        format!("{values}\nstmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [row], {list};")
    };
    let text = format!(
        ".version 8.0
        .target sm_90a
        .address_size 64
        .visible .entry test(.param .u64 data)
        {{
            .reg .b64 lane, offset, start;
            .reg .b32 index, row, at, value, v<{count}>;
            .reg .pred more;
            .shared .align 16 .b8 rows[{total}];
            mov.u32 index, %tid.x;
            mul.wide.u32 offset, index, 4;
            ld.param.u64 lane, [data];
            add.u64 lane, lane, offset;
            mov.u32 row, rows;
            mad.lo.u32 at, index, 4, row;
            mov.b64 start, lane;
            mov.u32 value, 0;
        FILL:
            {{ .reg .b32 word; ld.global.b32 word, [start]; st.shared.b32 [at], word; }}
            add.u64 start, start, 128; add.u32 at, at, 128; add.u32 value, value, 128;
            setp.lt.u32 more, value, {total};
            @more bra FILL;
            bar.sync 0;
            mad.lo.u32 row, index, {row_bytes}, row;
            {operation}
            bar.sync 0;
            mov.u32 row, rows; mad.lo.u32 at, index, 4, row; mov.b64 start, lane; mov.u32 value, 0;
        EMPTY:
            {{ .reg .b32 word; ld.shared.b32 word, [at]; st.global.b32 [start], word; }}
            add.u64 start, start, 128; add.u32 at, at, 128; add.u32 value, value, 128;
            setp.lt.u32 more, value, {total};
            @more bra EMPTY;
            ret;
        }}"
    );
    let bytes = total + 128 * count;
    let initial: Vec<u8> = (0..bytes / 2).flat_map(|at| (at as u16 * 7 + 1).to_le_bytes()).collect();
    let (memory, _) = launch(&operation, &text, 32, 0, &[Argument::Memory(&initial)]);
    let (shared, registers) = memory[0].split_at(total);
    let halves = shared.chunks_exact(2).map(|half| u16::from_le_bytes([half[0], half[1]])).collect();
    (halves, registers.chunks_exact(128).map(words).collect())
}

#[test]
fn ldmatrix_spreads_rows_and_stmatrix_gathers_them() {
    for row_bytes in [16, 48] {
        for count in [1, 2, 4] {
            for transposed in [false, true] {
                for load in [true, false] {
                    let (shared, registers) = move_matrices(load, count, transposed, row_bytes);
                    for (matrix, lanes) in registers.iter().enumerate() {
                        for (lane, word) in lanes.iter().enumerate() {
                            for half in 0..2 {
                                let (row, column) = (lane / 4, 2 * (lane % 4) + half);
                                let (row, column) = if transposed { (column, row) } else { (row, column) };
                                let in_shared = shared[(8 * matrix + row) * row_bytes / 2 + column];
                                assert_eq!(
                                    (word >> (16 * half)) as u16,
                                    in_shared,
                                    "x{count} trans {transposed} load {load}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn movmatrix_transposes() {
    let values: Vec<u64> = (0..32).map(|lane| 2 * lane + ((2 * lane + 1) << 16)).collect();
    let got = crate::harness::apply("movmatrix.sync.aligned.m8n8.trans.b16 d, a;", &[32], 32, &[values]);
    // Element (r, c) had the value 8 r + c.
    for (lane, word) in got.iter().enumerate() {
        let (row, column) = (lane as u64 / 4, 2 * (lane as u64 % 4));
        assert_eq!(*word, 8 * column + row + ((8 * (column + 1) + row) << 16));
    }
}
