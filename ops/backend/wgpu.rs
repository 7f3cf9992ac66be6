//! wgpu: adapters, buffers, pipelines, and the recording of work.

use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::wgpu;

use crate::device::{Backend, DeviceInfo};
use crate::kernels::{self, Kernel};
use crate::{Dtype, Element, Error, Layout, Result};

/// WebGPU's limit on each axis of a dispatch.
const MAX_WORKGROUPS: u32 = 65_535;
/// Every uniform binding starts on a multiple of this; no adapter asks for more.
const PARAMS_STRIDE: u64 = 256;
/// Dispatches whose parameters one arena holds.
const ARENA_SLOTS: u64 = 256;
/// How long a failed call waits for the work before it, after which it hears whether the device is lost.
const LAST_WORDS: Duration = Duration::from_secs(20);
/// Freed bytes that are kept for the next allocation.
const POOL_BYTES: usize = 256 << 20;

/// A wgpu device with its queue, its compiled kernels and the work recorded but not submitted.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    id: String,
    pipelines: Mutex<HashMap<&'static str, Arc<wgpu::ComputePipeline>>>,
    pending: Mutex<Option<Pending>>,
    pool: Mutex<Pool>,
    failure: Arc<Mutex<Failure>>,
}

/// What the driver has reported outside any call.
#[derive(Default)]
struct Failure {
    /// The first error that no call has returned yet.
    error: Option<String>,
    /// Why the device is lost: every call returns this from then on.
    lost: Option<String>,
}

/// Freed buffers by size, for reuse. Work on one queue runs in order, so a buffer may be reused at once.
#[derive(Default)]
struct Pool {
    free: HashMap<usize, Vec<wgpu::Buffer>>,
    bytes: usize,
}

struct Pending {
    encoder: wgpu::CommandEncoder,
    arena: Arena,
}

/// Parameters of the recorded dispatches: written once, before the work runs.
struct Arena {
    buffer: wgpu::Buffer,
    used: u64,
}

/// A buffer on a wgpu device. A buffer that this crate allocated goes back to the pool when the last tensor that
/// shares it is dropped.
pub struct Buffer {
    gpu: Arc<Gpu>,
    raw: ManuallyDrop<wgpu::Buffer>,
    pooled: bool,
}

/// A tensor as the wgpu launchers take it: a borrowed buffer and where the elements lie in it.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    /// The whole buffer, bound from its start; it needs `STORAGE` usage.
    pub buffer: &'a wgpu::Buffer,
    /// Where the elements lie; strides and offset count elements.
    pub layout: &'a Layout,
    /// The element type.
    pub dtype: Dtype,
}

impl Operand<'_> {
    /// The length of each axis.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }
}

/// Run-time parameters of a kernel, laid out as its `Params` struct.
pub trait Params: bytemuck::Pod {
    /// The members' names, in order. Debug builds compare them with the kernel's text at every launch.
    const MEMBERS: &'static [&'static str];
}

/// Defines a kernel's parameters: 32-bit members, laid out as the WGSL struct of the same members.
macro_rules! params {
    ($(#[$meta:meta])* struct $name:ident { $($member:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(C)]
        struct $name { $($member: $type),* }
        impl $crate::backend::wgpu::Params for $name {
            const MEMBERS: &'static [&'static str] = &[$(stringify!($member)),*];
        }
    };
}
pub(crate) use params;

/// Records kernels into a command encoder, the caller's or the device's own.
pub struct Recorder<'a> {
    gpu: &'a Gpu,
    encoder: &'a mut wgpu::CommandEncoder,
    arena: &'a mut Arena,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle())
}

fn adapters() -> Vec<wgpu::Adapter> {
    pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all()))
}

