//! Streams and events: the order of work, its capture, and waiting.

use std::ffi::{c_int, c_void};
use std::time::Instant;

use cuda_emulator::MemoryError;

use crate::error::{Code, Result};
use crate::state::{
    Arriving, BUILT_IN_STREAMS, Driver, Event, Graph, Handle, State, Stream, Work, current, driver, put, put_if_wanted,
    to_handle,
};
use crate::{entries, launch};

/// Where an enqueued operation goes.
pub enum Target {
    Now,
    Graph(usize),
}

/// That a stream exists, and whether it captures.
pub fn target(state: &State, stream: Handle) -> Result<Target> {
    let stream = stream.addr();
    if BUILT_IN_STREAMS.contains(&stream) {
        return Ok(Target::Now);
    }
    Ok(match state.streams.get(&stream).ok_or(Code::INVALID_HANDLE)?.capture {
        Some((graph, _)) => Target::Graph(graph),
        None => Target::Now,
    })
}

/// Runs work, or adds it to the graph that the stream captures.
pub fn enqueue(stream: Handle, work: Work) -> Result {
    let driver = driver()?;
    let mut state = driver.state();
    match target(&state, stream)? {
        Target::Graph(graph) => {
            state.graphs.get_mut(&graph).ok_or(Code::STREAM_CAPTURE_INVALIDATED)?.nodes.push(work);
            Ok(())
        }
        Target::Now => {
            drop(state);
            run(driver, stream.addr(), &work)
        }
    }
}

/// Runs one piece of work to its end; only what goes to pinned memory waits until somebody waits for it.
pub fn run(driver: &'static Driver, stream: usize, work: &Work) -> Result {
    let machine = &driver.machine;
    let failed = |error: MemoryError| {
        eprintln!("cuda emulator: {error}");
        Code::INVALID_VALUE
    };
    match work {
        Work::Launch(prepared) => launch::run(driver, prepared),
        Work::ToDevice { to, from, bytes } => {
            // SAFETY: the caller of the entry point vouches for its host memory.
            let data = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(*from), *bytes) };
            machine.write(*to, data).map_err(failed)
        }
        Work::ToHost { to, from, bytes } => {
            let mut data = vec![0; *bytes];
            machine.read(*from, &mut data).map_err(failed)?;
            let mut state = driver.state();
            if is_pinned(&state, *to, *bytes) {
                state.arriving.push(Arriving { stream, to: *to, bytes: data });
            } else {
                deliver(*to, &data);
            }
            Ok(())
        }
        Work::OnDevice { to, from, bytes } => machine.copy(*to, *from, *bytes as u64).map_err(failed),
        Work::Fill { to, pattern, count } => machine.write(*to, &pattern.repeat(*count)).map_err(failed),
        Work::Call { function, data } => {
            arrive(&mut driver.state(), Some(stream));
            // SAFETY: the caller of the entry point vouches for its function.
            unsafe { function(std::ptr::with_exposed_provenance_mut(*data)) };
            Ok(())
        }
        Work::Nothing => Ok(()),
    }
}

fn is_pinned(state: &State, address: usize, bytes: usize) -> bool {
    state.pinned.range(..=address).next_back().is_some_and(|(start, pinned)| address + bytes <= start + pinned.bytes)
}

fn deliver(to: usize, bytes: &[u8]) {
    let to = std::ptr::with_exposed_provenance_mut::<u8>(to);
    // SAFETY: the caller of the entry point vouches for its host memory until it has waited.
    unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}

/// Lets the copies of a stream, or of all, arrive in host memory.
fn arrive(state: &mut State, stream: Option<usize>) {
    for arriving in std::mem::take(&mut state.arriving) {
        if stream.is_none_or(|stream| stream == arriving.stream) {
            deliver(arriving.to, &arriving.bytes);
        } else {
            state.arriving.push(arriving);
        }
    }
}

/// Waits for a stream, or for all.
pub fn wait(stream: Option<Handle>) -> Result {
    let mut state = driver()?.state();
    if let Some(stream) = stream
        && let Target::Graph(_) = target(&state, stream)?
    {
        return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
    }
    arrive(&mut state, stream.map(|stream| stream.addr()));
    Ok(())
}

