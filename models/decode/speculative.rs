//! Several places guessed at once, all tested by one pass: Jacobi decoding of a causal network.
//!
//! Every pass is fed the last token that is settled and drafts for the places after it, some of them left from the pass
//! before, the others drawn at random. The drafts before the first one that fails its test are settled, and the token
//! that follows them. Without groups the tokens have the law of decoding one after another.
//!
//! Source: Teng et al. 2024, arXiv:2410.01699 (SJD), section 3 and algorithm 1; So et al. 2025, arXiv:2508.07747 (GSD),
//! section 4.

use smalti::jacobi::{self, Groups, Rule, VerifyDraws};
use smalti::sample::{self, Draws, Filter, Guidance, Places, Weights};
use smalti::{Float, Tensor, Weight, elementwise, linear, rng};

use super::{Network, concatenate, guide, twice};
use crate::{Error, Result};

/// How drafts are tested.
#[derive(Debug, Clone)]
pub enum Test {
    /// A draft stays if it is drawn again.
    Same,
    /// A draft stays with the ratio of the present probability to that it was drawn by (SJD, section 3.2).
    Ratio,
    /// The same for the masses of the draft and of tokens like it, which are no longer told apart (GSD, section 4).
    Grouped {
        /// Between the codes: `[vocabulary, vocabulary]`.
        distances: Tensor<f32>,
        /// Which tokens are like a draft.
        window: jacobi::Window,
    },
}

/// A decoder that tests drafts.
#[derive(Debug, Clone)]
pub struct Speculation {
    /// How drafts are tested.
    pub test: Test,
    /// At most so many tokens are fed in one pass.
    pub window: usize,
    /// From this place on tokens are decoded one after another.
    pub until: usize,
}

/// A network that can forget the last places that it was given.
pub trait Rewind<T: Float>: Network<T> {
    /// Forgets the last `places` places.
    fn rewind(&mut self, places: usize);
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

/// Draws the `places` tokens of one picture, after a condition of one row or, with guidance by `scale`, of a second
/// without it. `steps` sees each pass.
///
/// # Errors
/// As the network, or whatever `steps` returns.
pub fn speculative<T: Float>(
    network: &mut impl Rewind<T>,
    condition: &Tensor<T>,
    places: usize,
    scale: f32,
    filter: &Filter,
    speculation: &Speculation,
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
    let guided = |logits: &Tensor<T>| -> Result<(Tensor<T>, Weights)> {
        let guided = guide(logits, 1, scale, Guidance::Scale)?.contiguous()?;
        let shape = [guided.shape()[1], guided.shape()[2]];
        let weights = sample::weigh(&guided.reshape(&shape)?, None, filter)?;
        Ok((guided, weights))
    };
    let logits = network.logits(condition)?;
    let (_, weights) = guided(&logits.narrow(1, logits.shape()[1].saturating_sub(1), 1)?.contiguous()?)?;
    let vocabulary = weights.shape()[1];
    let first = sample::draw(&weights, &luck.fresh(0, 1, 0))?.to_vec()?;

    let mut tokens = first.clone();
    let mut inputs = first;
    let mut drawn_from = Weights::certain(device, &inputs, vocabulary)?;
    let mut pass = 0;
    while tokens.len() < places {
        pass += 1;
        let (count, before) = (inputs.len(), tokens.len());
        let fed = Tensor::from_vec(device, &[1, count], inputs.clone())?;
        let x = network.embed(&if rows == 2 { twice(&fed)? } else { fed.clone() })?;
        let (logits, weights) = guided(&network.logits(&x)?)?;
        let (next, settled) = match &speculation.test {
            // Nothing to test.
            _ if count == 1 => (sample::draw(&weights, &luck.fresh(before, 1, pass))?.to_vec()?, 1),
            Test::Same => {
                let next = sample::draw(&weights, &luck.fresh(before, count, pass))?.to_vec()?;
                let same = inputs[1..].iter().zip(&next).take_while(|(draft, token)| draft == token).count();
                (next, same + 1)
            }
            Test::Ratio | Test::Grouped { .. } => {
                let draft = fed.narrow(1, 1, count - 1)?.contiguous()?;
                let groups = match &speculation.test {
                    Test::Grouped { distances, window } => {
                        let logits = logits.narrow(1, 0, count - 1)?;
                        let weights = weights.rows(0, count - 1)?;
                        Some(Groups::nearby(&logits, &weights, &draft, distances, *window)?)
                    }
                    _ => None,
                };
                let draws = luck.test(before, count, pass);
                let from = drawn_from.rows(1, count - 1)?;
                let verified = jacobi::verify(&from, &weights, &draft, groups.as_ref(), Rule::Fresh, &draws)?;
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
        let left = &next[settled - 1..];
        let left = &left[..wanted.min(left.len())];
        let new = luck.drafts(wanted - left.len(), vocabulary);
        inputs = [left, &new].concat();
        drawn_from = weights.rows(settled - 1, left.len())?;
        if !new.is_empty() {
            let new = Weights::certain(device, &new, vocabulary)?;
            let left = drawn_from.tensor().contiguous()?;
            drawn_from = Weights::from_tensor(concatenate(&[&left, new.tensor()], 0)?)?;
        }
    }
    tokens.truncate(places);
    Ok(tokens)
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
