//! `ldmatrix`, `stmatrix`, `movmatrix` and `mma.sync`.

use super::{Parts, Result, operands, unsupported};
use crate::program::build::Scope;
use crate::program::{Matrix, MatrixElement, Memory, Operation, WARP};
use crate::ptx::syntax::{Instruction, Operand};
use crate::ptx::types::{Space, Type};

pub(super) fn decode(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    if !parts.take("sync") || !parts.take("aligned") {
        return unsupported(written);
    }
    if written.name == "mma" {
        return multiply(scope, written, parts);
    }
    if !parts.take("m8n8") {
        return unsupported(written);
    }
    let transposed = parts.take("trans");
    if written.name == "movmatrix" {
        parts.kind()?;
        let [destination, a] = operands(written)?;
        let source = scope.source(a, Type::B32)?;
        return Ok(Operation::TransposeMatrix { destination: scope.register(destination)?, source });
    }
    let count = match parts.take_any(&["x1", "x2", "x4"]) {
        Some("x1") => 1,
        Some("x2") => 2,
        Some("x4") => 4,
        _ => return unsupported(written),
    };
    let memory = match parts.take_map(Space::parse) {
        None => Memory::Generic,
        Some(Space::Shared) => Memory::Shared,
        Some(_) => return unsupported(written),
    };
    if parts.kind()? != Type::B16 {
        return unsupported(written);
    }
    let [first, second] = operands(written)?;
    if written.name == "ldmatrix" {
        let destinations = members(first).iter().map(|member| scope.register(member)).collect::<Result<Vec<_>>>()?;
        if destinations.len() != count {
            return unsupported(written);
        }
        return Ok(Operation::LoadMatrix { memory, address: scope.address(second)?, destinations, transposed });
    }
    let sources = members(second).iter().map(|member| scope.source(member, Type::B32)).collect::<Result<Vec<_>>>()?;
    if sources.len() != count {
        return unsupported(written);
    }
    Ok(Operation::StoreMatrix { memory, address: scope.address(first)?, sources, transposed })
}

fn members(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::Vector(members) => members,
        single => std::slice::from_ref(single),
    }
}

fn element(name: &str) -> Option<MatrixElement> {
    Some(match name {
        "f16" => MatrixElement::F16,
        "bf16" => MatrixElement::BF16,
        "tf32" => MatrixElement::TF32,
        "s8" => MatrixElement::S8,
        "u8" => MatrixElement::U8,
        "f32" => MatrixElement::F32,
        "s32" => MatrixElement::S32,
        _ => return None,
    })
}

impl MatrixElement {
    /// Its size in bits.
    pub fn bits(self) -> usize {
        match self {
            Self::S8 | Self::U8 => 8,
            Self::F16 | Self::BF16 => 16,
            Self::TF32 | Self::F32 | Self::S32 => 32,
        }
    }
}

/// The shapes each element type has.
fn is_shape(element: MatrixElement, m: usize, n: usize, k: usize) -> bool {
    use MatrixElement as E;
    match element {
        E::F16 | E::BF16 => matches!((m, n, k), (16, 8, 8 | 16)),
        E::TF32 => matches!((m, n, k), (16, 8, 4 | 8)),
        E::S8 | E::U8 => matches!((m, n, k), (16, 8, 16 | 32)),
        E::F32 | E::S32 => false,
    }
}

