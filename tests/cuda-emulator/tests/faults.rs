//! Every check, each with a kernel that makes the mistake and, where the mistake is close to something right, one
//! that does not.

use cuda_emulator::{Architecture, Counts, Fault, FaultKind, Launch, Machine, Module};

/// A kernel with one buffer and a number, and registers to use. `lines` start at line 10.
fn text(lines: &str) -> String {
    format!(
        ".version 7.0
.target sm_80
.address_size 64
.visible .entry broken(.param .u64 buffer, .param .u32 count)
{{
.reg .b64 address, offset, l<8>; .reg .b32 thread, block, r<8>; .reg .f32 f<8>; .reg .pred p, q;
.shared .align 16 .b8 place[1024]; .local .align 16 .b8 own[16];
mov.u32 thread, %tid.x; mov.u32 block, %ctaid.x; ld.param.u64 address, [buffer];
mul.wide.u32 offset, thread, 4; add.u64 l0, address, offset; mov.u32 r0, place; mad.lo.u32 r0, thread, 4, r0;
{lines}
}}"
    )
}

fn machine() -> Machine {
    Machine::new(Architecture::parse("sm_80").expect("an architecture"))
}

/// Runs `lines` in `blocks` of `threads` on a buffer of 256 bytes of ones.
fn run_on(machine: &Machine, lines: &str, blocks: u32, threads: u32) -> Result<Counts, Fault> {
    let module = Module::parse(&text(lines)).unwrap_or_else(|error| panic!("{error}"));
    let buffer = machine.allocate(256).expect("256 bytes");
    machine.fill(buffer, 1, 256).expect("256 bytes");
    launch_on(machine, &module, buffer, blocks, threads)
}

fn launch_on(machine: &Machine, module: &Module, buffer: u64, blocks: u32, threads: u32) -> Result<Counts, Fault> {
    let mut parameters = buffer.to_le_bytes().to_vec();
    parameters.extend(threads.to_le_bytes());
    let function = module.function("broken").expect("the text defines it");
    let launch = Launch { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0, parameters: &parameters };
    machine.launch(module, function, launch)
}

fn run(lines: &str, threads: u32) -> Result<Counts, Fault> {
    run_on(&machine(), lines, 1, threads)
}

/// The fault of `lines`, which must be of this kind, at this line (10 is the first) and by this thread.
fn expect(lines: &str, threads: u32, kind: FaultKind, line: u32, thread: u32) -> Fault {
    let fault = run(lines, threads).expect_err(lines);
    assert_eq!((fault.kind, fault.line, fault.thread), (kind, line, Some([thread, 0, 0])), "{fault}");
    assert_eq!((fault.kernel.as_str(), fault.block), ("broken", Some([0; 3])));
    let shown = fault.to_string();
    assert!(shown.starts_with(&format!("broken line {line}, block (0, 0, 0), thread ({thread}, 0, 0): ")), "{shown}");
    fault
}

fn passes(lines: &str, threads: u32) -> Counts {
    run(lines, threads).unwrap_or_else(|fault| panic!("{lines}: {fault}"))
}

#[test]
fn global_access_past_the_end_is_out_of_bounds() {
    passes("st.global.u32 [l0], thread;", 64);
    let fault = expect("st.global.u32 [l0], thread;", 65, FaultKind::OutOfBounds, 10, 64);
    assert_eq!(fault.address.expect("an address") % 512, 256);
    assert!(fault.to_string().contains("store of 4 bytes of global memory: 4 bytes past the end of the 256 bytes"));
    expect("ld.global.u32 r1, [address+256];", 1, FaultKind::OutOfBounds, 10, 0);
    expect("ld.global.u32 r1, [address+-4];", 1, FaultKind::OutOfBounds, 10, 0);
    expect("ld.u32 r1, [address+256];", 1, FaultKind::OutOfBounds, 10, 0);
    expect("mov.u64 l1, 0; ld.global.u32 r1, [l1];", 1, FaultKind::OutOfBounds, 10, 0);
    expect("atom.global.add.u32 r1, [address+256], 1;", 1, FaultKind::OutOfBounds, 10, 0);
    // A vector that begins inside.
    expect("ld.global.v4.u32 {r1, r2, r3, r4}, [address+256];", 1, FaultKind::OutOfBounds, 10, 0);
}

#[test]
fn an_allocation_that_ends_inside_a_word_ends_there() {
    let machine = machine();
    let module = Module::parse(&text("ld.global.u8 r1, [address+5];\nld.global.u8 r1, [address+6];")).expect("PTX");
    let buffer = machine.allocate(6).expect("6 bytes");
    machine.fill(buffer, 1, 6).expect("6 bytes");
    let fault = launch_on(&machine, &module, buffer, 1, 1).expect_err("byte 6 of 6");
    assert_eq!((fault.kind, fault.line), (FaultKind::OutOfBounds, 11));
}

