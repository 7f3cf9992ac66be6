//! Several places guessed at once, all tested by one pass: Jacobi decoding of a causal network.
//!
//! Every pass is fed the last token that is settled and drafts for the places after it: some of them left from the pass
//! before, the others drawn at random or after a neighbour ([`Drafts`]), or all by a second network. The drafts before the
//! first one that fails its test are settled, and the token that follows them. Unless other tokens pass for a draft
//! ([`Test::Grouped`], [`Test::Relaxed`]), the tokens have the law of decoding one after another.
//!
//! Drafts of a diffusion head (CSpD, [`jacobi::verify_paths`]) are not here: they need a causal network whose head draws
//! by Gaussian steps. SphereAR is causal, but its head follows a flow without noise, whose paths have no density; xAR
//! adds noise, but the whole network is its head, so that testing a draft costs as many passes as drawing it; MAR, ARINAR
//! and FAR see all cells at once, so that no pass tells what each draft of several would have been drawn from.
//!
//! Source: Teng et al. 2024, arXiv:2410.01699 (SJD), section 3 and algorithm 1; So et al. 2025, arXiv:2510.24211 (MC-SJD),
//! section 4, and arXiv:2508.07747 (GSD), section 4; Jang et al. 2024, arXiv:2410.03355 (LANTERN), section 4; Leviathan et
//! al. 2022, arXiv:2211.17192, algorithm 1 (drafts of a second network).

use smalti::attention::KvCache;
use smalti::jacobi::{self, Groups, Rule, VerifyDraws};
use smalti::sample::{self, Draws, Filter, Guidance, Places, Weights};
use smalti::vq::{self, MAX_NEAREST, Metric};
use smalti::{Device, Float, Tensor, Weight, elementwise, embedding, linear, rng};

use super::{Network, Order, Random, Sampler, Step, Steps, concatenate, guide, sequential, twice};
use crate::zoo::codes::go_on;
use crate::{Error, Result};

/// How drafts are tested.
#[derive(Debug, Clone)]
pub enum Test {
    /// A draft stays if it is drawn again, by the number of its place.
    Same,
    /// A draft stays if it wins again, with the noise of its place: the Gumbel coupling (MC-SJD, section 4).
    Race,
    /// A draft stays with the ratio of the present probability to that it was drawn by (SJD, section 3.2). With
    /// [`Rule::Coupled`] that holds for the drafts after the first that does not stay, too: the maximal coupling (MC-SJD,
    /// section 4).
    Ratio(Rule),
    /// The same for the masses of the draft and of tokens like it, which are no longer told apart (GSD, section 4).
    Grouped {
        /// Between the codes: `[vocabulary, vocabulary]`.
        distances: Tensor<f32>,
        /// Which tokens are like a draft.
        window: jacobi::Window,
    },
    /// The same for the draft's probability and what its neighbours lend it ([`Groups::relaxed`]; LANTERN, section 4).
    Relaxed(Groups),
}

impl Test {
    /// Which tokens pass for each of `draft` (`[1, drafts]`), whose places have these logits and weights.
    fn groups<T: Float>(&self, logits: &Tensor<T>, weights: &Weights, draft: &Tensor<u32>) -> Result<Option<Groups>> {
        let drafts = draft.shape()[1];
        Ok(match self {
            Self::Grouped { distances, window } => {
                let (logits, weights) = (logits.narrow(1, 0, drafts)?, weights.rows(0, drafts)?);
                Some(Groups::nearby(&logits, &weights, draft, distances, *window)?)
            }
            Self::Relaxed(groups) => Some(groups.clone()),
            Self::Same | Self::Race | Self::Ratio(_) => None,
        })
    }
}

/// What is drafted for a place that has no draft left from the pass before. The neighbour is the token so many places back:
/// 1 for the one to the left, as many as a row has for the one above. Where there is none yet, it is any token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drafts {
    /// Any token.
    Random,
    /// The neighbour's token.
    Repeat {
        /// How many places before, at least 1.
        back: usize,
    },
    /// A token drawn from what the neighbour was drawn from.
    Sample {
        /// How many places before, at least 1.
        back: usize,
    },
}

/// A decoder that tests drafts.
#[derive(Debug, Clone)]
pub struct Speculation {
    /// How drafts are tested.
    pub test: Test,
    /// Where new ones come from: SJD's initialisations.
    pub drafts: Drafts,
    /// At most so many tokens are fed in one pass.
    pub window: usize,
    /// From this place on tokens are decoded one after another.
    pub until: usize,
}

