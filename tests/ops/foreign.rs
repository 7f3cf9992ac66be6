//! Devices and buffers that another crate made, launchers in its encoder, and devices that fail.

use smalti::backend::wgpu::{Operand, Recorder};
use smalti::{Device, Dtype, Error, Layout, Tensor, activation, attention, copy, elementwise, norm};

use super::common::{assert_close, tensor, uniform, widened};

/// A device made without this library; none where there is no adapter and `SMALTI_REQUIRE` does not name wgpu.
fn handles(limits: Option<wgpu::Limits>) -> Option<(wgpu::Device, wgpu::Queue)> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let Some(adapter) = adapters.first() else {
        let required = std::env::var("SMALTI_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "wgpu"), "SMALTI_REQUIRE names wgpu: no adapter was found");
        println!("SKIPPED on wgpu: no adapter was found");
        return None;
    };
    let required_limits = limits.unwrap_or_else(|| adapter.limits());
    let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
    Some(pollster::block_on(adapter.request_device(&descriptor)).expect("an adapter gives a device"))
}

const USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

fn buffer(device: &wgpu::Device, bytes: usize, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("foreign"),
        size: bytes as u64,
        usage,
        mapped_at_creation: false,
    })
}

/// What a buffer holds, read without this library.
fn read(device: &wgpu::Device, queue: &wgpu::Queue, from: &wgpu::Buffer) -> Vec<f32> {
    let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
    let staging = buffer(device, from.size() as usize, usage);
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(from, 0, &staging, 0, from.size());
    queue.submit([encoder.finish()]);
    staging.map_async(wgpu::MapMode::Read, .., |mapped| mapped.expect("a buffer that can be read"));
    device.poll(wgpu::PollType::wait_indefinitely()).expect("a working device");
    let mapped = staging.get_mapped_range(..).expect("mapped");
    mapped.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect()
}

fn floats(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect()
}

fn reference(rows: usize, channels: usize, values: &[f64]) -> Tensor<f64> {
    norm::rms_norm(&tensor::<f64>(&Device::reference(), &[rows, channels], values), None, 1e-5).expect("an op")
}

#[test]
fn ops_run_on_a_device_with_the_defaults_of_webgpu() {
    let Some((raw, queue)) = handles(Some(wgpu::Limits::default())) else { return };
    let device = Device::from_wgpu(raw, queue);
    let values = uniform(1, 3 * 300);
    let x = tensor::<f32>(&device, &[3, 300], &values);
    let y = norm::rms_norm(&x, None, 1e-5).expect("an op");
    assert_close("rms_norm on a foreign device", &y, &reference(3, 300, &values), 0.0);
}

#[test]
fn a_tensor_over_a_foreign_buffer_is_a_view_of_it() {
    let Some((raw, queue)) = handles(None) else { return };
    let device = Device::from_wgpu(raw.clone(), queue.clone());
    let values = uniform(2, 64);
    let held = buffer(&raw, 64 * 4, USAGE);
    queue.write_buffer(&held, 0, &floats(&values));
    // Rows of 5 at a distance of 8, from element 3 on.
    let layout = Layout::strided(&[7, 5], &[8, 1], 3).expect("a layout");
    let mut view = Tensor::<f32>::from_wgpu(&device, held.clone(), layout.clone()).expect("within the buffer");
    let part: Vec<f64> = layout.indices().map(|index| values[index]).collect();
    assert_eq!(widened(&view).to_vec().unwrap(), widened(&tensor::<f32>(&device, &[7, 5], &part)).to_vec().unwrap());
    let y = norm::rms_norm(&view, None, 1e-5).expect("an op");
    assert_close("rms_norm of a foreign view", &y, &reference(7, 5, &part), 0.0);

    // What its owner writes is seen here, and what is written here, by its owner: and nothing beside the view.
    queue.write_buffer(&held, 0, &floats(&uniform(3, 64)));
    let again = uniform(3, 64);
    assert_eq!(view.to_vec().unwrap()[0], again[3] as f32);
    let ones = Tensor::from_vec(&device, &[7, 1], vec![1.0f32; 7]).unwrap();
    copy::copy_into_slice(&ones, &mut view, 1, 2).expect("a slice of the view");
    device.submit().expect("a working device");
    let written = read(&raw, &queue, &held);
    for (index, value) in written.iter().enumerate() {
        let expected = if index % 8 == 5 && index < 59 { 1.0 } else { again[index] as f32 };
        assert_eq!(*value, expected, "element {index}");
    }
}

