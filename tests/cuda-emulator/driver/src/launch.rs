//! Launches: their parameters, limits, faults and counts.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::io::Write as _;
use std::sync::Arc;

use cuda_emulator::{Architecture, Fault, FaultKind, Function, Launch};

use crate::device::blocks_per_multiprocessor;
use crate::entries;
use crate::error::{Code, Result};
use crate::module::Loaded;
use crate::state::{Driver, Handle, State, Work, driver, put, put_if_wanted};
use crate::stream::enqueue;

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: u32 = 8;

/// A function that can be launched.
pub struct Kernel {
    pub module: Arc<Loaded>,
    pub name: String,
    /// What the program set.
    pub attributes: HashMap<u32, c_int>,
}

/// A launch with its parameters copied, so that it can run later and again.
#[derive(Clone)]
pub struct Prepared {
    module: Arc<Loaded>,
    name: String,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    parameters: Vec<u8>,
}

impl Kernel {
    fn function(&self) -> Result<&Function> {
        self.module.module.function(&self.name).ok_or(Code::NOT_FOUND)
    }

    fn attribute(&self, driver: &Driver, attribute: u32) -> Result<c_int> {
        if let Some(value) = self.attributes.get(&attribute) {
            return Ok(*value);
        }
        let function = self.function()?;
        let (major, minor) = driver.machine.architecture().capability;
        Ok(match attribute {
            0 => function.max_threads() as c_int,
            1 => function.static_shared_bytes() as c_int,
            2 => 0,
            3 => function.local_bytes() as c_int,
            4 => function.registers() as c_int,
            5 => {
                let (major, minor) = self.module.module.version();
                (10 * major + minor) as c_int
            }
            6 => (10 * major + minor) as c_int,
            MAX_DYNAMIC_SHARED => {
                (Architecture::DEFAULT_SHARED_BYTES as c_int - function.static_shared_bytes() as c_int).max(0)
            }
            9 => -1,
            _ => 0,
        })
    }
}

fn kernel(state: &State, function: Handle) -> Result<&Kernel> {
    state.kernels.get(&function.addr()).ok_or(Code::INVALID_HANDLE)
}

/// Copies a launch's parameters: one pointer each, or one buffer with all.
unsafe fn parameters(function: &Function, each: *const *const c_void, extra: *const *const c_void) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if !extra.is_null() {
        let (mut buffer, mut size) = (std::ptr::null::<u8>(), 0);
        let mut at = extra;
        // CU_LAUNCH_PARAM_END, CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE.
        loop {
            match at.read().addr() {
                0 => break,
                1 => buffer = at.add(1).read().cast(),
                2 => size = at.add(1).read().cast::<usize>().read(),
                _ => return Err(Code::INVALID_VALUE),
            }
            at = at.add(2);
        }
        if !buffer.is_null() {
            bytes.extend_from_slice(std::slice::from_raw_parts(buffer, size));
        }
        return Ok(bytes);
    }
    for (index, parameter) in function.parameters().iter().enumerate() {
        if each.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let from = each.add(index).read().cast::<u8>();
        if from.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        bytes.resize(parameter.offset as usize, 0);
        bytes.extend_from_slice(std::slice::from_raw_parts(from, parameter.bytes as usize));
    }
    Ok(bytes)
}

unsafe fn launch(
    function: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: Handle,
    each: *const *const c_void,
    extra: *const *const c_void,
) -> Result {
    let driver = driver()?;
    let prepared = {
        let state = driver.state();
        let kernel = kernel(&state, function)?;
        let allowed = kernel.attribute(driver, MAX_DYNAMIC_SHARED)?;
        if grid.contains(&0) || block.contains(&0) || i64::from(shared_bytes) > i64::from(allowed) {
            return Err(Code::INVALID_VALUE);
        }
        Prepared {
            module: Arc::clone(&kernel.module),
            name: kernel.name.clone(),
            grid,
            block,
            shared_bytes,
            parameters: parameters(kernel.function()?, each, extra)?,
        }
    };
    enqueue(stream, Work::Launch(prepared))
}

/// Runs a launch, and adds what it counted to the report.
pub fn run(driver: &Driver, prepared: &Prepared) -> Result {
    let Prepared { module, name, grid, block, shared_bytes, parameters } = prepared;
    let function = module.module.function(name).ok_or(Code::NOT_FOUND)?;
    let launch = Launch { grid: *grid, block: *block, shared_bytes: *shared_bytes, parameters };
    let counts = driver.machine.launch(&module.module, function, launch).map_err(|fault| report_fault(&fault))?;
    if let Some(path) = std::env::var_os("CUDA_EMULATOR_REPORT") {
        let line = serde_json::to_string(&counts).map_err(|_| Code::UNKNOWN)?;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        // One write, so that lines of several processes do not mix.
        if let Err(error) = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
            eprintln!("cuda emulator: CUDA_EMULATOR_REPORT={}: {error}", path.display());
        }
    }
    Ok(())
}

