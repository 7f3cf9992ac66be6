//! PARSeq: reads words, trained on permutations; queries hold a place, contents the characters so far. It reads pictures
//! rather than drawing them.
//!
//! | part      | here                                                                                       |
//! |-----------|--------------------------------------------------------------------------------------------|
//! | tokenizer | characters; a ViT over the picture ([`Vit`])                                               |
//! | backbone  | decoder layers of two streams, both attending the picture                                  |
//! | order     | permutations in training, left to right in reading                                         |
//! | mask      | a place sees what comes before it in the permutation; in refinement all but itself         |
//! | position  | learned queries                                                                            |
//! | head      | softmax over characters and the end                                                        |
//! | decoder   | one after the other, or all at once; then cloze passes that refine                         |
//!
//! Paper: Bautista and Atienza 2022, arXiv:2207.06966, section 3. Upstream: baudm/parseq, `strhub/models/parseq`.
//!
//! The file is long because no other system has its decoder: layers of two streams that attend a picture, with a mask
//! each for permutations, for reading from left to right and for cloze passes, and three ways to read.

use smalti::attention::{self, Mask, Options};
use smalti::{Device, Float, Tensor, Weight, activation, copy, elementwise, embedding, sample};

use crate::backbone::vit::{LayerNorm, Linear, PatchEmbedding, Vit};
use crate::decode::concatenate;
use crate::weights::{Checkpoint, Loader};
use crate::{Error, Result};

/// PyTorch's multi-head attention: queries, keys and values stacked in one matrix.
struct MultiHead {
    projections: [Linear; 3],
    out: Linear,
    heads: usize,
}

struct Layer {
    self_attention: MultiHead,
    cross_attention: MultiHead,
    norm_query: LayerNorm,
    norm_content: LayerNorm,
    norm1: LayerNorm,
    norm2: LayerNorm,
    mlp: [Linear; 2],
}

/// The model with its weights on a device.
pub struct ParSeq {
    device: Device,
    patches: PatchEmbedding,
    /// `[1, patches, dim]`.
    positions: Tensor<f32>,
    encoder: Vit,
    encoder_norm: LayerNorm,
    layers: Vec<Layer>,
    norm: LayerNorm,
    head: Linear,
    text: Weight,
    /// `[1, longest + 1, dim]`.
    queries: Tensor<f32>,
    end: u32,
    begin: u32,
}

/// Who is hidden from whom, `[queries, keys]` of places of the input; true is hidden.
pub type Hidden = Vec<Vec<bool>>;

impl MultiHead {
    fn load(loader: &Loader<'_>, name: &str, dim: usize, heads: usize) -> Result<Self> {
        let at = loader.at(name);
        let weight = at.vector("in_proj_weight", &[3 * dim, dim])?;
        let bias = at.vector("in_proj_bias", &[3 * dim])?;
        let part = |index: usize| {
            let weight = weight.narrow(0, index * dim, dim)?.contiguous()?;
            Ok::<_, Error>(Linear::new(weight.into(), bias.narrow(0, index * dim, dim)?.contiguous()?))
        };
        Ok(Self { projections: [part(0)?, part(1)?, part(2)?], out: Linear::load(&at, "out_proj", [dim, dim])?, heads })
    }

    fn run<T: Float>(&self, x: &Tensor<T>, of: &Tensor<T>, mask: Mask) -> Result<Tensor<T>> {
        let head_dim = x.shape()[2] / self.heads;
        let split = |linear: &Linear, x: &Tensor<T>| -> Result<Tensor<T>> {
            let shape = [x.shape()[0], x.shape()[1], self.heads, head_dim];
            Ok(linear.run(x)?.reshape(&shape)?.permute(&[0, 2, 1, 3])?)
        };
        let [q, k, v] = &self.projections;
        let (q, k, v) = (split(q, x)?, split(k, of)?, split(v, of)?);
        let options = Options::new((head_dim as f32).powf(-0.5)).mask(mask);
        let y = attention::attention(&q, &k, &v, &options)?.y;
        self.out.run(&y.permute(&[0, 2, 1, 3])?.reshape(x.shape())?)
    }
}

impl Layer {
    /// One stream: `x` attends `of` (both normed), then the picture, then goes through the network.
    fn stream<T: Float>(
        &self,
        x: &Tensor<T>,
        normed: &Tensor<T>,
        of: &Tensor<T>,
        memory: &Tensor<T>,
        mask: Mask,
    ) -> Result<Tensor<T>> {
        let x = elementwise::add(x, &self.self_attention.run(normed, of, mask)?)?;
        let x = elementwise::add(&x, &self.cross_attention.run(&self.norm1.run(&x)?, memory, Mask::Full)?)?;
        let h = activation::activation(&self.mlp[0].run(&self.norm2.run(&x)?)?, activation::Activation::Gelu)?;
        Ok(elementwise::add(&x, &self.mlp[1].run(&h)?)?)
    }
}

