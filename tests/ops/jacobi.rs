//! Verification of drafts: the same everywhere, and lossless where it claims to be.

use proptest::prelude::*;
use smalti::jacobi::{self, Gaussians, Groups, Proposal, Rule, Verified, VerifyDraws, Window};
use smalti::sample::{self, Draws, Filter, Guidance, Guide, Places, Weights};
use smalti::{Backend, Device, Error, Float, Tensor, bf16, f16};

use crate::common::{devices, tensor, uniform};

fn numbers(verified: &Verified) -> [Vec<u32>; 5] {
    [&verified.kept, &verified.accepted, &verified.settled, &verified.next, &verified.tokens]
        .map(|tensor| tensor.to_vec().unwrap())
}

/// Weights in which many are 0, equal, or the largest there is.
fn weights(seed: u64, rows: usize, vocabulary: usize) -> Vec<u32> {
    let weight = |x: &f64| match (x.abs() * 8.0) as u32 {
        0 | 1 => 0,
        2 => 1 << 30,
        3 => 7,
        _ => (x.abs() * 1e9) as u32,
    };
    let mut weights: Vec<u32> = uniform(seed, rows * vocabulary).iter().map(weight).collect();
    // No row is all 0.
    weights.chunks_mut(vocabulary).for_each(|row| row[vocabulary / 2] = row[vocabulary / 2].max(3));
    weights
}

fn below(seed: u64, count: usize, limit: usize) -> Vec<u32> {
    uniform(seed, count).iter().map(|x| (x.abs() * limit as f64) as u32).collect()
}

/// Draft windows of one place and of many, with and without a place more; vocabularies around a kernel's 256
/// invocations, and around as many runs of 16 bytes.
const CASES: [[usize; 4]; 9] = [
    [1, 1, 1, 1],
    [2, 3, 3, 5],
    [3, 1, 2, 255],
    [1, 4, 5, 257],
    [2, 5, 5, 1031],
    [2, 8, 8, 1032],
    [1, 4, 4, 1020],
    [0, 3, 3, 4],
    [2, 0, 1, 9],
];

#[test]
fn verifications_are_the_same_everywhere() {
    for [batch, drafts, places, vocabulary] in CASES {
        let rows = batch * places;
        let p = weights(80, batch * drafts, vocabulary);
        let mut q = weights(81, rows, vocabulary);
        // The first sequence's first draft was drawn from what is still right.
        if rows > 0 && drafts > 0 {
            q[..vocabulary].copy_from_slice(&p[..vocabulary]);
        }
        let mut draft = below(82, batch * drafts, vocabulary);
        // A draft from outside the vocabulary is never kept.
        if let Some(last) = draft.last_mut().filter(|_| batch > 1) {
            *last = u32::MAX;
        }
        // Groups of 1 to 4 tokens.
        let width = 4.min(vocabulary);
        let table: Vec<u32> = (0..vocabulary)
            .flat_map(|token| {
                let member = move |index| ((token + index * 3) % vocabulary) as u32;
                (0..width).map(move |index| if index == 0 || token % 3 != index { member(index) } else { u32::MAX })
            })
            .collect();
        let edge = |x: f64| match (x.abs() * 5.0) as u32 {
            0 => 0.0,
            1 => 1.0 - f32::EPSILON / 2.0,
            _ => x.abs() as f32,
        };
        let given = |seed| uniform(seed, rows).into_iter().map(edge).collect::<Vec<_>>();
        let drawn = Places {
            seed: 1 << 40,
            streams: (0..batch as u64).map(|stream| stream << 31).collect(),
            starts: below(83, batch, 1000),
            round: 4,
        };
        for draws in
            [VerifyDraws::Given { fresh: given(84), accept: given(85), couple: given(86) }, VerifyDraws::Philox(drawn)]
        {
            for rule in [Rule::Fresh, Rule::Coupled] {
                for groups in 0..4 {
                    let on = |device: &Device| {
                        let weights = |rows, values: &[u32]| {
                            let tensor = Tensor::from_slice(device, &[rows, vocabulary], values).unwrap();
                            Weights::from_tensor(tensor).unwrap()
                        };
                        let (p, q) = (weights(batch * drafts, &p), weights(rows, &q));
                        let draft = Tensor::from_slice(device, &[batch, drafts], &draft).unwrap();
                        let table = Tensor::from_slice(device, &[vocabulary, width], &table).unwrap();
                        let groups = match groups {
                            0 => None,
                            1 => Some(Groups::clusters(&table).unwrap()),
                            2 => Some(Groups::relaxed(&table, 0.2).unwrap()),
                            _ => Some(Groups::relaxed(&table, 1.0).unwrap()),
                        };
                        numbers(&jacobi::verify(&p, &q, &draft, groups.as_ref(), rule, &draws).unwrap())
                    };
                    let expected = on(&Device::reference());
                    for device in devices() {
                        let case = [batch, drafts, places, vocabulary];
                        assert_eq!(on(device), expected, "{device} {case:?} {rule:?} groups {groups} {draws:?}");
                    }
                }
            }
        }
    }
}

