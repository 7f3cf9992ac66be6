//! SemAIM: predicts patches of a picture in an order led by attention; two streams, so that a place can be asked for
//! before it is seen. A way to learn features, so it draws nothing.
//!
//! | part      | here                                                                                          |
//! |-----------|-----------------------------------------------------------------------------------------------|
//! | tokenizer | none: patches of pixels                                                                       |
//! | backbone  | ViT blocks over contents ([`Vit`]), now and then a block of queries that reads them           |
//! | order     | by a key per patch, such as the distance from the patch of most attention                     |
//! | mask      | contents see keys up to their own, queries only smaller ones; all see the class token         |
//! | position  | learned                                                                                       |
//! | head      | a network from a query to the pixels of its patch                                             |
//!
//! Paper: Song et al. 2023, arXiv:2312.10103, section 3. Upstream: skyoux/SemAIM, `models/models_semaim.py`.
//!
//! The file is long because the query stream has blocks of its own, and because the order may be led by attention,
//! which it reads out of the last block or out of the states.

use smalti::attention::{self, Mask, Options};
use smalti::{Device, Float, Tensor, activation, copy, elementwise, linear, norm};

use crate::backbone::vit::{LayerNorm, Linear, PatchEmbedding, Vit};
use crate::decode::concatenate;
use crate::weights::Checkpoint;
use crate::{Error, Result};

/// A block of the query stream: queries from one stream, keys and values from the other.
struct QueryBlock {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// The model with its weights on a device.
pub struct SemAim {
    device: Device,
    patches: PatchEmbedding,
    /// `[1, 1, dim]`.
    class: Tensor<f32>,
    /// `[1, 1 + patches, dim]`.
    positions: Tensor<f32>,
    blocks: Vit,
    queries: Vec<QueryBlock>,
    norm: LayerNorm,
    head: [Linear; 2],
    heads: usize,
}

/// Which stream looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Knows its own patch.
    Content,
    /// Knows only where its patch lies.
    Query,
}

