//! What the systems share that draw continuous tokens, given a class, and decode them with an autoencoder.

use std::marker::PhantomData;
use std::ops::ControlFlow;

use smalti::{Device, Float, Tensor};

use super::class_names;
use super::codes::to_planes;
use crate::decode::{Chance, OfPlaces, Random, Sampler};
use crate::tokenizer::kl::KlAutoencoder;
use crate::tokenizer::spherical::SphericalAutoencoder;
use crate::weights::{Checkpoint, Config, Loader};
use crate::{Drawn, Generator, Result, Sampling};

/// An autoencoder whose latents are drawn.
pub trait DecodesLatents {
    /// Pixels along a side of a latent.
    fn factor(&self) -> usize;

    /// Pixels of latents, `[batch, 3, height, width]`, in -1 to 1.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    fn decode<T: Float>(&self, latents: &Tensor<T>) -> Result<Tensor<T>>;
}

impl DecodesLatents for KlAutoencoder {
    fn factor(&self) -> usize {
        self.factor()
    }

    fn decode<T: Float>(&self, latents: &Tensor<T>) -> Result<Tensor<T>> {
        self.decode(latents)
    }
}

impl DecodesLatents for SphericalAutoencoder {
    fn factor(&self) -> usize {
        self.factor()
    }

    fn decode<T: Float>(&self, latents: &Tensor<T>) -> Result<Tensor<T>> {
        self.decode(latents)
    }
}

/// The parts around the network: names, defaults, tokenizer.
pub struct Latents<Tokenizer = KlAutoencoder> {
    /// Where the weights are.
    pub device: Device,
    /// Tokens along one side of a picture.
    pub side: usize,
    /// Latents along one side of a token.
    pub patch: usize,
    /// How the authors sample.
    pub sampling: Sampling,
    /// If the checkpoint holds it.
    pub tokenizer: Option<Tokenizer>,
    names: Vec<String>,
}

/// Called after each step with the places of a picture settled so far.
pub type Progress<'a> = &'a mut dyn FnMut(usize) -> ControlFlow<()>;

impl Latents {
    /// Around a network of `places` tokens and `classes`, guided by `cfg`: the KL autoencoder under `vae.` if it is there.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(
        checkpoint: &Checkpoint,
        root: &Loader<'_>,
        config: &Config,
        [places, classes]: [usize; 2],
        cfg: f32,
    ) -> Result<Self> {
        let tokenizer = root.has("vae").then(|| {
            let groups = config.count("norm_groups").unwrap_or(32);
            KlAutoencoder::load(&root.at("vae"), groups, config.number("latent_scale").unwrap_or(0.2325))
        });
        Ok(Self::new(checkpoint, root.device(), config, [places, classes], cfg, tokenizer.transpose()?))
    }
}

impl<Tokenizer> Latents<Tokenizer> {
    /// Around a network of `places` tokens and `classes`, guided by `cfg`.
    pub fn new(
        checkpoint: &Checkpoint,
        device: &Device,
        config: &Config,
        [places, classes]: [usize; 2],
        cfg: f32,
        tokenizer: Option<Tokenizer>,
    ) -> Self {
        let temperature = config.number("temperature").unwrap_or(1.0);
        Self {
            device: device.clone(),
            side: places.isqrt(),
            patch: 1,
            sampling: Sampling { cfg, temperature, top_k: 0, top_p: 1.0, seed: 0 },
            tokenizer,
            names: class_names(checkpoint, classes),
        }
    }

    /// The same where a token is `patch` x `patch` latents.
    #[must_use]
    pub fn in_patches_of(mut self, patch: usize) -> Self {
        self.patch = patch.max(1);
        self
    }

    /// How many classes there are.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.names.len()
    }
}

/// A system that draws latents, computing in `T`. [`LatentsInDtype`] makes a [`Generator`] of it.
pub trait DrawsLatents<T: Float> {
    /// The system's name, as in a dump's metadata.
    const SYSTEM: &'static str;
    /// What decodes the latents.
    type Tokenizer: DecodesLatents;

    /// The parts around the network.
    fn latents(&self) -> &Latents<Self::Tokenizer>;

    /// Draws the latents of one picture per label, as the tokenizer takes them. Orders come from `sampler`, other
    /// random numbers from `chance`.
    ///
    /// # Errors
    /// As [`Generator::draw`], or whatever `chance` returns.
    fn draw_latents(
        &self,
        labels: &[u32],
        sampler: &Sampler<'_>,
        chance: &mut dyn Chance,
        progress: Progress<'_>,
    ) -> Result<Tensor<T>>;
}

/// A system that computes in `T`.
pub struct LatentsInDtype<T, M>(M, PhantomData<T>);

impl<T, M> LatentsInDtype<T, M> {
    /// Fixes the element type.
    pub fn new(model: M) -> Self {
        Self(model, PhantomData)
    }
}

impl<T: Float, M: DrawsLatents<T>> Generator for LatentsInDtype<T, M> {
    fn system(&self) -> &'static str {
        M::SYSTEM
    }

    fn classes(&self) -> &[String] {
        &self.0.latents().names
    }

    fn sampling(&self) -> Sampling {
        self.0.latents().sampling
    }

    fn tokens_per_picture(&self) -> usize {
        self.0.latents().side.pow(2)
    }

    fn has_tokenizer(&self) -> bool {
        self.0.latents().tokenizer.is_some()
    }

    fn picture_size(&self) -> [usize; 2] {
        let latents = self.0.latents();
        [latents.side * latents.patch * latents.tokenizer.as_ref().map_or(1, DecodesLatents::factor); 2]
    }

    fn draw(
        &self,
        labels: &[u32],
        first_picture: u64,
        sampling: &Sampling,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Drawn> {
        let places = self.tokens_per_picture();
        let sampler = Sampler { sampling: *sampling, random: Random::Philox { first_picture }, places };
        let all = labels.len() * places;
        let mut of_all = |settled: usize| progress(settled * labels.len(), all);
        let latents = self.0.draw_latents(labels, &sampler, &mut OfPlaces::new(&sampler), &mut of_all)?;
        let pixels = self.0.latents().tokenizer.as_ref().map(|tokenizer| tokenizer.decode(&latents)).transpose()?;
        to_planes(&latents, pixels.as_ref())
    }
}
