//! Resolves names and assembles decoded functions.

use super::decode::decode;
use super::operands::Use;
use super::{
    Address, Base, Condition, Function, Instruction, Operation, Parameter, Predicate, Register, Source, Special,
    Symbol, Touched, Variable, VariableKind, flow,
};
use crate::LoadError;
use crate::ptx::syntax::{self, Operand, Statement};
use crate::ptx::types::{Space, Type};
use std::collections::{BTreeSet, HashMap};

/// Registers of a function, the most that is supported: compilers seldom need ten thousand.
const MAX_REGISTERS: u32 = 1 << 17;
/// Bytes of a thread's local memory, with the parameters of what it calls.
const MAX_FRAME: u64 = 512 << 10;
/// Bytes of a kernel's parameters.
const MAX_PARAMETERS: u64 = 32764;
/// Bytes of a module's variables in device memory.
const MAX_DEVICE_BYTES: u64 = 1 << 30;

/// How many threads a block of these extents has.
pub fn threads(extents: [u32; 3]) -> u32 {
    extents.into_iter().fold(1, u32::saturating_mul)
}

/// A module's decoded parts.
#[derive(Default)]
pub struct Parts {
    /// Kernels and device functions.
    pub functions: Vec<Function>,
    /// Variables, wherever declared.
    pub variables: Vec<Variable>,
    /// Addresses that code uses.
    pub symbols: Vec<Symbol>,
    /// The code is not optimised.
    pub debug: bool,
}

/// Where something in memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Bytes from the function's frame in local memory.
    Frame(u64),
    /// Bytes from the start of the kernel's parameters.
    Parameter(u64),
}

#[derive(Clone, Debug)]
enum Binding {
    Register(Register, Type),
    Predicate(Predicate),
    Frame { offset: u64, bytes: u64 },
    Parameter { offset: u64 },
    Variable(u32),
    Label(u32),
    Targets(Vec<String>),
}

/// Decodes `module`.
pub fn build(module: &syntax::Module) -> Result<Parts, LoadError> {
    let mut parts = Parts { debug: module.debug, ..Parts::default() };
    let mut globals = HashMap::new();
    for variable in &module.variables {
        let index = declare(&mut parts, variable)?;
        globals.insert(variable.name.clone(), Binding::Variable(index));
    }
    // A prototype comes before its function; only functions with a body get an index.
    let mut functions = HashMap::new();
    for function in module.functions.iter().filter(|function| function.body.is_some()) {
        let index = functions.len() as u32;
        if functions.insert(function.name.clone(), index).is_some() {
            return Err(LoadError::new(function.line, format!("{} is defined twice", function.name)));
        }
    }
    for function in module.functions.iter() {
        let Some(body) = &function.body else { continue };
        let scope = Scope {
            names: vec![globals.clone()],
            functions: &functions,
            parts: &mut parts,
            entry: function.entry,
            registers: 0,
            widths: Vec::new(),
            predicates: 0,
            constants: Vec::new(),
            constant_index: HashMap::new(),
            labels: Vec::new(),
            frame_bytes: 0,
            local_bytes: 0,
            symbols: BTreeSet::new(),
            calls: BTreeSet::new(),
            instructions: Vec::new(),
        };
        let function = scope.function_body(function, body)?;
        parts.functions.push(function);
    }
    for index in 0..parts.functions.len() {
        reach(&mut parts, index);
    }
    Ok(parts)
}

