//! Single ops: each one's inputs and parameters, as its dumps name them.

use smalti::activation::{Activation, activation, swiglu};
use smalti::attention::{self, Align, Along, Attention, Mask, Options, PageTable, ScalesKind};
use smalti::conv::{Padding, conv2d};
use smalti::diffusion::{self, Level, NoiseCurve, NoiseSchedule};
use smalti::jacobi::{self, Rule, VerifyDraws};
use smalti::resize::{Mode, resize};
use smalti::rope::{Extrapolation, Frequencies, NullRows, Pairing, Positions, Table, rope};
use smalti::sample::maskgit::{Curve, MASKED, MaskGit, MaskGitDraws, maskgit_step};
use smalti::sample::{self, Draws, Filter, Guidance, Schedule, Weights};
use smalti::scan::{self, LinearOptions, Scanned, SsdParameters};
use smalti::vq::{self, DigitOrder, Metric, Scalar, Scales};
use smalti::{Dtype, Float, Tensor, Weight, bf16, copy, elementwise, embedding, f16, linear, norm};

use super::{Computed, Dump, Values, epsilon};
use crate::{Error, Result};

/// Twice the naive error, and a floor: 1e-5 of the largest output in f32, one unit in its last place in a half type.
pub(super) fn allowed(dump: &Dump<'_>, dtype: Dtype, output: &str, expected: &[f64]) -> Result<f64> {
    let largest = super::largest(expected);
    let in_f32 = matches!(output, "probs" | "lse" | "cos" | "sin" | "gumbel");
    let floor = match dtype {
        Dtype::F16 | Dtype::Bf16 if !in_f32 && largest > 0.0 => epsilon(dtype) * largest.log2().floor().exp2(),
        _ => 1e-5 * largest,
    };
    let naive = dump.config.at("naive_max_abs_error").and_then(|errors| errors.number(output));
    Ok(floor + 2.0 * f64::from(naive.unwrap_or(0.0)))
}

