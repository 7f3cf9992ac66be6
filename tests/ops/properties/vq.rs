//! Vector quantization.

use proptest::prelude::*;
use smalti::vq::{self, DigitOrder, Metric, Scales};
use smalti::{Device, Float, Tensor, Weight, bf16, elementwise, f16, resize};

use super::dense::weight;
use super::{Place, config, placed, placed_as, placed_below, places};
use crate::common::{assert_close, devices, moved, tensor, uniform, widened};

fn nearest_agrees<T: Float>(shape: [usize; 4], count: usize, cosine: bool, place: Place) {
    let [vectors, groups, codes, dim] = shape;
    let (count, metric) = (count.min(codes), if cosine { Metric::Cosine } else { Metric::L2 });
    for device in devices() {
        // Whole numbers, so that many codes tie exactly on every device.
        let whole = |x: f64| (2.5 * x).round();
        let x = placed_as::<T>(device, &[vectors, groups, dim], place, 5, whole);
        let codebook = placed_as::<f32>(device, &[groups, codes, dim], place, 6, whole);
        let at_home = moved(&codebook, &Device::reference()).into();
        let got = vq::nearest(&x, &codebook.clone().into(), metric, count).unwrap();
        let expected = vq::nearest(&widened(&x), &at_home, metric, count).unwrap();
        let what = format!("nearest {} {device} {shape:?} {count} {metric:?} {place:?}", T::DTYPE);
        assert_close(&what, &got.distances, &widened(&expected.distances), 0.0);
        if !cosine {
            assert_eq!(got.indices.to_vec().unwrap(), expected.indices.to_vec().unwrap(), "{what}");
        }
        for group in 0..groups {
            let alone = x.narrow(1, group, 1).unwrap().reshape(&[vectors, dim]).unwrap();
            let codes = codebook.narrow(0, group, 1).unwrap().reshape(&[codes, dim]).unwrap();
            let one = if cosine { vq::nearest_cosine } else { vq::nearest_l2 };
            let first = got.indices.narrow(1, group, 1).unwrap().narrow(2, 0, 1).unwrap().to_vec().unwrap();
            assert_eq!(one(&alone, &codes.into()).unwrap().to_vec().unwrap(), first, "{what} group {group} alone");
        }
    }
}

fn quantizers_agree<T: Float>([vectors, parts, codes, dim]: [usize; 4]) {
    for device in devices() {
        let whole = |seed, count| uniform(seed, count).iter().map(|x| (3.5 * x).round()).collect::<Vec<_>>();
        let codebooks = tensor::<f32>(device, &[parts, codes, dim], &whole(7, parts * codes * dim));
        let at_home: Weight = moved(&codebooks, &Device::reference()).into();
        let codebooks: Weight = codebooks.into();
        let x = tensor::<T>(device, &[vectors, parts * dim], &whole(8, vectors * parts * dim));
        let what = format!("{} {device} {vectors} of {parts} parts, {codes} codes of {dim}", T::DTYPE);
        let (got, expected) = (vq::grouped(&x, &codebooks).unwrap(), vq::grouped(&widened(&x), &at_home).unwrap());
        assert_eq!(got.indices.to_vec().unwrap(), expected.indices.to_vec().unwrap(), "grouped {what}");
        assert_close(&format!("grouped {what}"), &got.y, &expected.y, 0.0);
        assert_close(&format!("grouped {what}"), &got.distances, &widened(&expected.distances), 0.0);

        let x = x.narrow(1, 0, dim).unwrap();
        let got = vq::residual(&x, &codebooks, parts).unwrap();
        let expected = vq::residual(&widened(&x), &at_home, parts).unwrap();
        assert_eq!(got.indices.to_vec().unwrap(), expected.indices.to_vec().unwrap(), "residual {what}");
        assert_close(&format!("residual {what}"), &got.y, &expected.y, 0.0);
        assert_close(&format!("residual {what}"), &got.distances, &widened(&expected.distances), 0.0);
    }
}

