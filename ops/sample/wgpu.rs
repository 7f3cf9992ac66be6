//! Launchers of the WGSL kernels.

use super::integer::{Plan, fraction_of};
use super::maskgit::{self, MaskGitStep};
use super::{Certainty, Guidance, Watermark};
use crate::Result;
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, output_offset, params, to_u32};

params! {
    struct SampleParams {
        rows: u32,
        vocabulary: u32,
        x_offset: u32,
        fractions_offset: u32,
        y_offset: u32,
        top_k: u32,
        top_p: u32,
        least: u32,
        factor: f32,
    }
}

/// [`super::sample`] into `y` `[rows]`, over contiguous logits and one fraction over 2^32 per row.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn sample(
    recorder: &mut Recorder<'_>,
    logits: Operand<'_>,
    plan: Plan,
    fractions: Operand<'_>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "sample";
    let rows = y.layout.elements();
    let params = SampleParams {
        rows: to_u32(OP, "logits", rows)?,
        vocabulary: to_u32(OP, "logits", logits.layout.elements() / rows.max(1))?,
        x_offset: dense_offset(OP, "logits", logits)?,
        fractions_offset: dense_offset(OP, "fractions", fractions)?,
        y_offset: dense_offset(OP, "y", y)?,
        top_k: plan.top_k,
        top_p: plan.top_p,
        least: plan.least,
        factor: plan.factor,
    };
    let entry = format!("sample_{}", logits.dtype);
    recorder.dispatch(&entry, &params, &[logits.buffer, fractions.buffer, y.buffer], fold(OP, rows)?)
}

params! {
    struct FilterParams {
        rows: u32,
        vocabulary: u32,
        x_offset: u32,
        probabilities_offset: u32,
        kept_offset: u32,
        top_k: u32,
        top_p: u32,
        least: u32,
        factor: f32,
    }
}

/// [`super::filter`] into `probabilities` (f32) and `kept` (u32), `[rows, vocabulary]` like the logits; all contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn filter(
    recorder: &mut Recorder<'_>,
    logits: Operand<'_>,
    plan: Plan,
    probabilities: Operand<'_>,
    kept: Operand<'_>,
) -> Result<()> {
    const OP: &str = "filter";
    let &[rows, vocabulary] = logits.shape() else {
        return Err(crate::Error::shape(OP, "logits", logits.shape(), "[rows, vocabulary]"));
    };
    let params = FilterParams {
        rows: to_u32(OP, "logits", rows)?,
        vocabulary: to_u32(OP, "logits", vocabulary)?,
        x_offset: dense_offset(OP, "logits", logits)?,
        probabilities_offset: dense_offset(OP, "probabilities", probabilities)?,
        kept_offset: dense_offset(OP, "kept", kept)?,
        top_k: plan.top_k,
        top_p: plan.top_p,
        least: plan.least,
        factor: plan.factor,
    };
    let entry = format!("filter_{}", logits.dtype);
    recorder.dispatch(&entry, &params, &[logits.buffer, probabilities.buffer, kept.buffer], fold(OP, rows)?)
}

params! {
    struct FractionsParams {
        rows: u32,
        streams_offset: u32,
        y_offset: u32,
        seed_low: u32,
        seed_high: u32,
        position: u32,
    }
}

/// The random word of each row into `y` `[rows]`, from `streams` `[rows, 2]`, the lower words first; both contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn fractions(
    recorder: &mut Recorder<'_>,
    streams: Operand<'_>,
    seed: u64,
    position: u32,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "fractions";
    let rows = y.layout.elements();
    let params = FractionsParams {
        rows: to_u32(OP, "y", rows)?,
        streams_offset: dense_offset(OP, "streams", streams)?,
        y_offset: dense_offset(OP, "y", y)?,
        seed_low: seed as u32,
        seed_high: (seed >> 32) as u32,
        position,
    };
    recorder.dispatch("fractions", &params, &[streams.buffer, y.buffer], fold(OP, rows.div_ceil(64))?)
}

params! {
    struct WeighParams {
        rows: u32,
        vocabulary: u32,
        x_offset: u32,
        uncond_offset: u32,
        weights_offset: u32,
        guidance: u32,
        top_k: u32,
        top_p: u32,
        least: u32,
        typical: u32,
        ones: u32,
        factor: f32,
        scale: f32,
    }
}

