use crate::exact::{BF16, F16, F32, F64, Format, MODES, Rounding};
use crate::harness::{all_16, check, float_edges, integer_edges, low, pairs, signed, some};

type Round = fn(f64) -> f64;

const INTEGRAL: [(&str, Round); 4] =
    [("rni", f64::round_ties_even), ("rzi", f64::trunc), ("rmi", f64::floor), ("rpi", f64::ceil)];

fn integers(width: u32) -> Vec<u64> {
    if width <= 16 { (0..1 << width).collect() } else { some(&integer_edges(width), width) }
}

fn floats(format: Format) -> Vec<u64> {
    if format.width() == 16 { all_16() } else { some(&float_edges(format.exponent, format.mantissa), format.width()) }
}

/// A type and the register that holds it: there are none of 8 bits.
fn register(width: u32) -> u32 {
    width.max(16)
}

fn value(bits: u64, width: u32, is_signed: bool) -> i128 {
    if is_signed { signed(bits, width) } else { i128::from(low(bits, width)) }
}

fn range(width: u32, is_signed: bool) -> (i128, i128) {
    if is_signed { (-(1 << (width - 1)), (1 << (width - 1)) - 1) } else { (0, (1 << width) - 1) }
}

#[test]
fn integers_to_integers() {
    for from in [8, 16, 32, 64] {
        let values = [integers(from)];
        for to in [8, 16, 32, 64] {
            for (from_sign, from_signed) in [('s', true), ('u', false)] {
                for (to_sign, to_signed) in [('s', true), ('u', false)] {
                    let (source, target) = (register(from), register(to));
                    let fill = |result: i128| {
                        // A narrow signed result fills its register with its sign.
                        let narrow = low(result as u64, to);
                        if to_signed { low(signed(narrow, to) as u64, target) } else { narrow }
                    };
                    let body = format!("cvt.{to_sign}{to}.{from_sign}{from} d, a;");
                    check(&body, &[source], target, &values, |t| fill(value(t[0], from, from_signed)));
                    // Only where the result may not fit is there anything to saturate.
                    let ((least, most), (from_least, from_most)) = (range(to, to_signed), range(from, from_signed));
                    if least <= from_least && from_most <= most {
                        continue;
                    }
                    let body = format!("cvt.sat.{to_sign}{to}.{from_sign}{from} d, a;");
                    check(&body, &[source], target, &values, |t| {
                        fill(value(t[0], from, from_signed).clamp(least, most))
                    });
                }
            }
        }
    }
}

#[test]
fn integers_to_floats() {
    for (kind, format) in [("f16", F16), ("bf16", BF16), ("f32", F32), ("f64", F64)] {
        for from in [8, 16, 32, 64] {
            if (kind, from) == ("bf16", 8) {
                continue;
            }
            let values = [integers(from)];
            for (sign, is_signed) in [('s', true), ('u', false)] {
                for (name, mode) in MODES {
                    let body = format!("cvt.{name}.{kind}.{sign}{from} d, a;");
                    check(&body, &[register(from)], format.width(), &values, |t| {
                        format.integer(mode, value(t[0], from, is_signed))
                    });
                }
            }
        }
    }
}

#[test]
fn floats_to_integers_saturate() {
    for (kind, format) in [("f16", F16), ("bf16", BF16), ("f32", F32), ("f64", F64)] {
        let values = [floats(format)];
        for to in [8, 16, 32, 64] {
            if (kind, to) == ("bf16", 8) {
                continue;
            }
            for (sign, is_signed) in [('s', true), ('u', false)] {
                for (name, round) in INTEGRAL {
                    let body = format!("cvt.{name}.{sign}{to}.{kind} d, a;");
                    check(&body, &[format.width()], register(to), &values, |t| {
                        let exact = f64::from_bits(format.convert(F64, Rounding::Nearest, t[0]));
                        if exact.is_nan() {
                            // The manual's rule for NaN.
                            let zero = kind != "f64" && to != 64;
                            return if zero {
                                0
                            } else {
                                low(if is_signed { u64::MAX } else { 1 } << (to - 1), register(to))
                            };
                        }
                        let (least, most) = range(to, is_signed);
                        let rounded = round(exact);
                        // i128 holds every f64 that is within the range; the others are clamped by it.
                        let integer = (rounded as i128).clamp(least, most);
                        low(integer as u64, if is_signed { register(to) } else { to })
                    });
                }
            }
        }
    }
}

#[test]
fn floats_to_floats() {
    let formats = [("f16", F16), ("bf16", BF16), ("f32", F32), ("f64", F64)];
    for (from_kind, from) in formats {
        let values = [floats(from)];
        for (to_kind, to) in formats {
            if to.width() >= from.width() {
                if to.width() == from.width() {
                    continue;
                }
                let body = format!("cvt.{to_kind}.{from_kind} d, a;");
                check(&body, &[from.width()], to.width(), &values, |t| from.convert(to, Rounding::Nearest, t[0]));
                continue;
            }
            for (name, mode) in MODES {
                let body = format!("cvt.{name}.{to_kind}.{from_kind} d, a;");
                check(&body, &[from.width()], to.width(), &values, |t| from.convert(to, mode, t[0]));
            }
        }
    }
}

