//! A learned matrix, kernel or table in the form that is stored.

use crate::{Device, Dtype, Element, Error, Float, Result, Tensor, bf16, f16};

/// A learned matrix, kernel or table in the form it is stored in. Ops read this form as such and compute in f32, so
/// that half the bytes cost half the time where memory is the limit.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Weight {
    /// 32-bit floats.
    F32(Tensor<f32>),
    /// IEEE 16-bit floats.
    F16(Tensor<f16>),
    /// Brain floats.
    Bf16(Tensor<bf16>),
    /// 8-bit integers with one scale per entry of the first axis: `weight[o, ..] = values[o, ..] * scale[o]`.
    Int8 {
        /// The integers.
        values: Tensor<i8>,
        /// `[values.shape()[0]]`.
        scale: Tensor<f32>,
    },
}

impl From<Tensor<f32>> for Weight {
    fn from(tensor: Tensor<f32>) -> Self {
        Self::F32(tensor)
    }
}

impl From<Tensor<f16>> for Weight {
    fn from(tensor: Tensor<f16>) -> Self {
        Self::F16(tensor)
    }
}

impl From<Tensor<bf16>> for Weight {
    fn from(tensor: Tensor<bf16>) -> Self {
        Self::Bf16(tensor)
    }
}

impl Weight {
    /// As the CUDA launchers take it: the stored values and, for an int8 one, the scale.
    #[cfg(feature = "cuda")]
    pub(crate) fn cuda_operands(
        &self,
    ) -> (crate::backend::cuda::Operand<'_>, Option<crate::backend::cuda::Operand<'_>>) {
        match self {
            Self::F32(weight) => (weight.cuda_operand(), None),
            Self::F16(weight) => (weight.cuda_operand(), None),
            Self::Bf16(weight) => (weight.cuda_operand(), None),
            Self::Int8 { values, scale } => (values.cuda_operand(), Some(scale.cuda_operand())),
        }
    }

    /// An 8-bit weight.
    ///
    /// # Errors
    /// [`Error::Shape`] if `scale` has not one value per entry of the first axis; [`Error::Place`] if the two are on
    /// different devices.
    pub fn int8(values: Tensor<i8>, scale: Tensor<f32>) -> Result<Self> {
        const OP: &str = "weight";
        values.device().check_same(OP, "scale", scale.device())?;
        let rows = values.shape().first().copied();
        if rows.is_none_or(|rows| scale.shape() != [rows]) {
            let expected = format!("one value per entry of the first axis of {:?}", values.shape());
            return Err(Error::shape(OP, "scale", scale.shape(), expected));
        }
        Ok(Self::Int8 { values, scale })
    }

    /// The length of each axis.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(tensor) => tensor.shape(),
            Self::F16(tensor) => tensor.shape(),
            Self::Bf16(tensor) => tensor.shape(),
            Self::Int8 { values, .. } => values.shape(),
        }
    }

    /// The device it is on.
    #[must_use]
    pub fn device(&self) -> &Device {
        match self {
            Self::F32(tensor) => tensor.device(),
            Self::F16(tensor) => tensor.device(),
            Self::Bf16(tensor) => tensor.device(),
            Self::Int8 { values, .. } => values.device(),
        }
    }

    /// The stored element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => f32::DTYPE,
            Self::F16(_) => f16::DTYPE,
            Self::Bf16(_) => bf16::DTYPE,
            Self::Int8 { .. } => i8::DTYPE,
        }
    }

    /// The same elements in another shape of the same first axis.
    ///
    /// # Errors
    /// [`Error::Shape`] if the first axis or the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if shape.first() != self.shape().first() {
            let expected = format!("the same first axis as {:?}", self.shape());
            return Err(Error::shape("weight", "shape", shape, expected));
        }
        Ok(match self {
            Self::F32(tensor) => Self::F32(tensor.reshape(shape)?),
            Self::F16(tensor) => Self::F16(tensor.reshape(shape)?),
            Self::Bf16(tensor) => Self::Bf16(tensor.reshape(shape)?),
            Self::Int8 { values, scale } => Self::Int8 { values: values.reshape(shape)?, scale: scale.clone() },
        })
    }

    /// Itself if its elements lie in row-major order without gaps, else a copy that does.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has no room for the copy.
    pub fn contiguous(&self) -> Result<Self> {
        Ok(match self {
            Self::F32(tensor) => Self::F32(tensor.contiguous()?),
            Self::F16(tensor) => Self::F16(tensor.contiguous()?),
            Self::Bf16(tensor) => Self::Bf16(tensor.contiguous()?),
            Self::Int8 { values, scale } => Self::Int8 { values: values.contiguous()?, scale: scale.contiguous()? },
        })
    }

    /// The value at `index`, one number per axis, of a weight in host memory: what the reference computes with.
    ///
    /// # Panics
    /// If the weight is on a GPU: ops dispatch on the device first.
    pub(crate) fn value(&self, index: &[usize]) -> f64 {
        match self {
            Self::F32(tensor) => tensor.host().at(index).to_f64(),
            Self::F16(tensor) => tensor.host().at(index).to_f64(),
            Self::Bf16(tensor) => tensor.host().at(index).to_f64(),
            Self::Int8 { values, scale } => {
                f64::from(values.host().at(index)) * f64::from(scale.host().at(&index[..1]))
            }
        }
    }
}
