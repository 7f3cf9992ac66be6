//! A token drawn value by value: a small transformer over the values, given the large one's state.
//!
//! Source: Zhao et al. 2025, arXiv:2503.02883, section 3.2; names from ARINAR's `arhead_gmm.py` and
//! `arhead_rect_flow.py`.

use std::f64::consts::PI;

use smalti::attention::{Align, Mask};
use smalti::{Float, Tensor, copy, elementwise};

use super::flow;
use super::mixture::Mixtures;
use super::mlp::ModulatedMlp;
use crate::backbone::adaln::{AdaLn, ModulatedHead};
use crate::backbone::vit::Linear;
use crate::decode::{Chance, concatenate, twice};
use crate::weights::{Config, Loader};
use crate::{Error, Result};

/// Of every norm here.
const EPS: f32 = 1e-6;
/// Of the inner transformer, whatever its width.
const HEADS: usize = 16;

/// How guidance and temperature change from the first value of a token to its last.
#[derive(Debug, Clone, Copy)]
enum Course {
    Constant,
    Linear,
    Cosine,
}

impl Course {
    /// `x` at value `index` of `count`.
    fn at(self, x: f64, index: usize, count: usize) -> f64 {
        let share = (index + 1) as f64 / count as f64;
        match self {
            Self::Constant => x,
            Self::Linear => x + (x - 1.0) * share / 2.0,
            Self::Cosine => 1.0 + (x - 1.0) * (1.0 + (PI * share).cos()) / 2.0,
        }
    }
}

/// What the next value is drawn from.
#[expect(clippy::large_enum_variant, reason = "a head holds one, so its size does not matter")]
enum Kind {
    Mixture { head: ModulatedHead, components: usize, candidates: usize, course: Course },
    Flow { network: ModulatedMlp, steps: usize },
}

/// The inner transformer and its head.
pub struct FeatureHead<T: smalti::Element> {
    /// Values that are drawn together.
    group: usize,
    /// How many such groups a token has.
    groups: usize,
    width: usize,
    input: Linear,
    condition: Linear,
    /// `[1, 1, width]`.
    start: Tensor<T>,
    /// `[1, groups, width]`.
    positions: Tensor<T>,
    blocks: AdaLn<T>,
    kind: Kind,
}

