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

use std::ops::ControlFlow;

use smalti::sample::Schedule;
use smalti::{Device, Float, Tensor};

use super::class_names;
use super::codes::{go_on, to_planes};
use crate::backbone::masked::{Asked, MaskedTransformer, unpatched};
use crate::decode::{Normals, Random, Sampler, normals_of_places};
use crate::head::diffusion::DiffusionHead;
use crate::tokenizer::kl::KlAutoencoder;
use crate::weights::{Checkpoint, Loader, Notes};
use crate::{Drawn, Generator, Result, Sampling};

/// The model with its weights on a device.
pub struct Mar {
    transformer: MaskedTransformer,
    patch: usize,
    head: DiffusionHead,
    tokenizer: Option<KlAutoencoder>,
    steps: usize,
    guidance: Schedule,
    names: Vec<String>,
    sampling: Sampling,
}

impl Mar {
    /// Loads official names under `mar.`, and the tokenizer under `vae.` if it is there.
    ///
    /// # Errors
    /// [`crate::Error::Weights`] with every tensor that does not fit; [`crate::Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        let notes = Notes::default();
        let root = Loader::new(checkpoint, device, &notes);
        let mar = root.at("mar");
        let transformer = MaskedTransformer::load(&mar, &config)?;
        let model = Self {
            patch: config.count("patch_size").unwrap_or(1).max(1),
            head: DiffusionHead::load(&mar.at("diffloss.net"), config.count("num_sampling_steps").unwrap_or(100))?,
            tokenizer: if root.has("vae") {
                let groups = config.count("norm_groups").unwrap_or(32);
                let scale = config.number("latent_scale").unwrap_or(0.2325);
                Some(KlAutoencoder::load(&root.at("vae"), groups, scale)?)
            } else {
                None
            },
            steps: config.count("num_iter").unwrap_or(64).clamp(1, transformer.places().max(1)),
            guidance: match config.text("cfg_schedule") {
                Some("constant") => Schedule::Constant,
                _ => Schedule::Linear,
            },
            names: class_names(checkpoint, transformer.classes()),
            sampling: Sampling {
                cfg: config.number("cfg").unwrap_or(3.0),
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
        self.tokenizer.as_ref()
    }

    /// Draws latents, `[batch, channels, side, side]`, in each picture's own order. `normals` gives the noise of a
    /// step's head, in the order it is used, for the cells that it is told of: (picture, cell).
    ///
    /// # Errors
    /// As [`Generator::draw`], or whatever `progress` returns.
    pub fn generate<T: Float>(
        &self,
        labels: &[u32],
        orders: &[Vec<usize>],
        sampling: &Sampling,
        mut normals: impl FnMut(&[(usize, usize)], usize) -> Result<Vec<f64>>,
        mut progress: impl FnMut(usize) -> Result<()>,
    ) -> Result<Tensor<T>> {
        let mut settled = 0;
        let guided = sampling.cfg != 1.0;
        let tokens = self.transformer.generate(labels, orders, self.steps, guided, |asked: Asked<'_, T>| {
            let scale = guided.then(|| self.guidance.at(sampling.cfg.into(), asked.share) as f32);
            let mut of_step = |rows: usize, channels: usize| {
                debug_assert_eq!(rows, asked.cells.len());
                normals(asked.cells, channels)
            };
            let of_step: &mut Normals<'_> = &mut of_step;
            let drawn =
                self.head.sample(&self.head.condition(asked.states, &[])?, scale, sampling.temperature, of_step)?;
            settled += asked.cells.len();
            progress(settled)?;
            Ok(drawn)
        })?;
        // Each token is a patch of the latents.
        unpatched(&tokens, self.patch)
    }
}

/// A generator that computes in `T`.
pub struct MarIn<T>(Mar, std::marker::PhantomData<T>);

impl<T> MarIn<T> {
    /// Fixes the element type.
    #[must_use]
    pub fn new(model: Mar) -> Self {
        Self(model, std::marker::PhantomData)
    }
}

impl<T: Float> Generator for MarIn<T> {
    fn system(&self) -> &'static str {
        "mar"
    }

    fn classes(&self) -> &[String] {
        &self.0.names
    }

    fn sampling(&self) -> Sampling {
        self.0.sampling
    }

    fn tokens_per_picture(&self) -> usize {
        self.0.transformer.places()
    }

    fn has_tokenizer(&self) -> bool {
        self.0.tokenizer.is_some()
    }

    fn picture_size(&self) -> [usize; 2] {
        let side = self.0.transformer.places().isqrt();
        let side = side * self.0.patch * self.0.tokenizer().map_or(1, KlAutoencoder::factor);
        [side, side]
    }

    fn draw(
        &self,
        labels: &[u32],
        first_picture: u64,
        sampling: &Sampling,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Drawn> {
        let places = self.0.transformer.places();
        let sampler = Sampler { sampling: *sampling, random: Random::Philox { first_picture }, places };
        let orders: Vec<_> = (0..labels.len()).map(|picture| sampler.order(Some(picture))).collect();
        let mut drawn = 0;
        let normals = |cells: &[(usize, usize)], channels: usize| {
            drawn += 1;
            Ok(normals_of_places(&sampler, cells, channels, drawn))
        };
        let all = labels.len() * places;
        let latents =
            self.0.generate::<T>(labels, &orders, sampling, normals, |settled| go_on(progress(settled, all)))?;
        let pixels = self.0.tokenizer().map(|tokenizer| tokenizer.decode(&latents)).transpose()?;
        to_planes(&latents, pixels.as_ref())
    }
}
