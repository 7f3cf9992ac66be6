//! Filters and draws.

use proptest::prelude::*;
use smalti::sample::maskgit::{Curve, MASKED, MaskGit, MaskGitDraws, maskgit_step};
use smalti::sample::{self, Draws, Filter, Guidance, Guide, Places, Weights};
use smalti::{Backend, Device, Error, Float, Tensor, bf16, f16};

use crate::common::{assert_close, devices, moved, tensor, uniform, widened};

fn cpu() -> Device {
    Device::cpu()
}

fn gpu(device: &Device) -> bool {
    matches!(device.backend(), Backend::Wgpu | Backend::Cuda)
}

#[test]
fn filter_agrees_with_reference() {
    for (rows, vocabulary) in [(1, 1), (3, 7), (2, 1000)] {
        let logits: Vec<_> = uniform(50, rows * vocabulary).iter().map(|x| x * 6.0).collect();
        for filter in [
            Filter::default(),
            Filter { temperature: 0.7, top_k: 5, ..Filter::default() },
            Filter { top_p: 0.8, ..Filter::default() },
            Filter { top_k: 50, top_p: 0.5, min_p: 0.1, temperature: 1.3, ..Filter::default() },
            Filter { typical: 0.3, ..Filter::default() },
            Filter { temperature: 1.7, top_p: 0.9, typical: 0.6, ..Filter::default() },
            Filter { temperature: 0.0, ..Filter::default() },
        ] {
            let on = |device: &Device| {
                let logits = tensor::<f32>(device, &[rows, vocabulary], &logits);
                let filtered = sample::filter(&logits, &filter).unwrap();
                (filtered.probabilities.to_vec().unwrap(), filtered.kept.to_vec().unwrap())
            };
            let (expected, expected_kept) = on(&Device::reference());
            for device in devices() {
                let (got, got_kept) = on(device);
                assert_eq!(got_kept, expected_kept, "{device} {filter:?}");
                let largest = expected.iter().copied().fold(0.0, f32::max);
                for (got, expected) in got.iter().zip(&expected) {
                    let close = (got - expected).abs() <= 1e-5 * largest;
                    assert!(close, "{device} {filter:?}: {got}, expected {expected}");
                }
            }
        }
    }
}

#[test]
fn top_p_keeps_the_token_that_crosses() {
    let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
    let logits = Tensor::from_vec(&cpu(), &[1, 4], logits).unwrap();
    for (top_p, kept) in [(0.6, [1, 1, 0, 0]), (0.85, [1, 1, 1, 0])] {
        let filter = Filter { top_p, ..Filter::default() };
        assert_eq!(sample::filter(&logits, &filter).unwrap().kept.to_vec().unwrap(), kept, "top_p {top_p}");
    }
}

#[test]
fn greedy_takes_the_lowest_index_among_equals() {
    let logits = Tensor::from_slice(&cpu(), &[2, 4], &[1.0f32, 3.0, 3.0, 0.0, -0.0, 0.0, -1.0, 0.0]).unwrap();
    assert_eq!(sample::argmax(&logits).unwrap().to_vec().unwrap(), [1, 0]);
}

#[test]
fn draws_follow_the_distribution() {
    // Chi-square with 3 degrees of freedom: above 16.27 once in a thousand.
    let probabilities = [0.1f64, 0.4, 0.2, 0.3];
    let count = 200_000;
    let logits: Vec<f32> = probabilities.iter().map(|p| p.ln() as f32).collect();
    let logits = Tensor::from_vec(&cpu(), &[1, 4], logits).unwrap().broadcast(&[count, 4]).unwrap();
    let draws = Draws::Philox { seed: 5, streams: (0..count as u64).collect(), position: 3 };
    let tokens = sample::sample(&logits, &Filter::default(), &draws).unwrap().to_vec().unwrap();
    let chi_square: f64 = (0u32..)
        .zip(&probabilities)
        .map(|(token, p)| {
            let seen = tokens.iter().filter(|drawn| **drawn == token).count() as f64;
            let expected = p * count as f64;
            (seen - expected).powi(2) / expected
        })
        .sum();
    assert!(chi_square < 16.27, "chi-square {chi_square}");
}

