//! A pipeline as kernels for sm_90a have it, one warpgroup that loads and one that multiplies, and what is said when a
//! part of it is missing or wrong.

use cuda_emulator::{Architecture, Counts, Fault, FaultKind, Launch, Machine, Module, Swizzle, TensorMap};

/// Tiles along the summed axis.
const TILES: usize = 5;

/// `c = a * b^T`, 64 by 64 of f32, where a and b are 64 by 64 `TILES` of bf16. The comments name lines.
const KERNEL: &str = "
.version 8.0
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 memory[];
.visible .entry pipeline(.param .align 64 .b8 p_a[128], .param .align 64 .b8 p_b[128], .param .u64 p_c, .param .u32 p_tiles)
.maxntid 256
.maxnreg 128
{
    .reg .b64 a, b, c, a_desc, b_desc, l<4>;
    .reg .b32 thread, group, room, full, empty, mbar, stage, phase, tile, tiles, at, base, word, r<8>;
    .reg .f32 d<32>;
    .reg .pred loads, first, done, more, add;
    mov.u32 thread, %tid.x;
    shr.u32 group, thread, 7;
    setp.eq.u32 loads, group, 1;
    ld.param.u32 tiles, [p_tiles];
    mov.u32 room, memory;
    add.u32 full, room, 32768;
    add.u32 empty, room, 32784;
    setp.eq.u32 first, thread, 0;
    @!first bra READY;
    mbarrier.init.shared::cta.b64 [full], 1;         // init
    mbarrier.init.shared::cta.b64 [full+8], 1;
    mbarrier.init.shared::cta.b64 [empty], 1;
    mbarrier.init.shared::cta.b64 [empty+8], 1;
    fence.mbarrier_init.release.cluster;
READY:
    bar.sync 0;                                      // begin
    mov.u32 stage, 0;
    mov.u32 phase, 0;
    mov.u32 tile, 0;
    @loads bra LOAD;

    setmaxnreg.inc.sync.aligned.u32 232;             // more
MULTIPLY:
    mad.lo.u32 mbar, stage, 8, full;
WAIT_FULL:
    mbarrier.try_wait.parity.shared::cta.b64 done, [mbar], phase; // wait full
    @!done bra WAIT_FULL;
    mad.lo.u32 base, stage, 16384, room;
    shr.u32 at, base, 4;
    cvt.u64.u32 a_desc, at;
    mov.b64 l0, 0x4000004000010000;
    or.b64 a_desc, a_desc, l0;
    add.u64 b_desc, a_desc, 512;
    setp.ne.u32 add, tile, 0;
    wgmma.fence.sync.aligned;                        // fence
    wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15, d16, d17, d18, d19, d20, d21, d22, d23, d24, d25, d26, d27, d28, d29, d30, d31}, a_desc, b_desc, add, 1, 1, 0, 0; // product
    add.u64 a_desc, a_desc, 2;
    add.u64 b_desc, b_desc, 2;
    wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15, d16, d17, d18, d19, d20, d21, d22, d23, d24, d25, d26, d27, d28, d29, d30, d31}, a_desc, b_desc, 1, 1, 1, 0, 0;
    add.u64 a_desc, a_desc, 2;
    add.u64 b_desc, b_desc, 2;
    wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15, d16, d17, d18, d19, d20, d21, d22, d23, d24, d25, d26, d27, d28, d29, d30, d31}, a_desc, b_desc, 1, 1, 1, 0, 0;
    add.u64 a_desc, a_desc, 2;
    add.u64 b_desc, b_desc, 2;
    wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13, d14, d15, d16, d17, d18, d19, d20, d21, d22, d23, d24, d25, d26, d27, d28, d29, d30, d31}, a_desc, b_desc, 1, 1, 1, 0, 0; // last product
    wgmma.commit_group.sync.aligned;                 // commit
    wgmma.wait_group.sync.aligned 0;                 // wait product
    mad.lo.u32 mbar, stage, 8, empty;
    @first mbarrier.arrive.shared::cta.b64 _, [mbar]; // free
    xor.b32 stage, stage, 1;
    setp.eq.u32 done, stage, 0;
    @done xor.b32 phase, phase, 1;
    add.u32 tile, tile, 1;
    setp.lt.u32 more, tile, tiles;
    @more bra MULTIPLY;

    // Out over shared memory: row (thread / 32) * 16 + lane / 4, columns 2 * (lane % 4).
    bar.sync 1, 128;                                 // all have multiplied
    shr.u32 r0, thread, 5; and.b32 r1, thread, 31; shr.u32 r2, r1, 2; and.b32 r3, r1, 3;
    mad.lo.u32 r2, r0, 16, r2;
    shl.b32 r2, r2, 8;
    mad.lo.u32 at, r3, 8, r2;
    add.u32 at, at, room;
