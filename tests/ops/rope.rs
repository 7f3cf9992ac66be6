//! Rotary positions.

use smalti::rope::{self, NullRows, Pairing, Table};
use smalti::{Device, Error, Float, Tensor, bf16, f16};

use crate::common::{assert_close, devices, moved, tensor, uniform, widened};
use crate::dumps::{self, Dump};

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

fn agrees_with_dump<T: Float>(dump: &Dump, device: &Device) {
    let x = dump.tensor::<T>("in.x", device).expect("every case has it");
    let pairing = match dump.params["pairing"].as_str() {
        Some("interleaved") => Pairing::Interleaved,
        _ => Pairing::HalfSplit,
    };
    let theta = dump.f32("theta").unwrap_or(1e4);
    let rotary_dim = dump.usize("rotary_dim").unwrap_or(x.shape()[3]);
    let positions = dump.values("in.positions").map(|(_, positions)| positions);
    let expected_cos = dump.tensor::<f64>("out.cos", &Device::reference()).expect("every case has it");
    let null_rows = dump.usize("null_rows").unwrap_or(0);
    let (table, start) = match (dump.params["kind"].as_str(), &dump.params["grid"], positions) {
        (Some("1d"), _, Some(positions)) if positions.windows(2).all(|pair| pair[1] - pair[0] == 1.0) => {
            let start = positions[0] as usize;
            (Table::one_d(device, start + positions.len(), rotary_dim, theta).unwrap(), start)
        }
        (Some("axes"), grid, _) if grid.as_array().is_some_and(|grid| grid.len() == 2) => {
            let [height, width] = [0, 1].map(|axis| grid[axis].as_u64().unwrap() as usize);
            let table = Table::grid(device, height, width, rotary_dim, theta).unwrap();
            let kind = if dump.params["null_value"] == "zero" { NullRows::Zero } else { NullRows::Identity };
            (table.with_null_rows(null_rows, kind).unwrap(), 0)
        }
        // The table as it is given: only the turning is under test.
        _ => {
            let given = |name| dump.tensor::<f32>(name, device).expect("every case has it");
            let (cos, sin) = (given("out.cos"), given("out.sin"));
            if cos.shape().len() != 2 {
                println!("SKIPPED {}: a table per batch entry", dump.name);
                return;
            }
            (Table { cos, sin }, 0)
        }
    };
    let what = format!("{} {device}", dump.name);
    let rows = expected_cos.shape()[0];
    assert_close(&format!("{what} cos"), &table.cos.narrow(0, start, rows).unwrap(), &expected_cos, 0.0);
    let got = rope::rope(&x, &table, start, pairing).unwrap();
    let naive = if T::EPSILON < 1e-6 { 0.0 } else { dump.naive_error("y") };
    assert_close(&what, &got, &dump.tensor("out.y", &Device::reference()).unwrap(), naive);
}

#[test]
fn rope_agrees_with_dumps() {
    let dumps = dumps::of_family("rope");
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
