//! SphereAR's autoencoder: convolutions around a transformer, latents on a sphere.
//!
//! Source: Ke and Xue 2025, arXiv:2509.24335, section 3.1; the power spherical distribution of De Cao and Aziz 2020,
//! arXiv:2006.04437; names from SphereAR's `vae.py`.

use smalti::attention::Options;
use smalti::conv::{self, Padding};
use smalti::rope::{Frequencies, Positions, Table};
use smalti::{Device, Float, Tensor, Weight, attention, copy, elementwise, linear, norm};

use super::autoencoder::{Conv, Norm};
use crate::backbone::llama::{Blocks, Sizes};
use crate::backbone::vit::Linear;
use crate::decode::concatenate;
use crate::weights::{Config, Loader};
use crate::{Error, Result};

/// Of every norm here.
const EPS: f32 = 1e-6;
const THETA: f32 = 10_000.0;

/// Group norm, SiLU, convolution, twice.
struct Branch {
    norms: [Norm; 2],
    first: Up,
    second: Conv,
}

/// A convolution, or one that doubles the grid.
enum Up {
    Same(Conv),
    Doubled(Doubling),
}

/// A transposed convolution of stride 2, as a convolution that puts out the four places that each one becomes.
struct Doubling {
    /// `[4 channels, input, side, side]`.
    weight: Weight,
    padding: Padding,
}

struct Down {
    branch: Branch,
    shortcut: Conv,
}

struct Rise {
    branch: Branch,
    shortcut: Doubling,
    after: Branch,
}

/// Register tokens and cells through Llama's blocks, every one seeing all.
struct Middle {
    /// `[registers, dim]`.
    registers: Tensor<f32>,
    blocks: Blocks,
}

/// Encoder, decoder and the sphere between them.
pub struct SphericalAutoencoder {
    device: Device,
    conv_in: Conv,
    downs: Vec<Down>,
    encoder: Middle,
    norm: Tensor<f32>,
    output: Weight,
    posterior: Linear,
    post_quant: Weight,
    decoder_in: Conv,
    decoder: Middle,
    rises: Vec<Rise>,
    norm_out: Norm,
    conv_out: Conv,
}

/// A direction and how closely latents lie around it: the power spherical distribution of one token.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// Of length 1.
    direction: Vec<f64>,
    /// At least 1.
    concentration: f64,
}

fn norm_of(loader: &Loader<'_>, name: &str) -> Result<Norm> {
    Norm::load(loader, name, (loader.at(name).length("weight", 0) / 4).clamp(1, 32))
}

impl Branch {
    fn load(loader: &Loader<'_>, name: &str, first: impl FnOnce(&Loader<'_>) -> Result<Up>) -> Result<Self> {
        let at = loader.at(name);
        Ok(Self {
            norms: [norm_of(&at, "0")?, norm_of(&at, "3")?],
            first: first(&at)?,
            second: Conv::load_without_bias(&at, "5")?,
        })
    }

    fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let h = self.norms[0].run_silu(x)?;
        let h = match &self.first {
            Up::Same(conv) => conv.run(&h)?,
            Up::Doubled(doubling) => doubling.run(&h)?,
        };
        self.second.run(&self.norms[1].run_silu(&h)?)
    }
}

impl Doubling {
    /// Loads `NAME.weight`, `[input, channels, side, side]`: of side 2 without padding, or of side 4 with one place.
    fn load(loader: &Loader<'_>, name: &str, side: usize) -> Result<Self> {
        let name = format!("{name}.weight");
        let [input, channels, _, _] = loader.lengths(&name);
        let from = loader.vector(&name, &[input, channels, side, side])?.to_vec()?;
        let kernel = side - 1;
        let mut weight = vec![0.0; 4 * channels * input * kernel * kernel];
        // Of side 4, place 2 i + p gets x[i + d] times weight 1 + p - 2 d, where there is one.
        let tap = |phase: usize, offset: usize| match side {
            2 => Some(phase),
            _ => (3 + phase).checked_sub(2 * offset).filter(|tap| *tap < 4),
        };
        for phase in 0..4 {
            for cell in 0..kernel * kernel {
                let (down, across) = (tap(phase / 2, cell / kernel), tap(phase % 2, cell % kernel));
                let (Some(down), Some(across)) = (down, across) else { continue };
                for (i, o) in (0..input).flat_map(|i| (0..channels).map(move |o| (i, o))) {
                    let to = ((o * 4 + phase) * input + i) * kernel * kernel + cell;
                    weight[to] = from[((i * channels + o) * side + down) * side + across];
                }
            }
        }
        let shape = [4 * channels, input, kernel, kernel];
        let weight = Tensor::from_vec(loader.device(), &shape, weight)?.into();
        Ok(Self { weight, padding: Padding::same(kernel) })
    }

    fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let y = conv::conv2d(x, &self.weight, None, 1, self.padding)?;
        let &[batch, channels, height, width] = y.shape() else {
            return Err(Error::Request(format!("a grid of shape {:?}", y.shape())));
        };
        let y = y.reshape(&[batch, channels / 4, 2, 2, height, width])?.permute(&[0, 1, 4, 2, 5, 3])?.contiguous()?;
        Ok(y.reshape(&[batch, channels / 4, 2 * height, 2 * width])?)
    }
}

impl Down {
    fn load(loader: &Loader<'_>) -> Result<Self> {
        let halved = |name: &str, at: &Loader<'_>, padding: usize| {
            Ok::<_, Error>(Conv::load_without_bias(at, name)?.strided(2, Padding::all(padding)))
        };
        Ok(Self {
            branch: Branch::load(loader, "block", |at| Ok(Up::Same(halved("2", at, 1)?)))?,
            shortcut: halved("shortcut", loader, 0)?,
        })
    }

    fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        Ok(elementwise::add(&self.shortcut.run(x)?, &self.branch.run(x)?)?)
    }
}

impl Rise {
    fn load(loader: &Loader<'_>) -> Result<Self> {
        Ok(Self {
            branch: Branch::load(loader, "block", |at| Ok(Up::Doubled(Doubling::load(at, "2", 4)?)))?,
            shortcut: Doubling::load(loader, "shortcut", 2)?,
            after: Branch::load(loader, "block2", |at| Ok(Up::Same(Conv::load_without_bias(at, "2")?)))?,
        })
    }

    fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let x = elementwise::add(&self.shortcut.run(x)?, &self.branch.run(x)?)?;
        Ok(elementwise::add(&x, &self.after.run(&x)?)?)
    }
}

impl Middle {
    fn load(loader: &Loader<'_>, dim: usize, heads: usize) -> Result<Self> {
        let registers = loader.length("register_token.weight", 0);
        Ok(Self {
            registers: loader.vector("register_token.weight", &[registers, dim])?,
            blocks: Blocks::load(loader, Sizes { dim, heads, kv_heads: heads, norm_eps: EPS })?,
        })
    }

    /// Cells `[batch, cells, dim]`.
    fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let (batch, cells, dim) = (x.shape()[0], x.shape()[1], x.shape()[2]);
        let registers = self.registers.shape()[0];
        let before = self.registers.reshape(&[1, registers, dim])?.broadcast(&[batch, registers, dim])?;
        let x = concatenate(&[&copy::convert(&before.contiguous()?)?, x], 1)?;
        let head_dim = self.blocks.sizes().head_dim();
        let table = centred_table(x.device(), cells.isqrt(), head_dim, registers)?;
        let mut caches = self.blocks.caches(x.device(), batch, registers + cells)?;
        let options = Options::new((head_dim as f32).powf(-0.5));
        let x = self.blocks.run(0..self.blocks.depth(), &x, Some((&table, 0)), &mut caches, &options)?;
        Ok(x.narrow(1, registers, cells)?.contiguous()?)
    }
}

/// Rotary rows of the cells of a square grid, whose centres lie at 1.5, 2.5, ..; the columns turn the first half of the
/// pairs. `first` tokens before them stand at 0.
///
/// # Errors
/// If `head_dim` is not a multiple of 4 or the device has no room.
pub fn centred_table(device: &Device, side: usize, head_dim: usize, first: usize) -> Result<Table> {
    let cells = (0..side * side).flat_map(|cell| [(cell % side) as f64 + 1.5, (cell / side) as f64 + 1.5]);
    let positions = std::iter::repeat_n(0.0, 2 * first).chain(cells).collect();
    let frequencies = Frequencies::per_axis(&[head_dim / 2; 2], THETA)?;
    Ok(Table::new(device, &frequencies, &Positions::new(2, positions)?)?)
}