fn multiply(scope: &mut Scope<'_>, written: &Instruction, parts: &mut Parts<'_>) -> Result<Operation> {
    let shape = parts.take_map(|part| {
        let (m, rest) = part.strip_prefix('m')?.split_once('n')?;
        let (n, k) = rest.split_once('k')?;
        Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
    });
    let Some((m, n, k)) = shape else { return unsupported(written) };
    if !parts.take("row") || !parts.take("col") {
        return unsupported(written);
    }
    let saturate = parts.take("satfinite");
    let mut kinds = Vec::new();
    while let Some(kind) = parts.take_map(element) {
        kinds.push(kind);
    }
    let [d_element, a_element, b_element, c_element] = kinds[..] else { return unsupported(written) };
    use MatrixElement as E;
    let sums = match a_element {
        E::F16 => matches!((d_element, c_element), (E::F16, E::F16) | (E::F32, E::F32)),
        E::BF16 | E::TF32 => (d_element, c_element) == (E::F32, E::F32),
        _ => (d_element, c_element) == (E::S32, E::S32),
    };
    let same = a_element == b_element || a_element.bits() == b_element.bits() && sums && c_element == E::S32;
    if !sums || !same || !is_shape(a_element, m, n, k) {
        return unsupported(written);
    }
    let [d, a, b, c] = operands(written)?;
    let kind = |element: MatrixElement| match element {
        E::F32 => Type::F32,
        _ => Type::B32,
    };
    let mut sources = |operand: &Operand, element: MatrixElement| {
        members(operand).iter().map(|member| scope.source(member, kind(element))).collect::<Result<Vec<_>>>()
    };
    let (a, b, c) = (sources(a, a_element)?, sources(b, b_element)?, sources(c, c_element)?);
    let d = members(d).iter().map(|member| scope.register(member)).collect::<Result<Vec<_>>>()?;
    let registers = |elements: usize, element: MatrixElement| elements * element.bits() / 32 / WARP;
    let expected = [
        registers(m * k, a_element),
        registers(k * n, b_element),
        registers(m * n, c_element),
        registers(m * n, d_element),
    ];
    let got = [a.len(), b.len(), c.len(), d.len()];
    if got != expected {
        return Err(format!(
            "{} has fragments of {got:?} registers, expected {expected:?} (a, b, c, d)",
            written.opcode()
        ));
    }
    let name = written.parts.iter().filter(|part| !["sync", "aligned", "row", "col"].contains(&part.as_str()));
    let places = |elements: usize, place: &dyn Fn(usize, usize) -> usize| {
        (0..WARP)
            .flat_map(|lane| (0..elements / WARP).map(move |at| (lane, at)))
            .map(|(lane, at)| place(lane, at) as u16)
            .collect::<Vec<_>>()
    };
    let a_places = places(m * k, &|lane, at| {
        let (row, column) = a_place(a_element, lane, at);
        row * k + column
    });
    let b_places = places(k * n, &|lane, at| {
        let (row, column) = b_place(b_element, lane, at);
        column * k + row
    });
    let c_places = places(m * n, &|lane, at| {
        let (row, column) = c_place(lane, at);
        row * n + column
    });
    Ok(Operation::Matrix(Box::new(Matrix {
        name: name.cloned().collect::<Vec<_>>().join("."),
        m,
        n,
        k,
        a_element,
        b_element,
        c_element,
        d_element,
        saturate,
        a,
        b,
        c,
        d,
        a_places,
        b_places,
        c_places,
    })))
}

/// Row and column of element `at` of a lane's fragment of `a`.
fn a_place(element: MatrixElement, lane: usize, at: usize) -> (usize, usize) {
    let (group, within) = (lane / 4, lane % 4);
    // Elements that a lane holds next to each other in one register.
    let together = 32 / element.bits();
    let (register, part) = (at / together, at % together);
    // Registers step through the rows first, eight apart, then through the columns.
    (group + 8 * (register % 2), together * within + part + 4 * together * (register / 2))
}

/// Row and column of element `at` of a lane's fragment of `b`.
fn b_place(element: MatrixElement, lane: usize, at: usize) -> (usize, usize) {
    let (group, within) = (lane / 4, lane % 4);
    let together = 32 / element.bits();
    let (register, part) = (at / together, at % together);
    (together * within + part + 4 * together * register, group)
}

/// Row and column of element `at` of a lane's fragments of `c` and `d`.
fn c_place(lane: usize, at: usize) -> (usize, usize) {
    let (group, within) = (lane / 4, lane % 4);
    (group + 8 * (at / 2), 2 * within + at % 2)
}