fn lattices_agree<T: Float>([vectors, channels]: [usize; 2], levels: &[u32], order: DigitOrder, place: Place) {
    for device in devices() {
        let what = format!("{} {device} {vectors} x {channels} {levels:?} {order:?} {place:?}", T::DTYPE);
        let x = placed::<T>(device, &[vectors, channels], place, 9);
        let (got, expected) = (vq::bsq(&x, order).unwrap(), vq::bsq(&widened(&x), order).unwrap());
        assert_eq!(got.quantised.digits.to_vec().unwrap(), expected.quantised.digits.to_vec().unwrap(), "bsq {what}");
        assert_close(&format!("bsq {what}"), &got.quantised.y, &expected.quantised.y, 0.0);
        // The parts of a unit vector round; near a code that is more than the distance itself.
        let rounding = f64::from(f32::EPSILON);
        let farthest = expected.distances.to_vec().unwrap().into_iter().fold(0.0f64, |most, d| most.max(d.into()));
        let naive = rounding * (farthest.sqrt() + rounding);
        assert_close(&format!("bsq {what}"), &got.distances, &widened(&expected.distances), naive);
        let signs = vq::lfq(&x, order).unwrap();
        assert_eq!(signs.digits.to_vec().unwrap(), got.quantised.digits.to_vec().unwrap(), "lfq {what}");
        let whole: Vec<_> =
            signs.digits.to_vec().unwrap().iter().map(|digit| T::from_f64(2.0 * f64::from(*digit) - 1.0)).collect();
        assert_eq!(signs.y.to_vec().unwrap(), whole, "lfq {what}");
        // More than 32 signs are no number of 32 bits.
        assert_eq!(signs.indices.is_some(), channels <= 32, "lfq {what}");
        if let Some(indices) = &signs.indices {
            let back: Tensor<T> = vq::lfq_codes(indices, channels, order).unwrap();
            assert_eq!(back.to_vec().unwrap(), whole, "lfq {what}");
            let back: Tensor<T> = vq::bsq_codes(indices, channels, order).unwrap();
            assert_eq!(back.to_vec().unwrap(), got.quantised.y.to_vec().unwrap(), "bsq {what}");
        }

        let x = placed::<T>(device, &[vectors, levels.len()], place, 10);
        let (got, expected) = (vq::fsq(&x, levels, 1e-3).unwrap(), vq::fsq(&widened(&x), levels, 1e-3).unwrap());
        assert_eq!(got.quantised.digits.to_vec().unwrap(), expected.quantised.digits.to_vec().unwrap(), "fsq {what}");
        assert_close(&format!("fsq {what}"), &got.quantised.y, &expected.quantised.y, 0.0);
        let back: Tensor<T> = vq::fsq_codes(&got.quantised.indices.unwrap(), levels).unwrap();
        assert_eq!(back.to_vec().unwrap(), got.quantised.y.to_vec().unwrap(), "fsq {what}");
    }
}

fn lookups_agree<T: Float>([codes, dim]: [usize; 2], indices: &[u32], temperature: f32, place: Place) {
    for device in devices() {
        let what = format!("{} {device} {codes} codes of {dim} {place:?}", T::DTYPE);
        let codebook = placed::<f32>(device, &[codes, dim], place, 11);
        let at_home: Weight = moved(&codebook, &Device::reference()).into();
        let indices: Vec<u32> = indices.iter().map(|index| index % codes as u32).collect();
        let indices = Tensor::from_slice(device, &[indices.len()], &indices).unwrap();
        let got: Tensor<T> = vq::lookup(&codebook.clone().into(), &indices, true).unwrap();
        let expected: Tensor<f64> = vq::lookup(&at_home, &moved(&indices, &Device::reference()), true).unwrap();
        assert_close(&format!("lookup {what}"), &got, &expected, 0.0);
        let x = placed::<T>(device, &[3, dim], place, 12);
        let got = vq::soft_lookup(&x, &codebook.into(), temperature).unwrap();
        let expected = vq::soft_lookup(&widened(&x), &at_home, temperature).unwrap();
        assert_close(&format!("soft lookup {what} {temperature}"), &got, &expected, 0.0);
        let y = placed::<T>(device, &[3, dim], place, 13);
        let got = vq::commitment(&x, &y).unwrap();
        let [x, y] = [&x, &y].map(|x| widened(x).to_vec().unwrap());
        let squares: Vec<f64> = x.iter().zip(&y).map(|(x, y)| (x - y).powi(2)).collect();
        let sums = squares.chunks(dim).map(|row| row.iter().sum()).collect();
        let expected = Tensor::from_vec(&Device::reference(), &[3], sums).unwrap();
        assert_close(&format!("commitment {what}"), &got, &expected, 0.0);
    }
}

