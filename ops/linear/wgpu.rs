//! Launchers of the WGSL kernels.

use crate::backend::wgpu::Gpu;
use crate::{Error, Result};

/// What an op without a kernel answers.
pub(crate) fn unavailable(gpu: &Gpu, op: &str) -> Result<()> {
    Err(Error::Unavailable { device: gpu.id().to_owned(), reason: format!("{op} has no kernel for wgpu yet") })
}