#[test]
fn a_tensor_over_a_foreign_buffer_is_checked() {
    let Some((raw, queue)) = handles(None) else { return };
    let device = Device::from_wgpu(raw.clone(), queue);
    let held = buffer(&raw, 64 * 4, USAGE);
    let whole = Layout::contiguous(&[64]).unwrap();
    assert!(Tensor::<f32>::from_wgpu(&device, held.clone(), whole.clone()).is_ok());
    let beyond = Layout::strided(&[8, 5], &[8, 1], 4).unwrap();
    let error = Tensor::<f32>::from_wgpu(&device, held.clone(), beyond).expect_err("one element too far");
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    let error = Tensor::<f64>::from_wgpu(&device, held.clone(), Layout::contiguous(&[8]).unwrap());
    assert!(matches!(error, Err(Error::Dtype { .. })), "{error:?}");
    let error = Tensor::<f32>::from_wgpu(&Device::reference(), held, whole.clone());
    assert!(matches!(error, Err(Error::Unavailable { .. })), "{error:?}");

    // A buffer that no kernel may read: an error that says so, and the device works on.
    let copied = buffer(&raw, 64 * 4, wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST);
    let copied = Tensor::<f32>::from_wgpu(&device, copied, whole).expect("copies need no more");
    let failed = norm::rms_norm(&copied, None, 1e-5).and_then(|y| y.to_vec()).expect_err("STORAGE is missing");
    assert!(failed.to_string().contains("STORAGE"), "{failed}");
    works(&device);
}

#[test]
fn launchers_record_into_the_callers_encoder() {
    let Some((raw, queue)) = handles(None) else { return };
    let device = Device::from_wgpu(raw.clone(), queue.clone());
    let gpu = device.gpu().expect("a wgpu device");
    let values = uniform(4, 3 * 33);
    let layout = Layout::contiguous(&[3, 33]).unwrap();
    let [source, x, y] = [0; 3].map(|_| buffer(&raw, 3 * 33 * 4, USAGE));
    queue.write_buffer(&source, 0, &floats(&values));
    let operand = |buffer| Operand { buffer, layout: &layout, dtype: Dtype::F32 };

    // Between two commands of the caller's own: nothing runs before the caller submits, then all runs in order.
    let mut encoder = raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(&source, 0, &x, 0, x.size());
    gpu.record_into(&mut encoder, |recorder| norm::wgpu::rms_norm(recorder, operand(&x), None, 1e-5, operand(&y)))
        .expect("room for one dispatch");
    encoder.clear_buffer(&x, 0, None);
    assert!(read(&raw, &queue, &y).iter().all(|value| *value == 0.0), "it ran before it was submitted");
    queue.submit([encoder.finish()]);
    assert!(read(&raw, &queue, &x).iter().all(|value| *value == 0.0));
    let got = Tensor::<f32>::from_wgpu(&device, y.clone(), layout.clone()).unwrap();
    assert_close("rms_norm in a foreign encoder", &got, &reference(3, 33, &values), 0.0);

    // What typed ops have recorded comes first.
    let ones = Tensor::from_vec(&device, &[3, 33], vec![1.0f32; 3 * 33]).unwrap();
    let twos = elementwise::add(&ones, &ones).unwrap();
    let mut encoder = raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    gpu.record_into(&mut encoder, |recorder| copy::wgpu::copy_into(recorder, twos.operand(), operand(&y))).unwrap();
    queue.submit([encoder.finish()]);
    assert!(read(&raw, &queue, &y).iter().all(|value| *value == 2.0));
}

#[test]
fn more_dispatches_than_a_call_holds_are_an_error() {
    let Some((raw, queue)) = handles(None) else { return };
    let device = Device::from_wgpu(raw.clone(), queue);
    let layout = Layout::contiguous(&[1, 4]).unwrap();
    let [x, y] = [0; 2].map(|_| buffer(&raw, 16, USAGE));
    let record = |count: usize| {
        let mut encoder = raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        device.gpu().expect("a wgpu device").record_into(&mut encoder, |recorder| {
            let operand = |buffer| Operand { buffer, layout: &layout, dtype: Dtype::F32 };
            (0..count).try_for_each(|_| norm::wgpu::rms_norm(recorder, operand(&x), None, 1e-5, operand(&y)))
        })
    };
    record(256).expect("256 dispatches to a call");
    record(257).expect_err("one more");
    works(&device);
}

/// That a device computes.
fn works(device: &Device) {
    let values = uniform(5, 8);
    let y = norm::rms_norm(&tensor::<f32>(device, &[2, 4], &values), None, 1e-5).expect("a working device");
    assert_close("rms_norm", &y, &reference(2, 4, &values), 0.0);
}