/// How [`Speculation::named`] knows them.
pub const NAMES: [&str; 7] = ["draft", "gsd", "jacobi", "lantern", "mc-sjd", "mc-sjd-gumbel", "sjd"];

/// Tokens that a pass is fed (SJD, section 4.1).
const WINDOW: usize = 16;
/// The same where a second network drafts one after another.
const SECOND_WINDOW: usize = 6;
/// Which tokens are like a draft, as GSD's authors set it.
const ALIKE: jacobi::Window = jacobi::Window { below: 7, above: 6, band: 0.15, reach: 0.5 };
/// How much of the distribution neighbours may lend, as LANTERN's program has it. Of its 1000 neighbours the nearest
/// [`MAX_NEAREST`] are asked.
const LENT: f32 = 0.1;

impl Speculation {
    /// The decoder of this name for pictures of `places` tokens, as its authors set it. Of `tokens`, the rows that the
    /// network is fed for them, and `codes`, those that pictures are decoded from, the first `vocabulary` can be drawn.
    /// `second` tells whether a second network drafts.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such decoder, it needs codes or a second network that is not there, or has no
    /// use for the one that is; [`Error::Op`] if the device fails.
    pub fn named(
        name: &str,
        places: usize,
        vocabulary: usize,
        tokens: &Weight,
        codes: Option<&Weight>,
        second: bool,
    ) -> Result<Self> {
        let test = match name {
            "draft" | "sjd" => Test::Ratio(Rule::Fresh),
            "gsd" => {
                // Its authors measure what the network is fed, whose scale is each network's own; codes lie on a sphere.
                let distances = squared_distances(&rows(codes.unwrap_or(tokens), vocabulary)?)?;
                Test::Grouped { distances, window: ALIKE }
            }
            "jacobi" => Test::Same,
            "lantern" => {
                let missing =
                    || Error::Request("lantern compares the tokenizer's codes, and there are none".to_owned());
                let codes = rows(codes.ok_or_else(missing)?, vocabulary)?;
                Test::Relaxed(Groups::relaxed(&neighbours(&codes)?, LENT)?)
            }
            "mc-sjd" => Test::Ratio(Rule::Coupled),
            "mc-sjd-gumbel" => Test::Race,
            _ => return Err(Error::Request(format!("no decoder \"{name}\", expected one of {}", NAMES.join(", ")))),
        };
        match (name, second) {
            ("draft", false) => {
                Err(Error::Request("draft tests a second model's drafts: give --draft FILE".to_owned()))
            }
            ("draft" | "lantern", _) | (_, false) => {
                let window = if second { SECOND_WINDOW } else { WINDOW };
                Ok(Self { test, drafts: Drafts::Random, window, until: places })
            }
            _ => Err(Error::Request(format!("{name} drafts by itself, without --draft"))),
        }
    }
}

/// The first `count` rows of a table.
fn rows(table: &Weight, count: usize) -> Result<Tensor<f32>> {
    let all = Tensor::from_vec(table.device(), &[count], (0..).take(count).collect())?;
    Ok(embedding::embedding(table, &all)?)
}

/// For each row of `codes` itself, then the others nearest to it: `[codes, at most MAX_NEAREST]`.
fn neighbours(codes: &Tensor<f32>) -> Result<Tensor<u32>> {
    let count = codes.shape()[0];
    let width = count.min(MAX_NEAREST);
    let nearest = vq::nearest(codes, &Weight::from(codes.clone()), Metric::L2, width)?.indices.to_vec()?;
    // An equal code of a lower index would come first.
    let row = |(code, nearest): (u32, &[u32])| -> Vec<u32> {
        let others = nearest.iter().copied().filter(move |other| *other != code);
        std::iter::once(code).chain(others).take(width).collect()
    };
    let table: Vec<_> = (0..).zip(nearest.chunks(width.max(1))).flat_map(row).collect();
    Ok(Tensor::from_vec(codes.device(), &[count, width], table)?)
}

/// A network that can forget the last places that it was given.
pub trait Rewind<T: Float>: Network<T> {
    /// Forgets the last `places` places.
    fn rewind(&mut self, places: usize);
}

/// [`Rewind::rewind`] of keys and values.
pub(crate) fn forget<T: Float>(caches: &mut [KvCache<T>], places: usize) {
    caches.iter_mut().for_each(|cache| cache.truncate(cache.len().saturating_sub(places)));
}