#[test]
fn draws_do_not_depend_on_the_batch() {
    let logits: Vec<_> = uniform(51, 6 * 100).iter().map(|x| x * 4.0).collect();
    let draw = |rows: std::ops::Range<usize>| {
        let logits = tensor::<f32>(&cpu(), &[rows.len(), 100], &logits[rows.start * 100..rows.end * 100]);
        let draws = Draws::Philox { seed: 1, streams: rows.map(|row| row as u64).collect(), position: 9 };
        sample::sample(&logits, &Filter::default(), &draws).unwrap().to_vec().unwrap()
    };
    assert_eq!([draw(0..2), draw(2..6)].concat(), draw(0..6));
}

#[test]
fn sample_names_what_it_cannot_draw_from() {
    let draws = Draws::Uniform(vec![0.5]);
    let try_with = |logits: &[f32], filter: Filter| {
        let logits = Tensor::from_slice(&cpu(), &[1, logits.len()], logits).unwrap();
        sample::sample(&logits, &filter, &draws).unwrap_err()
    };
    let inf = f32::NEG_INFINITY;
    assert!(try_with(&[1.0, f32::NAN], Filter::default()).to_string().contains("row 0"));
    assert!(try_with(&[inf, inf], Filter::default()).to_string().contains("without a finite logit in row 0"));
    for filter in [
        Filter { temperature: -1.0, ..Filter::default() },
        Filter { temperature: f32::NAN, ..Filter::default() },
        Filter { top_p: 0.0, ..Filter::default() },
        Filter { top_p: 2.0, ..Filter::default() },
        Filter { top_p: f32::NAN, ..Filter::default() },
        Filter { min_p: -0.1, ..Filter::default() },
        Filter { typical: 0.0, ..Filter::default() },
    ] {
        assert!(matches!(try_with(&[1.0], filter), Error::Value { .. }), "{filter:?}");
    }
    let logits = Tensor::from_slice(&cpu(), &[1, 3], &[inf, 1.0, inf]).unwrap();
    assert_eq!(sample::sample(&logits, &Filter::default(), &draws).unwrap().to_vec().unwrap(), [1]);
}

fn draws_are_the_same_everywhere<T: Float>() {
    // Vocabularies around a kernel's 256 invocations, one token, a prime.
    for shape in [[1, 1], [3, 2], [2, 255], [3, 257], [2, 1031], [0, 8]] {
        let [rows, vocabulary] = shape;
        let wide: Vec<_> = uniform(31, rows * vocabulary).iter().map(|x| x * 9.0).collect();
        // Whole numbers tie; some tokens are ruled out.
        let mut tied: Vec<_> = wide.iter().map(|x| x.round()).collect();
        tied.iter_mut().skip(1).step_by(7).for_each(|x| *x = f64::NEG_INFINITY);
        for x in [wide, tied] {
            for filter in [
                Filter::default(),
                Filter { temperature: 0.7, ..Filter::default() },
                Filter { temperature: 0.0, ..Filter::default() },
                Filter { temperature: 1e-45, ..Filter::default() },
                Filter { top_k: 10, ..Filter::default() },
                Filter { top_k: 100_000, top_p: 0.9, ..Filter::default() },
                Filter { top_p: 0.001, ..Filter::default() },
                Filter { min_p: 0.1, ..Filter::default() },
                Filter { typical: 0.4, ..Filter::default() },
                Filter { typical: 1e-12, temperature: 3.0, ..Filter::default() },
                Filter { temperature: 0.9, top_k: 200, top_p: 0.95, min_p: 0.02, typical: 0.9 },
            ] {
                let mut draws: Vec<_> =
                    [0.0, 0.37, 1.0 - f32::EPSILON / 2.0].iter().map(|u| Draws::Uniform(vec![*u; rows])).collect();
                let streams: Vec<_> = (0..rows as u64).map(|row| row << 31 | row).collect();
                draws.extend((0..3).map(|position| Draws::Philox {
                    seed: u64::MAX / 3,
                    streams: streams.clone(),
                    position,
                }));
                let home = tensor::<T>(&Device::reference(), &shape, &x);
                for draws in draws {
                    let expected = sample::sample(&home, &filter, &draws).unwrap().to_vec().unwrap();
                    for device in devices() {
                        let got = sample::sample(&moved(&home, device), &filter, &draws).unwrap().to_vec().unwrap();
                        assert_eq!(got, expected, "{} {device} {shape:?} {filter:?} {draws:?}", T::DTYPE);
                    }
                }
            }
        }
    }
}

