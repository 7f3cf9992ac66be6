//! The bench on an NVIDIA GPU: the device's own events time it, PyTorch on the same GPU takes turns with it.
//!
//! Criterion times on the host, where a launch costs more than many a kernel. Here a pass is many calls of an op, recorded
//! into a CUDA graph if that is faster, as are the peer's; a figure is the median of passes, over the calls of a pass.
//! Inputs take turns and outputs are kept until the pass ends, so that what memory must deliver is not found in a cache.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaGraph, CudaStream, sys};
use serde_json::{Value, json};
use smalti::{Device, Element, Float, Tensor, Weight, bf16, f16, linear};

use crate::{Ceilings, Peer, Rated, Row, Task, median, numbers, report, spread};

/// What stops the whole bench.
pub type Failure = Box<dyn std::error::Error>;

/// Numbers that operands are made of; longer ones repeat them.
const NUMBERS: usize = 1 << 24;
/// How far apart the operands of a task begin in these numbers.
const APART: usize = 1 << 14;
/// Operands that a task has at most.
const OPERANDS: usize = 8;
/// Bytes beyond which nothing is found in a cache: the largest has 126 MB.
const BEYOND_CACHES: usize = 256 << 20;
/// Copies of the inputs of one call.
const MOST_COPIES: usize = 128;
/// Seconds that a pass should take, and calls that it has at most.
const PASS: f64 = 2e-3;
const MOST_CALLS: usize = 256;
/// Seconds of a call from which on it is not recorded: launches are no matter, or too many for a graph.
const LONG: f64 = 5e-2;
/// How long a task is measured: passes of ours and of all peers in turns.
const BUDGET: Duration = Duration::from_millis(200);
const PASSES: std::ops::Range<usize> = 3..40;
/// Results that are compared with the peer's.
const COMPARED: usize = 4096;

/// What a call gives, kept until the pass ends.
pub enum Output {
    /// f32.
    F32(Tensor<f32>),
    /// f16.
    F16(Tensor<f16>),
    /// bf16.
    Bf16(Tensor<bf16>),
    /// Indices.
    U32(Tensor<u32>),
    /// Nothing to keep or to compare.
    Nothing,
}

macro_rules! output {
    ($($variant:ident: $type:ty),*) => {$(
        impl From<Tensor<$type>> for Output {
            fn from(tensor: Tensor<$type>) -> Self {
                Self::$variant(tensor)
            }
        }
    )*};
}
output!(F32: f32, F16: f16, Bf16: bf16, U32: u32);

impl Output {
    fn elements(&self) -> usize {
        match self {
            Self::F32(tensor) => tensor.elements(),
            Self::F16(tensor) => tensor.elements(),
            Self::Bf16(tensor) => tensor.elements(),
            Self::U32(tensor) => tensor.elements(),
            Self::Nothing => 0,
        }
    }

    /// Elements at equal distances.
    fn some(&self) -> smalti::Result<Vec<f64>> {
        fn some<T: Element>(tensor: &Tensor<T>, to: impl Fn(T) -> f64) -> smalti::Result<Vec<f64>> {
            let step = step(tensor.elements());
            let count = tensor.elements() / step;
            let flat = tensor.reshape(&[tensor.elements()])?.narrow(0, 0, count * step)?;
            let some = flat.reshape(&[count, step])?.narrow(1, 0, 1)?;
            Ok(some.to_vec()?.into_iter().map(to).collect())
        }
        match self {
            Self::F32(tensor) => some(tensor, Float::to_f64),
            Self::F16(tensor) => some(tensor, Float::to_f64),
            Self::Bf16(tensor) => some(tensor, Float::to_f64),
            Self::U32(tensor) => some(tensor, f64::from),
            Self::Nothing => Ok(Vec::new()),
        }
    }
}

/// An odd distance, so that elements of all channels are compared.
fn step(elements: usize) -> usize {
    (elements / COMPARED) | 1
}

/// One call; it gets its number, so that inputs can take turns.
pub type Call<'a> = Box<dyn FnMut(usize) -> Result<Output, Failure> + 'a>;

/// Operands that ours and the peer make of the same numbers.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    /// Its name in the peer's task.
    pub name: &'a str,
    /// The length of each axis.
    pub shape: &'a [usize],
}

