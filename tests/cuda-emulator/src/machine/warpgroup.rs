//! `wgmma`: matrix products of four warps, with operands in shared memory.
//!
//! A product is computed when the last of the four warps issues it. That its registers and its operands in shared
//! memory are left alone until it is known to be done is checked apart.

use super::access::describe;
use super::block::{Block, MBARRIER};
use super::clocks::{Agent, Clocks, Proxied};
use super::launch::Context;
use super::shadow::{Action, Observer, Stamp};
use super::warp::Warp;
use crate::error::{Fault, FaultKind, Problem};
use crate::float::{F16, Rounding};
use crate::program::{
    Condition, Instruction, MatrixElement, Operation, Register, Source, WARP, WarpgroupMatrix, WarpgroupOperand,
};
use crate::tensor_map::Swizzle;

/// Rows of a product.
const M: usize = 64;
/// Warps of a warpgroup.
pub const WARPS: u32 = 4;
/// Bytes that hold together in shared memory.
const PIECE: usize = 16;

type Outcome<T> = Result<T, Problem>;

/// A matrix descriptor.
struct Descriptor {
    start: u64,
    /// From 8 rows or columns to the next, as the layout has it.
    leading: u64,
    stride: u64,
    /// Bits 7 to 9 of the address at which the swizzle's pattern starts.
    base: u64,
    swizzle: Swizzle,
}

impl Descriptor {
    fn decode(bits: u64) -> Self {
        let field = |at: u32| (bits >> at & 0x3fff) << 4;
        Self {
            start: field(0),
            leading: field(16),
            stride: field(32),
            base: bits >> 49 & 7,
            swizzle: match bits >> 62 {
                1 => Swizzle::Bytes128,
                2 => Swizzle::Bytes64,
                3 => Swizzle::Bytes32,
                _ => Swizzle::None,
            },
        }
    }

    /// Addresses of the 16-byte pieces of an operand. If the summed axis is the fast one in memory, of each of `count`
    /// rows two; else of each of 16 rows along the summed axis `count / 8`.
    fn pieces(&self, count: usize, transposed: bool) -> Vec<u64> {
        let span = self.swizzle.span();
        let width = span as usize / PIECE;
        let place = |at: u64| self.swizzle.apply(self.start + at, self.base);
        let both =
            |rows: usize, columns: usize| (0..rows).flat_map(move |row| (0..columns).map(move |column| (row, column)));
        if !transposed {
            let next = if self.swizzle == Swizzle::None { self.leading } else { PIECE as u64 };
            let at = |(row, piece)| (row / 8) as u64 * self.stride + (row % 8) as u64 * span + piece as u64 * next;
            return both(count, 2).map(|pair| place(at(pair))).collect();
        }
        // Without a swizzle the two offsets change their meanings.
        let (across, along) =
            if self.swizzle == Swizzle::None { (self.stride, self.leading) } else { (self.leading, self.stride) };
        let at = |(row, piece): (usize, usize)| {
            let (outer, inner) = ((piece / width) as u64, (piece % width) as u64);
            outer * across + inner * PIECE as u64 + (row % 8) as u64 * span + (row / 8) as u64 * along
        };
        both(16, count / 8).map(|pair| place(at(pair))).collect()
    }
}

/// The instruction that a warp stopped at.
fn stopped_at<'a>(context: &Context<'a>, warp: &Warp) -> Option<((u32, u32), &'a Instruction)> {
    let frame = warp.frames.last()?;
    let pc = frame.paths.last()?.pc.checked_sub(1)?;
    let instruction = context.program.functions[frame.function as usize].instructions.get(pc as usize)?;
    Some(((frame.function, pc), instruction))
}

/// Runs the product that the four warps of a warpgroup have come to.
pub fn multiply(context: &Context<'_>, block: &mut Block, warps: &mut [Warp]) -> Result<(), Fault> {
    let result = Group { context, block, warps: &mut *warps }.run();
    result.map_err(|problem| {
        let first = &warps[0];
        let thread = first.index * 32 + problem.lane.unwrap_or(0) as u32;
        Fault {
            kind: problem.kind,
            kernel: context.kernel().name.clone(),
            line: first.line,
            block: Some(block.index),
            thread: Some(context.thread(thread)),
            address: problem.address,
            detail: problem.detail,
        }
    })
}

struct Group<'a, 'b> {
    context: &'b Context<'a>,
    block: &'b mut Block,
    warps: &'b mut [Warp],
}

