//! What only CUDA has: streams and memory of other crates, graphs, and failures that leave the device usable.

#![expect(unsafe_code, reason = "streams and memory of another crate")]

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DevicePtr, sys};
use smalti::attention::{self, Mask, Options, PageTable};
use smalti::diffusion::{self, NoiseCurve, NoiseSchedule};
use smalti::jacobi::{self, Gaussians, Groups, Rule, VerifyDraws, Window};
use smalti::sample::{self, Watermark, Weights};
use smalti::vq::{self, DigitOrder};
use smalti::{Backend, Device, Element, Error, Float, Layout, Tensor, bf16, copy, elementwise, f16};

use crate::common::{devices, uniform};

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

/// Whether the driver is the emulator, which can be told what to be, and counts.
pub(crate) fn emulated() -> bool {
    let emulated = Device::list().iter().any(|info| info.backend == Backend::Cuda && info.software);
    if !emulated {
        println!("SKIPPED: no emulated driver");
    }
    emulated
}

/// Runs a test of this file again in a process of its own, see [`again_at`].
fn again(test: &str, variables: &[(&str, &str)]) -> bool {
    again_at(&format!("cuda::{test}"), variables)
}

/// Runs a test again in a process of its own with these variables, which tell the emulator what to be; true in that
/// process.
pub(crate) fn again_at(test: &str, variables: &[(&str, &str)]) -> bool {
    const AGAIN: &str = "SMALTI_TEST_AGAIN";
    if std::env::var_os(AGAIN).is_some() {
        return true;
    }
    if !emulated() {
        return false;
    }
    let mut this = std::process::Command::new(std::env::current_exe().unwrap());
    let this = this.args(["--exact", test]).env(AGAIN, test).env_remove("SMALTI_REQUIRE");
    let output = this.envs(variables.iter().copied()).output().unwrap();
    let [said, failed] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success() && said.contains("1 passed"), "{said}{failed}");
    false
}

/// Values whose sums below are exact.
fn small_values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 1000) as f32).collect()
}

/// A batch that takes memory step by step: 1 MB in each, kept until the end.
fn batch(device: &Device) -> Result<Vec<f32>, Error> {
    let x = Tensor::from_vec(device, &[256, 1024], small_values(256 * 1024))?;
    let mut steps = vec![x.clone()];
    for _ in 0..8 {
        steps.push(elementwise::scale_add(&steps[steps.len() - 1], 0.5, &x, 1.0)?);
    }
    steps[8].to_vec()
}

/// That this process can still work on another device.
fn goes_on_with_the_cpu() {
    let expected = small_values(256 * 1024).into_iter().map(|x| x * (2.0 - 1.0 / 256.0));
    assert!(batch(&Device::cpu()).unwrap().into_iter().eq(expected));
}

/// That no CUDA device is there, for this reason.
fn is_absent(reason: &str) {
    let error = Device::open("cuda").unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert_eq!(error.to_string(), format!("device cuda is not available: {reason}"));
    assert!(Device::list().iter().all(|info| info.backend != Backend::Cuda));
    assert!(Device::absent().contains(&(Backend::Cuda, reason.to_owned())), "{:?}", Device::absent());
}

#[test]
fn a_driver_too_old_is_named_and_the_cpu_goes_on() {
    if again("a_driver_too_old_is_named_and_the_cpu_goes_on", &[("CUDA_EMULATOR_VERSION", "10.2")]) {
        is_absent("the driver is for CUDA 10.2, and kernels need 11.0");
        goes_on_with_the_cpu();
    }
}

#[test]
fn a_device_too_old_is_named_and_the_cpu_goes_on() {
    if again("a_device_too_old_is_named_and_the_cpu_goes_on", &[("CUDA_EMULATOR_ARCH", "sm_75")]) {
        is_absent("CUDA emulator sm_75 is an sm_75, and kernels need sm_80");
        goes_on_with_the_cpu();
    }
}

