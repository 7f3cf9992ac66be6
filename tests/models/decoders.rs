//! Decoders that test drafts: the law of one token after another where they claim it, in fewer passes.

use std::collections::BTreeMap;

use smalti::jacobi::{Groups, Rule};
use smalti::sample::Filter;
use smalti::{Device, Tensor};
use smalti_models::decode::speculative::{
    Drafter, Drafts, Law, NAMES, OfPicture, Pass, Rewind, Speculation, Test, speculative, squared_distances,
};
use smalti_models::decode::{Guided, Network, Order, Random, Sampler, Step, sequential};
use smalti_models::weights::{Checkpoint, embedded};
use smalti_models::zoo::codes::DrawsCodes;
use smalti_models::zoo::llamagen::{Condition, LlamaGen};
use smalti_models::{Generator, Result, Sampling, zoo};

const VOCABULARY: usize = 3;
/// Enough for passes of several drafts, for the first three draw one token each.
const LENGTH: usize = 7;

/// A network that knows the chances of a token from its place and the token before.
#[derive(Clone)]
struct Chain {
    seed: u64,
    seen: usize,
}

impl Chain {
    fn new(seed: u64) -> Self {
        Self { seed, seen: 0 }
    }

    /// Of a token: the first stands after none, as if that were token 0.
    fn logits_of(&self, place: usize, before: usize) -> [f32; VOCABULARY] {
        let word = |token| smalti::rng::word(self.seed, place as u64, before as u32, 0, token);
        std::array::from_fn(|token| (f64::from(word(token)) / f64::from(u32::MAX) * 3.0) as f32)
    }

    fn chances(&self, place: usize, before: usize) -> [f64; VOCABULARY] {
        let shares = self.logits_of(place, before).map(|logit| f64::from(logit).exp());
        let whole: f64 = shares.iter().sum();
        shares.map(|share| share / whole)
    }
}

impl Network<f32> for Chain {
    fn logits(&mut self, x: &Tensor<f32>) -> Result<Tensor<f32>> {
        let before = x.to_vec()?;
        let logits =
            before.iter().enumerate().flat_map(|(at, before)| self.logits_of(self.seen + at, *before as usize));
        let logits = Tensor::from_vec(x.device(), &[1, before.len(), VOCABULARY], logits.collect())?;
        self.seen += before.len();
        Ok(logits)
    }

    fn embed(&mut self, tokens: &Tensor<u32>) -> Result<Tensor<f32>> {
        let values = tokens.to_vec()?.iter().map(|token| *token as f32).collect();
        Ok(Tensor::from_vec(tokens.device(), &[tokens.shape()[0], tokens.shape()[1], 1], values)?)
    }
}

impl Rewind<f32> for Chain {
    fn rewind(&mut self, places: usize) {
        self.seen -= places;
    }
}

/// Where drafts come from.
#[derive(Debug, Clone, Copy)]
enum Source {
    Own(Drafts),
    Second,
}

/// Decodes one sequence of a chain. The tokens, and how many passes they took.
fn decoded(device: &Device, test: &Test, drafts: Source, picture: u64) -> (Vec<u32>, usize) {
    let condition = Tensor::zeros(device, &[1, 1, 1]).expect("room");
    let (second, drafts) = match drafts {
        Source::Second => (true, Drafts::Random),
        Source::Own(drafts) => (false, drafts),
    };
    let speculation = Speculation { test: test.clone(), drafts, window: 4, until: LENGTH };
    let (filter, scale) = (Filter::default(), |_| 1.0);
    let law = Law { scale: &scale, filter: &filter };
    let mut drafting = Chain::new(6);
    let drafter = second.then(|| Drafter::new(&mut drafting, condition.clone()));
    let (mut luck, mut passes) = (OfPicture { seed: 5, picture, drafts: 0 }, 1);
    let mut steps = |_: &Pass<'_, f32>| {
        passes += 1;
        Ok(())
    };
    let mut chain = Chain::new(8);
    let tokens = speculative(&mut chain, &condition, LENGTH, law, &speculation, drafter, &mut luck, &mut steps);
    (tokens.expect("a chain decodes"), passes)
}

