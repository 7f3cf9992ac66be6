//! smalti: GPU kernels for visual autoregression, hand-written in PTX and WGSL, as typed ops.
//!
//! Every op has one contract, stated in its documentation, and several implementations of it: `reference` (plain
//! loops in f64, the definition), `cpu`, and `wgpu`. A [`Device`] chooses which one runs.
//!
//! ```
//! use smalti::{Device, Tensor, norm};
//!
//! let device = Device::reference();
//! let x = Tensor::from_slice(&device, &[1, 4], &[1.0f32, 2.0, 3.0, 4.0])?;
//! let y = norm::rms_norm(&x, None, 0.0)?;
//! let mean_square: f32 = y.to_vec()?.iter().map(|y| y * y).sum::<f32>() / 4.0;
//! assert!((mean_square - 1.0).abs() < 1e-6);
//! # Ok::<(), smalti::Error>(())
//! ```
//!
//! Inference only: nothing here computes gradients.

pub mod activation;
pub mod attention;
pub mod backend;
pub mod conv;
pub mod copy;
mod device;
pub mod diffusion;
mod element;
pub mod elementwise;
pub mod embedding;
mod error;
pub mod jacobi;
pub mod kernels;
mod layout;
pub mod linear;
pub mod mixture;
pub mod norm;
pub mod resize;
pub mod rng;
pub mod rope;
pub mod sample;
pub mod scan;
mod tensor;
pub mod vq;
mod weight;

pub use device::{Backend, Device, DeviceInfo};
pub use element::{Dtype, Element, Float, bf16, f16};
pub use error::{Error, Result};
pub use layout::Layout;
pub use tensor::{Tensor, View, ViewMut};
pub use weight::Weight;
