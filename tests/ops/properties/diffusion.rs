//! Steps of continuous heads.

use proptest::prelude::*;
use smalti::diffusion::{self, Denoised, Level, NoiseCurve, NoiseSchedule};
use smalti::{Dtype, Float, bf16, f16};

use super::{Place, config, placed, places};
use crate::common::{assert_close, devices, widened};

/// How far sums of these parts are from 0 at most where all operands are below 2, times what f32 rounds by: a result near
/// 0 is of parts that are not.
fn rounding(parts: f64) -> f64 {
    2.0 * parts * f64::from(f32::EPSILON)
}

fn euler_agrees<T: Float>(shape: [usize; 3], scale: Option<f32>, step: f32, places: [Place; 2]) {
    for device in devices() {
        let x = placed::<T>(device, &shape, places[0], 1);
        let [velocity, uncond] = [2, 3].map(|seed| placed::<T>(device, &shape, places[1], seed));
        let got = diffusion::flow_euler(&x, &velocity, scale.map(|scale| (&uncond, scale)), step).unwrap();
        let [x, velocity, uncond] = [&x, &velocity, &uncond].map(widened);
        let expected = diffusion::flow_euler(&x, &velocity, scale.map(|scale| (&uncond, scale)), step).unwrap();
        let moves = scale.map_or(1.0, |scale| 1.0 + 2.0 * f64::from(scale.abs()));
        let what = format!("flow_euler {} {device} {shape:?} {scale:?} {step} {places:?}", T::DTYPE);
        assert_close(&what, &got, &expected, rounding(1.0 + moves * f64::from(step.abs())));
    }
}

/// `of_variance`: what of the noise is added, at most, and how far its logarithm may be from 0.
fn denoised_agree<T: Float>(
    what: &str,
    got: &Denoised<T>,
    expected: &Denoised<f64>,
    parts: [f64; 2],
    [noise, logarithm]: [f64; 2],
) {
    // Below its normal numbers a type rounds to steps of one size.
    let step = if T::DTYPE == Dtype::F16 { 2f64.powi(-25) } else { 0.0 };
    let [x0, mean] = parts.map(|parts| rounding(parts) + step);
    assert_close(&format!("{what}, x0"), &got.x0, &expected.x0, x0);
    assert_close(&format!("{what}, mean"), &got.mean, &expected.mean, mean);
    assert_close(
        &format!("{what}, log_variance"),
        &got.log_variance,
        &expected.log_variance,
        rounding(logarithm) + step,
    );
    // WGSL allows `exp` to be off by 3 + 2 |x| units; here is half of it, with what its operand is off by.
    assert_close(&format!("{what}, y"), &got.y, &expected.y, mean + rounding(noise * (1.5 + 2.0 * logarithm)));
}

fn steps_agree<T: Float>(shape: [usize; 3], level: &Level, temperature: f32, held: (f32, f32), places: [Place; 2]) {
    let (bound, eta) = held;
    let [batch, rows, channels] = shape;
    let (a, before) = (level.alpha_bar, level.alpha_bar_before);
    let clean = (1.0 / a).sqrt() + (1.0 / a - 1.0).sqrt();
    // The share that the model chooses between two variances is within -0.5 and 1.5.
    let logarithms = [level.log_variance, level.beta.ln()];
    let logarithm = 1.5 * (logarithms[0].abs() + logarithms[1].abs());
    let most = [-0.5, 1.5].map(|r| r * logarithms[1] + (1.0 - r) * logarithms[0]);
    let noise = (most[0].max(most[1]) / 2.0).exp() * f64::from(temperature);
    let mean_x0 = level.beta * before.sqrt() / (1.0 - a);
    let mean_x = (1.0 - before) * (1.0 - level.beta).sqrt() / (1.0 - a);
    for device in devices() {
        let what =
            |op: &str| format!("{op} {} {device} {shape:?} {level:?} {temperature} {held:?} {places:?}", T::DTYPE);
        let [x, noises] = [4, 5].map(|seed| placed::<T>(device, &shape, places[0], seed));
        let epsilon = placed::<T>(device, &shape, places[1], 6);
        let model = placed::<T>(device, &[batch, rows, 2 * channels], places[1], 7);
        let [home_x, home_noises, home_epsilon, home_model] = [&x, &noises, &epsilon, &model].map(widened);

        let got = diffusion::ddpm_step(&x, &model, &noises, level, temperature).unwrap();
        let expected = diffusion::ddpm_step(&home_x, &home_model, &home_noises, level, temperature).unwrap();
        let parts = [clean, mean_x0 * clean + mean_x];
        denoised_agree(&what("ddpm_step"), &got, &expected, parts, [noise, logarithm]);

        let got = diffusion::ddpm_step_within(&x, &model, &noises, level, temperature, bound).unwrap();
        let expected =
            diffusion::ddpm_step_within(&home_x, &home_model, &home_noises, level, temperature, bound).unwrap();
        denoised_agree(&what("ddpm_step_within"), &got, &expected, parts, [noise, logarithm]);

        let got = diffusion::ddim_step(&x, &epsilon, &noises, level, eta).unwrap();
        let expected = diffusion::ddim_step(&home_x, &home_epsilon, &home_noises, level, eta).unwrap();
        let parts = [clean, before.sqrt() * clean + 1.0];
        denoised_agree(&what("ddim_step"), &got, &expected, parts, [f64::from(eta), 0.0]);
    }
}

/// A level that leaves of `x` enough for a half type to hold the clean state.
fn levels() -> impl Strategy<Value = Level> {
    let curve = prop_oneof![Just(NoiseCurve::Cosine), Just(NoiseCurve::Linear)];
    let steps = (1usize..1001).prop_flat_map(|train_steps| (Just(train_steps), 1..=train_steps));
    (curve, steps, any::<prop::sample::Index>()).prop_filter_map(
        "nothing is left",
        |(curve, (train_steps, steps), at)| {
            let schedule = NoiseSchedule::new(curve, train_steps, steps).unwrap();
            Some(schedule.levels()[at.index(steps)]).filter(|level| level.alpha_bar > 1e-6)
        },
    )
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn euler_steps_agree_anywhere(
        shape in [0usize..3, 1usize..6, 1usize..70],
        scale in prop::option::of(-2.0f32..8.0),
        step in -1.0f32..1.0,
        places in [places(), places()],
    ) {
        euler_agrees::<f32>(shape, scale, step, places);
        euler_agrees::<f16>(shape, scale, step, places);
        euler_agrees::<bf16>(shape, scale, step, places);
    }

    #[test]
    fn steps_agree_anywhere(
        shape in [0usize..3, 1usize..6, 1usize..70],
        level in levels(),
        temperature in 0.0f32..2.0,
        held in (0.1f32..4.0, 0.0f32..=1.0),
        places in [places(), places()],
    ) {
        steps_agree::<f32>(shape, &level, temperature, held, places);
        steps_agree::<f16>(shape, &level, temperature, held, places);
        steps_agree::<bf16>(shape, &level, temperature, held, places);
    }
}
