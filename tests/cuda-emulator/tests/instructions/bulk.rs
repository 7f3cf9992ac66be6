//! Bulk copies against plain loops: boxes of tensors over every swizzle, inside, across the edges and outside.

use crate::harness::{Random, machine};
use cuda_emulator::{Counts, Launch, Machine, Module, Swizzle, TensorMap};

/// Bytes of shared memory that a kernel has for its box.
const ROOM: u64 = 16 << 10;

/// Runs `body` by thread 0 of a warp, with the map's generic address in `map`, shared addresses `room` (of 16 KiB, with
/// 1 KiB more) and `mbar`, the parameters `data`, `c0` to `c4` as registers, and an mbarrier for one arrival; then copies
/// the room to `out`.
fn run(machine: &Machine, body: &str, map: &[u8], data: u64, start: [i32; 5], out: u64) -> Counts {
    let text = format!(
        ".version 8.6
        .target sm_90a
        .address_size 64
        .extern .shared .align 1024 .b8 memory[];
        .visible .entry test(.param .u64 .ptr .global p_data, .param .align 64 .b8 p_map[128], .param .u64 p_out,
            .param .align 4 .b8 p_start[20])
        {{
            .reg .b64 data, map, to, state, offset;
            .reg .b32 thread, room, mbar, c<5>, word, at, count;
            .reg .pred zero, done, more;
            mov.u32 thread, %tid.x;
            setp.eq.u32 zero, thread, 0;
            ld.param.u64 data, [p_data];
            mov.b64 map, p_map;
            cvta.param.u64 map, map;
            ld.param.b32 c0, [p_start]; ld.param.b32 c1, [p_start+4]; ld.param.b32 c2, [p_start+8];
            ld.param.b32 c3, [p_start+12]; ld.param.b32 c4, [p_start+16];
            mov.u32 room, memory;
            add.u32 mbar, room, {ROOM};
            ld.param.u64 to, [p_out];
            mul.wide.u32 offset, thread, 4;
            add.u64 to, to, offset;
            mad.lo.u32 at, thread, 4, room;
            mov.u32 count, 0;
        CLEAR:
            add.u32 word, at, count;
            st.shared.u32 [word], word;
            add.u32 count, count, 128;
            setp.lt.u32 more, count, {ROOM};
            @more bra CLEAR;
            @zero mbarrier.init.shared::cta.b64 [mbar], 1;
            fence.mbarrier_init.release.cluster;
            fence.proxy.async;
            bar.sync 0;
            @!zero bra JOIN;
            {body}
        JOIN:
            bar.sync 0;
            mov.u32 count, 0;
        COPY:
            add.u32 word, at, count;
            ld.shared.u32 word, [word];
            st.global.u32 [to], word;
            add.u64 to, to, 128;
            add.u32 count, count, 128;
            setp.lt.u32 more, count, {ROOM};
            @more bra COPY;
            ret;
        }}"
    );
    let module = Module::parse(&text).unwrap_or_else(|error| panic!("{body}: {error}"));
    let kernel = module.function("test").expect("defined");
    let mut parameters = data.to_le_bytes().to_vec();
    parameters.resize(64, 0);
    parameters.extend_from_slice(map);
    parameters.extend(out.to_le_bytes());
    parameters.extend(start.iter().flat_map(|one| one.to_le_bytes()));
    let launch = Launch { grid: [1; 3], block: [32, 1, 1], shared_bytes: ROOM as u32 + 1024, parameters: &parameters };
    machine.launch(&module, kernel, launch).unwrap_or_else(|fault| panic!("{body}: {fault}"))
}

const WAIT: &str = "WAIT: mbarrier.try_wait.parity.shared::cta.b64 done, [mbar], 0; @!done bra WAIT;";

/// What the room holds before anything comes.
fn untouched() -> Vec<u8> {
    (0..ROOM as u32 / 4).flat_map(|word| (4 * word).to_le_bytes()).collect()
}

struct Tensor {
    map: TensorMap,
    bytes: Vec<u8>,
}

/// A tensor with rows that have some bytes more than they need.
fn tensor(machine: &Machine, element: u32, extents: &[u64], box_extents: &[u32], swizzle: Swizzle) -> Tensor {
    let mut strides = Vec::new();
    let mut whole = (extents[0] * u64::from(element)).next_multiple_of(16) + 16;
    for extent in &extents[1..] {
        strides.push(whole);
        whole *= extent;
    }
    let mut random = Random::new(whole);
    let bytes: Vec<u8> = (0..whole).map(|_| random.next() as u8).collect();
    let address = machine.allocate(whole).expect("room");
    machine.write(address, &bytes).expect("inside");
    let map = TensorMap {
        address,
        element_bytes: element,
        extents: extents.to_vec(),
        strides,
        box_extents: box_extents.to_vec(),
        swizzle,
    };
    Tensor { map, bytes }
}

