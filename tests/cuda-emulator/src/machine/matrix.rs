//! `ldmatrix`, `stmatrix` and `mma.sync`.

use super::execute::{Execution, Outcome};
use crate::float::{BF16, F16, Format, Rounding};
use crate::program::{Address, Matrix, MatrixElement, Memory, Register, Source, WARP};

/// Elements of the largest operand of a matrix instruction: 16 rows of 32.
const LARGEST: usize = 512;

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
            for (lane, value) in value.iter().enumerate() {
                for half in 0..2 {
                    let (row, column) = (lane / 4, 2 * (lane % 4) + half);
                    let (row, column) = if transposed { (column, row) } else { (row, column) };
                    let at = rows[8 * matrix + row] as usize + 2 * column;
                    let element = (value >> (16 * half)) as u16;
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
        match self.block.counts.matrix.get_mut(&matrix.name) {
            Some(count) => *count += 1,
            None => {
                self.block.counts.matrix.insert(matrix.name.clone(), 1);
            }
        }
        let (mut a, mut b, mut sums) = ([0.0; LARGEST], [0.0; LARGEST], [0.0; LARGEST]);
        self.gather(&matrix.a, matrix.a_element, &matrix.a_places, &mut a);
        self.gather(&matrix.b, matrix.b_element, &matrix.b_places, &mut b);
        self.gather(&matrix.c, matrix.c_element, &matrix.c_places, &mut sums);
        let rows = a.chunks_exact(matrix.k).take(matrix.m);
        for (row, sums) in rows.zip(sums.chunks_exact_mut(matrix.n)) {
            for (column, sum) in b.chunks_exact(matrix.k).zip(sums) {
                // Products and sums are exact or nearly so in f64; the hardware keeps at least an f32's bits.
                *sum = row.iter().zip(column).fold(*sum, |sum, (a, b)| sum + a * b);
            }
        }
        let bits = matrix.d_element.bits();
        let together = 32 / bits;
        let elements = matrix.d.len() * together;
        for (register, destination) in matrix.d.iter().enumerate() {
            let mut out = [0; WARP];
            for (lane, out) in out.iter_mut().enumerate() {
                for part in 0..together {
                    let place = matrix.c_places[lane * elements + register * together + part];
                    let value = encode(matrix.d_element, sums[usize::from(place)], matrix.saturate);
                    *out |= value << (part * bits);
                }
            }
            self.write(*destination, &out, active);
        }
        Ok(())
    }

    /// A fragment's values at their places.
    fn gather(&self, fragment: &[Source], element: MatrixElement, places: &[u16], out: &mut [f64; LARGEST]) {
        let bits = element.bits();
        let together = 32 / bits;
        let elements = fragment.len() * together;
        let keep = u64::MAX >> (64 - bits);
        for (register, source) in fragment.iter().enumerate() {
            for (lane, value) in self.source(*source).iter().enumerate() {
                for part in 0..together {
                    let place = places[lane * elements + register * together + part];
                    out[usize::from(place)] = decode(element, value >> (part * bits) & keep);
                }
            }
        }
    }
}

fn decode(element: MatrixElement, bits: u64) -> f64 {
    let half = |format: Format| format.widen(bits);
    match element {
        MatrixElement::F16 => half(F16),
        MatrixElement::BF16 => half(BF16),
        // The hardware ignores the 13 bits that a tf32 does not have.
        MatrixElement::TF32 => f64::from(f32::from_bits(bits as u32 & !0x1fff)),
        MatrixElement::F32 => f64::from(f32::from_bits(bits as u32)),
        MatrixElement::S8 => f64::from(bits as u8 as i8),
        MatrixElement::U8 => f64::from(bits as u8),
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
        // Sums of integers stay below 2^53, where f64 is exact.
        _ if saturate => u64::from(value as i32 as u32),
        _ => u64::from(value as i64 as u32),
    }
}