#[test]
fn a_driver_too_old_for_one_architectures_kernels_runs_the_others() {
    let variables = [("CUDA_EMULATOR_VERSION", "11.8"), ("CUDA_EMULATOR_ARCH", "sm_90a")];
    if again("a_driver_too_old_for_one_architectures_kernels_runs_the_others", &variables) {
        let device = Device::cuda(0).unwrap();
        let cuda = device.as_cuda().unwrap();
        assert!(cuda.has("sm_80") && cuda.has("sm_90") && !cuda.has("sm_90a"));
        device.warm_up().unwrap();
    }
}

#[test]
fn memory_that_ends_in_the_middle_is_named_and_both_devices_go_on() {
    let variables = [("CUDA_EMULATOR_MEMORY", "5000000")];
    if again("memory_that_ends_in_the_middle_is_named_and_both_devices_go_on", &variables) {
        let device = Device::cuda(0).unwrap();
        match batch(&device).unwrap_err() {
            Error::Device { device, during, reason } => {
                assert_eq!((&*device, &*during), ("cuda", "allocating memory"));
                assert!(reason.contains("CUDA_ERROR_OUT_OF_MEMORY") && reason.ends_with("1048576 bytes"), "{reason}");
            }
            other => panic!("{other}"),
        }
        goes_on_with_the_cpu();
        // What the batch held is free again.
        let x = Tensor::from_vec(&device, &[1 << 20], small_values(1 << 20)).unwrap();
        assert!(x.to_vec().unwrap() == small_values(1 << 20));
    }
}

