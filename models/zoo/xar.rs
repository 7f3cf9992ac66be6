//! xAR: cell by cell, each cell of the grid a block of tokens that one flow draws together.
//!
//! | part      | here                                                                                       |
//! |-----------|--------------------------------------------------------------------------------------------|
//! | tokenizer | a KL autoencoder ([`KlAutoencoder`])                                                       |
//! | backbone  | blocks modulated by class and time, a cache for each; encoder, then decoder                |
//! | order     | the quarters of the picture, in raster order                                               |
//! | mask      | block-causal over cells; a cell is drawn while those before it lie in the caches           |
//! | position  | learned, and RoPE over rows and columns                                                    |
//! | head      | the velocity of each token, linear in the decoder's states                                 |
//! | decoder   | steps with noise ([`Stochastic`]), then the cell once more without noise, to be seen       |
//! | guidance  | on the velocity, `uncond + s (cond - uncond)`, `s` rising linearly with the cells          |
//!
//! The cells before are seen at time 0, without noise, when a cell is drawn; training shows them as noisy as they are
//! (the paper's noisy context learning), so the same network takes either.
//!
//! Paper: Ren et al. 2025, arXiv:2502.20388. Upstream: OliverRensu/xAR, `models/xar.py` and `models/sampler.py`.
//!
//! The file is long because its two stacks have blocks of their own, and because a cell passes through their caches at
//! every step of its flow and is taken back until it is settled.

use smalti::attention::{self, KvCache, Options};
use smalti::rope::{self, Pairing, Table};
use smalti::{Device, Float, Tensor, activation, copy, elementwise, norm};

use super::latents::{DrawsLatents, Latents, Partial, Progress, WantedLatents};
use crate::backbone::condition::{ClassTable, TimeEmbedding};
use crate::backbone::vit::Linear;
use crate::decode::{Chance, Sampler, twice};
use crate::head::flow::Stochastic;
use crate::order;
use crate::tokenizer::kl::KlAutoencoder;
use crate::weights::{Checkpoint, Loader};
use crate::{Error, Result};

/// The time of the last step but one; from there one step without noise goes to 0.
const LAST_TIME: f64 = 0.04;

/// The model with its weights on a device.
pub struct Xar {
    latents: Latents,
    /// Cells along one side of the grid.
    across: usize,
    classes: ClassTable,
    time: TimeEmbedding,
    input: Linear,
    input_norm: Tensor<f32>,
    encoder: Stage,
    middle: Linear,
    decoder: Stage,
    output: Linear,
    table: Table,
    steps: usize,
}

/// Blocks with the positions before and the norm after them.
struct Stage {
    /// `[1, places, dim]`, cell by cell.
    positions: Tensor<f32>,
    blocks: Vec<Block>,
    norm: Tensor<f32>,
    heads: usize,
    norm_eps: f32,
}

struct Block {
    qkv: Linear,
    proj: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
    /// Two gates, two scales, two shifts; the first of each is the attention's.
    modulation: Linear,
}

/// The caches of encoder and decoder.
struct Caches<T: Float>([Vec<KvCache<T>>; 2]);