#[test]
fn draws_are_the_same_everywhere_in_every_type() {
    draws_are_the_same_everywhere::<f32>();
    draws_are_the_same_everywhere::<f16>();
    draws_are_the_same_everywhere::<bf16>();
}

#[test]
fn a_gpu_marks_rows_without_a_largest_logit() {
    for device in devices().iter().filter(|device| gpu(device)) {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let x = tensor::<f32>(device, &[3, 2], &[0.0, 1.0, bad, f64::NEG_INFINITY, 2.0, 1.0]);
            assert_eq!(sample::argmax(&x).unwrap().to_vec().unwrap(), [1, u32::MAX, 0], "{bad}");
        }
    }
}

/// Shapes around a kernel's 256 invocations, one token, a prime.
const SHAPES: [[usize; 2]; 6] = [[1, 1], [3, 2], [2, 255], [3, 257], [2, 1031], [0, 8]];

fn weights_are_the_same_everywhere<T: Float>() {
    for [rows, vocabulary] in SHAPES {
        let mut x: Vec<_> = uniform(60, rows * vocabulary).iter().map(|x| x * 9.0).collect();
        // Ruled out by the condition alone, and by both.
        x.iter_mut().skip(1).step_by(5).for_each(|x| *x = f64::NEG_INFINITY);
        let mut y: Vec<_> = uniform(61, rows * vocabulary).iter().map(|x| x * 9.0).collect();
        y.iter_mut().skip(1).step_by(10).for_each(|x| *x = f64::NEG_INFINITY);
        let on = |device: &Device, kind: Option<Guidance>, filter: &Filter| {
            let cond = tensor::<T>(device, &[rows, vocabulary], &x);
            let uncond = tensor::<T>(device, &[rows, vocabulary], &y);
            let guide = kind.map(|kind| Guide { uncond: &uncond, scale: 1.7, kind });
            sample::weigh(&cond, guide, filter).unwrap().tensor().to_vec().unwrap()
        };
        for kind in [None, Some(Guidance::Scale), Some(Guidance::Extra)] {
            for filter in [
                Filter::default(),
                Filter { temperature: 0.8, top_k: 40, top_p: 0.9, min_p: 0.01, typical: 0.95 },
                Filter { typical: 0.2, ..Filter::default() },
            ] {
                let expected = on(&Device::reference(), kind, &filter);
                for device in devices() {
                    let got = on(device, kind, &filter);
                    assert_eq!(got, expected, "{} {device} {rows} x {vocabulary} {kind:?} {filter:?}", T::DTYPE);
                }
            }
        }
    }
}

#[test]
fn weights_are_the_same_everywhere_in_every_type() {
    weights_are_the_same_everywhere::<f32>();
    weights_are_the_same_everywhere::<f16>();
    weights_are_the_same_everywhere::<bf16>();
}

/// Logits of which some are ruled out, with the condition, without it, or both ways.
fn ruled_out(seed: u64, [rows, vocabulary]: [usize; 2], every: usize) -> Vec<f64> {
    let x = uniform(seed, rows * vocabulary);
    x.iter().enumerate().map(|(at, x)| if at % every == every - 1 { f64::NEG_INFINITY } else { x * 9.0 }).collect()
}