/// Where the random numbers of one picture come from.
pub trait Luck {
    /// For `count` places from `start` on, drawn for in a pass.
    fn fresh(&mut self, start: usize, count: usize, pass: u32) -> Draws;

    /// For a test of as many places.
    fn test(&mut self, start: usize, count: usize, pass: u32) -> VerifyDraws;

    /// Drafts for `count` places that had none.
    fn drafts(&mut self, count: usize, vocabulary: usize) -> Vec<u32>;
}

/// Philox, keyed by the seed and the picture's number in the run.
#[derive(Debug, Clone)]
pub struct OfPicture {
    /// Of the whole run.
    pub seed: u64,
    /// The picture's number.
    pub picture: u64,
    /// How many drafts were drawn.
    pub drafts: u32,
}

impl OfPicture {
    /// For the first picture of a sampler.
    ///
    /// # Errors
    /// [`Error::Request`] if its numbers are recorded.
    pub fn of(sampler: &Sampler<'_>) -> Result<Self> {
        match sampler.random {
            Random::Philox { first_picture } => {
                Ok(Self { seed: sampler.sampling.seed, picture: first_picture, drafts: 0 })
            }
            Random::Recorded { .. } => {
                Err(Error::Request("recorded numbers are for one token after another".to_owned()))
            }
        }
    }
}

/// The last word of the counters that drafts are drawn with.
const DRAFTS: u32 = 2;

impl Luck for OfPicture {
    /// A place has the same number in every pass, so that a draft is drawn again unless the distribution has moved.
    fn fresh(&mut self, start: usize, count: usize, _: u32) -> Draws {
        let stream = |place: usize| (self.picture << 24) | place as u64;
        Draws::Philox { seed: self.seed, streams: (start..start + count).map(stream).collect(), position: 0 }
    }

    fn test(&mut self, start: usize, _: usize, pass: u32) -> VerifyDraws {
        let (streams, starts) = (vec![self.picture], vec![start as u32]);
        VerifyDraws::Philox(Places { seed: self.seed, streams, starts, round: pass })
    }

    fn drafts(&mut self, count: usize, vocabulary: usize) -> Vec<u32> {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let first = self.drafts;
        self.drafts += count as u32;
        let draft = |index: u32| {
            let counter = [self.picture as u32, (self.picture >> 32) as u32, index, DRAFTS];
            let [word, ..] = rng::philox4x32(key, counter);
            ((u64::from(word) * vocabulary as u64) >> 32) as u32
        };
        (first..self.drafts).map(draft).collect()
    }
}

/// One pass.
pub struct Pass<'a, T: smalti::Element> {
    /// The last settled token, then the drafts.
    pub inputs: &'a [u32],
    /// What each of these was drawn from.
    pub drawn_from: &'a Weights,
    /// What the network says follows each input: guided logits, `[1, inputs, vocabulary]`.
    pub logits: &'a Tensor<T>,
    /// The same, filtered.
    pub weights: &'a Weights,
    /// A token for the place after each input.
    pub tokens: &'a [u32],
    /// How many of these are settled.
    pub settled: usize,
}

/// From logits to what is drawn from.
#[derive(Clone, Copy)]
pub struct Law<'a> {
    /// The guidance scale of a place.
    pub scale: &'a dyn Fn(usize) -> f32,
    /// Of guided logits.
    pub filter: &'a Filter,
}

impl Law<'_> {
    /// Guided logits of the places from `first` on, `[1, places, vocabulary]`, and their weights, a row per place.
    fn of<T: Float>(&self, logits: &Tensor<T>, first: usize) -> Result<(Tensor<T>, Weights)> {
        let &[_, count, vocabulary] = logits.shape() else {
            return Err(Error::Request(format!("logits of shape {:?}", logits.shape())));
        };
        let scales: Vec<_> = (first..first + count).map(self.scale).collect();
        let guided = if scales.iter().all(|scale| *scale == scales[0]) {
            guide(logits, 1, scales[0], Guidance::Scale)?.contiguous()?
        } else {
            let of_place =
                |(place, scale): (usize, &f32)| guide(&logits.narrow(1, place, 1)?, 1, *scale, Guidance::Scale);
            let places = scales.iter().enumerate().map(of_place).collect::<Result<Vec<_>>>()?;
            concatenate(&places.iter().collect::<Vec<_>>(), 1)?
        };
        let weights = sample::weigh(&guided.reshape(&[count, vocabulary])?, None, self.filter)?;
        Ok((guided, weights))
    }
}

