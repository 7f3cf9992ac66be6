//! ARINAR: masked autoregression over tokens, and within each token autoregression over its values.
//!
//! | part      | here                                                                                       |
//! |-----------|--------------------------------------------------------------------------------------------|
//! | tokenizer | MAR's KL autoencoder ([`KlAutoencoder`])                                                   |
//! | backbone  | MAR's two stacks ([`MaskedTransformer`])                                                   |
//! | order     | random over cells, each picture its own; channel by channel within a cell                  |
//! | mask      | full outside, causal inside                                                                |
//! | position  | learned, outside per cell, inside per channel                                              |
//! | head      | a small transformer over the channels ([`FeatureHead`]), then a Gaussian mixture or a flow |
//! | decoder   | more and more cells per step, by a cosine; the channels one by one                         |
//! | guidance  | of a mixture, one of 1000 candidates by its ratio of densities (section 3.3); of a flow, on the velocity |
//!
//! Paper: Zhao et al. 2025, arXiv:2503.02883, sections 3.1 to 3.3. Upstream: Qinyu-Allen-Zhao/Arinar, `backbone/mar.py`.

use std::ops::ControlFlow;

use smalti::sample::Schedule;
use smalti::{Device, Float, Tensor};

use super::class_names;
use super::codes::{go_on, to_planes};
use crate::backbone::masked::{MaskedTransformer, unpatched};
use crate::decode::{Chance, OfPlaces, Random, Sampler, twice};
use crate::head::features::FeatureHead;
use crate::tokenizer::kl::KlAutoencoder;
use crate::weights::{Checkpoint, Loader, Notes};
use crate::{Drawn, Generator, Result, Sampling};

/// The model with its weights on a device.
pub struct Arinar<T: smalti::Element> {
    transformer: MaskedTransformer,
    head: FeatureHead<T>,
    tokenizer: Option<KlAutoencoder>,
    patch: usize,
    steps: usize,
    guidance: Schedule,
    names: Vec<String>,
    sampling: Sampling,
}

/// One step of a generation.
pub struct Step<'a, T: smalti::Element> {
    /// The states that the head was given, under guidance those without a class below the others.
    pub states: &'a Tensor<T>,
    /// The guidance scale, 1 being none.
    pub scale: f64,
    /// The tokens that it drew; as many rows as states.
    pub tokens: &'a Tensor<T>,
    /// Cells that it settled.
    pub cells: usize,
}

impl<T: Float> Arinar<T> {
    /// Loads official names, and the tokenizer under `vae.` if it is there.
    ///
    /// # Errors
    /// [`crate::Error::Weights`] with every tensor that does not fit; [`crate::Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        let notes = Notes::default();
        let root = Loader::new(checkpoint, device, &notes);
        let transformer = MaskedTransformer::load(&root, &config)?;
        let head = FeatureHead::load(&root.at("arhead"), &config, transformer.width())?;
        if head.values() != transformer.values() {
            let (head, token) = (head.values(), transformer.values());
            notes.add(format!("the head draws {head} values of a token, the transformer reads {token}"));
        }
        let model = Self {
            head,
            tokenizer: match root.has("vae") {
                true => Some(KlAutoencoder::load(
                    &root.at("vae"),
                    config.count("norm_groups").unwrap_or(32),
                    config.number("latent_scale").unwrap_or(0.2325),
                )?),
                false => None,
            },
            patch: config.count("patch_size").unwrap_or(1).max(1),
            steps: config.count("num_iter").unwrap_or(64).clamp(1, transformer.places().max(1)),
            guidance: match config.text("cfg_schedule") {
                Some("constant") => Schedule::Constant,
                _ => Schedule::Linear,
            },
            names: class_names(checkpoint, transformer.classes()),
            sampling: Sampling {
                cfg: config.number("cfg").unwrap_or(4.5),
                temperature: config.number("temperature").unwrap_or(1.0),
                top_k: 0,
                top_p: 1.0,
                seed: 0,
            },
            transformer,
        };
        notes.finish(checkpoint, &[])?;
        Ok(model)
    }

    /// The transformer over cells.
    #[must_use]
    pub fn transformer(&self) -> &MaskedTransformer {
        &self.transformer
    }

    /// The head over the values of a cell.
    #[must_use]
    pub fn head(&self) -> &FeatureHead<T> {
        &self.head
    }

    /// Draws latents, `[batch, channels, side, side]`, in each picture's own order.
    ///
    /// # Errors
    /// As [`Generator::draw`], or whatever `progress` returns.
    pub fn generate(
        &self,
        labels: &[u32],
        orders: &[Vec<usize>],
        sampling: &Sampling,
        chance: &mut dyn Chance,
        mut progress: impl FnMut(&Step<'_, T>) -> Result<()>,
    ) -> Result<Tensor<T>> {
        let guided = sampling.cfg != 1.0;
        let tokens = self.transformer.generate(labels, orders, self.steps, guided, |asked| {
            chance.begin(asked.cells);
            let scale = guided.then(|| self.guidance.at(sampling.cfg.into(), asked.share));
            let drawn = self.head.sample(asked.states, scale, sampling.temperature.into(), chance)?;
            let tokens = if guided { &twice(&drawn)? } else { &drawn };
            progress(&Step { states: asked.states, scale: scale.unwrap_or(1.0), tokens, cells: asked.cells.len() })?;
            Ok(drawn)
        })?;
        unpatched(&tokens, self.patch)
    }
}

impl<T: Float> Generator for Arinar<T> {
    fn system(&self) -> &'static str {
        "arinar"
    }

    fn classes(&self) -> &[String] {
        &self.names
    }

    fn sampling(&self) -> Sampling {
        self.sampling
    }

    fn tokens_per_picture(&self) -> usize {
        self.transformer.places()
    }

    fn has_tokenizer(&self) -> bool {
        self.tokenizer.is_some()
    }

    fn picture_size(&self) -> [usize; 2] {
        let factor = self.tokenizer.as_ref().map_or(1, KlAutoencoder::factor);
        [self.transformer.places().isqrt() * self.patch * factor; 2]
    }

    fn draw(
        &self,
        labels: &[u32],
        first_picture: u64,
        sampling: &Sampling,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Drawn> {
        let places = self.transformer.places();
        let sampler = Sampler { sampling: *sampling, random: Random::Philox { first_picture }, places };
        let orders: Vec<_> = (0..labels.len()).map(|picture| sampler.order(Some(picture))).collect();
        let mut settled = 0;
        let latents = self.generate(labels, &orders, sampling, &mut OfPlaces::new(&sampler), |step| {
            settled += step.cells;
            go_on(progress(settled, labels.len() * places))
        })?;
        let pixels = self.tokenizer.as_ref().map(|tokenizer| tokenizer.decode(&latents)).transpose()?;
        to_planes(&latents, pixels.as_ref())
    }
}
