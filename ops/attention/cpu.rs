//! Online softmax over tiles of keys, six queries at a time, spread over threads by head and block of queries.
//!
//! A tile's keys are packed by channel and its values by key, for all queries of a block, so that scores and sums of
//! values are the same small product: numbers of a query, each spread over a vector, times rows of the packed tile. A
//! tile is visited for the queries that see some of it, and no further than the last key that one of them sees.
//!
//! Tiles start on multiples of their length whatever the mask, each sum takes its terms one by one, and a hidden key
//! has a weight of 0: so a row's result follows from the row alone.

use super::tile::{Arithmetic, GROUP, Pairs, Single, product};
use super::{BLOCK, Compiled, Entry, Lengths, MAX_HEAD_DIM, Scoring, TILE};
use crate::backend::cpu::Cpu;
use crate::backend::simd::{self, Kernel, LANES, Line, Simd};
use crate::{Element, Float, Layout, View, ViewMut, bf16};

/// Queries that share a packed tile, at most.
const ROWS: usize = 192;
/// Multiplications below which another thread is not worth waking.
const WORTH_A_THREAD: usize = 1 << 16;

const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// [`super::attention`] over operands whose last axis is dense; `bias` is broadcast, `y` and `lse` are contiguous.
pub fn attention<T: Float>(
    cpu: &Cpu,
    q: View<'_, T>,
    k: View<'_, T>,
    v: View<'_, T>,
    scoring: Scoring,
    bias: Option<View<'_, f32>>,
    mask: &Compiled,
    mut y: ViewMut<'_, T>,
    mut lse: ViewMut<'_, f32>,
) {
    let (y, lse) = (y.as_mut_slice().expect("contiguous"), lse.as_mut_slice().expect("contiguous"));
    let lengths = Lengths { batch: q.shape()[0], q_len: q.shape()[2], k_len: k.shape()[2] };
    let row_len = q.shape()[3];
    let mut sums = Vec::new();
    let wide_y = match T::as_f32_mut(y) {
        Some(y) => y,
        None => {
            sums.resize(lse.len() * row_len, 0.0);
            &mut sums
        }
    };
    let pairs = [q, k, v].map(|x| T::as_bf16(x.data).map(|data| View { data, layout: x.layout }));
    let single = [q, k, v].map(|x| T::as_f32(x.data).map(|data| View { data, layout: x.layout }));
    match (pairs, single) {
        ([Some(q), Some(k), Some(v)], _) => {
            of_bf16(cpu, &Inputs { q, k, v, scoring, bias, mask, lengths }, wide_y, lse);
        }
        (_, [Some(q), Some(k), Some(v)]) => {
            of_f32(cpu, &Inputs { q, k, v, scoring, bias, mask, lengths }, wide_y, lse);
        }
        _ => {
            let wide = [q, k, v].map(widened);
            let [q, k, v] = wide.each_ref().map(|(data, layout)| View { data, layout });
            of_f32(cpu, &Inputs { q, k, v, scoring, bias, mask, lengths }, wide_y, lse);
        }
    }
    if !sums.is_empty() {
        cpu.rows(y, row_len, |row, y| T::narrow(&sums[row * row_len..][..row_len], y));
    }
}

/// Not generic, so that the kernels are compiled once and with this crate.
fn of_f32(cpu: &Cpu, inputs: &Inputs<'_, f32>, y: &mut [f32], lse: &mut [f32]) {
    spread::<Single>(cpu, inputs, y, lse);
}

/// As [`of_f32`].
fn of_bf16(cpu: &Cpu, inputs: &Inputs<'_, bf16>, y: &mut [f32], lse: &mut [f32]) {
    spread::<Pairs>(cpu, inputs, y, lse);
}

/// A contiguous copy in f32.
fn widened<T: Float>(x: View<'_, T>) -> (Vec<f32>, Layout) {
    let layout = Layout::contiguous(x.shape()).expect("the shape of a tensor");
    let mut wide = vec![0.0; layout.elements()];
    let &[_, heads, rows, head_dim] = x.shape() else { unreachable!("the op checked it") };
    for (index, wide) in wide.chunks_mut(head_dim).enumerate() {
        T::widen(Head::new(x, index / rows / heads, index / rows % heads).row(index % rows), wide);
    }
    (wide, layout)
}