#[test]
fn floats_to_whole_floats() {
    for (kind, format) in [("f16", F16), ("f32", F32), ("f64", F64)] {
        let width = format.width();
        for (name, round) in INTEGRAL {
            check(&format!("cvt.{name}.{kind}.{kind} d, a;"), &[width], width, &[floats(format)], |t| {
                if format.is_nan(t[0]) {
                    return if kind == "f64" { format.quiet(t[0]) } else { format.nan() };
                }
                let exact = f64::from_bits(format.convert(F64, Rounding::Nearest, t[0]));
                F64.convert(format, Rounding::Nearest, round(exact).to_bits())
            });
        }
    }
}

#[test]
fn pairs_of_f32_to_packed_halves() {
    let edges: Vec<u64> = float_edges(8, 23).into_iter().step_by(2).collect();
    let pairs = pairs(&edges, 32);
    for (kind, format) in [("f16x2", F16), ("bf16x2", BF16)] {
        for (name, mode) in [("rn", Rounding::Nearest), ("rz", Rounding::Zero)] {
            // The first operand goes to the upper half.
            check(&format!("cvt.{name}.{kind}.f32 d, a, b;"), &[32; 2], 32, &pairs, |t| {
                F32.convert(format, mode, t[0]) << 16 | F32.convert(format, mode, t[1])
            });
        }
        check(&format!("cvt.rn.relu.{kind}.f32 d, a, b;"), &[32; 2], 32, &pairs, |t| {
            let relu = |bits: u64| {
                let half = F32.convert(format, Rounding::Nearest, bits);
                if !format.is_nan(half) && half & 0x8000 != 0 { 0 } else { half }
            };
            relu(t[0]) << 16 | relu(t[1])
        });
    }
}

#[test]
fn tf32_rounds_ties_away_from_zero() {
    check("cvt.rna.tf32.f32 d, a;", &[32], 32, &[floats(F32)], |t| {
        // Half of the last place of ten bits, added to the magnitude; an infinity stays one. A NaN is cut off.
        let half = if F32.is_nan(t[0]) { 0 } else { 0x1000 };
        t[0] & 0x8000_0000 | ((t[0] & 0x7fff_ffff) + half) & !0x1fff
    });
}

#[test]
fn ftz_and_sat_apply_to_conversions() {
    check("cvt.sat.f32.f32 d, a;", &[32], 32, &[floats(F32)], |t| F32.saturate(t[0]));
    check("cvt.ftz.f64.f32 d, a;", &[32], 64, &[vec![1, 0x8000_0001, 0x0080_0000]], |t| {
        F32.convert(F64, Rounding::Nearest, F32.flush(t[0]))
    });
    // Just below the least normal f32, and a little more.
    let mut values = floats(F64);
    values.extend([0x380f_ffff_ffff_ffff, 0x380f_ffff_f000_0000, 0x380f_ffff_e000_0000, 0x3810_0000_0000_0001]);
    values.extend([0xb80f_ffff_ffff_ffff, 0xb810_0000_0000_0000]);
    for (name, mode) in MODES {
        check(&format!("cvt.{name}.ftz.f32.f64 d, a;"), &[64], 32, std::slice::from_ref(&values), |t| {
            F32.flushed(mode, [], |wide, []| F64.convert(wide, mode, t[0]))
        });
    }
    check("cvt.ftz.f32.bf16 d, a;", &[16], 32, &[all_16()], |t| {
        if BF16.is_nan(t[0]) { F32.nan() } else { F32.flush(t[0] << 16) }
    });
    check("cvt.ftz.f32.f16 d, a;", &[16], 32, &[all_16()], |t| F16.convert(F32, Rounding::Nearest, t[0]));
    check("cvt.rn.ftz.f16.f32 d, a;", &[32], 16, &[floats(F32)], |t| {
        F32.convert(F16, Rounding::Nearest, F32.flush(t[0]))
    });
    check("cvt.ftz.f32.f32 d, a;", &[32], 32, &[floats(F32)], |t| {
        if F32.is_nan(t[0]) { F32.nan() } else { F32.flush(t[0]) }
    });
    check("cvt.f32.f32 d, a;", &[32], 32, &[floats(F32)], |t| t[0]);
    check("cvt.f64.f64 d, a;", &[64], 64, &[floats(F64)], |t| t[0]);
    check("cvt.rn.sat.f32.f64 d, a;", &[64], 32, &[floats(F64)], |t| {
        F32.saturate(F64.convert(F32, Rounding::Nearest, t[0]))
    });
    check("cvt.sat.f64.f64 d, a;", &[64], 64, &[floats(F64)], |t| F64.saturate(t[0]));
    check("cvt.rn.sat.f16.f32 d, a;", &[32], 16, &[floats(F32)], |t| {
        F16.saturate(F32.convert(F16, Rounding::Nearest, t[0]))
    });
}
