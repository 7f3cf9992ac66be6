//! Launchers of the WGSL kernels.