/// Spreads the blocks of queries over the threads.
fn spread<A: Arithmetic>(cpu: &Cpu, inputs: &Inputs<'_, A::Element>, y: &mut [f32], lse: &mut [f32]) {
    let &[batch, heads, q_len, head_dim] = inputs.q.shape() else { unreachable!("the op checked it") };
    if lse.is_empty() {
        return;
    }
    let rows = q_len.div_ceil(q_len.div_ceil(ROWS)).next_multiple_of(GROUP);
    let head_tasks = |(index, (y, lse)): (usize, (_, _))| {
        let (y, lse): (&mut [f32], &mut [f32]) = (y, lse);
        let blocks = y.chunks_mut(rows * head_dim).zip(lse.chunks_mut(rows)).enumerate();
        let task =
            move |(block, (y, lse))| Rows { batch: index / heads, head: index % heads, first: block * rows, y, lse };
        blocks.map(task)
    };
    let head_outputs = y.chunks_mut(q_len * head_dim).zip(lse.chunks_mut(q_len));
    let tasks: Vec<_> = head_outputs.enumerate().flat_map(head_tasks).collect();
    let run = |Rows { batch, head, first, y, lse }: Rows<'_>| {
        let rows = Rows { batch, head, first, y: &mut *y, lse: &mut *lse };
        simd::dispatch(Attend::<A> { inputs, rows, one_by_one: false });
        // A value that is not finite spoils rows that do not see it, since 0 times it is NaN: look at these again.
        for (row, y) in y.chunks_mut(head_dim).enumerate() {
            if !y.iter().all(|y| y.is_finite()) {
                let rows = Rows { batch, head, first: first + row, y, lse: &mut lse[row..=row] };
                simd::dispatch(Attend::<A> { inputs, rows, one_by_one: true });
            }
        }
    };
    if cpu.threads() == 1 || batch * heads * q_len * inputs.lengths.k_len * head_dim < WORTH_A_THREAD {
        tasks.into_iter().for_each(run);
    } else {
        cpu.share(tasks.into_iter(), run);
    }
}

/// What all blocks read.
struct Inputs<'a, T> {
    q: View<'a, T>,
    k: View<'a, T>,
    v: View<'a, T>,
    scoring: Scoring,
    bias: Option<View<'a, f32>>,
    mask: &'a Compiled,
    lengths: Lengths,
}

/// Queries of one head, and their results.
struct Rows<'a> {
    batch: usize,
    head: usize,
    first: usize,
    y: &'a mut [f32],
    lse: &'a mut [f32],
}

/// The attention of some rows.
struct Attend<'a, A: Arithmetic> {
    inputs: &'a Inputs<'a, A::Element>,
    rows: Rows<'a>,
    /// For a single row: leave out the values of keys whose weight is 0.
    one_by_one: bool,
}

/// Six queries with their running softmax.
struct Group<S: Simd, A: Arithmetic> {
    q: [[A::Scalar; MAX_HEAD_DIM]; GROUP],
    /// Binary logarithms: of the largest weight so far, and of what it was before the last tile.
    largest: [f32; GROUP],
    sum: [S::F32s; GROUP],
}

impl<S: Simd, A: Arithmetic> Clone for Group<S, A> {
    fn clone(&self) -> Self {
        Self { q: self.q, largest: self.largest, sum: self.sum }
    }
}

impl<S: Simd, A: Arithmetic> Group<S, A> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        Self {
            q: [[A::Scalar::default(); MAX_HEAD_DIM]; GROUP],
            largest: [f32::NEG_INFINITY; GROUP],
            sum: [simd.splat(0.0); GROUP],
        }
    }
}

/// What rows see, tile by tile.
struct Visible<'a> {
    mask: &'a Compiled,
    first: usize,
    /// Of each row.
    ranges: Vec<[usize; 2]>,
    /// The entries that are left of each of the mask's blocks, if it has tiles.
    entries: Vec<&'a [Entry]>,
    /// A bit for each row and key of the tile.
    words: Vec<u64>,
    /// The tiles that any row may see.
    start: usize,
    end: usize,
}