/// [`super::weigh`] into `weights`, `[rows, vocabulary]` like the logits; all contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn weigh(
    recorder: &mut Recorder<'_>,
    cond: Operand<'_>,
    guide: Option<(Operand<'_>, f32, Guidance)>,
    plan: Plan,
    weights: Operand<'_>,
) -> Result<()> {
    const OP: &str = "weigh";
    let [rows, vocabulary] = rows_of(OP, weights)?;
    let (uncond, scale, kind) = guide.unwrap_or((cond, 0.0, Guidance::Scale));
    let params = WeighParams {
        rows: to_u32(OP, "logits", rows)?,
        vocabulary: to_u32(OP, "logits", vocabulary)?,
        x_offset: dense_offset(OP, "cond", cond)?,
        uncond_offset: dense_offset(OP, "uncond", uncond)?,
        weights_offset: dense_offset(OP, "weights", weights)?,
        guidance: match (guide, kind) {
            (None, _) => 0,
            (_, Guidance::Scale) => 1,
            (_, Guidance::Extra) => 2,
        },
        top_k: plan.top_k,
        top_p: plan.top_p,
        least: plan.least,
        typical: plan.typical,
        ones: u32::MAX,
        factor: plan.factor,
        scale,
    };
    let entry = format!("weigh_{}", cond.dtype);
    recorder.dispatch(&entry, &params, &[cond.buffer, uncond.buffer, weights.buffer], fold(OP, rows)?)
}

params! {
    struct WeighSharesParams {
        rows: u32,
        vocabulary: u32,
        x_offset: u32,
        weights_offset: u32,
    }
}

/// [`super::Weights::from_shares`] into `weights`, `[rows, vocabulary]` like the shares; both contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn weigh_shares(recorder: &mut Recorder<'_>, shares: Operand<'_>, weights: Operand<'_>) -> Result<()> {
    const OP: &str = "weigh_shares";
    let [rows, vocabulary] = rows_of(OP, weights)?;
    let params = WeighSharesParams {
        rows: to_u32(OP, "shares", rows)?,
        vocabulary: to_u32(OP, "shares", vocabulary)?,
        x_offset: dense_offset(OP, "shares", shares)?,
        weights_offset: dense_offset(OP, "weights", weights)?,
    };
    recorder.dispatch("weigh_shares", &params, &[shares.buffer, weights.buffer], fold(OP, rows)?)
}

params! {
    struct SharesParams {
        rows: u32,
        vocabulary: u32,
        weights_offset: u32,
        probabilities_offset: u32,
        kept_offset: u32,
    }
}

/// What each weight is of its row's sum into `probabilities`, and whether there is any into `kept`; all contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn shares(
    recorder: &mut Recorder<'_>,
    weights: Operand<'_>,
    probabilities: Operand<'_>,
    kept: Operand<'_>,
) -> Result<()> {
    const OP: &str = "shares";
    let [rows, vocabulary] = rows_of(OP, weights)?;
    let params = SharesParams {
        rows: to_u32(OP, "weights", rows)?,
        vocabulary: to_u32(OP, "weights", vocabulary)?,
        weights_offset: dense_offset(OP, "weights", weights)?,
        probabilities_offset: dense_offset(OP, "probabilities", probabilities)?,
        kept_offset: dense_offset(OP, "kept", kept)?,
    };
    recorder.dispatch("shares", &params, &[weights.buffer, probabilities.buffer, kept.buffer], fold(OP, rows)?)
}

params! {
    struct DrawParams {
        rows: u32,
        vocabulary: u32,
        weights_offset: u32,
        fractions_offset: u32,
        y_offset: u32,
    }
}

/// [`super::draw`] into `y` `[rows]`, with one fraction over 2^32 per row; all contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn draw(recorder: &mut Recorder<'_>, weights: Operand<'_>, fractions: Operand<'_>, y: Operand<'_>) -> Result<()> {
    const OP: &str = "draw";
    let [rows, vocabulary] = rows_of(OP, weights)?;
    let params = DrawParams {
        rows: to_u32(OP, "weights", rows)?,
        vocabulary: to_u32(OP, "weights", vocabulary)?,
        weights_offset: dense_offset(OP, "weights", weights)?,
        fractions_offset: dense_offset(OP, "fractions", fractions)?,
        y_offset: dense_offset(OP, "y", y)?,
    };
    recorder.dispatch("draw", &params, &[weights.buffer, fractions.buffer, y.buffer], fold(OP, rows)?)
}

params! {
    struct RaceParams {
        rows: u32,
        vocabulary: u32,
        weights_offset: u32,
        noise_offset: u32,
        y_offset: u32,
        drawn: u32,
        seed_low: u32,
        seed_high: u32,
        position: u32,
    }
}

