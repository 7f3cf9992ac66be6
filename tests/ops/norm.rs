//! Normalisation.

use smalti::activation::{Activation, activation};
use smalti::{Device, Error, Float, Tensor, bf16, f16, norm};

use crate::common::{assert_close, devices, moved, tensor, uniform, widened};
use crate::dumps::{self, Dump};

/// Edges of the kernels: one element, one less and one more than a workgroup, odd rows, a prime; on CUDA, rows that have
/// a warp, a block, and a large block, with and without whole runs of 16 bytes.
const ROWS: &[[usize; 2]] = &[[1, 1], [5, 63], [4, 64], [3, 65], [2, 1031], [7, 768], [2, 4104], [1, 4099], [0, 8]];

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

fn layer_norm_agrees<T: Float>() {
    for device in devices() {
        for &shape in ROWS {
            let [rows, channels] = shape;
            // A mean far from 0 takes the digits of a variance that is computed the short way.
            let x: Vec<_> = uniform(9, rows * channels).iter().map(|x| x + 3.0).collect();
            let x = tensor::<T>(device, &shape, &x);
            let weight = tensor::<f32>(device, &[channels], &uniform(10, channels));
            let bias = tensor::<f32>(device, &[channels], &uniform(11, channels));
            let at_home = Device::reference();
            let got = norm::layer_norm(&x, Some(&weight), Some(&bias), 1e-5).unwrap();
            let (weight, bias) = (moved(&weight, &at_home), moved(&bias, &at_home));
            let expected = norm::layer_norm(&widened(&x), Some(&weight), Some(&bias), 1e-5).unwrap();
            assert_close(&format!("layer_norm {} {device} x {shape:?}", T::DTYPE), &got, &expected, 0.0);
            let got = norm::layer_norm(&x, None, None, 1e-5).unwrap();
            let expected = norm::layer_norm(&widened(&x), None, None, 1e-5).unwrap();
            assert_close(&format!("layer_norm {} {device} x {shape:?}, plain", T::DTYPE), &got, &expected, 0.0);
        }
    }
}

#[test]
fn layer_norm_agrees_with_reference() {
    layer_norm_agrees::<f32>();
    layer_norm_agrees::<f16>();
    layer_norm_agrees::<bf16>();
}

fn group_norm_agrees<T: Float>() {
    for device in devices() {
        for (shape, groups) in [([1, 1, 1, 1], 1), ([2, 6, 3, 5], 2), ([1, 6, 3, 3], 6), ([3, 64, 8, 9], 32)] {
            let channels = shape[1];
            let x = tensor::<T>(device, &shape, &uniform(12, shape.iter().product()));
            let weight = tensor::<f32>(device, &[channels], &uniform(13, channels));
            let bias = tensor::<f32>(device, &[channels], &uniform(14, channels));
            let at_home = Device::reference();
            let got = norm::group_norm(&x, groups, Some(&weight), Some(&bias), 1e-6).unwrap();
            let (weight, bias) = (moved(&weight, &at_home), moved(&bias, &at_home));
            let expected = norm::group_norm(&widened(&x), groups, Some(&weight), Some(&bias), 1e-6).unwrap();
            assert_close(&format!("group_norm {} {device} x {shape:?}", T::DTYPE), &got, &expected, 0.0);
        }
    }
}

#[test]
fn group_norm_agrees_with_reference() {
    group_norm_agrees::<f32>();
    group_norm_agrees::<f16>();
    group_norm_agrees::<bf16>();
}

fn adaln_agrees<T: Float>() {
    for device in devices() {
        for [batch, seq, channels] in [[1, 1, 1], [2, 3, 5], [3, 7, 64]] {
            let x = tensor::<T>(device, &[batch, seq, channels], &uniform(15, batch * seq * channels));
            let h = tensor::<T>(device, &[batch, seq, channels], &uniform(16, batch * seq * channels));
            // Six modulations of one linear layer, as blocks use them: views with an offset.
            let six = tensor::<T>(device, &[batch, 6, 1, channels], &uniform(17, batch * 6 * channels));
            let part = |six: &Tensor<T>, index| {
                let part = six.narrow(1, index, 1).unwrap();
                let [strides, offset] = [part.layout().strides().to_vec(), vec![part.layout().offset()]];
                let strides = [strides[0], strides[2], strides[3]];
                let layout = smalti::Layout::strided(&[batch, 1, channels], &strides, offset[0]).unwrap();
                six.view_as(layout).unwrap()
            };
            let (scale, shift) = (part(&six, 2), part(&six, 5));
            let what = format!("{} {device} [{batch}, {seq}, {channels}]", T::DTYPE);
            let got = norm::modulate(&x, &scale, &shift).unwrap();
            let expected = norm::modulate(&widened(&x), &widened(&scale), &widened(&shift)).unwrap();
            assert_close(&format!("modulate {what}"), &got, &expected, 0.0);
            let got = norm::gated_add(&x, &scale, &h).unwrap();
            let expected = norm::gated_add(&widened(&x), &widened(&scale), &widened(&h)).unwrap();
            assert_close(&format!("gated_add {what}"), &got, &expected, 0.0);
        }
    }
}

#[test]
fn adaln_agrees_with_reference() {
    adaln_agrees::<f32>();
    adaln_agrees::<f16>();
    adaln_agrees::<bf16>();
}

