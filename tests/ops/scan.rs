//! Recurrences over positions.

use smalti::scan::{self, LinearOptions, SsdParameters};
use smalti::{Device, Float, Tensor, bf16, f16};

use crate::common::{assert_close, devices, moved, tensor, uniform, widened};

/// Half types: sums are in f32, the result is rounded once. In f32 they grow with the positions.
fn linear_attention_agrees<T: Float>() {
    for device in devices() {
        // One of everything; odd sizes; more columns than a workgroup; nothing.
        for [batch, heads, seq, key_dim, value_dim] in
            [[1, 1, 1, 1, 1], [2, 3, 17, 5, 7], [1, 2, 33, 16, 130], [1, 1, 0, 4, 4], [2, 1, 3, 8, 64]]
        {
            let q_shape = [batch, heads, seq, key_dim];
            let count = batch * heads * seq;
            let q = tensor::<T>(device, &q_shape, &uniform(110, count * key_dim));
            let k = tensor::<T>(device, &q_shape, &uniform(111, count * key_dim));
            let v = tensor::<T>(device, &[batch, heads, seq, value_dim], &uniform(112, count * value_dim));
            let keep: Vec<_> = uniform(113, heads).iter().map(|x| 0.9 + 0.1 * x).collect();
            let keep = tensor::<f32>(device, &[heads], &keep);
            for causal in [true, false] {
                for normalise in [true, false] {
                    for decay in [Some(&keep), None] {
                        let options = LinearOptions { causal, normalise, decay: decay.cloned() };
                        let got = scan::linear_attention(&q, &k, &v, &options).unwrap();
                        let decay = decay.map(|decay| moved(decay, &Device::reference()));
                        let options = LinearOptions { causal, normalise, decay };
                        let expected =
                            scan::linear_attention(&widened(&q), &widened(&k), &widened(&v), &options).unwrap();
                        let what = format!(
                            "linear_attention {} {device} {q_shape:?} {value_dim} causal {causal} normalise {normalise}",
                            T::DTYPE
                        );
                        assert_close(&what, &got.y, &expected.y, 0.0);
                        assert_close(&format!("{what}, state"), &got.state, &widened(&expected.state), 0.0);
                    }
                }
            }
        }
    }
}

#[test]
fn linear_attention_agrees_with_reference_f32() {
    linear_attention_agrees::<f32>();
}

#[test]
fn linear_attention_agrees_with_reference_f16() {
    linear_attention_agrees::<f16>();
}

#[test]
fn linear_attention_agrees_with_reference_bf16() {
    linear_attention_agrees::<bf16>();
}

struct Ssd<T: Float> {
    x: Tensor<T>,
    dt: Tensor<T>,
    b: Tensor<T>,
    c: Tensor<T>,
    parameters: SsdParameters,
    state: Tensor<f32>,
}

impl<T: Float> Ssd<T> {
    fn new(device: &Device, [batch, seq, heads, head_dim, groups, states]: [usize; 6]) -> Self {
        let positive = |seed, count| uniform(seed, count).iter().map(|x| 0.55 + 0.5 * x).collect::<Vec<_>>();
        let negative: Vec<_> = positive(121, heads).iter().map(|x| -x).collect();
        let shared = [batch, seq, groups, states];
        let count = shared.iter().product();
        Self {
            x: tensor(device, &[batch, seq, heads, head_dim], &uniform(120, batch * seq * heads * head_dim)),
            dt: tensor(device, &[batch, seq, heads], &positive(122, batch * seq * heads)),
            b: tensor(device, &shared, &uniform(123, count)),
            c: tensor(device, &shared, &uniform(124, count)),
            parameters: SsdParameters {
                a: tensor(device, &[heads], &negative),
                d: Some(tensor(device, &[heads], &uniform(125, heads))),
            },
            state: tensor(device, &[batch, heads, head_dim, states], &uniform(126, batch * heads * head_dim * states)),
        }
    }

    fn run(&self, state: Option<&Tensor<f32>>) -> scan::Scanned<T> {
        scan::ssd_scan(&self.x, &self.dt, &self.b, &self.c, &self.parameters, state).unwrap()
    }

