//! Products, norms, activations and other ops that know no grid.

use proptest::prelude::*;
use smalti::activation::{self, Activation};
use smalti::{Device, Float, Tensor, Weight, bf16, elementwise, embedding, f16, linear, norm};

use super::{Place, config, placed, places};
use crate::common::{assert_close, devices, moved, widened};

/// A stored weight that lies at `place`, and its twin on the reference.
pub fn weight(device: &Device, dtype: usize, shape: [usize; 2], place: Place) -> (Weight, Weight) {
    fn of<W: Float>(device: &Device, shape: [usize; 2], place: Place) -> (Weight, Weight)
    where
        Weight: From<Tensor<W>>,
    {
        let weight = placed::<W>(device, &shape, place, 2);
        (weight.clone().into(), moved(&weight, &Device::reference()).into())
    }
    match dtype {
        0 => of::<f32>(device, shape, place),
        1 => of::<f16>(device, shape, place),
        2 => of::<bf16>(device, shape, place),
        _ => {
            #[expect(clippy::cast_possible_truncation, reason = "within 127 of 0")]
            let integers = (0..shape[0] * shape[1]).map(|at| (at * 89 % 255) as i8).collect();
            let integers = Tensor::from_vec(device, &shape, integers).unwrap();
            let scale = placed::<f32>(device, &shape[..1], place, 3);
            let home = Device::reference();
            let twin = Weight::int8(moved(&integers, &home), moved(&scale, &home));
            (Weight::int8(integers, scale).unwrap(), twin.unwrap())
        }
    }
}

fn linear_agrees<T: Float>([rows, inputs, outputs]: [usize; 3], dtype: usize, biased: bool, place: Place) {
    for device in devices() {
        let x = placed::<T>(device, &[2, rows, inputs], place, 1);
        let (weight, twin) = weight(device, dtype, [outputs, inputs], place);
        let bias = biased.then(|| placed::<f32>(device, &[outputs], place, 4));
        let bias_twin = bias.as_ref().map(|bias| moved(bias, &Device::reference()));
        let got = linear::linear(&x, &weight, bias.as_ref()).unwrap();
        let expected = linear::linear(&widened(&x), &twin, bias_twin.as_ref()).unwrap();
        let what = format!("linear {} {device} [{rows}, {inputs}, {outputs}] {} {place:?}", T::DTYPE, weight.dtype());
        assert_close(&what, &got, &expected, 0.0);
    }
}

fn matmul_agrees<T: Float>([batch, m, k, n]: [usize; 4], places: [Place; 2]) {
    for device in devices() {
        let a = placed::<T>(device, &[batch, m, k], places[0], 5);
        let b = placed::<T>(device, &[batch, k, n], places[1], 6);
        let got = linear::matmul(&a, &b).unwrap();
        let expected = linear::matmul(&widened(&a), &widened(&b)).unwrap();
        assert_close(&format!("matmul {} {device} {batch} x {m} {k} {n} {places:?}", T::DTYPE), &got, &expected, 0.0);
    }
}

fn norms_agree<T: Float>([rows, channels]: [usize; 2], eps: f32, place: Place) {
    for device in devices() {
        let x = placed::<T>(device, &[rows, channels], place, 7);
        let [weight, bias] = [8, 9].map(|seed| placed::<f32>(device, &[channels], place, seed));
        let home = widened(&x);
        let [home_weight, home_bias] = [&weight, &bias].map(|x| moved(x, &Device::reference()));
        let check = |op: &str, got: smalti::Result<Tensor<T>>, expected: smalti::Result<Tensor<f64>>| {
            let what = format!("{op} {} {device} [{rows}, {channels}] {eps} {place:?}", T::DTYPE);
            assert_close(&what, &got.unwrap(), &expected.unwrap(), 0.0);
        };
        check("rms_norm", norm::rms_norm(&x, Some(&weight), eps), norm::rms_norm(&home, Some(&home_weight), eps));
        let got = norm::layer_norm(&x, Some(&weight), Some(&bias), eps);
        check("layer_norm", got, norm::layer_norm(&home, Some(&home_weight), Some(&home_bias), eps));
        check("softmax", norm::softmax(&x), norm::softmax(&home));
    }
}

fn group_norm_agrees<T: Float>([batch, groups, each, places]: [usize; 4], place: Place) {
    for device in devices() {
        let shape = [batch, groups * each, places];
        let x = placed::<T>(device, &shape, place, 10);
        let [weight, bias] = [8, 9].map(|seed| placed::<f32>(device, &shape[1..2], place, seed));
        let got = norm::group_norm(&x, groups, Some(&weight), Some(&bias), 1e-3).unwrap();
        let [weight, bias] = [&weight, &bias].map(|x| moved(x, &Device::reference()));
        let expected = norm::group_norm(&widened(&x), groups, Some(&weight), Some(&bias), 1e-3).unwrap();
        let what = format!("group_norm {} {device} {shape:?} in {groups} {place:?}", T::DTYPE);
        assert_close(&what, &got, &expected, 0.0);
    }
}