/// Repeats an op dump in its own dtype.
pub(super) fn run<T: Float>(op: &str, dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let y = |y: Tensor<T>| Ok(vec![Computed::floats("y", &y)?]);
    match op {
        "rms_norm" => {
            y(norm::rms_norm(&dump.tensor::<T>("x")?, optional(dump, "weight")?.as_ref(), dump.number("eps")?)?)
        }
        "layer_norm" => y(norm::layer_norm(
            &dump.tensor::<T>("x")?,
            optional(dump, "weight")?.as_ref(),
            optional(dump, "bias")?.as_ref(),
            dump.number("eps")?,
        )?),
        "group_norm" => {
            let x = norm::group_norm(
                &dump.tensor::<f32>("x")?,
                dump.count("groups")?,
                optional(dump, "weight")?.as_ref(),
                optional(dump, "bias")?.as_ref(),
                dump.number("eps")?,
            )?;
            let silu = dump.config.flag("silu").unwrap_or(false);
            let x = if silu { activation(&x, Activation::Silu)? } else { x };
            y(copy::convert(&x)?)
        }
        "adaln" => adaln::<T>(dump),
        "activation" => y(activation(&dump.tensor::<T>("x")?, kind_of_activation(dump)?)?),
        "swiglu" => {
            if dump.config.flag("packed").unwrap_or(false) {
                let x = dump.tensor::<T>("x")?;
                let (axis, channels) = (x.shape().len() - 1, x.shape()[x.shape().len() - 1] / 2);
                y(swiglu(&x.narrow(axis, 0, channels)?, &x.narrow(axis, channels, channels)?)?)
            } else {
                y(swiglu(&dump.tensor::<T>("gate")?, &dump.tensor("up")?)?)
            }
        }
        "linear" => {
            let bias = optional(dump, "bias")?;
            y(linear::linear(&dump.tensor::<T>("x")?, &weight::<T>(dump, "weight")?, bias.as_ref())?)
        }
        "conv2d" => {
            let padding = dump.config.counts("padding_left_right_top_bottom");
            let Some(&[left, right, top, bottom]) = padding.as_deref() else {
                return Err(dump.missing("padding_left_right_top_bottom"));
            };
            let mut x = dump.tensor::<T>("x")?;
            if dump.config.flag("upsample_nearest_2x").unwrap_or(false) {
                let size = [2 * x.shape()[2], 2 * x.shape()[3]];
                x = resize(&x, size, Mode::Nearest)?;
            }
            let (weight, bias) = (weight::<T>(dump, "weight")?, optional(dump, "bias")?);
            y(conv2d(&x, &weight, bias.as_ref(), dump.count("stride")?, Padding { left, right, top, bottom })?)
        }
        "resize" => {
            let align_corners = dump.config.flag("align_corners").unwrap_or(false);
            let mode = match dump.config.text("mode") {
                Some("nearest") => Mode::Nearest,
                Some("nearest-exact" | "nearest_exact") => Mode::NearestExact,
                Some("bilinear") => Mode::Bilinear { align_corners },
                Some("bicubic") => Mode::Bicubic { align_corners },
                Some("area") => Mode::Area,
                _ => return Err(unknown(dump, "mode")),
            };
            y(resize(&dump.tensor::<T>("x")?, [dump.count("out_height")?, dump.count("out_width")?], mode)?)
        }
        "embedding" => {
            let table = weight::<T>(dump, "table")?;
            y(embedding::embedding(&table, &dump.indices("indices")?)?)
        }
        "vq_nearest_l2" | "vq_nearest_cosine" => nearest::<T>(op, dump),
        "vq_grouped" => grouped::<T>(dump),
        "vq_residual" => residual::<T>(dump),
        "vq_lfq" => lfq::<T>(dump),
        "vq_bsq" => bsq::<T>(dump),
        "vq_fsq" => fsq::<T>(dump),
        "vq_scales_quantise" => scales_quantise(dump),
        "vq_scales_dequantise" => scales_dequantise(dump),
        "sample_filter" => {
            let filtered = sample::filter(&dump.tensor::<T>("logits")?, &filter(dump))?;
            Ok(vec![Computed::floats("probs", &filtered.probabilities)?, Computed::integers("keep", &filtered.kept)?])
        }
        "sample_argmax" => Ok(vec![Computed::integers("token", &sample::argmax(&dump.tensor::<T>("logits")?)?)?]),
        "sample" => {
            // A half type's guided logits would be rounded before the draw.
            let (cond, uncond) = (dump.tensor::<f32>("cond")?, dump.tensor("uncond")?);
            let guided = sample::guide(&cond, &uncond, dump.number("guidance")?, Guidance::Scale)?;
            let filtered = sample::filter(&guided, &filter(dump))?;
            let draws = Draws::Uniform(dump.checkpoint.floats("in.uniform")?);
            Ok(vec![
                Computed::floats("probs", &filtered.probabilities)?,
                Computed::integers("keep", &filtered.kept)?,
                Computed::integers("token", &sample::sample(&guided, &filter(dump), &draws)?)?,
            ])
        }
        "sample_gumbel" => {
            let uniforms = dump.checkpoint.floats("in.uniform")?;
            let gumbel = sample::gumbel(&uniforms)?.iter().map(|noise| f64::from(*noise)).collect();
            let filter = Filter { temperature: dump.number("temperature")?, ..Filter::default() };
            let token = sample::sample_gumbel(&dump.tensor::<T>("logits")?, &filter, &Draws::Uniform(uniforms))?;
            let shape = dump.shape("uniform")?.to_vec();
            Ok(vec![
                Computed { output: "gumbel".to_owned(), shape, values: Values::Floats(gumbel) },
                Computed::integers("token", &token)?,
            ])
        }
        "sample_inverse_cdf" => {
            let weights = Weights::from_shares(&dump.tensor("probs")?)?;
            let draws = Draws::Uniform(dump.checkpoint.floats("in.uniform")?);
            Ok(vec![Computed::integers("token", &sample::draw(&weights, &draws)?)?])
        }
        "maskgit_step" => maskgit::<T>(dump),
        "cfg_combine" => {
            let kind = match dump.config.text("form") {
                Some("scale") => Guidance::Scale,
                Some("extra") => Guidance::Extra,
                _ => return Err(unknown(dump, "form")),
            };
            y(sample::guide(&dump.tensor::<T>("cond")?, &dump.tensor("uncond")?, dump.number("guidance")?, kind)?)
        }
        "cfg_schedule" => schedule(dump),
        "sjd_verify" | "speculative_verify" | "mc_sjd_maximal" => verify(op, dump),
        "mc_sjd_gumbel" => gumbel_coupling(dump),
        "jacobi_greedy_verify" => {
            let verified = jacobi::greedy_verify(&dump.tensor::<T>("logits")?, &dump.indices("draft")?)?;
            Ok(vec![
                Computed::integers("accepted", &verified.accepted)?,
                Computed::integers("settled", &verified.settled)?,
                Computed::integers("tokens", &verified.tokens)?,
            ])
        }
        "jacobi_greedy_loop" => greedy_loop(dump),
        "flow_euler" => {
            let (x, velocity) = (dump.tensor::<T>("x")?, dump.tensor("velocity")?);
            let uncond = if dump.has("velocity_uncond") { Some(dump.tensor("velocity_uncond")?) } else { None };
            let guide = match &uncond {
                Some(uncond) => Some((uncond, dump.number("guidance")?)),
                None => None,
            };
            y(diffusion::flow_euler(&x, &velocity, guide, dump.number("t1")? - dump.number("t0")?)?)
        }
        "diffusion_schedule" => {
            let schedule = noise_schedule(dump)?;
            let floats = |output: &str, value: fn(&Level) -> f64| Computed {
                output: output.to_owned(),
                shape: vec![schedule.levels().len()],
                values: Values::Floats(schedule.levels().iter().map(value).collect()),
            };
            Ok(vec![
                Computed {
                    output: "times".to_owned(),
                    shape: vec![schedule.levels().len()],
                    values: Values::Integers(schedule.levels().iter().map(|level| i64::from(level.time)).collect()),
                },
                floats("betas", |level| level.beta),
                floats("alphas_bar", |level| level.alpha_bar),
                floats("log_variance", |level| level.log_variance),
            ])
        }
        "ddpm_step" | "ddim_step" => {
            let schedule = noise_schedule(dump)?;
            let level = schedule.levels().get(dump.count("index")?).ok_or_else(|| dump.missing("index"))?;
            let (x, noise) = (dump.tensor::<T>("x")?, dump.tensor("noise")?);
            if op == "ddim_step" {
                let done = diffusion::ddim_step(&x, &dump.tensor("epsilon")?, &noise, level, dump.number("eta")?)?;
                return Ok(vec![Computed::floats("x0", &done.x0)?, Computed::floats("y", &done.y)?]);
            }
            let temperature = dump.number("temperature")?;
            let done = diffusion::ddpm_step(&x, &dump.tensor("model")?, &noise, level, temperature)?;
            Ok(vec![
                Computed::floats("x0", &done.x0)?,
                Computed::floats("mean", &done.mean)?,
                Computed::floats("log_variance", &done.log_variance)?,
                Computed::floats("y", &done.y)?,
            ])
        }
        "linear_attention" => {
            let options = LinearOptions {
                causal: dump.config.flag("causal").unwrap_or(false),
                normalise: dump.config.flag("normalise").unwrap_or(false),
                decay: optional(dump, "decay")?,
            };
            let (q, k, v) = (dump.tensor::<T>("q")?, dump.tensor("k")?, dump.tensor("v")?);
            scanned(dump, &scan::linear_attention(&q, &k, &v, &options)?)
        }
        "ssd_scan" => {
            let parameters = SsdParameters { a: dump.tensor("A")?, d: optional(dump, "D")? };
            let (x, dt) = (dump.tensor::<T>("x")?, dump.tensor("dt")?);
            let (b, c) = (dump.tensor("B")?, dump.tensor("C")?);
            scanned(dump, &scan::ssd_scan(&x, &dt, &b, &c, &parameters, optional(dump, "h0")?.as_ref())?)
        }
        "attention" | "attention_decode" => attend::<T>(dump),
        "attention_merge" => attended(dump, &attention::merge(&dump.tensor::<T>("o")?, &dump.tensor("lse")?)?),
        "attention_paged" => paged::<T>(dump),
        "axial_attention" => y(axial(dump)?),
        "rope" => turn::<T>(dump),
        other => Err(Error::Request(format!("{}: op \"{other}\" is not known here", dump.checkpoint.name()))),
    }
}

