//! FAR: frequency by frequency, each level a finer picture of the same size.
//!
//! | part      | here                                                                                       |
//! |-----------|--------------------------------------------------------------------------------------------|
//! | tokenizer | a KL autoencoder ([`KlAutoencoder`])                                                       |
//! | backbone  | ViT encoder and decoder ([`MaskedTransformer`])                                            |
//! | order     | levels of frequency; a level feeds the next its picture without what the next does not know |
//! | mask      | full; one variant hides a random part of the picture from the encoder, less at each level  |
//! | position  | learned, one table for each of encoder, decoder and head                                   |
//! | head      | diffusion, told of the level ([`DiffusionHead`])                                           |
//! | decoder   | all places in every level                                                                  |
//! | guidance  | on the head's noise, `uncond + s (cond - uncond)`, `s` and the temperature rising by level |
//!
//! A low-pass filter is a picture shrunk by averages and enlarged by cubics; the head learns the
//! distribution of the full picture at each level, not of the filtered one, so what a level draws is
//! filtered only to be fed back. These are the paper's frequency progressive order and its instantiation with the
//! continuous tokenizer; hiding places is its mask mechanism.
//!
//! Paper: Yu et al. 2025, arXiv:2503.05305. Upstream: yuhuUSTC/FAR, `models/far.py`.
//!
//! The file is long because it holds two variants, with and without hidden places, which differ in levels, orders,
//! temperatures and in whether the first picture is filtered.

use std::f64::consts::FRAC_PI_2;

use smalti::resize::{Mode, resize};
use smalti::{Device, Float, Tensor};

use super::latents::{DrawsLatents, Latents, Partial, Progress, WantedLatents};
use crate::Result;
use crate::backbone::masked::{MaskedTransformer, unpatched};
use crate::decode::{Chance, Sampler, twice};
use crate::head::diffusion::DiffusionHead;
use crate::tokenizer::kl::KlAutoencoder;
use crate::weights::Checkpoint;

/// The model with its weights on a device.
pub struct Far {
    latents: Latents,
    backbone: MaskedTransformer,
    head: DiffusionHead,
    /// What the head is told at each level; from the second on, the side to which the picture before was shrunk.
    levels: Vec<usize>,
    masked: bool,
}

/// What a level is drawn with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// What the head is told.
    pub index: usize,
    /// Guidance scale.
    pub scale: f64,
    /// Of the head's noise.
    pub temperature: f64,
}

