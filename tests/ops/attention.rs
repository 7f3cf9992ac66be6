//! Attention, its masks and its cache.

use smalti::attention::{self, Align, KvCache, Lengths, Mask, Options, ScalesKind};
use smalti::rope::{NullRows, Pairing, Table};
use smalti::{Backend, Device, Error, Float, Tensor, bf16, f16};

use crate::common::{assert_close, devices, moved, tensor, uniform, widened};
use crate::dumps::{self, Dump};

struct Case {
    name: &'static str,
    /// batch, heads, kv_heads, q_len, k_len, head_dim
    shape: [usize; 6],
    mask: Mask,
    /// Axes of the bias that have length 1, if there is a bias.
    bias: Option<[bool; 4]>,
    softcap: Option<f32>,
}

fn case(name: &'static str, shape: [usize; 6], mask: Mask) -> Case {
    Case { name, shape, mask, bias: None, softcap: None }
}

/// Edges: one of everything, a tile of keys and one key less and more, a block of queries and one less and more,
/// widths that are odd, prime and the largest, rows that see nothing.
fn cases() -> Vec<Case> {
    let top = Mask::Causal { align: Align::TopLeft };
    let bottom = Mask::Causal { align: Align::BottomRight };
    let scales = |kind| Mask::Scales { patch_nums: vec![1, 2, 3, 5], kind };
    let bits = Mask::from_fn(33, 70, |i, j| (i * 7 + j * 3) % 5 < 2 && i != 4);
    let bytes = |sees: fn(usize, usize) -> bool| {
        let bytes = (0..33).flat_map(|i| (0..70).map(move |j| u8::from(sees(i, j)))).collect();
        Mask::Given(Tensor::from_vec(&Device::reference(), &[33, 70], bytes).unwrap())
    };
    let given = bytes(|i, j| (i * 7 + j * 3) % 5 < 2 && i != 4);
    let given_too = bytes(|i, j| (i + j) % 3 > 0);
    // A permutation of 70 tokens; a step for each of 2 x 70.
    let order: Vec<usize> = (0..70).map(|n| n * 27 % 70).collect();
    let steps: Vec<u32> = (0..140).map(|n| n * n % 23).collect();
    let known: Vec<bool> = (0..120).map(|n| n % 7 < 3 && n != 5).collect();
    vec![
        case("one", [1, 1, 1, 1, 1, 1], Mask::Full),
        case("tile", [1, 2, 2, 16, 64, 64], Mask::Full),
        case("tile less", [2, 1, 1, 15, 63, 32], Mask::Full),
        case("tile more", [1, 2, 1, 17, 65, 33], Mask::Full),
        case("prime width", [1, 1, 1, 3, 130, 67], Mask::Full),
        case("widest", [1, 1, 1, 2, 66, 256], Mask::Full),
        case("narrow", [2, 3, 3, 5, 9, 3], Mask::Full),
        case("grouped decode", [2, 6, 2, 1, 300, 48], Mask::Full),
        case("many heads", [34, 4, 2, 17, 70, 24], Mask::Full),
        case("more heads than multiprocessors", [45, 6, 3, 129, 70, 16], top.clone()),
        case("split decode", [1, 6, 2, 1, 1300, 40], Mask::Full),
        case("split, few queries", [2, 2, 2, 3, 1030, 64], Mask::KeyLengths(vec![1030, 513])),
        case("split, tiles", [1, 1, 1, 2, 1100, 8], Mask::from_fn(2, 1100, |i, j| j / 64 % 3 == i && j % 7 < 5)),
        case(
            "split, parts of tiles",
            [1, 1, 1, 5, 2100, 200],
            Mask::from_fn(5, 2100, |i, j| j / 96 % 4 == i % 2 && j % 5 < 4),
        ),
        case("folded, tiles", [1, 1, 1, 20, 2100, 8], Mask::from_fn(20, 2100, |i, j| j / 64 % 9 == i % 7 && j % 7 < 5)),
        case("no keys", [1, 2, 2, 3, 0, 8], Mask::Full),
        case("no queries", [1, 2, 2, 0, 3, 8], Mask::Full),
        case("causal square", [1, 2, 2, 65, 65, 64], top.clone()),
        case("causal cached", [1, 4, 2, 17, 130, 80], bottom.clone()),
        case("more queries, top", [1, 1, 1, 70, 20, 16], top),
        case("more queries, bottom", [1, 1, 1, 70, 20, 16], bottom.clone()),
        case("window", [1, 2, 2, 40, 140, 32], Mask::Window { left: 9, right: 3, align: Align::BottomRight }),
        case("window off the keys", [1, 1, 1, 40, 8, 8], Mask::Window { left: 2, right: 0, align: Align::TopLeft }),
        case("prefix", [1, 2, 2, 40, 40, 32], Mask::Prefix { prefix: 11, align: Align::TopLeft }),
        case("frames", [1, 2, 2, 24, 40, 32], Mask::Frames { frame: 8, align: Align::BottomRight }),
        case("key lengths", [3, 2, 2, 5, 70, 32], Mask::KeyLengths(vec![70, 0, 65])),
        case("and", [2, 2, 1, 33, 70, 16], Mask::And(vec![Mask::KeyLengths(vec![60, 9]), bottom.clone()])),
        case("block causal", [1, 2, 2, 39, 39, 32], scales(ScalesKind::BlockCausal)),
        case("last scale", [2, 2, 2, 25, 39, 32], scales(ScalesKind::BlockCausal)),
        case("markov self", [1, 2, 2, 39, 39, 32], scales(ScalesKind::MarkovSelf)),
        case("markov previous", [1, 2, 2, 39, 39, 32], scales(ScalesKind::MarkovPrevious)),
        case("markov both", [1, 2, 2, 39, 39, 32], scales(ScalesKind::MarkovPreviousAndSelf)),
        case("bits", [2, 2, 2, 33, 70, 16], bits.clone()),
        case("tiles", [2, 2, 1, 130, 330, 40], Mask::from_fn(130, 330, |i, j| (i / 16 + j / 64) % 3 != 1)),
        case(
            "parts of tiles",
            [1, 1, 1, 130, 200, 200],
            Mask::from_fn(130, 200, |i, j| i / 16 % 3 == j / 32 % 4 || i == j),
        ),
        case(
            "tiles of many heads",
            [40, 1, 1, 130, 330, 8],
            Mask::from_fn(130, 330, |i, j| (i / 16 + j / 64) % 3 != 1),
        ),
        case("permuted", [1, 2, 2, 70, 70, 16], Mask::permuted(&order).unwrap()),
        case("grouped", [1, 2, 2, 70, 70, 16], Mask::grouped(&order, &[1, 2, 30, 0, 37]).unwrap()),
        case("query stream", [1, 2, 2, 140, 140, 8], Mask::two_stream(&steps)[1].clone()),
        case("ranks of each", [2, 2, 1, 70, 70, 8], Mask::ranks(&steps, false)),
        case("position queries", [2, 1, 1, 5, 140, 8], Mask::position_queries(&[3, 0, 9, 22, 40], &steps)),
        case("diagonals", [1, 2, 2, 83, 83, 8], Mask::diagonals(&[8, 10], 3, true)),
        case("diagonals but the own", [1, 2, 2, 83, 83, 8], Mask::diagonals(&[8, 10], 3, false)),
        case("planes", [1, 1, 1, 121, 121, 8], Mask::diagonals(&[5, 4, 6], 1, true)),
        case("regions", [1, 1, 1, 130, 130, 8], Mask::regions([10, 13], [2, 2])),
        case("columns", [1, 1, 1, 130, 130, 8], Mask::columns([13, 10], 3)),
        case("known", [2, 2, 1, 17, 70, 8], Mask::known(17, 10, 2, &known).unwrap()),
        case("packed", [2, 2, 1, 90, 90, 8], Mask::packed(&[1, 64, 0, 20, 5], false)),
        case("packed causal", [2, 2, 1, 90, 90, 8], Mask::packed(&[1, 64, 0, 20, 5], true)),
        case(
            "packed, more keys",
            [1, 1, 1, 20, 150, 8],
            Mask::Packed { q_lengths: vec![3, 17], k_lengths: vec![100, 50], causal: true },
        ),
        case("or", [2, 2, 2, 33, 70, 16], bottom.clone().or(bits.clone()).and(Mask::KeyLengths(vec![66, 40]))),
        case("or of given", [2, 2, 2, 33, 70, 16], Mask::Prefix { prefix: 5, align: Align::TopLeft }.or(given.clone())),
        case("or of nothing", [1, 1, 1, 5, 70, 8], Mask::Or(Vec::new())),
        case("given and bits", [2, 2, 2, 33, 70, 16], given_too.clone().and(bits)),
        case("given", [2, 2, 2, 33, 70, 16], given.clone()),
        case("given twice", [1, 2, 2, 33, 70, 16], Mask::And(vec![given, given_too])),
        Case { bias: Some([false; 4]), ..case("bias", [2, 2, 2, 17, 70, 16], Mask::Full) },
        Case { bias: Some([true, false, true, false]), ..case("bias of a row", [2, 2, 1, 17, 70, 16], Mask::Full) },
        Case { softcap: Some(1.5), bias: Some([true; 4]), ..case("softcap", [1, 2, 2, 5, 70, 64], Mask::Full) },
    ]
}