impl Tensor {
    /// Calls `visit` with each byte of the box: where it lies in the room, and in the tensor if it is inside.
    fn each(&self, start: [i32; 5], mut visit: impl FnMut(usize, Option<usize>)) {
        let map = &self.map;
        let element = map.element_bytes as usize;
        let total: usize = map.box_extents.iter().map(|extent| *extent as usize).product();
        for index in 0..total {
            let (mut left, mut at, mut inside) = (index, 0usize, true);
            for (axis, start) in start.iter().enumerate().take(map.extents.len()) {
                let extent = map.box_extents[axis] as usize;
                let place = i64::from(*start) + (left % extent) as i64;
                left /= extent;
                inside &= place >= 0 && place < map.extents[axis] as i64;
                let stride = if axis == 0 { element as i64 } else { map.strides[axis - 1] as i64 };
                at = at.wrapping_add((place * stride) as usize);
            }
            for byte in 0..element {
                let plain = index * element + byte;
                let pieces = match map.swizzle {
                    Swizzle::None => 1,
                    Swizzle::Bytes32 => 2,
                    Swizzle::Bytes64 => 4,
                    Swizzle::Bytes128 => 8,
                };
                visit(plain ^ (plain / 128 % pieces * 16), inside.then_some(at + byte));
            }
        }
    }
}

fn loaded(machine: &Machine, out: u64) -> Vec<u8> {
    let mut room = vec![0; ROOM as usize];
    machine.read(out, &mut room).expect("inside");
    room
}

/// Loads the box at `start` and stores it again somewhere else.
fn check(element: u32, extents: &[u64], box_extents: &[u32], swizzle: Swizzle, starts: &[[i32; 5]]) {
    let machine = machine();
    let tensor = tensor(&machine, element, extents, box_extents, swizzle);
    let map = tensor.map.encode().expect("a map as the driver allows");
    let out = machine.allocate(ROOM).expect("room");
    let rank = extents.len();
    let coordinates = ["{c0}", "{c0, c1}", "{c0, c1, c2}", "{c0, c1, c2, c3}", "{c0, c1, c2, c3, c4}"][rank - 1];
    let bytes: u32 = box_extents.iter().product::<u32>() * element;
    for start in starts {
        let body = format!(
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [mbar], {bytes};
            cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
                [room], [map, {coordinates}], [mbar];
            {WAIT}"
        );
        let counts = run(&machine, &body, &map, 0, *start, out);
        let mut expected = untouched();
        let mut inside = 0;
        tensor.each(*start, |at, from| {
            expected[at] = from.map_or(0, |from| tensor.bytes[from]);
            inside += u64::from(from.is_some());
        });
        assert!(loaded(&machine, out) == expected, "{extents:?} {box_extents:?} {swizzle:?} at {start:?}");
        assert_eq!((counts.bulk_loads.requests, counts.bulk_loads.bytes), (1, inside));
        assert_eq!(counts.waits.mbarriers, 1);

        let body = format!(
            "cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group [map, {coordinates}], [room];
            cp.async.bulk.commit_group;
            cp.async.bulk.wait_group 0;"
        );
        let counts = run(&machine, &body, &map, 0, *start, out);
        assert_eq!((counts.bulk_stores.requests, counts.bulk_stores.bytes), (1, inside));
        let mut expected = tensor.bytes.clone();
        let room = untouched();
        tensor.each(*start, |at, to| {
            if let Some(to) = to {
                expected[to] = room[at];
            }
        });
        let mut got = vec![0; expected.len()];
        machine.read(tensor.map.address, &mut got).expect("inside");
        assert!(got == expected, "stored: {extents:?} {box_extents:?} {swizzle:?} at {start:?}");
        machine.write(tensor.map.address, &tensor.bytes).expect("inside");
    }
}

#[test]
fn boxes_of_tensors() {
    let all = [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128];
    let starts = [
        [0; 5],
        [8, 3, 0, 0, 0],
        [-5, -2, 0, 0, 0],
        [60, 30, 0, 0, 0],
        [100, 0, 0, 0, 0],
        [0, -16, 0, 0, 0],
        [7, 39, 0, 0, 0],
    ];
    for (swizzle, width) in all.into_iter().zip([64, 16, 32, 64]) {
        check(2, &[70, 40], &[width, 16], swizzle, &starts);
    }
    check(4, &[33], &[64], Swizzle::None, &[[0; 5], [10, 0, 0, 0, 0], [-63, 0, 0, 0, 0], [33, 0, 0, 0, 0]]);
    check(1, &[100, 5, 7], &[128, 3, 2], Swizzle::Bytes128, &[[0; 5], [-3, 4, -1, 0, 0], [50, 1, 6, 0, 0]]);
    check(2, &[64, 9, 3, 4], &[64, 8, 1, 2], Swizzle::Bytes128, &[[0; 5], [0, 5, 2, 3, 0], [0, 1, -1, 0, 0]]);
    check(2, &[16, 4, 3, 2, 3], &[16, 2, 2, 2, 2], Swizzle::Bytes32, &[[0; 5], [4, 3, 2, 1, 2], [0, -1, -1, -1, -1]]);
    check(8, &[6, 5], &[4, 4], Swizzle::None, &[[3, 2, 0, 0, 0]]);
}

