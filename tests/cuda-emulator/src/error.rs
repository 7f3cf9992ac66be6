//! What can go wrong, at load, on the host's side and in a kernel.

use std::fmt;

/// Why a module's text cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct LoadError {
    /// Line of the text, from 1.
    pub line: u32,
    /// What is wrong there.
    pub message: String,
}

impl LoadError {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

/// Why an access from the host failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum MemoryError {
    #[error("out of memory: {bytes} bytes asked for, {left} of {capacity} left")]
    Full { bytes: u64, left: u64, capacity: u64 },
    #[error("no allocation holds {bytes} bytes at {address:#x}")]
    OutOfBounds { address: u64, bytes: u64 },
    #[error("no allocation starts at {address:#x}")]
    NotAllocated { address: u64 },
    #[error("{address:#x} has been freed before")]
    Freed { address: u64 },
}

/// What kind of mistake a launch made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The launch asks for what the architecture or the kernel does not allow.
    Launch,
    /// An access outside all memory of its space.
    OutOfBounds,
    /// An access to an address that is no multiple of its size.
    Misaligned,
    /// An access to memory that has been freed.
    UseAfterFree,
    /// A store to constant memory.
    ReadOnly,
    /// A read of memory that nothing wrote.
    Uninitialised,
    /// Two threads meet at an address, one of them writing, with nothing in between that orders them.
    Race,
    /// A barrier that some lanes of a warp reach and others do not.
    DivergentBarrier,
    /// Warps that wait for others that never come.
    BarrierMismatch,
    /// An instruction for lanes that are not all there.
    MemberMask,
    /// Memory touched while an asynchronous copy to it is under way.
    AsyncCopy,
    /// Memory written while an asynchronous copy or matrix product may still read it.
    AsyncRead,
    /// Registers touched while an asynchronous matrix product may still use them.
    AsyncProduct,
    /// Accesses that only a `wgmma.fence` or `fence.proxy.async` would have ordered.
    MissingFence,
    /// An mbarrier used against its rules.
    Mbarrier,
    /// Warps of which none can go on.
    Deadlock,
    /// A warp ran more instructions than it may.
    StepBudget,
    /// `trap`, or an assertion of the kernel's.
    Trap,
    /// An operand whose value the instruction does not allow.
    Operand,
}

impl FaultKind {
    fn words(self) -> &'static str {
        match self {
            Self::Launch => "launch refused",
            Self::OutOfBounds => "out of bounds",
            Self::Misaligned => "misaligned",
            Self::UseAfterFree => "use after free",
            Self::ReadOnly => "write to constant memory",
            Self::Uninitialised => "read of memory that nothing wrote",
            Self::Race => "data race",
            Self::DivergentBarrier => "divergent barrier",
            Self::BarrierMismatch => "barrier mismatch",
            Self::MemberMask => "wrong member mask",
            Self::AsyncCopy => "asynchronous copy not waited for",
            Self::AsyncRead => "write to memory that is still read",
            Self::AsyncProduct => "asynchronous product not waited for",
            Self::MissingFence => "missing fence",
            Self::Mbarrier => "wrong use of an mbarrier",
            Self::Deadlock => "deadlock",
            Self::StepBudget => "step budget spent",
            Self::Trap => "trap",
            Self::Operand => "operand out of range",
        }
    }
}

/// A mistake that ended a launch. Its `Display` is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of mistake.
    pub kind: FaultKind,
    /// The kernel that was launched.
    pub kernel: String,
    /// Line of the module's text, or 0 if the launch never began.
    pub line: u32,
    /// The block, if one was running.
    pub block: Option<[u32; 3]>,
    /// The thread in its block, if it is one's mistake.
    pub thread: Option<[u32; 3]>,
    /// The address, if memory was accessed: of the space that `detail` names.
    pub address: Option<u64>,
    /// What was done and what was expected.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.kernel)?;
        if self.line != 0 {
            write!(formatter, " line {}", self.line)?;
        }
        if let Some([x, y, z]) = self.block {
            write!(formatter, ", block ({x}, {y}, {z})")?;
        }
        if let Some([x, y, z]) = self.thread {
            write!(formatter, ", thread ({x}, {y}, {z})")?;
        }
        write!(formatter, ": {}: {}", self.kind.words(), self.detail)?;
        if let Some(address) = self.address {
            write!(formatter, " at {address:#x}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// A fault as seen inside a warp, which does not know its kernel.
#[derive(Debug)]
pub(crate) struct Problem {
    pub kind: FaultKind,
    pub lane: Option<usize>,
    pub address: Option<u64>,
    pub detail: String,
}

impl Problem {
    pub fn new(kind: FaultKind, detail: impl Into<String>) -> Self {
        Self { kind, lane: None, address: None, detail: detail.into() }
    }

    pub fn lane(mut self, lane: usize) -> Self {
        self.lane = Some(lane);
        self
    }

    pub fn address(mut self, address: u64) -> Self {
        self.address = Some(address);
        self
    }
}