impl Group<'_, '_> {
    fn run(&mut self) -> Outcome<()> {
        let places: Vec<_> = self.warps.iter().map(|warp| stopped_at(self.context, warp)).collect();
        let Some((place, instruction)) = places[0] else { return Ok(()) };
        let Operation::WarpgroupMatrix(matrix) = &instruction.operation else { return Ok(()) };
        for (warp, other) in places.iter().enumerate() {
            if let Some((other, instruction)) = other
                && *other != place
            {
                let detail =
                    format!("wgmma.mma_async by four warps, but warp {warp} of them is at line {}", instruction.line);
                return Err(Problem::new(FaultKind::MemberMask, detail));
            }
        }
        for warp in 0..self.warps.len() {
            self.claim(warp, matrix, instruction.line)?;
        }
        self.multiply(matrix)
    }

    /// Notes that a product uses a warp's registers from now on; fails if something stands against that.
    fn claim(&mut self, warp: usize, matrix: &WarpgroupMatrix, line: u32) -> Outcome<()> {
        let index = warp;
        let warp = &mut self.warps[warp];
        let frame = warp.frames.last().expect("a warp that stopped has a frame");
        let (group, done, fences) = (warp.product_groups + 1, warp.products_done, warp.product_fences);
        let columns = matrix.n as u32;
        let fail =
            |kind, detail: String| Err(Problem::new(kind, format!("wgmma.mma_async {detail}")).lane(index * WARP));
        let unfenced = |what: &str| {
            fail(
                FaultKind::MissingFence,
                format!("with {what} that other instructions touched since the last wgmma.fence"),
            )
        };
        warp.product_open = true;
        for register in &matrix.d {
            let used = &mut warp.register_uses[frame.registers + register.0 as usize];
            if used.read > done {
                return fail(FaultKind::AsyncProduct, format!("writes an operand of that of line {}", used.line));
            }
            if used.written > done && used.columns != columns {
                let detail = format!("adds to the result of that of line {}, of another shape", used.line);
                return fail(FaultKind::AsyncProduct, detail);
            }
            if used.touched >= fences {
                return unfenced("a result");
            }
            (used.written, used.columns, used.line) = (group, columns, line);
        }
        let WarpgroupOperand::Registers(registers) = &matrix.a else { return Ok(()) };
        for source in registers {
            let Source::Register(register) = source else { continue };
            let used = &mut warp.register_uses[frame.registers + register.0 as usize];
            if used.written > done {
                return fail(FaultKind::AsyncProduct, format!("reads a result of that of line {}", used.line));
            }
            if used.touched >= fences {
                return unfenced("an operand");
            }
            (used.read, used.line) = (group, line);
        }
        Ok(())
    }

    /// A register's lane, in one of the warps.
    fn source(&self, warp: usize, source: Source) -> &[u64; WARP] {
        let warp = &self.warps[warp];
        let frame = warp.frames.last().expect("a warp that stopped has a frame");
        match source {
            Source::Register(register) => &warp.registers[frame.registers + register.0 as usize],
            Source::Constant(index) => &self.context.constants[frame.function as usize][index as usize],
            Source::Special(special) => &warp.specials[special as usize],
            Source::Symbol(symbol) => &self.context.symbols[symbol as usize],
        }
    }

    fn register(&mut self, warp: usize, register: Register) -> &mut [u64; WARP] {
        let warp = &mut self.warps[warp];
        let frame = warp.frames.last().expect("a warp that stopped has a frame");
        &mut warp.registers[frame.registers + register.0 as usize]
    }

    /// A value that all threads of the warpgroup have to agree on.
    fn uniform(&self, source: Source, what: &str) -> Outcome<u64> {
        let value = self.source(0, source)[0];
        if (0..self.warps.len()).any(|warp| self.source(warp, source).iter().any(|other| *other != value)) {
            return Err(Problem::new(FaultKind::Operand, format!("{what} differs within the warpgroup")));
        }
        Ok(value)
    }

    fn condition(&self, condition: Condition) -> Outcome<bool> {
        let Condition::Register(predicate, negated) = condition else {
            return Ok(condition == Condition::Constant(true));
        };
        let mut all = self.warps.iter().map(|warp| {
            let frame = warp.frames.last().expect("a warp that stopped has a frame");
            warp.predicates[frame.predicates + predicate.0 as usize]
        });
        let first = all.next().unwrap_or(0);
        if first != 0 && first != u32::MAX || all.any(|other| other != first) {
            return Err(Problem::new(FaultKind::Operand, "scale-d differs within the warpgroup"));
        }
        Ok((first != 0) != negated)
    }