#[test]
fn a_map_in_device_memory_and_a_policy() {
    let machine = machine();
    let tensor = tensor(&machine, 2, &[64, 16], &[64, 8], Swizzle::Bytes128);
    let map = tensor.map.encode().expect("a map as the driver allows");
    let at = machine.allocate(128).expect("room");
    machine.write(at, &map).expect("inside");
    let out = machine.allocate(ROOM).expect("room");
    let body = format!(
        "prefetch.tensormap [data];
        mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [mbar], 1024;
        mbarrier.arrive.shared.b64 state, [mbar];
        cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint
            [room], [data, {{c0, c1}}], [mbar], state;
        {WAIT}"
    );
    run(&machine, &body, &[0; 128], at, [0, 8, 0, 0, 0], out);
    let mut expected = untouched();
    tensor.each([0, 8, 0, 0, 0], |at, from| expected[at] = from.map_or(0, |from| tensor.bytes[from]));
    assert!(loaded(&machine, out) == expected);
}

#[test]
fn plain_bytes_there_and_back() {
    let machine = machine();
    let data = machine.allocate(4096).expect("room");
    let bytes: Vec<u8> = (0..4096u32).map(|at| (at * 7 / 8) as u8).collect();
    machine.write(data, &bytes).expect("inside");
    let out = machine.allocate(ROOM).expect("room");
    let body = format!(
        "add.u64 offset, data, 2048;
        add.u32 word, room, 512;
        // Bytes may come before they are expected.
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [word], [data], 1024, [mbar];
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [room+16], [data+16], 32, [mbar];
        mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 state, [mbar], 1056;
        {WAIT}
        cp.async.bulk.global.shared::cta.bulk_group [offset], [word], 1024;
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group.read 0;
        cp.async.bulk.wait_group 0;"
    );
    let counts = run(&machine, &body, &[0; 128], data, [0; 5], out);
    let room = loaded(&machine, out);
    let mut expected = untouched();
    expected[512..1536].copy_from_slice(&bytes[..1024]);
    expected[16..48].copy_from_slice(&bytes[16..48]);
    assert!(room == expected);
    let mut got = vec![0; 4096];
    machine.read(data, &mut got).expect("inside");
    assert_eq!(got[2048..3072], bytes[..1024]);
    assert_eq!((counts.bulk_loads.sectors, counts.bulk_loads.ideal_sectors), (34, 33));
    assert_eq!((counts.bulk_stores.sectors, counts.waits.bulk_copies), (32, 2));
}

#[test]
fn an_mbarrier_follows_small_copies() {
    let machine = machine();
    let data = machine.allocate(64).expect("room");
    let bytes: Vec<u8> = (0..64).collect();
    machine.write(data, &bytes).expect("inside");
    let out = machine.allocate(ROOM).expect("room");
    for (noinc, arrive) in [(".noinc", ""), ("", "mbarrier.arrive.shared::cta.b64 _, [mbar];")] {
        let body = format!(
            "cp.async.ca.shared.global [room], [data], 16;
            cp.async.ca.shared.global [room+32], [data+8], 8;
            cp.async.mbarrier.arrive{noinc}.shared::cta.b64 [mbar];
            {arrive}
            {WAIT}
            mbarrier.inval.shared::cta.b64 [mbar];"
        );
        run(&machine, &body, &[0; 128], data, [0; 5], out);
        let mut expected = untouched();
        expected[..16].copy_from_slice(&bytes[..16]);
        expected[32..40].copy_from_slice(&bytes[8..16]);
        assert!(loaded(&machine, out) == expected);
    }
}

#[test]
fn maps_that_the_driver_refuses() {
    let machine = machine();
    let good = tensor(&machine, 2, &[64, 16], &[64, 8], Swizzle::Bytes128).map;
    assert!(good.encode().is_ok());
    let refused = |change: &dyn Fn(&mut TensorMap)| {
        let mut map = good.clone();
        change(&mut map);
        assert!(map.encode().is_err(), "{map:?}");
    };
    refused(&|map| map.address += 8);
    refused(&|map| map.strides[0] += 8);
    refused(&|map| map.strides[0] = 1 << 40);
    refused(&|map| map.extents[1] = 0);
    refused(&|map| map.extents[1] = (1 << 32) + 1);
    refused(&|map| map.box_extents[1] = 257);
    refused(&|map| map.box_extents[1] = 0);
    refused(&|map| map.box_extents[0] = 60);
    refused(&|map| map.box_extents[0] = 128);
    refused(&|map| map.swizzle = Swizzle::Bytes64);
    refused(&|map| map.element_bytes = 3);
    refused(&|map| map.strides.clear());
    refused(&|map| (map.extents, map.strides, map.box_extents) = (vec![1; 6], vec![16; 5], vec![16; 6]));
}
