//! `ldmatrix`, `stmatrix` and `mma.sync`.

use super::execute::{Execution, Outcome};
use crate::float::{BF16, F16, Format, Rounding};
use crate::program::{Address, Lanes, Matrix, MatrixElement, Memory, Register, Source, WARP};

/// Bytes of a row of an 8 by 8 matrix of 16-bit elements.
const ROW: u32 = 16;

impl Execution<'_, '_> {
    pub fn load_matrix(
        &mut self,
        memory: Memory,
        address: &Address,
        destinations: &[Register],
        transposed: bool,
        active: u32,
    ) -> Outcome<()> {
        self.whole_warp(active, "ldmatrix")?;
        let rows = self.matrix_rows(memory, address, destinations.len(), false)?;
        for (matrix, destination) in destinations.iter().enumerate() {
            let rows = &rows[8 * matrix..8 * matrix + 8];
            let element = |row: usize, column: usize| {
                let at = rows[row] as usize + 2 * column;
                u64::from(u16::from_le_bytes([self.block.shared[at], self.block.shared[at + 1]]))
            };
            let mut out = [0; WARP];
            for (lane, out) in out.iter_mut().enumerate() {
                let (row, column) = (lane / 4, 2 * (lane % 4));
                *out = if transposed {
                    element(column, row) | element(column + 1, row) << 16
                } else {
                    element(row, column) | element(row, column + 1) << 16
                };
            }
            self.write(*destination, &out, active);
        }
        Ok(())
    }

    pub fn store_matrix(
        &mut self,
        memory: Memory,
        address: &Address,
        sources: &[Source],
        transposed: bool,
        active: u32,
    ) -> Outcome<()> {
        self.whole_warp(active, "stmatrix")?;
        let rows = self.matrix_rows(memory, address, sources.len(), true)?;
        for (matrix, source) in sources.iter().enumerate() {
            let value = *self.source(*source);
            for lane in 0..WARP {
                for half in 0..2 {
                    let (row, column) = (lane / 4, 2 * (lane % 4) + half);
                    let (row, column) = if transposed { (column, row) } else { (row, column) };
                    let at = rows[8 * matrix + row] as usize + 2 * column;
                    let element = (value[lane] >> (16 * half)) as u16;
                    self.block.shared[at..at + 2].copy_from_slice(&element.to_le_bytes());
                    self.block.shared_valid[at..at + 2].fill(true);
                }
            }
        }
        Ok(())
    }

    /// Addresses of the rows in shared memory, checked as accesses of the lanes that give them.
    fn matrix_rows(&mut self, memory: Memory, address: &Address, count: usize, stores: bool) -> Outcome<Vec<u64>> {
        let addresses = self.addresses(address);
        let mut rows = Vec::with_capacity(8 * count);
        for (lane, address) in addresses.iter().enumerate().take(8 * count) {
            rows.push(self.row(lane, memory, *address, ROW, stores)?);
        }
        self.count_rows(&rows, stores);
        Ok(rows)
    }

    pub fn multiply_matrices(&mut self, matrix: &Matrix, active: u32) -> Outcome<()> {
        self.whole_warp(active, "mma.sync")?;
        let name = format!(
            "m{}n{}k{}.{:?}.{:?}.{:?}.{:?}",
            matrix.m, matrix.n, matrix.k, matrix.d_element, matrix.a_element, matrix.b_element, matrix.c_element
        );
        *self.block.counts.matrix.entry(name.to_lowercase()).or_default() += 1;
        let (m, n, k) = (matrix.m, matrix.n, matrix.k);
        let a = self.gather(&matrix.a, matrix.a_element, m * k, |at| a_index(matrix, at));
        let b = self.gather(&matrix.b, matrix.b_element, k * n, |at| b_index(matrix, at));
        let c = self.gather(&matrix.c, matrix.c_element, m * n, |at| c_index(matrix, at));
        let mut d = vec![0.0; m * n];
        for row in 0..m {
            for column in 0..n {
                // Products and their sum are exact or nearly so in f64; the hardware keeps at least an f32's bits.
                let mut sum = c[row * n + column];
                for inner in 0..k {
                    sum += a[row * k + inner] * b[inner * n + column];
                }
                d[row * n + column] = sum;
            }
        }
        for (register, destination) in matrix.d.iter().enumerate() {
            let mut out = [0; WARP];
            let per_register = (32 / matrix.d_element.bits()).max(1);
            for (lane, out) in out.iter_mut().enumerate() {
                for part in 0..per_register {
                    let (row, column) = c_index(matrix, (lane, register * per_register + part));
                    let bits = encode(matrix.d_element, d[row * n + column], matrix.saturate);
                    *out |= bits << (part * matrix.d_element.bits());
                }
            }
            self.write(*destination, &out, active);
        }
        Ok(())
    }

