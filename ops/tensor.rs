//! A tensor: a layout over a buffer on a device.

use std::fmt;
use std::sync::Arc;

use crate::backend::host::Host;
use crate::device::Handle;
use crate::{Device, Element, Error, Layout, Result, copy};

/// Elements of one type on one device, seen through a [`Layout`].
///
/// Cloning, reshaping and slicing share the buffer. Ops never change an operand unless they take it as `&mut`; then
/// a buffer in host memory that is shared is copied first, so that no other tensor sees the change. On a GPU `&mut`
/// writes into the shared buffer, in the order in which the calls were made.
///
/// # Streams
/// `Tensor` and [`Device`] are `Send` and `Sync`. A device runs what it is given in the order of the calls; calls
/// from several threads are each whole, and a tensor may be used on another thread once the call that made it has
/// returned. Nothing waits for the device except [`Tensor::to_vec`] and [`Device::synchronize`].
#[derive(Clone)]
pub struct Tensor<T: Element> {
    device: Device,
    layout: Layout,
    storage: Storage<T>,
}

#[derive(Clone)]
enum Storage<T: Element> {
    Host(Arc<Host<T>>),
    #[cfg(feature = "wgpu")]
    Wgpu(Arc<crate::backend::wgpu::Buffer>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<crate::backend::cuda::Buffer>),
}

/// Elements in host memory, borrowed: what the reference and the CPU launchers read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T> {
    /// The whole buffer; the layout's offset and strides index into it.
    pub data: &'a [T],
    /// Where the elements lie.
    pub layout: &'a Layout,
}

/// Elements in host memory, borrowed for writing: what the reference and the CPU launchers fill.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    /// The whole buffer; the layout's offset and strides index into it.
    pub data: &'a mut [T],
    /// Where the elements lie.
    pub layout: &'a Layout,
}

impl<'a, T: Element> View<'a, T> {
    /// A view, after checking that every element lies in `data`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `data` is shorter than the layout's span.
    pub fn new(data: &'a [T], layout: &'a Layout) -> Result<Self> {
        check_span(data.len(), layout)?;
        Ok(Self { data, layout })
    }

    /// The element at `index`, one number per axis.
    #[must_use]
    pub fn at(&self, index: &[usize]) -> T {
        self.data[self.layout.index(index)]
    }

    /// The length of each axis.
    #[must_use]
    pub fn shape(&self) -> &'a [usize] {
        self.layout.shape()
    }

    /// The elements as one slice, if they lie in row-major order without gaps.
    #[must_use]
    pub fn as_slice(&self) -> Option<&'a [T]> {
        self.layout.is_contiguous().then(|| &self.data[part(self.layout)])
    }
}

impl<'a, T: Element> ViewMut<'a, T> {
    /// A view, after checking that every element lies in `data`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `data` is shorter than the layout's span.
    pub fn new(data: &'a mut [T], layout: &'a Layout) -> Result<Self> {
        check_span(data.len(), layout)?;
        Ok(Self { data, layout })
    }

    /// Writes the element at `index`, one number per axis.
    pub fn set(&mut self, index: &[usize], value: T) {
        self.data[self.layout.index(index)] = value;
    }

    /// The elements as one slice, if they lie in row-major order without gaps.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> Option<&mut [T]> {
        self.layout.is_contiguous().then(|| &mut self.data[part(self.layout)])
    }
}

/// The part of the buffer that a contiguous layout covers; an empty one may start beyond the buffer's end.
fn part(layout: &Layout) -> std::ops::Range<usize> {
    match layout.elements() {
        0 => 0..0,
        elements => layout.offset()..layout.offset() + elements,
    }
}

fn check_span(elements: usize, layout: &Layout) -> Result<()> {
    if layout.span() > elements {
        let expected = format!("a layout within the buffer's {elements} elements; it reaches {}", layout.span());
        return Err(Error::shape("view", "layout", layout.shape(), expected));
    }
    Ok(())
}

