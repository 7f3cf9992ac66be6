//! What the driver holds: contexts, streams, events, memory, modules and graphs, each by a handle.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use cuda_emulator::{Architecture, Machine};

use crate::error::{Code, Result};
use crate::launch::Kernel;
use crate::module::Loaded;

/// A handle as C sees it. Handles are numbers that are never used twice, so a stale one is noticed.
pub type Handle = *mut c_void;

/// Streams that exist without being made: the null stream, its legacy name, and the per-thread one.
pub const BUILT_IN_STREAMS: [usize; 3] = [0, 1, 2];

pub struct Driver {
    pub machine: Machine,
    /// The CUDA version that the driver is for, as 13050.
    pub version: u32,
    state: Mutex<State>,
}

#[derive(Default)]
pub struct State {
    last_handle: usize,
    pub contexts: HashMap<usize, Context>,
    /// The primary context, and how often it is retained.
    pub primary: Option<(usize, usize)>,
    pub primary_flags: u32,
    pub streams: HashMap<usize, Stream>,
    pub events: HashMap<usize, Event>,
    pub modules: HashMap<usize, Arc<Loaded>>,
    pub kernels: HashMap<usize, Kernel>,
    pub graphs: HashMap<usize, Graph>,
    pub executables: HashMap<usize, Graph>,
    /// Device memory by address.
    pub allocations: BTreeMap<u64, Allocation>,
    /// Pinned host memory: bytes by address.
    pub pinned: BTreeMap<usize, Pinned>,
    /// Copies into pinned memory that nobody has waited for.
    pub arriving: Vec<Arriving>,
    /// Thresholds of memory pools, the default one under handle 1.
    pub pools: HashMap<usize, u64>,
    pub links: HashMap<usize, Vec<u8>>,
}

#[derive(Default)]
pub struct Context {
    pub flags: u32,
    pub limits: HashMap<u32, usize>,
}

pub struct Stream {
    pub flags: u32,
    pub priority: i32,
    pub context: usize,
    /// The graph that its work goes to while it captures, and whether the capture began here.
    pub capture: Option<(usize, bool)>,
}

#[derive(Default)]
pub struct Event {
    pub flags: u32,
    pub at: Option<Instant>,
    /// The graph that captured the record.
    pub capture: Option<usize>,
}

pub struct Allocation {
    pub bytes: usize,
    pub context: usize,
}

pub struct Pinned {
    pub bytes: usize,
    /// How to free it, if it was allocated here rather than registered.
    pub layout: Option<std::alloc::Layout>,
}

pub struct Arriving {
    pub stream: usize,
    pub to: usize,
    pub bytes: Vec<u8>,
}

/// Work in the order in which it was captured.
#[derive(Clone, Default)]
pub struct Graph {
    pub nodes: Vec<Work>,
    /// Memory allocated during the capture, and whether it was freed in it.
    pub memory: Vec<(u64, bool)>,
}

/// What a stream can be given.
#[derive(Clone)]
pub enum Work {
    Launch(crate::launch::Prepared),
    ToDevice {
        to: u64,
        from: usize,
        bytes: usize,
    },
    ToHost {
        to: usize,
        from: u64,
        bytes: usize,
    },
    OnDevice {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Fill {
        to: u64,
        pattern: Vec<u8>,
        count: usize,
    },
    Call {
        function: unsafe extern "C" fn(*mut c_void),
        data: usize,
    },
    /// An allocation, a free or a record, which do nothing when a graph runs again.
    Nothing,
}

thread_local! {
    /// The contexts of this thread, the current one last.
    static CURRENT: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

/// Starts the driver for the machine that `CUDA_EMULATOR_ARCH` names, once.
pub fn start() -> Result {
    if DRIVER.get().is_some() {
        return Ok(());
    }
    let name = std::env::var("CUDA_EMULATOR_ARCH").unwrap_or_else(|_| "sm_80".to_owned());
    let mut architecture = Architecture::parse(&name).ok_or_else(|| {
        eprintln!("cuda emulator: CUDA_EMULATOR_ARCH={name}: no such architecture");
        Code::NO_DEVICE
    })?;
    let version = match std::env::var("CUDA_EMULATOR_VERSION") {
        Err(_) => 13_050,
        Ok(text) => parse_version(&text).ok_or_else(|| {
            eprintln!("cuda emulator: CUDA_EMULATOR_VERSION={text}: expected a version as 12.8");
            Code::NO_DEVICE
        })?,
    };
    if let Ok(text) = std::env::var("CUDA_EMULATOR_MULTIPROCESSORS") {
        architecture.multiprocessors = text.parse().ok().filter(|count| *count != 0).ok_or_else(|| {
            eprintln!("cuda emulator: CUDA_EMULATOR_MULTIPROCESSORS={text}: expected a number from 1");
            Code::NO_DEVICE
        })?;
    }
    let machine = Machine::new(architecture);
    if let Ok(text) = std::env::var("CUDA_EMULATOR_MEMORY") {
        machine.set_memory(text.parse().map_err(|_| {
            eprintln!("cuda emulator: CUDA_EMULATOR_MEMORY={text}: expected a number of bytes");
            Code::NO_DEVICE
        })?);
    }
    DRIVER.get_or_init(|| Driver { machine, version, state: Mutex::default() });
    Ok(())
}

/// `12.8` as 12080, the way the driver counts.
fn parse_version(text: &str) -> Option<u32> {
    let (major, minor) = text.split_once('.')?;
    Some(1000 * major.parse::<u32>().ok()? + 10 * minor.parse::<u32>().ok()?)
}

pub fn driver() -> Result<&'static Driver> {
    DRIVER.get().ok_or(Code::NOT_INITIALIZED)
}

impl Driver {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub fn handle(&mut self) -> usize {
        // Looks like a pointer, and is none that is in use.
        self.last_handle = self.last_handle.max(0x1000) + 16;
        self.last_handle
    }
}

pub fn current() -> Result<usize> {
    CURRENT.with_borrow(|stack| stack.last().copied()).filter(|context| *context != 0).ok_or(Code::INVALID_CONTEXT)
}

pub fn with_stack<R>(work: impl FnOnce(&mut Vec<usize>) -> R) -> R {
    CURRENT.with_borrow_mut(work)
}

/// Writes a result where the caller wants it.
pub unsafe fn put<T>(to: *mut T, value: T) -> Result {
    if to.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    to.write_unaligned(value);
    Ok(())
}

/// As [`put`], of a result that may be unwanted.
pub unsafe fn put_if_wanted<T>(to: *mut T, value: T) {
    if !to.is_null() {
        to.write_unaligned(value);
    }
}

/// Copies text with its ending zero into a buffer of `length` bytes.
pub unsafe fn put_text(to: *mut std::ffi::c_char, length: usize, text: &str) -> Result {
    if to.is_null() || length == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let kept = text.len().min(length - 1);
    to.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), kept);
    to.add(kept).write(0);
    Ok(())
}

pub fn to_handle(number: usize) -> Handle {
    std::ptr::without_provenance_mut(number)
}
