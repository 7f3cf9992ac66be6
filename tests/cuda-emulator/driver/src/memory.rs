//! Device memory, pinned host memory, copies and fills.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{c_int, c_void};

use crate::device::DEFAULT_POOL;
use crate::entries;
use crate::error::{Code, Result};
use crate::state::{Allocation, Handle, Pinned, State, Work, current, driver, put, put_if_wanted, to_handle};
use crate::stream::{Target, enqueue, target, wait};

/// `CU_MEMORYTYPE_HOST`, `CU_MEMORYTYPE_DEVICE`, `CU_MEMORYTYPE_UNIFIED`.
const HOST: u32 = 1;
const DEVICE: u32 = 2;
const UNIFIED: u32 = 4;

fn allocate(state: &mut State, bytes: usize) -> Result<u64> {
    let context = current()?;
    if bytes == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let address = driver()?.machine.allocate(bytes as u64).map_err(|_| Code::OUT_OF_MEMORY)?;
    state.allocations.insert(address, Allocation { bytes, context });
    Ok(address)
}

/// Frees what was allocated at exactly this address.
pub fn free(state: &mut State, address: u64) -> Result {
    state.allocations.remove(&address).ok_or(Code::INVALID_VALUE)?;
    driver()?.machine.free(address).map_err(|_| Code::INVALID_VALUE)
}

/// Says what a context that ends had not freed, and frees it.
pub fn report_leaks(state: &mut State, context: usize) -> Result {
    let leaked: Vec<_> =
        state.allocations.iter().filter(|(_, one)| one.context == context).map(|(at, one)| (*at, one.bytes)).collect();
    for (address, bytes) in leaked {
        eprintln!("cuda emulator: leak: {bytes} bytes at {address:#x} were not freed before their context ended");
        free(state, address)?;
    }
    Ok(())
}

fn allocate_in_stream(address: *mut u64, bytes: usize, stream: Handle) -> Result {
    let mut state = driver()?.state();
    let target = target(&state, stream)?;
    let allocated = allocate(&mut state, bytes)?;
    if let Target::Graph(graph) = target {
        let graph = state.graphs.get_mut(&graph).ok_or(Code::STREAM_CAPTURE_INVALIDATED)?;
        graph.memory.push((allocated, false));
        graph.nodes.push(Work::Nothing);
    }
    // SAFETY: the entry point's caller vouches for the pointer.
    unsafe { put(address, allocated) }
}

fn host_bytes(bytes: usize) -> Result<*mut c_void> {
    let layout = Layout::from_size_align(bytes.max(1), 4096).map_err(|_| Code::INVALID_VALUE)?;
    // SAFETY: the size is not zero.
    let pointer = unsafe { alloc_zeroed(layout) }.cast::<c_void>();
    if pointer.is_null() {
        return Err(Code::OUT_OF_MEMORY);
    }
    driver()?.state().pinned.insert(pointer.expose_provenance(), Pinned { bytes, layout: Some(layout) });
    Ok(pointer)
}

/// The allocation that holds an address: its start and size.
pub fn holding(state: &State, address: u64) -> Option<(u64, usize)> {
    let (start, allocation) = state.allocations.range(..=address).next_back()?;
    (address < start + allocation.bytes as u64).then_some((*start, allocation.bytes))
}

fn copy_to_device(to: u64, from: *const c_void, bytes: usize, stream: Handle) -> Result {
    if bytes == 0 {
        return Ok(());
    }
    if from.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    enqueue(stream, Work::ToDevice { to, from: from.expose_provenance(), bytes })
}

fn copy_to_host(to: *mut c_void, from: u64, bytes: usize, stream: Handle) -> Result {
    if bytes == 0 {
        return Ok(());
    }
    if to.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    enqueue(stream, Work::ToHost { to: to.expose_provenance(), from, bytes })
}

fn copy_on_device(to: u64, from: u64, bytes: usize, stream: Handle) -> Result {
    if bytes == 0 {
        return Ok(());
    }
    enqueue(stream, Work::OnDevice { to, from, bytes })
}

