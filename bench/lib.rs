//! What the benches share: criterion with peers that take turns, this machine's ceilings, the report.
//!
//! In each iteration that criterion asks for, ours and its peers run one after the other, so that what disturbs one
//! disturbs the others; a ratio is the median of the ratios of neighbours. `SMALTI_PYTHON` names a Python that has
//! PyTorch; a peer that is not there is named as absent. `SMALTI_THREADS` is how many threads all take.

#[cfg(feature = "candle")]
pub mod candle;
#[cfg(not(feature = "candle"))]
#[path = "without_candle.rs"]
pub mod candle;
mod ceilings;
#[cfg(feature = "cuda")]
pub mod cuda;
mod decoders;
pub mod families;
pub mod generators;
mod names;
mod page;
mod peer;
mod report;

use std::time::{Duration, Instant};

pub use ceilings::Ceilings;
use criterion::{Criterion, SamplingMode};
pub use peer::{Operand, Peer};
pub use report::{Memory, Row, compare, write};
use smalti::{Device, Float};

/// How many threads all take: `SMALTI_THREADS`, or one per core.
#[must_use]
pub fn threads() -> usize {
    let asked = std::env::var("SMALTI_THREADS").ok().and_then(|count| count.parse().ok());
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into))
}

/// Numbers in [-1, 1) that depend on nothing.
#[must_use]
pub fn numbers<T: Float>(count: usize) -> Vec<T> {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        T::from_f32((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
    };
    (0..count).map(|_| next()).collect()
}

/// The middle one.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The distance between the quartiles, over the median.
#[must_use]
pub fn spread(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quartile = |quarter: usize| sorted.get(sorted.len() * quarter / 4).or(sorted.last()).copied().unwrap_or(0.0);
    (quartile(3) - quartile(1)) / median(sorted.clone())
}

/// Seconds that work takes.
pub fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Before each turn: PyTorch's threads look out for work for some milliseconds before they sleep, and would hold a core.
const PAUSE: Duration = Duration::from_millis(20);
/// A turn lasts so long at least: the system takes some milliseconds to spread threads that slept over its cores.
const TURN: Duration = Duration::from_millis(40);

/// Seconds that one run takes: the median of the later half of a turn's.
fn turn(work: &mut dyn FnMut()) -> f64 {
    std::thread::sleep(PAUSE);
    let start = Instant::now();
    let mut runs = Vec::new();
    while runs.is_empty() || start.elapsed() < TURN {
        runs.push(seconds(&mut *work));
    }
    median(runs.split_off(runs.len() / 2))
}

/// Someone else's code for the same task, in this process.
pub struct Rival<'a> {
    /// Its name.
    pub name: &'static str,
    /// Does the task once.
    pub run: Box<dyn FnMut() + 'a>,
}

/// How a peer did.
#[derive(Debug, Clone)]
pub struct Rated {
    /// Its name.
    pub name: String,
    /// Median seconds.
    pub seconds: f64,
    /// The median of how many times ours that is.
    pub ratio: f64,
}

impl Rated {
    /// From seconds of runs in turns; nothing if the peer did not run.
    #[must_use]
    pub fn new(name: &str, ours: &[f64], peer: &[f64]) -> Option<Self> {
        let ratio = median(ours.iter().zip(peer).map(|(ours, peer)| peer / ours).collect());
        (!peer.is_empty()).then(|| Self { name: name.to_owned(), seconds: median(peer.to_vec()), ratio })
    }
}

/// A task and the least that it takes.
#[derive(Debug, Clone)]
pub struct Task {
    /// What it is, with its sizes.
    pub name: String,
    /// Bytes that must be moved at least.
    pub bytes: f64,
    /// Operations that must be done at least.
    pub operations: f64,
    /// Where it stands in the plots of time against work.
    pub place: Option<Place>,
}

/// A point of a curve.
#[derive(Debug, Clone)]
pub struct Place {
    /// The curve against length.
    pub series: String,
    /// The curve against density: what differs in its mask alone.
    pub across: String,
    /// The length of a sequence.
    pub length: f64,
    /// The share of pairs that see each other.
    pub density: f64,
}

/// The bench of one family on the CPU.
pub struct Bench {
    family: &'static str,
    criterion: Criterion,
    device: Device,
    ceilings: Ceilings,
    /// PyTorch: prepare it before each comparison.
    pub pytorch: Peer,
    rows: Vec<Row>,
}

impl Bench {
    /// Measures the ceilings and starts PyTorch.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn new(family: &'static str) -> smalti::Result<Self> {
        let device = Device::cpu_with_threads(threads())?;
        let criterion = Criterion::default()
            .sample_size(10)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_millis(1500))
            .configure_from_args();
        let ceilings = Ceilings::measure(&device, threads());
        let pytorch = Peer::pytorch(threads());
        Ok(Self { family, criterion, device, ceilings, pytorch, rows: Vec::new() })
    }

    /// The device that ours runs on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// Runs ours, PyTorch's task and the rivals in turns, as often as criterion asks; nothing if its filter leaves the
    /// task out. Products are in `T`.
    pub fn compare<T: Float>(&mut self, task: Task, ours: impl FnMut(), rivals: &mut [Rival<'_>]) {
        self.take_turns::<T>(task, ours, rivals, true);
    }

    /// The same without PyTorch, which has no such task.
    pub fn compare_without_pytorch<T: Float>(&mut self, task: Task, ours: impl FnMut(), rivals: &mut [Rival<'_>]) {
        self.take_turns::<T>(task, ours, rivals, false);
    }

    fn take_turns<T: Float>(&mut self, task: Task, mut ours: impl FnMut(), rivals: &mut [Rival<'_>], pytorch: bool) {
        let mut our_seconds = Vec::new();
        let mut peer_seconds = vec![Vec::new(); 1 + rivals.len()];
        let mut group = self.criterion.benchmark_group(self.family);
        group.sampling_mode(SamplingMode::Flat);
        group.bench_function(&task.name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut total = 0.0;
                for _ in 0..iterations {
                    our_seconds.push(turn(&mut ours));
                    total += our_seconds[our_seconds.len() - 1];
                    std::thread::sleep(PAUSE);
                    if pytorch {
                        peer_seconds[0].extend(self.pytorch.run());
                    }
                    for (rival, peer_seconds) in rivals.iter_mut().zip(&mut peer_seconds[1..]) {
                        peer_seconds.push(turn(&mut rival.run));
                    }
                }
                Duration::from_secs_f64(total)
            });
        });
        group.finish();
        if our_seconds.is_empty() {
            return;
        }
        let names = std::iter::once("PyTorch").chain(rivals.iter().map(|rival| rival.name));
        let rated = names.zip(&peer_seconds).filter_map(|(name, peer)| Rated::new(name, &our_seconds, peer));
        self.rows.push(Row {
            peers: rated.collect(),
            spread: spread(&our_seconds),
            seconds: median(our_seconds),
            product_ceiling: self.ceilings.product::<T>(),
            error: None,
            memory: None,
            task,
        });
    }

    /// Writes the report.
    ///
    /// # Errors
    /// If its folder cannot be written.
    pub fn finish(self) -> std::io::Result<()> {
        self.criterion.final_summary();
        let peers = [self.pytorch.name(), candle::NAME.to_owned()];
        write(self.family, &format!("cpu, {} threads", threads()), &peers, &self.ceilings, &self.rows)
    }
}

/// The largest memory that this process has held, in bytes; Linux only.
#[must_use]
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
