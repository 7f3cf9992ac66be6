//! Attention, its masks, and the cache of keys and values.

mod axial;
mod cache;
mod compiled;
#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
mod hopper;
mod mask;
mod merge;
mod paged;
pub mod reference;
#[cfg(feature = "cpu")]
mod tile;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use axial::{Along, axial};
pub use cache::KvCache;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub use compiled::Visible;
pub use compiled::{BLOCK, Compiled, Entry, Prepared, TILE, Tiles};
pub use mask::{Align, Bits, Lengths, Mask, ScalesKind};
pub use merge::merge;
pub use paged::{PageTable, PagedKvCache, paged};

use crate::device::Handle;
use crate::{Error, Float, Result, Tensor, copy, elementwise};

/// The largest `head_dim` that every backend takes.
pub const MAX_HEAD_DIM: usize = 256;

/// How [`attention`] scores and hides keys.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// What scores are multiplied by; commonly `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Which query sees which key.
    pub mask: Mask,
    /// Added to the scores after the scale and the softcap; its shape broadcasts to `[batch, heads, q_len, k_len]`.
    pub bias: Option<Tensor<f32>>,
    /// Scores become `c tanh(score / c)`.
    pub softcap: Option<f32>,
    /// What the values are multiplied by, `[batch, k_len]`; the scores stay as they are.
    pub value_weights: Option<Tensor<f32>>,
    /// Whether to return the logarithm of each row's sum.
    pub lse: bool,
}

impl Options {
    /// Every query sees every key.
    #[must_use]
    pub fn new(scale: f32) -> Self {
        Self { scale, mask: Mask::Full, bias: None, softcap: None, value_weights: None, lse: false }
    }

    /// With this mask.
    #[must_use]
    pub fn mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    /// With this bias.
    #[must_use]
    pub fn bias(mut self, bias: Tensor<f32>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// With scores capped smoothly at this value.
    #[must_use]
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self
    }

    /// With values times these weights.
    #[must_use]
    pub fn value_weights(mut self, weights: Tensor<f32>) -> Self {
        self.value_weights = Some(weights);
        self
    }

    /// Also returns the logarithm of each row's sum.
    #[must_use]
    pub fn lse(mut self) -> Self {
        self.lse = true;
        self
    }
}

/// What [`attention`] returns.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Attention<T: Float> {
    /// `[batch, heads, q_len, head_dim]`.
    pub y: Tensor<T>,
    /// `[batch, heads, q_len]`: the natural logarithm of the sum of exponentials of the scores; `-inf` for a row that
    /// sees nothing. Present if [`Options::lse`] asks for it.
    pub lse: Option<Tensor<f32>>,
}

/// What the implementations take apart from the tensors: options that have been checked, and the compiled mask.
#[derive(Debug, Clone, Copy)]
pub struct Scoring {
    /// What scores are multiplied by.
    pub scale: f32,
    /// Scores become `c tanh(score / c)`.
    pub softcap: Option<f32>,
}

impl Scoring {
    fn checked(op: &'static str, options: &Options) -> Result<Self> {
        if !options.scale.is_finite() {
            return Err(Error::value(op, "scale", options.scale, "a finite number"));
        }
        if let Some(cap) = options.softcap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            return Err(Error::value(op, "softcap", cap, "a finite number above 0"));
        }
        Ok(Self { scale: options.scale, softcap: options.softcap })
    }
}