    /// A fragment as a matrix in row-major order; `index` gives row and column of each lane's elements.
    fn gather(
        &self,
        fragment: &[Source],
        element: MatrixElement,
        size: usize,
        index: impl Fn((usize, usize)) -> (usize, usize),
    ) -> Vec<f64> {
        let bits = element.bits();
        let per_register = (32 / bits).max(1);
        let keep = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        let mut out = vec![0.0; size];
        // The widest row follows from where the last element lies.
        let columns = (0..WARP)
            .flat_map(|lane| (0..fragment.len() * per_register).map(move |at| (lane, at)))
            .map(|at| index(at).1)
            .max()
            .map_or(1, |last| last + 1);
        for (register, source) in fragment.iter().enumerate() {
            let value: &Lanes = self.source(*source);
            for (lane, value) in value.iter().enumerate() {
                for part in 0..per_register {
                    let (row, column) = index((lane, register * per_register + part));
                    out[row * columns + column] = decode(element, value >> (part * bits) & keep);
                }
            }
        }
        out
    }
}

/// Row and column of element `at` of a lane's fragment of `a`.
fn a_index(matrix: &Matrix, (lane, at): (usize, usize)) -> (usize, usize) {
    let (group, within) = (lane / 4, lane % 4);
    // Elements that a lane holds next to each other in one 32-bit register; one for wider elements.
    let together = (32 / matrix.a_element.bits()).max(1);
    let (register, part) = (at / together, at % together);
    // Registers step through the rows first, eight apart, then through the columns.
    let row_blocks = matrix.m / 8;
    let row = group + 8 * (register % row_blocks);
    let column = together * within + part + 4 * together * (register / row_blocks);
    (row, column)
}

/// Row and column of element `at` of a lane's fragment of `b`.
fn b_index(matrix: &Matrix, (lane, at): (usize, usize)) -> (usize, usize) {
    let (group, within) = (lane / 4, lane % 4);
    let together = (32 / matrix.b_element.bits()).max(1);
    let (register, part) = (at / together, at % together);
    (together * within + part + 4 * together * register, group)
}

/// Row and column of element `at` of a lane's fragments of `c` and `d`.
fn c_index(_: &Matrix, (lane, at): (usize, usize)) -> (usize, usize) {
    let (group, within) = (lane / 4, lane % 4);
    (group + 8 * (at / 2), 2 * within + at % 2)
}

fn decode(element: MatrixElement, bits: u64) -> f64 {
    let half = |format: Format| format.widen(bits);
    match element {
        MatrixElement::F16 => half(F16),
        MatrixElement::BF16 => half(BF16),
        // The hardware ignores the 13 bits that a tf32 does not have.
        MatrixElement::TF32 => f64::from(f32::from_bits(bits as u32 & !0x1fff)),
        MatrixElement::F32 => f64::from(f32::from_bits(bits as u32)),
        MatrixElement::F64 => f64::from_bits(bits),
        MatrixElement::S8 => f64::from(bits as u8 as i8),
        MatrixElement::U8 => f64::from(bits as u8),
        MatrixElement::S4 => f64::from((bits as i8) << 4 >> 4),
        MatrixElement::U4 => f64::from(bits as u8 & 15),
        MatrixElement::S32 => f64::from(bits as u32 as i32),
    }
}

fn encode(element: MatrixElement, value: f64, saturate: bool) -> u64 {
    match element {
        MatrixElement::F16 => F16.narrow(value, Rounding::Nearest),
        MatrixElement::F32 => {
            let value = value as f32;
            if value.is_nan() { 0x7fff_ffff } else { u64::from(value.to_bits()) }
        }
        MatrixElement::F64 => value.to_bits(),
        // Sums of integers stay below 2^53, where f64 is exact.
        _ if saturate => u64::from(value as i32 as u32),
        _ => u64::from(value as i64 as u32),
    }
}
