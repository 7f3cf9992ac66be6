//! What only CUDA has: streams and memory of other crates, graphs, and failures that leave the device usable.

#![expect(unsafe_code, reason = "streams and memory of another crate")]

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DevicePtr, sys};
use smalti::attention::{self, Mask, Options};
use smalti::{Backend, Device, Error, Layout, Tensor, copy, elementwise, f16};

use crate::common::devices;

/// A stream that cudarc made, where there is a device.
fn stream() -> Option<Arc<CudaStream>> {
    devices().iter().find(|device| device.backend() == Backend::Cuda)?;
    Some(CudaContext::new(0).expect("a device that was listed").new_stream().expect("a stream"))
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| i as f32 - 3.5).collect()
}

#[test]
fn an_emulated_device_is_software_and_never_the_best() {
    for info in Device::list().iter().filter(|info| info.backend == Backend::Cuda) {
        assert_eq!(info.software, info.name.contains("emulator"), "{info:?}");
        assert!(info.features[0].starts_with("sm_"), "{info:?}");
        if info.software {
            assert_ne!(Device::best().to_string(), info.id);
        }
    }
}

#[test]
fn ops_run_on_a_stream_and_on_memory_of_cudarc() {
    let Some(stream) = stream() else { return };
    let device = Device::from_cuda(Arc::clone(&stream)).unwrap();
    let slice = Arc::new(stream.clone_htod(&values(12)).unwrap());
    let (address, _) = slice.device_ptr(&stream);
    let layout = Layout::strided(&[4, 2], &[3, 1], 1).unwrap();
    // SAFETY: the slice holds 12 values and lives as long as the tensor.
    let x = unsafe { Tensor::<f32>::from_cuda(&device, address, 12, layout, Arc::clone(&slice)) }.unwrap();
    let y = elementwise::add(&x, &x).unwrap();
    let expected: Vec<f32> = [1, 2, 4, 5, 7, 8, 10, 11].iter().map(|i| 2.0 * (*i as f32 - 3.5)).collect();
    assert_eq!(y.to_vec().unwrap(), expected);
    assert_eq!(Arc::strong_count(&slice), 2, "a tensor keeps its memory's owner");
    drop((x, y));
    assert_eq!(Arc::strong_count(&slice), 1, "and lets it go");

    let too_far = Layout::strided(&[4, 2], &[3, 1], 2).unwrap();
    // SAFETY: refused before use.
    let error = unsafe { Tensor::<f32>::from_cuda(&device, address, 12, too_far, ()) }.unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
}

#[test]
fn ops_run_on_raw_handles_and_tensors_of_two_streams_do_not_mix() {
    let Some(stream) = stream() else { return };
    let (context, raw) = (stream.context().cu_ctx().cast(), stream.cu_stream().cast());
    // SAFETY: `stream` outlives the device.
    let device = unsafe { Device::from_cuda_handles(context, raw) }.unwrap();
    let x = Tensor::from_vec(&device, &[3], values(3)).unwrap();
    assert_eq!(elementwise::mul(&x, &x).unwrap().to_vec().unwrap(), [12.25, 6.25, 2.25]);
    let other = Device::cuda(0).unwrap();
    let error = elementwise::mul(&x, &Tensor::from_vec(&other, &[3], values(3)).unwrap()).unwrap_err();
    assert!(matches!(error, Error::Place { .. }), "{error}");
}

#[test]
fn a_launcher_enqueues_into_the_callers_stream() {
    let Some(stream) = stream() else { return };
    let device = Device::from_cuda(Arc::clone(&stream)).unwrap();
    let [x, y] = [values(5), vec![0.0; 5]].map(|values| Tensor::from_vec(&device, &[5], values).unwrap());
    device.synchronize().unwrap();
    let other = stream.context().new_stream().unwrap();
    let cuda = device.as_cuda().unwrap();
    // SAFETY: a stream of the same context, which has nothing to wait for.
    let into = unsafe { cuda.on(other.cu_stream().cast()) };
    copy::cuda::copy_into(&into, x.cuda_operand(), y.cuda_operand()).unwrap();
    other.synchronize().unwrap();
    assert_eq!(y.to_vec().unwrap(), values(5));
}

