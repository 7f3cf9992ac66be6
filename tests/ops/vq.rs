//! Vector quantization.

use smalti::vq::{DigitOrder, Metric, Scales};
use smalti::{Device, Error, Float, Tensor, Weight, bf16, copy, f16, vq};

use crate::common::{assert_close, devices, moved, tensor, uniform, widened};
use crate::dumps::{self, Dump};

fn nearest_agrees<T: Float>() {
    for device in devices() {
        // One; edges of workgroups and blocks; values of a vector in more than one tile, the last one not full.
        for (vectors, codes, dim) in [(1, 1, 1), (17, 63, 8), (33, 65, 5), (5, 513, 32), (3, 129, 68), (4, 128, 130)] {
            let x = tensor::<T>(device, &[vectors, dim], &uniform(40, vectors * dim));
            let codebook = tensor::<f32>(device, &[codes, dim], &uniform(41, codes * dim));
            let at_home = moved(&codebook, &Device::reference()).into();
            let codebook = codebook.into();
            let what = format!("{} {device} {vectors} vectors, {codes} codes of {dim}", T::DTYPE);
            let got = vq::nearest_l2(&x, &codebook).unwrap().to_vec().unwrap();
            let expected = vq::nearest_l2(&widened(&x), &at_home).unwrap().to_vec().unwrap();
            assert_eq!(got, expected, "l2 {what}");
            let got = vq::nearest_cosine(&x, &codebook).unwrap().to_vec().unwrap();
            let expected = vq::nearest_cosine(&widened(&x), &at_home).unwrap().to_vec().unwrap();
            assert_eq!(got, expected, "cosine {what}");
        }
    }
}

#[test]
fn nearest_agrees_with_reference() {
    nearest_agrees::<f32>();
    nearest_agrees::<f16>();
    nearest_agrees::<bf16>();
}

fn many_vectors_agree<T: Float>() {
    for device in devices() {
        // More than a tile of either; odd dims; values in one step, in two, in more steps than there are stages.
        for (vectors, codes, dim) in [(64, 1024, 8), (130, 520, 33), (257, 300, 5), (70, 960, 130)] {
            let x = tensor::<T>(device, &[vectors, dim], &uniform(53, vectors * dim));
            let mut values_of = uniform(54, codes * dim);
            // Every third code lies next to the one before it, much closer than bf16 can tell.
            for code in (2..codes).step_by(3) {
                for d in 0..dim {
                    values_of[code * dim + d] = values_of[(code - 1) * dim + d] * (1.0 + 1e-3 * (d % 3) as f64);
                }
            }
            let codebook = tensor::<f32>(device, &[codes, dim], &values_of);
            let at_home = moved(&codebook, &Device::reference()).into();
            let codebook = codebook.into();
            let what = format!("{} {device} {vectors} vectors, {codes} codes of {dim}", T::DTYPE);
            let expected = values(&vq::nearest_l2(&widened(&x), &at_home).unwrap());
            assert_eq!(values(&vq::nearest_l2(&x, &codebook).unwrap()), expected, "l2 {what}");
            let expected = values(&vq::nearest_cosine(&widened(&x), &at_home).unwrap());
            assert_eq!(values(&vq::nearest_cosine(&x, &codebook).unwrap()), expected, "cosine {what}");
        }
    }
}

#[test]
fn nearest_of_many_vectors_agrees_with_reference() {
    many_vectors_agree::<f32>();
    many_vectors_agree::<f16>();
    many_vectors_agree::<bf16>();
}

