//! The devices behind [`Device`](crate::Device): their memory, how work reaches them, what they can do.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cpu")]
pub(crate) mod simd;
#[cfg(feature = "wgpu")]
pub mod wgpu;
