//! Runs a warp's instructions.

use super::block::Block;
use super::launch::Context;
use super::memory::Allocation;
use super::warp::{Stop, Warp};
use crate::error::{Fault, FaultKind, Problem};
use crate::program::{
    Address, BarrierReduction, Base, Builtin, Condition, Function, Instruction, Lanes, Memory, Operation, Predicate,
    Register, Shuffle, Source, Vote, WARP,
};

/// Generic addresses of shared memory start here.
pub const SHARED_WINDOW: u64 = 0x0100_0000_0000;
/// Generic addresses of local memory start here.
pub const LOCAL_WINDOW: u64 = 0x0200_0000_0000;
/// Generic addresses of the kernel's parameters start here.
pub const PARAMETER_WINDOW: u64 = 0x0300_0000_0000;
/// Bytes of each window.
pub const WINDOW: u64 = 1 << 32;

pub(super) type Outcome<T> = Result<T, Problem>;

/// What follows an instruction.
pub(super) enum Next {
    /// The next instruction.
    Advance,
    /// The frame's paths or the frames changed.
    Changed,
    /// The warp stops; it goes on with the next instruction.
    Stop(Stop),
    /// The warp stops; it goes on with the same instruction.
    Again(Stop),
}

/// A warp running in its block.
pub(super) struct Execution<'a, 'b> {
    pub context: &'a Context<'a>,
    pub block: &'b mut Block,
    pub warp: &'b mut Warp,
    /// First register and predicate of the innermost frame.
    pub registers: usize,
    pub predicates: usize,
    pub function: &'a Function,
    /// The function's constants.
    pub constants: &'a [Lanes],
    /// The allocation that was accessed last.
    pub last: Option<&'a Allocation>,
}

/// The lanes of a mask.
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let lane = left.trailing_zeros() as usize;
        left &= left - 1;
        Some(lane)
    })
}

/// Runs `warp` until it stops, for at most `turn` instructions.
pub(super) fn run(context: &Context<'_>, block: &mut Block, warp: &mut Warp, turn: u64) -> Result<Stop, Fault> {
    // The innermost frame's parts are found when it begins to run.
    let function = context.kernel();
    let (constants, last) = (context.constants[context.function].as_slice(), None);
    let mut execution = Execution { context, block, warp, registers: 0, predicates: 0, function, constants, last };
    let result = execution.run(turn);
    result.map_err(|problem| {
        let thread = problem.lane.map(|lane| context.thread(execution.warp.index * 32 + lane as u32));
        Fault {
            kind: problem.kind,
            kernel: context.kernel().name.clone(),
            line: execution.warp.line,
            block: Some(execution.block.index),
            thread,
            address: problem.address,
            detail: problem.detail,
        }
    })
}