/// However hard the values are, vectors get the codes that they get a few at a time.
fn vectors_do_not_depend_on_others<T: Float>() {
    let [vectors, codes, dim] = [132, 500, 6];
    let (x_of, codes_of) = (uniform(55, vectors * dim), uniform(56, codes * dim));
    let change =
        |values: &[f64], change: &dyn Fn(f64) -> f64| values.iter().map(|value| change(*value)).collect::<Vec<_>>();
    let mut odd = x_of.clone();
    odd[3 * dim + 5] = f64::NAN;
    odd[4 * dim] = f64::INFINITY;
    odd[5 * dim..6 * dim].fill(0.0);
    let mut odd_codes = codes_of.clone();
    odd_codes[dim] = f64::NAN;
    odd_codes[2 * dim] = f64::NEG_INFINITY;
    odd_codes[3 * dim..5 * dim].fill(0.0);
    odd_codes[5 * dim..6 * dim].fill(1e38);
    // Too near each other for bf16, and the nearest ones of all anywhere among them.
    let alike: Vec<f64> = (0..codes * dim).map(|at| 0.25 + 1e-5 * (at / dim * 37 % codes) as f64).collect();
    let far = |value: f64| 100.0 + value;
    let cases = [
        ("odd values", odd, odd_codes),
        ("codes that are almost equal", x_of.clone(), alike),
        ("far from the origin", change(&x_of, &far), change(&codes_of, &far)),
        ("squares beyond f32", change(&x_of, &|x| 3e19 + 1e18 * x), change(&codes_of, &|x| 3e19 + 1e18 * x)),
        ("large", change(&x_of, &|x| x * 6e4), change(&codes_of, &|x| x * 1e30)),
        ("small", change(&x_of, &|x| x * 1e-7), change(&codes_of, &|x| x * 1e-30)),
    ];
    for device in devices() {
        for (what, x, codebook) in &cases {
            let x = tensor::<T>(device, &[vectors, dim], x);
            let codebook: Weight = tensor::<f32>(device, &[codes, dim], codebook).into();
            let search = |x: &Tensor<T>| {
                [vq::nearest_l2(x, &codebook).unwrap(), vq::nearest_cosine(x, &codebook).unwrap()].map(|y| values(&y))
            };
            let mut alone = [vec![], vec![]];
            for first in (0..vectors).step_by(12) {
                for (alone, some) in alone.iter_mut().zip(search(&x.narrow(0, first, 12).unwrap())) {
                    alone.extend(some);
                }
            }
            assert_eq!(search(&x), alone, "{} {device} {what}", T::DTYPE);
        }
    }
}

#[test]
fn nearest_of_a_vector_does_not_depend_on_others() {
    vectors_do_not_depend_on_others::<f32>();
    vectors_do_not_depend_on_others::<f16>();
    vectors_do_not_depend_on_others::<bf16>();
}

#[test]
fn nearest_takes_the_lowest_index_among_equal_codes() {
    for device in devices() {
        // 200 codes, all alike from 70 on, and the nearest ones.
        let codes: Vec<f32> =
            (0..200).flat_map(|code| if code < 70 { [9.0, code as f32] } else { [1.0, 2.0] }).collect();
        let codebook = Tensor::from_vec(device, &[200, 2], codes).unwrap().into();
        // Few vectors, many, and more than a tile of them.
        for times in [1, 7, 30] {
            let x = [1.0f32, 2.0, 1.1, 2.1, f32::NAN, 0.0].repeat(times);
            let x = Tensor::from_vec(device, &[3 * times, 2], x).unwrap();
            let got = vq::nearest_l2(&x, &codebook).unwrap().to_vec().unwrap();
            assert_eq!(got, [70, 70, 0].repeat(times), "{device} {times}");
        }
    }
}

fn dims_and_large_codebooks_agree<T: Float>() {
    for device in devices() {
        // The widest, one less than a multiple of every tile, and as many codes as a word of 18 bits counts.
        for [vectors, codes, dim] in [[2, 70, 512], [2, 33, 511], [1, 65, 384], [2, 1 << 18, 4]] {
            let x = tensor::<T>(device, &[vectors, dim], &uniform(51, vectors * dim));
            let mut codes_of = uniform(52, codes * dim);
            // Far ahead of all others, twice: in the last code and, except for the last vector's, early in the list.
            let first = codes / 3;
            for code in [first, codes - 1] {
                codes_of[code * dim..][..dim].copy_from_slice(&uniform(51, dim));
            }
            let codebook = tensor::<f32>(device, &[codes, dim], &codes_of);
            // As x rounds them, so that the distance is 0.
            let rounded = codes_of.iter().map(|code| T::from_f64(*code).to_f64()).collect::<Vec<_>>();
            let codebook =
                if T::DTYPE.bytes() == 4 { codebook } else { tensor::<f32>(device, &[codes, dim], &rounded) };
            let at_home = moved(&codebook, &Device::reference()).into();
            let codebook: Weight = codebook.into();
            let what = format!("{} {device} {codes} codes of {dim}", T::DTYPE);
            let got = values(&vq::nearest_l2(&x, &codebook).unwrap());
            assert_eq!(got[0] as usize, first, "{what}");
            assert_eq!(got, values(&vq::nearest_l2(&widened(&x), &at_home).unwrap()), "{what}");
            let cosine = values(&vq::nearest_cosine(&x, &codebook).unwrap());
            assert_eq!(cosine[0] as usize, first, "cosine {what}");
            let list = vq::nearest(&x, &codebook, Metric::L2, 3).unwrap();
            assert_eq!(values(&list.indices)[..2], [first as u32, codes as u32 - 1], "{what}");
            let expected = vq::nearest(&widened(&x), &at_home, Metric::L2, 3).unwrap();
            assert_eq!(values(&list.indices), values(&expected.indices), "{what}");
            assert_close(&what, &list.distances, &widened(&expected.distances), 0.0);
        }
    }
}