impl<'a> Visible<'a> {
    fn new(mask: &'a Compiled, lengths: Lengths, batch: usize, first: usize, count: usize) -> Self {
        let ranges: Vec<_> = (first..first + count).map(|query| mask.range(lengths, batch, query)).collect();
        let blocks = first / BLOCK..(first + count).div_ceil(BLOCK);
        let seen = ranges.iter().filter(|[start, end]| start < end);
        Self {
            mask,
            first,
            entries: blocks.filter_map(|block| mask.block(lengths, batch, block)).collect(),
            words: vec![0; count],
            start: seen.clone().map(|range| range[0]).min().unwrap_or(0) / TILE * TILE,
            end: seen.map(|range| range[1]).max().unwrap_or(0),
            ranges,
        }
    }

    /// Goes on to a later tile, and returns how many of its keys matter.
    fn move_to(&mut self, tile: usize) -> usize {
        for entries in &mut self.entries {
            while let [entry, rest @ ..] = entries
                && (entry.tile as usize) < tile / TILE
            {
                *entries = rest;
            }
        }
        let first_block = self.first / BLOCK;
        for (index, (range, word)) in self.ranges.iter().zip(&mut self.words).enumerate() {
            let query = self.first + index;
            let within = match self.entries.get(query / BLOCK - first_block) {
                None => u64::MAX,
                Some([entry, ..]) if entry.tile as usize == tile / TILE => self.mask.word(*entry, query),
                Some(_) => 0,
            };
            let [from, to] = range.map(|key| key.clamp(tile, tile + TILE) - tile);
            *word = within & ones(to) & !ones(from);
        }
        last_key(&self.words)
    }
}

/// The lowest bits, as many as these.
fn ones(count: usize) -> u64 {
    if count < TILE { (1 << count) - 1 } else { u64::MAX }
}

/// One more than the last key that any row sees.
fn last_key(words: &[u64]) -> usize {
    TILE - words.iter().fold(0, |all, word| all | word).leading_zeros() as usize
}

/// The rows of one head.
struct Head<'a, T> {
    data: &'a [T],
    start: usize,
    stride: usize,
    head_dim: usize,
}

impl<'a, T: Element> Head<'a, T> {
    fn new(x: View<'a, T>, batch: usize, head: usize) -> Self {
        let strides = x.layout.strides();
        let start = x.layout.offset() + batch * strides[0] + head * strides[1];
        Self { data: x.data, start, stride: strides[2], head_dim: x.shape()[3] }
    }

    #[inline(always)]
    fn row(&self, index: usize) -> &'a [T] {
        &self.data[self.start + index * self.stride..][..self.head_dim]
    }
}

