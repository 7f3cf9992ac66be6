//! Matrix products.

use smalti::{Device, Error, Float, Tensor, Weight, bf16, f16, linear};

use crate::common::{assert_close, devices, moved, tensor, uniform, widened};
use crate::dumps::{self, Dump};

/// Rows, inputs, outputs. Edges of the kernels: nothing, one, one less and one more than a vector, a tile and a
/// block, more rows than a block takes, primes.
const SIZES: &[[usize; 3]] = &[
    [1, 1, 1],
    [1, 15, 7],
    [2, 17, 6],
    [3, 16, 25],
    [4, 33, 3],
    [5, 64, 4],
    [7, 31, 24],
    [17, 127, 33],
    [131, 65, 67],
    [13, 40, 6],
    [131, 65, 130],
    [1, 1024, 130],
    [0, 8, 3],
    [3, 0, 5],
    [3, 8, 0],
];

/// A weight of each stored type with the same values as near as the type comes, and its twin on the reference.
fn weights(device: &Device, shape: &[usize; 2]) -> Vec<(Weight, Weight)> {
    let values = uniform(2, shape[0] * shape[1]);
    let reference = Device::reference();
    let single = tensor::<f32>(device, shape, &values);
    let half = tensor::<f16>(device, shape, &values);
    let brain = tensor::<bf16>(device, shape, &values);
    #[expect(clippy::cast_possible_truncation, reason = "within 127 of 0")]
    let integers = values.iter().map(|value| (value * 127.0).round() as i8).collect();
    let integers = Tensor::from_vec(device, shape, integers).unwrap();
    let scale = tensor::<f32>(device, &shape[..1], &uniform(3, shape[0]));
    vec![
        (single.clone().into(), moved(&single, &reference).into()),
        (half.clone().into(), moved(&half, &reference).into()),
        (brain.clone().into(), moved(&brain, &reference).into()),
        (
            Weight::int8(integers.clone(), scale.clone()).unwrap(),
            Weight::int8(moved(&integers, &reference), moved(&scale, &reference)).unwrap(),
        ),
    ]
}

fn linear_agrees<T: Float>() {
    for device in devices() {
        for &[rows, inputs, outputs] in SIZES {
            let x = tensor::<T>(device, &[rows, inputs], &uniform(1, rows * inputs));
            let bias = tensor::<f32>(device, &[outputs], &uniform(4, outputs));
            let on_reference = moved(&bias, &Device::reference());
            for (weight, twin) in weights(device, &[outputs, inputs]) {
                for (bias, bias_twin) in [(Some(&bias), Some(&on_reference)), (None, None)] {
                    let got = linear::linear(&x, &weight, bias).unwrap();
                    let expected = linear::linear(&widened(&x), &twin, bias_twin).unwrap();
                    let what = format!(
                        "linear {} {device} x [{rows}, {inputs}], weight {} {outputs}, bias {}",
                        T::DTYPE,
                        weight.dtype(),
                        bias.is_some()
                    );
                    assert_close(&what, &got, &expected, 0.0);
                }
            }
        }
    }
}

#[test]
fn linear_agrees_with_reference_f32() {
    linear_agrees::<f32>();
}

#[test]
fn linear_agrees_with_reference_f16() {
    linear_agrees::<f16>();
}

#[test]
fn linear_agrees_with_reference_bf16() {
    linear_agrees::<bf16>();
}

#[test]
fn linear_takes_strided_operands() {
    for device in devices() {
        let x = tensor::<f32>(device, &[3, 2, 10], &uniform(1, 60)).narrow(2, 1, 7).unwrap();
        let x = x.permute(&[1, 0, 2]).unwrap();
        let weight = tensor::<f32>(device, &[7, 5], &uniform(2, 35)).permute(&[1, 0]).unwrap();
        let got = linear::linear(&x, &weight.clone().into(), None).unwrap();
        let twin = moved(&weight, &Device::reference());
        let expected = linear::linear(&widened(&x), &twin.into(), None).unwrap();
        assert_eq!(got.shape(), [2, 3, 5]);
        assert_close(&format!("linear {device} strided"), &got, &expected, 0.0);
    }
}

