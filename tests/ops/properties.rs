//! Ops at shapes, layouts, masks and parameters that nobody chose, against their references. A failure is shrunk to a
//! small case, which it prints.

use proptest::prelude::*;
use smalti::attention::{self, Align, Mask, Options};
use smalti::rope::{self, Pairing, Table};
use smalti::vq::{self, DigitOrder, Metric};
use smalti::{Device, Float, Layout, Tensor, bf16, f16};

use crate::common::{assert_close, devices, devices_but_cuda, moved, tensor, uniform, widened};

/// Each case runs on every device and in every dtype, so a few go a long way.
fn config() -> ProptestConfig {
    ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() }
}

/// A tensor whose elements lie in a larger buffer: it starts `offset` rows in, rows are `gap` elements apart, and the
/// two middle axes are the other way round if `swapped`.
fn strided<T: Float>(device: &Device, shape: [usize; 4], place: [usize; 2], swapped: bool, seed: u64) -> Tensor<T> {
    let [offset, gap] = place;
    let [batch, heads, seq, dim] = shape;
    let row = dim + gap;
    let [head_stride, seq_stride] = if swapped { [row, heads * row] } else { [seq * row, row] };
    let strides = [heads * seq * row, head_stride, seq_stride, 1];
    let elements = (offset + batch * heads * seq) * row;
    let buffer = tensor::<T>(device, &[elements], &uniform(seed, elements).iter().map(|x| 2.0 * x).collect::<Vec<_>>());
    let start = if shape.contains(&0) { 0 } else { offset * row };
    buffer.view_as(Layout::strided(&shape, &strides, start).expect("small")).expect("inside the buffer")
}