#[test]
fn a_launch_that_fails_is_named_and_the_cpu_goes_on() {
    if again("a_launch_that_fails_is_named_and_the_cpu_goes_on", &[]) {
        let device = Device::cuda(0).unwrap();
        let layout = Layout::contiguous(&[64]).unwrap();
        // SAFETY: nothing lies at this address, which a device finds out when it runs the kernel.
        let x = unsafe { Tensor::<f32>::from_cuda(&device, 1 << 12, 64, layout, ()) }.unwrap();
        match elementwise::mul(&x, &x).and_then(|y| y.to_vec()).unwrap_err() {
            Error::Device { device, reason, .. } => {
                assert!(device == "cuda" && reason.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{device}: {reason}");
            }
            other => panic!("{other}"),
        }
        goes_on_with_the_cpu();
    }
}

#[test]
fn attention_multiplies_only_the_tiles_that_its_mask_visits() {
    let test = "attention_multiplies_only_the_tiles_that_its_mask_visits";
    if let Some(launches) = visits_one_tile_in_ten(test, "sm_80", 64) {
        let attention =
            launches.iter().filter(|launch| kernel(launch).starts_with("attention_mma")).collect::<Vec<_>>();
        let count = |path: &str| attention.iter().map(|launch| number(launch, path)).collect::<Vec<_>>();
        let multiplied = count("/warp_instructions/matrix");
        assert_eq!(multiplied.len(), 2, "{launches:?}");
        assert_eq!(multiplied[0], 10 * multiplied[1], "{launches:?}");
        // Banks of shared memory: no conflict while keys are visited.
        assert_eq!(count("/shared_stores/bank_conflicts"), [0, 0], "{launches:?}");
        let loads = count("/shared_loads/bank_conflicts");
        assert_eq!(loads[0], loads[1], "{launches:?}");
    }
}

#[test]
fn attention_on_hopper_multiplies_only_the_tiles_that_its_mask_visits() {
    let test = "attention_on_hopper_multiplies_only_the_tiles_that_its_mask_visits";
    if let Some(launches) = visits_one_tile_in_ten(test, "sm_90a", 128) {
        // Where something is hidden, attention_mma looks for results to make again, and finds none.
        let kernels: Vec<_> = launches.iter().map(kernel).filter(|kernel| kernel.starts_with("attention")).collect();
        let [dense, sparse, repeat] =
            ["attention_wgmma_f16_d64", "attention_wgmma_f16_d64", "attention_mma_f16_d64_q64"];
        assert_eq!(kernels, [dense, sparse, repeat]);
        let attention = launches.iter().filter(|launch| kernel(launch).starts_with("attention")).collect::<Vec<_>>();
        let count = |path: &str| attention.iter().map(|launch| number(launch, path)).collect::<Vec<_>>();
        assert_eq!(count("/matrix/m64n128k16.f32.f16.f16"), [240, 24, 0], "{launches:?}");
        assert_eq!(count("/warp_instructions/matrix")[2], 0, "{launches:?}");
        // Each of three blocks reads its queries once, and the keys and values that it visits.
        let row = 128;
        let read = |keys: u64| (321 + 3 * 2 * keys) * row;
        assert_eq!(count("/bulk_loads/bytes"), [read(1280), read(128), 0], "{launches:?}");
        assert_eq!(count("/shared_stores/bank_conflicts"), [0, 0, 0], "{launches:?}");
    }
}

#[test]
fn attention_over_pages_reads_each_key_where_it_lies() {
    let test = "attention_over_pages_reads_each_key_where_it_lies";
    let report = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}.json"));
    let _ = std::fs::remove_file(&report);
    // Two queries of a sequence and of its fork, which share two pages and end in one of their own.
    let [batch, heads, kv_heads, k_len, head_dim, page_size] = [2, 4, 2, 300, 64, 128];
    if again(test, &[("CUDA_EMULATOR_REPORT", report.to_str().unwrap())]) {
        fn run<T: Float>([batch, heads, kv_heads, k_len, head_dim, page_size]: [usize; 6]) {
            let device = Device::cuda(0).unwrap();
            let zeros = |shape: &[usize]| Tensor::<T>::zeros(&device, shape).unwrap();
            let pages = zeros(&[4, page_size, kv_heads, head_dim]);
            let table = PageTable { pages: vec![vec![0, 1, 2], vec![0, 1, 3]], lengths: vec![k_len; batch] };
            let q = zeros(&[batch, heads, 1, head_dim]);
            attention::paged(&q, &pages, &pages, &table, &Options::new(1.0)).unwrap().y.to_vec().unwrap();
            let piece = zeros(&[batch, kv_heads, k_len, head_dim]);
            attention::attention(&q, &piece, &piece, &Options::new(1.0)).unwrap().y.to_vec().unwrap();
        }
        run::<f32>([batch, heads, kv_heads, k_len, head_dim, page_size]);
        run::<bf16>([batch, heads, kv_heads, k_len, head_dim, page_size]);
        return;
    }
    if !emulated() {
        return;
    }
    let report = std::fs::read_to_string(&report).unwrap();
    let launches: Vec<_> = report.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found: Vec<_> = launches
        .iter()
        .filter(|launch| !kernel(launch).starts_with("attention_fold"))
        .map(|launch| (kernel(launch), number(launch, "/global_loads/bytes")))
        .collect();
    // Each of two segments of the keys of each head reads its query, and all keys and values are read once. With pages each
    // of so many threads looks its page up for each of five tiles of keys and of values; and a block reads the ranges of
    // its queries, so many times, since lengths may differ.
    let rows = |bytes: usize| (batch * heads * (2 + 2 * k_len) * head_dim * bytes) as u64;
    let looked_up = |threads: usize, ranges: usize| (batch * heads * (5 * 2 * threads * 4 + 2 * ranges * 8)) as u64;
    let expected = [
        ("attention_f32_q8", rows(4) + looked_up(128, 32)),
        ("attention_f32_q8", rows(4)),
        ("attention_mma_bf16_d64_q16", rows(2) + looked_up(32, 6)),
        ("attention_mma_bf16_d64_q16", rows(2)),
    ];
    assert_eq!(found, expected);
}

