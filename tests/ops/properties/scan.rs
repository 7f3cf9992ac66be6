//! Recurrences.

use proptest::prelude::*;
use smalti::scan::{self, LinearOptions, SsdParameters};
use smalti::{Device, Float, Tensor, bf16, elementwise, f16};

use super::{Place, config, placed, places};
use crate::common::{assert_close, devices, moved, tensor, uniform, widened};

/// Numbers in (0, 1) as decays and steps of time are.
fn shares(device: &Device, count: usize, seed: u64) -> Tensor<f32> {
    tensor(device, &[count], &uniform(seed, count).iter().map(|x| 0.51 + 0.48 * x).collect::<Vec<_>>())
}

fn linear_attention_agrees<T: Float>(shape: [usize; 5], causal: bool, decays: bool, place: Place) {
    let [batch, heads, seq, key_dim, value_dim] = shape;
    for device in devices() {
        let [q, k] = [1, 2].map(|seed| placed::<T>(device, &[batch, heads, seq, key_dim], place, seed));
        let v = placed::<T>(device, &[batch, heads, seq, value_dim], place, 3);
        let decay = decays.then(|| shares(device, heads, 4));
        let home = Device::reference();
        let at_home =
            LinearOptions { causal, decay: decay.as_ref().map(|decay| moved(decay, &home)), ..<_>::default() };
        let options = LinearOptions { causal, decay, ..<_>::default() };
        let got = scan::linear_attention(&q, &k, &v, &options).unwrap();
        let expected = scan::linear_attention(&widened(&q), &widened(&k), &widened(&v), &at_home).unwrap();
        let what = format!("linear_attention {} {device} {shape:?} {causal} {decays} {place:?}", T::DTYPE);
        assert_close(&what, &got.y, &expected.y, 0.0);
        assert_close(&format!("{what}, state"), &got.state, &widened(&expected.state), 0.0);
    }
}

fn ssd_scan_agrees<T: Float>(shape: [usize; 6], starts: bool, place: Place) {
    let [batch, seq, groups, each, head_dim, states] = shape;
    let heads = groups * each;
    for device in devices() {
        let x = placed::<T>(device, &[batch, seq, heads, head_dim], place, 5);
        let [b, c] = [6, 7].map(|seed| placed::<T>(device, &[batch, seq, groups, states], place, seed));
        let dt = shares(device, batch * seq * heads, 8).to_vec().unwrap();
        let dt: Vec<f64> = dt.into_iter().map(f64::from).collect();
        let dt = tensor::<T>(device, &[batch, seq, heads], &dt);
        let a = elementwise::scale_add(&shares(device, heads, 9), -1.0, &shares(device, heads, 9), 0.0).unwrap();
        let parameters = SsdParameters { a, d: starts.then(|| placed(device, &[heads], place, 10)) };
        let state = starts.then(|| placed::<f32>(device, &[batch, heads, head_dim, states], place, 11));
        let got = scan::ssd_scan(&x, &dt, &b, &c, &parameters, state.as_ref()).unwrap();
        let home = |tensor: &Tensor<f32>| moved(tensor, &Device::reference());
        let parameters = SsdParameters { a: home(&parameters.a), d: parameters.d.as_ref().map(home) };
        let [x, dt, b, c] = [&x, &dt, &b, &c].map(widened);
        let expected = scan::ssd_scan(&x, &dt, &b, &c, &parameters, state.as_ref().map(home).as_ref()).unwrap();
        let what = format!("ssd_scan {} {device} {shape:?} {starts} {place:?}", T::DTYPE);
        assert_close(&what, &got.y, &expected.y, 0.0);
        assert_close(&format!("{what}, state"), &got.state, &widened(&expected.state), 0.0);
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn linear_attention_agrees_anywhere(
        shape in [1usize..3, 1usize..4, 0usize..40, 1usize..20, 1usize..40],
        causal in any::<bool>(),
        decays in any::<bool>(),
        place in places(),
    ) {
        linear_attention_agrees::<f32>(shape, causal, decays, place);
        linear_attention_agrees::<f16>(shape, causal, decays, place);
        linear_attention_agrees::<bf16>(shape, causal, decays, place);
    }

    #[test]
    fn ssd_scan_agrees_anywhere(
        shape in [1usize..3, 0usize..40, 1usize..3, 1usize..3, 1usize..20, 1usize..20],
        starts in any::<bool>(),
        place in places(),
    ) {
        ssd_scan_agrees::<f32>(shape, starts, place);
        ssd_scan_agrees::<f16>(shape, starts, place);
        ssd_scan_agrees::<bf16>(shape, starts, place);
    }
}
