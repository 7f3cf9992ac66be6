//! What a PTX module says, before anything is resolved.

use super::types::{Space, Type};

/// A whole module.
#[derive(Debug, Default)]
pub struct Module {
    /// `.version`
    pub version: (u32, u32),
    /// `.target`, its first name.
    pub target: String,
    /// `.target sm_80, debug`: not optimised.
    pub debug: bool,
    /// Variables at module scope.
    pub variables: Vec<Variable>,
    /// Kernels and device functions; a prototype has no body.
    pub functions: Vec<Function>,
}

/// A variable of any space.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Where it lives.
    pub space: Space,
    /// Its name.
    pub name: String,
    /// The type of an element.
    pub element: Type,
    /// Number of elements; 0 where the text leaves it open: `[]`.
    pub count: u64,
    /// Alignment of the address in bytes.
    pub align: u64,
    /// Declared here, defined by whoever launches: `.extern .shared`.
    pub external: bool,
    /// Its first elements' values.
    pub initial: Vec<Initial>,
    /// Line of the declaration.
    pub line: u32,
}

impl Variable {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.count * u64::from(self.element.bytes())
    }
}

/// An element's value at module scope.
#[derive(Clone, Debug)]
pub enum Initial {
    /// Bits.
    Bits(u64),
    /// The address of a variable and a number of bytes. In device memory generic addresses are the same.
    Address {
        /// Which variable.
        name: String,
        /// Bytes past its start.
        offset: i64,
    },
}

/// A kernel or a device function.
#[derive(Debug)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// `.entry` rather than `.func`.
    pub entry: bool,
    /// What it returns.
    pub returns: Vec<Variable>,
    /// What it takes.
    pub parameters: Vec<Variable>,
    /// Its statements, or `None` for a prototype.
    pub body: Option<Vec<Statement>>,
    /// `.maxntid`
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`
    pub required_threads: Option<[u32; 3]>,
    /// `.maxnreg`
    pub max_registers: Option<u32>,
    /// `.minnctapersm`
    pub min_blocks: Option<u32>,
    /// Line of its name.
    pub line: u32,
}

/// A statement of a body.
#[derive(Debug)]
pub enum Statement {
    /// `.reg .f32 a, b<4>;`
    Registers {
        /// The registers' type.
        element: Type,
        /// Name and, for `b<4>`, how many.
        names: Vec<(String, Option<u32>)>,
        /// Line of the declaration.
        line: u32,
    },
    /// A variable of the body's scope.
    Variable(Variable),
    /// `name:`
    Label(String, u32),
    /// `name: .branchtargets a, b;`
    Targets(String, Vec<String>),
    /// An instruction.
    Instruction(Instruction),
    /// `{ ... }`
    Block(Vec<Statement>),
}

/// An instruction as written.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// `@p` or `@!p`: the predicate and whether it is negated.
    pub guard: Option<(String, bool)>,
    /// The opcode's first part.
    pub name: String,
    /// The opcode's other parts, without dots.
    pub parts: Vec<String>,
    /// Operands in order.
    pub operands: Vec<Operand>,
    /// Its line, from 1.
    pub line: u32,
}

impl Instruction {
    /// The opcode as written.
    pub fn opcode(&self) -> String {
        let mut text = self.name.clone();
        for part in &self.parts {
            text.push('.');
            text.push_str(part);
        }
        text
    }
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register, variable, label, function or special register (`%tid.x`).
    Name(String),
    /// An integer, two's complement in 64 bits.
    Integer(u64),
    /// The bits of an f32.
    F32(u32),
    /// The bits of an f64.
    F64(u64),
    /// `name+4`, outside brackets.
    Offset(String, i64),
    /// `[base+4]`; an address that is only a number has no base.
    Address(Option<String>, i64),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `p|q`
    Pair(Box<Operand>, Box<Operand>),
    /// `!p`
    Not(Box<Operand>),
    /// `-a`, where `a` is a name.
    Negated(Box<Operand>),
    /// `(a, b)` of a call.
    Group(Vec<Operand>),
    /// `[tensor, {x, y}]`
    Tensor(Box<Operand>, Box<Operand>),
    /// `_`
    Sink,
}