fn nearby_groups_are_the_same_everywhere<T: Float>() {
    for [batch, drafts, vocabulary] in [[1, 1, 1], [2, 3, 16], [1, 4, 257], [1, 2, 600]] {
        // Whole numbers tie.
        let logits: Vec<_> =
            uniform(90, batch * drafts * vocabulary).iter().map(|x| (x * 20.0).round() / 2.0).collect();
        let distances = uniform(91, vocabulary * vocabulary);
        let draft = below(92, batch * drafts, vocabulary);
        for window in [
            Window { below: 7, above: 6, band: 0.15, reach: 0.5 },
            Window { below: 1, above: 0, band: 1.0, reach: f32::INFINITY },
            Window { below: 0, above: 3, band: 0.001, reach: 0.0 },
        ] {
            let on = |device: &Device| {
                let logits = tensor::<T>(device, &[batch, drafts, vocabulary], &logits);
                let rows = logits.reshape(&[batch * drafts, vocabulary]).unwrap();
                let q = sample::weigh(&rows, None, &Filter { top_k: 200, ..Filter::default() }).unwrap();
                let draft = Tensor::from_slice(device, &[batch, drafts], &draft).unwrap();
                let distances = tensor::<f32>(device, &[vocabulary, vocabulary], &distances);
                let groups = Groups::nearby(&logits, &q, &draft, &distances, window).unwrap();
                let draws = VerifyDraws::Given {
                    fresh: vec![0.5; batch * drafts],
                    accept: vec![0.5; batch * drafts],
                    couple: vec![0.5; batch * drafts],
                };
                let p = Weights::uniform(device, batch * drafts, vocabulary).unwrap();
                let verified = jacobi::verify(&p, &q, &draft, Some(&groups), Rule::Fresh, &draws).unwrap();
                (groups.tokens().to_vec().unwrap(), numbers(&verified))
            };
            let expected = on(&Device::reference());
            for device in devices() {
                assert_eq!(on(device), expected, "{} {device} {batch} x {drafts} x {vocabulary} {window:?}", T::DTYPE);
            }
        }
    }
}

#[test]
fn nearby_groups_are_the_same_everywhere_in_every_type() {
    nearby_groups_are_the_same_everywhere::<f32>();
    nearby_groups_are_the_same_everywhere::<f16>();
    nearby_groups_are_the_same_everywhere::<bf16>();
}