#[test]
fn nearest_takes_dims_to_512_and_262144_codes() {
    dims_and_large_codebooks_agree::<f32>();
    dims_and_large_codebooks_agree::<f16>();
    dims_and_large_codebooks_agree::<bf16>();
}

#[test]
fn nearest_names_a_codebook_of_another_dim() {
    let device = Device::reference();
    let x = Tensor::<f32>::zeros(&device, &[2, 4]).unwrap();
    let codebook = Tensor::<f32>::zeros(&device, &[8, 3]).unwrap().into();
    let error = vq::nearest_l2(&x, &codebook).unwrap_err();
    assert!(matches!(error, Error::Shape { operand: "codebook", .. }), "{error}");
}

fn values<T: smalti::Element>(tensor: &Tensor<T>) -> Vec<T> {
    tensor.to_vec().expect("a test's own tensor")
}

fn at_home(weight: &Tensor<f32>) -> Weight {
    moved(weight, &Device::reference()).into()
}

fn nearest_list_agrees<T: Float>() {
    for device in devices() {
        // One code, all codes in order, a list longer than a tile, codes beyond a chunk, groups.
        for [vectors, groups, codes, dim, count] in
            [[1, 1, 1, 1, 1], [5, 1, 7, 3, 7], [3, 1, 300, 8, 200], [4, 1, 1025, 5, 3], [6, 3, 65, 4, 2]]
        {
            let x = tensor::<T>(device, &[vectors, groups, dim], &uniform(42, vectors * groups * dim));
            let codebook = tensor::<f32>(device, &[groups, codes, dim], &uniform(43, groups * codes * dim));
            for metric in [Metric::L2, Metric::Cosine] {
                let what = format!("{} {device} {metric:?} {vectors} x {groups}, {codes} codes of {dim}", T::DTYPE);
                let got = vq::nearest(&x, &codebook.clone().into(), metric, count).unwrap();
                let expected = vq::nearest(&widened(&x), &at_home(&codebook), metric, count).unwrap();
                assert_eq!(got.indices.shape(), [vectors, groups, count]);
                assert_eq!(values(&got.indices), values(&expected.indices), "{what}");
                assert_close(&what, &got.distances, &widened(&expected.distances), 0.0);
            }
        }
    }
}

#[test]
fn nearest_list_agrees_with_reference() {
    nearest_list_agrees::<f32>();
    nearest_list_agrees::<f16>();
    nearest_list_agrees::<bf16>();
}

#[test]
fn nearest_list_puts_the_lowest_index_first_among_equals() {
    for device in devices().iter().chain([&Device::reference()]) {
        // 1100 codes in three places, one after another, so that equals lie in different tiles and chunks.
        let codes = (0..1100).flat_map(|code| [(code % 3) as f32, 0.0]).collect();
        let codebook = Tensor::from_vec(device, &[1100, 2], codes).unwrap().into();
        let x = Tensor::from_slice(device, &[2, 2], &[1.1f32, 0.0, f32::NAN, 0.0]).unwrap();
        let found = vq::nearest(&x, &codebook, Metric::L2, 256).unwrap();
        let indices = values(&found.indices);
        let expected: Vec<u32> = (0..256).map(|n| 1 + 3 * n).collect();
        assert_eq!(indices[..256], expected, "{device}");
        assert_eq!(indices[256..], [0; 256], "{device}");
        assert!(values(&found.distances)[256..].iter().all(|distance| distance.is_nan()), "{device}");
    }
}