impl<A: Arithmetic> Kernel for Attend<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { inputs, rows, one_by_one } = self;
        let Inputs { q, k, v, mask, lengths, .. } = *inputs;
        let Rows { batch, head, first, y, lse } = rows;
        let (count, head_dim) = (lse.len(), q.shape()[3]);
        let key_head = head / (q.shape()[1] / k.shape()[1]);

        let mut groups = vec![Group::<S, A>::new(simd); count.div_ceil(GROUP)];
        let (q, k, v) = (Head::new(q, batch, head), Head::new(k, batch, key_head), Head::new(v, batch, key_head));
        for index in 0..count {
            A::scalars(q.row(first + index), &mut groups[index / GROUP].q[index % GROUP]);
        }
        let mut visible = Visible::new(mask, lengths, batch, first, count);

        // The results so far, each row padded to whole vectors.
        let vectors = head_dim.div_ceil(LANES);
        let mut mixed = vec![Line::default(); groups.len() * GROUP * vectors];
        let depth = head_dim.div_ceil(A::INPUTS);
        // A single row takes keys and values from where they are, and packs none.
        let alone = count == 1;
        let packed = |lines: usize| vec![[Line::default(); 4]; if alone { 0 } else { lines }];
        let mut keys = packed(depth.next_multiple_of(LANES));
        let mut values = packed(vectors.div_ceil(4) * TILE / A::INPUTS);
        let mut scores = [[0.0; TILE]; GROUP];
        let mut weights = [[A::Scalar::default(); TILE]; GROUP];
        for tile in (visible.start..visible.end).step_by(TILE) {
            let tile_keys = visible.move_to(tile);
            if tile_keys == 0 {
                continue;
            }
            let value = |key: usize| (key < tile_keys).then(|| v.row(tile + key));
            if alone {
                let group = &mut groups[0];
                row_scores::<S, A>(simd, &group.q[0], depth, &k, tile, tile_keys, &mut scores[0]);
                let (at, words) = ([batch, head, first, tile], &visible.words);
                let shrink = weigh(simd, inputs, at, group, words, tile_keys.div_ceil(LANES), &mut scores);
                A::weights(simd, &scores[0], &mut weights[0]);
                let weighed = |key: usize| value(key).filter(|_| !one_by_one || scores[0][key] != 0.0);
                row_mix::<S, A>(simd, &weights[0], tile_keys, weighed, shrink[0], &mut mixed[..vectors]);
                continue;
            }
            pack_keys::<S, A>(simd, &k, tile, tile_keys, &mut keys);
            pack_values::<A>(head_dim, value, &mut values);
            for (index, (group, words)) in groups.iter_mut().zip(visible.words.chunks(GROUP)).enumerate() {
                let used = last_key(words);
                if used == 0 {
                    continue;
                }
                let group_rows = words.len();
                let keys = &keys[..depth];
                if group_rows == 1 {
                    scores_of::<S, A, 1>(simd, &group.q, keys, used.div_ceil(LANES), &mut scores);
                } else {
                    scores_of::<S, A, GROUP>(simd, &group.q, keys, used.div_ceil(LANES), &mut scores);
                }
                let at = [batch, head, first + index * GROUP, tile];
                let shrink = weigh(simd, inputs, at, group, words, used.div_ceil(LANES), &mut scores);
                for (scores, weights) in scores.iter().zip(&mut weights).take(group_rows) {
                    A::weights(simd, scores, weights);
                }
                let mixed = &mut mixed[index * GROUP * vectors..][..GROUP * vectors];
                for (chunk, values) in values.chunks(TILE / A::INPUTS).enumerate() {
                    let values = &values[..used.div_ceil(A::INPUTS)];
                    let chunk = [4 * chunk, vectors.min(4 * chunk + 4)];
                    if group_rows == 1 {
                        mix::<S, A, 1>(simd, &weights, values, shrink, mixed, vectors, chunk);
                    } else {
                        mix::<S, A, GROUP>(simd, &weights, values, shrink, mixed, vectors, chunk);
                    }
                }
            }
        }

        let outputs = y.chunks_exact_mut(head_dim).zip(lse);
        for (index, ((y, lse), mixed)) in outputs.zip(mixed.chunks(vectors)).enumerate() {
            let group = &groups[index / GROUP];
            let mut lanes = [0.0; LANES];
            simd.store(group.sum[index % GROUP], &mut lanes);
            let sum = fold(lanes);
            let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            y.iter_mut().zip(mixed.iter().flat_map(Line::f32s)).for_each(|(y, mixed)| *y = mixed * scale);
            // ln(0) is what a row that sees nothing has.
            let largest = group.largest[index % GROUP];
            *lse = base(largest) * std::f32::consts::LN_2 + sum.ln();
        }
    }
}

/// Packs a tile's keys, whole vectors of them: channel after channel, the keys side by side.
#[inline(always)]
fn pack_keys<S: Simd, A: Arithmetic>(
    simd: S,
    k: &Head<'_, A::Element>,
    tile: usize,
    count: usize,
    keys: &mut [[Line; 4]],
) {
    for vector in 0..count.div_ceil(LANES) {
        for (part, keys) in keys.chunks_mut(LANES).enumerate() {
            let block = side_by_side::<S, A>(simd, k, [tile, count], vector, part);
            for (keys, block) in keys.iter_mut().zip(&block) {
                keys[vector] = *block;
            }
        }
    }
}

/// A vector of a tile's keys: some channels one after the other, the keys side by side. What fills up the last vector is
/// the last key.
#[inline(always)]
fn side_by_side<S: Simd, A: Arithmetic>(
    simd: S,
    k: &Head<'_, A::Element>,
    [tile, count]: [usize; 2],
    vector: usize,
    part: usize,
) -> [Line; LANES] {
    let start = part * LANES * A::INPUTS;
    let mut block = [Line::default(); LANES];
    for (key, block) in block.iter_mut().enumerate() {
        let row = &k.row(tile + (vector * LANES + key).min(count - 1))[start..];
        let row = &row[..row.len().min(LANES * A::INPUTS)];
        A::scalars(row, bytemuck::cast_slice_mut(std::slice::from_mut(block)));
    }
    simd.transpose(&mut block);
    block
}