impl Xar {
    /// Loads official names, and a tokenizer under `vae.`.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that does not fit; [`Error::Op`] if the device has no room.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        checkpoint.build(device, &["mask", "rope.freqs", "rope.freqs_cos", "rope.freqs_sin"], |root, notes| {
            let places = root.length("encoder_pos_embed_learned", 1);
            let [dim, token] = root.lengths("z_proj.weight");
            let [width, _] = root.lengths("decoder_embed.weight");
            let heads = config.count("heads").unwrap_or(if dim == 768 { 12 } else { 16 }).max(1);
            let eps = config.number("norm_eps").unwrap_or(1e-6);
            let cells = config.count("cells").unwrap_or(4);
            let (side, across) = (places.isqrt(), cells.isqrt());
            if across == 0 || across * across != cells || side * side != places || side % across != 0 {
                notes.add(format!("{cells} \"cells\" do not tile a square grid of {places} tokens"));
            }
            let across = across.max(1);
            let steps = config.count("num_steps").unwrap_or(50);
            if steps < 2 {
                notes.add(format!("\"num_steps\" is {steps}, expected at least 2"));
            }
            if !(dim / heads).is_multiple_of(4) || dim % heads != 0 || width != dim {
                notes.add(format!("{heads} \"heads\" do not divide {dim} and {width} channels into multiples of 4"));
                // Nothing after could be trusted.
                return Err(notes.error(checkpoint));
            }
            let table = Table::grid(device, side, side, dim / heads, config.number("rope_base").unwrap_or(10_000.0))?;
            let classes = ClassTable::load(root, "class_emb.weight", dim)?;
            let stage = |name: &str| Stage::load(root, name, [places, dim], heads, eps);
            Ok(Self {
                latents: Latents::load(
                    checkpoint,
                    root,
                    &config,
                    [places, classes.classes()],
                    config.number("cfg").unwrap_or(3.0),
                )?,
                table: order::positions(&table, &cells_in_order(side, across))?,
                across,
                time: TimeEmbedding::load(root, "time_embed", dim)?,
                input: Linear::load(root, "z_proj", [dim, token])?,
                input_norm: root.vector("z_proj_ln.weight", &[dim])?,
                encoder: stage("encoder")?,
                middle: Linear::load(root, "decoder_embed", [dim, dim])?,
                decoder: stage("decoder")?,
                output: Linear::load(root, "pred", [token, dim])?,
                classes,
                steps,
            })
        })
    }

    /// The rotary table, cell by cell.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Cells of the picture.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.across * self.across
    }

    /// Tokens of one cell.
    fn cell_tokens(&self) -> usize {
        self.table.positions() / self.cells()
    }

    /// The times of a cell's steps, falling from 1.
    #[must_use]
    pub fn times(&self) -> Vec<f64> {
        let last = (self.steps - 1) as f64;
        (0..self.steps).map(|step| 1.0 - (1.0 - LAST_TIME) * step as f64 / last).collect()
    }

    fn caches<T: Float>(&self, rows: usize) -> Result<Caches<T>> {
        let device = &self.latents.device;
        let capacity = self.table.positions();
        Ok(Caches([self.encoder.caches(device, rows, capacity)?, self.decoder.caches(device, rows, capacity)?]))
    }

    /// States after the encoder, and velocities, of the tokens `x` (`[rows, cell_tokens, channels]`) of a cell at time
    /// indices (one per row, or one). Its keys are put after those of the cells before.
    fn cell<T: Float>(
        &self,
        x: &Tensor<T>,
        cell: usize,
        class: &Tensor<T>,
        indices: &[u32],
        caches: &mut Caches<T>,
    ) -> Result<[Tensor<T>; 2]> {
        let times: Vec<_> = indices.iter().copied().map(f64::from).collect();
        let condition = elementwise::add(class, &self.time.run(&self.latents.device, &times)?)?;
        let first = cell * self.cell_tokens();
        let [of_encoder, of_decoder] = &mut caches.0;
        let x = self.encoder.placed(&self.input.run(x)?, first)?;
        let x = norm::rms_norm(&x, Some(&self.input_norm), self.encoder.norm_eps)?;
        let states = self.encoder.run(&x, (&self.table, first), &condition, of_encoder)?;
        let x = self.decoder.placed(&self.middle.run(&states)?, first)?;
        let x = self.decoder.run(&x, (&self.table, first), &condition, of_decoder)?;
        Ok([states, self.output.run(&x)?])
    }

    /// `[rows, dim]` for the classes, then, if `guided`, as many rows of none.
    fn class<T: Float>(&self, labels: &[u32], guided: bool) -> Result<Tensor<T>> {
        let class = self.classes.rows::<T>(labels, guided)?;
        Ok(class.reshape(&[class.shape()[0], class.shape()[2]])?)
    }

    /// States after the encoder, and velocities, of noisy tokens `x` (`[batch, places, channels]`, cell by cell), whose
    /// cells have the time indices `indices` (`[cells, batch]`).
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn plain<T: Float>(&self, labels: &[u32], x: &Tensor<T>, indices: &[u32]) -> Result<[Tensor<T>; 2]> {
        let (batch, tokens) = (labels.len(), self.cell_tokens());
        let class = self.class::<T>(labels, false)?;
        let mut caches = self.caches(batch)?;
        let (mut states, mut velocities) = (Vec::new(), Vec::new());
        // What is causal over cells can go through the caches cell by cell.
        for (cell, indices) in indices.chunks(batch.max(1)).enumerate() {
            let x = x.narrow(1, cell * tokens, tokens)?;
            let [state, velocity] = self.cell(&x.contiguous()?, cell, &class, indices, &mut caches)?;
            states.push(state);
            velocities.push(velocity);
        }
        let all = |parts: &[Tensor<T>]| crate::decode::concatenate(&parts.iter().collect::<Vec<_>>(), 1);
        Ok([all(&states)?, all(&velocities)?])
    }

    /// [`DrawsLatents::draw_latents`] that also shows the velocities of each step of each cell, `[rows, cell_tokens,
    /// channels]`, before guidance.
    ///
    /// # Errors
    /// As there, or whatever `seen` returns.
    pub fn generate_cells<T: Float>(
        &self,
        labels: &[u32],
        sampler: &Sampler<'_>,
        chance: &mut dyn Chance,
        mut seen: impl FnMut(usize, usize, &Tensor<T>) -> Result<()>,
    ) -> Result<Tensor<T>> {
        let (batch, tokens, channels) = (labels.len(), self.cell_tokens(), self.output.outputs());
        let cfg = sampler.sampling.cfg;
        let guided = cfg > 1.0;
        let order = cells_in_order(self.latents.side, self.across);
        let class = self.class::<T>(labels, guided)?;
        let mut caches = self.caches(class.shape()[0])?;
        let mut all = Tensor::<T>::zeros(&self.latents.device, &[batch, self.table.positions(), channels])?;
        let times = self.times();
        let steps = Stochastic { steps: self.steps - 1, last: LAST_TIME, last_score: true, drift: 1.0, noise: 1.0 };
        for (cell, places) in order.chunks(tokens).enumerate() {
            let places = (0..batch).flat_map(|picture| places.iter().map(move |place| (picture, *place)));
            chance.begin(&places.collect::<Vec<_>>());
            let mut normals = || -> Result<Tensor<T>> {
                let values = chance.normals(batch * tokens, channels)?.into_iter().map(T::from_f64).collect();
                Ok(Tensor::from_vec(&self.latents.device, &[batch, tokens, channels], values)?)
            };
            let share = cell as f32 / (self.cells() - 1).max(1) as f32;
            let scale = guided.then_some(1.0 + (cfg - 1.0) * share);
            let mut step = 0;
            // Here noise is at time 1 and data at 0, so that the velocity points from data to noise.
            let velocity = |x: &Tensor<T>, _| {
                caches.truncate(cell * tokens);
                let [_, velocity] = self.cell(x, cell, &class, &[time_index(times[step])], &mut caches)?;
                seen(cell, step, &velocity)?;
                step += 1;
                Ok(elementwise::scale_add(&velocity, -1.0, &velocity, 0.0)?)
            };
            let x = steps.run(normals()?, scale, velocity, normals)?;
            copy::copy_into_slice(&x, &mut all, 1, cell * tokens)?;
            if cell + 1 < self.cells() {
                // The cells that follow see it without noise.
                caches.truncate(cell * tokens);
                self.cell(&if guided { twice(&x)? } else { x }, cell, &class, &[0], &mut caches)?;
            }
        }
        let (across, side) = (self.across, self.latents.side / self.across);
        let grid = all.reshape(&[batch, across, across, side, side, channels])?.permute(&[0, 5, 1, 3, 2, 4])?;
        Ok(grid.contiguous()?.reshape(&[batch, channels, across * side, across * side])?)
    }
}

