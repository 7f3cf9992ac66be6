//! Copies and conversions.

use smalti::{Element, Tensor, bf16, copy, f16};

use crate::common::devices;

fn transposed_copy_is_exact<T: Element>(values: impl Fn(usize) -> T) {
    for device in devices() {
        for [rows, columns] in [[1, 1], [3, 5], [4, 6], [130, 7]] {
            let data: Vec<T> = (0..rows * columns).map(&values).collect();
            let x = Tensor::from_vec(device, &[rows, columns], data.clone()).unwrap();
            let got = x.permute(&[1, 0]).unwrap().to_vec().unwrap();
            let expected: Vec<T> =
                (0..columns).flat_map(|c| data.iter().skip(c).step_by(columns).copied().collect::<Vec<_>>()).collect();
            assert_eq!(got, expected, "{} {device} [{rows}, {columns}]", T::DTYPE);
        }
    }
}

#[test]
fn transposed_copy_is_exact_in_every_float() {
    transposed_copy_is_exact(|i| i as f32);
    transposed_copy_is_exact(|i| f16::from_f32(i as f32));
    transposed_copy_is_exact(|i| bf16::from_f32((i % 256) as f32));
    transposed_copy_is_exact(|i| i as u32);
}

#[test]
fn copy_into_a_slice_leaves_the_rest_alone() {
    for device in devices() {
        let mut cache = Tensor::<f16>::zeros(device, &[2, 5, 4]).unwrap();
        let x = Tensor::from_vec(device, &[2, 2, 4], vec![f16::ONE; 16]).unwrap();
        copy::copy_into_slice(&x, &mut cache, 1, 2).unwrap();
        let got: Vec<f32> = cache.to_vec().unwrap().iter().map(|y| y.to_f32()).collect();
        for (index, y) in got.iter().enumerate() {
            let expected = f32::from(u8::from((2..4).contains(&(index / 4 % 5))));
            assert_eq!(*y, expected, "{device}: element {index}");
        }
    }
}

#[test]
fn convert_rounds_to_nearest_even_on_every_f32_edge() {
    let edges = [
        0.0,
        -0.0,
        1.0,
        1.000_488_3,
        1.001_464_8,
        65504.0,
        65519.0,
        65520.0,
        1e30,
        f32::INFINITY,
        6.1e-5,
        5.96e-8,
        2.98e-8,
        2.99e-8,
        1e-10,
        -3.3e-6,
        1.003_906_3,
        1.011_718_8,
        f32::MAX,
        f32::MIN_POSITIVE,
        0.1,
        2049.0,
        2051.0,
    ];
    for device in devices() {
        let x = Tensor::from_slice(device, &[edges.len()], &edges).unwrap();
        let half = copy::convert::<f32, f16>(&x).unwrap().to_vec().unwrap();
        let brain = copy::convert::<f32, bf16>(&x).unwrap().to_vec().unwrap();
        for (index, x) in edges.iter().enumerate() {
            assert_eq!(half[index].to_bits(), f16::from_f32(*x).to_bits(), "{device}: f16 of {x:e}");
            assert_eq!(brain[index].to_bits(), bf16::from_f32(*x).to_bits(), "{device}: bf16 of {x:e}");
        }
    }
}