fn declare(parts: &mut Parts, variable: &syntax::Variable) -> Result<u32, LoadError> {
    let kind = match variable.space {
        Space::Global => VariableKind::Global { constant: false },
        Space::Constant => VariableKind::Global { constant: true },
        Space::Shared => VariableKind::Shared { dynamic: variable.external && variable.count == 0 },
        _ => return Err(LoadError::new(variable.line, format!("{} is in no space of a module", variable.name))),
    };
    if variable.external && kind != (VariableKind::Shared { dynamic: true }) {
        let message = format!("{} is defined in another module: linking is not supported", variable.name);
        return Err(LoadError::new(variable.line, message));
    }
    let device_bytes: u64 = if matches!(kind, VariableKind::Global { .. }) {
        let others = parts.variables.iter().filter(|other| matches!(other.kind, VariableKind::Global { .. }));
        others.map(|other| other.bytes).sum()
    } else {
        0
    };
    if device_bytes + variable.bytes() > MAX_DEVICE_BYTES {
        let message = format!("more than {MAX_DEVICE_BYTES} bytes of device memory, the most that is supported");
        return Err(LoadError::new(variable.line, message));
    }
    parts.variables.push(Variable {
        name: variable.name.clone(),
        kind,
        bytes: variable.bytes(),
        align: variable.align,
        initial: variable.initial.clone(),
        element: variable.element,
    });
    Ok(parts.variables.len() as u32 - 1)
}

/// The registers that an instruction touches, if there are any and it is no asynchronous product.
fn touched(operation: &Operation) -> Option<Box<Touched>> {
    if matches!(operation, Operation::WarpgroupMatrix(_)) {
        return None;
    }
    let mut touched = Touched::default();
    operation.registers(&mut |register| match register {
        Use::Read(register) => touched.reads.push(register),
        Use::Write(register) => touched.writes.push(register),
    });
    (!touched.reads.is_empty() || !touched.writes.is_empty()).then(|| Box::new(touched))
}

/// Adds what a kernel uses through calls, and lays out its shared memory.
fn reach(parts: &mut Parts, index: usize) {
    if !parts.functions[index].entry {
        return;
    }
    let mut seen = BTreeSet::from([index as u32]);
    let mut waiting = vec![index as u32];
    let mut symbols = BTreeSet::new();
    while let Some(function) = waiting.pop() {
        let function = &parts.functions[function as usize];
        symbols.extend(function.symbols.iter().copied());
        waiting.extend(function.calls.iter().filter(|call| seen.insert(**call)));
    }
    let variables: BTreeSet<u32> = symbols.iter().map(|symbol| parts.symbols[*symbol as usize].variable).collect();
    let mut layout = Vec::new();
    let mut bytes = 0u64;
    let mut dynamic = Vec::new();
    for variable in variables {
        let declared = &parts.variables[variable as usize];
        match declared.kind {
            VariableKind::Shared { dynamic: false } => {
                bytes = bytes.next_multiple_of(declared.align);
                layout.push((variable, bytes));
                bytes += declared.bytes;
            }
            VariableKind::Shared { dynamic: true } => dynamic.push((variable, declared.align)),
            VariableKind::Global { .. } => {}
        }
    }
    // Dynamic memory starts at the strictest alignment asked for; all `extern` arrays are the same memory.
    if let Some(align) = dynamic.iter().map(|(_, align)| *align).max() {
        bytes = bytes.next_multiple_of(align.max(16));
        layout.extend(dynamic.iter().map(|(variable, _)| (*variable, bytes)));
    }
    let function = &mut parts.functions[index];
    function.symbols = symbols.into_iter().collect();
    function.static_shared_bytes = bytes;
    function.shared_layout = layout;
}

/// The names that an instruction sees, and the function being built.
pub(super) struct Scope<'a> {
    names: Vec<HashMap<String, Binding>>,
    functions: &'a HashMap<String, u32>,
    parts: &'a mut Parts,
    entry: bool,
    registers: u32,
    /// Bits of each register.
    widths: Vec<u32>,
    predicates: u32,
    constants: Vec<u64>,
    constant_index: HashMap<u64, u32>,
    /// Instruction index of each label.
    labels: Vec<u32>,
    frame_bytes: u64,
    local_bytes: u64,
    symbols: BTreeSet<u32>,
    calls: BTreeSet<u32>,
    instructions: Vec<Instruction>,
}

type Lookup<T> = Result<T, String>;