#[test]
fn steps_are_the_same_everywhere() {
    let [batch, drafts, vocabulary] = [2, 4, 300];
    let logits: Vec<_> = uniform(93, batch * drafts * vocabulary).iter().map(|x| x * 5.0).collect();
    let uncond: Vec<_> = uniform(94, batch * drafts * vocabulary).iter().map(|x| x * 5.0).collect();
    let draft = below(95, batch * drafts, vocabulary);
    for rule in [Rule::Fresh, Rule::Coupled] {
        let on = |device: &Device| {
            let logits = tensor::<f16>(device, &[batch, drafts, vocabulary], &logits);
            let uncond = tensor::<f16>(device, &[batch, drafts, vocabulary], &uncond);
            let guide = Guide { uncond: &uncond, scale: 2.0, kind: Guidance::Scale };
            let filter = Filter { temperature: 0.9, top_k: 100, top_p: 0.95, ..Filter::default() };
            let mut proposal = Proposal {
                tokens: Tensor::from_slice(device, &[batch, drafts], &draft).unwrap(),
                weights: Weights::uniform(device, batch * drafts, vocabulary).unwrap(),
            };
            let mut seen = Vec::new();
            for round in 0..3 {
                let places = Places { seed: 9, streams: vec![5, 6], starts: vec![0, 7], round };
                let draws = VerifyDraws::Philox(places);
                let step = jacobi::step(&logits, Some(guide), &filter, &proposal, None, rule, &draws).unwrap();
                seen.push(numbers(&step.0));
                proposal = step.1;
            }
            seen
        };
        let expected = on(&Device::reference());
        for device in devices() {
            assert_eq!(on(device), expected, "{device} {rule:?}");
        }
        // What has not changed is kept to the last.
        assert_eq!(expected[1][1], [drafts as u32; 2], "{rule:?}");
    }
}

#[test]
fn greedy_jacobi_is_greedy_decoding() {
    let (length, vocabulary) = (9, 11);
    let table = uniform(96, length * vocabulary * vocabulary);
    let row = |place: usize, before: u32| &table[(place * vocabulary + before as usize) * vocabulary..][..vocabulary];
    let largest = |row: &[f64]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32;
    let mut expected = Vec::new();
    for place in 0..length {
        expected.push(largest(row(place, expected.last().copied().unwrap_or(0))));
    }
    let home = Device::reference();
    for device in devices().iter().chain([&home]) {
        let start = Tensor::from_slice(device, &[2, length], &below(97, 2 * length, vocabulary)).unwrap();
        let mut passes = 0;
        let forward = |tokens: &Tensor<u32>| -> Result<Tensor<f32>, Error> {
            passes += 1;
            let tokens = tokens.to_vec()?;
            let before = |at: usize| if at.is_multiple_of(length) { 0 } else { tokens[at - 1] };
            let logits: Vec<_> = (0..2 * length).flat_map(|at| row(at % length, before(at)).to_vec()).collect();
            Ok(tensor(device, &[2, length, vocabulary], &logits))
        };
        let done = jacobi::greedy_loop(&start, forward).unwrap();
        assert_eq!(done.tokens.to_vec().unwrap(), [expected.clone(), expected.clone()].concat(), "{device}");
        assert!(done.iterations <= length + 1 && done.iterations == passes, "{device}: {} passes", done.iterations);
    }
}

/// A chain of three tokens from a vocabulary of four: what may follow depends on the token before and on the place.
struct Chain {
    /// Per place and token before, filtered: the weights of the token.
    rows: Vec<Vec<u32>>,
}

const LENGTH: usize = 3;
const VOCABULARY: usize = 4;

impl Chain {
    fn new(seed: u64) -> Self {
        let rows = LENGTH * VOCABULARY;
        let logits: Vec<_> = uniform(seed, rows * VOCABULARY).iter().map(|x| x * 2.0).collect();
        let logits = tensor::<f32>(&Device::reference(), &[rows, VOCABULARY], &logits);
        let filter = Filter { temperature: 0.8, top_k: 3, ..Filter::default() };
        let weights = sample::weigh(&logits, None, &filter).unwrap();
        Self { rows: weights.tensor().to_vec().unwrap().chunks(VOCABULARY).map(<[u32]>::to_vec).collect() }
    }

    fn row(&self, place: usize, before: u32) -> &[u32] {
        &self.rows[place * VOCABULARY + before as usize]
    }