STORES
    fence.proxy.async.shared::cta;                   // proxy fence
    bar.sync 1, 128;                                 // all have stored
    @!first bra END;
    ld.param.u64 c, [p_c];
    cp.async.bulk.global.shared::cta.bulk_group [c], [room], 16384; // copy out
    cp.async.bulk.commit_group;                      // commit out
    cp.async.bulk.wait_group.read 0;                 // wait out
    bra END;

LOAD:
    setmaxnreg.dec.sync.aligned.u32 24;              // fewer
    setp.eq.u32 first, thread, 128;
    @!first bra END;                                 // others end
    mov.b64 a, p_a; cvta.param.u64 a, a;             // map
    mov.b64 b, p_b; cvta.param.u64 b, b;
    mov.u32 phase, 1;
NEXT:
    mad.lo.u32 mbar, stage, 8, empty;
WAIT_EMPTY:
    mbarrier.try_wait.parity.shared::cta.b64 done, [mbar], phase; // wait empty
    @!done bra WAIT_EMPTY;
    mad.lo.u32 mbar, stage, 8, full;
    mad.lo.u32 base, stage, 16384, room;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [mbar], 16384; // expect
    shl.b32 at, tile, 6;
    mov.u32 word, 0;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [base], [a, {at, word}], [mbar]; // load a
    add.u32 base, base, 8192;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [base], [b, {at, word}], [mbar]; // load b
    xor.b32 stage, stage, 1;
    setp.eq.u32 done, stage, 0;
    @done xor.b32 phase, phase, 1;
    add.u32 tile, tile, 1;
    setp.lt.u32 more, tile, tiles;                   // next tile
    @more bra NEXT;
END:
    ret;                                             // end
}";

fn kernel() -> String {
    let stores: String = (0..16)
        .map(|pair| {
            // Pairs of columns; every other one 8 rows further on.
            let offset = pair / 2 * 32 + pair % 2 * 8 * 256;
            format!("    st.shared.v2.f32 [at+{offset}], {{d{}, d{}}}; // store {pair}\n", 2 * pair, 2 * pair + 1)
        })
        .collect();
    // B's tile lies 8192 bytes after A's. Rows of 128 bytes, swizzled over 128, in groups of 8.
    KERNEL.replace("STORES\n", &stores).replace("0x4000004000010000", &format!("{}", 1u64 << 62 | 64 << 32 | 1 << 16))
}

fn value(matrix: usize, row: usize, k: usize) -> f32 {
    ((row * 7 + k * 3 + matrix * 5) % 11) as f32 - 5.0
}

/// Runs a text; returns c.
fn run(text: &str) -> Result<(Vec<f32>, Counts), Fault> {
    run_with_boxes(text, [64, 64])
}

