//! Turns an instruction as written into an [`Operation`]. An instruction, modifier or type that is not known is an
//! error here, at load.

mod arithmetic;
mod bulk;
mod compare;
mod control;
mod convert;
mod float;
mod logic;
mod matrix;
mod mbarrier;
mod memory;
mod movement;
mod warp;
mod warpgroup;

use super::build::Scope;
use super::{Binary, Lanes, Operation, Ternary, Unary, WARP};
use crate::counts::Class;
use crate::float::Rounding;
use crate::ptx::syntax::Instruction;
use crate::ptx::types::Type;
use std::sync::Arc;

/// What goes wrong in an instruction; the caller knows its line.
pub(super) type Result<T> = std::result::Result<T, String>;

/// Decodes one instruction.
pub(super) fn decode(scope: &mut Scope<'_>, written: &Instruction) -> Result<(Operation, Class)> {
    let mut parts = Parts::new(written);
    let name = written.name.as_str();
    let operation = match name {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "min" | "max" | "abs" | "neg" => {
            let float = parts.last_type().is_some_and(Type::is_float);
            if float {
                float::decode(scope, written, &mut parts)?
            } else {
                arithmetic::decode(scope, written, &mut parts)?
            }
        }
        "rem" | "mul24" | "mad24" | "sad" | "addc" | "subc" | "madc" | "dp4a" | "dp2a" => {
            arithmetic::decode(scope, written, &mut parts)?
        }
        "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" | "copysign" => {
            float::decode(scope, written, &mut parts)?
        }
        "and" | "or" | "xor" | "not" | "cnot" | "lop3" | "shl" | "shr" | "shf" | "prmt" | "popc" | "clz" | "bfind"
        | "fns" | "brev" | "bfe" | "bfi" | "bmsk" | "szext" => logic::decode(scope, written, &mut parts)?,
        "setp" | "set" | "selp" | "slct" | "testp" => compare::decode(scope, written, &mut parts)?,
        "mov" | "cvta" | "isspacep" => movement::decode(scope, written, &mut parts)?,
        "cvt" => convert::decode(scope, written, &mut parts)?,
        "cp" if written.parts.get(1).is_some_and(|part| part == "bulk") => bulk::decode(scope, written, &mut parts)?,
        "mbarrier" => mbarrier::decode(scope, written, &mut parts)?,
        "wgmma" | "setmaxnreg" => warpgroup::decode(scope, written, &mut parts)?,
        "ld" | "ldu" | "st" | "atom" | "red" | "cp" | "prefetch" | "prefetchu" | "applypriority" | "discard"
        | "createpolicy" | "membar" | "fence" => memory::decode(scope, written, &mut parts)?,
        "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "bar" | "barrier" | "nanosleep" | "pmevent"
        | "griddepcontrol" => control::decode(scope, written, &mut parts)?,
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => warp::decode(scope, written, &mut parts)?,
        "ldmatrix" | "stmatrix" | "movmatrix" | "mma" => matrix::decode(scope, written, &mut parts)?,
        _ => return Err(format!("unknown instruction {}", written.opcode())),
    };
    parts.finish()?;
    let class = classify(&operation, written, parts.last_type());
    Ok((operation, class))
}

fn classify(operation: &Operation, written: &Instruction, last_type: Option<Type>) -> Class {
    match operation {
        Operation::Load { .. } | Operation::LoadMatrix { .. } => Class::Load,
        Operation::Store { .. } | Operation::StoreMatrix { .. } => Class::Store,
        Operation::Atomic { .. } => Class::Atomic,
        Operation::CopyAsync { .. }
        | Operation::CommitGroup
        | Operation::WaitGroup(_)
        | Operation::BulkCopy(_)
        | Operation::BulkCommit
        | Operation::BulkWait { .. } => Class::AsyncCopy,
        Operation::Branch { .. }
        | Operation::BranchTable { .. }
        | Operation::Call { .. }
        | Operation::CallBuiltin { .. }
        | Operation::Return
        | Operation::Exit
        | Operation::Trap => Class::Control,
        Operation::Barrier { .. }
        | Operation::WarpBarrier { .. }
        | Operation::Fence
        | Operation::ProxyFence { .. }
        | Operation::MbarrierInit { .. }
        | Operation::MbarrierInvalidate { .. }
        | Operation::MbarrierArrive(_)
        | Operation::MbarrierWait(_)
        | Operation::MbarrierPending { .. } => Class::Synchronise,
        Operation::Shuffle { .. }
        | Operation::Vote { .. }
        | Operation::Ballot { .. }
        | Operation::Match { .. }
        | Operation::Reduce { .. }
        | Operation::Elect { .. }
        | Operation::ActiveMask { .. }
        | Operation::TransposeMatrix { .. } => Class::Warp,
        Operation::Matrix(_)
        | Operation::WarpgroupMatrix(_)
        | Operation::WarpgroupFence
        | Operation::WarpgroupCommit
        | Operation::WarpgroupWait(_) => Class::Matrix,
        Operation::Clock { .. } | Operation::Nothing | Operation::SetRegisters { .. } => Class::Other,
        _ => match written.name.as_str() {
            "mov" | "cvta" | "isspacep" => Class::Move,
            "selp" | "slct" => Class::Move,
            "setp" | "set" | "testp" => Class::Compare,
            "cvt" => Class::Convert,
            "rcp" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" => Class::Special,
            "sqrt" | "div" if last_type.is_some_and(Type::is_float) => Class::Special,
            _ => match last_type {
                Some(Type::F64) => Class::F64,
                Some(Type::F32) => Class::F32,
                Some(Type::F16 | Type::F16x2 | Type::BF16 | Type::BF16x2) => Class::Half,
                _ => Class::Integer,
            },
        },
    }
}

