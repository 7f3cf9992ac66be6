//! Devices: where tensors live and ops run.

use std::fmt;
#[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
use std::sync::Arc;

use crate::{Dtype, Element, Error, Result};

/// Which implementation of the ops a device runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// Plain loops in f64: the definition of every op.
    Reference,
    /// Vectorised code on the CPU's cores.
    Cpu,
    /// WGSL through wgpu.
    Wgpu,
    /// PTX through the CUDA driver.
    Cuda,
}

impl Backend {
    /// The name used in device ids and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Cpu => "cpu",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is known of a device without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// What [`Device::open`] takes, as `wgpu:1`.
    pub id: String,
    /// Which implementation it runs.
    pub backend: Backend,
    /// The driver's or the processor's name.
    pub name: String,
    /// Whether it only imitates a GPU; [`Device::best`] never chooses such a one.
    pub software: bool,
    /// What its kernels can make use of.
    pub features: Vec<String>,
}

/// Where tensors live and ops run. Cloning gives another handle to the same device.
#[derive(Clone)]
pub struct Device(Handle);

#[derive(Clone)]
pub(crate) enum Handle {
    Reference,
    #[cfg(feature = "cpu")]
    Cpu(Arc<crate::backend::cpu::Cpu>),
    #[cfg(feature = "wgpu")]
    Wgpu(Arc<crate::backend::wgpu::Gpu>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<crate::backend::cuda::Cuda>),
}

impl Device {
    /// The scalar f64 implementation: slow, and the definition of what is right. Holds every element type.
    #[must_use]
    pub fn reference() -> Self {
        Self(Handle::Reference)
    }

    /// The CPU with one thread per core. It keeps up to 64 MiB of dropped outputs for the next ones.
    #[cfg(feature = "cpu")]
    #[must_use]
    pub fn cpu() -> Self {
        Self(Handle::Cpu(crate::backend::cpu::Cpu::shared()))
    }

    /// The CPU with this many threads, the calling one among them; 0 means one per core. Results do not depend on the
    /// number. The others look out for the next op some 200 microseconds before they sleep.
    ///
    /// # Errors
    /// [`Error::Value`] for more than 4096 threads, [`Error::Device`] if they cannot be started.
    #[cfg(feature = "cpu")]
    pub fn cpu_with_threads(threads: usize) -> Result<Self> {
        Ok(Self(Handle::Cpu(Arc::new(crate::backend::cpu::Cpu::with_threads(threads)?))))
    }

    /// The wgpu adapter with this index in [`Device::list`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is no such adapter or its driver refuses to open it.
    #[cfg(feature = "wgpu")]
    pub fn wgpu(index: usize) -> Result<Self> {
        Ok(Self(Handle::Wgpu(crate::backend::wgpu::Gpu::open(index)?)))
    }

    /// A wgpu device that another crate made: ops then run on its queue, and share its buffers.
    ///
    /// Its handlers of uncaptured errors and of loss are replaced: what goes wrong comes out of the ops as
    /// [`Error::Device`]. Work is recorded until a result is read or [`Device::submit`] is called. Ask for the adapter's limits when
    /// you make the device: a kernel that needs more than the device has is an error that says how much.
    #[cfg(feature = "wgpu")]
    #[must_use]
    pub fn from_wgpu(device: ::wgpu::Device, queue: ::wgpu::Queue) -> Self {
        Self(Handle::Wgpu(crate::backend::wgpu::Gpu::from_handles(device, queue, "wgpu".to_owned())))
    }

    /// The wgpu device behind this one, to record launchers into an encoder of your own
    /// ([`Gpu::record_into`](crate::backend::wgpu::Gpu::record_into)); none on other backends.
    #[cfg(feature = "wgpu")]
    #[must_use]
    pub fn gpu(&self) -> Option<&crate::backend::wgpu::Gpu> {
        match &self.0 {
            Handle::Wgpu(gpu) => Some(gpu),
            _ => None,
        }
    }

