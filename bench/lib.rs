//! What the benches share: criterion with peers that take turns, this machine's ceilings, the report.
//!
//! In each iteration that criterion asks for, ours and its peers run one after the other, so that what disturbs one
//! disturbs the others; a ratio is the median of the ratios of neighbours. `SMALTI_PYTHON` names a Python that has
//! PyTorch; a peer that is not there is named as absent. `SMALTI_THREADS` is how many threads all take. A family runs on
//! the CPU, then on a wgpu adapter if there is one: the one that burn takes, or the first; `SMALTI_BENCH_DEVICE` says
//! `cpu` or `wgpu` for one of them.

#[cfg(not(all(feature = "burn", feature = "candle")))]
pub mod absent;
#[cfg(feature = "burn")]
pub mod burn;
#[cfg(feature = "candle")]
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

#[cfg(not(feature = "burn"))]
pub use absent as burn;
#[cfg(not(feature = "candle"))]
pub use absent as candle;
pub use ceilings::Ceilings;
use criterion::{Criterion, SamplingMode};
pub use peer::{Operand, Peer};
pub use report::{Memory, Row, compare, write};
use smalti::{Backend, Device, DeviceInfo, Dtype, Element, Float, Tensor};

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
fn turn(mut work: impl FnMut()) -> f64 {
    std::thread::sleep(PAUSE);
    let start = Instant::now();
    let mut runs = Vec::new();
    while runs.is_empty() || start.elapsed() < TURN {
        runs.push(seconds(&mut work));
    }
    median(runs.split_off(runs.len() / 2))
}

/// Someone else's code for the same task, in this process.
pub struct Rival<'a> {
    /// Its name.
    pub name: &'static str,
    /// Does the task once and waits until that is done; gives its results if asked, and if it is to have ours.
    pub run: Box<dyn FnMut(bool) -> Option<Vec<f64>> + 'a>,
}

/// Results that a rival's can be compared with.
pub trait Results {
    /// Whether they name things, and so are right or wrong.
    const INDICES: bool;
    /// All of them; none if they are nobody else's.
    fn numbers(&self) -> Option<Vec<f64>>;
}

impl<T: Element> Results for Tensor<T> {
    const INDICES: bool = matches!(T::DTYPE, Dtype::U32);

    fn numbers(&self) -> Option<Vec<f64>> {
        let values = self.to_vec().expect("a device that works");
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        match T::DTYPE {
            Dtype::F32 => Some(bytemuck::cast_slice::<_, f32>(bytes).iter().map(|&value| value.into()).collect()),
            Dtype::U32 => Some(bytemuck::cast_slice::<_, u32>(bytes).iter().map(|&value| value.into()).collect()),
            _ => None,
        }
    }
}

impl Results for () {
    const INDICES: bool = false;

    fn numbers(&self) -> Option<Vec<f64>> {
        None
    }
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

/// The bench of one family on one device.
pub struct Bench {
    family: String,
    criterion: Criterion,
    device: Device,
    /// The device's name in the report.
    name: String,
    ceilings: Ceilings,
    /// PyTorch: prepare it before each comparison.
    pub pytorch: Peer,
    /// Tasks with more operations are left out.
    most_operations: f64,
    rows: Vec<Row>,
}

/// What a task may have on an adapter that is software, unless that is asked for: more takes minutes.
const MOST_OPERATIONS_IN_SOFTWARE: f64 = 2e10;

/// What may go wrong in a bench.
pub type Failure = Box<dyn std::error::Error>;

/// Runs a family's tasks on the CPU, then on a wgpu adapter, and writes a report of each.
///
/// # Errors
/// If a device cannot be opened, `tasks` fail or the report cannot be written.
pub fn run(family: &str, tasks: impl Fn(&mut Bench) -> smalti::Result<()>) -> Result<(), Failure> {
    let asked = std::env::var("SMALTI_BENCH_DEVICE").ok();
    if let Some(asked) = asked.as_deref().filter(|asked| !["cpu", "wgpu"].contains(asked)) {
        return Err(format!("SMALTI_BENCH_DEVICE={asked}: expected cpu or wgpu").into());
    }
    let wanted = |device: &str| asked.as_ref().is_none_or(|asked| asked == device);
    let mut benches = Vec::new();
    if wanted("cpu") {
        benches.push(Bench::cpu(family)?);
    }
    if wanted("wgpu") {
        let same = |info: &DeviceInfo| burn::adapter().is_none_or(|adapter| adapter == info.name);
        match Device::list().into_iter().find(|info| info.backend == Backend::Wgpu && same(info)) {
            Some(adapter) => {
                let is_limited = adapter.software && asked.is_none();
                let most_operations = if is_limited { MOST_OPERATIONS_IN_SOFTWARE } else { f64::INFINITY };
                benches.push(Bench { most_operations, ..Bench::wgpu(family, adapter)? });
            }
            None => println!("{family}: no wgpu adapter"),
        }
    }
    for mut bench in benches {
        tasks(&mut bench)?;
        bench.finish()?;
    }
    Ok(())
}

impl Bench {
    /// Measures the ceilings and starts PyTorch.
    fn cpu(family: &str) -> smalti::Result<Self> {
        let device = Device::cpu_with_threads(threads())?;
        let ceilings = Ceilings::measure(&device, threads());
        let name = format!("cpu, {} threads", threads());
        Ok(Self::new(family.to_owned(), device, name, ceilings, Peer::pytorch(threads())))
    }

