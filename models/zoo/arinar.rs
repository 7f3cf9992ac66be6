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

use smalti::sample::Schedule;
use smalti::{Device, Float, Tensor};

use super::latents::{DrawsLatents, Latents, Partial, Progress, WantedLatents};
use crate::Result;
use crate::backbone::masked::{Asked, MaskedTransformer, unpatched};
use crate::decode::{Chance, Sampler, guidance_over_steps, twice};
use crate::head::features::FeatureHead;
use crate::tokenizer::kl::KlAutoencoder;
use crate::weights::Checkpoint;

/// The model with its weights on a device.
pub struct Arinar<T: smalti::Element> {
    transformer: MaskedTransformer,
    head: FeatureHead<T>,
    steps: usize,
    guidance: Schedule,
    latents: Latents,
}

/// One step of a generation.
pub struct Step<'a, T: smalti::Element> {
    /// The states that the head was given, under guidance those without a class below the others.
    pub states: &'a Tensor<T>,
    /// The guidance scale, 1 being none.
    pub scale: f64,
    /// The tokens that it drew; as many rows as states.
    pub tokens: &'a Tensor<T>,
    /// Cells (picture of the batch, cell) that it settled.
    pub cells: &'a [(usize, usize)],
}

impl<T: Float> Arinar<T> {
    /// Loads official names, and the tokenizer under `vae.` if it is there.
    ///
    /// # Errors
    /// [`crate::Error::Weights`] with every tensor that does not fit; [`crate::Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &[], |root, notes| {
            let transformer = MaskedTransformer::load(root, &config)?;
            let head = FeatureHead::load(&root.at("arhead"), &config, transformer.width())?;
            if head.values() != transformer.values() {
                let (head, token) = (head.values(), transformer.values());
                notes.add(format!("the head draws {head} values of a token, the transformer reads {token}"));
            }
            let of = [transformer.places(), transformer.classes()];
            let latents = Latents::load(checkpoint, root, &config, of, config.number("cfg").unwrap_or(4.5))?;
            Ok(Self {
                head,
                steps: transformer.steps(&config),
                guidance: guidance_over_steps(&config),
                latents: latents.in_patches_of(config.count("patch_size").unwrap_or(1)),
                transformer,
            })
        })
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
    /// As [`crate::Generator::draw`], or whatever `progress` returns.
    pub fn generate(
        &self,
        labels: &[u32],
        sampler: &Sampler<'_>,
        chance: &mut dyn Chance,
        mut progress: impl FnMut(&Step<'_, T>) -> Result<()>,
    ) -> Result<Tensor<T>> {
        let sampling = sampler.sampling;
        let orders: Vec<_> = (0..labels.len()).map(|picture| sampler.order(Some(picture))).collect();
        let guided = sampling.cfg != 1.0;
        let head = |asked: Asked<'_, T>| {
            chance.begin(asked.cells);
            let scale = guided.then(|| self.guidance.at(sampling.cfg.into(), asked.share));
            let drawn = self.head.sample(asked.states, scale, sampling.temperature.into(), chance)?;
            let tokens = if guided { &twice(&drawn)? } else { &drawn };
            progress(&Step { states: asked.states, scale: scale.unwrap_or(1.0), tokens, cells: asked.cells })?;
            Ok(drawn)
        };
        let tokens = self.transformer.generate(labels, &orders, None, self.steps, guided, head, |_, _, _| Ok(()))?;
        unpatched(&tokens, self.latents.patch)
    }
}

impl<T: Float> DrawsLatents<T> for Arinar<T> {
    const SYSTEM: &'static str = "arinar";
    type Tokenizer = KlAutoencoder;

    fn latents(&self) -> &Latents {
        &self.latents
    }

    fn draw_latents(
        &self,
        WantedLatents { labels, sampler, .. }: WantedLatents<'_, T>,
        chance: &mut dyn Chance,
        progress: Progress<'_, T>,
    ) -> Result<Tensor<T>> {
        let mut settled = 0;
        self.generate(labels, sampler, chance, |step| {
            settled += step.cells.len();
            progress(Partial { settled: settled / labels.len().max(1), cells: step.cells, latents: None })
        })
    }
}