#[test]
fn shared_local_and_parameter_accesses_stay_inside() {
    expect("st.shared.u32 [place+1024], 0;", 1, FaultKind::OutOfBounds, 10, 0);
    expect(
        "mov.u32 r1, 0xffffffff; and.b32 r1, r1, 0xfffffffc; ld.shared.u32 r2, [r1];",
        1,
        FaultKind::OutOfBounds,
        10,
        0,
    );
    expect("st.local.u32 [own+1024], 0;", 1, FaultKind::OutOfBounds, 10, 0);
    expect("ld.param.u32 r1, [buffer+12];", 1, FaultKind::OutOfBounds, 10, 0);
    expect("mov.u64 l1, place; cvta.shared.u64 l1, l1; st.u32 [l1+1024], 0;", 1, FaultKind::OutOfBounds, 10, 0);
}

#[test]
fn addresses_are_multiples_of_the_access() {
    expect("ld.global.u32 r1, [address+2];", 1, FaultKind::Misaligned, 10, 0);
    expect("ld.global.v2.u32 {r1, r2}, [address+4];", 1, FaultKind::Misaligned, 10, 0);
    expect("ld.global.v4.u32 {r1, r2, r3, r4}, [l0];", 2, FaultKind::Misaligned, 10, 1);
    expect("st.shared.u64 [place+4], 0;", 1, FaultKind::Misaligned, 10, 0);
    expect("st.local.u16 [own+1], 0;", 1, FaultKind::Misaligned, 10, 0);
    expect("ld.param.u64 l1, [buffer+4];", 1, FaultKind::Misaligned, 10, 0);
    expect("cp.async.ca.shared.global [place], [address+4], 8;", 1, FaultKind::Misaligned, 10, 0);
    passes("ld.global.v2.u32 {r1, r2}, [address+8];", 1);
}

#[test]
fn freed_memory_is_not_used() {
    let machine = machine();
    let module = Module::parse(&text("ld.global.u32 r1, [l0];")).expect("PTX");
    let buffer = machine.allocate(256).expect("256 bytes");
    machine.fill(buffer, 1, 256).expect("256 bytes");
    machine.free(buffer).expect("allocated");
    // Another allocation does not take its place.
    let other = machine.allocate(256).expect("256 bytes");
    assert_ne!(other, buffer);
    let fault = launch_on(&machine, &module, buffer, 1, 1).expect_err("freed");
    assert_eq!((fault.kind, fault.line, fault.address), (FaultKind::UseAfterFree, 10, Some(buffer)));
    assert!(machine.free(buffer).is_err());
    assert!(machine.read(buffer, &mut [0; 4]).is_err());
    assert_eq!(machine.allocations(), [(other, 256)]);
}

#[test]
fn memory_that_nothing_wrote_is_not_read() {
    let machine = machine();
    let module = Module::parse(&text("ld.global.u32 r1, [l0];")).expect("PTX");
    let buffer = machine.allocate(256).expect("256 bytes");
    machine.write(buffer, &[0; 7]).expect("inside");
    let fault = launch_on(&machine, &module, buffer, 1, 2).expect_err("byte 7 is missing");
    assert_eq!((fault.kind, fault.thread), (FaultKind::Uninitialised, Some([1, 0, 0])));
    assert!(fault.detail.contains("byte 3 of them"), "{fault}");
    // A copy of memory that nothing wrote is no more written than that.
    let copy = machine.allocate(256).expect("256 bytes");
    machine.copy(copy, buffer, 256).expect("both inside");
    assert!(launch_on(&machine, &module, copy, 1, 1).is_ok());
    assert_eq!(launch_on(&machine, &module, copy, 1, 2).expect_err("as before").kind, FaultKind::Uninitialised);

    expect("ld.shared.u32 r1, [r0];", 1, FaultKind::Uninitialised, 10, 0);
    expect("st.shared.u16 [r0], 0;\nld.shared.u32 r1, [r0];", 1, FaultKind::Uninitialised, 11, 0);
    expect("ld.local.u32 r1, [own];", 1, FaultKind::Uninitialised, 10, 0);
    expect("atom.shared.add.u32 r1, [r0], 1;", 1, FaultKind::Uninitialised, 10, 0);
}

#[test]
fn constant_memory_is_read_only() {
    let constants = ".version 7.0
.target sm_80
.address_size 64
.const .align 4 .u32 table[2] = {5, 6};
.visible .entry broken(.param .u64 buffer, .param .u32 count)
{
.reg .b64 l0; .reg .b32 r0;
ld.const.u32 r0, [table+4];
mov.u64 l0, table; cvta.const.u64 l0, l0; st.u32 [l0], 1;
}";
    let module = Module::parse(constants).expect("PTX");
    let fault = launch_on(&machine(), &module, 0, 1, 1).expect_err("a store to .const");
    assert_eq!((fault.kind, fault.line), (FaultKind::ReadOnly, 9));
}