    /// The present weights of the places from `start` on, given each sequence's tokens.
    fn weights(&self, sequences: &[[u32; LENGTH]], start: usize) -> Vec<u32> {
        let before = |sequence: &[u32; LENGTH], place: usize| if place == 0 { 0 } else { sequence[place - 1] };
        let rows = sequences.iter().flat_map(|sequence| (start..LENGTH).map(move |place| (sequence, place)));
        rows.flat_map(|(sequence, place)| self.row(place, before(sequence, place)).to_vec()).collect()
    }

    /// Against the law of drawing one token after another: chi-square, and its degrees of freedom. A sequence that cannot
    /// be drawn makes it infinite.
    fn chi_square(&self, sequences: &[[u32; LENGTH]]) -> (f64, usize) {
        let mut counts = vec![0.0; VOCABULARY.pow(LENGTH as u32)];
        let number = |sequence: &[u32]| sequence.iter().fold(0, |number, token| number * VOCABULARY + *token as usize);
        sequences.iter().for_each(|sequence| counts[number(sequence)] += 1.0);
        let (mut chi_square, mut outcomes) = (0.0, 0);
        for (index, count) in counts.iter().enumerate() {
            let mut expected = sequences.len() as f64;
            let mut before = 0;
            for place in 0..LENGTH {
                let token = index / VOCABULARY.pow((LENGTH - 1 - place) as u32) % VOCABULARY;
                let row = self.row(place, before);
                let total: f64 = row.iter().map(|weight| f64::from(*weight)).sum();
                expected *= f64::from(row[token]) / total;
                before = token as u32;
            }
            if expected > 0.0 {
                chi_square += (count - expected).powi(2) / expected;
                outcomes += 1;
            } else if *count > 0.0 {
                chi_square = f64::INFINITY;
            }
        }
        (chi_square, outcomes - 1)
    }
}

/// How a window is verified.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Decoder {
    /// Jacobi, from uniform drafts.
    Jacobi(Rule),
    /// Jacobi, from drafts that are given: a copy of the same token everywhere.
    Repeat(Rule),
    /// Drafts of a second chain.
    Speculative,
    /// Jacobi with the same noise in every round.
    Gumbel,
    /// Jacobi that accepts a draft by the mass of two tokens: wrong on purpose.
    Grouped,
}

