//! Rotary positions.

use smalti::attention::KvCache;
use smalti::rope::{self, Extrapolation, Frequencies, NullRows, Pairing, Positions, Table};
use smalti::{Device, Error, Float, Tensor, Weight, bf16, copy, f16};

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

fn values<T: Float>(tensor: &Tensor<T>) -> Vec<T> {
    tensor.to_vec().expect("a test's own tensor")
}

/// Rows that a kernel cannot write by whole words, rows in a buffer of more, and rows without gaps.
fn other_forms_agree<T: Float>() {
    for device in devices() {
        for [seq, head_dim, pairs] in [[1, 2, 1], [5, 64, 32], [3, 9, 3], [9, 10, 3], [33, 8, 4], [4, 4, 0]] {
            let table = Table::from_angles(device, 2 * seq, pairs, |p, j| (p + 1) as f64 / (j + 1) as f64).unwrap();
            let own = |table: &Tensor<f32>| table.reshape(&[2, seq, pairs]).unwrap();
            let per_batch = Table { cos: own(&table.cos), sin: own(&table.sin) };
            let x = tensor::<T>(device, &[2, 3, seq, head_dim], &uniform(4, 6 * seq * head_dim));
            for (table, start) in [(&table, seq), (&per_batch, 0)] {
                let at_home = Table {
                    cos: moved(&table.cos, &Device::reference()),
                    sin: moved(&table.sin, &Device::reference()),
                };
                for pairing in [Pairing::Interleaved, Pairing::HalfSplit] {
                    let what = format!("{} {device} {pairing:?} {seq} x {head_dim}, {pairs} pairs", T::DTYPE);
                    let expected = rope::rope(&widened(&x), &at_home, start, pairing).unwrap();
                    let got = rope::rope(&x, table, start, pairing).unwrap();
                    assert_close(&format!("rope {what}"), &got, &expected, 0.0);

                    let mut dense = moved(&x, device);
                    rope::rope_in_place(&mut dense, table, start, pairing).unwrap();
                    assert_close(&format!("in place {what}"), &dense, &expected, 0.0);

                    // Half types of odd rows cannot lie in a cache on wgpu.
                    if T::DTYPE.bytes() == 2 && head_dim % 2 == 1 {
                        continue;
                    }
                    let mut cache = KvCache::<T>::new(device, 2, 3, 2 + seq, head_dim).unwrap();
                    let before = tensor::<T>(device, &[2, 3, 1, head_dim], &vec![1.0; 6 * head_dim]);
                    cache.append(&before, &before).unwrap();
                    cache.append_rope(&x, &x, table, start, pairing).unwrap();
                    assert_eq!(values(&cache.k().narrow(2, 0, 1).unwrap()), values(&before), "{what}");
                    let mut part = cache.k().narrow(2, 1, seq).unwrap();
                    assert_close(&format!("into a cache {what}"), &part, &expected, 0.0);
                    assert_eq!(values(&cache.v().narrow(2, 1, seq).unwrap()), values(&x), "{what}");

                    copy::copy_into(&x, &mut part).unwrap();
                    rope::rope_in_place(&mut part, table, start, pairing).unwrap();
                    assert_close(&format!("in place in a cache {what}"), &part, &expected, 0.0);
                }
            }
        }
    }
}

#[test]
fn rope_in_place_and_into_a_cache_agree_with_reference() {
    other_forms_agree::<f32>();
    other_forms_agree::<f16>();
    other_forms_agree::<bf16>();
}

#[test]
fn rope_reordered_weights_give_the_same_scores() {
    // Two heads of six channels, of which four turn; the weight maps the one-hot input to its columns.
    let device = Device::reference();
    let [heads, head_dim, pairs, inputs] = [2, 6, 2, 3];
    let weight = tensor::<f32>(&device, &[heads * head_dim, inputs], &uniform(5, heads * head_dim * inputs));
    let other = rope::reorder_weight(&weight.clone().into(), Pairing::HalfSplit, Pairing::Interleaved, pairs, head_dim);
    let Weight::F32(other) = other.unwrap() else { panic!("stays f32") };
    let table = Table::from_angles(&device, inputs, pairs, |p, j| (p * (j + 1)) as f64 + 0.3).unwrap();
    let turned = |weight: &Tensor<f32>, pairing| {
        let x = weight.reshape(&[1, heads, head_dim, inputs]).unwrap().permute(&[0, 1, 3, 2]).unwrap();
        rope::rope(&x, &table, 0, pairing).unwrap()
    };
    let (halves, interleaved) = (turned(&weight, Pairing::HalfSplit), turned(&other, Pairing::Interleaved));
    let order = Pairing::HalfSplit.order(Pairing::Interleaved, pairs, head_dim).unwrap();
    assert_eq!(order, [0, 2, 1, 3, 4, 5]);
    let (halves, interleaved) = (halves.to_vec().unwrap(), interleaved.to_vec().unwrap());
    for (index, got) in interleaved.iter().enumerate() {
        assert_eq!(*got, halves[index / head_dim * head_dim + order[index % head_dim]], "element {index}");
    }
    let scale = tensor::<f32>(&device, &[12], &uniform(6, 12));
    let back = rope::reorder_bias(&scale, Pairing::HalfSplit, Pairing::Interleaved, pairs, head_dim).unwrap();
    let back = rope::reorder_bias(&back, Pairing::Interleaved, Pairing::HalfSplit, pairs, head_dim).unwrap();
    assert_eq!(values(&back), values(&scale));
    assert!(rope::reorder_weight(&weight.into(), Pairing::HalfSplit, Pairing::Interleaved, 2, 5).is_err());
}