#[test]
fn threads_that_share_memory_need_a_barrier_between() {
    let neighbour = "xor.b32 r1, thread, 32; mov.u32 r2, place; mad.lo.u32 r2, r1, 4, r2;";
    // Write then read, across warps and within one.
    let fault = expect(
        &format!("{neighbour}\nst.shared.u32 [r0], thread;\nld.shared.u32 r3, [r2];"),
        64,
        FaultKind::Uninitialised,
        12,
        0,
    );
    assert!(fault.address.is_some());
    let first = "st.shared.u32 [r0], 0; bar.sync 0;";
    expect(
        &format!("{first} {neighbour}\nst.shared.u32 [r0], thread;\nld.shared.u32 r3, [r2];"),
        64,
        FaultKind::Race,
        11,
        32,
    );
    passes(&format!("{first} {neighbour}\nst.shared.u32 [r0], thread;\nbar.sync 0; ld.shared.u32 r3, [r2];"), 64);
    // Read then write.
    expect(
        &format!("{first} {neighbour}\nld.shared.u32 r3, [r2];\nst.shared.u32 [r0], thread;"),
        64,
        FaultKind::Race,
        11,
        32,
    );
    // Writes of different values; the same value is no race.
    expect(&format!("{first}\nst.shared.u32 [place], thread;"), 64, FaultKind::Race, 11, 1);
    passes(&format!("{first}\nst.shared.u32 [place], 7;"), 64);
    // Within a warp bar.warp.sync is enough, across warps it is not.
    let lane = "xor.b32 r1, thread, 1; mov.u32 r2, place; mad.lo.u32 r2, r1, 4, r2;";
    expect(
        &format!("{first} {lane}\nst.shared.u32 [r0], thread;\nld.shared.u32 r3, [r2];"),
        32,
        FaultKind::Race,
        12,
        0,
    );
    let warp_barrier = "bar.warp.sync 0xffffffff;";
    passes(&format!("{first} {lane}\nst.shared.u32 [r0], thread; {warp_barrier}\nld.shared.u32 r3, [r2];"), 32);
    expect(
        &format!("{first} {neighbour}\nst.shared.u32 [r0], thread; {warp_barrier}\nld.shared.u32 r3, [r2];"),
        64,
        FaultKind::Race,
        11,
        32,
    );
    // Bytes of one word belong to whoever writes them.
    passes("mov.u32 r1, place; add.u32 r1, r1, thread; st.shared.u8 [r1], thread;", 64);
    passes("mov.u32 r1, place; mad.lo.u32 r1, thread, 2, r1; st.shared.u16 [r1], thread; ld.shared.u16 r2, [r1];", 64);
    expect(
        "mov.u32 r1, place; and.b32 r2, thread, 0xfe; add.u32 r1, r1, r2;\nst.shared.u16 [r1], thread;",
        64,
        FaultKind::Race,
        11,
        1,
    );
    // Global memory, too.
    expect(
        "xor.b32 r1, thread, 32; mul.wide.u32 l1, r1, 4; add.u64 l1, address, l1;\nst.global.u32 [l0], thread;\nld.global.u32 r3, [l1];",
        64,
        FaultKind::Race,
        11,
        32,
    );
    passes(
        "xor.b32 r1, thread, 32; mul.wide.u32 l1, r1, 4; add.u64 l1, address, l1;\nst.global.u32 [l0], thread; bar.sync 0;\nld.global.u32 r3, [l1];",
        64,
    );
}

#[test]
fn atomic_operations_meet_without_a_race_but_not_with_plain_accesses() {
    let first = "st.shared.u32 [r0], 0; bar.sync 0;";
    passes(&format!("{first} red.shared.add.u32 [place], 1;"), 64);
    expect(&format!("{first} red.shared.add.u32 [place], 1;\nld.shared.u32 r1, [place];"), 64, FaultKind::Race, 11, 0);
    passes(&format!("{first} red.shared.add.u32 [place], 1; bar.sync 0; ld.shared.u32 r1, [place];"), 64);
    passes(&format!("{first} st.volatile.shared.u32 [place], thread; ld.volatile.shared.u32 r1, [place];"), 64);
}

#[test]
fn a_barrier_of_some_warps_orders_only_those() {
    // Warps 0 and 1 meet at barrier 1; warp 2 does not.
    let lines = |reader: &str| {
        format!(
            "st.shared.u32 [r0], 0; bar.sync 0;
setp.lt.u32 p, thread, 32;
@p st.shared.u32 [r0], thread;
setp.lt.u32 q, thread, 64;
@q bar.sync 1, 64;
{reader}
ld.shared.u32 r1, [place];
DONE: ret;"
        )
    };
    passes(&lines("setp.ge.u32 p, thread, 64; @p bra DONE;"), 96);
    expect(&lines("setp.lt.u32 p, thread, 64; @p bra DONE;"), 96, FaultKind::Race, 16, 64);
}

