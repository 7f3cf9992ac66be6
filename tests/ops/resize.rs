//! Changing the size of a grid.

use smalti::resize::{Mode, resize, taps};
use smalti::{Device, Float, Tensor, bf16, f16};

use crate::common::{assert_close, devices, tensor, uniform, widened};
use crate::dumps::{self, Dump};

const MODES: &[Mode] = &[
    Mode::Nearest,
    Mode::NearestExact,
    Mode::Bilinear { align_corners: false },
    Mode::Bilinear { align_corners: true },
    Mode::Bicubic { align_corners: false },
    Mode::Bicubic { align_corners: true },
    Mode::Area,
];

fn resize_agrees<T: Float>() {
    for device in devices() {
        for (shape, size) in
            [([1, 1, 1, 1], [1, 1]), ([1, 2, 1, 1], [3, 4]), ([2, 3, 5, 7], [9, 3]), ([1, 2, 16, 16], [1, 1])]
        {
            let x = tensor::<T>(device, &shape, &uniform(30, shape.iter().product()));
            for mode in MODES {
                let got = resize(&x, size, *mode).unwrap();
                let expected = resize(&widened(&x), size, *mode).unwrap();
                assert_close(&format!("resize {mode:?} {} {device} {shape:?}", T::DTYPE), &got, &expected, 0.0);
            }
        }
    }
}

#[test]
fn resize_agrees_with_reference() {
    resize_agrees::<f32>();
    resize_agrees::<f16>();
    resize_agrees::<bf16>();
}

#[test]
fn taps_of_every_mode_sum_to_one_and_stay_inside() {
    for mode in MODES {
        for from in 1..12 {
            for to in 1..12 {
                for taps in taps(from, to, *mode) {
                    let sum: f64 = taps.weights.iter().sum();
                    assert!((sum - 1.0).abs() < 1e-12, "{mode:?} {from} to {to}: {taps:?}");
                    assert!(taps.first + taps.weights.len() <= from, "{mode:?} {from} to {to}: {taps:?}");
                }
            }
        }
    }
}

#[test]
fn resize_names_an_empty_size() {
    let x = Tensor::<f32>::zeros(&Device::reference(), &[1, 1, 2, 2]).unwrap();
    let error = resize(&x, [0, 2], Mode::Area).unwrap_err();
    assert_eq!(error.to_string(), "resize: size is [0, 2], expected at least one row and one column");
}

fn agrees_with_dump<T: Float>(dump: &Dump, device: &Device) {
    let x = dump.tensor::<T>("in.x", device).expect("every case has it");
    let align_corners = dump.params["align_corners"] == true;
    let mode = match dump.params["mode"].as_str().unwrap() {
        "nearest" => Mode::Nearest,
        "nearest-exact" => Mode::NearestExact,
        "bilinear" => Mode::Bilinear { align_corners },
        "bicubic" => Mode::Bicubic { align_corners },
        "area" => Mode::Area,
        other => panic!("{}: unknown mode {other}", dump.name),
    };
    let size = ["out_height", "out_width"].map(|side| dump.usize(side).unwrap());
    let naive = if T::EPSILON < 1e-6 { 0.0 } else { dump.naive_error("y") };
    let expected = dump.tensor("out.y", &Device::reference()).expect("every case has it");
    assert_close(&format!("{} {device}", dump.name), &resize(&x, size, mode).unwrap(), &expected, naive);
}

#[test]
fn resize_agrees_with_dumps() {
    let dumps = dumps::of_family("norm");
    let dumps: Vec<_> = dumps.iter().filter(|dump| dump.op == "resize").collect();
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