fn grouped_and_residual_agree<T: Float>() {
    for device in devices() {
        for [vectors, books, parts, codes, dim] in [[7, 3, 3, 20, 4], [5, 1, 4, 33, 6], [1, 2, 2, 1, 3]] {
            let codebooks = tensor::<f32>(device, &[books, codes, dim], &uniform(44, books * codes * dim));
            let what = format!("{} {device} {parts} of {codes} codes of {dim}", T::DTYPE);
            let x = tensor::<T>(device, &[vectors, parts * dim], &uniform(45, vectors * parts * dim));
            let got = vq::grouped(&x, &codebooks.clone().into()).unwrap();
            let expected = vq::grouped(&widened(&x), &at_home(&codebooks)).unwrap();
            assert_eq!(values(&got.indices), values(&expected.indices), "grouped {what}");
            assert_close(&format!("grouped {what}"), &got.y, &expected.y, 0.0);
            assert_close(&format!("grouped {what}"), &got.distances, &widened(&expected.distances), 0.0);

            let x = tensor::<T>(device, &[vectors, dim], &uniform(46, vectors * dim));
            let got = vq::residual(&x, &codebooks.clone().into(), parts).unwrap();
            let expected = vq::residual(&widened(&x), &at_home(&codebooks), parts).unwrap();
            assert_eq!(values(&got.indices), values(&expected.indices), "residual {what}");
            assert_close(&format!("residual {what}"), &got.y, &expected.y, 0.0);
            assert_close(&format!("residual {what}"), &got.distances, &widened(&expected.distances), 0.0);
        }
    }
}

#[test]
fn grouped_and_residual_agree_with_reference() {
    grouped_and_residual_agree::<f32>();
    grouped_and_residual_agree::<f16>();
    grouped_and_residual_agree::<bf16>();
}

fn lattices_agree<T: Float>() {
    for device in devices() {
        for [vectors, channels] in [[1, 1], [9, 5], [130, 18], [3, 32], [2, 33]] {
            let x = tensor::<T>(device, &[vectors, channels], &uniform(47, vectors * channels));
            for order in [DigitOrder::HighFirst, DigitOrder::LowFirst] {
                let what = format!("{} {device} {vectors} x {channels} {order:?}", T::DTYPE);
                let got = vq::bsq(&x, order).unwrap();
                let expected = vq::bsq(&widened(&x), order).unwrap();
                assert_eq!(values(&got.quantised.digits), values(&expected.quantised.digits), "{what}");
                assert_close(&what, &got.quantised.y, &expected.quantised.y, 0.0);
                assert_close(&what, &got.unit, &expected.unit, 0.0);
                assert_close(&what, &got.distances, &widened(&expected.distances), 0.0);
                let signs = vq::lfq(&x, order).unwrap();
                assert_eq!(values(&signs.digits), values(&got.quantised.digits), "{what}");
                assert_eq!(signs.indices.is_some(), channels <= 32, "{what}: 32 bits count no more");
                let Some(indices) = signs.indices else { continue };
                assert_eq!(values(&indices), values(&expected.quantised.indices.unwrap()), "{what}");
                let back: Tensor<T> = vq::lfq_codes(&indices, channels, order).unwrap();
                assert_eq!(values(&back), values(&signs.y), "{what}");
                let back: Tensor<T> = vq::bsq_codes(&indices, channels, order).unwrap();
                assert_eq!(values(&back), values(&got.quantised.y), "{what}");
            }
        }
        for levels in [&[2, 3][..], &[8, 5, 5, 5], &[7]] {
            let what = format!("{} {device} fsq {levels:?}", T::DTYPE);
            let x: Vec<f64> = uniform(48, 70 * levels.len()).iter().map(|x| 4.0 * x).collect();
            let x = tensor::<T>(device, &[70, levels.len()], &x);
            let got = vq::fsq(&x, levels, 1e-3).unwrap();
            let expected = vq::fsq(&widened(&x), levels, 1e-3).unwrap();
            assert_eq!(values(&got.quantised.digits), values(&expected.quantised.digits), "{what}");
            assert_close(&what, &got.quantised.y, &expected.quantised.y, 0.0);
            assert_close(&what, &got.bounded, &expected.bounded, 0.0);
            let indices = got.quantised.indices.unwrap();
            let back: Tensor<T> = vq::fsq_codes(&indices, levels).unwrap();
            assert_eq!(values(&back), values(&got.quantised.y), "{what}");
        }
    }
}

#[test]
fn lattices_agree_with_reference() {
    lattices_agree::<f32>();
    lattices_agree::<f16>();
    lattices_agree::<bf16>();
}