/// [`super::race`] into `y` `[rows]`; all contiguous. `noise` is one fraction over 2^32 per token, or, with a seed and a
/// position, the streams `[rows, 2]` of the words that are drawn.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn race(
    recorder: &mut Recorder<'_>,
    weights: Operand<'_>,
    noise: Operand<'_>,
    drawn: Option<(u64, u32)>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "race";
    let [rows, vocabulary] = rows_of(OP, weights)?;
    let (seed, position) = drawn.unwrap_or_default();
    let params = RaceParams {
        rows: to_u32(OP, "weights", rows)?,
        vocabulary: to_u32(OP, "weights", vocabulary)?,
        weights_offset: dense_offset(OP, "weights", weights)?,
        noise_offset: dense_offset(OP, "noise", noise)?,
        y_offset: dense_offset(OP, "y", y)?,
        drawn: u32::from(drawn.is_some()),
        seed_low: seed as u32,
        seed_high: (seed >> 32) as u32,
        position,
    };
    recorder.dispatch("race", &params, &[weights.buffer, noise.buffer, y.buffer], fold(OP, rows)?)
}

params! {
    struct WordsParams {
        batch: u32,
        places: u32,
        sequences_offset: u32,
        y_offset: u32,
        seed_low: u32,
        seed_high: u32,
        round: u32,
    }
}

/// Three random words per place into `y` `[3, batch, places]`, from the stream (the lower word first) and the start of
/// each sequence, `[batch, 3]`; both contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn words(recorder: &mut Recorder<'_>, sequences: Operand<'_>, seed: u64, round: u32, y: Operand<'_>) -> Result<()> {
    const OP: &str = "words";
    let &[_, batch, places] = y.shape() else {
        return Err(crate::Error::shape(OP, "y", y.shape(), "[3, batch, places]"));
    };
    let params = WordsParams {
        batch: to_u32(OP, "y", batch)?,
        places: to_u32(OP, "y", places)?,
        sequences_offset: dense_offset(OP, "sequences", sequences)?,
        y_offset: dense_offset(OP, "y", y)?,
        seed_low: seed as u32,
        seed_high: (seed >> 32) as u32,
        round,
    };
    let workgroups = fold(OP, (batch * places).div_ceil(64))?;
    recorder.dispatch("words", &params, &[sequences.buffer, y.buffer], workgroups)
}

params! {
    struct ConfidenceParams {
        rows: u32,
        vocabulary: u32,
        weights_offset: u32,
        tokens_offset: u32,
        drawn_offset: u32,
        noise_offset: u32,
        sampled_offset: u32,
        y_offset: u32,
        factor: u32,
        given: u32,
    }
}

/// The tokens of all places and the confidence of the masked ones, of [`super::maskgit::maskgit_step`]. `noise` comes
/// with whether it is Gumbel noise in units of 2^-24, or else random words; `factor` is in units of 2^-24; all
/// contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn confidence(
    recorder: &mut Recorder<'_>,
    weights: Operand<'_>,
    tokens: Operand<'_>,
    drawn: Operand<'_>,
    (noise, given): (Operand<'_>, bool),
    factor: u32,
    [sampled, y]: [Operand<'_>; 2],
) -> Result<()> {
    const OP: &str = "confidence";
    let [rows, vocabulary] = rows_of(OP, weights)?;
    let params = ConfidenceParams {
        rows: to_u32(OP, "weights", rows)?,
        vocabulary: to_u32(OP, "weights", vocabulary)?,
        weights_offset: dense_offset(OP, "weights", weights)?,
        tokens_offset: dense_offset(OP, "tokens", tokens)?,
        drawn_offset: dense_offset(OP, "drawn", drawn)?,
        noise_offset: dense_offset(OP, "noise", noise)?,
        sampled_offset: dense_offset(OP, "sampled", sampled)?,
        y_offset: dense_offset(OP, "y", y)?,
        factor,
        given: u32::from(given),
    };
    let buffers = [weights.buffer, tokens.buffer, drawn.buffer, noise.buffer, sampled.buffer, y.buffer];
    recorder.dispatch("confidence", &params, &buffers, fold(OP, rows)?)
}

params! {
    struct RemaskParams {
        batch: u32,
        places: u32,
        tokens_offset: u32,
        sampled_offset: u32,
        confidence_offset: u32,
        y_offset: u32,
        counts_offset: u32,
        most: u32,
        last: u32,
    }
}

/// The tokens after a step, and how many places of each sequence are masked again, of
/// [`super::maskgit::maskgit_step`]; all contiguous.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn remask(recorder: &mut Recorder<'_>, tokens: Operand<'_>, plan: maskgit::Plan, step: &MaskGitStep) -> Result<()> {
    const OP: &str = "remask";
    let [batch, places] = rows_of(OP, tokens)?;
    let (sampled, confidence) = (step.sampled.operand(), step.confidence.operand());
    let (y, counts) = (step.tokens.operand(), step.counts.operand());
    let params = RemaskParams {
        batch: to_u32(OP, "tokens", batch)?,
        places: to_u32(OP, "tokens", places)?,
        tokens_offset: dense_offset(OP, "tokens", tokens)?,
        sampled_offset: dense_offset(OP, "sampled", sampled)?,
        confidence_offset: dense_offset(OP, "confidence", confidence)?,
        y_offset: dense_offset(OP, "y", y)?,
        counts_offset: dense_offset(OP, "counts", counts)?,
        most: plan.most,
        last: u32::from(plan.last),
    };
    let buffers = [tokens.buffer, sampled.buffer, confidence.buffer, y.buffer, counts.buffer];
    recorder.dispatch("remask", &params, &buffers, fold(OP, batch)?)
}

