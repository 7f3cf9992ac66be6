//! Quantization over growing grids.

use super::{nearest_cosine, nearest_l2};
use crate::conv::{self, Padding};
use crate::resize::{self, Mode};
use crate::{Error, Float, Result, Tensor, Weight, elementwise, embedding};

const OP: &str = "vq::scales";

/// Residual quantization over growing grids, with one codebook and smoothing convolutions.
///
/// With `rest = latents` and, scale by scale, `codes = nearest(area_resize(rest))`,
/// `h = bicubic_resize(lookup(codes))`, `part = (1 - phi_ratio) h + phi_ratio conv(h)`: `rest -= part`, and the latents
/// of all tokens are the sum of the parts. The last scale is not resized.
///
/// # Source
/// Tian et al. 2024, arXiv:2404.02905, section 3.2 and algorithms 1 and 2.
#[derive(Debug, Clone)]
pub struct Scales {
    /// `[codes, channels]`, shared by the scales.
    pub codebook: Weight,
    /// Whether the nearest code is that of largest cosine instead of smallest distance; it is then used as given.
    pub cosine: bool,
    /// The smoothing convolutions: kernels `[channels, channels, 3, 3]` with their biases.
    pub phi: Vec<(Weight, Tensor<f32>)>,
    /// How much of a scale passes through its convolution; the rest passes as it is.
    pub phi_ratio: f32,
    /// Which convolution follows each scale.
    pub phi_of_scale: Vec<usize>,
    /// The side of each scale's grid; the last one is the latents' own.
    pub patch_nums: Vec<usize>,
}

impl Scales {
    /// How many codes there are.
    #[must_use]
    pub fn codes(&self) -> usize {
        self.codebook.shape().first().copied().unwrap_or(0)
    }

    /// Channels of a code.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.codebook.shape().get(1).copied().unwrap_or(0)
    }

    /// Tokens along one side of the last scale.
    fn full(&self) -> usize {
        self.patch_nums.last().copied().unwrap_or(1)
    }

    /// The codes of latents `[batch, channels, side, side]`: per scale `[batch, side * side]`, in raster order, each of
    /// what the scales before left over.
    ///
    /// # Errors
    /// [`Error::Shape`] if the latents have not the channels of the codes and the sides of the last scale; as the ops
    /// that it is made of.
    pub fn quantise<T: Float>(&self, latents: &Tensor<T>) -> Result<Vec<Tensor<u32>>> {
        let (channels, full) = (self.channels(), self.full());
        let &[batch, ..] = latents.shape() else {
            return Err(Error::shape(OP, "latents", latents.shape(), "[batch, channels, side, side]"));
        };
        if latents.shape() != [batch, channels, full, full] {
            let expected = format!("[batch, {channels}, {full}, {full}], as codebook and patch_nums have it");
            return Err(Error::shape(OP, "latents", latents.shape(), expected));
        }
        let mut rest = latents.clone();
        let mut tokens = Vec::with_capacity(self.patch_nums.len());
        for (scale, &side) in self.patch_nums.iter().enumerate() {
            let seen = if side == full { rest.clone() } else { resize::resize(&rest, [side, side], Mode::Area)? };
            let places = seen.permute(&[0, 2, 3, 1])?.reshape(&[batch, side * side, channels])?;
            let codes = match self.cosine {
                true => nearest_cosine(&places, &self.codebook)?,
                false => nearest_l2(&places, &self.codebook)?,
            };
            rest = elementwise::scale_add(&rest, 1.0, &self.contribution(&codes, scale)?, -1.0)?;
            tokens.push(codes);
        }
        Ok(tokens)
    }

    /// What the tokens `[batch, side * side]` of one scale add to the latents: `[batch, channels, side, side]` of the
    /// last scale.
    ///
    /// # Errors
    /// [`Error::Value`] if there is no such scale or it has no convolution; [`Error::Shape`] if the tokens are not of
    /// its grid; as the ops that it is made of.
    pub fn contribution<T: Float>(&self, tokens: &Tensor<u32>, scale: usize) -> Result<Tensor<T>> {
        let side = self.side(scale)?;
        let &[_, cells] = tokens.shape() else {
            return Err(Error::shape(OP, "tokens", tokens.shape(), "[batch, side * side]"));
        };
        if cells != side * side {
            return Err(Error::shape(OP, "tokens", tokens.shape(), format!("[batch, {side} * {side}]")));
        }
        self.contribution_of(&embedding::embedding(&self.codebook, tokens)?, scale)
    }

    /// What codes, or vectors in their place, add: as [`Scales::contribution`] of `[batch, side * side, channels]`.
    ///
    /// # Errors
    /// [`Error::Value`] if there is no such scale or it has no convolution; [`Error::Shape`] if the codes are not of its
    /// grid; as the ops that it is made of.
    pub fn contribution_of<T: Float>(&self, codes: &Tensor<T>, scale: usize) -> Result<Tensor<T>> {
        let side = self.side(scale)?;
        let full = self.full();
        let phi = self.phi_of_scale.get(scale).and_then(|phi| self.phi.get(*phi));
        let (weight, bias) =
            phi.ok_or_else(|| Error::value(OP, "phi_of_scale", scale, "a convolution for each scale"))?;
        let batch = codes.shape().first().copied().unwrap_or(0);
        if codes.shape() != [batch, side * side, self.channels()] {
            let expected = format!("[batch, {side} * {side}, {}]", self.channels());
            return Err(Error::shape(OP, "codes", codes.shape(), expected));
        }
        let grid = codes.reshape(&[batch, side, side, self.channels()])?.permute(&[0, 3, 1, 2])?;
        let mut h = grid.contiguous()?;
        if side != full {
            h = resize::resize(&h, [full, full], Mode::Bicubic { align_corners: false })?;
        }
        let smoothed = conv::conv2d(&h, weight, Some(bias), 1, Padding::same(3))?;
        elementwise::scale_add(&h, 1.0 - self.phi_ratio, &smoothed, self.phi_ratio)
    }

    /// Latents seen at the grid of the scale after `scale`: `[batch, side * side, channels]`.
    ///
    /// # Errors
    /// [`Error::Value`] if there is no such scale; as [`resize::resize`].
    pub fn next_input<T: Float>(&self, latents: &Tensor<T>, scale: usize) -> Result<Tensor<T>> {
        let side = self.side(scale + 1)?;
        let seen = resize::resize(latents, [side, side], Mode::Area)?;
        let &[batch, channels, ..] = seen.shape() else { unreachable!("resize checked it") };
        seen.permute(&[0, 2, 3, 1])?.reshape(&[batch, side * side, channels])
    }

    /// The latents that tokens of the first scales, or of all, add up to.
    ///
    /// # Errors
    /// [`Error::Value`] if there are no tokens; as [`Scales::contribution`].
    pub fn dequantise<T: Float>(&self, tokens: &[Tensor<u32>]) -> Result<Tensor<T>> {
        let mut sum: Option<Tensor<T>> = None;
        for (scale, tokens) in tokens.iter().enumerate() {
            let part = self.contribution(tokens, scale)?;
            sum = Some(match sum {
                Some(sum) => elementwise::add(&sum, &part)?,
                None => part,
            });
        }
        sum.ok_or_else(|| Error::value(OP, "tokens", "none", "the tokens of at least one scale"))
    }

    fn side(&self, scale: usize) -> Result<usize> {
        let side = self.patch_nums.get(scale).copied();
        side.ok_or_else(|| Error::value(OP, "scale", scale, format!("one of the {}", self.patch_nums.len())))
    }
}