#[test]
fn every_reader_must_be_ordered_before_a_write() {
    // Warps 0 to 2 read, and warp 3 writes after a barrier with those from `first` on.
    let lines = |first: u32, threads: u32| {
        format!(
            "st.shared.u32 [r0], 0; bar.sync 0;
setp.eq.u32 q, thread, 96;
@!q ld.shared.u32 r1, [place];
setp.ge.u32 p, thread, {first};
@p bar.sync 1, {threads};
@q st.shared.u32 [place], 1;"
        )
    };
    passes(&lines(0, 128), 128);
    for first in [32, 64, 96] {
        let fault = expect(&lines(first, 128 - first), 128, FaultKind::Race, 15, 96);
        assert!(fault.detail.contains("thread [0, 0, 0] read"), "{fault}");
    }
    let last =
        lines(0, 64).replace("setp.ge.u32 p, thread, 0;", "setp.lt.u32 p, thread, 32; @!p setp.ge.u32 p, thread, 96;");
    let fault = expect(&last, 128, FaultKind::Race, 15, 96);
    assert!(fault.detail.contains("thread [32, 0, 0] read"), "{fault}");
}

#[test]
fn readers_of_one_word_in_a_warp_are_not_all_its_writer() {
    // All lanes read, and the lane of `writer` writes: of them or not, and ordered or not.
    let lines = |active: u32, writer: u32, order: &str| {
        format!(
            "st.shared.u32 [r0], 0; bar.sync 0;
setp.lt.u32 p, thread, {active};
@p ld.shared.u32 r1, [place];
{order} setp.eq.u32 q, thread, {writer};
@q st.shared.u32 [place], 1;"
        )
    };
    for writer in [0, 1, 31] {
        expect(&lines(32, writer, ""), 32, FaultKind::Race, 14, writer);
        passes(&lines(32, writer, "bar.warp.sync -1;"), 32);
    }
    // One reader, and it writes.
    passes(&lines(1, 0, ""), 32);
    expect(&lines(1, 1, ""), 32, FaultKind::Race, 14, 1);
}

#[test]
fn every_atomic_operation_must_be_ordered_before_a_plain_access() {
    // Warps 0 to 2 add, and warp 3 reads or writes after a barrier with those from `first` on.
    for access in ["ld.shared.u32 r1, [place];", "st.shared.u32 [place], 7;"] {
        let lines = |first: u32| {
            format!(
                "st.shared.u32 [r0], 0; bar.sync 0;
setp.eq.u32 q, thread, 96;
@!q red.shared.add.u32 [place], 1;
setp.ge.u32 p, thread, {first};
@p bar.sync 1, {};
@q {access}",
                128 - first
            )
        };
        passes(&lines(0), 128);
        for first in [32, 64, 96] {
            expect(&lines(first), 128, FaultKind::Race, 15, 96);
        }
    }
}

#[test]
fn a_strong_read_does_not_hide_a_plain_one_before_it() {
    let lines = |plain: &str| {
        format!(
            "st.shared.u32 [r0], 0; bar.sync 0;
setp.eq.u32 p, thread, 0; setp.eq.u32 q, thread, 32;
{plain}
@p ld.volatile.shared.u32 r1, [place];
@q st.volatile.shared.u32 [place], 7;"
        )
    };
    passes(&lines(""), 64);
    expect(&lines("@p ld.shared.u32 r1, [place];"), 64, FaultKind::Race, 14, 32);
}

#[test]
fn producers_that_arrive_are_ordered_before_consumers_that_wait() {
    let lines = |arrive: &str| {
        format!(
            "setp.lt.u32 p, thread, 32; @!p bra CONSUME;
st.shared.u32 [r0], thread;
{arrive}
bra DONE;
CONSUME:
bar.sync 1, 64;
sub.u32 r1, r0, 128;
ld.shared.u32 r2, [r1];
DONE: ret;"
        )
    };
    passes(&lines("bar.arrive 1, 64;"), 64);
    let fault = run(&lines(""), 64).expect_err("no one arrives");
    assert_eq!((fault.kind, fault.line), (FaultKind::BarrierMismatch, 15));
}

