//! Every op on every backend against its f64 reference, one module per family.

mod activation;
mod attention;
mod axial;
mod common;
mod conv;
mod copy;
#[cfg(feature = "cuda")]
mod cuda;
mod diffusion;
mod dumps;
mod elementwise;
mod embedding;
mod far;
#[cfg(feature = "wgpu")]
mod foreign;
#[cfg(feature = "cuda")]
mod inner_loops;
mod jacobi;
mod kernels;
mod linear;
mod mixture;
mod norm;
mod paged;
mod properties;
mod resize;
mod rope;
mod sample;
mod scan;
mod vq;
