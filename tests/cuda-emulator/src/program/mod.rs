//! A module decoded for running: registers are slots, labels are indices, and what an instruction computes is a
//! function over the 32 lanes of a warp.

pub mod build;
pub mod decode;
pub mod flow;
pub mod operands;

use crate::counts::Class;
use crate::ptx::types::Type;
use std::sync::Arc;

/// Lanes of a warp.
pub const WARP: usize = 32;

/// A register's value in every lane, zero-extended to 64 bits.
pub type Lanes = [u64; WARP];

/// A register of a function's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(pub u32);

/// A predicate of a function's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Predicate(pub u32);

/// Where an operand's lanes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A register.
    Register(Register),
    /// One of the function's constants.
    Constant(u32),
    /// A special register, the same for the whole life of a warp.
    Special(Special),
    /// The address of one of the module's symbols, known at launch.
    Symbol(u32),
}

/// Special registers that do not change while a warp lives, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are PTX's own
#[repr(u8)]
pub enum Special {
    TidX,
    TidY,
    TidZ,
    NtidX,
    NtidY,
    NtidZ,
    CtaidX,
    CtaidY,
    CtaidZ,
    NctaidX,
    NctaidY,
    NctaidZ,
    Laneid,
    Warpid,
    Nwarpid,
    Smid,
    Nsmid,
    Gridid,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    DynamicSmemSize,
    TotalSmemSize,
    /// A register that is always 0, as a cluster's rank without clusters.
    Zero,
    /// A register that is always 1, as a cluster's size without clusters.
    One,
    WarpSize,
    /// Where shared memory that the system keeps would begin. There is none here: it is out of bounds.
    ReservedShared,
}

impl Special {
    /// How many there are.
    pub const COUNT: usize = Self::ReservedShared as usize + 1;

    /// The special register that PTX calls `name`.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "%tid.x" | "%tid" => Self::TidX,
            "%tid.y" => Self::TidY,
            "%tid.z" => Self::TidZ,
            "%ntid.x" | "%ntid" => Self::NtidX,
            "%ntid.y" => Self::NtidY,
            "%ntid.z" => Self::NtidZ,
            "%ctaid.x" | "%ctaid" => Self::CtaidX,
            "%ctaid.y" => Self::CtaidY,
            "%ctaid.z" => Self::CtaidZ,
            "%nctaid.x" | "%nctaid" => Self::NctaidX,
            "%nctaid.y" => Self::NctaidY,
            "%nctaid.z" => Self::NctaidZ,
            "%laneid" => Self::Laneid,
            "%warpid" => Self::Warpid,
            "%nwarpid" => Self::Nwarpid,
            "%smid" => Self::Smid,
            "%nsmid" => Self::Nsmid,
            "%gridid" => Self::Gridid,
            "%lanemask_eq" => Self::LanemaskEq,
            "%lanemask_le" => Self::LanemaskLe,
            "%lanemask_lt" => Self::LanemaskLt,
            "%lanemask_ge" => Self::LanemaskGe,
            "%lanemask_gt" => Self::LanemaskGt,
            "%dynamic_smem_size" => Self::DynamicSmemSize,
            "%total_smem_size" => Self::TotalSmemSize,
            "WARP_SZ" => Self::WarpSize,
            "%cluster_ctarank" | "%cluster_ctaid.x" | "%cluster_ctaid.y" | "%cluster_ctaid.z" => Self::Zero,
            "%cluster_nctarank" | "%cluster_nctaid.x" | "%cluster_nctaid.y" | "%cluster_nctaid.z" => Self::One,
            "%reserved_smem_offset_begin"
            | "%reserved_smem_offset_end"
            | "%reserved_smem_offset_cap"
            | "%reserved_smem_offset_0"
            | "%reserved_smem_offset_1" => Self::ReservedShared,
            "%clusterid.x" => Self::CtaidX,
            "%clusterid.y" => Self::CtaidY,
            "%clusterid.z" => Self::CtaidZ,
            "%nclusterid.x" => Self::NctaidX,
            "%nclusterid.y" => Self::NctaidY,
            "%nclusterid.z" => Self::NctaidZ,
            _ => return None,
        })
    }
}

