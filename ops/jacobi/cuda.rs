//! Launchers of the PTX kernels.

use super::{Gaussians, Groups, PathsVerified, Rule, Verified, Window};
use crate::backend::cuda::{Argument, Operand, Stream, aligned, blocks, dense, dense_or_absent, to_u32};
use crate::sample::Weights;
use crate::{Dtype, Error, Result, Tensor};

/// Threads of a block that has one row or sequence.
const THREADS: u32 = 256;

/// The test and the tokens of each place of [`super::verify`], into `kept`, `coupled` and `fresh`, `[batch, places]`; the
/// weights are those drafts were drawn by and the present ones, `words` `[3, batch, places]`; all contiguous.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous or has not two axes.
pub fn couple(
    stream: &Stream<'_>,
    [p, q]: [&Weights; 2],
    draft: Operand<'_>,
    words: Operand<'_>,
    groups: Option<&Groups>,
    [kept, coupled, fresh]: [Operand<'_>; 3],
) -> Result<()> {
    const OP: &str = "couple";
    let [_, drafts] = two_axes(OP, "draft", draft)?;
    let [_, places] = two_axes(OP, "kept", kept)?;
    let [rows, vocabulary] = q.shape();
    let relaxed = groups.and_then(|groups| groups.relaxed);
    let [p, q] = [p, q].map(|weights| weights.tensor().cuda_operand());
    let arguments = [
        dense(OP, "p", p)?,
        dense(OP, "q", q)?,
        dense(OP, "draft", draft)?,
        dense(OP, "words", words)?,
        dense_or_absent(OP, "groups", groups.map(|groups| groups.tokens.cuda_operand()))?,
        dense(OP, "kept", kept)?,
        dense(OP, "coupled", coupled)?,
        dense(OP, "fresh", fresh)?,
        Argument::U32(to_u32(OP, "draft", drafts)?),
        Argument::U32(to_u32(OP, "q", places)?),
        Argument::U32(to_u32(OP, "q", rows)?),
        Argument::U32(to_u32(OP, "q", vocabulary)?),
        Argument::U32(to_u32(OP, "groups", groups.map_or(0, |groups| groups.tokens.shape()[1]))?),
        Argument::U32(u32::from(groups.is_some_and(|groups| groups.by_token))),
        Argument::U32(u32::from(relaxed.is_some())),
        Argument::U32(relaxed.unwrap_or(u32::MAX)),
    ];
    let entry = format!("{OP}{}", aligned(Dtype::U32, vocabulary, &[p, q]));
    stream.launch(&entry, [blocks(OP, rows, 1)?, 1, 1], [THREADS, 1, 1], 0, &arguments)
}

/// The window after a verification, into `verified`, whose `kept` is read; without a rule a draft is kept iff it equals
/// its fresh token, and `kept` is written. All contiguous.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous or has not two axes.
pub fn settle(
    stream: &Stream<'_>,
    draft: Operand<'_>,
    [coupled, fresh]: [Operand<'_>; 2],
    rule: Option<Rule>,
    verified: &Verified,
) -> Result<()> {
    const OP: &str = "settle";
    const BLOCK: u32 = 64;
    let [batch, drafts] = two_axes(OP, "draft", draft)?;
    let [_, places] = two_axes(OP, "fresh", fresh)?;
    let [kept, tokens] = [&verified.kept, &verified.tokens].map(Tensor::cuda_operand);
    let arguments = [
        dense(OP, "draft", draft)?,
        dense(OP, "kept", kept)?,
        dense(OP, "coupled", coupled)?,
        dense(OP, "fresh", fresh)?,
        dense(OP, "tokens", tokens)?,
        dense(OP, "accepted", verified.accepted.cuda_operand())?,
        dense(OP, "settled", verified.settled.cuda_operand())?,
        dense(OP, "next", verified.next.cuda_operand())?,
        Argument::U32(to_u32(OP, "draft", batch)?),
        Argument::U32(to_u32(OP, "draft", drafts)?),
        Argument::U32(to_u32(OP, "fresh", places)?),
        Argument::U32(match rule {
            Some(Rule::Fresh) => 0,
            Some(Rule::Coupled) => 1,
            None => 2,
        }),
    ];
    // With one more place than drafts their rows do not start on 16 bytes together.
    let aligned = match drafts == places {
        true => aligned(Dtype::U32, places, &[draft, kept, coupled, fresh, tokens]),
        false => "",
    };
    let grid = blocks(OP, batch, BLOCK as usize)?;
    stream.launch(&format!("{OP}{aligned}"), [grid, 1, 1], [BLOCK, 1, 1], 0, &arguments)
}

/// [`Groups::nearby`] into `groups` `[rows, 1 + below + above]`; all contiguous.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn nearby(
    stream: &Stream<'_>,
    logits: Operand<'_>,
    q: &Weights,
    draft: Operand<'_>,
    distances: Operand<'_>,
    window: Window,
    groups: Operand<'_>,
) -> Result<()> {
    const OP: &str = "nearby";
    let [rows, vocabulary] = q.shape();
    let q = q.tensor().cuda_operand();
    let arguments = [
        dense(OP, "logits", logits)?,
        dense(OP, "q", q)?,
        dense(OP, "draft", draft)?,
        dense(OP, "distances", distances)?,
        dense(OP, "groups", groups)?,
        Argument::U32(to_u32(OP, "q", vocabulary)?),
        Argument::U32(to_u32(OP, "below", window.below)?),
        Argument::U32(to_u32(OP, "above", window.above)?),
        Argument::U32(window.band_fraction()),
        Argument::F32(window.reach),
    ];
    let entry = format!("{OP}_{}{}", logits.dtype, aligned(logits.dtype, vocabulary, &[logits, q]));
    stream.launch(&entry, [blocks(OP, rows, 1)?, 1, 1], [THREADS, 1, 1], 0, &arguments)
}

/// [`super::verify_paths`] of `x` `[batch, drafts, ..]`, both models' means and log variances, and uniforms, all
/// contiguous, into tensors made for it.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous or the uniforms have not two axes.
pub fn path(
    stream: &Stream<'_>,
    x: Operand<'_>,
    [p, q]: [Gaussians<'_>; 2],
    uniforms: Operand<'_>,
    verified: &PathsVerified,
) -> Result<()> {
    const OP: &str = "path";
    let [batch, drafts] = two_axes(OP, "uniforms", uniforms)?;
    let terms = x.shape().iter().skip(2).product();
    let [p_mean, p_log_variance, q_mean, q_log_variance] =
        [p.mean, p.log_variance, q.mean, q.log_variance].map(Tensor::cuda_operand);
    let arguments = [
        dense(OP, "x", x)?,
        dense(OP, "the draft's mean", p_mean)?,
        dense(OP, "the draft's log_variance", p_log_variance)?,
        dense(OP, "the target's mean", q_mean)?,
        dense(OP, "the target's log_variance", q_log_variance)?,
        dense(OP, "uniforms", uniforms)?,
        dense(OP, "log_ratio", verified.log_ratio.cuda_operand())?,
        dense(OP, "kept", verified.kept.cuda_operand())?,
        dense(OP, "accepted", verified.accepted.cuda_operand())?,
        Argument::U32(to_u32(OP, "x", drafts)?),
        Argument::U32(to_u32(OP, "x", terms)?),
    ];
    let aligned = aligned(Dtype::F32, terms, &[x, p_mean, p_log_variance, q_mean, q_log_variance]);
    stream.launch(&format!("{OP}{aligned}"), [blocks(OP, batch, 1)?, 1, 1], [THREADS, 1, 1], 0, &arguments)
}

fn two_axes(op: &'static str, operand: &'static str, view: Operand<'_>) -> Result<[usize; 2]> {
    match *view.shape() {
        [batch, places] => Ok([batch, places]),
        _ => Err(Error::shape(op, operand, view.shape(), "[batch, places]")),
    }
}