/// The index, of 0 to 999 and 1000 for 1, by which the network knows a time. Computed in f32, as upstream does.
#[must_use]
pub fn time_index(time: f64) -> u32 {
    (time as f32 * 1000.0) as u32
}

/// The raster places of a square grid, cell by cell, each cell line by line.
pub(super) fn cells_in_order(side: usize, across: usize) -> Vec<usize> {
    let of_cell = side / across;
    let place = |index: usize| {
        let (cell, within) = (index / (of_cell * of_cell), index % (of_cell * of_cell));
        let row = cell / across * of_cell + within / of_cell;
        row * side + cell % across * of_cell + within % of_cell
    };
    (0..(across * of_cell).pow(2)).map(place).collect()
}

impl<T: Float> Caches<T> {
    fn truncate(&mut self, len: usize) {
        self.0.iter_mut().flatten().for_each(|cache| cache.truncate(len));
    }
}

impl Stage {
    /// Loads `NAME_blocks.N`, `NAME_norm` and `NAME_pos_embed_learned`.
    fn load(loader: &Loader<'_>, name: &str, [places, dim]: [usize; 2], heads: usize, norm_eps: f32) -> Result<Self> {
        let blocks = format!("{name}_blocks");
        let block = |index: usize| {
            let at = loader.at(&blocks).at(index);
            let hidden = at.length("mlp.fc1_g.weight", 0);
            Ok(Block {
                qkv: Linear::load(&at, "attn.qkv", [3 * dim, dim])?,
                proj: Linear::load(&at, "attn.proj", [dim, dim])?,
                gate: Linear::load(&at, "mlp.fc1_g", [hidden, dim])?,
                up: Linear::load(&at, "mlp.fc1_x", [hidden, dim])?,
                down: Linear::load(&at, "mlp.fc2", [dim, hidden])?,
                modulation: Linear::load(&at, "ada_lin.1", [6 * dim, dim])?,
            })
        };
        Ok(Self {
            positions: loader.vector(&format!("{name}_pos_embed_learned"), &[1, places, dim])?,
            blocks: (0..loader.count(&blocks)).map(block).collect::<Result<_>>()?,
            norm: loader.vector(&format!("{name}_norm.weight"), &[dim])?,
            heads,
            norm_eps,
        })
    }