fn run_with_boxes(text: &str, extents: [u32; 2]) -> Result<(Vec<f32>, Counts), Fault> {
    let module = Module::parse(text).unwrap_or_else(|error| panic!("{error}"));
    let machine = Machine::new(Architecture::parse("sm_90a").expect("an architecture"));
    machine.set_step_budget(100_000);
    let mut parameters = Vec::new();
    for matrix in 0..2 {
        let columns = 64 * TILES;
        let bytes: Vec<u8> = (0..64 * columns)
            .flat_map(|at| half::bf16::from_f32(value(matrix, at / columns, at % columns)).to_le_bytes())
            .collect();
        let address = machine.allocate(bytes.len() as u64).expect("room");
        machine.write(address, &bytes).expect("inside");
        let map = TensorMap {
            address,
            element_bytes: 2,
            extents: vec![columns as u64, 64],
            strides: vec![2 * columns as u64],
            box_extents: extents.to_vec(),
            swizzle: Swizzle::Bytes128,
        };
        parameters.extend(map.encode().expect("a map as the driver allows"));
    }
    let c = machine.allocate(16384).expect("room");
    parameters.extend(c.to_le_bytes());
    parameters.extend((TILES as u32).to_le_bytes());
    let launch = Launch { grid: [1; 3], block: [256, 1, 1], shared_bytes: 33 << 10, parameters: &parameters };
    let counts = machine.launch(&module, module.function("pipeline").expect("defined"), launch)?;
    let mut bytes = vec![0; 16384];
    machine.read(c, &mut bytes).expect("inside");
    let c = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four bytes"))).collect();
    Ok((c, counts))
}

#[test]
fn the_whole_pipeline_multiplies() {
    let (c, counts) = run(&kernel()).unwrap_or_else(|fault| panic!("{fault}"));
    for row in 0..64 {
        for column in 0..64 {
            let wanted: f32 = (0..64 * TILES).map(|k| value(0, row, k) * value(1, column, k)).sum();
            assert_eq!(c[64 * row + column], wanted, "({row}, {column})");
        }
    }
    assert_eq!(counts.matrix["m64n64k16.f32.bf16.bf16"], 4 * TILES as u64);
    assert_eq!((counts.bulk_loads.requests, counts.bulk_loads.bytes), (2 * TILES as u64, (16384 * TILES) as u64));
    assert_eq!(counts.bulk_loads.sectors, counts.bulk_loads.ideal_sectors);
    assert_eq!((counts.bulk_stores.requests, counts.bulk_stores.bytes), (1, 16384));
    // Four warps wait for full stages, one for empty ones.
    assert_eq!(counts.waits.mbarriers, 5 * TILES as u64);
    assert_eq!((counts.waits.products, counts.waits.bulk_copies), (4 * TILES as u64, 1));
}

/// The line that a comment names, with its text.
fn line_of(text: &str, name: &str) -> u32 {
    let end = format!("// {name}");
    text.lines().position(|line| line.ends_with(&end)).unwrap_or_else(|| panic!("no line {name}")) as u32 + 1
}

/// Replaces part of the line that a comment names, and of others of the same name.
fn broken(changes: &[(&str, &str, &str)]) -> String {
    let mut text = kernel();
    for (name, from, to) in changes {
        let end = format!("// {name}");
        let lines: Vec<String> = text
            .lines()
            .map(|line| {
                if !line.ends_with(&end) {
                    return line.to_owned();
                }
                assert!(line.contains(from), "{line}");
                line.replacen(from, to, 1)
            })
            .collect();
        text = lines.join("\n");
    }
    text
}

/// The fault that changes lead to: its kind, the line it is at, and words of it.
fn expect(changes: &[(&str, &str, &str)], kind: FaultKind, at: &str, words: &str) -> Fault {
    let text = broken(changes);
    let fault = match run(&text) {
        Err(fault) => fault,
        Ok(_) => panic!("{changes:?} ran"),
    };
    let shown = fault.to_string();
    assert_eq!((fault.kind, fault.line), (kind, line_of(&text, at)), "{changes:?}: {shown}");
    assert!(shown.contains(words), "{shown}");
    assert!(shown.starts_with("pipeline line ") && fault.block == Some([0; 3]) && fault.thread.is_some(), "{shown}");
    fault
}

