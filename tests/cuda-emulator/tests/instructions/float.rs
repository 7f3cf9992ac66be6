use crate::exact::{BF16, F16, F32, F64, Format, MODES, Rounding};
use crate::harness::{all_16, check, check_by, float_edges, pairs, product, some, triples};

fn edges(format: Format) -> Vec<u64> {
    let all = float_edges(format.exponent, format.mantissa);
    // About 150 of them: their pairs are what is tested.
    let stride = all.len().div_ceil(150);
    let mut few: Vec<u64> = all.iter().copied().step_by(stride).collect();
    let infinity = ((1 << format.exponent) - 1) << format.mantissa;
    let sign = 1 << (format.width() - 1);
    few.extend([0, 1, sign, sign | 1, infinity, sign | infinity, infinity - 1, infinity + 1, format.one()]);
    // NaNs that differ.
    few.extend([infinity | 5, sign | infinity | 6, infinity | 7 << (format.mantissa - 3), sign | (sign - 1)]);
    few.extend([sign | format.one(), 1 << format.mantissa, (1 << format.mantissa) - 1]);
    few
}

fn values(format: Format) -> Vec<u64> {
    if format.width() == 16 { all_16() } else { some(&float_edges(format.exponent, format.mantissa), format.width()) }
}

#[test]
fn sums_and_products_round_once_in_every_mode() {
    for (kind, format) in [("f32", F32), ("f64", F64)] {
        let width = format.width();
        let pairs = pairs(&edges(format), width);
        let triples = triples(&edges(format), width);
        for (name, mode) in MODES {
            let widths = [width; 2];
            check(&format!("add.{name}.{kind} d, a, b;"), &widths, width, &pairs, |t| format.add(mode, t[0], t[1]));
            check(&format!("sub.{name}.{kind} d, a, b;"), &widths, width, &pairs, |t| {
                format.add(mode, t[0], format.negate(t[1]))
            });
            check(&format!("mul.{name}.{kind} d, a, b;"), &widths, width, &pairs, |t| {
                format.multiply(mode, t[0], t[1])
            });
            check(&format!("fma.{name}.{kind} d, a, b, c;"), &[width; 3], width, &triples, |t| {
                format.fma(mode, t[0], t[1], t[2])
            });
        }
    }
}

#[test]
fn quotients_and_roots_round_once_in_every_mode() {
    for (kind, format) in [("f32", F32), ("f64", F64)] {
        let width = format.width();
        let pairs = pairs(&edges(format), width);
        let values = [values(format)];
        for (name, mode) in MODES {
            check(&format!("div.{name}.{kind} d, a, b;"), &[width; 2], width, &pairs, |t| {
                format.divide(mode, t[0], t[1])
            });
            check(&format!("rcp.{name}.{kind} d, a;"), &[width], width, &values, |t| {
                format.divide(mode, format.one(), t[0])
            });
            check(&format!("sqrt.{name}.{kind} d, a;"), &[width], width, &values, |t| format.sqrt(mode, t[0]));
        }
    }
}

