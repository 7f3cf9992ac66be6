//! CUDA: contexts and streams, stream-ordered memory, kernels that the driver compiles, and launches.
//!
//! The driver is found at run time, so a program with this feature also starts on a machine without one. Every call
//! makes the device's context current on the calling thread, as cudarc does, and leaves it so.

use std::any::Any;
use std::collections::HashMap;
use std::ffi::{CString, c_uint, c_void};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use ::cudarc::driver::result::{self, DriverError};
use ::cudarc::driver::sys;
use ::cudarc::driver::{CudaContext, CudaStream};

use crate::device::{Backend, DeviceInfo};
use crate::kernels::{self, Kernel};
use crate::{Dtype, Element, Error, Layout, Result};

/// The driver's version, as it counts them, from which on it knows the PTX of every kernel's `.version` line.
const OLDEST_DRIVER: i32 = 11_000;
/// As above, for kernels that only one architecture runs: PTX knows `sm_90a` from 8.0 on.
const OLDEST_DRIVER_OF_EXACT: i32 = 12_000;
/// The compute capability that every kernel's plainest variant asks for.
const OLDEST_DEVICE: (u32, u32) = (8, 0);
/// Shared memory that a block may use without asking for more.
const SHARED_BYTES: u32 = 48 << 10;
/// Room for what the driver's compiler says about a kernel.
const LOG_BYTES: usize = 8 << 10;

/// A CUDA device: a context, the stream that ops run on, and the context's kernels.
pub struct Cuda {
    id: String,
    name: String,
    raw: Raw,
    /// The CUDA version that the driver is for, as it counts them.
    driver: i32,
    capability: (u32, u32),
    multiprocessors: u32,
    shared_bytes: u32,
    /// Whether memory comes from stream-ordered pools.
    pools: bool,
    /// What could not be freed while a graph was being captured.
    deferred: Mutex<Vec<u64>>,
    modules: Arc<Modules>,
    /// Keeps context and stream alive; none where the caller promised to.
    _owner: Option<Arc<CudaStream>>,
}

/// The driver's handles of a device.
#[derive(Clone, Copy)]
struct Raw {
    context: sys::CUcontext,
    stream: sys::CUstream,
}

#[expect(unsafe_code, reason = "the driver's handles are pointers")]
// SAFETY: the driver lets any thread use its handles; nothing is read through these pointers.
unsafe impl Send for Raw {}
#[expect(unsafe_code, reason = "the driver's handles are pointers")]
// SAFETY: as above.
unsafe impl Sync for Raw {}

/// Memory on a CUDA device. What this crate allocated is freed, in the stream's order, when the last tensor that
/// shares it is dropped.
pub struct Buffer {
    cuda: Arc<Cuda>,
    pointer: u64,
    bytes: usize,
    kind: Memory,
}

enum Memory {
    /// Allocated here.
    Own,
    /// Allocated here while a graph was being captured, so that it belongs to the graph's memory.
    Captured,
    /// Somebody else's, with whatever keeps it alive.
    Foreign(#[expect(dead_code, reason = "held, not used")] Box<dyn Any + Send + Sync>),
}

/// A tensor as the CUDA launchers take it: borrowed device memory and where the elements lie in it.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    pub(crate) pointer: u64,
    pub(crate) layout: &'a Layout,
    pub(crate) dtype: Dtype,
}

impl<'a> Operand<'a> {
    /// Device memory that starts at `pointer`, seen through `layout`.
    ///
    /// # Safety
    /// Until the work that this operand is given to is done, the memory must be valid on the device for the whole
    /// span of the layout, hold elements of `dtype`, and be written by nobody else.
    #[must_use]
    #[expect(unsafe_code, reason = "the caller vouches for a device pointer")]
    pub unsafe fn new(pointer: u64, layout: &'a Layout, dtype: Dtype) -> Self {
        Self { pointer, layout, dtype }
    }

    /// The length of each axis.
    #[must_use]
    pub fn shape(&self) -> &'a [usize] {
        self.layout.shape()
    }

    /// Where the first element lies.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.pointer + (self.layout.offset() * self.dtype.bytes()) as u64
    }
}

/// What a launcher enqueues into: the device's own stream or the caller's.
#[derive(Clone, Copy)]
pub struct Stream<'a> {
    cuda: &'a Cuda,
    raw: sys::CUstream,
}

/// One argument of a launch, in the form that the kernel's `.param` has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument<'a> {
    /// `.u64`: where an operand's first element lies; 0 for an absent one.
    Address(u64),
    /// `.u64`, of any other meaning.
    U64(u64),
    /// `.u32`
    U32(u32),
    /// `.f32`
    F32(f32),
    /// `.align 4 .b8 [4 * n]`: lengths or strides, one per axis.
    Words(&'a [u32]),
}