fn unknown(dump: &Dump<'_>, key: &str) -> Error {
    let value = dump.config.text(key).unwrap_or("absent").to_owned();
    Error::Request(format!("{}: {key} \"{value}\" is not known here", dump.checkpoint.name()))
}

fn optional(dump: &Dump<'_>, input: &str) -> Result<Option<Tensor<f32>>> {
    if dump.has(input) { Ok(Some(dump.tensor(input)?)) } else { Ok(None) }
}

/// A learned input in the case's own dtype.
fn weight<T: Float>(dump: &Dump<'_>, input: &str) -> Result<Weight> {
    Ok(match T::DTYPE {
        Dtype::F16 => dump.tensor::<f16>(input)?.into(),
        Dtype::Bf16 => dump.tensor::<bf16>(input)?.into(),
        _ => dump.tensor::<f32>(input)?.into(),
    })
}

fn kind_of_activation(dump: &Dump<'_>) -> Result<Activation> {
    Ok(match dump.config.text("kind") {
        Some("silu") => Activation::Silu,
        Some("gelu") => Activation::Gelu,
        Some("gelu_tanh") => Activation::GeluTanh,
        Some("relu") => Activation::Relu,
        Some("sigmoid") => Activation::Sigmoid,
        Some("tanh") => Activation::Tanh,
        _ => return Err(unknown(dump, "kind")),
    })
}

/// The norm is not rounded to a half type before it is modulated, as a fused op would not.
fn adaln<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let x = dump.tensor::<f32>("x")?;
    let row = |input: &str| -> Result<Tensor<f32>> {
        let row = dump.tensor::<f32>(input)?;
        let &[batch, channels] = row.shape() else { return Ok(row) };
        Ok(row.reshape(&[batch, 1, channels])?)
    };
    let eps = dump.number("eps")?;
    let normed = match dump.config.text("norm") {
        Some("layer") => norm::layer_norm(&x, None, None, eps)?,
        Some("rms") => norm::rms_norm(&x, None, eps)?,
        _ => return Err(unknown(dump, "norm")),
    };
    let y = norm::modulate(&normed, &row("scale")?, &row("shift")?)?;
    let residual = norm::gated_add(&x, &row("gate")?, &dump.tensor("h")?)?;
    Ok(vec![
        Computed::floats("y", &copy::convert::<f32, T>(&y)?)?,
        Computed::floats("residual", &copy::convert::<f32, T>(&residual)?)?,
    ])
}

fn nearest<T: Float>(op: &str, dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let mut x = dump.tensor::<T>("x")?;
    let grid = dump.config.text("layout") == Some("BCHW");
    if grid {
        x = x.permute(&[0, 2, 3, 1])?;
    }
    let codebook = weight::<T>(dump, "codebook")?;
    let (metric, name) = match op {
        "vq_nearest_l2" => (Metric::L2, "distance"),
        _ => (Metric::Cosine, "cosine"),
    };
    let found = vq::nearest(&x, &codebook, metric, 1)?;
    let indices = found.indices.reshape(&x.shape()[..x.shape().len() - 1])?;
    // The cosine's code comes back at length 1, whatever its length in the codebook.
    let codes: Tensor<T> = vq::lookup(&codebook, &indices, metric == Metric::Cosine)?;
    let y = if grid { codes.permute(&[0, 3, 1, 2])?.contiguous()? } else { codes };
    Ok(vec![
        Computed::integers("indices", &indices)?,
        Computed::floats("y", &y)?,
        Computed::floats(name, &found.distances)?.shaped(dump),
    ])
}

