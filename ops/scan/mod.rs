//! Recurrences over the positions of a sequence: linear attention and Mamba-2's state space.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::copy;
use crate::device::Handle;
use crate::{Error, Float, Result, Tensor};

/// What a recurrence gives.
#[derive(Debug, Clone)]
pub struct Scanned<T: Float> {
    /// An output per position.
    pub y: Tensor<T>,
    /// What it hands on to the positions that follow.
    pub state: Tensor<f32>,
}

/// How [`linear_attention`] attends.
#[derive(Debug, Clone, Default)]
pub struct LinearOptions {
    /// A position sees itself and those before it; otherwise all.
    pub causal: bool,
    /// Queries and keys go through `elu(x) + 1`, and an output is divided by the sum of its weights.
    pub normalise: bool,
    /// `[heads]`: how much of the state a position keeps; 1 if absent.
    pub decay: Option<Tensor<f32>>,
}

/// Attention without a softmax.
///
/// Causal: `s[t] = decay s[t - 1] + f(k[t]) v[t]^T`, `y[t] = f(q[t]) s[t]`. Otherwise every `y[t]` is of the last `s`.
/// With `normalise` `f(x) = elu(x) + 1`, and `y[t]` is divided by `f(q[t]) z[t]`, `z` the same recurrence over `f(k[t])`
/// alone; without, `f(x) = x`.
///
/// | operand    | shape                              | element        | layout     |
/// |------------|------------------------------------|----------------|------------|
/// | `q`, `k`   | `[batch, heads, seq, key_dim]`     | f32, f16, bf16 | any        |
/// | `v`        | `[batch, heads, seq, value_dim]`   | as `q`         | any        |
/// | `y`        | as `v`                             | as `q`         | contiguous |
/// | `state`    | `[batch, heads, key_dim, value_dim]` | f32          | contiguous |
///
/// Sums are in f32, in the order of the positions.
///
/// # Errors
/// [`Error::Shape`] if the operands do not fit each other; [`Error::Place`] if they are on different devices.
///
/// # Source
/// Katharopoulos et al. 2020, arXiv:2006.16236, equations 16 to 20; decay: Sun et al. 2023, arXiv:2307.08621 (RetNet).
pub fn linear_attention<T: Float>(
    q: &Tensor<T>,
    k: &Tensor<T>,
    v: &Tensor<T>,
    options: &LinearOptions,
) -> Result<Scanned<T>> {
    const OP: &str = "linear_attention";
    let &[batch, heads, seq, key_dim] = q.shape() else {
        return Err(Error::shape(OP, "q", q.shape(), "[batch, heads, seq, key_dim]"));
    };
    let value_dim = v.shape().last().copied().unwrap_or(0);
    let device = q.device();
    for (operand, other, expected) in [("k", k, [batch, heads, seq, key_dim]), ("v", v, [batch, heads, seq, value_dim])]
    {
        device.check_same(OP, operand, other.device())?;
        if other.shape() != expected {
            return Err(Error::shape(OP, operand, other.shape(), format!("{expected:?}, as q says")));
        }
    }
    if let Some(decay) = &options.decay {
        device.check_same(OP, "decay", decay.device())?;
        if decay.shape() != [heads] {
            return Err(Error::shape(OP, "decay", decay.shape(), format!("[{heads}]: one per head of q")));
        }
    }
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let decay = options.decay.as_ref().map(Tensor::contiguous).transpose()?;
    let plan = Linear { heads, seq, key_dim, value_dim, causal: options.causal, normalise: options.normalise };
    let state_shape = [batch, heads, key_dim, value_dim];
    match device.handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(gpu) => {
            let stream = gpu.stream();
            let inputs = [q.cuda_operand(), k.cuda_operand()];
            let decay = decay.as_ref().map(Tensor::cuda_operand);
            let y = Tensor::<f32>::empty(device, v.shape())?;
            let state = Tensor::<f32>::zeros(device, &state_shape)?;
            let mut sums = None;
            if options.normalise {
                let made = Tensor::<f32>::empty(device, &[batch, heads, seq])?;
                let state = Tensor::<f32>::zeros(device, &[batch, heads, key_dim])?;
                let ones = Linear { value_dim: 1, ..plan };
                let (state, into) = (state.cuda_operand(), made.cuda_operand());
                cuda::linear_attention(&stream, inputs, None, decay, None, ones, state, into)?;
                sums = Some(made);
            }
            let sums = sums.as_ref().map(Tensor::cuda_operand);
            let v = Some(v.cuda_operand());
            cuda::linear_attention(&stream, inputs, v, decay, sums, plan, state.cuda_operand(), y.cuda_operand())?;
            Ok(Scanned { y: copy::convert(&y)?, state })
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let inputs = [q.operand(), k.operand(), v.operand()];
            let decay = decay.as_ref().map(Tensor::operand);
            let y = Tensor::<f32>::empty(device, v.shape())?;
            let state = Tensor::<f32>::zeros(device, &state_shape)?;
            let mut denominators = None;
            if options.normalise {
                let sums = Tensor::<f32>::empty(device, &[batch, heads, seq])?;
                let state = Tensor::<f32>::zeros(device, &[batch, heads, key_dim])?;
                gpu.record(|recorder| {
                    let ones = Linear { value_dim: 1, ..plan };
                    wgpu::linear_attention(recorder, inputs, decay, None, ones, state.operand(), sums.operand())
                })?;
                denominators = Some(sums);
            }
            gpu.record(|recorder| {
                let denominators = denominators.as_ref().map(Tensor::operand);
                let denominators = Some(denominators);
                wgpu::linear_attention(recorder, inputs, decay, denominators, plan, state.operand(), y.operand())
            })?;
            Ok(Scanned { y: copy::convert(&y)?, state })
        }
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => {
            let (y, state) =
                cpu::linear_attention(cpu, [q.host(), k.host(), v.host()], decay.as_ref().map(Tensor::host), plan);
            let state = Tensor::from_vec(device, &state_shape, state)?;
            Ok(Scanned { y: Tensor::from_vec(device, v.shape(), y)?, state })
        }
        Handle::Reference => {
            let (y, state) =
                reference::linear_attention([q.host(), k.host(), v.host()], decay.as_ref().map(Tensor::host), plan);
            let state = Tensor::from_vec(device, &state_shape, state)?;
            Ok(Scanned { y: Tensor::from_vec(device, v.shape(), y)?, state })
        }
    }
}