/// The scores of one row, whose sums take their terms in the order in which [`product`] does.
#[inline(always)]
fn row_scores<S: Simd, A: Arithmetic>(
    simd: S,
    q: &[A::Scalar; MAX_HEAD_DIM],
    depth: usize,
    k: &Head<'_, A::Element>,
    tile: usize,
    count: usize,
    scores: &mut [f32; TILE],
) {
    let mut sums = [simd.splat(0.0); TILE / LANES];
    // A part of the channels at a time, so that the sums of four vectors do not wait for each other.
    for (part, q) in q[..depth].chunks(LANES).enumerate() {
        for (vector, sum) in sums.iter_mut().enumerate().take(count.div_ceil(LANES)) {
            let block = side_by_side::<S, A>(simd, k, [tile, count], vector, part);
            for (q, block) in q.iter().zip(&block) {
                *sum = A::add(simd, A::spread(simd, *q), A::load(simd, block), *sum);
            }
        }
    }
    for (sum, scores) in sums.iter().zip(scores.as_chunks_mut().0) {
        simd.store(*sum, scores);
    }
}

/// Adds the weighted values of a tile to the results of one row, which shrink first; as [`mix`].
#[inline(always)]
fn row_mix<'a, S: Simd, A: Arithmetic>(
    simd: S,
    weights: &[A::Scalar; TILE],
    keys: usize,
    value: impl Fn(usize) -> Option<&'a [A::Element]>,
    shrink: f32,
    mixed: &mut [Line],
) where
    A::Element: 'a,
{
    for (chunk, mixed) in mixed.chunks_mut(4).enumerate() {
        let mut sums = [simd.splat(0.0); 4];
        for (step, weight) in weights.iter().enumerate().take(keys.div_ceil(A::INPUTS)) {
            let weight = A::spread(simd, *weight);
            for (vector, sum) in sums.iter_mut().enumerate().take(mixed.len()) {
                let mut values = Line::default();
                A::values(|input| value(step * A::INPUTS + input), (4 * chunk + vector) * LANES, &mut values);
                *sum = A::add(simd, weight, A::load(simd, &values), *sum);
            }
        }
        for (sum, mixed) in sums.iter().zip(mixed) {
            simd.store(simd.mul_add(simd.load(mixed.f32s()), simd.splat(shrink), *sum), mixed.f32s_mut());
        }
    }
}

/// Packs a tile's values: chunk after chunk of four vectors of channels, in each the keys one after the other. Keys
/// without a value get zeros.
#[inline(always)]
fn pack_values<'a, A: Arithmetic>(
    head_dim: usize,
    value: impl Fn(usize) -> Option<&'a [A::Element]>,
    values: &mut [[Line; 4]],
) {
    for key in 0..TILE / A::INPUTS {
        for vector in 0..head_dim.div_ceil(LANES) {
            let to = &mut values[vector / 4 * (TILE / A::INPUTS) + key][vector % 4];
            A::values(|input| value(key * A::INPUTS + input), vector * LANES, to);
        }
    }
}

/// Products of queries and packed keys.
#[inline(always)]
fn scores_of<S: Simd, A: Arithmetic, const ROWS: usize>(
    simd: S,
    q: &[[A::Scalar; MAX_HEAD_DIM]; GROUP],
    keys: &[[Line; 4]],
    vectors: usize,
    scores: &mut [[f32; TILE]; GROUP],
) {
    match vectors {
        ..=2 => scores_in::<S, A, ROWS, 2>(simd, q, keys, scores),
        _ => scores_in::<S, A, ROWS, 4>(simd, q, keys, scores),
    }
}

#[inline(always)]
fn scores_in<S: Simd, A: Arithmetic, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    q: &[[A::Scalar; MAX_HEAD_DIM]; GROUP],
    keys: &[[Line; 4]],
    scores: &mut [[f32; TILE]; GROUP],
) {
    let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
    product::<S, A, MAX_HEAD_DIM, ROWS, VECTORS>(simd, q, keys, &mut sums);
    for (sums, scores) in sums.iter().zip(scores) {
        for (sum, scores) in sums.iter().zip(scores.as_chunks_mut().0) {
            simd.store(*sum, scores);
        }
    }
}