/// The adapters of this machine, as [`Device::list`](crate::Device::list) describes them.
pub(crate) fn list() -> Vec<DeviceInfo> {
    adapters()
        .iter()
        .enumerate()
        .map(|(index, adapter)| {
            let info = adapter.get_info();
            let features = adapter.features();
            let known = [(wgpu::Features::SHADER_F16, "shader_f16"), (wgpu::Features::SUBGROUP, "subgroup")];
            let features = known.iter().filter(|(flag, _)| features.contains(*flag)).map(|(_, name)| *name);
            DeviceInfo {
                id: if index == 0 { "wgpu".to_owned() } else { format!("wgpu:{index}") },
                backend: Backend::Wgpu,
                name: format!("{} ({:?}, {})", info.name, info.backend, info.driver_info),
                software: info.device_type == wgpu::DeviceType::Cpu,
                features: features.map(str::to_owned).collect(),
            }
        })
        .collect()
}

impl Gpu {
    /// Opens the adapter with this index, with all its limits and the features that kernels make use of.
    pub(crate) fn open(index: usize) -> Result<Arc<Self>> {
        let id = if index == 0 { "wgpu".to_owned() } else { format!("wgpu:{index}") };
        let unavailable = |reason: String| Error::Unavailable { device: id.clone(), reason };
        let adapters = adapters();
        let adapter = adapters
            .get(index)
            .ok_or_else(|| unavailable(format!("wgpu found {} adapters on this machine", adapters.len())))?;
        let wanted = wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("smalti"),
            required_features: adapter.features() & wanted,
            required_limits: adapter.limits(),
            ..Default::default()
        };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).map_err(|error| unavailable(error.to_string()))?;
        Ok(Self::from_handles(device, queue, id))
    }

    /// Takes a device that somebody else made.
    pub(crate) fn from_handles(device: wgpu::Device, queue: wgpu::Queue, id: String) -> Arc<Self> {
        let failure = Arc::new(Mutex::new(Failure::default()));
        let seen = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&seen).error.get_or_insert(error.to_string());
        }));
        let seen = Arc::clone(&failure);
        device.set_device_lost_callback(move |reason, message| {
            lock(&seen).lost.get_or_insert(format!("device lost ({reason:?}): {message}"));
        });
        Arc::new(Self {
            device,
            queue,
            id,
            pipelines: Mutex::default(),
            pending: Mutex::default(),
            pool: Mutex::default(),
            failure,
        })
    }

    /// The device's id, as `wgpu:1`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The wgpu device.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// The wgpu queue.
    #[must_use]
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// The device's limits.
    #[must_use]
    pub fn limits(&self) -> wgpu::Limits {
        self.device.limits()
    }

    /// Whether it has what a kernel needs beyond WebGPU's defaults.
    #[must_use]
    pub fn has(&self, need: &str) -> bool {
        match need {
            "shader_f16" => self.device.features().contains(wgpu::Features::SHADER_F16),
            "subgroup" => self.device.features().contains(wgpu::Features::SUBGROUP),
            _ => false,
        }
    }

    /// What a call returns that failed for this reason, or because the device is lost.
    fn error(&self, during: &str, reason: impl ToString) -> Error {
        // That a device is lost is said once its work has ended; until then, what it does fails for odd reasons.
        let _ = self.device.poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(LAST_WORDS) });
        let reason = lock(&self.failure).lost.clone().unwrap_or_else(|| reason.to_string());
        Error::Device { device: self.id.clone(), during: during.to_owned(), reason }
    }

    /// Returns the first error since the last call, or that the device is lost.
    fn check(&self, during: &str) -> Result<()> {
        let reason = {
            let mut failure = lock(&self.failure);
            failure.lost.clone().or_else(|| failure.error.take())
        };
        reason.map_or(Ok(()), |reason| Err(self.error(during, reason)))
    }

    /// A buffer with room for `bytes`, holding anything at all.
    pub(crate) fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Arc<Buffer>> {
        let size = bytes.max(16).next_multiple_of(256);
        let mut pool = lock(&self.pool);
        if let Some(raw) = pool.free.get_mut(&size).and_then(Vec::pop) {
            pool.bytes -= size;
            return Ok(Arc::new(Buffer { gpu: Arc::clone(self), raw: ManuallyDrop::new(raw), pooled: true }));
        }
        drop(pool);
        let raw = self.create_buffer(size, false)?;
        self.check("allocating a buffer")?;
        Ok(Arc::new(Buffer { gpu: Arc::clone(self), raw: ManuallyDrop::new(raw), pooled: true }))
    }

    /// A buffer with these bytes. Never a pooled one: pending work may still read those.
    pub(crate) fn upload(self: &Arc<Self>, bytes: &[u8]) -> Result<Arc<Buffer>> {
        let raw = self.create_buffer(bytes.len().max(16).next_multiple_of(256), true)?;
        self.check("allocating a buffer")?;
        {
            let mut mapped = raw.get_mapped_range_mut(..).map_err(|error| self.error("writing a new buffer", error))?;
            mapped.slice(..bytes.len()).copy_from_slice(bytes);
        }
        raw.unmap();
        Ok(Arc::new(Buffer { gpu: Arc::clone(self), raw: ManuallyDrop::new(raw), pooled: true }))
    }

    /// Takes a buffer that somebody else made; it is never reused for anything else.
    pub(crate) fn adopt(self: &Arc<Self>, buffer: wgpu::Buffer) -> Arc<Buffer> {
        Arc::new(Buffer { gpu: Arc::clone(self), raw: ManuallyDrop::new(buffer), pooled: false })
    }

    fn create_buffer(&self, size: usize, mapped: bool) -> Result<wgpu::Buffer> {
        let limits = self.device.limits();
        let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        if size as u64 > most {
            let reason = format!("a buffer of {size} bytes was asked for, and one binding holds at most {most}");
            return Err(self.error("allocating a buffer", reason));
        }
        Ok(self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: size as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: mapped,
        }))
    }

    /// Records work into this device's own encoder; it runs with the next [`Gpu::submit`] or read.
    pub(crate) fn record(&self, work: impl FnOnce(&mut Recorder<'_>) -> Result<()>) -> Result<()> {
        let mut pending = lock(&self.pending);
        let recorded = pending.get_or_insert_with(|| Pending {
            encoder: self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()),
            arena: self.arena(),
        });
        work(&mut Recorder { gpu: self, encoder: &mut recorded.encoder, arena: &mut recorded.arena })?;
        // Half full: what follows may record several dispatches in one go.
        if recorded.arena.used >= ARENA_SLOTS / 2 {
            self.flush(&mut pending)?;
        }
        Ok(())
    }

    /// Records work into the caller's encoder, to run when the caller submits it. The parameters of the kernels
    /// live in one small buffer that is allocated here, at most 256 dispatches to a call.
    ///
    /// Work recorded by typed ops on the same device is submitted first, so that the order of calls holds.
    ///
    /// # Errors
    /// Whatever `work` returns; [`Error::Device`] if the device has failed.
    pub fn record_into(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        work: impl FnOnce(&mut Recorder<'_>) -> Result<()>,
    ) -> Result<()> {
        self.submit()?;
        let mut arena = self.arena();
        work(&mut Recorder { gpu: self, encoder, arena: &mut arena })?;
        arena.buffer.unmap();
        self.check("recording")
    }

    fn arena(&self) -> Arena {
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("params"),
            size: ARENA_SLOTS * PARAMS_STRIDE,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: true,
        });
        Arena { buffer, used: 0 }
    }

    fn flush(&self, pending: &mut Option<Pending>) -> Result<()> {
        if let Some(Pending { encoder, arena }) = pending.take() {
            arena.buffer.unmap();
            self.queue.submit([encoder.finish()]);
        }
        self.check("submitting work")
    }

    /// Hands the recorded work to the queue.
    pub(crate) fn submit(&self) -> Result<()> {
        self.flush(&mut lock(&self.pending))
    }

    /// Hands the recorded work to the queue and waits for all of it.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.submit()?;
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|error| self.error("waiting for the device", error))?;
        self.check("waiting for the device")
    }

    /// Compiles every kernel whose needs this device meets.
    pub(crate) fn warm_up(&self) -> Result<()> {
        let runnable = kernels::wgsl().iter().filter(|kernel| kernel.needs.iter().all(|need| self.has(need)));
        for kernel in runnable {
            self.pipeline(kernel)?;
        }
        Ok(())
    }

    fn pipeline(&self, kernel: &'static Kernel) -> Result<Arc<wgpu::ComputePipeline>> {
        if let Some(pipeline) = lock(&self.pipelines).get(kernel.entry) {
            return Ok(Arc::clone(pipeline));
        }
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(kernel.entry),
            source: wgpu::ShaderSource::Wgsl(kernel.source.into()),
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.entry),
            layout: None,
            module: &module,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Every kernel writes workgroup memory before it reads it; zeroing it first is slow on some drivers.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        self.check(kernel.entry)?;
        let pipeline = Arc::new(pipeline);
        lock(&self.pipelines).insert(kernel.entry, Arc::clone(&pipeline));
        Ok(pipeline)
    }
}