    /// The CUDA device with this ordinal, as the driver counts them: its primary context, and a stream of its own.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is no driver, no such device, or the driver refuses to open it.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Ok(Self(Handle::Cuda(crate::backend::cuda::Cuda::open(ordinal)?)))
    }

    /// A CUDA stream that another crate made: ops are enqueued into it, in order with that crate's own work.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the driver says nothing about the stream's device.
    #[cfg(feature = "cuda")]
    pub fn from_cuda(stream: Arc<::cudarc::driver::CudaStream>) -> Result<Self> {
        Ok(Self(Handle::Cuda(crate::backend::cuda::Cuda::from_stream(stream)?)))
    }

    /// As [`Device::from_cuda`], from the driver's own handles: a `CUcontext`, and a `CUstream` of it or null.
    ///
    /// # Errors
    /// As [`Device::from_cuda`].
    ///
    /// # Safety
    /// Both handles must be what they are said to be, and outlive the device and every tensor on it.
    #[cfg(feature = "cuda")]
    #[expect(unsafe_code, reason = "the caller vouches for handles")]
    pub unsafe fn from_cuda_handles(context: *mut std::ffi::c_void, stream: *mut std::ffi::c_void) -> Result<Self> {
        // SAFETY: as the caller vouches.
        Ok(Self(Handle::Cuda(unsafe { crate::backend::cuda::Cuda::from_handles(context, stream) }?)))
    }

    /// The CUDA device behind this one, to enqueue launchers into a stream of your own
    /// ([`Cuda::on`](crate::backend::cuda::Cuda::on)); none on other backends.
    #[cfg(feature = "cuda")]
    #[must_use]
    pub fn as_cuda(&self) -> Option<&crate::backend::cuda::Cuda> {
        match &self.0 {
            Handle::Cuda(cuda) => Some(cuda),
            _ => None,
        }
    }

    /// The best device here: a GPU that is not software, CUDA before wgpu, else the CPU, else the reference.
    #[must_use]
    pub fn best() -> Self {
        #[cfg(any(feature = "cuda", feature = "wgpu"))]
        for info in Self::list() {
            if matches!(info.backend, Backend::Cuda | Backend::Wgpu)
                && !info.software
                && let Ok(device) = Self::open(&info.id)
            {
                return device;
            }
        }
        #[cfg(feature = "cpu")]
        return Self::cpu();
        #[cfg(not(feature = "cpu"))]
        Self::reference()
    }

    /// Opens a device by its id: `reference`, `cpu`, `wgpu`, `wgpu:1`, `cuda`, `cuda:1`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is no such device here, with the reason.
    pub fn open(id: &str) -> Result<Self> {
        let unavailable = |reason: &str| Error::Unavailable { device: id.to_owned(), reason: reason.to_owned() };
        let (backend, index) = match id.split_once(':') {
            None => (id, 0),
            Some((backend, index)) => {
                (backend, index.parse().map_err(|_| unavailable("what follows the colon is not a number"))?)
            }
        };
        if index > 0 && matches!(backend, "reference" | "cpu") {
            return Err(unavailable("there is only one"));
        }
        match backend {
            "reference" => Ok(Self::reference()),
            #[cfg(feature = "cpu")]
            "cpu" => Ok(Self::cpu()),
            #[cfg(feature = "wgpu")]
            "wgpu" => Self::wgpu(index),
            #[cfg(feature = "cuda")]
            "cuda" => Self::cuda(index),
            #[cfg(not(feature = "cpu"))]
            "cpu" => Err(unavailable("built without the feature cpu")),
            #[cfg(not(feature = "wgpu"))]
            "wgpu" => Err(unavailable("built without the feature wgpu")),
            #[cfg(not(feature = "cuda"))]
            "cuda" => Err(unavailable("built without the feature cuda")),
            _ => Err(unavailable("no such backend; try reference, cpu, wgpu or cuda")),
        }
    }

    /// Every device that can be opened here, the best kinds first; adapters that only imitate a GPU are marked.
    #[must_use]
    pub fn list() -> Vec<DeviceInfo> {
        let mut list = Vec::new();
        #[cfg(feature = "cuda")]
        list.extend(crate::backend::cuda::list().unwrap_or_default());
        #[cfg(feature = "wgpu")]
        list.extend(crate::backend::wgpu::list());
        #[cfg(feature = "cpu")]
        list.push(crate::backend::cpu::info());
        list.push(DeviceInfo {
            id: "reference".to_owned(),
            backend: Backend::Reference,
            name: "plain loops in f64".to_owned(),
            software: false,
            features: Vec::new(),
        });
        list
    }

    /// The backends without a device in [`Device::list`], and why: not built, no driver, a driver or a device too old.
    #[must_use]
    pub fn absent() -> Vec<(Backend, String)> {
        let mut absent = Vec::new();
        #[cfg(feature = "cuda")]
        absent.extend(crate::backend::cuda::list().err().map(|reason| (Backend::Cuda, reason)));
        #[cfg(feature = "wgpu")]
        if crate::backend::wgpu::list().is_empty() {
            absent.push((Backend::Wgpu, "no adapter was found: is a Vulkan driver installed?".to_owned()));
        }
        let built = [
            (Backend::Cuda, cfg!(feature = "cuda")),
            (Backend::Wgpu, cfg!(feature = "wgpu")),
            (Backend::Cpu, cfg!(feature = "cpu")),
        ];
        let left_out = built.iter().filter(|(_, built)| !built);
        absent.extend(left_out.map(|(backend, _)| (*backend, format!("built without the feature {backend}"))));
        absent
    }

    /// Which implementation of the ops it runs.
    #[must_use]
    pub fn backend(&self) -> Backend {
        match &self.0 {
            Handle::Reference => Backend::Reference,
            #[cfg(feature = "cpu")]
            Handle::Cpu(_) => Backend::Cpu,
            #[cfg(feature = "wgpu")]
            Handle::Wgpu(_) => Backend::Wgpu,
            #[cfg(feature = "cuda")]
            Handle::Cuda(_) => Backend::Cuda,
        }
    }

    /// Hands the recorded work to the device, without waiting for it.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has failed.
    pub fn submit(&self) -> Result<()> {
        match &self.0 {
            Handle::Reference => Ok(()),
            #[cfg(feature = "cpu")]
            Handle::Cpu(_) => Ok(()),
            #[cfg(feature = "wgpu")]
            Handle::Wgpu(gpu) => gpu.submit(),
            // A stream is handed its work at once.
            #[cfg(feature = "cuda")]
            Handle::Cuda(_) => Ok(()),
        }
    }

    /// Hands the recorded work to the device and waits until all of it is done.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has failed.
    pub fn synchronize(&self) -> Result<()> {
        match &self.0 {
            Handle::Reference => Ok(()),
            #[cfg(feature = "cpu")]
            Handle::Cpu(_) => Ok(()),
            #[cfg(feature = "wgpu")]
            Handle::Wgpu(gpu) => gpu.synchronize(),
            #[cfg(feature = "cuda")]
            Handle::Cuda(cuda) => cuda.synchronize(),
        }
    }

    /// Compiles every kernel this device can run, so that first uses do not wait for the compiler.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses a kernel.
    pub fn warm_up(&self) -> Result<()> {
        match &self.0 {
            Handle::Reference => Ok(()),
            #[cfg(feature = "cpu")]
            Handle::Cpu(_) => Ok(()),
            #[cfg(feature = "wgpu")]
            Handle::Wgpu(gpu) => gpu.warm_up(),
            #[cfg(feature = "cuda")]
            Handle::Cuda(cuda) => cuda.warm_up(),
        }
    }

    /// Whether tensors of both devices can meet in one op.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Handle::Reference, Handle::Reference) => true,
            #[cfg(feature = "cpu")]
            (Handle::Cpu(a), Handle::Cpu(b)) => Arc::ptr_eq(a, b),
            #[cfg(feature = "wgpu")]
            (Handle::Wgpu(a), Handle::Wgpu(b)) => Arc::ptr_eq(a, b),
            #[cfg(feature = "cuda")]
            (Handle::Cuda(a), Handle::Cuda(b)) => Arc::ptr_eq(a, b),
            #[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
            _ => false,
        }
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.0
    }

    /// That tensors of `T` can live here: f64 is the reference's alone.
    pub(crate) fn check_dtype<T: Element>(&self) -> Result<()> {
        if T::DTYPE == Dtype::F64 && self.backend() != Backend::Reference {
            let expected = format!("an element type that {self} holds; f64 is for Device::reference() only");
            return Err(Error::Dtype { op: "tensor", operand: "data", got: T::DTYPE, expected });
        }
        Ok(())
    }

    /// That `other` is here too.
    pub(crate) fn check_same(&self, op: &'static str, operand: &'static str, other: &Self) -> Result<()> {
        if self.same(other) {
            return Ok(());
        }
        Err(Error::Place { op, operand, got: other.to_string(), expected: self.to_string() })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            #[cfg(feature = "wgpu")]
            Handle::Wgpu(gpu) => f.write_str(gpu.id()),
            #[cfg(feature = "cuda")]
            Handle::Cuda(cuda) => f.write_str(cuda.id()),
            _ => self.backend().fmt(f),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({self})")
    }
}
