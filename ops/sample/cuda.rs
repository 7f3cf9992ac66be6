//! Launchers of the PTX kernels.

use super::integer::{Plan, fraction_of};
use super::maskgit::{self, MaskGitStep};
use super::{Certainty, Guidance, MAX_VOCABULARY, Watermark};
use crate::backend::cuda::{Argument, Operand, Stream, aligned, blocks, dense, dense_or_absent, per_thread, to_u32};
use crate::{Error, Result};

/// Threads of a block, which has one row.
const THREADS: u32 = 256;

/// [`super::sample`] into `y` `[rows]`, over contiguous logits `[rows, vocabulary]` and one fraction over 2^32 per row.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit or an operand is not contiguous.
pub fn sample(
    stream: &Stream<'_>,
    logits: Operand<'_>,
    plan: Plan,
    fractions: Operand<'_>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "sample";
    let [rows, vocabulary] = shape(OP, logits)?;
    one_per_row(OP, "fractions", fractions, rows)?;
    one_per_row(OP, "y", y, rows)?;
    let addresses = [dense(OP, "logits", logits)?, dense(OP, "fractions", fractions)?, dense(OP, "y", y)?];
    let arguments = [&addresses[..], &filtering(OP, vocabulary, plan)?].concat();
    launch(stream, OP, &format!("sample_{}", logits.dtype), rows, &arguments)
}

/// [`super::filter`] into `probabilities` (f32) and `kept` (u32), `[rows, vocabulary]` like the logits; all contiguous.
///
/// # Errors
/// As [`sample`].
pub fn filter(
    stream: &Stream<'_>,
    logits: Operand<'_>,
    plan: Plan,
    probabilities: Operand<'_>,
    kept: Operand<'_>,
) -> Result<()> {
    const OP: &str = "filter";
    let [rows, vocabulary] = shape(OP, logits)?;
    same_shape(OP, "probabilities", probabilities, logits)?;
    same_shape(OP, "kept", kept, logits)?;
    let addresses =
        [dense(OP, "logits", logits)?, dense(OP, "probabilities", probabilities)?, dense(OP, "kept", kept)?];
    let arguments = [&addresses[..], &filtering(OP, vocabulary, plan)?].concat();
    launch(stream, OP, &format!("filter_{}", logits.dtype), rows, &arguments)
}

/// The fractions of [`super::Draws::Philox`] into `y` `[rows]` u32, one per row of `streams`: u32 `[rows, 2]`, the
/// lower word first. So a draw needs nothing of the host but the position.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit or an operand is not contiguous.
pub fn fractions(stream: &Stream<'_>, seed: u64, streams: Operand<'_>, position: u32, y: Operand<'_>) -> Result<()> {
    const OP: &str = "fractions";
    let &[rows] = y.shape() else {
        return Err(Error::shape(OP, "y", y.shape(), "[rows]"));
    };
    if streams.shape() != [rows, 2] {
        return Err(Error::shape(OP, "streams", streams.shape(), format!("[{rows}, 2]: two words per row")));
    }
    let arguments = [
        dense(OP, "streams", streams)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "y", rows)?),
        Argument::U64(seed),
        Argument::U32(position),
    ];
    stream.launch(OP, [blocks(OP, rows, 128)?, 1, 1], [128, 1, 1], 0, &arguments)
}

