//! Whole generators with random weights: LlamaGen-B, 256 tokens with guidance, and the transformer of VAR-d16 over its
//! ten scales with guidance. Each runs in a process of its own, so that its peak memory is its own. Without a GPU, wgpu's
//! adapter may be one in software; it is measured all the same, by one run. Then parallel decoders against one token a
//! pass, beside what their papers claim ([`smalti_bench::families`]); `SMALTI_BENCH_FAMILIES` leaves out all else, and
//! families without its word in their names, unless that is 1.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use smalti::{Backend, Device, Float, bf16};
use smalti_bench::families;
use smalti_bench::generators::{LLAMAGEN_B, Shape, VAR_D16};
use smalti_bench::{
    Ceilings, Memory, Operand, Peer, Rated, Row, Task, median, peak_memory, seconds, spread, threads, write,
};

type Failure = Box<dyn std::error::Error>;

/// Runs of each on the CPU, in turns.
const TURNS: usize = 3;

const SHAPES: [Shape; 2] = [LLAMAGEN_B, VAR_D16];

/// One generator, against the peer if that runs on the same device; the result as JSON on the last line of standard
/// output.
fn run<T: Float>(device: &str, shape: &Shape, path: &Path) -> Result<Value, Failure> {
    let on_cpu = device == "cpu";
    let device = if on_cpu { Device::cpu_with_threads(threads())? } else { Device::open(device)? };
    let mut ours = shape.prepare::<T>(path, &device)?;
    let mut peer = on_cpu.then(|| Peer::pytorch(threads()));
    let mut task = shape.task(path);
    task["cold"] = json!(true);
    if let Some(peer) = &mut peer {
        peer.prepare::<T>(task, &[] as &[Operand<'_, T>]);
    }
    let (mut our_seconds, mut peer_seconds) = (Vec::new(), Vec::new());
    for _ in 0..if on_cpu { TURNS } else { 1 } {
        let mut done = Ok(());
        our_seconds.push(seconds(|| done = ours().and_then(|()| Ok(device.synchronize()?))));
        done?;
        peer_seconds.extend(peer.as_mut().and_then(Peer::run));
    }
    let rated = Rated::new("PyTorch", &our_seconds, &peer_seconds);
    Ok(json!({
        "spread": spread(&our_seconds),
        "seconds": median(our_seconds),
        "peer": rated.as_ref().map(|rated| rated.seconds),
        "ratio": rated.as_ref().map(|rated| rated.ratio),
        "peak": peak_memory(),
    }))
}

fn main() -> Result<(), Failure> {
    if let [device, system, dtype, path] =
        &std::env::var("SMALTI_BENCH_GENERATOR").unwrap_or_default().splitn(4, ' ').collect::<Vec<_>>()[..]
    {
        let shape = SHAPES.iter().find(|shape| shape.system == *system).ok_or("no such generator")?;
        let run = if *dtype == "bf16" { run::<bf16> } else { run::<f32> };
        println!("{}", run(device, shape, Path::new(path))?);
        return Ok(());
    }
    let ceilings = Ceilings::measure(&Device::cpu_with_threads(threads())?, threads());
    let wanted = std::env::var("SMALTI_BENCH_FAMILIES").ok();
    if wanted.is_none() {
        alone(&ceilings)?;
    }
    let wanted = wanted.filter(|word| word != "1").unwrap_or_default();
    let folder = tempfile::tempdir()?;
    let device = Device::cpu_with_threads(threads())?;
    let rows = families::measure::<bf16>(&device, folder.path(), &ceilings, &wanted)?;
    Ok(write("parallel decoding, bf16", &format!("cpu, {} threads", threads()), &[], &ceilings, &rows)?)
}

/// Each generator by itself.
fn alone(ceilings: &Ceilings) -> Result<(), Failure> {
    let name = Peer::pytorch(threads()).name();
    let folder = tempfile::tempdir()?;
    let mut rows = Vec::new();
    for shape in &SHAPES {
        rows.push(row::<f32>("cpu", shape, folder.path(), ceilings)?);
        rows.push(row::<bf16>("cpu", shape, folder.path(), ceilings)?);
    }
    write("generators", &format!("cpu, {} threads", threads()), &[name], ceilings, &rows)?;
    let Some(adapter) = Device::list().into_iter().find(|info| info.backend == Backend::Wgpu) else { return Ok(()) };
    let rows: Result<Vec<_>, _> =
        SHAPES.iter().map(|shape| row::<bf16>(&adapter.id, shape, folder.path(), &Ceilings::UNKNOWN)).collect();
    write("wgpu generators", &adapter.name, &[], &Ceilings::UNKNOWN, &rows?)?;
    Ok(())
}

/// Runs a generator in a process of its own.
fn row<T: Float>(device: &str, shape: &Shape, folder: &Path, ceilings: &Ceilings) -> Result<Row, Failure> {
    let path = folder.join(shape.system);
    shape.save::<T>(&path)?;
    let dtype = T::DTYPE.name();
    let told = format!("{device} {} {dtype} {}", shape.system, path.display());
    let output = Command::new(std::env::current_exe()?).env("SMALTI_BENCH_GENERATOR", told).output()?;
    let answer = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        return Err(format!("{} {dtype}: {}", shape.name, String::from_utf8_lossy(&output.stderr)).into());
    }
    let answer: Value = serde_json::from_str(answer.lines().last().unwrap_or_default())?;
    let number = |key: &str| answer[key].as_f64();
    let rated = number("peer").zip(number("ratio")).map(|(seconds, ratio)| Rated {
        name: "PyTorch".to_owned(),
        seconds,
        ratio,
    });
    let [bytes, operations] = shape.floor::<T>();
    Ok(Row {
        task: Task {
            name: format!("{} {dtype}, {}M parameters", shape.name, shape.parameters() / 1_000_000),
            bytes,
            operations,
            place: None,
        },
        spread: number("spread").unwrap_or(0.0),
        seconds: number("seconds").ok_or("no time")?,
        peers: rated.into_iter().collect(),
        product_ceiling: ceilings.product::<T>(),
        error: None,
        memory: answer["peak"].as_u64().map(|peak| Memory { peak, needed: shape.held::<T>() }),
    })
}