/// In place of a wait: what was waited for counts as done.
const WAITED: &str = "setp.eq.u32 done, 0, 0; //";
const TRY_WAIT: &str = "mbarrier.try_wait.parity.shared::cta.b64 done, [mbar], phase;";

#[test]
fn bytes_of_a_copy_are_waited_for() {
    let words = "which a bulk copy writes that nothing here has waited for";
    // Even where they have come by then.
    expect(&[("wait full", TRY_WAIT, WAITED)], FaultKind::AsyncCopy, "product", words);
    // A phase that ends before all has come.
    expect(&[("expect", "16384", "8192")], FaultKind::AsyncCopy, "product", words);
    // By other accesses, and by another copy to the same place.
    let read = ("wait full", TRY_WAIT, "setp.eq.u32 done, 0, 0; ld.shared.u32 r0, [room]; //");
    expect(&[read], FaultKind::AsyncCopy, "wait full", words);
    expect(&[("wait empty", TRY_WAIT, WAITED)], FaultKind::AsyncCopy, "load a", words);
    // A tile that no one uses.
    let one_more = ("next tile", "setp.lt", "setp.le");
    expect(&[one_more], FaultKind::AsyncCopy, "end", "ends while a bulk copy may still write its shared memory");
}

#[test]
fn memory_that_a_product_or_a_copy_reads_stays_as_it_is() {
    let words = "which a wgmma.mma_async may still read";
    let wait = "wgmma.wait_group.sync.aligned 0;";
    expect(&[("wait product", wait, "")], FaultKind::AsyncRead, "load a", words);
    expect(&[("wait product", "0;", "1;")], FaultKind::AsyncRead, "load a", words);
    let store = ("wait product", wait, "st.shared.u32 [base], word; wgmma.wait_group.sync.aligned 0;");
    expect(&[store], FaultKind::AsyncRead, "wait product", words);
    let wait = "cp.async.bulk.wait_group.read 0;";
    let store = ("wait out", wait, "st.shared.u32 [room], word; cp.async.bulk.wait_group.read 0;");
    expect(&[store], FaultKind::AsyncRead, "wait out", "which a bulk copy may still read");
    for wait in [("wait out", wait, ""), ("commit out", "cp.async.bulk.commit_group;", "")] {
        expect(&[wait], FaultKind::AsyncRead, "end", "the block ends while bulk copies may still read");
    }
}

#[test]
fn a_stage_is_given_back_when_its_products_are_done() {
    let fence = "wgmma.fence.sync.aligned;";
    let wait = "wgmma.wait_group.sync.aligned 0;";
    let arrive = "@first mbarrier.arrive.shared::cta.b64 _, [mbar];";
    let before = |instructions: &str| format!("mad.lo.u32 mbar, stage, 8, empty; {arrive} {instructions}");
    let moved = |line, from, instructions: &str| {
        let before = before(instructions);
        broken(&[(line, from, &before), ("free", arrive, "")])
    };
    let fails = |text: String, kind: FaultKind, at: &str, words: &str| {
        let fault = run(&text).expect_err("given back too early");
        assert_eq!((fault.kind, fault.line), (kind, line_of(&text, at)), "{fault}");
        assert!(fault.to_string().contains(words), "{fault}");
    };
    // While they are under way; before they are issued, if the copy comes after that, and if it comes before.
    let words = "which a wgmma.mma_async may still read";
    fails(moved("wait product", wait, wait), FaultKind::AsyncRead, "load a", words);
    fails(moved("fence", fence, fence), FaultKind::AsyncRead, "load a", words);
    let words = "which a bulk copy writes that nothing here has waited for";
    fails(moved("fence", fence, "bar.sync 1, 128; wgmma.fence.sync.aligned;"), FaultKind::AsyncCopy, "product", words);
}