#[test]
fn a_graph_captures_ops_and_runs_them_on_new_values() {
    let Some(stream) = stream() else { return };
    let device = Device::from_cuda(Arc::clone(&stream)).unwrap();
    let mut x = Tensor::from_vec(&device, &[2, 3], values(6)).unwrap();
    let before = Tensor::from_vec(&device, &[2, 3], values(6)).unwrap();
    let mut y = Tensor::from_vec(&device, &[3, 2], vec![0.0f32; 6]).unwrap();
    // Kernels are loaded outside the capture.
    device.warm_up().unwrap();

    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    let twice = elementwise::add(&x, &x).unwrap();
    let square = elementwise::mul(&twice, &twice).unwrap();
    copy::copy_into(&square.permute(&[1, 0]).unwrap(), &mut y).unwrap();
    // Memory from before the capture is not the graph's to free.
    drop(before);
    for error in [Tensor::from_vec(&device, &[1], vec![1.0f32]).unwrap_err(), x.to_vec().unwrap_err()] {
        assert!(error.to_string().contains("capturing a graph"), "{error}");
    }
    drop((twice, square));
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().expect("a graph");

    graph.launch().unwrap();
    let expected =
        |scale: f32| -> Vec<f32> { [0, 3, 1, 4, 2, 5].iter().map(|i| (2.0 * scale * values(6)[*i]).powi(2)).collect() };
    assert_eq!(y.to_vec().unwrap(), expected(1.0));
    let doubled = Tensor::from_vec(&device, &[2, 3], values(6).iter().map(|x| 2.0 * x).collect()).unwrap();
    copy::copy_into(&doubled, &mut x).unwrap();
    graph.launch().unwrap();
    assert_eq!(y.to_vec().unwrap(), expected(2.0));
}

#[test]
fn a_device_without_room_says_so_and_goes_on() {
    let Some(device) = devices().iter().find(|device| device.backend() == Backend::Cuda) else { return };
    let error = Tensor::<f32>::zeros(device, &[1 << 42]).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("CUDA_ERROR_OUT_OF_MEMORY") && said.contains("17592186044416 bytes"), "{said}");
    let x = Tensor::from_vec(device, &[3], values(3)).unwrap();
    assert_eq!(x.to_vec().unwrap(), values(3));
}

#[test]
fn warm_up_loads_every_kernel() {
    let Some(device) = devices().iter().find(|device| device.backend() == Backend::Cuda) else { return };
    device.warm_up().unwrap();
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let error = Device::open("cuda:99").unwrap_err().to_string();
    assert!(error.starts_with("device cuda:99 is not available: "), "{error}");
}

/// Runs itself again with a report of the emulator, which counts what each launch executed.
#[test]
fn attention_multiplies_only_the_tiles_that_its_mask_visits() {
    const REPORT: &str = "CUDA_EMULATOR_REPORT";
    let Some(device) = devices().iter().find(|device| device.backend() == Backend::Cuda) else { return };
    if std::env::var_os(REPORT).is_some() {
        let [q_len, k_len, head_dim] = [320, 640, 64];
        let q = Tensor::<f16>::zeros(device, &[1, 1, q_len, head_dim]).unwrap();
        let k = Tensor::<f16>::zeros(device, &[1, 1, k_len, head_dim]).unwrap();
        // One tile in ten, for each 64 queries another.
        let one_in_ten = Mask::from_fn(q_len, k_len, |i, j| (i / 64 + j / 64) % 10 == 0);
        for mask in [Mask::Full, one_in_ten] {
            attention::attention(&q, &k, &k, &Options::new(1.0).mask(mask)).unwrap().y.to_vec().unwrap();
        }
        return;
    }
    if !Device::list().iter().any(|info| info.backend == Backend::Cuda && info.software) {
        println!("SKIPPED: a GPU does not count");
        return;
    }
    let report = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("attention.json");
    let _ = std::fs::remove_file(&report);
    let test = "cuda::attention_multiplies_only_the_tiles_that_its_mask_visits";
    let mut this = std::process::Command::new(std::env::current_exe().unwrap());
    let output = this.args(["--exact", test]).env(REPORT, &report).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let report = std::fs::read_to_string(&report).unwrap();
    let launches = report.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let attention: Vec<_> =
        launches.filter(|launch| launch["kernel"].as_str().unwrap().starts_with("attention_mma")).collect();
    let count = |path: &str| -> Vec<u64> {
        attention.iter().map(|launch| launch.pointer(path).and_then(|count| count.as_u64()).unwrap()).collect()
    };
    let multiplied = count("/warp_instructions/matrix");
    assert_eq!(multiplied.len(), 2, "{report}");
    assert_eq!(multiplied[0], 10 * multiplied[1], "{report}");
    // Banks of shared memory: no conflict while keys are visited.
    assert_eq!(count("/shared_stores/bank_conflicts"), [0, 0], "{report}");
    let loads = count("/shared_loads/bank_conflicts");
    assert_eq!(loads[0], loads[1], "{report}");
}
