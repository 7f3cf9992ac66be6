//! Rows of a learned table.

use smalti::{Backend, Device, Error, Float, Tensor, Weight, bf16, embedding, f16};

use crate::common::{assert_close, devices, moved, tensor, uniform};
use crate::dumps::{self, Dump};

fn embedding_agrees<T: Float>() {
    let reference = Device::reference();
    for device in devices() {
        // One channel, an odd number of them, a prime, more than a workgroup; no id at all.
        for (channels, ids) in
            [(1, vec![4, 0, 4]), (3, vec![2]), (131, vec![0, 4, 1, 1, 3]), (768, vec![3, 2]), (8, vec![])]
        {
            let table = uniform(1, 5 * channels);
            let ids = Tensor::from_vec(device, &[ids.len(), 1], ids).unwrap();
            #[expect(clippy::cast_possible_truncation, reason = "within 127 of 0")]
            let integers: Vec<i8> = table.iter().map(|value| (value * 127.0).round() as i8).collect();
            let integers = Tensor::from_vec(device, &[5, channels], integers).unwrap();
            let scale = tensor::<f32>(device, &[5], &uniform(3, 5));
            let single = tensor::<f32>(device, &[5, channels], &table);
            let half = tensor::<f16>(device, &[5, channels], &table);
            let brain = tensor::<bf16>(device, &[5, channels], &table);
            let tables: [(Weight, Weight); 4] = [
                (single.clone().into(), moved(&single, &reference).into()),
                (half.clone().into(), moved(&half, &reference).into()),
                (brain.clone().into(), moved(&brain, &reference).into()),
                (
                    Weight::int8(integers.clone(), scale.clone()).unwrap(),
                    Weight::int8(moved(&integers, &reference), moved(&scale, &reference)).unwrap(),
                ),
            ];
            for (table, twin) in tables {
                let got = embedding::embedding::<T>(&table, &ids).unwrap();
                let expected = embedding::embedding::<f64>(&twin, &moved(&ids, &reference)).unwrap();
                let what = format!("embedding {} {device} table {} [5, {channels}]", T::DTYPE, table.dtype());
                assert_close(&what, &got, &expected, 0.0);
            }
        }
    }
}

#[test]
fn embedding_agrees_with_reference_f32() {
    embedding_agrees::<f32>();
}

#[test]
fn embedding_agrees_with_reference_f16() {
    embedding_agrees::<f16>();
}

#[test]
fn embedding_agrees_with_reference_bf16() {
    embedding_agrees::<bf16>();
}

#[test]
fn embedding_id_out_of_range_is_an_error_on_hosts_and_zeros_on_gpus() {
    for device in devices().iter().chain([&Device::reference()]) {
        let table = Weight::from(tensor::<f32>(device, &[3, 2], &[1.0; 6]));
        let ids = Tensor::from_slice(device, &[3], &[2, 3, u32::MAX]).unwrap();
        let got = embedding::embedding::<f32>(&table, &ids);
        if matches!(device.backend(), Backend::Cuda | Backend::Wgpu) {
            assert_eq!(got.unwrap().to_vec().unwrap(), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0], "{device}");
        } else {
            let error = got.unwrap_err();
            assert!(matches!(error, Error::Value { op: "embedding", .. }));
            assert_eq!(error.to_string(), "embedding: an id is 3, expected less than 3, the entries of the table");
        }
    }
}

fn agrees_with_dump<T: Float>(dump: &Dump, device: &Device)
where
    Weight: From<Tensor<T>>,
{
    let table = dump.tensor::<T>("in.table", device).unwrap().into();
    let (shape, ids) = dump.values("in.indices").unwrap();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole numbers in the table")]
    let ids = Tensor::from_vec(device, &shape, ids.iter().map(|id| *id as u32).collect()).unwrap();
    let got = embedding::embedding::<T>(&table, &ids).unwrap();
    let expected = dump.tensor::<f64>("out.y", &Device::reference()).unwrap();
    assert_close(&format!("{} {device}", dump.name), &got, &expected, dump.naive_error("y"));
}

#[test]
fn embedding_agrees_with_dumps() {
    let dumps: Vec<_> = dumps::of_family("vq").into_iter().filter(|dump| dump.op == "embedding").collect();
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
