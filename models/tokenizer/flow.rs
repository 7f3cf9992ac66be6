//! D-AR's tokenizer: a line of codes that a flow from noise to pixels reads group by group, coarse to fine.
//!
//! Queries gather the picture, each seeing the patches and the queries before it. Decoding is a flow whose steps each
//! see one group of the codes, so the first codes settle what the first steps do, and any prefix of the line gives a
//! preview.
//!
//! Source: Gao and Shou 2025, arXiv:2505.23660, its sequential diffusion tokenizer; names from D-AR's `vq_model.py`, `tokenizer_transformer.py`
//! and `diff_decoder.py`.

use smalti::activation::{Activation, activation};
use smalti::attention::{self, Align, Mask, Options};
use smalti::rope::{self, Frequencies, Pairing, Positions, Table};
use smalti::{Device, Float, Tensor, Weight, copy, elementwise, embedding, norm, vq};

use super::vq::unit_rows;
use crate::backbone::condition::TimeEmbedding;
use crate::backbone::vit::{LayerNorm, Linear, PatchEmbedding};
use crate::decode::concatenate;
use crate::weights::{Config, Loader};
use crate::{Error, Result};

/// Of every norm here.
const EPS: f32 = 1e-6;
/// Channels of a head, and how many of them turn by the row and by the column.
const HEAD_DIM: usize = 64;
const ROPE_AXES: [usize; 2] = [32, 32];
/// What times are multiplied with before they become waves.
const TIME_SCALE: f64 = 1000.0;

/// Encoder, codebook and the decoder's two networks.
pub struct FlowTokenizer {
    patches: PatchEmbedding,
    /// `[1, queries, channels]`.
    queries: Tensor<f32>,
    /// A query is a point of few channels, brought to the encoder's by a layer, if there is one.
    query_layer: Option<Linear>,
    encoder: Vec<GatedBlock>,
    to_codes: Linear,
    /// Its rows have length 1.
    codebook: Weight,
    from_codes: Linear,
    /// `[1, queries, dim]`.
    code_positions: Tensor<f32>,
    decoder: Vec<GatedBlock>,
    flow: Flow,
    side: usize,
    steps: usize,
    groups: usize,
    queries_per_step: usize,
    time_shift: f64,
    /// Standard deviation of the flow's data.
    deviation: f32,
    theta: f32,
}

/// Attention with queries, keys and values from layers of their own, and norms of each head's queries and keys.
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    q_norm: LayerNorm,
    k_norm: LayerNorm,
    proj: Linear,
}

/// A block whose two halves are scaled by learned gates, one per channel.
struct GatedBlock {
    norms: [LayerNorm; 2],
    attention: Attention,
    mlp: Mlp,
    gates: [Tensor<f32>; 2],
}

struct Mlp(Linear, Linear);

/// The network that gives the flow's velocity.
struct Flow {
    patch: usize,
    condition: Linear,
    input: Linear,
    /// One for all blocks; otherwise each has its own.
    time: Option<TimeEmbedding>,
    blocks: Vec<FlowBlock>,
    output: Linear,
    /// Shift and scale before the output, if it is modulated.
    output_modulation: Option<Linear>,
}

struct FlowBlock {
    time: Option<TimeEmbedding>,
    condition: [Linear; 2],
    cross: Attention,
    attention: Attention,
    mlp: Mlp,
    /// Shift, scale, gate of the attention, then of the network.
    modulation: Linear,
}

