//! What becomes of logits before tokens are drawn.

use proptest::prelude::*;
use smalti::sample::maskgit::{Curve, MASKED, MaskGit, MaskGitDraws, maskgit_step};
use smalti::sample::{self, Draws, Filter, Guidance, Guide, Places, Watermark, Weights};
use smalti::{Device, Float, Tensor, bf16, f16};

use super::{Place, config, placed, placed_as, places};
use crate::common::{devices, moved};
use crate::sample::any_filter;

/// A tensor of the reference that holds the same.
fn home<T: Float>(x: &Tensor<T>) -> Tensor<T> {
    moved(x, &Device::reference())
}

/// Eighths, which tie; what is made of numbers above `most` is ruled out.
fn logits<T: Float>(device: &Device, shape: &[usize], place: Place, seed: u64, most: f64) -> Tensor<T> {
    placed_as(device, shape, place, seed, |x| if x > most { f64::NEG_INFINITY } else { (x * 80.0).round() / 8.0 })
}

fn empty_row(weights: &[u32], vocabulary: usize) -> bool {
    weights.chunks(vocabulary).any(|row| row.iter().all(|weight| *weight == 0))
}

fn weights_are_the_same<T: Float>(shape: [usize; 2], filter: &Filter, scale: f32, place: Place) {
    for device in devices() {
        let cond = logits::<T>(device, &shape, place, 20, 0.9);
        let uncond = logits::<T>(device, &shape, place, 21, 1.0);
        for kind in [Guidance::Scale, Guidance::Extra] {
            let on = |cond: &Tensor<T>, uncond: &Tensor<T>| {
                let weights = sample::weigh(cond, Some(Guide { uncond, scale, kind }), filter)?;
                let certainty = sample::certainty(&weights)?;
                Ok::<_, smalti::Error>((weights.tensor().to_vec()?, certainty.largest.to_vec()?))
            };
            let what = format!("{} {device} {shape:?} {filter:?} {kind:?} {scale} {place:?}", T::DTYPE);
            match on(&home(&cond), &home(&uncond)) {
                Ok((expected, largest)) => {
                    let got = on(&cond, &uncond).unwrap();
                    assert_eq!(got.0, expected, "{what}");
                    for (got, expected) in got.1.iter().zip(largest) {
                        assert!((got - expected).abs() <= 1e-6, "{what}: {got}, expected {expected}");
                    }
                }
                // A row without a token: an error where values can be read without waiting.
                Err(_) => assert!(on(&cond, &uncond).map_or(true, |got| empty_row(&got.0, shape[1])), "{what}"),
            }
        }
    }
}

fn draws_are_the_same<T: Float>(shape: [usize; 2], filter: &Filter, seed: u64, place: Place) {
    for device in devices() {
        let x = placed_as::<T>(device, &shape, place, 25, |x| (x * 80.0).round() / 8.0);
        let draws = Draws::Philox { seed, streams: (0..shape[0] as u64).map(|row| seed ^ row).collect(), position: 7 };
        let on = |x: &Tensor<T>| {
            let weights = sample::weigh(x, None, filter).unwrap();
            [
                sample::argmax(x),
                sample::sample(x, filter, &draws),
                sample::sample_gumbel(x, filter, &draws),
                sample::draw(&weights, &draws),
                sample::race(&weights, &draws),
            ]
            .map(|tokens| tokens.unwrap().to_vec().unwrap())
        };
        let [_, drawn, raced, again, raced_again] = on(&x);
        let what = format!("{} {device} {shape:?} {filter:?} {seed} {place:?}", T::DTYPE);
        assert_eq!([&drawn, &raced], [&again, &raced_again], "{what}: from logits, from weights");
        assert_eq!(on(&x), on(&home(&x)), "{what}");
    }
}

fn marks_are_the_same<T: Float>(shape: [usize; 2], mark: &Watermark, before: &[u32], place: Place) {
    for device in devices() {
        let x = placed::<T>(device, &shape, place, 22);
        let before =
            Tensor::from_vec(device, &shape[..1], before.iter().copied().cycle().take(shape[0]).collect()).unwrap();
        let values = |x: Tensor<T>| x.to_vec().unwrap().iter().map(|x| x.to_f64()).collect::<Vec<_>>();
        let got = values(sample::watermark(&x, &before, mark).unwrap());
        let expected = values(sample::watermark(&home(&x), &moved(&before, &Device::reference()), mark).unwrap());
        assert_eq!(got, expected, "{} {device} {shape:?} {mark:?} {place:?}", T::DTYPE);
    }
}