#[test]
fn digits_pack_into_numbers_and_back() {
    for device in devices().iter().chain([&Device::reference()]) {
        let digits = Tensor::from_slice(device, &[2, 3], &[1u32, 2, 3, 0, 4, 1]).unwrap();
        let levels = [2, 5, 4];
        for (order, expected) in
            [(DigitOrder::LowFirst, [1 + 2 * 2 + 3 * 10, 8 + 10]), (DigitOrder::HighFirst, [31, 17])]
        {
            let indices = vq::pack(&digits, &levels, order).unwrap();
            assert_eq!(values(&indices), expected, "{device} {order:?}");
            assert_eq!(values(&vq::unpack(&indices, &levels, order).unwrap()), values(&digits), "{device} {order:?}");
        }
        assert!(vq::pack(&digits, &[2, 65_536, 65_536], DigitOrder::LowFirst).is_err());
        assert!(vq::pack(&digits, &[2, 2], DigitOrder::LowFirst).is_err());
        assert!(vq::unpack(&digits, &[2, 0], DigitOrder::LowFirst).is_err());
    }
}

fn lookups_agree<T: Float>() {
    for device in devices() {
        let [codes, dim] = [20, 7];
        let codebook = tensor::<f32>(device, &[codes, dim], &uniform(49, codes * dim));
        let indices = Tensor::from_slice(device, &[2, 3], &[0u32, 19, 3, 3, 7, 1]).unwrap();
        let got: Tensor<T> = vq::lookup(&codebook.clone().into(), &indices, true).unwrap();
        let home = moved(&indices, &Device::reference());
        let expected: Tensor<f64> = vq::lookup(&at_home(&codebook), &home, true).unwrap();
        assert_close(&format!("lookup {} {device}", T::DTYPE), &got, &expected, 0.0);
        let length: f64 = values(&expected)[..dim].iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-12, "{length}");

        let x = tensor::<T>(device, &[3, 2, dim], &uniform(50, 6 * dim));
        for temperature in [0.1, 3.0] {
            let got = vq::soft_lookup(&x, &codebook.clone().into(), temperature).unwrap();
            let expected = vq::soft_lookup(&widened(&x), &at_home(&codebook), temperature).unwrap();
            assert_close(&format!("soft lookup {} {device} at {temperature}", T::DTYPE), &got, &expected, 0.0);
        }
    }
}

#[test]
fn lookups_agree_with_reference() {
    lookups_agree::<f32>();
    lookups_agree::<f16>();
    lookups_agree::<bf16>();
}

#[test]
fn soft_lookup_is_the_softmax_of_distances() {
    let device = Device::reference();
    let (codes, x, temperature) = ([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]], [0.3, 0.4], 0.7f32);
    let distance = |code: &[f64; 2]| (code[0] - x[0]).powi(2) + (code[1] - x[1]).powi(2);
    let weights = codes.map(|code| (-distance(&code) / f64::from(temperature)).exp());
    let sum: f64 = weights.iter().sum();
    let codebook = tensor::<f32>(&device, &[3, 2], &codes.concat()).into();
    let y = vq::soft_lookup(&tensor::<f64>(&device, &[1, 2], &x), &codebook, temperature).unwrap();
    for (c, y) in values(&y).into_iter().enumerate() {
        let expected = codes.iter().zip(weights).map(|(code, weight)| code[c] * weight / sum).sum::<f64>();
        assert!((y - expected).abs() < 1e-6, "channel {c}: {y}, expected {expected}");
    }
}

#[test]
fn quantizers_name_what_does_not_fit() {
    let device = Device::reference();
    let x = Tensor::<f32>::zeros(&device, &[2, 6]).unwrap();
    let books = |shape: &[usize]| -> Weight { Tensor::<f32>::zeros(&device, shape).unwrap().into() };
    assert!(matches!(vq::grouped(&x, &books(&[2, 4, 2])), Err(Error::Shape { operand: "codebooks", .. })));
    assert!(matches!(vq::residual(&x, &books(&[2, 4, 6]), 3), Err(Error::Shape { operand: "codebooks", .. })));
    let nearest = |shape: &[usize], count| vq::nearest(&x, &books(shape), Metric::L2, count);
    assert!(matches!(nearest(&[4, 6], 5), Err(Error::Value { operand: "count", .. })));
    assert!(matches!(nearest(&[4, 6], 0), Err(Error::Value { operand: "count", .. })));
    assert!(matches!(nearest(&[3, 4, 6], 1), Err(Error::Shape { operand: "codebook", .. })));
    assert!(matches!(vq::fsq(&x, &[2, 3], 0.0), Err(Error::Shape { operand: "x", .. })));
    assert!(matches!(vq::fsq(&x, &[1; 6], 0.0), Err(Error::Value { operand: "levels", .. })));
    assert!(matches!(vq::soft_lookup(&x, &books(&[4, 6]), 0.0), Err(Error::Value { operand: "temperature", .. })));
}

