//! Tensors of dumps at other lengths.

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// A tensor as its file has it.
#[derive(Clone)]
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Stored {
    /// With axes of length `before` at length `after`.
    pub fn resized(&self, before: usize, after: usize) -> Self {
        if !self.shape.contains(&before) {
            return self.clone();
        }
        if let Some(rows) = self.permutations(before) {
            let kept = rows.into_iter().flatten().filter(|number| (*number as usize) < after);
            let bytes: Vec<u8> = kept.flat_map(i32::to_le_bytes).collect();
            let mut shape = self.shape.clone();
            *shape.last_mut().expect("a permutation has an axis") = after;
            return Self { dtype: self.dtype, shape, bytes };
        }
        let size = self.dtype.bitsize() / 8;
        let shape: Vec<_> = self.shape.iter().map(|length| if *length == before { after } else { *length }).collect();
        let mut bytes = Vec::new();
        for flat in 0..shape.iter().product() {
            let (mut rest, mut at, mut stride) = (flat, 0, 1);
            for (length, of_old) in shape.iter().zip(&self.shape).rev() {
                at += rest % length % of_old * stride;
                rest /= length;
                stride *= of_old;
            }
            bytes.extend(&self.bytes[at * size..][..size]);
        }
        Self { dtype: self.dtype, shape, bytes }
    }

    /// The rows, if each has the numbers from 0 to `count`.
    fn permutations(&self, count: usize) -> Option<Vec<Vec<i32>>> {
        if self.dtype != Dtype::I32 || self.shape.last() != Some(&count) {
            return None;
        }
        let numbers = self.bytes.chunks(4).map(|bytes| i32::from_le_bytes(bytes.try_into().expect("four bytes")));
        let numbers: Vec<_> = numbers.collect();
        let rows: Vec<_> = numbers.chunks(count).map(<[i32]>::to_vec).collect();
        let whole = |row: &Vec<i32>| (0..count as i32).all(|number| row.contains(&number));
        rows.iter().all(whole).then_some(rows)
    }
}

impl From<TensorView<'_>> for Stored {
    fn from(tensor: TensorView<'_>) -> Self {
        Self { dtype: tensor.dtype(), shape: tensor.shape().to_vec(), bytes: tensor.data().to_vec() }
    }
}