/// Vectors of the last axis of `[rows, places, channels]`, brought to the length that random ones have:
/// `sqrt(channels)`.
///
/// # Errors
/// If the device fails.
pub fn on_sphere<T: Float>(x: &Tensor<T>) -> Result<Tensor<T>> {
    let &[rows, places, channels] = x.shape() else {
        return Err(Error::Request(format!("latents of shape {:?}, expected [rows, places, channels]", x.shape())));
    };
    let unit = attention::l2_normalise(&x.reshape(&[rows, 1, places, channels])?)?.reshape(x.shape())?;
    Ok(elementwise::scale_add(&unit, (channels as f32).sqrt(), &unit, 0.0)?)
}

fn rows_of<T: Float>(grid: &Tensor<T>) -> Result<Tensor<T>> {
    let (batch, channels) = (grid.shape()[0], grid.shape()[1]);
    let cells = grid.shape()[2] * grid.shape()[3];
    Ok(grid.reshape(&[batch, channels, cells])?.permute(&[0, 2, 1])?.contiguous()?)
}

fn grid_of<T: Float>(rows: &Tensor<T>) -> Result<Tensor<T>> {
    let (batch, cells, channels) = (rows.shape()[0], rows.shape()[1], rows.shape()[2]);
    let side = cells.isqrt();
    Ok(rows.permute(&[0, 2, 1])?.contiguous()?.reshape(&[batch, channels, side, side])?)
}

impl SphericalAutoencoder {
    /// Loads the official names under the loader's prefix. Of the configuration it takes `vae_heads`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, config: &Config) -> Result<Self> {
        let (encoder, decoder) = (loader.at("encoder"), loader.at("decoder"));
        let [dim, latent] = loader.lengths("post_quant_proj.weight");
        let heads = config.count("vae_heads").unwrap_or(dim / 64).max(1);
        let (down, up) = (encoder.at("patchify.0.net"), decoder.at("unpatchify.1.net"));
        Ok(Self {
            device: loader.device().clone(),
            conv_in: Conv::load_without_bias(&encoder, "conv_in")?,
            downs: (0..encoder.count("patchify.0.net"))
                .map(|index| Down::load(&down.at(index)))
                .collect::<Result<_>>()?,
            encoder: Middle::load(&encoder, dim, heads)?,
            norm: encoder.vector("norm.weight", &[dim])?,
            output: encoder.weight("output.weight", &[dim, dim])?,
            posterior: Linear::load(loader, "quant_proj", [latent + 1, dim])?,
            post_quant: loader.weight("post_quant_proj.weight", &[dim, latent])?,
            decoder_in: Conv::load_without_bias(&decoder, "conv_in.1")?,
            decoder: Middle::load(&decoder, dim, heads)?,
            rises: (0..decoder.count("unpatchify.1.net"))
                .map(|index| Rise::load(&up.at(index)))
                .collect::<Result<_>>()?,
            norm_out: Norm::load(&decoder, "conv_out.0", 16)?,
            conv_out: Conv::load_without_bias(&decoder, "conv_out.2")?,
        })
    }

    /// Values of a latent.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.post_quant.shape()[1]
    }

    /// Pixels per cell, along one side.
    #[must_use]
    pub fn factor(&self) -> usize {
        1 << self.rises.len()
    }

    /// The rotary rows of registers and cells, for a grid of this side.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn table(&self, side: usize) -> Result<Table> {
        let registers = self.encoder.registers.shape()[0];
        centred_table(&self.device, side, self.encoder.blocks.sizes().head_dim(), registers)
    }

    /// Of pixels `[batch, 3, height, width]` each cell's direction, of any length, and a number that tells its
    /// concentration: `[batch, cells, channels + 1]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn encode<T: Float>(&self, pixels: &Tensor<T>) -> Result<Tensor<T>> {
        let mut x = self.conv_in.run(pixels)?;
        for down in &self.downs {
            x = down.run(&x)?;
        }
        let x = self.encoder.run(&rows_of(&x)?)?;
        let x = norm::rms_norm(&x, Some(&self.norm), EPS)?;
        self.posterior.run(&linear::linear(&x, &self.output, None)?)
    }

    /// The distributions of encoded cells.
    ///
    /// # Errors
    /// If the device fails.
    pub fn posteriors<T: Float>(&self, encoded: &Tensor<T>) -> Result<Vec<Posterior>> {
        let values: Vec<f64> = encoded.to_vec()?.iter().map(|value| value.to_f64()).collect();
        Ok(values.chunks(self.channels() + 1).filter_map(Posterior::new).collect())
    }

    /// Pixels `[batch, 3, height, width]` of latents `[batch, cells, channels]` on the sphere.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn decode<T: Float>(&self, latents: &Tensor<T>) -> Result<Tensor<T>> {
        let x = linear::linear(latents, &self.post_quant, None)?;
        let x = self.decoder.run(&rows_of(&self.decoder_in.run(&grid_of(&x)?)?)?)?;
        let mut x = grid_of(&x)?;
        for rise in &self.rises {
            x = rise.run(&x)?;
        }
        self.conv_out.run(&self.norm_out.run_silu(&x)?)
    }
}

