//! LPD's order: cells near the context, and those of one group far from each other.
//!
//! Source: Zhang et al. 2025, arXiv:2507.01957, section 3.3; mit-han-lab/lpd, `orders/lpd_order.py`.

/// What is left to chance.
pub struct Chance<'a> {
    /// The first cell.
    pub first: usize,
    /// Puts the free cells of a step in a random order: cells of equal score keep it.
    pub shuffle: &'a mut dyn FnMut(&mut Vec<usize>),
    /// Which of this many candidates starts a group that has no member yet.
    pub start: &'a mut dyn FnMut(usize) -> usize,
}

/// How near is near.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    /// A cell whose score is at least this is near the context; its score is the sum of 1 / distance over the settled
    /// cells among its eight neighbours.
    pub proximity: f64,
    /// Cells of one group are further apart than this along one axis at least, as long as there are enough.
    pub repulsion: f64,
}

/// All cells of a `side` x `side` grid in the order of generation, `group_sizes` per step; the first group is one cell.
#[must_use]
pub fn order(side: usize, group_sizes: &[usize], thresholds: Thresholds, chance: &mut Chance<'_>) -> Vec<usize> {
    let mut settled = vec![chance.first];
    for &size in &group_sizes[1..] {
        let mut free: Vec<_> = (0..side * side).filter(|cell| !settled.contains(cell)).collect();
        (chance.shuffle)(&mut free);
        let mut scored: Vec<_> = free.iter().map(|cell| (score(side, *cell, &settled), *cell)).collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (near, far): (Vec<_>, Vec<_>) = scored.into_iter().partition(|(score, _)| *score >= thresholds.proximity);

        let mut group: Vec<usize> = Vec::new();
        let mut passed = Vec::new();
        let mut near = near.into_iter().map(|(_, cell)| cell);
        while group.len() < size
            && let Some(cell) = near.next()
        {
            let close = |other: &usize| {
                let [rows, columns] = apart(side, cell, *other);
                rows <= thresholds.repulsion && columns <= thresholds.repulsion
            };
            if group.iter().any(close) { passed.push(cell) } else { group.push(cell) }
        }
        let candidates: Vec<_> = far.into_iter().map(|(_, cell)| cell).chain(passed).chain(near).collect();
        let missing = size - group.len();
        farthest(side, &mut group, &candidates, missing, chance);
        settled.extend(group);
    }
    settled
}

/// Rows and columns between two cells.
fn apart(side: usize, a: usize, b: usize) -> [f64; 2] {
    [(a / side).abs_diff(b / side) as f64, (a % side).abs_diff(b % side) as f64]
}

fn distance(side: usize, a: usize, b: usize) -> f64 {
    let [rows, columns] = apart(side, a, b);
    (rows * rows + columns * columns).sqrt()
}

fn score(side: usize, cell: usize, settled: &[usize]) -> f64 {
    let neighbours = settled.iter().filter(|other| apart(side, cell, **other).iter().all(|steps| *steps <= 1.0));
    neighbours.map(|other| 1.0 / distance(side, cell, *other)).sum()
}

/// Adds `missing` candidates to the group, each as far as can be from the nearest member; all of them, in order, if
/// there are no more.
fn farthest(side: usize, group: &mut Vec<usize>, candidates: &[usize], missing: usize, chance: &mut Chance<'_>) {
    if missing == 0 {
        return;
    }
    if candidates.len() <= missing {
        group.extend(candidates);
        return;
    }
    for _ in 0..missing {
        if group.is_empty() {
            group.push(candidates[(chance.start)(candidates.len())]);
            continue;
        }
        let from_group = |cell: usize| group.iter().map(|other| distance(side, cell, *other)).fold(f64::MAX, f64::min);
        let mut best = (0.0, candidates[0]);
        for &cell in candidates {
            let from_group = from_group(cell);
            if from_group > best.0 {
                best = (from_group, cell);
            }
        }
        group.push(best.1);
    }
}