impl FlowTokenizer {
    /// Loads the official names under the loader's prefix.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, config: &Config) -> Result<Self> {
        let at = |key: &str, default: usize| config.count(key).unwrap_or(default);
        let of_flow = config.at("diff_decoder");
        let number = |key: &str| of_flow.as_ref().and_then(|config| config.number(key));
        let all = at("num_all_queries", 256).max(1);
        let groups = at("num_query_groups", 8).max(1);
        let patches = PatchEmbedding::load(loader, "patchify")?;
        let dim = loader.length("patchify.weight", 0);
        let width = loader.length("quant_out_conv.weight", 0);
        let code = loader.lengths::<2>("quantize.embedding.weight");
        let blocks = |name: &str, dim: usize| {
            let block = |index| GatedBlock::load(&loader.at(name).at(index), dim);
            (0..loader.count(name)).map(block).collect::<Result<Vec<_>>>()
        };
        let queries = first_rows(loader, "query_embedding.weight", all)?;
        Ok(Self {
            query_layer: match loader.has("query_linear") {
                true => Some(Linear::load(loader, "query_linear", [dim, queries.shape()[2]])?),
                false => None,
            },
            queries,
            encoder: blocks("encoder_layers", dim)?,
            to_codes: pointwise(loader, "quant_in_conv", [code[1], dim], false)?,
            codebook: unit_rows(&loader.weight("quantize.embedding.weight", &code)?)?,
            from_codes: pointwise(loader, "quant_out_conv", [width, code[1]], false)?,
            code_positions: first_rows(loader, "decoder_embedding.weight", all)?,
            decoder: blocks("decoder_layers", width)?,
            flow: Flow::load(&loader.at("diff_decoder.net"), width)?,
            side: at("sampling_resolution", 256),
            steps: at("num_denoising_steps", groups).max(1),
            groups,
            queries_per_step: at("queries_per_step", all / groups).clamp(1, all),
            time_shift: number("time_shift").unwrap_or(1.0).into(),
            deviation: number("data_std").unwrap_or(1.0),
            theta: config.number("rope_theta").unwrap_or(10_000.0),
            patches,
        })
    }

    /// Codes of one picture.
    #[must_use]
    pub fn codes(&self) -> usize {
        self.queries.shape()[1]
    }

    /// Height and width of a picture in pixels.
    #[must_use]
    pub fn side(&self) -> usize {
        self.side
    }

    /// The first codes that each step of the flow sees.
    #[must_use]
    pub fn group_starts(&self) -> Vec<usize> {
        let groups = self.groups as f64;
        let start = |step: usize| {
            let share = (step as f64 / self.steps as f64 * groups + 0.5).floor() / groups;
            ((share * self.codes() as f64) as usize).min(self.codes() - self.queries_per_step)
        };
        (0..self.steps).map(start).collect()
    }

    /// How many steps of the flow see nothing beyond the first `codes`.
    #[must_use]
    pub fn steps_of(&self, codes: usize) -> usize {
        self.group_starts().iter().filter(|start| *start + self.queries_per_step <= codes).count()
    }

    /// The rotary table of a grid's patches, with rows that turn nothing for `others` more tokens.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn table(&self, device: &Device, [rows, columns]: [usize; 2], others: usize) -> Result<Table> {
        let cells = (0..rows * columns).flat_map(|cell| [cell / columns, cell % columns]);
        let places = cells.map(|place| place as f64).chain(std::iter::repeat_n(0.0, 2 * others)).collect();
        let frequencies = Frequencies::per_axis(&ROPE_AXES, self.theta)?;
        Ok(Table::new(device, &frequencies, &Positions::new(2, places)?)?)
    }

    /// What the queries gather of pictures `[batch, 3, height, width]` in [-1, 1], `[batch, codes, code_dim]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn projected<T: Float>(&self, pixels: &Tensor<T>) -> Result<Tensor<T>> {
        let [height, width] = self.patches.patch();
        let patches = plain_norm(&self.patches.run(pixels)?)?;
        let (batch, count, codes) = (patches.shape()[0], patches.shape()[1], self.codes());
        let grid = [pixels.shape()[2] / height, pixels.shape()[3] / width];
        let table = self.table(pixels.device(), grid, codes)?;
        let queries = repeated(&self.queries, batch)?;
        let queries = self.query_layer.as_ref().map_or(Ok(queries.clone()), |layer| layer.run(&queries))?;
        let mut x = concatenate(&[&patches, &queries], 1)?;
        let options = options().mask(Mask::Prefix { prefix: count, align: Align::TopLeft });
        for block in &self.encoder {
            x = block.run(&x, Some(&table), &options)?;
        }
        self.to_codes.run(&plain_norm(&x.narrow(1, count, codes)?.contiguous()?)?)
    }

    /// The nearest codes of what was gathered, `[batch, codes]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn tokens<T: Float>(&self, projected: &Tensor<T>) -> Result<Tensor<u32>> {
        Ok(vq::nearest_cosine(projected, &self.codebook)?)
    }

    /// The vectors of codes, `[batch, codes, code_dim]`.
    ///
    /// # Errors
    /// If a token is out of range or the device fails.
    pub fn quantised<T: Float>(&self, tokens: &Tensor<u32>) -> Result<Tensor<T>> {
        Ok(embedding::embedding(&self.codebook, tokens)?)
    }

    /// What the flow is told: each code in the light of those before it, `[batch, codes, dim]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn condition<T: Float>(&self, quantised: &Tensor<T>) -> Result<Tensor<T>> {
        let x = self.from_codes.run(quantised)?;
        let mut x = elementwise::add(&x, &copy::convert(&self.code_positions)?)?;
        let options = options().mask(Mask::Causal { align: Align::TopLeft });
        for block in &self.decoder {
            x = block.run(&x, None, &options)?;
        }
        plain_norm(&x)
    }

    /// The velocity at pixels `x` (`[batch, 3, height, width]`) at times (one per picture, or one) under a group of the
    /// condition, `[batch, queries_per_step, dim]`.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn velocity<T: Float>(&self, x: &Tensor<T>, times: &[f64], group: &Tensor<T>) -> Result<Tensor<T>> {
        let patch = self.flow.patch;
        let table = self.table(x.device(), [x.shape()[2] / patch, x.shape()[3] / patch], 0)?;
        self.flow.run(x, times, group, &table)
    }

    /// Group `step` of a condition.
    ///
    /// # Errors
    /// If there is no such step or the device has no room.
    pub fn group<T: Float>(&self, condition: &Tensor<T>, step: usize) -> Result<Tensor<T>> {
        let start = self.group_starts().get(step).copied().unwrap_or(usize::MAX);
        Ok(condition.narrow(1, start, self.queries_per_step)?.contiguous()?)
    }

    /// Pictures `[batch, 3, height, width]` from noise of that shape under a condition. With `clip`, the flow takes only
    /// as many steps, the last of which goes to the end: a preview that needs the first codes alone. `seen` is shown
    /// each velocity.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails, or whatever `seen` returns.
    pub fn decode<T: Float>(
        &self,
        condition: &Tensor<T>,
        noise: &Tensor<T>,
        clip: Option<usize>,
        mut seen: impl FnMut(&Tensor<T>) -> Result<()>,
    ) -> Result<Tensor<T>> {
        let steps = clip.unwrap_or(self.steps).min(self.steps);
        let warped = |time: f64| time / (time + self.time_shift * (1.0 - time));
        let mut times: Vec<_> = (0..steps).map(|step| warped(step as f64 / self.steps as f64)).collect();
        times.push(1.0);
        let mut x = noise.clone();
        let mut before: Option<Tensor<T>> = None;
        for step in 0..steps {
            let velocity = self.velocity(&x, &[times[step]], &self.group(condition, step)?)?;
            seen(&velocity)?;
            let dt = (times[step + 1] - times[step]) as f32;
            // Adams and Bashforth's second order, once there is a velocity before.
            let along = match &before {
                Some(before) => elementwise::scale_add(&velocity, 1.5, before, -0.5)?,
                None => velocity.clone(),
            };
            x = elementwise::scale_add(&x, 1.0, &along, dt)?;
            before = Some(velocity);
        }
        Ok(elementwise::scale_add(&x, 1.0 / self.deviation, &x, 0.0)?)
    }
}