impl<T: Element> Tensor<T> {
    /// A tensor of `shape` that takes over `data`, in row-major order.
    ///
    /// # Errors
    /// [`Error::Shape`] if `data` has not one value per element; [`Error::Dtype`] if the device does not hold `T`;
    /// [`Error::Device`] if the device has no room.
    pub fn from_vec(device: &Device, shape: &[usize], data: Vec<T>) -> Result<Self> {
        let layout = Layout::contiguous(shape)?;
        if layout.elements() != data.len() {
            return Err(Error::shape("tensor", "shape", shape, format!("{} elements, as the data has", data.len())));
        }
        device.check_dtype::<T>()?;
        let storage = match device.handle() {
            Handle::Reference => Storage::Host(Arc::new(Host::given(data))),
            #[cfg(feature = "cpu")]
            Handle::Cpu(_) => Storage::Host(Arc::new(Host::given(data))),
            #[cfg(feature = "wgpu")]
            Handle::Wgpu(gpu) => Storage::Wgpu(gpu.upload(bytemuck::cast_slice(&data))?),
            #[cfg(feature = "cuda")]
            Handle::Cuda(cuda) => Storage::Cuda(cuda.upload(bytemuck::cast_slice(&data))?),
        };
        Ok(Self { device: device.clone(), layout, storage })
    }

    /// A tensor of `shape` with a copy of `data`, in row-major order.
    ///
    /// # Errors
    /// As [`Tensor::from_vec`].
    pub fn from_slice(device: &Device, shape: &[usize], data: &[T]) -> Result<Self> {
        Self::from_vec(device, shape, data.to_vec())
    }

    /// A tensor of `shape` filled with zeros.
    ///
    /// # Errors
    /// As [`Tensor::from_vec`].
    pub fn zeros(device: &Device, shape: &[usize]) -> Result<Self> {
        let layout = Layout::contiguous(shape)?;
        #[cfg(feature = "cuda")]
        if let Handle::Cuda(cuda) = device.handle() {
            device.check_dtype::<T>()?;
            let storage = Storage::Cuda(cuda.zeros(layout.elements() * T::DTYPE.bytes())?);
            return Ok(Self { device: device.clone(), layout, storage });
        }
        Self::from_vec(device, shape, vec![T::zeroed(); layout.elements()])
    }

    /// A tensor of `shape` for an op to fill: it may hold anything at all.
    pub(crate) fn empty(device: &Device, shape: &[usize]) -> Result<Self> {
        match device.handle() {
            #[cfg(feature = "cpu")]
            Handle::Cpu(cpu) => {
                let layout = Layout::contiguous(shape)?;
                device.check_dtype::<T>()?;
                let storage = Storage::Host(Arc::new(Host::for_output(cpu, layout.elements())));
                Ok(Self { device: device.clone(), layout, storage })
            }
            #[cfg(feature = "wgpu")]
            Handle::Wgpu(gpu) => {
                let layout = Layout::contiguous(shape)?;
                device.check_dtype::<T>()?;
                let storage = Storage::Wgpu(gpu.allocate(layout.elements() * T::DTYPE.bytes())?);
                Ok(Self { device: device.clone(), layout, storage })
            }
            #[cfg(feature = "cuda")]
            Handle::Cuda(cuda) => {
                let layout = Layout::contiguous(shape)?;
                device.check_dtype::<T>()?;
                let storage = Storage::Cuda(cuda.allocate(layout.elements() * T::DTYPE.bytes())?);
                Ok(Self { device: device.clone(), layout, storage })
            }
            _ => Self::zeros(device, shape),
        }
    }

    /// The elements in row-major order, in host memory. Waits for the device.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed, now or in earlier work that this waits for.
    pub fn to_vec(&self) -> Result<Vec<T>> {
        match &self.storage {
            Storage::Host(data) => Ok(match self.view_of(data).as_slice() {
                Some(slice) => slice.to_vec(),
                None => self.layout.indices().map(|index| data[index]).collect(),
            }),
            #[cfg(feature = "wgpu")]
            Storage::Wgpu(_) => {
                let dense = self.contiguous()?;
                let Storage::Wgpu(buffer) = &dense.storage else { unreachable!("copies stay on their device") };
                let bytes = T::DTYPE.bytes();
                let start = dense.layout.offset() * bytes;
                buffer.download(start, dense.layout.elements() * bytes)
            }
            #[cfg(feature = "cuda")]
            Storage::Cuda(_) => {
                let dense = self.contiguous()?;
                let Storage::Cuda(buffer) = &dense.storage else { unreachable!("copies stay on their device") };
                let bytes = T::DTYPE.bytes();
                buffer.download(dense.layout.offset() * bytes, dense.layout.elements() * bytes)
            }
        }
    }

