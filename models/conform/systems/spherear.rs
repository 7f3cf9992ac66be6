//! SphereAR's dumps.

use smalti::rope::Table;
use smalti::{Float, Tensor};

use super::{greedy, needed, weights};
use crate::conform::{Computed, Dump, Values};
use crate::decode::{Chance, concatenate};
use crate::zoo::spherear::SphereAr;
use crate::{Error, Result};

/// Normal numbers as recorded: a tensor per token, draw by draw.
struct Recorded<'a> {
    dump: &'a Dump<'a>,
    tokens: usize,
}

impl Chance for Recorded<'_> {
    fn begin(&mut self, _: &[(usize, usize)]) {
        self.tokens += 1;
    }

    fn normals(&mut self, rows: usize, count: usize) -> Result<Vec<f64>> {
        let name = format!("noise.{:04}", self.tokens.saturating_sub(1));
        let &[draws, recorded, channels] = self.dump.shape(&name)? else {
            return Err(Error::Weights(format!("\"in.{name}\": expected [draws, rows, channels]")));
        };
        if draws * recorded * channels != rows * count {
            return Err(Error::Weights(format!("\"in.{name}\": expected {} numbers", rows * count)));
        }
        let values = self.dump.checkpoint.floats(&format!("in.{name}"))?;
        // Pictures with their class, then without, in the dump; picture by picture here.
        let mut numbers = Vec::with_capacity(values.len());
        for row in (0..rows).flat_map(|picture| (picture..recorded).step_by(rows)) {
            for draw in values.chunks(recorded * channels) {
                numbers.extend(draw[row * channels..][..channels].iter().map(|value| f64::from(*value)));
            }
        }
        Ok(numbers)
    }

    fn uniforms(&mut self, _: usize, _: usize) -> Result<Vec<f64>> {
        Err(Error::Request("the dump records no uniform numbers".to_owned()))
    }
}

/// Cosine and sine of each pair, side by side.
fn rotary(output: &str, table: &Table) -> Result<Computed> {
    let (cos, sin) = (table.cos.to_vec()?, table.sin.to_vec()?);
    let values = cos.iter().zip(&sin).flat_map(|(cos, sin)| [f64::from(*cos), f64::from(*sin)]).collect();
    let shape = [table.cos.shape(), &[2]].concat();
    Ok(Computed { output: output.to_owned(), shape, values: Values::Floats(values) })
}

pub(super) fn run<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let model = SphereAr::load(&weights(dump)?, dump.device)?;
    let tokenizer = needed(dump, model.tokenizer())?;
    let labels = dump.counts("labels")?;
    let encoded: Tensor<T> = tokenizer.encode(&dump.tensor("image")?)?;
    let posteriors = tokenizer.posteriors(&encoded)?;
    let divergence =
        posteriors.iter().map(|posterior| posterior.kl_to_uniform()).sum::<f64>() / posteriors.len() as f64;
    let betas = dump.checkpoint.floats("in.beta")?;
    let tangents: Vec<_> = dump.checkpoint.floats("in.sphere_noise")?.into_iter().map(f64::from).collect();
    let channels = tokenizer.channels();
    let draws = posteriors.iter().zip(&betas).zip(tangents.chunks((channels - 1).max(1)));
    let drawn = draws.flat_map(|((posterior, beta), tangent)| posterior.latent(f64::from(*beta), tangent));
    let shape = [encoded.shape()[0], encoded.shape()[1], channels];
    let image = Tensor::from_vec(dump.device, &shape, drawn.map(T::from_f64).collect())?;

    let hidden = model.plain(&labels, &image)?;
    let times: Vec<_> = dump.checkpoint.floats("in.head_t")?.into_iter().map(f64::from).collect();
    let states = hidden.reshape(&[times.len(), hidden.shape()[2]])?;
    let velocity = model.head().velocity(&dump.tensor("head_x")?, &times, &states)?;
    let mut computed = vec![
        Computed::floats("quant", &encoded)?,
        Computed { output: "kl".to_owned(), shape: vec![1], values: Values::Floats(vec![divergence]) },
        Computed::floats("latents_of_image", &image)?,
        Computed::floats("reconstruction", &tokenizer.decode(&image)?)?,
        rotary("vae_rope_cos_sin", &tokenizer.table(shape[1].isqrt())?)?,
        rotary("rope_cos_sin", &model.table()?)?,
        Computed::floats("hidden", &hidden)?,
        Computed::floats("velocity", &velocity)?,
    ];

    let (mut conditions, mut predictions) = (Vec::new(), Vec::new());
    let mut recorded = Recorded { dump, tokens: 0 };
    let latents = model.generate::<T>(&labels, &greedy(dump)?, &mut recorded, |step| {
        let (rows, dim) = (step.states.shape()[0], step.states.shape()[1]);
        conditions.push(step.states.reshape(&[rows, 1, dim])?);
        let drawn = step.drawn.narrow(0, 0, labels.len())?.contiguous()?;
        predictions.push(drawn.reshape(&[labels.len(), 1, channels])?);
        if predictions.len() == 1 && dump.checkpoint.shape("out.first_prediction").is_some() {
            computed.push(Computed::floats("first_prediction", step.drawn)?);
        }
        Ok(())
    })?;
    let joined = |steps: &[Tensor<T>]| concatenate(&steps.iter().collect::<Vec<_>>(), 1);
    computed.extend([
        Computed::floats("conditions", &joined(&conditions)?)?,
        Computed::floats("predictions", &joined(&predictions)?)?,
        Computed::floats("latents", &latents)?,
        Computed::floats("sampled_image", &tokenizer.decode(&latents)?)?,
    ]);
    Ok(computed)
}
