//! Infinity: next-scale prediction of bits, asked with a text.
//!
//! | part      | here                                                                                             |
//! |-----------|--------------------------------------------------------------------------------------------------|
//! | tokenizer | residual bits over growing grids ([`BitScales`]); its encoder and decoder are not here           |
//! | backbone  | VAR's halves of a block (`SelfAttention`, `Mlp`), attention to the text between them         |
//! | order     | scale by scale, all places of a scale at once                                                    |
//! | mask      | block-causal over scales; with a cache, none; of a text its own rows alone                       |
//! | position  | rotary by row and column, stretched to the last scale's grid; a learned vector per scale         |
//! | head      | two logits for each bit of a place, drawn independently (section 3.3: no index is ever formed)   |
//! | decoder   | one pass per scale; the features so far, resized, are the next scale's input                     |
//! | guidance  | `uncond + s (cond - uncond)` on the logits or on a block's output, with a scale and a temperature |
//! |           | of its own at each scale of the picture                                                          |
//!
//! In training the bits that a scale is fed are flipped at random, while it is asked for those that would correct them
//! (section 3.4): [`Infinity::corrected`].
//!
//! Paper: Han et al. 2024, arXiv:2412.04431. Upstream: FoundationVision/Infinity, `infinity/models/infinity.py`.
//!
//! The file is long because the block is its own: text comes in at three places, as the first token, as what norms are
//! modulated by, and as keys and values.

use smalti::attention::{self, KvCache, Mask, Options};
use smalti::rope::{self, Frequencies, Pairing, Positions, Table};
use smalti::sample::Guidance;
use smalti::{Device, Float, Tensor, activation, copy, elementwise, norm};

use super::captions::CaptionFeatures;
use super::codes::{go_on, to_host, to_planes};
use crate::backbone::adaln::{Condition, Mlp, ModulatedHead, Modulation, Norm, SelfAttention, shared_modulation};
use crate::backbone::vit::Linear;
use crate::decode::{Cells, Random, Sampler, Step, Steps, concatenate, guide, twice, watched};
use crate::generator::whole_only;
use crate::tokenizer::bits::BitScales;
use crate::weights::{Checkpoint, Config, Loader, Notes};
use crate::{About, Drawn, Error, Generator, Result, Sampling, Seen, Wanted, Watch};

/// The official scales of a square picture of 1024 pixels.
pub(super) const SIDES: [usize; 13] = [1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64];
/// More scales or longer sides than any model has.
const MOST: usize = 256;

/// The model with its weights on a device.
pub struct Infinity<T: smalti::Element> {
    device: Device,
    dim: usize,
    /// Stands for the absence of a text, `[most rows, text channels]`.
    no_text: Tensor<f32>,
    text_norm: Norm,
    /// One query, `[1, heads, 1, head_dim]`, and what it asks of a text.
    pool: (Tensor<T>, TextAttention),
    text_layers: [Linear; 2],
    start: Tensor<T>,
    word_embed: Linear,
    /// The vector of each place's scale, `[1, places, dim]`.
    levels: Tensor<T>,
    table: Table,
    shared: Option<Linear>,
    blocks: Vec<Block<T>>,
    head: ModulatedHead,
    quantiser: BitScales,
    schedule: Schedule,
    guided: Guided,
    /// What it draws, and their numbers.
    captions: Option<CaptionFeatures>,
    names: Vec<String>,
}

struct Block<T: smalti::Element> {
    modulation: Modulation,
    norm: Norm,
    sa: SelfAttention<T>,
    ca_norm: Norm,
    ca_query: Linear,
    ca: TextAttention,
    /// `[1, 1, dim]`: how much of the text comes in; all if absent.
    ca_gamma: Option<Tensor<T>>,
    ffn: Mlp,
}

/// Guidance scale and temperature of each scale of a picture; the last ones go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// 1 is no guidance.
    pub cfg: Vec<f32>,
    /// What logits are divided by.
    pub temperature: Vec<f32>,
}

impl Schedule {
    fn at(&self, scale: usize) -> [f32; 2] {
        [&self.cfg, &self.temperature].map(|list| list.get(scale).or(list.last()).copied().unwrap_or(1.0))
    }
}