#[test]
fn rope_positions_of_grids_and_of_directions() {
    let grid = Positions::grid(&[2, 1, 3]);
    let cells = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [1, 0, 0], [1, 0, 1], [1, 0, 2]];
    assert_eq!(grid, Positions::new(3, cells.concat().into_iter().map(f64::from).collect()).unwrap());
    let directed = Positions::directed(&[[0, 0], [0, 1], [1, 0]]);
    let rows = [[0, 0, 0, 1], [0, 1, 1, 0], [1, 0, 1, 0]];
    assert_eq!(directed, Positions::new(4, rows.concat().into_iter().map(f64::from).collect()).unwrap());
    assert_eq!(rope::spread(&[0, 1, 1], 5), [0, 1, 1, 0, 1]);
    assert_eq!(rope::sections(&[1, 0, 2]), [0, 2, 2]);
    assert!(Positions::new(2, vec![1.0; 3]).is_err() && Positions::new(1, vec![f64::NAN]).is_err());
    let axes = Frequencies::per_axis(&[2, 2], 1e4).unwrap();
    assert!(matches!(Table::new(&Device::reference(), &axes, &grid), Err(Error::Value { operand: "positions", .. })));
    assert!(Frequencies::shared(&[0, 2], &[1.0, 1.0], 1e4).is_err());
    assert!(Frequencies::extrapolated(2, 4, 1e4, 2.0, Extrapolation::Ntk).is_err());
    assert!(Frequencies::extrapolated(2, 8, 1e4, 2.0, Extrapolation::ByParts { original: 4 }).is_err());
}

fn frequencies(dump: &Dump) -> Frequencies {
    let theta = dump.f32("theta").expect("every case has it");
    let counts =
        |name: &str| dump.params[name].as_array().expect("a list").iter().map(|n| n.as_u64().unwrap() as usize);
    match dump.params["kind"].as_str().expect("every case has a kind") {
        "1d" => Frequencies::one_d(dump.usize("rotary_dim").unwrap(), theta),
        "axes" => Frequencies::per_axis(&counts("split").collect::<Vec<_>>(), theta),
        "shared" => {
            let axes: Vec<_> = dump
                .values("in.axis_of_pair")
                .expect("such a case has it")
                .1
                .iter()
                .map(|axis| *axis as usize)
                .collect();
            let factors =
                dump.params["factor"].as_array().unwrap().iter().map(|factor| factor.as_f64().unwrap() as f32);
            Frequencies::shared(&axes, &factors.collect::<Vec<_>>(), theta)
        }
        _ => {
            let extrapolation = match dump.params["mode"].as_str().unwrap() {
                "linear" => Extrapolation::Linear,
                "ntk" => Extrapolation::Ntk,
                _ => Extrapolation::ByParts { original: dump.usize("original").unwrap() },
            };
            let (axes, dim) = (dump.usize("axes").unwrap(), dump.usize("rotary_dim").unwrap());
            Frequencies::extrapolated(axes, dim, theta, dump.f32("factor").unwrap(), extrapolation)
        }
    }
    .unwrap()
}

fn agrees_with_dump<T: Float>(dump: &Dump, device: &Device) {
    let x = dump.tensor::<T>("in.x", device).expect("every case has it");
    let pairing = match dump.params["pairing"].as_str() {
        Some("interleaved") => Pairing::Interleaved,
        _ => Pairing::HalfSplit,
    };
    let frequencies = frequencies(dump);
    let (shape, values) = dump.values("in.positions").expect("every case has it");
    let positions = match shape.len() - usize::from(frequencies.axes() > 1) {
        1 => Positions::new(frequencies.axes(), values),
        _ => Positions::per_batch(shape[0], frequencies.axes(), values),
    };
    let mut table = Table::new(device, &frequencies, &positions.unwrap()).unwrap();
    if let Some(null_rows) = dump.usize("null_rows") {
        let kind = if dump.params["null_value"] == "zero" { NullRows::Zero } else { NullRows::Identity };
        table = table.with_null_rows(null_rows, kind).unwrap();
    }
    let what = format!("{} {device}", dump.name);
    let expected = |name| dump.tensor::<f64>(name, &Device::reference()).expect("every case has it");
    assert_close(&format!("{what} cos"), &table.cos, &expected("out.cos"), 0.0);
    assert_close(&format!("{what} sin"), &table.sin, &expected("out.sin"), 0.0);
    let got = rope::rope(&x, &table, 0, pairing).unwrap();
    let naive = if T::EPSILON < 1e-6 { 0.0 } else { dump.naive_error("y") };
    assert_close(&what, &got, &expected("out.y"), naive);
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