#[test]
fn ftz_flushes_operands_and_results() {
    // Products a little below the least normal number: the first two are rounded to it.
    let near = [[0x2000_0400, 0x1fff_f800], [0xa000_0400, 0x1fff_f800], [0x0080_0000, 0x3f7f_ffff]];
    let mut pairs = pairs(&edges(F32), 32);
    let mut triples = triples(&edges(F32), 32);
    for [a, b] in near {
        for (list, value) in pairs.iter_mut().zip([a, b]) {
            list.push(value);
        }
        for (list, value) in triples.iter_mut().zip([a, b, 0]) {
            list.push(value);
        }
    }
    for (list, value) in triples.iter_mut().zip([0x1980_0000, 0x9980_0000, 0x0080_0000]) {
        list.push(value);
    }
    for (name, mode) in MODES {
        let two = |name: &str, compute: fn(Format, Rounding, u64, u64) -> u64| {
            check(name, &[32; 2], 32, &pairs, |t| {
                F32.flushed(mode, [t[0], t[1]], |wide, [a, b]| compute(wide, mode, a, b))
            });
        };
        two(&format!("add.{name}.ftz.f32 d, a, b;"), Format::add);
        two(&format!("sub.{name}.ftz.f32 d, a, b;"), |wide, mode, a, b| wide.add(mode, a, wide.negate(b)));
        two(&format!("mul.{name}.ftz.f32 d, a, b;"), Format::multiply);
        two(&format!("div.{name}.ftz.f32 d, a, b;"), Format::divide);
        check(&format!("fma.{name}.ftz.f32 d, a, b, c;"), &[32; 3], 32, &triples, |t| {
            F32.flushed(mode, [t[0], t[1], t[2]], |wide, [a, b, c]| wide.fma(mode, a, b, c))
        });
        let values = [values(F32)];
        check(&format!("rcp.{name}.ftz.f32 d, a;"), &[32], 32, &values, |t| {
            F32.flushed(mode, [t[0]], |wide, [a]| wide.divide(mode, wide.one(), a))
        });
        check(&format!("sqrt.{name}.ftz.f32 d, a;"), &[32], 32, &values, |t| F32.sqrt(mode, F32.flush(t[0])));
    }
    let number = |bits: u64| if F32.is_nan(bits) { F32.nan() } else { F32.flush(bits) };
    check("neg.ftz.f32 d, a;", &[32], 32, &[values(F32)], |t| number(F32.negate(t[0])));
    check("abs.ftz.f32 d, a;", &[32], 32, &[values(F32)], |t| number(t[0] & !(1 << 31)));
}

#[test]
fn nans_of_f64_come_through() {
    let nans = [0x7ff0_0000_0000_0001, 0xfff8_0000_0000_0022, 0x7ff8_0000_0000_0333, 0xfff4_4440_0000_0000];
    let others = [0, 1 << 63, F64.one(), 0x7ff0 << 48, 0xfff0 << 48];
    let all = [&nans[..], &others].concat();
    let n = Rounding::Nearest;
    check("fma.rn.f64 d, a, b, c;", &[64; 3], 64, &product(&[&all[..]; 3]), |t| F64.fma(n, t[0], t[1], t[2]));
    let pairs = product(&[&all[..]; 2]);
    check("add.rn.f64 d, a, b;", &[64; 2], 64, &pairs, |t| F64.add(n, t[0], t[1]));
    check("sub.rn.f64 d, a, b;", &[64; 2], 64, &pairs, |t| F64.add(n, t[0], F64.negate(t[1])));
    check("mul.rn.f64 d, a, b;", &[64; 2], 64, &pairs, |t| F64.multiply(n, t[0], t[1]));
    check("div.rn.f64 d, a, b;", &[64; 2], 64, &pairs, |t| F64.divide(n, t[0], t[1]));
    // Their signs, too.
    let number = |nan: u64, result: u64| if F64.is_nan(nan) { F64.quiet(nan) } else { result };
    check("neg.f64 d, a;", &[64], 64, std::slice::from_ref(&all), |t| number(t[0], t[0] ^ 1 << 63));
    check("abs.f64 d, a;", &[64], 64, std::slice::from_ref(&all), |t| number(t[0], t[0] & !(1 << 63)));
    let number = |result: u64| if F32.is_nan(result) { F32.nan() } else { result };
    check("neg.f32 d, a;", &[32], 32, &[values(F32)], |t| number(t[0] ^ 1 << 31));
    check("abs.f32 d, a;", &[32], 32, &[values(F32)], |t| number(t[0] & !(1 << 31)));
}

#[test]
fn sat_clamps_to_the_unit_interval() {
    let pairs = pairs(&edges(F32), 32);
    let triples = triples(&edges(F32), 32);
    let n = Rounding::Nearest;
    check("add.sat.f32 d, a, b;", &[32; 2], 32, &pairs, |t| F32.saturate(F32.add(n, t[0], t[1])));
    check("mul.sat.f32 d, a, b;", &[32; 2], 32, &pairs, |t| F32.saturate(F32.multiply(n, t[0], t[1])));
    check("fma.rn.sat.f32 d, a, b, c;", &[32; 3], 32, &triples, |t| F32.saturate(F32.fma(n, t[0], t[1], t[2])));
}