/// Prints a fault, and gives the status that a device would.
pub fn report_fault(fault: &Fault) -> Code {
    eprintln!("cuda emulator: {fault}");
    match fault.kind {
        FaultKind::Launch => Code::INVALID_VALUE,
        FaultKind::OutOfBounds | FaultKind::UseAfterFree | FaultKind::ReadOnly => Code::ILLEGAL_ADDRESS,
        FaultKind::Misaligned => Code::MISALIGNED_ADDRESS,
        FaultKind::StepBudget | FaultKind::Deadlock => Code::LAUNCH_TIMEOUT,
        FaultKind::Trap => Code::ILLEGAL_INSTRUCTION,
        // A device would go on, with whatever comes out.
        _ => Code::LAUNCH_FAILED,
    }
}

/// How many blocks of a function fit on a multiprocessor, by threads, registers, shared memory and slots.
fn occupancy(driver: &Driver, kernel: &Kernel, threads: u32, dynamic_bytes: usize) -> Result<u32> {
    let function = kernel.function()?;
    let architecture = driver.machine.architecture();
    if threads == 0 || threads > 1024 {
        return Err(Code::INVALID_VALUE);
    }
    let warps = threads.div_ceil(32);
    let registers = warps * (function.registers().max(1) * 32).next_multiple_of(256);
    let shared = function.static_shared_bytes() as usize + dynamic_bytes + 1024;
    let by_shared = architecture.shared_bytes_per_multiprocessor as usize / shared.next_multiple_of(128);
    Ok([
        blocks_per_multiprocessor(driver),
        architecture.threads_per_multiprocessor / (32 * warps),
        Architecture::MAX_REGISTERS / registers,
        u32::try_from(by_shared).unwrap_or(u32::MAX),
    ]
    .into_iter()
    .min()
    .unwrap_or(0))
}

fn active_blocks(blocks: *mut c_int, function: Handle, threads: c_int, dynamic_bytes: usize) -> Result {
    let driver = driver()?;
    let state = driver.state();
    let threads = u32::try_from(threads).map_err(|_| Code::INVALID_VALUE)?;
    let active = occupancy(driver, kernel(&state, function)?, threads, dynamic_bytes)?;
    // SAFETY: the entry point's caller vouches for the pointer.
    unsafe { put(blocks, active as c_int) }
}

/// The block that keeps most threads of a multiprocessor busy, the largest of equals.
fn best_block(
    grid: *mut c_int,
    block: *mut c_int,
    function: Handle,
    dynamic: Option<unsafe extern "C" fn(c_int) -> usize>,
    dynamic_bytes: usize,
    limit: c_int,
) -> Result {
    let driver = driver()?;
    let state = driver.state();
    let kernel = kernel(&state, function)?;
    let most = kernel.attribute(driver, 0)?.min(if limit > 0 { limit } else { 1024 });
    let mut best = (0, 0, 0);
    for threads in (1..=most as u32 / 32).map(|warps| 32 * warps) {
        // SAFETY: the entry point's caller vouches for its function.
        let bytes = dynamic.map_or(dynamic_bytes, |dynamic| unsafe { dynamic(threads as c_int) });
        let blocks = occupancy(driver, kernel, threads, bytes)?;
        best = best.max((blocks * threads, threads, blocks));
    }
    // SAFETY: the entry point's caller vouches for the pointers.
    unsafe {
        put(grid, (best.2 * driver.machine.architecture().multiprocessors) as c_int)?;
        put(block, best.1 as c_int)
    }
}

/// `CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`.
const CLUSTER_DIMENSION: u32 = 4;

/// `CUlaunchAttribute`.
#[repr(C, align(8))]
struct Attribute {
    kind: u32,
    padding: u32,
    value: [u32; 16],
}

/// `CUlaunchConfig`.
#[repr(C)]
struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: Handle,
    attributes: *const c_void,
    count: u32,
}