/// Sequences by windows that reach to the end, on the CPU, and how many passes each took on average.
fn decode(chain: &Chain, decoder: Decoder, count: usize) -> (Vec<[u32; LENGTH]>, f64) {
    let device = Device::cpu();
    let second = Chain::new(7);
    let weights = |values: Vec<u32>| {
        let rows = values.len() / VOCABULARY;
        Weights::from_tensor(Tensor::from_vec(&device, &[rows, VOCABULARY], values).unwrap()).unwrap()
    };
    let streams: Vec<u64> = (0..count as u64).collect();
    let draw = |weights: &Weights, streams: &[u64], position: u32, seed: u64| {
        let draws = Draws::Philox { seed, streams: streams.to_vec(), position };
        sample::draw(weights, &draws).unwrap().to_vec().unwrap()
    };
    let table = Tensor::from_slice(&device, &[VOCABULARY, 2], &[0u32, 1, 1, 0, 2, 3, 3, 2]).unwrap();
    let groups = (decoder == Decoder::Grouped).then(|| Groups::clusters(&table).unwrap());
    let rule = match decoder {
        Decoder::Jacobi(rule) | Decoder::Repeat(rule) => rule,
        _ => Rule::Fresh,
    };
    // The state of each sequence: its tokens, how many are final, and what the others were drawn from.
    let mut tokens = vec![[0; LENGTH]; count];
    let mut done = vec![0; count];
    let one = |token: u32| (0..VOCABULARY as u32).map(|other| u32::from(other == token)).collect::<Vec<_>>();
    let mut drawn_from = vec![vec![vec![1; VOCABULARY]; LENGTH]; count];
    for place in 0..LENGTH {
        let uniform = Weights::uniform(&device, count, VOCABULARY).unwrap();
        let drafts = draw(&uniform, &streams, place as u32, 11);
        for (sequence, draft) in drafts.into_iter().enumerate() {
            tokens[sequence][place] = draft;
            if matches!(decoder, Decoder::Repeat(_)) {
                tokens[sequence][place] = 1;
                drawn_from[sequence][place] = one(1);
            }
        }
    }
    let mut passes = 0;
    for round in 1.. {
        if done.iter().all(|done| *done == LENGTH) {
            break;
        }
        for start in (0..LENGTH).rev() {
            let who: Vec<usize> = (0..count).filter(|sequence| done[*sequence] == start).collect();
            if who.is_empty() {
                continue;
            }
            passes += who.len();
            let places = LENGTH - start;
            let own_streams: Vec<u64> = who.iter().map(|sequence| streams[*sequence]).collect();
            let mut own: Vec<_> = who.iter().map(|sequence| tokens[*sequence]).collect();
            let mut p = Vec::new();
            let mut drafts = places;
            if decoder == Decoder::Speculative {
                // The second model drafts all but the last, one after another.
                drafts -= 1;
                let mut columns = Vec::new();
                for place in start..LENGTH - 1 {
                    let before = |tokens: &[u32; LENGTH]| if place == 0 { 0 } else { tokens[place - 1] };
                    let rows: Vec<u32> =
                        own.iter().flat_map(|tokens| second.row(place, before(tokens)).to_vec()).collect();
                    let new = draw(&weights(rows.clone()), &own_streams, place as u32, 1000 + round);
                    own.iter_mut().zip(new).for_each(|(tokens, new)| tokens[place] = new);
                    columns.push(rows);
                }
                for sequence in 0..who.len() {
                    columns.iter().for_each(|rows| p.extend(&rows[sequence * VOCABULARY..][..VOCABULARY]));
                }
            } else {
                who.iter().for_each(|sequence| drawn_from[*sequence][start..].iter().for_each(|row| p.extend(row)));
            }
            let q = chain.weights(&own, start);
            let draft = own.iter().flat_map(|tokens| tokens[start..start + drafts].to_vec()).collect();
            let draft = Tensor::from_vec(&device, &[who.len(), drafts], draft).unwrap();
            let verified = if decoder == Decoder::Gumbel {
                // One number per token, from its stream and position alone.
                let number = |stream: u64, place: usize, token: usize| {
                    let word = smalti::rng::word(3, stream, place as u32, 1 << 31, token);
                    (f64::from(word >> 8) / f64::from(1 << 24)) as f32
                };
                let rows = own_streams.iter().flat_map(|stream| (start..LENGTH).map(move |place| (*stream, place)));
                let noise = rows
                    .flat_map(|(stream, place)| (0..VOCABULARY).map(move |token| number(stream, place, token)))
                    .collect();
                jacobi::gumbel_verify(&weights(q.clone()), &draft, &Draws::Uniform(noise)).unwrap()
            } else {
                let starts = vec![start as u32; who.len()];
                let draws =
                    VerifyDraws::Philox(Places { seed: 2, streams: own_streams.clone(), starts, round: round as u32 });
                jacobi::verify(&weights(p), &weights(q.clone()), &draft, groups.as_ref(), rule, &draws).unwrap()
            };
            let [_, _, settled, _, new] = numbers(&verified);
            for (index, sequence) in who.iter().enumerate() {
                for place in start..LENGTH {
                    let at = index * places + place - start;
                    tokens[*sequence][place] = new[at];
                    drawn_from[*sequence][place] = q[at * VOCABULARY..][..VOCABULARY].to_vec();
                }
                done[*sequence] += settled[index] as usize;
            }
        }
    }
    (tokens, passes as f64 / count as f64)
}

/// Above this chi-square of 26 degrees of freedom once in a thousand.
const CRITICAL: f64 = 54.05;