/// Computes lanes from one operand.
pub type Unary = Arc<dyn Fn(&Lanes, &mut Lanes) + Send + Sync>;
/// Computes lanes from two operands.
pub type Binary = Arc<dyn Fn(&Lanes, &Lanes, &mut Lanes) + Send + Sync>;
/// Computes lanes from three operands.
pub type Ternary = Arc<dyn Fn(&Lanes, &Lanes, &Lanes, &mut Lanes) + Send + Sync>;
/// Compares two operands: a bit per lane.
pub type Comparison = Arc<dyn Fn(&Lanes, &Lanes) -> u32 + Send + Sync>;
/// Adds or subtracts with a carry per lane: operands and the carries in, lanes and the carries out.
pub type Carrying = Arc<dyn Fn(u64, u64, u64, bool) -> (u64, bool) + Send + Sync>;

/// How [`Operation::Setp`] combines the comparison with a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Logic {
    And,
    Or,
    Xor,
}

impl Logic {
    /// Applies it bit by bit.
    pub fn apply(self, a: u32, b: u32) -> u32 {
        match self {
            Self::And => a & b,
            Self::Or => a | b,
            Self::Xor => a ^ b,
        }
    }
}

/// A predicate operand: a register, perhaps negated, or a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// A predicate and whether it is negated.
    Register(Predicate, bool),
    /// Always or never.
    Constant(bool),
}

/// An address operand: base plus bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// What the bytes are added to.
    pub base: Base,
    /// Bytes past the base.
    pub offset: i64,
    /// The base has 32 bits, so the sum wraps there.
    pub narrow: bool,
}

/// What an address starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Zero.
    Nothing,
    /// A register or symbol.
    Source(Source),
    /// The function's frame in each thread's local memory.
    Frame,
}

/// The spaces that memory instructions reach at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The address tells.
    Generic,
    /// Device memory; constants too.
    Global,
    /// The block's memory.
    Shared,
    /// The thread's memory, and parameters of device functions.
    Local,
    /// The kernel's parameters.
    Parameters,
}

/// How a loaded element fills its register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    /// Bytes in memory.
    pub bytes: u32,
    /// Copies of the sign fill the register up to this many bits, if not 0.
    pub extend_to: u32,
}

/// What a memory access promises to other threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// Nothing: another thread's access needs a barrier in between.
    Weak,
    /// `.relaxed`, `.volatile`: may meet other strong accesses.
    Relaxed,
    /// `.acquire`, `.release`, `.acq_rel`: orders what comes before and after too.
    Ordered,
}

/// What an atomic operation does to the value in memory: old value, operand and second operand give the new value.
pub type Update = Arc<dyn Fn(u64, u64, u64) -> u64 + Send + Sync>;

/// A lane exchange of `shfl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// A vote over lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Vote {
    All,
    Any,
    Uniform,
}

/// A reduction over the threads of a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BarrierReduction {
    PopulationCount(Register),
    And(Predicate),
    Or(Predicate),
}

/// Element types of a matrix instruction's operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MatrixElement {
    F16,
    BF16,
    TF32,
    S8,
    U8,
    F32,
    S32,
}

/// `mma.sync`: `d = a * b + c`, fragments in registers.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Shape and types, as counts name it.
    pub name: String,
    /// Rows of `a` and `d`.
    pub m: usize,
    /// Columns of `b` and `d`.
    pub n: usize,
    /// The axis that is summed.
    pub k: usize,
    /// Elements of `a`.
    pub a_element: MatrixElement,
    /// Elements of `b`.
    pub b_element: MatrixElement,
    /// Elements of `c`.
    pub c_element: MatrixElement,
    /// Elements of `d`.
    pub d_element: MatrixElement,
    /// Integer sums stop at the ends of their range.
    pub saturate: bool,
    /// Registers of `a`.
    pub a: Vec<Source>,
    /// Registers of `b`.
    pub b: Vec<Source>,
    /// Registers of `c`.
    pub c: Vec<Source>,
    /// Registers of `d`.
    pub d: Vec<Register>,
    /// Where a lane's elements of `a` lie, rows first: of lane 0 all, then of lane 1.
    pub a_places: Vec<u16>,
    /// The same of `b`, columns first.
    pub b_places: Vec<u16>,
    /// The same of `c` and `d`, rows first.
    pub c_places: Vec<u16>,
}

