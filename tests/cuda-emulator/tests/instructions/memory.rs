use crate::exact::{F32, Rounding};
use crate::harness::{Random, apply, check, integer_edges, machine, product, signed};
use cuda_emulator::{Launch, Module};

#[test]
fn loads_fill_wide_registers_with_zeros_or_the_sign() {
    let values = [integer_edges(32)];
    let through = |store: &str, load: &str| {
        format!("{{ .local .align 8 .b8 place[8]; st.local.{store} [place], a; ld.local.{load} d, [place]; }}")
    };
    for (width, store) in [(8, "b8"), (16, "b16"), (32, "b32")] {
        check(&through(store, &format!("u{width}")), &[32], 64, &values, |t| t[0] & ((1 << width) - 1));
        check(&through(store, &format!("s{width}")), &[32], 64, &values, |t| signed(t[0], width) as u64);
    }
}

#[test]
fn every_space_keeps_what_is_stored() {
    let values = [integer_edges(64)];
    for (declare, space) in [("local", "local"), ("local", "generic"), ("shared", "shared"), ("shared", "generic")] {
        for vector in [1, 2, 4] {
            let width = 64 / vector;
            let names: Vec<String> = (0..vector).map(|at| format!("part{at}")).collect();
            let list = names.join(", ");
            let (v, braces) = if vector == 1 {
                (String::new(), list.clone())
            } else {
                (format!(".v{vector}"), format!("{{{list}}}"))
            };
            let access = if space == "generic" { "" } else { &format!(".{space}") };
            let generic = if space == "generic" { format!("cvta.{declare}.u64 l0, l0;") } else { String::new() };
            let unpack = if vector == 1 { "mov.b64 part0, a;".into() } else { format!("mov.b64 {{{list}}}, a;") };
            let pack = if vector == 1 { "mov.b64 d, part0;".into() } else { format!("mov.b64 d, {{{list}}};") };
            let body = format!(
                "{{ .{declare} .align 8 .b8 place[2048]; .reg .b{width} {list};
                    mov.u64 l0, place; mov.u32 r0, %tid.x; mul.wide.u32 l1, r0, 8; add.u64 l0, l0, l1; {generic}
                    {unpack} st{access}{v}.b{width} [l0], {braces}; ld{access}{v}.b{width} {braces}, [l0]; {pack} }}"
            );
            check(&body, &[64], 64, &values, |t| t[0]);
        }
    }
}

#[test]
fn hints_to_caches_change_nothing() {
    let values = [integer_edges(32)];
    for hint in ["ca", "cg", "cs", "cv", "lu", "volatile", "relaxed.cta", "L1::evict_last", "L1::no_allocate.L2::128B"]
    {
        let (before, after) = if hint.starts_with("vol") || hint.starts_with("rel") {
            (format!(".{hint}"), String::new())
        } else {
            (String::new(), format!(".{hint}"))
        };
        let body = format!("ld{before}.global{after}.u32 d, [base];");
        // `base` is where the harness found the last operand.
        check(&body, &[32], 32, &values, |t| t[0]);
    }
    check("ld.global.nc.u32 d, [base];", &[32], 32, &values, |t| t[0]);
}

