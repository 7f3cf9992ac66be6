//! Dumps of cascaded decoding: a chain alone, and a whole cascade over tables of log-probabilities.

use crate::conform::{Computed, Dump, Values};
use crate::decode::cascade::{Chain, cascade};
use crate::{Error, Result};

pub(super) fn run(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    match dump.config.text("part") {
        Some("chain") => chain(dump),
        Some("cascade") => whole(dump),
        part => Err(Error::Request(format!("cascade: part {part:?}, expected chain or cascade"))),
    }
}

fn floats(output: &str, values: Vec<f64>, dump: &Dump<'_>) -> Computed {
    let shape = vec![values.len()];
    Computed { output: output.to_owned(), shape, values: Values::Floats(values) }.shaped(dump)
}

fn chain(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let &[batch, edges, states, _] = dump.shape("edges")? else {
        return Err(Error::Weights(format!("{}: in.edges has not four axes", dump.checkpoint.name())));
    };
    let scores: Vec<f64> = dump.checkpoint.floats("in.edges")?.into_iter().map(f64::from).collect();
    let (mut prefix, mut suffix, mut marginals) = (Vec::new(), Vec::new(), Vec::new());
    let (mut paths, mut best) = (Vec::new(), Vec::new());
    for scores in scores.chunks(edges * states * states).take(batch) {
        let chain = Chain { states, scores: scores.to_vec() };
        let found = chain.max_marginals();
        prefix.extend(found.prefix);
        suffix.extend(found.suffix);
        marginals.extend(found.marginals);
        let (path, score) = chain.best_path();
        paths.extend(path);
        best.push(score);
    }
    Ok(vec![
        floats("prefix", prefix, dump),
        floats("suffix", suffix, dump),
        floats("max_marginals", marginals, dump),
        Computed::counts("best_path", &paths).shaped(dump),
        floats("best_score", best, dump),
    ])
}

fn whole(dump: &Dump<'_>) -> Result<Vec<Computed>> {
    let (length, vocabulary) = (dump.count("length")?, dump.count("vocab")?);
    let (kept, orders) = (dump.count("topk")?, dump.count("orders")?);
    let tables = (0..orders).map(|order| dump.checkpoint.floats(&format!("in.log_p.{order}")));
    let tables = tables.collect::<Result<Vec<_>>>()?;
    let expected = |order: usize| length.checked_sub(order).map(|count| count * vocabulary.pow(order as u32 + 1));
    if (0..orders).any(|order| expected(order) != Some(tables[order].len())) || kept > vocabulary {
        return Err(Error::Weights(format!("{}: tables do not fit the parameters", dump.checkpoint.name())));
    }
    let found = cascade(length, vocabulary, kept, orders, |position, context, token| {
        let order = context.len();
        let index = context.iter().chain([&token]).fold(position - order, |index, token| index * vocabulary + token);
        f64::from(tables[order][index])
    });
    let flat = |grams: &[Vec<Vec<usize>>]| grams.iter().flatten().flatten().copied().collect::<Vec<_>>();
    let mut computed = vec![Computed::counts("tokens.0", &flat(&found.tokens)).shaped(dump)];
    for (index, order) in found.orders.into_iter().enumerate() {
        let name = |output: &str| format!("{output}.{}", index + 1);
        computed.push(floats(&name("edges"), order.chain.scores, dump));
        computed.push(floats(&name("max_marginals"), order.marginals.marginals, dump));
        if dump.checkpoint.shape(&format!("out.{}", name("tokens"))).is_some() {
            computed.push(Computed::counts(&name("tokens"), &flat(&order.survivors)).shaped(dump));
        }
    }
    computed.push(Computed::counts("sequence", &found.sequence));
    computed.push(floats("score", vec![found.score], dump));
    Ok(computed)
}
