//! Programs that use cudarc and know nothing of the emulator, run on it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, OnceLock};

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;

/// `y[i] += factor * x[i]`, one thread each, without a guard: too many threads run out of the arrays.
const KERNEL: &str = r"
.version 7.0
.target sm_80
.address_size 64
.visible .entry scaled_sum(.param .u64 x, .param .u64 y, .param .f32 factor)
{
    .reg .u32 %block, %threads, %thread;
    .reg .u64 %x, %y;
    .reg .f32 %a, %b, %scale;
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %thread, %block, %threads, %thread;
    ld.param.u64 %x, [x];
    ld.param.u64 %y, [y];
    ld.param.f32 %scale, [factor];
    mad.wide.u32 %x, %thread, 4, %x;
    mad.wide.u32 %y, %thread, 4, %y;
    ld.global.f32 %a, [%x];
    ld.global.f32 %b, [%y];
    fma.rn.f32 %b, %a, %scale, %b;
    st.global.f32 [%y], %b;
    ret;
}
";

/// The driver under the names that programs load it by.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-emulator");
        let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("../install");
        let status = Command::new(install).arg(&folder).status().expect("the script starts");
        assert!(status.success(), "tests/cuda-emulator/install");
        folder
    })
}

/// Runs `body` in a process of its own whose libcuda is the emulator, with more variables of the environment. In this
/// process it returns what the other printed.
fn emulated(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) -> Option<Output> {
    if std::env::var("CUDA_EMULATOR_TEST").is_ok_and(|name| name == test) {
        body();
        return None;
    }
    let output = Command::new(std::env::current_exe().expect("this test's own path"))
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env("CUDA_EMULATOR_TEST", test)
        .env("LD_LIBRARY_PATH", folder())
        .envs(variables.iter().copied())
        .output()
        .expect("this test can be started again");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} in its own process:\n{said}");
    Some(output)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn load(context: &Arc<CudaContext>) -> CudaFunction {
    let module = context.load_module(Ptx::from_src(KERNEL)).expect("the kernel loads");
    module.load_function("scaled_sum").expect("the kernel is there")
}

fn config(threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (threads / 32, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 }
}

fn launch(
    stream: &Arc<CudaStream>,
    kernel: &CudaFunction,
    x: &cudarc::driver::CudaSlice<f32>,
    y: &mut cudarc::driver::CudaSlice<f32>,
    threads: u32,
) -> Result<(), cudarc::driver::DriverError> {
    // SAFETY: the arguments are the kernel's; a fault of the emulated machine cannot touch the host.
    unsafe { stream.launch_builder(kernel).arg(x).arg(y).arg(&0.5f32).launch(config(threads)) }.map(|_| ())
}

#[test]
fn a_cudarc_program_gets_the_right_numbers_and_a_line_of_counts_per_launch() {
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report.json");
    if std::env::var_os("CUDA_EMULATOR_TEST").is_none() {
        // Lines are added to what is there.
        let _ = std::fs::remove_file(&report);
    }
    let variables = [("CUDA_EMULATOR_REPORT", report.to_str().expect("a UTF-8 path"))];
    let output =
        emulated("a_cudarc_program_gets_the_right_numbers_and_a_line_of_counts_per_launch", &variables, || {
            let context = CudaContext::new(0).unwrap();
            assert!(context.name().unwrap().contains("emulator"));
            assert_eq!(context.compute_capability().unwrap(), (8, 0));
            let stream = context.new_stream().unwrap();
            let kernel = load(&context);
            let x = stream.clone_htod(&(0..64).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
            let mut y = stream.clone_htod(&[1.0f32; 64]).unwrap();
            launch(&stream, &kernel, &x, &mut y, 64).unwrap();
            launch(&stream, &kernel, &x, &mut y, 64).unwrap();
            let y = stream.clone_dtoh(&y).unwrap();
            assert!(y.iter().enumerate().all(|(i, y)| *y == 1.0 + i as f32));
        });
    let Some(output) = output else { return };
    assert_eq!(stderr(&output), "", "nothing to complain about");
    let lines = std::fs::read_to_string(&report).expect("a report");
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["kernel"], "scaled_sum");
    assert_eq!(lines[0]["grid"], serde_json::json!([2, 1, 1]));
    assert_eq!(lines[0]["global_stores"]["bytes"], 256);
    assert_eq!(lines[0], lines[1], "the same launch counts the same");
}