fn guidance_agrees_with_reference<T: Float>() {
    for shape in SHAPES {
        let (x, uncond) = (ruled_out(62, shape, 5), ruled_out(63, shape, 7));
        let scales: Vec<_> = (0..shape[0]).map(|row| 1.0 + 2.5 * row as f64).collect();
        for kind in [Guidance::Scale, Guidance::Extra] {
            for device in devices() {
                let what = format!("{} {device} {shape:?} {kind:?}", T::DTYPE);
                let [x, uncond] = [&x, &uncond].map(|x| tensor::<T>(device, &shape, x));
                let guided = sample::guide(&x, &uncond, 2.5, kind).unwrap();
                let (wide, wide_uncond) = (widened(&x), widened(&uncond));
                assert_close(&what, &guided, &sample::guide(&wide, &wide_uncond, 2.5, kind).unwrap(), 0.0);
                let of = |device: &Device| tensor::<f32>(device, &shape[..1], &scales);
                let by_row = sample::guide_rows(&x, &uncond, &of(device), kind).unwrap();
                let expected = sample::guide_rows(&wide, &wide_uncond, &of(wide.device()), kind).unwrap();
                assert_close(&what, &by_row, &expected, 0.0);
                if T::DTYPE == smalti::Dtype::F32 {
                    let guide = Guide { uncond: &uncond, scale: 2.5, kind };
                    let fused = sample::weigh(&x, Some(guide), &Filter { top_k: 90, ..Filter::default() });
                    let apart = sample::weigh(&guided, None, &Filter { top_k: 90, ..Filter::default() });
                    let [fused, apart] = [fused, apart].map(|weights| weights.unwrap().tensor().to_vec().unwrap());
                    assert_eq!(fused, apart, "{what}");
                }
            }
        }
    }
}

#[test]
fn guidance_agrees_with_reference_in_every_type() {
    guidance_agrees_with_reference::<f32>();
    guidance_agrees_with_reference::<f16>();
    guidance_agrees_with_reference::<bf16>();
}

#[test]
fn guidance_leaves_what_is_ruled_out() {
    let out = f64::NEG_INFINITY;
    for device in devices() {
        let x = tensor::<f32>(device, &[1, 4], &[1.0, out, 3.0, out]);
        let uncond = tensor::<f32>(device, &[1, 4], &[2.0, 5.0, out, out]);
        for (scale, kind, expected) in [(3.0, Guidance::Scale, -1.0), (-0.5, Guidance::Extra, 1.5)] {
            let y = sample::guide(&x, &uncond, scale, kind).unwrap().to_vec().unwrap();
            assert_eq!(y, [expected, f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY], "{device} {kind:?}");
        }
    }
}

#[test]
fn guidance_by_entropy_goes_from_none_to_the_whole_scale() {
    for device in devices() {
        let even = tensor::<f32>(device, &[3, 8], &[&[0.0; 8][..], &[9.0], &[0.0; 15]].concat());
        let certain = tensor::<f32>(device, &[1, 4], &[3.0, -300.0, -300.0, -300.0]);
        let scales = |logits: &Tensor<f32>| {
            let certainty = sample::certainty(&sample::weigh(logits, None, &Filter::default()).unwrap()).unwrap();
            sample::entropy_guidance(&certainty, logits.shape()[1], 4.0).unwrap().to_vec().unwrap()
        };
        let found = scales(&even);
        assert!((found[0] - 4.0).abs() < 1e-5 && found[0] == found[2], "{device}: {found:?}");
        assert!(1.0 < found[1] && found[1] < 1.1, "{device}: {found:?}");
        assert_eq!(scales(&certain), [1.0], "{device}");
    }
    let certainty = sample::Certainty {
        largest: tensor::<f32>(&cpu(), &[1], &[1.0]),
        entropy: tensor::<f32>(&cpu(), &[1], &[0.0]),
    };
    let message = sample::entropy_guidance(&certainty, 1, 2.0).unwrap_err().to_string();
    assert!(message.contains("vocabulary"), "{message}");
    let x = tensor::<f32>(&cpu(), &[2, 3], &[0.0; 6]);
    let message = sample::guide_rows(&x, &x, &certainty.entropy, Guidance::Scale).unwrap_err().to_string();
    assert!(message.contains("scales") && message.contains("[2]"), "{message}");
}

#[test]
fn typical_keeps_what_is_nearest_to_the_entropy() {
    // The entropy is 1.16 nats; the informations are 0.69, 1.39, 1.90, 3.00.
    let logits: Vec<f32> = [0.5f32, 0.25, 0.15, 0.05].iter().map(|p| p.ln()).collect();
    for device in devices() {
        let logits = Tensor::from_slice(device, &[1, 4], &logits).unwrap();
        for (typical, kept) in [(0.2, [0, 1, 0, 0]), (0.5, [1, 1, 0, 0]), (0.9, [1, 1, 1, 0]), (0.99, [1; 4])] {
            let filter = Filter { typical, ..Filter::default() };
            assert_eq!(sample::filter(&logits, &filter).unwrap().kept.to_vec().unwrap(), kept, "{device} {typical}");
        }
    }
}

