use crate::exact::{BF16, F16, F32, F64, Format};
use crate::harness::{check, float_edges, integer_pairs, low, pairs, product, signed};
use std::cmp::Ordering;

/// Whether a relation holds, as the manual defines it.
fn holds(relation: &str, order: Option<Ordering>) -> bool {
    let unordered = order.is_none();
    match relation {
        "eq" => order == Some(Ordering::Equal),
        "ne" => order.is_some_and(Ordering::is_ne),
        "lt" | "lo" => order.is_some_and(Ordering::is_lt),
        "le" | "ls" => order.is_some_and(Ordering::is_le),
        "gt" | "hi" => order.is_some_and(Ordering::is_gt),
        "ge" | "hs" => order.is_some_and(Ordering::is_ge),
        "num" => !unordered,
        "nan" => unordered,
        unordered_too => unordered || holds(unordered_too.strip_suffix('u').expect("a relation"), order),
    }
}

#[test]
fn integers() {
    for width in [16, 32, 64] {
        let pairs = integer_pairs(width);
        for relation in ["eq", "ne", "lt", "le", "gt", "ge"] {
            check(&format!("setp.{relation}.s{width} p, a, b; selp.b32 d, 1, 0, p;"), &[width; 2], 32, &pairs, |t| {
                u64::from(holds(relation, Some(signed(t[0], width).cmp(&signed(t[1], width)))))
            });
        }
        for relation in ["eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs"] {
            check(&format!("setp.{relation}.u{width} p, a, b; selp.b32 d, 1, 0, p;"), &[width; 2], 32, &pairs, |t| {
                u64::from(holds(relation, Some(t[0].cmp(&t[1]))))
            });
        }
    }
}

/// Zeros are equal, NaN has no order.
fn order(format: Format, a: u64, b: u64) -> Option<Ordering> {
    if format.is_nan(a) || format.is_nan(b) {
        return None;
    }
    let key = |bits: u64| {
        let magnitude = low(bits, format.width() - 1) as i64;
        if bits >> (format.width() - 1) & 1 == 1 { -magnitude } else { magnitude }
    };
    Some(key(a).cmp(&key(b)))
}

const RELATIONS: [&str; 14] =
    ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];

#[test]
fn floats() {
    for (kind, format) in [("f16", F16), ("bf16", BF16), ("f32", F32), ("f64", F64)] {
        let all = float_edges(format.exponent, format.mantissa);
        let edges: Vec<u64> = all.iter().copied().step_by(all.len().div_ceil(120)).collect();
        let width = format.width();
        let pairs = pairs(&edges, width);
        for relation in RELATIONS {
            check(&format!("setp.{relation}.{kind} p, a, b; selp.b32 d, 1, 0, p;"), &[width; 2], 32, &pairs, |t| {
                u64::from(holds(relation, order(format, t[0], t[1])))
            });
        }
    }
    let tiny = [0, 1, 0x8000_0001, 0x0080_0000, 0x007f_ffff];
    check("setp.lt.ftz.f32 p, a, b; selp.b32 d, 1, 0, p;", &[32; 2], 32, &product(&[&tiny, &tiny]), |t| {
        u64::from(holds("lt", order(F32, F32.flush(t[0]), F32.flush(t[1]))))
    });
}

#[test]
fn pairs_of_halves_set_two_predicates() {
    let edges: Vec<u64> = float_edges(5, 10).into_iter().step_by(3).collect();
    let pairs = pairs(&edges, 16);
    let body = "mov.b32 r0, {a, b}; mov.b32 r1, {b, a}; setp.lt.f16x2 p|q, r0, r1;
                selp.b32 d, 1, 0, p; selp.b32 r2, 2, 0, q; or.b32 d, d, r2;";
    check(body, &[16; 2], 32, &pairs, |t| {
        u64::from(holds("lt", order(F16, t[0], t[1]))) | u64::from(holds("lt", order(F16, t[1], t[0]))) << 1
    });
    let body = "mov.b32 r0, {a, b}; mov.b32 r1, {b, a}; set.ge.f16x2.f16x2 d, r0, r1;";
    check(body, &[16; 2], 32, &pairs, |t| {
        let one = |a, b| if holds("ge", order(F16, a, b)) { 0x3c00 } else { 0 };
        one(t[0], t[1]) | one(t[1], t[0]) << 16
    });
}

