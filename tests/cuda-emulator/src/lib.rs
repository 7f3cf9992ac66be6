//! Runs PTX kernels on the CPU as a GPU would, checks every memory access, and counts what a GPU would have done.
//!
//! ```
//! use cuda_emulator::{Architecture, Launch, Machine, Module};
//!
//! let module = Module::parse(
//!     "
//!     .version 7.0
//!     .target sm_80
//!     .address_size 64
//!     .visible .entry double(.param .u64 values)
//!     {
//!         .reg .b32 thread, value;
//!         .reg .b64 address, offset;
//!         mov.u32         thread, %tid.x;
//!         ld.param.u64    address, [values];
//!         mul.wide.u32    offset, thread, 4;
//!         add.u64         address, address, offset;
//!         ld.global.u32   value, [address];
//!         add.u32         value, value, value;
//!         st.global.u32   [address], value;
//!         ret;
//!     }",
//! )?;
//! let machine = Machine::new(Architecture::parse("sm_80").unwrap());
//! let values = machine.allocate(16)?;
//! machine.write(values, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0])?;
//! let kernel = module.function("double").unwrap();
//! let launch = Launch { grid: [1; 3], block: [4, 1, 1], shared_bytes: 0, parameters: &values.to_le_bytes() };
//! let counts = machine.launch(&module, kernel, launch)?;
//! assert_eq!(counts.global_loads.bytes, 16);
//! let mut doubled = [0; 16];
//! machine.read(values, &mut doubled)?;
//! assert_eq!(doubled[12], 8);
//!
//! // A fifth thread has no value to double.
//! let launch = Launch { block: [5, 1, 1], ..launch };
//! let fault = machine.launch(&module, kernel, launch).unwrap_err();
//! assert!(fault.to_string().starts_with("double line 13, block (0, 0, 0), thread (4, 0, 0): out of bounds: load of 4"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Module::parse`] reads PTX and fails, with the line, at whatever it does not know. [`Machine`] holds device memory
//! and runs kernels; a mistake ends the launch with a [`Fault`] that names kernel, line, block, thread and address.
//! [`Counts`] are the same whatever the number of threads that the host gives. [`TensorMap`] describes a tensor to the
//! bulk copies of sm_90.

mod counts;
mod error;
pub mod float;
mod machine;
mod program;
mod ptx;
mod tensor_map;

pub use counts::{Class, Counts, GlobalAccess, PerClass, SharedAccess, Waits};
pub use error::{Fault, FaultKind, LoadError, MemoryError};
pub use machine::{Architecture, Launch, Machine};
pub use program::Parameter;
pub use tensor_map::{Swizzle, TensorMap, TensorMapError};

use program::Function as Decoded;
use program::build::{Parts, build, threads};
use std::sync::atomic::{AtomicU64, Ordering};

/// PTX, decoded.
pub struct Module {
    id: u64,
    version: (u32, u32),
    target: String,
    parts: Parts,
    functions: Vec<Function>,
}

/// A kernel of a module.
#[derive(Clone, Debug)]
pub struct Function {
    index: usize,
    name: String,
    parameters: Vec<Parameter>,
    parameter_bytes: u64,
    registers: u32,
    static_shared_bytes: u64,
    local_bytes: u64,
    max_threads: u32,
}

impl Module {
    /// Reads and decodes PTX.
    ///
    /// # Errors
    /// The first line that is not PTX, or that holds an instruction, modifier or directive that is not known here.
    pub fn parse(text: &str) -> Result<Self, LoadError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let syntax = ptx::parser::parse(text)?;
        let parts = build(&syntax)?;
        let functions = parts
            .functions
            .iter()
            .enumerate()
            .filter(|(_, function)| function.entry)
            .map(|(index, function)| Function::new(index, function))
            .collect();
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { id, version: syntax.version, target: syntax.target, parts, functions })
    }

    /// The kernel of this name.
    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|function| function.name == name)
    }

    /// All kernels, in the text's order.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// `.version`: major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// `.target`
    pub fn target(&self) -> &str {
        &self.target
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }
}

impl Function {
    fn new(index: usize, function: &Decoded) -> Self {
        Self {
            index,
            name: function.name.clone(),
            parameters: function.parameters.clone(),
            parameter_bytes: function.parameter_bytes(),
            registers: function.registers,
            static_shared_bytes: function.static_shared_bytes,
            local_bytes: function.local_bytes,
            max_threads: function.max_threads.map_or(Architecture::MAX_THREADS, threads).min(Architecture::MAX_THREADS),
        }
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters, with the offset of each in [`Launch::parameters`].
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Size of [`Launch::parameters`].
    pub fn parameter_bytes(&self) -> u64 {
        self.parameter_bytes
    }

    /// An estimate of the 32-bit registers that a thread needs.
    pub fn registers(&self) -> u32 {
        self.registers
    }

    /// Shared memory that it uses whatever the launch, in bytes.
    pub fn static_shared_bytes(&self) -> u64 {
        self.static_shared_bytes
    }

    /// Local memory of a thread, in bytes.
    pub fn local_bytes(&self) -> u64 {
        self.local_bytes
    }

    /// Threads that a block may have.
    pub fn max_threads(&self) -> u32 {
        self.max_threads
    }
}

impl Decoded {
    /// Bytes of its parameters.
    pub(crate) fn parameter_bytes(&self) -> u64 {
        self.parameters.last().map_or(0, |last| last.offset + last.bytes)
    }
}