/// What an instruction does.
#[derive(Clone)]
#[allow(missing_docs)] // fields are an instruction's operands
pub enum Operation {
    Unary {
        destination: Register,
        source: Source,
        compute: Unary,
    },
    Binary {
        destination: Register,
        sources: [Source; 2],
        compute: Binary,
    },
    Ternary {
        destination: Register,
        sources: [Source; 3],
        compute: Ternary,
    },
    /// `bfi`: the only one with four operands; `compute` gets the last two packed.
    InsertBits {
        destination: Register,
        sources: [Source; 4],
        bits: u32,
    },
    Carry {
        destination: Register,
        sources: [Source; 3],
        compute: Carrying,
        reads: bool,
        writes: bool,
    },
    /// Compares, combines with a predicate, writes the predicate and its opposite.
    Setp {
        destination: Option<Predicate>,
        opposite: Option<Predicate>,
        sources: [Source; 2],
        compare: Comparison,
        combine: Option<(Logic, Condition)>,
    },
    /// Two comparisons at once, of the halves of packed operands.
    SetpPair {
        destinations: [Option<Predicate>; 2],
        sources: [Source; 2],
        compare: [Comparison; 2],
        combine: Option<(Logic, Condition)>,
    },
    /// Compares, combines and writes a value for true or 0.
    Set {
        destination: Register,
        sources: [Source; 2],
        compare: Comparison,
        combine: Option<(Logic, Condition)>,
        truth: u64,
    },
    Select {
        destination: Register,
        sources: [Source; 2],
        condition: Condition,
    },
    /// `and`, `or`, `xor`, `not` and `mov` of predicates.
    PredicateLogic {
        destination: Predicate,
        logic: Logic,
        sources: [Condition; 2],
        negate: bool,
    },
    /// `lop3.BoolOp`: the result and a predicate of whether it is not zero.
    LogicPredicate {
        destination: Option<Register>,
        predicate: Predicate,
        sources: [Source; 3],
        compute: Ternary,
        combine: (Logic, Condition),
    },
    /// Splits one register into parts, lowest first.
    Unpack {
        destinations: Vec<Option<Register>>,
        source: Source,
        bits: u32,
    },
    /// Joins parts into one register, lowest first.
    Pack {
        destination: Register,
        sources: Vec<Source>,
        bits: u32,
    },
    /// The address of something in the frame: its own space's or generic.
    FrameAddress {
        destination: Register,
        offset: u64,
        generic: bool,
    },
    /// Generic address of an address in another space, or back.
    ConvertAddress {
        destination: Register,
        source: Source,
        memory: Memory,
        to_generic: bool,
    },
    /// `isspacep`
    IsSpace {
        destination: Predicate,
        source: Source,
        memory: Memory,
    },
    /// `%clock` and friends: a count that only grows.
    Clock {
        destination: Register,
        bits: u32,
    },
    /// Does nothing that a check could see: `prefetch`, `nanosleep`, `griddepcontrol`.
    Nothing,
    Load {
        memory: Memory,
        address: Address,
        destinations: Vec<Option<Register>>,
        element: Element,
        strength: Strength,
    },
    Store {
        memory: Memory,
        address: Address,
        sources: Vec<Source>,
        bytes: u32,
        strength: Strength,
    },
    Atomic {
        memory: Memory,
        address: Address,
        destination: Option<Register>,
        operand: Source,
        second: Option<Source>,
        bytes: u32,
        strength: Strength,
        /// In device memory, and in shared memory.
        updates: [Update; 2],
    },
    /// `cp.async`: global to shared, of which `source_bytes` are read and the rest are zeros.
    CopyAsync {
        to: Address,
        from: Address,
        bytes: u32,
        source_bytes: Option<Source>,
        ignore: Option<Condition>,
    },
    CommitGroup,
    /// Waits until at most so many groups are under way; `None`: for all copies.
    WaitGroup(Option<u32>),
    Fence,
    Branch {
        target: u32,
    },
    /// Where code that followed in the text has been put elsewhere. Costs and counts nothing.
    Jump {
        target: u32,
    },
    /// `brx.idx`
    BranchTable {
        index: Source,
        targets: Vec<u32>,
    },
    Call {
        function: u32,
        /// Frame offsets and bytes of each argument, in the caller.
        arguments: Vec<(u64, u64)>,
        results: Vec<(u64, u64)>,
    },
    /// A function that the emulator provides.
    CallBuiltin {
        builtin: Builtin,
        arguments: Vec<(u64, u64)>,
        results: Vec<(u64, u64)>,
    },
    Return,
    Exit,
    Trap,
    Barrier {
        /// `bar.arrive`: does not wait.
        arrive: bool,
        aligned: bool,
        barrier: Source,
        threads: Option<Source>,
        reduction: Option<(BarrierReduction, Condition)>,
    },
    WarpBarrier {
        mask: Source,
    },
    Shuffle {
        destination: Register,
        predicate: Option<Predicate>,
        mode: Shuffle,
        sources: [Source; 3],
        mask: Source,
    },
    Vote {
        destination: Predicate,
        vote: Vote,
        condition: Condition,
        mask: Source,
    },
    Ballot {
        destination: Register,
        condition: Condition,
        mask: Source,
    },
    /// `match.any`, or with `all` and a predicate `match.all`.
    Match {
        destination: Register,
        predicate: Option<Predicate>,
        all: bool,
        source: Source,
        mask: Source,
    },
    Reduce {
        destination: Register,
        source: Source,
        mask: Source,
        combine: fn(u32, u32) -> u32,
    },
    ActiveMask {
        destination: Register,
    },
    /// `elect.sync`
    Elect {
        destination: Option<Register>,
        predicate: Predicate,
        mask: Source,
    },
    LoadMatrix {
        memory: Memory,
        address: Address,
        destinations: Vec<Register>,
        transposed: bool,
    },
    StoreMatrix {
        memory: Memory,
        address: Address,
        sources: Vec<Source>,
        transposed: bool,
    },
    /// `movmatrix`: an 8 by 8 matrix of 16-bit elements, transposed.
    TransposeMatrix {
        destination: Register,
        source: Source,
    },
    Matrix(Box<Matrix>),
    MbarrierInit {
        memory: Memory,
        address: Address,
        count: Source,
    },
    MbarrierInvalidate {
        memory: Memory,
        address: Address,
    },
    MbarrierArrive(Box<Arrival>),
    MbarrierWait(Box<PhaseWait>),
    /// `mbarrier.pending_count`
    MbarrierPending {
        destination: Register,
        state: Source,
    },
    BulkCopy(Box<BulkCopy>),
    BulkCommit,
    BulkWait {
        groups: u32,
        /// Waits for reads only.
        read: bool,
    },
    /// `fence.proxy.async`, of which memory.
    ProxyFence {
        shared: bool,
        global: bool,
    },
    WarpgroupFence,
    WarpgroupCommit,
    WarpgroupWait(u32),
    WarpgroupMatrix(Box<WarpgroupMatrix>),
    /// `setmaxnreg`
    SetRegisters {
        count: u32,
        increase: bool,
    },
}

