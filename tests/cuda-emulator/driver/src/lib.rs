//! `libcuda` in software: the CUDA driver's entry points, over the emulator of `cuda-emulator`.
//!
//! Work runs when it is enqueued, in the order of the calls, so a stream never has anything left to do; only copies
//! into pinned host memory arrive no earlier than a call that waits for them. A kernel's fault is printed to stderr and
//! is the status of its launch. Unlike on a device it does not poison the context, so that each launch reports its own.

mod context;
mod device;
mod error;
mod graph;
mod launch;
mod lookup;
mod memory;
mod module;
mod state;
mod stream;
mod tensor;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Defines entry points, which return a status to C, and `table()` of their names and addresses.
macro_rules! entries {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($argument: $type),*) -> u32 {
                crate::status(stringify!($name), || $body)
            }
        )*
        /// Names and addresses of the entry points of this file.
        pub fn table() -> Vec<(&'static str, *mut std::ffi::c_void)> {
            vec![$((stringify!($name), $name as *mut std::ffi::c_void)),*]
        }
    };
}
pub(crate) use entries;

/// The status of an entry point; a panic must not unwind into C.
fn status(name: &str, body: impl FnOnce() -> error::Result) -> u32 {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code.0,
        Err(_) => {
            eprintln!("cuda emulator: {name} failed; this is a defect of the emulator");
            error::Code::UNKNOWN.0
        }
    }
}