/// The shape of a [`linear_attention`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// Per batch entry.
    pub heads: usize,
    /// Positions.
    pub seq: usize,
    /// Of queries and keys.
    pub key_dim: usize,
    /// Of values.
    pub value_dim: usize,
    /// As the option.
    pub causal: bool,
    /// As the option.
    pub normalise: bool,
}

/// The operands of [`ssd_scan`] that are the same for all positions.
#[derive(Debug, Clone)]
pub struct SsdParameters {
    /// `[heads]`, negative: how fast a head forgets.
    pub a: Tensor<f32>,
    /// `[heads]`: how much of `x` goes straight through.
    pub d: Option<Tensor<f32>>,
}

/// The state space recurrence of Mamba-2.
///
/// `h[t] = exp(dt[t] A) h[t - 1] + dt[t] x[t] B[t]^T`, `y[t] = h[t] C[t] + D x[t]`
///
/// | operand            | shape                              | element        | layout     |
/// |--------------------|------------------------------------|----------------|------------|
/// | `x`                | `[batch, seq, heads, head_dim]`    | f32, f16, bf16 | any        |
/// | `dt`               | `[batch, seq, heads]`              | as `x`         | any        |
/// | `b`, `c`           | `[batch, seq, groups, states]`     | as `x`         | any        |
/// | `state`, returned too | `[batch, heads, head_dim, states]` | f32         | any; absent: 0 |
/// | `y`                | as `x`                             | as `x`         | contiguous |
///
/// `dt` is positive: its softplus is done. Head `h` has group `h / (heads / groups)`. Sums are in f32, one position after
/// another; any cut of the sequence that hands the state on gives the same.
///
/// # Errors
/// [`Error::Shape`] if the operands do not fit each other; [`Error::Place`] if they are on different devices.
///
/// # Source
/// Dao and Gu 2024, arXiv:2405.21060, equation 2 and section 7.
pub fn ssd_scan<T: Float>(
    x: &Tensor<T>,
    dt: &Tensor<T>,
    b: &Tensor<T>,
    c: &Tensor<T>,
    parameters: &SsdParameters,
    state: Option<&Tensor<f32>>,
) -> Result<Scanned<T>> {
    const OP: &str = "ssd_scan";
    let &[batch, seq, heads, head_dim] = x.shape() else {
        return Err(Error::shape(OP, "x", x.shape(), "[batch, seq, heads, head_dim]"));
    };
    let &[_, _, groups, states] = b.shape() else {
        return Err(Error::shape(OP, "b", b.shape(), "[batch, seq, groups, states]"));
    };
    if groups == 0 || heads % groups != 0 {
        return Err(Error::shape(OP, "b", b.shape(), format!("groups that divide the {heads} heads of x")));
    }
    let device = x.device();
    let shared = [batch, seq, groups, states];
    for (operand, other, expected) in [("dt", dt, &[batch, seq, heads][..]), ("b", b, &shared), ("c", c, &shared)] {
        device.check_same(OP, operand, other.device())?;
        if other.shape() != expected {
            return Err(Error::shape(OP, operand, other.shape(), format!("{expected:?}, as x and b say")));
        }
    }
    let state_shape = [batch, heads, head_dim, states];
    let vectors = [("a", Some(&parameters.a), &[heads][..]), ("d", parameters.d.as_ref(), &[heads])];
    for (operand, other, expected) in vectors.into_iter().chain([("state", state, &state_shape[..])]) {
        if let Some(other) = other {
            device.check_same(OP, operand, other.device())?;
            if other.shape() != expected {
                return Err(Error::shape(OP, operand, other.shape(), format!("{expected:?}, as x says")));
            }
        }
    }
    let plan = Ssd { batch, seq, heads, head_dim, groups, states };
    let [x, dt, b, c] = [x.contiguous()?, dt.contiguous()?, b.contiguous()?, c.contiguous()?];
    let (a, d) = (parameters.a.contiguous()?, parameters.d.as_ref().map(Tensor::contiguous).transpose()?);
    let state = state.map(Tensor::contiguous).transpose()?;
    match device.handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(gpu) => {
            let y = Tensor::<f32>::empty(device, x.shape())?;
            let mut after = Tensor::<f32>::zeros(device, &state_shape)?;
            if let Some(state) = &state {
                copy::copy_into(state, &mut after)?;
            }
            let inputs = [x.cuda_operand(), dt.cuda_operand(), b.cuda_operand(), c.cuda_operand()];
            let (a, d) = (a.cuda_operand(), d.as_ref().map(Tensor::cuda_operand));
            cuda::ssd(&gpu.stream(), inputs, a, d, plan, after.cuda_operand(), y.cuda_operand())?;
            Ok(Scanned { y: copy::convert(&y)?, state: after })
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let y = Tensor::<f32>::empty(device, x.shape())?;
            let mut after = Tensor::<f32>::zeros(device, &state_shape)?;
            if let Some(state) = &state {
                copy::copy_into(state, &mut after)?;
            }
            // One binding for both vectors: WebGPU has eight.
            let a_and_d = Tensor::<f32>::zeros(device, &[2, heads])?;
            for (row, vector) in [(0, Some(&a)), (1, d.as_ref())] {
                if let Some(vector) = vector {
                    copy::copy_into(&vector.reshape(&[1, heads])?, &mut a_and_d.narrow(0, row, 1)?)?;
                }
            }
            gpu.record(|recorder| {
                let inputs = [x.operand(), dt.operand(), b.operand(), c.operand()];
                wgpu::ssd(recorder, inputs, a_and_d.operand(), plan, after.operand(), y.operand())
            })?;
            Ok(Scanned { y: copy::convert(&y)?, state: after })
        }
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => {
            let vectors = (a.host(), d.as_ref().map(Tensor::host), state.as_ref().map(Tensor::host));
            let (y, state) = cpu::ssd_scan(cpu, [x.host(), dt.host(), b.host(), c.host()], vectors, plan);
            let state = Tensor::from_vec(device, &state_shape, state)?;
            Ok(Scanned { y: Tensor::from_vec(device, x.shape(), y)?, state })
        }
        Handle::Reference => {
            let vectors = (a.host(), d.as_ref().map(Tensor::host), state.as_ref().map(Tensor::host));
            let (y, state) = reference::ssd_scan([x.host(), dt.host(), b.host(), c.host()], vectors, plan);
            let state = Tensor::from_vec(device, &state_shape, state)?;
            Ok(Scanned { y: Tensor::from_vec(device, x.shape(), y)?, state })
        }
    }
}

/// The shape of an [`ssd_scan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ssd {
    /// Sequences.
    pub batch: usize,
    /// Positions.
    pub seq: usize,
    /// Of `x`.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Of `b` and `c`.
    pub groups: usize,
    /// Numbers of the state per channel.
    pub states: usize,
}
