//! Drafts and what passes for them.

use proptest::prelude::*;
use smalti::jacobi::{self, Gaussians, Groups, Proposal, Rule, Verified, VerifyDraws, Window};
use smalti::sample::{self, Draws, Filter, Guidance, Guide, Places, Weights};
use smalti::{Device, Float, Tensor, bf16, f16};

use super::{Place, config, placed, placed_as, placed_below, places};
use crate::common::{devices, moved};
use crate::sample::any_filter;

fn home<T: smalti::Element>(x: &Tensor<T>) -> Tensor<T> {
    moved(x, &Device::reference())
}

fn numbers(verified: &Verified) -> [Vec<u32>; 5] {
    [&verified.kept, &verified.accepted, &verified.settled, &verified.next, &verified.tokens]
        .map(|tensor| tensor.to_vec().unwrap())
}

fn groups_are_the_same<T: Float>(shape: [usize; 3], window: Window, place: Place) {
    let [batch, count, vocabulary] = shape;
    for device in devices() {
        // Eighths tie.
        let logits = placed_as::<T>(device, &shape, place, 31, |x| (x * 40.0).round() / 8.0);
        let distances = placed::<f32>(device, &[vocabulary, vocabulary], place, 32);
        let draft = placed_below(device, &shape[..2], vocabulary, place, 30);
        let on = |logits: &Tensor<T>, draft: &Tensor<u32>, distances: &Tensor<f32>| {
            let rows = logits.reshape(&[batch * count, vocabulary]).unwrap();
            let q = sample::weigh(&rows, None, &Filter::default()).unwrap();
            Groups::nearby(logits, &q, draft, distances, window).unwrap().tokens().to_vec().unwrap()
        };
        let expected = on(&home(&logits), &home(&draft), &home(&distances));
        let what = format!("nearby {} {device} {shape:?} {window:?} {place:?}", T::DTYPE);
        assert_eq!(on(&logits, &draft, &distances), expected, "{what}");
    }
}

fn fixed_rules_are_the_same<T: Float>(shape: [usize; 3], seed: u64, place: Place) {
    let [batch, count, vocabulary] = shape;
    let noise = Draws::Philox { seed, streams: (0..(batch * count) as u64).collect(), position: 5 };
    for device in devices() {
        let logits = placed_as::<T>(device, &shape, place, 33, |x| (x * 12.0).round() / 4.0);
        // Some are what is drawn now.
        let draft = placed_below(device, &shape[..2], 2.min(vocabulary), place, 30);
        let on = |logits: &Tensor<T>, draft: &Tensor<u32>| {
            let rows = logits.reshape(&[batch * count, vocabulary]).unwrap();
            let q = sample::weigh(&rows, None, &Filter::default()).unwrap();
            let greedy = jacobi::greedy_verify(logits, draft).unwrap();
            [numbers(&greedy), numbers(&jacobi::gumbel_verify(&q, draft, &noise).unwrap())]
        };
        let what = format!("{} {device} {shape:?} {seed} {place:?}", T::DTYPE);
        assert_eq!(on(&logits, &draft), on(&home(&logits), &home(&draft)), "{what}");
    }
}

fn steps_are_the_same<T: Float>(shape: [usize; 3], filter: &Filter, guide: Option<f32>, rule: Rule, place: Place) {
    let [batch, drafts, vocabulary] = shape;
    for device in devices() {
        let [logits, uncond] =
            [40, 41].map(|seed| placed_as::<T>(device, &shape, place, seed, |x| (x * 40.0).round() / 8.0));
        let draft = placed_below(device, &shape[..2], 3.min(vocabulary), place, 42);
        let on = |logits: &Tensor<T>, uncond: &Tensor<T>, draft: &Tensor<u32>| {
            let weights = Weights::uniform(logits.device(), batch * drafts, vocabulary).unwrap();
            let mut proposal = Proposal { tokens: draft.clone(), weights };
            let guide = guide.map(|scale| Guide { uncond, scale, kind: Guidance::Scale });
            [0, 1].map(|round| {
                let streams = (0..batch as u64).map(|stream| stream << 33 | 5).collect();
                let draws = VerifyDraws::Philox(Places { seed: 12, streams, starts: vec![2; batch], round });
                let step = jacobi::step(logits, guide, filter, &proposal, None, rule, &draws).unwrap();
                proposal = step.1.clone();
                (numbers(&step.0), step.1.weights.tensor().to_vec().unwrap())
            })
        };
        let what = format!("step {} {device} {shape:?} {filter:?} {guide:?} {rule:?} {place:?}", T::DTYPE);
        assert_eq!(on(&logits, &uncond, &draft), on(&home(&logits), &home(&uncond), &home(&draft)), "{what}");
    }
}

