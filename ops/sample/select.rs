//! What top-k and top-p keep, found without a sort: tokens are counted in bins by the leading bits of their logits' order,
//! and only the bin in which the limit falls is looked at further.

use super::integer::share;

/// Bits by which tokens are told apart at each level, from the leading ones on.
const LEVELS: [Level; 3] =
    [Level { shift: 21, bins: 1 << 11 }, Level { shift: 10, bins: 1 << 11 }, Level { shift: 0, bins: 1 << 10 }];

#[derive(Clone, Copy)]
struct Level {
    shift: u32,
    bins: usize,
}

impl Level {
    fn bin(self, order: u32) -> usize {
        (order >> self.shift) as usize % self.bins
    }
}

/// Where the kept tokens end, which are ranked by descending order, among equals by index.
#[derive(Debug)]
pub struct Boundary<'a> {
    /// All above this order are kept.
    pub above: u32,
    /// Of those that have it, the ones that are kept.
    pub equals: &'a [u32],
}

/// A token is kept if those before it are below the limit.
#[derive(Clone, Copy)]
enum Limit {
    Count(u64),
    Mass(u64),
}

#[derive(Debug, Clone, Copy, Default)]
struct Bin {
    count: u64,
    mass: u64,
}

impl Bin {
    fn add(&mut self, weight: u32) {
        self.count += 1;
        self.mass += u64::from(weight);
    }

    fn with(self, other: Self) -> Self {
        Self { count: self.count + other.count, mass: self.mass + other.mass }
    }

    fn reaches(self, limit: Limit) -> bool {
        match limit {
            Limit::Count(count) => self.count >= count,
            Limit::Mass(mass) => self.mass >= mass,
        }
    }
}

/// Bins that are used again for the next row.
#[derive(Debug, Clone, Default)]
pub struct Select {
    leading: Vec<Bin>,
    bins: Vec<Bin>,
    tokens: Vec<u32>,
}

impl Select {
    /// Where the kept tokens end: the `count` first, and of these the first whose mass is not below the share `top_p`
    /// over 2^32; 0 is off. None if all are kept.
    ///
    /// Equal orders have equal weights, and the weights are not all 0.
    pub fn boundary(&mut self, orders: &[u32], weights: &[u32], count: usize, top_p: u32) -> Option<Boundary<'_>> {
        self.leading.clear();
        self.leading.resize(LEVELS[0].bins, Bin::default());
        for (order, weight) in orders.iter().zip(weights) {
            self.leading[LEVELS[0].bin(*order)].add(*weight);
        }
        let (mut boundary, mut total) = (None, self.leading.iter().map(|bin| bin.mass).sum());
        if count < orders.len() {
            let last = self.descend(orders, weights, Limit::Count(count as u64));
            total = last.mass;
            boundary = Some(last);
        }
        if top_p > 0 {
            boundary = Some(self.descend(orders, weights, Limit::Mass(share(total, top_p))));
        }
        boundary.map(|last| Boundary { above: last.order, equals: &self.tokens[..last.equals] })
    }

    /// The last kept token's rank. All tokens together reach the limit. Leaves the tokens of that order.
    fn descend(&mut self, orders: &[u32], weights: &[u32], limit: Limit) -> Last {
        let mut before = Bin::default();
        let mut order = 0;
        for (index, level) in LEVELS.into_iter().enumerate() {
            if index > 0 {
                self.bins.clear();
                self.bins.resize(level.bins, Bin::default());
                for token in &self.tokens {
                    self.bins[level.bin(orders[*token as usize])].add(weights[*token as usize]);
                }
            }
            let bins = if index == 0 { &self.leading } else { &self.bins };
            let mut bin = level.bins - 1;
            while bin > 0 && !before.with(bins[bin]).reaches(limit) {
                before = before.with(bins[bin]);
                bin -= 1;
            }
            order |= (bin as u32) << level.shift;
            if index == 0 {
                self.tokens.clear();
                let all = (0..).zip(orders);
                self.tokens.extend(all.filter(|(_, order)| level.bin(**order) == bin).map(|(token, _)| token));
            } else {
                self.tokens.retain(|token| level.bin(orders[*token as usize]) == bin);
            }
        }
        // All that are left are equals.
        let weight = self.tokens.first().map_or(0, |token| u64::from(weights[*token as usize]));
        let equals = match limit {
            Limit::Count(count) => count - before.count,
            Limit::Mass(mass) => (mass - before.mass).div_ceil(weight.max(1)),
        };
        Last { order, equals: equals as usize, mass: before.mass + equals * weight }
    }
}

/// Of the kept tokens: the lowest order, how many have it, and the mass of all.
struct Last {
    order: u32,
    equals: usize,
    mass: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: a sort.
    fn sorted(orders: &[u32], weights: &[u32], count: usize, top_p: u32) -> Vec<bool> {
        let mut ranked: Vec<usize> = (0..orders.len()).collect();
        ranked.sort_by_key(|token| (std::cmp::Reverse(orders[*token]), *token));
        ranked.truncate(count);
        let total = ranked.iter().map(|token| u64::from(weights[*token])).sum();
        let (limit, mut before) = (if top_p > 0 { share(total, top_p) } else { u64::MAX }, 0);
        let mut kept = vec![false; orders.len()];
        for token in ranked {
            kept[token] = before < limit;
            before += u64::from(weights[token]);
        }
        kept
    }

    #[test]
    fn boundary_keeps_what_a_sort_keeps() {
        let mut select = Select::default();
        for (seed, distinct) in [(1, 8), (2, 50), (3, 1 << 20), (4, u32::MAX)] {
            let mut state = seed;
            let orders: Vec<u32> = (0..500)
                .map(|_| {
                    state = u32::wrapping_add(u32::wrapping_mul(state, 1_664_525), 1_013_904_223);
                    (state >> 3) % distinct
                })
                .collect();
            // Most weigh nothing, as in a sharp distribution.
            let weights: Vec<u32> = orders.iter().map(|order| order.saturating_sub(distinct / 3) >> 2).collect();
            for count in [1, 2, 7, 250, 499, 500] {
                for top_p in [0, 1, 1 << 20, 1 << 31, u32::MAX] {
                    let expected = sorted(&orders, &weights, count, top_p);
                    let mut kept = vec![true; orders.len()];
                    if let Some(Boundary { above, equals }) = select.boundary(&orders, &weights, count, top_p) {
                        kept = orders.iter().map(|order| *order > above).collect();
                        equals.iter().for_each(|token| kept[*token as usize] = true);
                    }
                    assert_eq!(kept, expected, "{distinct} orders, top-k {count}, top-p {top_p}");
                }
            }
        }
    }
}