#[test]
fn lossless_decoders_draw_the_law_of_one_after_another() {
    let chain = Chain::new(8);
    for decoder in [
        Decoder::Jacobi(Rule::Fresh),
        Decoder::Jacobi(Rule::Coupled),
        Decoder::Repeat(Rule::Fresh),
        Decoder::Repeat(Rule::Coupled),
        Decoder::Speculative,
        Decoder::Gumbel,
    ] {
        let (sequences, passes) = decode(&chain, decoder, 200_000);
        let (chi_square, freedom) = chain.chi_square(&sequences);
        println!("{decoder:?}: chi-square {chi_square:.1} of {freedom} degrees, {passes:.2} passes");
        assert!(freedom == 26 && chi_square < CRITICAL, "{decoder:?}: chi-square {chi_square} of {freedom}");
        assert!(passes < LENGTH as f64, "{decoder:?}: {passes} passes");
    }
}

#[test]
fn a_wrong_acceptance_rule_fails_the_test_of_the_law() {
    let chain = Chain::new(8);
    let (sequences, _) = decode(&chain, Decoder::Grouped, 200_000);
    let (chi_square, _) = chain.chi_square(&sequences);
    assert!(chi_square > 10.0 * CRITICAL, "chi-square {chi_square}");
}

#[test]
fn paths_are_verified_alike_everywhere() {
    for shape in [[1, 1, 1, 1], [2, 3, 5, 16], [1, 2, 30, 20], [0, 2, 3, 4], [2, 0, 3, 4]] {
        let count = shape.iter().product();
        let on = |device: &Device| {
            let of = |seed: u64, scale: f64| {
                let values: Vec<_> = uniform(seed, count).iter().map(|x| x * scale).collect();
                tensor::<f32>(device, &shape, &values)
            };
            let (x, noise) = (of(130, 1.0), of(131, 0.3));
            let (mean, near, spread, other) = (of(132, 0.1), of(133, 0.1), noise, of(134, 0.3));
            let u: Vec<_> = uniform(135, shape[0] * shape[1]).iter().map(|u| u.abs()).collect();
            let u = tensor::<f32>(device, &shape[..2], &u);
            let draft = Gaussians { mean: &mean, log_variance: &spread };
            let target = Gaussians { mean: &near, log_variance: &other };
            let verified = jacobi::verify_paths(&x, draft, target, &u).unwrap();
            (verified.log_ratio.to_vec().unwrap(), verified.kept.to_vec().unwrap(), verified.accepted.to_vec().unwrap())
        };
        let (expected, kept, accepted) = on(&Device::reference());
        let largest = expected.iter().fold(1.0f32, |most, ratio| most.max(ratio.abs()));
        for device in devices() {
            let got = on(device);
            for (got, expected) in got.0.iter().zip(&expected) {
                assert!((got - expected).abs() <= 1e-5 * largest, "{device} {shape:?}: {got}, expected {expected}");
            }
            assert_eq!((got.1, got.2), (kept.clone(), accepted.clone()), "{device} {shape:?}");
        }
    }
}

#[test]
fn a_path_without_a_ratio_does_not_pass() {
    // Equal densities, a NaN among the states, infinity less infinity, and a target that is far denser, or far thinner.
    let shape = [1, 5, 2, 1];
    let x = [0.0, 0.0, f64::NAN, 0.0, 0.0, f64::INFINITY, 0.0, 1e30, 0.0, 0.0];
    let mean = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1e30, 1e30, 0.0];
    for device in std::iter::once(&Device::reference()).chain(devices()) {
        let of = |values: &[f64]| tensor::<f32>(device, &shape, values);
        let (zero, mean) = (of(&[0.0; 10]), of(&mean));
        let draft = Gaussians { mean: &zero, log_variance: &zero };
        let target = Gaussians { mean: &mean, log_variance: &zero };
        let u = tensor::<f32>(device, &shape[..2], &[0.5; 5]);
        let verified = jacobi::verify_paths(&of(&x), draft, target, &u).unwrap();
        let ratios = verified.log_ratio.to_vec().unwrap();
        assert!(ratios[1].is_nan() && ratios[2].is_nan(), "{device}: {ratios:?}");
        assert_eq!(ratios[3..], [f32::INFINITY, f32::NEG_INFINITY], "{device}");
        assert_eq!(verified.kept.to_vec().unwrap(), [1, 0, 0, 1, 0], "{device}");
        assert_eq!(verified.accepted.to_vec().unwrap(), [1], "{device}");
    }
    assert!(!jacobi::takes_residual(f32::NAN, 0.0));
}

