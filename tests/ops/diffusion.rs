//! Steps of continuous heads.

use smalti::diffusion::{self, Denoised, NoiseCurve, NoiseSchedule};
use smalti::{Device, Float, Tensor, bf16, f16};

use crate::common::{assert_close, devices, tensor, uniform, widened};
use crate::dumps;

/// One element, odd channels (two of a half type share a word), more than a workgroup.
const SHAPES: [[usize; 2]; 5] = [[1, 1], [3, 5], [2, 64], [17, 16], [0, 4]];

fn steps_agree_with_reference<T: Float>() {
    let schedule = NoiseSchedule::new(NoiseCurve::Cosine, 1000, 50).unwrap();
    for device in devices() {
        for [rows, channels] in SHAPES {
            let shape = [rows, channels];
            let x = tensor::<T>(device, &shape, &uniform(100, rows * channels));
            let other = tensor::<T>(device, &shape, &uniform(101, rows * channels));
            let noise = tensor::<T>(device, &shape, &uniform(102, rows * channels));
            let model = tensor::<T>(device, &[rows, 2 * channels], &uniform(103, 2 * rows * channels));
            let what = |op: &str| format!("{op} {} {device} {shape:?}", T::DTYPE);

            for guide in [None, Some(2.5)] {
                let got = diffusion::flow_euler(&x, &other, guide.map(|scale| (&noise, scale)), 0.1).unwrap();
                let home = [&x, &other, &noise].map(widened);
                let expected =
                    diffusion::flow_euler(&home[0], &home[1], guide.map(|scale| (&home[2], scale)), 0.1).unwrap();
                assert_close(&what(&format!("flow_euler {guide:?}")), &got, &expected, 0.0);
            }
            let compare = |op: &str, got: Denoised<T>, expected: Denoised<f64>| {
                for (output, got, expected) in [
                    ("y", got.y, expected.y),
                    ("x0", got.x0, expected.x0),
                    ("mean", got.mean, expected.mean),
                    ("log_variance", got.log_variance, expected.log_variance),
                ] {
                    assert_close(&what(&format!("{op}, {output}")), &got, &expected, 0.0);
                }
            };
            for index in [0, 1, 20] {
                let level = &schedule.levels()[index];
                let got = diffusion::ddpm_step(&x, &model, &noise, level, 0.9).unwrap();
                let expected =
                    diffusion::ddpm_step(&widened(&x), &widened(&model), &widened(&noise), level, 0.9).unwrap();
                compare(&format!("ddpm_step {index}"), got, expected);
                // Some of the values are beyond the bound, others are not.
                let within = diffusion::ddpm_step_within(&x, &model, &noise, level, 0.9, 0.5).unwrap();
                let home = [&x, &model, &noise].map(widened);
                let expected = diffusion::ddpm_step_within(&home[0], &home[1], &home[2], level, 0.9, 0.5).unwrap();
                compare(&format!("ddpm_step_within {index}"), within, expected);
                for eta in [0.0, 0.7] {
                    let got = diffusion::ddim_step(&x, &other, &noise, level, eta).unwrap();
                    let expected =
                        diffusion::ddim_step(&widened(&x), &widened(&other), &widened(&noise), level, eta).unwrap();
                    compare(&format!("ddim_step {index} eta {eta}"), got, expected);
                }
            }
        }
    }
}

#[test]
fn steps_agree_with_reference_f32() {
    steps_agree_with_reference::<f32>();
}

#[test]
fn steps_agree_with_reference_f16() {
    steps_agree_with_reference::<f16>();
}

#[test]
fn steps_agree_with_reference_bf16() {
    steps_agree_with_reference::<bf16>();
}

#[test]
fn steps_of_noise_alone_come_back_to_the_clean_state() {
    // With the noise that was really added, DDIM without noise of its own goes straight back.
    let schedule = NoiseSchedule::new(NoiseCurve::Linear, 1000, 10).unwrap();
    let device = Device::reference();
    let (clean, noise) = (uniform(104, 8), uniform(105, 8));
    let last = schedule.levels().last().unwrap().alpha_bar;
    let mixed: Vec<_> =
        clean.iter().zip(&noise).map(|(x, noise)| last.sqrt() * x + (1.0 - last).sqrt() * noise).collect();
    let epsilon = tensor::<f64>(&device, &[1, 8], &noise);
    let mut x = tensor::<f64>(&device, &[1, 8], &mixed);
    for level in schedule.levels().iter().rev() {
        x = diffusion::ddim_step(&x, &epsilon, &epsilon, level, 0.0).unwrap().y;
    }
    for (got, expected) in x.to_vec().unwrap().iter().zip(&clean) {
        assert!((got - expected).abs() < 1e-9, "{got}, expected {expected}");
    }
}