    fn caches<T: Float>(&self, device: &Device, rows: usize, capacity: usize) -> Result<Vec<KvCache<T>>> {
        let head_dim = self.positions.shape()[2] / self.heads;
        self.blocks.iter().map(|_| Ok(KvCache::new(device, rows, self.heads, capacity, head_dim)?)).collect()
    }

    /// `x` and the positions from `first` on.
    fn placed<T: Float>(&self, x: &Tensor<T>, first: usize) -> Result<Tensor<T>> {
        let positions = self.positions.narrow(1, first, x.shape()[1])?.contiguous()?;
        Ok(elementwise::add(x, &copy::convert(&positions)?)?)
    }

    /// Runs `x` (`[rows, seq, dim]`) after what lies in the caches. `rotary` is the table and its row of the first
    /// place; `condition` is `[rows, dim]`.
    fn run<T: Float>(
        &self,
        x: &Tensor<T>,
        (table, start): (&Table, usize),
        condition: &Tensor<T>,
        caches: &mut [KvCache<T>],
    ) -> Result<Tensor<T>> {
        let &[rows, seq, dim] = x.shape() else {
            return Err(Error::Request(format!("a sequence of shape {:?}, expected [rows, seq, dim]", x.shape())));
        };
        let heads = self.heads;
        let options = Options::new(((dim / heads) as f32).powf(-0.5));
        let active = activation::activation(condition, activation::Activation::Silu)?;
        let mut x = x.clone();
        for (block, cache) in self.blocks.iter().zip(caches) {
            let six = block.modulation.run(&active)?.reshape(&[rows, 6, 1, dim])?;
            let part = |index: usize| six.narrow(1, index, 1)?.reshape(&[rows, 1, dim]);

            let h = norm::modulate(&norm::rms_norm(&x, None, self.norm_eps)?, &part(2)?, &part(4)?)?;
            let qkv = block.qkv.run(&h)?.reshape(&[rows, seq, 3 * heads, dim / heads])?.permute(&[0, 2, 1, 3])?;
            let turned = |first: usize| rope::rope(&qkv.narrow(1, first, heads)?, table, start, Pairing::Interleaved);
            let q = turned(0)?;
            cache.append(&turned(heads)?, &qkv.narrow(1, 2 * heads, heads)?)?;
            let h = attention::attention(&q, &cache.k(), &cache.v(), &options)?.y;
            let h = block.proj.run(&h.permute(&[0, 2, 1, 3])?.reshape(&[rows, seq, dim])?)?;
            x = norm::gated_add(&x, &part(0)?, &h)?;

            let h = norm::modulate(&norm::rms_norm(&x, None, self.norm_eps)?, &part(3)?, &part(5)?)?;
            // The paper says SwiGLU; upstream gates with GELU.
            let gate = activation::activation(&block.gate.run(&h)?, activation::Activation::Gelu)?;
            let h = block.down.run(&elementwise::mul(&gate, &block.up.run(&h)?)?)?;
            x = norm::gated_add(&x, &part(1)?, &h)?;
        }
        Ok(norm::rms_norm(&x, Some(&self.norm), self.norm_eps)?)
    }
}

impl<T: Float> DrawsLatents<T> for Xar {
    const SYSTEM: &'static str = "xar";
    type Tokenizer = KlAutoencoder;

    fn latents(&self) -> &Latents {
        &self.latents
    }

    fn draw_latents(
        &self,
        WantedLatents { labels, sampler, .. }: WantedLatents<'_, T>,
        chance: &mut dyn Chance,
        progress: Progress<'_, T>,
    ) -> Result<Tensor<T>> {
        let order = cells_in_order(self.latents.side, self.across);
        let cells: Vec<Vec<_>> = order
            .chunks(self.cell_tokens())
            .map(|cell| (0..labels.len()).flat_map(|picture| cell.iter().map(move |place| (picture, *place))).collect())
            .collect();
        self.generate_cells(labels, sampler, chance, |cell, step, _: &Tensor<T>| {
            let settled = (cell * self.steps + step + 1) * self.cell_tokens() / self.steps;
            // A cell is settled by its last step.
            let cells: &[_] = if step + 1 == self.steps { &cells[cell] } else { &[] };
            progress(Partial { settled, cells, latents: None })
        })
    }
}