/// [`super::weigh`] into `weights`, `[rows, vocabulary]` like the logits; all contiguous.
///
/// # Errors
/// As [`sample`].
pub fn weigh(
    stream: &Stream<'_>,
    cond: Operand<'_>,
    guide: Option<(Operand<'_>, f32, Guidance)>,
    plan: Plan,
    weights: Operand<'_>,
) -> Result<()> {
    const OP: &str = "weigh";
    let [rows, vocabulary] = shape(OP, cond)?;
    let uncond = guide.map(|(uncond, ..)| uncond);
    for (operand, other) in [("uncond", uncond), ("weights", Some(weights))] {
        if let Some(other) = other {
            same_shape(OP, operand, other, cond)?;
        }
    }
    let (_, scale, kind) = guide.unwrap_or((cond, 0.0, Guidance::Scale));
    let arguments = [
        dense(OP, "logits", cond)?,
        dense_or_absent(OP, "uncond", uncond)?,
        dense(OP, "weights", weights)?,
        Argument::U32(to_u32(OP, "logits", vocabulary)?),
        Argument::U32(plan.top_k),
        Argument::U32(plan.top_p),
        Argument::U32(plan.least),
        Argument::U32(plan.typical),
        Argument::F32(plan.factor),
        Argument::F32(scale),
        Argument::U32(u32::from(kind == Guidance::Extra)),
    ];
    launch(stream, OP, &format!("weigh_{}", cond.dtype), rows, &arguments)
}

/// [`super::Weights::from_shares`] into `weights`, `[rows, vocabulary]` like the shares; both contiguous.
///
/// # Errors
/// As [`sample`].
pub fn weigh_shares(stream: &Stream<'_>, shares: Operand<'_>, weights: Operand<'_>) -> Result<()> {
    const OP: &str = "weigh_shares";
    let [rows, vocabulary] = shape(OP, shares)?;
    same_shape(OP, "weights", weights, shares)?;
    let arguments = [
        dense(OP, "shares", shares)?,
        dense(OP, "weights", weights)?,
        Argument::U32(to_u32(OP, "shares", vocabulary)?),
    ];
    launch(stream, OP, OP, rows, &arguments)
}

/// What each weight is of its row's sum into `probabilities`, and whether there is any into `kept`; all contiguous.
///
/// # Errors
/// As [`sample`].
pub fn shares(stream: &Stream<'_>, weights: Operand<'_>, probabilities: Operand<'_>, kept: Operand<'_>) -> Result<()> {
    const OP: &str = "shares";
    let [rows, vocabulary] = shape(OP, weights)?;
    same_shape(OP, "probabilities", probabilities, weights)?;
    same_shape(OP, "kept", kept, weights)?;
    let arguments = [
        dense(OP, "weights", weights)?,
        dense(OP, "probabilities", probabilities)?,
        dense(OP, "kept", kept)?,
        Argument::U32(to_u32(OP, "weights", vocabulary)?),
    ];
    launch(stream, OP, OP, rows, &arguments)
}

/// [`super::draw`] into `y` `[rows]`, with one fraction over 2^32 per row; all contiguous.
///
/// # Errors
/// As [`sample`].
pub fn draw(stream: &Stream<'_>, weights: Operand<'_>, fractions: Operand<'_>, y: Operand<'_>) -> Result<()> {
    const OP: &str = "draw";
    let [rows, vocabulary] = shape(OP, weights)?;
    one_per_row(OP, "fractions", fractions, rows)?;
    one_per_row(OP, "y", y, rows)?;
    let arguments = [
        dense(OP, "weights", weights)?,
        dense(OP, "fractions", fractions)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "weights", vocabulary)?),
    ];
    launch(stream, OP, OP, rows, &arguments)
}

/// [`super::race`] into `y` `[rows]`; all contiguous. `noise` is one fraction over 2^32 per token, or, with a seed and a
/// position, the streams `[rows, 2]` of the words that are drawn.
///
/// # Errors
/// As [`sample`].
pub fn race(
    stream: &Stream<'_>,
    weights: Operand<'_>,
    noise: Operand<'_>,
    drawn: Option<(u64, u32)>,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "race";
    let [rows, vocabulary] = shape(OP, weights)?;
    let expected = [rows, if drawn.is_some() { 2 } else { vocabulary }];
    if noise.shape() != expected {
        return Err(Error::shape(OP, "noise", noise.shape(), format!("{expected:?}")));
    }
    one_per_row(OP, "y", y, rows)?;
    let (seed, position) = drawn.unwrap_or_default();
    let arguments = [
        dense(OP, "weights", weights)?,
        dense(OP, "noise", noise)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "weights", vocabulary)?),
        Argument::U32(u32::from(drawn.is_some())),
        Argument::U64(seed),
        Argument::U32(position),
    ];
    launch(stream, OP, OP, rows, &arguments)
}