fn grouped<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let found = vq::grouped(&dump.tensor::<T>("x")?, &weight::<T>(dump, "codebooks")?)?;
    Ok(vec![
        Computed::integers("indices", &found.indices)?,
        Computed::floats("y", &found.y)?,
        Computed::floats("distance", &found.distances)?,
    ])
}

fn residual<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let found = vq::residual(&dump.tensor::<T>("x")?, &weight::<T>(dump, "codebooks")?, dump.count("stages")?)?;
    Ok(vec![
        Computed::integers("indices", &found.indices)?,
        Computed::floats("y", &found.y)?,
        Computed::floats("distance", &found.distances)?,
    ])
}

fn digit_order(dump: &Dump<'_>) -> Result<DigitOrder> {
    match dump.config.text("bit_order") {
        Some("msb_first") => Ok(DigitOrder::HighFirst),
        Some("lsb_first") => Ok(DigitOrder::LowFirst),
        _ => Err(unknown(dump, "bit_order")),
    }
}

/// What every lattice gives: codes, index and, under a name of the dump's, digits less `middle` of each channel.
fn scalar<T: Float>(dump: &Dump<'_>, got: &Scalar<T>, digits: &str, middle: &[u32]) -> Result<Vec<Computed>> {
    let mut levels = Computed::integers(digits, &got.digits)?;
    if let Values::Integers(values) = &mut levels.values {
        values.iter_mut().zip(middle.iter().cycle()).for_each(|(value, middle)| *value -= i64::from(*middle));
    }
    let indices = got.indices.as_ref();
    let indices = indices.ok_or_else(|| Error::Request(format!("{}: too many codes", dump.checkpoint.name())))?;
    Ok(vec![Computed::integers("indices", indices)?, Computed::floats("y", &got.y)?, levels])
}

fn lfq<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    scalar(dump, &vq::lfq(&dump.tensor::<T>("x")?, digit_order(dump)?)?, "bits", &[0])
}

fn bsq<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let got = vq::bsq(&dump.tensor::<T>("x")?, digit_order(dump)?)?;
    let mut computed = scalar(dump, &got.quantised, "bits", &[0])?;
    computed.push(Computed::floats("u", &got.unit)?);
    computed.push(Computed::floats("distance", &got.distances)?);
    Ok(computed)
}

fn fsq<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let levels = dump.config.counts("levels").ok_or_else(|| dump.missing("levels"))?;
    let levels: Option<Vec<u32>> = levels.iter().map(|levels| u32::try_from(*levels).ok()).collect();
    let levels = levels.ok_or_else(|| unknown(dump, "levels"))?;
    let got = vq::fsq(&dump.tensor::<T>("x")?, &levels, dump.number("eps")?)?;
    let middle: Vec<u32> = levels.iter().map(|levels| levels / 2).collect();
    let mut computed = scalar(dump, &got.quantised, "levels", &middle)?;
    computed.push(Computed::floats("bounded", &got.bounded)?);
    Ok(computed)
}

fn scale_quantiser(dump: &Dump<'_>) -> Result<Scales> {
    let phi = dump.tensor::<f32>("phi_w")?;
    let bias = dump.tensor::<f32>("phi_b")?;
    let phi = (0..phi.shape()[0]).map(|index| {
        let kernel = phi.narrow(0, index, 1)?.reshape(&phi.shape()[1..])?;
        Ok((kernel.into(), bias.narrow(0, index, 1)?.reshape(&bias.shape()[1..])?))
    });
    let phi = phi.collect::<Result<Vec<(Weight, Tensor<f32>)>>>()?;
    let phi_of_scale: Vec<usize> = dump.counts("phi_of_scale")?.iter().map(|index| *index as usize).collect();
    let patch_nums = dump.config.counts("patch_nums").ok_or_else(|| dump.missing("patch_nums"))?;
    if phi_of_scale.len() != patch_nums.len() || phi_of_scale.iter().any(|index| *index >= phi.len()) {
        return Err(Error::Weights(format!("{}: \"in.phi_of_scale\" does not fit", dump.checkpoint.name())));
    }
    Ok(Scales {
        codebook: dump.tensor::<f32>("codebook")?.into(),
        cosine: dump.config.flag("cosine").unwrap_or(false),
        phi,
        phi_ratio: dump.number("phi_ratio")?,
        phi_of_scale,
        patch_nums,
    })
}

