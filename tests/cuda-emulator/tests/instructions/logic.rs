use crate::harness::{all_16, check, integer_edges, integer_pairs, low, pairs, product, signed, some, triples};

#[test]
fn bitwise_operations() {
    for width in [16, 32, 64] {
        let pairs = integer_pairs(width);
        for (name, oracle) in
            [("and", (|a, b| a & b) as fn(u64, u64) -> u64), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)]
        {
            check(&format!("{name}.b{width} d, a, b;"), &[width; 2], width, &pairs, |t| oracle(t[0], t[1]));
        }
        let values = [if width == 16 { all_16() } else { some(&integer_edges(width), width) }];
        check(&format!("not.b{width} d, a;"), &[width], width, &values, |t| low(!t[0], width));
        check(&format!("cnot.b{width} d, a;"), &[width], width, &values, |t| u64::from(t[0] == 0));
    }
}

#[test]
fn counting_and_reversing_bits() {
    for width in [32, 64] {
        let values = [some(&integer_edges(width), width)];
        let bit = |value: u64, at: u32| value >> at & 1 == 1;
        check(&format!("popc.b{width} d, a;"), &[width], 32, &values, |t| {
            (0..width).filter(|at| bit(t[0], *at)).count() as u64
        });
        check(&format!("clz.b{width} d, a;"), &[width], 32, &values, |t| {
            (0..width).rev().take_while(|at| !bit(t[0], *at)).count() as u64
        });
        check(&format!("brev.b{width} d, a;"), &[width], width, &values, |t| {
            (0..width).map(|at| u64::from(bit(t[0], at)) << (width - 1 - at)).sum()
        });
        for (sign, is_signed) in [('s', true), ('u', false)] {
            let highest = move |value: u64| {
                let value = if is_signed && bit(value, width - 1) { !value } else { value };
                (0..width).rev().find(|at| bit(value, *at))
            };
            check(&format!("bfind.{sign}{width} d, a;"), &[width], 32, &values, |t| {
                highest(t[0]).map_or(0xffff_ffff, u64::from)
            });
            check(&format!("bfind.shiftamt.{sign}{width} d, a;"), &[width], 32, &values, |t| {
                highest(t[0]).map_or(0xffff_ffff, |at| u64::from(width - 1 - at))
            });
        }
    }
}

#[test]
fn shifts_clamp_their_amount() {
    let amounts: Vec<u64> = (0..70).chain([127, 128, 255, 256, 0x8000_0000, 0xffff_ffff]).collect();
    for width in [16, 32, 64] {
        let tuples = product(&[&integer_edges(width), &amounts]);
        let over = |amount: u64| amount >= u64::from(width);
        check(&format!("shl.b{width} d, a, b;"), &[width, 32], width, &tuples, |t| {
            if over(t[1]) { 0 } else { low(t[0] << t[1], width) }
        });
        check(&format!("shr.u{width} d, a, b;"), &[width, 32], width, &tuples, |t| {
            if over(t[1]) { 0 } else { t[0] >> t[1] }
        });
        check(&format!("shr.s{width} d, a, b;"), &[width, 32], width, &tuples, |t| {
            low((signed(t[0], width) >> t[1].min(100)) as u64, width)
        });
    }
}

#[test]
fn funnel_shifts_take_32_bits_of_64() {
    let amounts: Vec<u64> = (0..70).chain([0xffff_ffff]).collect();
    let edges = integer_edges(32);
    let few: Vec<u64> = edges.iter().copied().step_by(3).collect();
    let tuples = product(&[&few, &few, &amounts]);
    for (mode, clip) in [("wrap", (|n| n & 31) as fn(u64) -> u64), ("clamp", |n| n.min(32))] {
        check(&format!("shf.l.{mode}.b32 d, a, b, c;"), &[32; 3], 32, &tuples, |t| {
            let n = clip(t[2]);
            low((u128::from(t[1] << 32 | t[0]) << n >> 32) as u64, 32)
        });
        check(&format!("shf.r.{mode}.b32 d, a, b, c;"), &[32; 3], 32, &tuples, |t| {
            let n = clip(t[2]);
            low((u128::from(t[1] << 32 | t[0]) >> n) as u64, 32)
        });
    }
}