/// Three random words per place into `y` `[3, batch, places]`, from the stream (the lower word first) and the start of
/// each sequence, `[batch, 3]`; both contiguous.
///
/// # Errors
/// As [`sample`].
pub fn words(stream: &Stream<'_>, sequences: Operand<'_>, seed: u64, round: u32, y: Operand<'_>) -> Result<()> {
    const OP: &str = "words";
    let &[3, batch, places] = y.shape() else {
        return Err(Error::shape(OP, "y", y.shape(), "[3, batch, places]"));
    };
    if sequences.shape() != [batch, 3] {
        return Err(Error::shape(OP, "sequences", sequences.shape(), format!("[{batch}, 3]")));
    }
    to_u32(OP, "y", batch * places)?;
    let arguments = [
        dense(OP, "sequences", sequences)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "y", batch)?),
        Argument::U32(to_u32(OP, "y", places)?),
        Argument::U64(seed),
        Argument::U32(round),
    ];
    stream.launch(OP, [blocks(OP, batch * places, 128)?, 1, 1], [128, 1, 1], 0, &arguments)
}

/// The tokens of all places and the confidence of the masked ones, of [`maskgit::maskgit_step`]. `noise` comes with
/// whether it is Gumbel noise in units of 2^-24, or else random words; `factor` is in units of 2^-24; all contiguous.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn confidence(
    stream: &Stream<'_>,
    weights: Operand<'_>,
    tokens: Operand<'_>,
    drawn: Operand<'_>,
    (noise, given): (Operand<'_>, bool),
    factor: u32,
    [sampled, y]: [Operand<'_>; 2],
) -> Result<()> {
    const OP: &str = "confidence";
    let [rows, vocabulary] = shape(OP, weights)?;
    let arguments = [
        dense(OP, "weights", weights)?,
        dense(OP, "tokens", tokens)?,
        dense(OP, "drawn", drawn)?,
        dense(OP, "noise", noise)?,
        dense(OP, "sampled", sampled)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "weights", vocabulary)?),
        Argument::U32(factor),
        Argument::U32(u32::from(given)),
    ];
    launch(stream, OP, OP, rows, &arguments)
}

/// The tokens after a step, and how many places of each sequence are masked again, of [`maskgit::maskgit_step`]; all
/// contiguous.
///
/// # Errors
/// As [`confidence`].
pub fn remask(stream: &Stream<'_>, tokens: Operand<'_>, plan: maskgit::Plan, step: &MaskGitStep) -> Result<()> {
    const OP: &str = "remask";
    let &[batch, places] = tokens.shape() else {
        return Err(Error::shape(OP, "tokens", tokens.shape(), "[batch, places]"));
    };
    let arguments = [
        dense(OP, "tokens", tokens)?,
        dense(OP, "sampled", step.sampled.cuda_operand())?,
        dense(OP, "confidence", step.confidence.cuda_operand())?,
        dense(OP, "y", step.tokens.cuda_operand())?,
        dense(OP, "counts", step.counts.cuda_operand())?,
        Argument::U32(to_u32(OP, "tokens", places)?),
        Argument::U32(plan.most),
        Argument::U32(u32::from(plan.last)),
    ];
    launch(stream, OP, OP, batch, &arguments)
}

/// [`super::watermark`] into `y`; all contiguous. `y` may be the logits themselves.
///
/// # Errors
/// As [`sample`].
pub fn watermark(
    stream: &Stream<'_>,
    logits: Operand<'_>,
    before: Operand<'_>,
    watermark: &Watermark,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "watermark";
    let [rows, vocabulary] = shape(OP, logits)?;
    one_per_row(OP, "before", before, rows)?;
    same_shape(OP, "y", y, logits)?;
    let aligned = aligned(logits.dtype, vocabulary, &[logits, y]);
    // Four tokens share a block of random words.
    let threads = rows * vocabulary.div_ceil(per_thread(logits.dtype, aligned).max(4));
    to_u32(OP, "logits", threads)?;
    let arguments = [
        dense(OP, "logits", logits)?,
        dense(OP, "before", before)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "logits", rows)?),
        Argument::U32(to_u32(OP, "logits", vocabulary)?),
        Argument::U64(watermark.key),
        Argument::U32(if watermark.green < 1.0 { fraction_of(watermark.green) } else { u32::MAX }),
        Argument::F32(watermark.bias),
    ];
    let entry = format!("{OP}_{}{aligned}", logits.dtype);
    stream.launch(&entry, [blocks(OP, threads, 128)?, 1, 1], [128, 1, 1], 0, &arguments)
}