#[test]
fn registers_of_a_product_wait_for_it() {
    let wait = "wgmma.wait_group.sync.aligned 0;";
    let before = |instruction: &str| format!("{instruction} {wait}");
    let reads = "reads a register that is a result of the wgmma.mma_async of line";
    expect(&[("wait product", wait, &before("add.f32 d0, d1, d1;"))], FaultKind::AsyncProduct, "wait product", reads);
    let writes = "writes a register that is a result";
    expect(&[("wait product", wait, &before("mov.b32 d9, 0;"))], FaultKind::AsyncProduct, "wait product", writes);
    // Without a commit a wait ends nothing.
    let uncommitted = [
        ("last product", "1, 1, 1, 0, 0;", "1, 1, 1, 0, 0; wgmma.commit_group.sync.aligned;"),
        ("commit", "wgmma.commit_group.sync.aligned;", ""),
    ];
    assert!(run(&broken(&uncommitted)).is_ok());
    expect(&[("commit", "wgmma.commit_group.sync.aligned;", "")], FaultKind::AsyncRead, "load a", "may still read");
}

#[test]
fn fences_stand_where_they_must() {
    let words = "with a result that other instructions touched since the last wgmma.fence";
    let fence = "wgmma.fence.sync.aligned;";
    expect(&[("fence", fence, "")], FaultKind::MissingFence, "product", words);
    let after = ("fence", fence, "wgmma.fence.sync.aligned; mov.b32 d31, 0;");
    expect(&[after], FaultKind::MissingFence, "product", words);
    let words = "with no fence.proxy.async since";
    let fence = "fence.proxy.async.shared::cta;";
    expect(&[("proxy fence", fence, "")], FaultKind::MissingFence, "copy out", words);
    // A fence for other memory models, or for other memory, is none.
    expect(&[("proxy fence", fence, "fence.proxy.async.global;")], FaultKind::MissingFence, "copy out", words);
    expect(&[("proxy fence", fence, "fence.acq_rel.cta;")], FaultKind::MissingFence, "copy out", words);
    let stored = "@first st.shared.u32 [base], word; wgmma.fence.sync.aligned;";
    let fault = expect(&[("fence", "wgmma.fence.sync.aligned;", stored)], FaultKind::MissingFence, "product", words);
    assert_eq!(fault.address, Some(0x400));
    // On the side that reads it does too, once a barrier has brought the writes there.
    let late = ("all have stored", "bar.sync 1, 128;", "bar.sync 1, 128; fence.proxy.async;");
    assert!(run(&broken(&[("proxy fence", fence, ""), late])).is_ok());
}

#[test]
fn mbarriers_are_used_by_their_rules() {
    let kind = FaultKind::Mbarrier;
    expect(&[("free", "[mbar];", "[mbar], 2;")], kind, "free", "2 arrivals at the mbarrier at 0x8410 (of line");
    let init = "mbarrier.init.shared::cta.b64 [full], 1;";
    let twice = format!("{init} {init}");
    expect(&[("init", init, &twice)], kind, "init", "initialised again");
    let inval = format!("{init} mbarrier.inval.shared::cta.b64 [full]; {init}");
    assert!(run(&broken(&[("init", init, &inval)])).is_ok());
    expect(&[("init", init, "")], kind, "expect", "no mbarrier has been initialised there at 0x8400");
    expect(&[("init", "], 1;", "], 0;")], FaultKind::Operand, "init", "an mbarrier for 0 arrivals");
    expect(&[("begin", "bar.sync 0;", "")], FaultKind::Race, "wait empty", "initialised at line");
    let read = ("expect", "mbarrier.arrive", "ld.shared.u32 r0, [mbar]; mbarrier.arrive");
    expect(&[read], kind, "expect", "which holds an mbarrier");
    expect(&[("expect", "[mbar]", "[mbar+4]")], FaultKind::Misaligned, "expect", "an mbarrier has 8 bytes");
    expect(&[("expect", "[mbar]", "[mbar+65536]")], FaultKind::OutOfBounds, "expect", "outside");
    let end = (
        "expect",
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [mbar]",
        "mov.b64 l1, -8; mbarrier.arrive.expect_tx.shared::cta.b64 _, [l1]",
    );
    expect(&[end], FaultKind::OutOfBounds, "expect", "outside the block's shared memory at 0xfffffffffffffff8");
    expect(&[("expect", "16384", "1048576")], kind, "expect", "too many");
    expect(&[("wait full", ", phase", ", 2")], FaultKind::Operand, "wait full", "parity of 2");
}