/// An opcode's parts; each must be asked for by the time [`Parts::finish`] is called.
pub(super) struct Parts<'a> {
    written: &'a Instruction,
    used: Vec<bool>,
}

impl<'a> Parts<'a> {
    fn new(written: &'a Instruction) -> Self {
        Self { written, used: vec![false; written.parts.len()] }
    }

    /// Whether `.name` is there.
    fn take(&mut self, name: &str) -> bool {
        self.take_any(&[name]).is_some()
    }

    /// The first of `names` that is there.
    fn take_any(&mut self, names: &[&str]) -> Option<&'a str> {
        let written = self.written;
        let at =
            written.parts.iter().zip(&self.used).position(|(part, used)| !used && names.contains(&part.as_str()))?;
        self.used[at] = true;
        Some(&written.parts[at])
    }

    /// The first part for which `parse` finds a meaning.
    fn take_map<T>(&mut self, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        for (part, used) in self.written.parts.iter().zip(&mut self.used) {
            if !*used && let Some(value) = parse(part) {
                *used = true;
                return Some(value);
            }
        }
        None
    }

    fn rounding(&mut self) -> Option<Rounding> {
        self.take_map(|part| match part {
            "rn" => Some(Rounding::Nearest),
            "rna" => Some(Rounding::Away),
            "rz" => Some(Rounding::Zero),
            "rm" => Some(Rounding::Down),
            "rp" => Some(Rounding::Up),
            _ => None,
        })
    }

    /// The next type.
    fn kind(&mut self) -> Result<Type> {
        self.take_map(Type::parse).ok_or_else(|| format!("{} names no type", self.written.opcode()))
    }

    fn last_type(&self) -> Option<Type> {
        self.written.parts.iter().rev().find_map(|part| Type::parse(part))
    }

    fn finish(&self) -> Result<()> {
        match self.written.parts.iter().zip(&self.used).find(|(_, used)| !**used) {
            Some((part, _)) => Err(format!("unknown modifier .{part} of {}", self.written.opcode())),
            None => Ok(()),
        }
    }
}

/// The instruction's operands, which must be as many as `N`.
fn operands<const N: usize>(written: &Instruction) -> Result<&[crate::ptx::syntax::Operand; N]> {
    written
        .operands
        .as_slice()
        .try_into()
        .map_err(|_| format!("{} has {} operands, expected {N}", written.opcode(), written.operands.len()))
}

fn unsupported<T>(written: &Instruction) -> Result<T> {
    Err(format!("unknown form {}", written.opcode()))
}

/// The lowest `bits` set.
fn mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// The lowest `bits` of `value` as a signed number.
fn sign_extend(value: u64, bits: u32) -> i64 {
    if bits == 0 || bits >= 64 {
        return value as i64;
    }
    ((value << (64 - bits)) as i64) >> (64 - bits)
}

fn unary(compute: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Unary {
    Arc::new(move |a: &Lanes, out: &mut Lanes| {
        for lane in 0..WARP {
            out[lane] = compute(a[lane]);
        }
    })
}

fn binary(compute: impl Fn(u64, u64) -> u64 + Send + Sync + 'static) -> Binary {
    Arc::new(move |a: &Lanes, b: &Lanes, out: &mut Lanes| {
        for lane in 0..WARP {
            out[lane] = compute(a[lane], b[lane]);
        }
    })
}

fn ternary(compute: impl Fn(u64, u64, u64) -> u64 + Send + Sync + 'static) -> Ternary {
    Arc::new(move |a: &Lanes, b: &Lanes, c: &Lanes, out: &mut Lanes| {
        for lane in 0..WARP {
            out[lane] = compute(a[lane], b[lane], c[lane]);
        }
    })
}