impl Attention {
    fn load(loader: &Loader<'_>, name: &str, dim: usize) -> Result<Self> {
        let at = loader.at(name);
        let square = |name: &str| Linear::load(&at, name, [dim, dim]);
        Ok(Self {
            q: square("q")?,
            k: square("k")?,
            v: square("v")?,
            q_norm: LayerNorm::load(&at, "q_norm", HEAD_DIM, EPS)?,
            k_norm: LayerNorm::load(&at, "k_norm", HEAD_DIM, EPS)?,
            proj: square("proj")?,
        })
    }

    /// Queries from `x` (`[batch, seq, dim]`), keys and values from `y`; the tables turn either.
    fn run<T: Float>(
        &self,
        (x, turn_x): (&Tensor<T>, Option<&Table>),
        (y, turn_y): (&Tensor<T>, Option<&Table>),
        options: &Options,
    ) -> Result<Tensor<T>> {
        let heads = |h: Tensor<T>| {
            let &[batch, seq, dim] = h.shape() else {
                return Err(Error::Request(format!("a sequence of shape {:?}, expected [batch, seq, dim]", h.shape())));
            };
            Ok(h.reshape(&[batch, seq, dim / HEAD_DIM, HEAD_DIM])?.permute(&[0, 2, 1, 3])?)
        };
        let turned = |h: Tensor<T>, table: Option<&Table>| match table {
            Some(table) => Ok(rope::rope(&h, table, 0, Pairing::Interleaved)?),
            None => Ok::<_, Error>(h),
        };
        let q = turned(self.q_norm.run(&heads(self.q.run(x)?)?)?, turn_x)?;
        let k = turned(self.k_norm.run(&heads(self.k.run(y)?)?)?, turn_y)?;
        let h = attention::attention(&q, &k, &heads(self.v.run(y)?)?, options)?.y;
        self.proj.run(&h.permute(&[0, 2, 1, 3])?.reshape(x.shape())?)
    }
}

