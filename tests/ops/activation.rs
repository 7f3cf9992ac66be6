//! Activations.

use smalti::activation::{self, Activation};
use smalti::{Device, Error, Float, Tensor, bf16, f16};

use crate::common::{assert_close, devices, tensor, uniform, widened};
use crate::dumps::{self, Dump};

const ACTIVATIONS: [Activation; 7] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Sigmoid,
    Activation::Tanh,
    Activation::Softplus,
];

fn activation_agrees<T: Float>() {
    for device in devices() {
        for function in ACTIVATIONS {
            // Where the function bends, far out where it is flat, and near 0; one, odd and more than a chunk.
            for (scale, count) in [(4.0, 1031), (30.0, 64), (100.0, 5), (0.01, 33), (1.0, 1), (4.0, 0)] {
                let values: Vec<f64> = uniform(7, count).iter().map(|value| value * scale).collect();
                let x = tensor::<T>(device, &[count], &values);
                let got = activation::activation(&x, function).unwrap();
                let expected = activation::activation(&widened(&x), function).unwrap();
                let what = format!("{} {} {device} of {count} within {scale}", function.name(), T::DTYPE);
                assert_close(&what, &got, &expected, 0.0);
            }
        }
    }
}

#[test]
fn activation_agrees_with_reference_f32() {
    activation_agrees::<f32>();
}

#[test]
fn activation_agrees_with_reference_f16() {
    activation_agrees::<f16>();
}

#[test]
fn activation_agrees_with_reference_bf16() {
    activation_agrees::<bf16>();
}

#[test]
fn activation_of_nan_is_nan() {
    for device in devices() {
        for function in ACTIVATIONS {
            let x = Tensor::from_slice(device, &[2], &[f32::NAN, 1.0]).unwrap();
            let y = activation::activation(&x, function).unwrap().to_vec().unwrap();
            assert!(y[0].is_nan() && y[1].is_finite(), "{} {device}: {y:?}", function.name());
        }
    }
}

#[test]
fn gelu_of_minus_four_keeps_its_digits() {
    for device in devices() {
        let x = Tensor::from_slice(device, &[1], &[-4.0f32]).unwrap();
        let y = activation::activation(&x, Activation::Gelu).unwrap();
        let expected = activation::activation(&widened(&x), Activation::Gelu).unwrap();
        assert_close(&format!("gelu {device}"), &y, &expected, 0.0);
        let known = -1.266_849_9e-4;
        assert!((expected.to_vec().unwrap()[0] / known - 1.0).abs() < 1e-6, "{expected:?}");
    }
}

fn swiglu_agrees<T: Float>() {
    for device in devices() {
        for shape in [[1, 1], [3, 1025], [0, 4], [2, 64]] {
            let count = shape[0] * shape[1];
            let gate = tensor::<T>(device, &shape, &uniform(1, count));
            let up = tensor::<T>(device, &shape, &uniform(2, count));
            let got = activation::swiglu(&gate, &up).unwrap();
            let expected = activation::swiglu(&widened(&gate), &widened(&up)).unwrap();
            assert_close(&format!("swiglu {} {device} {shape:?}", T::DTYPE), &got, &expected, 0.0);
        }
    }
}

#[test]
fn swiglu_agrees_with_reference() {
    swiglu_agrees::<f32>();
    swiglu_agrees::<f16>();
    swiglu_agrees::<bf16>();
}

#[test]
fn swiglu_names_a_wrong_operand() {
    let device = Device::reference();
    let gate = Tensor::<f32>::zeros(&device, &[2, 4]).unwrap();
    let error = activation::swiglu(&gate, &Tensor::zeros(&device, &[8]).unwrap()).unwrap_err();
    assert!(matches!(error, Error::Shape { op: "swiglu", operand: "up", .. }));
}

fn agrees_with_dump<T: Float>(dump: &Dump, device: &Device) {
    let x = dump.tensor::<T>("in.x", device);
    let got = if dump.op == "activation" {
        let kind = dump.params["kind"].as_str().unwrap();
        let function = ACTIVATIONS.into_iter().find(|function| function.name() == kind);
        activation::activation(&x.unwrap(), function.unwrap_or_else(|| panic!("{}: {kind}", dump.name))).unwrap()
    } else if let Some(x) = x {
        // Packed: the gate in the first half of the channels.
        let channels = x.shape()[1] / 2;
        let half = |start| x.narrow(1, start, channels).unwrap();
        activation::swiglu(&half(0), &half(channels)).unwrap()
    } else {
        let half = |name| dump.tensor::<T>(name, device).unwrap();
        activation::swiglu(&half("in.gate"), &half("in.up")).unwrap()
    };
    let expected = dump.tensor::<f64>("out.y", &Device::reference()).unwrap();
    assert_close(&format!("{} {device}", dump.name), &got, &expected, dump.naive_error("y"));
}

#[test]
fn activation_agrees_with_dumps() {
    let ours = |dump: &Dump| dump.op == "activation" || dump.op == "swiglu";
    let dumps: Vec<_> = dumps::of_family("norm").into_iter().filter(ours).collect();
    assert!(!dumps.is_empty());
    for dump in &dumps {
        for device in devices().iter().chain([&Device::reference()]) {
            match dump.dtype() {
                "f32" => agrees_with_dump::<f32>(dump, device),
                "f16" => agrees_with_dump::<f16>(dump, device),
                _ => agrees_with_dump::<bf16>(dump, device),
            }
        }
    }
}