fn create(stream: *mut Handle, flags: u32, priority: c_int) -> Result {
    let context = current()?;
    let mut state = driver()?.state();
    let handle = state.handle();
    state.streams.insert(handle, Stream { flags, priority, context, capture: None });
    // SAFETY: the entry point's caller vouches for the pointer.
    unsafe { put(stream, to_handle(handle)) }
}

fn record(event: Handle, stream: Handle) -> Result {
    let mut state = driver()?.state();
    let capture = match target(&state, stream)? {
        Target::Graph(graph) => Some(graph),
        Target::Now => None,
    };
    let event = state.events.get_mut(&event.addr()).ok_or(Code::INVALID_HANDLE)?;
    *event = Event { flags: event.flags, at: Some(Instant::now()), capture };
    Ok(())
}

fn elapsed(milliseconds: *mut f32, start: Handle, end: Handle) -> Result {
    let state = driver()?.state();
    let at = |event: Handle| {
        // 2 is CU_EVENT_DISABLE_TIMING.
        let event = state.events.get(&event.addr()).filter(|event| event.flags & 2 == 0).ok_or(Code::INVALID_HANDLE)?;
        event.at.ok_or(Code::INVALID_HANDLE)
    };
    let elapsed = at(end)?.saturating_duration_since(at(start)?);
    // SAFETY: the entry point's caller vouches for the pointer.
    unsafe { put(milliseconds, elapsed.as_secs_f32() * 1e3) }
}

fn capture_info(stream: Handle, status: *mut u32, id: *mut u64, graph: *mut Handle) -> Result {
    let state = driver()?.state();
    let captured = match target(&state, stream)? {
        Target::Graph(graph) => Some(graph),
        Target::Now => None,
    };
    // SAFETY: the entry point's caller vouches for the pointers.
    unsafe {
        put(status, u32::from(captured.is_some()))?;
        if let Some(captured) = captured {
            put_if_wanted(id, captured as u64);
            put_if_wanted(graph, to_handle(captured));
        }
    }
    Ok(())
}