#[test]
fn lop3_is_its_table() {
    // All eight combinations of bits are in these three constants, so every table is tested in full.
    let tuples = [vec![0xf0, 0xffff_0000], vec![0xcc, 0xff00_ff00], vec![0xaa, 0xf0f0_f0f0]];
    for table in 0..256u64 {
        check(&format!("lop3.b32 d, a, b, c, {table};"), &[32; 3], 32, &tuples, |t| {
            (0..32)
                .map(|at| {
                    let index = (t[0] >> at & 1) << 2 | (t[1] >> at & 1) << 1 | t[2] >> at & 1;
                    (table >> index & 1) << at
                })
                .sum()
        });
    }
}

#[test]
fn prmt_picks_bytes() {
    let selectors: Vec<u64> = (0..1 << 16).collect();
    let count = selectors.len();
    let tuples = [vec![0x8373_6f80; count], vec![0x0192_f37f; count], selectors];
    let byte = |t: &[u64], select: u64| {
        let all = t[1] << 32 | t[0];
        let byte = all >> (8 * (select & 7)) & 0xff;
        if select & 8 == 0 {
            byte
        } else if byte & 0x80 != 0 {
            0xff
        } else {
            0
        }
    };
    check("prmt.b32 d, a, b, c;", &[32; 3], 32, &tuples, |t| {
        (0..4).map(|at| byte(t, t[2] >> (4 * at) & 15) << (8 * at)).sum()
    });
    // The table of the PTX manual: for selectors 0 to 3, the bytes of the result from the highest to the lowest.
    let modes = [
        ("f4e", ["3210", "4321", "5432", "6543"]),
        ("b4e", ["5670", "6701", "7012", "0123"]),
        ("rc8", ["0000", "1111", "2222", "3333"]),
        ("ecl", ["3210", "3211", "3222", "3333"]),
        ("ecr", ["0000", "1110", "2210", "3210"]),
        ("rc16", ["1010", "3232", "1010", "3232"]),
    ];
    for (mode, rows) in modes {
        let tuples = [vec![0x3322_1100; 4], vec![0x7766_5544; 4], vec![0, 1, 2, 3]];
        check(&format!("prmt.b32.{mode} d, a, b, c;"), &[32; 3], 32, &tuples, |t| {
            rows[t[2] as usize].bytes().fold(0, |word, digit| (word << 8) + u64::from(digit - b'0') * 0x11)
        });
    }
}

#[test]
fn bit_fields() {
    // What PTX allows: of larger ones, an H200 takes the lowest byte for 32 bits, but not for 64.
    let positions: Vec<u64> = [0, 1, 2, 7, 15, 16, 30, 31, 32, 33, 62, 63, 64, 65, 127, 128, 255].to_vec();
    for width in [32, 64] {
        let few: Vec<u64> = integer_edges(width).into_iter().step_by(2).collect();
        let tuples = product(&[&few, &positions, &positions]);
        for (sign, is_signed) in [('s', true), ('u', false)] {
            check(&format!("bfe.{sign}{width} d, a, b, c;"), &[width, 32, 32], width, &tuples, |t| {
                // The manual's own loop.
                let (position, length) = (t[1] as u32, t[2] as u32);
                let most = width - 1;
                let fill = if !is_signed || length == 0 { 0 } else { t[0] >> (position + length - 1).min(most) & 1 };
                (0..width)
                    .map(|at| {
                        let inside = at < length && position + at <= most;
                        (if inside { t[0] >> (position + at) & 1 } else { fill }) << at
                    })
                    .sum()
            });
        }
        let few: Vec<u64> = few.into_iter().step_by(2).collect();
        let tuples = product(&[&few, &few, &positions, &positions]);
        check(&format!("bfi.b{width} d, a, b, c, e;"), &[width, width, 32, 32], width, &tuples, |t| {
            let (position, length) = (t[2] as u32, t[3] as u32);
            let mut out = t[1];
            for at in 0..length {
                if position + at < width {
                    let bit = t[0].checked_shr(at).unwrap_or(0) & 1;
                    out = out & !(1 << (position + at)) | bit << (position + at);
                }
            }
            out
        });
    }
}

