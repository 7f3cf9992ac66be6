//! Convolution over a grid.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::device::Handle;
use crate::{Error, Float, Result, Tensor, Weight, copy};

/// Zeros around a grid, in places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Padding {
    /// Before the first column.
    pub left: usize,
    /// After the last column.
    pub right: usize,
    /// Above the first row.
    pub top: usize,
    /// Below the last row.
    pub bottom: usize,
}

impl Padding {
    /// As much on every side.
    #[must_use]
    pub const fn all(places: usize) -> Self {
        Self { left: places, right: places, top: places, bottom: places }
    }

    /// What keeps the grid's size with a kernel of this odd side and stride 1.
    #[must_use]
    pub const fn same(kernel: usize) -> Self {
        Self::all(kernel / 2)
    }
}

/// Convolves a grid with a kernel, without flipping it.
///
/// `y[b, o, r, c] = bias[o] + sum over i, u, v of x[b, i, r * stride + u - top, c * stride + v - left] * weight[o, i, u, v]`
///
/// Places outside the grid count as 0. The result has `(height + top + bottom - kernel_height) / stride + 1` rows, and
/// columns likewise.
///
/// | operand  | shape                                                | element              | layout           |
/// |----------|------------------------------------------------------|----------------------|------------------|
/// | `x`      | `[batch, channels_in, height, width]`                | f32, f16, bf16       | any              |
/// | `weight` | `[channels_out, channels_in, kernel_h, kernel_w]`    | f32, f16, bf16, int8 | any              |
/// | `bias`   | `[channels_out]`                                     | f32                  | any; absent: 0   |
/// | returned | `[batch, channels_out, rows, columns]`               | as `x`               | contiguous       |
///
/// Sums are in f32.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit or the kernel is larger than the padded grid; [`Error::Value`] if
/// `stride` is 0; [`Error::Place`] if the operands are on different devices.
///
/// # Source
/// As `torch.nn.functional.conv2d`, with padding on each side by itself.
pub fn conv2d<T: Float>(
    x: &Tensor<T>,
    weight: &Weight,
    bias: Option<&Tensor<f32>>,
    stride: usize,
    padding: Padding,
) -> Result<Tensor<T>> {
    const OP: &str = "conv2d";
    let (&[batch, channels_in, height, width], &[channels_out, kernel_in, kernel_height, kernel_width]) =
        (x.shape(), weight.shape())
    else {
        let wrong = if x.shape().len() == 4 { ("weight", weight.shape()) } else { ("x", x.shape()) };
        return Err(Error::shape(OP, wrong.0, wrong.1, "four axes"));
    };
    x.device().check_same(OP, "weight", weight.device())?;
    if kernel_in != channels_in || kernel_height == 0 || kernel_width == 0 {
        let expected = format!("[channels_out, {channels_in}, kernel_h, kernel_w] for x, which is {:?}", x.shape());
        return Err(Error::shape(OP, "weight", weight.shape(), expected));
    }
    if let Some(bias) = bias {
        x.device().check_same(OP, "bias", bias.device())?;
        if bias.shape() != [channels_out] {
            return Err(Error::shape(OP, "bias", bias.shape(), format!("[{channels_out}]: one value per output")));
        }
    }
    if stride == 0 {
        return Err(Error::value(OP, "stride", stride, "at least 1"));
    }
    let length = |len: usize, before: usize, after: usize, kernel: usize| {
        let padded = len.checked_add(before)?.checked_add(after)?;
        Some(padded.checked_sub(kernel)? / stride + 1)
    };
    let (Some(rows), Some(columns)) = (
        length(height, padding.top, padding.bottom, kernel_height),
        length(width, padding.left, padding.right, kernel_width),
    ) else {
        let expected = format!("a padded grid at least as large as the kernel, {kernel_height} by {kernel_width}");
        return Err(Error::shape(OP, "x", x.shape(), expected));
    };

    let x = x.contiguous()?;
    let weight = weight.contiguous()?;
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let mut y = Tensor::empty(x.device(), &[batch, channels_out, rows, columns])?;
    if y.elements() == 0 {
        return Ok(y);
    }
    let geometry = Geometry {
        batch,
        channels_in,
        height,
        width,
        channels_out,
        kernel_height,
        kernel_width,
        rows,
        columns,
        stride,
        top: padding.top,
        left: padding.left,
    };
    match x.device().handle() {
        Handle::Reference => {
            let weight = widened(&weight)?;
            reference::conv2d(x.host(), weight.host(), bias.as_ref().map(Tensor::host), geometry, y.host_mut());
        }
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => {
            let weight = widened(&weight)?;
            cpu::conv2d(cpu, x.host(), weight.host(), bias.as_ref().map(Tensor::host), geometry, y.host_mut());
        }
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            // An 8-bit kernel is rare; it is widened on the way instead of having a variant of its own.
            let weight = if matches!(weight, Weight::Int8 { .. }) { widened(&weight)?.into() } else { weight };
            let bias = bias.as_ref().map(Tensor::cuda_operand);
            let (weight, _) = weight.cuda_operands();
            cuda::conv2d(&cuda.stream(), x.cuda_operand(), weight, bias, geometry, y.cuda_operand())?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            // An 8-bit kernel is rare; it is widened on the way instead of having a variant of its own.
            let weight = if matches!(weight, Weight::Int8 { .. }) { widened(&weight)?.into() } else { weight };
            gpu.record(|recorder| {
                let bias = bias.as_ref().map(Tensor::operand);
                match &weight {
                    Weight::F16(weight) => {
                        wgpu::conv2d(recorder, x.operand(), weight.operand(), bias, geometry, y.operand())
                    }
                    Weight::Bf16(weight) => {
                        wgpu::conv2d(recorder, x.operand(), weight.operand(), bias, geometry, y.operand())
                    }
                    Weight::F32(weight) => {
                        wgpu::conv2d(recorder, x.operand(), weight.operand(), bias, geometry, y.operand())
                    }
                    Weight::Int8 { .. } => unreachable!("widened above"),
                }
            })?;
        }
    }
    Ok(y)
}

/// The sizes of one convolution.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "each is named in the contract of conv2d")]
pub struct Geometry {
    pub batch: usize,
    pub channels_in: usize,
    pub height: usize,
    pub width: usize,
    pub channels_out: usize,
    pub kernel_height: usize,
    pub kernel_width: usize,
    pub rows: usize,
    pub columns: usize,
    pub stride: usize,
    pub top: usize,
    pub left: usize,
}

/// The weight in f32.
fn widened(weight: &Weight) -> Result<Tensor<f32>> {
    match weight {
        Weight::F32(weight) => Ok(weight.clone()),
        Weight::F16(weight) => copy::convert(weight),
        Weight::Bf16(weight) => copy::convert(weight),
        Weight::Int8 { values, scale } => {
            let (values_in_host, scale) = (values.to_vec()?, scale.to_vec()?);
            let per_row = values_in_host.len() / scale.len().max(1);
            let wide = values_in_host.iter().enumerate().map(|(at, value)| f32::from(*value) * scale[at / per_row]);
            Tensor::from_vec(values.device(), values.shape(), wide.collect())
        }
    }
}