fn paths_are_the_same(shape: [usize; 4], places: [Place; 2], spread: f64) {
    for device in devices() {
        let of = |seed, place, most: f64| placed_as::<f32>(device, &shape, place, seed, |x| most * x);
        let (x, mean, other) = (of(34, places[0], 1.0), of(35, places[1], spread), of(36, places[0], spread));
        let (log_variance, other_variance) = (of(37, places[1], 1.0), of(38, places[0], 1.0));
        let u = placed_as::<f32>(device, &shape[..2], places[1], 39, f64::abs);
        let on = |operands: [&Tensor<f32>; 6]| {
            let [x, mean, log_variance, other, other_variance, u] = operands;
            let draft = Gaussians { mean, log_variance };
            let target = Gaussians { mean: other, log_variance: other_variance };
            jacobi::verify_paths(x, draft, target, u).unwrap()
        };
        let operands = [&x, &mean, &log_variance, &other, &other_variance, &u];
        let at_home = operands.map(home);
        let (got, expected) = (on(operands), on(at_home.each_ref()));
        let what = format!("{device} {shape:?} {places:?} {spread}");
        let ratios = expected.log_ratio.to_vec().unwrap();
        let largest = ratios.iter().fold(1.0f32, |most, ratio| most.max(ratio.abs()));
        let near = 1e-5 * largest;
        for (got, expected) in got.log_ratio.to_vec().unwrap().iter().zip(&ratios) {
            assert!((got - expected).abs() <= near, "{what}: {got}, expected {expected}");
        }
        // A ratio that falls on the number it is compared with may go either way.
        let close = |(ratio, u): (&f32, f32)| (ratio - u.ln()).abs() <= near;
        if !ratios.iter().zip(u.to_vec().unwrap()).any(close) {
            assert_eq!(got.kept.to_vec().unwrap(), expected.kept.to_vec().unwrap(), "{what}");
            assert_eq!(got.accepted.to_vec().unwrap(), expected.accepted.to_vec().unwrap(), "{what}");
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nearby_groups_are_the_same_anywhere(
        shape in [0usize..3, 1usize..4, 1usize..300],
        below in 0usize..9,
        above in 0usize..9,
        band in 0.0f32..=1.0,
        reach in prop_oneof![-2.0f32..2.0, Just(f32::INFINITY)],
        place in places(),
    ) {
        let window = Window { below, above, band, reach };
        groups_are_the_same::<f32>(shape, window, place);
        groups_are_the_same::<f16>(shape, window, place);
        groups_are_the_same::<bf16>(shape, window, place);
    }

    #[test]
    fn fixed_rules_are_the_same_anywhere(
        shape in [0usize..4, 1usize..6, 1usize..300],
        seed in any::<u64>(),
        place in places(),
    ) {
        fixed_rules_are_the_same::<f32>(shape, seed, place);
        fixed_rules_are_the_same::<f16>(shape, seed, place);
        fixed_rules_are_the_same::<bf16>(shape, seed, place);
    }

    #[test]
    fn steps_are_the_same_anywhere(
        shape in [1usize..3, 1usize..5, 1usize..300],
        filter in any_filter(),
        guide in prop::option::of(-1.0f32..8.0),
        rule in prop_oneof![Just(Rule::Fresh), Just(Rule::Coupled)],
        dtype in 0usize..3,
        place in places(),
    ) {
        // In one of the types: what follows the weights knows none.
        let of = [steps_are_the_same::<f32>, steps_are_the_same::<f16>, steps_are_the_same::<bf16>][dtype];
        of(shape, &filter, guide, rule, place);
    }

    #[test]
    fn paths_are_the_same_anywhere(
        shape in [0usize..4, 1usize..5, 1usize..6, 1usize..20],
        places in [places(), places()],
        spread in 0.0f64..1.0,
    ) {
        paths_are_the_same(shape, places, spread);
    }
}