#[test]
fn a_kernel_that_leaves_its_arrays_is_named_and_fails_its_launch_alone() {
    let output = emulated("a_kernel_that_leaves_its_arrays_is_named_and_fails_its_launch_alone", &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let kernel = load(&context);
        let x = stream.clone_htod(&[1.0f32; 32]).unwrap();
        let mut y = stream.clone_htod(&[1.0f32; 32]).unwrap();
        let error = launch(&stream, &kernel, &x, &mut y, 64).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_eq!(error.error_name().unwrap().to_str().unwrap(), "CUDA_ERROR_ILLEGAL_ADDRESS");
        let mut y = stream.clone_htod(&[1.0f32; 32]).unwrap();
        launch(&stream, &kernel, &x, &mut y, 32).unwrap();
        assert_eq!(stream.clone_dtoh(&y).unwrap(), [1.5; 32]);
    });
    let Some(output) = output else { return };
    let said = stderr(&output);
    assert!(said.contains("scaled_sum line 19, block (1, 0, 0), thread (0, 0, 0): out of bounds"), "{said}");
}

#[test]
fn a_captured_graph_runs_again() {
    emulated("a_captured_graph_runs_again", &[], || {
        let context = CudaContext::new(0).unwrap();
        // SAFETY: all work is on one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        let kernel = load(&context);
        let x = stream.clone_htod(&[2.0f32; 32]).unwrap();
        let mut y = stream.clone_htod(&[1.0f32; 32]).unwrap();
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        launch(&stream, &kernel, &x, &mut y, 32).unwrap();
        launch(&stream, &kernel, &x, &mut y, 32).unwrap();
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().expect("a graph");
        assert_eq!(stream.clone_dtoh(&y).unwrap(), [1.0; 32], "capturing runs nothing");
        graph.launch().unwrap();
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&y).unwrap(), [5.0; 32]);
    });
}

#[test]
fn memory_that_outlives_its_context_is_a_leak() {
    let output = emulated("memory_that_outlives_its_context_is_a_leak", &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        // SAFETY: never read.
        let slice = unsafe { stream.alloc::<f32>(100) }.unwrap();
        // The slice's handle on the context is given back, the memory is not.
        slice.leak();
    });
    let Some(output) = output else { return };
    assert!(stderr(&output).contains("leak: 400 bytes"), "{}", stderr(&output));
}

#[test]
fn memory_ends_where_it_is_told_to() {
    emulated("memory_ends_where_it_is_told_to", &[("CUDA_EMULATOR_MEMORY", "1000")], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let first = stream.alloc_zeros::<u8>(800).unwrap();
        let error = stream.alloc_zeros::<u8>(800).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        drop(first);
        stream.alloc_zeros::<u8>(800).unwrap();
    });
}

#[test]
fn a_device_has_as_many_multiprocessors_as_it_is_told() {
    let test = "a_device_has_as_many_multiprocessors_as_it_is_told";
    emulated(test, &[("CUDA_EMULATOR_MULTIPROCESSORS", "7")], || {
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        assert_eq!(CudaContext::new(0).unwrap().attribute(count).unwrap(), 7);
    });
}

#[test]
fn a_text_that_does_not_parse_or_is_too_new_is_refused_at_load() {
    let variables = [("CUDA_EMULATOR_VERSION", "11.8"), ("CUDA_EMULATOR_ARCH", "sm_86")];
    let output = emulated("a_text_that_does_not_parse_or_is_too_new_is_refused_at_load", &variables, || {
        let context = CudaContext::new(0).unwrap();
        assert_eq!(context.compute_capability().unwrap(), (8, 6));
        let load = |text: String| context.load_module(Ptx::from_src(text)).map(|_| ()).map_err(|error| error.0);
        assert_eq!(load(KERNEL.to_owned()), Ok(()));
        let unknown = KERNEL.replace("fma.rn.f32", "fmaa.rn.f32");
        assert_eq!(load(unknown), Err(sys::CUresult::CUDA_ERROR_INVALID_PTX));
        let too_new = KERNEL.replace(".version 7.0", ".version 8.0");
        assert_eq!(load(too_new), Err(sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION));
        let of_another = KERNEL.replace("sm_80", "sm_90");
        assert_eq!(load(of_another), Err(sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU));
    });
    let Some(output) = output else { return };
    assert!(stderr(&output).contains("line 21: unknown instruction fmaa.rn.f32"), "{}", stderr(&output));
}

#[test]
fn a_copy_to_pinned_memory_arrives_when_somebody_waits() {
    emulated("a_copy_to_pinned_memory_arrives_when_somebody_waits", &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let data = stream.clone_htod(&[7u8; 16]).unwrap();
        // SAFETY: the memory is as long as the copies, and freed after them.
        unsafe {
            let pinned = cudarc::driver::result::malloc_host(16, 0).unwrap().cast::<u8>();
            let (address, _guard) = cudarc::driver::DevicePtr::device_ptr(&data, &stream);
            sys::cuMemcpyDtoHAsync_v2(pinned.cast(), address, 16, stream.cu_stream()).result().unwrap();
            assert_eq!(pinned.read_volatile(), 0, "nobody has waited");
            stream.synchronize().unwrap();
            assert_eq!(pinned.read_volatile(), 7);
            cudarc::driver::result::free_host(pinned.cast()).unwrap();
        }
    });
}