/// The chi-square of the last three tokens of so many sequences, with 26 degrees of freedom, and the passes of one.
fn chi_square(device: &Device, test: &Test, drafts: Source) -> (f64, f64) {
    const COUNT: u64 = 20_000;
    let chain = Chain::new(8);
    // The chances of the token that the last three come after.
    let mut before = vec![1.0, 0.0, 0.0];
    for place in 0..LENGTH - 3 {
        let mut after = vec![0.0; VOCABULARY];
        for (token, chance) in before.iter().enumerate() {
            chain.chances(place, token).iter().zip(&mut after).for_each(|(share, after)| *after += chance * share);
        }
        before = after;
    }
    let mut seen: BTreeMap<[u32; 3], f64> = BTreeMap::new();
    let mut passes = 0;
    for picture in 0..COUNT {
        let (tokens, took) = decoded(device, test, drafts, picture);
        *seen.entry([LENGTH - 3, LENGTH - 2, LENGTH - 1].map(|place| tokens[place])).or_default() += 1.0;
        passes += took;
    }
    let mut chi_square = 0.0;
    for tokens in (0..27).map(|code: usize| [code / 9, code / 3 % 3, code % 3]) {
        let last = |start: usize| {
            let mut chance = before[start];
            let mut previous = start;
            for (at, token) in tokens.iter().enumerate() {
                chance *= chain.chances(LENGTH - 3 + at, previous)[*token];
                previous = *token;
            }
            chance
        };
        let expected = COUNT as f64 * (0..VOCABULARY).map(last).sum::<f64>();
        let count = seen.get(&tokens.map(|token| token as u32)).copied().unwrap_or(0.0);
        chi_square += (count - expected).powi(2) / expected;
    }
    (chi_square, passes as f64 / COUNT as f64)
}

/// Above this chi-square of 26 degrees of freedom once in a thousand.
const CRITICAL: f64 = 54.05;

/// Decoders that claim the law of one token after another, with drafts of every source.
fn lossless() -> Vec<(Test, Source)> {
    let ratio = [Rule::Fresh, Rule::Coupled].map(Test::Ratio);
    let [fresh, coupled] = ratio;
    let random = Source::Own(Drafts::Random);
    let neighbours = [1, 3].into_iter().flat_map(|back| [Drafts::Repeat { back }, Drafts::Sample { back }]);
    let neighbours = neighbours.map(|drafts| (fresh.clone(), Source::Own(drafts)));
    let all = [(Test::Same, random), (Test::Race, random), (coupled.clone(), random), (fresh.clone(), random)];
    let more = [(coupled, Source::Own(Drafts::Sample { back: 2 })), (fresh.clone(), Source::Second)];
    all.into_iter().chain(neighbours).chain(more).collect()
}

#[test]
fn lossless_decoders_draw_the_law_of_one_after_another() {
    let device = Device::cpu_with_threads(1).expect("a CPU");
    for (test, drafts) in lossless() {
        let (chi_square, passes) = chi_square(&device, &test, drafts);
        println!("{test:?}, {drafts:?}: chi-square {chi_square:.1} of 26 degrees, {passes:.2} passes");
        assert!(chi_square < CRITICAL, "{test:?}, {drafts:?}: chi-square {chi_square}");
        assert!(passes < LENGTH as f64, "{test:?}, {drafts:?}: {passes} passes");
    }
}