#[test]
fn weights_of_shares_are_the_same_everywhere() {
    for [rows, vocabulary] in SHAPES {
        // From subnormal numbers to large ones; every seventh is nothing.
        let shares: Vec<f32> = uniform(64, rows * vocabulary)
            .iter()
            .enumerate()
            .map(|(index, x)| match index % 7 {
                6 => {
                    if index % 2 == 0 {
                        0.0
                    } else {
                        -0.0
                    }
                }
                5 => f32::from_bits(index as u32 + 1),
                power => (x.abs() + 0.1) as f32 * 10f32.powi(4 * power as i32 - 9),
            })
            .collect();
        let on = |device: &Device| {
            let shares = Tensor::from_slice(device, &[rows, vocabulary], &shares).unwrap();
            let weights = Weights::from_shares(&shares).unwrap();
            let draws = Draws::Uniform(vec![0.7; rows]);
            let tokens = sample::draw(&weights, &draws).unwrap();
            (weights.tensor().to_vec().unwrap(), tokens.to_vec().unwrap())
        };
        let expected = on(&Device::reference());
        for device in devices() {
            assert_eq!(on(device), expected, "{device} {rows} x {vocabulary}");
        }
    }
    let try_with = |shares: &[f32]| {
        Weights::from_shares(&Tensor::from_slice(&cpu(), &[1, shares.len()], shares).unwrap()).unwrap_err()
    };
    for bad in [&[0.5, -0.1][..], &[f32::NAN, 1.0], &[f32::INFINITY], &[0.0, -0.0]] {
        assert!(try_with(bad).to_string().contains("row 0"), "{bad:?}");
    }
    for device in devices().iter().filter(|device| gpu(device)) {
        let shares = Tensor::from_slice(device, &[3, 2], &[0.5f32, -0.1, 1.0, 0.0, f32::NAN, 1.0]).unwrap();
        let weights = Weights::from_shares(&shares).unwrap();
        let tokens = sample::draw(&weights, &Draws::Uniform(vec![0.5; 3])).unwrap();
        assert_eq!(tokens.to_vec().unwrap(), [u32::MAX, 0, u32::MAX]);
        let noise = Draws::Uniform(vec![0.5; 6]);
        assert_eq!(sample::race(&weights, &noise).unwrap().to_vec().unwrap(), [u32::MAX, 0, u32::MAX]);
    }
}

#[test]
fn races_end_the_same_everywhere() {
    for [rows, vocabulary] in SHAPES {
        let x: Vec<_> = uniform(65, rows * vocabulary).iter().map(|x| (x * 5.0).round()).collect();
        // 0, which stands for the least number, the largest, and many ties.
        let given: Vec<f32> = uniform(66, rows * vocabulary)
            .iter()
            .enumerate()
            .map(|(index, x)| match index % 5 {
                0 => 0.0,
                1 => 1.0 - f32::EPSILON / 2.0,
                2 => 0.5,
                _ => x.abs() as f32,
            })
            .collect();
        let streams: Vec<_> = (0..rows as u64).map(|row| u64::MAX - row).collect();
        for noise in [Draws::Uniform(given), Draws::Philox { seed: 77, streams, position: 12 }] {
            let on = |device: &Device| {
                let logits = tensor::<f32>(device, &[rows, vocabulary], &x);
                let filter = Filter { temperature: 1.4, top_p: 0.97, ..Filter::default() };
                sample::sample_gumbel(&logits, &filter, &noise).unwrap().to_vec().unwrap()
            };
            let expected = on(&Device::reference());
            for device in devices() {
                assert_eq!(on(device), expected, "{device} {rows} x {vocabulary} {noise:?}");
            }
        }
    }
}

