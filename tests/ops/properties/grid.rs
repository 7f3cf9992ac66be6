//! Convolution and resizing.

use proptest::prelude::*;
use smalti::conv::{Padding, conv2d};
use smalti::resize::{Mode, resize};
use smalti::{Device, Float, Weight, bf16, f16};

use super::{Place, config, placed, places};
use crate::common::{assert_close, devices, moved, widened};

fn conv2d_agrees<T: Float>(
    shape: [usize; 4],
    outputs: usize,
    kernel: [usize; 2],
    stride: usize,
    padding: Padding,
    place: Place,
) where
    Weight: From<smalti::Tensor<T>>,
{
    for device in devices() {
        let x = placed::<T>(device, &shape, place, 1);
        let weight = placed::<T>(device, &[outputs, shape[1], kernel[0], kernel[1]], place, 2);
        let bias = placed::<f32>(device, &[outputs], place, 3);
        let got = conv2d(&x, &weight.clone().into(), Some(&bias), stride, padding).unwrap();
        let home = Device::reference();
        let (weight, bias) = (moved(&weight, &home).into(), moved(&bias, &home));
        let expected = conv2d(&widened(&x), &weight, Some(&bias), stride, padding).unwrap();
        let what =
            format!("conv2d {} {device} {shape:?} {outputs} {kernel:?} {stride} {padding:?} {place:?}", T::DTYPE);
        assert_close(&what, &got, &expected, 0.0);
    }
}

fn resize_agrees<T: Float>(shape: [usize; 4], size: [usize; 2], mode: Mode, place: Place) {
    for device in devices() {
        let x = placed::<T>(device, &shape, place, 4);
        let got = resize(&x, size, mode).unwrap();
        let expected = resize(&widened(&x), size, mode).unwrap();
        assert_close(
            &format!("resize {} {device} {shape:?} {size:?} {mode:?} {place:?}", T::DTYPE),
            &got,
            &expected,
            0.0,
        );
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn conv2d_agrees_anywhere(
        (kernel, shape) in [1usize..5, 1usize..5].prop_flat_map(|kernel| {
            (Just(kernel), [0usize..3, 1usize..7, kernel[0]..14, kernel[1]..14])
        }),
        outputs in 1usize..10,
        stride in 1usize..4,
        [left, right, top, bottom] in [0usize..3, 0usize..3, 0usize..3, 0usize..3],
        place in places(),
    ) {
        let padding = Padding { left, right, top, bottom };
        conv2d_agrees::<f32>(shape, outputs, kernel, stride, padding, place);
        conv2d_agrees::<f16>(shape, outputs, kernel, stride, padding, place);
        conv2d_agrees::<bf16>(shape, outputs, kernel, stride, padding, place);
    }

    #[test]
    fn resize_agrees_anywhere(
        shape in [0usize..3, 1usize..4, 1usize..18, 1usize..18],
        size in [1usize..18, 1usize..18],
        mode in prop::sample::select(vec![
            Mode::Nearest,
            Mode::NearestExact,
            Mode::Bilinear { align_corners: false },
            Mode::Bilinear { align_corners: true },
            Mode::Bicubic { align_corners: false },
            Mode::Bicubic { align_corners: true },
            Mode::Area,
        ]),
        place in places(),
    ) {
        resize_agrees::<f32>(shape, size, mode, place);
        resize_agrees::<f16>(shape, size, mode, place);
        resize_agrees::<bf16>(shape, size, mode, place);
    }
}
