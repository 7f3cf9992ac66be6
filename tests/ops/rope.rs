//! Rotary positions.

use smalti::rope::{self, NullRows, Pairing, Table};
use smalti::{Backend, Device, Error, Float, Tensor, bf16, f16};

use crate::common::{assert_close, moved, tensor, uniform, widened};

/// Those whose kernels exist.
fn devices() -> &'static [Device] {
    let all = crate::common::devices();
    &all[..all.iter().position(|device| device.backend() == Backend::Wgpu).unwrap_or(all.len())]
}

fn rope_agrees<T: Float>() {
    for device in devices() {
        // One pair, channels that do not turn, an odd width, more rows than a workgroup.
        for [seq, head_dim, pairs, start] in [[1, 2, 1, 0], [5, 64, 32, 3], [3, 9, 3, 0], [70, 6, 3, 1], [0, 4, 2, 0]] {
            let table = Table::from_angles(device, seq + start + 1, pairs, |p, j| p as f64 / (j + 1) as f64).unwrap();
            let x = tensor::<T>(device, &[2, seq, 3, head_dim], &uniform(3, 6 * seq * head_dim));
            let x = x.permute(&[0, 2, 1, 3]).unwrap();
            let reference = Device::reference();
            let moved = Table { cos: moved(&table.cos, &reference), sin: moved(&table.sin, &reference) };
            for pairing in [Pairing::Interleaved, Pairing::HalfSplit] {
                let got = rope::rope(&x, &table, start, pairing).unwrap();
                let expected = rope::rope(&widened(&x), &moved, start, pairing).unwrap();
                let what = format!("rope {} {device} {pairing:?} {seq} x {head_dim}, {pairs} pairs", T::DTYPE);
                assert_close(&what, &got, &expected, 0.0);
            }
        }
    }
}

#[test]
fn rope_agrees_with_reference() {
    rope_agrees::<f32>();
    rope_agrees::<f16>();
    rope_agrees::<bf16>();
}

#[test]
fn rope_null_rows_leave_or_clear() {
    for device in devices().iter().chain([&Device::reference()]) {
        let x = Tensor::from_slice(device, &[1, 1, 2, 4], &[1.0f32; 8]).unwrap();
        for (kind, expected) in [(NullRows::Identity, 1.0), (NullRows::Zero, 0.0)] {
            let table = Table::grid(device, 1, 1, 4, 1e4).unwrap().with_null_rows(1, kind).unwrap();
            let y = rope::rope(&x, &table, 0, Pairing::Interleaved).unwrap().to_vec().unwrap();
            assert_eq!(y, [expected, expected, expected, expected, 1.0, 1.0, 1.0, 1.0], "{device}");
        }
    }
}

#[test]
fn rope_names_a_table_that_ends_too_early() {
    let device = Device::reference();
    let table = Table::one_d(&device, 4, 8, 1e4).unwrap();
    let x = Tensor::<f32>::zeros(&device, &[1, 1, 2, 8]).unwrap();
    let error = rope::rope(&x, &table, 3, Pairing::Interleaved).unwrap_err();
    assert!(matches!(error, Error::Shape { op: "rope", operand: "cos", .. }), "{error}");
    assert!(Table::one_d(&device, 4, 7, 1e4).is_err() && Table::grid(&device, 2, 2, 6, 1e4).is_err());
}