/// The mask with what it holds on that device.
pub fn on(mask: &Mask, device: &Device) -> Mask {
    match mask {
        Mask::Given(given) => Mask::Given(moved(given, device)),
        Mask::And(all) => Mask::And(all.iter().map(|mask| on(mask, device)).collect()),
        Mask::Or(all) => Mask::Or(all.iter().map(|mask| on(mask, device)).collect()),
        other => other.clone(),
    }
}

fn attention_agrees<T: Float>() {
    for device in devices() {
        for Case { name, shape, mask, bias, softcap } in cases() {
            let [batch, heads, kv_heads, q_len, k_len, head_dim] = shape;
            let q = tensor::<T>(device, &[batch, heads, q_len, head_dim], &spread(1, batch * heads * q_len * head_dim));
            let kv_shape = [batch, kv_heads, k_len, head_dim];
            let k = tensor::<T>(device, &kv_shape, &spread(2, batch * kv_heads * k_len * head_dim));
            let v = tensor::<T>(device, &kv_shape, &uniform(3, batch * kv_heads * k_len * head_dim));
            let bias = bias.map(|ones| {
                let full = [batch, heads, q_len, k_len];
                let shape: Vec<_> = full.iter().zip(ones).map(|(len, one)| if one { 1 } else { *len }).collect();
                tensor::<f32>(device, &shape, &uniform(4, shape.iter().product()))
            });
            let options = |device: &Device| {
                let mut options = Options::new(1.0 / (head_dim as f32).sqrt()).mask(on(&mask, device)).lse();
                options.bias = bias.as_ref().map(|bias| moved(bias, device));
                options.softcap = softcap;
                options
            };
            let got = attention::attention(&q, &k, &v, &options(device)).unwrap();
            let reference = Device::reference();
            let expected =
                attention::attention(&widened(&q), &widened(&k), &widened(&v), &options(&reference)).unwrap();
            let what = format!("attention {} {device} {name} {shape:?}", T::DTYPE);
            assert_close(&what, &got.y, &expected.y, 0.0);
            let (got, expected) = (got.lse.unwrap(), expected.lse.unwrap());
            assert_close(&format!("{what} lse"), &got, &widened(&expected), 0.0);
        }
    }
}