#[test]
fn warps_that_wait_for_ever_are_a_deadlock() {
    let kind = FaultKind::Deadlock;
    let words = "in phase 0, with 0 of 1 arrivals and 16 bytes to come";
    let fault = expect(&[("expect", "16384", "16400")], kind, "wait full", words);
    assert_eq!(fault.address, Some(0x8400));
    assert!(fault.detail.contains("warps 0, 1, 2, 3 at line"), "{fault}");
    expect(&[("wait full", ", phase", ", 1")], kind, "wait full", "in phase 1, with 1 of 1 arrivals and 0 bytes");
    expect(&[("free", "@first", "@loads")], kind, "wait full", "the mbarrier at 0x8410");
    // A loop of tests, which do not wait, uses its budget up.
    let test = |line| (line, "try_wait", "test_wait");
    assert!(run(&broken(&[test("wait full"), test("wait empty")])).is_ok());
    expect(&[test("wait full"), ("expect", "16384", "16400")], FaultKind::StepBudget, "wait full", "a loop never end");
}

#[test]
fn a_warpgroup_multiplies_together() {
    let kind = FaultKind::MemberMask;
    expect(&[("product", "wgmma", "@!first wgmma")], kind, "product", "needs all 32 lanes");
    let fence = "wgmma.fence.sync.aligned;";
    let leaves = "setp.lt.u32 done, thread, 32; @done bra END; wgmma.fence.sync.aligned;";
    let fault = expect(&[("fence", fence, leaves)], kind, "product", "the other warps of its warpgroup");
    assert_eq!(fault.thread, Some([32, 0, 0]));
    let jumps = "wgmma.fence.sync.aligned; setp.lt.u32 done, thread, 32; @done bra OTHER;";
    let other = ("last product", "wgmma", "OTHER: wgmma");
    expect(&[("fence", fence, jumps), other], kind, "last product", "but warp 1 of them is at line");
    let differs = ("fence", fence, "@first add.u64 a_desc, a_desc, 64; wgmma.fence.sync.aligned;");
    expect(&[differs], FaultKind::Operand, "product", "the descriptor of a differs within the warpgroup");
    let outside = ("fence", fence, "add.u64 b_desc, b_desc, 4096; wgmma.fence.sync.aligned;");
    expect(&[outside], FaultKind::OutOfBounds, "product", "reads 16 bytes of shared memory: the block has");
}

#[test]
fn the_system_has_the_beginning_of_shared_memory() {
    let kind = FaultKind::OutOfBounds;
    let words = "of shared memory: the system has the first 1024 bytes";
    // A descriptor without the address that the block's memory has.
    expect(&[("product", "a_desc, b_desc", "l0, b_desc")], kind, "product", words);
    expect(&[("store 0", "[at+0]", "[1016]")], kind, "store 0", words);
    expect(&[("init", "[full]", "[0]")], kind, "init", "an mbarrier outside the block's shared memory");
    expect(&[("load a", "[base]", "[0]")], kind, "load a", words);
}