/// Softmax-weighted sums of the values, each query over the keys it sees.
///
/// `y[b, h, i, ..] = sum_j p[j] w[b, j] v[b, g, j, ..]` with `p = softmax_j(s[j])` over the visible `j`,
/// `s[j] = cap(scale q[b, h, i, ..] . k[b, g, j, ..]) + bias[b, h, i, j]`, `cap(x) = c tanh(x / c)` if there is a
/// softcap, `g = h / (heads / kv_heads)`, rounded down, and `w = 1` without value weights.
///
/// | operand  | shape                               | element        | layout                                  |
/// |----------|-------------------------------------|----------------|-----------------------------------------|
/// | `q`      | `[batch, heads, q_len, head_dim]`   | f32, f16, bf16 | any; no copy if the last axis is dense  |
/// | `k`, `v` | `[batch, kv_heads, k_len, head_dim]`| as `q`         | likewise                                |
/// | `bias`   | to `[batch, heads, q_len, k_len]`   | f32            | any                                     |
/// | `w`      | `[batch, k_len]`                    | f32            | any; costs a copy of the values         |
/// | `y`      | as `q`                              | as `q`         | contiguous                              |
/// | `lse`    | `[batch, heads, q_len]`             | f32            | contiguous                              |
///
/// Scores, exponentials and sums are in f32; in bf16 a device may round the weights to bf16 before it multiplies them with
/// the values. A row that sees nothing, or only keys whose bias is `-inf`, gives zeros
/// and an lse of `-inf`. A NaN in `q`, or in a key or value that a row sees, makes that row NaN (a value only if its
/// weight is not 0) and no row that does not see it. On one device a row's result does not depend on the number of heads
/// or batch entries, nor on that of queries, but for half types on Hopper, where more than 64 queries go another way.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit, `heads` is not a multiple of `kv_heads`, `head_dim` is 0 or above
/// [`MAX_HEAD_DIM`], or the bias, the value
/// weights or the mask do not fit; [`Error::Value`] if the scale or the softcap is not finite, or
/// the softcap is not positive; [`Error::Place`] if a device differs.
///
/// # Source
/// Vaswani et al. 2017, arXiv:1706.03762, equation 1; the online softmax of Milakov and Gimelshein 2018,
/// arXiv:1805.02867; grouped queries of Ainslie et al. 2023, arXiv:2305.13245.
pub fn attention<T: Float>(q: &Tensor<T>, k: &Tensor<T>, v: &Tensor<T>, options: &Options) -> Result<Attention<T>> {
    const OP: &str = "attention";
    let device = q.device();
    let &[batch, heads, q_len, head_dim] = q.shape() else {
        return Err(Error::shape(OP, "q", q.shape(), "[batch, heads, q_len, head_dim]"));
    };
    let &[_, kv_heads, k_len, _] = k.shape() else {
        return Err(Error::shape(OP, "k", k.shape(), "[batch, kv_heads, k_len, head_dim]"));
    };
    device.check_same(OP, "k", k.device())?;
    device.check_same(OP, "v", v.device())?;
    if k.shape() != [batch, kv_heads, k_len, head_dim] {
        let expected = format!("[{batch}, kv_heads, k_len, {head_dim}], as q is {:?}", q.shape());
        return Err(Error::shape(OP, "k", k.shape(), expected));
    }
    if v.shape() != k.shape() {
        return Err(Error::shape(OP, "v", v.shape(), format!("{:?}, as k has", k.shape())));
    }
    if heads > 0 && (kv_heads == 0 || !heads.is_multiple_of(kv_heads)) {
        let expected = format!("a number of heads that divides the {heads} of q");
        return Err(Error::shape(OP, "k", k.shape(), expected));
    }
    if !(1..=MAX_HEAD_DIM).contains(&head_dim) {
        return Err(Error::shape(OP, "q", q.shape(), format!("a head_dim of 1 to {MAX_HEAD_DIM}")));
    }
    let scoring = Scoring::checked(OP, options)?;
    let lengths = Lengths { batch, q_len, k_len };
    options.mask.check(OP, device, lengths)?;
    let bias = match &options.bias {
        None => None,
        Some(bias) => {
            device.check_same(OP, "bias", bias.device())?;
            let full = [batch, heads, q_len, k_len];
            let expected = || Error::shape(OP, "bias", bias.shape(), format!("a shape that broadcasts to {full:?}"));
            Some(bias.broadcast(&full).map_err(|_| expected())?)
        }
    };
    let weighted = match &options.value_weights {
        None => None,
        Some(weights) => {
            device.check_same(OP, "value_weights", weights.device())?;
            if weights.shape() != [batch, k_len] {
                let expected = format!("[{batch}, {k_len}]: a weight for each value");
                return Err(Error::shape(OP, "value_weights", weights.shape(), expected));
            }
            let weights = copy::convert::<f32, T>(weights)?.reshape(&[batch, 1, k_len, 1])?;
            Some(elementwise::mul(v, &weights)?)
        }
    };
    let (q, k, v) = (dense_rows(q)?, dense_rows(k)?, dense_rows(weighted.as_ref().unwrap_or(v))?);
    let mut y = Tensor::empty(device, q.shape())?;
    let mut lse = Tensor::empty(device, &[batch, heads, q_len])?;
    match device.handle() {
        Handle::Reference => {
            let bias = bias.as_ref().map(Tensor::host);
            let sees = |batch, i, j| options.mask.sees(lengths, batch, i, j);
            reference::attention(q.host(), k.host(), v.host(), scoring, bias, sees, y.host_mut(), lse.host_mut());
        }
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => {
            let plan = options.mask.plan(OP, lengths)?;
            let (mask, bias) = (plan.compiled(), bias.as_ref().map(Tensor::host));
            cpu::attention(cpu, q.host(), k.host(), v.host(), scoring, bias, mask, y.host_mut(), lse.host_mut());
        }
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let plan = options.mask.plan(OP, lengths)?;
            let (mask, words) = (plan.compiled(), plan.words(device)?);
            let visible = mask.visible(words.as_ref().map(Tensor::cuda_operand));
            let bias = bias.as_ref().map(Tensor::cuda_operand);
            let given = mask.given.as_ref().map(Tensor::cuda_operand);
            let lse = options.lse.then_some(&lse);
            on_cuda(cuda, [&q, &k, &v], k_len, None, scoring, bias, visible, given, &y, lse)?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(_) => {
            let plan = options.mask.plan(OP, lengths)?;
            let (mask, words) = (plan.compiled(), plan.words(device)?);
            let visible = mask.visible(words.as_ref().map(Tensor::operand));
            let beside = bias.as_ref().map_or(wgpu::Beside::Nothing, |bias| wgpu::Beside::Bias(bias.operand()));
            y = on_wgpu(&q, &k, &v, k_len, scoring, beside, visible, mask.given.as_ref(), &lse)?;
        }
    }
    Ok(Attention { y, lse: options.lse.then_some(lse) })
}

