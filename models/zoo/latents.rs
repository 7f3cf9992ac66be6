//! What the systems share that draw continuous tokens, given a class, and decode them with an autoencoder.
//!
//! The file is long because it makes a [`Generator`] of all these systems at once, whichever of two autoencoders
//! decodes: it is two traits, what passes between them, and previews and given pictures for everyone.

use std::marker::PhantomData;

use smalti::{Device, Float, Tensor};

use super::class_names;
use super::codes::{per_entry, to_planes};
use crate::decode::{Chance, OfPlaces, Random, Sampler};
use crate::generator::whole_only;
use crate::tokenizer::kl::KlAutoencoder;
use crate::tokenizer::spherical::SphericalAutoencoder;
use crate::weights::{Checkpoint, Config, Loader};
use crate::{About, Drawn, Error, Generator, Given, Result, Sampling, Seen, Wanted, Watch};

/// An autoencoder whose latents are drawn.
pub trait DecodesLatents {
    /// Pixels along a side of a latent.
    fn factor(&self) -> usize;

    /// Latents of pixels `[batch, 3, height, width]` in -1 to 1, if there is an encoder.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    fn encode<T: Float>(&self, _pixels: &Tensor<T>) -> Result<Option<Tensor<T>>> {
        Ok(None)
    }

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

    fn encode<T: Float>(&self, pixels: &Tensor<T>) -> Result<Option<Tensor<T>>> {
        Ok(Some(self.latents(pixels)?))
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

/// What a step of a generation has settled.
pub struct Partial<'a, T: Float> {
    /// Places of each picture settled so far.
    pub settled: usize,
    /// Which cells (picture of the batch, cell) the step settled; empty where they do not settle one by one.
    pub cells: &'a [(usize, usize)],
    /// What the tokenizer would be fed now, zeros where nothing is settled; none where it is not known before the end.
    pub latents: Option<&'a dyn Fn() -> Result<Tensor<T>>>,
}

impl<T: Float> Partial<'_, T> {
    /// Of a step that tells only how far it has come.
    #[must_use]
    pub fn count(settled: usize) -> Self {
        Self { settled, cells: &[], latents: None }
    }
}

/// Called after each step; an error ends the generation.
pub type Progress<'a, T> = &'a mut dyn FnMut(Partial<'_, T>) -> Result<()>;

/// The latents of a picture of which a part is drawn anew, and which tokens stay.
pub struct Known<T: Float> {
    /// As the tokenizer takes them, `[1, channels, side, side]`.
    pub latents: Tensor<T>,
    /// Of each token, row by row.
    pub stays: Vec<bool>,
}

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

/// What a system that draws latents is to draw.
#[derive(Clone, Copy)]
pub struct WantedLatents<'a, T: Float> {
    /// One picture each.
    pub labels: &'a [u32],
    /// A given picture and what stays of it; none without [`DrawsLatents::FILLS`].
    pub known: Option<&'a Known<T>>,
    /// How tokens are drawn, and where orders come from.
    pub sampler: &'a Sampler<'a>,
}

/// A system that draws latents, computing in `T`. [`LatentsInDtype`] makes a [`Generator`] of it.
pub trait DrawsLatents<T: Float> {
    /// The system's name, as in a dump's metadata.
    const SYSTEM: &'static str;
    /// What decodes the latents.
    type Tokenizer: DecodesLatents;

    /// The parts around the network.
    fn latents(&self) -> &Latents<Self::Tokenizer>;

    /// Whether it draws parts of pictures anew.
    const FILLS: bool = false;

    /// Draws the latents of one picture per label, as the tokenizer takes them; around the tokens that stay of a given
    /// one. Random numbers but orders come from `chance`.
    ///
    /// # Errors
    /// As [`Generator::draw`], or whatever `chance` returns.
    fn draw_latents(
        &self,
        wanted: WantedLatents<'_, T>,
        chance: &mut dyn Chance,
        progress: Progress<'_, T>,
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
    fn about(&self) -> About<'_> {
        let latents = self.0.latents();
        let factor = latents.tokenizer.as_ref().map_or(1, DecodesLatents::factor);
        About {
            system: M::SYSTEM,
            classes: &latents.names,
            sampling: latents.sampling,
            tokens_per_picture: latents.side.pow(2),
            has_tokenizer: latents.tokenizer.is_some(),
            picture_size: [latents.side * latents.patch * factor; 2],
            frames: 1,
            grids: vec![[latents.side; 2]],
        }
    }

    fn draw_watched(&self, wanted: Wanted<'_>, watch: Watch<'_>) -> Result<Drawn> {
        let Wanted { labels, first_picture, sampling, given } = wanted;
        let (batch, places) = (labels.len(), self.0.latents().side.pow(2));
        let sampler = Sampler::new(*sampling, Random::Philox { first_picture }, places);
        let tokenizer = self.0.latents().tokenizer.as_ref();
        let known = given.map(|given| self.known(given)).transpose()?;
        let mut each = |step: Partial<'_, T>| {
            let mut cells = vec![Vec::new(); batch];
            step.cells.iter().for_each(|(picture, cell)| cells[*picture].push(*cell));
            let pictures = || match (tokenizer, step.latents) {
                (Some(tokenizer), Some(latents)) => per_entry(&tokenizer.decode(&latents()?)?),
                _ => Ok(Vec::new()),
            };
            watch(Seen::of_batch([step.settled, places], &cells, &pictures))
        };
        let mut chance = OfPlaces::new(&sampler);
        let wanted = WantedLatents { labels, known: known.as_ref(), sampler: &sampler };
        let latents = self.0.draw_latents(wanted, &mut chance, &mut each)?;
        let pixels = tokenizer.map(|tokenizer| tokenizer.decode(&latents)).transpose()?;
        to_planes(&latents, pixels.as_ref())
    }

    fn can_fill(&self) -> bool {
        M::FILLS && self.0.latents().tokenizer.is_some()
    }
}

impl<T: Float, M: DrawsLatents<T>> LatentsInDtype<T, M> {
    /// What stays of a given picture: tokens without a pixel that is drawn anew.
    fn known(&self, given: Given<'_>) -> Result<Known<T>> {
        let latents = self.0.latents();
        let (size, grid) = (self.about().picture_size, [latents.side; 2]);
        if !M::FILLS {
            whole_only(M::SYSTEM, Some(given))?;
        }
        let encoded = match &latents.tokenizer {
            Some(tokenizer) => tokenizer.encode(&given.pixels::<T>(&latents.device, size)?)?,
            None => None,
        };
        let missing = || Error::Request("the checkpoint holds no encoder of pictures".to_owned());
        let stays = (0..latents.side.pow(2)).map(|cell| given.anew_share(size, grid, cell) == 0.0).collect();
        Ok(Known { latents: encoded.ok_or_else(missing)?, stays })
    }
}
