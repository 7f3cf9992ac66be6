//! The machine: device memory, and launches of a module's kernels.

mod access;
mod architecture;
mod block;
mod bulk;
mod clocks;
mod execute;
mod hopper;
mod launch;
mod matrix;
mod mbarrier;
mod memory;
mod print;
mod shadow;
mod warp;
mod warpgroup;

pub use architecture::Architecture;

use crate::counts::Counts;
use crate::error::{Fault, FaultKind, MemoryError};
use crate::program::{Function as Decoded, VariableKind};
use crate::ptx::syntax::Initial;
use crate::{Function, Module};
use launch::Context;
use memory::Memory;
use std::collections::HashMap;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
    /// The parameters' bytes, each parameter at the offset that [`Function::parameters`] gives.
    pub parameters: &'a [u8],
}

/// Where kernels' `printf` goes.
type Output = Box<dyn Write + Send>;

/// A GPU of some architecture, with its memory.
///
/// It can be used from several threads; launches run one after another.
pub struct Machine {
    architecture: Architecture,
    memory: RwLock<Memory>,
    /// Addresses of each loaded module's variables in device memory.
    loaded: Mutex<HashMap<u64, HashMap<u32, u64>>>,
    settings: Mutex<Settings>,
    output: Mutex<Output>,
}

#[derive(Clone, Copy)]
struct Settings {
    workers: usize,
    step_budget: u64,
}

impl Machine {
    /// Device memory, unless [`set_memory`](Self::set_memory) says otherwise.
    pub const DEFAULT_MEMORY: u64 = 8 << 30;
    /// Instructions that a warp may run, unless [`set_step_budget`](Self::set_step_budget) says otherwise.
    pub const DEFAULT_STEP_BUDGET: u64 = 200_000_000;