#[test]
fn group_norm_names_groups_that_do_not_divide() {
    let x = Tensor::<f32>::zeros(&Device::reference(), &[1, 4, 2]).unwrap();
    let error = norm::group_norm(&x, 3, None, None, 0.0).unwrap_err();
    assert_eq!(error.to_string(), "group_norm: groups is 3, expected a divisor of the 4 channels");
}

fn softmax_agrees<T: Float>() {
    for device in devices() {
        for &shape in ROWS {
            let values: Vec<_> = uniform(18, shape.iter().product()).iter().map(|x| 9.0 * x).collect();
            let x = tensor::<T>(device, &shape, &values);
            let got = norm::softmax(&x).unwrap();
            let expected = norm::softmax(&widened(&x)).unwrap();
            assert_close(&format!("softmax {} {device} x {shape:?}", T::DTYPE), &got, &expected, 0.0);
        }
    }
}

#[test]
fn softmax_agrees_with_reference() {
    softmax_agrees::<f32>();
    softmax_agrees::<f16>();
    softmax_agrees::<bf16>();
}

#[test]
fn softmax_of_nothing_is_zero_and_nan_stays_in_its_row() {
    const NONE: f32 = f32::NEG_INFINITY;
    for device in devices().iter().chain([&Device::reference()]) {
        let x = [NONE, NONE, NONE, 1e4, NONE, 1e4, f32::NAN, NONE, 1.0, -1e30, -1e30, NONE];
        let y = norm::softmax(&Tensor::from_slice(device, &[4, 3], &x).unwrap()).unwrap().to_vec().unwrap();
        assert_eq!(y[..6], [0.0, 0.0, 0.0, 0.5, 0.0, 0.5], "{device}");
        assert!(y[6].is_nan() && y[8].is_nan(), "{device}: {y:?}");
        assert_eq!(y[9..], [0.5, 0.5, 0.0], "{device}");
    }
}

#[test]
fn rows_are_the_same_bits_alone_and_among_others() {
    for device in devices() {
        for channels in [40, 65, 768, 4104] {
            let x = tensor::<f32>(device, &[5, channels], &uniform(19, 5 * channels));
            let each = |x: &Tensor<f32>| {
                let normed = [norm::rms_norm(x, None, 1e-5), norm::layer_norm(x, None, None, 1e-5), norm::softmax(x)];
                normed.map(Result::unwrap)
            };
            let together = each(&x);
            for (alone, together) in each(&x.narrow(0, 3, 1).unwrap()).iter().zip(&together) {
                let together = together.narrow(0, 3, 1).unwrap().to_vec().unwrap();
                assert_eq!(alone.to_vec().unwrap(), together, "{device} {channels} channels");
            }
        }
    }
}

fn agrees_with_dump<T: Float>(dump: &Dump, device: &Device) {
    let what = format!("{} {device}", dump.name);
    let at_home = Device::reference();
    let x = || dump.tensor::<T>("in.x", device).expect("every case has it");
    let weight = dump.tensor::<f32>("in.weight", device);
    let bias = dump.tensor::<f32>("in.bias", device);
    let (weight, bias) = (weight.as_ref(), bias.as_ref());
    let eps = dump.f32("eps");
    let agrees = |output: &str, got: &Tensor<T>| {
        let naive = if T::EPSILON < 1e-6 { 0.0 } else { dump.naive_error(output) };
        let expected = dump.tensor(&format!("out.{output}"), &at_home).expect("every case has it");
        assert_close(&format!("{what} {output}"), got, &expected, naive);
    };
    match dump.op.as_str() {
        "rms_norm" => agrees("y", &norm::rms_norm(&x(), weight, eps.unwrap()).unwrap()),
        "layer_norm" => agrees("y", &norm::layer_norm(&x(), weight, bias, eps.unwrap()).unwrap()),
        "group_norm" => {
            let groups = dump.usize("groups").unwrap();
            let y = norm::group_norm(&x(), groups, weight, bias, eps.unwrap()).unwrap();
            let silu = dump.params["silu"] == true;
            agrees("y", &if silu { activation(&y, Activation::Silu).unwrap() } else { y });
        }
        "adaln" => {
            let x = x();
            let (batch, channels) = (x.shape()[0], x.shape()[2]);
            let condition = |name| {
                let given = dump.tensor::<T>(name, device).expect("every case has it");
                given.reshape(&[batch, 1, channels]).unwrap()
            };
            let normal = match dump.params["norm"].as_str() {
                Some("rms") => norm::rms_norm(&x, None, eps.unwrap()),
                _ => norm::layer_norm(&x, None, None, eps.unwrap()),
            };
            agrees("y", &norm::modulate(&normal.unwrap(), &condition("in.scale"), &condition("in.shift")).unwrap());
            let h = dump.tensor::<T>("in.h", device).expect("every case has it");
            agrees("residual", &norm::gated_add(&x, &condition("in.gate"), &h).unwrap());
        }
        _ => {}
    }
}

#[test]
fn norm_agrees_with_dumps() {
    let dumps = dumps::of_family("norm");
    assert!(!dumps.is_empty());
    for dump in &dumps {
        for device in devices() {
            match dump.dtype() {
                "f32" => agrees_with_dump::<f32>(dump, device),
                "f16" => agrees_with_dump::<f16>(dump, device),
                _ => agrees_with_dump::<bf16>(dump, device),
            }
        }
    }
}