impl GatedBlock {
    fn load(loader: &Loader<'_>, dim: usize) -> Result<Self> {
        Ok(Self {
            norms: [LayerNorm::load(loader, "norm1", dim, EPS)?, LayerNorm::load(loader, "norm2", dim, EPS)?],
            attention: Attention::load(loader, "attention", dim)?,
            mlp: Mlp::load(loader, dim)?,
            gates: [loader.vector("gate1", &[dim])?, loader.vector("gate2", &[dim])?],
        })
    }

    fn run<T: Float>(&self, x: &Tensor<T>, table: Option<&Table>, options: &Options) -> Result<Tensor<T>> {
        let gate = |gate: &Tensor<f32>| copy::convert(&gate.reshape(&[1, 1, gate.elements()])?);
        let h = self.norms[0].run(x)?;
        let h = self.attention.run((&h, table), (&h, table), options)?;
        let x = norm::gated_add(x, &gate(&self.gates[0])?, &h)?;
        let h = self.mlp.run(&self.norms[1].run(&x)?)?;
        Ok(norm::gated_add(&x, &gate(&self.gates[1])?, &h)?)
    }
}

impl Mlp {
    fn load(loader: &Loader<'_>, dim: usize) -> Result<Self> {
        let at = loader.at("mlp");
        let hidden = at.length("fc1.weight", 0);
        Ok(Self(Linear::load(&at, "fc1", [hidden, dim])?, Linear::load(&at, "fc2", [dim, hidden])?))
    }

    fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        self.1.run(&activation(&self.0.run(x)?, Activation::Silu)?)
    }
}

impl Flow {
    fn load(loader: &Loader<'_>, condition: usize) -> Result<Self> {
        let [dim, pixels, _, _] = loader.lengths("conv_in.weight");
        let shared = loader.has("time_embed");
        let block = |index: usize| {
            let at = loader.at("blocks").at(index);
            Ok(FlowBlock {
                time: if shared { None } else { Some(TimeEmbedding::load(&at, "time_embed", dim)?) },
                condition: [
                    Linear::load(&at, "cond_embed.0", [dim, dim])?,
                    Linear::load(&at, "cond_embed.2", [dim, dim])?,
                ],
                cross: Attention::load(&at, "cross_attn", dim)?,
                attention: Attention::load(&at, "attention", dim)?,
                mlp: Mlp::load(&at, dim)?,
                modulation: Linear::load(&at, "adaLN_modulation.1", [6 * dim, dim])?,
            })
        };
        let modulated = loader.has("linear_out");
        let patch = (pixels / 3).isqrt();
        if patch == 0 || 3 * patch * patch != pixels {
            loader.note("conv_in.weight", format!("has {pixels} inputs, expected three square patches"));
        }
        Ok(Self {
            patch: patch.max(1),
            condition: Linear::load(loader, "cond_mlp", [dim, condition])?,
            input: pointwise(loader, "conv_in", [dim, pixels], true)?,
            time: if shared { Some(TimeEmbedding::load(loader, "time_embed", dim)?) } else { None },
            blocks: (0..loader.count("blocks")).map(block).collect::<Result<_>>()?,
            output: match modulated {
                true => Linear::load(loader, "linear_out.linear", [pixels, dim])?,
                false => pointwise(loader, "conv_out", [pixels, dim], true)?,
            },
            output_modulation: match modulated {
                true => Some(Linear::load(loader, "linear_out.adaLN_modulation.1", [2 * dim, dim])?),
                false => None,
            },
        })
    }

