//! Errors in words, and entry points by name.

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

use crate::error::{Code, Result, describe};
use crate::module::name;
use crate::state::{put, put_if_wanted};
use crate::{context, device, entries, graph, launch, memory, module, stream, tensor};

/// `CU_GET_PROC_ADDRESS_SUCCESS` and `CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND`.
const FOUND: u32 = 0;
const NOT_FOUND: u32 = 1;

/// Addresses, which any thread may have.
struct Table(HashMap<&'static str, *mut c_void>);

// SAFETY: addresses of functions.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

fn entry(name: &str) -> Option<*mut c_void> {
    static ALL: OnceLock<Table> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let tables = [
            context::table(),
            device::table(),
            graph::table(),
            launch::table(),
            memory::table(),
            module::table(),
            stream::table(),
            tensor::table(),
            table(),
        ];
        Table(tables.into_iter().flatten().collect())
    });
    all.0.get(name).copied()
}

/// The CUDA version from which on a name without suffix means this version of the entry point.
fn since(name: &str) -> c_int {
    match name {
        "cuCtxCreate_v3" => 11_040,
        "cuCtxCreate_v4" => 13_000,
        "cuDeviceGetUuid_v2" => 11_040,
        "cuEventElapsedTime_v2" => 12_080,
        "cuGetProcAddress_v2" => 12_000,
        "cuStreamGetCaptureInfo_v3" => 12_030,
        _ => 0,
    }
}

fn find(wanted: &str, version: c_int) -> Option<*mut c_void> {
    // The streams of a thread are the null stream here, so its variants are the same functions.
    let wanted = wanted.trim_end_matches("_ptsz").trim_end_matches("_ptds");
    ["_v4", "_v3", "_v2", ""]
        .iter()
        .map(|suffix| format!("{wanted}{suffix}"))
        .filter(|name| since(name) <= version)
        .find_map(|name| entry(&name))
}

unsafe fn look_up(symbol: *const c_char, function: *mut *mut c_void, version: c_int, status: *mut u32) -> Result {
    let found = find(name(symbol)?, version);
    put(function, found.unwrap_or(std::ptr::null_mut()))?;
    put_if_wanted(status, if found.is_some() { FOUND } else { NOT_FOUND });
    if found.is_none() { Err(Code::NOT_FOUND) } else { Ok(()) }
}

entries! {
    fn cuGetProcAddress(symbol: *const c_char, function: *mut *mut c_void, version: c_int, _flags: u64) {
        look_up(symbol, function, version, std::ptr::null_mut())
    }
    fn cuGetProcAddress_v2(
        symbol: *const c_char, function: *mut *mut c_void, version: c_int, _flags: u64, status: *mut u32,
    ) {
        look_up(symbol, function, version, status)
    }
    fn cuGetExportTable(_table: *mut *const c_void, _id: *const c_void) { Err(Code::NOT_FOUND) }
    fn cuGetErrorName(status: u32, text: *mut *const c_char) {
        let (name, _) = describe(status).ok_or(Code::INVALID_VALUE)?;
        put(text, name.as_ptr().cast())
    }
    fn cuGetErrorString(status: u32, text: *mut *const c_char) {
        let (_, words) = describe(status).ok_or(Code::INVALID_VALUE)?;
        put(text, words.as_ptr().cast())
    }
}