#[test]
fn blocks_of_a_launch_share_nothing_without_atomics() {
    for workers in [1, 3] {
        let machine = machine();
        machine.set_workers(workers);
        let race = |lines: &str| run_on(&machine, lines, 5, 1).expect_err(lines);
        let fault = race("st.global.u32 [address], block;");
        assert_eq!((fault.kind, fault.line, fault.block), (FaultKind::Race, 10, Some([1, 0, 0])), "{fault}");
        assert!(fault.detail.contains("block [0, 0, 0] wrote"), "{fault}");
        let fault = race("setp.eq.u32 p, block, 3;\n@p st.global.u32 [address], 7;\n@!p ld.global.u32 r1, [address];");
        assert_eq!((fault.kind, fault.line, fault.block), (FaultKind::Race, 11, Some([3, 0, 0])), "{fault}");
        // Every block its own word, and all of them one that no one writes.
        let own = "mul.wide.u32 l1, block, 4; add.u64 l1, address, l1; st.global.u32 [l1], block; ld.global.u32 r1, [address+128];";
        assert!(run_on(&machine, own, 5, 1).is_ok());
        // The last block to take a ticket may read what the others wrote before theirs.
        let ticket = "mul.wide.u32 l1, block, 4; add.u64 l1, address, l1; st.global.u32 [l1], block; membar.gl;
            atom.global.add.u32 r1, [address+128], 1; setp.eq.u32 p, r1, 0x01010105; @p ld.global.u32 r2, [address];";
        assert!(run_on(&machine, ticket, 5, 1).is_ok());
    }
}

#[test]
fn a_flag_with_fences_orders_what_a_plain_flag_does_not() {
    // Warp 0 writes and raises a flag; warp 1 waits for the flag and reads.
    let lines = |write_fence: &str, read_fence: &str| {
        format!(
            "setp.eq.u32 p, thread, 0; @p st.shared.u32 [place+512], 0; bar.sync 0;
setp.lt.u32 p, thread, 32; @!p bra WAIT;
st.shared.u32 [r0], thread;
bar.warp.sync 0xffffffff;
{write_fence}
setp.eq.u32 q, thread, 0; @q st.volatile.shared.u32 [place+512], 1;
bra DONE;
WAIT:
ld.volatile.shared.u32 r1, [place+512];
setp.eq.u32 q, r1, 0; @q bra WAIT;
{read_fence}
sub.u32 r1, r0, 128; ld.shared.u32 r2, [r1];
DONE: ret;"
        )
    };
    passes(&lines("membar.cta;", "membar.cta;"), 64);
    let fault = run(&lines("membar.cta;", ""), 64).expect_err("no fence after the flag");
    assert_eq!((fault.kind, fault.line), (FaultKind::Race, 21), "{fault}");
    let fault = run(&lines("", "membar.cta;"), 64).expect_err("no fence before the flag");
    assert_eq!((fault.kind, fault.line), (FaultKind::Race, 21), "{fault}");
}

#[test]
fn barriers_are_for_whole_warps() {
    expect("setp.lt.u32 p, thread, 16;\n@p bar.sync 0;", 64, FaultKind::DivergentBarrier, 11, 0);
    expect("setp.lt.u32 p, thread, 16; @p bra SKIP;\nbar.sync 0;\nSKIP: ret;", 64, FaultKind::DivergentBarrier, 11, 16);
    expect("setp.eq.u32 p, thread, 5; @p ret;\nbar.sync 0;", 64, FaultKind::DivergentBarrier, 11, 0);
    // The same barrier in both branches is another for each.
    expect(
        "setp.lt.u32 p, thread, 16; @p bra OTHER;\nbar.sync 0;\nbra DONE;\nOTHER:\nbar.sync 0;\nDONE: ret;",
        32,
        FaultKind::DivergentBarrier,
        11,
        16,
    );
    passes("setp.lt.u32 p, thread, 32; @p bra OTHER;\nbar.sync 0;\nbra DONE;\nOTHER:\nbar.sync 0;\nDONE: ret;", 64);
}

#[test]
fn warps_that_wait_forever_are_found() {
    let fault = run("setp.lt.u32 p, thread, 32;\n@p bar.sync 0;", 64).expect_err("one warp of two");
    assert_eq!((fault.kind, fault.line, fault.thread), (FaultKind::BarrierMismatch, 11, Some([0; 3])));
    assert!(fault.detail.contains("1 of 2 warps came to barrier 0, 1 have ended"), "{fault}");
    let fault =
        run("setp.lt.u32 p, thread, 32; @p bra OTHER;\nbar.sync 1;\nbra DONE;\nOTHER:\nbar.sync 0;\nDONE: ret;", 64);
    assert_eq!(fault.expect_err("two barriers").kind, FaultKind::BarrierMismatch);
    let fault = run(
        "setp.lt.u32 p, thread, 32; @p bra OTHER;\nbar.sync 1, 64;\nbra DONE;\nOTHER:\nbar.sync 1, 96;\nDONE: ret;",
        96,
    );
    assert_eq!(fault.expect_err("two sizes").kind, FaultKind::BarrierMismatch);
}

#[test]
fn barriers_have_numbers_and_sizes_that_exist() {
    expect("bar.sync 16;", 32, FaultKind::Operand, 10, 0);
    expect("bar.sync 0, 33;", 64, FaultKind::Operand, 10, 0);
    expect("bar.sync 0, 128;", 64, FaultKind::Operand, 10, 0);
    expect("bar.sync thread;", 2, FaultKind::Operand, 10, 1);
}