/// What is guided.
#[derive(Debug, Clone, PartialEq)]
struct Guided {
    logits: bool,
    /// Blocks whose output is.
    blocks: Vec<usize>,
}

/// The features of some texts.
#[derive(Debug, Clone)]
pub struct Text<T: Float> {
    /// `[batch, longest, text channels]`; rows beyond a text's length are not read.
    pub features: Tensor<T>,
    /// Rows of each text, at least 1.
    pub lengths: Vec<usize>,
}

impl<T: Float> Text<T> {
    /// Of rows that lie one text after another, without padding.
    ///
    /// # Errors
    /// [`Error::Request`] if `rows` are not as many as the lengths say, or a text has none; [`Error::Op`] if the device
    /// has no room.
    pub fn packed(device: &Device, rows: &[f32], channels: usize, lengths: Vec<usize>) -> Result<Self> {
        let total: usize = lengths.iter().sum();
        if rows.len() != total * channels || lengths.contains(&0) {
            let message = format!("{} numbers for texts of {lengths:?} rows of {channels} channels", rows.len());
            return Err(Error::Request(message));
        }
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut padded = Vec::with_capacity(lengths.len() * longest * channels);
        let mut rest = rows;
        for (text, length) in lengths.iter().enumerate() {
            let (own, others) = rest.split_at(length * channels);
            padded.extend(own.iter().map(|value| T::from_f32(*value)));
            padded.resize((text + 1) * longest * channels, T::from_f32(0.0));
            rest = others;
        }
        Ok(Self { features: Tensor::from_vec(device, &[lengths.len(), longest, channels], padded)?, lengths })
    }
}

/// Attention to the rows of a text: keys have no bias.
struct TextAttention {
    heads: usize,
    /// Keys, then values.
    kv: Linear,
    proj: Linear,
}

impl TextAttention {
    fn load(loader: &Loader<'_>, dim: usize, text: usize, heads: usize) -> Result<Self> {
        let mut bias = vec![0.0; dim];
        bias.extend(loader.vector("v_bias", &[dim])?.to_vec()?);
        let bias = Tensor::from_vec(loader.device(), &[2 * dim], bias)?;
        Ok(Self {
            heads,
            kv: Linear::new(loader.weight("mat_kv.weight", &[2 * dim, text])?, bias),
            proj: Linear::load(loader, "proj", [dim, dim])?,
        })
    }

    /// Keys and values of texts `[batch, rows, text channels]`.
    fn keys<T: Float>(&self, text: &Tensor<T>) -> Result<[Tensor<T>; 2]> {
        let kv = self.kv.run(text)?;
        let (batch, rows, both, heads) = (kv.shape()[0], kv.shape()[1], kv.shape()[2], self.heads);
        let kv = kv.reshape(&[batch, rows, 2 * heads, both / 2 / heads])?.permute(&[0, 2, 1, 3])?;
        Ok([kv.narrow(1, 0, heads)?, kv.narrow(1, heads, heads)?])
    }

    /// What queries `[batch, heads, seq, head_dim]` read: `[batch, seq, dim]`.
    fn run<T: Float>(&self, q: &Tensor<T>, [k, v]: &[Tensor<T>; 2], lengths: &[usize]) -> Result<Tensor<T>> {
        let &[batch, heads, seq, head_dim] = q.shape() else { unreachable!("the callers shape it") };
        let options = Options::new((head_dim as f32).powf(-0.5)).mask(Mask::KeyLengths(lengths.to_vec()));
        let h = attention::attention(q, k, v, &options)?.y;
        self.proj.run(&h.permute(&[0, 2, 1, 3])?.reshape(&[batch, seq, heads * head_dim])?)
    }
}

/// A text as the blocks read it.
struct Encoded<T: smalti::Element> {
    /// `[rows, dim]`.
    condition: Tensor<T>,
    modulation: Condition<T>,
    /// Keys and values, per block.
    keys: Vec<[Tensor<T>; 2]>,
    lengths: Vec<usize>,
}