/// Numbers in [-3, 3): scores are then far enough apart for the softmax to matter.
fn spread(seed: u64, count: usize) -> Vec<f64> {
    uniform(seed, count).iter().map(|x| 3.0 * x).collect()
}

#[test]
fn attention_agrees_with_reference_f32() {
    attention_agrees::<f32>();
}

#[test]
fn attention_agrees_with_reference_f16() {
    attention_agrees::<f16>();
}

#[test]
fn attention_agrees_with_reference_bf16() {
    attention_agrees::<bf16>();
}

fn row_that_sees_nothing_is_zero<T: Float>() {
    for device in devices().iter().chain([&Device::reference()]) {
        // Few queries of few keys, keys that are split, and many queries.
        for [q_len, k_len, head_dim] in [[2, 2, 2], [1, 1100, 8], [70, 70, 40]] {
            let q = tensor::<T>(device, &[1, 1, q_len, head_dim], &vec![1.0; q_len * head_dim]);
            let k = tensor::<T>(device, &[1, 1, k_len, head_dim], &vec![1.0; k_len * head_dim]);
            let bias = Tensor::from_slice(device, &[1], &[f32::NEG_INFINITY]).unwrap();
            let given = Tensor::from_vec(device, &[q_len, k_len], vec![0u8; q_len * k_len]).unwrap();
            let options = [
                Options::new(1.0).mask(Mask::KeyLengths(vec![0])),
                Options::new(1.0).mask(Mask::Or(Vec::new())),
                Options::new(1.0).mask(Mask::from_fn(q_len, k_len, |_, _| false)),
                Options::new(1.0).mask(Mask::Given(given)),
                Options::new(1.0).bias(bias),
            ];
            for options in options {
                let got = attention::attention(&q, &k, &k, &options.clone().lse()).unwrap();
                let what = format!("{} {device} {q_len} x {k_len} {:?}", T::DTYPE, options.mask);
                assert!(got.y.to_vec().unwrap().iter().all(|y| y.to_f64() == 0.0), "{what}");
                assert_eq!(got.lse.unwrap().to_vec().unwrap(), vec![f32::NEG_INFINITY; q_len], "{what}");
            }
        }
    }
}

#[test]
fn attention_row_that_sees_nothing_is_zero() {
    row_that_sees_nothing_is_zero::<f32>();
    row_that_sees_nothing_is_zero::<f16>();
    row_that_sees_nothing_is_zero::<bf16>();
}

