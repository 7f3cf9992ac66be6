//! Phases of mbarriers, step by step, as the PTX manual's rules have them.

use crate::harness::{Argument, launch};

/// Runs `body` in some threads, with an mbarrier at `mbar` that is not initialised; `put(word)` in it stores a word or a
/// predicate as the next of the results of thread 0.
fn results(threads: u32, body: &str) -> Vec<u32> {
    let mut count = 0;
    let mut lines = String::new();
    for line in body.lines() {
        match line.trim().strip_prefix("put(").and_then(|rest| rest.strip_suffix(");")) {
            Some(name) => {
                let value = if name.starts_with('p') {
                    lines += &format!("selp.u32 value, 1, 0, {name};\n");
                    "value"
                } else {
                    name
                };
                lines += &format!("@first st.global.u32 [out+{}], {value};\n", 4 * count);
                count += 1;
            }
            None => {
                lines += line;
                lines += "\n";
            }
        }
    }
    let text = format!(
        ".version 8.0
        .target sm_90
        .address_size 64
        .visible .entry test(.param .u64 p_out)
        {{
            .reg .b64 out, s<4>;
            .reg .b32 thread, value, r<4>;
            .reg .pred first, p<4>;
            .shared .align 8 .b64 mbar;
            mov.u32 thread, %tid.x;
            setp.eq.u32 first, thread, 0;
            ld.param.u64 out, [p_out];
            {lines}
            ret;
        }}"
    );
    let room = vec![0; 4 * count];
    let (memory, _) = launch(body, &text, threads, 0, &[Argument::Memory(&room)]);
    memory[0].chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
}

#[test]
fn phases_end_with_the_last_arrival() {
    let body = "mbarrier.init.shared::cta.b64 [mbar], 3;
        mbarrier.test_wait.parity.shared::cta.b64 p0, [mbar], 1;
        put(p0);
        mbarrier.test_wait.parity.shared::cta.b64 p0, [mbar], 0;
        put(p0);
        mbarrier.arrive.shared::cta.b64 s0, [mbar];
        mbarrier.pending_count.b64 r0, s0;
        put(r0);
        mbarrier.test_wait.shared::cta.b64 p0, [mbar], s0;
        put(p0);
        mbarrier.arrive.release.cta.shared::cta.b64 s1, [mbar], 2;
        mbarrier.pending_count.b64 r0, s1;
        put(r0);
        mbarrier.test_wait.shared.b64 p0, [mbar], s0;
        put(p0);
        mbarrier.test_wait.acquire.cta.shared::cta.b64 p0, [mbar], s1;
        put(p0);
        mbarrier.test_wait.parity.shared::cta.b64 p0, [mbar], 0;
        put(p0);
        mbarrier.test_wait.parity.shared::cta.b64 p0, [mbar], 1;
        put(p0);
        mbarrier.arrive.shared::cta.b64 _, [mbar], 3;
        mbarrier.try_wait.parity.shared::cta.b64 p0, [mbar], 1;
        put(p0);
        mbarrier.try_wait.parity.shared::cta.b64 p0, [mbar], 0, 20;
        put(p0);";
    assert_eq!(results(1, body), [1, 0, 3, 0, 2, 1, 1, 1, 0, 1, 0]);
}

#[test]
fn phases_wait_for_bytes_too() {
    let body = "mbarrier.init.shared::cta.b64 [mbar], 1;
        mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [mbar], 48;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [mbar], 16;
        mbarrier.test_wait.parity.shared::cta.b64 p0, [mbar], 0;
        put(p0);
        mbarrier.complete_tx.relaxed.cta.shared::cluster.b64 [mbar], 32;
        mbarrier.test_wait.parity.shared::cta.b64 p0, [mbar], 0;
        put(p0);
        mbarrier.complete_tx.relaxed.cta.shared::cluster.b64 [mbar], 32;
        mbarrier.test_wait.parity.shared::cta.b64 p0, [mbar], 0;
        put(p0);
        mbarrier.complete_tx.relaxed.cta.shared::cluster.b64 [mbar], 8;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [mbar], 8;
        mbarrier.test_wait.parity.shared::cta.b64 p0, [mbar], 1;
        put(p0);";
    assert_eq!(results(1, body), [0, 0, 1, 1]);
}

#[test]
fn those_who_drop_are_expected_no_more() {
    // 64 arrive at first; then 32 are left; then 8.
    let body = "@first mbarrier.init.shared::cta.b64 [mbar], 64;
        bar.sync 0;
        setp.lt.u32 p1, thread, 32;
        setp.lt.u32 p2, thread, 8;
        @p1 mbarrier.arrive.shared::cta.b64 _, [mbar];
        @!p1 mbarrier.arrive_drop.shared::cta.b64 s0, [mbar];
        WAIT: mbarrier.try_wait.parity.shared::cta.b64 p0, [mbar], 0;
        @!p0 bra WAIT;
        @!p1 ret;
        @first mbarrier.arrive.shared::cta.b64 s0, [mbar];
        @first mbarrier.pending_count.b64 r0, s0;
        put(r0);
        @first mbarrier.arrive_drop.release.cta.shared::cta.b64 _, [mbar], 24;
        bar.warp.sync -1;
        mbarrier.test_wait.parity.shared::cta.b64 p0, [mbar], 1;
        put(p0);
        @first mbarrier.arrive.shared::cta.b64 _, [mbar], 7;
        bar.warp.sync -1;
        mbarrier.test_wait.parity.shared::cta.b64 p0, [mbar], 1;
        put(p0);
        @p2 mbarrier.arrive.shared::cta.b64 _, [mbar];
        bar.warp.sync -1;
        mbarrier.test_wait.parity.shared::cta.b64 p0, [mbar], 0;
        put(p0);";
    assert_eq!(results(64, body), [32, 0, 1, 1]);
}