/// Logits after each of `tokens`, in each of `rows` rows.
fn feed<T: Float>(network: &mut dyn Rewind<T>, device: &Device, tokens: &[u32], rows: usize) -> Result<Tensor<T>> {
    let tokens = Tensor::from_slice(device, &[1, tokens.len()], tokens)?;
    let x = network.embed(&if rows == 2 { twice(&tokens)? } else { tokens })?;
    network.logits(&x)
}

/// The logits of the last place.
fn last<T: Float>(logits: &Tensor<T>) -> Result<Tensor<T>> {
    Ok(logits.narrow(1, logits.shape()[1].saturating_sub(1), 1)?.contiguous()?)
}

/// A second network, which drafts.
pub struct Drafter<'a, T: Float> {
    network: &'a mut dyn Rewind<T>,
    condition: Tensor<T>,
    /// The tokens that it was given after its condition, if it was given that.
    fed: Option<Vec<u32>>,
}

impl<'a, T: Float> Drafter<'a, T> {
    /// A network that was given nothing yet, and a condition of as many rows as that of the first.
    #[must_use]
    pub fn new(network: &'a mut dyn Rewind<T>, condition: Tensor<T>) -> Self {
        Self { network, condition, fed: None }
    }

    /// `count` drafts to follow `tokens`, each drawn after the one before, and what each was drawn from.
    fn draft(
        &mut self,
        tokens: &[u32],
        count: usize,
        law: Law<'_>,
        mut draws: impl FnMut(usize) -> Draws,
    ) -> Result<(Vec<u32>, Vec<Weights>)> {
        let (device, rows) = (self.condition.device().clone(), self.condition.shape()[0]);
        let fed = match self.fed.take() {
            Some(fed) => fed,
            None => {
                self.network.logits(&self.condition)?;
                Vec::new()
            }
        };
        let mut known = tokens.to_vec();
        // What was drafted in vain is forgotten; at least the last token is given anew, for its logits.
        let alike = fed.iter().zip(&known[..known.len().saturating_sub(1)]);
        let mut same = alike.take_while(|(fed, known)| fed == known).count();
        self.network.rewind(fed.len() - same);
        let mut drawn_from = Vec::with_capacity(count);
        for place in tokens.len()..tokens.len() + count {
            let logits = feed(self.network, &device, &known[same..], rows)?;
            same = known.len();
            let (_, weights) = law.of(&last(&logits)?, place)?;
            known.extend(sample::draw(&weights, &draws(place))?.to_vec()?);
            drawn_from.push(weights);
        }
        let drafts = known[tokens.len()..].to_vec();
        known.truncate(same);
        self.fed = Some(known);
        Ok((drafts, drawn_from))
    }
}