impl Scope<'_> {
    fn function_body(mut self, written: &syntax::Function, body: &[Statement]) -> Result<Function, LoadError> {
        self.names.push(HashMap::new());
        let mut parameters = Vec::new();
        let mut at = 0u64;
        for variable in &written.parameters {
            at = at.next_multiple_of(variable.align);
            let bytes = variable.bytes();
            let offset = if self.entry { at } else { self.frame_space(variable)? };
            at += bytes;
            if at > MAX_PARAMETERS {
                return Err(LoadError::new(variable.line, format!("more than {MAX_PARAMETERS} bytes of parameters")));
            }
            let binding = if self.entry { Binding::Parameter { offset } } else { Binding::Frame { offset, bytes } };
            self.bind(&variable.name, binding);
            parameters.push(Parameter { name: variable.name.clone(), offset, bytes, align: variable.align });
        }
        let mut returns = Vec::new();
        for variable in &written.returns {
            let bytes = variable.bytes();
            let offset = self.frame_space(variable)?;
            self.bind(&variable.name, Binding::Frame { offset, bytes });
            returns.push(Parameter { name: variable.name.clone(), offset, bytes, align: variable.align });
        }
        self.block(body)?;
        for instruction in &mut self.instructions {
            match &mut instruction.operation {
                Operation::Branch { target } => *target = self.labels[*target as usize],
                Operation::BranchTable { targets, .. } => {
                    for target in targets {
                        *target = self.labels[*target as usize];
                    }
                }
                _ => {}
            }
        }
        let mut instructions = flow::arrange(std::mem::take(&mut self.instructions));
        let multiplies =
            instructions.iter().any(|instruction| matches!(instruction.operation, Operation::WarpgroupMatrix(_)));
        if multiplies {
            for instruction in &mut instructions {
                instruction.touched = touched(&instruction.operation);
            }
        }
        let threads = written.required_threads.or(written.max_threads).map_or(1, threads);
        // The assembler keeps to what the kernel says, and a thread can have no more than 255.
        let most = written.max_registers.unwrap_or(255).min(65536 / threads.max(1)).min(255);
        let counts = instructions.iter().filter_map(|instruction| match instruction.operation {
            Operation::SetRegisters { count, .. } => Some(count),
            _ => None,
        });
        let largest = counts.max();
        // A kernel that hands registers over begins with an equal share of them for its warpgroups, as ptxas has it.
        let share = match (largest, written.min_blocks) {
            (Some(largest), Some(blocks)) if threads > 1 => {
                let all = threads.div_ceil(128).saturating_mul(128).saturating_mul(blocks.max(1));
                Some((65536 / all / 8 * 8).min(largest))
            }
            _ => None,
        };
        if share.is_none() && written.max_registers.is_none() {
            // Then ptxas does not know how many that is, and leaves the instructions out.
            for instruction in &mut instructions {
                if matches!(instruction.operation, Operation::SetRegisters { .. }) {
                    instruction.operation = Operation::Nothing;
                }
            }
        }
        let registers = match written.max_registers.or(share) {
            Some(registers) => registers.min(most),
            None => flow::registers(&instructions, &self.widths).min(most),
        };
        Ok(Function {
            name: written.name.clone(),
            entry: self.entry,
            parameters,
            returns,
            frame_registers: self.registers,
            frame_predicates: self.predicates,
            constants: self.constants,
            frame_bytes: self.frame_bytes.next_multiple_of(16),
            local_bytes: self.local_bytes,
            instructions,
            symbols: self.symbols.into_iter().collect(),
            multiplies,
            calls: self.calls.into_iter().collect(),
            registers,
            max_threads: written.required_threads.or(written.max_threads),
            required_threads: written.required_threads,
            static_shared_bytes: 0,
            shared_layout: Vec::new(),
        })
    }

    fn bind(&mut self, name: &str, binding: Binding) {
        self.names.last_mut().expect("a function has a scope").insert(name.to_owned(), binding);
    }

    fn frame_space(&mut self, variable: &syntax::Variable) -> Result<u64, LoadError> {
        let offset = self.frame_bytes.next_multiple_of(variable.align);
        self.frame_bytes = offset + variable.bytes();
        if self.frame_bytes > MAX_FRAME {
            return Err(LoadError::new(variable.line, format!("more than {MAX_FRAME} bytes of a thread's own memory")));
        }
        Ok(offset)
    }

    /// Decodes the statements of a body or a block in it.
    fn block(&mut self, statements: &[Statement]) -> Result<(), LoadError> {
        for statement in statements {
            match statement {
                Statement::Label(name, _) => {
                    self.labels.push(u32::MAX);
                    let label = self.labels.len() as u32 - 1;
                    self.bind(name, Binding::Label(label));
                }
                Statement::Targets(name, targets) => self.bind(name, Binding::Targets(targets.clone())),
                _ => {}
            }
        }
        for statement in statements {
            match statement {
                Statement::Registers { element, names, line } => {
                    let declared = names.iter().map(|(_, count)| u64::from(count.unwrap_or(1))).sum::<u64>();
                    let before = u64::from(self.registers + self.predicates);
                    if before + declared > u64::from(MAX_REGISTERS) {
                        let message = format!("more than {MAX_REGISTERS} registers, the most that is supported");
                        return Err(LoadError::new(*line, message));
                    }
                    self.declare_registers(*element, names);
                }
                Statement::Variable(variable) => match variable.space {
                    Space::Local | Space::Param => {
                        let bytes = variable.bytes();
                        let offset = self.frame_space(variable)?;
                        self.local_bytes += if variable.space == Space::Local { bytes } else { 0 };
                        self.bind(&variable.name, Binding::Frame { offset, bytes });
                    }
                    _ => {
                        let index = declare(self.parts, variable)?;
                        self.bind(&variable.name, Binding::Variable(index));
                    }
                },
                Statement::Label(name, line) => {
                    let Some(Binding::Label(label)) = self.find(name) else {
                        return Err(LoadError::new(*line, format!("label {name} has the name of something else")));
                    };
                    let label = *label as usize;
                    if self.labels[label] != u32::MAX {
                        return Err(LoadError::new(*line, format!("label {name} stands twice in one block")));
                    }
                    self.labels[label] = self.instructions.len() as u32;
                }
                Statement::Targets(..) => {}
                Statement::Block(inner) => {
                    self.names.push(HashMap::new());
                    self.block(inner)?;
                    self.names.pop();
                }
                Statement::Instruction(written) => {
                    let fail = |message: String| LoadError::new(written.line, message);
                    let guard = match &written.guard {
                        None => None,
                        Some((name, negated)) => {
                            Some((self.predicate(&Operand::Name(name.clone())).map_err(fail)?, *negated))
                        }
                    };
                    let (operation, class) = decode(self, written).map_err(fail)?;
                    self.instructions.push(Instruction { guard, line: written.line, class, operation, touched: None });
                }
            }
        }
        Ok(())
    }

    fn declare_registers(&mut self, element: Type, names: &[(String, Option<u32>)]) {
        for (name, count) in names {
            let all = match count {
                None => vec![name.clone()],
                Some(count) => (0..*count).map(|index| format!("{name}{index}")).collect(),
            };
            for name in all {
                let binding = if element == Type::Pred {
                    self.predicates += 1;
                    Binding::Predicate(Predicate(self.predicates - 1))
                } else {
                    self.registers += 1;
                    self.widths.push(element.bits());
                    Binding::Register(Register(self.registers - 1), element)
                };
                self.bind(&name, binding);
            }
        }
    }

    fn find(&self, name: &str) -> Option<&Binding> {
        self.names.iter().rev().find_map(|names| names.get(name))
    }

    // What decoders ask ---------------------------------------------------------------------------------------------

    pub(super) fn is_entry(&self) -> bool {
        self.entry
    }

    /// The slot of a constant.
    pub(super) fn constant(&mut self, value: u64) -> Source {
        let constants = &mut self.constants;
        let index = *self.constant_index.entry(value).or_insert_with(|| {
            constants.push(value);
            constants.len() as u32 - 1
        });
        Source::Constant(index)
    }

    /// A register that is written.
    pub(super) fn register(&self, operand: &Operand) -> Lookup<Register> {
        self.typed_register(operand).map(|(register, _)| register)
    }

    /// A register that is written, and its type.
    pub(super) fn typed_register(&self, operand: &Operand) -> Lookup<(Register, Type)> {
        let Operand::Name(name) = operand else { return Err(format!("expected a register, got {operand:?}")) };
        match self.find(name) {
            Some(Binding::Register(register, kind)) => Ok((*register, *kind)),
            Some(_) => Err(format!("{name} is not a register for numbers")),
            None => Err(format!("unknown register {name}")),
        }
    }

    /// A register, or `_`.
    pub(super) fn optional_register(&self, operand: &Operand) -> Lookup<Option<Register>> {
        if *operand == Operand::Sink { Ok(None) } else { self.register(operand).map(Some) }
    }

    /// A predicate register.
    pub(super) fn predicate(&self, operand: &Operand) -> Lookup<Predicate> {
        let Operand::Name(name) = operand else { return Err(format!("expected a predicate, got {operand:?}")) };
        match self.find(name) {
            Some(Binding::Predicate(predicate)) => Ok(*predicate),
            Some(_) => Err(format!("{name} is not a predicate")),
            None => Err(format!("unknown predicate {name}")),
        }
    }

    /// A predicate register, or `_`.
    pub(super) fn optional_predicate(&self, operand: &Operand) -> Lookup<Option<Predicate>> {
        if *operand == Operand::Sink { Ok(None) } else { self.predicate(operand).map(Some) }
    }

    /// A predicate that is read, perhaps negated or constant.
    pub(super) fn condition(&self, operand: &Operand) -> Lookup<Condition> {
        match operand {
            Operand::Not(inner) => Ok(match self.condition(inner)? {
                Condition::Register(predicate, negated) => Condition::Register(predicate, !negated),
                Condition::Constant(value) => Condition::Constant(!value),
            }),
            Operand::Integer(value) => Ok(Condition::Constant(*value != 0)),
            _ => Ok(Condition::Register(self.predicate(operand)?, false)),
        }
    }

    pub(super) fn is_predicate(&self, operand: &Operand) -> bool {
        match operand {
            Operand::Not(_) => true,
            Operand::Name(name) => matches!(self.find(name), Some(Binding::Predicate(_))),
            _ => false,
        }
    }

    /// Whether it is a register of 64 bits.
    pub(super) fn is_wide(&self, operand: &Operand) -> bool {
        self.typed_register(operand).is_ok_and(|(_, kind)| kind.bits() == 64)
    }

    /// An operand that is read as `kind`.
    pub(super) fn source(&mut self, operand: &Operand, kind: Type) -> Lookup<Source> {
        let bits = kind.bits();
        match operand {
            Operand::Integer(value) if !kind.is_float() || *value == 0 => {
                Ok(self.constant(if bits >= 64 { *value } else { value & ((1 << bits) - 1) }))
            }
            // An integer for packed or half types is bits.
            Operand::Integer(value) if bits <= 32 && !matches!(kind, Type::F32) => Ok(self.constant(*value)),
            Operand::Integer(_) => Err("an integer where a float is needed".into()),
            Operand::F32(value) => match kind {
                Type::F64 => Ok(self.constant(f64::from(f32::from_bits(*value)).to_bits())),
                _ if bits == 32 => Ok(self.constant(u64::from(*value))),
                _ => Err(format!("an f32 where {bits} bits are needed")),
            },
            Operand::F64(value) => match kind {
                Type::F32 => Ok(self.constant(u64::from((f64::from_bits(*value) as f32).to_bits()))),
                _ if bits == 64 => Ok(self.constant(*value)),
                _ => Err(format!("an f64 where {bits} bits are needed")),
            },
            Operand::Offset(name, offset) => self.symbol(name, *offset),
            Operand::Name(name) => match self.find(name) {
                Some(Binding::Register(register, declared)) => {
                    if declared.bits() < bits {
                        return Err(format!("{name} has {} bits, {bits} are needed", declared.bits()));
                    }
                    Ok(Source::Register(*register))
                }
                Some(Binding::Parameter { offset }) => {
                    let offset = *offset;
                    Ok(self.constant(offset))
                }
                Some(Binding::Variable(_)) => self.symbol(name, 0),
                Some(_) => Err(format!("{name} has no value")),
                None => match Special::parse(name) {
                    Some(special) => Ok(Source::Special(special)),
                    None => Err(format!("unknown name {name}")),
                },
            },
            other => Err(format!("expected a value, got {other:?}")),
        }
    }

    fn symbol(&mut self, name: &str, offset: i64) -> Lookup<Source> {
        let Some(Binding::Variable(variable)) = self.find(name) else {
            return Err(format!("{name} is not a variable of the module"));
        };
        let symbol = Symbol { variable: *variable, offset };
        let known = self.parts.symbols.iter().position(|other| *other == symbol);
        let index = known.unwrap_or_else(|| {
            self.parts.symbols.push(symbol);
            self.parts.symbols.len() - 1
        }) as u32;
        self.symbols.insert(index);
        Ok(Source::Symbol(index))
    }

    /// Where a parameter or a variable of the frame is.
    pub(super) fn place(&self, operand: &Operand) -> Option<Place> {
        let (name, extra) = match operand {
            Operand::Name(name) => (name, 0),
            Operand::Offset(name, offset) => (name, *offset),
            _ => return None,
        };
        match self.find(name)? {
            Binding::Frame { offset, .. } => Some(Place::Frame(offset.wrapping_add_signed(extra))),
            Binding::Parameter { offset } => Some(Place::Parameter(offset.wrapping_add_signed(extra))),
            _ => None,
        }
    }

    /// A memory operand in brackets.
    pub(super) fn address(&mut self, operand: &Operand) -> Lookup<Address> {
        let Operand::Address(base, offset) = operand else {
            return Err(format!("expected an address in brackets, got {operand:?}"));
        };
        let (base, offset, narrow) = match base {
            None => (Base::Nothing, *offset, false),
            Some(name) => match self.find(name) {
                Some(Binding::Register(register, kind)) => {
                    (Base::Source(Source::Register(*register)), *offset, kind.bits() == 32)
                }
                Some(Binding::Frame { offset: place, .. }) => {
                    (Base::Frame, offset.wrapping_add_unsigned(*place), false)
                }
                Some(Binding::Parameter { offset: place }) => {
                    (Base::Nothing, offset.wrapping_add_unsigned(*place), false)
                }
                Some(Binding::Variable(_)) => (Base::Source(self.symbol(name, *offset)?), 0, false),
                Some(_) => return Err(format!("{name} is not an address")),
                None => return Err(format!("unknown name {name}")),
            },
        };
        Ok(Address { base, offset, narrow })
    }

    /// Offset and size of an argument or result of a call.
    pub(super) fn frame_variable(&self, operand: &Operand) -> Lookup<(u64, u64)> {
        let Operand::Name(name) = operand else { return Err("an argument that is no .param variable".into()) };
        match self.find(name) {
            Some(Binding::Frame { offset, bytes }) => Ok((*offset, *bytes)),
            _ => Err(format!("{name} is not a .param variable of the caller")),
        }
    }

    pub(super) fn label(&self, name: &str) -> Lookup<u32> {
        match self.find(name) {
            Some(Binding::Label(label)) => Ok(*label),
            _ => Err(format!("unknown label {name}")),
        }
    }

    /// The labels of a `.branchtargets` list.
    pub(super) fn targets(&self, name: &str) -> Lookup<Vec<u32>> {
        match self.find(name) {
            Some(Binding::Targets(targets)) => targets.iter().map(|target| self.label(target)).collect(),
            _ => Err(format!("{name} is not a list of .branchtargets")),
        }
    }

    pub(super) fn function(&mut self, name: &str) -> Lookup<u32> {
        match self.functions.get(name) {
            Some(function) => {
                self.calls.insert(*function);
                Ok(*function)
            }
            None if self.find(name).is_some() => Err(format!("an indirect call through {name}")),
            None => Err(format!("unknown function {name}")),
        }
    }
}