fn every_head_dim_agrees<T: Float>() {
    for device in devices() {
        let agrees = |[batch, q_len, k_len, head_dim]: [usize; 4]| {
            let of = |seed, shape: [usize; 4], most: f64| {
                let values: Vec<_> = uniform(seed, shape.iter().product()).iter().map(|x| most * x).collect();
                tensor::<T>(device, &shape, &values)
            };
            let q = of(1, [batch, 2, q_len, head_dim], 3.0);
            let [k, v] = [(2, 3.0), (3, 1.0)].map(|(seed, most)| of(seed, [batch, 1, k_len, head_dim], most));
            let causal = Mask::Causal { align: Align::BottomRight };
            let options = Options::new(1.0 / (head_dim as f32).sqrt()).mask(causal).lse();
            let got = attention::attention(&q, &k, &v, &options).unwrap();
            let expected = attention::attention(&widened(&q), &widened(&k), &widened(&v), &options).unwrap();
            let what = format!("attention {} {device} {batch} of {q_len} x {k_len}, {head_dim}", T::DTYPE);
            assert_close(&what, &got.y, &expected.y, 0.0);
            assert_close(&format!("{what} lse"), &got.lse.unwrap(), &widened(&expected.lse.unwrap()), 0.0);
        };
        // Two tiles of keys, for one query, for few and for more than a block takes.
        for head_dim in (16..=256).step_by(8) {
            let q_len = [1, 3, 19][head_dim / 8 % 3];
            agrees([1, q_len, 70, head_dim]);
        }
        // So many heads that on CUDA half types have blocks of 64 queries: between the widths that kernels have.
        if T::DTYPE.bytes() == 2 {
            [24, 72, 136, 200, 248].into_iter().for_each(|head_dim| agrees([70, 17, 20, head_dim]));
        }
    }
}

#[test]
fn attention_takes_every_head_dim_from_16_to_256_in_steps_of_8() {
    every_head_dim_agrees::<f32>();
    every_head_dim_agrees::<f16>();
    every_head_dim_agrees::<bf16>();
}

fn nan_stays_in_rows_that_see_it<T: Float>() {
    // Few and many queries.
    for (device, len, dim) in devices().iter().flat_map(|device| [(device, 3, 2), (device, 70, 8)]) {
        let q = tensor::<T>(device, &[1, 1, len, dim], &vec![1.0; len * dim]);
        let spoiled: Vec<_> = (0..len * dim).map(|n| if n == dim { f64::NAN } else { 1.0 }).collect();
        let k = tensor::<T>(device, &[1, 1, len, dim], &spoiled);
        for (k, v) in [(&k, &q), (&q, &k)] {
            let given = Mask::from_fn(len, len, |i, j| i == j);
            for mask in [given, Mask::Window { left: 0, right: 0, align: Align::TopLeft }] {
                let y = attention::attention(&q, k, v, &Options::new(1.0).mask(mask)).unwrap().y.to_vec().unwrap();
                let y: Vec<_> = y.chunks(dim).collect();
                assert!(y[1][0].to_f64().is_nan(), "{} {device}: {:?}", T::DTYPE, y[1]);
                let others = [y[0], &y[2..].concat()].concat();
                assert!(others.iter().all(|y| y.to_f64() == 1.0), "{} {device}: {others:?}", T::DTYPE);
            }
        }
    }
}

#[test]
fn attention_nan_stays_in_rows_that_see_it() {
    nan_stays_in_rows_that_see_it::<f32>();
    nan_stays_in_rows_that_see_it::<f16>();
    nan_stays_in_rows_that_see_it::<bf16>();
}