/// One thread's atomic operations, for old and new value.
#[test]
fn atomic_operations_return_the_old_value_and_store_the_new() {
    let edges: Vec<u64> = integer_edges(32).into_iter().step_by(2).collect();
    let pairs = product(&[&edges, &edges]);
    type Oracle = fn(u64, u64) -> u64;
    // Device memory adds without subnormal numbers, shared memory with them.
    let floats: [u64; 8] = [0, 1, 0x8000_0001, 0x007f_ffff, 0x0080_0001, 0x8080_0000, 0x0090_0000, 0x3f80_0000];
    let mut pairs = pairs;
    for (list, more) in pairs.iter_mut().zip(product(&[&floats, &floats])) {
        list.extend(more);
    }
    let in_global: Oracle = |a, b| F32.flush(F32.add(Rounding::Nearest, F32.flush(a), F32.flush(b)));
    let cases: [(&str, Oracle); 13] = [
        ("add.u32", |a, b| (a + b) & 0xffff_ffff),
        ("and.b32", |a, b| a & b),
        ("or.b32", |a, b| a | b),
        ("xor.b32", |a, b| a ^ b),
        ("exch.b32", |_, b| b),
        ("min.u32", |a, b| a.min(b)),
        ("max.u32", |a, b| a.max(b)),
        ("min.s32", |a, b| if signed(a, 32) < signed(b, 32) { a } else { b }),
        ("max.s32", |a, b| if signed(a, 32) > signed(b, 32) { a } else { b }),
        ("inc.u32", |a, b| if a >= b { 0 } else { a + 1 }),
        ("dec.u32", |a, b| if a == 0 || a > b { b } else { a - 1 }),
        ("add.f32", |a, b| F32.add(Rounding::Nearest, a, b)),
        ("add.noftz.f16x2", |a, b| {
            let half = |shift: u32| {
                let of = |bits: u64| half::f16::from_bits((bits >> shift) as u16).to_f64();
                let sum = half::f16::from_f64(of(a) + of(b));
                u64::from(if sum.is_nan() { 0x7fff } else { sum.to_bits() }) << shift
            };
            half(0) | half(16)
        }),
    ];
    for space in ["shared", "global"] {
        for (name, oracle) in cases {
            // The harness's own array of the first operand serves as memory.
            let place = if space == "shared" {
                ".shared .align 4 .b8 place[1024]; mov.u64 l0, place; mov.u32 r0, %tid.x; mul.wide.u32 l1, r0, 4;
                 add.u64 l0, l0, l1; st.shared.b32 [l0], a;"
            } else {
                "ld.param.u64 l0, [a_values]; mul.wide.u32 l1, index, 4; add.u64 l0, l0, l1;"
            };
            let oracle = if (space, name) == ("global", "add.f32") { in_global } else { oracle };
            for (result, oracle) in [("r1", (|a, _| a) as Oracle), ("r2", oracle)] {
                let body = format!(
                    "{{ {place} atom.{space}.{name} r1, [l0], b; ld.{space}.b32 r2, [l0]; mov.b32 d, {result}; }}"
                );
                check(&body, &[32; 2], 32, &pairs, |t| oracle(t[0], t[1]));
            }
        }
    }
    let cas = product(&[&edges, &edges]);
    let body = "{ .shared .align 4 .b8 place[1024]; mov.u64 l0, place; mov.u32 r0, %tid.x; mul.wide.u32 l1, r0, 4;
        add.u64 l0, l0, l1; st.shared.b32 [l0], a; atom.shared.cas.b32 r1, [l0], b, 77; ld.shared.b32 d, [l0]; }";
    check(body, &[32; 2], 32, &cas, |t| if t[0] == t[1] { 77 } else { t[0] });
}

#[test]
fn threads_add_up_in_shared_and_global_memory() {
    let mut random = Random::new(20);
    let values: Vec<u64> = (0..2048).map(|_| random.next() & 0xff_ffff).collect();
    let body = "{ .shared .align 4 .b32 total; mov.u32 r0, %tid.x; setp.eq.u32 p, r0, 0; @p st.shared.u32 [total], 0;
        bar.sync 0; red.shared.add.u32 [total], a; bar.sync 0; ld.shared.u32 d, [total]; }";
    let got = apply(body, &[32], 32, std::slice::from_ref(&values));
    for (block, got) in got.chunks(256).enumerate() {
        let wanted = values[256 * block..256 * block + 256].iter().sum::<u64>() & 0xffff_ffff;
        assert!(got.iter().all(|got| *got == wanted));
    }
}