#[test]
fn races_follow_the_distribution() {
    // Chi-square with 3 degrees of freedom: above 16.27 once in a thousand.
    let probabilities = [0.1f32, 0.4, 0.2, 0.3];
    let count = 200_000;
    let shares = Tensor::from_slice(&cpu(), &[1, 4], &probabilities).unwrap().broadcast(&[count, 4]).unwrap();
    let noise = Draws::Philox { seed: 5, streams: (0..count as u64).collect(), position: 3 };
    let tokens = sample::race(&Weights::from_shares(&shares).unwrap(), &noise).unwrap().to_vec().unwrap();
    let chi_square: f64 = (0u32..)
        .zip(probabilities)
        .map(|(token, p)| {
            let seen = tokens.iter().filter(|drawn| **drawn == token).count() as f64;
            let expected = f64::from(p) * count as f64;
            (seen - expected).powi(2) / expected
        })
        .sum();
    assert!(chi_square < 16.27, "chi-square {chi_square}");
}

#[test]
fn maskgit_steps_are_the_same_everywhere() {
    for [batch, places, vocabulary] in [[1, 1, 1], [2, 16, 50], [3, 257, 5], [1, 300, 300]] {
        let logits: Vec<_> = uniform(67, batch * places * vocabulary).iter().map(|x| x * 6.0).collect();
        // A known place in three; the last sequence has nothing masked, the first one place.
        let tokens: Vec<u32> = (0..batch * places)
            .map(|place| match place / places {
                0 if batch > 1 => {
                    if place == 3 {
                        MASKED
                    } else {
                        0
                    }
                }
                2 => 0,
                _ => {
                    if place % 3 == 2 {
                        0
                    } else {
                        MASKED
                    }
                }
            })
            .collect();
        let cells = batch * places;
        let places_drawn = Places {
            seed: 3,
            streams: (0..batch as u64).map(|picture| picture << 33).collect(),
            starts: vec![4; batch],
            round: 2,
        };
        let given = MaskGitDraws::Given {
            tokens: uniform(68, cells).iter().map(|x| x.abs() as f32).collect(),
            // With ties, and beyond what a confidence can hold.
            gumbel: uniform(69, cells).iter().map(|x| ((x * 8.0).round() * 20.0) as f32).collect(),
        };
        for draws in [MaskGitDraws::Philox(places_drawn), given] {
            for (step, choice_temperature, curve) in [
                (0, 4.5, Curve::Cosine),
                (3, 255.0, Curve::Power(2.0)),
                (6, 0.0, Curve::Arccos),
                (7, 1.0, Curve::Cosine),
            ] {
                let step = MaskGit { step, steps: 8, masked_at_start: places, curve, choice_temperature };
                let on = |device: &Device| {
                    let logits = tensor::<f32>(device, &[batch, places, vocabulary], &logits);
                    let tokens = Tensor::from_slice(device, &[batch, places], &tokens).unwrap();
                    let filter = Filter { top_k: 20, ..Filter::default() };
                    let done = maskgit_step(&logits, &tokens, &filter, &step, &draws).unwrap();
                    let [tokens, sampled, counts] =
                        [done.tokens, done.sampled, done.counts].map(|tensor| tensor.to_vec().unwrap());
                    (tokens, sampled, done.confidence.to_vec().unwrap(), counts)
                };
                let expected = on(&Device::reference());
                let again = expected.0.iter().filter(|token| **token == MASKED).count();
                assert_eq!(again, expected.3.iter().sum::<u32>() as usize, "{step:?}");
                for device in devices() {
                    assert_eq!(on(device), expected, "{device} {batch} x {places} x {vocabulary} {step:?}");
                }
            }
        }
    }
}

#[test]
fn maskgit_names_what_does_not_fit() {
    let logits = tensor::<f32>(&cpu(), &[1, 2, 3], &[0.0; 6]);
    let tokens = Tensor::from_slice(&cpu(), &[1, 2], &[MASKED; 2]).unwrap();
    let good = MaskGit { step: 0, steps: 2, masked_at_start: 2, curve: Curve::Cosine, choice_temperature: 1.0 };
    let draws = MaskGitDraws::Given { tokens: vec![0.5; 2], gumbel: vec![0.0; 2] };
    let try_with = |step: MaskGit, draws: &MaskGitDraws| {
        maskgit_step(&logits, &tokens, &Filter::default(), &step, draws).unwrap_err().to_string()
    };
    assert!(try_with(MaskGit { step: 2, ..good }, &draws).contains("step is 2"));
    assert!(try_with(MaskGit { choice_temperature: 256.0, ..good }, &draws).contains("choice_temperature is 256"));
    let nan = MaskGitDraws::Given { tokens: vec![0.5; 2], gumbel: vec![f32::NAN; 2] };
    assert!(try_with(good, &nan).contains("gumbel is NaN"));
    let few = MaskGitDraws::Given { tokens: vec![0.5], gumbel: vec![0.0; 2] };
    assert!(try_with(good, &few).contains("one per place"));
}