#[test]
fn members_of_a_mask_are_all_there() {
    let shuffle = "shfl.sync.bfly.b32 r1, thread, 1, 31, 0xffffffff;";
    passes(shuffle, 64);
    passes(shuffle, 48);
    expect(&format!("setp.lt.u32 p, thread, 16;\n@p {shuffle}"), 32, FaultKind::MemberMask, 11, 0);
    expect(
        "setp.lt.u32 p, thread, 16; @p bra SKIP;\nvote.sync.any.pred q, p, 0xffffffff;\nSKIP: ret;",
        32,
        FaultKind::MemberMask,
        11,
        16,
    );
    passes("setp.lt.u32 p, thread, 16;\n@p shfl.sync.bfly.b32 r1, thread, 1, 31, 0xffff;", 32);
    // A lane that its own mask leaves out.
    expect("shfl.sync.bfly.b32 r1, thread, 1, 31, 0x7fffffff;", 32, FaultKind::MemberMask, 10, 31);
    // Lanes that do not agree.
    expect(
        "setp.lt.u32 p, thread, 16; selp.b32 r1, 0xffff, 0xffffffff, p;\nbar.warp.sync r1;",
        32,
        FaultKind::MemberMask,
        11,
        16,
    );
    // A lane of the mask that has ended.
    expect(
        "setp.eq.u32 p, thread, 3; @p ret;\nredux.sync.add.u32 r1, thread, 0xffffffff;",
        32,
        FaultKind::MemberMask,
        11,
        0,
    );
    // Reading a lane outside the mask.
    expect(
        "setp.lt.u32 p, thread, 16;\n@p shfl.sync.idx.b32 r1, thread, 20, 31, 0xffff;",
        32,
        FaultKind::MemberMask,
        11,
        0,
    );
}

#[test]
fn matrix_instructions_need_the_whole_warp() {
    let mma = "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {f0, f1, f2, f3}, {r1, r2}, {r3}, {f0, f1, f2, f3};";
    passes(mma, 32);
    expect(mma, 16, FaultKind::MemberMask, 10, 0);
    expect(&format!("setp.ne.u32 p, thread, 9;\n@p {mma}"), 32, FaultKind::MemberMask, 11, 0);
    let rows = "mov.u32 r2, place; mad.lo.u32 r2, thread, 16, r2;";
    let fill: String = (0..8).map(|at| format!("st.shared.u32 [r0+{}], 0; ", 128 * at)).collect();
    let load = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r3, r4, r5, r6}, [r2];";
    passes(&format!("{fill} bar.sync 0; {rows}\n{load}"), 32);
    expect(
        &format!("{fill} bar.sync 0; {rows} setp.lt.u32 p, thread, 31;\n@p {load}"),
        32,
        FaultKind::MemberMask,
        11,
        0,
    );
    expect(&format!("{fill} bar.sync 0; {rows} add.u32 r2, r2, 8;\n{load}"), 32, FaultKind::Misaligned, 11, 0);
    expect(&format!("{fill} bar.sync 0; {rows} add.u32 r2, r2, 768;\n{load}"), 32, FaultKind::OutOfBounds, 11, 16);
    expect(&format!("{fill} {rows}\n{load}"), 32, FaultKind::Race, 11, 0);
}

#[test]
fn asynchronous_copies_are_waited_for() {
    let copy = "mul.wide.u32 l1, thread, 16; add.u64 l1, address, l1; mov.u32 r1, place; mad.lo.u32 r1, thread, 16, r1;
cp.async.cg.shared.global [r1], [l1], 16; cp.async.commit_group;";
    let wait = "cp.async.wait_group 0;";
    passes(&format!("{copy}\n{wait}\nld.shared.u32 r2, [r1];"), 16);
    let fault = expect(&format!("{copy}\nld.shared.u32 r2, [r1];"), 16, FaultKind::AsyncCopy, 12, 0);
    assert!(fault.detail.contains("the copy of line 11 is under way"), "{fault}");
    expect(&format!("{copy}\nst.shared.u32 [r1], 0;"), 16, FaultKind::AsyncCopy, 12, 0);
    expect(&format!("{copy}\ncp.async.wait_group 1;\nld.shared.u32 r2, [r1];"), 16, FaultKind::AsyncCopy, 13, 0);
    passes(&format!("{copy}\ncp.async.wait_all;\nld.shared.u32 r2, [r1];"), 16);
    // Waiting is for one's own copies; others' need a barrier after that.
    let other = "xor.b32 r3, thread, 1; mov.u32 r4, place; mad.lo.u32 r4, r3, 16, r4;";
    expect(&format!("{copy}\n{wait} {other}\nld.shared.u32 r2, [r4];"), 16, FaultKind::Race, 13, 0);
    passes(&format!("{copy}\n{wait} {other} bar.sync 0;\nld.shared.u32 r2, [r4];"), 16);
    // A copy of 16 bytes cannot be told to read 17.
    expect("mov.u32 r1, 17;\ncp.async.cg.shared.global [place], [address], 16, r1;", 1, FaultKind::Operand, 11, 0);
}