fn row_does_not_depend_on_the_number_of_rows<T: Float>() {
    for device in devices() {
        // More keys than a segment: on a GPU a query alone has them split over workgroups or blocks.
        let [batch, heads, q_len, k_len, head_dim] = [2, 4, 37, 1150, 48];
        let q = tensor::<T>(device, &[batch, heads, q_len, head_dim], &spread(1, batch * heads * q_len * head_dim));
        let k = tensor::<T>(device, &[batch, 2, k_len, head_dim], &spread(2, batch * 2 * k_len * head_dim));
        let causal = Options::new(0.2).mask(Mask::Causal { align: Align::BottomRight });
        let whole = attention::attention(&q, &k, &k, &causal).unwrap().y;
        for i in [0, 15, 16, 36] {
            let last = k_len - q_len + i + 1;
            let (q, k) = (q.narrow(2, i, 1).unwrap(), k.narrow(2, 0, last).unwrap());
            let alone = attention::attention(&q, &k, &k, &causal).unwrap().y;
            let expected = whole.narrow(2, i, 1).unwrap().to_vec().unwrap();
            assert!(alone.to_vec().unwrap() == expected, "{} {device}: query {i}", T::DTYPE);
        }
        // Also where the mask is a list of tiles, some segments without any.
        let k_len = 2100;
        let k = tensor::<T>(device, &[1, 1, k_len, head_dim], &spread(4, k_len * head_dim));
        let sees = |i: usize, j: usize| !(600..=1900).contains(&j) && (i + j / 16) % 5 < 2;
        let q = q.narrow(0, 0, 1).unwrap().narrow(1, 0, 1).unwrap();
        let tiles =
            |first: usize, q_len| Options::new(0.2).mask(Mask::from_fn(q_len, k_len, |i, j| sees(first + i, j)));
        let whole = attention::attention(&q, &k, &k, &tiles(0, q_len)).unwrap().y;
        let some = attention::attention(&q.narrow(2, 9, 5).unwrap(), &k, &k, &tiles(9, 5)).unwrap().y;
        let expected = whole.narrow(2, 9, 5).unwrap().to_vec().unwrap();
        assert!(some.to_vec().unwrap() == expected, "{} {device}: tiles", T::DTYPE);
        // So many heads that on CUDA the whole has blocks of 64 queries, and one head alone blocks of 16.
        let shape = [136, 1, 17, 8];
        let q = tensor::<T>(device, &shape, &spread(3, shape.iter().product()));
        let whole = attention::attention(&q, &q, &q, &causal).unwrap().y;
        let one = q.narrow(0, 135, 1).unwrap();
        let alone = attention::attention(&one, &one, &one, &causal).unwrap().y.to_vec().unwrap();
        assert!(alone == whole.narrow(0, 135, 1).unwrap().to_vec().unwrap(), "{} {device}: many heads", T::DTYPE);
    }
}

#[test]
fn attention_row_does_not_depend_on_the_number_of_rows() {
    row_does_not_depend_on_the_number_of_rows::<f32>();
    row_does_not_depend_on_the_number_of_rows::<f16>();
    row_does_not_depend_on_the_number_of_rows::<bf16>();
}

#[test]
fn attention_reads_strides() {
    for device in devices() {
        // Queries, keys and values side by side, as one projection leaves them: [batch, seq, 3, heads, head_dim].
        let [batch, seq, heads, head_dim] = [2, 21, 3, 10];
        let shape = [batch, seq, 3 * heads, head_dim];
        let packed = tensor::<f16>(device, &shape, &spread(5, shape.iter().product()));
        let part =
            |tensor: &Tensor<f16>, n| tensor.narrow(2, n * heads, heads).unwrap().permute(&[0, 2, 1, 3]).unwrap();
        let options = Options::new(0.3).mask(Mask::Causal { align: Align::TopLeft });
        let [q, k, v] = [0, 1, 2].map(|n| part(&packed, n));
        let got = attention::attention(&q, &k, &v, &options).unwrap().y;
        let [q, k, v] = [q, k, v].map(|tensor| widened(&tensor));
        let expected = attention::attention(&q, &k, &v, &options).unwrap().y;
        assert_close(&format!("attention of strided parts {device}"), &got, &expected, 0.0);
    }
}

#[test]
fn kv_cache_holds_what_was_appended_and_not_truncated() {
    for device in devices().iter().chain([&Device::reference()]) {
        let mut cache = KvCache::<f32>::new(device, 2, 1, 5, 2).unwrap();
        let positions = |first: usize, count: usize| {
            let values = (0..2).flat_map(|b| (first..first + count).flat_map(move |p| [(10 * b + p) as f64; 2]));
            tensor::<f32>(device, &[2, 1, count, 2], &values.collect::<Vec<_>>())
        };
        cache.append(&positions(0, 3), &positions(3, 3)).unwrap();
        cache.truncate(2);
        cache.append(&positions(2, 2), &positions(5, 2)).unwrap();
        assert_eq!(cache.len(), 4);
        assert_eq!(cache.k().to_vec().unwrap(), positions(0, 4).to_vec().unwrap(), "{device}");
        assert_eq!(cache.v().to_vec().unwrap(), positions(3, 4).to_vec().unwrap(), "{device}");
        let error = cache.append(&positions(4, 2), &positions(7, 2)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "KvCache::append: k has shape [2, 1, 2, 2], expected at most 1 positions: 4 of 5 are used"
        );
        assert_eq!(cache.len(), 4);
    }
}

