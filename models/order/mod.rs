//! Which places are settled in which step, and where they lie.

pub mod locality;

use smalti::rope::Table;
use smalti::{Tensor, Weight, embedding};

use crate::Result;

/// The raster cells of a square grid, region after region: the first cell of every region, then the second of every
/// region, and so on. `regions` is a square number whose root divides `side`.
///
/// Source: Wang et al. 2024, arXiv:2412.15119, section 3.2.
#[must_use]
pub fn regions(side: usize, regions: usize) -> Vec<usize> {
    let across = regions.isqrt().max(1);
    let region = side / across;
    let places = 0..side * side;
    places
        .map(|place| {
            let (within, which) = (place / (across * across), place % (across * across));
            let row = which / across * region + within / region.max(1);
            let column = which % across * region + within % region.max(1);
            row * side + column
        })
        .collect()
}

/// The cells of a `[time, height, width]` grid by planes of equal `t + h + w`, in each in raster order: all of a plane
/// are neighbours of the plane before. One frame has anti-diagonals.
///
/// Source: He et al. 2025, arXiv:2503.10696, section 3.2.
#[must_use]
pub fn planes([time, height, width]: [usize; 3]) -> Vec<Vec<usize>> {
    let mut planes = vec![Vec::new(); (time + height + width).saturating_sub(2)];
    for cell in 0..time * height * width {
        let distance = cell / (height * width) + cell / width % height + cell % width;
        planes[distance].push(cell);
    }
    planes
}

/// The cells `[row, column]` of a grid along its anti-diagonals, there and back, so that each touches the one before it
/// at a side or a corner. The first step is to the right.
///
/// Source: Xu et al. 2025, arXiv:2503.11129, its diagonal scanning order.
#[must_use]
pub fn zigzag(height: usize, width: usize) -> Vec<[usize; 2]> {
    let of_plane = |(plane, mut cells): (usize, Vec<usize>)| {
        if plane % 2 == 0 {
            cells.reverse();
        }
        cells.into_iter().map(|cell| [cell / width, cell % width])
    };
    planes([1, height, width]).into_iter().enumerate().flat_map(of_plane).collect()
}

/// How many places each of `steps` steps settles, when after a share `r` of the steps a share `masked(r)` of the
/// `places` is still open. `masked` falls from 1 to 0; a step settles at least one place while any is open.
#[must_use]
pub fn counts(places: usize, steps: usize, masked: impl Fn(f64) -> f64) -> Vec<usize> {
    let mut open = places;
    let mut counts = Vec::new();
    for step in 1..=steps {
        let left = (places as f64 * masked(step as f64 / steps as f64)).floor() as usize;
        let left = if step == steps { 0 } else { left.clamp(usize::from(open > 1), open.saturating_sub(1)) };
        counts.push(open - left);
        open = left;
    }
    counts
}

/// The rows of a rotary table that a sequence takes, one per place.
///
/// # Errors
/// If the device has no room.
pub fn positions(table: &Table, places: &[usize]) -> Result<Table> {
    Ok(Table { cos: rows(&table.cos, places)?, sin: rows(&table.sin, places)? })
}

/// As [`positions`] where each batch entry has places of its own: `places` is `[batch, seq]`.
///
/// # Errors
/// If the device has no room.
pub fn positions_of_batch(table: &Table, batch: usize, places: &[usize]) -> Result<Table> {
    let of_batch = |part: &Tensor<f32>| {
        let part = rows(part, places)?;
        let pairs = part.shape()[1];
        Ok::<_, crate::Error>(part.reshape(&[batch, places.len() / batch.max(1), pairs])?)
    };
    Ok(Table { cos: of_batch(&table.cos)?, sin: of_batch(&table.sin)? })
}

/// The given rows of a table.
///
/// # Errors
/// If there is no such row or the device has no room.
pub fn rows(table: &Tensor<f32>, rows: &[usize]) -> Result<Tensor<f32>> {
    let ids = rows.iter().map(|row| *row as u32).collect();
    let ids = Tensor::from_vec(table.device(), &[rows.len()], ids)?;
    Ok(embedding::embedding(&Weight::from(table.clone()), &ids)?)
}
