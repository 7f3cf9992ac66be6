//! Launchers of the WGSL kernels.

use super::{Groups, PathsVerified, Rule, Verified, Window};
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, params, to_u32};
use crate::sample::Weights;
use crate::{Error, Result};

params! {
    struct CoupleParams {
        drafts: u32,
        places: u32,
        rows: u32,
        vocabulary: u32,
        p_offset: u32,
        q_offset: u32,
        draft_offset: u32,
        words_offset: u32,
        groups_offset: u32,
        kept_offset: u32,
        coupled_offset: u32,
        fresh_offset: u32,
        width: u32,
        by_token: u32,
        relaxed: u32,
        bound: u32,
    }
}

/// The test and the tokens of each place of [`super::verify`], into `kept`, `coupled` and `fresh`, `[batch, places]`; the
/// weights are those drafts were drawn by and the present ones, `words` `[3, batch, places]`; all contiguous.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous or has not two axes.
pub fn couple(
    recorder: &mut Recorder<'_>,
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
    let (p, q) = (p.tensor().operand(), q.tensor().operand());
    let tokens = groups.map_or(draft, |groups| groups.tokens.operand());
    let width = groups.map_or(0, |groups| groups.tokens.shape()[1]);
    let relaxed = groups.and_then(|groups| groups.relaxed);
    let params = CoupleParams {
        drafts: to_u32(OP, "draft", drafts)?,
        places: to_u32(OP, "q", places)?,
        rows: to_u32(OP, "q", rows)?,
        vocabulary: to_u32(OP, "q", vocabulary)?,
        p_offset: dense_offset(OP, "p", p)?,
        q_offset: dense_offset(OP, "q", q)?,
        draft_offset: dense_offset(OP, "draft", draft)?,
        words_offset: dense_offset(OP, "words", words)?,
        groups_offset: dense_offset(OP, "groups", tokens)?,
        kept_offset: dense_offset(OP, "kept", kept)?,
        coupled_offset: dense_offset(OP, "coupled", coupled)?,
        fresh_offset: dense_offset(OP, "fresh", fresh)?,
        width: to_u32(OP, "groups", width)?,
        by_token: u32::from(groups.is_some_and(|groups| groups.by_token)),
        relaxed: u32::from(relaxed.is_some()),
        bound: relaxed.unwrap_or(u32::MAX),
    };
    let buffers =
        [p.buffer, q.buffer, draft.buffer, words.buffer, tokens.buffer, kept.buffer, coupled.buffer, fresh.buffer];
    recorder.dispatch(OP, &params, &buffers, fold(OP, rows)?)
}

params! {
    struct SettleParams {
        batch: u32,
        drafts: u32,
        places: u32,
        draft_offset: u32,
        kept_offset: u32,
        coupled_offset: u32,
        fresh_offset: u32,
        y_offset: u32,
        accepted_offset: u32,
        settled_offset: u32,
        next_offset: u32,
        rule: u32,
    }
}

