//! Which channels turn together, and how weights move between the two conventions.

use super::OP;
use crate::{Element, Error, Result, Tensor, Weight};

/// Which channels turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// Pair `j` is channels `2 j` and `2 j + 1`.
    Interleaved,
    /// Pair `j` is channels `j` and `j + pairs`.
    HalfSplit,
}

impl Pairing {
    /// The two channels of pair `j` of `pairs`.
    #[must_use]
    pub const fn channels(self, j: usize, pairs: usize) -> [usize; 2] {
        match self {
            Self::Interleaved => [2 * j, 2 * j + 1],
            Self::HalfSplit => [j, j + pairs],
        }
    }

    /// Where the channels of a head come from when this pairing is turned into `to`: channel `c` of the new order is
    /// channel `order[c]` of the old one. Channels from `2 * pairs` on stay.
    ///
    /// # Errors
    /// [`Error::Value`] if the pairs do not fit into `head_dim`.
    pub fn order(self, to: Self, pairs: usize, head_dim: usize) -> Result<Vec<usize>> {
        if pairs > head_dim / 2 {
            return Err(Error::value(OP, "pairs", pairs, format!("at most half the {head_dim} channels of a head")));
        }
        let mut order: Vec<usize> = (0..head_dim).collect();
        for j in 0..pairs {
            for (new, old) in to.channels(j, pairs).into_iter().zip(self.channels(j, pairs)) {
                order[new] = old;
            }
        }
        Ok(order)
    }
}

/// A projection to queries or keys, reordered so that `rope` with the pairing `to` turns what it gives as `from`
/// turned it before. Attention does not notice, if queries and keys are reordered alike.
///
/// | operand  | shape                          | element | layout     |
/// |----------|--------------------------------|---------|------------|
/// | `weight` | `[heads * head_dim, ..]`       | any     | any        |
/// | returned | as `weight`                    | as it   | contiguous |
///
/// Meant for loading: it goes through host memory.
///
/// # Errors
/// [`Error::Shape`] if the first axis is not a multiple of `head_dim`; [`Error::Value`] as [`Pairing::order`].
pub fn reorder_weight(weight: &Weight, from: Pairing, to: Pairing, pairs: usize, head_dim: usize) -> Result<Weight> {
    let order = from.order(to, pairs, head_dim)?;
    Ok(match weight {
        Weight::F32(tensor) => Weight::F32(reorder(tensor, &order)?),
        Weight::F16(tensor) => Weight::F16(reorder(tensor, &order)?),
        Weight::Bf16(tensor) => Weight::Bf16(reorder(tensor, &order)?),
        Weight::Int8 { values, scale } => {
            Weight::Int8 { values: reorder(values, &order)?, scale: reorder(scale, &order)? }
        }
    })
}

/// The bias that goes with such a projection, `[heads * head_dim]`; as [`reorder_weight`].
///
/// # Errors
/// As [`reorder_weight`].
pub fn reorder_bias(
    bias: &Tensor<f32>,
    from: Pairing,
    to: Pairing,
    pairs: usize,
    head_dim: usize,
) -> Result<Tensor<f32>> {
    reorder(bias, &from.order(to, pairs, head_dim)?)
}

/// The entries of the first axis within each head, in the order given.
fn reorder<T: Element>(x: &Tensor<T>, order: &[usize]) -> Result<Tensor<T>> {
    let channels = x.shape().first().copied().unwrap_or(0);
    if order.is_empty() || !channels.is_multiple_of(order.len()) {
        let expected = format!("a first axis of whole heads of {} channels", order.len());
        return Err(Error::shape(OP, "weight", x.shape(), expected));
    }
    let each = x.elements() / channels.max(1);
    let old = x.to_vec()?;
    let from = |channel: usize| channel / order.len() * order.len() + order[channel % order.len()];
    let new = (0..channels).flat_map(|channel| &old[from(channel) * each..][..each]).copied().collect();
    Tensor::from_vec(x.device(), x.shape(), new)
}