impl Recorder<'_> {
    /// The device this records for.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        self.gpu
    }

    /// Records one kernel: `buffers` in the order of its bindings, after the parameters at binding 0.
    pub(crate) fn dispatch<P: Params>(
        &mut self,
        entry: &str,
        params: &P,
        buffers: &[&wgpu::Buffer],
        workgroups: [u32; 3],
    ) -> Result<()> {
        let kernel = kernels::wgsl()
            .iter()
            .find(|kernel| kernel.entry == entry)
            .ok_or_else(|| self.gpu.error(entry, "no such kernel was rendered"))?;
        debug_assert_eq!(kernel.bindings.len(), buffers.len() + 1, "{entry}: bindings");
        debug_assert!(members(kernel.source).eq(P::MEMBERS.iter().copied()), "{entry}: members of Params");
        if workgroups.contains(&0) {
            return Ok(());
        }
        let pipeline = self.gpu.pipeline(kernel)?;
        let bytes = bytemuck::bytes_of(params);
        if self.arena.used == ARENA_SLOTS || bytes.len() as u64 > PARAMS_STRIDE {
            return Err(self.gpu.error(entry, "the parameters do not fit the arena"));
        }
        let start = self.arena.used * PARAMS_STRIDE;
        let size = bytes.len().next_multiple_of(16) as u64;
        {
            let mut mapped = self
                .arena
                .buffer
                .get_mapped_range_mut(start..start + size)
                .map_err(|error| self.gpu.error(entry, error))?;
            mapped.slice(..bytes.len()).copy_from_slice(bytes);
        }
        self.arena.used += 1;
        let uniform = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &self.arena.buffer,
            offset: start,
            size: std::num::NonZeroU64::new(size),
        });
        let storage = buffers.iter().map(|buffer| buffer.as_entire_binding());
        let entries: Vec<_> = std::iter::once(uniform)
            .chain(storage)
            .zip(0..)
            .map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource })
            .collect();
        let group = self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(kernel.entry),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut pass = self.encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(workgroups[0], workgroups[1], workgroups[2]);
        Ok(())
    }
}