    fn multiply(&mut self, matrix: &WarpgroupMatrix) -> Outcome<()> {
        *self.block.counts.matrix.entry(matrix.name.clone()).or_default() += 1;
        let (n, k) = (matrix.n, matrix.k);
        let mut seen = self.warps[0].knowledge();
        for warp in &self.warps[1..] {
            seen.merge(&warp.knowledge());
        }
        // Both operands with the summed axis outermost.
        let a = match &matrix.a {
            WarpgroupOperand::Registers(registers) => self.fragments(registers, matrix.a_element, k),
            WarpgroupOperand::Shared(source) => {
                let descriptor = self.uniform(*source, "the descriptor of a")?;
                self.operand(descriptor, M, matrix.a_element, matrix.transposed[0], &seen)?
            }
        };
        let descriptor = self.uniform(matrix.b, "the descriptor of b")?;
        let b = self.operand(descriptor, n, matrix.b_element, matrix.transposed[1], &seen)?;
        let scale = self.condition(matrix.scale_d)?;
        let sign = if matrix.negate[0] != matrix.negate[1] { -1.0 } else { 1.0 };
        if matrix.d_element == MatrixElement::S32 {
            self.add_integers(matrix, &a, &b, scale);
            return Ok(());
        }
        // As `mma` does it, so that both give the same bits, as they do on Hopper (Xie et al. 2025, arXiv:2511.10909).
        let mut sums = vec![0f64; M * n];
        if scale {
            self.each_sum(
                matrix,
                |bits, sum: &mut f64| {
                    *sum = f64::from(match matrix.d_element {
                        MatrixElement::F16 => half(*bits as u16),
                        _ => f32::from_bits(*bits as u32),
                    });
                },
                &mut sums,
            );
        }
        for (row, sums) in sums.chunks_exact_mut(n).enumerate() {
            for at in 0..k {
                let factor = f64::from(sign * a[at * M + row]);
                for (sum, b) in sums.iter_mut().zip(&b[at * n..][..n]) {
                    *sum += factor * f64::from(*b);
                }
            }
        }
        self.each_sum(
            matrix,
            |bits, sum: &mut f64| match matrix.d_element {
                MatrixElement::F16 => *bits = F16.narrow(*sum, Rounding::Nearest),
                _ => *bits = if sum.is_nan() { 0x7fff_ffff } else { u64::from((*sum as f32).to_bits()) },
            },
            &mut sums,
        );
        Ok(())
    }

    fn add_integers(&mut self, matrix: &WarpgroupMatrix, a: &[f32], b: &[f32], scale: bool) {
        let n = matrix.n;
        let mut sums = vec![0i64; M * n];
        if scale {
            self.each_sum(matrix, |bits, sum: &mut i64| *sum = i64::from(*bits as u32 as i32), &mut sums);
        }
        for (row, sums) in sums.chunks_exact_mut(n).enumerate() {
            for at in 0..matrix.k {
                for (sum, b) in sums.iter_mut().zip(&b[at * n..][..n]) {
                    *sum += a[at * M + row] as i64 * *b as i64;
                }
            }
        }
        self.each_sum(
            matrix,
            |bits, sum: &mut i64| {
                let sum = if matrix.saturate { (*sum).clamp(i32::MIN.into(), i32::MAX.into()) } else { *sum };
                *bits = u64::from(sum as u32);
            },
            &mut sums,
        );
    }

    /// Calls `visit` with each element of `d` in its register, zero-extended, and its sum.
    fn each_sum<T>(&mut self, matrix: &WarpgroupMatrix, visit: impl Fn(&mut u64, &mut T), sums: &mut [T]) {
        let bits = matrix.d_element.bits();
        let together = 32 / bits;
        let keep = u64::MAX >> (64 - bits);
        for warp in 0..self.warps.len() {
            for (at, register) in matrix.d.iter().enumerate() {
                let register = self.register(warp, *register);
                for part in 0..together {
                    let (index, shift) = (at * together + part, part * bits);
                    // Pairs of columns; then the row 8 further on; then the columns 8 further on.
                    let first = 16 * warp + 8 * (index / 2 % 2);
                    let column = 8 * (index / 4) + index % 2;
                    let rows = sums[first * matrix.n..].chunks_exact_mut(matrix.n);
                    for (four, row) in register.chunks_exact_mut(4).zip(rows) {
                        for (value, sum) in four.iter_mut().zip(row[column..].iter_mut().step_by(2)) {
                            let mut element = *value >> shift & keep;
                            visit(&mut element, sum);
                            *value = *value & !(keep << shift) | element << shift;
                        }
                    }
                }
            }
        }
    }