/// Rows and columns of each scale, as the configuration names them.
fn scales_of(config: &Config, notes: &Notes) -> Vec<[usize; 2]> {
    let lists = config.lists("scales").unwrap_or_else(|| SIDES.iter().map(|side| vec![1, *side, *side]).collect());
    let fits = |list: &Vec<usize>| match list.as_slice() {
        &[1, rows, columns] if (1..=MOST).contains(&rows) && (1..=MOST).contains(&columns) => Some([rows, columns]),
        _ => None,
    };
    let scales: Option<Vec<_>> = lists.iter().map(fits).collect();
    let scales = scales.filter(|scales| (1..=MOST).contains(&scales.len()));
    scales.unwrap_or_else(|| {
        notes.add(format!("scales {lists:?} are not [1, rows, columns] with sides from 1 to {MOST}"));
        Vec::new()
    })
}

/// A row for each place of all scales. Half of a head is turned by the row, half by the column (section 3.3); both are
/// stretched to the last scale's grid if `stretched`, as its authors train.
fn rotary(device: &Device, scales: &[[usize; 2]], head_dim: usize, theta: f32, stretched: bool) -> Result<Table> {
    let last = scales.last().copied().unwrap_or([1, 1]);
    let coordinate = |index: usize, side: usize, full: usize| match stretched {
        // The official code rounds a product in f32, halves to even.
        true => f64::from((index as f32 * (full as f64 / side as f64) as f32).round_ties_even()),
        false => index as f64,
    };
    let place = |[rows, columns]: [usize; 2]| {
        (0..rows * columns).flat_map(move |cell| {
            [coordinate(cell / columns, rows, last[0]), coordinate(cell % columns, columns, last[1])]
        })
    };
    let positions = Positions::new(2, scales.iter().flat_map(|scale| place(*scale)).collect())?;
    Ok(Table::new(device, &Frequencies::per_axis(&[head_dim / 2; 2], theta)?, &positions)?)
}

