//! Axial Transformer: attention along rows and columns, one colour plane after the other.
//!
//! | part      | here                                                                                        |
//! |-----------|---------------------------------------------------------------------------------------------|
//! | tokenizer | none: levels of pixels                                                                      |
//! | backbone  | blocks of row and column attention on the grid as it is                                     |
//! | order     | plane by plane, raster inside a plane                                                       |
//! | mask      | planes before: full; rows above: causal columns, shifted down; the row itself: causal, shifted right |
//! | position  | learned, by row and by column                                                               |
//! | head      | softmax over levels                                                                         |
//! | decoder   | the planes before once per plane, the rows above once per row, the row once per pixel       |
//!
//! Paper: Ho et al. 2019, arXiv:1912.12180, section 3. Names from google-research's `axial`.
//!
//! The file is long because nothing around it is shared: its blocks attend along one axis of a grid, its matrices are
//! stored inputs first, and three stacks of them hand planes, rows and pixels on to each other.

use smalti::attention::{Along, axial};
use smalti::conv::{self, Padding};
use smalti::sample;
use smalti::{Device, Float, Tensor, Weight, activation, copy, elementwise, embedding, linear, norm};

use crate::decode::concatenate;
use crate::weights::{Checkpoint, Loader};
use crate::{Error, Result};

/// A linear layer whose official matrix is stored inputs first.
struct Dense(Weight, Tensor<f32>);

struct Norm(Tensor<f32>, Tensor<f32>);

/// Attention along one axis and a network, each behind a norm.
struct Block {
    norms: [Norm; 2],
    /// Queries, keys, values, output.
    attention: [Dense; 4],
    mlp: [Dense; 2],
}

/// The model with its weights on a device.
pub struct Axial {
    device: Device,
    heads: usize,
    eps: f32,
    levels: usize,
    channels: usize,
    size: [usize; 2],
    /// Divides levels before the encoder's convolution.
    level_scale: f32,
    conv: (Weight, Tensor<f32>),
    /// `[1, rows, columns, dim]`, of the encoder and of the decoder.
    encoder_positions: Tensor<f32>,
    positions: Tensor<f32>,
    /// Rows and columns in turn.
    exterior: Vec<Block>,
    table: Weight,
    outer: Vec<Block>,
    inner: Vec<Block>,
    norm: Norm,
    head: Dense,
}

/// Row, then column of `[batch, rows, columns, heads, head_dim]`.
const AXES: [std::ops::Range<usize>; 2] = [2..3, 1..2];

impl Dense {
    fn load(loader: &Loader<'_>, name: &str, [inputs, outputs]: [usize; 2]) -> Result<Self> {
        let at = loader.at(name);
        let weight = at.vector("w", &[inputs, outputs])?.permute(&[1, 0])?.contiguous()?;
        Ok(Self(weight.into(), at.vector("b", &[outputs])?))
    }

    fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        Ok(linear::linear(x, &self.0, Some(&self.1))?)
    }
}

impl Norm {
    fn load(loader: &Loader<'_>, name: &str, dim: usize) -> Result<Self> {
        let at = loader.at(name);
        Ok(Self(at.vector("g", &[dim])?, at.vector("b", &[dim])?))
    }

    fn run<T: Float>(&self, x: &Tensor<T>, eps: f32) -> Result<Tensor<T>> {
        Ok(norm::layer_norm(x, Some(&self.0), Some(&self.1), eps)?)
    }
}

impl Block {
    fn load(loader: &Loader<'_>, name: &str, dim: usize) -> Result<Self> {
        let at = loader.at(name);
        let square = |part: &str| Dense::load(&at, &format!("attn.{part}"), [dim, dim]);
        let hidden = at.length("mlp.proj_in.b", 0);
        Ok(Self {
            norms: [Norm::load(&at, "layernorm_attn", dim)?, Norm::load(&at, "layernorm_mlp", dim)?],
            attention: [square("q")?, square("k")?, square("v")?, square("proj_out")?],
            mlp: [Dense::load(&at, "mlp.proj_in", [dim, hidden])?, Dense::load(&at, "mlp.proj_out", [hidden, dim])?],
        })
    }

    /// `x` is `[batch, rows, columns, dim]`.
    fn run<T: Float>(&self, x: &Tensor<T>, axis: usize, along: Along, heads: usize, eps: f32) -> Result<Tensor<T>> {
        let &[batch, rows, columns, dim] = x.shape() else {
            return Err(Error::Request(format!("axial: a grid of shape {:?}", x.shape())));
        };
        let h = self.norms[0].run(x, eps)?;
        let split = |dense: &Dense| -> Result<Tensor<T>> {
            Ok(dense.run(&h)?.reshape(&[batch, rows, columns, heads, dim / heads])?)
        };
        let [q, k, v] = [0, 1, 2].map(|part| split(&self.attention[part]));
        let scale = ((dim / heads) as f32).powf(-0.5);
        let y = axial(&q?, &k?, &v?, AXES[axis].clone(), along, scale)?;
        let y = self.attention[3].run(&y.contiguous()?.reshape(&[batch, rows, columns, dim])?)?;
        let x = elementwise::add(x, &y)?;
        let h = self.mlp[0].run(&self.norms[1].run(&x, eps)?)?;
        // The sigmoid form of GELU.
        let gate = elementwise::scale_add(&h, 1.702, &h, 0.0)?;
        let h = elementwise::mul(&h, &activation::activation(&gate, activation::Activation::Sigmoid)?)?;
        Ok(elementwise::add(&x, &self.mlp[1].run(&h)?)?)
    }
}