/// `mbarrier.arrive`, `.expect_tx`, `.complete_tx` and what joins them: bytes are expected first.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Where the address leads.
    pub memory: Memory,
    /// The mbarrier.
    pub address: Address,
    /// Gets the state before.
    pub state: Option<Register>,
    /// How often it arrives, if it does.
    pub arrivals: Option<Source>,
    /// `arrive_drop`: later phases expect as many fewer.
    pub drop: bool,
    /// Bytes that copies are to bring in this phase.
    pub expected: Option<Source>,
    /// Bytes that a copy is said to have brought.
    pub completed: Option<Source>,
    /// Orders what comes before: not `.relaxed`.
    pub release: bool,
    /// `cp.async.mbarrier.arrive`: once the thread's copies are there.
    pub after_copies: bool,
}

/// `mbarrier.test_wait` and `mbarrier.try_wait`.
#[derive(Clone, Debug)]
pub struct PhaseWait {
    /// Where the address leads.
    pub memory: Memory,
    /// The mbarrier.
    pub address: Address,
    /// Whether the phase is complete.
    pub complete: Predicate,
    /// A state, or a phase's parity.
    pub phase: Source,
    /// Which of the two.
    pub parity: bool,
    /// `try_wait`: may wait for a while.
    pub patient: bool,
    /// Orders what comes after: not `.relaxed`.
    pub acquire: bool,
}

/// `cp.async.bulk`
#[derive(Clone, Debug)]
pub struct BulkCopy {
    /// The side in shared memory.
    pub shared: Address,
    /// The side in device memory.
    pub global: BulkGlobal,
    /// What a copy to shared memory completes; copies to device memory are waited for in groups.
    pub mbarrier: Option<Address>,
}

/// The side of a bulk copy that is in device memory.
#[derive(Clone, Debug)]
pub enum BulkGlobal {
    /// A number of bytes at an address.
    Bytes {
        /// Where they start.
        address: Address,
        /// How many there are.
        bytes: Source,
    },
    /// A box of a tensor.
    Tensor {
        /// The tensor map's generic address.
        map: Address,
        /// Where the box starts, fastest axis first.
        coordinates: Vec<Source>,
    },
}