fn watermarks_are_the_same_everywhere<T: Float>() {
    for [rows, vocabulary] in SHAPES {
        let x = uniform(70, rows * vocabulary);
        let before: Vec<u32> = (0..rows as u32).map(|row| row * 7).collect();
        for green in [0.0, 0.25, 1.0] {
            let mark = sample::Watermark { key: u64::MAX / 5, green, bias: 1.5 };
            let on = |device: &Device| {
                let logits = tensor::<T>(device, &[rows, vocabulary], &x);
                let before = Tensor::from_slice(device, &[rows], &before).unwrap();
                let y = sample::watermark(&logits, &before, &mark).unwrap().to_vec().unwrap();
                y.iter().map(|y| y.to_f64()).collect::<Vec<_>>()
            };
            let expected = on(&Device::reference());
            for device in devices() {
                assert_eq!(on(device), expected, "{} {device} {rows} x {vocabulary} {green}", T::DTYPE);
            }
        }
    }
}

#[test]
fn watermarks_are_the_same_everywhere_in_every_type() {
    watermarks_are_the_same_everywhere::<f32>();
    watermarks_are_the_same_everywhere::<f16>();
    watermarks_are_the_same_everywhere::<bf16>();
}

#[test]
fn a_watermark_is_found_in_what_was_drawn_with_it() {
    let mark = sample::Watermark { key: 99, green: 0.5, bias: 2.0 };
    let logits = tensor::<f32>(&cpu(), &[1, 64], &uniform(71, 64));
    let draw = |mark: Option<&sample::Watermark>| {
        let mut tokens = vec![0u32];
        for position in 0..200 {
            let before = Tensor::from_slice(&cpu(), &[1], &tokens[tokens.len() - 1..]).unwrap();
            let marked = mark.map_or_else(|| logits.clone(), |m| sample::watermark(&logits, &before, m).unwrap());
            let draws = Draws::Philox { seed: 4, streams: vec![0], position };
            tokens.extend(sample::sample(&marked, &Filter::default(), &draws).unwrap().to_vec().unwrap());
        }
        tokens
    };
    let (with, without) = (mark.score(&draw(Some(&mark))), mark.score(&draw(None)));
    assert!(with > 6.0 && without.abs() < 3.0, "{with} with the watermark, {without} without");
    assert!(mark.score(&[]) == 0.0);
}

#[test]
fn certainty_is_that_of_the_probabilities() {
    for [rows, vocabulary] in SHAPES {
        let x: Vec<_> = uniform(72, rows * vocabulary).iter().map(|x| x * 12.0).collect();
        for device in devices() {
            let logits = tensor::<f32>(device, &[rows, vocabulary], &x);
            let weights = sample::weigh(&logits, None, &Filter { top_k: 300, ..Filter::default() }).unwrap();
            let probabilities = sample::filter(&logits, &Filter { top_k: 300, ..Filter::default() }).unwrap();
            let certainty = sample::certainty(&weights).unwrap();
            let (largest, entropy) = (certainty.largest.to_vec().unwrap(), certainty.entropy.to_vec().unwrap());
            for (row, p) in probabilities.probabilities.to_vec().unwrap().chunks(vocabulary).enumerate() {
                let most = p.iter().copied().fold(0.0, f32::max);
                let expected: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -f64::from(*p) * f64::from(*p).ln()).sum();
                assert!((largest[row] - most).abs() < 1e-5, "{device}: {}, expected {most}", largest[row]);
                let error = (f64::from(entropy[row]) - expected).abs();
                assert!(error <= 2e-5 * expected.max(1.0), "{device}: {}, expected {expected}", entropy[row]);
            }
        }
    }
    let soft = sample::soft_guidance(&[0.5, 1.0, 0.0, 0.1]);
    assert!(soft[1] == 0.0 && (soft.iter().sum::<f32>() - 1.0).abs() < 1e-6 && soft[2] > soft[0]);
    assert_eq!(sample::soft_guidance(&[0.75]), [0.25]);
}