#[test]
fn paths_have_the_law_of_the_target() {
    // One step and one channel: drafts of N(0, 1), a target N(0.7, 0.8^2), in 20 bins of equal probability.
    let device = Device::cpu();
    let count = 200_000;
    let normal = |stream: u64, block: u32| {
        let number = |word| (f64::from(smalti::rng::word(6, stream, 0, block, word)) + 0.5) / 4_294_967_296.0;
        (-2.0 * number(0).ln()).sqrt() * (std::f64::consts::TAU * number(1)).cos()
    };
    let word = |stream: u64, block: u32| f64::from(smalti::rng::word(6, stream, 0, block, 2) >> 8) / f64::from(1 << 24);
    let (mean, deviation) = (0.7, 0.8f64);
    let (spread, shift) = (2.0 * deviation.ln(), mean);
    let all = |value: f64, rows: usize| tensor::<f32>(&device, &[rows, 1, 1, 1], &vec![value; rows]);
    let ratios = |x: &[f64], u: &[f64]| {
        let rows = x.len();
        let (zero, target_mean, target_spread) = (all(0.0, rows), all(shift, rows), all(spread, rows));
        let verified = jacobi::verify_paths(
            &tensor::<f32>(&device, &[rows, 1, 1, 1], x),
            Gaussians { mean: &zero, log_variance: &zero },
            Gaussians { mean: &target_mean, log_variance: &target_spread },
            &tensor::<f32>(&device, &[rows, 1], u),
        );
        let verified = verified.unwrap();
        (verified.accepted.to_vec().unwrap(), verified.log_ratio.to_vec().unwrap())
    };
    let mut x: Vec<f64> = (0..count).map(|stream| normal(stream, 0)).collect();
    let u: Vec<f64> = (0..count).map(|stream| word(stream, 0)).collect();
    let (accepted, _) = ratios(&x, &u);
    let mut open: Vec<usize> = (0..x.len()).filter(|at| accepted[*at] == 0).collect();
    assert!(open.len() > 10_000 && open.len() < 150_000, "{} rejected", open.len());
    for block in 1.. {
        if open.is_empty() {
            break;
        }
        let drawn: Vec<f64> = open.iter().map(|at| shift + deviation * normal(*at as u64, block)).collect();
        let (_, log_ratios) = ratios(&drawn, &vec![0.0; open.len()]);
        let mut left = Vec::new();
        for ((at, drawn), log_ratio) in open.iter().zip(drawn).zip(log_ratios) {
            if jacobi::takes_residual(log_ratio, word(*at as u64, block) as f32) {
                x[*at] = drawn;
            } else {
                left.push(*at);
            }
        }
        open = left;
    }
    // The normal distribution by its series.
    let below = |x: f64| {
        let z = (x - mean) / deviation;
        let (mut sum, mut term) = (0.0, z);
        for n in 1..200 {
            sum += term;
            term *= z * z / f64::from(2 * n + 1);
        }
        0.5 + sum * (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt()
    };
    let mut bins = [0.0; 20];
    x.iter().for_each(|x| bins[((below(*x) * 20.0) as usize).min(19)] += 1.0);
    let expected = count as f64 / 20.0;
    let chi_square: f64 = bins.iter().map(|seen: &f64| (seen - expected).powi(2) / expected).sum();
    // Of 19 degrees of freedom: above 43.82 once in a thousand.
    assert!(chi_square < 43.82, "chi-square {chi_square}");
}

#[test]
fn verify_names_what_does_not_fit() {
    let device = Device::cpu();
    let weights = |rows| Weights::uniform(&device, rows, 5).unwrap();
    let draft = Tensor::from_slice(&device, &[1, 2], &[0u32, 1]).unwrap();
    let draws =
        |count| VerifyDraws::Given { fresh: vec![0.5; count], accept: vec![0.5; count], couple: vec![0.5; count] };
    let try_with = |p: &Weights, q: &Weights, count| {
        jacobi::verify(p, q, &draft, None, Rule::Fresh, &draws(count)).unwrap_err().to_string()
    };
    assert!(try_with(&weights(2), &weights(4), 2).contains("verify: q has shape [4, 5]"));
    assert!(try_with(&weights(3), &weights(2), 2).contains("verify: p has shape [3, 5]"));
    assert!(try_with(&weights(2), &weights(2), 3).contains("one per place"));
    let empty = Weights::from_tensor(Tensor::zeros(&device, &[2, 5]).unwrap()).unwrap();
    assert!(try_with(&weights(2), &empty, 2).contains("all 0 in row 0"));
    let table = Tensor::<u32>::zeros(&device, &[5, 0]).unwrap();
    assert!(Groups::clusters(&table).is_err());
    assert!(Groups::relaxed(&Tensor::zeros(&device, &[5, 1]).unwrap(), 1.5).is_err());
    for device in devices().iter().filter(|device| matches!(device.backend(), Backend::Wgpu | Backend::Cuda)) {
        let weights =
            |values: Vec<u32>| Weights::from_tensor(Tensor::from_vec(device, &[2, 2], values).unwrap()).unwrap();
        let draft = Tensor::from_slice(device, &[1, 2], &[0u32, 1]).unwrap();
        let q = weights(vec![0, 0, 1, 1]);
        let verified = jacobi::verify(&weights(vec![1; 4]), &q, &draft, None, Rule::Fresh, &draws(2)).unwrap();
        assert_eq!(verified.next.to_vec().unwrap(), [u32::MAX]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_verification_is_the_same_everywhere(
        (batch, drafts, more, vocabulary) in (1..4usize, 1..5usize, 0..2usize, prop_oneof![1..8usize, 250..300usize]),
        seed in any::<u64>(),
        coupled in any::<bool>(),
        bound in prop_oneof![Just(None), (0.0..=1.0f32).prop_map(Some)],
    ) {
        let places = drafts + more;
        let (p, q) = (weights(seed | 1, batch * drafts, vocabulary), weights(seed >> 1 | 1, batch * places, vocabulary));
        let draft = below(seed >> 2 | 1, batch * drafts, vocabulary);
        let table: Vec<u32> = (0..vocabulary).flat_map(|t| [t as u32, ((t + 1) % vocabulary) as u32]).collect();
        let width = if vocabulary == 1 { 1 } else { 2 };
        let table = if width == 1 { vec![0] } else { table };
        let streams: Vec<u64> = (0..batch as u64).map(|stream| stream ^ seed).collect();
        let draws = VerifyDraws::Philox(Places { seed, streams, starts: vec![seed as u32; batch], round: 1 });
        let rule = if coupled { Rule::Coupled } else { Rule::Fresh };
        let on = |device: &Device| {
            let weights = |rows, values: &[u32]| {
                Weights::from_tensor(Tensor::from_slice(device, &[rows, vocabulary], values).unwrap()).unwrap()
            };
            let table = Tensor::from_slice(device, &[vocabulary, width], &table).unwrap();
            let groups = bound.map(|bound| Groups::relaxed(&table, bound).unwrap());
            let draft = Tensor::from_slice(device, &[batch, drafts], &draft).unwrap();
            let (p, q) = (weights(batch * drafts, &p), weights(batch * places, &q));
            numbers(&jacobi::verify(&p, &q, &draft, groups.as_ref(), rule, &draws).unwrap())
        };
        let expected = on(&Device::reference());
        for device in devices() {
            prop_assert_eq!(&on(device), &expected, "{}", device);
        }
        // Every token is one that the present distribution has.
        for (row, token) in expected[4].iter().enumerate() {
            let draft_kept = row % places < expected[1][row / places] as usize;
            prop_assert!(draft_kept || q[row * vocabulary + *token as usize] > 0 || bound.is_some());
        }
    }
}