#[test]
fn halves_alone_and_in_pairs() {
    let n = Rounding::Nearest;
    for (kind, format) in [("f16", F16), ("bf16", BF16)] {
        let pairs = pairs(&edges(format), 16);
        let triples = triples(&edges(format), 16);
        check(&format!("add.{kind} d, a, b;"), &[16; 2], 16, &pairs, |t| format.add(n, t[0], t[1]));
        check(&format!("sub.{kind} d, a, b;"), &[16; 2], 16, &pairs, |t| format.add(n, t[0], t[1] ^ 0x8000));
        check(&format!("mul.{kind} d, a, b;"), &[16; 2], 16, &pairs, |t| format.multiply(n, t[0], t[1]));
        check(&format!("fma.rn.{kind} d, a, b, c;"), &[16; 3], 16, &triples, |t| format.fma(n, t[0], t[1], t[2]));
        check(&format!("fma.rn.relu.{kind} d, a, b, c;"), &[16; 3], 16, &triples, |t| {
            let sum = format.fma(n, t[0], t[1], t[2]);
            if !format.is_nan(sum) && sum & 0x8000 != 0 { 0 } else { sum }
        });
        // A pair is two of them: the second half holds the operands the other way round.
        let both = "mov.b32 r0, {a, b}; mov.b32 r1, {b, a};";
        for (name, oracle) in [
            ("add", (|format, a, b| format_add(format, a, b)) as fn(Format, u64, u64) -> u64),
            ("mul", |format, a, b| format.multiply(Rounding::Nearest, a, b)),
        ] {
            check(&format!("{both} {name}.{kind}x2 d, r0, r1;"), &[16; 2], 32, &pairs, |t| {
                oracle(format, t[0], t[1]) | oracle(format, t[1], t[0]) << 16
            });
        }
        let body = "mov.b32 r0, {a, b}; mov.b32 r1, {b, c}; mov.b32 r2, {c, a};";
        check(&format!("{body} fma.rn.{kind}x2 d, r0, r1, r2;"), &[16; 3], 32, &triples, |t| {
            format.fma(n, t[0], t[1], t[2]) | format.fma(n, t[1], t[2], t[0]) << 16
        });
        let values = [all_16()];
        let number = |bits: u64| if format.is_nan(bits) { format.nan() } else { bits };
        let both = "mov.b32 r0, {a, 0x7c01};";
        for (name, oracle) in [("neg", (|bits| bits ^ 0x8000) as fn(u64) -> u64), ("abs", |bits| bits & 0x7fff)] {
            check(&format!("{name}.{kind} d, a;"), &[16], 16, &values, |t| number(oracle(t[0])));
            check(&format!("{both} {name}.{kind}x2 d, r0;"), &[16], 32, &values, |t| {
                number(oracle(t[0])) | number(oracle(0x7c01)) << 16
            });
        }
    }
    let pairs = pairs(&edges(F16), 16);
    check("add.sat.f16 d, a, b;", &[16; 2], 16, &pairs, |t| F16.saturate(F16.add(n, t[0], t[1])));
    // With products a little below the least normal number: the first two are rounded to it.
    let mut pairs = pairs;
    for (list, values) in pairs.iter_mut().zip([[0x2008, 0x2010, 0x0400], [0x1ff0, 0x9fe0, 0x3bff]]) {
        list.extend(values);
    }
    let flushed = |compute: fn(Format, Rounding, u64, u64) -> u64| {
        move |t: &[u64]| F16.flushed(n, [t[0], t[1]], |wide, [a, b]| compute(wide, n, a, b))
    };
    check("add.ftz.f16 d, a, b;", &[16; 2], 16, &pairs, flushed(Format::add));
    check("mul.ftz.f16 d, a, b;", &[16; 2], 16, &pairs, flushed(Format::multiply));
    check(
        "mov.b16 h0, 0; fma.rn.ftz.f16 d, a, b, h0;",
        &[16; 2],
        16,
        &pairs,
        flushed(|wide, mode, a, b| wide.fma(mode, a, b, 0)),
    );
    let number = |bits: u64| if F16.is_nan(bits) { F16.nan() } else { F16.flush(bits) };
    check("neg.ftz.f16 d, a;", &[16], 16, &[all_16()], |t| number(t[0] ^ 0x8000));
    check("abs.ftz.f16 d, a;", &[16], 16, &[all_16()], |t| number(t[0] & 0x7fff));
}

