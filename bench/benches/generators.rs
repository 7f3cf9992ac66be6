//! Whole generators with random weights: LlamaGen-B, 256 tokens with guidance, and the transformer of VAR-d16 over its
//! ten scales with guidance. Each runs in a process of its own, so that its peak memory is its own.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use smalti::{Device, Float, bf16};
use smalti_bench::generators::{LLAMAGEN_B, Shape, VAR_D16};
use smalti_bench::{
    Ceilings, Memory, Operand, Peer, Rated, Row, Task, median, peak_memory, seconds, spread, threads, write,
};

type Failure = Box<dyn std::error::Error>;

/// Runs of each, in turns.
const TURNS: usize = 3;

const SHAPES: [Shape; 2] = [LLAMAGEN_B, VAR_D16];

/// One generator against the peer; the result as JSON on the last line of standard output.
fn run<T: Float>(shape: &Shape, path: &Path) -> Result<Value, Failure> {
    let device = Device::cpu_with_threads(threads())?;
    let mut ours = shape.prepare::<T>(path, &device)?;
    let mut peer = Peer::pytorch(threads());
    let mut task = shape.task(path);
    task["cold"] = json!(true);
    peer.prepare::<T>(task, &[] as &[Operand<'_, T>]);
    let (mut our_seconds, mut peer_seconds) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let mut done = Ok(());
        our_seconds.push(seconds(|| done = ours()));
        done?;
        peer_seconds.extend(peer.run());
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
    if let [system, dtype, path] =
        &std::env::var("SMALTI_BENCH_GENERATOR").unwrap_or_default().splitn(3, ' ').collect::<Vec<_>>()[..]
    {
        let shape = SHAPES.iter().find(|shape| shape.system == *system).ok_or("no such generator")?;
        let path = Path::new(path);
        println!("{}", if *dtype == "bf16" { run::<bf16>(shape, path)? } else { run::<f32>(shape, path)? });
        return Ok(());
    }
    let ceilings = Ceilings::measure(&Device::cpu_with_threads(threads())?, threads());
    let name = Peer::pytorch(threads()).name();
    let folder = tempfile::tempdir()?;
    let mut rows = Vec::new();
    for shape in &SHAPES {
        rows.push(row::<f32>(shape, folder.path(), &ceilings)?);
        rows.push(row::<bf16>(shape, folder.path(), &ceilings)?);
    }
    write("generators", &format!("cpu, {} threads", threads()), &[name], &ceilings, &rows)?;
    Ok(())
}

/// Runs a generator in a process of its own.
fn row<T: Float>(shape: &Shape, folder: &Path, ceilings: &Ceilings) -> Result<Row, Failure> {
    let path = folder.join(shape.system);
    shape.save::<T>(&path)?;
    let dtype = T::DTYPE.name();
    let told = format!("{} {dtype} {}", shape.system, path.display());
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
