//! Vector quantization.

use smalti::{Device, Error, Float, Tensor, bf16, f16, vq};

use crate::common::{devices, moved, tensor, uniform, widened};

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

#[test]
fn nearest_takes_the_lowest_index_among_equal_codes() {
    for device in devices() {
        // 200 codes, all alike from 70 on, and the nearest ones.
        let codes: Vec<f32> =
            (0..200).flat_map(|code| if code < 70 { [9.0, code as f32] } else { [1.0, 2.0] }).collect();
        let codebook = Tensor::from_vec(device, &[200, 2], codes).unwrap().into();
        let x = Tensor::from_slice(device, &[3, 2], &[1.0f32, 2.0, 1.1, 2.1, f32::NAN, 0.0]).unwrap();
        assert_eq!(vq::nearest_l2(&x, &codebook).unwrap().to_vec().unwrap(), [70, 70, 0], "{device}");
    }
}

#[test]
fn nearest_names_a_codebook_of_another_dim() {
    let device = Device::reference();
    let x = Tensor::<f32>::zeros(&device, &[2, 4]).unwrap();
    let codebook = Tensor::<f32>::zeros(&device, &[8, 3]).unwrap().into();
    let error = vq::nearest_l2(&x, &codebook).unwrap_err();
    assert!(matches!(error, Error::Shape { operand: "codebook", .. }), "{error}");
}