/// `wgmma.mma_async`: `d = a * b + d`.
#[derive(Clone, Debug)]
pub struct WarpgroupMatrix {
    /// Shape and types, as counts name it.
    pub name: String,
    /// Columns of `b` and `d`.
    pub n: usize,
    /// The axis that is summed.
    pub k: usize,
    /// Elements of `a`.
    pub a_element: MatrixElement,
    /// Elements of `b`.
    pub b_element: MatrixElement,
    /// Elements of `d`.
    pub d_element: MatrixElement,
    /// Registers of `d`.
    pub d: Vec<Register>,
    /// Where `a` is.
    pub a: WarpgroupOperand,
    /// The descriptor of `b`.
    pub b: Source,
    /// Whether `d` is added, or taken as zero.
    pub scale_d: Condition,
    /// `a` and `b` are negated.
    pub negate: [bool; 2],
    /// `a` and `b` have their rows and columns, not the summed axis, next to each other in memory.
    pub transposed: [bool; 2],
    /// Integer sums stop at the ends of their range.
    pub saturate: bool,
}

/// Where the left operand of a warpgroup's product is.
#[derive(Clone, Debug)]
pub enum WarpgroupOperand {
    /// A quarter of it in each warp's registers.
    Registers(Vec<Source>),
    /// In shared memory; its descriptor.
    Shared(Source),
}

/// Functions that a driver's linker would provide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Builtin {
    /// `vprintf`
    Print,
    /// `__assertfail`
    AssertFail,
}

/// One instruction.
#[derive(Clone)]
pub struct Instruction {
    /// Runs in lanes where this holds.
    pub guard: Option<(Predicate, bool)>,
    /// Line in the module's text.
    pub line: u32,
    /// What it counts as.
    pub class: Class,
    /// What it does.
    pub operation: Operation,
    /// The registers it touches, in functions that multiply matrices asynchronously; not of the products themselves.
    pub touched: Option<Box<Touched>>,
}

/// Registers that an instruction touches.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    /// Those it reads.
    pub reads: Vec<Register>,
    /// Those it writes.
    pub writes: Vec<Register>,
}

/// A parameter's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Bytes from the start of the parameters, or of the frame in a device function.
    pub offset: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its alignment in bytes.
    pub align: u64,
}

/// A kernel or a device function, decoded.
#[derive(Clone)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Whether it can be launched.
    pub entry: bool,
    /// Its parameters.
    pub parameters: Vec<Parameter>,
    /// What it returns (device functions).
    pub returns: Vec<Parameter>,
    /// Registers other than predicates that its frame holds.
    pub frame_registers: u32,
    /// Predicates that its frame holds.
    pub frame_predicates: u32,
    /// Constants that its instructions use.
    pub constants: Vec<u64>,
    /// Bytes of its frame in local memory.
    pub frame_bytes: u64,
    /// Bytes of its variables in local memory, without parameters of calls.
    pub local_bytes: u64,
    /// Its code; running past the end returns.
    pub instructions: Vec<Instruction>,
    /// Symbols it uses, itself or through calls.
    pub symbols: Vec<u32>,
    /// It multiplies matrices asynchronously.
    pub multiplies: bool,
    /// Device functions it calls.
    pub calls: Vec<u32>,
    /// An estimate of the 32-bit registers that a thread needs at once.
    pub registers: u32,
    /// `.maxntid` or `.reqntid`, if given.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`
    pub required_threads: Option<[u32; 3]>,
    /// Bytes of the shared variables it uses.
    pub static_shared_bytes: u64,
    /// The shared variables it uses and where the block's memory holds them. Dynamic memory follows them.
    pub shared_layout: Vec<(u32, u64)>,
}

/// What a symbol is the address of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Index into the module's variables.
    pub variable: u32,
    /// Bytes past its start.
    pub offset: i64,
}

/// A variable of the module, wherever it was declared.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub kind: VariableKind,
    /// Its size in bytes; 0 for `.extern .shared`.
    pub bytes: u64,
    /// Its alignment in bytes.
    pub align: u64,
    /// Its first elements, and how large an element is.
    pub initial: Vec<crate::ptx::syntax::Initial>,
    /// Its elements' type.
    pub element: Type,
}

/// Spaces of module variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VariableKind {
    /// Device memory; `true` if kernels must not write it.
    Global {
        /// `.const`
        constant: bool,
    },
    /// The block's memory.
    Shared {
        /// Its size comes with the launch.
        dynamic: bool,
    },
}
