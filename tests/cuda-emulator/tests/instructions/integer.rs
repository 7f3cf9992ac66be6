use crate::harness::{all_16, check, integer_edges, integer_pairs, low, signed, some, triples};

type Oracle = fn(i128, i128) -> i128;

fn value(bits: u64, width: u32, is_signed: bool) -> i128 {
    if is_signed { signed(bits, width) } else { i128::from(low(bits, width)) }
}

fn low_bits(value: i128, width: u32) -> u64 {
    low(value as u64, width)
}

#[test]
fn two_operands_wrap_to_their_width() {
    let operations: [(&str, Oracle); 5] = [
        ("add", |a, b| a + b),
        ("sub", |a, b| a - b),
        ("mul.lo", |a, b| a.wrapping_mul(b)),
        ("min", |a, b| a.min(b)),
        ("max", |a, b| a.max(b)),
    ];
    for width in [16, 32, 64] {
        let pairs = integer_pairs(width);
        for (sign, is_signed) in [('s', true), ('u', false)] {
            for (name, oracle) in operations {
                check(&format!("{name}.{sign}{width} d, a, b;"), &[width; 2], width, &pairs, |tuple| {
                    low_bits(oracle(value(tuple[0], width, is_signed), value(tuple[1], width, is_signed)), width)
                });
            }
        }
    }
}

#[test]
fn products_keep_the_half_that_is_asked_for() {
    for width in [16, 32, 64] {
        let pairs = integer_pairs(width);
        for (sign, is_signed) in [('s', true), ('u', false)] {
            let whole = move |tuple: &[u64]| {
                if is_signed {
                    (signed(tuple[0], width) * signed(tuple[1], width)) as u128
                } else {
                    u128::from(tuple[0]) * u128::from(tuple[1])
                }
            };
            check(&format!("mul.hi.{sign}{width} d, a, b;"), &[width; 2], width, &pairs, |tuple| {
                low((whole(tuple) >> width) as u64, width)
            });
            if width < 64 {
                check(&format!("mul.wide.{sign}{width} d, a, b;"), &[width; 2], 2 * width, &pairs, |tuple| {
                    low(whole(tuple) as u64, 2 * width)
                });
                let mut triples = pairs.clone();
                let addend = pairs[0].iter().rev().map(|value| value.wrapping_mul(0x1_0001_0001)).collect::<Vec<u64>>();
                triples.push(addend.iter().map(|value| low(*value, 2 * width)).collect());
                let widths = [width, width, 2 * width];
                check(&format!("mad.wide.{sign}{width} d, a, b, c;"), &widths, 2 * width, &triples, |tuple| {
                    low((whole(tuple) as u64).wrapping_add(tuple[2]), 2 * width)
                });
            }
        }
    }
}

#[test]
fn quotients_and_remainders_are_those_of_truncation() {
    for width in [16, 32, 64] {
        let mut pairs = integer_pairs(width);
        // Division by zero has no result that PTX promises.
        let keep: Vec<bool> = pairs[1].iter().map(|divisor| *divisor != 0).collect();
        for list in &mut pairs {
            let mut at = 0;
            list.retain(|_| {
                at += 1;
                keep[at - 1]
            });
        }
        for (sign, is_signed) in [('s', true), ('u', false)] {
            for (name, oracle) in [("div", (|a, b| a / b) as Oracle), ("rem", |a, b| a % b)] {
                check(&format!("{name}.{sign}{width} d, a, b;"), &[width; 2], width, &pairs, |tuple| {
                    low_bits(oracle(value(tuple[0], width, is_signed), value(tuple[1], width, is_signed)), width)
                });
            }
        }
    }
}

#[test]
fn three_operands_multiply_and_add() {
    for width in [16, 32, 64] {
        let triples = triples(&integer_edges(width), width);
        for (sign, is_signed) in [('s', true), ('u', false)] {
            let product =
                move |tuple: &[u64]| value(tuple[0], width, is_signed).wrapping_mul(value(tuple[1], width, is_signed));
            check(&format!("mad.lo.{sign}{width} d, a, b, c;"), &[width; 3], width, &triples, |tuple| {
                low_bits(product(tuple).wrapping_add(i128::from(tuple[2])), width)
            });
            check(&format!("mad.hi.{sign}{width} d, a, b, c;"), &[width; 3], width, &triples, |tuple| {
                let product = if is_signed {
                    (signed(tuple[0], width) * signed(tuple[1], width)) as u128
                } else {
                    u128::from(tuple[0]) * u128::from(tuple[1])
                };
                low(((product >> width) as u64).wrapping_add(tuple[2]), width)
            });
            check(&format!("sad.{sign}{width} d, a, b, c;"), &[width; 3], width, &triples, |tuple| {
                let difference = value(tuple[0], width, is_signed) - value(tuple[1], width, is_signed);
                low_bits(difference.abs() + i128::from(tuple[2]), width)
            });
        }
    }
}