fn format_add(format: Format, a: u64, b: u64) -> u64 {
    format.add(Rounding::Nearest, a, b)
}

/// -inf, .., -0, +0, .., inf in order.
fn order(format: Format, bits: u64) -> i64 {
    let magnitude = (bits & ((1 << (format.width() - 1)) - 1)) as i64;
    if bits >> (format.width() - 1) & 1 == 1 { -1 - magnitude } else { magnitude }
}

#[test]
fn extremes_prefer_numbers_to_nan() {
    for (kind, format) in [("f32", F32), ("f64", F64), ("f16", F16), ("bf16", BF16)] {
        let width = format.width();
        let pairs = pairs(&edges(format), width);
        for (name, largest) in [("min", false), ("max", true)] {
            let choose = move |a: u64, b: u64| if (order(format, a) < order(format, b)) == largest { b } else { a };
            check(&format!("{name}.{kind} d, a, b;"), &[width; 2], width, &pairs, |t| {
                match (format.is_nan(t[0]), format.is_nan(t[1])) {
                    (true, true) if kind == "f64" => format.quiet(t[1]),
                    (true, true) => format.nan(),
                    (true, false) => t[1],
                    (false, true) => t[0],
                    _ => choose(t[0], t[1]),
                }
            });
            if kind == "f64" {
                continue;
            }
            check(&format!("{name}.NaN.{kind} d, a, b;"), &[width; 2], width, &pairs, |t| {
                if format.is_nan(t[0]) || format.is_nan(t[1]) { format.nan() } else { choose(t[0], t[1]) }
            });
            let sign = 1 << (width - 1);
            check(&format!("{name}.xorsign.abs.{kind} d, a, b;"), &[width; 2], width, &pairs, |t| {
                let (a, b) = (t[0] & !sign, t[1] & !sign);
                match (format.is_nan(a), format.is_nan(b)) {
                    (true, true) => format.nan(),
                    (true, false) => b | (t[0] ^ t[1]) & sign,
                    (false, true) => a | (t[0] ^ t[1]) & sign,
                    _ => choose(a, b) | (t[0] ^ t[1]) & sign,
                }
            });
        }
    }
}

fn f32_of(bits: u64) -> f64 {
    f64::from(f32::from_bits(bits as u32))
}

/// Within `relative` of the truth, or within `absolute`; special values exactly.
fn near(relative: f64, absolute: f64) -> impl Fn(&[u64], u64, u64) -> bool {
    move |_, got, wanted| {
        let (got, wanted) = (f32_of(got), f32_of(wanted));
        got == wanted
            || got.is_nan() && wanted.is_nan()
            || (got - wanted).abs() <= (relative * wanted.abs()).max(absolute)
    }
}

