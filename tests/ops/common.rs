//! What every family's tests share: the devices, data, and the one bound.

use std::sync::OnceLock;

use smalti::{Device, Float, Tensor};

/// The devices under test. `SMALTI_REQUIRE` names backends, as `cpu,wgpu`, whose absence is a failure; without it an
/// absent backend is named and left out. Software adapters count: they run the same kernels. `SMALTI_ONLY` names the one
/// backend of a run that is about it alone.
pub fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let required = std::env::var("SMALTI_REQUIRE").unwrap_or_default();
        let only = std::env::var("SMALTI_ONLY").ok();
        let mut devices = Vec::new();
        for name in ["cpu", "wgpu", "cuda"] {
            if only.as_ref().is_some_and(|only| only != name) {
                continue;
            }
            match Device::open(name) {
                Ok(device) => devices.push(device),
                Err(reason) => {
                    assert!(
                        !required.split(',').any(|required| required == name),
                        "SMALTI_REQUIRE names {name}: {reason}"
                    );
                    println!("SKIPPED on {name}: {reason}");
                }
            }
        }
        devices
    })
}

/// Numbers in [-1, 1) that depend only on the seed.
pub fn uniform(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

/// A tensor of `T` with these values, each rounded to `T`.
pub fn tensor<T: Float>(device: &Device, shape: &[usize], values: &[f64]) -> Tensor<T> {
    let values = values.iter().map(|value| T::from_f64(*value)).collect();
    Tensor::from_vec(device, shape, values).expect("a test's own tensor")
}

/// The same elements on the reference device, in f64.
pub fn widened<T: Float>(tensor: &Tensor<T>) -> Tensor<f64> {
    let values = tensor.to_vec().expect("a test's own tensor").iter().map(|value| value.to_f64()).collect();
    Tensor::from_vec(&Device::reference(), tensor.shape(), values).expect("f64 on the reference")
}

/// The same elements on another device.
pub fn moved<T: smalti::Element>(tensor: &Tensor<T>, device: &Device) -> Tensor<T> {
    Tensor::from_vec(device, tensor.shape(), tensor.to_vec().expect("a test's own tensor")).expect("room")
}

/// The bound of the design: the largest error is at most the floor of `T` (f32: 1e-5, half types: one unit in the
/// last place, both at the size of the largest value) plus twice the naive error. `expected` is the f64 reference.
pub fn assert_close<T: Float>(what: &str, got: &Tensor<T>, expected: &Tensor<f64>, naive_error: f64) {
    assert_eq!(got.shape(), expected.shape(), "{what}: shape");
    let got = got.to_vec().expect(what);
    let expected = expected.to_vec().expect(what);
    let largest = expected.iter().filter(|y| y.is_finite()).fold(0.0f64, |most, y| most.max(y.abs()));
    let floor = if T::EPSILON < 1e-6 { 1e-5 } else { T::EPSILON };
    let allowed = floor * largest + 2.0 * naive_error;
    for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let got = got.to_f64();
        let same = got == *expected || (got.is_nan() && expected.is_nan());
        let error = (got - expected).abs();
        assert!(
            same || error <= allowed,
            "{what}: element {index} is {got}, expected {expected}; error {error:.1e}, allowed {allowed:.1e}"
        );
    }
}