/// A task that is ready to run.
pub struct Case<'a> {
    /// Ours.
    pub ours: Call<'a>,
    /// Others of this process.
    pub rivals: Vec<(&'static str, Call<'a>)>,
    /// What the peer is told, without the operands; none if it has no part in this.
    pub peer: Option<Value>,
}

/// What became of a task.
enum Done {
    Timed(Row),
    Tried(String),
}

/// A device with its clock.
struct Clock {
    stream: Arc<CudaStream>,
    measuring: bool,
}

/// A call with its way to be run many times.
struct Pass<'a> {
    call: Call<'a>,
    calls: usize,
    graph: Option<CudaGraph>,
}

impl Clock {
    /// Seconds of one of `calls` calls.
    fn time(&self, calls: usize, work: impl FnOnce() -> Result<(), Failure>) -> Result<f64, Failure> {
        let event = || self.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        let start = event()?;
        work()?;
        Ok(f64::from(start.elapsed_ms(&event()?)?) / 1e3 / calls as f64)
    }

    /// Runs the call once, then finds out how it is run fastest.
    fn prepare<'a>(&self, mut call: Call<'a>, copies: usize) -> Result<(Pass<'a>, Output), Failure> {
        let first = call(0)?;
        self.stream.synchronize()?;
        if !self.measuring {
            let graph = self.record(1, &mut call);
            let mut pass = Pass { call, calls: 1, graph };
            self.run(&mut pass)?;
            return Ok((pass, first));
        }
        let seconds = self.time(1, || call(0).map(drop))?;
        let calls = ((PASS / seconds) as usize).clamp(copies, MOST_CALLS.max(copies));
        let mut pass = Pass { call, calls, graph: None };
        if seconds > LONG {
            return Ok((pass, first));
        }
        // The first pass fills the pool of memory, or uploads the graph.
        let best = |pass: &mut Pass<'_>| {
            let seconds = [self.run(pass), self.run(pass), self.run(pass)];
            seconds.into_iter().skip(1).try_fold(f64::INFINITY, |best, seconds| Ok::<_, Failure>(best.min(seconds?)))
        };
        let without = best(&mut pass)?;
        pass.graph = self.record(calls, &mut pass.call);
        if pass.graph.is_some() && best(&mut pass)? > without {
            pass.graph = None;
        }
        Ok((pass, first))
    }

    /// A graph of so many calls; none if a call cannot be recorded, as where it copies from the host.
    fn record(&self, calls: usize, call: &mut Call<'_>) -> Option<CudaGraph> {
        self.stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).ok()?;
        let outputs: Result<Vec<_>, Failure> = (0..calls).map(call).collect();
        let recorded = outputs.is_ok();
        // Freed inside the graph, after all calls.
        drop(outputs);
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0)).ok().flatten();
        graph.filter(|_| recorded)
    }

    fn run(&self, pass: &mut Pass<'_>) -> Result<f64, Failure> {
        let Pass { call, calls, graph } = pass;
        self.time(*calls, || match graph {
            Some(graph) => graph.launch().map_err(Failure::from),
            None => (0..*calls).map(call).collect::<Result<Vec<_>, Failure>>().map(drop),
        })
    }
}

/// The bench of all families on one GPU.
pub struct Bench {
    clock: Clock,
    device: Device,
    name: String,
    numbers: Vec<f32>,
    ceilings: Ceilings,
    peer: Peer,
    /// Peers, and those that are absent.
    peers: Vec<String>,
    filters: Vec<String>,
    family: &'static str,
    rows: Vec<Row>,
    failures: usize,
}