#[test]
fn endless_loops_end() {
    let machine = machine();
    machine.set_step_budget(100_000);
    let fault = run_on(&machine, "AGAIN:\nbra AGAIN;", 1, 32).expect_err("endless");
    assert_eq!((fault.kind, fault.line), (FaultKind::StepBudget, 11));
    let fault =
        run_on(&machine, "WAIT: ld.volatile.global.u32 r1, [address];\nsetp.ne.u32 p, r1, 5; @p bra WAIT;", 1, 32);
    assert_eq!(fault.expect_err("no one writes 5").kind, FaultKind::StepBudget);
}

#[test]
fn traps_and_deep_calls_are_reported() {
    expect("setp.eq.u32 p, thread, 7;\n@p trap;", 32, FaultKind::Trap, 11, 7);
    let text = ".version 7.0
.target sm_80
.address_size 64
.func down() { call down; ret; }
.visible .entry broken(.param .u64 buffer, .param .u32 count) { call down; ret; }";
    let module = Module::parse(text).expect("PTX");
    let fault = launch_on(&machine(), &module, 0, 1, 1).expect_err("a stack without end");
    assert_eq!((fault.kind, fault.line), (FaultKind::OutOfBounds, 4));
}

#[test]
fn launches_stay_within_the_architecture() {
    let refused = |name: &str, text: &str, grid: [u32; 3], block: [u32; 3], shared: u32| {
        let machine = Machine::new(Architecture::parse(name).expect("an architecture"));
        let module = Module::parse(text).expect("PTX");
        let launch = Launch { grid, block, shared_bytes: shared, parameters: &[] };
        let fault = machine.launch(&module, module.function("empty").expect("defined"), launch);
        fault.err().map(|fault| {
            assert_eq!((fault.kind, fault.line), (FaultKind::Launch, 0));
            fault.to_string()
        })
    };
    let empty = |target: &str, extra: &str| {
        format!(".version 8.0\n.target {target}\n.address_size 64\n.visible .entry empty() {extra} {{ ret; }}")
    };
    let plain = empty("sm_80", "");
    let one = [1; 3];
    assert_eq!(refused("sm_80", &plain, one, one, 0), None);
    for (grid, block) in [
        (one, [1025, 1, 1]),
        (one, [32, 33, 1]),
        (one, [1, 1, 65]),
        (one, [0, 1, 1]),
        ([1, 65536, 1], one),
        ([1, 1, 65536], one),
        ([0, 1, 1], one),
        ([1 << 31, 1, 1], one),
    ] {
        assert!(refused("sm_80", &plain, grid, block, 0).is_some(), "{grid:?} {block:?}");
    }
    // Shared memory of a block: 163 KiB on sm_80, 99 on sm_86 and sm_120, 227 on sm_90.
    for (name, most) in [("sm_80", 163), ("sm_86", 99), ("sm_89", 99), ("sm_90", 227), ("sm_100", 227), ("sm_120", 99)]
    {
        assert_eq!(refused(name, &plain, one, one, most << 10), None);
        assert!(refused(name, &plain, one, one, (most << 10) + 1).is_some());
    }
    // Targets: older code runs on newer machines, code for one machine alone only there.
    assert!(refused("sm_80", &empty("sm_90", ""), one, one, 0).is_some());
    assert_eq!(refused("sm_90a", &empty("sm_90a", ""), one, one, 0), None);
    assert!(refused("sm_90", &empty("sm_90a", ""), one, one, 0).is_some());
    assert!(refused("sm_100", &empty("sm_90a", ""), one, one, 0).is_some());
    // The kernel's own limits.
    assert_eq!(refused("sm_80", &empty("sm_80", ".maxntid 64, 1, 1"), one, [64, 1, 1], 0), None);
    assert!(refused("sm_80", &empty("sm_80", ".maxntid 64, 1, 1"), one, [65, 1, 1], 0).is_some());
    assert!(refused("sm_80", &empty("sm_80", ".reqntid 64, 1, 1"), one, [32, 1, 1], 0).is_some());
    // 65536 registers are 64 for each of 1024 threads.
    assert!(refused("sm_80", &empty("sm_80", ".maxnreg 128"), one, [1024, 1, 1], 0).is_some());
    assert_eq!(refused("sm_80", &empty("sm_80", ".maxnreg 128"), one, [512, 1, 1], 0), None);
    // Parameters have a size.
    let module = Module::parse(&text("ret;")).expect("PTX");
    let launch = Launch { grid: one, block: one, shared_bytes: 0, parameters: &[0; 8] };
    let fault =
        machine().launch(&module, module.function("broken").expect("defined"), launch).expect_err("8 of 12 bytes");
    assert!(fault.to_string().contains("8 bytes of parameters, the kernel takes 12"), "{fault}");
}