#[test]
fn schedules_and_steps_name_what_does_not_fit() {
    for steps in [0, 1001] {
        assert!(NoiseSchedule::new(NoiseCurve::Cosine, 1000, steps).is_err(), "{steps}");
    }
    let one = NoiseSchedule::new(NoiseCurve::Linear, 1, 1).unwrap();
    assert!(one.levels()[0].log_variance.is_finite());
    let device = Device::reference();
    let x = Tensor::<f32>::zeros(&device, &[2, 4]).unwrap();
    let error = diffusion::ddpm_step(&x, &x, &x, &one.levels()[0], 1.0).unwrap_err().to_string();
    assert!(error.contains("ddpm_step: model has shape [2, 4]"), "{error}");
    for bound in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = diffusion::ddpm_step_within(&x, &x, &x, &one.levels()[0], 1.0, bound).unwrap_err().to_string();
        assert!(error.contains("ddpm_step_within: bound is"), "{error}");
    }
    assert!(diffusion::ddim_step(&x, &x, &x, &one.levels()[0], 1.5).is_err());
    let other = Tensor::<f32>::zeros(&device, &[4, 2]).unwrap();
    assert!(diffusion::flow_euler(&x, &other, None, 0.1).is_err());
}

fn schedule_of(dump: &dumps::Dump) -> NoiseSchedule {
    let curve = match dump.params["schedule"].as_str() {
        Some("cosine") => NoiseCurve::Cosine,
        _ => NoiseCurve::Linear,
    };
    NoiseSchedule::new(curve, dump.usize("train_steps").unwrap(), dump.usize("steps").unwrap()).unwrap()
}

#[test]
fn schedules_and_steps_agree_with_their_dumps() {
    let mut seen = 0;
    for dump in dumps::of_family("steps") {
        let schedule = match dump.op.as_str() {
            "diffusion_schedule" | "ddpm_step" | "ddim_step" => schedule_of(&dump),
            _ => continue,
        };
        seen += 1;
        if dump.op == "diffusion_schedule" {
            let times: Vec<_> = schedule.levels().iter().map(|level| f64::from(level.time)).collect();
            assert_eq!(times, dump.values("out.times").unwrap().1, "{}", dump.name);
            for (output, values) in [
                ("out.betas", schedule.levels().iter().map(|level| level.beta).collect::<Vec<_>>()),
                ("out.alphas_bar", schedule.levels().iter().map(|level| level.alpha_bar).collect()),
                ("out.log_variance", schedule.levels().iter().map(|level| level.log_variance).collect()),
            ] {
                for (got, expected) in values.iter().zip(dump.values(output).unwrap().1) {
                    assert!(
                        (got - expected).abs() <= 1e-6 * expected.abs(),
                        "{} {output}: {got}, {expected}",
                        dump.name
                    );
                }
            }
            continue;
        }
        let level = &schedule.levels()[dump.usize("index").unwrap()];
        let home = Device::reference();
        let input = |name: &str| dump.tensor::<f64>(name, &home).unwrap();
        let (x, noise) = (input("in.x"), input("in.noise"));
        let done = if dump.op == "ddim_step" {
            diffusion::ddim_step(&x, &input("in.epsilon"), &noise, level, dump.f32("eta").unwrap())
        } else {
            diffusion::ddpm_step(&x, &input("in.model"), &noise, level, dump.f32("temperature").unwrap())
        };
        let y = done.unwrap().y.to_vec().unwrap();
        let (_, expected) = dump.values("out.y").unwrap();
        let largest = expected.iter().fold(0.0f64, |most, y| most.max(y.abs()));
        for (got, expected) in y.iter().zip(expected) {
            assert!((got - expected).abs() <= 1e-6 * largest, "{}: {got}, expected {expected}", dump.name);
        }
    }
    assert!(seen >= 7, "{seen} dumps");
}