impl Bench {
    /// Opens the first CUDA device, measures what it can do and starts PyTorch. Without `--bench` among the program's
    /// arguments nothing is timed: each task is small and runs once. None if there is no device for that.
    ///
    /// # Errors
    /// If figures are wanted and there is no device, or only an emulated one; if `SMALTI_REQUIRE` names cuda, which is not there.
    pub fn start() -> Result<Option<Self>, Failure> {
        let (flags, filters): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|word| word.starts_with('-'));
        let measuring = flags.iter().any(|flag| flag == "--bench");
        // Opened as such it keeps freed memory, which then holds for all streams.
        match Device::cuda(0) {
            Ok(_) => {}
            Err(error) if measuring || required() => return Err(error.into()),
            Err(error) => {
                println!("SKIPPED: {error}");
                return Ok(None);
            }
        }
        let context = CudaContext::new(0)?;
        let name = context.name()?;
        let software = Device::list().iter().any(|info| info.id == "cuda" && info.software);
        if measuring && software {
            return Err(format!("{name} is no device to take times on").into());
        }
        let stream = context.new_stream()?;
        let device = Device::from_cuda(Arc::clone(&stream))?;
        let clock = Clock { stream, measuring };
        let period = if measuring { NUMBERS } else { APART };
        let numbers = numbers::<f32>(period + OPERANDS * APART);
        let mut peer = Peer::pytorch_cuda(if software { "cpu" } else { "cuda" }, measuring, &numbers, period);
        let mut ceilings = Ceilings::UNKNOWN;
        let mut peers = vec![peer.name()];
        if let Some(answer) = peer.ask(&json!({"absent": true})) {
            peers.extend(answer.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
        }
        if measuring {
            ceilings = clock.ceilings(&device, &numbers)?;
            println!("{name}; {}", peers.join("; "));
            println!("ours: {}", ceilings_line(&ceilings));
            if let Some(answer) = peer.ask(&json!({"ceilings": true})) {
                let theirs = |key: &str, ours: f64| answer[key].as_f64().unwrap_or(0.0).max(ours);
                let copy = theirs("copy", ceilings.copy);
                let (f32, bf16) = (theirs("f32", ceilings.f32), theirs("bf16", ceilings.bf16));
                ceilings = Ceilings { read: copy, copy, f32, bf16 };
                println!("PyTorch: {answer}");
            }
        }
        Ok(Some(Self {
            clock,
            device,
            name,
            numbers,
            ceilings,
            peer,
            peers,
            filters,
            family: "",
            rows: Vec::new(),
            failures: 0,
        }))
    }

    /// Begins a family of tasks.
    pub fn family(&mut self, family: &'static str) {
        self.family = family;
        self.rows.clear();
    }

    /// The device that ours runs on.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A size to be measured, or one that is only tried.
    #[must_use]
    pub fn size(&self, measured: usize, tried: usize) -> usize {
        if self.clock.measuring { measured } else { tried }
    }

    /// How many copies of a call's inputs there must be for none to be found in a cache.
    #[must_use]
    pub fn copies(&self, bytes: f64) -> usize {
        let copies = (BEYOND_CACHES as f64 / bytes).ceil() as usize;
        self.size(copies.clamp(1, MOST_COPIES), 2)
    }