/// `y` and `next_inputs` of tokens per scale.
fn scales_outputs(quantiser: &Scales, scales: &[Tensor<u32>]) -> Result<Vec<Computed>> {
    let mut next = Vec::new();
    let mut sum: Option<Tensor<f32>> = None;
    for (scale, tokens) in scales.iter().enumerate() {
        let part = quantiser.contribution(tokens, scale)?;
        let total = match &sum {
            Some(sum) => elementwise::add(sum, &part)?,
            None => part,
        };
        if scale + 1 < scales.len() {
            next.push(quantiser.next_input(&total, scale)?);
        }
        sum = Some(total);
    }
    let y = sum.ok_or_else(|| Error::Request("no scales".to_owned()))?;
    let batch = y.shape()[0];
    let mut values = Vec::new();
    for picture in 0..batch {
        for next in &next {
            values.extend(next.narrow(0, picture, 1)?.to_vec()?.iter().map(|value| f64::from(*value)));
        }
    }
    let channels = quantiser.channels();
    let shape = vec![batch, values.len() / (batch * channels).max(1), channels];
    let next = Computed { output: "next_inputs".to_owned(), shape, values: Values::Floats(values) };
    Ok(vec![Computed::floats("y", &y)?, next])
}

fn scales_quantise(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let quantiser = scale_quantiser(dump)?;
    let scales = quantiser.quantise(&dump.tensor::<f32>("f")?)?;
    let batch = scales.first().map_or(0, |tokens| tokens.shape()[0]);
    let per_scale = scales.iter().map(Tensor::to_vec).collect::<smalti::Result<Vec<_>>>()?;
    let mut indices = Vec::new();
    for picture in 0..batch {
        for tokens in &per_scale {
            let each = tokens.len() / batch;
            indices.extend(tokens[picture * each..][..each].iter().map(|token| i64::from(*token)));
        }
    }
    let shape = vec![batch, indices.len() / batch.max(1)];
    let mut computed = vec![Computed { output: "indices".to_owned(), shape, values: Values::Integers(indices) }];
    computed.extend(scales_outputs(&quantiser, &scales)?);
    Ok(computed)
}

fn scales_dequantise(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let quantiser = scale_quantiser(dump)?;
    let indices = dump.indices("indices")?;
    let mut start = 0;
    let mut scales = Vec::new();
    for side in &quantiser.patch_nums {
        scales.push(indices.narrow(1, start, side * side)?.contiguous()?);
        start += side * side;
    }
    scales_outputs(&quantiser, &scales)
}

fn filter(dump: &Dump<'_>) -> Filter {
    Filter {
        temperature: dump.config.number("temperature").unwrap_or(1.0),
        top_k: dump.config.count("top_k").unwrap_or(0),
        top_p: dump.config.number("top_p").unwrap_or(1.0),
        min_p: dump.config.number("min_p").unwrap_or(0.0),
        ..Filter::default()
    }
}

fn maskgit<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let step = MaskGit {
        step: dump.count("step")?,
        steps: dump.count("steps")?,
        masked_at_start: dump.count("masked_at_start")?,
        curve: match dump.config.text("curve") {
            Some("cosine") => Curve::Cosine,
            Some("linear") => Curve::Power(1.0),
            _ => return Err(unknown(dump, "curve")),
        },
        choice_temperature: dump.number("choice_temperature")?,
    };
    let draws = MaskGitDraws::Given {
        tokens: dump.checkpoint.floats("in.uniform")?,
        gumbel: dump.checkpoint.floats("in.gumbel")?,
    };
    // -1 stands for a masked place.
    let tokens = dump.checkpoint.elements::<i32>("in.tokens")?.iter().map(|token| *token as u32).collect();
    let tokens = Tensor::from_vec(dump.device, dump.shape("tokens")?, tokens)?;
    let done = maskgit_step(&dump.tensor::<T>("logits")?, &tokens, &Filter::default(), &step, &draws)?;
    let units = |confidence: &i32| if *confidence == i32::MAX { 0.0 } else { f64::from(*confidence) / 4_194_304.0 };
    let confidence = done.confidence.to_vec()?.iter().map(units).collect();
    let tokens = done.tokens.to_vec()?;
    let shape = done.tokens.shape().to_vec();
    let integers = |output: &str, values| Computed {
        output: output.to_owned(),
        shape: shape.clone(),
        values: Values::Integers(values),
    };
    Ok(vec![
        Computed::integers("sampled", &done.sampled)?,
        Computed { output: "confidence".to_owned(), shape: shape.clone(), values: Values::Floats(confidence) },
        Computed::integers("mask_len", &done.counts)?,
        integers("mask", tokens.iter().map(|token| i64::from(*token == MASKED)).collect()),
        integers("tokens", tokens.iter().map(|token| i64::from(*token as i32)).collect()),
    ])
}

fn noise_schedule(dump: &Dump<'_>) -> Result<NoiseSchedule> {
    let curve = match dump.config.text("schedule") {
        Some("cosine") => NoiseCurve::Cosine,
        Some("linear") => NoiseCurve::Linear,
        _ => return Err(unknown(dump, "schedule")),
    };
    Ok(NoiseSchedule::new(curve, dump.count("train_steps")?, dump.count("steps")?)?)
}

/// The state only where the dump has it.
fn scanned<T: Float>(dump: &Dump<'_>, scanned: &Scanned<T>) -> Result<Vec<Computed>> {
    let mut computed = vec![Computed::floats("y", &scanned.y)?];
    if dump.checkpoint.shape("out.state").is_some() {
        computed.push(Computed::floats("state", &scanned.state)?);
    }
    Ok(computed)
}