    /// The device it is on.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Where its elements lie.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The length of each axis.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// The number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.layout.elements()
    }

    /// Itself if its elements lie in row-major order without gaps, else a copy that does.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has no room for the copy.
    pub fn contiguous(&self) -> Result<Self> {
        if self.layout.is_contiguous() {
            return Ok(self.clone());
        }
        let mut dense = Self::empty(&self.device, self.shape())?;
        copy::copy_into(self, &mut dense)?;
        Ok(dense)
    }

    /// The same elements in row-major order under another shape; copies only where strides cannot express it.
    ///
    /// # Errors
    /// [`Error::Shape`] if the element counts differ.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if Layout::contiguous(shape)?.elements() != self.elements() {
            let expected = format!("{} elements, as {:?} has", self.elements(), self.shape());
            return Err(Error::shape("reshape", "shape", shape, expected));
        }
        let dense = self.contiguous()?;
        let layout = dense.layout.reshape(shape).expect("contiguous, and the counts are equal");
        Ok(dense.with_layout(layout))
    }

    /// The axes in another order, without a copy: axis `i` of the result is axis `order[i]` of this tensor.
    ///
    /// # Errors
    /// [`Error::Shape`] if `order` is not a permutation of the axes.
    pub fn permute(&self, order: &[usize]) -> Result<Self> {
        let layout = self
            .layout
            .permute(order)
            .ok_or_else(|| Error::shape("permute", "order", order, format!("each axis of {:?} once", self.shape())))?;
        Ok(self.with_layout(layout))
    }

    /// The part of `axis` that starts at `start` and has `len` entries, without a copy.
    ///
    /// # Errors
    /// [`Error::Shape`] if that part is not inside the tensor.
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        let layout = self.layout.narrow(axis, start, len).ok_or_else(|| {
            let expected = format!("at least {start} + {len} entries along axis {axis}");
            Error::shape("narrow", "tensor", self.shape(), expected)
        })?;
        Ok(self.with_layout(layout))
    }

    /// The tensor stretched to `shape`, without a copy: axes are aligned at the end, and axes of length 1 repeat.
    ///
    /// # Errors
    /// [`Error::Shape`] if an axis is neither equal nor 1, or the element count overflows.
    pub fn broadcast(&self, shape: &[usize]) -> Result<Self> {
        let layout = self.layout.broadcast(shape).ok_or_else(|| {
            Error::shape(
                "broadcast",
                "tensor",
                self.shape(),
                format!("axes of 1 or as in {shape:?}, whose count fits memory"),
            )
        })?;
        Ok(self.with_layout(layout))
    }

    /// The same buffer seen through another layout.
    ///
    /// # Errors
    /// [`Error::Shape`] if the layout reaches beyond the buffer.
    pub fn view_as(&self, layout: Layout) -> Result<Self> {
        check_span(self.capacity(), &layout)?;
        Ok(self.with_layout(layout))
    }

    /// Calls `work` with this buffer seen through `layout`, as its only owner if it is that now.
    pub(crate) fn with_part<R>(&mut self, layout: Layout, work: impl FnOnce(&mut Self) -> R) -> R {
        let whole = std::mem::replace(&mut self.layout, layout);
        let result = work(self);
        self.layout = whole;
        result
    }

    /// Gives the first `len` entries along `axis` a buffer of their own, if they share one on a GPU: there a write would
    /// reach whoever shares it, while on the host it makes the copy itself. The other entries lose their values.
    #[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(unused_variables, clippy::unnecessary_wraps))]
    pub(crate) fn unshare(&mut self, axis: usize, len: usize) -> Result<()> {
        #[cfg(any(feature = "cuda", feature = "wgpu"))]
        if self.is_shared_on_a_gpu() {
            let mut own = Self::empty(&self.device, self.shape())?;
            copy::copy_into_slice(&self.narrow(axis, 0, len)?, &mut own, axis, 0)?;
            *self = own;
        }
        Ok(())
    }

    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    fn is_shared_on_a_gpu(&self) -> bool {
        match &self.storage {
            Storage::Host(_) => false,
            #[cfg(feature = "wgpu")]
            Storage::Wgpu(buffer) => Arc::strong_count(buffer) > 1,
            #[cfg(feature = "cuda")]
            Storage::Cuda(buffer) => Arc::strong_count(buffer) > 1,
        }
    }

    fn with_layout(&self, layout: Layout) -> Self {
        Self { device: self.device.clone(), layout, storage: self.storage.clone() }
    }

    fn view_of<'a>(&'a self, data: &'a [T]) -> View<'a, T> {
        View { data, layout: &self.layout }
    }

    /// How many elements the buffer holds.
    fn capacity(&self) -> usize {
        match &self.storage {
            Storage::Host(data) => data.len(),
            #[cfg(feature = "wgpu")]
            Storage::Wgpu(buffer) => buffer.bytes() / T::DTYPE.bytes(),
            #[cfg(feature = "cuda")]
            Storage::Cuda(buffer) => buffer.bytes() / T::DTYPE.bytes(),
        }
    }

    /// The elements of a tensor in host memory (the reference's and the CPU's).
    ///
    /// # Panics
    /// If the tensor is on a GPU: ops dispatch on the device first.
    pub(crate) fn host(&self) -> View<'_, T> {
        match &self.storage {
            Storage::Host(data) => self.view_of(data),
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            _ => unreachable!("a host implementation was called with a tensor of a GPU"),
        }
    }

    /// The elements of a tensor in host memory, for writing; a shared buffer is copied first.
    ///
    /// # Panics
    /// If the tensor is on a GPU: ops dispatch on the device first.
    pub(crate) fn host_mut(&mut self) -> ViewMut<'_, T> {
        match &mut self.storage {
            Storage::Host(data) => ViewMut { data: Arc::make_mut(data).as_mut_slice(), layout: &self.layout },
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            _ => unreachable!("a host implementation was called with a tensor of a GPU"),
        }
    }

    /// The buffer of a tensor on a wgpu device, as its launchers take it.
    ///
    /// # Panics
    /// If the tensor is not on a wgpu device.
    #[cfg(feature = "wgpu")]
    #[must_use]
    pub fn operand(&self) -> crate::backend::wgpu::Operand<'_> {
        match &self.storage {
            Storage::Wgpu(buffer) => {
                crate::backend::wgpu::Operand { buffer: buffer.raw(), layout: &self.layout, dtype: T::DTYPE }
            }
            _ => panic!("Tensor::operand: the tensor is on {}, not on wgpu", self.device),
        }
    }

    /// A tensor over a buffer that another crate made on this device. The buffer is kept, not copied.
    ///
    /// # Errors
    /// [`Error::Shape`] if the layout reaches beyond the buffer; [`Error::Unavailable`] if `device` is not wgpu.
    #[cfg(feature = "wgpu")]
    pub fn from_wgpu(device: &Device, buffer: ::wgpu::Buffer, layout: Layout) -> Result<Self> {
        device.check_dtype::<T>()?;
        let Handle::Wgpu(gpu) = device.handle() else {
            let reason = "a wgpu buffer needs a wgpu device".to_owned();
            return Err(Error::Unavailable { device: device.to_string(), reason });
        };
        let storage = Storage::Wgpu(gpu.adopt(buffer));
        let tensor = Self { device: device.clone(), layout, storage };
        check_span(tensor.capacity(), &tensor.layout)?;
        Ok(tensor)
    }
}

