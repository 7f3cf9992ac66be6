use crate::harness::{Random, apply, signed};

/// Runs `body` in whole warps; `expected` gets a warp's operands and returns its results.
fn check_warps(body: &str, operands: &[Vec<u64>], expected: impl Fn(&[&[u64]]) -> Vec<u64>) {
    let got = apply(body, &vec![32; operands.len()], 32, operands);
    for (warp, got) in got.chunks_exact(32).enumerate() {
        let of_warp: Vec<&[u64]> = operands.iter().map(|list| &list[32 * warp..32 * warp + 32]).collect();
        let wanted = expected(&of_warp);
        assert_eq!(got, wanted, "{body}: warp {warp}, operands {of_warp:x?}");
    }
}

fn random(seed: u64, most: u64) -> Vec<u64> {
    let mut random = Random::new(seed);
    (0..2048).map(|_| random.next() % most).collect()
}

/// The manual's own description of `shfl`.
fn shuffle(mode: &str, lane: i64, b: u64, c: u64) -> (usize, bool) {
    let (distance, clamp, segment) = ((b & 31) as i64, (c & 31) as i64, (c >> 8 & 31) as i64);
    let most = lane & segment | clamp & !segment;
    let least = lane & segment;
    let (from, inside) = match mode {
        "up" => (lane - distance, lane - distance >= most),
        "down" => (lane + distance, lane + distance <= most),
        "bfly" => (lane ^ distance, (lane ^ distance) <= most),
        _ => {
            let from = least | distance & !segment;
            (from, from <= most)
        }
    };
    (if inside { from } else { lane } as usize, inside)
}

#[test]
fn shuffles() {
    let values = random(1, 1 << 32);
    for mode in ["up", "down", "bfly", "idx"] {
        // C++ passes 0 for up and 31 for the others, and 32 - width for the segments.
        for width in [2u64, 8, 16, 32] {
            let c = (32 - width) << 8 | if mode == "up" { 0 } else { 31 };
            let distances =
                if mode == "idx" { random(2, 64) } else { random(3, 4).iter().map(|v| v % width).collect() };
            // All lanes of up, down and butterfly usually share a distance; any mixture is allowed.
            let body = format!("shfl.sync.{mode}.b32 d|p, a, b, {c}, 0xffffffff; @!p add.u32 d, d, 1;");
            check_warps(&body, &[values.clone(), distances], |warp| {
                (0..32)
                    .map(|lane| {
                        let (from, inside) = shuffle(mode, lane as i64, warp[1][lane], c);
                        (warp[0][from] + u64::from(!inside)) & 0xffff_ffff
                    })
                    .collect()
            });
        }
    }
}

#[test]
fn votes() {
    // Each warp has its own share of ones, so that all, any and none occur.
    let values: Vec<u64> = random(4, 64).iter().enumerate().map(|(at, v)| u64::from(*v < at as u64 / 32)).collect();
    let ballot = |warp: &[&[u64]]| (0..32).map(|lane| warp[0][lane] << lane).sum::<u64>();
    let set = "setp.ne.u32 p, a, 0;";
    let body = format!("{set} vote.sync.ballot.b32 d, p, 0xffffffff;");
    check_warps(&body, std::slice::from_ref(&values), |warp| vec![ballot(warp); 32]);
    for (name, oracle) in [
        ("all", (|bits| bits == 0xffff_ffff) as fn(u64) -> bool),
        ("any", |bits| bits != 0),
        ("uni", |bits| bits == 0 || bits == 0xffff_ffff),
    ] {
        let body = format!("{set} vote.sync.{name}.pred q, p, 0xffffffff; selp.b32 d, 1, 0, q;");
        check_warps(&body, std::slice::from_ref(&values), |warp| vec![u64::from(oracle(ballot(warp))); 32]);
        let body = format!("{set} vote.sync.{name}.pred q, !p, 0xffffffff; selp.b32 d, 1, 0, q;");
        check_warps(&body, std::slice::from_ref(&values), |warp| {
            vec![u64::from(oracle(ballot(warp) ^ 0xffff_ffff)); 32]
        });
    }
    // Two halves of a warp vote on their own.
    let body = format!(
        "{set} mov.u32 r0, %laneid; setp.lt.u32 q, r0, 16; selp.b32 r1, 0xffff, 0xffff0000, q;
         vote.sync.ballot.b32 d, p, r1;"
    );
    check_warps(&body, std::slice::from_ref(&values), |warp| {
        (0..32).map(|lane| ballot(warp) & if lane < 16 { 0xffff } else { 0xffff_0000 }).collect()
    });
}

