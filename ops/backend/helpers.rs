//! Threads that join a caller's work for as long as it lasts.
//!
//! The ops of a decoding step follow each other within microseconds, and each is shared for only some tens of them. So
//! nobody waits for a helper that comes late: it finds the work closed and goes its way. And a helper that has nothing
//! to do looks out for work a little before it sleeps, since waking it takes as long as such an op.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder, Yield};

/// How long a helper looks out for more: what lies between two shared ops of one step, and little to lose after the last.
const LOOKOUT: Duration = Duration::from_micros(200);
/// How often the caller looks whether the last helper is done before it sleeps: some microseconds.
const LOOKS: usize = 1 << 9;
/// Set in [`Work::state`] when nobody may join any more.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// Helping threads, apart from the pool of rayon that a caller may have.
#[derive(Debug)]
pub(super) struct Helpers(ThreadPool);

impl Helpers {
    pub(super) fn new(count: usize) -> Result<Self, ThreadPoolBuildError> {
        let builder = ThreadPoolBuilder::new().num_threads(count).thread_name(|index| format!("smalti-{index}"));
        builder.build().map(Self)
    }

    pub(super) fn count(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Runs `work` on the calling thread, and at the same time on up to `others` helpers, whoever is there before the
    /// caller is through with it. So `work` must take what there is to do from one place until nothing is left. Returns
    /// when nobody runs it any more.
    ///
    /// # Panics
    /// If `work` does, on any thread.
    pub(super) fn join_in(&self, others: usize, work: &(dyn Fn() + Sync)) {
        let work = Arc::new(Work::new(work));
        for _ in 0..others.min(self.count()) {
            let work = Arc::clone(&work);
            self.0.spawn(move || {
                work.join();
                look_out();
            });
        }
        let closing = Closing(&work);
        (closing.0.call)();
        drop(closing);
        if let Some(panic) = work.panic.lock().ok().and_then(|mut panic| panic.take()) {
            resume_unwind(panic);
        }
    }
}

/// What a caller shares.
struct Work {
    /// Borrowed from the caller, who stays until [`Closing`] is dropped.
    call: &'static (dyn Fn() + Sync),
    /// How many helpers run it now, and [`CLOSED`].
    state: AtomicUsize,
    caller: Thread,
    /// Of a helper, for the caller.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Work {
    #[expect(unsafe_code, reason = "helpers know no lifetime of the caller")]
    fn new(call: &(dyn Fn() + Sync)) -> Self {
        // SAFETY: helpers call it only between `join`'s two changes of `state`: the first is refused once `CLOSED` is
        // set, and whoever sets it, `Closing`, waits for the second of all the others, before `join_in` returns or
        // unwinds.
        let call = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(call) };
        Self { call, state: AtomicUsize::new(0), caller: std::thread::current(), panic: Mutex::default() }
    }

    /// A helper's part.
    fn join(&self) {
        let open = |state: usize| (state & CLOSED == 0).then_some(state + 1);
        if self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, open).is_err() {
            return;
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(self.call))
            && let Ok(mut first) = self.panic.lock()
        {
            first.get_or_insert(panic);
        }
        if self.state.fetch_sub(1, Ordering::Release) == CLOSED + 1 {
            self.caller.unpark();
        }
    }
}

/// Lets nobody join any more, and waits for those who did.
struct Closing<'a>(&'a Work);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_or(CLOSED, Ordering::Relaxed);
        let mut looks = 0;
        while self.0.state.load(Ordering::Acquire) != CLOSED {
            looks += 1;
            if looks < LOOKS { std::hint::spin_loop() } else { std::thread::park() }
        }
    }
}

/// Takes what is spawned on this helper's pool, until nothing was for some time.
fn look_out() {
    thread_local! {
        /// Whether a call below this one looks out already.
        static LOOKS_OUT: Cell<bool> = const { Cell::new(false) };
    }
    if LOOKS_OUT.replace(true) {
        return;
    }
    let mut last = Instant::now();
    while last.elapsed() < LOOKOUT {
        match rayon::yield_now() {
            Some(Yield::Executed) => last = Instant::now(),
            _ => std::hint::spin_loop(),
        }
    }
    LOOKS_OUT.set(false);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn all_work_is_done_once_when_it_returns() {
        let helpers = Helpers::new(3).unwrap();
        for count in (0..2000).chain([100_000]) {
            let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
            helpers.join_in(3, &|| {
                while next.fetch_add(1, Ordering::Relaxed) < count {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert_eq!(done.into_inner(), count);
        }
    }

    #[test]
    fn a_helper_joins_and_is_waited_for() {
        let helpers = Helpers::new(1).unwrap();
        let (caller, joined, left) = (std::thread::current().id(), AtomicBool::new(false), AtomicBool::new(false));
        helpers.join_in(1, &|| {
            if std::thread::current().id() == caller {
                while !joined.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
            } else {
                joined.store(true, Ordering::Release);
                std::thread::sleep(Duration::from_millis(20));
                left.store(true, Ordering::Release);
            }
        });
        assert!(left.into_inner());
    }

    #[test]
    fn a_helper_that_comes_late_is_not_waited_for() {
        let helpers = Helpers::new(1).unwrap();
        let (held, free) = (AtomicBool::new(false), AtomicBool::new(false));
        let patience = Duration::from_secs(20);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (caller, begun) = (std::thread::current().id(), Instant::now());
                helpers.join_in(1, &|| {
                    held.fetch_or(std::thread::current().id() != caller, Ordering::AcqRel);
                    while !free.load(Ordering::Acquire) && begun.elapsed() < patience {
                        std::hint::spin_loop();
                    }
                });
            });
            while !held.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            let begun = Instant::now();
            helpers.join_in(1, &|| ());
            assert!(begun.elapsed() < patience / 2);
            free.store(true, Ordering::Release);
        });
    }

    #[test]
    fn a_panic_of_a_helper_is_the_callers() {
        let helpers = Helpers::new(1).unwrap();
        let (caller, joined) = (std::thread::current().id(), AtomicBool::new(false));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            helpers.join_in(1, &|| {
                if std::thread::current().id() != caller {
                    joined.store(true, Ordering::Release);
                    panic!("on purpose");
                }
                while !joined.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
            });
        }));
        assert_eq!(outcome.unwrap_err().downcast_ref(), Some(&"on purpose"));
        helpers.join_in(1, &|| ());
    }
}