fn pointwise_agree<T: Float>(shape: [usize; 3], alone: [bool; 2], kind: Activation, places: [Place; 2]) {
    let [batch, seq, channels] = shape;
    for device in devices() {
        let [x, h] = [11, 12].map(|seed| placed::<T>(device, &shape, places[0], seed));
        // What stretches over the batch, the positions or both.
        let of = [if alone[0] { 1 } else { batch }, if alone[1] { 1 } else { seq }, channels];
        let [scale, shift] = [13, 14].map(|seed| placed::<T>(device, &of, places[1], seed));
        let [home_x, home_h, home_scale, home_shift] = [&x, &h, &scale, &shift].map(widened);
        let check = |op: &str, got: smalti::Result<Tensor<T>>, expected: smalti::Result<Tensor<f64>>| {
            let what = format!("{op} {} {device} {shape:?} {of:?} {places:?}", T::DTYPE);
            assert_close(&what, &got.unwrap(), &expected.unwrap(), 0.0);
        };
        check("modulate", norm::modulate(&x, &scale, &shift), norm::modulate(&home_x, &home_scale, &home_shift));
        check("gated_add", norm::gated_add(&x, &scale, &h), norm::gated_add(&home_x, &home_scale, &home_h));
        check("add", elementwise::add(&x, &scale), elementwise::add(&home_x, &home_scale));
        check("mul", elementwise::mul(&x, &scale), elementwise::mul(&home_x, &home_scale));
        let got = elementwise::scale_add(&x, 0.3, &h, -1.7);
        check("scale_add", got, elementwise::scale_add(&home_x, 0.3, &home_h, -1.7));
        check(&format!("{kind:?}"), activation::activation(&x, kind), activation::activation(&home_x, kind));
        check("swiglu", activation::swiglu(&x, &h), activation::swiglu(&home_x, &home_h));
    }
}

fn embedding_agrees<T: Float>([entries, channels]: [usize; 2], ids: &[u32], dtype: usize, place: Place) {
    for device in devices() {
        let (table, twin) = weight(device, dtype, [entries, channels], place);
        let ids: Vec<u32> = ids.iter().map(|id| id % entries as u32).collect();
        let ids = Tensor::from_slice(device, &[ids.len()], &ids).unwrap();
        let got: Tensor<T> = embedding::embedding(&table, &ids).unwrap();
        let expected: Tensor<f64> = embedding::embedding(&twin, &moved(&ids, &Device::reference())).unwrap();
        let what = format!("embedding {} {device} [{entries}, {channels}] {} {place:?}", T::DTYPE, table.dtype());
        assert_close(&what, &got, &expected, 0.0);
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn linear_agrees_anywhere(
        shape in [0usize..40, 0usize..140, 0usize..100],
        dtype in 0usize..4,
        biased in any::<bool>(),
        place in places(),
    ) {
        linear_agrees::<f32>(shape, dtype, biased, place);
        linear_agrees::<f16>(shape, dtype, biased, place);
        linear_agrees::<bf16>(shape, dtype, biased, place);
    }

    #[test]
    fn matmul_agrees_anywhere(
        shape in [0usize..4, 0usize..40, 0usize..100, 0usize..40],
        places in [places(), places()],
    ) {
        matmul_agrees::<f32>(shape, places);
        matmul_agrees::<f16>(shape, places);
        matmul_agrees::<bf16>(shape, places);
    }

    #[test]
    fn norms_agree_anywhere(shape in [0usize..6, 1usize..1100], eps in 1e-6f32..1e-2, place in places()) {
        norms_agree::<f32>(shape, eps, place);
        norms_agree::<f16>(shape, eps, place);
        norms_agree::<bf16>(shape, eps, place);
    }

    #[test]
    fn group_norm_agrees_anywhere(shape in [0usize..3, 1usize..5, 1usize..5, 1usize..90], place in places()) {
        group_norm_agrees::<f32>(shape, place);
        group_norm_agrees::<f16>(shape, place);
        group_norm_agrees::<bf16>(shape, place);
    }

    #[test]
    fn pointwise_ops_agree_anywhere(
        shape in [0usize..4, 1usize..9, 1usize..70],
        alone in any::<[bool; 2]>(),
        kind in prop::sample::select(vec![
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Relu,
        ]),
        places in [places(), places()],
    ) {
        pointwise_agree::<f32>(shape, alone, kind, places);
        pointwise_agree::<f16>(shape, alone, kind, places);
        pointwise_agree::<bf16>(shape, alone, kind, places);
    }

    #[test]
    fn embedding_agrees_anywhere(
        shape in [1usize..50, 1usize..70],
        ids in prop::collection::vec(any::<u32>(), 0..40),
        dtype in 0usize..4,
        place in places(),
    ) {
        embedding_agrees::<f32>(shape, &ids, dtype, place);
        embedding_agrees::<f16>(shape, &ids, dtype, place);
        embedding_agrees::<bf16>(shape, &ids, dtype, place);
    }
}
