//! Random numbers of continuous tokens.

use std::f64::consts::TAU;

use super::Sampler;
use crate::Result;

/// Where the numbers of a generation come from, row by row.
pub trait Chance {
    /// Tells which cells (picture of the batch, cell) the rows of the next step are.
    fn begin(&mut self, cells: &[(usize, usize)]);

    /// Standard normal numbers, `[rows, count]`.
    ///
    /// # Errors
    /// If there are none, as where a dump has recorded them.
    fn normals(&mut self, rows: usize, count: usize) -> Result<Vec<f64>>;

    /// Numbers in [0, 1), `[rows, count]`.
    ///
    /// # Errors
    /// As [`Chance::normals`].
    fn uniforms(&mut self, rows: usize, count: usize) -> Result<Vec<f64>>;
}

/// Philox: each cell of each picture has numbers of its own, in the order in which it asks for them; so it must not
/// begin twice in a generation.
#[derive(Debug)]
pub struct OfPlaces<'a> {
    sampler: &'a Sampler<'a>,
    /// Picture of the batch, cell.
    cells: Vec<(usize, usize)>,
    /// How many each cell has used; the first is its place in a random order.
    used: usize,
}

impl<'a> OfPlaces<'a> {
    /// The numbers that a sampler's seed gives.
    #[must_use]
    pub fn new(sampler: &'a Sampler<'a>) -> Self {
        Self { sampler, cells: Vec::new(), used: 0 }
    }

    /// `[cells, count]`, strictly between 0 and 1.
    fn next(&mut self, count: usize) -> Vec<f64> {
        let first = self.used;
        self.used += count;
        let word = |(picture, cell): (usize, usize), number: usize| {
            self.sampler.word(Some(picture), (first + number) * self.sampler.places + cell)
        };
        let unit = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let of_cell = |cell: &(usize, usize)| {
            let cell = *cell;
            (0..count).map(move |number| unit(word(cell, number)))
        };
        self.cells.iter().flat_map(of_cell).collect()
    }
}

impl Chance for OfPlaces<'_> {
    fn begin(&mut self, cells: &[(usize, usize)]) {
        self.cells = cells.to_vec();
        self.used = 1;
    }

    fn normals(&mut self, rows: usize, count: usize) -> Result<Vec<f64>> {
        debug_assert_eq!(rows, self.cells.len());
        // Box and Muller.
        let normal = |pair: &[f64]| (-2.0 * pair[0].ln()).sqrt() * (TAU * pair[1]).cos();
        Ok(self.next(2 * count).chunks_exact(2).map(normal).collect())
    }

    fn uniforms(&mut self, rows: usize, count: usize) -> Result<Vec<f64>> {
        debug_assert_eq!(rows, self.cells.len());
        Ok(self.next(count))
    }
}