/// What the emulator counts of attention over all of ten tiles of `side` keys, and over one of them for each `side` queries.
fn visits_one_tile_in_ten(test: &str, architecture: &str, side: usize) -> Option<Vec<serde_json::Value>> {
    let report = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}.json"));
    let _ = std::fs::remove_file(&report);
    if again(test, &[("CUDA_EMULATOR_REPORT", report.to_str().unwrap()), ("CUDA_EMULATOR_ARCH", architecture)]) {
        let device = Device::cuda(0).unwrap();
        let [q_len, k_len, head_dim] = [5 * side / 2 + 1, 10 * side, 64];
        let q = Tensor::<f16>::zeros(&device, &[1, 1, q_len, head_dim]).unwrap();
        let k = Tensor::<f16>::zeros(&device, &[1, 1, k_len, head_dim]).unwrap();
        let one_in_ten = Mask::from_fn(q_len, k_len, move |i, j| (i / side + j / side).is_multiple_of(10));
        for mask in [Mask::Full, one_in_ten] {
            attention::attention(&q, &k, &k, &Options::new(1.0).mask(mask)).unwrap().y.to_vec().unwrap();
        }
        return None;
    }
    emulated().then(|| {
        let report = std::fs::read_to_string(&report).unwrap();
        report.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    })
}

/// Ops with their operands `shift` elements behind a multiple of 16 bytes, and what they give, as bits of f64.
struct Shifted<'a> {
    device: &'a Device,
    shift: usize,
    given: Vec<(&'static str, Vec<u64>)>,
}