impl<T: Float> FeatureHead<T> {
    /// Loads the official names under the loader's prefix, for states of `dim` channels. Of the configuration it takes
    /// `num_candidates`, `bilevel_schedule` and `num_sampling_steps`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, config: &Config, dim: usize) -> Result<Self> {
        let [width, group] = loader.lengths("input_proj.weight");
        let groups = loader.length("pos_embedding", 1);
        if !width.is_multiple_of(HEADS) {
            loader.note("input_proj.weight", format!("has {width} rows, expected a multiple of {HEADS} heads"));
        }
        let kind = if loader.has("net") {
            let network = ModulatedMlp::load(&loader.at("net"))?;
            Kind::Flow { network, steps: config.count("num_sampling_steps").unwrap_or(50) }
        } else {
            // A component has a mean and a variance of each value, and a logit.
            let (rows, of_component) = (loader.length("head.weight", 0), 2 * group + 1);
            if !rows.is_multiple_of(of_component) {
                loader.note("head.weight", format!("has {rows} rows, expected {of_component} for each component"));
            }
            Kind::Mixture {
                head: ModulatedHead::load(loader, "head_nm", "head", width, EPS)?,
                components: rows / of_component,
                candidates: config.count("num_candidates").unwrap_or(1000),
                course: match config.text("bilevel_schedule") {
                    Some("linear") => Course::Linear,
                    Some("cosine") => Course::Cosine,
                    _ => Course::Constant,
                },
            }
        };
        Ok(Self {
            group,
            groups,
            width,
            input: Linear::load(loader, "input_proj", [width, group])?,
            condition: Linear::load(loader, "cond_proj", [width, dim])?,
            start: copy::convert(&loader.vector("start_token", &[1, 1, width])?)?,
            positions: copy::convert(&loader.vector("pos_embedding", &[1, groups, width])?)?,
            blocks: AdaLn::load(loader, &["blocks"], width, HEADS, EPS)?,
            kind,
        })
    }

    /// Values of a token.
    #[must_use]
    pub fn values(&self) -> usize {
        self.group * self.groups
    }

    fn start(&self, states: &Tensor<T>) -> Result<Tensor<T>> {
        let start = self.condition.run(states)?.reshape(&[states.shape()[0], 1, self.width])?;
        Ok(elementwise::add(&start, &self.start)?)
    }

    /// The inner states of tokens `[rows, values]` that are known: `[rows, groups, width]`, each knowing the values
    /// before its own.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn plain(&self, states: &Tensor<T>, tokens: &Tensor<T>) -> Result<Tensor<T>> {
        let rows = states.shape()[0];
        let before = tokens.reshape(&[rows, self.groups, self.group])?.narrow(1, 0, self.groups.saturating_sub(1))?;
        let x = concatenate(&[&self.start(states)?, &self.input.run(&before.contiguous()?)?], 1)?;
        let x = elementwise::add(&x, &self.positions)?;
        let options = self.blocks.options().mask(Mask::Causal { align: Align::TopLeft });
        self.blocks.run_some(0..self.blocks.depth(), &x, &self.blocks.condition(states)?, None, &options)
    }

    /// The mixtures' parameters of inner states `[rows, groups, width]`: `[rows, groups, parameters]`.
    ///
    /// # Errors
    /// [`Error::Request`] if the head is a flow; [`Error::Op`] if shapes do not fit or the device fails.
    pub fn parameters(&self, inner: &Tensor<T>, states: &Tensor<T>) -> Result<Tensor<T>> {
        match &self.kind {
            Kind::Mixture { head, .. } => head.run(inner, states),
            Kind::Flow { .. } => Err(Error::Request("a flow head has no mixtures".to_owned())),
        }
    }

    /// The mixtures of such parameters, row by row.
    ///
    /// # Errors
    /// As [`FeatureHead::parameters`].
    pub fn mixtures(&self, parameters: &Tensor<T>) -> Result<Mixtures> {
        match &self.kind {
            Kind::Mixture { components, .. } => Mixtures::read(parameters, *components, self.group),
            Kind::Flow { .. } => Err(Error::Request("a flow head has no mixtures".to_owned())),
        }
    }

    /// The flow's velocity at `x` (`[rows, group]`) and `times` under inner states `[rows, width]`.
    ///
    /// # Errors
    /// [`Error::Request`] if the head is a mixture; [`Error::Op`] if shapes do not fit or the device fails.
    pub fn velocity(&self, x: &Tensor<T>, times: &[f64], inner: &Tensor<T>) -> Result<Tensor<T>> {
        match &self.kind {
            Kind::Flow { network, .. } => network.run(x, times, &network.condition(inner, &[])?),
            Kind::Mixture { .. } => Err(Error::Request("a mixture head has no velocity".to_owned())),
        }
    }

    /// Draws a token for each row of the large transformer's states (`[rows, dim]`): `[rows, values]`. With a guidance
    /// `scale`, the second half of the states is without a class.
    ///
    /// # Errors
    /// If shapes do not fit, `chance` has no numbers or the device fails.
    pub fn sample(
        &self,
        states: &Tensor<T>,
        scale: Option<f64>,
        temperature: f64,
        chance: &mut dyn Chance,
    ) -> Result<Tensor<T>> {
        let (all, device) = (states.shape()[0], states.device());
        let rows = if scale.is_some() { all / 2 } else { all };
        let mut caches = self.blocks.caches(device, all, self.groups)?;
        let condition = self.blocks.condition(states)?;
        let mut x = self.start(states)?;
        let mut drawn = Vec::with_capacity(self.groups);
        for index in 0..self.groups {
            x = elementwise::add(&x, &self.positions.narrow(1, index, 1)?)?;
            let inner = self.blocks.run(&x, &condition, &mut caches, &self.blocks.options())?;
            let next = match &self.kind {
                Kind::Mixture { head, candidates, course, .. } => {
                    let mixtures = self.mixtures(&head.run(&inner, states)?)?;
                    let guide = scale.map(|scale| (course.at(scale, index, self.groups), *candidates));
                    let temperature = course.at(temperature, index, self.groups);
                    copy::convert(&mixtures.sample(guide, temperature, chance)?)?
                }
                Kind::Flow { network, steps } => {
                    let inner = inner.reshape(&[all, self.width])?;
                    let noise = chance.normals(rows, self.group)?.into_iter().map(T::from_f64).collect();
                    let noise = Tensor::from_vec(device, &[rows, self.group], noise)?;
                    let scale = scale.map(|scale| scale as f32);
                    let condition = network.condition(&inner, &[])?;
                    flow::euler(noise, *steps, scale, |x, time| network.run(x, &[time], &condition))?
                }
            };
            let fed = if scale.is_some() { twice(&next)? } else { next.clone() };
            x = self.input.run(&fed)?.reshape(&[all, 1, self.width])?;
            drawn.push(next);
        }
        concatenate(&drawn.iter().collect::<Vec<_>>(), 1)
    }
}