impl Posterior {
    /// Of a direction, then a number whose softplus, plus 1, is the concentration.
    fn new(parameters: &[f64]) -> Option<Self> {
        let (raw, direction) = parameters.split_last()?;
        let softplus = raw.max(0.0) + (-raw.abs()).exp().ln_1p();
        Some(Self { direction: unit(direction), concentration: softplus + 1.0 })
    }

    /// Its divergence from the uniform distribution of the sphere.
    #[must_use]
    pub fn kl_to_uniform(&self) -> f64 {
        use std::f64::consts::{LN_2, PI};
        let dim = self.direction.len() as f64;
        let beta = (dim - 1.0) / 2.0;
        let (alpha, kappa) = (self.concentration + beta, self.concentration);
        let log_normaliser = -(alpha + beta) * LN_2 - beta * PI.ln() - ln_gamma(alpha) + ln_gamma(alpha + beta);
        let entropy = -(log_normaliser + kappa * (LN_2 + digamma(alpha) - digamma(alpha + beta)));
        let log_area = LN_2 + dim / 2.0 * PI.ln() - ln_gamma(dim / 2.0);
        log_area - entropy
    }

    /// The latent of a draw of Beta(concentration + b, b), `b` being half of the channels but one, and of a normal draw
    /// `tangent`, one value short of a latent: a point around the first axis, mirrored so that this axis becomes the
    /// direction.
    #[must_use]
    pub fn latent(&self, beta: f64, tangent: &[f64]) -> Vec<f64> {
        let along = 2.0 * beta - 1.0;
        let across = (1.0 - along * along).max(0.0).sqrt();
        let mut point: Vec<_> =
            std::iter::once(along).chain(unit(tangent).iter().map(|value| across * value)).collect();
        let first = |index: usize| if index == 0 { 1.0 } else { 0.0 };
        let difference: Vec<_> = self.direction.iter().enumerate().map(|(index, value)| first(index) - value).collect();
        if difference.iter().map(|value| value.abs()).sum::<f64>() >= 1e-6 {
            let mirror = unit(&difference);
            let distance: f64 = point.iter().zip(&mirror).map(|(a, b)| a * b).sum();
            point.iter_mut().zip(&mirror).for_each(|(point, mirror)| *point -= 2.0 * distance * mirror);
        }
        let length = (self.direction.len() as f64).sqrt();
        point.iter().map(|value| length * value).collect()
    }
}

fn unit(x: &[f64]) -> Vec<f64> {
    let length = x.iter().map(|value| value * value).sum::<f64>().sqrt().max(1e-7);
    x.iter().map(|value| value / length).collect()
}

/// The logarithm of the gamma function of `x > 0`: Stirling's series, above 8 exact to 1e-12.
fn ln_gamma(x: f64) -> f64 {
    let mut shift = 0.0;
    let mut x = x;
    while x < 8.0 {
        shift += x.ln();
        x += 1.0;
    }
    let square = 1.0 / (x * x);
    let series = (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0))) / x;
    (x - 0.5) * x.ln() - x + std::f64::consts::TAU.ln() / 2.0 + series - shift
}

/// The derivative of [`ln_gamma`].
fn digamma(x: f64) -> f64 {
    let mut shift = 0.0;
    let mut x = x;
    while x < 8.0 {
        shift += 1.0 / x;
        x += 1.0;
    }
    let square = 1.0 / (x * x);
    let series = square * (1.0 / 12.0 - square * (1.0 / 120.0 - square * (1.0 / 252.0 - square / 240.0)));
    x.ln() - 0.5 / x - series - shift
}