/// A pyramid of scales on a device, and its twin on the reference.
fn scales_on(device: &Device, sizes: &Sizes, place: Place) -> [Scales; 2] {
    let &Sizes { codes, channels, cosine, dtype, phi_ratio, .. } = sizes;
    let codebook = weight(device, dtype, [codes, channels], place);
    let kernels = (0..sizes.kernels).map(|seed| {
        let kernel = placed_as::<f32>(device, &[channels, channels, 3, 3], place, 40 + seed, |x| x / channels as f64);
        let bias = placed::<f32>(device, &[channels], place, 50 + seed);
        (kernel, bias)
    });
    let kernels: Vec<_> = kernels.collect();
    let home = Device::reference();
    let moved_phi = |(kernel, bias): &(Tensor<f32>, Tensor<f32>)| (moved(kernel, &home).into(), moved(bias, &home));
    let phi_of_scale: Vec<_> = (0..sizes.patch_nums.len()).map(|scale| scale % kernels.len()).collect();
    let of = |codebook, phi| Scales {
        codebook,
        cosine,
        phi,
        phi_ratio,
        phi_of_scale: phi_of_scale.clone(),
        patch_nums: sizes.patch_nums.clone(),
    };
    let phi = kernels.iter().map(|(kernel, bias)| (kernel.clone().into(), bias.clone())).collect();
    [of(codebook.0, phi), of(codebook.1, kernels.iter().map(moved_phi).collect())]
}

#[derive(Debug, Clone)]
struct Sizes {
    batch: usize,
    codes: usize,
    channels: usize,
    kernels: u64,
    patch_nums: Vec<usize>,
    cosine: bool,
    dtype: usize,
    phi_ratio: f32,
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let counts = (0usize..3, 1usize..40, 1usize..6, 1u64..4);
    let how = (any::<bool>(), 0usize..3, 0.0f32..=1.0);
    (counts, prop::collection::vec(1usize..7, 1..5), how).prop_map(|(counts, mut patch_nums, how)| {
        let (batch, codes, channels, kernels) = counts;
        let (cosine, dtype, phi_ratio) = how;
        patch_nums.sort_unstable();
        patch_nums.dedup();
        Sizes { batch, codes, channels, kernels, patch_nums, cosine, dtype, phi_ratio }
    })
}

