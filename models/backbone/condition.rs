//! What a model is told besides its tokens: a class, a time, or the features of a caption.

use smalti::{Device, Float, Tensor, Weight, activation, copy, embedding, linear};

use super::vit::Linear;
use crate::decode::concatenate;
use crate::weights::Loader;
use crate::{Error, Result};

/// A row per class, then one for no class.
pub struct ClassTable {
    table: Weight,
    classes: u32,
}

impl ClassTable {
    /// Loads a table of `classes + 1` rows of `dim` channels.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, name: &str, dim: usize) -> Result<Self> {
        let rows = loader.length(name, 0);
        let classes = u32::try_from(rows.saturating_sub(1));
        let classes = classes.map_err(|_| Error::Weights(format!("\"{name}\" has {rows} rows")))?;
        Ok(Self { table: loader.weight(name, &[rows, dim])?, classes })
    }

    /// How many classes there are.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes as usize
    }

    /// The rows of `labels`, then, if `guided`, as many of no class: `[batch or 2 batch, 1, dim]`.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such class; [`Error::Op`] if the device fails.
    pub fn rows<T: Float>(&self, labels: &[u32], guided: bool) -> Result<Tensor<T>> {
        if let Some(label) = labels.iter().find(|label| **label >= self.classes) {
            return Err(Error::Request(format!("class {label}, expected 0 to {}", self.classes.saturating_sub(1))));
        }
        let none = labels.iter().filter(|_| guided).map(|_| self.classes);
        let ids: Vec<_> = labels.iter().copied().chain(none).collect();
        let ids = Tensor::from_vec(self.table.device(), &[ids.len(), 1], ids)?;
        Ok(embedding::embedding(&self.table, &ids)?)
    }
}

/// Two layers without a bias, a GELU between: `fc1`, `fc2`.
pub struct Projection([Weight; 2]);

impl Projection {
    /// Loads both layers under the loader's prefix, `shape` being inputs, outputs.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, [inputs, outputs]: [usize; 2]) -> Result<Self> {
        let hidden = loader.length("fc1.weight", 0);
        let first = loader.weight("fc1.weight", &[hidden, inputs])?;
        Ok(Self([first, loader.weight("fc2.weight", &[outputs, hidden])?]))
    }

    /// The second layer's output. Zeros stay zeros.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, x: &Tensor<T>) -> Result<Tensor<T>> {
        let hidden = activation::activation(&linear::linear(x, &self.0[0], None)?, activation::Activation::GeluTanh)?;
        Ok(linear::linear(&hidden, &self.0[1], None)?)
    }
}

/// Caption features, projected, and features that stand for no caption.
pub struct Captions {
    projection: Projection,
    /// `[rows, features]`.
    none: Tensor<f32>,
}

impl Captions {
    /// Loads `cap_proj` and `uncond_embedding` under the loader's prefix, for `dim` channels.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, dim: usize) -> Result<Self> {
        let (rows, features) = (loader.length("uncond_embedding", 0), loader.length("cap_proj.fc1.weight", 1));
        Ok(Self {
            projection: Projection::load(&loader.at("cap_proj"), [features, dim])?,
            none: loader.vector("uncond_embedding", &[rows, features])?,
        })
    }

    /// Rows of a caption, padding included.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.none.shape()[0]
    }

    /// Channels of a row.
    #[must_use]
    pub fn features(&self) -> usize {
        self.none.shape()[1]
    }

    /// The rows of captions `[batch, rows, features]`, then, if `guided`, as many of no caption:
    /// `[batch or 2 batch, rows, dim]`.
    ///
    /// # Errors
    /// [`Error::Request`] if the features are of another shape; [`Error::Op`] if the device fails.
    pub fn project<T: Float>(&self, captions: &Tensor<T>, guided: bool) -> Result<Tensor<T>> {
        let none = self.none.shape();
        if captions.shape().get(1..) != Some(none) {
            let expected = format!("[batch, {}, {}]", none[0], none[1]);
            return Err(Error::Request(format!("captions of shape {:?}, expected {expected}", captions.shape())));
        }
        if !guided {
            return self.projection.run(captions);
        }
        let none = copy::convert(&self.none.broadcast(captions.shape())?.contiguous()?)?;
        self.projection.run(&concatenate(&[captions, &none], 0)?)
    }
}