params! {
    struct WatermarkParams {
        elements: u32,
        vocabulary: u32,
        x_offset: u32,
        before_offset: u32,
        y_offset: u32,
        key_low: u32,
        key_high: u32,
        green: u32,
        bias: f32,
    }
}

/// [`super::watermark`] into `y`; all contiguous. `y` starts on an even element, since two elements of a half type share
/// a word.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn watermark(
    recorder: &mut Recorder<'_>,
    logits: Operand<'_>,
    before: Operand<'_>,
    watermark: &Watermark,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "watermark";
    let [_, vocabulary] = rows_of(OP, logits)?;
    let elements = logits.layout.elements();
    let params = WatermarkParams {
        elements: to_u32(OP, "logits", elements)?,
        vocabulary: to_u32(OP, "logits", vocabulary)?,
        x_offset: dense_offset(OP, "logits", logits)?,
        before_offset: dense_offset(OP, "before", before)?,
        y_offset: output_offset(OP, y)?,
        key_low: watermark.key as u32,
        key_high: (watermark.key >> 32) as u32,
        green: if watermark.green < 1.0 { fraction_of(watermark.green) } else { u32::MAX },
        bias: watermark.bias,
    };
    let entry = format!("{OP}_{}", logits.dtype);
    let workgroups = fold(OP, elements.div_ceil(2 * 64))?;
    recorder.dispatch(&entry, &params, &[logits.buffer, before.buffer, y.buffer], workgroups)
}

params! {
    struct GuideParams {
        elements: u32,
        length: u32,
        cond_offset: u32,
        uncond_offset: u32,
        scales_offset: u32,
        y_offset: u32,
        per_row: u32,
        base_cond: u32,
        ones: u32,
        scale: f32,
    }
}

/// [`super::guide`] into `y`, with `scales` for the rows, or the one scale; all contiguous. `y` starts on an even element,
/// since two elements of a half type share a word.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand is not contiguous.
pub fn guide(
    recorder: &mut Recorder<'_>,
    cond: Operand<'_>,
    uncond: Operand<'_>,
    (scales, scale): (Option<Operand<'_>>, f32),
    kind: Guidance,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "guide";
    let elements = cond.layout.elements();
    let params = GuideParams {
        elements: to_u32(OP, "cond", elements)?,
        length: to_u32(OP, "cond", cond.shape().last().copied().unwrap_or(1).max(1))?,
        cond_offset: dense_offset(OP, "cond", cond)?,
        uncond_offset: dense_offset(OP, "uncond", uncond)?,
        scales_offset: scales.map_or(Ok(0), |scales| dense_offset(OP, "scales", scales))?,
        y_offset: output_offset(OP, y)?,
        per_row: u32::from(scales.is_some()),
        base_cond: u32::from(kind == Guidance::Extra),
        ones: u32::MAX,
        scale,
    };
    let entry = format!("{OP}_{}", cond.dtype);
    let buffers = [cond.buffer, uncond.buffer, scales.unwrap_or(cond).buffer, y.buffer];
    recorder.dispatch(&entry, &params, &buffers, fold(OP, elements.div_ceil(2 * 64))?)
}

params! {
    struct CertaintyParams {
        rows: u32,
        vocabulary: u32,
        weights_offset: u32,
    }
}

/// [`super::certainty`] of contiguous weights.
///
/// # Errors
/// [`crate::Error::Shape`] if the weights are not contiguous.
pub fn certainty(recorder: &mut Recorder<'_>, weights: Operand<'_>, certainty: &Certainty) -> Result<()> {
    const OP: &str = "certainty";
    let [rows, vocabulary] = rows_of(OP, weights)?;
    let params = CertaintyParams {
        rows: to_u32(OP, "weights", rows)?,
        vocabulary: to_u32(OP, "weights", vocabulary)?,
        weights_offset: dense_offset(OP, "weights", weights)?,
    };
    let buffers = [weights.buffer, certainty.largest.operand().buffer, certainty.entropy.operand().buffer];
    recorder.dispatch(OP, &params, &buffers, fold(OP, rows)?)
}

fn rows_of(op: &'static str, weights: Operand<'_>) -> Result<[usize; 2]> {
    match *weights.shape() {
        [rows, vocabulary] => Ok([rows, vocabulary]),
        _ => Err(crate::Error::shape(op, "weights", weights.shape(), "[rows, vocabulary]")),
    }
}
