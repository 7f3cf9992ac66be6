//! Normalisation.

use smalti::{Device, Error, Float, Tensor, bf16, f16, norm};

use crate::common::{assert_close, devices, moved, tensor, uniform, widened};

/// Edges of the kernels: one element, one less and one more than a workgroup, odd rows, a prime.
const ROWS: &[[usize; 2]] = &[[1, 1], [5, 63], [4, 64], [3, 65], [2, 1031], [7, 768], [0, 8]];

fn rms_norm_agrees<T: Float>() {
    for device in devices() {
        for &shape in ROWS {
            let [rows, channels] = shape;
            let x = tensor::<T>(device, &shape, &uniform(7, rows * channels));
            let weight = tensor::<f32>(device, &[channels], &uniform(8, channels));
            let on_reference = moved(&weight, &Device::reference());
            for (weight, expected_weight) in [(Some(&weight), Some(&on_reference)), (None, None)] {
                let got = norm::rms_norm(&x, weight, 1e-5).unwrap();
                let expected = norm::rms_norm(&widened(&x), expected_weight, 1e-5).unwrap();
                let what = format!("rms_norm {} {device} x {shape:?}, weight {}", T::DTYPE, weight.is_some());
                assert_close(&what, &got, &expected, 0.0);
            }
        }
    }
}

#[test]
fn rms_norm_agrees_with_reference_f32() {
    rms_norm_agrees::<f32>();
}

#[test]
fn rms_norm_agrees_with_reference_f16() {
    rms_norm_agrees::<f16>();
}

#[test]
fn rms_norm_agrees_with_reference_bf16() {
    rms_norm_agrees::<bf16>();
}

#[test]
fn rms_norm_nan_stays_in_its_row() {
    for device in devices() {
        let x = Tensor::from_slice(device, &[2, 3], &[f32::NAN, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let y = norm::rms_norm(&x, None, 1e-5).unwrap().to_vec().unwrap();
        assert!(y[..3].iter().all(|y| y.is_nan()) && y[3..].iter().all(|y| y.is_finite()), "{device}: {y:?}");
    }
}

#[test]
fn rms_norm_names_a_wrong_weight() {
    let device = Device::reference();
    let x = Tensor::<f32>::zeros(&device, &[2, 4]).unwrap();
    let weight = Tensor::<f32>::zeros(&device, &[3]).unwrap();
    let error = norm::rms_norm(&x, Some(&weight), 0.0).unwrap_err();
    assert!(matches!(error, Error::Shape { op: "rms_norm", operand: "weight", .. }));
    assert_eq!(
        error.to_string(),
        "rms_norm: weight has shape [3], expected [4]: one value per channel of x, which is [2, 4]"
    );
}
