//! Attention.

use proptest::prelude::*;
use smalti::attention::{self, Align, Along, KvCache, Mask, Options, PageTable, PagedKvCache, ScalesKind};
use smalti::rope::{self, Pairing, Table};
use smalti::{Device, Float, Tensor, bf16, f16};

use super::{Place, config, placed, placed_as, places};
use crate::common::{assert_close, devices, moved, tensor, uniform, widened};

fn masks(batch: usize, q_len: usize, k_len: usize) -> impl Strategy<Value = Mask> {
    let align = prop_oneof![Just(Align::TopLeft), Just(Align::BottomRight)];
    let ranks = move |len: usize| prop::collection::vec(0u32..6, len);
    let leaf = prop_oneof![
        Just(Mask::Full),
        align.clone().prop_map(|align| Mask::Causal { align }),
        (0usize..40, 0usize..40, align.clone()).prop_map(|(left, right, align)| Mask::Window { left, right, align }),
        (0usize..80, align.clone()).prop_map(|(prefix, align)| Mask::Prefix { prefix, align }),
        (1usize..40, align).prop_map(|(frame, align)| Mask::Frames { frame, align }),
        (ranks(q_len), ranks(k_len), any::<bool>()).prop_map(|(queries, keys, strict)| Mask::Ranks {
            queries,
            keys,
            strict
        }),
        (1usize..9, 0usize..9)
            .prop_map(move |(modulus, rest)| Mask::from_fn(q_len, k_len, |i, j| (3 * i + j) % modulus == rest)),
        (0..=q_len, 0..=k_len).prop_map(move |(q, k)| Mask::Packed {
            q_lengths: vec![q, q_len - q],
            k_lengths: vec![k, k_len - k],
            causal: q % 2 == 0
        }),
        prop::collection::vec(0..=k_len, batch).prop_map(Mask::KeyLengths),
        (any::<bool>(), 1usize..7).prop_map(move |(own, modulus)| {
            let entries = if own { batch } else { 1 };
            let bytes = (0..entries * q_len * k_len).map(|at| u8::from(at / 3 % modulus != 1)).collect();
            Mask::Given(Tensor::from_vec(&Device::reference(), &[entries, q_len, k_len], bytes).unwrap())
        }),
        prop::sample::select(KINDS.to_vec()).prop_map(move |kind| match q_len <= k_len {
            true => Mask::Scales { patch_nums: vec![1, 2, 3, 5, 10], kind },
            // Queries are among the tokens of the keys.
            false => Mask::Full,
        }),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Mask::And),
            prop::collection::vec(inner, 0..3).prop_map(Mask::Or),
        ]
    })
}