/// The rows of a distribution per place.
fn weights_of(dump: &Dump<'_>, input: &str) -> Result<Weights> {
    let shares = dump.tensor::<f32>(input)?;
    let vocabulary = shares.shape().last().copied().unwrap_or(0);
    Ok(Weights::from_shares(&shares.reshape(&[shares.elements() / vocabulary.max(1), vocabulary])?)?)
}

fn verify(op: &str, dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let (old, new) = if op == "speculative_verify" { ("q", "p") } else { ("p_prev", "p_cur") };
    let (batch, drafts) = (dump.count("batch")?, dump.count("draft")?);
    let places = dump.shape(new)?.get(1).copied().unwrap_or(0);
    // One number per place: 0 where the dump has none, repeated where it has one per sequence.
    let given = |input: &str| -> Result<Vec<f32>> {
        if !dump.has(input) {
            return Ok(vec![0.0; batch * places]);
        }
        let values = dump.checkpoint.floats(&format!("in.{input}"))?;
        let columns = values.len() / batch.max(1);
        let at = |place: usize| (place % places, place / places);
        Ok((0..batch * places)
            .map(|place| match at(place) {
                (_, sequence) if columns == 1 => values[sequence],
                (column, sequence) => values.get(sequence * columns + column).copied().unwrap_or(0.0),
            })
            .collect())
    };
    let couple = if op == "mc_sjd_maximal" { given("u_residual")? } else { given("u_resample")? };
    let draws = VerifyDraws::Given { fresh: given("u_draft")?, accept: given("u_accept")?, couple };
    let rule = if op == "mc_sjd_maximal" { Rule::Coupled } else { Rule::Fresh };
    let (p, q) = (weights_of(dump, old)?, weights_of(dump, new)?);
    let verified = jacobi::verify(&p, &q, &dump.indices("draft")?, None, rule, &draws)?;
    let accepted = Computed::integers("accepted", &verified.accepted)?;
    // The row after the whole draft has nothing to accept.
    let kept = Computed::integers(
        if op == "mc_sjd_maximal" { "kept" } else { "accept" },
        &verified.kept.narrow(1, 0, drafts)?,
    )?;
    // -1 stands for no token.
    let next = verified.next.to_vec()?.iter().map(|token| i64::from(*token as i32)).collect();
    let next =
        |output: &str| Computed { output: output.to_owned(), shape: vec![batch], values: Values::Integers(next) };
    let tokens = || Computed::integers("tokens", &verified.tokens);
    Ok(match op {
        "sjd_verify" => vec![kept, accepted, next("resampled"), tokens()?],
        "speculative_verify" => vec![kept, accepted, next("next")],
        _ => vec![kept, accepted, tokens()?],
    })
}

fn gumbel_coupling(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let noise = Draws::Uniform(dump.checkpoint.floats("in.uniform")?);
    let shape = [dump.count("batch")?, dump.count("draft")?];
    let draft = sample::race(&weights_of(dump, "p_prev")?, &noise)?.reshape(&shape)?;
    let verified = jacobi::gumbel_verify(&weights_of(dump, "p_cur")?, &draft, &noise)?;
    Ok(vec![
        Computed::integers("draft", &draft)?,
        Computed::integers("tokens", &verified.tokens)?,
        Computed::integers("same", &verified.kept)?,
    ])
}

fn greedy_loop(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let (bigram, skip) = (weight::<f32>(dump, "bigram")?, weight::<f32>(dump, "skip")?);
    let place = dump.tensor::<f32>("place")?;
    let (length, first) = (dump.count("length")?, dump.count("first")? as u32);
    let mut trace = Vec::new();
    let forward = |tokens: &Tensor<u32>| -> Result<Tensor<f32>> {
        let tokens = tokens.to_vec()?;
        trace.extend(tokens.iter().map(|token| i64::from(*token)));
        let before = |distance: usize| {
            let ids = (0..length).map(|i| if i < distance { first } else { tokens[i - distance] }).collect();
            Tensor::from_vec(dump.device, &[length], ids)
        };
        let one: Tensor<f32> = embedding::embedding(&bigram, &before(1)?)?;
        let two = embedding::embedding(&skip, &before(2)?)?;
        let logits = elementwise::add(&elementwise::add(&one, &two)?, &place)?;
        let vocabulary = logits.elements() / length.max(1);
        Ok(logits.reshape(&[1, length, vocabulary])?)
    };
    let start = dump.indices("start")?.reshape(&[1, length])?;
    let done = jacobi::greedy_loop(&start, forward)?;
    let tokens = done.tokens.to_vec()?;
    trace.extend(tokens.iter().map(|token| i64::from(*token)));
    let integers = |output: &str, shape: Vec<usize>, values: Vec<i64>| Computed {
        output: output.to_owned(),
        shape,
        values: Values::Integers(values),
    };
    Ok(vec![
        integers("tokens", vec![length], tokens.iter().map(|token| i64::from(*token)).collect()),
        integers("trace", vec![done.iterations + 1, length], trace),
        integers("iterations", vec![1], vec![done.iterations as i64]),
    ])
}

