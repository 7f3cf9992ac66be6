//! The CPU: a pool of threads, and the widest vectors that this processor has.

use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use super::host::Kept;
use super::simd::{self, Kernel, Simd};
use crate::device::{Backend, DeviceInfo};
use crate::{Error, Result};

/// A pool of threads. Every op runs inside it, so a caller's own rayon pool is left alone.
#[derive(Debug)]
pub struct Cpu {
    pool: rayon::ThreadPool,
    /// Memory of dropped outputs, for the next ones.
    pub(crate) kept: Kept,
}

impl Cpu {
    /// The pool that [`Device::cpu`](crate::Device::cpu) hands out, with a thread per core.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Cpu>> = OnceLock::new();
        Arc::clone(SHARED.get_or_init(|| {
            let one_per_core = Self::with_threads(0);
            let fewest = || Self::with_threads(1).expect("a process can start one thread");
            Arc::new(one_per_core.unwrap_or_else(|_| fewest()))
        }))
    }

    /// A pool with this many threads; 0 means one per core.
    pub(crate) fn with_threads(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("smalti-{index}"))
            .build()
            .map_err(|error| Error::Device {
                device: "cpu".to_owned(),
                during: format!("starting {threads} threads"),
                reason: error.to_string(),
            })?;
        Ok(Self { pool, kept: Kept::default() })
    }

    /// How many threads share the work.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` inside the pool, where rayon's parallel iterators find its threads.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// Calls `row(index, output)` for every chunk of `len` elements of `output`, spread over the threads where
    /// that pays. What a row computes must not depend on the others: so results do not depend on the threads.
    pub fn rows<T: Send>(&self, output: &mut [T], len: usize, row: impl Fn(usize, &mut [T]) + Send + Sync) {
        /// Elements below which handing work to another thread costs more than doing it.
        const WORTH_A_THREAD: usize = 1 << 12;
        if len == 0 {
            return;
        }
        if self.threads() == 1 || output.len() <= WORTH_A_THREAD {
            output.chunks_mut(len).enumerate().for_each(|(index, output)| row(index, output));
        } else {
            let rows_per_task = WORTH_A_THREAD.div_ceil(len);
            self.run(|| {
                output
                    .par_chunks_mut(len)
                    .with_min_len(rows_per_task)
                    .enumerate()
                    .for_each(|(index, output)| row(index, output));
            });
        }
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
