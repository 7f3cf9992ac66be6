//! Keys and values of the positions seen so far.

use crate::rope::{Pairing, Table};
use crate::{Device, Error, Float, Result, Tensor, copy, rope};

/// Keys and values of the positions seen so far, in buffers of a fixed capacity.
///
/// Cloning shares the buffers until either is appended to, which then copies what it holds: so a clone is a fork, as for
/// guidance or beams. A view that is alive during an append keeps what it saw and costs the same copy, so drop it first.
#[derive(Debug, Clone)]
pub struct KvCache<T: Float> {
    k: Tensor<T>,
    v: Tensor<T>,
    len: usize,
}

impl<T: Float> KvCache<T> {
    /// An empty cache of `[batch, kv_heads, capacity, head_dim]`, for keys and for values.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has no room; [`Error::Dtype`] if it does not hold `T`.
    pub fn new(device: &Device, batch: usize, kv_heads: usize, capacity: usize, head_dim: usize) -> Result<Self> {
        let shape = [batch, kv_heads, capacity, head_dim];
        Ok(Self { k: Tensor::zeros(device, &shape)?, v: Tensor::zeros(device, &shape)?, len: 0 })
    }

    /// Adds the keys and values of the next positions, each `[batch, kv_heads, positions, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes do not fit or the capacity is exceeded, and on wgpu if `T` is a half type and
    /// `head_dim` is odd; [`Error::Place`] if a device differs; [`Error::Device`] if it has no room for a copy. The length
    /// is then as before.
    pub fn append(&mut self, k: &Tensor<T>, v: &Tensor<T>) -> Result<()> {
        let positions = self.checked(k, v)?;
        self.unshare()?;
        copy::copy_into_slice(k, &mut self.k, 2, self.len)?;
        copy::copy_into_slice(v, &mut self.v, 2, self.len)?;
        self.len += positions;
        Ok(())
    }

    /// [`KvCache::append`], with the keys turned on their way by the rows of the table from `start` on.
    ///
    /// # Errors
    /// As [`KvCache::append`] and [`rope::rope_into`]. The length is then as before.
    pub fn append_rope(
        &mut self,
        k: &Tensor<T>,
        v: &Tensor<T>,
        table: &Table,
        start: usize,
        pairing: Pairing,
    ) -> Result<()> {
        let positions = self.checked(k, v)?;
        self.unshare()?;
        let part = self.k.layout().narrow(2, self.len, positions).expect("the check found room");
        self.k.with_part(part, |part| rope::rope_into(k, table, start, pairing, part))?;
        copy::copy_into_slice(v, &mut self.v, 2, self.len)?;
        self.len += positions;
        Ok(())
    }

    fn unshare(&mut self) -> Result<()> {
        self.k.unshare(2, self.len)?;
        self.v.unshare(2, self.len)
    }

    /// How many positions `k` and `v` hold, after checking that they fit.
    fn checked(&self, k: &Tensor<T>, v: &Tensor<T>) -> Result<usize> {
        const OP: &str = "KvCache::append";
        let mut expected = self.k.shape().to_vec();
        let free = expected[2] - self.len;
        for (operand, tensor) in [("k", k), ("v", v)] {
            self.k.device().check_same(OP, operand, tensor.device())?;
            expected[2] = k.shape().get(2).copied().unwrap_or(0);
            if tensor.shape() != expected {
                return Err(Error::shape(OP, operand, tensor.shape(), format!("{expected:?}")));
            }
        }
        let positions = expected[2];
        if positions > free {
            let expected = format!("at most {free} positions: {} of {} are used", self.len, self.capacity());
            return Err(Error::shape(OP, "k", k.shape(), expected));
        }
        Ok(positions)
    }

    /// The keys so far, `[batch, kv_heads, len, head_dim]`, as a view of the buffer.
    #[must_use]
    pub fn k(&self) -> Tensor<T> {
        self.k.narrow(2, 0, self.len).expect("the length is at most the capacity")
    }

    /// The values so far, `[batch, kv_heads, len, head_dim]`, as a view of the buffer.
    #[must_use]
    pub fn v(&self) -> Tensor<T> {
        self.v.narrow(2, 0, self.len).expect("the length is at most the capacity")
    }

    /// How many positions it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many positions it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.k.shape()[2]
    }

    /// Forgets all but the first `len` positions; does nothing if there are no more than that.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}