/// Added to the scores of padding: nothing that is not padding itself is left with any weight on it.
const HIDDEN: f32 = -1e30;

/// A bias of scores `[rows, 1, queries, keys]`, the queries being the last of the keys: the first `condition_len` keys
/// are captions, of which those that are not `visible` (`[pictures, condition_len]`, 1 or 0) are hidden from every place
/// but themselves. The pictures' rows repeat under guidance.
///
/// # Errors
/// If the device has no room.
pub fn padding_bias(
    device: &Device,
    visible: &[f32],
    condition_len: usize,
    [rows, queries, keys]: [usize; 3],
) -> Result<Tensor<f32>> {
    let pictures = visible.len() / condition_len.max(1);
    let mut bias = vec![0.0; rows * queries * keys];
    for (row, bias) in bias.chunks_mut((queries * keys).max(1)).enumerate() {
        let visible = &visible[row % pictures.max(1) * condition_len..][..condition_len];
        for (query, bias) in bias.chunks_mut(keys).enumerate() {
            for (key, bias) in bias.iter_mut().take(condition_len).enumerate() {
                if visible[key] == 0.0 && key != keys - queries + query {
                    *bias = HIDDEN;
                }
            }
        }
    }
    Ok(Tensor::from_vec(device, &[rows, 1, queries, keys], bias)?)
}

/// A time as the network knows it: waves of many frequencies through two layers.
///
/// Source: Peebles and Xie 2022, arXiv:2212.09748, section 3.2; names from DiT's `models.py`.
pub struct TimeEmbedding {
    /// How many waves there are.
    channels: usize,
    mlp: [Linear; 2],
}

impl TimeEmbedding {
    /// Loads `NAME.mlp.0` and `NAME.mlp.2`, which give `dim` channels.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, name: &str, dim: usize) -> Result<Self> {
        Self::load_as(&loader.at(name).at("mlp"), ["0", "2"], dim)
    }

    /// Loads two layers with these names, which give `dim` channels.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load_as(loader: &Loader<'_>, [first, second]: [&str; 2], dim: usize) -> Result<Self> {
        let channels = loader.length(&format!("{first}.weight"), 1);
        Ok(Self {
            channels,
            mlp: [Linear::load(loader, first, [dim, channels])?, Linear::load(loader, second, [dim, dim])?],
        })
    }

    /// A row per time: `[times, dim]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn run<T: Float>(&self, device: &Device, times: &[f64]) -> Result<Tensor<T>> {
        let [first, second] = &self.mlp;
        let h = first.run(&self.waves(device, times)?)?;
        second.run(&activation::activation(&h, activation::Activation::Silu)?)
    }

    /// Cosines, then sines, of times at geometrically spaced frequencies: `[times, channels]`.
    fn waves<T: Float>(&self, device: &Device, times: &[f64]) -> Result<Tensor<T>> {
        let half = self.channels / 2;
        let angle = |time: f64, index: usize| time * (-(10_000f64.ln()) * index as f64 / half as f64).exp();
        let row = |time: &f64| {
            let angles: Vec<_> = (0..half).map(|index| angle(*time, index)).collect();
            let sines = angles.iter().map(|angle| angle.sin());
            angles.iter().map(|angle| angle.cos()).chain(sines).map(T::from_f64).collect::<Vec<_>>()
        };
        let values = times.iter().flat_map(row).collect();
        Ok(Tensor::from_vec(device, &[times.len(), 2 * half], values)?)
    }
}
