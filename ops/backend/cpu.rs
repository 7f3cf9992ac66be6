//! The CPU: threads that share work, and the widest vectors that this processor has.

use std::num::NonZero;
use std::sync::{Arc, Mutex, OnceLock};

use super::helpers::Helpers;
use super::host::Kept;
use super::simd::{self, Kernel, Simd};
use crate::device::{Backend, DeviceInfo};
use crate::{Error, Float, Result};

/// Elements that are widened at once, at least.
const CHUNK: usize = 1024;

/// More threads than any machine's cores: beyond that a number is a mistake, which the system would pay for in memory.
const MOST_THREADS: usize = 4096;

/// The calling thread and helpers that share an op's work.
#[derive(Debug)]
pub struct Cpu {
    /// Absent where the calling thread works alone.
    helpers: Option<Helpers>,
    /// Memory of dropped outputs, for the next ones.
    pub(crate) kept: Kept,
}

impl Cpu {
    /// What [`Device::cpu`](crate::Device::cpu) hands out, with a thread per core.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Cpu>> = OnceLock::new();
        let alone = || Self { helpers: None, kept: Kept::default() };
        Arc::clone(SHARED.get_or_init(|| Arc::new(Self::with_threads(0).unwrap_or_else(|_| alone()))))
    }

    /// This many threads, the calling one among them; 0 means one per core.
    pub(crate) fn with_threads(threads: usize) -> Result<Self> {
        let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = if threads == 0 { cores() } else { threads };
        if threads > MOST_THREADS {
            let expected = format!("at most {MOST_THREADS}, or 0 for one per core");
            return Err(Error::Value { op: "cpu", operand: "threads", got: threads.to_string(), expected });
        }
        let helpers = (threads > 1).then(|| Helpers::new(threads - 1)).transpose().map_err(|error| Error::Device {
            device: "cpu".to_owned(),
            during: format!("starting {threads} threads"),
            reason: error.to_string(),
        })?;
        Ok(Self { helpers, kept: Kept::default() })
    }

    /// How many threads share the work.
    #[must_use]
    pub fn threads(&self) -> usize {
        1 + self.helpers.as_ref().map_or(0, Helpers::count)
    }

    /// Runs `work` on every task; a thread that is done with one takes the next. The calling thread starts at once,
    /// the helpers as soon as they are awake. What a task computes must not depend on who runs it.
    pub fn share<T: Send>(&self, tasks: impl ExactSizeIterator<Item = T> + Send, work: impl Fn(T) + Sync) {
        self.share_with(tasks, || (), |(), task| work(task));
    }

    /// As [`Cpu::share`], with scratch that each thread makes once.
    pub fn share_with<T: Send, S>(
        &self,
        tasks: impl ExactSizeIterator<Item = T> + Send,
        scratch: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, T) + Sync,
    ) {
        let others = tasks.len().saturating_sub(1).min(self.threads() - 1);
        let tasks = Mutex::new(tasks);
        let take_turns = || {
            let mut scratch = scratch();
            loop {
                // Taking a task panics only with the iterator, which then ends for all.
                let Some(task) = tasks.lock().ok().and_then(|mut tasks| tasks.next()) else { break };
                work(&mut scratch, task);
            }
        };
        match &self.helpers {
            Some(helpers) if others > 0 => helpers.join_in(others, &take_turns),
            _ => take_turns(),
        }
    }

    /// The results of `work(index)` for as many indices, in order, with scratch that each thread makes once.
    pub fn map<R: Send, S>(
        &self,
        count: usize,
        scratch: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, usize) -> R + Sync,
    ) -> Vec<R> {
        let mut results: Vec<Option<R>> = (0..count).map(|_| None).collect();
        let each = |scratch: &mut S, (index, result): (usize, &mut Option<R>)| *result = Some(work(scratch, index));
        self.share_with(results.iter_mut().enumerate(), scratch, each);
        results.into_iter().map(|result| result.expect("every task was run")).collect()
    }

    /// Calls `row(index, output)` for every chunk of `len` elements of `output`, spread over the threads where
    /// that pays. What a row computes must not depend on the others: so results do not depend on the threads.
    pub fn rows<T: Send>(&self, output: &mut [T], len: usize, row: impl Fn(usize, &mut [T]) + Sync) {
        self.rows_with(output, len, || (), |(), index, output| row(index, output));
    }

    /// As [`Cpu::rows`], with scratch that each thread makes once.
    pub fn rows_with<T: Send, S>(
        &self,
        output: &mut [T],
        len: usize,
        scratch: impl Fn() -> S + Sync,
        row: impl Fn(&mut S, usize, &mut [T]) + Sync,
    ) {
        /// Elements below which handing work to another thread costs more than doing it.
        const WORTH_A_THREAD: usize = 1 << 12;
        /// Tasks for each thread: enough to make up for one that is held up.
        const TASKS: usize = 4;
        if len == 0 {
            return;
        }
        let least = WORTH_A_THREAD.max(output.len() / (TASKS * self.threads()));
        let rows_per_task = least.div_ceil(len);
        let tasks = output.chunks_mut(rows_per_task * len).enumerate();
        self.share_with(tasks, scratch, |scratch, (task, output)| {
            for (index, output) in output.chunks_mut(len).enumerate() {
                row(scratch, task * rows_per_task + index, output);
            }
        });
    }

    /// Calls `work(index, x, y)` with each row of `len` elements, in f32, to fill that of `y`; compiled as by
    /// [`vectorised`], so `work` must be `#[inline(always)]`. What a row computes must not depend on the others.
    pub fn rows_in_f32<T: Float>(
        &self,
        x: &[T],
        len: usize,
        y: &mut [T],
        work: impl Fn(usize, &[f32], &mut [f32]) + Sync,
    ) {
        if len == 0 {
            return;
        }
        let rows = CHUNK.div_ceil(len);
        let each = |first: usize, x: &[f32], y: &mut [f32]| {
            vectorised(
                #[inline(always)]
                || {
                    for (index, (x, y)) in x.chunks(len).zip(y.chunks_mut(len)).enumerate() {
                        work(first + index, x, y);
                    }
                },
            );
        };
        self.rows_with(y, rows * len, Vec::new, |wide: &mut Vec<f32>, chunk, y| {
            let x = &x[chunk * rows * len..][..y.len()];
            match (T::as_f32(x), T::as_f32_mut(y)) {
                (Some(x), Some(y)) => each(chunk * rows, x, y),
                _ => {
                    wide.resize(2 * y.len(), 0.0);
                    let (wide_x, wide_y) = wide.split_at_mut(y.len());
                    T::widen(x, wide_x);
                    each(chunk * rows, wide_x, wide_y);
                    T::narrow(wide_y, y);
                }
            }
        });
    }
}

/// Runs a loop compiled for the widest vectors this processor has. What is called inside must be `#[inline(always)]`
/// down to the loops, or it is compiled for the narrowest.
#[inline(always)]
pub fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    struct Work<F>(F);
    impl<R, F: FnOnce() -> R> Kernel for Work<F> {
        type Output = R;
        #[inline(always)]
        fn run<S: Simd>(self, _simd: S) -> R {
            (self.0)()
        }
    }
    simd::dispatch(Work(work))
}

/// How [`Device::list`](crate::Device::list) describes this backend.
pub(crate) fn info() -> DeviceInfo {
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "only x86-64 has features to list"))]
    let mut features = vec![format!("{} threads", Cpu::shared().threads())];
    #[cfg(target_arch = "x86_64")]
    for (name, present) in [
        ("avx2", is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512_bf16", is_x86_feature_detected!("avx512bf16")),
    ] {
        if present {
            features.push(name.to_owned());
        }
    }
    DeviceInfo {
        id: "cpu".to_owned(),
        backend: Backend::Cpu,
        name: std::env::consts::ARCH.to_owned(),
        software: false,
        features,
    }
}