impl Shifted<'_> {
    fn place<T: Element>(&self, shape: &[usize], values: &[T]) -> Tensor<T> {
        let padded = [&vec![values[0]; self.shift], values].concat();
        let padded = Tensor::from_vec(self.device, &[padded.len()], padded).unwrap();
        padded.narrow(0, self.shift, values.len()).unwrap().reshape(shape).unwrap()
    }

    fn floats<T: Float>(&self, seed: u64, shape: &[usize]) -> Tensor<T> {
        let values = uniform(seed, shape.iter().product());
        self.place(shape, &values.into_iter().map(T::from_f64).collect::<Vec<_>>())
    }

    fn words(&self, seed: u64, shape: &[usize], limit: u32) -> Tensor<u32> {
        let values = uniform(seed, shape.iter().product());
        self.place(shape, &values.into_iter().map(|x| (x.abs() * f64::from(limit)) as u32).collect::<Vec<_>>())
    }

    fn gives<T: Float>(&mut self, what: &'static str, y: &Tensor<T>) {
        self.given.push((what, y.to_vec().unwrap().into_iter().map(|y| y.to_f64().to_bits()).collect()));
    }

    fn gives_words(&mut self, what: &'static str, y: &Tensor<u32>) {
        self.given.push((what, y.to_vec().unwrap().into_iter().map(u64::from).collect()));
    }

    fn diffusion<T: Float>(&mut self, [rows, channels]: [usize; 2]) {
        let schedule = NoiseSchedule::new(NoiseCurve::Cosine, 1000, 50).unwrap();
        let [x, noise] = [1, 2].map(|seed| self.floats::<T>(seed, &[rows, channels]));
        let model = self.floats(3, &[rows, 2 * channels]);
        let done = diffusion::ddpm_step_within(&x, &model, &noise, &schedule.levels()[20], 0.9, 0.5).unwrap();
        for (what, y) in [("y", done.y), ("x0", done.x0), ("mean", done.mean), ("variance", done.log_variance)] {
            self.gives(what, &y);
        }
        self.gives("ddim", &diffusion::ddim_step(&x, &noise, &noise, &schedule.levels()[20], 0.5).unwrap().y);
    }

    fn digits<T: Float>(&mut self, [vectors, channels]: [usize; 2]) {
        let levels: Vec<u32> = (0..channels as u32).map(|channel| 2 + channel % 3).collect();
        let x = self.floats::<T>(4, &[vectors, channels]);
        let got = vq::fsq(&x, &levels, 1e-3).unwrap();
        self.gives("bounded", &got.bounded);
        self.gives_words("digits", &got.quantised.digits);
        let digits = self.words(5, &[vectors, channels], 2);
        let indices = vq::pack(&digits, &levels, DigitOrder::LowFirst).unwrap();
        self.gives_words("pack", &indices);
        // Their launchers, since the ops make the operands that decide.
        let bases = levels.iter().scan(1, |base, levels| {
            let row = [*base, *levels];
            *base *= *levels;
            Some(row)
        });
        let bases = self.place(&[channels, 2], &bases.flatten().collect::<Vec<_>>());
        let scales = self.floats::<f32>(6, &[channels, 2]);
        let unpacked = self.place(&[vectors, channels], &vec![0u32; vectors * channels]);
        let y = self.place(&[vectors, channels], &vec![T::from_f64(0.0); vectors * channels]);
        let stream = self.device.as_cuda().unwrap().stream();
        vq::cuda::unpack(&stream, indices.cuda_operand(), bases.cuda_operand(), unpacked.cuda_operand()).unwrap();
        vq::cuda::codes(&stream, digits.cuda_operand(), scales.cuda_operand(), y.cuda_operand()).unwrap();
        self.gives_words("unpack", &unpacked);
        assert_eq!(unpacked.to_vec().unwrap(), digits.to_vec().unwrap());
        self.gives("codes", &y);
    }

    fn sample<T: Float>(&mut self, [rows, vocabulary]: [usize; 2]) {
        let logits = self.floats::<T>(7, &[rows, vocabulary]);
        let mark = Watermark { key: 3, green: 0.4, bias: 1.5 };
        let before = self.words(8, &[rows], 1000);
        self.gives("watermark", &sample::watermark(&logits, &before, &mark).unwrap());
    }

    fn jacobi<T: Float>(&mut self, [batch, places, vocabulary]: [usize; 3]) {
        let rows = batch * places;
        let logits = self.floats::<T>(9, &[batch, places, vocabulary]);
        let [p, q] = [10, 11].map(|seed| Weights::from_tensor(self.words(seed, &[rows, vocabulary], 1 << 30)).unwrap());
        let draft = self.words(12, &[batch, places], vocabulary as u32);
        let distances = self.floats(13, &[vocabulary, vocabulary]);
        let window = Window { below: 2, above: 1, band: 0.5, reach: 0.9 };
        let groups = Groups::nearby(&logits, &q, &draft, &distances, window).unwrap();
        self.gives_words("nearby", groups.tokens());
        let draws = |seed| uniform(seed, rows).into_iter().map(|x| x.abs() as f32).collect::<Vec<_>>();
        let draws = VerifyDraws::Given { fresh: draws(14), accept: draws(15), couple: draws(16) };
        let verified = jacobi::verify(&p, &q, &draft, Some(&groups), Rule::Coupled, &draws).unwrap();
        let largest = sample::argmax(&logits.reshape(&[rows, vocabulary]).unwrap()).unwrap();
        let mut largest = largest.to_vec().unwrap();
        largest[2] ^= 1;
        let greedy = jacobi::greedy_verify(&logits, &self.place(&[batch, places], &largest)).unwrap();
        for verified in [verified, greedy] {
            let jacobi::Verified { kept, accepted, settled, next, tokens } = verified;
            for (what, y) in
                [("kept", kept), ("accepted", accepted), ("settled", settled), ("next", next), ("tokens", tokens)]
            {
                self.gives_words(what, &y);
            }
        }
    }

    fn paths(&mut self, [batch, drafts, terms]: [usize; 3]) {
        let [x, near, far, spread] = [17, 18, 19, 20].map(|seed| self.floats::<f32>(seed, &[batch, drafts, 1, terms]));
        let (p, q) =
            (Gaussians { mean: &near, log_variance: &spread }, Gaussians { mean: &far, log_variance: &spread });
        let verified =
            jacobi::verify_paths(&x, p, q, &self.place(&[batch, drafts], &vec![0.5; batch * drafts])).unwrap();
        self.gives("paths", &verified.log_ratio);
        self.gives_words("paths kept", &verified.kept);
    }
}