#[test]
fn comparisons_combine_with_a_predicate_and_give_the_opposite() {
    let tuples = product(&[&[1, 2, 3], &[2], &[0, 1]]);
    for (logic, oracle) in
        [("and", (|a, b| a & b) as fn(bool, bool) -> bool), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)]
    {
        let body = format!(
            "setp.ne.u32 q, c, 0; setp.lt.{logic}.u32 p|q, a, b, q;
             selp.b32 d, 1, 0, p; selp.b32 r0, 2, 0, q; or.b32 d, d, r0;"
        );
        check(&body, &[32; 3], 32, &tuples, |t| {
            let less = t[0] < t[1];
            u64::from(oracle(less, t[2] != 0)) | u64::from(oracle(!less, t[2] != 0)) << 1
        });
        let body = format!("setp.ne.u32 q, c, 0; setp.lt.{logic}.u32 p, a, b, !q; selp.b32 d, 1, 0, p;");
        check(&body, &[32; 3], 32, &tuples, |t| u64::from(oracle(t[0] < t[1], t[2] == 0)));
    }
}

#[test]
fn set_gives_all_ones_or_one() {
    let pairs = integer_pairs(32);
    check("set.lt.u32.s32 d, a, b;", &[32; 2], 32, &pairs, |t| {
        if signed(t[0], 32) < signed(t[1], 32) { 0xffff_ffff } else { 0 }
    });
    check("set.ge.f32.u32 d, a, b;", &[32; 2], 32, &pairs, |t| if t[0] >= t[1] { 0x3f80_0000 } else { 0 });
}

#[test]
fn selection() {
    let tuples = product(&[&[5], &[7], &[0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]]);
    check("setp.ne.u32 p, c, 0; selp.b32 d, a, b, p;", &[32; 3], 32, &tuples, |t| if t[2] != 0 { t[0] } else { t[1] });
    check("slct.b32.s32 d, a, b, c;", &[32; 3], 32, &tuples, |t| if t[2] >> 31 == 0 { t[0] } else { t[1] });
    // -0 is not less than 0; NaN selects the second.
    let tuples = product(&[&[5], &[7], &[0, 0x8000_0000, 0x3f80_0000, 0xbf80_0000, 0x7fc0_0000]]);
    check("slct.b32.f32 d, a, b, c;", &[32; 3], 32, &tuples, |t| {
        if f32::from_bits(t[2] as u32) >= 0.0 { t[0] } else { t[1] }
    });
}

#[test]
fn testp_classifies() {
    type Test = fn(f64, bool) -> bool;
    let tests: [(&str, Test); 6] = [
        ("finite", |value, _| value.is_finite()),
        ("infinite", |value, _| value.is_infinite()),
        ("number", |value, _| !value.is_nan()),
        ("notanumber", |value, _| value.is_nan()),
        // What is neither infinite, nor NaN, nor subnormal: zeros too.
        ("normal", |value, subnormal| value.is_finite() && !subnormal),
        ("subnormal", |_, subnormal| subnormal),
    ];
    for (name, test) in tests {
        check(&format!("testp.{name}.f32 p, a; selp.b32 d, 1, 0, p;"), &[32], 32, &[float_edges(8, 23)], |t| {
            let value = f32::from_bits(t[0] as u32);
            u64::from(test(value.into(), value.is_subnormal()))
        });
        check(&format!("testp.{name}.f64 p, a; selp.b32 d, 1, 0, p;"), &[64], 32, &[float_edges(11, 52)], |t| {
            let value = f64::from_bits(t[0]);
            u64::from(test(value, value.is_subnormal()))
        });
    }
}
