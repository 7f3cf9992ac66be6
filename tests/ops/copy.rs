//! Copies and conversions.

use smalti::{Element, Float, Tensor, bf16, copy, f16};

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

#[test]
fn a_copy_that_ends_within_a_word_leaves_what_lies_behind_it() {
    for device in devices() {
        let mut y = Tensor::from_vec(device, &[3, 5], vec![1u8; 15]).unwrap();
        let x = Tensor::from_vec(device, &[1, 5], vec![7u8; 5]).unwrap();
        copy::copy_into_slice(&x, &mut y, 0, 0).unwrap();
        assert_eq!(y.to_vec().unwrap(), [[7; 5], [1; 5], [1; 5]].concat(), "{device}");
    }
}

#[test]
fn half_types_round_what_is_near_a_tie_to_its_own_side() {
    // A tie of each type, and the next numbers of f64 on both sides of it.
    for (below, above) in [(1.0, 1.0 + 2f64.powi(-10)), (65504.0, f64::INFINITY), (0.0, 2f64.powi(-24))] {
        let tie = if above == f64::INFINITY { 65520.0 } else { f64::midpoint(below, above) };
        let got = [tie.next_down(), tie.next_up()].map(|x| <f16 as Float>::from_f64(x).to_f64());
        assert_eq!(got, [below, above], "f16 near {tie:e}");
        let got = [-tie.next_down(), -tie.next_up()].map(|x| <f16 as Float>::from_f64(x).to_f64());
        assert_eq!(got, [-below, -above], "f16 near -{tie:e}");
    }
    let tie = 1.0 + 2f64.powi(-8);
    let got = [tie.next_down(), tie, tie.next_up()].map(|x| <bf16 as Float>::from_f64(x).to_f64());
    assert_eq!(got, [1.0, 1.0, 1.0 + 2f64.powi(-7)]);
    assert!(<bf16 as Float>::from_f64(f64::NAN).to_f64().is_nan());
    assert_eq!(<bf16 as Float>::from_f64(1e300).to_f64(), f64::INFINITY);
}
