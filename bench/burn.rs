//! burn on wgpu, in f32: cubecl's kernels as WGSL, with fusion and autotuning, which picks a kernel per shape at the first
//! call and keeps it for this process.

use std::sync::LazyLock;

use burn_tensor::activation::softmax;
use burn_tensor::kind::Basic;
use burn_tensor::module;
use burn_tensor::ops::AttentionModuleOptions;
use burn_tensor::{Device, Tensor, TensorData};
use smalti::Float;

use crate::{Operand, Rival};

/// What it is called in the report.
const NAME: &str = "burn 0.22";
/// Calls after which it has picked its kernels and found what to fuse.
const SETTLING: usize = 5;
/// Products of queries and codes that are made at once.
const PRODUCTS: usize = 1 << 24;

/// Its device and the name of the adapter below, as [`smalti::Device::list`] has it, or why there is none.
static OPENED: LazyLock<Result<(Device, String), String>> = LazyLock::new(|| {
    let (device, setup) = Device::wgpu_options().init_with_setup().map_err(|error| error.to_string())?;
    let info = setup.adapter.get_info();
    Ok((device, format!("{} ({:?}, {})", info.name, info.backend, info.driver_info)))
});

/// Its name and version, or that it is absent and why.
pub(crate) fn name() -> Option<String> {
    Some(OPENED.as_ref().map_or_else(|error| format!("burn is absent: {error}"), |_| NAME.to_owned()))
}

/// The adapter that it takes.
pub(crate) fn adapter() -> Option<&'static str> {
    OPENED.as_ref().ok().map(|(_, adapter)| adapter.as_str())
}

/// Attention over `[batch, heads, length, head_dim]`.
pub fn attention<T: Float>(operands: &[Operand<'_, T>; 3], scale: f32, causal: bool) -> Vec<Rival<'static>> {
    let Some([q, k, v]) = all::<T, 3, 4>(operands) else { return Vec::new() };
    let options = AttentionModuleOptions { scale: Some(scale.into()), softcap: None, is_causal: causal };
    rival(move || module::attention(q.clone(), k.clone(), v.clone(), None, None, options))
}

/// `x weight^T`; copies of the weight are used in turn. They lie as burn's own layers store them, `[inputs, outputs]`.
pub fn linear<T: Float>(operands: &[Operand<'_, T>; 2], copies: usize) -> Vec<Rival<'static>> {
    let Some([x, weight]) = all::<T, 2, 2>(operands) else { return Vec::new() };
    let weight = weight.transpose().into_data();
    let weights: Vec<_> = (0..copies).map(|_| Tensor::<2>::from_data(weight.clone(), &x.device())).collect();
    let mut call = 0;
    rival(move || {
        call += 1;
        module::linear(x.clone(), weights[call % copies].clone(), None)
    })
}

/// A norm or softmax of the last axis, by its name in the bench; RMS norm as in burn's own layer.
pub fn norm<T: Float>(op: &'static str, x: &Operand<'_, T>) -> Vec<Rival<'static>> {
    let Some([x]) = all::<T, 1, 2>(std::array::from_ref(x)) else { return Vec::new() };
    let weight = Tensor::<1>::ones([x.dims()[1]], &x.device());
    rival(move || {
        let (x, weight) = (x.clone(), weight.clone());
        match op {
            "rms_norm" => x.clone() / (x.square().mean_dim(1) + 1e-5).sqrt() * weight.unsqueeze(),
            "layer_norm" => module::layer_norm(x, weight.clone(), Some(weight), 1e-5),
            _ => softmax(x, 1),
        }
    })
}

/// The nearest code of each query by products and `argmin`, of so many queries at once that their products fit a buffer;
/// the codes' squares are known.
pub fn nearest<T: Float>(operands: &[Operand<'_, T>; 2]) -> Vec<Rival<'static>> {
    let Some([x, codebook]) = all::<T, 2, 2>(operands) else { return Vec::new() };
    let squares = codebook.clone().square().sum_dim(1).transpose();
    let pieces = (x.dims()[0] * codebook.dims()[0]).div_ceil(PRODUCTS);
    rival(move || {
        let nearest = |x: Tensor<2>| (squares.clone() - x.matmul(codebook.clone().transpose()) * 2.0).argmin(1);
        Tensor::cat(x.clone().chunk(pieces, 0).into_iter().map(nearest).collect(), 0)
    })
}

/// The largest of each row.
pub fn argmax<T: Float>(logits: &Operand<'_, T>) -> Vec<Rival<'static>> {
    let Some([logits]) = all::<T, 1, 2>(std::array::from_ref(logits)) else { return Vec::new() };
    rival(move || logits.clone().argmax(1))
}

/// None if they are not f32.
fn all<T: Float, const COUNT: usize, const AXES: usize>(
    operands: &[Operand<'_, T>; COUNT],
) -> Option<[Tensor<AXES>; COUNT]> {
    let (device, _) = OPENED.as_ref().ok()?;
    let tensors: Option<Vec<_>> = operands
        .iter()
        .map(|operand| {
            let data = TensorData::new(T::as_f32(operand.values)?.to_vec(), operand.shape);
            Some(Tensor::from_data(data, device))
        })
        .collect();
    tensors?.try_into().ok()
}

/// Calls it until it has settled.
fn rival<const AXES: usize, K: Basic>(mut run: impl FnMut() -> Tensor<AXES, K> + 'static) -> Vec<Rival<'static>> {
    let run = Box::new(move |asked: bool| {
        let mut call = || {
            let y = run();
            // Results are kept until they are there, lest nobody needs them.
            y.device().sync().expect("a device that works");
            y
        };
        if !asked {
            std::hint::black_box(call());
            return None;
        }
        (1..SETTLING).for_each(|_| drop(call()));
        Some(call().into_data().iter::<f64>().collect())
    });
    vec![Rival { name: NAME, run }]
}
