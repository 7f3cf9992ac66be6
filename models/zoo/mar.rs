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
use smalti::{Device, Float, Tensor, elementwise};

use super::latents::{DrawsLatents, Known, Latents, Partial, Progress, WantedLatents};
use crate::Result;
use crate::backbone::masked::{Asked, MaskedTransformer, patched, unpatched};
use crate::decode::{Chance, guidance_over_steps};
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
                steps: transformer.steps(&config),
                guidance: guidance_over_steps(&config),
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

    /// The tokens that stay of a given picture, `[batch, places, values]`, zeros elsewhere.
    fn staying<T: Float>(&self, known: &Known<T>, batch: usize) -> Result<Tensor<T>> {
        let tokens = patched(&known.latents, self.latents.patch)?;
        let [places, values] = [self.transformer.places(), self.transformer.values()];
        let stays = known.stays.iter().map(|stays| T::from_f32(f32::from(u8::from(*stays)))).collect();
        let stays = Tensor::from_vec(&self.latents.device, &[1, places, 1], stays)?;
        let tokens = elementwise::mul(&tokens.broadcast(&[batch, places, values])?.contiguous()?, &stays)?;
        Ok(tokens)
    }
}

impl<T: Float> DrawsLatents<T> for Mar {
    const SYSTEM: &'static str = "mar";
    type Tokenizer = KlAutoencoder;

    fn latents(&self) -> &Latents {
        &self.latents
    }

    const FILLS: bool = true;

    fn draw_latents(
        &self,
        WantedLatents { labels, known, sampler }: WantedLatents<'_, T>,
        chance: &mut dyn Chance,
        progress: Progress<'_, T>,
    ) -> Result<Tensor<T>> {
        let (sampling, batch, patch) = (sampler.sampling, labels.len(), self.latents.patch);
        let mut orders: Vec<_> = (0..batch).map(|picture| sampler.order(Some(picture))).collect();
        let given = match known {
            None => None,
            Some(known) => {
                // The last cells of an order are settled first.
                orders.iter_mut().for_each(|order| order.sort_by_key(|cell| known.stays[*cell]));
                let count = known.stays.iter().filter(|stays| **stays).count();
                Some((self.staying(known, batch)?, count))
            }
        };
        let guided = sampling.cfg != 1.0;
        let head = |asked: Asked<'_, T>| {
            let scale = guided.then(|| self.guidance.at(sampling.cfg.into(), asked.share) as f32);
            chance.begin(asked.cells);
            let mut normals = |rows: usize, channels: usize| chance.normals(rows, channels);
            let condition = self.head.condition(asked.states, &[])?;
            self.head.sample(&condition, scale, sampling.temperature, &mut normals)
        };
        let seen = |tokens: &Tensor<T>, cells: &[(usize, usize)], settled: usize| {
            let latents = || unpatched(tokens, patch);
            progress(Partial { settled, cells, latents: Some(&latents) })
        };
        let tokens = self.transformer.generate(labels, &orders, given, self.steps, guided, head, seen)?;
        // Each token is a patch of the latents.
        unpatched(&tokens, patch)
    }
}