fn steps_are_the_same<T: Float>(shape: [usize; 3], filter: &Filter, step: &MaskGit, known: &[bool], place: Place) {
    let [batch, places, _] = shape;
    let tokens: Vec<u32> =
        known.iter().cycle().take(batch * places).map(|known| if *known { 0 } else { MASKED }).collect();
    let streams = (0..batch as u64).map(|picture| picture << 40 | 7).collect();
    let drawn = Places { seed: 11, streams, starts: vec![3; batch], round: step.step as u32 };
    let draws = MaskGitDraws::Philox(drawn);
    let on = |logits: &Tensor<T>| {
        let tokens = Tensor::from_slice(logits.device(), &[batch, places], &tokens).unwrap();
        let done = maskgit_step(logits, &tokens, filter, step, &draws).unwrap();
        let integers = [done.tokens, done.sampled, done.counts].map(|tensor| tensor.to_vec().unwrap());
        (integers, done.confidence.to_vec().unwrap())
    };
    for device in devices() {
        let logits = placed_as::<T>(device, &shape, place, 23, |x| (x * 60.0).round() / 8.0);
        assert_eq!(on(&logits), on(&home(&logits)), "{} {device} {shape:?} {filter:?} {step:?} {place:?}", T::DTYPE);
    }
}

fn shares_are_the_same(shape: [usize; 2], place: Place) {
    for device in devices() {
        let shares =
            placed_as::<f32>(device, &shape, place, 24, |x| if x > 0.5 { 0.0 } else { x.abs().powi(9) + 1e-30 });
        let on = |shares: &Tensor<f32>| Weights::from_shares(shares).map(|weights| weights.tensor().to_vec().unwrap());
        match on(&home(&shares)) {
            Ok(expected) => assert_eq!(on(&shares).unwrap(), expected, "{device} {shape:?} {place:?}"),
            Err(_) => assert!(on(&shares).map_or(true, |got| empty_row(&got, shape[1])), "{device} {shape:?}"),
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn guided_weights_are_the_same_anywhere(
        shape in [0usize..4, 1usize..600],
        filter in any_filter(),
        scale in -1.0f32..8.0,
        place in places(),
    ) {
        weights_are_the_same::<f32>(shape, &filter, scale, place);
        weights_are_the_same::<f16>(shape, &filter, scale, place);
        weights_are_the_same::<bf16>(shape, &filter, scale, place);
    }

    #[test]
    fn draws_are_the_same_anywhere(
        shape in [0usize..4, 1usize..600],
        filter in any_filter(),
        seed in any::<u64>(),
        dtype in 0usize..3,
        place in places(),
    ) {
        // In one of the types: the draws themselves know none.
        let of = [draws_are_the_same::<f32>, draws_are_the_same::<f16>, draws_are_the_same::<bf16>][dtype];
        of(shape, &filter, seed, place);
    }

    #[test]
    fn watermarks_are_the_same_anywhere(
        shape in [0usize..4, 1usize..600],
        key in any::<u64>(),
        green in 0.0f32..=1.0,
        bias in -3.0f32..3.0,
        before in prop::collection::vec(any::<u32>(), 1..4),
        place in places(),
    ) {
        let mark = Watermark { key, green, bias };
        marks_are_the_same::<f32>(shape, &mark, &before, place);
        marks_are_the_same::<f16>(shape, &mark, &before, place);
        marks_are_the_same::<bf16>(shape, &mark, &before, place);
    }

    #[test]
    fn maskgit_steps_are_the_same_anywhere(
        shape in [1usize..3, 1usize..30, 1usize..40],
        filter in any_filter(),
        (steps, step) in (1usize..9).prop_flat_map(|steps| (Just(steps), 0..steps)),
        curve in prop_oneof![
            Just(Curve::Cosine),
            Just(Curve::Arccos),
            (0.3f32..4.0).prop_map(Curve::Power),
        ],
        choice_temperature in 0.0f32..255.0,
        known in prop::collection::vec(any::<bool>(), 1..30),
        place in places(),
    ) {
        let step = MaskGit { step, steps, masked_at_start: shape[1], curve, choice_temperature };
        steps_are_the_same::<f32>(shape, &filter, &step, &known, place);
        steps_are_the_same::<f16>(shape, &filter, &step, &known, place);
        steps_are_the_same::<bf16>(shape, &filter, &step, &known, place);
    }

    #[test]
    fn shares_are_the_same_anywhere(shape in [0usize..4, 1usize..600], place in places()) {
        shares_are_the_same(shape, place);
    }
}
