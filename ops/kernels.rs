//! Every rendered kernel as plain text, usable without any GPU crate.
//!
//! A program that has its own device, such as candle's `get_or_load_custom_func` or any wgpu program, can take a
//! kernel from here and launch it itself; the header of its `source` states operands, parameters and launch shape.
//!
//! ```
//! let kernel = smalti::kernels::wgsl().iter().find(|kernel| kernel.entry == "rms_norm_f32").unwrap();
//! assert_eq!(kernel.bindings, ["params", "x", "weight", "y"]);
//! assert!(kernel.source.contains("fn rms_norm_f32("));
//! ```

/// One rendered variant of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kernel {
    /// The entry point: the op's name and the variant's parts, in the order of the table.
    pub entry: &'static str,
    /// The kernel's name, which is also its file's.
    pub op: &'static str,
    /// The op family, which is also the folder's name.
    pub family: &'static str,
    /// Which variant this is, as (axis, value).
    pub variant: &'static [(&'static str, &'static str)],
    /// WGSL: the operands in binding order, group 0 from binding 0 on.
    pub bindings: &'static [&'static str],
    /// PTX: the parameters in the order of a launch.
    pub parameters: &'static [&'static str],
    /// WGSL: what it needs beyond WebGPU's defaults, by wgpu's feature names in lower case (`subgroup`, `shader_f16`).
    /// PTX: the lowest device it runs on (`sm_80`), or the only one (`sm_90a`).
    pub needs: &'static [&'static str],
    /// The text, complete in itself.
    pub source: &'static str,
}

/// Every PTX kernel, sorted by family and by its place in the family's table.
#[must_use]
pub fn cuda() -> &'static [Kernel] {
    const KERNELS: &[Kernel] = include!(concat!(env!("OUT_DIR"), "/kernels_cuda.rs"));
    KERNELS
}

/// Every WGSL kernel, sorted by family and by its place in the family's table.
#[must_use]
pub fn wgsl() -> &'static [Kernel] {
    const KERNELS: &[Kernel] = include!(concat!(env!("OUT_DIR"), "/kernels_wgsl.rs"));
    KERNELS
}
