//! The step in which each system settles each cell, as its authors sample, without a network: what a picture of the
//! order is drawn from.

use std::f64::consts::FRAC_PI_2;

use smalti::rng;

use crate::order::locality::{self, Chance, Thresholds};
use crate::order::{counts, planes, regions, zigzag};

use super::{flexvar, hart, hmar, infinity, xar};

/// A grid of cells, each with the step, counted from 0, that settles it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steps {
    /// Cells side by side.
    pub width: usize,
    /// Row by row.
    pub of_cell: Vec<usize>,
}

impl Steps {
    /// Groups of cells, one after another.
    fn of_groups(side: usize, first: usize, groups: &[Vec<usize>]) -> Self {
        let mut of_cell = vec![0; side * side];
        for (step, group) in groups.iter().enumerate() {
            group.iter().for_each(|cell| of_cell[*cell] = first + step);
        }
        Self { width: side, of_cell }
    }
}

/// The grids that a system settles, one after another: one, or one per scale; none if its tokens are not cells of a
/// picture, or `side` does not suit it. Orders that are random, or in MaskGIT's decoder the network's to choose, are
/// those of `seed`. Systems of scales have their own, VAR's kin those of 256 pixels, whatever
/// `side` is.
#[must_use]
pub fn steps(system: &str, side: usize, seed: u64) -> Option<Vec<Steps>> {
    let places = side.checked_mul(side).filter(|places| (1..=1 << 16).contains(places))?;
    let one = |groups: &[Vec<usize>]| Some(vec![Steps::of_groups(side, 0, groups)]);
    let grouped = |counts: &[usize]| one(&cut(&shuffled(places, seed, 0), counts));
    match system {
        "aim" | "controlar" | "llamagen" | "rar" | "spherear" => {
            one(&(0..places).map(|cell| vec![cell]).collect::<Vec<_>>())
        }
        "dar" => one(&zigzag(side, side).iter().map(|[row, column]| vec![row * side + column]).collect::<Vec<_>>()),
        "nar" => one(&planes([1, side, side])),
        "xar" if side.is_multiple_of(2) => one(&cut(&xar::cells_in_order(side, 2), &[places / 4; 4])),
        "par" if side.is_multiple_of(2) && side > 1 => {
            // The first cell of each of four regions in turn.
            one(&cut(&regions(side, 4), &[&[1; 4][..], &vec![4; places / 4 - 1]].concat()))
        }
        "arinar" | "mar" => grouped(&counts(places, 64.min(places), |r| (FRAC_PI_2 * r).cos())),
        "arpg" => grouped(&counts(places, 64.min(places), |r| r.acos() / FRAC_PI_2)),
        "maskgil" => grouped(&super::maskgil::counts(places, 12.min(places), |r| r.acos() / FRAC_PI_2)),
        "randar" => grouped(&super::randar::counts(88, places, 0)),
        "lpd" => {
            let mut sizes = counts(places, 20.min(places), |r| (FRAC_PI_2 * r).cos());
            // The first group is one cell.
            let surplus = sizes[0] - 1;
            sizes[0] = 1;
            if let Some(second) = sizes.get_mut(1) {
                *second += surplus;
            }
            let mut shuffle = |cells: &mut Vec<usize>| cells.sort_by_key(|cell| word(seed, *cell, 1));
            let mut chance = Chance {
                first: word(seed, 0, 2) as usize % places,
                shuffle: &mut shuffle,
                start: &mut |among| word(seed, among, 3) as usize % among.max(1),
            };
            let thresholds = Thresholds { proximity: 1.0, repulsion: 2.0 };
            one(&cut(&locality::order(side, &sizes, thresholds, &mut chance), &sizes))
        }
        "mvar" | "var" => Some(scales(&hmar::PATCH_NUMS)),
        "flexvar" => Some(scales(&flexvar::SCHEDULE)),
        "hart" => Some(scales(&hart::PATCH_NUMS)),
        "infinity" => Some(scales(&infinity::SIDES)),
        "hmar" => {
            let mut first = 0;
            let scale = |(scale, side): (usize, &usize)| {
                let whole = [side * side];
                let sizes = hmar::SCHEDULE.get(scale).copied().unwrap_or(&whole);
                let grid = Steps::of_groups(*side, first, &cut(&shuffled(side * side, seed, 4 + scale as u32), sizes));
                first += sizes.len();
                grid
            };
            Some(hmar::PATCH_NUMS.iter().enumerate().map(scale).collect())
        }
        _ => None,
    }
}

/// One step for each scale.
fn scales(sides: &[usize]) -> Vec<Steps> {
    let scale = |(step, side): (usize, &usize)| Steps { width: *side, of_cell: vec![step; side * side] };
    sides.iter().enumerate().map(scale).collect()
}

fn word(seed: u64, cell: usize, use_: u32) -> u32 {
    rng::philox4x32([seed as u32, (seed >> 32) as u32], [cell as u32, 0, use_, u32::MAX])[0]
}

fn shuffled(places: usize, seed: u64, use_: u32) -> Vec<usize> {
    let mut cells: Vec<_> = (0..places).collect();
    cells.sort_by_key(|cell| (word(seed, *cell, use_), *cell));
    cells
}

/// Cells in order, cut into groups of these sizes.
fn cut(cells: &[usize], sizes: &[usize]) -> Vec<Vec<usize>> {
    let mut rest = cells;
    let groups = sizes.iter().map(|size| {
        let (group, after) = rest.split_at((*size).min(rest.len()));
        rest = after;
        group.to_vec()
    });
    groups.collect()
}

#[cfg(test)]
mod tests {
    use super::super::SYSTEMS;
    use super::steps;

    #[test]
    fn every_step_of_an_order_settles_a_cell() {
        let mut known = 0;
        for system in SYSTEMS {
            for side in [1, 2, 3, 4, 7, 16, 24] {
                let Some(grids) = steps(system.name, side, 3) else { continue };
                known += 1;
                let mut used: Vec<_> = grids.iter().flat_map(|grid| grid.of_cell.iter().copied()).collect();
                used.sort_unstable();
                used.dedup();
                assert!(used.iter().copied().eq(0..used.len()), "{} {side}: {used:?}", system.name);
            }
            assert_eq!(steps(system.name, 0, 3), None, "{}", system.name);
            assert_eq!(steps(system.name, usize::MAX, 3), None, "{}", system.name);
        }
        assert!(known > 80, "{known}");
    }
}
