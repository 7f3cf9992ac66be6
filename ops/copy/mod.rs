//! Copies between layouts, and between float types.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::device::Handle;
use crate::{Element, Error, Float, Layout, Result, Tensor, View, ViewMut};

/// Copies `x` into `y`, element by element, whatever the two layouts.
///
/// | operand | shape  | element | layout                                     |
/// |---------|--------|---------|--------------------------------------------|
/// | `x`     | any    | any     | any                                        |
/// | `y`     | as `x` | as `x`  | any in which no two elements share a place |
///
/// # Errors
/// [`Error::Shape`] if the shapes differ, or, on wgpu, if `y` is of a type of 1 or 2 bytes and its last axis does
/// not consist of whole words of 4 bytes, unless all of `y` lies without gaps from the start of a word on;
/// [`Error::Place`] if the devices differ.
pub fn copy_into<T: Element>(x: &Tensor<T>, y: &mut Tensor<T>) -> Result<()> {
    const OP: &str = "copy_into";
    if x.shape() != y.shape() {
        return Err(Error::shape(OP, "y", y.shape(), format!("{:?}, as x has", x.shape())));
    }
    x.device().check_same(OP, "y", y.device())?;
    match x.device().clone().handle() {
        Handle::Reference => copy_elements(x.host(), y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(_) => copy_elements(x.host(), y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => cuda::copy_into(&cuda.stream(), x.cuda_operand(), y.cuda_operand())?,
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu.record(|recorder| wgpu::copy_into(recorder, x.operand(), y.operand()))?,
    }
    Ok(())
}

/// Copies `x` into the part of `y` that starts at `start` along `axis`, as a cache append does; the rest is kept.
///
/// # Errors
/// As [`copy_into`]; [`Error::Shape`] if that part is not inside `y`.
pub fn copy_into_slice<T: Element>(x: &Tensor<T>, y: &mut Tensor<T>, axis: usize, start: usize) -> Result<()> {
    const OP: &str = "copy_into_slice";
    let len = x.shape().get(axis).copied().unwrap_or(0);
    let Some(part) = y.layout().narrow(axis, start, len) else {
        let expected = format!("at least {start} + {len} entries along axis {axis}");
        return Err(Error::shape(OP, "y", y.shape(), expected));
    };
    y.with_part(part, |part| copy_into(x, part))
}

/// `x` in another float type, rounded to nearest, ties to even; the result is contiguous.
///
/// # Errors
/// [`Error::Dtype`] if the device does not hold `U`; [`Error::Device`] if it has no room.
pub fn convert<T: Float, U: Float>(x: &Tensor<T>) -> Result<Tensor<U>> {
    let mut y = Tensor::empty(x.device(), x.shape())?;
    match x.device().handle() {
        Handle::Reference => convert_elements(x.host(), y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(_) => convert_elements(x.host(), y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => cuda::convert(&cuda.stream(), x.cuda_operand(), y.cuda_operand())?,
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu.record(|recorder| wgpu::convert(recorder, x.operand(), y.operand()))?,
    }
    Ok(y)
}

fn copy_elements<T: Element>(x: View<'_, T>, mut y: ViewMut<'_, T>) {
    if let (Some(x), Some(y)) = (x.as_slice(), y.as_mut_slice()) {
        y.copy_from_slice(x);
        return;
    }
    // Whole last axes where both are dense, since a slice copy is far faster than a walk.
    let last = x.shape().len() - 1;
    let run = match (x.layout.strides()[last], y.layout.strides()[last]) {
        (1, 1) => x.shape()[last],
        _ => 1,
    };
    if run == 0 {
        return;
    }
    let starts = |layout: &Layout| layout.narrow(last, 0, if run > 1 { 1 } else { layout.shape()[last] });
    let (from, to) = (starts(x.layout).expect("a part"), starts(y.layout).expect("a part"));
    for (from, to) in from.indices().zip(to.indices()) {
        y.data[to..to + run].copy_from_slice(&x.data[from..from + run]);
    }
}

fn convert_elements<T: Float, U: Float>(x: View<'_, T>, mut y: ViewMut<'_, U>) {
    let y = y.as_mut_slice().expect("just made, so contiguous");
    if let Some(x) = x.as_slice() {
        if let Some(x) = T::as_f32(x) {
            return U::narrow(x, y);
        }
        if let Some(y) = U::as_f32_mut(y) {
            return T::widen(x, y);
        }
    }
    y.iter_mut().zip(x.layout.indices()).for_each(|(y, at)| *y = U::from_f64(x.data[at].to_f64()));
}