#[test]
fn drafts_of_neighbours_are_theirs() {
    let device = Device::cpu_with_threads(1).expect("a CPU");
    let condition = Tensor::zeros(&device, &[1, 1, 1]).expect("room");
    let (filter, scale) = (Filter::default(), |_| 1.0);
    for back in [1, 2, 5] {
        for drafts in [Drafts::Repeat { back }, Drafts::Sample { back }] {
            let speculation = Speculation { test: Test::Ratio(Rule::Fresh), drafts, window: 4, until: LENGTH };
            let mut new = 0;
            for picture in 0..20 {
                let mut luck = OfPicture { seed: 5, picture, drafts: 0 };
                // Of all places up to now: the tokens, and what each was drawn from, the first one aside.
                let (mut tokens, mut laws): (Vec<u32>, Vec<Vec<u32>>) = (Vec::new(), vec![Vec::new()]);
                let mut left = 0;
                let mut steps = |pass: &Pass<'_, f32>| {
                    if tokens.is_empty() {
                        tokens.push(pass.inputs[0]);
                    }
                    let mut from: Vec<_> =
                        pass.drawn_from.tensor().to_vec()?.chunks(VOCABULARY).map(<[u32]>::to_vec).collect();
                    let known = [&tokens[..], &pass.inputs[1..]].concat();
                    let all = [&laws[..], &from[1..]].concat();
                    for at in 1 + left..pass.inputs.len() {
                        let place = tokens.len() - 1 + at;
                        let Some(neighbour) = place.checked_sub(back) else { continue };
                        match drafts {
                            Drafts::Repeat { .. } => assert_eq!(known[place], known[neighbour], "place {place}"),
                            _ if neighbour > 0 => assert_eq!(all[place], all[neighbour], "place {place}"),
                            _ => {}
                        }
                        new += 1;
                    }
                    from = pass.weights.tensor().to_vec()?.chunks(VOCABULARY).map(<[u32]>::to_vec).collect();
                    laws.extend(from.drain(..pass.settled));
                    tokens.extend(&pass.tokens[..pass.settled]);
                    left = pass.inputs.len() - pass.settled;
                    Ok(())
                };
                let law = Law { scale: &scale, filter: &filter };
                let mut chain = Chain::new(8);
                speculative(&mut chain, &condition, LENGTH, law, &speculation, None, &mut luck, &mut steps)
                    .expect("a chain decodes");
            }
            assert!(new >= 20, "{drafts:?}: {new} drafts");
        }
    }
}

/// Tests that let other tokens pass for a draft.
fn lossy(device: &Device) -> [Test; 2] {
    let table = Tensor::from_slice(device, &[VOCABULARY, 2], &[0u32, 1, 1, 0, 2, 1]).expect("room");
    let relaxed = Test::Relaxed(Groups::relaxed(&table, 1.0).expect("a table"));
    let codes = Tensor::from_slice(device, &[VOCABULARY, 1], &[0.0f32, 0.1, 0.2]).expect("room");
    let window = smalti::jacobi::Window { below: 1, above: 1, band: 1.0, reach: 1.0 };
    let distances = squared_distances(&codes).expect("codes");
    [relaxed, Test::Grouped { distances, window }]
}

#[test]
fn decoders_that_let_other_tokens_pass_have_another_law() {
    let device = Device::cpu_with_threads(1).expect("a CPU");
    for test in lossy(&device) {
        for drafts in [Source::Own(Drafts::Random), Source::Second] {
            let (chi_square, _) = chi_square(&device, &test, drafts);
            assert!(chi_square > 10.0 * CRITICAL, "{test:?}, {drafts:?}: chi-square {chi_square}");
        }
    }
}

/// The CPU, and a GPU, software or not, of each kind that is here or that `SMALTI_REQUIRE` names.
fn devices() -> Vec<Device> {
    let required = std::env::var("SMALTI_REQUIRE").unwrap_or_default();
    let mut devices = vec![Device::cpu()];
    for id in ["wgpu", "cuda"] {
        match Device::open(id) {
            Ok(device) => devices.push(device),
            Err(reason) => {
                assert!(!required.split(',').any(|name| name == id), "SMALTI_REQUIRE names {id}: {reason}");
                println!("skipped {id}: {reason}");
            }
        }
    }
    devices
}

#[test]
fn decoders_draw_the_same_tokens_from_the_same_logits_on_every_device() {
    let on = |device: &Device| -> Vec<_> {
        let tests = lossless().into_iter().chain(lossy(device).map(|test| (test, Source::Second)));
        tests.flat_map(|(test, drafts)| (0..10).map(move |picture| decoded(device, &test, drafts, picture))).collect()
    };
    let devices = devices();
    let expected = on(&devices[0]);
    for device in &devices[1..] {
        assert_eq!(on(device), expected, "{device}");
    }
}

fn trained(device: &Device) -> LlamaGen {
    LlamaGen::load(&embedded("llamagen").expect("in the program"), device).expect("room")
}

/// The decoder of this name for it.
fn speculation(model: &LlamaGen, name: &str, second: bool) -> Speculation {
    let (tokens, vocabulary) = model.drafted().expect("a causal network");
    let (places, codebook) = (model.codes().places(), model.codes().codebook());
    Speculation::named(name, places, vocabulary, tokens, codebook, second).expect("a decoder")
}