/// The members of a kernel's `Params`, read from its text.
fn members(source: &str) -> impl Iterator<Item = &str> {
    let body = source.split_once("struct Params {").map_or("", |(_, rest)| rest);
    let body = body.split_once('}').map_or("", |(body, _)| body);
    body.lines().filter_map(|line| Some(line.trim().split_once(':')?.0))
}

/// Folds a count of workgroups over two axes, since one holds at most 65535. A kernel finds its number as
/// `workgroup_id.x + workgroup_id.y * num_workgroups.x`, and leaves if that is beyond the count.
///
/// # Errors
/// [`Error::Shape`] if even two axes cannot hold the count.
pub(crate) fn fold(op: &'static str, workgroups: usize) -> Result<[u32; 3]> {
    let most = MAX_WORKGROUPS as usize;
    if workgroups <= most {
        return Ok([u32::try_from(workgroups).expect("at most 65535"), 1, 1]);
    }
    let lines = workgroups.div_ceil(most);
    let width = workgroups.div_ceil(lines);
    match (u32::try_from(width), u32::try_from(lines)) {
        (Ok(width), Ok(lines)) if lines <= MAX_WORKGROUPS => Ok([width, lines, 1]),
        _ => Err(Error::shape(op, "output", &[workgroups], "at most 65535 * 65535 workgroups of work")),
    }
}

