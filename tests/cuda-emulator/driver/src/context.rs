//! Contexts: the primary one, further ones, and which is current on a thread.

use std::ffi::{c_int, c_void};

use crate::error::{Code, Result};
use crate::state::{Context, Handle, State, current, driver, put, put_if_wanted, to_handle, with_stack};
use crate::{entries, memory, stream};

/// `CU_LIMIT_STACK_SIZE`, `CU_LIMIT_PRINTF_FIFO_SIZE`, `CU_LIMIT_MALLOC_HEAP_SIZE` as they are at first.
fn default_limit(limit: u32) -> usize {
    match limit {
        0 => 1 << 10,
        1 => 1 << 20,
        2 => 8 << 20,
        _ => 0,
    }
}

fn create(context: *mut Handle, flags: u32, device: c_int) -> Result {
    let driver = driver()?;
    if device != 0 {
        return Err(Code::INVALID_DEVICE);
    }
    let handle = new(&mut driver.state(), flags);
    with_stack(|stack| stack.push(handle));
    // SAFETY: the entry point's caller vouches for the pointer.
    unsafe { put(context, to_handle(handle)) }
}

fn new(state: &mut State, flags: u32) -> usize {
    let handle = state.handle();
    state.contexts.insert(handle, Context { flags, ..Context::default() });
    handle
}

/// Ends a context. What is still allocated in it is a leak, which is said, and freed.
fn destroy(state: &mut State, context: usize) -> Result {
    state.contexts.remove(&context).ok_or(Code::INVALID_CONTEXT)?;
    state.streams.retain(|_, stream| stream.context != context);
    state.modules.retain(|_, module| module.context != context);
    state.kernels.retain(|_, kernel| kernel.module.context != context);
    memory::report_leaks(state, context)
}

entries! {
    fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) {
        let driver = driver()?;
        if device != 0 {
            return Err(Code::INVALID_DEVICE);
        }
        let mut state = driver.state();
        let (handle, count) = match state.primary {
            Some(primary) => primary,
            None => {
                let flags = state.primary_flags;
                (new(&mut state, flags), 0)
            }
        };
        state.primary = Some((handle, count + 1));
        put(context, to_handle(handle))
    }
    fn cuDevicePrimaryCtxRelease_v2(_device: c_int) {
        let driver = driver()?;
        let mut state = driver.state();
        let (handle, count) = state.primary.ok_or(Code::INVALID_CONTEXT)?;
        if count > 1 {
            state.primary = Some((handle, count - 1));
            return Ok(());
        }
        state.primary = None;
        destroy(&mut state, handle)
    }
    fn cuDevicePrimaryCtxReset_v2(_device: c_int) {
        let driver = driver()?;
        let mut state = driver.state();
        match state.primary.take() {
            Some((handle, _)) => destroy(&mut state, handle),
            None => Ok(()),
        }
    }
    fn cuDevicePrimaryCtxGetState(_device: c_int, flags: *mut u32, active: *mut c_int) {
        let state = driver()?.state();
        put_if_wanted(flags, state.primary_flags);
        put_if_wanted(active, c_int::from(state.primary.is_some()));
        Ok(())
    }
    fn cuDevicePrimaryCtxSetFlags_v2(_device: c_int, flags: u32) {
        driver()?.state().primary_flags = flags;
        Ok(())
    }
    fn cuCtxCreate_v2(context: *mut Handle, flags: u32, device: c_int) { create(context, flags, device) }
    fn cuCtxCreate_v3(context: *mut Handle, _affinities: *mut c_void, _count: c_int, flags: u32, device: c_int) {
        create(context, flags, device)
    }
    fn cuCtxCreate_v4(context: *mut Handle, _parameters: *mut c_void, flags: u32, device: c_int) {
        create(context, flags, device)
    }
    fn cuCtxDestroy_v2(context: Handle) {
        let context = context.addr();
        with_stack(|stack| stack.retain(|other| *other != context));
        destroy(&mut driver()?.state(), context)
    }
    fn cuCtxPushCurrent_v2(context: Handle) {
        if !driver()?.state().contexts.contains_key(&context.addr()) {
            return Err(Code::INVALID_CONTEXT);
        }
        with_stack(|stack| stack.push(context.addr()));
        Ok(())
    }
    fn cuCtxPopCurrent_v2(context: *mut Handle) {
        let popped = with_stack(Vec::pop).ok_or(Code::INVALID_CONTEXT)?;
        put_if_wanted(context, to_handle(popped));
        Ok(())
    }
    fn cuCtxSetCurrent(context: Handle) {
        let context = context.addr();
        if context != 0 && !driver()?.state().contexts.contains_key(&context) {
            return Err(Code::INVALID_CONTEXT);
        }
        with_stack(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        });
        Ok(())
    }
    fn cuCtxGetCurrent(context: *mut Handle) {
        driver()?;
        put(context, to_handle(current().unwrap_or(0)))
    }
    fn cuCtxGetDevice(device: *mut c_int) {
        current()?;
        put(device, 0)
    }
    fn cuCtxGetFlags(flags: *mut u32) {
        let context = current()?;
        let state = driver()?.state();
        put(flags, state.contexts.get(&context).ok_or(Code::CONTEXT_IS_DESTROYED)?.flags)
    }
    fn cuCtxSetFlags(flags: u32) {
        let context = current()?;
        driver()?.state().contexts.get_mut(&context).ok_or(Code::CONTEXT_IS_DESTROYED)?.flags = flags;
        Ok(())
    }
    fn cuCtxGetId(context: Handle, id: *mut u64) { put(id, context.addr() as u64) }
    fn cuCtxGetApiVersion(_context: Handle, version: *mut u32) { put(version, 3020) }
    fn cuCtxSynchronize() {
        current()?;
        stream::wait(None)
    }
    fn cuCtxGetLimit(bytes: *mut usize, limit: u32) {
        let context = current()?;
        let state = driver()?.state();
        let limits = &state.contexts.get(&context).ok_or(Code::CONTEXT_IS_DESTROYED)?.limits;
        put(bytes, limits.get(&limit).copied().unwrap_or_else(|| default_limit(limit)))
    }
    fn cuCtxSetLimit(limit: u32, bytes: usize) {
        let context = current()?;
        driver()?.state().contexts.get_mut(&context).ok_or(Code::CONTEXT_IS_DESTROYED)?.limits.insert(limit, bytes);
        Ok(())
    }
    fn cuCtxGetCacheConfig(config: *mut u32) { put(config, 0) }
    fn cuCtxSetCacheConfig(_config: u32) { Ok(()) }
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        put_if_wanted(least, 0);
        put_if_wanted(greatest, -5);
        Ok(())
    }
}