#[test]
fn what_is_not_known_fails_at_load_with_its_line() {
    let fails = |lines: &str, line: u32, words: &str| {
        let error = Module::parse(&text(lines)).err().unwrap_or_else(|| panic!("{lines}"));
        assert_eq!(error.line, line, "{error}");
        assert!(error.message.contains(words), "{error}");
    };
    fails("ret;\nfrobnicate.b32 r1, r2;", 11, "unknown instruction frobnicate.b32");
    fails("add.sideways.u32 r1, r2, r3;", 10, "unknown modifier .sideways");
    fails("add.u32 r1, r2;", 10, "2 operands, expected 3");
    fails("add.u32 r1, r2, nothing;", 10, "unknown name nothing");
    fails("add.u64 l1, l2, r3;", 10, "r3 has 32 bits, 64 are needed");
    fails("bra NOWHERE;", 10, "unknown label NOWHERE");
    fails("ld.global.u32 r1, r2;", 10, "expected an address in brackets");
    fails("tex.2d.v4.f32.s32 {f0, f1, f2, f3}, [l0, {r1, r2}];", 10, "unknown instruction tex");
    fails("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {f0}, {r1}, {r2}, {f0};", 10, "unknown form");
    fails("mul.lo.f32 f0, f1, f2;", 10, "unknown modifier .lo");
    fails("@r1 bra NOWHERE;", 10, "r1 is not a predicate");
    fails("$", 11, "expected");
    assert_eq!(Module::parse("nonsense").err().expect("no PTX").line, 1);
}

#[test]
fn counts_are_what_the_hardware_would_do() {
    // 32 lanes of 4 bytes side by side: 4 sectors, 1 wavefront.
    let counts = passes("ld.global.u32 r1, [l0]; st.shared.u32 [r0], r1;", 32);
    let loads = counts.global_loads;
    assert_eq!((loads.requests, loads.bytes, loads.sectors, loads.ideal_sectors), (1, 128, 4, 4));
    let stores = counts.shared_stores;
    assert_eq!((stores.requests, stores.bytes, stores.wavefronts, stores.bank_conflicts), (1, 128, 1, 0));
    // 8 lanes of which each reads another sector.
    let counts = passes("mul.wide.u32 l1, thread, 32; add.u64 l1, address, l1; ld.global.u32 r1, [l1];", 8);
    assert_eq!((counts.global_loads.sectors, counts.global_loads.ideal_sectors), (8, 1));
    // All lanes read one word: one sector, and in shared memory one wavefront.
    let counts =
        passes("ld.global.u32 r1, [address]; st.shared.u32 [r0], 0; bar.sync 0; ld.shared.u32 r1, [place];", 32);
    assert_eq!((counts.global_loads.sectors, counts.global_loads.ideal_sectors), (1, 1));
    assert_eq!((counts.shared_loads.wavefronts, counts.shared_loads.bank_conflicts), (1, 0));
    assert_eq!(counts.waits.barriers, 1);
    // A stride of 2 words: 2 lanes a bank. A stride of 32: all lanes in one bank.
    for (lanes, stride, wavefronts) in [(32, 8, 2), (8, 128, 8), (32, 4, 1)] {
        let lines = format!("mov.u32 r1, place; mad.lo.u32 r1, thread, {stride}, r1; st.shared.u32 [r1], 0;");
        let stores = passes(&lines, lanes).shared_stores;
        assert_eq!((stores.wavefronts, stores.bank_conflicts), (wavefronts, wavefronts - 1), "stride {stride}");
    }
    // 16 bytes a lane take four wavefronts, none of them a conflict.
    let lines = "mov.u32 r1, place; mad.lo.u32 r1, thread, 16, r1; st.shared.v4.u32 [r1], {r1, r1, r1, r1};";
    let stores = passes(lines, 32).shared_stores;
    assert_eq!((stores.wavefronts, stores.bank_conflicts), (4, 0));
    // Instructions of a class, as warps issue them and as threads run them.
    let counts = passes("setp.lt.u32 p, thread, 5; @p fma.rn.f32 f0, f0, f0, f0;", 32);
    assert_eq!(counts.warp_instructions.of(cuda_emulator::Class::F32), 1);
    assert_eq!(counts.thread_instructions.of(cuda_emulator::Class::F32), 5);
    let json: serde_json::Value = serde_json::from_str(&counts.to_json()).expect("JSON");
    assert_eq!(json["thread_instructions"]["f32"], 5);
    assert_eq!(json["kernel"], "broken");
}