#[test]
fn linear_row_does_not_depend_on_the_number_of_rows_or_threads() {
    let mut devices = devices().to_vec();
    devices.push(Device::cpu_with_threads(3).unwrap());
    let mut first_on_cpu: Option<Vec<f32>> = None;
    for device in devices {
        let (rows, inputs, outputs) = (203, 519, 301);
        let values = uniform(5, rows * inputs);
        let weight = tensor::<f16>(&device, &[outputs, inputs], &uniform(6, outputs * inputs)).into();
        let x = tensor::<f32>(&device, &[rows, inputs], &values);
        let all = linear::linear(&x, &weight, None).unwrap().to_vec().unwrap();
        for some in [1, 2, 3, 6, 40] {
            let part = x.narrow(0, 101, some).unwrap();
            let part = linear::linear(&part, &weight, None).unwrap().to_vec().unwrap();
            assert_eq!(part, all[101 * outputs..][..some * outputs], "{device}: {some} rows");
        }
        if device.backend() == smalti::Backend::Cpu {
            assert_eq!(first_on_cpu.get_or_insert_with(|| all.clone()), &all, "threads");
        }
    }
}

/// A processor runs the best instructions it has; here those that others have.
#[test]
fn cpu_agrees_on_every_set_of_instructions() {
    let tests = ["linear::linear_", "linear::matmul_", "attention::attention_"];
    for set in ["portable", "avx2", "avx512"] {
        let mut this = std::process::Command::new(std::env::current_exe().unwrap());
        this.args(tests).env("SMALTI_SIMD", set).env("SMALTI_REQUIRE", "cpu").env("SMALTI_ONLY", "cpu");
        let output = this.output().unwrap();
        assert!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Where a GPU has tensor cores: so many outputs and rows that a kernel with large tiles, one with small tiles and
/// those for few rows each have their turn.
#[test]
fn linear_of_half_types_does_not_depend_on_the_number_of_rows() {
    fn holds<T: Float>()
    where
        Weight: From<Tensor<T>>,
    {
        // Segments of 32 inputs, of which the last one is short; rows of whole pieces of 16 bytes, and others.
        for (device, inputs) in devices().iter().flat_map(|device| [(device, 33), (device, 200)]) {
            let (rows, outputs) = (1500, 1496);
            let weight = tensor::<T>(device, &[outputs, inputs], &uniform(6, outputs * inputs));
            let twin = Weight::from(moved(&weight, &Device::reference()));
            let weight = Weight::from(weight);
            let x = tensor::<T>(device, &[rows, inputs], &uniform(5, rows * inputs));
            let all = linear::linear(&x, &weight, None).unwrap().to_vec().unwrap();
            for some in [1, 9, 40, 193] {
                let part = x.narrow(0, 1101, some).unwrap();
                let got = linear::linear(&part, &weight, None).unwrap();
                assert!(got.to_vec().unwrap() == all[1101 * outputs..][..some * outputs], "{device}: {some} rows");
                if some == 9 {
                    let expected = linear::linear(&widened(&part), &twin, None).unwrap();
                    assert_close(&format!("linear {} {device} of many outputs", T::DTYPE), &got, &expected, 0.0);
                }
            }
        }
    }
    holds::<f16>();
    holds::<bf16>();
}

/// Shapes for each of Hopper's kernels: a few outputs of many rows and entries, and more, of no whole tiles; and inputs in
/// segments that end in the middle of a stage, past which products are under way while the stage before is given back.
#[test]
fn linear_of_half_types_agrees_where_all_multiprocessors_have_work() {
    fn holds<T: Float>()
    where
        Weight: From<Tensor<T>>,
    {
        for device in devices() {
            for (rows, inputs, outputs) in [(193, 72, 2504), (1530, 40, 1400), (1500, 136, 1496), (130, 520, 2112)] {
                let what = format!("linear {} {device} [{rows}, {inputs}] to {outputs}", T::DTYPE);
                let weight = tensor::<T>(device, &[outputs, inputs], &uniform(6, outputs * inputs));
                let twin = Weight::from(moved(&weight, &Device::reference()));
                let bias = tensor::<f32>(device, &[outputs], &uniform(7, outputs));
                let x = tensor::<T>(device, &[rows, inputs], &uniform(5, rows * inputs));
                let got = linear::linear(&x, &Weight::from(weight), Some(&bias)).unwrap();
                let expected = linear::linear(&widened(&x), &twin, Some(&moved(&bias, &Device::reference()))).unwrap();
                assert_close(&what, &got, &expected, 0.0);
            }
            let a = tensor::<T>(device, &[3, 130, 48], &uniform(1, 3 * 130 * 48));
            let b = tensor::<T>(device, &[3, 48, 776], &uniform(2, 3 * 48 * 776));
            let got = linear::matmul(&a, &b).unwrap();
            let expected = linear::matmul(&widened(&a), &widened(&b)).unwrap();
            assert_close(&format!("matmul {} {device} of many outputs", T::DTYPE), &got, &expected, 0.0);
        }
    }
    holds::<f16>();
    holds::<bf16>();
}

#[test]
fn linear_nan_stays_in_its_row() {
    for device in devices() {
        for rows in [2, 9] {
            let mut values = uniform(1, rows * 20);
            values[3] = f64::NAN;
            let x = tensor::<f32>(device, &[rows, 20], &values);
            let weight = tensor::<f32>(device, &[5, 20], &uniform(2, 100)).into();
            let y = linear::linear(&x, &weight, None).unwrap().to_vec().unwrap();
            assert!(y[..5].iter().all(|y| y.is_nan()) && y[5..].iter().all(|y| y.is_finite()), "{device}: {y:?}");
        }
    }
}

#[test]
fn linear_names_a_wrong_operand() {
    let device = Device::reference();
    let x = Tensor::<f32>::zeros(&device, &[2, 4]).unwrap();
    let weight = Weight::from(Tensor::<f32>::zeros(&device, &[3, 5]).unwrap());
    let error = linear::linear(&x, &weight, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "linear: weight has shape [3, 5], expected [out, 4]: one column per input of x, which is [2, 4]"
    );
    let weight = Weight::from(Tensor::<f32>::zeros(&device, &[3, 4]).unwrap());
    let bias = Tensor::<f32>::zeros(&device, &[4]).unwrap();
    let error = linear::linear(&x, &weight, Some(&bias)).unwrap_err();
    assert!(matches!(error, Error::Shape { op: "linear", operand: "bias", .. }));
}

fn matmul_agrees<T: Float>() {
    for device in devices() {
        for &[m, k, n] in SIZES {
            for batch in [1, 3] {
                let a = tensor::<T>(device, &[batch, m, k], &uniform(1, batch * m * k));
                let b = tensor::<T>(device, &[batch, k, n], &uniform(2, batch * k * n));
                let got = linear::matmul(&a, &b).unwrap();
                let expected = linear::matmul(&widened(&a), &widened(&b)).unwrap();
                let what = format!("matmul {} {device} [{batch}, {m}, {k}] x [.., {n}]", T::DTYPE);
                assert_close(&what, &got, &expected, 0.0);
            }
        }
        let a = tensor::<T>(device, &[2, 3, 4, 5], &uniform(1, 120));
        let b = tensor::<T>(device, &[2, 3, 6, 5], &uniform(2, 180)).permute(&[0, 1, 3, 2]).unwrap();
        let got = linear::matmul(&a, &b).unwrap();
        assert_eq!(got.shape(), [2, 3, 4, 6]);
        let expected = linear::matmul(&widened(&a), &widened(&b)).unwrap();
        assert_close(&format!("matmul {} {device} transposed b", T::DTYPE), &got, &expected, 0.0);
    }
}

#[test]
fn matmul_agrees_with_reference_f32() {
    matmul_agrees::<f32>();
}

#[test]
fn matmul_agrees_with_reference_f16() {
    matmul_agrees::<f16>();
}

#[test]
fn matmul_agrees_with_reference_bf16() {
    matmul_agrees::<bf16>();
}

#[test]
fn matmul_names_a_wrong_operand() {
    let device = Device::reference();
    let a = Tensor::<f32>::zeros(&device, &[2, 3, 4]).unwrap();
    for shape in [&[2, 3, 4][..], &[1, 4, 3], &[4, 3]] {
        let b = Tensor::<f32>::zeros(&device, shape).unwrap();
        let error = linear::matmul(&a, &b).unwrap_err();
        assert!(matches!(error, Error::Shape { op: "matmul", operand: "b", .. }), "{shape:?}");
    }
}

fn agrees_with_dump<T: Float>(dump: &Dump, device: &Device)
where
    Weight: From<Tensor<T>>,
{
    let x = dump.tensor::<T>("in.x", device).unwrap();
    let weight = dump.tensor::<T>("in.weight", device).unwrap().into();
    let bias = dump.tensor::<f32>("in.bias", device);
    let got = linear::linear(&x, &weight, bias.as_ref()).unwrap();
    let expected = dump.tensor::<f64>("out.y", &Device::reference()).unwrap();
    assert_close(&format!("{} {device}", dump.name), &got, &expected, dump.naive_error("y"));
}

#[test]
fn linear_agrees_with_dumps() {
    let dumps: Vec<_> = dumps::of_family("norm").into_iter().filter(|dump| dump.op == "linear").collect();
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
