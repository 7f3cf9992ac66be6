//! Matrix products.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
mod hopper;
pub mod reference;
#[cfg(feature = "cpu")]
mod tile;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::device::Handle;
use crate::{Error, Float, Result, Tensor, Weight};

/// Multiplies each row of `x` by a learned matrix, and adds a bias.
///
/// `y[.., o] = sum over i of x[.., i] * weight[o, i] + bias[o]`
///
/// | operand  | shape       | element             | layout             |
/// |----------|-------------|---------------------|--------------------|
/// | `x`      | `[.., in]`  | f32, f16, bf16      | any                |
/// | `weight` | `[out, in]` | f32, f16, bf16, int8 | any                |
/// | `bias`   | `[out]`     | f32                 | any; absent: all 0 |
/// | returned | `[.., out]` | as `x`              | contiguous         |
///
/// Sums are in f32, over the weight as it is stored; the scale of an int8 row is applied to its sum. The order in
/// which a row is summed depends on the device and on `in`, never on the number of rows or threads: so a row gives
/// the same bits alone and among others. A NaN in `x` makes its own row NaN and no other.
///
/// # Errors
/// [`Error::Shape`] if `x` has no axis, `weight` is not `[out, in]` or `bias` has not one value per output;
/// [`Error::Place`] if the operands are on different devices.
///
/// # Source
/// As `torch.nn.functional.linear`.
pub fn linear<T: Float>(x: &Tensor<T>, weight: &Weight, bias: Option<&Tensor<f32>>) -> Result<Tensor<T>> {
    const OP: &str = "linear";
    let Some((&inputs, leading)) = x.shape().split_last() else {
        return Err(Error::shape(OP, "x", x.shape(), "at least one axis: the last one holds the inputs"));
    };
    x.device().check_same(OP, "weight", weight.device())?;
    let outputs = match weight.shape() {
        &[outputs, columns] if columns == inputs => outputs,
        shape => {
            let expected = format!("[out, {inputs}]: one column per input of x, which is {:?}", x.shape());
            return Err(Error::shape(OP, "weight", shape, expected));
        }
    };
    if let Some(bias) = bias {
        x.device().check_same(OP, "bias", bias.device())?;
        if bias.shape() != [outputs] {
            let expected = format!("[{outputs}]: one value per row of weight, which is {:?}", weight.shape());
            return Err(Error::shape(OP, "bias", bias.shape(), expected));
        }
    }
    let rows = leading.iter().product();
    let x = x.reshape(&[rows, inputs])?;
    let weight = weight.contiguous()?;
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let mut y = Tensor::empty(x.device(), &[rows, outputs])?;
    match x.device().handle() {
        Handle::Reference => reference::linear(x.host(), &weight, bias.as_ref().map(Tensor::host), y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::linear(cpu, x.host(), &weight, bias.as_ref().map(Tensor::host), y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let (x, y) = (x.reshape(&[1, rows, inputs])?, y.reshape(&[1, rows, outputs])?);
            let (values, scale) = cuda::operands(&weight);
            let one = values.layout.reshape(&[1, outputs, inputs]).expect("contiguous");
            let values = crate::backend::cuda::Operand { layout: &one, ..values };
            let bias = bias.as_ref().map(Tensor::cuda_operand);
            cuda::linear(&cuda.stream(), x.cuda_operand(), values, scale, bias, y.cuda_operand())?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let (x, y) = (x.reshape(&[1, rows, inputs])?, y.reshape(&[1, rows, outputs])?);
            let (values, scale) = wgpu::operands(&weight);
            let one = values.layout.reshape(&[1, outputs, inputs]).expect("contiguous");
            let values = crate::backend::wgpu::Operand { layout: &one, ..values };
            let bias = bias.as_ref().map(Tensor::operand);
            gpu.record(|recorder| wgpu::linear(recorder, x.operand(), values, scale, bias, y.operand()))?;
        }
    }
    y.reshape(&[leading, &[outputs]].concat())
}

/// Multiplies matrices, one pair per entry of the leading axes.
///
/// `y[.., i, j] = sum over l of a[.., i, l] * b[.., l, j]`
///
/// | operand  | shape       | element        | layout     |
/// |----------|-------------|----------------|------------|
/// | `a`      | `[.., m, k]` | f32, f16, bf16 | any        |
/// | `b`      | `[.., k, n]` | as `a`         | any        |
/// | returned | `[.., m, n]` | as `a`         | contiguous |
///
/// Sums are in f32, in the order of [`linear`]. `b` is read by columns: where its columns are not dense, it is
/// copied first.
///
/// # Errors
/// [`Error::Shape`] if an operand has fewer than two axes or the shapes do not fit; [`Error::Place`] if the operands
/// are on different devices.
///
/// # Source
/// As `torch.matmul`, without broadcasting.
pub fn matmul<T: Float>(a: &Tensor<T>, b: &Tensor<T>) -> Result<Tensor<T>> {
    const OP: &str = "matmul";
    let &[ref leading @ .., m, k] = a.shape() else {
        return Err(Error::shape(OP, "a", a.shape(), "at least two axes: rows and columns"));
    };
    a.device().check_same(OP, "b", b.device())?;
    let n = match b.shape() {
        &[ref b_leading @ .., b_k, n] if b_leading == leading && b_k == k => n,
        shape => {
            let expected = format!("{leading:?} and then [{k}, n], to fit a, which is {:?}", a.shape());
            return Err(Error::shape(OP, "b", shape, expected));
        }
    };
    let axes = leading.len();
    let order: Vec<usize> = (0..axes).chain([axes + 1, axes]).collect();
    let batch = leading.iter().product();
    let a = a.reshape(&[batch, m, k])?;
    let columns = b.permute(&order)?.reshape(&[batch, n, k])?;
    let mut y = Tensor::empty(a.device(), &[batch, m, n])?;
    match a.device().handle() {
        Handle::Reference => reference::matmul(a.host(), columns.host(), y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::matmul(cpu, a.host(), columns.host(), y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let (a, columns) = (a.cuda_operand(), columns.cuda_operand());
            cuda::linear(&cuda.stream(), a, columns, None, None, y.cuda_operand())?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            gpu.record(|recorder| wgpu::linear(recorder, a.operand(), columns.operand(), None, None, y.operand()))?
        }
    }
    y.reshape(&[&b.shape()[..axes], &[m, n]].concat())
}