#[cfg(feature = "cuda")]
impl<T: Element> Tensor<T> {
    /// The memory of a tensor on a CUDA device, as its launchers take it.
    ///
    /// # Panics
    /// If the tensor is not on a CUDA device.
    #[must_use]
    pub fn cuda_operand(&self) -> crate::backend::cuda::Operand<'_> {
        match &self.storage {
            Storage::Cuda(buffer) => {
                crate::backend::cuda::Operand { pointer: buffer.pointer(), layout: &self.layout, dtype: T::DTYPE }
            }
            _ => panic!("Tensor::cuda_operand: the tensor is on {}, not on CUDA", self.device),
        }
    }

    /// A tensor over memory that another crate allocated on this device; it is not copied. `owner` is what keeps the
    /// memory alive, such as an `Arc<CudaSlice<T>>`, and is dropped with the last tensor that shares it.
    ///
    /// # Errors
    /// [`Error::Shape`] if the layout reaches beyond `elements`; [`Error::Unavailable`] if `device` is not CUDA.
    ///
    /// # Safety
    /// As long as `owner` lives, `pointer` must be valid on the device for `elements` of `T`. What other streams do
    /// with that memory must be ordered with the device's own stream.
    #[expect(unsafe_code, reason = "the caller vouches for a device pointer")]
    pub unsafe fn from_cuda(
        device: &Device,
        pointer: u64,
        elements: usize,
        layout: Layout,
        owner: impl std::any::Any + Send + Sync,
    ) -> Result<Self> {
        device.check_dtype::<T>()?;
        let Handle::Cuda(cuda) = device.handle() else {
            let reason = "CUDA memory needs a CUDA device".to_owned();
            return Err(Error::Unavailable { device: device.to_string(), reason });
        };
        check_span(elements, &layout)?;
        let storage = Storage::Cuda(cuda.adopt(pointer, elements * T::DTYPE.bytes(), Box::new(owner)));
        Ok(Self { device: device.clone(), layout, storage })
    }
}

impl<T: Element> fmt::Debug for Tensor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor<{}> {:?} on {}", T::DTYPE, self.shape(), self.device)
    }
}