    fn widened(&self) -> Ssd<f64> {
        let home = Device::reference();
        Ssd {
            x: widened(&self.x),
            dt: widened(&self.dt),
            b: widened(&self.b),
            c: widened(&self.c),
            parameters: SsdParameters {
                a: moved(&self.parameters.a, &home),
                d: self.parameters.d.as_ref().map(|d| moved(d, &home)),
            },
            state: moved(&self.state, &home),
        }
    }
}

fn ssd_scan_agrees<T: Float>() {
    for device in devices() {
        for shape in [[1, 1, 1, 1, 1, 1], [2, 19, 4, 5, 2, 3], [1, 40, 3, 30, 1, 16], [1, 0, 2, 4, 2, 4]] {
            let mut case = Ssd::<T>::new(device, shape);
            let home = case.widened();
            let what = format!("ssd_scan {} {device} {shape:?}", T::DTYPE);
            let (got, expected) = (case.run(Some(&case.state)), home.run(Some(&home.state)));
            assert_close(&what, &got.y, &expected.y, 0.0);
            assert_close(&format!("{what}, state"), &got.state, &widened(&expected.state), 0.0);
            case.parameters.d = None;
            let (got, expected) = (case.run(None), case.widened().run(None));
            assert_close(&format!("{what}, plain"), &got.y, &expected.y, 0.0);
        }
    }
}

#[test]
fn ssd_scan_agrees_with_reference_f32() {
    ssd_scan_agrees::<f32>();
}

#[test]
fn ssd_scan_agrees_with_reference_f16() {
    ssd_scan_agrees::<f16>();
}

#[test]
fn ssd_scan_agrees_with_reference_bf16() {
    ssd_scan_agrees::<bf16>();
}

#[test]
fn ssd_scan_in_two_parts_is_the_whole() {
    for device in devices() {
        let case = Ssd::<f32>::new(device, [2, 20, 2, 6, 1, 5]);
        let whole = case.run(None);
        let part = |start, len, state: Option<&Tensor<f32>>| {
            let cut = |tensor: &Tensor<f32>| tensor.narrow(1, start, len).unwrap();
            let [x, dt, b, c] = [&case.x, &case.dt, &case.b, &case.c].map(cut);
            scan::ssd_scan(&x, &dt, &b, &c, &case.parameters, state).unwrap()
        };
        let first = part(0, 13, None);
        let second = part(13, 7, Some(&first.state));
        assert_eq!(second.state.to_vec().unwrap(), whole.state.to_vec().unwrap(), "{device}");
        let end = whole.y.narrow(1, 13, 7).unwrap();
        assert_eq!(second.y.to_vec().unwrap(), end.to_vec().unwrap(), "{device}");
    }
}

#[test]
fn scans_name_what_does_not_fit() {
    let device = Device::reference();
    let zeros = |shape: &[usize]| Tensor::<f32>::zeros(&device, shape).unwrap();
    let (q, v) = (zeros(&[1, 2, 3, 4]), zeros(&[1, 2, 4, 4]));
    let error = scan::linear_attention(&q, &q, &v, &LinearOptions::default()).unwrap_err().to_string();
    assert!(error.contains("linear_attention: v has shape [1, 2, 4, 4]"), "{error}");
    let decay = Some(zeros(&[3]));
    let options = LinearOptions { decay, ..LinearOptions::default() };
    assert!(scan::linear_attention(&q, &q, &q, &options).unwrap_err().to_string().contains("decay"));
    let (x, dt, b) = (zeros(&[1, 2, 3, 4]), zeros(&[1, 2, 3]), zeros(&[1, 2, 2, 4]));
    let parameters = SsdParameters { a: zeros(&[3]), d: None };
    let error = scan::ssd_scan(&x, &dt, &b, &b, &parameters, None).unwrap_err().to_string();
    assert!(error.contains("groups that divide the 3 heads"), "{error}");
    let b = zeros(&[1, 2, 3, 4]);
    assert!(scan::ssd_scan(&x, &dt, &b, &b, &parameters, Some(&zeros(&[1, 3, 4, 5]))).is_err());
}