entries! {
    fn cuLaunchKernel(
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared_bytes: u32, stream: Handle, each: *const *const c_void, extra: *const *const c_void,
    ) {
        launch(function, [grid_x, grid_y, grid_z], [block_x, block_y, block_z], shared_bytes, stream, each, extra)
    }
    fn cuLaunchCooperativeKernel(
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared_bytes: u32, stream: Handle, each: *const *const c_void,
    ) {
        launch(
            function, [grid_x, grid_y, grid_z], [block_x, block_y, block_z], shared_bytes, stream, each, std::ptr::null(),
        )
    }
    fn cuLaunchKernelEx(
        config: *const Config, function: Handle, each: *const *const c_void, extra: *const *const c_void,
    ) {
        if config.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let config = &*config;
        // Of all attributes only clusters change what a kernel computes.
        for index in 0..if config.attributes.is_null() { 0 } else { config.count as usize } {
            let attribute = &*config.attributes.cast::<Attribute>().add(index);
            if attribute.kind == CLUSTER_DIMENSION && attribute.value[..3].iter().any(|extent| *extent > 1) {
                eprintln!("cuda emulator: clusters of several blocks are not supported");
                return Err(Code::NOT_SUPPORTED);
            }
        }
        launch(function, config.grid, config.block, config.shared_bytes, config.stream, each, extra)
    }
    fn cuFuncGetAttribute(value: *mut c_int, attribute: u32, function: Handle) {
        let driver = driver()?;
        let state = driver.state();
        put(value, kernel(&state, function)?.attribute(driver, attribute)?)
    }
    fn cuKernelGetAttribute(value: *mut c_int, attribute: u32, function: Handle, _device: c_int) {
        let driver = driver()?;
        let state = driver.state();
        put(value, kernel(&state, function)?.attribute(driver, attribute)?)
    }
    fn cuFuncSetAttribute(function: Handle, attribute: u32, value: c_int) { set_attribute(function, attribute, value) }
    fn cuKernelSetAttribute(attribute: u32, value: c_int, function: Handle, _device: c_int) {
        set_attribute(function, attribute, value)
    }
    fn cuFuncSetCacheConfig(function: Handle, _config: u32) {
        kernel(&driver()?.state(), function).map(|_| ())
    }
    fn cuFuncSetSharedMemConfig(function: Handle, _config: u32) {
        kernel(&driver()?.state(), function).map(|_| ())
    }
    fn cuFuncGetParamInfo(function: Handle, index: usize, offset: *mut usize, bytes: *mut usize) {
        let state = driver()?.state();
        let function = kernel(&state, function)?.function()?;
        let parameter = function.parameters().get(index).ok_or(Code::INVALID_VALUE)?;
        put_if_wanted(offset, parameter.offset as usize);
        put_if_wanted(bytes, parameter.bytes as usize);
        Ok(())
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut c_int, function: Handle, threads: c_int, bytes: usize) {
        active_blocks(blocks, function, threads, bytes)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: *mut c_int, function: Handle, threads: c_int, bytes: usize, _flags: u32,
    ) {
        active_blocks(blocks, function, threads, bytes)
    }
    fn cuOccupancyMaxPotentialBlockSize(
        grid: *mut c_int, block: *mut c_int, function: Handle, dynamic: Option<unsafe extern "C" fn(c_int) -> usize>,
        bytes: usize, limit: c_int,
    ) {
        best_block(grid, block, function, dynamic, bytes, limit)
    }
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: *mut c_int, block: *mut c_int, function: Handle, dynamic: Option<unsafe extern "C" fn(c_int) -> usize>,
        bytes: usize, limit: c_int, _flags: u32,
    ) {
        best_block(grid, block, function, dynamic, bytes, limit)
    }
    fn cuOccupancyAvailableDynamicSMemPerBlock(bytes: *mut usize, function: Handle, blocks: c_int, _threads: c_int) {
        let driver = driver()?;
        let state = driver.state();
        let own = kernel(&state, function)?.function()?.static_shared_bytes() as usize;
        let blocks = usize::try_from(blocks).ok().filter(|blocks| *blocks > 0).ok_or(Code::INVALID_VALUE)?;
        let share = (driver.machine.architecture().shared_bytes_per_multiprocessor as usize / blocks).saturating_sub(1024);
        put(bytes, share.min(driver.machine.architecture().max_shared_bytes as usize).saturating_sub(own))
    }
}

fn set_attribute(function: Handle, attribute: u32, value: c_int) -> Result {
    let driver = driver()?;
    let mut state = driver.state();
    let kernel = state.kernels.get_mut(&function.addr()).ok_or(Code::INVALID_HANDLE)?;
    let own = kernel.function()?.static_shared_bytes() as c_int;
    if attribute == MAX_DYNAMIC_SHARED
        && !(0..=driver.machine.architecture().max_shared_bytes as c_int - own).contains(&value)
    {
        return Err(Code::INVALID_VALUE);
    }
    kernel.attributes.insert(attribute, value);
    Ok(())
}