/// A logit: mostly a number, some equal to others, some ruled out.
fn any_logit() -> impl Strategy<Value = f64> {
    prop_oneof![6 => -20.0..20.0f64, 2 => (-3..3i32).prop_map(f64::from), 1 => Just(f64::NEG_INFINITY)]
}

/// Any filter, with every part of it off at times.
pub fn any_filter() -> impl Strategy<Value = Filter> {
    let share = || prop_oneof![Just(1.0f32), 0.001..1.0f32];
    let top_k = prop_oneof![Just(0usize), 1..400usize];
    let temperature = prop_oneof![Just(0.0f32), Just(1.0), 0.05..4.0f32];
    let min_p = prop_oneof![Just(0.0f32), 0.0..1.0f32];
    (temperature, top_k, share(), min_p, share()).prop_map(|(temperature, top_k, top_p, min_p, typical)| Filter {
        temperature,
        top_k,
        top_p,
        min_p,
        typical,
    })
}

/// Rows of logits, each with at least one that is finite.
fn any_rows() -> impl Strategy<Value = (usize, usize, Vec<f64>)> {
    (1..4usize, prop_oneof![1..40usize, 250..600usize]).prop_flat_map(|(rows, vocabulary)| {
        prop::collection::vec(any_logit(), rows * vocabulary).prop_map(move |mut logits| {
            logits.chunks_mut(vocabulary).for_each(|row| row[0] = row[0].max(-5.0));
            (rows, vocabulary, logits)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_draw_is_the_same_everywhere(
        (rows, vocabulary, logits) in any_rows(),
        filter in any_filter(),
        u in prop_oneof![Just(0.0f32), 0.0..1.0f32],
        seed in any::<u64>(),
        position in any::<u32>(),
    ) {
        let streams: Vec<_> = (0..rows as u64).map(|row| seed.rotate_left(7) ^ row).collect();
        let on = |device: &Device| {
            let logits = tensor::<f32>(device, &[rows, vocabulary], &logits);
            let philox = Draws::Philox { seed, streams: streams.clone(), position };
            let given = sample::sample(&logits, &filter, &Draws::Uniform(vec![u; rows])).unwrap();
            let drawn = sample::sample(&logits, &filter, &philox).unwrap();
            let raced = sample::sample_gumbel(&logits, &filter, &philox).unwrap();
            let weights = sample::weigh(&logits, None, &filter).unwrap();
            [&given, &drawn, &raced, weights.tensor()].map(|tensor| tensor.to_vec().unwrap())
        };
        let expected = on(&Device::reference());
        for device in devices() {
            prop_assert_eq!(&on(device), &expected, "{}", device);
        }
        // No token is drawn that the filter rules out.
        let kept = &expected[3];
        for tokens in &expected[..3] {
            for (row, token) in tokens.iter().enumerate() {
                prop_assert!(kept[row * vocabulary + *token as usize] > 0, "row {} token {}", row, token);
            }
        }
    }

    #[test]
    fn any_filter_keeps_what_the_definition_keeps((rows, vocabulary, logits) in any_rows(), filter in any_filter()) {
        // The definition is in f64, so that a share that falls on a sum may be cut otherwise: such cases are few, and
        // differ by one token.
        let on = |device: &Device| {
            let logits = tensor::<f32>(device, &[rows, vocabulary], &logits);
            let filtered = sample::filter(&logits, &filter).unwrap();
            (filtered.probabilities.to_vec().unwrap(), filtered.kept.to_vec().unwrap())
        };
        let (_, expected) = on(&Device::reference());
        for device in devices() {
            let (probabilities, kept) = on(device);
            let differ = kept.iter().zip(&expected).filter(|(got, expected)| got != expected).count();
            // A typical filter leaves out what weighs less than 2^-30, of which there may be many.
            prop_assert!(filter.typical < 1.0 || differ <= rows, "{}: {} tokens differ", device, differ);
            for row in probabilities.chunks(vocabulary) {
                let sum: f64 = row.iter().map(|p| f64::from(*p)).sum();
                prop_assert!((sum - 1.0).abs() < 1e-5, "{}: a row sums to {}", device, sum);
            }
        }
    }
}
