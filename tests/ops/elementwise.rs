//! Sums and products, element by element.

use smalti::{Device, Error, Float, Tensor, bf16, elementwise, f16};

use crate::common::{assert_close, devices, tensor, uniform, widened};

/// Shapes of `a` and `b`: the same, vectors, one value, axes stretched in the middle, at the end and in front,
/// more than a chunk in one run, nothing.
const SHAPES: &[(&[usize], &[usize])] = &[
    (&[1], &[1]),
    (&[3, 5], &[3, 5]),
    (&[2, 3, 7], &[7]),
    (&[2, 3, 7], &[]),
    (&[2, 3, 7], &[2, 1, 7]),
    (&[2, 3, 7], &[3, 1]),
    (&[2, 3, 4, 5], &[1, 3, 1, 1]),
    (&[2, 3, 1], &[2, 3, 1]),
    (&[3, 1031], &[3, 1031]),
    (&[3, 2053], &[3, 1]),
    (&[3, 2053], &[2053]),
    (&[0, 4], &[4]),
    (&[], &[]),
];

fn elementwise_agrees<T: Float>() {
    for device in devices() {
        for (a_shape, b_shape) in SHAPES {
            let a = tensor::<T>(device, a_shape, &uniform(1, a_shape.iter().product()));
            let b = tensor::<T>(device, b_shape, &uniform(2, b_shape.iter().product()));
            let (wide_a, wide_b) = (widened(&a), widened(&b));
            let what = format!("{} {device} a {a_shape:?} b {b_shape:?}", T::DTYPE);
            let expected = elementwise::add(&wide_a, &wide_b).unwrap();
            assert_close(&format!("add {what}"), &elementwise::add(&a, &b).unwrap(), &expected, 0.0);
            let expected = elementwise::mul(&wide_a, &wide_b).unwrap();
            assert_close(&format!("mul {what}"), &elementwise::mul(&a, &b).unwrap(), &expected, 0.0);
            if a_shape == b_shape {
                let expected = elementwise::scale_add(&wide_a, 0.75, &wide_b, -1.5).unwrap();
                let got = elementwise::scale_add(&a, 0.75, &b, -1.5).unwrap();
                assert_close(&format!("scale_add {what}"), &got, &expected, 0.0);
            }
        }
        let a = tensor::<T>(device, &[4, 6], &uniform(1, 24)).permute(&[1, 0]).unwrap();
        let b = tensor::<T>(device, &[8, 9], &uniform(2, 72)).narrow(0, 1, 6).unwrap().narrow(1, 3, 4).unwrap();
        let c = tensor::<T>(device, &[4, 6], &uniform(3, 24)).permute(&[1, 0]).unwrap();
        for b in [b, c] {
            let expected = elementwise::mul(&widened(&a), &widened(&b)).unwrap();
            assert_close(
                &format!("mul {} {device} strided", T::DTYPE),
                &elementwise::mul(&a, &b).unwrap(),
                &expected,
                0.0,
            );
        }
    }
}

#[test]
fn elementwise_agrees_with_reference_f32() {
    elementwise_agrees::<f32>();
}

#[test]
fn elementwise_agrees_with_reference_f16() {
    elementwise_agrees::<f16>();
}

#[test]
fn elementwise_agrees_with_reference_bf16() {
    elementwise_agrees::<bf16>();
}

#[test]
fn elementwise_names_a_wrong_operand() {
    let device = Device::reference();
    let a = Tensor::<f32>::zeros(&device, &[2, 4]).unwrap();
    let error = elementwise::add(&a, &Tensor::zeros(&device, &[2]).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "add: b has shape [2], expected axes of 1 or as in a, which is [2, 4]");
    let error = elementwise::scale_add(&a, 1.0, &Tensor::zeros(&device, &[4]).unwrap(), 1.0).unwrap_err();
    assert!(matches!(error, Error::Shape { op: "scale_add", operand: "b", .. }));
}