/// The largest error of attention in `T` as plain calls make it: scores, then weights, then the result, each rounded.
/// It is taken over the columns of `v` and 64 more of the same kind, so that luck in a few numbers does not set a bound.
fn naive_error<T: Float>(q: &Tensor<f64>, k: &Tensor<f64>, v: &Tensor<f64>, options: &Options) -> f64 {
    let [batch, heads, q_len, dim] = q.shape().try_into().unwrap();
    let [_, kv_heads, k_len, _] = k.shape().try_into().unwrap();
    // Zeros leave the scores as they are; values of one key each bring out its weight.
    let wide = dim.max(k_len);
    let widened = |x: &Tensor<f64>, rows: usize| {
        let x = x.to_vec().unwrap();
        let mut all = vec![0.0; rows * wide];
        all.chunks_mut(wide.max(1)).zip(x.chunks(dim)).for_each(|(row, x)| row[..dim].copy_from_slice(x));
        all
    };
    let reference = Device::reference();
    let of = |shape: [usize; 4], values| Tensor::from_vec(&reference, &shape, values).unwrap();
    let wide_q = of([batch, heads, q_len, wide], widened(q, batch * heads * q_len));
    let wide_k = of([batch, kv_heads, k_len, wide], widened(k, batch * kv_heads * k_len));
    let one_each = (0..batch * kv_heads * k_len * wide).map(|at| f64::from(u8::from(at / wide % k_len == at % wide)));
    let one_each = of([batch, kv_heads, k_len, wide], one_each.collect());
    let got = attention::attention(&wide_q, &wide_k, &one_each, options).unwrap();
    let (weights, lse) = (got.y.to_vec().unwrap(), got.lse.unwrap().to_vec().unwrap());

    let round = |x: f64| T::from_f64(x).to_f64();
    let own = v.to_vec().unwrap();
    let more = uniform(7, k_len * 64);
    let mut largest = 0.0f64;
    for (row, (weights, lse)) in weights.chunks(wide.max(1)).zip(lse).enumerate() {
        let g = row / (heads * q_len) * kv_heads + row / q_len % heads / (heads / kv_heads);
        let rounded: Vec<f64> = weights[..k_len].iter().map(|w| round(w.ln() + f64::from(lse)).exp()).collect();
        let sum: f64 = rounded.iter().sum();
        let rounded: Vec<f64> = rounded.iter().map(|w| if sum == 0.0 { 0.0 } else { round(w / sum) }).collect();
        for column in 0..dim + 64 {
            let value = |j: usize| match column.checked_sub(dim) {
                None => own[(g * k_len + j) * dim + column],
                Some(column) => 2.0 * more[j * 64 + column],
            };
            let [exact, naive] = [&weights[..k_len], &rounded]
                .map(|weights| weights.iter().enumerate().map(|(j, weight)| weight * value(j)).sum::<f64>());
            largest = largest.max((round(naive) - exact).abs());
        }
    }
    largest
}

const KINDS: [ScalesKind; 4] =
    [ScalesKind::BlockCausal, ScalesKind::MarkovSelf, ScalesKind::MarkovPrevious, ScalesKind::MarkovPreviousAndSelf];

/// What is added to the scores, by the axes along which it repeats, and their cap.
type Scores = (Option<[bool; 4]>, Option<f32>);

fn attention_agrees<T: Float>(shape: [usize; 6], place: Place, mask: &Mask, (bias, softcap): Scores) {
    let [batch, kv_heads, group, q_len, k_len, dim] = shape;
    for device in devices() {
        let q = placed::<T>(device, &[batch, kv_heads * group, q_len, dim], place, 1);
        let k = placed::<T>(device, &[batch, kv_heads, k_len, dim], place, 2);
        let v = placed::<T>(device, &[batch, kv_heads, k_len, dim], place, 3);
        let full = [batch, kv_heads * group, q_len, k_len];
        let bias = bias.map(|ones| {
            let shape: Vec<_> = full.iter().zip(ones).map(|(len, one)| if one { 1 } else { *len }).collect();
            placed::<f32>(device, &shape, place, 13)
        });
        let options = |device: &Device| {
            let mut options = Options::new(0.5).mask(crate::attention::on(mask, device)).lse();
            options.bias = bias.as_ref().map(|bias| moved(bias, device));
            options.softcap = softcap;
            options
        };
        let mut here = options(device);
        here.bias = bias.clone();
        let got = attention::attention(&q, &k, &v, &here).unwrap();
        let [q, k, v] = [&q, &k, &v].map(widened);
        let options = options(&Device::reference());
        let expected = attention::attention(&q, &k, &v, &options).unwrap();
        let naive = if T::EPSILON < 1e-6 { 0.0 } else { naive_error::<T>(&q, &k, &v, &options) };
        let what = format!("attention {} {device} {shape:?} {place:?} {mask:?} {softcap:?}", T::DTYPE);
        assert_close(&what, &got.y, &expected.y, naive);
        assert_close(&format!("{what} lse"), &got.lse.unwrap(), &widened(&expected.lse.unwrap()), 0.0);
    }
}