/// Draws the `places` tokens of one picture, after a condition of one row or, with guidance, of a second without it.
/// `second` drafts, if it is there. `steps` sees each pass.
///
/// # Errors
/// As the networks, or whatever `steps` returns.
pub fn speculative<T: Float>(
    network: &mut dyn Rewind<T>,
    condition: &Tensor<T>,
    places: usize,
    law: Law<'_>,
    speculation: &Speculation,
    mut second: Option<Drafter<'_, T>>,
    luck: &mut dyn Luck,
    steps: &mut dyn FnMut(&Pass<'_, T>) -> Result<()>,
) -> Result<Vec<u32>> {
    let rows = condition.shape().first().copied().unwrap_or(0);
    if !(1..=2).contains(&rows) {
        return Err(Error::Request(format!(
            "a condition of {rows} rows, expected one picture, with or without guidance"
        )));
    }
    let device = condition.device();
    let (_, weights) = law.of(&last(&network.logits(condition)?)?, 0)?;
    let vocabulary = weights.shape()[1];
    let mut tokens = sample::draw(&weights, &luck.fresh(0, 1, 0))?.to_vec()?;
    let mut inputs = tokens.clone();
    let mut drawn_from = Weights::certain(device, &inputs, vocabulary)?;
    let mut neighbours = Neighbours::new(speculation.drafts, weights);
    let mut pass = 0;
    while tokens.len() < places {
        pass += 1;
        let (count, before) = (inputs.len(), tokens.len());
        let (logits, weights) = law.of(&feed(network, device, &inputs, rows)?, before)?;
        let same = |next: Vec<u32>| {
            let same = inputs[1..].iter().zip(&next).take_while(|(draft, token)| draft == token).count();
            (next, same + 1)
        };
        let (next, settled) = match &speculation.test {
            Test::Same => same(sample::draw(&weights, &luck.fresh(before, count, pass))?.to_vec()?),
            Test::Race => same(sample::race(&weights, &luck.fresh(before, count, pass))?.to_vec()?),
            // Nothing to test.
            _ if count == 1 => (sample::draw(&weights, &luck.fresh(before, 1, pass))?.to_vec()?, 1),
            test => {
                let draft = Tensor::from_slice(device, &[1, count - 1], &inputs[1..])?;
                let groups = test.groups(&logits, &weights, &draft)?;
                let rule = if let Test::Ratio(rule) = test { *rule } else { Rule::Fresh };
                let (from, draws) = (drawn_from.rows(1, count - 1)?, luck.test(before, count, pass));
                let verified = jacobi::verify(&from, &weights, &draft, groups.as_ref(), rule, &draws)?;
                (verified.tokens.to_vec()?, verified.settled.to_vec()?.first().map_or(1, |settled| *settled as usize))
            }
        };
        let of_pass = Pass {
            inputs: &inputs,
            drawn_from: &drawn_from,
            logits: &logits,
            weights: &weights,
            tokens: &next,
            settled,
        };
        steps(&of_pass)?;
        network.rewind(count - settled);
        neighbours.settle(&weights, settled)?;
        tokens.extend_from_slice(&next[..settled]);
        if tokens.len() >= places {
            break;
        }

        // The first passes and the last places go one token at a time.
        let wanted = match before {
            0 | 1 => 1,
            _ => speculation.window.min((speculation.until + 1).saturating_sub(before)).max(1),
        };
        let wanted = wanted.min(places - tokens.len());
        // Of those left the first is settled.
        let left = if second.is_some() { 1 } else { wanted.min(next.len() - (settled - 1)) };
        inputs = next[settled - 1..][..left].to_vec();
        let mut from = vec![weights.rows(settled - 1, left)?];
        if let Some(second) = &mut second {
            let (drafts, of_drafts) = second.draft(&tokens, wanted - 1, law, |place| luck.fresh(place, 1, pass))?;
            inputs.extend(drafts);
            from.extend(of_drafts);
        } else if wanted > left {
            if speculation.drafts == Drafts::Random {
                let drafts = luck.drafts(wanted - left, vocabulary);
                from.push(Weights::certain(device, &drafts, vocabulary)?);
                inputs.extend(drafts);
            } else {
                let mut known = [&tokens[..], &inputs[1..]].concat();
                from.extend(neighbours.draft(&mut known, wanted - left, &weights.rows(settled, left - 1)?, luck)?);
                inputs.extend(&known[known.len() - (wanted - left)..]);
            }
        }
        drawn_from = stacked(&from)?;
    }
    tokens.truncate(places);
    Ok(tokens)
}

/// What the places that drafts may follow were drawn from.
struct Neighbours {
    drafts: Drafts,
    /// Of each settled place; forgotten once no draft can follow it.
    laws: Vec<Option<Weights>>,
}

impl Neighbours {
    /// Of the first place.
    fn new(drafts: Drafts, first: Weights) -> Self {
        Self { drafts, laws: vec![Some(first)] }
    }

    /// Another `count` places are settled, by the first rows of a pass.
    fn settle(&mut self, weights: &Weights, count: usize) -> Result<()> {
        if let Drafts::Sample { back } = self.drafts {
            for place in 0..count {
                self.laws.push(Some(weights.rows(place, 1)?));
            }
            let end = self.laws.len().saturating_sub(back);
            self.laws[..end].iter_mut().rev().take(count).for_each(|law| *law = None);
        }
        Ok(())
    }

    /// Adds `count` drafts to the tokens that are `known`, whose last ones are drafts, a row of `drafted` each. What the
    /// new ones were drawn from.
    fn draft(
        &self,
        known: &mut Vec<u32>,
        count: usize,
        drafted: &Weights,
        luck: &mut dyn Luck,
    ) -> Result<Vec<Weights>> {
        let (device, [_, vocabulary]) = (drafted.tensor().device().clone(), drafted.shape());
        let settled = self.laws.len();
        let mut new: Vec<Weights> = Vec::with_capacity(count);
        for place in known.len()..known.len() + count {
            let neighbour = |back: usize| place.checked_sub(back.max(1));
            let law = match self.drafts {
                Drafts::Sample { back } => match neighbour(back) {
                    None => None,
                    Some(at) if at < settled => self.laws[at].clone(),
                    Some(at) if at - settled < drafted.shape()[0] => Some(drafted.rows(at - settled, 1)?),
                    Some(at) => Some(new[at - settled - drafted.shape()[0]].clone()),
                },
                _ => None,
            };
            let token = match (&law, self.drafts) {
                (Some(law), _) => {
                    let number = luck.drafts(1, 1 << 24)[0] as f32 / (1 << 24) as f32;
                    sample::draw(law, &Draws::Uniform(vec![number]))?.to_vec()?[0]
                }
                (None, Drafts::Repeat { back }) if neighbour(back).is_some() => known[place - back.max(1)],
                _ => luck.drafts(1, vocabulary)[0],
            };
            known.push(token);
            new.push(law.map_or_else(|| Weights::certain(&device, &[token], vocabulary), Ok)?);
        }
        Ok(new)
    }
}

/// What sees each pass of [`speculative`], and shows `steps` what it settled of the places of `order`.
pub fn steps_of_passes<'a, T: Float>(
    device: &'a Device,
    order: Order<'a>,
    steps: Steps<'a, T>,
) -> impl FnMut(&Pass<'_, T>) -> Result<()> + use<'a, T> {
    let mut settled = 0;
    move |pass| {
        // The first token was drawn before the first pass.
        let first = &pass.inputs[..usize::from(settled == 0)];
        let tokens = [first, &pass.tokens[..pass.settled]].concat();
        let cells = order.cells(settled, tokens.len());
        settled += tokens.len();
        let tokens = Tensor::from_vec(device, &[1, tokens.len()], tokens)?;
        go_on(steps(Step { settled, logits: pass.logits, tokens: &tokens, cells, latents: None }))
    }
}

/// As [`sequential`], or, with a decoder, one picture by testing drafts.
///
/// # Errors
/// As [`sequential`] and [`speculative`]; [`Error::Request`] if a decoder is to use recorded numbers.
pub fn causal<T: Float>(
    network: &mut impl Rewind<T>,
    condition: Tensor<T>,
    batch: usize,
    order: Order<'_>,
    scale: impl Fn(usize) -> f32,
    sampler: &Sampler<'_>,
    decoder: Option<&Speculation>,
    steps: Steps<'_, T>,
) -> Result<Tensor<u32>> {
    let Some(speculation) = decoder else {
        return sequential(network, condition, batch, order, scale, sampler, steps);
    };
    let (device, places) = (condition.device().clone(), order.places());
    let mut luck = OfPicture::of(sampler)?;
    let law = Law { scale: &scale, filter: &sampler.sampling.filter() };
    let mut each = steps_of_passes(&device, order, steps);
    let tokens = speculative(network, &condition, places, law, speculation, None, &mut luck, &mut each)?;
    order.in_raster(Tensor::from_vec(&device, &[batch, places], tokens)?)
}

/// The rows of all, one below the other.
fn stacked(parts: &[Weights]) -> Result<Weights> {
    if let [one] = parts {
        return Ok(one.clone());
    }
    let dense = parts.iter().map(|part| part.tensor().contiguous()).collect::<smalti::Result<Vec<_>>>()?;
    Ok(Weights::from_tensor(concatenate(&dense.iter().collect::<Vec<_>>(), 0)?)?)
}

/// Squared distances of all rows of `codes` (`[codes, channels]`) from each other: `|a|² + |b|² - 2 a b`.
///
/// # Errors
/// If the device fails.
pub fn squared_distances(codes: &Tensor<f32>) -> Result<Tensor<f32>> {
    let &[count, channels] = codes.shape() else {
        return Err(Error::Request(format!("codes of shape {:?}, expected [codes, channels]", codes.shape())));
    };
    let products = linear::linear(codes, &Weight::from(codes.contiguous()?), None)?;
    let squares = |row: &[f32]| row.iter().map(|value| value * value).sum();
    let squares: Vec<f32> = codes.to_vec()?.chunks(channels.max(1)).map(squares).collect();
    let squares = Tensor::from_vec(codes.device(), &[count, 1], squares)?;
    let distances = elementwise::scale_add(&products, -2.0, &products, 0.0)?;
    let distances = elementwise::add(&distances, &squares)?;
    Ok(elementwise::add(&distances, &squares.reshape(&[1, count])?)?)
}
