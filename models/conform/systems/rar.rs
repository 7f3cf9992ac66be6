//! RAR's dumps: the generator, and the tokenizer alone.

use smalti::{Device, Float, Tensor};

use super::{mapped, recorded, weights};
use crate::Result;
use crate::conform::{Computed, Dump};
use crate::tokenizer::maskgit::MaskGitVqGan;
use crate::weights::Checkpoint;
use crate::zoo::rar::Rar;

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let checkpoint = weights(dump)?;
    if checkpoint.shape("quantize.embedding.weight").is_some() {
        return tokenizer::<T>(&checkpoint, dump);
    }
    let model = Rar::load(&checkpoint, dump.device)?;
    let labels = dump.counts("labels")?;
    let (tokens, orders) = (dump.indices("tokens")?, dump.counts("orders")?);
    let [batch, places] = [labels.len(), orders.len() / labels.len().max(1)];
    let raster: Vec<_> = (0..batch).flat_map(|_| 0..places as u32).collect();
    let classes: Vec<_> = labels.iter().copied().map(Some).collect();
    let teacher = |labels: &[Option<u32>], orders: &[u32]| model.teacher::<T>(labels, &tokens, orders);
    Ok(vec![
        Computed::floats("raster_logits", &teacher(&classes, &raster)?)?,
        Computed::floats("null_logits", &teacher(&vec![None; batch], &raster)?)?,
        Computed::floats("shuffled_logits", &teacher(&classes, &orders)?)?,
        Computed::integers("shuffled_targets", &taken(&tokens, &orders)?)?,
    ]
    .into_iter()
    .chain(recorded::<T>(dump, &model, "scaled_logits")?)
    .collect())
}

/// The tokens of each picture in its own order.
fn taken(tokens: &Tensor<u32>, orders: &[u32]) -> Result<Tensor<u32>> {
    let places = tokens.shape()[1].max(1);
    let raster = tokens.to_vec()?;
    let rows = raster.chunks(places).zip(orders.chunks(places));
    let taken = rows.flat_map(|(tokens, order)| order.iter().map(|cell| tokens[*cell as usize])).collect();
    Ok(Tensor::from_vec(&Device::reference(), tokens.shape(), taken)?)
}

fn tokenizer<T: Float>(checkpoint: &Checkpoint, dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let tokenizer = checkpoint.build(dump.device, &[], |root, _| MaskGitVqGan::load(root))?;
    let latents = tokenizer.latents(&dump.tensor::<T>("image")?)?;
    let tokens = tokenizer.tokens(&latents)?;
    let codes = tokenizer.quantised::<T>(&tokens, [latents.shape()[2], latents.shape()[3]])?;
    let pixels = tokenizer.decode(&codes)?;
    Ok(vec![
        Computed::floats("latent", &latents)?,
        Computed::integers("tokens", &tokens)?,
        Computed::floats("quantized", &codes)?,
        Computed::floats("decoded", &pixels)?,
        mapped("decoded_clamped", &pixels, |pixel| pixel.clamp(0.0, 1.0))?,
    ])
}