#[test]
fn kv_cache_clones_part_on_append() {
    for device in devices().iter().chain([&Device::reference()]) {
        let all = |value: f64, count: usize| tensor::<f32>(device, &[1, 1, count, 2], &vec![value; 2 * count]);
        let mut first = KvCache::<f32>::new(device, 1, 1, 4, 2).unwrap();
        first.append(&all(1.0, 2), &all(2.0, 2)).unwrap();
        let mut second = first.clone();
        first.append(&all(3.0, 1), &all(4.0, 1)).unwrap();
        let still = Table::from_angles(device, 1, 1, |_, _| 0.0).unwrap();
        second
            .append_rope(
                &all(5.0, 2),
                &all(6.0, 2),
                &still.with_null_rows(1, NullRows::Identity).unwrap(),
                0,
                Pairing::HalfSplit,
            )
            .unwrap();
        let seen = |cache: &KvCache<f32>| [cache.k(), cache.v()].map(|part| part.to_vec().unwrap());
        assert_eq!(seen(&first), [[1.0, 1.0, 1.0, 1.0, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0, 4.0, 4.0]], "{device}");
        let expected = [[1.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 5.0], [2.0, 2.0, 2.0, 2.0, 6.0, 6.0, 6.0, 6.0]];
        assert_eq!(seen(&second), expected, "{device}");

        // A view keeps what it saw, also of what is forgotten and written anew.
        let view = first.k();
        first.truncate(2);
        first.append(&all(7.0, 1), &all(8.0, 1)).unwrap();
        assert_eq!(view.to_vec().unwrap(), [1.0, 1.0, 1.0, 1.0, 3.0, 3.0], "{device}");
        assert_eq!(first.k().to_vec().unwrap(), [1.0, 1.0, 1.0, 1.0, 7.0, 7.0], "{device}");
    }
}

fn l2_normalise_agrees<T: Float>() {
    for device in devices() {
        for shape in [[1, 1, 1, 1], [1, 2, 3, 63], [2, 1, 2, 64], [1, 1, 3, 65], [1, 1, 2, 776], [1, 0, 3, 8]] {
            let x = tensor::<T>(device, &shape, &uniform(7, shape.iter().product()));
            let got = attention::l2_normalise(&x).unwrap();
            let expected = attention::l2_normalise(&widened(&x)).unwrap();
            assert_close(&format!("l2_normalise {} {device} {shape:?}", T::DTYPE), &got, &expected, 0.0);
        }
    }
}

#[test]
fn l2_normalise_agrees_with_reference() {
    l2_normalise_agrees::<f32>();
    l2_normalise_agrees::<f16>();
    l2_normalise_agrees::<bf16>();
}

#[test]
fn values_are_taken_times_their_weights() {
    let [batch, heads, q_len, k_len, head_dim] = [2, 2, 3, 37, 16];
    let [q, k, v] = [(0, q_len), (1, k_len), (2, k_len)]
        .map(|(seed, len)| ([batch, heads, len, head_dim], uniform(seed, batch * heads * len * head_dim)));
    let w: Vec<_> = uniform(3, batch * k_len).iter().map(|w| (w + 1.0) / 2.0).collect();
    let expected = || {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut y = Vec::new();
        for (row, q) in q.1.chunks(head_dim).enumerate() {
            let head = row / q_len;
            let of_head = |x: &[f64]| x.chunks(k_len * head_dim).nth(head).expect("a head").to_vec();
            let (k, v) = (of_head(&k.1), of_head(&v.1));
            let shares: Vec<f64> = k.chunks(head_dim).map(|k| (0.25 * dot(q, k)).exp()).collect();
            let whole: f64 = shares.iter().sum();
            for channel in 0..head_dim {
                let weight = |key: usize| shares[key] / whole * w[head / heads * k_len + key];
                y.push((0..k_len).map(|key| weight(key) * v[key * head_dim + channel]).sum());
            }
        }
        tensor::<f64>(&Device::reference(), &q.0, &y)
    };
    fn on<T: Float>(device: &Device, parts: [&([usize; 4], Vec<f64>); 3], w: &[f64]) -> Tensor<T> {
        let [q, k, v] = parts.map(|(shape, values)| tensor::<T>(device, shape, values));
        let w = tensor::<f32>(device, &[w.len() / k.shape()[2], k.shape()[2]], w);
        attention::attention(&q, &k, &v, &Options::new(0.25).value_weights(w)).unwrap().y
    }
    for device in devices() {
        assert_close(&format!("f32 {device}"), &on::<f32>(device, [&q, &k, &v], &w), &expected(), 0.0);
        // Operands, products with weights and the result are rounded.
        assert_close(&format!("f16 {device}"), &on::<f16>(device, [&q, &k, &v], &w), &expected(), 1e-3);
        assert_close(&format!("bf16 {device}"), &on::<bf16>(device, [&q, &k, &v], &w), &expected(), 8e-3);
    }
}