fn schedule(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let power = dump.config.number("power").unwrap_or(1.0);
    let schedule = match dump.config.text("schedule") {
        Some("constant") => Schedule::Constant,
        Some("linear") => Schedule::Linear,
        Some("cosine") => Schedule::Cosine,
        Some("power_cosine") => Schedule::PowerCosine { power },
        Some("power") => Schedule::Power { power },
        Some("ratio") => Schedule::Ratio,
        _ => return Err(unknown(dump, "schedule")),
    };
    let (scale, steps) = (f64::from(dump.number("guidance")?), dump.count("steps")? as f64);
    let from_one = dump.config.text("ratio") == Some("from_one");
    let at = |step: &u32| match from_one {
        true => (f64::from(*step) + 1.0) / steps,
        false => f64::from(*step) / (steps - 1.0).max(1.0),
    };
    let values: Vec<_> = dump.counts("step")?.iter().map(|step| schedule.at(scale, at(step))).collect();
    Ok(vec![Computed { output: "y".to_owned(), shape: vec![values.len()], values: Values::Floats(values) }])
}

fn attend<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let (mut q, mut k) = (dump.tensor::<T>("q")?, dump.tensor::<T>("k")?);
    let v = dump.tensor::<T>("v")?;
    let mut options = Options::new(dump.number("scale")?);
    if dump.config.flag("l2").unwrap_or(false) {
        let logs = dump.checkpoint.floats("in.scale_log")?;
        let cap = f64::from(dump.config.number("max_scale_log").unwrap_or(100f32.ln()));
        let factors: Vec<f32> = logs.iter().map(|log| f64::from(*log).min(cap).exp() as f32).collect();
        let factors = Tensor::from_vec(dump.device, &[1, factors.len(), 1, 1], factors)?;
        // In f32, so that a half type's queries are rounded once.
        let wide = attention::l2_normalise(&copy::convert::<T, f32>(&q)?)?;
        q = copy::convert(&elementwise::mul(&wide, &factors)?)?;
        k = attention::l2_normalise(&k)?;
    }
    let mask = dump.config.at("mask").ok_or_else(|| dump.missing("mask"))?;
    options = options.mask(mask_of(dump, &mask)?);
    if dump.has("bias") {
        options = options.bias(dump.tensor("bias")?);
    }
    if let Some(softcap) = dump.config.number("softcap") {
        options = options.softcap(softcap);
    }
    let lse = dump.checkpoint.shape("out.lse").is_some();
    if lse {
        options = options.lse();
    }
    attended(dump, &attention::attention(&q, &k, &v, &options)?)
}

/// The outputs that the dump has.
fn attended<T: Float>(dump: &Dump<'_>, attended: &Attention<T>) -> Result<Vec<Computed>> {
    let mut computed = vec![Computed::floats("y", &attended.y)?];
    if let Some(lse) = attended.lse.as_ref().filter(|_| dump.checkpoint.shape("out.lse").is_some()) {
        computed.push(Computed::floats("lse", lse)?);
    }
    Ok(computed)
}

fn paged<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let lengths: Vec<usize> = dump.counts("lengths")?.iter().map(|length| *length as usize).collect();
    let pages = dump.checkpoint.elements::<i32>("in.page_table")?;
    // What is not used is -1.
    let rows = pages.chunks((pages.len() / lengths.len().max(1)).max(1));
    let pages = rows.map(|row| row.iter().map_while(|page| u32::try_from(*page).ok()).collect()).collect();
    let mask = dump.config.at("mask").ok_or_else(|| dump.missing("mask"))?;
    let options = Options::new(dump.number("scale")?).mask(mask_of(dump, &mask)?).lse();
    let [q, k, v] = [dump.tensor::<T>("q")?, dump.tensor("k_pages")?, dump.tensor("v_pages")?];
    attended(dump, &attention::paged(&q, &k, &v, &PageTable { pages, lengths }, &options)?)
}

fn axial<T: Float>(dump: &Dump<'_>) -> Result<Tensor<T>> {
    let [q, k, v] = [dump.tensor::<T>("q")?, dump.tensor("k")?, dump.tensor("v")?];
    let names: &[&str] = if q.shape().len() == 6 { &["t", "h", "w"] } else { &["h", "w"] };
    let along = dump.config.texts("axes").ok_or_else(|| dump.missing("axes"))?;
    let place = |axis: Option<&&str>| names.iter().position(|name| Some(name) == axis);
    let (Some(first), Some(last)) = (place(along.first()), place(along.last())) else {
        return Err(unknown(dump, "axes"));
    };
    let causal = match dump.config.text("causal") {
        None => Along::All,
        Some("inclusive") => Along::Causal,
        Some("strict") => Along::Before,
        Some("shifted") => Along::Shifted,
        Some(_) => return Err(unknown(dump, "causal")),
    };
    Ok(attention::axial(&q, &k, &v, 1 + first..2 + last, causal, dump.number("scale")?)?)
}

