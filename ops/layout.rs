//! Shape, strides and offset: where in a buffer the elements of a tensor lie.

use crate::{Error, Result};

/// Where the elements of a tensor lie in its buffer. Strides and offset count elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    shape: Vec<usize>,
    strides: Vec<usize>,
    offset: usize,
}

impl Layout {
    /// A row-major layout without gaps.
    ///
    /// # Errors
    /// [`Error::Shape`] if the element count overflows.
    pub fn contiguous(shape: &[usize]) -> Result<Self> {
        count_of(shape)?;
        let mut strides = vec![1; shape.len()];
        let mut elements = 1;
        for (stride, len) in strides.iter_mut().zip(shape).rev() {
            *stride = elements;
            elements *= len.max(&1);
        }
        Ok(Self { shape: shape.to_vec(), strides, offset: 0 })
    }

    /// Any layout. A stride of 0 repeats its axis (a broadcast).
    ///
    /// # Errors
    /// [`Error::Shape`] if `strides` has not one entry per axis, or if the element count or the last element's index
    /// overflows.
    pub fn strided(shape: &[usize], strides: &[usize], offset: usize) -> Result<Self> {
        if shape.len() != strides.len() {
            return Err(Error::shape("tensor", "strides", strides, format!("one stride per axis of {shape:?}")));
        }
        count_of(shape)?;
        let layout = Self { shape: shape.to_vec(), strides: strides.to_vec(), offset };
        if layout.checked_span().is_none() {
            return Err(Error::shape("tensor", "strides", strides, "a last element whose index fits memory"));
        }
        Ok(layout)
    }

    /// The length of each axis.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The distance in elements between neighbours along each axis.
    #[must_use]
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// The first element's index in the buffer.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// One more than the largest index in the buffer that an element has; 0 if there is no element.
    #[must_use]
    pub fn span(&self) -> usize {
        self.checked_span().expect("checked when the layout was made")
    }

    fn checked_span(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset.checked_add(1)?, |last, (len, stride)| {
                last.checked_add((len - 1).checked_mul(*stride)?)
            })
            .filter(|span| isize::try_from(*span).is_ok_and(|span| span <= isize::MAX / 8))
    }

    /// Whether the elements lie in row-major order without gaps (axes of length 1 do not matter).
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(len, stride)| {
            let fits = *len <= 1 || *stride == expected;
            expected *= len.max(&1);
            fits
        }) || self.shape.contains(&0)
    }

    /// The index in the buffer of the element at `index`, one number per axis.
    #[must_use]
    pub fn index(&self, index: &[usize]) -> usize {
        debug_assert!(index.len() == self.shape.len() && index.iter().zip(&self.shape).all(|(i, len)| i < len));
        self.offset + index.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum::<usize>()
    }

    /// The buffer index of every element, in row-major order.
    pub fn indices(&self) -> impl Iterator<Item = usize> + '_ {
        let mut index = vec![0; self.shape.len()];
        let mut at = self.offset;
        (0..self.elements()).map(move |_| {
            let here = at;
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
            here
        })
    }

    /// The same elements under another shape, if strides can express it without a copy.
    #[must_use]
    pub fn reshape(&self, shape: &[usize]) -> Option<Self> {
        let mut layout = Self::contiguous(shape).ok()?;
        if !self.is_contiguous() || layout.elements() != self.elements() {
            return None;
        }
        layout.offset = self.offset;
        Some(layout)
    }

    /// The axes in another order: axis `i` of the result is axis `order[i]` of this one.
    #[must_use]
    pub fn permute(&self, order: &[usize]) -> Option<Self> {
        let mut seen = order.to_vec();
        seen.sort_unstable();
        if !seen.iter().copied().eq(0..self.shape.len()) {
            return None;
        }
        Some(Self {
            shape: order.iter().map(|axis| self.shape[*axis]).collect(),
            strides: order.iter().map(|axis| self.strides[*axis]).collect(),
            offset: self.offset,
        })
    }

    /// The part of `axis` that starts at `start` and has `len` entries.
    #[must_use]
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Option<Self> {
        if axis >= self.shape.len() || start.checked_add(len)? > self.shape[axis] {
            return None;
        }
        let mut layout = self.clone();
        layout.shape[axis] = len;
        layout.offset += start * layout.strides[axis];
        Some(layout)
    }

    /// The shape stretched to `shape`: axes are aligned at the end, and axes of length 1 repeat. Nothing if an axis does not
    /// fit, or the element count overflows.
    #[must_use]
    pub fn broadcast(&self, shape: &[usize]) -> Option<Self> {
        count_of(shape).ok()?;
        let missing = shape.len().checked_sub(self.shape.len())?;
        let mut strides = vec![0; missing];
        for (axis, len) in self.shape.iter().enumerate() {
            match (*len, shape[missing + axis]) {
                (from, to) if from == to => strides.push(self.strides[axis]),
                (1, _) => strides.push(0),
                _ => return None,
            }
        }
        Some(Self { shape: shape.to_vec(), strides, offset: self.offset })
    }
}

/// Elements of a shape whose axes of length 0 count as 1: that strides and counts of parts fit too.
fn count_of(shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |count, len| count.checked_mul(*len.max(&1)))
        .filter(|count| isize::try_from(*count).is_ok_and(|count| count <= isize::MAX / 8))
        .ok_or_else(|| Error::shape("tensor", "shape", shape, "a count of elements that fits memory"))
}