impl Far {
    /// Loads official names, and a tokenizer under `vae.`.
    ///
    /// # Errors
    /// [`crate::Error::Weights`] with every tensor that does not fit; [`crate::Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &[], |root, notes| {
            let backbone = MaskedTransformer::load(root, &config)?;
            let masked = config.flag("masked").unwrap_or(true);
            let official: &[usize] =
                if masked { &[0, 12, 12, 4, 5, 6, 7, 8, 9, 10, 11] } else { &[0, 2, 3, 4, 5, 6, 7, 8, 9, 10] };
            let levels = config.counts("levels").unwrap_or_else(|| official.to_vec());
            if levels.iter().skip(1).any(|level| *level == 0) {
                notes.add(format!("\"levels\" are {levels:?}: only the first may be 0"));
            }
            Ok(Self {
                latents: Latents::load(
                    checkpoint,
                    root,
                    &config,
                    [backbone.places(), backbone.classes()],
                    config.number("cfg").unwrap_or(3.0),
                )?,
                head: DiffusionHead::load(&root.at("diffloss.net"), config.count("num_sampling_steps").unwrap_or(100))?,
                backbone,
                levels,
                masked,
            })
        })
    }

    /// The transformer alone.
    #[must_use]
    pub fn backbone(&self) -> &MaskedTransformer {
        &self.backbone
    }

    /// The head alone.
    #[must_use]
    pub fn head(&self) -> &DiffusionHead {
        &self.head
    }

    /// What each level is drawn with, given the guidance scale and the temperature that the last ones come near to.
    #[must_use]
    pub fn levels(&self, cfg: f32, temperature: f32) -> Vec<Level> {
        let count = self.levels.len() as f64;
        let level = |(step, index): (usize, &usize)| Level {
            index: *index,
            scale: 1.0 + (f64::from(cfg) - 1.0) * step as f64 / count,
            temperature: match self.masked {
                true => 0.85 + (f64::from(temperature) - 0.85) * step as f64 / count,
                false => 0.8 + 0.2 * (1.0 - (FRAC_PI_2 * (step + 1) as f64 / count).cos()),
            },
        };
        self.levels.iter().enumerate().map(level).collect()
    }

    /// [`DrawsLatents::draw_latents`] that also shows what the head drew at each level, `[batch, places, channels]`.
    ///
    /// # Errors
    /// As there, or whatever `drawn` returns.
    pub fn generate_levels<T: Float>(
        &self,
        labels: &[u32],
        sampler: &Sampler<'_>,
        chance: &mut dyn Chance,
        mut drawn: impl FnMut(&Tensor<T>) -> Result<()>,
    ) -> Result<Tensor<T>> {
        let (batch, places, channels) = (labels.len(), self.backbone.places(), self.head.channels());
        let side = self.latents.side;
        let levels = self.levels(sampler.sampling.cfg, sampler.sampling.temperature);
        let order = |picture| if self.masked { sampler.order(Some(picture)) } else { (0..places).collect() };
        let orders: Vec<Vec<_>> = (0..batch).map(order).collect();
        let cells: Vec<_> = (0..batch).flat_map(|picture| (0..places).map(move |cell| (picture, cell))).collect();
        chance.begin(&cells);
        let condition = self.backbone.condition::<T>(labels, true)?;
        let mut tokens = Tensor::<T>::zeros(&self.latents.device, &[batch, places, channels])?;
        let mut hidden = if self.masked { places } else { 0 };
        for (step, level) in levels.iter().enumerate() {
            let seen: Vec<Vec<_>> = orders.iter().map(|order| order[hidden..].to_vec()).collect();
            let seen = [&seen[..], &seen[..]].concat();
            let z = self.backbone.decode(&self.backbone.encode(&twice(&tokens)?, &seen, &condition)?, &seen)?;
            let z = z.reshape(&[2 * batch * places, z.shape()[2]])?;
            let z = self.head.condition(&z, &[level.index as f32])?;
            let mut of_level = |rows: usize, channels: usize| chance.normals(rows, channels);
            tokens = self.head.sample(&z, Some(level.scale as f32), level.temperature as f32, &mut of_level)?;
            tokens = tokens.reshape(&[batch, places, channels])?;
            drawn(&tokens)?;
            let Some(next) = levels.get(step + 1) else { break };
            if self.masked {
                let share = (FRAC_PI_2 * (step + 1) as f64 / levels.len() as f64).cos();
                hidden = (places as f64 * share).floor() as usize;
            }
            // The masked variant feeds its first picture back as it is.
            if step > 0 || !self.masked {
                let shrunk = resize(&unpatched(&tokens, 1)?, [next.index; 2], Mode::Area)?;
                let filtered = resize(&shrunk, [side; 2], Mode::Bicubic { align_corners: false })?;
                tokens = filtered.reshape(&[batch, channels, places])?.permute(&[0, 2, 1])?.contiguous()?;
            }
        }
        unpatched(&tokens, 1)
    }
}

impl<T: Float> DrawsLatents<T> for Far {
    const SYSTEM: &'static str = "far";
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
        let (places, mut done) = (self.backbone.places(), 0);
        self.generate_levels(labels, sampler, chance, |_: &Tensor<T>| {
            done += 1;
            progress(Partial::count(places * done / self.levels.len()))
        })
    }
}