/// Each token is a nearest code of what those before it left over, and the latents are what all tokens add up to.
fn scales_agree<T: Float>(sizes: &Sizes, place: Place) {
    let &Sizes { batch, channels, codes, cosine, .. } = sizes;
    let side = sizes.patch_nums[sizes.patch_nums.len() - 1];
    let home = Device::reference();
    for device in devices() {
        let what = format!("{} {device} {sizes:?} {place:?}", T::DTYPE);
        let [scales, twin] = scales_on(device, sizes, place);
        let latents = placed::<T>(device, &[batch, channels, side, side], place, 60);
        let tokens = scales.quantise(&latents).unwrap();
        assert_eq!(tokens.len(), sizes.patch_nums.len(), "{what}");
        let at_home: Vec<_> = tokens.iter().map(|tokens| moved(tokens, &home)).collect();

        // A copy of the batch of 16 or more entries, so that luck in a few numbers does not set a bound.
        let many: Vec<_> = (0u64..)
            .zip(&sizes.patch_nums)
            .map(|(scale, side)| {
                placed_below(&home, &[16, side * side], codes, Place { offset: 0, gap: 0, swapped: false }, 70 + scale)
            })
            .collect();
        let error = |rounded: Tensor<T>, exact: &Tensor<f64>| {
            let (rounded, exact) = (rounded.to_vec().unwrap(), exact.to_vec().unwrap());
            rounded.iter().zip(exact).map(|(rounded, exact)| (rounded.to_f64() - exact).abs()).fold(0.0, f64::max)
        };
        let naive_of_part = |scale: usize| {
            let exact: Tensor<f64> = twin.contribution(&many[scale], scale).unwrap();
            error(twin.contribution(&many[scale], scale).unwrap(), &exact)
        };
        // What one rounding does, of the size of what is rounded.
        let floor = if T::EPSILON < 1e-6 { 1e-5 } else { T::EPSILON };
        let mut rest = widened(&latents);
        let mut off = 0.0;
        for (scale, own) in at_home.iter().enumerate() {
            let part: Tensor<T> = scales.contribution(&tokens[scale], scale).unwrap();
            let exact: Tensor<f64> = twin.contribution(own, scale).unwrap();
            let naive = naive_of_part(scale);
            assert_close(&format!("{what}, part {scale}"), &part, &exact, naive);

            let side = sizes.patch_nums[scale];
            let seen = resize::resize(&rest, [side, side], resize::Mode::Area).unwrap();
            let places = seen.permute(&[0, 2, 3, 1]).unwrap().reshape(&[batch, side * side, channels]).unwrap();
            let metric = if cosine { Metric::Cosine } else { Metric::L2 };
            let nearest = vq::nearest(&places, &twin.codebook, metric, codes).unwrap();
            // A vector that is off by some length is as far off any distance.
            let (indices, distances) = (nearest.indices.to_vec().unwrap(), nearest.distances.to_vec().unwrap());
            for (at, (vector, token)) in
                places.to_vec().unwrap().chunks(channels).zip(own.to_vec().unwrap()).enumerate()
            {
                let row = at * codes..(at + 1) * codes;
                let found = indices[row.clone()].iter().position(|index| *index == token).expect("all are listed");
                let own = |distance: f32| f64::from(distance);
                let (best, taken) = (own(distances[row.start]), own(distances[row.start + found]));
                let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
                let moved = off * (channels as f64).sqrt() + floor * length;
                let (worse, allowed) = match cosine {
                    // Of unit vectors, at a length that is off by as much.
                    true => ((best - taken) * length, 2.0 * moved + 1e-5 * length),
                    false => (taken.max(0.0).sqrt() - best.max(0.0).sqrt(), 2.0 * moved + 1e-5 * (1.0 + length)),
                };
                assert!(
                    worse <= allowed,
                    "{what}, scale {scale}: vector {at} took {token}, {worse:.1e} from the nearest, allowed {allowed:.1e}"
                );
            }
            rest = elementwise::scale_add(&rest, 1.0, &exact, -1.0).unwrap();
            let largest = rest.to_vec().unwrap().iter().fold(0.0f64, |most, x| most.max(x.abs()));
            let of_parts = exact.to_vec().unwrap().iter().fold(0.0f64, |most, x| most.max(x.abs()));
            off += 2.0 * naive + floor * (of_parts + largest);
        }
        let got: Tensor<T> = scales.dequantise(&tokens).unwrap();
        let expected: Tensor<f64> = twin.dequantise(&at_home).unwrap();
        let exact: Tensor<f64> = twin.dequantise(&many).unwrap();
        let naive = error(twin.dequantise(&many).unwrap(), &exact);
        assert_close(&format!("{what}, sum"), &got, &expected, naive);
        for scale in 0..sizes.patch_nums.len() - 1 {
            let got = scales.next_input(&latents, scale).unwrap();
            let expected = twin.next_input(&widened(&latents), scale).unwrap();
            assert_close(&format!("{what}, input {scale}"), &got, &expected, 0.0);
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn scales_agree_anywhere(sizes in sizes(), place in places()) {
        scales_agree::<f32>(&sizes, place);
        scales_agree::<f16>(&sizes, place);
        scales_agree::<bf16>(&sizes, place);
    }

    #[test]
    fn quantizers_agree_anywhere(shape in [0usize..40, 1usize..5, 1usize..70, 1usize..9]) {
        quantizers_agree::<f32>(shape);
        quantizers_agree::<f16>(shape);
        quantizers_agree::<bf16>(shape);
    }

    #[test]
    fn lattices_agree_anywhere(
        shape in [0usize..40, 1usize..40],
        levels in prop::collection::vec(2u32..9, 1..7),
        high in any::<bool>(),
        place in places(),
    ) {
        let order = if high { DigitOrder::HighFirst } else { DigitOrder::LowFirst };
        lattices_agree::<f32>(shape, &levels, order, place);
        lattices_agree::<f16>(shape, &levels, order, place);
        lattices_agree::<bf16>(shape, &levels, order, place);
    }

    #[test]
    fn lookups_agree_anywhere(
        shape in [1usize..40, 1usize..20],
        indices in prop::collection::vec(any::<u32>(), 0..20),
        temperature in 0.1f32..4.0,
        place in places(),
    ) {
        lookups_agree::<f32>(shape, &indices, temperature, place);
        lookups_agree::<f16>(shape, &indices, temperature, place);
        lookups_agree::<bf16>(shape, &indices, temperature, place);
    }

    #[test]
    fn nearest_agrees_anywhere(
        shape in [0usize..6, 1usize..4, 1usize..200, 1usize..9],
        count in 1usize..70,
        cosine in any::<bool>(),
        place in places(),
    ) {
        nearest_agrees::<f32>(shape, count, cosine, place);
        nearest_agrees::<f16>(shape, count, cosine, place);
        nearest_agrees::<bf16>(shape, count, cosine, place);
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
        for device in devices() {
            let indices = Tensor::from_slice(device, &[count], &indices).unwrap();
            let digits = vq::unpack(&indices, &levels, order).unwrap();
            let back = vq::pack(&digits, &levels, order).unwrap();
            assert_eq!(back.to_vec().unwrap(), indices.to_vec().unwrap(), "{device} {levels:?} {order:?}");
            let mut limits = levels.iter().cycle();
            assert!(digits.to_vec().unwrap().iter().all(|digit| digit < limits.next().expect("a cycle")), "{device}");
        }
    }
}
