//! Convolution.

use smalti::conv::{Padding, conv2d};
use smalti::{Device, Float, Tensor, Weight, bf16, f16};

use crate::common::{assert_close, devices, moved, tensor, uniform, widened};

/// (x, channels_out, kernel, stride, padding): one place; blocks of channels that do not fill; kernels of even and
/// unequal sides; a stride with padding at two sides only, as tokenizers downsample; a patch embedding.
const CASES: &[([usize; 4], usize, [usize; 2], usize, Padding)] = &[
    ([1, 1, 1, 1], 1, [1, 1], 1, Padding::all(0)),
    ([2, 3, 5, 7], 5, [3, 3], 1, Padding::same(3)),
    ([1, 2, 4, 4], 3, [1, 1], 2, Padding::all(0)),
    ([1, 4, 9, 8], 6, [3, 3], 2, Padding { left: 0, right: 1, top: 0, bottom: 1 }),
    ([2, 3, 8, 12], 7, [4, 4], 4, Padding::all(0)),
    ([1, 2, 6, 5], 2, [2, 5], 3, Padding { left: 2, right: 4, top: 1, bottom: 0 }),
    ([1, 33, 8, 8], 17, [3, 3], 1, Padding::same(3)),
];

fn conv2d_agrees<T: Float, W: Float>()
where
    Weight: From<Tensor<W>>,
{
    for device in devices() {
        for &(shape, channels_out, kernel, stride, padding) in CASES {
            let x = tensor::<T>(device, &shape, &uniform(20, shape.iter().product()));
            let kernel_shape = [channels_out, shape[1], kernel[0], kernel[1]];
            let weight = tensor::<W>(device, &kernel_shape, &uniform(21, kernel_shape.iter().product()));
            let bias = tensor::<f32>(device, &[channels_out], &uniform(22, channels_out));
            let at_home = Device::reference();
            let (weight_at_home, bias_at_home) = (moved(&weight, &at_home), moved(&bias, &at_home));
            let got = conv2d(&x, &weight.into(), Some(&bias), stride, padding).unwrap();
            let expected = conv2d(&widened(&x), &weight_at_home.into(), Some(&bias_at_home), stride, padding).unwrap();
            let what = format!("conv2d {} weight {} {device} x {shape:?} kernel {kernel:?}", T::DTYPE, W::DTYPE);
            assert_close(&what, &got, &expected, 0.0);
        }
    }
}

#[test]
fn conv2d_agrees_with_reference() {
    conv2d_agrees::<f32, f32>();
    conv2d_agrees::<f32, f16>();
    conv2d_agrees::<f16, f16>();
    conv2d_agrees::<bf16, bf16>();
}

#[test]
fn conv2d_does_not_depend_on_the_batch_or_the_threads() {
    let one = Device::cpu_with_threads(1).unwrap();
    let two = Device::cpu_with_threads(2).unwrap();
    let data = uniform(23, 2 * 8 * 9 * 9);
    let kernel = uniform(24, 6 * 8 * 9);
    let run = |device: &Device, batch: usize| {
        let x = tensor::<f32>(device, &[batch, 8, 9, 9], &data[..batch * 8 * 81]);
        let weight = tensor::<f32>(device, &[6, 8, 3, 3], &kernel).into();
        conv2d(&x, &weight, None, 1, Padding::same(3)).unwrap().to_vec().unwrap()
    };
    let whole = run(&two, 2);
    assert_eq!(run(&one, 2), whole);
    assert_eq!(run(&one, 1), whole[..6 * 81]);
}

#[test]
fn conv2d_names_a_kernel_larger_than_the_grid() {
    let device = Device::reference();
    let x = Tensor::<f32>::zeros(&device, &[1, 1, 2, 2]).unwrap();
    let weight = Tensor::<f32>::zeros(&device, &[1, 1, 3, 3]).unwrap().into();
    let error = conv2d(&x, &weight, None, 1, Padding::all(0)).unwrap_err();
    let expected = "conv2d: x has shape [1, 1, 2, 2], expected a padded grid at least as large as the kernel, 3 by 3";
    assert_eq!(error.to_string(), expected);
}