/// The trained LlamaGen without its last layers, as a drafter.
fn shallow(folder: &std::path::Path, layers: usize) -> Checkpoint {
    let bytes =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/weights/emoji_llamagen.safetensors")).expect("there");
    let whole = safetensors::SafeTensors::deserialize(&bytes).expect("whole");
    let (_, notes) = safetensors::SafeTensors::read_metadata(&bytes).expect("whole");
    let deep = |name: &str| {
        let layer = name.strip_prefix("gpt.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
        layer.is_some_and(|layer: usize| layer >= layers)
    };
    let path = folder.join("shallow.safetensors");
    let kept = whole.tensors().into_iter().filter(|(name, _)| !deep(name));
    safetensors::serialize_to_file(kept, notes.metadata().clone(), &path).expect("room");
    Checkpoint::open(&path).expect("whole")
}

/// Classes that the trained LlamaGen draws here.
const CLASSES: [u32; 4] = [0, 3, 6, 9];

/// The tokens of a picture of each of [`CLASSES`], of the trained LlamaGen by a decoder, and the passes of one of them.
fn drawn(
    model: &LlamaGen,
    speculation: &Speculation,
    second: Option<&LlamaGen>,
    sampling: &Sampling,
) -> (Vec<u32>, f64) {
    let (mut tokens, mut passes) = (Vec::new(), 0);
    for class in CLASSES {
        let mut luck = OfPicture { seed: 3, picture: class.into(), drafts: 0 };
        let mut steps = |_: &Pass<'_, f32>| {
            passes += 1;
            Ok(())
        };
        let drawn = model.speculate(class, sampling, speculation, second, &mut luck, &mut steps);
        tokens.extend(drawn.expect("a picture"));
        // That of the condition.
        passes += 1;
    }
    (tokens, f64::from(passes) / CLASSES.len() as f64)
}

#[test]
fn lossless_decoders_find_the_likeliest_tokens_in_fewer_passes() {
    let device = Device::cpu();
    let model = trained(&device);
    let folder = tempfile::tempdir().expect("a folder");
    let second = LlamaGen::load(&shallow(folder.path(), 3), &device).expect("room");
    let greedy = Sampling { temperature: 0.0, ..model.codes().sampling() };
    let random = Random::Philox { first_picture: 0 };
    let sampler = Sampler::new(greedy, random, model.codes().places());
    let classes = Condition::Classes(&CLASSES);
    let expected =
        model.generate::<f32>(&classes, &sampler, &mut |_| std::ops::ControlFlow::Continue(())).expect("pictures");
    let expected = expected.to_vec().expect("the device works");
    for name in ["draft", "jacobi", "mc-sjd", "mc-sjd-gumbel", "sjd"] {
        let drafts = name == "draft";
        let test = speculation(&model, name, drafts);
        let (tokens, passes) = drawn(&model, &test, drafts.then_some(&second), &greedy);
        println!("{name}: {passes} passes");
        assert_eq!(tokens, expected, "{name}");
        assert!(passes < 256.0, "{name}: {passes} passes");
    }
}

#[test]
fn decoders_of_the_trained_llamagen_take_fewer_passes_than_tokens() {
    let device = Device::cpu();
    let model = trained(&device);
    let folder = tempfile::tempdir().expect("a folder");
    let shallow = shallow(folder.path(), 3);
    let second = LlamaGen::load(&shallow, &device).expect("room");
    let sampling = model.codes().sampling();
    let mut took = BTreeMap::new();
    for name in NAMES {
        let drafts = name == "draft";
        let test = speculation(&model, name, drafts);
        let (_, passes) = drawn(&model, &test, drafts.then_some(&second), &sampling);
        println!("{name}: {passes} passes");
        assert!(passes < 256.0, "{name}: {passes} passes");
        took.insert(name, passes);
    }
    assert!(took["mc-sjd"] < took["sjd"], "{took:?}: coupled drafts change less");
    assert!(took["gsd"] < took["sjd"] && took["lantern"] < took["sjd"], "{took:?}: more drafts pass");
    // A network that drafts for itself is never wrong: the first three tokens, then six in each pass.
    let test = speculation(&model, "draft", true);
    let (_, passes) = drawn(&model, &test, Some(&model), &sampling);
    assert_eq!(passes as usize, 3 + 253usize.div_ceil(test.window));
}

/// Systems whose networks are causal, as small random weights.
const CAUSAL: [&str; 6] =
    ["controlar_c2i", "dar_diffusion_gpt", "dar_small", "larp_ar_class", "llamagen_c2i", "rar_pow"];