fn axial_agrees<T: Float>(shape: [usize; 6], axes: [usize; 2], along: Along, place: Place) {
    let axes = axes[0].min(axes[1])..axes[0].max(axes[1]) + 1;
    for device in devices() {
        let [q, k, v] = [1, 2, 3].map(|seed| placed::<T>(device, &shape, place, seed));
        let got = attention::axial(&q, &k, &v, axes.clone(), along, 0.5).unwrap();
        let [q, k, v] = [&q, &k, &v].map(widened);
        let expected = attention::axial(&q, &k, &v, axes.clone(), along, 0.5).unwrap();
        // Each line is attention of its own, of no more rounding than lines that see all.
        let lines = |x: &Tensor<f64>| {
            let order: Vec<usize> =
                (0..4).filter(|at| !axes.contains(at)).chain([4]).chain(axes.clone()).chain([5]).collect();
            let x = x.permute(&order).unwrap().contiguous().unwrap();
            let seq = shape[axes.clone()].iter().product::<usize>();
            let rows = shape.iter().product::<usize>() / (seq * shape[5]);
            x.reshape(&[rows, 1, seq, shape[5]]).unwrap()
        };
        let naive = match T::EPSILON < 1e-6 {
            true => 0.0,
            false => naive_error::<T>(&lines(&q), &lines(&k), &lines(&v), &Options::new(0.5).lse()),
        };
        assert_close(
            &format!("axial {} {device} {shape:?} {axes:?} {along:?} {place:?}", T::DTYPE),
            &got,
            &expected,
            naive,
        );
    }
}

fn merge_agrees<T: Float>(shape: [usize; 5], unseen: usize, place: Place) {
    for device in devices() {
        let parts = placed::<T>(device, &shape, place, 4);
        let mut lse = placed::<f32>(device, &shape[..4], place, 5).to_vec().unwrap();
        lse.iter_mut().step_by(unseen).for_each(|lse| *lse = f32::NEG_INFINITY);
        let lse = Tensor::from_vec(device, &shape[..4], lse).unwrap();
        let got = attention::merge(&parts, &lse).unwrap();
        let expected = attention::merge(&widened(&parts), &moved(&lse, &Device::reference())).unwrap();
        let what = format!("merge {} {device} {shape:?} {unseen} {place:?}", T::DTYPE);
        assert_close(&what, &got.y, &expected.y, 0.0);
        assert_close(&format!("{what} lse"), &got.lse.unwrap(), &widened(&expected.lse.unwrap()), 0.0);
    }
}

fn l2_normalise_agrees<T: Float>(shape: [usize; 3], zeros: f64, place: Place) {
    for device in devices() {
        let x = placed_as::<T>(device, &shape, place, 14, |x| if x < zeros { 0.0 } else { 2.0 * x });
        let got = attention::l2_normalise(&x).unwrap();
        let expected = attention::l2_normalise(&widened(&x)).unwrap();
        assert_close(&format!("l2_normalise {} {device} {shape:?} {zeros} {place:?}", T::DTYPE), &got, &expected, 0.0);
    }
}

/// What is done to a cache, or to a fork of it.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// So many positions, turned or not.
    Append(usize, Option<Pairing>),
    Truncate(usize),
    /// The other one becomes a fork of this one.
    Fork,
    Swap,
}

fn steps() -> impl Strategy<Value = Step> {
    let pairing = prop::option::of(prop_oneof![Just(Pairing::Interleaved), Just(Pairing::HalfSplit)]);
    prop_oneof![
        4 => (0usize..5, pairing).prop_map(|(count, pairing)| Step::Append(count, pairing)),
        1 => (0usize..20).prop_map(Step::Truncate),
        2 => Just(Step::Fork),
        2 => Just(Step::Swap),
    ]
}