/// The window after a verification, into `verified`, whose `kept` is read; without a rule a draft is kept iff it equals
/// its fresh token, and `kept` is written. All contiguous.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous or has not two axes.
pub fn settle(
    recorder: &mut Recorder<'_>,
    draft: Operand<'_>,
    [coupled, fresh]: [Operand<'_>; 2],
    rule: Option<Rule>,
    verified: &Verified,
) -> Result<()> {
    const OP: &str = "settle";
    let [batch, drafts] = two_axes(OP, "draft", draft)?;
    let [_, places] = two_axes(OP, "fresh", fresh)?;
    let (kept, y) = (verified.kept.operand(), verified.tokens.operand());
    let (accepted, settled) = (verified.accepted.operand(), verified.settled.operand());
    let next = verified.next.operand();
    let params = SettleParams {
        batch: to_u32(OP, "draft", batch)?,
        drafts: to_u32(OP, "draft", drafts)?,
        places: to_u32(OP, "fresh", places)?,
        draft_offset: dense_offset(OP, "draft", draft)?,
        kept_offset: dense_offset(OP, "kept", kept)?,
        coupled_offset: dense_offset(OP, "coupled", coupled)?,
        fresh_offset: dense_offset(OP, "fresh", fresh)?,
        y_offset: dense_offset(OP, "tokens", y)?,
        accepted_offset: dense_offset(OP, "accepted", accepted)?,
        settled_offset: dense_offset(OP, "settled", settled)?,
        next_offset: dense_offset(OP, "next", next)?,
        rule: match rule {
            Some(Rule::Fresh) => 0,
            Some(Rule::Coupled) => 1,
            None => 2,
        },
    };
    let buffers = [
        draft.buffer,
        kept.buffer,
        coupled.buffer,
        fresh.buffer,
        y.buffer,
        accepted.buffer,
        settled.buffer,
        next.buffer,
    ];
    recorder.dispatch(OP, &params, &buffers, fold(OP, batch.div_ceil(64))?)
}

params! {
    struct NearbyParams {
        rows: u32,
        vocabulary: u32,
        x_offset: u32,
        q_offset: u32,
        draft_offset: u32,
        distances_offset: u32,
        groups_offset: u32,
        below: u32,
        above: u32,
        band: u32,
        reach: f32,
    }
}

/// [`Groups::nearby`] into `groups` `[rows, 1 + below + above]`; all contiguous.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous.
pub fn nearby(
    recorder: &mut Recorder<'_>,
    logits: Operand<'_>,
    q: &Weights,
    draft: Operand<'_>,
    distances: Operand<'_>,
    window: Window,
    groups: Operand<'_>,
) -> Result<()> {
    const OP: &str = "nearby";
    let [rows, vocabulary] = q.shape();
    let q = q.tensor().operand();
    let params = NearbyParams {
        rows: to_u32(OP, "q", rows)?,
        vocabulary: to_u32(OP, "q", vocabulary)?,
        x_offset: dense_offset(OP, "logits", logits)?,
        q_offset: dense_offset(OP, "q", q)?,
        draft_offset: dense_offset(OP, "draft", draft)?,
        distances_offset: dense_offset(OP, "distances", distances)?,
        groups_offset: dense_offset(OP, "groups", groups)?,
        below: to_u32(OP, "below", window.below)?,
        above: to_u32(OP, "above", window.above)?,
        band: window.band_fraction(),
        reach: window.reach,
    };
    let entry = format!("{OP}_{}", logits.dtype);
    let buffers = [logits.buffer, q.buffer, draft.buffer, distances.buffer, groups.buffer];
    recorder.dispatch(&entry, &params, &buffers, fold(OP, rows)?)
}

params! {
    struct PathParams {
        batch: u32,
        drafts: u32,
        terms: u32,
        x_offset: u32,
        p_offset: u32,
        q_offset: u32,
        u_offset: u32,
    }
}

/// [`super::verify_paths`] of `x`, both models' means and log variances, and uniforms, all contiguous, into tensors made
/// for it.
///
/// # Errors
/// [`Error::Shape`] if an operand is not contiguous or the uniforms have not two axes.
pub fn path(
    recorder: &mut Recorder<'_>,
    [x, p, q, uniforms]: [Operand<'_>; 4],
    terms: usize,
    verified: &PathsVerified,
) -> Result<()> {
    const OP: &str = "path";
    let [batch, drafts] = two_axes(OP, "uniforms", uniforms)?;
    let params = PathParams {
        batch: to_u32(OP, "x", batch)?,
        drafts: to_u32(OP, "x", drafts)?,
        terms: to_u32(OP, "x", terms)?,
        x_offset: dense_offset(OP, "x", x)?,
        p_offset: dense_offset(OP, "p", p)?,
        q_offset: dense_offset(OP, "q", q)?,
        u_offset: dense_offset(OP, "uniforms", uniforms)?,
    };
    let outputs = [verified.log_ratio.operand(), verified.kept.operand(), verified.accepted.operand()];
    let [r, kept, accepted] = outputs.map(|output| output.buffer);
    let buffers = [x.buffer, p.buffer, q.buffer, uniforms.buffer, r, kept, accepted];
    recorder.dispatch(OP, &params, &buffers, fold(OP, batch)?)
}

fn two_axes(op: &'static str, operand: &'static str, view: Operand<'_>) -> Result<[usize; 2]> {
    match *view.shape() {
        [batch, places] => Ok([batch, places]),
        _ => Err(Error::shape(op, operand, view.shape(), "[batch, places]")),
    }
}