impl<T: Float> Infinity<T> {
    /// Loads official names, with the scales, the tokenizer's patches and how to sample from the configuration.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        let unread =
            ["zero_k_bias", "lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen"];
        checkpoint.build(device, &unread, |root, notes| {
            let scales = scales_of(&config, notes);
            let [dim, token] = root.lengths("word_embed.weight");
            let [most, text] = root.lengths("cfg_uncond");
            let factors = root.shape("block_chunks.0.module.0.sa.scale_mul_1H11").map(|shape| shape.iter().product());
            let heads = config.count("heads").or(factors).unwrap_or(16);
            // One head for 128 channels of the text (64 in the widest model).
            let pool_heads = text / if dim > 4096 { 64 } else { 128 };
            let patch = if config.count("apply_spatial_patchify").unwrap_or(0) > 0 { 2 } else { 1 };
            let channels = token / (patch * patch);
            for (heads, of, unit) in [(heads, "blocks", 4), (pool_heads, "text_proj_for_sos", 1)] {
                if heads == 0 || !dim.is_multiple_of(heads * unit) {
                    notes.add(format!("{of}: {heads} heads do not fit {dim} channels"));
                }
            }
            if channels * patch * patch != token {
                notes.add(format!("tokens of {token} bits are not patches of {patch} by {patch} cells"));
            }
            let normalised = config.count("rope2d_normalized_by_hw").unwrap_or(2);
            if normalised == 1 {
                notes.add("rope2d_normalized_by_hw 1 (interpolated tables) is not known here".to_owned());
            }
            let level_rows = root.length("lvl_embed.weight", 0);
            if level_rows < scales.len() {
                notes.add(format!("\"lvl_embed.weight\" has {level_rows} rows for {} scales", scales.len()));
            }
            let chunks = (0..root.count("block_chunks")).map(|chunk| root.at("block_chunks").at(chunk));
            let modules = chunks.flat_map(|chunk| {
                (0..chunk.count("module")).map(move |index| chunk.at("module").at(index)).collect::<Vec<_>>()
            });
            let modules: Vec<_> = modules.collect();
            let depth = modules.len();
            let insertion = config.numbers("cfg_insertion_layer").unwrap_or_else(|| vec![0.0]);
            let behind = insertion.iter().filter(|layer| **layer < 0.0).map(|layer| -layer as usize);
            let behind: Vec<_> = behind.collect();
            if behind.iter().any(|layers| *layers >= depth) {
                notes.add(format!("cfg_insertion_layer {insertion:?} names a block before the second of {depth}"));
            }
            // From here on sizes are divided by heads, and scales are indexed.
            if depth == 0 || !notes.is_empty() {
                return Err(notes.error(checkpoint));
            }
            let eps = config.number("norm_eps").unwrap_or(1e-6);

            let levels = root.vector("lvl_embed.weight", &[level_rows, dim])?.to_vec()?;
            let of_scale = |(level, [rows, columns]): (usize, &[usize; 2])| {
                levels[level * dim..(level + 1) * dim].repeat(rows * columns).into_iter().map(T::from_f32)
            };
            let levels: Vec<_> = scales.iter().enumerate().flat_map(of_scale).collect();
            let shared = shared_modulation(root, 6, dim)?;
            let blocks = modules.iter().map(|at| {
                let ca = at.at("ca");
                Ok(Block {
                    modulation: Modulation::load(at, shared.is_some(), 6, dim)?,
                    norm: Norm::bare_or_rms(at, "ln_wo_grad", dim, eps)?,
                    sa: SelfAttention::load(&at.at("sa"), "mat_qkv", dim, heads)?,
                    ca_norm: Norm::layer_or_rms(at, "ca_norm", dim, eps)?,
                    ca_query: Linear::load(&ca, "mat_q", [dim, dim])?,
                    ca: TextAttention::load(&ca, dim, dim, heads)?,
                    ca_gamma: match at.shape("ca_gamma") {
                        Some(_) => Some(copy::convert(&at.vector("ca_gamma", &[dim])?.reshape(&[1, 1, dim])?)?),
                        None => None,
                    },
                    ffn: Mlp::load(&at.at("ffn"), dim)?,
                })
            });
            let pool = root.at("text_proj_for_sos.ca");
            let query = pool.vector("mat_q", &[1, pool_heads, dim / pool_heads])?;
            let model = Self {
                device: device.clone(),
                dim,
                no_text: root.vector("cfg_uncond", &[most, text])?,
                text_norm: Norm::layer_or_rms(root, "text_norm", text, eps)?,
                pool: (
                    copy::convert(&query.reshape(&[1, pool_heads, 1, dim / pool_heads])?)?,
                    TextAttention::load(&pool, dim, text, pool_heads)?,
                ),
                text_layers: [
                    Linear::load(root, "text_proj_for_ca.0", [dim, text])?,
                    Linear::load(root, "text_proj_for_ca.2", [dim, dim])?,
                ],
                start: copy::convert(&root.vector("pos_start", &[1, 1, dim])?)?,
                word_embed: Linear::load(root, "word_embed", [dim, token])?,
                levels: Tensor::from_vec(device, &[1, levels.len() / dim, dim], levels)?,
                table: rotary(
                    device,
                    &scales,
                    dim / heads,
                    config.number("rope_base").unwrap_or(10_000.0),
                    normalised == 2,
                )?,
                blocks: blocks.collect::<Result<_>>()?,
                shared,
                head: ModulatedHead::load(root, "head_nm", "head", dim, eps)?,
                quantiser: BitScales::new(device, scales, channels, patch)?,
                schedule: Schedule {
                    cfg: config.numbers("cfg_list").unwrap_or_else(|| vec![4.0]),
                    temperature: config.numbers("tau_list").unwrap_or_else(|| vec![0.5]),
                },
                captions: None,
                names: Vec::new(),
                guided: Guided {
                    logits: insertion.contains(&0.0),
                    blocks: behind.iter().map(|layers| depth - layers).collect(),
                },
            };
            let outputs = root.length("head.weight", 0);
            if outputs != 2 * token {
                notes.add(format!("the head has {outputs} outputs for {token} bits of a place"));
            }
            Ok(model)
        })
    }

    /// What stands between encoder and decoder.
    #[must_use]
    pub fn quantiser(&self) -> &BitScales {
        &self.quantiser
    }

    /// How its authors sample.
    #[must_use]
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The rotary table, a row per place of all scales.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Places of all scales.
    #[must_use]
    pub fn places(&self) -> usize {
        self.levels.shape()[1]
    }

    /// Bits of a place.
    #[must_use]
    pub fn bits(&self) -> usize {
        self.head.outputs() / 2
    }

    fn encode(&self, text: &Text<T>, guided: bool) -> Result<Encoded<T>> {
        let (most, channels) = (self.no_text.shape()[0], self.no_text.shape()[1]);
        let (shape, batch) = (text.features.shape(), text.lengths.len());
        let fits = matches!(*shape, [texts, rows, width] if texts == batch && rows <= most && width == channels);
        if !fits || text.lengths.iter().any(|length| !(1..=shape[1]).contains(length)) {
            let expected = format!("[{batch}, at most {most}, {channels}], each with 1 row or more");
            let lengths = &text.lengths;
            let message = format!("infinity: texts of shape {shape:?} with {lengths:?} rows, expected {expected}");
            return Err(Error::Request(message));
        }
        let mut rows = text.features.clone();
        let mut lengths = text.lengths.clone();
        if guided {
            // As long as the text that it takes the place of.
            let none = self.no_text.narrow(0, 0, shape[1])?.reshape(&[1, shape[1], channels])?;
            let none = copy::convert(&none.broadcast(shape)?.contiguous()?)?;
            rows = concatenate(&[&rows, &none], 0)?;
            lengths.extend_from_slice(&text.lengths);
        }
        let rows = self.text_norm.run(&rows)?;
        let (query, pool) = &self.pool;
        let &[_, heads, seq, head_dim] = query.shape() else { unreachable!("the load shapes it") };
        let queries = query.broadcast(&[lengths.len(), heads, seq, head_dim])?.contiguous()?;
        let condition = pool.run(&queries, &pool.keys(&rows)?, &lengths)?.reshape(&[lengths.len(), self.dim])?;
        let hidden = activation::activation(&self.text_layers[0].run(&rows)?, activation::Activation::GeluTanh)?;
        let hidden = self.text_layers[1].run(&hidden)?;
        Ok(Encoded {
            modulation: Condition::new(&condition, self.shared.as_ref(), self.blocks.len())?,
            condition,
            keys: self.blocks.iter().map(|block| block.ca.keys(&hidden)).collect::<Result<_>>()?,
            lengths,
        })
    }

    /// The first place of each row, without the vector of its scale.
    fn first(&self, text: &Encoded<T>) -> Result<Tensor<T>> {
        let first = text.condition.reshape(&[text.lengths.len(), 1, self.dim])?;
        Ok(elementwise::add(&first, &self.start)?)
    }

    /// Runs the places of `x` (`[rows, seq, dim]`), which are those from `from` on, after those in the caches; `after`
    /// may change what a block gives.
    fn run(
        &self,
        x: &Tensor<T>,
        from: usize,
        text: &Encoded<T>,
        mut caches: Option<&mut [KvCache<T>]>,
        mask: Mask,
        after: impl Fn(usize, Tensor<T>) -> Result<Tensor<T>>,
    ) -> Result<Tensor<T>> {
        let (rows, seq) = (x.shape()[0], x.shape()[1]);
        let mut x = elementwise::add(x, &self.levels.narrow(1, from, seq)?)?;
        for (index, block) in self.blocks.iter().enumerate() {
            let heads = block.ca.heads;
            let head_dim = self.dim / heads;
            let six = block.modulation.run(&text.modulation, index)?;
            let options = block.sa.options((head_dim as f32).powf(-0.5)).mask(mask.clone());
            let turn = |x: Tensor<T>| Ok(rope::rope(&x, &self.table, from, Pairing::Interleaved)?);
            let h = norm::modulate(&block.norm.run(&x)?, &six[2], &six[4])?;
            let cache = caches.as_mut().map(|caches| &mut caches[index]);
            x = norm::gated_add(&x, &six[0], &block.sa.run(&h, turn, cache, &options)?)?;

            let q = block.ca_query.run(&block.ca_norm.run(&x)?)?;
            let q = q.reshape(&[rows, seq, heads, head_dim])?.permute(&[0, 2, 1, 3])?;
            let h = block.ca.run(&q, &text.keys[index], &text.lengths)?;
            x = match &block.ca_gamma {
                Some(gamma) => elementwise::add(&x, &elementwise::mul(&h, gamma)?)?,
                None => elementwise::add(&x, &h)?,
            };

            let h = norm::modulate(&block.norm.run(&x)?, &six[3], &six[5])?;
            x = after(index, norm::gated_add(&x, &six[1], &block.ffn.run(&h)?)?)?;
        }
        Ok(x)
    }

    /// What a pass over a whole picture is fed at every scale but the first, `[batch, places - 1, bits]`, and the bits that
    /// it is then asked for, `[batch, places, bits]`. Of each bit of the first scales `flipped` says whether those after
    /// it build on its contrary.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn corrected(
        &self,
        features: &Tensor<T>,
        flipped: impl Fn(usize, usize) -> bool,
    ) -> Result<(Tensor<T>, Tensor<u32>)> {
        let scales = self.quantiser.quantise(features, |scale, bits| {
            let values = bits.to_vec()?.into_iter().enumerate();
            let values = values.map(|(index, bit)| bit ^ u32::from(flipped(scale, index))).collect();
            Ok(Tensor::from_vec(bits.device(), bits.shape(), values)?)
        })?;
        let inputs = scales.iter().zip(1..self.quantiser.scales().len());
        let inputs: Vec<_> =
            inputs.map(|(said, next)| self.quantiser.input(&said.so_far, next)).collect::<Result<_>>()?;
        let labels = scales.iter().enumerate().map(|(scale, said)| self.quantiser.to_tokens(&said.bits, scale));
        let labels: Vec<_> = labels.collect::<Result<_>>()?;
        Ok((concatenate(&inputs.iter().collect::<Vec<_>>(), 1)?, concatenate(&labels.iter().collect::<Vec<_>>(), 1)?))
    }

    /// Logits of all places, `[batch, places, 2 bits]`: for each bit that of 0, then that of 1. `inputs` are as
    /// [`Infinity::corrected`] gives them.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn teacher(&self, text: &Text<T>, inputs: &Tensor<T>) -> Result<Tensor<T>> {
        let text = self.encode(text, false)?;
        let x = concatenate(&[&self.first(&text)?, &self.word_embed.run(inputs)?], 1)?;
        let scales = (0..).zip(self.quantiser.scales());
        let ranks: Vec<_> =
            scales.flat_map(|(scale, [rows, columns])| std::iter::repeat_n(scale, rows * columns)).collect();
        let x = self.run(&x, 0, &text, None, Mask::ranks(&ranks, false), |_, x| Ok(x))?;
        self.head.run(&x, &text.condition)
    }

    /// Draws a picture for each text: the bits of all places, `[batch, places, bits]`, and the features they add up to.
    /// `steps` sees guided logits over their temperature, `[batch, places of a scale, 2 bits]`. The sampler's places are
    /// bits; its temperature is 1, or 0 for the likeliest.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails, or [`Error::Interrupted`] if `steps` breaks off.
    pub fn generate(
        &self,
        text: &Text<T>,
        schedule: &Schedule,
        sampler: &Sampler<'_>,
        steps: Steps<'_, T>,
    ) -> Result<(Tensor<u32>, Tensor<T>)> {
        let (batch, bits, scales) = (text.lengths.len(), self.bits(), self.quantiser.scales());
        let guided = (0..scales.len()).any(|scale| schedule.at(scale)[0] != 1.0);
        let text = self.encode(text, guided)?;
        let rows = text.lengths.len();
        let caches = self.blocks.iter().map(|block| block.sa.cache(&self.device, rows, self.places()));
        let mut caches = caches.collect::<Result<Vec<_>>>()?;
        let mut drawn = Tensor::<u32>::zeros(&self.device, &[batch, self.places(), bits])?;
        let mut features: Option<Tensor<T>> = None;
        let mut x = self.first(&text)?;
        let mut settled = 0;
        for (scale, [height, width]) in scales.iter().enumerate() {
            let [cfg, temperature] = schedule.at(scale);
            let h = self.run(&x, settled, &text, Some(&mut caches), Mask::Full, |block, x| {
                match cfg != 1.0 && self.guided.blocks.contains(&block) {
                    true => twice(&guide(&x, batch, cfg, Guidance::Scale)?),
                    false => Ok(x),
                }
            })?;
            let logits = self.head.run(&h, &text.condition)?;
            let logits = match cfg != 1.0 && self.guided.logits {
                true => guide(&logits, batch, cfg, Guidance::Scale)?,
                false => logits.narrow(0, 0, batch)?.contiguous()?,
            };
            let logits = elementwise::scale_add(&logits, 1.0 / temperature, &logits, 0.0)?;
            let count = height * width;
            let each = logits.reshape(&[batch, count * bits, 2])?;
            let of_bits = sampler.draw(&each, settled * bits)?;
            let said = of_bits.reshape(&[batch, count, bits])?;
            copy::copy_into_slice(&said, &mut drawn, 1, settled)?;
            let cells = Cells::From(settled);
            settled += count;
            go_on(steps(Step { settled, logits: &logits, tokens: &of_bits, cells, latents: None }))?;
            let part = self.quantiser.contribution(&self.quantiser.to_cells(&said, scale)?, scale)?;
            let so_far = match features {
                Some(features) => elementwise::add(&features, &part)?,
                None => part,
            };
            if scale + 1 < scales.len() {
                let words = self.word_embed.run(&self.quantiser.input(&so_far, scale + 1)?)?;
                x = if rows > batch { twice(&words)? } else { words };
            }
            features = Some(so_far);
        }
        Ok((drawn, features.expect("the load finds at least one scale")))
    }
}

