//! Launchers of the WGSL kernels.

use super::integer::Plan;
use crate::Result;
use crate::backend::wgpu::{Operand, Recorder, dense_offset, fold, params, to_u32};

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