    fn wgpu(family: &str, adapter: DeviceInfo) -> smalti::Result<Self> {
        let device = Device::open(&adapter.id)?;
        Ok(Self::new(format!("wgpu {family}"), device, adapter.name, Ceilings::UNKNOWN, Peer::absent("it has no wgpu")))
    }

    fn new(family: String, device: Device, name: String, ceilings: Ceilings, pytorch: Peer) -> Self {
        let criterion = Criterion::default()
            .sample_size(10)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_millis(1500))
            .configure_from_args();
        Self { family, criterion, device, name, ceilings, pytorch, most_operations: f64::INFINITY, rows: Vec::new() }
    }

    /// The device that ours runs on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// Whether that is the CPU.
    #[must_use]
    pub fn on_cpu(&self) -> bool {
        self.device.backend() == Backend::Cpu
    }

    /// The peers in this process that run on the same device.
    pub fn rivals<'a>(
        &self,
        on_cpu: impl FnOnce() -> Vec<Rival<'a>>,
        on_wgpu: impl FnOnce() -> Vec<Rival<'a>>,
    ) -> Vec<Rival<'a>> {
        if self.on_cpu() { on_cpu() } else { on_wgpu() }
    }

    /// Runs ours, PyTorch's task and the rivals in turns, as often as criterion asks, each until its results are there;
    /// nothing if its filter leaves the task out. Products are in `T`.
    ///
    /// # Panics
    /// If the results of a rival are not ours.
    pub fn compare<T: Float, R: Results>(&mut self, task: Task, ours: impl FnMut() -> R, rivals: &mut [Rival<'_>]) {
        self.take_turns::<T, R>(task, ours, rivals, true);
    }

    /// The same without PyTorch, which has no such task.
    ///
    /// # Panics
    /// As [`Bench::compare`].
    pub fn compare_without_pytorch<T: Float, R: Results>(
        &mut self,
        task: Task,
        ours: impl FnMut() -> R,
        rivals: &mut [Rival<'_>],
    ) {
        self.take_turns::<T, R>(task, ours, rivals, false);
    }

    fn take_turns<T: Float, R: Results>(
        &mut self,
        task: Task,
        mut ours: impl FnMut() -> R,
        rivals: &mut [Rival<'_>],
        pytorch: bool,
    ) {
        if task.operations > self.most_operations {
            println!("{}: {} left out: too long in software; SMALTI_BENCH_DEVICE=wgpu runs it", self.family, task.name);
            return;
        }
        let mut our_seconds = Vec::new();
        let mut peer_seconds = vec![Vec::new(); 1 + rivals.len()];
        let mut error = None;
        let mut group = self.criterion.benchmark_group(&self.family);
        group.sampling_mode(SamplingMode::Flat);
        group.bench_function(&task.name, |bencher| {
            if our_seconds.is_empty() {
                error = difference(&task.name, &ours(), rivals);
            }
            bencher.iter_custom(|iterations| {
                let mut total = 0.0;
                for _ in 0..iterations {
                    our_seconds.push(turn(|| {
                        std::hint::black_box(ours());
                        self.device.synchronize().expect("a device that works");
                    }));
                    total += our_seconds[our_seconds.len() - 1];
                    std::thread::sleep(PAUSE);
                    if pytorch {
                        peer_seconds[0].extend(self.pytorch.run());
                    }
                    for (rival, peer_seconds) in rivals.iter_mut().zip(&mut peer_seconds[1..]) {
                        peer_seconds.push(turn(|| {
                            (rival.run)(false);
                        }));
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
            error,
            memory: None,
            task,
        });
    }

    /// Writes the report.
    fn finish(self) -> std::io::Result<()> {
        self.criterion.final_summary();
        let (peer, name) = if self.on_cpu() { ("candle", candle::name()) } else { ("burn", burn::name()) };
        let name = name.unwrap_or_else(|| format!("{peer} is absent: built without the feature {peer}"));
        write(&self.family, &self.name, &[self.pytorch.name(), name], &self.ceilings, &self.rows)
    }
}

/// The largest difference from a rival's results: the distance over their size; of indices, the share that is not the same.
fn difference<R: Results>(task: &str, ours: &R, rivals: &mut [Rival<'_>]) -> Option<f64> {
    let mut largest = None;
    for rival in rivals {
        let Some(theirs) = (rival.run)(true) else { continue };
        let ours = ours.numbers().expect("results to compare");
        assert_eq!(ours.len(), theirs.len(), "{task}: how many results, and how many of {}", rival.name);
        let pairs = || ours.iter().zip(&theirs);
        let (error, allowed) = if R::INDICES {
            // What is as good but for rounding may be taken for the best.
            (pairs().filter(|(ours, theirs)| ours != theirs).count() as f64 / ours.len() as f64, 1e-3)
        } else {
            let distance: f64 = pairs().map(|(ours, theirs)| (ours - theirs).powi(2)).sum();
            ((distance / theirs.iter().map(|value| value * value).sum::<f64>()).sqrt(), 1e-5)
        };
        assert!(error < allowed, "{task}: differs from {} by {error:.1e}", rival.name);
        largest = Some(error.max(largest.unwrap_or(0.0)));
    }
    largest
}

/// The largest memory that this process has held, in bytes; Linux only.
#[must_use]
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