#[test]
fn matches() {
    let values = random(5, 5);
    check_warps("match.any.sync.b32 d, a, 0xffffffff;", std::slice::from_ref(&values), |warp| {
        (0..32).map(|lane| (0..32).map(|other| u64::from(warp[0][other] == warp[0][lane]) << other).sum()).collect()
    });
    let body = "match.all.sync.b32 d|p, a, 0xffffffff; selp.b32 r0, 1, 0, p; and.b32 d, d, 2; or.b32 d, d, r0;";
    let mut values = random(6, 2);
    values[..64].fill(7);
    check_warps(body, &[values], |warp| {
        let same = warp[0].iter().all(|value| *value == warp[0][0]);
        vec![if same { 3 } else { 0 }; 32]
    });
}

#[test]
fn reductions() {
    let values = random(7, 1 << 32);
    let fold = |warp: &[&[u64]], combine: &dyn Fn(u64, u64) -> u64| {
        vec![warp[0].iter().copied().reduce(combine).expect("32 lanes") & 0xffff_ffff; 32]
    };
    type Combine = fn(u64, u64) -> u64;
    let cases: [(&str, Combine); 8] = [
        ("add.u32", |a, b| a.wrapping_add(b)),
        ("min.u32", u64::min),
        ("max.u32", u64::max),
        ("min.s32", |a, b| if signed(a, 32) < signed(b, 32) { a } else { b }),
        ("max.s32", |a, b| if signed(a, 32) > signed(b, 32) { a } else { b }),
        ("and.b32", |a, b| a & b),
        ("or.b32", |a, b| a | b),
        ("xor.b32", |a, b| a ^ b),
    ];
    for (name, combine) in cases {
        let body = format!("redux.sync.{name} d, a, 0xffffffff;");
        check_warps(&body, std::slice::from_ref(&values), |warp| fold(warp, &combine));
    }
}

#[test]
fn who_is_there() {
    let values = random(8, 2);
    let body = "setp.ne.u32 p, a, 0; mov.u32 d, 0; @p activemask.b32 d;";
    check_warps(body, std::slice::from_ref(&values), |warp| {
        let mask: u64 = (0..32).map(|lane| warp[0][lane] << lane).sum();
        (0..32).map(|lane| if warp[0][lane] == 1 { mask } else { 0 }).collect()
    });
    let body = "elect.sync r0|p, 0xffffffff; selp.b32 d, 100, 0, p; add.u32 d, d, r0;";
    check_warps(body, std::slice::from_ref(&values), |_| (0..32).map(|lane| if lane == 0 { 100 } else { 0 }).collect());
    for (name, oracle) in [
        ("%laneid", (|lane| lane) as fn(u64) -> u64),
        ("%lanemask_eq", |lane| 1 << lane),
        ("%lanemask_lt", |lane| (1 << lane) - 1),
        ("%lanemask_le", |lane| (2 << lane) - 1),
        ("%lanemask_gt", |lane| 0xffff_ffff & !((2 << lane) - 1)),
        ("%lanemask_ge", |lane| 0xffff_ffff & !((1 << lane) - 1)),
    ] {
        check_warps(&format!("mov.u32 d, {name};"), std::slice::from_ref(&values), |_| (0..32).map(oracle).collect());
    }
}

#[test]
fn lanes_that_part_meet_again() {
    // Each lane loops as often as its operand says, leaving early if that is odd; then all vote together.
    let values = random(9, 20);
    let body = "mov.u32 d, 0; mov.u32 r0, 0;
        NEXT: setp.ge.u32 p, r0, a; @p bra DONE;
        and.b32 r1, r0, a; setp.eq.u32 q, r1, 5; @q bra COLD;
        BACK: add.u32 d, d, r0; add.u32 r0, r0, 1; bra NEXT;
        COLD: add.u32 d, d, 1000; bra BACK;
        DONE: activemask.b32 r3; setp.eq.u32 p, r3, 0xffffffff; @!p mov.u32 d, 0xdead;";
    check_warps(body, &[values], |warp| {
        (0..32)
            .map(|lane| (0..warp[0][lane]).map(|step| step + if step & warp[0][lane] == 5 { 1000 } else { 0 }).sum())
            .collect()
    });
}