/// [`super::guide`] into `y`, with `scales` for the rows, or the one scale; all contiguous. `y` may be an operand itself.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit or an operand is not contiguous.
pub fn guide(
    stream: &Stream<'_>,
    cond: Operand<'_>,
    uncond: Operand<'_>,
    (scales, scale): (Option<Operand<'_>>, f32),
    kind: Guidance,
    y: Operand<'_>,
) -> Result<()> {
    const OP: &str = "guide";
    same_shape(OP, "uncond", uncond, cond)?;
    same_shape(OP, "y", y, cond)?;
    let elements = cond.layout.elements();
    let length = cond.shape().last().copied().unwrap_or(1);
    let arguments = [
        dense(OP, "cond", cond)?,
        dense(OP, "uncond", uncond)?,
        dense_or_absent(OP, "scales", scales)?,
        dense(OP, "y", y)?,
        Argument::U32(to_u32(OP, "cond", elements / length.max(1))?),
        Argument::U32(to_u32(OP, "cond", length)?),
        Argument::F32(scale),
        Argument::U32(u32::from(kind == Guidance::Extra)),
    ];
    let grid = blocks(OP, elements, THREADS as usize)?;
    stream.launch(&format!("{OP}_{}", cond.dtype), [grid, 1, 1], [THREADS, 1, 1], 0, &arguments)
}

/// [`super::certainty`] of contiguous weights.
///
/// # Errors
/// As [`sample`].
pub fn certainty(stream: &Stream<'_>, weights: Operand<'_>, certainty: &Certainty) -> Result<()> {
    const OP: &str = "certainty";
    let [rows, vocabulary] = shape(OP, weights)?;
    let arguments = [
        dense(OP, "weights", weights)?,
        dense(OP, "largest", certainty.largest.cuda_operand())?,
        dense(OP, "entropy", certainty.entropy.cuda_operand())?,
        Argument::U32(to_u32(OP, "weights", vocabulary)?),
    ];
    launch(stream, OP, OP, rows, &arguments)
}

fn same_shape(op: &'static str, name: &'static str, operand: Operand<'_>, logits: Operand<'_>) -> Result<()> {
    match operand.shape() == logits.shape() {
        true => Ok(()),
        false => Err(Error::shape(op, name, operand.shape(), format!("{:?}, as the rows have", logits.shape()))),
    }
}

fn one_per_row(op: &'static str, name: &'static str, operand: Operand<'_>, rows: usize) -> Result<()> {
    match operand.shape() == [rows] {
        true => Ok(()),
        false => Err(Error::shape(op, name, operand.shape(), format!("[{rows}]: one per row"))),
    }
}

fn shape(op: &'static str, logits: Operand<'_>) -> Result<[usize; 2]> {
    match *logits.shape() {
        [rows, vocabulary] if (1..=MAX_VOCABULARY).contains(&vocabulary) => Ok([rows, vocabulary]),
        _ => {
            let expected = format!("[rows, vocabulary] with a vocabulary of 1 to {MAX_VOCABULARY}");
            Err(Error::shape(op, "logits", logits.shape(), expected))
        }
    }
}

/// The numbers that `sample` and `filter` take after their operands.
fn filtering(op: &'static str, vocabulary: usize, plan: Plan) -> Result<[Argument<'static>; 5]> {
    Ok([
        Argument::U32(to_u32(op, "logits", vocabulary)?),
        Argument::U32(plan.top_k),
        Argument::U32(plan.top_p),
        Argument::U32(plan.least),
        Argument::F32(plan.factor),
    ])
}

/// A block per row.
fn launch(stream: &Stream<'_>, op: &'static str, entry: &str, rows: usize, arguments: &[Argument<'_>]) -> Result<()> {
    stream.launch(entry, [blocks(op, rows, 1)?, 1, 1], [THREADS, 1, 1], 0, arguments)
}