/// A length, stride or offset as kernels take it.
///
/// # Errors
/// [`Error::Value`] if it does not fit 32 bits.
pub(crate) fn to_u32(op: &'static str, operand: &'static str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::value(op, operand, value, "a length, stride or offset below 2^32"))
}

/// Where a contiguous operand starts.
///
/// # Errors
/// [`Error::Shape`] if it is not contiguous, or reaches beyond what 32 bits can index.
pub(crate) fn dense_offset(op: &'static str, operand: &'static str, dense: Operand<'_>) -> Result<u32> {
    if !dense.layout.is_contiguous() {
        return Err(Error::shape(op, operand, dense.layout.strides(), "strides of a contiguous layout"));
    }
    to_u32(op, operand, dense.layout.span())?;
    to_u32(op, operand, dense.layout.offset())
}

/// Where a contiguous output starts: on an even element, so that a word of two half-type elements has one writer.
///
/// # Errors
/// As [`dense_offset`]; [`Error::Value`] if the offset is odd.
pub(crate) fn output_offset(op: &'static str, y: Operand<'_>) -> Result<u32> {
    match dense_offset(op, "y", y)? {
        odd if odd % 2 == 1 => Err(Error::value(op, "y's offset", odd, "an even number of elements")),
        even => Ok(even),
    }
}

impl Buffer {
    /// The wgpu buffer.
    #[must_use]
    pub fn raw(&self) -> &wgpu::Buffer {
        &self.raw
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        usize::try_from(self.raw.size()).unwrap_or(usize::MAX)
    }

    /// Copies a part of it to host memory, after all recorded work.
    pub(crate) fn download<T: Element>(&self, start: usize, bytes: usize) -> Result<Vec<T>> {
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let gpu = &self.gpu;
        // Copies start and end on 4 bytes; a view of a half type may not.
        let skipped = start % 4;
        let size = (skipped + bytes).next_multiple_of(4) as u64;
        let staging = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read"),
            size,
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        {
            let mut pending = lock(&gpu.pending);
            let recorded = pending.get_or_insert_with(|| Pending {
                encoder: gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()),
                arena: gpu.arena(),
            });
            recorded.encoder.copy_buffer_to_buffer(&self.raw, (start - skipped) as u64, &staging, 0, size);
            gpu.flush(&mut pending)?;
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone only if this call has already failed.
            let _ = sender.send(result);
        });
        gpu.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|error| gpu.error("reading a buffer", error))?;
        gpu.check("reading a buffer")?;
        receiver
            .recv()
            .map_err(|error| gpu.error("reading a buffer", error))?
            .map_err(|error| gpu.error("reading a buffer", error))?;
        let mapped = staging.get_mapped_range(..).map_err(|error| gpu.error("reading a buffer", error))?;
        let mut data = vec![T::zeroed(); bytes / T::DTYPE.bytes()];
        bytemuck::cast_slice_mut(&mut data).copy_from_slice(&mapped[skipped..skipped + bytes]);
        Ok(data)
    }
}

impl Drop for Buffer {
    #[expect(unsafe_code, reason = "taking the raw buffer out of a value that is being dropped")]
    fn drop(&mut self) {
        // SAFETY: `raw` is not touched again: this is the end of `self`.
        let raw = unsafe { ManuallyDrop::take(&mut self.raw) };
        let size = usize::try_from(raw.size()).unwrap_or(usize::MAX);
        let mut pool = lock(&self.gpu.pool);
        if self.pooled && pool.bytes.saturating_add(size) <= POOL_BYTES {
            pool.bytes += size;
            pool.free.entry(size).or_default().push(raw);
        }
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("id", &self.id).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes on {})", self.bytes(), self.gpu.id)
    }
}