#[test]
fn operands_off_16_bytes_give_the_same_bits() {
    fn given<T: Float>(device: &Device, shift: usize) -> Vec<(&'static str, Vec<u64>)> {
        let mut ops = Shifted { device, shift, given: Vec::new() };
        ops.diffusion::<T>([5, 264]);
        // Vectors that end inside of 16 bytes, in one block and in several, the last digits among them.
        ops.digits::<T>([264, 3]);
        ops.digits::<T>([264, 13]);
        ops.digits::<T>([515, 5]);
        ops.sample::<T>([3, 1032]);
        ops.jacobi::<T>([2, 8, 1032]);
        // Terms beyond a turn of the block, and some threads with one turn less.
        ops.paths([2, 3, 2060]);
        ops.given
    }
    let Some(device) = devices().iter().find(|device| device.backend() == Backend::Cuda) else { return };
    for (dtype, [aligned, shifted]) in [
        ("f32", [0, 1].map(|shift| given::<f32>(device, shift))),
        ("f16", [0, 1].map(|shift| given::<f16>(device, shift))),
    ] {
        for ((what, aligned), (_, shifted)) in aligned.iter().zip(&shifted) {
            assert!(aligned == shifted, "{what} {dtype}");
        }
    }
}

#[test]
fn operands_on_16_bytes_are_moved_by_as_many() {
    let test = "operands_on_16_bytes_are_moved_by_as_many";
    let report = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}.json"));
    let _ = std::fs::remove_file(&report);
    if again(test, &[("CUDA_EMULATOR_REPORT", report.to_str().unwrap())]) {
        let mut ops = Shifted { device: &Device::cuda(0).unwrap(), shift: 0, given: Vec::new() };
        ops.diffusion::<f16>([16, 512]);
        ops.digits::<f16>([1024, 8]);
        ops.sample::<f16>([2, 4096]);
        ops.jacobi::<f16>([1, 4, 4096]);
        ops.paths([1, 4, 4096]);
        return;
    }
    if !emulated() {
        return;
    }
    // Requests of warps, and the sectors of 32 bytes that they touch over those that their bytes would fill.
    let count = |launch: &serde_json::Value, access: &str| {
        ["requests", "sectors", "ideal_sectors"].map(|count| number(launch, &format!("/{access}/{count}")))
    };
    let found: Vec<_> = std::fs::read_to_string(&report)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|launch| !kernel(launch).starts_with("sample"))
        .map(|launch| (kernel(&launch).to_owned(), count(&launch, "global_loads"), count(&launch, "global_stores")))
        .collect();
    // What is more than it would fill are rows of small tables, one per channel, and in `couple` the stretches that its
    // threads have of a row, of which a request takes every other half sector.
    let expected = [
        ("denoise_f16_aligned", [128, 2048, 2048], [128, 2048, 2048]),
        ("denoise_f16_aligned", [96, 1536, 1536], [96, 1536, 1536]),
        ("digits_f16_aligned", [320, 1024, 768], [128, 1536, 1536]),
        ("codes_f16_aligned", [320, 1536, 1280], [64, 512, 512]),
        ("pack_together", [320, 1536, 1280], [32, 128, 128]),
        ("pack_together", [320, 1536, 1280], [32, 128, 128]),
        ("unpack_aligned", [320, 640, 384], [64, 1024, 1024]),
        ("codes_f16_aligned", [320, 1536, 1280], [64, 512, 512]),
        ("watermark_f16_aligned", [64, 544, 544], [32, 512, 512]),
        ("nearby_f16_aligned", [640, 5440, 5440], [16, 16, 16]),
        ("couple_aligned", [1122, 16994, 8802], [12, 12, 12]),
        ("settle_aligned", [4, 4, 4], [4, 4, 4]),
        ("settle_aligned", [2, 2, 2], [5, 5, 5]),
        ("path_aligned", [672, 10272, 10272], [9, 9, 9]),
    ];
    let expected = expected.map(|(kernel, loads, stores)| (kernel.to_owned(), loads, stores));
    assert_eq!(found, expected);
}

pub(crate) fn kernel(launch: &serde_json::Value) -> &str {
    launch["kernel"].as_str().unwrap()
}

pub(crate) fn number(launch: &serde_json::Value, path: &str) -> u64 {
    launch.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or(0)
}