/// Allocates what [`cuda::attention`] needs beside its operands and calls it.
#[cfg(feature = "cuda")]
fn on_cuda<T: Float>(
    cuda: &crate::backend::cuda::Cuda,
    [q, k, v]: [&Tensor<T>; 3],
    k_len: usize,
    pages: Option<crate::backend::cuda::Operand<'_>>,
    scoring: Scoring,
    bias: Option<crate::backend::cuda::Operand<'_>>,
    visible: Visible<crate::backend::cuda::Operand<'_>>,
    given: Option<crate::backend::cuda::Operand<'_>>,
    y: &Tensor<T>,
    lse: Option<&Tensor<f32>>,
) -> Result<()> {
    let &[batch, heads, q_len, head_dim] = q.shape() else { unreachable!("the op checked it") };
    let parts = match cuda::segments([batch, heads, q_len, k_len], cuda.multiprocessors() as usize) {
        1 => None,
        segments => Some(Tensor::<f32>::empty(q.device(), &[batch, heads, q_len, segments, head_dim + 2])?),
    };
    let device = q.device();
    let [q, k, v, y] = [q, k, v, y].map(Tensor::cuda_operand);
    let notes = match (visible, bias, given) {
        (Visible::Same([0, _]), ..) | (_, Some(_), _) | (_, _, Some(_)) => None,
        _ if pages.is_some() => None,
        _ => cuda::notes(&cuda.stream(), [q, k, v, y], scoring),
    };
    let notes = notes.map(|words| Tensor::<u32>::zeros(device, &[words])).transpose()?;
    let notes = notes.as_ref().map(Tensor::cuda_operand);
    let (lse, parts) = (lse.map(Tensor::cuda_operand), parts.as_ref().map(Tensor::cuda_operand));
    cuda::attention(&cuda.stream(), q, k, v, pages, scoring, bias, visible, given, y, lse, parts, notes)
}