fn mask_of(dump: &Dump<'_>, mask: &crate::weights::Config) -> Result<Mask> {
    let align = match mask.text("align") {
        Some("bottom_right") => Align::BottomRight,
        _ => Align::TopLeft,
    };
    let count = |key: &str| mask.count(key).ok_or_else(|| dump.missing(key));
    Ok(match mask.text("kind") {
        Some("full") => Mask::Full,
        Some("causal") => Mask::Causal { align },
        Some("window") => Mask::Window { left: count("left")?, right: count("right")?, align },
        Some("prefix") => Mask::Prefix { prefix: count("prefix")?, align },
        Some("frames") => Mask::Frames { frame: count("frame")?, align },
        Some("key_lengths") => {
            Mask::KeyLengths(dump.counts("key_lengths")?.iter().map(|length| *length as usize).collect())
        }
        Some("scales") => Mask::Scales {
            patch_nums: mask.counts("patch_nums").ok_or_else(|| dump.missing("patch_nums"))?,
            kind: match mask.text("mode") {
                Some("block_causal") => ScalesKind::BlockCausal,
                Some("markov_self") => ScalesKind::MarkovSelf,
                Some("markov_previous") => ScalesKind::MarkovPrevious,
                Some("markov_previous_and_self") => ScalesKind::MarkovPreviousAndSelf,
                _ => return Err(unknown(dump, "mode")),
            },
        },
        Some("diagonals") => {
            let own_diagonal = mask.flag("own_diagonal").unwrap_or(true);
            Mask::diagonals(&[count("h")?, count("w")?], mask.count("prefix").unwrap_or(0), own_diagonal)
        }
        Some("ranks") => Mask::ranks(&dump.counts("rank")?, mask.flag("strict").unwrap_or(false)),
        Some("and") => {
            let all = mask.list("of").ok_or_else(|| dump.missing("of"))?;
            Mask::And(all.iter().map(|mask| mask_of(dump, mask)).collect::<Result<_>>()?)
        }
        // Any other mask of a dump comes with its bits.
        _ => {
            let bits = dump.checkpoint.elements::<u8>("in.mask")?;
            match *dump.shape("mask")? {
                [q_len, k_len] => Mask::from_fn(q_len, k_len, |i, j| bits[i * k_len + j] != 0),
                ref shape => Mask::Given(Tensor::from_vec(dump.device, shape, bits)?),
            }
        }
    })
}

fn frequencies(dump: &Dump<'_>) -> Result<Frequencies> {
    let theta = dump.number("theta")?;
    Ok(match dump.config.text("kind") {
        Some("1d") => Frequencies::one_d(dump.count("rotary_dim")?, theta)?,
        Some("axes") => {
            Frequencies::per_axis(&dump.config.counts("split").ok_or_else(|| dump.missing("split"))?, theta)?
        }
        Some("shared") => {
            let axes: Vec<usize> = dump.counts("axis_of_pair")?.iter().map(|axis| *axis as usize).collect();
            let factors = dump.config.numbers("factor").ok_or_else(|| dump.missing("factor"))?;
            Frequencies::shared(&axes, &factors, theta)?
        }
        Some("grid_extrapolated") => {
            let extrapolation = match dump.config.text("mode") {
                Some("linear") => Extrapolation::Linear,
                Some("ntk") => Extrapolation::Ntk,
                Some("by_parts") => Extrapolation::ByParts { original: dump.count("original")? },
                _ => return Err(unknown(dump, "mode")),
            };
            let (axes, head_dim) = (dump.count("axes")?, dump.count("rotary_dim")?);
            Frequencies::extrapolated(axes, head_dim, theta, dump.number("factor")?, extrapolation)?
        }
        _ => return Err(unknown(dump, "kind")),
    })
}

fn turn<T: Float>(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let frequencies = frequencies(dump)?;
    let values: Vec<f64> = match dump.checkpoint.dtype("in.positions") {
        Some(Dtype::I32) => dump.checkpoint.elements::<i32>("in.positions")?.iter().map(|p| f64::from(*p)).collect(),
        _ => dump.checkpoint.floats("in.positions")?.iter().map(|p| f64::from(*p)).collect(),
    };
    // One axis of positions is not written as one.
    let axes = if frequencies.axes() == 1 { None } else { Some(frequencies.axes()) };
    let positions = match (dump.shape("positions")?, axes) {
        ([_], None) | ([_, _], Some(_)) => Positions::new(frequencies.axes(), values)?,
        ([batch, _], None) | ([batch, _, _], Some(_)) => Positions::per_batch(*batch, frequencies.axes(), values)?,
        (shape, _) => return Err(Error::Request(format!("{}: positions {shape:?}", dump.checkpoint.name()))),
    };
    let mut table = Table::new(dump.device, &frequencies, &positions)?;
    if let Some(null_rows) = dump.config.count("null_rows").filter(|rows| *rows > 0) {
        let kind = match dump.config.text("null_value") {
            Some("zero") => NullRows::Zero,
            _ => NullRows::Identity,
        };
        table = table.with_null_rows(null_rows, kind)?;
    }
    let pairing = match dump.config.text("pairing") {
        Some("interleaved") => Pairing::Interleaved,
        Some("half_split") => Pairing::HalfSplit,
        _ => return Err(unknown(dump, "pairing")),
    };
    let y = rope(&dump.tensor::<T>("x")?, &table, 0, pairing)?;
    Ok(vec![
        Computed::floats("cos", &table.cos)?.shaped(dump),
        Computed::floats("sin", &table.sin)?.shaped(dump),
        Computed::floats("y", &y)?,
    ])
}