/// A cache and its forks hold what was appended to each, whatever was forgotten or refused before.
fn caches_hold_what_was_appended<T: Float>([batch, heads, pairs]: [usize; 3], steps: &[Step], place: Place) {
    const CAPACITY: usize = 16;
    let dim = 2 * pairs;
    for device in devices() {
        let what = format!("KvCache {} {device} [{batch}, {heads}, {dim}] {steps:?} {place:?}", T::DTYPE);
        let table = Table::from_angles(device, 40, pairs, |p, j| (p * (j + 2)) as f64 / 3.0).unwrap();
        // Each with the keys and values of the positions it is to hold.
        let empty = || (KvCache::<T>::new(device, batch, heads, CAPACITY, dim).unwrap(), Vec::<[Tensor<T>; 2]>::new());
        let mut caches = [empty(), empty()];
        for (seed, step) in (0u64..).zip(steps) {
            let (cache, known) = &mut caches[0];
            match *step {
                Step::Append(count, pairing) => {
                    let shape = [batch, heads, count, dim];
                    let [k, v] = [0, 1].map(|which| placed::<T>(device, &shape, place, 100 + 2 * seed + which));
                    let start = known.len();
                    let (done, turned) = match pairing {
                        None => (cache.append(&k, &v), k),
                        Some(pairing) => (
                            cache.append_rope(&k, &v, &table, start, pairing),
                            rope::rope(&k, &table, start, pairing).unwrap(),
                        ),
                    };
                    assert_eq!(done.is_ok(), start + count <= CAPACITY, "{what}: {done:?}");
                    if done.is_ok() {
                        let row = |x: &Tensor<T>, n| x.narrow(2, n, 1).unwrap().contiguous().unwrap();
                        known.extend((0..count).map(|n| [row(&turned, n), row(&v, n)]));
                    }
                }
                Step::Truncate(len) => {
                    cache.truncate(len);
                    known.truncate(len);
                }
                Step::Fork => caches[1] = caches[0].clone(),
                Step::Swap => caches.swap(0, 1),
            }
        }
        for (cache, known) in &caches {
            assert_eq!([cache.len(), cache.capacity()], [known.len(), CAPACITY], "{what}");
            assert_eq!(cache.is_empty(), known.is_empty(), "{what}");
            let (k, v) = (cache.k(), cache.v());
            for (n, expected) in known.iter().enumerate() {
                let got = [&k, &v].map(|x| x.narrow(2, n, 1).unwrap().to_vec().unwrap());
                assert_eq!(got, [0, 1].map(|which| expected[which].to_vec().unwrap()), "{what}, position {n}");
            }
        }
    }
}

/// Pages in any order give what the same keys give in one piece.
fn pages_are_keys<T: Float>(lengths: &[usize], page_size: usize, [kv_heads, group, q_len, dim]: [usize; 4]) {
    let batch = lengths.len();
    let each = lengths.iter().copied().max().unwrap_or(0).div_ceil(page_size);
    for device in devices() {
        let place = Place { offset: 0, gap: 0, swapped: false };
        let q = placed::<T>(device, &[batch, kv_heads * group, q_len, dim], place, 6);
        let shape = [each * batch + 1, page_size, kv_heads, dim];
        let [k, v] = [7, 8].map(|seed| placed::<T>(device, &shape, place, seed));
        let page = |entry: usize, n: usize| (each * (batch - entry) - n) as u32;
        let pages = (0..batch).map(|entry| (0..each).map(|n| page(entry, n)).collect()).collect();
        let table = PageTable { pages, lengths: lengths.to_vec() };
        let options = Options::new(0.5).mask(Mask::Causal { align: Align::BottomRight }).lse();
        let got = attention::paged(&q, &k, &v, &table, &options).unwrap();
        for (entry, length) in lengths.iter().enumerate() {
            let own = |x: &Tensor<T>| {
                let all = widened(x).to_vec().unwrap();
                let rows = (0..*length).flat_map(|j| {
                    let start = (page(entry, j / page_size) as usize * page_size + j % page_size) * kv_heads * dim;
                    all[start..start + kv_heads * dim].to_vec()
                });
                let rows = Tensor::from_vec(&Device::reference(), &[1, *length, kv_heads, dim], rows.collect());
                rows.unwrap().permute(&[0, 2, 1, 3]).unwrap().contiguous().unwrap()
            };
            let (q, k, v) = (widened(&q.narrow(0, entry, 1).unwrap()), own(&k), own(&v));
            let expected = attention::attention(&q, &k, &v, &options).unwrap();
            let naive = if T::EPSILON < 1e-6 { 0.0 } else { naive_error::<T>(&q, &k, &v, &options) };
            let what = format!("paged {} {device} {lengths:?} of {page_size}, {entry}", T::DTYPE);
            assert_close(&what, &got.y.narrow(0, entry, 1).unwrap(), &expected.y, naive);
        }
    }
}