impl SemAim {
    /// Loads official names.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &[], |root, _| {
            let (rows, dim) = (root.length("pos_embed", 1), root.length("pos_embed", 2));
            let heads = config.count("num_heads").unwrap_or(dim / 64).max(1);
            let eps = config.number("norm_eps").unwrap_or(1e-6);
            let query = |index: usize| {
                let at = root.at("query_blocks").at(index);
                let square = |name: &str| Linear::load(&at, name, [dim, dim]);
                let hidden = at.length("mlp.fc1.weight", 0);
                Ok(QueryBlock {
                    norm1: LayerNorm::load(&at, "norm1", dim, eps)?,
                    q: square("attn.q")?,
                    k: square("attn.k")?,
                    v: square("attn.v")?,
                    proj: square("attn.proj")?,
                    norm2: LayerNorm::load(&at, "norm2", dim, eps)?,
                    fc1: Linear::load(&at, "mlp.fc1", [hidden, dim])?,
                    fc2: Linear::load(&at, "mlp.fc2", [dim, hidden])?,
                })
            };
            let hidden = root.length("prediction_head.fc1.weight", 0);
            let outputs = root.length("prediction_head.fc2.weight", 0);
            Ok(Self {
                device: device.clone(),
                patches: PatchEmbedding::load(root, "patch_embed.proj")?,
                class: root.vector("cls_token", &[1, 1, dim])?,
                positions: root.vector("pos_embed", &[1, rows, dim])?,
                blocks: Vit::load(root, "blocks", dim, heads, eps)?,
                queries: (0..root.count("query_blocks")).map(query).collect::<Result<_>>()?,
                norm: LayerNorm::load(root, "norm", dim, eps)?,
                head: [
                    Linear::load(root, "prediction_head.fc1", [hidden, dim])?,
                    Linear::load(root, "prediction_head.fc2", [outputs, hidden])?,
                ],
                heads,
            })
        })
    }

    /// Patches with their positions, the class token first: `[batch, 1 + patches, dim]`.
    fn embed<T: Float>(&self, pixels: &Tensor<T>) -> Result<Tensor<T>> {
        let patches = self.patches.run(pixels)?;
        let shape = [patches.shape()[0], 1, patches.shape()[2]];
        let class: Tensor<T> = copy::convert(&self.class.broadcast(&shape)?.contiguous()?)?;
        let x = concatenate(&[&class, &patches], 1)?;
        Ok(elementwise::add(&x, &copy::convert(&self.positions)?)?)
    }

    /// The states of pixels, every place seeing every other: `[batch, 1 + patches, dim]`, the class token first; and
    /// how much the class token attends to each patch in the last block, the mean over its heads: `[batch, patches]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn encode<T: Float>(&self, pixels: &Tensor<T>) -> Result<(Tensor<T>, Tensor<T>)> {
        let options = self.blocks.options();
        let last = self.blocks.depth().saturating_sub(1);
        let x = self.blocks.run_some(0..last, &self.embed(pixels)?, None, None, &options)?;
        let [q, k] = self.blocks.last_queries_and_keys(&x)?;
        let (batch, seq) = (x.shape()[0], x.shape()[1]);
        let class = q.narrow(2, 0, 1)?.contiguous()?;
        let scores = linear::matmul(&class, &k.permute(&[0, 1, 3, 2])?.contiguous()?)?;
        let scores = elementwise::scale_add(&scores, options.scale, &scores, 0.0)?;
        let attention = norm::softmax(&scores)?.reshape(&[batch, self.heads, seq])?;
        let mean = Tensor::from_vec(
            &self.device,
            &[1, 1, 1, self.heads],
            vec![T::from_f64(1.0 / self.heads as f64); self.heads],
        )?;
        let mean = mean.broadcast(&[batch, 1, 1, self.heads])?.contiguous()?;
        let mean = linear::matmul(&mean, &attention.reshape(&[batch, 1, self.heads, seq])?)?;
        let attention = mean.reshape(&[batch, seq])?.narrow(1, 1, seq - 1)?.contiguous()?;
        let x = self.blocks.run_some(last..last + 1, &x, None, None, &options)?;
        Ok((self.norm.run(&x)?, attention))
    }

    /// The softmax over the patches of their states' cosines with the class token, `[batch, patches]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn feature_attention<T: Float>(&self, states: &Tensor<T>) -> Result<Tensor<T>> {
        let &[batch, seq, dim] = states.shape() else {
            return Err(Error::Request(format!("semaim: states of shape {:?}", states.shape())));
        };
        let unit = attention::l2_normalise(&states.reshape(&[batch, 1, seq, dim])?)?;
        let class = unit.narrow(2, 0, 1)?.contiguous()?;
        let patches = unit.narrow(2, 1, seq - 1)?.permute(&[0, 1, 3, 2])?.contiguous()?;
        Ok(norm::softmax(&linear::matmul(&class, &patches)?)?.reshape(&[batch, seq - 1])?)
    }

    /// Whether a place sees another, given the keys of the patches; place 0 is the class token.
    #[must_use]
    pub fn sees(stream: Stream, keys: &[f32], place: usize, other: usize) -> bool {
        match (place, other, stream) {
            (_, 0, _) => true,
            (0, _, _) => false,
            (place, other, Stream::Content) => keys[other - 1] <= keys[place - 1],
            (place, other, Stream::Query) => keys[other - 1] < keys[place - 1],
        }
    }

    fn options(&self, stream: Stream, keys: &[f32], batch: usize) -> Result<Options> {
        let patches = keys.len() / batch.max(1);
        let seq = 1 + patches;
        let of_picture = |keys: &[f32]| {
            let pair = |at: usize| u8::from(Self::sees(stream, keys, at / seq, at % seq));
            (0..seq * seq).map(pair).collect::<Vec<_>>()
        };
        let mask: Vec<_> = keys.chunks(patches.max(1)).flat_map(of_picture).collect();
        Ok(self.blocks.options().mask(Mask::Given(Tensor::from_vec(&self.device, &[batch, seq, seq], mask)?)))
    }

    /// The patches as predicted in the order of `keys` (`[batch, patches]`, smaller first): `[batch, 1 + patches,
    /// pixels of a patch]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn predict<T: Float>(&self, pixels: &Tensor<T>, keys: &[f32]) -> Result<Tensor<T>> {
        let mut h = self.embed(pixels)?;
        let (batch, seq, dim) = (h.shape()[0], h.shape()[1], h.shape()[2]);
        let (content, query) = (self.options(Stream::Content, keys, batch)?, self.options(Stream::Query, keys, batch)?);
        // Queries start as bare positions, the class token's as zeros.
        let mut g = Tensor::<T>::zeros(&self.device, &[batch, seq, dim])?;
        let places: Tensor<T> = copy::convert(&self.positions.narrow(1, 1, seq - 1)?.contiguous()?)?;
        copy::copy_into_slice(&places.broadcast(&[batch, seq - 1, dim])?.contiguous()?, &mut g, 1, 1)?;
        let each = self.blocks.depth() / self.queries.len().max(1);
        for (index, block) in self.queries.iter().enumerate() {
            h = self.blocks.run_some(index * each..(index + 1) * each, &h, None, None, &content)?;
            let split = |x: Tensor<T>| {
                Ok::<_, Error>(x.reshape(&[batch, seq, self.heads, dim / self.heads])?.permute(&[0, 2, 1, 3])?)
            };
            let (from, of) = (block.norm1.run(&g)?, block.norm1.run(&h)?);
            let (q, k, v) = (split(block.q.run(&from)?)?, split(block.k.run(&of)?)?, split(block.v.run(&of)?)?);
            let y = attention::attention(&q, &k, &v, &query)?.y;
            let y = block.proj.run(&y.permute(&[0, 2, 1, 3])?.reshape(&[batch, seq, dim])?)?;
            g = elementwise::add(&g, &y)?;
            let y = activation::activation(&block.fc1.run(&block.norm2.run(&g)?)?, activation::Activation::Gelu)?;
            g = elementwise::add(&g, &block.fc2.run(&y)?)?;
        }
        let y = activation::activation(&self.head[0].run(&self.norm.run(&g)?)?, activation::Activation::Gelu)?;
        self.head[1].run(&y)
    }
}
