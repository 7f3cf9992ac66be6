//! What the systems share that draw continuous tokens, given a class, and decode them with a KL autoencoder.

use std::marker::PhantomData;
use std::ops::ControlFlow;

use smalti::{Device, Float, Tensor};

use super::class_names;
use super::codes::to_planes;
use crate::decode::{Chance, OfPlaces, Random, Sampler};
use crate::tokenizer::kl::KlAutoencoder;
use crate::weights::{Checkpoint, Config, Loader};
use crate::{Drawn, Error, Generator, Result, Sampling};

/// The parts around the network: names, defaults, tokenizer.
pub struct Latents {
    /// Where the weights are.
    pub device: Device,
    /// Tokens along one side of a picture.
    pub side: usize,
    names: Vec<String>,
    sampling: Sampling,
    tokenizer: Option<KlAutoencoder>,
}

/// Called after each step with the places of a picture settled so far.
pub type Progress<'a> = &'a mut dyn FnMut(usize) -> ControlFlow<()>;

impl Latents {
    /// Reads what the checkpoint says besides its network of `places` tokens: how to sample, class names, and the
    /// tokenizer under `vae.` if it is there.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(
        checkpoint: &Checkpoint,
        root: &Loader<'_>,
        config: &Config,
        places: usize,
        classes: usize,
    ) -> Result<Self> {
        let tokenizer = || {
            let groups = config.count("norm_groups").unwrap_or(32);
            KlAutoencoder::load(&root.at("vae"), groups, config.number("latent_scale").unwrap_or(0.2325))
        };
        Ok(Self {
            device: root.device().clone(),
            side: places.isqrt(),
            names: class_names(checkpoint, classes),
            sampling: Sampling {
                cfg: config.number("cfg").unwrap_or(3.0),
                temperature: config.number("temperature").unwrap_or(1.0),
                top_k: 0,
                top_p: 1.0,
                seed: 0,
            },
            tokenizer: if root.has("vae") { Some(tokenizer()?) } else { None },
        })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::Request`] if the checkpoint has none.
    pub fn tokenizer(&self) -> Result<&KlAutoencoder> {
        let missing = || Error::Request("the checkpoint holds no tokenizer (no vae.*)".to_owned());
        self.tokenizer.as_ref().ok_or_else(missing)
    }
}

/// A system that draws latents. [`LatentsInDtype`] makes a [`Generator`] of it.
pub trait DrawsLatents {
    /// The system's name, as in a dump's metadata.
    const SYSTEM: &'static str;

    /// The parts around the network.
    fn latents(&self) -> &Latents;

    /// Draws the latents of one picture per label, `[batch, channels, rows, columns]`, computing in `T`. Orders come
    /// from `sampler`, normal numbers from `chance`.
    ///
    /// # Errors
    /// As [`Generator::draw`], or whatever `chance` returns.
    fn generate<T: Float>(
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

impl<T: Float, M: DrawsLatents> Generator for LatentsInDtype<T, M> {
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
        [latents.side * latents.tokenizer.as_ref().map_or(1, KlAutoencoder::factor); 2]
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
        let latents = self.0.generate::<T>(labels, &sampler, &mut OfPlaces::new(&sampler), &mut of_all)?;
        let pixels = self.0.latents().tokenizer.as_ref().map(|tokenizer| tokenizer.decode(&latents)).transpose()?;
        to_planes(&latents, pixels.as_ref())
    }
}
