//! Which registers an instruction reads and writes.

use super::{Address, BarrierReduction, Base, BulkGlobal, Condition, Operation, Register, Source, WarpgroupOperand};

/// A register that is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Its value is needed.
    Read(Register),
    /// It gets a new value.
    Write(Register),
}

impl Operation {
    /// Calls `visit` for each register, predicates left out.
    pub fn registers(&self, visit: &mut dyn FnMut(Use)) {
        let mut reads: Vec<Source> = Vec::new();
        let mut writes: Vec<Register> = Vec::new();
        let mut address = |at: &Address| {
            if let Base::Source(source) = at.base {
                reads.push(source);
            }
        };
        match self {
            Self::Unary { destination, source, .. }
            | Self::ConvertAddress { destination, source, .. }
            | Self::TransposeMatrix { destination, source } => {
                reads.push(*source);
                writes.push(*destination);
            }
            Self::Binary { destination, sources, .. }
            | Self::Set { destination, sources, .. }
            | Self::Select { destination, sources, .. } => {
                reads.extend(sources);
                writes.push(*destination);
            }
            Self::Ternary { destination, sources, .. } | Self::Carry { destination, sources, .. } => {
                reads.extend(sources);
                writes.push(*destination);
            }
            Self::InsertBits { destination, sources, .. } => {
                reads.extend(sources);
                writes.push(*destination);
            }
            Self::Setp { sources, .. } | Self::SetpPair { sources, .. } => reads.extend(sources),
            Self::LogicPredicate { destination, sources, .. } => {
                reads.extend(sources);
                writes.extend(destination);
            }
            Self::Unpack { destinations, source, .. } => {
                reads.push(*source);
                writes.extend(destinations.iter().flatten());
            }
            Self::Pack { destination, sources, .. } => {
                reads.extend(sources);
                writes.push(*destination);
            }
            Self::FrameAddress { destination, .. }
            | Self::Clock { destination, .. }
            | Self::ActiveMask { destination } => writes.push(*destination),
            Self::IsSpace { source, .. } => reads.push(*source),
            Self::Load { address: at, destinations, .. } => {
                address(at);
                writes.extend(destinations.iter().flatten());
            }
            Self::Store { address: at, sources, .. } | Self::StoreMatrix { address: at, sources, .. } => {
                address(at);
                reads.extend(sources);
            }
            Self::Atomic { address: at, destination, operand, second, .. } => {
                address(at);
                reads.push(*operand);
                reads.extend(second);
                writes.extend(destination);
            }
            Self::CopyAsync { to, from, source_bytes, .. } => {
                address(to);
                address(from);
                reads.extend(source_bytes);
            }
            Self::BranchTable { index, .. } => reads.push(*index),
            Self::Barrier { barrier, threads, reduction, .. } => {
                reads.push(*barrier);
                reads.extend(threads);
                if let Some((BarrierReduction::PopulationCount(destination), _)) = reduction {
                    writes.push(*destination);
                }
            }
            Self::WarpBarrier { mask } | Self::Vote { mask, .. } => reads.push(*mask),
            Self::Shuffle { destination, sources, mask, .. } => {
                reads.extend(sources);
                reads.push(*mask);
                writes.push(*destination);
            }
            Self::Ballot { destination, mask, .. } => {
                reads.push(*mask);
                writes.push(*destination);
            }
            Self::Match { destination, source, mask, .. } | Self::Reduce { destination, source, mask, .. } => {
                reads.extend([*source, *mask]);
                writes.push(*destination);
            }
            Self::Elect { destination, mask, .. } => {
                reads.push(*mask);
                writes.extend(destination);
            }
            Self::LoadMatrix { address: at, destinations, .. } => {
                address(at);
                writes.extend(destinations);
            }
            Self::Matrix(matrix) => {
                reads.extend(matrix.a.iter().chain(&matrix.b).chain(&matrix.c));
                writes.extend(&matrix.d);
            }
            Self::MbarrierInit { address: at, count, .. } => {
                address(at);
                reads.push(*count);
            }
            Self::MbarrierInvalidate { address: at, .. } => address(at),
            Self::MbarrierArrive(arrival) => {
                address(&arrival.address);
                reads.extend([arrival.arrivals, arrival.expected, arrival.completed].into_iter().flatten());
                writes.extend(arrival.state);
            }
            Self::MbarrierWait(wait) => {
                address(&wait.address);
                reads.push(wait.phase);
            }
            Self::MbarrierPending { destination, state } => {
                reads.push(*state);
                writes.push(*destination);
            }
            Self::BulkCopy(copy) => {
                address(&copy.shared);
                copy.mbarrier.iter().for_each(&mut address);
                match &copy.global {
                    BulkGlobal::Bytes { address: at, bytes } => {
                        address(at);
                        reads.push(*bytes);
                    }
                    BulkGlobal::Tensor { map, coordinates } => {
                        address(map);
                        reads.extend(coordinates);
                    }
                }
            }
            Self::WarpgroupMatrix(matrix) => {
                match &matrix.a {
                    WarpgroupOperand::Registers(registers) => reads.extend(registers),
                    WarpgroupOperand::Shared(descriptor) => reads.push(*descriptor),
                }
                reads.push(matrix.b);
                if matrix.scale_d != Condition::Constant(false) {
                    reads.extend(matrix.d.iter().map(|register| Source::Register(*register)));
                }
                writes.extend(&matrix.d);
            }
            Self::PredicateLogic { .. }
            | Self::Nothing
            | Self::BulkCommit
            | Self::BulkWait { .. }
            | Self::ProxyFence { .. }
            | Self::WarpgroupFence
            | Self::WarpgroupCommit
            | Self::WarpgroupWait(_)
            | Self::SetRegisters { .. }
            | Self::CommitGroup
            | Self::WaitGroup(_)
            | Self::Fence
            | Self::Branch { .. }
            | Self::Jump { .. }
            | Self::Call { .. }
            | Self::CallBuiltin { .. }
            | Self::Return
            | Self::Exit
            | Self::Trap => {}
        }
        for register in writes {
            visit(Use::Write(register));
        }
        for source in reads {
            if let Source::Register(register) = source {
                visit(Use::Read(register));
            }
        }
    }
}