    fn run<T: Float>(&self, x: &Tensor<T>, times: &[f64], group: &Tensor<T>, table: &Table) -> Result<Tensor<T>> {
        let &[batch, 3, height, width] = x.shape() else {
            return Err(Error::Request(format!("pixels of shape {:?}, expected [batch, 3, height, width]", x.shape())));
        };
        let p = self.patch;
        if height % p != 0 || width % p != 0 {
            return Err(Error::Request(format!("patches of {p} x {p} do not tile {height} x {width} pixels")));
        }
        let (down, across) = (height / p, width / p);
        let times: Vec<_> = times.iter().map(|time| time * TIME_SCALE).collect();
        let time = |embedding: &TimeEmbedding| -> Result<Tensor<T>> {
            let rows = embedding.run(x.device(), &times)?;
            Ok(rows.reshape(&[rows.shape()[0], 1, rows.shape()[1]])?)
        };
        let shared = self.time.as_ref().map(time).transpose()?;
        let condition = plain_norm(&self.condition.run(group)?)?;
        let h = x.contiguous()?.reshape(&[batch, 3, down, p, across, p])?.permute(&[0, 2, 4, 1, 3, 5])?;
        let mut h = self.input.run(&h.contiguous()?.reshape(&[batch, down * across, 3 * p * p])?)?;
        for block in &self.blocks {
            let own = block.time.as_ref().map(time).transpose()?;
            let Some(time) = own.as_ref().or(shared.as_ref()) else {
                return Err(Error::Request("a flow without times".to_owned()));
            };
            h = block.run(&h, time, &condition, table)?;
        }
        h = plain_norm(&h)?;
        if let (Some(modulation), Some(time)) = (&self.output_modulation, &shared) {
            let two = modulation.run(&activation(time, Activation::Silu)?)?;
            let dim = h.shape()[2];
            h = norm::modulate(&plain_norm(&h)?, &two.narrow(2, dim, dim)?, &two.narrow(2, 0, dim)?)?;
        }
        let y = self.output.run(&h)?.reshape(&[batch, down, across, 3, p, p])?.permute(&[0, 3, 1, 4, 2, 5])?;
        Ok(y.contiguous()?.reshape(&[batch, 3, height, width])?)
    }
}

impl FlowBlock {
    /// `time` is `[batch or 1, 1, dim]`, `condition` `[batch, queries, dim]`.
    fn run<T: Float>(
        &self,
        x: &Tensor<T>,
        time: &Tensor<T>,
        condition: &Tensor<T>,
        table: &Table,
    ) -> Result<Tensor<T>> {
        let dim = x.shape()[2];
        let [first, second] = &self.condition;
        let condition = second.run(&activation(&first.run(condition)?, Activation::Silu)?)?;
        let condition = plain_norm(&condition)?;
        // What a patch is told of its group modulates it, as the time does.
        let told = self.cross.run((&plain_norm(x)?, Some(table)), (&condition, None), &options())?;
        let six = self.modulation.run(&activation(&elementwise::add(&told, time)?, Activation::Silu)?)?;
        let part = |index: usize| six.narrow(2, index * dim, dim);

        let h = norm::modulate(&plain_norm(x)?, &part(1)?, &part(0)?)?;
        let h = self.attention.run((&h, Some(table)), (&h, Some(table)), &options())?;
        let x = norm::gated_add(x, &part(2)?, &h)?;
        let h = norm::modulate(&plain_norm(&x)?, &part(4)?, &part(3)?)?;
        Ok(norm::gated_add(&x, &part(5)?, &self.mlp.run(&h)?)?)
    }
}

/// The usual scale of scores, every query seeing every key.
fn options() -> Options {
    Options::new((HEAD_DIM as f32).powf(-0.5))
}

/// A layer norm without weights.
fn plain_norm<T: Float>(x: &Tensor<T>) -> Result<Tensor<T>> {
    Ok(norm::layer_norm(x, None, None, EPS)?)
}

/// A convolution of one pixel, which is a linear layer.
fn pointwise(loader: &Loader<'_>, name: &str, [outputs, inputs]: [usize; 2], bias: bool) -> Result<Linear> {
    let at = loader.at(name);
    let weight = at.weight("weight", &[outputs, inputs, 1, 1])?.reshape(&[outputs, inputs])?;
    Ok(if bias { Linear::new(weight, at.vector("bias", &[outputs])?) } else { Linear::unbiased(weight) })
}

/// The rows of a table that are used, of which the official ones have more: `[1, rows, dim]`.
fn first_rows(loader: &Loader<'_>, name: &str, rows: usize) -> Result<Tensor<f32>> {
    let [held, dim] = loader.lengths(name);
    let table = loader.vector(name, &[held, dim])?;
    if held < rows {
        loader.note(name, format!("has {held} rows, expected at least {rows}"));
        return Ok(Tensor::zeros(loader.device(), &[1, rows, dim])?);
    }
    Ok(table.narrow(0, 0, rows)?.contiguous()?.reshape(&[1, rows, dim])?)
}

/// `[1, places, dim]` for each of `batch` entries.
fn repeated<T: Float>(table: &Tensor<f32>, batch: usize) -> Result<Tensor<T>> {
    let shape = [batch, table.shape()[1], table.shape()[2]];
    Ok(copy::convert(&table.broadcast(&shape)?.contiguous()?)?)
}
