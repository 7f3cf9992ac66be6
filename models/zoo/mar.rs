//! MAR: masked autoregression over continuous tokens, each drawn by a small diffusion.
//!
//! | part      | here                                                                                       |
//! |-----------|--------------------------------------------------------------------------------------------|
//! | tokenizer | a KL autoencoder ([`KlAutoencoder`])                                                       |
//! | backbone  | ViT encoder over what is settled, ViT decoder over all ([`MaskedTransformer`])                           |
//! | order     | random, each picture its own                                                               |
//! | mask      | full; the encoder sees settled tokens only, the class stands before them several times     |
//! | position  | learned, one table for each of encoder, decoder and head                                   |
//! | head      | diffusion ([`DiffusionHead`])                                                              |
//! | decoder   | more and more cells per step, by a cosine                                                  |
//! | guidance  | on the head's noise, `uncond + s (cond - uncond)`, `s` constant or rising with the cells settled |
//!
//! Paper: Li et al. 2024, arXiv:2406.11838, sections 3 and 4. Upstream: LTH14/mar, `models/mar.py`.

use smalti::sample::Schedule;
use smalti::{Device, Float, Tensor};

use super::codes::go_on;
use super::latents::{DrawsLatents, Latents, Progress};
use crate::Result;
use crate::backbone::masked::{Asked, MaskedTransformer, unpatched};
use crate::decode::{Chance, Sampler};
use crate::head::diffusion::DiffusionHead;
use crate::tokenizer::kl::KlAutoencoder;
use crate::weights::Checkpoint;

/// The model with its weights on a device.
pub struct Mar {
    transformer: MaskedTransformer,
    head: DiffusionHead,
    steps: usize,
    guidance: Schedule,
    latents: Latents,
}

impl Mar {
    /// Loads official names under `mar.`, and the tokenizer under `vae.` if it is there.
    ///
    /// # Errors
    /// [`crate::Error::Weights`] with every tensor that does not fit; [`crate::Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &[], |root, _| {
            let mar = root.at("mar");
            let transformer = MaskedTransformer::load(&mar, &config)?;
            let of = [transformer.places(), transformer.classes()];
            let latents = Latents::load(checkpoint, root, &config, of, config.number("cfg").unwrap_or(3.0))?;
            Ok(Self {
                head: DiffusionHead::load(&mar.at("diffloss.net"), config.count("num_sampling_steps").unwrap_or(100))?,
                steps: config.count("num_iter").unwrap_or(64).clamp(1, transformer.places().max(1)),
                guidance: match config.text("cfg_schedule") {
                    Some("constant") => Schedule::Constant,
                    _ => Schedule::Linear,
                },
                latents: latents.in_patches_of(config.count("patch_size").unwrap_or(1)),
                transformer,
            })
        })
    }

    /// The transformer alone.
    #[must_use]
    pub fn transformer(&self) -> &MaskedTransformer {
        &self.transformer
    }

    /// The head alone.
    #[must_use]
    pub fn head(&self) -> &DiffusionHead {
        &self.head
    }

    /// The tokenizer, if the checkpoint holds one.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&KlAutoencoder> {
        self.latents.tokenizer.as_ref()
    }

    /// Draws latents, `[batch, channels, side, side]`, in each picture's own order. `progress` is told of the cells
    /// settled so far, of all pictures.
    ///
    /// # Errors
    /// As [`crate::Generator::draw`], or whatever `progress` returns.
    pub fn generate<T: Float>(
        &self,
        labels: &[u32],
        sampler: &Sampler<'_>,
        chance: &mut dyn Chance,
        mut progress: impl FnMut(usize) -> Result<()>,
    ) -> Result<Tensor<T>> {
        let sampling = sampler.sampling;
        let orders: Vec<_> = (0..labels.len()).map(|picture| sampler.order(Some(picture))).collect();
        let mut settled = 0;
        let guided = sampling.cfg != 1.0;
        let tokens = self.transformer.generate(labels, &orders, self.steps, guided, |asked: Asked<'_, T>| {
            let scale = guided.then(|| self.guidance.at(sampling.cfg.into(), asked.share) as f32);
            chance.begin(asked.cells);
            let mut normals = |rows: usize, channels: usize| chance.normals(rows, channels);
            let condition = self.head.condition(asked.states, &[])?;
            let drawn = self.head.sample(&condition, scale, sampling.temperature, &mut normals)?;
            settled += asked.cells.len();
            progress(settled)?;
            Ok(drawn)
        })?;
        // Each token is a patch of the latents.
        unpatched(&tokens, self.latents.patch)
    }
}

impl<T: Float> DrawsLatents<T> for Mar {
    const SYSTEM: &'static str = "mar";
    type Tokenizer = KlAutoencoder;

    fn latents(&self) -> &Latents {
        &self.latents
    }

    fn draw_latents(
        &self,
        labels: &[u32],
        sampler: &Sampler<'_>,
        chance: &mut dyn Chance,
        progress: Progress<'_>,
    ) -> Result<Tensor<T>> {
        self.generate(labels, sampler, chance, |settled| go_on(progress(settled / labels.len().max(1))))
    }
}
