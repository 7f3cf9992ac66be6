//! What fails in the middle of the work ends with an error that says what, and harms nothing else.

use std::borrow::Cow;
use std::ops::ControlFlow;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use smalti::Device;
use smalti_models::weights::{Checkpoint, embedded};
use smalti_models::{Drawn, Error, Generator, Sampling, zoo};

/// A device made here, so that it can be lost or small; none where there is no adapter and `SMALTI_REQUIRE` does not
/// name wgpu.
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

fn draw(generator: &dyn Generator, progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>) -> Result<Drawn, Error> {
    generator.draw(&[2], 0, &Sampling { seed: 1, ..generator.about().sampling }, progress)
}

fn go_on(_: usize, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn a_device_lost_in_the_middle_ends_the_picture_and_another_device_draws_it() {
    for model in ["llamagen", "var"] {
        let Some((raw, queue)) = handles(None) else { return };
        let checkpoint = embedded(model).expect("weights in the program");
        let generator = zoo::load::<f32>(&checkpoint, &Device::from_wgpu(raw.clone(), queue)).expect("room");
        let outcome = draw(generator.as_ref(), &mut |done, _| {
            if done >= 5 {
                raw.destroy();
            }
            ControlFlow::Continue(())
        });
        match outcome {
            Err(Error::Op(smalti::Error::Device { reason, .. })) => {
                assert!(reason.to_lowercase().contains("lost"), "{model}: {reason}");
            }
            other => panic!("{model}: {other:?}"),
        }
        drop(generator);
        let generator = zoo::load::<f32>(&checkpoint, &Device::cpu()).expect("room");
        draw(generator.as_ref(), &mut go_on).expect("the CPU is not lost");
    }
}

#[test]
fn weights_beyond_a_device_are_an_error_that_says_how_much() {
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 1 << 16, ..wgpu::Limits::default() };
    let Some((raw, queue)) = handles(Some(limits)) else { return };
    let checkpoint = embedded("llamagen").expect("weights in the program");
    match zoo::load::<f32>(&checkpoint, &Device::from_wgpu(raw, queue)).map(|_| ()) {
        Err(Error::Op(error @ smalti::Error::Device { .. })) => {
            assert!(error.to_string().contains("at most 65536"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_caller_that_breaks_off_is_obeyed() {
    for model in ["llamagen", "var"] {
        let checkpoint = embedded(model).expect("weights in the program");
        let generator = zoo::load::<f32>(&checkpoint, &Device::cpu()).expect("room");
        let outcome = draw(generator.as_ref(), &mut |_, _| ControlFlow::Break(()));
        assert!(matches!(outcome, Err(Error::Interrupted)), "{model}: {outcome:?}");
    }
}

#[test]
fn logits_that_are_not_finite_end_the_picture_and_name_the_token() {
    // Finite weights, so large that their sums are not.
    let mut devices = vec![Device::cpu()];
    devices.extend(handles(None).map(|(raw, queue)| Device::from_wgpu(raw, queue)));
    for (model, norm) in [("llamagen", "gpt.norm.weight"), ("var", "var.head_nm.ada_lin.1.bias")] {
        let whole = std::fs::read(format!("{}/weights/emoji_{model}.safetensors", env!("CARGO_MANIFEST_DIR")));
        let whole = whole.expect("a file of this repository");
        let mut notes = SafeTensors::read_metadata(&whole).expect("whole").1.metadata().clone();
        // Fewer tokens: on a GPU it is the finished picture that tells.
        if let Some(config) = notes.as_mut().and_then(|notes| notes.get_mut("config")) {
            *config = config.replace("\"block_size\": 256", "\"block_size\": 16");
        }
        let tensors = SafeTensors::deserialize(&whole).expect("whole");
        let elements: usize = tensors.tensor(norm).expect("an official name").shape().iter().product();
        let huge: Vec<u8> = (0..elements).flat_map(|_| 3e38f32.to_le_bytes()).collect();
        let huge = TensorView::new(Dtype::F32, vec![elements], &huge).expect("a vector");
        let changed = tensors.iter().map(|(name, tensor)| (name, if name == norm { huge.clone() } else { tensor }));
        let bytes = safetensors::serialize(changed, notes).expect("as before");
        let checkpoint = Checkpoint::from_bytes("huge", Cow::Owned(bytes)).expect("as before");
        for device in &devices {
            let generator = zoo::load::<f32>(&checkpoint, device).expect("finite weights");
            match draw(generator.as_ref(), &mut go_on) {
                Err(error) => {
                    let message = error.to_string();
                    assert!(
                        message.contains("token 0") && message.contains("finite"),
                        "{model} on {device}: {message}"
                    );
                }
                Ok(_) => panic!("{model} on {device}: a picture was drawn"),
            }
        }
    }
}