impl Argument<'_> {
    fn bytes(&self) -> usize {
        match self {
            Self::Address(_) | Self::U64(_) => 8,
            Self::U32(_) | Self::F32(_) => 4,
            Self::Words(words) => 4 * words.len(),
        }
    }

    fn pointer(&self) -> *mut c_void {
        match self {
            Self::Address(value) | Self::U64(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::U32(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::F32(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::Words(words) => words.as_ptr().cast_mut().cast(),
        }
    }
}

/// What Hopper's copy engine needs to know of a tensor of four axes.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct TensorMap([u32; 32]);

impl TensorMap {
    pub(crate) fn argument(&self) -> Argument<'_> {
        Argument::Words(&self.0)
    }
}

/// The driver's `cuTensorMapEncodeTiled`, by name: cudarc has it only for CUDA 12 and later.
type EncodeTiled = unsafe extern "C" fn(
    map: *mut TensorMap,
    element: c_uint,
    rank: u32,
    address: *mut c_void,
    lengths: *const u64,
    strides: *const u64,
    box_lengths: *const u32,
    element_strides: *const u32,
    interleave: c_uint,
    swizzle: c_uint,
    promotion: c_uint,
    fill: c_uint,
) -> sys::CUresult;

/// The kernels that are loaded into one context, whichever of its devices asked first.
struct Modules {
    context: Raw,
    functions: Mutex<HashMap<&'static str, Function>>,
    _owner: Option<Arc<CudaStream>>,
}

#[derive(Clone, Copy)]
struct Function {
    kernel: &'static Kernel,
    module: sys::CUmodule,
    function: sys::CUfunction,
    /// Dynamic shared memory that a launch may ask for.
    shared_bytes: u32,
}

#[expect(unsafe_code, reason = "the driver's handles are pointers")]
// SAFETY: as for `Raw`.
unsafe impl Send for Function {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn id(ordinal: usize) -> String {
    if ordinal == 0 { "cuda".to_owned() } else { format!("cuda:{ordinal}") }
}

/// The driver's words for an error.
fn words(error: DriverError) -> String {
    let text = |text: std::result::Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(|_| format!("error {}", error.0 as u32), |text| text.to_string_lossy().into_owned())
    };
    format!("{}: {}", text(error.error_name()), text(error.error_string()))
}

/// The driver's library, which stays loaded: cudarc keeps it too.
fn library() -> std::result::Result<&'static libloading::Library, String> {
    static LIBRARY: OnceLock<Option<libloading::Library>> = OnceLock::new();
    let names = if cfg!(windows) { ["nvcuda.dll", "cuda.dll"] } else { ["libcuda.so", "libcuda.so.1"] };
    let load = || {
        #[expect(unsafe_code, reason = "loading a library runs its initialisers")]
        // SAFETY: the CUDA driver's library may be loaded by anyone at any time.
        names.iter().find_map(|name| unsafe { libloading::Library::new(*name) }.ok())
    };
    let absent = || format!("no CUDA driver was found: neither {} nor {} can be loaded", names[0], names[1]);
    LIBRARY.get_or_init(load).as_ref().ok_or_else(absent)
}

/// Loads and initialises the driver's library, which gives its version. cudarc panics where there is none.
fn start_driver() -> std::result::Result<i32, String> {
    static STARTED: OnceLock<std::result::Result<i32, String>> = OnceLock::new();
    let start = || {
        library()?;
        result::init().map_err(words)?;
        let mut version = 0;
        #[expect(unsafe_code, reason = "a call into the driver")]
        // SAFETY: it writes one int.
        let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) };
        asked.result().map_err(words)?;
        if version < OLDEST_DRIVER {
            let of = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
            return Err(format!("the driver is for CUDA {}, and kernels need {}", of(version), of(OLDEST_DRIVER)));
        }
        Ok(version)
    };
    STARTED.get_or_init(start).clone()
}

/// The devices of this machine that kernels can run on, as [`Device::list`](crate::Device::list) describes them; or
/// why there is none.
pub(crate) fn list() -> std::result::Result<Vec<DeviceInfo>, String> {
    start_driver()?;
    let mut list = Vec::new();
    let mut refused = Vec::new();
    for ordinal in 0..result::device::get_count().map_err(words)? {
        match describe(ordinal) {
            Ok(info) => list.push(info),
            Err(reason) => refused.push(reason),
        }
    }
    match (list.is_empty(), refused.is_empty()) {
        (false, _) => Ok(list),
        (true, false) => Err(refused.join("; ")),
        (true, true) => Err("the driver found no device".to_owned()),
    }
}