#[test]
fn every_causal_system_decodes_by_tested_drafts() {
    let device = Device::cpu();
    for dump in CAUSAL {
        let path = format!("{}/../tests/dumps/models/{dump}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let weights = Checkpoint::open(path.as_ref()).and_then(|dump| dump.under("w.")).expect("weights");
        let load = || -> Box<dyn Generator> {
            let mut generator = zoo::load::<f32>(&weights, &device).expect("a generator");
            if let Some([height, width]) = generator.control_size() {
                generator.use_control(&vec![0.5; 3 * height * width]).expect("a picture of this size");
            }
            generator
        };
        let draw = |generator: &dyn Generator| {
            let greedy = Sampling { temperature: 0.0, ..generator.about().sampling };
            let mut seen = Vec::new();
            let drawn = generator.draw(&[1, 3], 0, &greedy, &mut |settled, all| {
                seen.push((settled, all));
                std::ops::ControlFlow::Continue(())
            });
            let places = generator.about().tokens_per_picture;
            assert!(seen.is_sorted() && seen.last() == Some(&(2 * places, 2 * places)), "{dump}: {seen:?}");
            (drawn.expect("pictures").tokens, seen.len())
        };
        let (expected, steps) = draw(load().as_ref());
        for name in NAMES {
            let mut generator = load();
            match generator.use_decoder(name, None) {
                Ok(()) => {
                    let (tokens, _) = draw(generator.as_ref());
                    assert!(["gsd", "lantern"].contains(&name) || tokens == expected, "{dump}, {name}: other tokens");
                }
                Err(error) => {
                    let part = if name == "draft" { "second model" } else { "lantern compares the tokenizer's codes" };
                    assert!(error.to_string().contains(part), "{dump}, {name}: {error}");
                }
            }
        }
        assert!(steps >= 16, "{dump}: {steps} steps of the system's own decoder");
    }
}

/// Logits of two pictures with a condition, then of both without; keeps what it is told to fade.
struct Told {
    place: usize,
    faded: Vec<Vec<Vec<f32>>>,
}

impl Told {
    fn logits_of(row: usize, place: usize) -> [f32; VOCABULARY] {
        let word = |token| smalti::rng::word(11, row as u64, place as u32, 0, token);
        std::array::from_fn(|token| (f64::from(word(token)) / f64::from(u32::MAX) * 4.0) as f32)
    }

    /// The chances of tokens with the condition.
    fn chances(picture: usize, place: usize) -> [f64; VOCABULARY] {
        let shares = Self::logits_of(picture, place).map(|logit| f64::from(logit).exp());
        let whole: f64 = shares.iter().sum();
        shares.map(|share| share / whole)
    }
}

impl Network<f32> for Told {
    fn logits(&mut self, x: &Tensor<f32>) -> Result<Tensor<f32>> {
        let rows = x.shape()[0];
        let logits = (0..rows).flat_map(|row| Self::logits_of(row, self.place)).collect();
        self.place += 1;
        Ok(Tensor::from_vec(x.device(), &[rows, 1, VOCABULARY], logits)?)
    }

    fn embed(&mut self, tokens: &Tensor<u32>) -> Result<Tensor<f32>> {
        Ok(Tensor::zeros(tokens.device(), &[tokens.shape()[0], tokens.shape()[1], 1])?)
    }

    fn fade(&mut self, factors: &[Vec<f32>]) -> Result<()> {
        self.faded.push(factors.to_vec());
        Ok(())
    }
}

/// What each place of two pictures is drawn from, and what was to be faded before each but the first.
fn told(guided: Guided, scale: f32) -> (Vec<Vec<f32>>, Vec<Vec<Vec<f32>>>) {
    let device = Device::cpu();
    let mut network = Told { place: 0, faded: Vec::new() };
    let sampling = Sampling { cfg: scale, temperature: 1.0, top_k: 0, top_p: 1.0, seed: 3 };
    let sampler = Sampler { guided, ..Sampler::new(sampling, Random::Philox { first_picture: 0 }, LENGTH) };
    let mut drawn_from = Vec::new();
    let mut steps = |step: Step<'_, f32>| {
        drawn_from.push(step.logits.to_vec().expect("the device works"));
        std::ops::ControlFlow::Continue(())
    };
    let condition = Tensor::zeros(&device, &[4, 1, 1]).expect("room");
    let order = Order::Raster(LENGTH);
    sequential(&mut network, condition, 2, order, |_| scale, &sampler, &mut steps).expect("two sequences");
    (drawn_from, network.faded)
}