    /// `a` from registers: every warp has its 16 rows, laid out as for `mma`.
    fn fragments(&self, registers: &[Source], element: MatrixElement, k: usize) -> Vec<f32> {
        let mut out = vec![0.0; k * M];
        let bits = element.bits();
        let together = 32 / bits;
        for warp in 0..self.warps.len() {
            for (at, register) in registers.iter().enumerate() {
                for (lane, value) in self.source(warp, *register).iter().enumerate() {
                    for part in 0..together {
                        let row = 16 * warp + lane / 4 + 8 * (at % 2);
                        let column = together * (lane % 4) + part + 4 * together * (at / 2);
                        out[column * M + row] = decode(element, value >> (part * bits));
                    }
                }
            }
        }
        out
    }

    /// An operand from shared memory, the summed axis outermost.
    fn operand(
        &mut self,
        descriptor: u64,
        count: usize,
        element: MatrixElement,
        transposed: bool,
        seen: &Clocks,
    ) -> Outcome<Vec<f32>> {
        let bytes = element.bits() / 8;
        let each = PIECE / bytes;
        let mut out = vec![0.0; 2 * each * count];
        let pieces = Descriptor::decode(descriptor).pieces(count, transposed);
        let in_row = if transposed { count / 8 } else { 2 };
        for (at, address) in pieces.into_iter().enumerate() {
            let data = self.piece(address, seen)?;
            let (row, piece) = (at / in_row, at % in_row);
            for (part, bits) in data.chunks_exact(bytes).enumerate() {
                let bits = bits.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
                let value = decode(element, bits);
                if transposed {
                    out[row * count + piece * each + part] = value;
                } else {
                    out[(piece * each + part) * count + row] = value;
                }
            }
        }
        Ok(out)
    }

    /// 16 bytes of shared memory, checked.
    fn piece(&mut self, address: u64, seen: &Clocks) -> Outcome<[u8; PIECE]> {
        let fail = |kind, detail: String| {
            let text = format!("wgmma.mma_async reads 16 bytes of shared memory{detail}");
            Err(Problem::new(kind, text).address(address))
        };
        let range = address as usize..address as usize + PIECE;
        if let Some(detail) = self.context.outside_shared(address, range.end as u64) {
            return fail(FaultKind::OutOfBounds, detail);
        }
        match self.block.in_flight[range.clone()].iter().find(|line| **line != 0) {
            None => {}
            Some(&MBARRIER) => return fail(FaultKind::Mbarrier, ", which holds an mbarrier".into()),
            Some(line) => {
                return fail(FaultKind::AsyncCopy, format!(", to which the copy of line {line} is under way"));
            }
        }
        if let Some(first) = self.block.shared_valid[range.clone()].iter().position(|valid| !valid) {
            return fail(FaultKind::Uninitialised, format!(": byte {first} of them"));
        }
        let first = &self.warps[0];
        let by = Observer {
            stamp: Stamp::new(
                Agent::products(first.index / WARPS).thread(),
                (first.product_groups + 1).min(Stamp::LAST_CLOCK),
                false,
            ),
            beside: None,
            seen,
            line: first.line,
            late: self.block.late,
            proxy: Some(Proxied::Shared),
        };
        if let Err(conflict) = self.block.shared_shadow.access(address, PIECE as u32, Action::Read, &by, false) {
            let (kind, detail) = describe(conflict.thread, conflict.earlier, &|thread| self.context.thread(thread));
            return fail(kind, detail);
        }
        let bytes = &self.block.shared[range];
        Ok(bytes.try_into().expect("a piece of 16 bytes"))
    }
}

fn decode(element: MatrixElement, bits: u64) -> f32 {
    match element {
        MatrixElement::F16 => half(bits as u16),
        MatrixElement::BF16 => f32::from_bits((bits as u32) << 16),
        // The hardware ignores the 13 bits that a tf32 does not have.
        MatrixElement::TF32 => f32::from_bits(bits as u32 & !0x1fff),
        MatrixElement::F32 => f32::from_bits(bits as u32),
        MatrixElement::S8 => f32::from(bits as u8 as i8),
        MatrixElement::U8 | MatrixElement::S32 => f32::from(bits as u8),
    }
}

/// An f16's value.
fn half(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    if bits & 0x7c00 == 0x7c00 {
        return f32::from_bits(sign | 0x7f80_0000 | magnitude);
    }
    // The exponent's bias is 112 less.
    f32::from_bits(sign | magnitude) * f32::from_bits((127 + 112) << 23)
}