/// Copies between addresses of either kind.
fn copy_any(to: u64, from: u64, bytes: usize, stream: Handle) -> Result {
    let (to_device, from_device) = {
        let state = driver()?.state();
        (holding(&state, to).is_some(), holding(&state, from).is_some())
    };
    let host = |address: u64| std::ptr::with_exposed_provenance_mut::<c_void>(address as usize);
    match (to_device, from_device) {
        (true, true) => copy_on_device(to, from, bytes, stream),
        (true, false) => copy_to_device(to, host(from), bytes, stream),
        (false, true) => copy_to_host(host(to), from, bytes, stream),
        (false, false) => Err(Code::INVALID_VALUE),
    }
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Side {
    x_bytes: usize,
    y: usize,
    kind: u32,
    host: *mut c_void,
    device: u64,
    array: Handle,
    pitch: usize,
}

#[repr(C)]
struct Copy2d {
    from: Side,
    to: Side,
    width_bytes: usize,
    height: usize,
}

fn copy_2d(copy: *const Copy2d, stream: Handle) -> Result {
    if copy.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the entry point's caller vouches for the pointer.
    let Copy2d { from, to, width_bytes, height } = unsafe { copy.read() };
    let address = |side: Side, row: usize| {
        let start = match side.kind {
            HOST => side.host.expose_provenance() as u64,
            DEVICE | UNIFIED => side.device,
            _ => return Err(Code::NOT_SUPPORTED),
        };
        Ok(start + ((side.y + row) * side.pitch + side.x_bytes) as u64)
    };
    (0..height).try_for_each(|row| copy_any(address(to, row)?, address(from, row)?, width_bytes, stream))
}

fn fill(to: u64, pattern: &[u8], count: usize, stream: Handle) -> Result {
    if count == 0 {
        return Ok(());
    }
    if !to.is_multiple_of(pattern.len() as u64) {
        return Err(Code::INVALID_VALUE);
    }
    enqueue(stream, Work::Fill { to, pattern: pattern.to_vec(), count })
}

fn now(result: Result) -> Result {
    result.and_then(|()| wait(Some(std::ptr::null_mut())))
}

const NULL: Handle = std::ptr::null_mut();

entries! {
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        current()?;
        let (capacity, used) = driver()?.machine.memory();
        put_if_wanted(free, (capacity - used) as usize);
        put_if_wanted(total, capacity as usize);
        Ok(())
    }
    fn cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        let allocated = allocate(&mut driver()?.state(), bytes)?;
        put(address, allocated)
    }
    fn cuMemAllocPitch_v2(address: *mut u64, pitch: *mut usize, width_bytes: usize, height: usize, _element: u32) {
        let row_bytes = width_bytes.next_multiple_of(512);
        let bytes = row_bytes.checked_mul(height).ok_or(Code::INVALID_VALUE)?;
        let allocated = allocate(&mut driver()?.state(), bytes)?;
        put(pitch, row_bytes)?;
        put(address, allocated)
    }
    fn cuMemFree_v2(address: u64) {
        if address == 0 {
            return Ok(());
        }
        free(&mut driver()?.state(), address)
    }
    fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: Handle) { allocate_in_stream(address, bytes, stream) }
    fn cuMemAllocFromPoolAsync(address: *mut u64, bytes: usize, _pool: Handle, stream: Handle) {
        allocate_in_stream(address, bytes, stream)
    }
    fn cuMemFreeAsync(address: u64, stream: Handle) {
        let mut state = driver()?.state();
        match target(&state, stream)? {
            Target::Now => free(&mut state, address),
            Target::Graph(graph) => {
                let graph = state.graphs.get_mut(&graph).ok_or(Code::STREAM_CAPTURE_INVALIDATED)?;
                // A graph frees its own memory only.
                let own = graph.memory.iter_mut().find(|(own, _)| *own == address).ok_or(Code::INVALID_VALUE)?;
                own.1 = true;
                graph.nodes.push(Work::Nothing);
                Ok(())
            }
        }
    }
    fn cuMemGetAddressRange_v2(start: *mut u64, bytes: *mut usize, address: u64) {
        let state = driver()?.state();
        let (found, size) = holding(&state, address).ok_or(Code::NOT_FOUND)?;
        put_if_wanted(start, found);
        put_if_wanted(bytes, size);
        Ok(())
    }
    fn cuMemAllocManaged(_address: *mut u64, _bytes: usize, _flags: u32) { Err(Code::NOT_SUPPORTED) }
    fn cuMemPrefetchAsync_v2(_address: u64, _bytes: usize, _location: u64, _flags: u32, _stream: Handle) {
        Err(Code::NOT_SUPPORTED)
    }
    fn cuMemPoolCreate(pool: *mut Handle, _properties: *const c_void) {
        let mut state = driver()?.state();
        let handle = state.handle();
        state.pools.insert(handle, 0);
        put(pool, to_handle(handle))
    }
    fn cuMemPoolDestroy(pool: Handle) {
        driver()?.state().pools.remove(&pool.addr()).map(|_| ()).ok_or(Code::INVALID_VALUE)
    }
    fn cuMemPoolTrimTo(_pool: Handle, _bytes: usize) { Ok(()) }
    fn cuMemPoolSetAttribute(pool: Handle, attribute: u32, value: *mut c_void) {
        if value.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // CU_MEMPOOL_ATTR_RELEASE_THRESHOLD; the others turn on reuse, of which there is none.
        if attribute == 4 {
            let threshold = value.cast::<u64>().read();
            driver()?.state().pools.insert(pool.addr(), threshold);
        }
        Ok(())
    }
    fn cuMemPoolGetAttribute(pool: Handle, attribute: u32, value: *mut c_void) {
        let state = driver()?.state();
        match attribute {
            1..=3 => put(value.cast::<c_int>(), 0),
            4 => put(value.cast::<u64>(), state.pools.get(&pool.addr()).copied().unwrap_or(0)),
            5..=8 if pool.addr() == DEFAULT_POOL => put(value.cast::<u64>(), driver()?.machine.memory().1),
            _ => put(value.cast::<u64>(), 0),
        }
    }
    fn cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize) {
        current()?;
        put(pointer, host_bytes(bytes)?)
    }
    fn cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, _flags: u32) {
        current()?;
        put(pointer, host_bytes(bytes)?)
    }
    fn cuMemFreeHost(pointer: *mut c_void) {
        wait(None)?;
        let pinned = driver()?.state().pinned.remove(&pointer.addr()).ok_or(Code::INVALID_VALUE)?;
        let layout = pinned.layout.ok_or(Code::INVALID_VALUE)?;
        dealloc(pointer.cast(), layout);
        Ok(())
    }
    fn cuMemHostRegister_v2(pointer: *mut c_void, bytes: usize, _flags: u32) {
        driver()?.state().pinned.insert(pointer.expose_provenance(), Pinned { bytes, layout: None });
        Ok(())
    }
    fn cuMemHostUnregister(pointer: *mut c_void) {
        wait(None)?;
        driver()?.state().pinned.remove(&pointer.addr()).map(|_| ()).ok_or(Code::INVALID_VALUE)
    }
    fn cuMemHostGetFlags(flags: *mut u32, _pointer: *mut c_void) { put(flags, 0) }
    fn cuMemHostGetDevicePointer_v2(_address: *mut u64, _pointer: *mut c_void, _flags: u32) { Err(Code::NOT_SUPPORTED) }
    fn cuMemcpy(to: u64, from: u64, bytes: usize) { now(copy_any(to, from, bytes, NULL)) }
    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: Handle) { copy_any(to, from, bytes, stream) }
    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) { now(copy_to_device(to, from, bytes, NULL)) }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: Handle) {
        copy_to_device(to, from, bytes, stream)
    }
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) { now(copy_to_host(to, from, bytes, NULL)) }
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: Handle) {
        copy_to_host(to, from, bytes, stream)
    }
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) { now(copy_on_device(to, from, bytes, NULL)) }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) { copy_on_device(to, from, bytes, stream) }
    fn cuMemcpyPeerAsync(to: u64, _to_context: Handle, from: u64, _from_context: Handle, bytes: usize, stream: Handle) {
        copy_on_device(to, from, bytes, stream)
    }
    fn cuMemcpy2D_v2(copy: *const Copy2d) { now(copy_2d(copy, NULL)) }
    fn cuMemcpy2DUnaligned_v2(copy: *const Copy2d) { now(copy_2d(copy, NULL)) }
    fn cuMemcpy2DAsync_v2(copy: *const Copy2d, stream: Handle) { copy_2d(copy, stream) }
    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) { fill(to, &[value], count, NULL) }
    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) { fill(to, &value.to_le_bytes(), count, NULL) }
    fn cuMemsetD32_v2(to: u64, value: u32, count: usize) { fill(to, &value.to_le_bytes(), count, NULL) }
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: Handle) { fill(to, &[value], count, stream) }
    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: Handle) { fill(to, &value.to_le_bytes(), count, stream) }
    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: Handle) { fill(to, &value.to_le_bytes(), count, stream) }
    fn cuPointerGetAttribute(value: *mut c_void, attribute: u32, address: u64) {
        let state = driver()?.state();
        let (start, bytes) = holding(&state, address).ok_or(Code::INVALID_VALUE)?;
        match attribute {
            1 => put(value.cast::<Handle>(), to_handle(state.allocations[&start].context)),
            2 => put(value.cast::<u32>(), DEVICE),
            3 => put(value.cast::<u64>(), address),
            7 => put(value.cast::<u64>(), start),
            8 => put(value.cast::<u32>(), 0),
            9 => put(value.cast::<c_int>(), 0),
            11 => put(value.cast::<u64>(), start),
            12 => put(value.cast::<usize>(), bytes),
            13 => put(value.cast::<u32>(), 1),
            _ => Err(Code::NOT_SUPPORTED),
        }
    }
}