#[test]
fn approximations_are_within_the_error_that_ptx_states() {
    let values = [values(F32)];
    let f32_bits = |value: f64| u64::from((value as f32).to_bits());
    // One unit in the last place is at most 2^-23 of the value; ex2 and rsqrt state a little more.
    let ulp = 2f64.powi(-23);
    let least = f64::from(f32::MIN_POSITIVE) * ulp;
    type Truth = fn(f64) -> f64;
    let cases: [(&str, Truth, f64, f64); 5] = [
        ("rcp.approx.f32", |a| 1.0 / a, ulp, least),
        ("rsqrt.approx.f32", |a| 1.0 / a.sqrt(), 2f64.powf(-22.9), least),
        ("sqrt.approx.f32", f64::sqrt, ulp, least),
        ("ex2.approx.f32", f64::exp2, 2f64.powf(-22.5), least),
        ("tanh.approx.f32", f64::tanh, 2f64.powi(-11), 2f64.powi(-133)),
    ];
    for (name, truth, relative, absolute) in cases {
        let body = format!("{name} d, a;");
        check_by(&body, &[32], 32, &values, |t| f32_bits(truth(f32_of(t[0]))), near(relative, absolute));
    }
    // Sine and cosine promise an absolute error, near zero; the logarithm one near 1 and a relative one elsewhere.
    let angles = [values[0].iter().copied().filter(|bits| f32_of(*bits).abs() <= std::f64::consts::PI).collect()];
    for (name, truth) in [("sin.approx.f32", f64::sin as fn(f64) -> f64), ("cos.approx.f32", f64::cos)] {
        let body = format!("{name} d, a;");
        check_by(&body, &[32], 32, &angles, |t| f32_bits(truth(f32_of(t[0]))), near(0.0, 2f64.powf(-20.9)));
    }
    check_by("lg2.approx.f32 d, a;", &[32], 32, &values, |t| f32_bits(f32_of(t[0]).log2()), near(ulp, 2f64.powi(-22)));
    let pairs = pairs(&edges(F32), 32);
    let quotient = |t: &[u64]| f32_bits(f32_of(t[0]) / f32_of(t[1]));
    check_by("div.full.f32 d, a, b;", &[32; 2], 32, &pairs, quotient, near(2.0 * ulp, 2.0 * least));
    // div.approx gives 0 for divisors beyond 2^126.
    let small = |list: &Vec<u64>| {
        list.iter().zip(&pairs[1]).filter(|(_, b)| f32_of(**b).abs() <= 2f64.powi(126)).map(|(a, _)| *a).collect()
    };
    let few: Vec<Vec<u64>> = pairs.iter().map(small).collect();
    check_by("div.approx.f32 d, a, b;", &[32; 2], 32, &few, quotient, near(2.0 * ulp, 2.0 * least));
    check("div.approx.f32 d, a, b;", &[32; 2], 32, &[vec![0x4040_0000, 0x7f80_0000], vec![0x7f7f_ffff; 2]], |t| {
        if t[0] == 0x7f80_0000 { 0x7fff_ffff } else { 0 }
    });
}

#[test]
fn approximations_of_halves() {
    let values = [all_16()];
    for (kind, format, relative) in [("f16", F16, 2f64.powf(-9.9)), ("bf16", BF16, 2f64.powi(-7))] {
        let widen = |bits: u64| f32_of(format.convert(F32, Rounding::Nearest, bits));
        for (name, truth) in [("ex2", f64::exp2 as fn(f64) -> f64), ("tanh", f64::tanh)] {
            let ftz = if kind == "bf16" && name == "ex2" { ".ftz" } else { "" };
            let body = format!("{name}.approx{ftz}.{kind} d, a;");
            check_by(
                &body,
                &[16],
                16,
                &values,
                |t| truth(widen(t[0])).to_bits(),
                |_, got, wanted| {
                    let (got, wanted) = (widen(got), f64::from_bits(wanted));
                    let least = widen(1 << format.mantissa);
                    got == wanted
                        || got.is_nan() && wanted.is_nan()
                        || got.is_infinite() && wanted >= widen(format.one()) * 65504.0
                        || (got - wanted).abs() <= (relative * wanted.abs()).max(least)
                },
            );
        }
    }
}

#[test]
fn reciprocals_of_f64_are_coarse() {
    let values = [values(F64)];
    for (name, truth) in [("rcp", (|a| 1.0 / a) as fn(f64) -> f64), ("rsqrt", |a| 1.0 / a.sqrt())] {
        let body = format!("{name}.approx.ftz.f64 d, a;");
        check_by(
            &body,
            &[64],
            64,
            &values,
            // The lower half of the operand is not looked at.
            |t| truth(f64::from_bits(F64.flush(t[0] & !0xffff_ffff))).to_bits(),
            |_, got, wanted| {
                let (got, wanted) = (f64::from_bits(got), f64::from_bits(wanted));
                got == wanted
                    || got.is_nan() && wanted.is_nan()
                    || (got - wanted).abs() <= wanted.abs() * 2f64.powi(-19)
                    || wanted.is_subnormal() && got == 0.0
            },
        );
    }
}

#[test]
fn signs_are_copied() {
    let pairs = pairs(&edges(F32), 32);
    check("copysign.f32 d, a, b;", &[32; 2], 32, &pairs, |t| t[0] & 1 << 31 | t[1] & !(1 << 31));
}
