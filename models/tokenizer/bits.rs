//! Residual bits over growing grids: each channel of a cell is one bit, and no codebook is stored.
//!
//! Source: Han et al. 2024, arXiv:2412.04431, section 3.2, with the binary spherical quantizer of Zhao et al. 2024,
//! arXiv:2406.07548; upstream: Infinity's `multiscale_bsq.py`.

use smalti::resize::{self, Mode};
use smalti::{Device, Element, Float, Tensor, Weight, elementwise, embedding, vq};

use crate::{Error, Result};

/// How codes are stretched, and how what they add up to is seen at a smaller grid while drawing.
const LINEAR: Mode = Mode::Bilinear { align_corners: false };

/// A quantizer of grids that grow from scale to scale.
///
/// With `rest = features` and, scale by scale, `bit = area_resize(rest) > 0`, `part = linear_resize((2 bit - 1) /
/// sqrt(channels))`: `rest -= part`. Bits of cells are `[batch, height * width, channels]`, in raster order. A token is
/// a patch of `patch x patch` cells: `[batch, tokens, channels * patch * patch]`, a channel's cells side by side.
pub struct BitScales {
    /// Rows and columns of tokens.
    scales: Vec<[usize; 2]>,
    channels: usize,
    patch: usize,
    /// The two codes of a channel.
    codes: Weight,
}

/// What a scale was made to say, and all that was said up to it.
pub struct Said<T: Element> {
    /// `[batch, cells, channels]`.
    pub bits: Tensor<u32>,
    /// `[batch, channels, height, width]` of the last scale.
    pub so_far: Tensor<T>,
}

impl BitScales {
    /// A quantizer for vectors of this many channels; `scales` are rows and columns of tokens.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(device: &Device, scales: Vec<[usize; 2]>, channels: usize, patch: usize) -> Result<Self> {
        let code = (channels as f64).powf(-0.5) as f32;
        Ok(Self { scales, channels, patch, codes: Tensor::from_vec(device, &[2, 1], vec![-code, code])?.into() })
    }

    /// Rows and columns of tokens at each scale.
    #[must_use]
    pub fn scales(&self) -> &[[usize; 2]] {
        &self.scales
    }

    /// Rows and columns of cells at each scale.
    #[must_use]
    pub fn cells(&self, scale: usize) -> [usize; 2] {
        self.scales[scale].map(|side| side * self.patch)
    }

    /// Rows and columns of cells of the last scale.
    fn full(&self) -> [usize; 2] {
        self.cells(self.scales.len() - 1)
    }

    /// Bits of features `[batch, channels, height, width]` of the last scale's size, scale by scale. `said` may change
    /// the bits that the next scales build on; those that are returned stay.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails, or whatever `said` returns.
    pub fn quantise<T: Float>(
        &self,
        features: &Tensor<T>,
        mut said: impl FnMut(usize, &Tensor<u32>) -> Result<Tensor<u32>>,
    ) -> Result<Vec<Said<T>>> {
        let [height, width] = self.full();
        if features.shape().get(1..) != Some(&[self.channels, height, width]) {
            let expected = format!("[batch, {}, {height}, {width}]", self.channels);
            return Err(Error::Request(format!("features of shape {:?}, expected {expected}", features.shape())));
        }
        let mut so_far = Tensor::zeros(features.device(), features.shape())?;
        let mut scales = Vec::with_capacity(self.scales.len());
        for scale in 0..self.scales.len() {
            let rest = elementwise::scale_add(features, 1.0, &so_far, -1.0)?;
            let seen = self.seen(&rest, scale, Mode::Area)?;
            let [batch, cells, channels] = [seen.shape()[0], seen.shape()[1], seen.shape()[2]];
            // The sign: of two codes that are each other's negative the nearer one.
            let bits = vq::nearest_cosine(&seen.reshape(&[batch, cells, channels, 1])?, &self.codes)?;
            so_far = elementwise::add(&so_far, &self.contribution(&said(scale, &bits)?, scale)?)?;
            scales.push(Said { bits, so_far: so_far.clone() });
        }
        Ok(scales)
    }

    /// What the bits of one scale add to the features: `[batch, channels, height, width]` of the last scale.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn contribution<T: Float>(&self, bits: &Tensor<u32>, scale: usize) -> Result<Tensor<T>> {
        let [height, width] = self.cells(scale);
        let codes: Tensor<T> = embedding::embedding(&self.codes, bits)?;
        let grid = codes.reshape(&[bits.shape()[0], height, width, self.channels])?.permute(&[0, 3, 1, 2])?;
        Ok(resize::resize(&grid.contiguous()?, self.full(), LINEAR)?)
    }

    /// Features at the grid of a scale: `[batch, cells, channels]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn seen<T: Float>(&self, features: &Tensor<T>, scale: usize, mode: Mode) -> Result<Tensor<T>> {
        let [height, width] = self.cells(scale);
        let seen = resize::resize(features, [height, width], mode)?;
        Ok(seen.permute(&[0, 2, 3, 1])?.reshape(&[seen.shape()[0], height * width, self.channels])?)
    }

    /// What a transformer is fed at a scale: the features so far, seen at its grid, as tokens.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn input<T: Float>(&self, so_far: &Tensor<T>, scale: usize) -> Result<Tensor<T>> {
        self.to_tokens(&self.seen(so_far, scale, LINEAR)?, scale)
    }

    /// Cells of a scale as tokens.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn to_tokens<E: Element>(&self, cells: &Tensor<E>, scale: usize) -> Result<Tensor<E>> {
        let (batch, [rows, columns], p) = (cells.shape()[0], self.scales[scale], self.patch);
        let grid = cells.reshape(&[batch, rows, p, columns, p, self.channels])?.permute(&[0, 1, 3, 5, 2, 4])?;
        Ok(grid.reshape(&[batch, rows * columns, self.channels * p * p])?)
    }

    /// Tokens of a scale as cells.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn to_cells<E: Element>(&self, tokens: &Tensor<E>, scale: usize) -> Result<Tensor<E>> {
        let (batch, [rows, columns], p) = (tokens.shape()[0], self.scales[scale], self.patch);
        let grid = tokens.reshape(&[batch, rows, columns, self.channels, p, p])?.permute(&[0, 1, 4, 2, 5, 3])?;
        Ok(grid.reshape(&[batch, rows * p * columns * p, self.channels])?)
    }
}