/// What is known of a device without opening it; or why kernels cannot run on it.
fn describe(ordinal: i32) -> std::result::Result<DeviceInfo, String> {
    let ask = || {
        let device = result::device::get(ordinal)?;
        Ok((result::device::get_name(device)?, capability(device)?))
    };
    let (name, (major, minor)) = ask().map_err(words)?;
    if (major, minor) < OLDEST_DEVICE {
        let (least, lesser) = OLDEST_DEVICE;
        return Err(format!("{name} is an sm_{major}{minor}, and kernels need sm_{least}{lesser}"));
    }
    Ok(DeviceInfo {
        id: id(usize::try_from(ordinal).unwrap_or(0)),
        backend: Backend::Cuda,
        software: is_software(&name),
        name,
        features: vec![format!("sm_{major}{minor}")],
    })
}

fn is_software(name: &str) -> bool {
    name.to_lowercase().contains("emulator")
}

fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> std::result::Result<u32, DriverError> {
    #[expect(unsafe_code, reason = "a call into the driver")]
    // SAFETY: `device` came from the driver.
    let value = unsafe { result::device::get_attribute(device, attribute) }?;
    Ok(u32::try_from(value).unwrap_or(0))
}

fn capability(device: sys::CUdevice) -> std::result::Result<(u32, u32), DriverError> {
    Ok((
        attribute(device, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(device, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ))
}

impl Cuda {
    /// Opens the device with this ordinal: its primary context, and a stream of its own.
    pub(crate) fn open(ordinal: usize) -> Result<Arc<Self>> {
        let unavailable = |reason: String| Error::Unavailable { device: id(ordinal), reason };
        start_driver().map_err(unavailable)?;
        let count = result::device::get_count().map_err(words).map_err(unavailable)?;
        match i32::try_from(ordinal) {
            Ok(ordinal) if ordinal < count => describe(ordinal).map_err(unavailable)?,
            _ => return Err(unavailable(format!("the driver found {count} devices on this machine"))),
        };
        let stream = CudaContext::new(ordinal).and_then(|context| context.new_stream());
        let cuda = Self::from_stream(stream.map_err(words).map_err(unavailable)?)?;
        if cuda.pools {
            cuda.keep_freed_memory().map_err(words).map_err(unavailable)?;
        }
        Ok(cuda)
    }

    /// Takes a stream that somebody else made.
    pub(crate) fn from_stream(stream: Arc<CudaStream>) -> Result<Arc<Self>> {
        let raw = Raw { context: stream.context().cu_ctx(), stream: stream.cu_stream() };
        Self::from_raw(raw, Some(stream))
    }

    /// Takes a context and a stream of it that somebody else made and keeps alive.
    ///
    /// # Safety
    /// `context` must be a context of the CUDA driver, `stream` one of its streams or null, and both must outlive the
    /// device and everything on it.
    #[expect(unsafe_code, reason = "the caller vouches for handles")]
    pub(crate) unsafe fn from_handles(context: *mut c_void, stream: *mut c_void) -> Result<Arc<Self>> {
        start_driver().map_err(|reason| Error::Unavailable { device: "cuda".to_owned(), reason })?;
        Self::from_raw(Raw { context: context.cast(), stream: stream.cast() }, None)
    }

    fn from_raw(raw: Raw, owner: Option<Arc<CudaStream>>) -> Result<Arc<Self>> {
        let describe = || {
            bind(raw)?;
            let mut device = 0;
            #[expect(unsafe_code, reason = "a call into the driver")]
            // SAFETY: it writes one int.
            let asked = unsafe { sys::cuCtxGetDevice(&raw mut device) };
            asked.result()?;
            // A driver that does not know of memory pools has none.
            let pools = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
            Ok(Self {
                id: id(usize::try_from(device).unwrap_or(0)),
                name: result::device::get_name(device)?,
                raw,
                driver: start_driver().unwrap_or(OLDEST_DRIVER),
                capability: capability(device)?,
                multiprocessors: attribute(device, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
                shared_bytes: attribute(
                    device,
                    sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
                )?,
                pools: attribute(device, pools).is_ok_and(|pools| pools != 0),
                deferred: Mutex::default(),
                modules: Modules::of(raw, owner.clone()),
                _owner: owner,
            })
        };
        describe().map(Arc::new).map_err(|error| Error::Unavailable { device: "cuda".to_owned(), reason: words(error) })
    }

    /// Lets the device's pool hold what is freed, instead of returning it to the system at each synchronisation.
    fn keep_freed_memory(&self) -> std::result::Result<(), DriverError> {
        let mut device = 0;
        let mut threshold = u64::MAX;
        #[expect(unsafe_code, reason = "calls into the driver")]
        // SAFETY: the context is current since the device was made, and the attribute's value is a u64.
        unsafe {
            sys::cuCtxGetDevice(&raw mut device).result()?;
            let pool = result::device::get_default_mem_pool(device)?;
            let threshold = (&raw mut threshold).cast();
            result::mem_pool::set_attribute(
                pool,
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                threshold,
            )
        }
    }

    /// The device's id, as `cuda:1`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The driver's name for it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its compute capability, as (8, 0).
    #[must_use]
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// How many multiprocessors it has.
    #[must_use]
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// The most shared memory that a block can have.
    #[must_use]
    pub fn shared_bytes(&self) -> u32 {
        self.shared_bytes
    }

    /// Whether it runs a kernel for `target`: `sm_80` and later ones do, `sm_90a` only that one, where the driver is not
    /// too old for the kernel's PTX.
    #[must_use]
    pub fn has(&self, target: &str) -> bool {
        let (major, minor) = self.capability;
        let own = 10 * major + minor;
        let number = target.strip_prefix("sm_").unwrap_or_default();
        match number.strip_suffix('a') {
            Some(exact) => exact.parse() == Ok(own) && self.driver >= OLDEST_DRIVER_OF_EXACT,
            None => number.parse().is_ok_and(|lowest: u32| own >= lowest),
        }
    }

    /// The device's own stream, which its typed ops run on.
    #[must_use]
    pub fn stream(&self) -> Stream<'_> {
        Stream { cuda: self, raw: self.raw.stream }
    }

    /// Another stream of the same context, for launchers to enqueue into.
    ///
    /// # Safety
    /// `stream` must be a stream of this device's context and live as long as the result. Work on it is not ordered
    /// with that on the device's own stream: order them by events where they share memory.
    #[must_use]
    #[expect(unsafe_code, reason = "the caller vouches for a handle")]
    pub unsafe fn on(&self, stream: *mut c_void) -> Stream<'_> {
        Stream { cuda: self, raw: stream.cast() }
    }

    fn error(&self, during: &str, reason: impl Into<String>) -> Error {
        Error::Device { device: self.id.clone(), during: during.to_owned(), reason: reason.into() }
    }

    fn failed(&self, during: &str) -> impl Fn(DriverError) -> Error {
        move |error| self.error(during, words(error))
    }

    /// Whether the stream records a graph instead of running what it is given.
    fn is_capturing(&self) -> std::result::Result<bool, DriverError> {
        #[expect(unsafe_code, reason = "a call into the driver")]
        // SAFETY: the stream is alive.
        let status = unsafe { result::stream::is_capturing(self.raw.stream) }?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// That host memory can be copied now: a graph would keep the address of memory that is gone when it runs.
    fn check_not_capturing(&self, during: &str) -> Result<()> {
        if self.is_capturing().map_err(self.failed(during))? {
            return Err(self.error(during, "the stream is capturing a graph, which cannot hold host memory"));
        }
        Ok(())
    }

    /// Memory for `bytes`, holding anything at all.
    pub(crate) fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Arc<Buffer>> {
        let during = "allocating memory";
        let allocate = || {
            bind(self.raw)?;
            let capturing = self.is_capturing()?;
            if !capturing {
                lock(&self.deferred).drain(..).for_each(|pointer| self.free(pointer));
            }
            let bytes = bytes.max(1);
            #[expect(unsafe_code, reason = "calls into the driver")]
            // SAFETY: the context is current and the stream its own.
            let pointer = unsafe {
                match self.pools {
                    true => result::malloc_async(self.raw.stream, bytes),
                    false => result::malloc_sync(bytes),
                }
            }?;
            Ok((pointer, if capturing { Memory::Captured } else { Memory::Own }))
        };
        let (pointer, kind) =
            allocate().map_err(|error| self.error(during, format!("{}, for {bytes} bytes", words(error))))?;
        Ok(Arc::new(Buffer { cuda: Arc::clone(self), pointer, bytes, kind }))
    }

    /// Memory with these bytes.
    pub(crate) fn upload(self: &Arc<Self>, bytes: &[u8]) -> Result<Arc<Buffer>> {
        let during = "copying to the device";
        bind(self.raw).map_err(self.failed(during))?;
        self.check_not_capturing(during)?;
        let buffer = self.allocate(bytes.len())?;
        if !bytes.is_empty() {
            #[expect(unsafe_code, reason = "a call into the driver")]
            // SAFETY: the memory is as long as `bytes`, which the driver has read when this returns: they are
            // pageable, and no graph is being captured.
            let copied = unsafe { result::memcpy_htod_async(buffer.pointer, bytes, self.raw.stream) };
            copied.map_err(self.failed(during))?;
        }
        Ok(buffer)
    }

    /// Zeroed memory.
    pub(crate) fn zeros(self: &Arc<Self>, bytes: usize) -> Result<Arc<Buffer>> {
        let buffer = self.allocate(bytes)?;
        if bytes > 0 {
            #[expect(unsafe_code, reason = "a call into the driver")]
            // SAFETY: the memory holds `bytes`.
            let filled = unsafe { result::memset_d8_async(buffer.pointer, 0, bytes, self.raw.stream) };
            filled.map_err(self.failed("filling memory"))?;
        }
        Ok(buffer)
    }

    /// Takes memory that somebody else allocated; `owner` is dropped with the last tensor that shares it.
    pub(crate) fn adopt(
        self: &Arc<Self>,
        pointer: u64,
        bytes: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Arc<Buffer> {
        Arc::new(Buffer { cuda: Arc::clone(self), pointer, bytes, kind: Memory::Foreign(owner) })
    }

    /// Frees what this crate allocated, after all work that was enqueued. Nothing can be done about a failure: the
    /// context is lost then, and the next call says so.
    fn free(&self, pointer: u64) {
        #[expect(unsafe_code, reason = "calls into the driver")]
        // SAFETY: allocated in this context, freed once, in the order of the stream that used it.
        let _ = unsafe {
            match self.pools {
                true => result::free_async(pointer, self.raw.stream),
                false => result::stream::synchronize(self.raw.stream).and_then(|()| result::free_sync(pointer)),
            }
        };
    }

    /// Waits for all enqueued work.
    pub(crate) fn synchronize(&self) -> Result<()> {
        let during = "waiting for the device";
        bind(self.raw).map_err(self.failed(during))?;
        self.check_not_capturing(during)?;
        #[expect(unsafe_code, reason = "a call into the driver")]
        // SAFETY: the stream is alive.
        let waited = unsafe { result::stream::synchronize(self.raw.stream) };
        waited.map_err(self.failed(during))
    }

    /// Loads every kernel that this device can run.
    pub(crate) fn warm_up(&self) -> Result<()> {
        let runnable = |kernel: &&Kernel| kernel.needs.iter().all(|need| self.has(need));
        for kernel in kernels::cuda().iter().filter(runnable) {
            bind(self.raw).map_err(self.failed(kernel.entry))?;
            self.function(kernel.entry, 0)?;
        }
        Ok(())
    }

    /// The function of a kernel, which is loaded if it is not yet, with leave to use `shared_bytes`.
    fn function(&self, entry: &str, shared_bytes: u32) -> Result<Function> {
        let mut functions = lock(&self.modules.functions);
        let mut found = match functions.get(entry) {
            Some(function) => *function,
            None => self.load(entry)?,
        };
        if shared_bytes > found.shared_bytes {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(shared_bytes).unwrap_or(i32::MAX);
            #[expect(unsafe_code, reason = "a call into the driver")]
            // SAFETY: the function's module is loaded.
            let set = unsafe { result::function::set_function_attribute(found.function, attribute, bytes) };
            set.map_err(|error| {
                let reason = format!("{}, for {shared_bytes} bytes of shared memory per block", words(error));
                self.error(entry, reason)
            })?;
            found.shared_bytes = shared_bytes;
        }
        functions.insert(found.kernel.entry, found);
        Ok(found)
    }

    fn load(&self, entry: &str) -> Result<Function> {
        let kernel = kernels::cuda()
            .iter()
            .find(|kernel| kernel.entry == entry)
            .ok_or_else(|| self.error(entry, "no such kernel was rendered"))?;
        if let Some(need) = kernel.needs.iter().find(|need| !self.has(need)) {
            let (major, minor) = self.capability;
            return Err(self.error(entry, format!("the kernel needs {need}, the device is sm_{major}{minor}")));
        }
        let text = CString::new(kernel.source).map_err(|error| self.error(entry, error.to_string()))?;
        let name = CString::new(entry).map_err(|error| self.error(entry, error.to_string()))?;
        let mut log = vec![0u8; LOG_BYTES];
        let mut options =
            [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The driver takes the size as a number in the place of a pointer.
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(LOG_BYTES)];
        let mut module = std::ptr::null_mut();
        #[expect(unsafe_code, reason = "a call into the driver")]
        // SAFETY: the text ends with a zero, and the log and both lists are as long as is said.
        let loaded = unsafe {
            sys::cuModuleLoadDataEx(
                &raw mut module,
                text.as_ptr().cast(),
                options.len() as c_uint,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        loaded.result().map_err(|error| {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            self.error(entry, format!("{}: {}", words(error), String::from_utf8_lossy(&log[..end]).trim()))
        })?;
        #[expect(unsafe_code, reason = "a call into the driver")]
        // SAFETY: the module was loaded just now.
        let function = unsafe { result::module::get_function(module, name) }.map_err(self.failed(entry))?;
        Ok(Function { kernel, module, function, shared_bytes: SHARED_BYTES })
    }
}

/// Makes the context current on this thread.
fn bind(raw: Raw) -> std::result::Result<(), DriverError> {
    if result::ctx::get_current()? == Some(raw.context) {
        return Ok(());
    }
    #[expect(unsafe_code, reason = "a call into the driver")]
    // SAFETY: the context is alive.
    unsafe {
        result::ctx::set_current(raw.context)
    }
}

impl Modules {
    /// The modules of a context: one set for all devices on it.
    fn of(context: Raw, owner: Option<Arc<CudaStream>>) -> Arc<Self> {
        static ALL: Mutex<Vec<Weak<Modules>>> = Mutex::new(Vec::new());
        let mut all = lock(&ALL);
        all.retain(|modules| modules.strong_count() > 0);
        let same = |modules: &Arc<Self>| modules.context.context == context.context;
        if let Some(modules) = all.iter().filter_map(Weak::upgrade).find(same) {
            return modules;
        }
        let modules = Arc::new(Self { context, functions: Mutex::default(), _owner: owner });
        all.push(Arc::downgrade(&modules));
        modules
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        if bind(self.context).is_err() {
            return;
        }
        for function in lock(&self.functions).values() {
            #[expect(unsafe_code, reason = "a call into the driver")]
            // SAFETY: loaded here, and no device that could launch it is left. A failure means that the context is
            // lost, and the module with it.
            let _ = unsafe { result::module::unload(function.module) };
        }
    }
}

impl Stream<'_> {
    /// The device this enqueues for.
    #[must_use]
    pub fn cuda(&self) -> &Cuda {
        self.cuda
    }

    /// The map of a tensor of a half type by four axes, the last one contiguous, for copies of `rows` times 64 elements of
    /// its last two axes; a copy has zeros where it goes past `lengths`. See [`has_tensor_map`] for what fits.
    pub(crate) fn tensor_map(&self, operand: Operand<'_>, lengths: [usize; 4], rows: u32) -> Result<TensorMap> {
        const DURING: &str = "cuTensorMapEncodeTiled";
        // CU_TENSOR_MAP_DATA_TYPE_FLOAT16 and _BFLOAT16, _SWIZZLE_128B, _L2_PROMOTION_L2_256B.
        let [f16, bf16, swizzle, promotion]: [c_uint; 4] = [6, 9, 3, 3];
        #[expect(unsafe_code, reason = "a call into the driver")]
        // SAFETY: the driver's own header gives the function this type.
        let encode = library().and_then(|library| {
            unsafe { library.get::<EncodeTiled>(DURING.as_bytes()) }.map_err(|error| error.to_string())
        });
        let encode = encode.map_err(|reason| self.cuda.error(DURING, reason))?;
        let bytes = operand.dtype.bytes() as u64;
        let strides = operand.layout.strides();
        let stride = |axis: usize| if lengths[axis] == 1 { 16 } else { strides[axis] as u64 * bytes };
        let mut map = TensorMap([0; 32]);
        #[expect(unsafe_code, reason = "a call into the driver")]
        // SAFETY: the lists are as long as the rank says, and the map is as large and aligned as the driver's.
        let encoded = unsafe {
            encode(
                &raw mut map,
                if operand.dtype == Dtype::Bf16 { bf16 } else { f16 },
                4,
                std::ptr::without_provenance_mut(operand.address() as usize),
                [3, 2, 1, 0].map(|axis| lengths[axis] as u64).as_ptr(),
                [2, 1, 0].map(stride).as_ptr(),
                [64, rows, 1, 1].as_ptr(),
                [1; 4].as_ptr(),
                0,
                swizzle,
                promotion,
                0,
            )
        };
        encoded.result().map_err(self.cuda.failed(DURING))?;
        Ok(map)
    }

    /// Enqueues one kernel. Launchers vouch that every address is that of an operand as large as the kernel takes it.
    pub(crate) fn launch(
        &self,
        entry: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        arguments: &[Argument<'_>],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        bind(self.cuda.raw).map_err(self.cuda.failed(entry))?;
        let function = self.cuda.function(entry, shared_bytes)?;
        debug_assert!(
            parameters(function.kernel.source).map(|(_, bytes)| bytes).eq(arguments.iter().map(Argument::bytes)),
            "{entry}: takes {:?}",
            parameters(function.kernel.source).collect::<Vec<_>>()
        );
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::pointer).collect();
        #[expect(unsafe_code, reason = "a call into the driver")]
        // SAFETY: the arguments have the kernel's sizes and are copied before this returns; what they point to is as
        // the launcher vouches.
        let launched = unsafe {
            let [grid, block] = [grid, block].map(|[x, y, z]| (x, y, z));
            result::launch_kernel(function.function, grid, block, shared_bytes, self.raw, &mut pointers)
        };
        launched.map_err(self.cuda.failed(entry))
    }
}

/// Names and sizes of a kernel's parameters, read from its text.
pub(crate) fn parameters(source: &str) -> impl Iterator<Item = (&str, usize)> {
    let list = source.split_once(".visible .entry").map_or("", |(_, rest)| rest);
    let list = list.split_once('(').map_or("", |(_, rest)| rest);
    let list = list.split_once(')').map_or("", |(list, _)| list);
    list.split(',').filter_map(|parameter| {
        let mut words = parameter.split_whitespace().skip_while(|word| *word == ".param");
        let mut kind = words.next()?;
        if kind == ".align" {
            words.next()?;
            kind = words.next()?;
        }
        let each = match kind {
            ".u64" | ".b64" | ".s64" | ".f64" => 8,
            ".u32" | ".b32" | ".s32" | ".f32" => 4,
            ".u16" | ".b16" | ".s16" => 2,
            _ => 1,
        };
        let name = words.next()?;
        Some(match name.trim_end_matches(']').split_once('[') {
            Some((name, count)) => (name, each * count.parse().unwrap_or(0)),
            None => (name, each),
        })
    })
}

/// How many blocks `work` needs, at `per_block` each.
///
/// # Errors
/// [`Error::Shape`] if a grid cannot hold them.
pub(crate) fn blocks(op: &'static str, work: usize, per_block: usize) -> Result<u32> {
    let blocks = work.div_ceil(per_block);
    match i32::try_from(blocks) {
        Ok(blocks) => Ok(blocks.unsigned_abs()),
        Err(_) => Err(Error::shape(op, "output", &[blocks], "fewer than 2^31 blocks of work")),
    }
}

/// A length or stride as kernels take it.
///
/// # Errors
/// [`Error::Value`] if it does not fit 32 bits.
pub(crate) fn to_u32(op: &'static str, operand: &'static str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::value(op, operand, value, "a length or stride below 2^32"))
}

/// The address of a contiguous operand.
///
/// # Errors
/// [`Error::Shape`] if it is not contiguous.
pub(crate) fn dense(op: &'static str, name: &'static str, operand: Operand<'_>) -> Result<Argument<'static>> {
    if !operand.layout.is_contiguous() {
        return Err(Error::shape(op, name, operand.layout.strides(), "strides of a contiguous layout"));
    }
    Ok(Argument::Address(operand.address()))
}

/// As [`dense`], of an operand that may be absent: then the address is 0.
///
/// # Errors
/// As [`dense`].
pub(crate) fn dense_or_absent(
    op: &'static str,
    name: &'static str,
    operand: Option<Operand<'_>>,
) -> Result<Argument<'static>> {
    operand.map_or(Ok(Argument::Address(0)), |operand| dense(op, name, operand))
}

/// Whether an operand's first element lies at an address that `bytes` divides.
pub(crate) fn starts_on(bytes: usize, operand: Operand<'_>) -> bool {
    operand.address().is_multiple_of(bytes as u64)
}

/// Whether [`Stream::tensor_map`] can describe an operand: four axes of at most 2^32 elements, of which all but the last
/// have strides of whole 16 bytes, not 0, below 2^40, and an address that 16 bytes divide.
pub(crate) fn has_tensor_map(operand: Operand<'_>) -> bool {
    let fits = |(length, stride): (&usize, &usize)| {
        let bytes = stride * operand.dtype.bytes();
        *length == 1 || (bytes > 0 && bytes.is_multiple_of(16) && bytes < 1 << 40)
    };
    let (shape, strides) = (operand.layout.shape(), operand.layout.strides());
    operand.dtype.bytes() == 2
        && shape.len() == 4
        && shape.iter().all(|length| (1..=1 << 32).contains(length))
        && (shape[3] == 1 || strides[3] == 1)
        && shape.iter().zip(strides).take(3).all(fits)
        && starts_on(16, operand)
}

/// What the entry point's name ends in where a kernel may move 16 bytes at a time: all these operands start on 16
/// bytes, and whole runs of so many fill `len` elements.
pub(crate) fn aligned(dtype: Dtype, len: usize, operands: &[Operand<'_>]) -> &'static str {
    let fits = len.is_multiple_of(16 / dtype.bytes());
    if fits && operands.iter().all(|operand| starts_on(16, *operand)) { "_aligned" } else { "" }
}

/// How many elements a thread takes of a kernel whose name ends in what [`aligned`] gave: 16 bytes of them, or one.
pub(crate) fn per_thread(dtype: Dtype, aligned: &str) -> usize {
    if aligned.is_empty() { 1 } else { 16 / dtype.bytes() }
}

/// Grid and block of a kernel that takes a matrix row by row. How many threads a row has depends on its length alone,
/// and so does the order in which it is summed.
///
/// # Errors
/// [`Error::Shape`] if a grid cannot hold the rows.
pub(crate) fn rows_launch(op: &'static str, rows: usize, len: usize) -> Result<([u32; 3], [u32; 3])> {
    let [width, height] = match len {
        0..=512 => [32, 4],
        513..=4096 => [128, 1],
        _ => [512, 1],
    };
    Ok(([blocks(op, rows, height as usize)?, 1, 1], [width, height, 1]))
}

/// Lengths or strides padded to eight axes in front.
///
/// # Errors
/// [`Error::Shape`] if there are more than eight; [`Error::Value`] if one does not fit 32 bits.
pub(crate) fn eight(op: &'static str, values: &[usize], padding: u32) -> Result<[u32; 8]> {
    let mut padded = [padding; 8];
    let Some(missing) = padded.len().checked_sub(values.len()) else {
        return Err(Error::shape(op, "x", values, "at most 8 axes"));
    };
    for (padded, value) in padded[missing..].iter_mut().zip(values) {
        *padded = to_u32(op, "x", *value)?;
    }
    Ok(padded)
}

impl Buffer {
    /// Where it starts on the device.
    #[must_use]
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies a part of it to host memory, after all enqueued work, and waits for that.
    pub(crate) fn download<T: Element>(&self, start: usize, bytes: usize) -> Result<Vec<T>> {
        let during = "copying from the device";
        let mut data = vec![T::zeroed(); bytes / T::DTYPE.bytes()];
        if data.is_empty() {
            return Ok(data);
        }
        let cuda = &self.cuda;
        bind(cuda.raw).map_err(cuda.failed(during))?;
        cuda.check_not_capturing(during)?;
        #[expect(unsafe_code, reason = "calls into the driver")]
        // SAFETY: the part is inside the memory, and `data` lives until the copy is done.
        let copied = unsafe {
            result::memcpy_dtoh_async(&mut data, self.pointer + start as u64, cuda.raw.stream)
                .and_then(|()| result::stream::synchronize(cuda.raw.stream))
        };
        copied.map_err(cuda.failed(during))?;
        Ok(data)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if matches!(self.kind, Memory::Foreign(_)) || bind(self.cuda.raw).is_err() {
            return;
        }
        // A graph can free its own memory only.
        match self.cuda.is_capturing() {
            Ok(true) if matches!(self.kind, Memory::Own) => lock(&self.cuda.deferred).push(self.pointer),
            _ => self.cuda.free(self.pointer),
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if bind(self.raw).is_ok() {
            lock(&self.deferred).drain(..).for_each(|pointer| self.free(pointer));
        }
    }
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cuda").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes on {})", self.bytes, self.cuda.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_shared_out_by_their_length_alone() {
        for (len, width) in [(0, 32), (512, 32), (513, 128), (4096, 128), (4097, 512), (1 << 20, 512)] {
            for rows in [1, 3, 4, 5, 70_000] {
                let (grid, block) = rows_launch("op", rows, len).unwrap();
                assert_eq!(block[0], width, "{rows} rows of {len}");
                let covered = grid[0] as usize * block[1] as usize;
                assert!((rows..rows + block[1] as usize).contains(&covered), "{rows} rows of {len}: {covered}");
            }
        }
        assert!(matches!(rows_launch("op", usize::MAX, 4097), Err(Error::Shape { op: "op", .. })));
    }

    #[test]
    fn the_oldest_driver_and_the_oldest_device_run_a_variant_of_every_kernel() {
        for kernel in kernels::cuda() {
            let directive = |name: &str| kernel.source.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let target = directive(".target").unwrap();
            assert_eq!(kernel.needs, [target], "{}", kernel.entry);
            let newest = if target == "sm_80" { "7.0" } else { "8.0" };
            assert!(directive(".version").is_some_and(|version| version <= newest), "{}", kernel.entry);
        }
        let plain: std::collections::HashSet<_> =
            kernels::cuda().iter().filter(|kernel| kernel.needs == ["sm_80"]).map(|kernel| kernel.family).collect();
        assert!(kernels::cuda().iter().all(|kernel| plain.contains(kernel.family)));
    }

    #[test]
    fn only_whole_runs_of_16_bytes_are_moved_at_once() {
        let layout = Layout::contiguous(&[64]).unwrap();
        let at = |pointer| Operand { pointer, layout: &layout, dtype: Dtype::F32 };
        assert_eq!(aligned(Dtype::F32, 64, &[at(0x100), at(0x210)]), "_aligned");
        assert_eq!(aligned(Dtype::F32, 64, &[at(0x100), at(0x208)]), "");
        assert_eq!(aligned(Dtype::F32, 66, &[at(0x100)]), "");
        assert_eq!(aligned(Dtype::F16, 68, &[at(0x100)]), "");
        assert_eq!(aligned(Dtype::Bf16, 72, &[at(0x100)]), "_aligned");
    }
}