#[test]
fn guidance_follows_the_entropy_of_each_prediction() {
    let scale = 3.0;
    let (drawn_from, faded) = told(Guided::ByEntropy, scale);
    assert!(faded.is_empty());
    for (place, logits) in drawn_from.iter().enumerate() {
        for (picture, logits) in logits.chunks(VOCABULARY).enumerate() {
            let entropy: f64 = Told::chances(picture, place).iter().map(|chance| -chance * chance.ln()).sum();
            let scale = 1.0 + f64::from(scale - 1.0) * entropy / (VOCABULARY as f64).ln();
            let [with, without] = [picture, 2 + picture].map(|row| Told::logits_of(row, place).map(f64::from));
            for (token, logit) in logits.iter().enumerate() {
                let expected = without[token] + scale * (with[token] - without[token]);
                assert!((f64::from(*logit) - expected).abs() < 1e-4, "place {place}, {picture}: {logit}, {expected}");
            }
        }
    }
}

#[test]
fn soft_guidance_fades_tokens_that_were_not_certain() {
    let (drawn_from, faded) = told(Guided::Soft, 3.0);
    assert_eq!(drawn_from, told(Guided::Plain, 3.0).0, "what fades is the network's to do");
    assert_eq!(faded.len(), LENGTH - 1);
    for (before, factors) in faded.iter().enumerate() {
        for (picture, factors) in factors.iter().enumerate() {
            let doubt = |place| 1.0 - Told::chances(picture, place).into_iter().fold(0.0, f64::max);
            let doubts: Vec<f64> = (0..=before).map(doubt).collect();
            let whole = doubts.iter().sum::<f64>().max(1.0);
            assert_eq!(factors.len(), doubts.len());
            for (factor, doubt) in factors.iter().zip(&doubts) {
                assert!((f64::from(*factor) - (1.0 - doubt / whole)).abs() < 1e-5, "{factors:?}, doubts {doubts:?}");
            }
        }
    }
    // Without rows that have no condition there is nothing to guide.
    let device = Device::cpu();
    let mut network = Told { place: 0, faded: Vec::new() };
    let sampling = Sampling { cfg: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0, seed: 3 };
    let sampler =
        Sampler { guided: Guided::Soft, ..Sampler::new(sampling, Random::Philox { first_picture: 0 }, LENGTH) };
    let condition = Tensor::zeros(&device, &[2, 1, 1]).expect("room");
    let mut steps = |_: Step<'_, f32>| std::ops::ControlFlow::Continue(());
    sequential(&mut network, condition, 2, Order::Raster(LENGTH), |_| 1.0, &sampler, &mut steps).expect("sequences");
    assert!(network.faded.is_empty());
}

#[test]
fn the_trained_llamagen_is_guided_softly_picture_by_picture() {
    let device = Device::cpu();
    let model = trained(&device);
    let places = model.codes().places();
    // As many places as are looked at.
    const LOOKED_AT: usize = 4;
    let seen = |classes: &[u32], guided: Guided| {
        let sampling = Sampling { temperature: 0.0, ..model.codes().sampling() };
        let sampler = Sampler { guided, ..Sampler::new(sampling, Random::Philox { first_picture: 0 }, places) };
        let mut logits = Vec::new();
        let mut steps = |step: Step<'_, f32>| {
            logits.push(step.logits.to_vec().expect("the device works"));
            if logits.len() < LOOKED_AT {
                std::ops::ControlFlow::Continue(())
            } else {
                std::ops::ControlFlow::Break(())
            }
        };
        let broken = model.generate::<f32>(&Condition::Classes(classes), &sampler, &mut steps);
        assert!(matches!(broken, Err(smalti_models::Error::Interrupted)));
        logits
    };
    let (plain, soft) = (seen(&[3], Guided::Plain), seen(&[3], Guided::Soft));
    assert_eq!(plain[0], soft[0], "no token is there yet that could fade");
    assert_ne!(plain[1], soft[1]);
    // Each picture by its own certainty, wherever it stands in the batch.
    let both = seen(&[7, 3], Guided::Soft);
    let other = seen(&[7], Guided::Soft);
    for place in 0..LOOKED_AT {
        assert_eq!(both[place], [&other[place][..], &soft[place]].concat(), "place {place}");
    }
}
