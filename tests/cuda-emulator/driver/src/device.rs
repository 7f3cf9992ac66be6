//! The one device: what it is and what it can do.

use std::ffi::{c_char, c_int};

use crate::entries;
use crate::error::{Code, Result};
use crate::state::{Driver, Handle, driver, put, put_text, start, to_handle};

/// The handle of the default memory pool.
pub const DEFAULT_POOL: usize = 0x100;

/// Blocks that a multiprocessor holds: CUDA C++ Programming Guide, technical specifications per compute capability.
pub fn blocks_per_multiprocessor(driver: &Driver) -> u32 {
    match driver.machine.architecture().capability {
        (8, 6) => 16,
        (8, 9) | (12, _) => 24,
        _ => 32,
    }
}

fn check(device: c_int) -> Result<&'static Driver> {
    let driver = driver()?;
    if device == 0 { Ok(driver) } else { Err(Code::INVALID_DEVICE) }
}

fn attribute(driver: &Driver, attribute: u32) -> u32 {
    let architecture = driver.machine.architecture();
    match attribute {
        1..=3 => 1024, // threads per block, block x and y
        4 => 64,       // block z
        5 => i32::MAX as u32,
        6 | 7 => 65_535,
        8 => 48 << 10, // shared memory per block unless asked for more
        9 => 64 << 10, // constant memory
        10 => 32,      // warp
        11 => i32::MAX as u32,
        12 | 82 => 64 << 10, // registers per block and multiprocessor
        13 => 1_410_000,     // kHz
        14 | 30 => 512,
        51 => 32,
        15 | 31 => 1, // overlap, concurrent kernels
        16 => architecture.multiprocessors,
        36 => 1_215_000,
        37 => 5120,
        38 => 40 << 20,
        39 => architecture.threads_per_multiprocessor,
        40 => 1, // copy engines
        41 => 1, // unified addressing
        75 => architecture.capability.0,
        76 => architecture.capability.1,
        78 => 1,      // stream priorities
        79 | 80 => 1, // L1 caches
        81 => architecture.shared_bytes_per_multiprocessor as u32,
        87 => 2,
        90 => 1,
        95 => 1, // cooperative launches
        97 => architecture.max_shared_bytes as u32,
        99 => 1, // host memory can be registered
        106 => blocks_per_multiprocessor(driver),
        111 => 1 << 10,                                         // shared memory that is the system's
        115 => 1,                                               // memory pools
        120 | 127 => u32::from(architecture.capability.0 >= 9), // clusters, tensor maps
        _ => 0,
    }
}

entries! {
    fn cuInit(flags: u32) {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        start()
    }
    fn cuDriverGetVersion(version: *mut c_int) {
        start()?;
        put(version, driver()?.version as c_int)
    }
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        check(ordinal)?;
        put(device, 0)
    }
    fn cuDeviceGetCount(count: *mut c_int) {
        driver()?;
        put(count, 1)
    }
    fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) {
        let name_of = format!("CUDA emulator {}", check(device)?.machine.architecture());
        put_text(name, usize::try_from(length).map_err(|_| Code::INVALID_VALUE)?, &name_of)
    }
    fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) {
        check(device)?;
        put(uuid, *b"cuda-emulator-00")
    }
    fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) {
        check(device)?;
        put(uuid, *b"cuda-emulator-00")
    }
    fn cuDeviceGetPCIBusId(text: *mut c_char, length: c_int, device: c_int) {
        check(device)?;
        put_text(text, usize::try_from(length).map_err(|_| Code::INVALID_VALUE)?, "0000:00:00.0")
    }
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) {
        put(bytes, check(device)?.machine.memory().0 as usize)
    }
    fn cuDeviceGetAttribute(value: *mut c_int, which: u32, device: c_int) {
        let driver = check(device)?;
        // As of CUDA 13 the list ends here.
        if which == 0 || which > 162 {
            return Err(Code::INVALID_VALUE);
        }
        put(value, attribute(driver, which) as c_int)
    }
    fn cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, device: c_int) {
        let capability = check(device)?.machine.architecture().capability;
        put(major, capability.0 as c_int)?;
        put(minor, capability.1 as c_int)
    }
    fn cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) {
        check(device)?;
        check(peer)?;
        put(can, 0)
    }
    fn cuDeviceGetDefaultMemPool(pool: *mut Handle, device: c_int) {
        check(device)?;
        put(pool, to_handle(DEFAULT_POOL))
    }
    fn cuDeviceGetMemPool(pool: *mut Handle, device: c_int) {
        check(device)?;
        put(pool, to_handle(DEFAULT_POOL))
    }
    fn cuDeviceSetMemPool(device: c_int, _pool: Handle) { check(device).map(|_| ()) }
    fn cuProfilerStart() { Ok(()) }
    fn cuProfilerStop() { Ok(()) }
}