/// What a dump's op gives, by the names of the dump's outputs.
struct Got<T: Float> {
    y: Tensor<T>,
    indices: Tensor<u32>,
    digits: Option<(&'static str, Tensor<u32>)>,
    floats: Vec<(&'static str, Tensor<f32>)>,
}

fn run<T: Float>(dump: &Dump, device: &Device) -> Got<T> {
    let x = || dump.tensor::<T>("in.x", device).expect("such a case has it");
    let weight = |name: &str| dump.tensor::<f32>(name, device).expect("such a case has it").into();
    let order = match dump.params["bit_order"].as_str() {
        Some("msb_first") => DigitOrder::HighFirst,
        _ => DigitOrder::LowFirst,
    };
    match dump.op.as_str() {
        "vq_nearest_l2" | "vq_nearest_cosine" => {
            let grid = dump.params["layout"] == "BCHW";
            let x = if grid { x().permute(&[0, 2, 3, 1]).unwrap() } else { x() };
            let cosine = dump.op == "vq_nearest_cosine";
            let (metric, name) = if cosine { (Metric::Cosine, "cosine") } else { (Metric::L2, "distance") };
            let codebook = weight("in.codebook");
            let found = vq::nearest(&x, &codebook, metric, 1).unwrap();
            let shape = &x.shape()[..x.shape().len() - 1];
            let (indices, distances) = (found.indices.reshape(shape).unwrap(), found.distances.reshape(shape).unwrap());
            let one = if cosine { vq::nearest_cosine(&x, &codebook) } else { vq::nearest_l2(&x, &codebook) };
            assert_eq!(values(&one.unwrap()), values(&indices), "{} {device}", dump.name);
            let y: Tensor<T> = vq::lookup(&codebook, &indices, cosine).unwrap();
            let y = if grid { y.permute(&[0, 3, 1, 2]).unwrap() } else { y };
            Got { y, indices, digits: None, floats: vec![(name, distances)] }
        }
        "vq_grouped" => {
            let got = vq::grouped(&x(), &weight("in.codebooks")).unwrap();
            Got { y: got.y, indices: got.indices, digits: None, floats: vec![("distance", got.distances)] }
        }
        "vq_residual" => {
            let got = vq::residual(&x(), &weight("in.codebooks"), dump.usize("stages").unwrap()).unwrap();
            Got { y: got.y, indices: got.indices, digits: None, floats: vec![("distance", got.distances)] }
        }
        "vq_lfq" => {
            let got = vq::lfq(&x(), order).unwrap();
            Got { y: got.y, indices: got.indices.unwrap(), digits: Some(("bits", got.digits)), floats: Vec::new() }
        }
        "vq_bsq" => {
            let got = vq::bsq(&x(), order).unwrap();
            let unit = copy::convert(&got.unit).unwrap();
            let quantised = got.quantised;
            Got {
                y: quantised.y,
                indices: quantised.indices.unwrap(),
                digits: Some(("bits", quantised.digits)),
                floats: vec![("distance", got.distances), ("u", unit)],
            }
        }
        _ => {
            let levels = dump.params["levels"].as_array().expect("such a case has it");
            let levels: Vec<u32> = levels.iter().map(|levels| levels.as_u64().unwrap() as u32).collect();
            let got = vq::fsq(&x(), &levels, dump.f32("eps").unwrap()).unwrap();
            let bounded = copy::convert(&got.bounded).unwrap();
            let quantised = got.quantised;
            Got {
                y: quantised.y,
                indices: quantised.indices.unwrap(),
                digits: Some(("levels", quantised.digits)),
                floats: vec![("bounded", bounded)],
            }
        }
    }
}

fn agrees_with_dump<T: Float>(dump: &Dump, device: &Device) {
    let what = format!("{} {device}", dump.name);
    let got = run::<T>(dump, device);
    let expected = |name: &str| dump.values(name).unwrap_or_else(|| panic!("{what}: no {name}")).1;
    let integers = |tensor: &Tensor<u32>| values(tensor).iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
    assert_eq!(integers(&got.indices), expected("out.indices"), "{what} indices");
    if let Some((name, digits)) = &got.digits {
        let mut digits = integers(digits);
        if let Some(levels) = dump.params["levels"].as_array() {
            let middle = levels.iter().map(|levels| (levels.as_u64().unwrap() / 2) as f64);
            digits.iter_mut().zip(middle.cycle()).for_each(|(digit, middle)| *digit -= middle);
        }
        assert_eq!(digits, expected(&format!("out.{name}")), "{what} {name}");
    }
    let naive = |output: &str| if T::EPSILON < 1e-6 { 0.0 } else { dump.naive_error(output) };
    let reference = |name: &str| dump.tensor::<f64>(&format!("out.{name}"), &Device::reference()).unwrap();
    assert_close(&format!("{what} y"), &got.y, &reference("y"), naive("y"));
    for (name, floats) in &got.floats {
        // In f32, whatever the case is in: its floor is that of its own dtype.
        let floats: Tensor<T> = copy::convert(floats).unwrap();
        assert_close(&format!("{what} {name}"), &floats, &reference(name), naive(name));
    }
}

fn scales_agree_with_dump(dump: &Dump, device: &Device) {
    let what = format!("{} {device}", dump.name);
    let input = |name: &str| dump.tensor::<f32>(name, device).expect("every such case has it");
    let (kernels, biases) = (input("in.phi_w"), input("in.phi_b"));
    let one = |tensor: &Tensor<f32>, n| tensor.narrow(0, n, 1).unwrap().reshape(&tensor.shape()[1..]).unwrap();
    let counts = |values: Vec<f64>| values.into_iter().map(|value| value as usize).collect::<Vec<_>>();
    let patch_nums = dump.params["patch_nums"].as_array().unwrap();
    let scales = Scales {
        codebook: input("in.codebook").into(),
        cosine: dump.params["cosine"] == true,
        phi: (0..kernels.shape()[0]).map(|n| (one(&kernels, n).into(), one(&biases, n))).collect(),
        phi_ratio: dump.f32("phi_ratio").unwrap(),
        phi_of_scale: counts(dump.values("in.phi_of_scale").unwrap().1),
        patch_nums: patch_nums.iter().map(|side| side.as_u64().unwrap() as usize).collect(),
    };
    let given = |name: &str| {
        let (shape, tokens) = dump.values(name).unwrap();
        Tensor::from_vec(device, &shape, tokens.iter().map(|token| *token as u32).collect()).unwrap()
    };
    let quantise = dump.op == "vq_scales_quantise";
    let all: Tensor<u32> = given(if quantise { "out.indices" } else { "in.indices" });
    let mut start = 0;
    let tokens: Vec<_> = scales
        .patch_nums
        .iter()
        .map(|side| {
            start += side * side;
            all.narrow(1, start - side * side, side * side).unwrap().contiguous().unwrap()
        })
        .collect();
    if quantise {
        for (scale, (got, expected)) in scales.quantise(&input("in.f")).unwrap().iter().zip(&tokens).enumerate() {
            assert_eq!(values(got), values(expected), "{what} scale {scale}");
        }
    }
    let y: Tensor<f32> = scales.dequantise(&tokens).unwrap();
    let naive = if dump.dtype() == "f32" { 0.0 } else { dump.naive_error("y") };
    assert_close(&what, &y, &dump.tensor("out.y", &Device::reference()).unwrap(), naive);
    assert!(scales.contribution::<f32>(&tokens[0], tokens.len()).is_err());
    assert!(scales.contribution::<f32>(&tokens[0], 1).is_err());
}

#[test]
fn vq_agrees_with_dumps() {
    let dumps = dumps::of_family("vq");
    assert!(!dumps.is_empty());
    for dump in dumps.iter().filter(|dump| dump.op != "embedding") {
        for device in devices().iter().chain([&Device::reference()]) {
            match dump.dtype() {
                _ if dump.op.starts_with("vq_scales") => scales_agree_with_dump(dump, device),
                "f32" => agrees_with_dump::<f32>(dump, device),
                "f16" => agrees_with_dump::<f16>(dump, device),
                _ => agrees_with_dump::<bf16>(dump, device),
            }
        }
    }
}