impl<'a> Execution<'a, '_> {
    fn run(&mut self, turn: u64) -> Outcome<Stop> {
        let end = self.warp.steps + turn;
        'frames: loop {
            let Some(frame) = self.warp.frames.last() else { return Ok(Stop::Done) };
            let Some(path) = frame.paths.last() else {
                self.return_from_call();
                continue;
            };
            self.registers = frame.registers;
            self.predicates = frame.predicates;
            let context = self.context;
            self.function = &context.program.functions[frame.function as usize];
            self.constants = &context.constants[frame.function as usize];
            let code = self.function.instructions.as_slice();
            let mask = path.mask;
            let mut pc = path.pc as usize;
            // Where other lanes wait for these.
            let limit = match frame.paths.len() {
                0 | 1 => usize::MAX,
                count => frame.paths[count - 2].pc as usize,
            };
            loop {
                if pc >= limit {
                    self.move_path(pc, mask);
                    continue 'frames;
                }
                let Some(instruction) = code.get(pc) else {
                    self.end_path();
                    continue 'frames;
                };
                if self.warp.steps >= end {
                    self.move_path(pc, mask);
                    return Ok(Stop::Turn);
                }
                let active = match instruction.guard {
                    None => mask,
                    Some((predicate, negated)) => {
                        let holds = self.predicate(predicate);
                        mask & if negated { !holds } else { holds }
                    }
                };
                if let Operation::Jump { target } = instruction.operation {
                    self.move_path(target as usize, mask);
                    continue 'frames;
                }
                self.warp.steps += 1;
                self.warp.line = instruction.line;
                let class = instruction.class as usize;
                self.block.counts.warp_instructions.0[class] += 1;
                self.block.counts.thread_instructions.0[class] += u64::from(active.count_ones());
                if active == 0 {
                    pc += 1;
                    continue;
                }
                if let Some(touched) = &instruction.touched {
                    self.check_products(touched, active)?;
                }
                match self.step(instruction, pc, mask, active)? {
                    Next::Advance => pc += 1,
                    Next::Changed => continue 'frames,
                    Next::Stop(stop) => {
                        self.move_path(pc + 1, mask);
                        return Ok(stop);
                    }
                    Next::Again(stop) => {
                        self.move_path(pc, mask);
                        return Ok(stop);
                    }
                }
            }
        }
    }

    /// Moves the lanes that ran last to another instruction.
    fn move_path(&mut self, pc: usize, mask: u32) {
        let frame = self.warp.frames.last_mut().expect("a path belongs to a frame");
        frame.paths.pop();
        frame.insert(pc as u32, mask);
    }

    /// The lanes that ran last have come to their function's end.
    fn end_path(&mut self) {
        let frame = self.warp.frames.last_mut().expect("a path belongs to a frame");
        let path = frame.paths.pop();
        if self.warp.frames.len() == 1 {
            self.warp.exit(path.map_or(0, |path| path.mask));
        }
    }

    /// All lanes of the innermost function have returned: hands results over.
    fn return_from_call(&mut self) {
        let Some(callee) = self.warp.frames.last() else { return };
        let callee_local = callee.local;
        let returns = &self.context.program.functions[callee.function as usize].returns;
        if let [.., caller, _] = self.warp.frames.as_slice() {
            let code = &self.context.program.functions[caller.function as usize].instructions;
            // The caller stands behind its call.
            let call = caller.paths.last().and_then(|path| code.get(path.pc as usize - 1));
            if let Some(Instruction { operation: Operation::Call { results, .. }, .. }) = call {
                let caller_local = caller.local;
                for (result, (to, bytes)) in returns.iter().zip(results) {
                    self.warp.copy_local(callee_local + result.offset, caller_local + to, (*bytes).min(result.bytes));
                }
            }
        }
        self.warp.leave();
    }

    // Operands -----------------------------------------------------------------------------------------------------

    #[inline]
    pub fn source(&self, source: Source) -> &Lanes {
        match source {
            Source::Register(register) => &self.warp.registers[self.registers + register.0 as usize],
            Source::Constant(index) => &self.constants[index as usize],
            Source::Special(special) => &self.warp.specials[special as usize],
            Source::Symbol(symbol) => &self.context.symbols[symbol as usize],
        }
    }

    #[inline]
    pub fn predicate(&self, predicate: Predicate) -> u32 {
        self.warp.predicates[self.predicates + predicate.0 as usize]
    }

    #[inline]
    pub fn condition(&self, condition: Condition) -> u32 {
        match condition {
            Condition::Constant(false) => 0,
            Condition::Constant(true) => u32::MAX,
            Condition::Register(predicate, false) => self.predicate(predicate),
            Condition::Register(predicate, true) => !self.predicate(predicate),
        }
    }

    #[inline]
    pub fn write(&mut self, register: Register, value: &Lanes, active: u32) {
        let target = &mut self.warp.registers[self.registers + register.0 as usize];
        if active == u32::MAX {
            *target = *value;
        } else {
            for lane in 0..WARP {
                if active >> lane & 1 == 1 {
                    target[lane] = value[lane];
                }
            }
        }
    }

    #[inline]
    pub fn write_predicate(&mut self, predicate: Predicate, value: u32, active: u32) {
        let target = &mut self.warp.predicates[self.predicates + predicate.0 as usize];
        *target = *target & !active | value & active;
    }

    /// The address in each lane.
    pub fn addresses(&self, address: &Address) -> Lanes {
        let mut out = match address.base {
            Base::Nothing => [0; WARP],
            Base::Source(source) => *self.source(source),
            Base::Frame => [self.warp.frames.last().map_or(0, |frame| frame.local); WARP],
        };
        for value in &mut out {
            *value = value.wrapping_add_signed(address.offset);
            if address.narrow {
                *value &= u64::from(u32::MAX);
            }
        }
        out
    }

    // One instruction ----------------------------------------------------------------------------------------------

    #[inline]
    fn step(&mut self, instruction: &'a Instruction, pc: usize, mask: u32, active: u32) -> Outcome<Next> {
        let mut out = [0; WARP];
        match &instruction.operation {
            Operation::Unary { destination, source, compute } => {
                compute(self.source(*source), &mut out);
                self.write(*destination, &out, active);
            }
            Operation::Binary { destination, sources: [a, b], compute } => {
                compute(self.source(*a), self.source(*b), &mut out);
                self.write(*destination, &out, active);
            }
            Operation::Ternary { destination, sources: [a, b, c], compute } => {
                compute(self.source(*a), self.source(*b), self.source(*c), &mut out);
                self.write(*destination, &out, active);
            }
            Operation::Setp { destination, opposite, sources: [a, b], compare, combine } => {
                let holds = compare(self.source(*a), self.source(*b));
                let (first, second) = match combine {
                    None => (holds, !holds),
                    Some((logic, condition)) => {
                        let condition = self.condition(*condition);
                        (logic.apply(holds, condition), logic.apply(!holds, condition))
                    }
                };
                if let Some(destination) = destination {
                    self.write_predicate(*destination, first, active);
                }
                if let Some(opposite) = opposite {
                    self.write_predicate(*opposite, second, active);
                }
            }
            Operation::Branch { target } => {
                if active == mask {
                    self.move_path(*target as usize, mask);
                } else {
                    self.block.counts.divergent_branches += 1;
                    self.move_path(pc + 1, mask & !active);
                    self.warp.frames.last_mut().expect("a branch runs in a frame").insert(*target, active);
                }
                return Ok(Next::Changed);
            }
            Operation::Load { memory, address, destinations, element, strength } => {
                self.load(*memory, address, destinations, *element, *strength, active)?;
            }
            Operation::Store { memory, address, sources, bytes, strength } => {
                self.store(*memory, address, sources, *bytes, *strength, active)?;
            }
            _ => return self.rare(instruction, pc, mask, active),
        }
        Ok(Next::Advance)
    }

    /// Everything that is not in the innermost loops of most kernels.
    fn rare(&mut self, instruction: &'a Instruction, pc: usize, mask: u32, active: u32) -> Outcome<Next> {
        let mut out = [0; WARP];
        match &instruction.operation {
            Operation::Unary { .. }
            | Operation::Binary { .. }
            | Operation::Ternary { .. }
            | Operation::Setp { .. }
            | Operation::Branch { .. }
            | Operation::Jump { .. }
            | Operation::Load { .. }
            | Operation::Store { .. } => unreachable!("step and run handle these"),
            Operation::InsertBits { destination, sources: [a, b, position, length], bits } => {
                let (a, b) = (self.source(*a), self.source(*b));
                let (position, length) = (self.source(*position), self.source(*length));
                for lane in 0..WARP {
                    let (position, length) = (position[lane] & 255, length[lane] & 255);
                    let field = if position >= u64::from(*bits) || length == 0 {
                        0
                    } else {
                        (u64::MAX >> (64 - length.min(64))) << position & (u64::MAX >> (64 - bits))
                    };
                    out[lane] = b[lane] & !field | a[lane].checked_shl(position as u32).unwrap_or(0) & field;
                }
                self.write(*destination, &out, active);
            }
            Operation::Carry { destination, sources: [a, b, c], compute, reads, writes } => {
                let (a, b, c) = (self.source(*a), self.source(*b), self.source(*c));
                let carry = if *reads { self.warp.carry } else { 0 };
                let mut carries = 0;
                for lane in 0..WARP {
                    let (value, carried) = compute(a[lane], b[lane], c[lane], carry >> lane & 1 == 1);
                    out[lane] = value;
                    carries |= u32::from(carried) << lane;
                }
                self.write(*destination, &out, active);
                if *writes {
                    self.warp.carry = self.warp.carry & !active | carries & active;
                }
            }
            Operation::SetpPair { destinations, sources: [a, b], compare, combine } => {
                let (a, b) = (self.source(*a), self.source(*b));
                let holds = [compare[0](a, b), compare[1](a, b)];
                for (destination, holds) in destinations.iter().zip(holds) {
                    let value = match combine {
                        None => holds,
                        Some((logic, condition)) => logic.apply(holds, self.condition(*condition)),
                    };
                    if let Some(destination) = destination {
                        self.write_predicate(*destination, value, active);
                    }
                }
            }
            Operation::Set { destination, sources: [a, b], compare, combine, truth } => {
                let mut holds = compare(self.source(*a), self.source(*b));
                if let Some((logic, condition)) = combine {
                    holds = logic.apply(holds, self.condition(*condition));
                }
                for (lane, out) in out.iter_mut().enumerate() {
                    *out = if holds >> lane & 1 == 1 { *truth } else { 0 };
                }
                self.write(*destination, &out, active);
            }
            Operation::Select { destination, sources: [a, b], condition } => {
                let holds = self.condition(*condition);
                let (a, b) = (self.source(*a), self.source(*b));
                for lane in 0..WARP {
                    out[lane] = if holds >> lane & 1 == 1 { a[lane] } else { b[lane] };
                }
                self.write(*destination, &out, active);
            }
            Operation::PredicateLogic { destination, logic, sources: [a, b], negate } => {
                let value = logic.apply(self.condition(*a), self.condition(*b));
                self.write_predicate(*destination, if *negate { !value } else { value }, active);
            }
            Operation::LogicPredicate { destination, predicate, sources: [a, b, c], compute, combine } => {
                compute(self.source(*a), self.source(*b), self.source(*c), &mut out);
                let mut holds = 0;
                for (lane, value) in out.iter().enumerate() {
                    holds |= u32::from(*value != 0) << lane;
                }
                let holds = combine.0.apply(holds, self.condition(combine.1));
                if let Some(destination) = destination {
                    self.write(*destination, &out, active);
                }
                self.write_predicate(*predicate, holds, active);
            }
            Operation::Unpack { destinations, source, bits } => {
                let value = *self.source(*source);
                for (part, destination) in destinations.iter().enumerate() {
                    let Some(destination) = destination else { continue };
                    let shift = part as u32 * bits;
                    let parts = value.map(|value| value >> shift & (u64::MAX >> (64 - bits)));
                    self.write(*destination, &parts, active);
                }
            }
            Operation::Pack { destination, sources, bits } => {
                for (part, source) in sources.iter().enumerate() {
                    let shift = part as u32 * bits;
                    let value = self.source(*source);
                    for lane in 0..WARP {
                        out[lane] |= (value[lane] & (u64::MAX >> (64 - bits))) << shift;
                    }
                }
                self.write(*destination, &out, active);
            }
            Operation::FrameAddress { destination, offset, generic } => {
                let local = self.warp.frames.last().map_or(0, |frame| frame.local);
                let window = if *generic { LOCAL_WINDOW } else { 0 };
                self.write(*destination, &[local + offset + window; WARP], active);
            }
            Operation::ConvertAddress { destination, source, memory, to_generic } => {
                let window = window(*memory);
                let value = self.source(*source);
                for lane in 0..WARP {
                    out[lane] =
                        if *to_generic { value[lane].wrapping_add(window) } else { value[lane].wrapping_sub(window) };
                }
                self.write(*destination, &out, active);
            }
            Operation::IsSpace { destination, source, memory } => {
                let mut holds = 0;
                for (lane, value) in self.source(*source).iter().enumerate() {
                    holds |= u32::from(space_of(*value).0 == *memory) << lane;
                }
                self.write_predicate(*destination, holds, active);
            }
            Operation::Clock { destination, bits } => {
                let value = self.warp.steps & (u64::MAX >> (64 - bits));
                self.write(*destination, &[value; WARP], active);
            }
            Operation::Nothing => {}
            Operation::Atomic { memory, address, destination, operand, second, bytes, strength, updates } => {
                let second = second.map(|second| *self.source(second));
                let old =
                    self.atomic(*memory, address, *operand, second.as_ref(), *bytes, *strength, updates, active)?;
                if let Some(destination) = destination {
                    self.write(*destination, &old, active);
                }
            }
            Operation::CopyAsync { to, from, bytes, source_bytes, ignore } => {
                self.copy_async(to, from, *bytes, *source_bytes, *ignore, active)?;
            }
            Operation::CommitGroup => {
                for lane in lanes(active) {
                    self.warp.groups[lane] += 1;
                }
            }
            Operation::WaitGroup(pending) => {
                self.block.counts.waits.async_copies += 1;
                self.finish_copies(*pending, active)?;
            }
            Operation::Fence => {
                self.block.counts.waits.fences += 1;
                self.fence();
            }
            Operation::BranchTable { index, targets } => {
                let index = *self.source(*index);
                self.move_path(pc + 1, mask & !active);
                let mut parts = 0;
                for (value, target) in targets.iter().enumerate() {
                    let mut chosen = 0;
                    for lane in lanes(active) {
                        chosen |= u32::from(index[lane] == value as u64) << lane;
                    }
                    parts += u32::from(chosen != 0);
                    self.warp.frames.last_mut().expect("a branch runs in a frame").insert(*target, chosen);
                }
                self.block.counts.divergent_branches += u64::from(parts > 1);
                if let Some(lane) = lanes(active).find(|lane| index[*lane] >= targets.len() as u64) {
                    let detail = format!("brx.idx with index {} of {} targets", index[lane], targets.len());
                    return Err(Problem::new(FaultKind::Operand, detail).lane(lane));
                }
                return Ok(Next::Changed);
            }
            Operation::Call { function, arguments, .. } => {
                self.move_path(pc + 1, mask);
                let caller_local = self.warp.frames.last().map_or(0, |frame| frame.local);
                let callee = &self.context.program.functions[*function as usize];
                if self.warp.frames.len() >= 1024 {
                    return Err(Problem::new(FaultKind::OutOfBounds, "calls more than 1024 deep: the stack is full"));
                }
                self.warp.enter(*function, callee, active);
                let local = self.warp.frames.last().map_or(0, |frame| frame.local);
                for ((from, bytes), parameter) in arguments.iter().zip(&callee.parameters) {
                    self.warp.copy_local(caller_local + from, local + parameter.offset, (*bytes).min(parameter.bytes));
                }
                return Ok(Next::Changed);
            }
            Operation::CallBuiltin { builtin, arguments, results } => match builtin {
                Builtin::Print => self.print(arguments, results, active)?,
                Builtin::AssertFail => return Err(self.assertion(arguments, active)),
            },
            Operation::Return | Operation::Exit => {
                let whole = matches!(instruction.operation, Operation::Exit) || self.warp.frames.len() == 1;
                self.move_path(pc + 1, mask & !active);
                if whole {
                    self.warp.exit(active);
                }
                return Ok(Next::Changed);
            }
            Operation::Trap => {
                return Err(Problem::new(FaultKind::Trap, "the kernel gave up").lane(active.trailing_zeros() as usize));
            }
            Operation::Barrier { arrive, aligned, barrier, threads, reduction } => {
                return self.barrier(*arrive, *aligned, *barrier, *threads, *reduction, active);
            }
            Operation::WarpBarrier { mask } => {
                self.block.counts.waits.warp_barriers += 1;
                self.members(*mask, active, "bar.warp.sync")?;
                self.warp.advance_clock();
            }
            Operation::Shuffle { destination, predicate, mode, sources, mask } => {
                self.members(*mask, active, "shfl.sync")?;
                self.shuffle(*destination, *predicate, *mode, sources, active)?;
            }
            Operation::Vote { destination, vote, condition, mask } => {
                let members = self.members(*mask, active, "vote.sync")?;
                let holds = self.condition(*condition);
                let mut result = 0;
                for lane in lanes(active) {
                    let group = members[lane];
                    let value = match vote {
                        Vote::All => holds & group == group,
                        Vote::Any => holds & group != 0,
                        Vote::Uniform => holds & group == group || holds & group == 0,
                    };
                    result |= u32::from(value) << lane;
                }
                self.write_predicate(*destination, result, active);
            }
            Operation::Ballot { destination, condition, mask } => {
                let members = self.members(*mask, active, "vote.sync.ballot")?;
                let holds = self.condition(*condition);
                for lane in lanes(active) {
                    out[lane] = u64::from(holds & members[lane]);
                }
                self.write(*destination, &out, active);
            }
            Operation::Match { destination, predicate, all, source, mask } => {
                let members = self.members(*mask, active, "match.sync")?;
                let value = *self.source(*source);
                let mut same_everywhere = 0;
                for lane in lanes(active) {
                    let mut equal = 0;
                    for other in lanes(members[lane]) {
                        equal |= u32::from(value[other] == value[lane]) << other;
                    }
                    if *all {
                        let whole = equal == members[lane];
                        same_everywhere |= u32::from(whole) << lane;
                        equal = if whole { equal } else { 0 };
                    }
                    out[lane] = u64::from(equal);
                }
                self.write(*destination, &out, active);
                if let Some(predicate) = predicate {
                    self.write_predicate(*predicate, same_everywhere, active);
                }
            }
            Operation::Reduce { destination, source, mask, combine } => {
                let members = self.members(*mask, active, "redux.sync")?;
                let value = *self.source(*source);
                for lane in lanes(active) {
                    let mut group = lanes(members[lane]).map(|other| value[other] as u32);
                    let first = group.next().unwrap_or(0);
                    out[lane] = u64::from(group.fold(first, combine));
                }
                self.write(*destination, &out, active);
            }
            Operation::ActiveMask { destination } => self.write(*destination, &[u64::from(active); WARP], active),
            Operation::Elect { destination, predicate, mask } => {
                let members = self.members(*mask, active, "elect.sync")?;
                let mut elected = 0;
                for lane in lanes(active) {
                    let leader = members[lane].trailing_zeros();
                    out[lane] = u64::from(leader);
                    elected |= u32::from(leader as usize == lane) << lane;
                }
                if let Some(destination) = destination {
                    self.write(*destination, &out, active);
                }
                self.write_predicate(*predicate, elected, active);
            }
            Operation::LoadMatrix { memory, address, destinations, transposed } => {
                self.load_matrix(*memory, address, destinations, *transposed, active)?;
            }
            Operation::StoreMatrix { memory, address, sources, transposed } => {
                self.store_matrix(*memory, address, sources, *transposed, active)?;
            }
            Operation::TransposeMatrix { destination, source } => {
                self.whole_warp(active, "movmatrix")?;
                let value = *self.source(*source);
                // Lane 4 r + c holds the elements (r, 2 c) and (r, 2 c + 1).
                let element = |row: usize, column: usize| value[4 * row + column / 2] >> (16 * (column & 1)) & 0xffff;
                for (lane, out) in out.iter_mut().enumerate() {
                    let (row, column) = (lane / 4, 2 * (lane % 4));
                    *out = element(column, row) | element(column + 1, row) << 16;
                }
                self.write(*destination, &out, active);
            }
            Operation::Matrix(matrix) => self.multiply_matrices(matrix, active)?,
            other => return self.hopper(other, active),
        }
        Ok(Next::Advance)
    }

    fn barrier(
        &mut self,
        arrive: bool,
        aligned: bool,
        barrier: Source,
        threads: Option<Source>,
        reduction: Option<(BarrierReduction, Condition)>,
        active: u32,
    ) -> Outcome<Next> {
        let first = active.trailing_zeros() as usize;
        let present = self.warp.lanes;
        if active != present {
            let missing = (present & !active).trailing_zeros() as usize;
            let how = if self.warp.exited >> missing & 1 == 1 { "has ended" } else { "is elsewhere" };
            let kind = if aligned { "" } else { " (unaligned barriers of part of a warp are not supported)" };
            let thread = self.context.thread(self.warp.index * 32 + missing as u32);
            let detail = format!(
                "{} of {} threads of the warp reach it; thread {thread:?} {how}{kind}",
                active.count_ones(),
                present.count_ones()
            );
            return Err(Problem::new(FaultKind::DivergentBarrier, detail).lane(first));
        }
        let uniform = |values: &Lanes, what: &str| {
            let value = values[first];
            match lanes(active).find(|lane| values[*lane] != value) {
                Some(lane) => {
                    Err(Problem::new(FaultKind::Operand, format!("{what} differs within the warp")).lane(lane))
                }
                None => Ok(value),
            }
        };
        let number = uniform(self.source(barrier), "the barrier's number")?;
        let threads = match threads {
            Some(threads) => Some(uniform(self.source(threads), "the number of threads")?),
            None => None,
        };
        if number > 15 {
            return Err(Problem::new(FaultKind::Operand, format!("barrier {number} of 16")).lane(first));
        }
        let all = self.context.warps_per_block();
        let warps = match threads {
            None => all,
            Some(threads) if threads % 32 == 0 && threads != 0 && threads / 32 <= u64::from(all) => {
                (threads / 32) as u32
            }
            Some(threads) => {
                let detail =
                    format!("a barrier of {threads} threads in a block of {}", self.context.threads_per_block());
                return Err(Problem::new(FaultKind::Operand, detail).lane(first));
            }
        };
        let (popc, and, or) = match reduction {
            Some((_, condition)) => {
                let holds = self.condition(condition) & active;
                (holds.count_ones(), holds == active, holds != 0)
            }
            None => (0, true, false),
        };
        self.block.counts.waits.barriers += u64::from(!arrive);
        self.block
            .arrive(
                number as usize,
                self.warp,
                warps,
                arrive,
                (popc, and, or),
                reduction.map(|(reduction, _)| reduction),
            )
            .map_err(|problem| problem.lane(first))?;
        Ok(if arrive { Next::Advance } else { Next::Stop(Stop::Barrier(number as u32)) })
    }

    /// The member mask of each lane, checked: all lanes of a mask are here, and agree on it.
    pub fn members(&self, mask: Source, active: u32, name: &str) -> Outcome<Lanes32> {
        let masks = self.source(mask);
        // What is right for one lane is right for all if they agree.
        let first = masks[active.trailing_zeros() as usize] as u32;
        let is_whole = first == active || first == u32::MAX && active == self.warp.lanes;
        if is_whole && lanes(active).all(|lane| masks[lane] as u32 == first) {
            return Ok([active; WARP]);
        }
        let mut out = [0; WARP];
        for lane in lanes(active) {
            let mask = masks[lane] as u32;
            let fail = |detail: String| Err(Problem::new(FaultKind::MemberMask, detail).lane(lane));
            if mask >> lane & 1 == 0 {
                return fail(format!("{name} by lane {lane}, which its member mask {mask:#010x} leaves out"));
            }
            let absent = mask & !active;
            // A mask may name lanes that the block's last warp does not have.
            if absent & self.warp.lanes != 0 || absent != 0 && mask != u32::MAX {
                let other = (absent & self.warp.lanes).trailing_zeros().min(absent.trailing_zeros());
                return fail(format!("{name} with member mask {mask:#010x}, but lane {other} does not run it"));
            }
            if let Some(other) = lanes(mask & active).find(|other| masks[*other] as u32 != mask) {
                let theirs = masks[other] as u32;
                return fail(format!("{name} with member mask {mask:#010x}, but lane {other} has {theirs:#010x}"));
            }
            out[lane] = mask & active;
        }
        Ok(out)
    }

    /// Fails unless all 32 lanes are here.
    pub fn whole_warp(&self, active: u32, name: &str) -> Outcome<()> {
        if active == u32::MAX {
            return Ok(());
        }
        let missing = active.trailing_ones();
        let detail = format!("{name} needs all 32 lanes of the warp, but lane {missing} does not run it");
        Err(Problem::new(FaultKind::MemberMask, detail).lane(active.trailing_zeros() as usize))
    }

    fn shuffle(
        &mut self,
        destination: Register,
        predicate: Option<Predicate>,
        mode: Shuffle,
        [a, b, c]: &[Source; 3],
        active: u32,
    ) -> Outcome<()> {
        let (a, b, c) = (*self.source(*a), self.source(*b), self.source(*c));
        let mut out = [0; WARP];
        let mut inside = 0;
        for lane in lanes(active) {
            let here = lane as i64;
            let distance = (b[lane] & 31) as i64;
            let clamp = (c[lane] & 31) as i64;
            let segment = (c[lane] >> 8 & 31) as i64;
            let last = here & segment | clamp & !segment;
            let first = here & segment;
            let (from, holds) = match mode {
                Shuffle::Up => (here - distance, here - distance >= last),
                Shuffle::Down => (here + distance, here + distance <= last),
                Shuffle::Butterfly => (here ^ distance, here ^ distance <= last),
                Shuffle::Index => {
                    let from = first | distance & !segment;
                    (from, from <= last)
                }
            };
            let from = if holds { from as usize } else { lane };
            if active >> from & 1 == 0 {
                let detail = format!("shfl.sync reads lane {from}, which does not run it");
                return Err(Problem::new(FaultKind::MemberMask, detail).lane(lane));
            }
            inside |= u32::from(holds) << lane;
            out[lane] = a[from];
        }
        self.write(destination, &out, active);
        if let Some(predicate) = predicate {
            self.write_predicate(predicate, inside, active);
        }
        Ok(())
    }
}

/// A mask for each lane.
pub(super) type Lanes32 = [u32; WARP];

/// Where a space starts among generic addresses.
fn window(memory: Memory) -> u64 {
    match memory {
        Memory::Generic | Memory::Global => 0,
        Memory::Shared => SHARED_WINDOW,
        Memory::Local => LOCAL_WINDOW,
        Memory::Parameters => PARAMETER_WINDOW,
    }
}

/// The space of a generic address, and the address there.
pub(super) fn space_of(address: u64) -> (Memory, u64) {
    for memory in [Memory::Shared, Memory::Local, Memory::Parameters] {
        if let Some(offset) = address.checked_sub(window(memory))
            && offset < WINDOW
        {
            return (memory, offset);
        }
    }
    (Memory::Global, address)
}