impl<T: Float> Infinity<T> {
    fn last_cfg(&self) -> f32 {
        self.schedule.cfg.last().copied().unwrap_or(1.0)
    }
}

/// Its guidance is that of the last scale; another one holds for all scales. Temperature multiplies those of the scales.
impl<T: Float> Generator for Infinity<T> {
    fn about(&self) -> About<'_> {
        About {
            system: "infinity",
            classes: &self.names,
            sampling: Sampling { cfg: self.last_cfg(), temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0 },
            tokens_per_picture: self.places(),
            has_tokenizer: false,
            picture_size: self.quantiser.cells(self.quantiser.scales().len() - 1),
            frames: 1,
            grids: self.quantiser.scales().to_vec(),
        }
    }

    fn use_captions(&mut self, captions: CaptionFeatures) -> Result<()> {
        self.names = captions.fitting(None, self.no_text.shape()[1])?.names();
        self.captions = Some(captions);
        Ok(())
    }

    fn draw_watched(&self, wanted: Wanted<'_>, watch: Watch<'_>) -> Result<Drawn> {
        let Wanted { labels, first_picture, sampling, given } = wanted;
        whole_only("infinity", given)?;
        let captions = CaptionFeatures::given("infinity", self.captions.as_ref())?;
        let (features, lengths) = captions.first(&self.device, labels, self.no_text.shape()[1])?;
        let mut schedule = self.schedule.clone();
        if sampling.cfg != self.last_cfg() {
            schedule.cfg = vec![sampling.cfg];
        }
        let bits = self.places() * self.bits();
        let sampler = Sampler::new(*sampling, Random::Philox { first_picture }, bits);
        let (batch, text) = (labels.len(), Text { features, lengths });
        let each = |step: Step<'_, T>| {
            let cells = vec![step.cells.of(0, step.tokens.shape()[1] / self.bits()); batch];
            watch(Seen::of_batch([step.settled, self.places()], &cells, &|| Ok(Vec::new())))
        };
        let (tokens, latents) = watched(each, |steps| self.generate(&text, &schedule, &sampler, steps))?;
        let tokens = to_host::<T>(&tokens.reshape(&[labels.len(), bits])?, None)?.tokens;
        Ok(Drawn { tokens, ..to_planes(&latents, None)? })
    }
}