entries! {
    fn cuStreamCreate(stream: *mut Handle, flags: u32) { create(stream, flags, 0) }
    fn cuStreamCreateWithPriority(stream: *mut Handle, flags: u32, priority: c_int) { create(stream, flags, priority) }
    fn cuStreamDestroy_v2(stream: Handle) {
        let mut state = driver()?.state();
        arrive(&mut state, Some(stream.addr()));
        state.streams.remove(&stream.addr()).map(|_| ()).ok_or(Code::INVALID_HANDLE)
    }
    fn cuStreamSynchronize(stream: Handle) { wait(Some(stream)) }
    fn cuStreamQuery(stream: Handle) { wait(Some(stream)) }
    fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: u32) {
        let mut state = driver()?.state();
        let capture = state.events.get(&event.addr()).ok_or(Code::INVALID_HANDLE)?.capture;
        target(&state, stream)?;
        // A stream that waits for captured work joins the capture.
        if let (Some(graph), Some(stream)) = (capture, state.streams.get_mut(&stream.addr())) {
            stream.capture.get_or_insert((graph, false));
        }
        Ok(())
    }
    fn cuStreamGetFlags(stream: Handle, flags: *mut u32) {
        let state = driver()?.state();
        put(flags, state.streams.get(&stream.addr()).map_or(0, |stream| stream.flags))
    }
    fn cuStreamGetPriority(stream: Handle, priority: *mut c_int) {
        let state = driver()?.state();
        put(priority, state.streams.get(&stream.addr()).map_or(0, |stream| stream.priority))
    }
    fn cuStreamGetCtx(stream: Handle, context: *mut Handle) {
        let state = driver()?.state();
        let found = state.streams.get(&stream.addr()).map(|stream| stream.context);
        put(context, to_handle(found.map_or_else(current, Ok)?))
    }
    fn cuStreamGetId(stream: Handle, id: *mut u64) { put(id, stream.addr() as u64) }
    fn cuStreamAttachMemAsync(_stream: Handle, _address: u64, _bytes: usize, _flags: u32) { Ok(()) }
    fn cuStreamIsCapturing(stream: Handle, status: *mut u32) {
        let captures = matches!(target(&driver()?.state(), stream)?, Target::Graph(_));
        put(status, u32::from(captures))
    }
    fn cuStreamGetCaptureInfo_v2(
        stream: Handle, status: *mut u32, id: *mut u64, graph: *mut Handle,
        _dependencies: *mut *const Handle, count: *mut usize,
    ) {
        put_if_wanted(count, 0);
        capture_info(stream, status, id, graph)
    }
    fn cuStreamGetCaptureInfo_v3(
        stream: Handle, status: *mut u32, id: *mut u64, graph: *mut Handle,
        _dependencies: *mut *const Handle, _edges: *mut *const c_void, count: *mut usize,
    ) {
        put_if_wanted(count, 0);
        capture_info(stream, status, id, graph)
    }
    fn cuStreamBeginCapture_v2(stream: Handle, _mode: u32) {
        let mut state = driver()?.state();
        if let Target::Graph(_) = target(&state, stream)? {
            return Err(Code::ILLEGAL_STATE);
        }
        let graph = state.handle();
        // The null stream cannot be captured.
        let captured = state.streams.get_mut(&stream.addr()).ok_or(Code::STREAM_CAPTURE_UNSUPPORTED)?;
        captured.capture = Some((graph, true));
        state.graphs.insert(graph, Graph::default());
        Ok(())
    }
    fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) {
        let mut state = driver()?.state();
        let origin = state.streams.get(&stream.addr()).and_then(|stream| stream.capture).ok_or(Code::ILLEGAL_STATE)?;
        let (captured, true) = origin else { return Err(Code::STREAM_CAPTURE_UNMATCHED) };
        for stream in state.streams.values_mut() {
            if stream.capture.is_some_and(|(graph, _)| graph == captured) {
                stream.capture = None;
            }
        }
        for event in state.events.values_mut() {
            if event.capture == Some(captured) {
                *event = Event { flags: event.flags, ..Event::default() };
            }
        }
        put(graph, to_handle(captured))
    }
    fn cuThreadExchangeStreamCaptureMode(_mode: *mut u32) { Ok(()) }
    fn cuEventCreate(event: *mut Handle, flags: u32) {
        current()?;
        let mut state = driver()?.state();
        let handle = state.handle();
        state.events.insert(handle, Event { flags, ..Event::default() });
        put(event, to_handle(handle))
    }
    fn cuEventDestroy_v2(event: Handle) {
        driver()?.state().events.remove(&event.addr()).map(|_| ()).ok_or(Code::INVALID_HANDLE)
    }
    fn cuEventRecord(event: Handle, stream: Handle) { record(event, stream) }
    fn cuEventRecordWithFlags(event: Handle, stream: Handle, _flags: u32) { record(event, stream) }
    fn cuEventQuery(event: Handle) {
        driver()?.state().events.get(&event.addr()).map(|_| ()).ok_or(Code::INVALID_HANDLE)?;
        wait(None)
    }
    fn cuEventSynchronize(event: Handle) {
        driver()?.state().events.get(&event.addr()).map(|_| ()).ok_or(Code::INVALID_HANDLE)?;
        wait(None)
    }
    fn cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle) { elapsed(milliseconds, start, end) }
    fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: Handle, end: Handle) { elapsed(milliseconds, start, end) }
    fn cuLaunchHostFunc(stream: Handle, function: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void) {
        let function = function.ok_or(Code::INVALID_VALUE)?;
        enqueue(stream, Work::Call { function, data: data.expose_provenance() })
    }
    fn cuStreamAddCallback(
        stream: Handle, callback: Option<unsafe extern "C" fn(Handle, u32, *mut c_void)>, data: *mut c_void, _flags: u32,
    ) {
        let callback = callback.ok_or(Code::INVALID_VALUE)?;
        wait(Some(stream))?;
        callback(stream, 0, data);
        Ok(())
    }
}
