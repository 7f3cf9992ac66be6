//! candle on the CPU, in f32: its products are those of the crate gemm, as faer's are. `RAYON_NUM_THREADS` are its threads.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use candle_nn::ops;
use smalti::Float;

use crate::{Operand, Rival};

/// What it is called in the report.
const NAME: &str = "candle 0.11";

/// Its name and version.
pub(crate) fn name() -> Option<String> {
    Some(NAME.to_owned())
}

/// Attention over `[batch, heads, length, head_dim]` by its fused kernel, which puts the tokens before the heads, and by
/// products and a softmax in full.
pub fn attention<T: Float>(operands: &[Operand<'_, T>; 3], scale: f32, causal: bool) -> Vec<Rival<'static>> {
    let Some([q, k, v]) = all(operands) else { return Vec::new() };
    let transposed = [&q, &k, &v].map(|x| x.transpose(1, 2).and_then(|x| x.contiguous()));
    let mut rivals = Vec::new();
    if let [Ok(q), Ok(k), Ok(v)] = transposed {
        let mask = move || if causal { AttnMask::causal() } else { AttnMask::None };
        rivals.extend(rival("candle, fused", move || flash_attn::<f32>(&q, &k, &v, scale, mask(), None, None)));
    }
    if !causal {
        rivals.extend(rival("candle, products", move || {
            let scores = (q.matmul(&k.transpose(2, 3)?)? * f64::from(scale))?;
            ops::softmax_last_dim(&scores)?.matmul(&v)
        }));
    }
    rivals
}

/// `x weight^T`; copies of the weight are used in turn.
pub fn linear<T: Float>(operands: &[Operand<'_, T>; 2], copies: usize) -> Vec<Rival<'static>> {
    let Some([x, weight]) = all(operands) else { return Vec::new() };
    let weights: Result<Vec<Tensor>> = (0..copies).map(|_| weight.copy()).collect();
    let Ok(weights) = weights else { return Vec::new() };
    let mut call = 0;
    let run = move || {
        call += 1;
        x.matmul(&weights[call % copies].t()?)
    };
    rival(NAME, run).into_iter().collect()
}

/// A norm or softmax of the last axis, by its name in the bench.
pub fn norm<T: Float>(op: &'static str, x: &Operand<'_, T>) -> Vec<Rival<'static>> {
    let Some([x]) = all(std::array::from_ref(x)) else { return Vec::new() };
    let Ok(weight) = Tensor::ones(x.dims()[x.dims().len() - 1], x.dtype(), &Device::Cpu) else { return Vec::new() };
    let run = move || match op {
        "rms_norm" => ops::rms_norm(&x, &weight, 1e-5),
        "layer_norm" => ops::layer_norm(&x, &weight, &weight, 1e-5),
        _ => ops::softmax_last_dim(&x),
    };
    rival(NAME, run).into_iter().collect()
}

/// None if they are not f32.
fn all<T: Float, const COUNT: usize>(operands: &[Operand<'_, T>; COUNT]) -> Option<[Tensor; COUNT]> {
    let tensors: Option<Vec<_>> = operands
        .iter()
        .map(|operand| Tensor::from_slice(T::as_f32(operand.values)?, operand.shape, &Device::Cpu).ok())
        .collect();
    tensors?.try_into().ok()
}

/// None if it cannot do the task.
fn rival(name: &'static str, mut run: impl FnMut() -> Result<Tensor> + 'static) -> Option<Rival<'static>> {
    run().ok()?;
    let run = Box::new(move |asked: bool| {
        let y = std::hint::black_box(run().expect("it did the task before"));
        let numbers = |y: Tensor| y.to_dtype(DType::F64)?.flatten_all()?.to_vec1();
        asked.then(|| numbers(y).expect("room for the results"))
    });
    Some(Rival { name, run })
}