/// Turns scores into weights relative to the largest score so far, updates the running softmax, and returns what the
/// results so far shrink by. `at` is batch entry, head, first query and first key; a bit of a row's word is 1 if it sees
/// that key.
#[inline(always)]
fn weigh<S: Simd, A: Arithmetic>(
    simd: S,
    inputs: &Inputs<'_, A::Element>,
    [batch, head, first, tile]: [usize; 4],
    group: &mut Group<S, A>,
    words: &[u64],
    vectors: usize,
    scores: &mut [[f32; TILE]; GROUP],
) -> [f32; GROUP] {
    let Scoring { scale, softcap, .. } = inputs.scoring;
    let factor = simd.splat(if softcap.is_some() { scale } else { scale * LOG2_E });
    let mut change = [0.0; LANES];
    for (index, (scores, word)) in scores.iter_mut().zip(words).enumerate() {
        let keys = last_key(&[*word]);
        let (seen, hidden) = scores.as_chunks_mut::<LANES>().0.split_at_mut(vectors);
        for scores in &mut *seen {
            simd.store(simd.mul(simd.load(scores), factor), scores);
        }
        hidden.fill([0.0; LANES]);
        let seen = seen.as_flattened_mut();
        if let Some(cap) = softcap {
            for scores in seen.as_chunks_mut().0 {
                cap_scores(simd, cap, scores);
            }
        }
        if let Some(bias) = inputs.bias {
            let start = bias.layout.index(&[batch, head, first + index, tile]);
            let stride = bias.layout.strides()[3];
            for (key, score) in seen.iter_mut().enumerate().take(keys) {
                *score += bias.data[start + key * stride] * LOG2_E;
            }
        }
        if let Some(given) = &inputs.mask.given {
            let given = given.host();
            let start = given.layout.index(&[batch, first + index, tile]);
            let stride = given.layout.strides()[2];
            for (key, score) in seen.iter_mut().enumerate().take(keys) {
                if given.data[start + key * stride] == 0 {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        if !word << (TILE - vectors * LANES) != 0 {
            for (key, score) in seen.iter_mut().enumerate() {
                *score = if word >> key & 1 == 1 { *score } else { f32::NEG_INFINITY };
            }
        }
        let mut largest = simd.splat(group.largest[index]);
        for scores in seen.as_chunks().0 {
            largest = simd.max(largest, simd.load(scores));
        }
        let largest = simd.largest(largest);
        change[index] = group.largest[index] - base(largest);
        group.largest[index] = largest;
    }
    let mut shrink = [0.0; LANES];
    simd.store(simd.exp2(simd.load(&change)), &mut shrink);
    for (index, scores) in scores.iter_mut().enumerate().take(words.len()) {
        let base = simd.splat(-base(group.largest[index]));
        let mut sum = simd.mul(group.sum[index], simd.splat(shrink[index]));
        for scores in &mut scores.as_chunks_mut().0[..vectors] {
            let weight = simd.exp2(simd.add(simd.load(scores), base));
            sum = simd.add(sum, weight);
            simd.store(weight, scores);
        }
        group.sum[index] = sum;
    }
    std::array::from_fn(|row| shrink[row])
}

/// What weights are relative to: of nothing but `-inf`, each must be 0 rather than NaN.
fn base(largest: f32) -> f32 {
    if largest == f32::NEG_INFINITY { 0.0 } else { largest }
}

/// Scores as `cap tanh(score / cap)`, times the binary logarithm of e.
#[inline(always)]
fn cap_scores<S: Simd>(simd: S, cap: f32, scores: &mut [f32; LANES]) {
    // tanh(x) = 1 - 2 / (exp(2 x) + 1), which is 1 long before the power is as large as can be.
    let factor = 2.0 * LOG2_E / cap;
    let powers = scores.map(|score| if score * factor > 100.0 { 100.0 } else { score * factor });
    simd.store(simd.exp2(simd.load(&powers)), scores);
    *scores = scores.map(|power| cap * LOG2_E * (1.0 - 2.0 / (power + 1.0)));
}

/// Adds weighted values to the vectors `chunk` of the results so far, which shrink first.
#[inline(always)]
fn mix<S: Simd, A: Arithmetic, const ROWS: usize>(
    simd: S,
    weights: &[[A::Scalar; TILE]; GROUP],
    values: &[[Line; 4]],
    shrink: [f32; GROUP],
    mixed: &mut [Line],
    row_vectors: usize,
    chunk: [usize; 2],
) {
    let rows = mixed.chunks_mut(row_vectors).map(|mixed| &mut mixed[chunk[0]..chunk[1]]);
    match chunk[1] - chunk[0] {
        ..=2 => mix_in::<S, A, ROWS, 2>(simd, weights, values, shrink, rows),
        _ => mix_in::<S, A, ROWS, 4>(simd, weights, values, shrink, rows),
    }
}

#[inline(always)]
fn mix_in<'a, S: Simd, A: Arithmetic, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    weights: &[[A::Scalar; TILE]; GROUP],
    values: &[[Line; 4]],
    shrink: [f32; GROUP],
    rows: impl Iterator<Item = &'a mut [Line]>,
) {
    let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
    product::<S, A, TILE, ROWS, VECTORS>(simd, weights, values, &mut sums);
    // Of a last vector that is not there, the sums are dropped.
    for ((sums, mixed), shrink) in sums.iter().zip(rows).zip(shrink) {
        let shrink = simd.splat(shrink);
        for (sum, mixed) in sums.iter().zip(mixed) {
            simd.store(simd.mul_add(simd.load(mixed.f32s()), shrink, *sum), mixed.f32s_mut());
        }
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a.remainder().iter().zip(b.remainder());
    for (a, b) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter_mut().zip(rest).for_each(|(sum, (a, b))| *sum += a * b);
    fold(sums)
}

#[inline(always)]
fn fold(mut sums: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

/// [`super::merge`] over contiguous operands.
pub fn merge<T: Float>(parts: View<'_, T>, lse: View<'_, f32>, mut y: ViewMut<'_, T>, mut merged: ViewMut<'_, f32>) {
    let head_dim = y.layout.shape()[3].max(1);
    let (parts, lse) = (parts.as_slice().expect("contiguous"), lse.as_slice().expect("contiguous"));
    let (y, merged) = (y.as_mut_slice().expect("contiguous"), merged.as_mut_slice().expect("contiguous"));
    let rows = merged.len();
    let (mut wide, mut mixed) = (vec![0.0; head_dim], vec![0.0; head_dim]);
    for (row, merged) in merged.iter_mut().enumerate() {
        let seen = || (row..lse.len()).step_by(rows).filter(|at| lse[*at] != f32::NEG_INFINITY);
        let largest = seen().map(|at| lse[at]).fold(f32::NEG_INFINITY, f32::max);
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        mixed.fill(0.0);
        let mut sum = 0.0;
        for at in seen() {
            let weight = (lse[at] - base).exp();
            sum += weight;
            if y.is_empty() {
                continue;
            }
            T::widen(&parts[at * head_dim..][..head_dim], &mut wide);
            mixed.iter_mut().zip(&wide).for_each(|(mixed, part)| *mixed += weight * part);
        }
        if !y.is_empty() {
            let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            mixed.iter_mut().for_each(|mixed| *mixed *= scale);
            T::narrow(&mixed, &mut y[row * head_dim..][..head_dim]);
        }
        *merged = base + sum.ln();
    }
}

/// [`super::l2_normalise`] over contiguous operands.
pub fn l2_normalise<T: Float>(cpu: &Cpu, x: View<'_, T>, mut y: ViewMut<'_, T>) {
    let channels = x.shape()[x.shape().len() - 1];
    let x = x.as_slice().expect("contiguous");
    cpu.rows_in_f32(
        x,
        channels,
        y.as_mut_slice().expect("contiguous"),
        #[inline(always)]
        |_, x, y| {
            let norm = dot(x, x).sqrt();
            let norm = if norm < 1e-12 { 1e-12 } else { norm };
            y.iter_mut().zip(x).for_each(|(y, x)| *y = x / norm);
        },
    );
}
