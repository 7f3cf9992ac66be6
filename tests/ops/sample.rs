//! Filters and draws.

use smalti::sample::{self, Draws, Filter};
use smalti::{Backend, Device, Error, Float, Tensor, bf16, f16};

use crate::common::{devices, moved, tensor, uniform};

fn cpu() -> Device {
    Device::cpu()
}

#[test]
fn filter_agrees_with_reference() {
    for (rows, vocabulary) in [(1, 1), (3, 7), (2, 1000)] {
        let logits: Vec<_> = uniform(50, rows * vocabulary).iter().map(|x| x * 6.0).collect();
        for filter in [
            Filter::default(),
            Filter { temperature: 0.7, top_k: 5, ..Filter::default() },
            Filter { top_p: 0.8, ..Filter::default() },
            Filter { top_k: 50, top_p: 0.5, min_p: 0.1, temperature: 1.3 },
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
                Filter { temperature: 0.9, top_k: 200, top_p: 0.95, min_p: 0.02 },
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
    for device in devices().iter().filter(|device| device.backend() == Backend::Wgpu) {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let x = tensor::<f32>(device, &[3, 2], &[0.0, 1.0, bad, f64::NEG_INFINITY, 2.0, 1.0]);
            assert_eq!(sample::argmax(&x).unwrap().to_vec().unwrap(), [1, u32::MAX, 0], "{bad}");
        }
    }
}