/// What is done to a cache of pages, with a number that picks a sequence.
#[derive(Debug, Clone, Copy)]
enum Change {
    Add,
    Append(usize, usize),
    Fork(usize),
    Truncate(usize, usize),
    Remove(usize),
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        1 => Just(Change::Add),
        4 => (0usize..8, 0usize..40).prop_map(|(which, count)| Change::Append(which, count)),
        2 => (0usize..8).prop_map(Change::Fork),
        2 => (0usize..8, 0usize..40).prop_map(|(which, len)| Change::Truncate(which, len)),
        1 => (0usize..8).prop_map(Change::Remove),
    ]
}

/// Keys, or values, that are known by their numbers: `[1, 2, numbers, 8]`.
fn numbered(device: &Device, numbers: &[u64]) -> Tensor<f32> {
    let rows: Vec<_> = numbers.iter().map(|number| uniform(1000 + number, 16)).collect();
    let values: Vec<_> =
        (0..2).flat_map(|head| rows.iter().flat_map(move |row| row[8 * head..][..8].to_vec())).collect();
    tensor(device, &[1, 2, numbers.len(), 8], &values)
}

/// A cache of pages gives each sequence its own keys, whatever was shared, forgotten or refused before.
fn pages_hold_what_sequences_have(changes: &[Change]) {
    const PAGES: usize = 7;
    for device in devices() {
        let mut cache = PagedKvCache::<f32>::new(device, PAGES, 16, 2, 8).unwrap();
        let mut known: Vec<(usize, Vec<u64>)> = vec![(cache.add(), Vec::new())];
        let mut next = 0;
        for change in changes {
            let live = known.len().max(1);
            let pick = |which: usize| which % live;
            match *change {
                Change::Add => known.push((cache.add(), Vec::new())),
                _ if known.is_empty() => {}
                Change::Append(which, count) => {
                    let (sequence, keys) = &mut known[pick(which)];
                    let new: Vec<u64> = (next..next + count as u64).collect();
                    next += count as u64;
                    let new_keys = numbered(device, &new);
                    match cache.append(&[*sequence], &new_keys, &new_keys) {
                        Ok(()) => keys.extend(new),
                        Err(error) => assert!(error.to_string().contains("pages needed"), "{error}"),
                    }
                }
                Change::Fork(which) => {
                    let (sequence, keys) = known[pick(which)].clone();
                    known.push((cache.fork(sequence).unwrap(), keys));
                }
                Change::Truncate(which, len) => {
                    let (sequence, keys) = &mut known[pick(which)];
                    cache.truncate(*sequence, len).unwrap();
                    keys.truncate(len);
                }
                Change::Remove(which) => cache.remove(known.swap_remove(pick(which)).0).unwrap(),
            }
        }
        let q = numbered(device, &[u64::MAX - 2000, u64::MAX - 2001]);
        let options = Options::new(0.7).mask(Mask::Causal { align: Align::BottomRight });
        for (sequence, numbers) in &known {
            assert_eq!(cache.len(*sequence).unwrap(), numbers.len(), "{device} {changes:?}");
            let keys = numbered(device, numbers);
            let got = cache.attention(&[*sequence], &q, &options).unwrap().y.to_vec().unwrap();
            let expected = attention::attention(&q, &keys, &keys, &options).unwrap().y.to_vec().unwrap();
            assert_eq!(got, expected, "{device} {changes:?}");
        }
        known.iter().for_each(|(sequence, _)| cache.remove(*sequence).unwrap());
        assert_eq!(cache.free_pages(), PAGES, "{device} {changes:?}");
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn axial_agrees_anywhere(
        // An even head_dim: results that move on by a cell are written at any cell, on wgpu by whole words.
        shape in [1usize..3, 1usize..4, 1usize..7, 1usize..9, 1usize..3, 1usize..10].prop_map(|[b, t, h, w, heads, pairs]| {
            [b, t, h, w, heads, 2 * pairs]
        }),
        axes in [1usize..4, 1usize..4],
        along in prop::sample::select(vec![Along::All, Along::Causal, Along::Before, Along::Shifted]),
        place in places(),
    ) {
        axial_agrees::<f32>(shape, axes, along, place);
        axial_agrees::<f16>(shape, axes, along, place);
        axial_agrees::<bf16>(shape, axes, along, place);
    }

    #[test]
    fn l2_normalise_agrees_anywhere(
        shape in [0usize..4, 1usize..4, 1usize..300],
        zeros in prop_oneof![Just(-1.0), -1.0..1.0, Just(1.0)],
        place in places(),
    ) {
        l2_normalise_agrees::<f32>(shape, zeros, place);
        l2_normalise_agrees::<f16>(shape, zeros, place);
        l2_normalise_agrees::<bf16>(shape, zeros, place);
    }

    #[test]
    fn caches_hold_what_was_appended_after_any_steps(
        shape in [1usize..3, 1usize..3, 1usize..5],
        steps in prop::collection::vec(steps(), 1..16),
        place in places(),
    ) {
        caches_hold_what_was_appended::<f32>(shape, &steps, place);
        caches_hold_what_was_appended::<f16>(shape, &steps, place);
        caches_hold_what_was_appended::<bf16>(shape, &steps, place);
    }

    #[test]
    fn merge_agrees_anywhere(
        shape in [0usize..5, 1usize..3, 1usize..4, 1usize..9, 1usize..40],
        unseen in 1usize..9,
        place in places(),
    ) {
        merge_agrees::<f32>(shape, unseen, place);
        merge_agrees::<f16>(shape, unseen, place);
        merge_agrees::<bf16>(shape, unseen, place);
    }

    #[test]
    fn pages_hold_what_sequences_have_after_any_changes(changes in prop::collection::vec(changes(), 1..16)) {
        pages_hold_what_sequences_have(&changes);
    }

    #[test]
    fn pages_are_keys_anywhere(
        lengths in prop::collection::vec(0usize..90, 1..4),
        page_size in 16usize..35,
        shape in [1usize..3, 1usize..3, 1usize..5, 1usize..34],
    ) {
        pages_are_keys::<f32>(&lengths, page_size, shape);
        pages_are_keys::<f16>(&lengths, page_size, shape);
        pages_are_keys::<bf16>(&lengths, page_size, shape);
    }

    #[test]
    fn attention_agrees_anywhere(
        (shape, mask) in (1usize..3, 1usize..3, 1usize..3, 0usize..40, 0usize..140, 1usize..34)
            .prop_flat_map(|(b, g, h, q, k, d)| (Just([b, g, h, q, k, d]), masks(b, q, k))),
        place in places(),
        bias in prop::option::of(any::<[bool; 4]>()),
        softcap in prop::option::of(0.5f32..4.0),
    ) {
        attention_agrees::<f32>(shape, place, &mask, (bias, softcap));
        attention_agrees::<f16>(shape, place, &mask, (bias, softcap));
        attention_agrees::<bf16>(shape, place, &mask, (bias, softcap));
    }
}