    /// The copies of operand number `index` of a task.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn operand<T: Float>(&self, index: usize, shape: &[usize], copies: usize) -> smalti::Result<Vec<Tensor<T>>> {
        operand(&self.device, &self.numbers, index, shape, copies)
    }

    /// Runs a task that no filter leaves out: ours, its rivals and the peer in turns. `operands` are the peer's, in the
    /// order of ours; products are in `T`.
    pub fn compare<'a, T: Float>(
        &mut self,
        task: Task,
        copies: usize,
        operands: &[Shape<'_>],
        prepare: impl FnOnce(&Self) -> Result<Case<'a>, Failure>,
    ) {
        let name = format!("{}/{}", self.family, task.name);
        if !self.filters.is_empty() && !self.filters.iter().any(|filter| name.contains(filter)) {
            return;
        }
        match prepare(self).and_then(|case| self.run::<T>(&task, copies, operands, case)) {
            Ok(Done::Timed(row)) => {
                println!("{name}: {}", line(&row, &self.ceilings));
                self.rows.push(row);
                let family = format!("cuda {}", self.family);
                if let Err(error) = report::save(&family, &self.name, &self.peers, &self.ceilings, &self.rows) {
                    println!("no report: {error}");
                }
            }
            Ok(Done::Tried(how)) => println!("{name}: {how}"),
            Err(error) => {
                self.failures += 1;
                println!("{name}: FAILED: {error}");
            }
        }
    }

    fn run<T: Float>(
        &mut self,
        task: &Task,
        copies: usize,
        operands: &[Shape<'_>],
        case: Case<'_>,
    ) -> Result<Done, Failure> {
        let Case { ours, rivals, peer } = case;
        let (mut ours, first) = self.clock.prepare(ours, copies)?;
        let rivals = rivals.into_iter().map(|(name, call)| Ok((name, self.clock.prepare(call, copies)?.0)));
        let mut rivals = rivals.collect::<Result<Vec<_>, Failure>>()?;
        let mut with_peer = false;
        let mut error = None;
        if let Some(mut question) = peer {
            let operand = |(index, operand): (usize, &Shape<'_>)| {
                let spec = json!({"start": index * APART, "shape": operand.shape, "dtype": T::DTYPE.name()});
                (operand.name.to_owned(), spec)
            };
            question["operands"] = operands.iter().enumerate().map(operand).collect();
            question["copies"] = json!(copies);
            question["step"] = json!(step(first.elements()));
            if let Some(answer) = self.peer.ask(&question) {
                with_peer = true;
                for reason in answer["absent"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    println!("  absent: {reason}");
                }
                error = difference(&first, &answer["some"])?;
            }
        }
        drop(first);
        if !self.clock.measuring {
            let expected = if T::DTYPE == f32::DTYPE { 1e-3 } else { 2e-2 };
            return match error {
                Some(error) if error > expected => Err(format!("differs from the peer by {error:.1e}").into()),
                Some(error) => Ok(Done::Tried(format!("runs, difference {error:.1e}"))),
                None => Ok(Done::Tried("runs".to_owned())),
            };
        }
        let mut our_seconds = Vec::new();
        let mut rival_seconds = vec![Vec::new(); rivals.len()];
        let mut peer_seconds: Vec<(String, Vec<f64>)> = Vec::new();
        let start = Instant::now();
        while our_seconds.len() < PASSES.start || our_seconds.len() < PASSES.end && start.elapsed() < BUDGET {
            our_seconds.push(self.clock.run(&mut ours)?);
            for ((_, pass), seconds) in rivals.iter_mut().zip(&mut rival_seconds) {
                seconds.push(self.clock.run(pass)?);
            }
            let answer = if with_peer { self.peer.ask(&json!("run")) } else { None };
            for (name, seconds) in answer.iter().filter_map(Value::as_object).flatten() {
                let Some(seconds) = seconds.as_f64() else { continue };
                match peer_seconds.iter_mut().find(|(known, _)| known == name) {
                    Some((_, all)) => all.push(seconds),
                    None => peer_seconds.push((name.clone(), vec![seconds])),
                }
            }
        }
        let rivals = rivals.iter().zip(&rival_seconds).map(|((name, _), seconds)| (*name, seconds));
        let peers = peer_seconds.iter().map(|(name, seconds)| (name.as_str(), seconds));
        let rated = rivals.chain(peers).filter_map(|(name, seconds)| Rated::new(name, &our_seconds, seconds));
        let mut peers: Vec<_> = rated.collect();
        peers.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        Ok(Done::Timed(Row {
            peers,
            spread: spread(&our_seconds),
            seconds: median(our_seconds),
            // Tensor cores are as fast in either half type.
            product_ceiling: if T::DTYPE.bytes() == 2 { self.ceilings.bf16 } else { self.ceilings.f32 },
            error,
            memory: None,
            task: task.clone(),
        }))
    }

    /// Ends the bench.
    ///
    /// # Errors
    /// If tasks failed.
    pub fn finish(self) -> Result<(), Failure> {
        match self.failures {
            0 => Ok(()),
            count => Err(format!("{count} tasks failed").into()),
        }
    }
}

/// Whether tests must not do without CUDA.
fn required() -> bool {
    std::env::var("SMALTI_REQUIRE").is_ok_and(|names| names.split(',').any(|name| name == "cuda"))
}

/// The distance from the peer's results over their size; of indices, the share that is not the same.
fn difference(ours: &Output, theirs: &Value) -> Result<Option<f64>, Failure> {
    let Some(theirs) = theirs.as_array() else { return Ok(None) };
    let theirs: Vec<f64> = theirs.iter().map(|value| value.as_f64().unwrap_or(f64::NAN)).collect();
    let some = ours.some()?;
    if some.len() != theirs.len() {
        return Err(format!("{} results to compare, the peer has {}", some.len(), theirs.len()).into());
    }
    let pairs = || some.iter().zip(&theirs);
    if matches!(ours, Output::U32(_)) {
        return Ok(Some(pairs().filter(|(a, b)| a != b).count() as f64 / some.len() as f64));
    }
    let distance: f64 = pairs().map(|(a, b)| (a - b).powi(2)).sum();
    Ok(Some((distance / theirs.iter().map(|value| value.powi(2)).sum::<f64>()).sqrt()))
}

