//! Bulk copies against plain loops: boxes of tensors over every swizzle, inside, across the edges and outside.

use crate::harness::{Argument, Random, launch};
use cuda_emulator::{Counts, Swizzle, TensorMap};

/// Bytes of shared memory that a kernel has for its box.
const ROOM: u64 = 16 << 10;

/// What a kernel leaves: the data, the tensor, and the room.
struct Left {
    data: Vec<u8>,
    tensor: Vec<u8>,
    room: Vec<u8>,
    counts: Counts,
}

/// Runs `body` by thread 0 of a warp, with the tensor map's generic address in `map`, that of the data in `data`, shared
/// addresses `room` (of 16 KiB) and `mbar`, an mbarrier for one arrival, and the box's start in registers `c0` to `c4`.
fn run(body: &str, tensor: &Tensor, in_memory: bool, data: &[u8], start: [i32; 5]) -> Left {
    let (declared, loaded) = if in_memory {
        (".param .u64 p_map", "ld.param.u64 map, [p_map];")
    } else {
        (".param .align 64 .b8 p_map[128]", "mov.b64 map, p_map; cvta.param.u64 map, map;")
    };
    let text = format!(
        ".version 8.6
        .target sm_90a
        .address_size 64
        .extern .shared .align 1024 .b8 memory[];
        .visible .entry test(.param .u64 .ptr .global p_data, {declared}, .param .u64 p_out,
            .param .align 4 .b8 p_start[20])
        {{
            .reg .b64 data, map, to, state, offset;
            .reg .b32 thread, room, mbar, c<5>, word, at, count, place;
            .reg .pred zero, done, more;
            mov.u32 thread, %tid.x;
            setp.eq.u32 zero, thread, 0;
            ld.param.u64 data, [p_data];
            {loaded}
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
            // Where shared memory begins is the device's affair.
            sub.u32 place, word, room;
            st.shared.u32 [word], place;
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
    let start: Vec<u8> = start.iter().flat_map(|one| one.to_le_bytes()).collect();
    let map = if in_memory { Argument::MapInMemory } else { Argument::Map };
    let room = [0; ROOM as usize];
    let arguments =
        [Argument::Memory(data), map(&tensor.map, &tensor.bytes), Argument::Memory(&room), Argument::Value(&start)];
    let (memory, counts) = launch(body, &text, 32, ROOM as u32 + 1024, &arguments);
    let [data, tensor, room] = memory.try_into().expect("three pieces of memory");
    Left { data, tensor, room, counts }
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
fn tensor(element: u32, extents: &[u64], box_extents: &[u32], swizzle: Swizzle) -> Tensor {
    let mut strides = Vec::new();
    let mut whole = (extents[0] * u64::from(element)).next_multiple_of(16) + 16;
    for extent in &extents[1..] {
        strides.push(whole);
        whole *= extent;
    }
    let mut random = Random::new(whole);
    let bytes: Vec<u8> = (0..whole).map(|_| random.next() as u8).collect();
    let map = TensorMap {
        address: 0,
        element_bytes: element,
        extents: extents.to_vec(),
        strides,
        box_extents: box_extents.to_vec(),
        swizzle,
    };
    Tensor { map, bytes }
}

impl Tensor {
    /// Calls `visit` with each byte of the box: where it lies in the room, and in the tensor if it is inside. Along the
    /// fastest axis, `whole` 16-byte pieces are inside if their first element is.
    fn each(&self, start: [i32; 5], whole: bool, mut visit: impl FnMut(usize, Option<usize>)) {
        let map = &self.map;
        let element = map.element_bytes as usize;
        let pieces = if whole { 16 / element as i64 } else { 1 };
        let total: usize = map.box_extents.iter().map(|extent| *extent as usize).product();
        for index in 0..total {
            let (mut left, mut at, mut inside) = (index, 0usize, true);
            for (axis, start) in start.iter().enumerate().take(map.extents.len()) {
                let extent = map.box_extents[axis] as usize;
                let place = i64::from(*start) + (left % extent) as i64;
                left /= extent;
                let judged = if axis == 0 { place - place.rem_euclid(pieces) } else { place };
                inside &= judged >= 0 && judged < map.extents[axis] as i64;
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

/// Loads the box at `start`, then stores another there. An H200 stores whole 16-byte pieces, past the end of a row if
/// the row ends within one, and no box whose start has a coordinate below 0.
fn check(element: u32, extents: &[u64], box_extents: &[u32], swizzle: Swizzle, starts: &[[i32; 5]]) {
    let tensor = tensor(element, extents, box_extents, swizzle);
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
        let Left { room, counts, .. } = run(&body, &tensor, false, &[0], *start);
        let mut expected = untouched();
        let mut inside = 0;
        tensor.each(*start, false, |at, from| {
            expected[at] = from.map_or(0, |from| tensor.bytes[from]);
            inside += u64::from(from.is_some());
        });
        assert!(room == expected, "{extents:?} {box_extents:?} {swizzle:?} at {start:?}");
        assert_eq!((counts.bulk_loads.requests, counts.bulk_loads.bytes), (1, inside));
        assert_eq!(counts.waits.mbarriers, 1);
        if start.iter().any(|one| *one < 0) {
            continue;
        }

        let body = format!(
            "cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group [map, {coordinates}], [room];
            cp.async.bulk.commit_group;
            cp.async.bulk.wait_group 0;"
        );
        let left = run(&body, &tensor, false, &[0], *start);
        let mut expected = tensor.bytes.clone();
        let room = untouched();
        let mut inside = 0;
        tensor.each(*start, true, |at, to| {
            if let Some(to) = to {
                expected[to] = room[at];
                inside += 1;
            }
        });
        assert_eq!((left.counts.bulk_stores.requests, left.counts.bulk_stores.bytes), (1, inside));
        assert!(left.tensor == expected, "stored: {extents:?} {box_extents:?} {swizzle:?} at {start:?}");
    }
}

/// For kernels that need none.
fn no_tensor() -> Tensor {
    tensor(2, &[64, 16], &[64, 8], Swizzle::Bytes128)
}

#[test]
fn boxes_of_tensors() {
    let all = [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128];
    // A row of a box starts at a multiple of 16 bytes.
    let starts = [
        [0; 5],
        [8, 3, 0, 0, 0],
        [-8, -2, 0, 0, 0],
        [64, 30, 0, 0, 0],
        [104, 0, 0, 0, 0],
        [0, -16, 0, 0, 0],
        [0, 40, 0, 0, 0],
        [16, 39, 0, 0, 0],
    ];
    for (swizzle, width) in all.into_iter().zip([64, 16, 32, 64]) {
        check(2, &[70, 40], &[width, 16], swizzle, &starts);
    }
    check(4, &[33], &[64], Swizzle::None, &[[0; 5], [12, 0, 0, 0, 0], [-60, 0, 0, 0, 0], [36, 0, 0, 0, 0]]);
    check(1, &[100, 5, 7], &[128, 3, 2], Swizzle::Bytes128, &[[0; 5], [-16, 4, -1, 0, 0], [48, 1, 6, 0, 0]]);
    check(2, &[64, 9, 3, 4], &[64, 8, 1, 2], Swizzle::Bytes128, &[[0; 5], [0, 5, 2, 3, 0], [0, 1, -1, 0, 0]]);
    check(2, &[16, 4, 3, 2, 3], &[16, 2, 2, 2, 2], Swizzle::Bytes32, &[[0; 5], [8, 3, 2, 1, 2], [0, -1, -1, -1, -1]]);
    check(8, &[6, 5], &[4, 4], Swizzle::None, &[[2, 2, 0, 0, 0], [4, 0, 0, 0, 0]]);
}

#[test]
fn a_map_in_device_memory_and_a_policy() {
    let tensor = no_tensor();
    let body = format!(
        "prefetch.tensormap [map];
        createpolicy.fractional.L2::evict_first.b64 offset;
        mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [mbar], 1024;
        mbarrier.arrive.shared.b64 state, [mbar];
        cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint
            [room], [map, {{c0, c1}}], [mbar], offset;
        {WAIT}"
    );
    let start = [0, 8, 0, 0, 0];
    let mut expected = untouched();
    tensor.each(start, false, |at, from| expected[at] = from.map_or(0, |from| tensor.bytes[from]));
    assert!(run(&body, &tensor, true, &[0], start).room == expected);
}

#[test]
fn plain_bytes_there_and_back() {
    let bytes: Vec<u8> = (0..4096u32).map(|at| (at * 7 / 8) as u8).collect();
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
    let Left { data, room, counts, .. } = run(&body, &no_tensor(), false, &bytes, [0; 5]);
    let mut expected = untouched();
    expected[512..1536].copy_from_slice(&bytes[..1024]);
    expected[16..48].copy_from_slice(&bytes[16..48]);
    assert!(room == expected);
    assert_eq!(data[2048..3072], bytes[..1024]);
    assert_eq!((counts.bulk_loads.sectors, counts.bulk_loads.ideal_sectors), (34, 33));
    assert_eq!((counts.bulk_stores.sectors, counts.waits.bulk_copies), (32, 2));
}

#[test]
fn an_mbarrier_follows_small_copies() {
    let bytes: Vec<u8> = (0..64).collect();
    for (noinc, arrive) in [(".noinc", ""), ("", "mbarrier.arrive.shared::cta.b64 _, [mbar];")] {
        let body = format!(
            "cp.async.ca.shared.global [room], [data], 16;
            cp.async.ca.shared.global [room+32], [data+8], 8;
            cp.async.mbarrier.arrive{noinc}.shared::cta.b64 [mbar];
            {arrive}
            {WAIT}
            mbarrier.inval.shared::cta.b64 [mbar];"
        );
        let mut expected = untouched();
        expected[..16].copy_from_slice(&bytes[..16]);
        expected[32..40].copy_from_slice(&bytes[8..16]);
        assert!(run(&body, &no_tensor(), false, &bytes, [0; 5]).room == expected);
    }
}

#[test]
fn maps_that_the_driver_refuses() {
    let good = no_tensor().map;
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