#[test]
fn occupancy_follows_threads_and_shared_memory() {
    emulated("occupancy_follows_threads_and_shared_memory", &[], || {
        let context = CudaContext::new(0).unwrap();
        let kernel = load(&context);
        let blocks =
            |threads, bytes| kernel.occupancy_max_active_blocks_per_multiprocessor(threads, bytes, None).unwrap();
        assert_eq!(blocks(1024, 0), 2);
        assert_eq!(blocks(32, 0), 32);
        assert_eq!(blocks(128, 40 << 10), 4);
    });
}

#[test]
fn tensor_maps_are_made_as_the_driver_makes_them() {
    emulated("tensor_maps_are_made_as_the_driver_makes_them", &[("CUDA_EMULATOR_ARCH", "sm_90a")], || {
        use sys::CUresult::{CUDA_ERROR_INVALID_VALUE as INVALID, CUDA_SUCCESS as SUCCESS};
        const HEAD: &str = "
.version 8.0
.target sm_90a
.address_size 64
.visible .entry box_of(.param .align 64 .b8 p_map[128], .param .u64 p_out)";
        let text = format!(
            "{HEAD} {{
    .reg .b64 map, out; .reg .b32 thread, at, word; .reg .pred zero, done;
    .shared .align 128 .b8 room[128]; .shared .align 8 .b64 mbar;
    mov.u64 map, p_map; cvta.param.u64 map, map; ld.param.u64 out, [p_out];
    mov.u32 thread, %tid.x; setp.eq.u32 zero, thread, 0;
    @zero mbarrier.init.shared.b64 [mbar], 1;
    bar.sync 0;
    @!zero bra WAIT;
    mbarrier.arrive.expect_tx.shared.b64 _, [mbar], 128;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [room], [map, {{4, 1}}], [mbar];
WAIT:
    mbarrier.try_wait.parity.shared.b64 done, [mbar], 0;
    @!done bra WAIT;
    mov.u32 at, room; mad.lo.u32 at, thread, 4, at; ld.shared.u32 word, [at];
    mad.wide.u32 out, thread, 4, out; st.global.u32 [out], word;
}}"
        );
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let kernel = context.load_module(Ptx::from_src(text)).unwrap().load_function("box_of").unwrap();
        let data = stream.clone_htod(&(0..8 * 16).collect::<Vec<i32>>()).unwrap();
        let mut out = stream.clone_htod(&[0i32; 32]).unwrap();
        let (address, _guard) = cudarc::driver::DevicePtr::device_ptr(&data, &stream);
        let mut map = sys::CUtensorMap_st { opaque: [0; 16] };
        let encode = |map: &mut sys::CUtensorMap_st, rank: u32, offset: u64, stride: u64, wide: u32, swizzle| {
            // SAFETY: lists as long as the rank says, and a map to write.
            unsafe {
                sys::cuTensorMapEncodeTiled(
                    map,
                    sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_INT32,
                    rank,
                    (address + offset) as *mut _,
                    [16, 8, 1, 1, 1, 1].as_ptr(),
                    [stride; 5].as_ptr(),
                    [wide, 4, 1, 1, 1, 1].as_ptr(),
                    [1; 6].as_ptr(),
                    sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                    swizzle,
                    sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
                    sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
                )
            }
        };
        let plain = sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE;
        let narrow = sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B;
        for (rank, offset, stride, wide, swizzle, expected) in [
            (0, 0, 64, 8, plain, INVALID),
            (6, 0, 64, 8, plain, INVALID),
            (2, 4, 64, 8, plain, INVALID),
            (2, 0, 68, 8, plain, INVALID),
            (2, 0, 64, 6, plain, INVALID),
            (2, 0, 64, 260, plain, INVALID),
            (2, 0, 64, 16, narrow, INVALID),
            (2, 0, 64, 8, narrow, SUCCESS),
            (2, 0, 64, 8, plain, SUCCESS),
        ] {
            let status = encode(&mut map, rank, offset, stride, wide, swizzle);
            assert_eq!(status, expected, "{rank} {offset} {stride} {wide}");
        }
        #[repr(C, align(64))]
        #[derive(Clone, Copy)]
        struct Map(sys::CUtensorMap_st);
        // SAFETY: 128 bytes that the kernel takes by value.
        unsafe impl cudarc::driver::DeviceRepr for Map {}
        let map = Map(map);
        // SAFETY: the arguments are the kernel's.
        unsafe { stream.launch_builder(&kernel).arg(&map).arg(&mut out).launch(config(32)) }.unwrap();
        let expected: Vec<i32> = (0..32).map(|at| 16 * (1 + at / 8) + 4 + at % 8).collect();
        assert_eq!(stream.clone_dtoh(&out).unwrap(), expected);
    });
}