#[test]
fn attention_names_what_does_not_fit() {
    let device = Device::reference();
    assert_eq!(device.backend(), Backend::Reference);
    let zeros = |shape: &[usize]| Tensor::<f32>::zeros(&device, shape).unwrap();
    let q = zeros(&[1, 3, 2, 4]);
    let fails = |k: &Tensor<f32>, options: Options| attention::attention(&q, k, k, &options).unwrap_err();
    let error = fails(&zeros(&[1, 2, 2, 4]), Options::new(1.0));
    assert!(matches!(error, Error::Shape { op: "attention", operand: "k", .. }), "{error}");
    let k = zeros(&[1, 3, 2, 4]);
    let error = fails(&k, Options::new(1.0).bias(zeros(&[3])));
    assert!(matches!(error, Error::Shape { op: "attention", operand: "bias", .. }), "{error}");
    let error = fails(&k, Options::new(1.0).value_weights(zeros(&[1, 3])));
    assert!(matches!(error, Error::Shape { op: "attention", operand: "value_weights", .. }), "{error}");
    let error = fails(&k, Options::new(1.0).mask(Mask::KeyLengths(vec![3])));
    assert!(matches!(error, Error::Value { op: "attention", .. }), "{error}");
    let error = fails(&k, Options::new(1.0).softcap(0.0));
    assert!(matches!(error, Error::Value { op: "attention", operand: "softcap", .. }), "{error}");
    let scales = Mask::Scales { patch_nums: vec![1], kind: ScalesKind::BlockCausal };
    let error = fails(&k, Options::new(1.0).mask(scales));
    assert!(matches!(error, Error::Shape { op: "attention", .. }), "{error}");
}

/// The mask of a dump; `None` if there is no such kind here and the dump does not hold it either.
fn mask_of(dump: &Dump, mask: &serde_json::Value, device: &Device) -> Option<Mask> {
    let number = |name: &str| mask[name].as_u64().expect("a number") as usize;
    let align = match mask["align"].as_str() {
        Some("bottom_right") => Align::BottomRight,
        _ => Align::TopLeft,
    };
    Some(match mask["kind"].as_str().expect("every mask has a kind") {
        "full" => Mask::Full,
        "causal" => Mask::Causal { align },
        "window" => Mask::Window { left: number("left"), right: number("right"), align },
        "prefix" => Mask::Prefix { prefix: number("prefix"), align },
        "frames" => Mask::Frames { frame: number("frame"), align },
        "key_lengths" => {
            let lengths = dump.values("in.key_lengths").expect("such a mask has lengths").1;
            Mask::KeyLengths(lengths.iter().map(|length| *length as usize).collect())
        }
        "scales" => Mask::Scales {
            patch_nums: mask["patch_nums"].as_array()?.iter().map(|side| side.as_u64().unwrap() as usize).collect(),
            kind: match mask["mode"].as_str()? {
                "block_causal" => ScalesKind::BlockCausal,
                "markov_self" => ScalesKind::MarkovSelf,
                "markov_previous" => ScalesKind::MarkovPrevious,
                "markov_previous_and_self" => ScalesKind::MarkovPreviousAndSelf,
                other => panic!("{}: {other}", dump.name),
            },
        },
        "and" => {
            let all = mask["of"].as_array()?.iter().map(|mask| mask_of(dump, mask, device));
            Mask::And(all.collect::<Option<_>>()?)
        }
        "ranks" => {
            let ranks: Vec<u32> =
                dump.values("in.rank").expect("such a mask has ranks").1.iter().map(|r| *r as u32).collect();
            Mask::ranks(&ranks, mask["strict"] == true)
        }
        "diagonals" => Mask::diagonals(&[number("h"), number("w")], number("prefix"), mask["own_diagonal"] == true),
        _ => {
            let (shape, mask) = dump.values("in.mask")?;
            let mask = mask.iter().map(|sees| u8::from(*sees != 0.0)).collect();
            Mask::Given(Tensor::from_vec(device, &shape, mask).unwrap())
        }
    })
}

fn agrees_with_dump<T: Float>(dump: &Dump, device: &Device) {
    let input = |name: &str| dump.tensor::<T>(name, device).expect("every case has it");
    let (mut q, mut k, v) = (input("in.q"), input("in.k"), input("in.v"));
    let [_, _, q_len, head_dim] = q.shape().try_into().unwrap();
    if dump.params["l2"] == true {
        q = attention::l2_normalise(&q).unwrap();
        k = attention::l2_normalise(&k).unwrap();
        let scales = dump.values("in.scale_log").expect("every such case has it").1;
        let scales: Vec<f64> = scales.iter().map(|log| log.min(100f64.ln()).exp()).collect();
        let q_values = q.to_vec().unwrap();
        let scaled = q_values
            .iter()
            .enumerate()
            .map(|(index, q)| q.to_f64() * scales[index / (q_len * head_dim) % scales.len()]);
        q = tensor(device, q.shape(), &scaled.collect::<Vec<_>>());
    }
    let mask = mask_of(dump, &dump.params["mask"], device)
        .unwrap_or_else(|| panic!("{}: its mask is of no known kind, nor in the file", dump.name));
    let mut options = Options::new(dump.f32("scale").expect("every case has it")).mask(mask).lse();
    options.bias = dump.tensor("in.bias", device);
    options.softcap = dump.f32("softcap");
    let got = attention::attention(&q, &k, &v, &options).unwrap();
    let what = format!("{} {device}", dump.name);
    let reference = Device::reference();
    let naive = if T::EPSILON < 1e-6 { 0.0 } else { dump.naive_error("y") };
    assert_close(&what, &got.y, &dump.tensor("out.y", &reference).unwrap(), naive);
    if let Some(lse) = dump.tensor("out.lse", &reference) {
        assert_close(&format!("{what} lse"), &got.lse.unwrap(), &lse, 0.0);
    }
}