#[test]
fn a_tensor_beyond_the_devices_limits_is_an_error_and_the_device_works_on() {
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 1 << 20, ..wgpu::Limits::default() };
    let Some((raw, queue)) = handles(Some(limits)) else { return };
    let device = Device::from_wgpu(raw, queue);
    let error = Tensor::<f32>::zeros(&device, &[(1 << 18) + 1]).expect_err("4 bytes too many");
    assert!(error.to_string().contains("holds at most 1048576"), "{error}");
    let long = Tensor::<f32>::zeros(&device, &[1 << 18]).expect("as much as it holds");
    let error = elementwise::add(&long.broadcast(&[2, 1 << 18]).unwrap(), &long).expect_err("twice as much");
    assert!(matches!(error, Error::Device { .. }), "{error}");
    works(&device);
}

#[test]
fn a_lost_device_fails_for_good_and_others_go_on() {
    let Some((raw, queue)) = handles(None) else { return };
    let device = Device::from_wgpu(raw.clone(), queue);
    let other = Device::open("wgpu").expect("there is an adapter");
    let x = tensor::<f32>(&device, &[2, 4], &uniform(6, 8));
    let y = norm::rms_norm(&x, None, 1e-5).expect("not lost yet");
    raw.destroy();
    let lost = |outcome: smalti::Result<Vec<f32>>| match outcome {
        Err(Error::Device { reason, .. }) => assert!(reason.to_lowercase().contains("lost"), "{reason}"),
        other => panic!("{other:?}"),
    };
    lost(y.to_vec());
    for _ in 0..3 {
        lost(norm::rms_norm(&x, None, 1e-5).and_then(|y| y.to_vec()));
        lost(Tensor::from_vec(&device, &[4], vec![0.0f32; 4]).and_then(|x| x.to_vec()));
        lost(device.synchronize().map(|()| Vec::new()));
    }
    works(&other);
    #[cfg(feature = "cpu")]
    works(&Device::cpu());
    // Its tensors can be dropped after it.
    drop((device, x, y));
}

#[test]
fn launchers_name_what_32_bits_cannot_index() {
    let Some((raw, queue)) = handles(None) else { return };
    let device = Device::from_wgpu(raw.clone(), queue);
    let [x, y] = [0; 2].map(|_| buffer(&raw, 64, USAGE));
    // Of eight elements, one beyond 2^32; more elements than that, in a row, and all in one place.
    let near = Layout::contiguous(&[2, 4]).unwrap();
    let wide = Layout::strided(&[2, 4], &[1 << 32, 1], 0).unwrap();
    let far = Layout::strided(&[2, 4], &[4, 1], 1 << 32).unwrap();
    let many = Layout::contiguous(&[1 << 16, (1 << 16) + 4]).unwrap();
    let one = Layout::strided(&[1 << 16, (1 << 16) + 4], &[0, 0], 0).unwrap();
    for dtype in [Dtype::F32, Dtype::F16] {
        let from = |layout| Operand { buffer: &x, layout, dtype };
        let to = |layout| Operand { buffer: &y, layout, dtype };
        let refused = |what: &str, launch: &dyn Fn(&mut Recorder<'_>) -> Result<(), Error>| {
            let mut encoder = raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let error = device.gpu().expect("a wgpu device").record_into(&mut encoder, |recorder| launch(recorder));
            let error = error.expect_err(what).to_string();
            assert!(error.contains("2^32") || error.contains("65535"), "{what}, {dtype}: {error}");
        };
        for (name, layout) in [("wide", &wide), ("far", &far)] {
            refused(&format!("copy from {name}"), &|r| copy::wgpu::copy_into(r, from(layout), to(&near)));
            refused(&format!("copy to {name}"), &|r| copy::wgpu::copy_into(r, from(&near), to(layout)));
            refused(&format!("convert {name}"), &|r| copy::wgpu::convert(r, from(layout), to(&near)));
        }
        let silu = activation::Activation::Silu;
        refused("norm far", &|r| norm::wgpu::rms_norm(r, from(&far), None, 1e-5, to(&near)));
        refused("activation far", &|r| activation::wgpu::activation(r, from(&far), silu, to(&near)));
        refused("softmax far", &|r| norm::wgpu::softmax(r, from(&far), 4, to(&near)));
        refused("l2_normalise far", &|r| attention::wgpu::l2_normalise(r, from(&far), to(&near)));
        refused("copy many", &|r| copy::wgpu::copy_into(r, from(&one), to(&many)));
        refused("convert many", &|r| copy::wgpu::convert(r, from(&one), to(&many)));
        refused("norm many", &|r| norm::wgpu::rms_norm(r, from(&many), None, 1e-5, to(&many)));
        refused("activation many", &|r| activation::wgpu::activation(r, from(&many), silu, to(&many)));
        refused("softmax many", &|r| norm::wgpu::softmax(r, from(&many), 4, to(&many)));
        refused("l2_normalise many", &|r| attention::wgpu::l2_normalise(r, from(&many), to(&many)));
    }
}
