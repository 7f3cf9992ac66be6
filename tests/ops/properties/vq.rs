//! Vector quantization.

use proptest::prelude::*;
use smalti::vq::{self, DigitOrder, Metric};
use smalti::{Device, Float, Tensor, Weight, bf16, f16};

use super::{Place, config, placed, placed_as, places};
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
        let got = vq::nearest(&x, &codebook.into(), metric, count).unwrap();
        let expected = vq::nearest(&widened(&x), &at_home, metric, count).unwrap();
        let what = format!("nearest {} {device} {shape:?} {count} {metric:?} {place:?}", T::DTYPE);
        assert_close(&what, &got.distances, &widened(&expected.distances), 0.0);
        if !cosine {
            assert_eq!(got.indices.to_vec().unwrap(), expected.indices.to_vec().unwrap(), "{what}");
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
    }
}

proptest! {
    #![proptest_config(config())]

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
