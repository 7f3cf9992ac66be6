//! Cascaded decoding: longer and longer n-grams, pruned by max-marginals.
//!
//! Source: Deng and Rush 2020, arXiv:2006.01112, sections 3 and 4; harvardnlp/cascaded-generation.

/// Scores of the edges of a chain: from state `x` of node `i` to state `y` of node `i + 1`.
#[derive(Debug, Clone)]
pub struct Chain {
    /// States of each node.
    pub states: usize,
    /// `[edges, states, states]`.
    pub scores: Vec<f64>,
}

/// The best scores of a chain.
#[derive(Debug, Clone)]
pub struct MaxMarginals {
    /// `[edges, states]`: of a path from node 0 to state `x` of node `i`.
    pub prefix: Vec<f64>,
    /// `[edges, states]`: of a path from state `y` of node `i + 1` to the end.
    pub suffix: Vec<f64>,
    /// `[edges, states, states]`: of a path through an edge.
    pub marginals: Vec<f64>,
}

impl Chain {
    /// How many edges lie one after the other.
    #[must_use]
    pub fn edges(&self) -> usize {
        self.scores.len() / (self.states * self.states).max(1)
    }

    fn score(&self, edge: usize, from: usize, to: usize) -> f64 {
        self.scores[(edge * self.states + from) * self.states + to]
    }

    /// The best scores through each state and each edge, by dynamic programming in both directions.
    #[must_use]
    pub fn max_marginals(&self) -> MaxMarginals {
        let (edges, states) = (self.edges(), self.states);
        let best = |scores: &mut dyn Iterator<Item = f64>| scores.fold(f64::NEG_INFINITY, f64::max);
        let mut prefix = vec![0.0; edges * states];
        for edge in 1..edges {
            for to in 0..states {
                let before = &prefix[(edge - 1) * states..][..states];
                prefix[edge * states + to] = best(&mut (0..states).map(|x| before[x] + self.score(edge - 1, x, to)));
            }
        }
        let mut suffix = vec![0.0; edges * states];
        for edge in (0..edges.saturating_sub(1)).rev() {
            for from in 0..states {
                let after = &suffix[(edge + 1) * states..][..states];
                suffix[edge * states + from] = best(&mut (0..states).map(|y| self.score(edge + 1, from, y) + after[y]));
            }
        }
        let marginal = |at: usize| {
            let (edge, from, to) = (at / (states * states), at / states % states, at % states);
            prefix[edge * states + from] + self.scores[at] + suffix[edge * states + to]
        };
        let marginals = (0..self.scores.len()).map(marginal).collect();
        MaxMarginals { prefix, suffix, marginals }
    }

    /// The best path, a state per node, and its score; among equals that of the lowest states.
    #[must_use]
    pub fn best_path(&self) -> (Vec<usize>, f64) {
        let MaxMarginals { suffix, .. } = self.max_marginals();
        let lowest = |scores: Vec<f64>| {
            (0..scores.len()).fold(0, |best, state| if scores[state] > scores[best] { state } else { best })
        };
        let through = |edge: usize, from: usize| {
            (0..self.states).map(|to| self.score(edge, from, to) + suffix[edge * self.states + to]).collect::<Vec<_>>()
        };
        let from_start =
            (0..self.states).map(|from| through(0, from).into_iter().fold(f64::NEG_INFINITY, f64::max)).collect();
        let mut path = vec![lowest(from_start)];
        let mut score = 0.0;
        for edge in 0..self.edges() {
            let from = path[edge];
            let to = lowest(through(edge, from));
            score += self.score(edge, from, to);
            path.push(to);
        }
        (path, score)
    }
}

/// One order of a cascade.
#[derive(Debug, Clone)]
pub struct Order {
    /// Between the n-grams of the order before, forbidden edges at [`FORBIDDEN`].
    pub chain: Chain,
    /// Of that chain.
    pub marginals: MaxMarginals,
    /// Per position, the n-grams that survive, best first.
    pub survivors: Vec<Vec<Vec<usize>>>,
}

/// What a cascade found.
#[derive(Debug, Clone)]
pub struct Cascade {
    /// Per position, the best single tokens.
    pub tokens: Vec<Vec<Vec<usize>>>,
    /// The orders from 1 on.
    pub orders: Vec<Order>,
    /// The best path of the last order.
    pub sequence: Vec<usize>,
    /// Its log-probability.
    pub score: f64,
}

/// The score of an edge between n-grams that do not overlap.
pub const FORBIDDEN: f64 = -1e30;

/// Decodes `length` tokens of a `vocabulary`, keeping `kept` n-grams per position and order. `log_p(position, context,
/// token)` is the log-probability of `token` at `position` after the tokens of `context`, of which there are fewer
/// than `orders`.
#[must_use]
pub fn cascade(
    length: usize,
    vocabulary: usize,
    kept: usize,
    orders: usize,
    log_p: impl Fn(usize, &[usize], usize) -> f64,
) -> Cascade {
    // A stable sort keeps the lower of equals first.
    let best_of = |mut scored: Vec<(f64, Vec<usize>)>| {
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        scored.into_iter().take(kept).map(|(_, gram)| gram).collect::<Vec<_>>()
    };
    let singles = |position: usize| best_of((0..vocabulary).map(|y| (log_p(position, &[], y), vec![y])).collect());
    let tokens: Vec<_> = (0..length).map(singles).collect();
    let mut grams = tokens.clone();
    let mut found: Vec<Order> = Vec::new();
    for order in 1..orders {
        let states = grams[0].len();
        let mut scores = Vec::new();
        for position in 0..length - order {
            for from in &grams[position] {
                for to in &grams[position + 1] {
                    let overlap = from[1..] == to[..order - 1];
                    let last = to[order - 1];
                    let mut score = if overlap { log_p(position + order, from, last) } else { FORBIDDEN };
                    if position == 0 {
                        score += (0..order).map(|at| log_p(at, &from[..at], from[at])).sum::<f64>();
                    }
                    scores.push(score);
                }
            }
        }
        let chain = Chain { states, scores };
        let marginals = chain.max_marginals();
        let survivors = |position: usize| {
            let at = |edge: usize| (position * states + edge / states) * states + edge % states;
            let joined = |edge: usize| {
                let (from, to) = (&grams[position][edge / states], &grams[position + 1][edge % states]);
                [&from[..], &to[order - 1..]].concat()
            };
            best_of((0..states * states).map(|edge| (marginals.marginals[at(edge)], joined(edge))).collect())
        };
        let survivors: Vec<_> = (0..length - order).map(survivors).collect();
        let next = survivors.clone();
        found.push(Order { chain, marginals, survivors });
        if order + 1 < orders {
            grams = next;
        }
    }
    let (sequence, score) = match found.last() {
        None => {
            let best: Vec<_> = tokens.iter().map(|tokens| tokens[0][0]).collect();
            let score = best.iter().enumerate().map(|(position, token)| log_p(position, &[], *token)).sum();
            (best, score)
        }
        Some(last) => {
            let (path, score) = last.chain.best_path();
            let mut sequence = grams[0][path[0]].clone();
            sequence.extend(
                path.iter()
                    .enumerate()
                    .skip(1)
                    .map(|(position, state)| *grams[position][*state].last().expect("an n-gram has a token")),
            );
            (sequence, score)
        }
    };
    Cascade { tokens, orders: found, sequence, score }
}
