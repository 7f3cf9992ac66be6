//! GSD's dumps: rounds of drafts, tested with their groups.

use smalti::Tensor;
use smalti::jacobi::{self, Groups, Rule, VerifyDraws, Window};
use smalti::sample::Weights;

use crate::conform::{Computed, Dump, Values};
use crate::decode::speculative::squared_distances;
use crate::{Error, Result};

pub(super) fn run(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let (rounds, length, vocabulary) = (dump.count("rounds")?, dump.count("length")?, dump.count("vocab")?);
    let below = dump.count("half_window")?;
    let window =
        Window { below, above: below.saturating_sub(1), band: dump.number("p_thr")?, reach: dump.number("d_thr")? };
    let distances = squared_distances(&dump.tensor::<f32>("embeddings")?)?;
    // Draft 0 is settled: row `i - 1` of the distributions tests draft `i`.
    let drafts = length.saturating_sub(1);
    let tested = |tensor: &Tensor<f32>, first: usize| -> Result<Tensor<f32>> {
        Ok(tensor.narrow(1, first, drafts)?.contiguous()?.reshape(&[rounds * drafts, vocabulary])?)
    };
    let (probs, logits) = (dump.tensor::<f32>("probs")?, dump.tensor::<f32>("logits")?);
    let from = Weights::from_shares(&tested(&dump.tensor("draft_probs")?, 1)?)?;
    let of_drafts = Weights::from_shares(&tested(&probs, 0)?)?;
    let all = Weights::from_shares(&probs.reshape(&[rounds * length, vocabulary])?)?;
    let draft = dump.indices("drafts")?.narrow(1, 1, drafts)?.contiguous()?;
    let groups = Groups::nearby(&logits.narrow(1, 0, drafts)?, &of_drafts, &draft, &distances, window)?;

    // Where nothing is tested or drawn anew, nothing is recorded.
    let recorded = |name: &str| -> Result<Vec<f32>> {
        Ok(dump.checkpoint.floats(&format!("in.{name}"))?.into_iter().map(|number| number.max(0.0)).collect())
    };
    let (accepts, redraws) = (recorded("accept_uniforms")?, recorded("resample_uniforms")?);
    if accepts.len() != rounds * length || redraws.len() != rounds {
        return Err(Error::Weights(format!("{}: uniforms do not fit {rounds} rounds", dump.checkpoint.name())));
    }
    let of_draft = |round: &[f32]| round[1..].iter().copied().chain([0.0]).collect::<Vec<_>>();
    let draws = VerifyDraws::Given {
        fresh: vec![0.0; rounds * length],
        accept: accepts.chunks(length).flat_map(of_draft).collect(),
        couple: redraws.iter().flat_map(|redraw| std::iter::repeat_n(*redraw, length)).collect(),
    };
    let verified = jacobi::verify(&from, &all, &draft, Some(&groups), Rule::Fresh, &draws)?;
    let accepted = verified.accepted.to_vec()?;
    let matched: Vec<_> = accepted.iter().map(|accepted| *accepted as usize + 1).collect();

    // What was drawn before stands where no draft was accepted or drawn anew.
    let mut tokens = dump.counts("sampled")?;
    let mut law: Vec<_> = dump.checkpoint.floats("in.probs")?.into_iter().map(f64::from).collect();
    let old = dump.checkpoint.floats("in.draft_probs")?;
    let (next, given) = (verified.next.to_vec()?, dump.counts("drafts")?);
    for (round, matched) in matched.iter().enumerate() {
        let first = round * length;
        for place in first..first + matched - 1 {
            tokens[place] = given[place + 1];
            let (to, from) = (place * vocabulary, (place + 1) * vocabulary);
            law.iter_mut().skip(to).zip(&old[from..from + vocabulary]).for_each(|(law, old)| *law = f64::from(*old));
        }
        if *matched < length {
            tokens[first + matched - 1] = next[round];
        }
    }

    let bounds = bounds(&of_drafts, &from, &groups)?;
    let sizes = sizes(dump, &groups, &draft, below)?;
    let tested = |round: usize| 1..(matched[round] + 1).min(length);
    let per_draft = |value: &dyn Fn(usize) -> f64, otherwise: f64| -> Vec<f64> {
        let of_round = |round: usize| {
            let of_place = move |place: usize| match tested(round).contains(&place) {
                true => value(round * drafts + place - 1),
                false => otherwise,
            };
            (0..length).map(of_place)
        };
        (0..rounds).flat_map(of_round).collect()
    };
    let floats = |output: &str, values: Vec<f64>| {
        Computed { output: output.to_owned(), shape: vec![values.len()], values: Values::Floats(values) }.shaped(dump)
    };
    let sizes: Vec<_> = per_draft(&|draft| sizes[draft] as f64, 0.0).iter().map(|size| *size as usize).collect();
    let tokens: Vec<_> = tokens.iter().map(|token| *token as usize).collect();
    Ok(vec![
        Computed::floats("distances", &distances)?,
        Computed::counts("group_sizes", &sizes).shaped(dump),
        floats("ratios", per_draft(&|draft| bounds[draft], -1.0)),
        Computed::counts("matched", &matched),
        Computed::counts("verified_tokens", &tokens).shaped(dump),
        floats("verified_probs", law),
    ])
}

/// The bound of each draft: `min(1, Q / P)`, both the mass of its group.
fn bounds(q: &Weights, p: &Weights, groups: &Groups) -> Result<Vec<f64>> {
    let vocabulary = q.shape()[1];
    let (q, p, groups) = (q.tensor().to_vec()?, p.tensor().to_vec()?, groups.tokens());
    let width = groups.shape()[1];
    let share = |row: &[u32], group: &[u32]| {
        let whole: f64 = row.iter().map(|weight| f64::from(*weight)).sum();
        group.iter().filter_map(|token| row.get(*token as usize)).map(|weight| f64::from(*weight)).sum::<f64>() / whole
    };
    let rows = q.chunks(vocabulary).zip(p.chunks(vocabulary));
    let groups = groups.to_vec()?;
    Ok(rows.zip(groups.chunks(width)).map(|((q, p), group)| (share(q, group) / share(p, group)).min(1.0)).collect())
}

/// The tokens of each group; 0 for a draft with too few tokens below it to have one.
fn sizes(dump: &Dump<'_>, groups: &Groups, draft: &Tensor<u32>, below: usize) -> Result<Vec<usize>> {
    let &[rounds, length, vocabulary] = dump.shape("logits")? else {
        return Err(Error::Weights(format!("{}: in.logits has not three axes", dump.checkpoint.name())));
    };
    let logits = dump.checkpoint.floats("in.logits")?;
    let (draft, tokens) = (draft.to_vec()?, groups.tokens().to_vec()?);
    let width = groups.tokens().shape()[1];
    let drafts = draft.len() / rounds.max(1);
    let size = |(row, group): (usize, &[u32])| {
        let first = (row / drafts * length + row % drafts) * vocabulary;
        let logits = &logits[first..first + vocabulary];
        let own = logits[draft[row] as usize];
        let rank = logits.iter().filter(|logit| **logit < own).count();
        if rank < below { 0 } else { group.iter().filter(|token| **token != u32::MAX).count() }
    };
    Ok(tokens.chunks(width).enumerate().map(size).collect())
}