impl Axial {
    /// Loads official names.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &[], |root, _| {
            let decoder = root.at("ar_decoder");
            let two = decoder.at("transformer2d");
            let [levels, dim] = two.lengths("embs");
            let size = [two.length("pos_embs_h", 0), two.length("pos_embs_w", 0)];
            let channels = decoder.length("exterior_input_conv.w", 2) / 2;
            // The kernel is stored rows, columns, inputs, outputs.
            let kernel = decoder.vector("exterior_input_conv.w", &[3, 3, 2 * channels, dim])?;
            let kernel = kernel.permute(&[3, 2, 0, 1])?.contiguous()?;
            let layers = |at: &Loader<'_>, kinds: &[&str]| {
                let mut blocks = Vec::new();
                while kinds.iter().any(|kind| at.has(&format!("{kind}_{}", blocks.len() / kinds.len()))) {
                    let (kind, index) = (kinds[blocks.len() % kinds.len()], blocks.len() / kinds.len());
                    blocks.push(Block::load(at, &format!("{kind}_{index}"), dim)?);
                }
                Ok::<_, Error>(blocks)
            };
            let positions = |at: &Loader<'_>| {
                let rows = at.vector("pos_embs_h", &[size[0], dim])?.reshape(&[1, size[0], 1, dim])?;
                let rows = rows.broadcast(&[1, size[0], size[1], dim])?.contiguous()?;
                let columns = at.vector("pos_embs_w", &[size[1], dim])?.reshape(&[1, 1, size[1], dim])?;
                Ok::<_, Error>(elementwise::add(&rows, &columns)?)
            };
            Ok(Self {
                device: device.clone(),
                heads: config.count("num_heads").unwrap_or(8).max(1),
                eps: config.number("norm_eps").unwrap_or(1e-5),
                levels,
                channels,
                size,
                level_scale: config.number("level_scale").unwrap_or(255.0),
                conv: (kernel.into(), decoder.vector("exterior_input_conv.b", &[dim])?),
                encoder_positions: positions(&decoder)?,
                positions: positions(&two)?,
                exterior: layers(&decoder, &["exterior_row", "exterior_col"])?,
                table: two.weight("embs", &[levels, dim])?,
                outer: layers(&two, &["outer_row", "outer_col"])?,
                inner: layers(&two, &["inner_row"])?,
                norm: Norm::load(&two, "final_ln", dim)?,
                head: Dense::load(&two, "final_dense", [dim, levels])?,
            })
        })
    }

    /// Planes of a picture.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Levels `[batch, rows, columns]` of the planes before `plane`, encoded for it: `[batch, rows, columns, dim]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn condition<T: Float>(&self, planes: &[Vec<u32>], plane: usize, batch: usize) -> Result<Tensor<T>> {
        let [rows, columns] = self.size;
        let cells = rows * columns;
        let mut input = vec![T::from_f32(0.0); batch * 2 * self.channels * cells];
        for (picture, input) in input.chunks_mut(2 * self.channels * cells).enumerate() {
            for (before, levels) in planes.iter().enumerate().take(plane) {
                let levels = &levels[picture * cells..][..cells];
                for (input, level) in input[before * cells..].iter_mut().zip(levels) {
                    *input = T::from_f32(*level as f32 / self.level_scale);
                }
            }
            input[(self.channels + plane) * cells..][..cells].fill(T::from_f32(1.0));
        }
        let input = Tensor::from_vec(&self.device, &[batch, 2 * self.channels, rows, columns], input)?;
        let x = conv::conv2d(&input, &self.conv.0, Some(&self.conv.1), 1, Padding::same(3))?;
        let x = x.permute(&[0, 2, 3, 1])?.contiguous()?;
        let mut x = elementwise::add(&x, &copy::convert(&self.encoder_positions)?)?;
        for (index, block) in self.exterior.iter().enumerate() {
            x = block.run(&x, index % 2, Along::All, self.heads, self.eps)?;
        }
        Ok(x)
    }

    fn embed<T: Float>(&self, levels: &[u32], batch: usize) -> Result<Tensor<T>> {
        let [rows, columns] = self.size;
        let ids = Tensor::from_vec(&self.device, &[batch, rows, columns], levels.to_vec())?;
        Ok(embedding::embedding(&self.table, &ids)?)
    }

    fn placed<T: Float>(&self, x: &Tensor<T>, condition: &Tensor<T>) -> Result<Tensor<T>> {
        Ok(elementwise::add(&elementwise::add(x, &copy::convert(&self.positions)?)?, condition)?)
    }

    /// What each row knows of the rows above it in its plane: `[batch, rows, columns, dim]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn context<T: Float>(&self, levels: &[u32], condition: &Tensor<T>) -> Result<Tensor<T>> {
        let mut x = self.placed(&self.embed(levels, condition.shape()[0])?, condition)?;
        for (index, block) in self.outer.iter().enumerate() {
            let along = if index % 2 == 0 { Along::All } else { Along::Causal };
            x = block.run(&x, index % 2, along, self.heads, self.eps)?;
        }
        shifted(&x, 1)
    }

    /// Logits of a plane's cells from those to their left and the context: `[batch, rows, columns, levels]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn logits<T: Float>(&self, levels: &[u32], context: &Tensor<T>, condition: &Tensor<T>) -> Result<Tensor<T>> {
        let left = shifted(&self.embed(levels, condition.shape()[0])?, 2)?;
        self.finish(&self.placed(&elementwise::add(&left, context)?, condition)?)
    }

    fn finish<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let mut x = x.clone();
        for block in &self.inner {
            x = block.run(&x, 0, Along::Causal, self.heads, self.eps)?;
        }
        self.head.run(&self.norm.run(&x, self.eps)?)
    }

    /// Draws pictures. `noise` (`[batch, rows, columns, planes, levels]`) is added to the logits before the largest is
    /// taken; none is greedy.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn generate<T: Float>(&self, batch: usize, noise: Option<&[f32]>) -> Result<Planes> {
        let [rows, columns] = self.size;
        let cells = rows * columns;
        let (mut planes, mut all_logits) = (Vec::new(), Vec::new());
        for plane in 0..self.channels {
            let condition = self.condition::<T>(&planes, plane, batch)?;
            let mut levels = vec![0; batch * cells];
            let mut plane_logits = vec![0.0; batch * cells * self.levels];
            for row in 0..rows {
                let context = self.context(&levels, &condition)?;
                let of_row = |x: &Tensor<T>| x.narrow(1, row, 1)?.contiguous();
                let (context, condition) = (of_row(&context)?, of_row(&condition)?);
                let positions: Tensor<T> = copy::convert(&self.positions.narrow(1, row, 1)?.contiguous()?)?;
                let around = elementwise::add(&elementwise::add(&context, &positions)?, &condition)?;
                for column in 0..columns {
                    let left = shifted(&self.embed(&levels, batch)?.narrow(1, row, 1)?.contiguous()?, 2)?;
                    let logits = self.finish(&elementwise::add(&left, &around)?)?;
                    let logits = logits.narrow(2, column, 1)?.reshape(&[batch, self.levels])?;
                    let values: Vec<f64> = logits.to_vec()?.iter().map(|logit| logit.to_f64()).collect();
                    let drawn = match noise {
                        None => sample::argmax(&logits)?,
                        Some(noise) => {
                            let start = |picture: usize| {
                                ((picture * cells + row * columns + column) * self.channels + plane) * self.levels
                            };
                            let rows = (0..batch).flat_map(|picture| &noise[start(picture)..][..self.levels]);
                            let noise = rows.map(|noise| T::from_f32(*noise)).collect();
                            let noise = Tensor::from_vec(&self.device, &[batch, self.levels], noise)?;
                            sample::argmax(&elementwise::add(&logits, &noise)?)?
                        }
                    };
                    for (picture, level) in drawn.to_vec()?.into_iter().enumerate() {
                        let cell = picture * cells + row * columns + column;
                        levels[cell] = level;
                        plane_logits[cell * self.levels..][..self.levels]
                            .copy_from_slice(&values[picture * self.levels..][..self.levels]);
                    }
                }
            }
            planes.push(levels);
            all_logits.push(plane_logits);
        }
        Ok(Planes { levels: planes, logits: all_logits })
    }
}

/// Pictures plane by plane.
pub struct Planes {
    /// Per plane `[batch, rows, columns]`.
    pub levels: Vec<Vec<u32>>,
    /// What they were drawn from, per plane `[batch, rows, columns, levels]`.
    pub logits: Vec<Vec<f64>>,
}

/// `x` moved on by one cell along an axis, zeros coming in.
fn shifted<T: Float>(x: &Tensor<T>, axis: usize) -> Result<Tensor<T>> {
    let len = x.shape()[axis];
    let mut first = x.shape().to_vec();
    first[axis] = 1;
    let zeros = Tensor::zeros(x.device(), &first)?;
    concatenate(&[&zeros, &x.narrow(axis, 0, len - 1)?.contiguous()?], axis)
}