#[test]
fn registers_are_given_and_taken_by_whole_warpgroups() {
    expect(&[("fewer", "24", "232")], FaultKind::Operand, "fewer", "setmaxnreg.dec to 232 registers from 128");
    expect(&[("more", "232", "24")], FaultKind::Operand, "more", "setmaxnreg.inc to 24 registers from 128");
    let kind = FaultKind::Deadlock;
    expect(&[("more", "232", "240")], kind, "more", "waits for registers, of which");
    expect(&[("fewer", "setmaxnreg", "// setmaxnreg")], kind, "more", "registers, of which 0 are free");
    let one = ("fewer", "setmaxnreg", "setp.lt.u32 done, thread, 160; @done setmaxnreg");
    let none = ("more", "setmaxnreg", "// setmaxnreg");
    expect(&[one, none], FaultKind::MemberMask, "fewer", "setmaxnreg by 1 of a warpgroup's four warps");
    // Without a limit the share of 256 threads: 232, which is what they ask for at most, then 128 of two blocks.
    let share = |limit: &str, changes: &[(&str, &str, &str)]| run(&broken(changes).replace(".maxnreg 128", limit));
    assert!(share(".minnctapersm 1", &[]).is_ok());
    let fault = share(".minnctapersm 2", &[("fewer", "24", "136")]).expect_err("more than it has");
    assert!(fault.to_string().contains("to 136 registers from 128"), "{fault}");
    // ptxas leaves the instructions out if it cannot tell how many there are.
    assert!(share("", &[("fewer", "24", "232")]).is_ok());
}

#[test]
fn copies_are_of_whole_pieces_at_their_places() {
    let kind = FaultKind::Misaligned;
    expect(&[("load a", "[base]", "[base+16]")], kind, "load a", "whose address is a multiple of 128");
    expect(&[("copy out", "[room]", "[room+8]")], kind, "copy out", "shared memory, whose address is a multiple of 16");
    expect(&[("copy out", "[c]", "[c+8]")], kind, "copy out", "global memory, whose address is a multiple of 16");
    expect(&[("copy out", "16384", "16380")], FaultKind::Operand, "copy out", "16380 bytes: a multiple of 16");
    expect(&[("copy out", "16384", "16400")], FaultKind::OutOfBounds, "copy out", "past the end of the 16384");
    expect(&[("copy out", "16384", "0xfffffff0")], FaultKind::OutOfBounds, "copy out", "the block has 33792 bytes");
    let end = (
        "copy out",
        "cp.async.bulk.global.shared::cta.bulk_group [c]",
        "mov.b64 l1, -16; cp.async.bulk.global.shared::cta.bulk_group [l1]",
    );
    expect(&[end], FaultKind::OutOfBounds, "copy out", "at 0xfffffffffffffff0");
    expect(&[("load a", "[base]", "[base+32768]")], FaultKind::Mbarrier, "load a", "which holds an mbarrier");
    expect(&[("load a", "[base]", "[base+65536]")], FaultKind::OutOfBounds, "load a", "the block has");
    let narrow = run_with_boxes(&kernel(), [32, 64]).expect_err("rows of 64 bytes, swizzled over 128");
    assert!(narrow.to_string().contains("rows of 64 bytes, swizzled over 128: not supported"), "{narrow}");
    expect(
        &[("load a", "{at, word}", "{phase, word}")],
        FaultKind::Operand,
        "load a",
        "starts at element 1 of 2 bytes",
    );
    let stored = "mov.b64 a, p_a; cvta.param.u64 a, a; mov.b32 r4, 0; mov.b32 r5, -1;
        cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [a, {r4, r5}], [room]; //";
    let stored = [("copy out", "cp.async.bulk.global", stored)];
    expect(&stored, FaultKind::Operand, "copy out", "a box that starts at [0, -1] is not stored");
    expect(&[("map", "cvta.param.u64 a, a;", "")], FaultKind::Operand, "load a", "needs a cvta.param");
    expect(&[("map", "cvta.param.u64 a, a;", "cvta.param.u64 a, a; add.u64 a, a, 16;")], kind, "load a", "64");
}