#[test]
fn masks_and_extension() {
    let amounts: Vec<u64> = (0..70).chain([255, 0xffff_ffff]).collect();
    let tuples = product(&[&amounts, &amounts]);
    for (mode, clip) in [("wrap", (|n| n & 31) as fn(u64) -> u64), ("clamp", |n| n.min(32))] {
        check(&format!("bmsk.{mode}.b32 d, a, b;"), &[32; 2], 32, &tuples, |t| {
            let (start, size) = (clip(t[0]), clip(t[1]));
            (0..32).filter(|at| *at >= start && *at < start + size).map(|at| 1 << at).sum()
        });
        let tuples = product(&[&integer_edges(32), &amounts]);
        for (sign, is_signed) in [('s', true), ('u', false)] {
            check(&format!("szext.{mode}.{sign}32 d, a, b;"), &[32; 2], 32, &tuples, |t| match clip(t[1]) as u32 {
                0 => 0,
                width if is_signed => low(signed(t[0], width) as u64, 32),
                width => low(t[0], width),
            });
        }
    }
}

#[test]
fn fns_finds_the_nth_bit() {
    let words = integer_edges(32);
    let few: Vec<u64> = words.iter().copied().step_by(3).collect();
    let bases: Vec<u64> = vec![0, 1, 5, 16, 30, 31];
    let offsets: Vec<u64> = (-5i32..=5).chain([32, -32]).map(|offset| u64::from(offset as u32)).collect();
    let tuples = product(&[&few, &bases, &offsets]);
    check("fns.b32 d, a, b, c;", &[32; 3], 32, &tuples, |t| {
        let (base, offset) = (t[1] as i64, signed(t[2], 32) as i64);
        let set = |at: &i64| t[0] >> at & 1 == 1;
        let found = match offset {
            0 => Some(base).filter(set),
            1.. => (base..32).filter(set).nth(offset as usize - 1),
            _ => (0..=base).rev().filter(set).nth((-offset) as usize - 1),
        };
        found.map_or(0xffff_ffff, |at| at as u64)
    });
}

#[test]
fn predicates_compute_and_guard() {
    let tuples = pairs(&[0, 1], 1);
    let load = "setp.ne.b32 p, a, 0; setp.ne.b32 q, b, 0;";
    for (name, oracle) in [("and", (|a, b| a & b) as fn(u64, u64) -> u64), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)]
    {
        let body = format!("{load} {name}.pred p, p, q; selp.b32 d, 1, 0, p;");
        check(&body, &[32; 2], 32, &tuples, |t| oracle(t[0], t[1]));
    }
    check(&format!("{load} not.pred p, p; selp.b32 d, 1, 0, p;"), &[32; 2], 32, &tuples, |t| 1 - t[0]);
    check(&format!("{load} mov.pred p, q; selp.b32 d, 1, 0, p;"), &[32; 2], 32, &tuples, |t| t[1]);
    let body = format!("{load} mov.u32 d, 0; @p add.u32 d, d, 1; @!q add.u32 d, d, 2;");
    check(&body, &[32; 2], 32, &tuples, |t| t[0] + 2 * (1 - t[1]));
    let body = format!("{load} lop3.or.b32 _|p, a, b, 0, 0xc0, q; selp.b32 d, 1, 0, p;");
    check(&body, &[32; 2], 32, &tuples, |t| (t[0] & t[1]) | t[1]);
}

#[test]
fn moves_pack_and_unpack() {
    let edges = integer_edges(64);
    let values = [some(&edges, 64)];
    let body = "mov.b64 {h0, h1, h2, h3}, a; mov.b64 d, {h3, h2, h1, h0};";
    check(body, &[64], 64, &values, |t| (0..4).map(|at| (t[0] >> (16 * at) & 0xffff) << (16 * (3 - at))).sum());
    check("mov.b64 {_, r1}, a; mov.b32 d, r1;", &[64], 32, &values, |t| t[0] >> 32);
    let triples = triples(&integer_edges(32), 32);
    check("mov.b64 d, {a, b};", &[32; 3], 64, &triples, |t| t[0] | t[1] << 32);
}