#[test]
fn floats_add_up_in_the_order_of_blocks_whatever_the_number_of_workers() {
    let text = ".version 7.0
        .target sm_80
        .address_size 64
        .visible .entry test(.param .u64 total)
        {
            .reg .b64 address; .reg .f32 value; .reg .b32 index, block, bits;
            ld.param.u64 address, [total];
            mov.u32 index, %tid.x; mov.u32 block, %ctaid.x;
            mad.lo.u32 bits, block, 37, index;
            mul.lo.u32 bits, bits, 2654435761;
            shr.u32 bits, bits, 3;
            cvt.rn.f32.u32 value, bits;
            red.global.add.f32 [address], value;
        }";
    let module = Module::parse(text).expect("plain PTX");
    let mut results = Vec::new();
    for workers in [1, 2, 7] {
        let machine = machine();
        machine.set_workers(workers);
        let total = machine.allocate(4).expect("four bytes");
        machine.fill(total, 0, 4).expect("four bytes");
        let launch = Launch { grid: [50, 1, 1], block: [64, 1, 1], shared_bytes: 0, parameters: &total.to_le_bytes() };
        let counts = machine.launch(&module, module.function("test").expect("defined"), launch).expect("no fault");
        let mut bytes = [0; 4];
        machine.read(total, &mut bytes).expect("four bytes");
        results.push((bytes, counts));
    }
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

#[test]
fn functions_are_called_with_parameters_and_results() {
    let text = ".version 7.0
        .target sm_80
        .address_size 64
        .func (.param .b32 result) factorial(.param .b32 of)
        {
            .reg .b32 n, below, product; .reg .pred last;
            ld.param.u32 n, [of];
            setp.le.u32 last, n, 1;
            @last bra ONE;
            sub.u32 below, n, 1;
            {
                .param .b32 argument; .param .b32 got;
                st.param.b32 [argument], below;
                call (got), factorial, (argument);
                ld.param.b32 below, [got];
            }
            mul.lo.u32 product, n, below;
            st.param.b32 [result], product;
            ret;
        ONE:
            st.param.b32 [result], 1;
            ret;
        }
        .visible .entry test(.param .u64 results)
        {
            .reg .b64 address, offset; .reg .b32 index, value;
            mov.u32 index, %tid.x;
            {
                .param .b32 argument; .param .b32 got;
                st.param.b32 [argument], index;
                call.uni (got), factorial, (argument);
                ld.param.b32 value, [got];
            }
            ld.param.u64 address, [results];
            mul.wide.u32 offset, index, 4;
            add.u64 address, address, offset;
            st.global.u32 [address], value;
        }";
    let module = Module::parse(text).expect("plain PTX");
    let machine = machine();
    let results = machine.allocate(40).expect("forty bytes");
    let launch = Launch { grid: [1; 3], block: [10, 1, 1], shared_bytes: 0, parameters: &results.to_le_bytes() };
    machine
        .launch(&module, module.function("test").expect("defined"), launch)
        .unwrap_or_else(|fault| panic!("{fault}"));
    let mut bytes = [0; 40];
    machine.read(results, &mut bytes).expect("forty bytes");
    let got: Vec<u32> = bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four"))).collect();
    assert_eq!(got, [1, 1, 2, 6, 24, 120, 720, 5040, 40320, 362880]);
}

#[test]
fn asynchronous_copies_arrive_with_their_group() {
    // Each thread copies 16 bytes, of which the second half is left out, and waits; its neighbour reads them.
    let text = ".version 7.0
        .target sm_80
        .address_size 64
        .visible .entry test(.param .u64 data)
        {
            .reg .b64 address, offset; .reg .b32 index, to, a, b, c, e;
            .shared .align 16 .b8 place[1024];
            mov.u32 index, %tid.x;
            ld.param.u64 address, [data];
            mul.wide.u32 offset, index, 16;
            add.u64 address, address, offset;
            mov.u32 to, place;
            mad.lo.u32 to, index, 16, to;
            cp.async.cg.shared.global [to], [address], 16, 8;
            cp.async.commit_group;
            cp.async.commit_group;
            cp.async.wait_group 1;
            bar.sync 0;
            xor.b32 index, index, 1;
            mov.u32 to, place;
            mad.lo.u32 to, index, 16, to;
            ld.shared.v4.u32 {a, b, c, e}, [to];
            bar.sync 0;
            st.global.v4.u32 [address], {a, b, c, e};
        }";
    let module = Module::parse(text).expect("plain PTX");
    let machine = machine();
    let data = machine.allocate(1024).expect("1 KiB");
    let bytes: Vec<u8> = (0..1024u32).map(|at| (at * 3 + 1) as u8).collect();
    machine.write(data, &bytes).expect("1 KiB");
    let launch = Launch { grid: [1; 3], block: [64, 1, 1], shared_bytes: 0, parameters: &data.to_le_bytes() };
    machine
        .launch(&module, module.function("test").expect("defined"), launch)
        .unwrap_or_else(|fault| panic!("{fault}"));
    let mut out = vec![0; 1024];
    machine.read(data, &mut out).expect("1 KiB");
    for thread in 0..64 {
        let from = 16 * (thread ^ 1);
        assert_eq!(out[16 * thread..16 * thread + 8], bytes[from..from + 8]);
        assert_eq!(out[16 * thread + 8..16 * thread + 16], [0; 8]);
    }
}
