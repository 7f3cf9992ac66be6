//! Launchers of the PTX kernels.

use super::MAX_VOCABULARY;
use super::integer::Plan;
use crate::backend::cuda::{Argument, Operand, Stream, blocks, dense, to_u32};
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
    for (operand, vector) in [("fractions", fractions), ("y", y)] {
        if vector.shape() != [rows] {
            return Err(Error::shape(OP, operand, vector.shape(), format!("[{rows}]: one per row of the logits")));
        }
    }
    let addresses = [dense(OP, "logits", logits)?, dense(OP, "fractions", fractions)?, dense(OP, "y", y)?];
    launch(stream, OP, logits, &addresses, vocabulary, plan)
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
    let [_, vocabulary] = shape(OP, logits)?;
    for (operand, output) in [("probabilities", probabilities), ("kept", kept)] {
        if output.shape() != logits.shape() {
            return Err(Error::shape(OP, operand, output.shape(), format!("{:?}, as the logits", logits.shape())));
        }
    }
    let addresses =
        [dense(OP, "logits", logits)?, dense(OP, "probabilities", probabilities)?, dense(OP, "kept", kept)?];
    launch(stream, OP, logits, &addresses, vocabulary, plan)
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

fn shape(op: &'static str, logits: Operand<'_>) -> Result<[usize; 2]> {
    match *logits.shape() {
        [rows, vocabulary] if (1..=MAX_VOCABULARY).contains(&vocabulary) => Ok([rows, vocabulary]),
        _ => {
            let expected = format!("[rows, vocabulary] with a vocabulary of 1 to {MAX_VOCABULARY}");
            Err(Error::shape(op, "logits", logits.shape(), expected))
        }
    }
}

fn launch(
    stream: &Stream<'_>,
    op: &'static str,
    logits: Operand<'_>,
    addresses: &[Argument<'_>],
    vocabulary: usize,
    plan: Plan,
) -> Result<()> {
    let values = [
        Argument::U32(to_u32(op, "logits", vocabulary)?),
        Argument::U32(plan.top_k),
        Argument::U32(plan.top_p),
        Argument::U32(plan.least),
        Argument::F32(plan.factor),
    ];
    let grid = blocks(op, logits.layout.elements() / vocabulary, 1)?;
    let entry = format!("{op}_{}", logits.dtype);
    stream.launch(&entry, [grid, 1, 1], [THREADS, 1, 1], 0, &[addresses, &values].concat())
}