    /// A machine with nothing in its memory.
    pub fn new(architecture: Architecture) -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            architecture,
            memory: RwLock::new(Memory::new(Self::DEFAULT_MEMORY)),
            loaded: Mutex::default(),
            settings: Mutex::new(Settings { workers, step_budget: Self::DEFAULT_STEP_BUDGET }),
            output: Mutex::new(Box::new(std::io::stdout())),
        }
    }

    /// Its architecture.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Runs blocks on so many threads of the host. No result depends on it.
    pub fn set_workers(&self, workers: usize) {
        lock(&self.settings).workers = workers.max(1);
    }

    /// Lets a warp run so many instructions before its kernel counts as endless.
    pub fn set_step_budget(&self, instructions: u64) {
        lock(&self.settings).step_budget = instructions;
    }

    /// Lets so many bytes be allocated at once.
    pub fn set_memory(&self, bytes: u64) {
        self.write_memory().capacity = bytes;
    }

    /// Sends what kernels print here instead of to standard output.
    pub fn set_output(&self, output: impl Write + Send + 'static) {
        *lock(&self.output) = Box::new(output);
    }

    // Memory -------------------------------------------------------------------------------------------------------

    fn read_memory(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_memory(&self) -> RwLockWriteGuard<'_, Memory> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that may be allocated, and bytes that are.
    pub fn memory(&self) -> (u64, u64) {
        let memory = self.read_memory();
        (memory.capacity, memory.used())
    }

    /// Allocates device memory, aligned to 512 bytes. Addresses are never used again.
    pub fn allocate(&self, bytes: u64) -> Result<u64, MemoryError> {
        self.write_memory().allocate(bytes, false)
    }

    /// Frees what [`allocate`](Self::allocate) returned.
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        self.write_memory().free(address)
    }

    /// Start and size of the allocation that holds `address`.
    pub fn allocation(&self, address: u64) -> Option<(u64, u64)> {
        self.read_memory().find(address).map(|allocation| (allocation.address, allocation.bytes))
    }

    /// Start and size of every allocation, variables of modules too: what leaked, at the end.
    pub fn allocations(&self) -> Vec<(u64, u64)> {
        self.read_memory().all().collect()
    }

    /// Copies from device memory. Bytes that nothing wrote are 0xff.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let memory = self.read_memory();
        let allocation = memory.range(address, bytes.len() as u64)?;
        allocation.read(address - allocation.address, bytes);
        Ok(())
    }

    /// Copies to device memory.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let memory = self.read_memory();
        let allocation = memory.range(address, bytes.len() as u64)?;
        allocation.write(address - allocation.address, bytes);
        Ok(())
    }

    /// Sets bytes of device memory.
    pub fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<(), MemoryError> {
        let memory = self.read_memory();
        let allocation = memory.range(address, bytes)?;
        allocation.fill(address - allocation.address, value, bytes);
        Ok(())
    }

    /// Copies within device memory; ranges must not overlap. Bytes that nothing wrote stay so.
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), MemoryError> {
        self.read_memory().copy(to, from, bytes)
    }

    // Modules ------------------------------------------------------------------------------------------------------

    /// Puts a module's variables into device memory, if they are not there yet. A launch does so by itself.
    pub fn load(&self, module: &Module) -> Result<(), MemoryError> {
        let mut loaded = lock(&self.loaded);
        if loaded.contains_key(&module.id()) {
            return Ok(());
        }
        let mut memory = self.write_memory();
        let mut addresses = HashMap::new();
        for (index, variable) in module.parts().variables.iter().enumerate() {
            if let VariableKind::Global { constant } = variable.kind {
                addresses.insert(index as u32, memory.allocate(variable.bytes, constant)?);
            }
        }
        for (index, variable) in module.parts().variables.iter().enumerate() {
            let Some(address) = addresses.get(&(index as u32)) else { continue };
            let width = variable.element.bytes() as usize;
            let mut bytes = Vec::with_capacity(width * variable.initial.len());
            for initial in &variable.initial {
                let value = match initial {
                    Initial::Bits(bits) => *bits,
                    Initial::Address { name, offset } => {
                        let of = module.parts().variables.iter().position(|other| other.name == *name);
                        let of = of.and_then(|of| addresses.get(&(of as u32))).copied().unwrap_or(0);
                        of.wrapping_add_signed(*offset)
                    }
                };
                bytes.extend_from_slice(&value.to_le_bytes()[..width]);
            }
            let allocation = memory.range(*address, variable.bytes)?;
            allocation.write(0, &bytes);
            // PTX zeroes what has no value.
            allocation.fill(bytes.len() as u64, 0, variable.bytes - bytes.len() as u64);
        }
        loaded.insert(module.id(), addresses);
        Ok(())
    }

    /// Takes a module's variables out of device memory.
    pub fn unload(&self, module: &Module) {
        if let Some(addresses) = lock(&self.loaded).remove(&module.id()) {
            let mut memory = self.write_memory();
            for address in addresses.values() {
                // They were allocated by `load` and no one else can have freed them.
                let _ = memory.free(*address);
            }
        }
    }

    /// Address and size of a module's variable in device memory.
    pub fn variable(&self, module: &Module, name: &str) -> Option<(u64, u64)> {
        self.load(module).ok()?;
        let index = module.parts().variables.iter().position(|variable| variable.name == name)?;
        let address = *lock(&self.loaded).get(&module.id())?.get(&(index as u32))?;
        Some((address, module.parts().variables[index].bytes))
    }

    // Launches -----------------------------------------------------------------------------------------------------

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// The first mistake, in the order of blocks, that the kernel or the launch made. Memory then holds whatever the
    /// kernel had written by then.
    pub fn launch(&self, module: &Module, kernel: &Function, launch: Launch<'_>) -> Result<Counts, Fault> {
        let index = kernel.index();
        let function = &module.parts().functions[index];
        let refuse = |detail: String| Fault {
            kind: FaultKind::Launch,
            kernel: kernel.name().to_owned(),
            line: 0,
            block: None,
            thread: None,
            address: None,
            detail,
        };
        self.check_launch(module, function, &launch).map_err(refuse)?;
        self.load(module).map_err(|error| refuse(format!("the module's variables: {error}")))?;
        let addresses = lock(&self.loaded).get(&module.id()).cloned().unwrap_or_default();
        let symbols: Vec<u64> = module
            .parts()
            .symbols
            .iter()
            .map(|symbol| {
                let shared = function.shared_layout.iter().find(|(variable, _)| *variable == symbol.variable);
                let shared = shared.map(|(_, offset)| self.architecture.shared_start() + offset);
                let start = shared.or_else(|| addresses.get(&symbol.variable).copied());
                start.unwrap_or(0).wrapping_add_signed(symbol.offset)
            })
            .collect();
        let settings = *lock(&self.settings);
        let memory = self.read_memory();
        let context = Context::new(
            module.parts(),
            index,
            &symbols,
            &memory,
            launch.parameters,
            launch.grid,
            launch.block,
            u64::from(launch.shared_bytes),
            self.architecture.shared_start(),
            self.architecture.multiprocessors,
            settings.step_budget,
        );
        let (output, result) = context.run(settings.workers);
        drop(context);
        drop(memory);
        if !output.is_empty() {
            let mut target = lock(&self.output);
            // A kernel's print has no one to report a closed pipe to.
            let _ = target.write_all(output.as_bytes()).and_then(|()| target.flush());
        }
        result
    }

    fn check_launch(&self, module: &Module, function: &Decoded, launch: &Launch<'_>) -> Result<(), String> {
        let architecture = &self.architecture;
        if !architecture.runs(module.target()) {
            return Err(format!("the module is for {}, the machine is {architecture}", module.target()));
        }
        if !function.entry {
            return Err("a device function is not a kernel".into());
        }
        for axis in 0..3 {
            let (got, most) = (launch.grid[axis], Architecture::MAX_GRID[axis]);
            if got == 0 || got > most {
                return Err(format!("grid {:?}: 1 to {most} blocks along axis {axis}", launch.grid));
            }
            let (got, most) = (launch.block[axis], Architecture::MAX_BLOCK[axis]);
            if got == 0 || got > most {
                return Err(format!("block {:?}: 1 to {most} threads along axis {axis}", launch.block));
            }
        }
        let threads: u64 = launch.block.iter().map(|extent| u64::from(*extent)).product();
        if threads > u64::from(Architecture::MAX_THREADS) {
            return Err(format!("{threads} threads in a block, at most {}", Architecture::MAX_THREADS));
        }
        if let Some(required) = function.required_threads
            && required != launch.block
        {
            return Err(format!("block {:?}, the kernel requires {required:?}", launch.block));
        }
        if let Some(most) = function.max_threads {
            let most = u64::from(crate::program::build::threads(most));
            if threads > most {
                return Err(format!("{threads} threads in a block, the kernel allows {most}"));
            }
        }
        let shared = function.static_shared_bytes + u64::from(launch.shared_bytes);
        if shared > architecture.max_shared_bytes {
            let most = architecture.max_shared_bytes;
            return Err(format!("{shared} bytes of shared memory in a block, {architecture} has {most}"));
        }
        // Registers are given out to warps in units of 8 a thread.
        let registers = u64::from(function.registers.next_multiple_of(8)) * threads.next_multiple_of(32);
        if registers > u64::from(Architecture::MAX_REGISTERS) {
            let each = function.registers;
            return Err(format!("{threads} threads of {each} registers, a block has {}", Architecture::MAX_REGISTERS));
        }
        let expected = function.parameter_bytes();
        if launch.parameters.len() as u64 != expected {
            return Err(format!("{} bytes of parameters, the kernel takes {expected}", launch.parameters.len()));
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
