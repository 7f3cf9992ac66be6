//! Attention along the axes of a grid.

use smalti::attention::{self, Along};
use smalti::{Device, Error, Float, Tensor, bf16, f16};

use crate::common::{assert_close, devices, tensor, uniform, widened};
use crate::dumps::{self, Dump};

const ALONG: [Along; 4] = [Along::All, Along::Causal, Along::Before, Along::Shifted];

fn axial_agrees<T: Float>() {
    for device in devices() {
        // A picture's rows and columns, a video's every axis and plane; sides of 1 and of a tile and one more.
        let cases: [(&[usize], &[std::ops::Range<usize>]); 4] = [
            (&[2, 5, 7, 2, 8], &[1..2, 2..3, 1..3]),
            (&[1, 1, 65, 1, 16], &[1..2, 2..3]),
            (&[2, 3, 4, 5, 2, 8], &[1..2, 2..3, 3..4, 2..4, 1..4]),
            (&[1, 0, 3, 2, 8], &[1..2, 2..3]),
        ];
        for (shape, lines) in cases {
            let input = |seed| tensor::<T>(device, shape, &uniform(seed, shape.iter().product()));
            let (q, k, v) = (input(1), input(2), input(3));
            for axes in lines {
                for along in ALONG {
                    let got = attention::axial(&q, &k, &v, axes.clone(), along, 0.9).unwrap();
                    let [q, k, v] = [&q, &k, &v].map(widened);
                    let expected = attention::axial(&q, &k, &v, axes.clone(), along, 0.9).unwrap();
                    let what = format!("axial {} {device} {shape:?} {axes:?} {along:?}", T::DTYPE);
                    assert_close(&what, &got, &expected, 0.0);
                }
            }
        }
    }
}

#[test]
fn axial_agrees_with_reference() {
    axial_agrees::<f32>();
    axial_agrees::<f16>();
    axial_agrees::<bf16>();
}

#[test]
fn axial_takes_parts_of_one_projection() {
    // [batch, h, w, 3 * heads, head_dim]: rows need no copy, columns do.
    for device in devices() {
        let packed = tensor::<f32>(device, &[2, 3, 4, 6, 8], &uniform(7, 2 * 3 * 4 * 6 * 8));
        let part = |n: usize| packed.narrow(3, 2 * n, 2).unwrap();
        for axes in [1..2, 2..3] {
            let got = attention::axial(&part(0), &part(1), &part(2), axes.clone(), Along::Causal, 0.5).unwrap();
            let dense = |n: usize| part(n).contiguous().unwrap();
            let expected = attention::axial(&dense(0), &dense(1), &dense(2), axes, Along::Causal, 0.5).unwrap();
            assert_eq!(got.to_vec().unwrap(), expected.to_vec().unwrap(), "{device}");
        }
    }
}

#[test]
fn axial_names_axes_that_are_not_cells() {
    let x = Tensor::<f32>::zeros(&Device::reference(), &[1, 2, 3, 1, 8]).unwrap();
    for axes in [0..1, 3..4, 2..2] {
        let error = attention::axial(&x, &x, &x, axes, Along::All, 1.0).unwrap_err();
        assert!(matches!(error, Error::Value { operand: "axes", .. }), "{error}");
    }
}

fn agrees_with_dump<T: Float>(dump: &Dump, device: &Device) {
    let input = |name: &str| dump.tensor::<T>(name, device).expect("every case has it");
    let names: &[&str] = if dump.params["grid"]["t"].is_null() { &["h", "w"] } else { &["t", "h", "w"] };
    let along = dump.params["axes"].as_array().unwrap();
    let place = |axis: &serde_json::Value| 1 + names.iter().position(|name| axis == name).unwrap();
    let axes = place(&along[0])..1 + place(along.last().unwrap());
    let causal = match dump.params["causal"].as_str() {
        None => Along::All,
        Some("inclusive") => Along::Causal,
        Some("strict") => Along::Before,
        Some(_) => Along::Shifted,
    };
    let scale = dump.f32("scale").unwrap();
    let got = attention::axial(&input("in.q"), &input("in.k"), &input("in.v"), axes, causal, scale).unwrap();
    let naive = if T::EPSILON < 1e-6 { 0.0 } else { dump.naive_error("y") };
    let expected = dump.tensor("out.y", &Device::reference()).unwrap();
    assert_close(&format!("{} {device}", dump.name), &got, &expected, naive);
}

#[test]
fn axial_agrees_with_dumps() {
    let dumps = dumps::of_family("axial");
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