fn masks(q_len: usize, k_len: usize) -> impl Strategy<Value = Mask> {
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

fn attention_agrees<T: Float>(shape: [usize; 6], place: [usize; 2], swapped: bool, mask: &Mask) {
    let [batch, kv_heads, group, q_len, k_len, dim] = shape;
    for device in devices() {
        let q = strided::<T>(device, [batch, kv_heads * group, q_len, dim], place, swapped, 1);
        let k = strided::<T>(device, [batch, kv_heads, k_len, dim], place, swapped, 2);
        let v = strided::<T>(device, [batch, kv_heads, k_len, dim], place, swapped, 3);
        let options = Options::new(0.5).mask(mask.clone()).lse();
        let got = attention::attention(&q, &k, &v, &options).unwrap();
        let [q, k, v] = [&q, &k, &v].map(widened);
        let expected = attention::attention(&q, &k, &v, &options).unwrap();
        let naive = if T::EPSILON < 1e-6 { 0.0 } else { naive_error::<T>(&q, &k, &v, &options) };
        let what = format!("attention {} {device} {shape:?} {place:?} {swapped} {mask:?}", T::DTYPE);
        assert_close(&what, &got.y, &expected.y, naive);
        assert_close(&format!("{what} lse"), &got.lse.unwrap(), &widened(&expected.lse.unwrap()), 0.0);
    }
}

fn rope_agrees<T: Float>(shape: [usize; 4], pairs: usize, place: [usize; 2], swapped: bool, own: bool) {
    let [batch, _, seq, dim] = shape;
    let pairs = pairs.min(dim / 2);
    for device in devices() {
        let table = Table::from_angles(device, batch * seq + 1, pairs, |p, j| (p * (j + 2)) as f64 / 3.0).unwrap();
        let of_each =
            |table: &Tensor<f32>| table.narrow(0, 1, batch * seq).unwrap().reshape(&[batch, seq, pairs]).unwrap();
        let (table, start) = match own {
            true => (Table { cos: of_each(&table.cos), sin: of_each(&table.sin) }, 0),
            false => (table, 1),
        };
        let at_home =
            Table { cos: moved(&table.cos, &Device::reference()), sin: moved(&table.sin, &Device::reference()) };
        for pairing in [Pairing::Interleaved, Pairing::HalfSplit] {
            let what = format!("rope {} {device} {shape:?} {pairs} {place:?} {swapped} {own} {pairing:?}", T::DTYPE);
            let mut x = strided::<T>(device, shape, place, swapped, 4);
            let expected = rope::rope(&widened(&x), &at_home, start, pairing).unwrap();
            assert_close(&what, &rope::rope(&x, &table, start, pairing).unwrap(), &expected, 0.0);
            // Rows of a half type that share a word cannot be written on wgpu one by one.
            if T::DTYPE.bytes() == 4 || dim.is_multiple_of(2) && place[1].is_multiple_of(2) {
                rope::rope_in_place(&mut x, &table, start, pairing).unwrap();
                assert_close(&format!("{what} in place"), &x, &expected, 0.0);
            }
        }
    }
}

fn nearest_agrees<T: Float>(shape: [usize; 4], count: usize, cosine: bool) {
    let [vectors, groups, codes, dim] = shape;
    let (count, metric) = (count.min(codes), if cosine { Metric::Cosine } else { Metric::L2 });
    for device in devices_but_cuda() {
        // Whole numbers, so that many codes tie exactly on every device.
        let whole = |seed, count| uniform(seed, count).iter().map(|x| (2.5 * x).round()).collect::<Vec<_>>();
        let x = tensor::<T>(device, &[vectors, groups, dim], &whole(5, vectors * groups * dim));
        let codebook = tensor::<f32>(device, &[groups, codes, dim], &whole(6, groups * codes * dim));
        let at_home = moved(&codebook, &Device::reference()).into();
        let got = vq::nearest(&x, &codebook.into(), metric, count).unwrap();
        let expected = vq::nearest(&widened(&x), &at_home, metric, count).unwrap();
        let what = format!("nearest {} {device} {shape:?} {count} {metric:?}", T::DTYPE);
        assert_close(&what, &got.distances, &widened(&expected.distances), 0.0);
        if !cosine {
            assert_eq!(got.indices.to_vec().unwrap(), expected.indices.to_vec().unwrap(), "{what}");
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn attention_agrees_anywhere(
        (shape, mask) in (1usize..3, 1usize..3, 1usize..3, 0usize..40, 0usize..140, 1usize..34)
            .prop_flat_map(|(b, g, h, q, k, d)| (Just([b, g, h, q, k, d]), masks(q, k))),
        place in [0usize..3, 0usize..3],
        swapped in any::<bool>(),
    ) {
        attention_agrees::<f32>(shape, place, swapped, &mask);
        attention_agrees::<f16>(shape, place, swapped, &mask);
        attention_agrees::<bf16>(shape, place, swapped, &mask);
    }

    #[test]
    fn rope_agrees_anywhere(
        shape in [1usize..3, 1usize..4, 0usize..20, 1usize..40],
        pairs in 0usize..20,
        place in [0usize..3, 0usize..3],
        swapped in any::<bool>(),
        own in any::<bool>(),
    ) {
        rope_agrees::<f32>(shape, pairs, place, swapped, own);
        rope_agrees::<f16>(shape, pairs, place, swapped, own);
        rope_agrees::<bf16>(shape, pairs, place, swapped, own);
    }

    #[test]
    fn nearest_agrees_anywhere(
        shape in [0usize..6, 1usize..4, 1usize..200, 1usize..9],
        count in 1usize..70,
        cosine in any::<bool>(),
    ) {
        nearest_agrees::<f32>(shape, count, cosine);
        nearest_agrees::<f16>(shape, count, cosine);
        nearest_agrees::<bf16>(shape, count, cosine);
    }

    #[test]
    fn digits_come_back_from_their_numbers(
        levels in prop::collection::vec(1u32..9, 1..9),
        high in any::<bool>(),
        count in 0usize..70,
    ) {
        let order = if high { DigitOrder::HighFirst } else { DigitOrder::LowFirst };
        let numbers: u64 = levels.iter().map(|levels| u64::from(*levels)).product();
        let indices: Vec<u32> = (0..count as u64).map(|n| (n * 7919 % numbers) as u32).collect();
        for device in devices_but_cuda() {
            let indices = Tensor::from_slice(device, &[count], &indices).unwrap();
            let digits = vq::unpack(&indices, &levels, order).unwrap();
            let back = vq::pack(&digits, &levels, order).unwrap();
            assert_eq!(back.to_vec().unwrap(), indices.to_vec().unwrap(), "{device} {levels:?} {order:?}");
            let mut limits = levels.iter().cycle();
            assert!(digits.to_vec().unwrap().iter().all(|digit| digit < limits.next().expect("a cycle")), "{device}");
        }
    }
}