#[test]
fn mask_prepared_for_one_length_serves_any() {
    for device in devices() {
        let [q_len, head_dim] = [33, 8];
        let mask =
            Mask::Prefix { prefix: 3, align: Align::TopLeft }.or(Mask::Frames { frame: 20, align: Align::TopLeft });
        let lengths = |k_len| Lengths { batch: 1, q_len, k_len };
        let prepared = mask.clone().prepare(device, lengths(70)).unwrap();
        let q = tensor::<f32>(device, &[1, 1, q_len, head_dim], &spread(1, q_len * head_dim));
        for k_len in [70, 90] {
            let k = tensor::<f32>(device, &[1, 1, k_len, head_dim], &spread(2, k_len * head_dim));
            let y = |mask: &Mask| {
                let options = Options::new(0.4).mask(mask.clone());
                attention::attention(&q, &k, &k, &options).unwrap().y.to_vec().unwrap()
            };
            assert_eq!(y(&prepared), y(&mask), "{device}, {k_len} keys");
            assert_eq!(y(&prepared.clone().and(Mask::Full)), y(&mask), "{device}, {k_len} keys");
        }
        assert!(mask.prepare(device, Lengths { batch: 1, q_len: 1, k_len: 0 }).is_ok());
        assert!(Mask::packed(&[3], false).prepare(device, lengths(70)).is_err());
    }
}

#[test]
fn mask_visits_only_the_tiles_that_a_block_sees() {
    let density = |mask: Mask, q_len, k_len| mask.density(Lengths { batch: 1, q_len, k_len }).unwrap();
    assert_eq!(density(Mask::Full, 64, 640), 1.0);
    // Frames of a tile each: 1 + 2 + .. + 10 of 10 x 10.
    assert_eq!(density(Mask::Frames { frame: 64, align: Align::TopLeft }, 640, 640), 0.55);
    assert_eq!(density(Mask::packed(&[64; 10], false), 640, 640), 0.1);
    assert_eq!(density(Mask::from_fn(640, 640, |i, j| i / 64 == j / 64), 640, 640), 0.1);
    let frames: Vec<u32> = (0..640).map(|token| token / 64).collect();
    assert_eq!(density(Mask::ranks(&frames, false), 640, 640), 0.55);
    assert_eq!(density(Mask::ranks(&frames, true), 640, 640), 0.45);
    assert_eq!(density(Mask::Or(Vec::new()), 640, 640), 0.0);
    assert_eq!(density(Mask::Full, 0, 0), 0.0);
}

#[test]
fn mask_names_what_does_not_fit() {
    let fails = |mask: Mask| mask.density(Lengths { batch: 2, q_len: 3, k_len: 5 }).unwrap_err().to_string();
    assert_eq!(fails(Mask::ranks(&[0; 3], false)), "mask: mask's key ranks has shape [3], expected [5] or [2 * 5]");
    assert!(fails(Mask::from_fn(3, 4, |_, _| true)).contains("expected [3, 5]"));
    assert!(fails(Mask::packed(&[1, 2], true)).contains("k_lengths"));
    assert!(Mask::permuted(&[0, 0]).is_err() && Mask::permuted(&[1, 2]).is_err());
    assert!(Mask::grouped(&[1, 0], &[1]).is_err() && Mask::known(1, 0, 2, &[true]).is_err());
}

#[test]
fn attention_agrees_with_dumps() {
    let dumps = dumps::of_family("attention");
    assert!(!dumps.is_empty());
    for dump in dumps.iter().filter(|dump| matches!(dump.op.as_str(), "attention" | "attention_decode")) {
        for device in devices().iter().chain([&Device::reference()]) {
            match dump.dtype() {
                "f32" => agrees_with_dump::<f32>(dump, device),
                "f16" => agrees_with_dump::<f16>(dump, device),
                _ => agrees_with_dump::<bf16>(dump, device),
            }
        }
    }
}