impl Clock {
    /// The best of several passes of a copy and of large products of ours.
    fn ceilings(&self, device: &Device, numbers: &[f32]) -> Result<Ceilings, Failure> {
        const SIDE: usize = 8192;
        const COPIED: usize = 1 << 30;
        let best = |mut work: Box<dyn FnMut() -> Result<(), Failure> + '_>| -> Result<f64, Failure> {
            let times: Result<Vec<_>, Failure> = (0..4).map(|_| self.time(1, &mut work)).collect();
            Ok(times?.into_iter().fold(f64::INFINITY, f64::min))
        };
        let from = self.stream.alloc_zeros::<u8>(COPIED)?;
        let mut to = self.stream.alloc_zeros::<u8>(COPIED)?;
        let copy = best(Box::new(|| Ok(self.stream.memcpy_dtod(&from, &mut to)?)))?;
        drop((from, to));
        let bf16 = {
            let x = operand::<bf16>(device, numbers, 0, &[SIDE, SIDE], 1)?.remove(0);
            let weight = Weight::from(operand::<bf16>(device, numbers, 1, &[SIDE, SIDE], 1)?.remove(0));
            best(Box::new(move || linear::linear(&x, &weight, None).map(drop).map_err(Failure::from)))?
        };
        let side = SIDE / 4;
        let f32 = {
            let x = operand::<f32>(device, numbers, 0, &[side, side], 1)?.remove(0);
            let weight = Weight::from(operand::<f32>(device, numbers, 1, &[side, side], 1)?.remove(0));
            best(Box::new(move || linear::linear(&x, &weight, None).map(drop).map_err(Failure::from)))?
        };
        let copy = 2.0 * COPIED as f64 / copy;
        let operations = |side: usize| 2.0 * (side as f64).powi(3);
        Ok(Ceilings { read: copy, copy, f32: operations(side) / f32, bf16: operations(SIDE) / bf16 })
    }
}

/// The copies of operand number `index` of a task, of numbers that repeat.
fn operand<T: Float>(
    device: &Device,
    numbers: &[f32],
    index: usize,
    shape: &[usize],
    copies: usize,
) -> smalti::Result<Vec<Tensor<T>>> {
    let each: usize = shape.iter().product();
    let period = numbers.len() - OPERANDS * APART;
    let count = (each * copies).min(period);
    let mut values = vec![T::zeroed(); count];
    T::narrow(&numbers[index * APART..][..count], &mut values);
    let once = Tensor::from_vec(device, &[1, count], values)?;
    let times = (each * copies).div_ceil(count);
    let all = once.broadcast(&[times, count])?.reshape(&[times * count])?;
    (0..copies).map(|copy| all.narrow(0, copy * each, each)?.reshape(shape)).collect()
}

fn ceilings_line(ceilings: &Ceilings) -> String {
    format!(
        "copy {:.0} GB/s, f32 {:.1} TFLOP/s, bf16 {:.1} TFLOP/s",
        ceilings.copy / 1e9,
        ceilings.f32 / 1e12,
        ceilings.bf16 / 1e12
    )
}

fn line(row: &Row, ceilings: &Ceilings) -> String {
    let Row { task, seconds, .. } = row;
    let mut line = format!("{:.4} ms", seconds * 1e3);
    if task.operations > 0.0 {
        line += &format!(", {:.1} TFLOP/s", task.operations / seconds / 1e12);
    }
    line += &format!(", {:.0} GB/s, {:.2} of the floor", task.bytes / seconds / 1e9, row.floor(ceilings) / seconds);
    for Rated { name, ratio, .. } in &row.peers {
        line += &format!(", {ratio:.2} x {name}");
    }
    if let Some(error) = row.error {
        line += &format!(", difference {error:.1e}");
    }
    line
}
