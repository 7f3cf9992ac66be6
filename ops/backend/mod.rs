//! The devices behind [`Device`](crate::Device): their memory, how work reaches them, what they can do.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cpu")]
mod helpers;
pub(crate) mod host;
#[cfg(feature = "cpu")]
pub(crate) mod simd;
#[cfg(feature = "wgpu")]
pub mod wgpu;

#[cfg(feature = "cpu")]
pub(crate) use cpu::vectorised;

/// As the CPU's, but for what every processor has.
#[cfg(not(feature = "cpu"))]
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    work()
}