#[test]
fn saturation_stops_at_the_ends_of_s32() {
    let pairs = integer_pairs(32);
    let clamp = |value: i128| low_bits(value.clamp(i128::from(i32::MIN), i128::from(i32::MAX)), 32);
    check("add.sat.s32 d, a, b;", &[32; 2], 32, &pairs, |t| clamp(signed(t[0], 32) + signed(t[1], 32)));
    check("sub.sat.s32 d, a, b;", &[32; 2], 32, &pairs, |t| clamp(signed(t[0], 32) - signed(t[1], 32)));
    let triples = triples(&integer_edges(32), 32);
    check("mad.hi.sat.s32 d, a, b, c;", &[32; 3], 32, &triples, |t| {
        clamp(((signed(t[0], 32) * signed(t[1], 32)) >> 32) + signed(t[2], 32))
    });
}

#[test]
fn products_of_24_bits() {
    let pairs = integer_pairs(32);
    for (sign, is_signed) in [('s', true), ('u', false)] {
        for (half, shift) in [("lo", 0), ("hi", 16)] {
            check(&format!("mul24.{half}.{sign}32 d, a, b;"), &[32; 2], 32, &pairs, |t| {
                low_bits((value(t[0], 24, is_signed) * value(t[1], 24, is_signed)) >> shift, 32)
            });
        }
    }
}

#[test]
fn one_operand() {
    for width in [16, 32, 64] {
        let values = [if width == 16 { all_16() } else { some(&integer_edges(width), width) }];
        check(&format!("neg.s{width} d, a;"), &[width], width, &values, |t| low_bits(-signed(t[0], width), width));
        check(&format!("abs.s{width} d, a;"), &[width], width, &values, |t| low_bits(signed(t[0], width).abs(), width));
    }
}

#[test]
fn carries_chain_words_into_longer_numbers() {
    let pairs = integer_pairs(64);
    let split = "mov.b64 {r0, r1}, a; mov.b64 {r2, r3}, b;";
    let join = "mov.b64 d, {r0, r1};";
    for (first, second, oracle) in [
        ("add.cc.u32", "addc.u32", u64::wrapping_add as fn(u64, u64) -> u64),
        ("sub.cc.u32", "subc.u32", u64::wrapping_sub),
    ] {
        let body = format!("{split} {first} r0, r0, r2; {second} r1, r1, r3; {join}");
        check(&body, &[64; 2], 64, &pairs, |t| oracle(t[0], t[1]));
    }
    // 64 x 64 -> 64 from 32-bit words, with the carry of the low product.
    let body = format!(
        "{split} mul.lo.u32 h32, r0, r2; mul.hi.u32 t32, r0, r2; mad.lo.cc.u32 t32, r0, r3, t32;
         madc.hi.u32 z32, r0, r3, 0; mad.lo.u32 t32, r1, r2, t32; mov.b64 d, {{h32, t32}};"
    );
    let body = format!("{{ .reg .b32 h32, t32, z32; {body} }}");
    check(&body, &[64; 2], 64, &pairs, |t| t[0].wrapping_mul(t[1]));
    // The carry out of the upper word, as a number.
    let body = format!("{split} add.cc.u32 r0, r0, r2; addc.cc.u32 r1, r1, r3; addc.u32 d, 0, 0;");
    check(&body, &[64; 2], 32, &pairs, |t| u64::from(t[0].checked_add(t[1]).is_none()));
}

#[test]
fn dot_products_of_bytes() {
    let triples = triples(&integer_edges(32), 32);
    for (a_sign, a_signed) in [('s', true), ('u', false)] {
        for (b_sign, b_signed) in [('s', true), ('u', false)] {
            check(&format!("dp4a.{a_sign}32.{b_sign}32 d, a, b, c;"), &[32; 3], 32, &triples, |t| {
                let mut sum = i128::from(t[2]);
                for byte in 0..4 {
                    sum += value(t[0] >> (8 * byte), 8, a_signed) * value(t[1] >> (8 * byte), 8, b_signed);
                }
                low_bits(sum, 32)
            });
            for (half, start) in [("lo", 0), ("hi", 2)] {
                check(&format!("dp2a.{half}.{a_sign}32.{b_sign}32 d, a, b, c;"), &[32; 3], 32, &triples, |t| {
                    let mut sum = i128::from(t[2]);
                    for at in 0..2 {
                        let byte = value(t[1] >> (8 * (start + at)), 8, b_signed);
                        sum += value(t[0] >> (16 * at), 16, a_signed) * byte;
                    }
                    low_bits(sum, 32)
                });
            }
        }
    }
}

#[test]
fn packed_halves_are_independent() {
    let pairs = integer_pairs(32);
    for (kind, is_signed) in [("s16x2", true), ("u16x2", false)] {
        for (name, oracle) in [("add", (|a, b| a + b) as Oracle), ("min", |a, b| a.min(b)), ("max", |a, b| a.max(b))] {
            check(&format!("{name}.{kind} d, a, b;"), &[32; 2], 32, &pairs, |t| {
                let half = |shift: u32| {
                    let (a, b) = (value(t[0] >> shift, 16, is_signed), value(t[1] >> shift, 16, is_signed));
                    low_bits(oracle(a, b), 16)
                };
                half(0) | half(16) << 16
            });
        }
    }
}