/// Allocates what [`wgpu::attention`] writes and calls it; returns `y`.
#[cfg(feature = "wgpu")]
fn on_wgpu<T: Float>(
    q: &Tensor<T>,
    k: &Tensor<T>,
    v: &Tensor<T>,
    k_len: usize,
    scoring: Scoring,
    beside: wgpu::Beside<'_>,
    visible: Visible<crate::backend::wgpu::Operand<'_>>,
    given: Option<&Tensor<u8>>,
    lse: &Tensor<f32>,
) -> Result<Tensor<T>> {
    let device = q.device();
    let &[batch, heads, q_len, head_dim] = q.shape() else { unreachable!("the op checked it") };
    let Handle::Wgpu(gpu) = device.handle() else { unreachable!("the op looked at the device") };
    // Two rows of a half type must not share a word.
    let padded = head_dim + usize::from(T::DTYPE.bytes() == 2) * (head_dim % 2);
    let y = Tensor::<T>::empty(device, &[batch, heads, q_len, padded])?.narrow(3, 0, head_dim)?;
    let parts = match wgpu::segments(batch, heads, q_len, k_len) {
        1 => None,
        segments => Some(Tensor::<f32>::empty(device, &[batch, heads, q_len, segments, head_dim + 2])?),
    };
    gpu.record(|recorder| {
        let (given, parts) = (given.map(Tensor::operand), parts.as_ref().map(Tensor::operand));
        let (q, k, v) = (q.operand(), k.operand(), v.operand());
        wgpu::attention(recorder, q, k, v, scoring, beside, visible, given, parts, y.operand(), lse.operand())
    })?;
    y.contiguous()
}

/// Divides each row by its L2 norm, or by `1e-12` if that is larger.
///
/// `y[.., c] = x[.., c] / max(sqrt(sum_c x[.., c]²), 1e-12)`
///
/// | operand  | shape            | element        | layout     |
/// |----------|------------------|----------------|------------|
/// | `x`      | `[.., head_dim]` | f32, f16, bf16 | any        |
/// | returned | as `x`           | as `x`         | contiguous |
///
/// Sums are in f32. A row of zeros gives zeros; a NaN makes its own row NaN and no other.
///
/// # Errors
/// [`Error::Shape`] if `x` has no axis.
///
/// # Source
/// Henry et al. 2020, arXiv:2010.04245 (query-key normalisation); `1e-12` as in PyTorch's `normalize`.
pub fn l2_normalise<T: Float>(x: &Tensor<T>) -> Result<Tensor<T>> {
    const OP: &str = "l2_normalise";
    if x.shape().is_empty() {
        return Err(Error::shape(OP, "x", x.shape(), "at least one axis: the last one holds the channels"));
    }
    let x = x.contiguous()?;
    let mut y = Tensor::empty(x.device(), x.shape())?;
    match x.device().handle() {
        Handle::Reference => reference::l2_normalise(x.host(), y.host_mut()),
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => cpu::l2_normalise(cpu, x.host(), y.host_mut()),
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => cuda::l2_normalise(&cuda.stream(), x.cuda_operand(), y.cuda_operand())?,
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => gpu.record(|recorder| wgpu::l2_normalise(recorder, x.operand(), y.operand()))?,
    }
    Ok(y)
}

/// Itself if the elements of its last axis are neighbours, else a contiguous copy.
pub(crate) fn dense_rows<T: Float>(x: &Tensor<T>) -> Result<Tensor<T>> {
    match (x.shape().last(), x.layout().strides().last()) {
        (Some(0 | 1), _) | (_, Some(1)) => Ok(x.clone()),
        _ => x.contiguous(),
    }
}
