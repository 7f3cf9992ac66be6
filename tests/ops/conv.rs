//! Convolution.

use smalti::conv::{Padding, conv2d};
use smalti::resize::{Mode, resize};
use smalti::{Device, Float, Tensor, Weight, bf16, f16};

use crate::common::{assert_close, devices, moved, tensor, uniform, widened};
use crate::dumps::{self, Dump};

/// x, channels_out, kernel, stride, padding.
type Case = ([usize; 4], usize, [usize; 2], usize, Padding);

/// One place; blocks of channels that do not fill; kernels of even and
/// unequal sides; a stride with padding at two sides only, as tokenizers downsample; a patch embedding; rows of one more
/// and one less than vectors hold; nothing but padding; no channels.
const CASES: &[Case] = &[
    ([1, 1, 1, 1], 1, [1, 1], 1, Padding::all(0)),
    ([2, 3, 5, 7], 5, [3, 3], 1, Padding::same(3)),
    ([1, 2, 4, 4], 3, [1, 1], 2, Padding::all(0)),
    ([1, 4, 9, 8], 6, [3, 3], 2, Padding { left: 0, right: 1, top: 0, bottom: 1 }),
    ([2, 3, 8, 12], 7, [4, 4], 4, Padding::all(0)),
    ([1, 2, 6, 5], 2, [2, 5], 3, Padding { left: 2, right: 4, top: 1, bottom: 0 }),
    ([1, 33, 8, 8], 17, [3, 3], 1, Padding::same(3)),
    ([1, 2, 3, 33], 4, [3, 3], 1, Padding::same(3)),
    ([1, 2, 2, 31], 9, [1, 3], 2, Padding::all(1)),
    ([1, 2, 0, 3], 3, [1, 1], 1, Padding::all(1)),
    ([1, 0, 2, 3], 3, [1, 1], 1, Padding::all(0)),
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
    conv2d_agrees::<f32, bf16>();
    conv2d_agrees::<f16, f32>();
    conv2d_agrees::<f16, f16>();
    conv2d_agrees::<f16, bf16>();
    conv2d_agrees::<bf16, f32>();
    conv2d_agrees::<bf16, f16>();
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

fn agrees_with_dump<T: Float>(dump: &Dump, device: &Device)
where
    Weight: From<Tensor<T>>,
{
    let mut x = dump.tensor::<T>("in.x", device).expect("every case has it");
    if dump.params["upsample_nearest_2x"] == true {
        x = resize(&x, [2 * x.shape()[2], 2 * x.shape()[3]], Mode::Nearest).unwrap();
    }
    let weight = dump.tensor::<T>("in.weight", device).expect("every case has it").into();
    let bias = dump.tensor::<f32>("in.bias", device);
    let side = |index: usize| dump.params["padding_left_right_top_bottom"][index].as_u64().unwrap() as usize;
    let padding = Padding { left: side(0), right: side(1), top: side(2), bottom: side(3) };
    let got = conv2d(&x, &weight, bias.as_ref(), dump.usize("stride").unwrap(), padding).unwrap();
    let naive = if T::EPSILON < 1e-6 { 0.0 } else { dump.naive_error("y") };
    let expected = dump.tensor("out.y", &Device::reference()).expect("every case has it");
    assert_close(&format!("{} {device}", dump.name), &got, &expected, naive);
}

#[test]
fn conv2d_agrees_with_dumps() {
    let dumps = dumps::of_family("norm");
    let dumps: Vec<_> = dumps.iter().filter(|dump| dump.op == "conv2d").collect();
    assert!(!dumps.is_empty());
    for dump in dumps {
        for device in devices().iter().chain([&Device::reference()]) {
            match dump.dtype() {
                "f32" => agrees_with_dump::<f32>(dump, device),
                "f16" => agrees_with_dump::<f16>(dump, device),
                _ => agrees_with_dump::<bf16>(dump, device),
            }
        }
    }
}