impl ParSeq {
    /// Loads official names.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &[], |root, _| {
            let (encoder, decoder) = (root.at("encoder"), root.at("decoder"));
            let (patches, dim) = (encoder.length("pos_embed", 1), encoder.length("pos_embed", 2));
            let heads = |key: &str, own: usize| config.count(key).unwrap_or(own).max(1);
            let (encoder_eps, eps) =
                (config.number("enc_norm_eps").unwrap_or(1e-6), config.number("dec_norm_eps").unwrap_or(1e-5));
            let layer = |index: usize| {
                let at = decoder.at("layers").at(index);
                let hidden = at.length("linear1.weight", 0);
                let norm = |name: &str| LayerNorm::load(&at, name, dim, eps);
                Ok(Layer {
                    self_attention: MultiHead::load(&at, "self_attn", dim, heads("dec_heads", dim / 32))?,
                    cross_attention: MultiHead::load(&at, "cross_attn", dim, heads("dec_heads", dim / 32))?,
                    norm_query: norm("norm_q")?,
                    norm_content: norm("norm_c")?,
                    norm1: norm("norm1")?,
                    norm2: norm("norm2")?,
                    mlp: [Linear::load(&at, "linear1", [hidden, dim])?, Linear::load(&at, "linear2", [dim, hidden])?],
                })
            };
            let tokens = root.length("text_embed.embedding.weight", 0);
            let id = |key: &str, own: usize| config.count(key).unwrap_or(own) as u32;
            Ok(Self {
                device: device.clone(),
                patches: PatchEmbedding::load(&encoder, "patch_embed.proj")?,
                positions: encoder.vector("pos_embed", &[1, patches, dim])?,
                encoder: Vit::load(&encoder, "blocks", dim, heads("enc_heads", dim / 64), encoder_eps)?,
                encoder_norm: LayerNorm::load(&encoder, "norm", dim, encoder_eps)?,
                layers: (0..decoder.count("layers")).map(layer).collect::<Result<_>>()?,
                norm: LayerNorm::load(&decoder, "norm", dim, eps)?,
                head: Linear::load(root, "head", [root.length("head.weight", 0), dim])?,
                text: root.weight("text_embed.embedding.weight", &[tokens, dim])?,
                queries: root.vector("pos_queries", &[1, root.length("pos_queries", 1), dim])?,
                end: id("eos_id", 0),
                begin: id("bos_id", tokens.saturating_sub(2)),
            })
        })
    }

    /// The places that it predicts at most, the end included.
    #[must_use]
    pub fn places(&self) -> usize {
        self.queries.shape()[1]
    }

    /// The states of a picture's patches, `[batch, patches, dim]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn encode<T: Float>(&self, pixels: &Tensor<T>) -> Result<Tensor<T>> {
        let x = elementwise::add(&self.patches.run(pixels)?, &copy::convert(&self.positions)?)?;
        self.encoder_norm.run(&self.encoder.run(&x, None, None, &self.encoder.options())?)
    }

    /// A mask for every picture from who is hidden and which keys of each picture are.
    fn mask(&self, hidden: &Hidden, padding: Option<&[bool]>, batch: usize) -> Result<Mask> {
        let (queries, keys) = (hidden.len(), hidden.first().map_or(0, Vec::len));
        let sees = (0..batch * queries * keys).map(|at| {
            let (picture, query, key) = (at / (queries * keys), at / keys % queries, at % keys);
            u8::from(!hidden[query][key] && padding.is_none_or(|padding| !padding[picture * keys + key]))
        });
        Ok(Mask::Given(Tensor::from_vec(&self.device, &[batch, queries, keys], sees.collect())?))
    }

    /// Logits of the places `asked` from the input tokens (`[batch, len]`, the begin token first):
    /// `[batch, asked, characters]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn decode<T: Float>(
        &self,
        memory: &Tensor<T>,
        input: &Tensor<u32>,
        asked: std::ops::Range<usize>,
        content_hidden: &Hidden,
        query_hidden: &Hidden,
        padding: Option<&[bool]>,
    ) -> Result<Tensor<T>> {
        let &[batch, len] = input.shape() else {
            return Err(Error::Request(format!("parseq: tokens of shape {:?}", input.shape())));
        };
        let dim = self.queries.shape()[2];
        let queries: Tensor<T> = copy::convert(&self.queries)?;
        let text: Tensor<T> = embedding::embedding(&self.text, input)?;
        let text = elementwise::scale_add(&text, (dim as f32).sqrt(), &text, 0.0)?;
        // The begin token has no place.
        let mut content = text.clone();
        if len > 1 {
            let characters = text.narrow(1, 1, len - 1)?.contiguous()?;
            let characters = elementwise::add(&characters, &queries.narrow(1, 0, len - 1)?.contiguous()?)?;
            content = concatenate(&[&text.narrow(1, 0, 1)?.contiguous()?, &characters], 1)?;
        }
        let mut query = queries.narrow(1, asked.start, asked.len())?;
        query = query.broadcast(&[batch, asked.len(), dim])?.contiguous()?;
        let content_mask = self.mask(content_hidden, padding, batch)?;
        let query_mask = self.mask(query_hidden, padding, batch)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let (normed, of) = (layer.norm_query.run(&query)?, layer.norm_content.run(&content)?);
            query = layer.stream(&query, &normed, &of, memory, query_mask.clone())?;
            if index + 1 < self.layers.len() {
                content = layer.stream(&content, &of, &of, memory, content_mask.clone())?;
            }
        }
        self.head.run(&self.norm.run(&query)?)
    }

    /// Who is hidden when the places come in the order of a permutation: from contents, and from queries.
    #[must_use]
    pub fn hidden(permutation: &[usize]) -> [Hidden; 2] {
        let len = permutation.len();
        let mut hidden = vec![vec![false; len]; len];
        for (index, place) in permutation.iter().enumerate() {
            permutation[index + 1..].iter().for_each(|later| hidden[*place][*later] = true);
        }
        let content = hidden[..len - 1].iter().map(|row| row[..len - 1].to_vec()).collect();
        (0..len).for_each(|place| hidden[place][place] = true);
        let query = hidden[1..].iter().map(|row| row[..len - 1].to_vec()).collect();
        [content, query]
    }

    /// What a place of an input of `len` tokens is hidden from when it reads from left to right.
    fn causal(len: usize) -> Hidden {
        (0..len).map(|query| (0..len).map(|key| key > query).collect()).collect()
    }

    /// Which keys lie after the end, or are it.
    #[must_use]
    pub fn ended(&self, tokens: &[u32], len: usize) -> Vec<bool> {
        let row = |row: &[u32]| {
            let end = row.iter().position(|token| *token == self.end).unwrap_or(len);
            (0..len).map(|place| place >= end).collect::<Vec<_>>()
        };
        tokens.chunks(len).flat_map(row).collect()
    }

    fn likeliest<T: Float>(&self, logits: &Tensor<T>) -> Result<Vec<u32>> {
        let &[batch, places, characters] = logits.shape() else {
            return Err(Error::Request(format!("parseq: logits of shape {:?}", logits.shape())));
        };
        Ok(sample::argmax(&logits.reshape(&[batch * places, characters])?)?.to_vec()?)
    }

    /// Reads one character after the other: `[batch, places, characters]`; with `stop` it ends when every word has.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn read<T: Float>(&self, memory: &Tensor<T>, stop: bool) -> Result<Tensor<T>> {
        let batch = memory.shape()[0];
        let mut words = vec![vec![self.begin]; batch];
        let mut logits: Vec<Tensor<T>> = Vec::new();
        for place in 0..self.places() {
            let input = words.concat();
            let input = Tensor::from_vec(&self.device, &[batch, place + 1], input)?;
            let hidden = Self::causal(place + 1);
            let query = vec![hidden[place].clone()];
            let next = self.decode(memory, &input, place..place + 1, &hidden, &query, None)?;
            let tokens = self.likeliest(&next)?;
            logits.push(next);
            words.iter_mut().zip(tokens).for_each(|(word, token)| word.push(token));
            // The last character of the longest word is never fed.
            if stop && place + 1 < self.places() && words.iter().all(|word| word.contains(&self.end)) {
                break;
            }
        }
        concatenate(&logits.iter().collect::<Vec<_>>(), 1)
    }

    /// Reads all characters at once.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn read_at_once<T: Float>(&self, memory: &Tensor<T>) -> Result<Tensor<T>> {
        let batch = memory.shape()[0];
        let input = Tensor::from_vec(&self.device, &[batch, 1], vec![self.begin; batch])?;
        let query = vec![vec![false]; self.places()];
        self.decode(memory, &input, 0..self.places(), &vec![vec![false]], &query, None)
    }

    /// Reads again, each place from all other characters of what was read.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn refine<T: Float>(&self, memory: &Tensor<T>, logits: &Tensor<T>) -> Result<Tensor<T>> {
        let (batch, places) = (logits.shape()[0], logits.shape()[1]);
        let read = self.likeliest(logits)?;
        let word = |word: &[u32]| [&[self.begin], &word[..places - 1]].concat();
        let input: Vec<_> = read.chunks(places).flat_map(word).collect();
        let padding = self.ended(&input, places);
        let input = Tensor::from_vec(&self.device, &[batch, places], input)?;
        // The official code changes its causal mask in place, so that contents go by it too.
        let own = (0..places).map(|query| (0..places).map(|key| key == query + 1).collect()).collect();
        self.decode(memory, &input, 0..places, &own, &own, Some(&padding))
    }
}
