//! Jacobi and speculative decoding: several places are guessed at once, and one pass of the network verifies them.
//!
//! Everything is computed on integer [`Weights`], and exactly: a rule that is lossless on paper is lossless here, and
//! every backend takes the same decisions. Of a step only the tokens and the counts need to come back.

mod continuous;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use continuous::{Gaussians, PathsVerified, takes_residual, verify_paths};

#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::device::Handle;
use crate::sample::{self, Draws, Filter, Guide, Places, Weights, check_shape};
use crate::{Error, Float, Result, Tensor};

/// What follows the first draft that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Fresh draws from the present distribution: speculative Jacobi decoding.
    Fresh,
    /// The draft where it is kept, else a token from the excess of the present distribution over the old one: the
    /// maximal coupling, which changes as few drafts as can be.
    Coupled,
}

/// Random numbers of a verification, per place.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum VerifyDraws {
    /// Three words of Philox for each place. A round must not be used twice for a position.
    Philox(Places),
    /// Given numbers in [0, 1), each `[batch, places]`.
    Given {
        /// A fresh token is drawn by it.
        fresh: Vec<f32>,
        /// A draft is accepted by it.
        accept: Vec<f32>,
        /// A coupled token is drawn by it.
        couple: Vec<f32>,
    },
}

/// What is said of a window of drafts.
#[derive(Debug, Clone)]
pub struct Verified {
    /// `[batch, places]`: 1 where the draft passes the test, also after the first that does not.
    pub kept: Tensor<u32>,
    /// `[batch]`: the drafts before the first that does not.
    pub accepted: Tensor<u32>,
    /// `[batch]`: how many of the tokens are final: those accepted, and the one after them.
    pub settled: Tensor<u32>,
    /// `[batch]`: the token after those accepted; `u32::MAX` if every place was accepted.
    pub next: Tensor<u32>,
    /// `[batch, places]`: the window after the step; what follows the settled tokens are new drafts, drawn from the
    /// present distribution. On a GPU `u32::MAX` where that could not be drawn from.
    pub tokens: Tensor<u32>,
}

/// Which other tokens pass for a draft. What is accepted by a group is no longer drawn from the network's own
/// distribution.
#[derive(Debug, Clone)]
pub struct Groups {
    /// `[rows, width]`: the draft, the others with the nearest first, `u32::MAX` to fill up.
    tokens: Tensor<u32>,
    /// Whether there is a row per token of the vocabulary, not one per draft.
    by_token: bool,
    /// As [`reference::Group::relaxed`].
    relaxed: Option<u32>,
}

/// How [`Groups::nearby`] looks for tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// How many tokens just below the draft's logit.
    pub below: usize,
    /// How many just above.
    pub above: usize,
    /// The probability must differ by less.
    pub band: f32,
    /// The distance between the codes must be less.
    pub reach: f32,
}

impl Window {
    /// `band` over 2^32; `u32::MAX` for 1.
    pub(crate) fn band_fraction(self) -> u32 {
        fraction_or_all(self.band)
    }
}

/// A share over 2^32; `u32::MAX` for 1.
fn fraction_or_all(share: f32) -> u32 {
    if share < 1.0 { sample::integer::fraction_of(share) } else { u32::MAX }
}

impl Groups {
    /// The groups of a table, as of static clusters: row `t` of `table`, `[vocabulary, width]`, lists the tokens that pass
    /// for `t`, itself first, filled up with `u32::MAX`.
    ///
    /// A draft is accepted iff `u < Q / P`, both the mass of its group.
    ///
    /// # Errors
    /// [`Error::Shape`] if `table` has not two axes.
    ///
    /// # Source
    /// So et al. 2025, arXiv:2508.07747, section 4.
    pub fn clusters(table: &Tensor<u32>) -> Result<Self> {
        Self::of_table(table, None)
    }

    /// The nearest neighbours of each token, in a relaxed acceptance: the mass of the neighbours moves to the draft, the
    /// nearest first, as long as no more than `bound` is moved; that is how far, in total variation, the tested
    /// distribution is from the network's.
    ///
    /// `table` is as in [`Self::clusters`], each row in the order of distance. A draft is accepted iff `u < Q / p`; a
    /// rejected one is replaced by a token from the excess of the moved distribution.
    ///
    /// # Errors
    /// [`Error::Shape`] if `table` has not two axes; [`Error::Value`] if `bound` is not in 0 to 1.
    ///
    /// # Source
    /// Jang et al. 2024, arXiv:2410.03355 (LANTERN), section 4.
    pub fn relaxed(table: &Tensor<u32>, bound: f32) -> Result<Self> {
        if !(0.0..=1.0).contains(&bound) {
            return Err(Error::value("groups", "bound", bound, "0 to 1"));
        }
        Self::of_table(table, Some(fraction_or_all(bound)))
    }

    fn of_table(table: &Tensor<u32>, relaxed: Option<u32>) -> Result<Self> {
        match table.shape() {
            [_, width] if *width > 0 => Ok(Self { tokens: table.contiguous()?, by_token: true, relaxed }),
            shape => Err(Error::shape("groups", "table", shape, "[vocabulary, width], width at least 1")),
        }
    }

    /// Groups that follow the present distribution: of the tokens whose logits are next to the draft's, those that are
    /// about as probable and whose codes are near.
    ///
    /// With the tokens in the order of their logits (the lower index first among equals), these are the `below` just
    /// before the draft and the `above` just after it, as far as there are so many, with
    /// `|q[i] - q[draft]| < band` in probability and `distances[draft, i] < reach`. A draft with fewer than `below`
    /// tokens before it is alone.
    ///
    /// | operand     | shape                         | element        | layout |
    /// |-------------|-------------------------------|----------------|--------|
    /// | `logits`    | `[batch, drafts, vocabulary]` | f32, f16, bf16 | any    |
    /// | `q`         | `batch * drafts` rows         | weights        |        |
    /// | `draft`     | `[batch, drafts]`             | u32            | any    |
    /// | `distances` | `[vocabulary, vocabulary]`    | f32            | any    |
    ///
    /// # Errors
    /// [`Error::Shape`] if the operands do not fit each other; [`Error::Value`] if `band` is not in 0 to 1;
    /// [`Error::Place`] if the operands are on different devices.
    ///
    /// # Source
    /// So et al. 2025, arXiv:2508.07747, and its code (7 below, 6 above).
    pub fn nearby<T: Float>(
        logits: &Tensor<T>,
        q: &Weights,
        draft: &Tensor<u32>,
        distances: &Tensor<f32>,
        window: Window,
    ) -> Result<Self> {
        const OP: &str = "nearby";
        let &[batch, drafts, vocabulary] = logits.shape() else {
            return Err(Error::shape(OP, "logits", logits.shape(), "[batch, drafts, vocabulary]"));
        };
        let device = logits.device();
        device.check_same(OP, "q", q.tensor().device())?;
        device.check_same(OP, "draft", draft.device())?;
        device.check_same(OP, "distances", distances.device())?;
        let rows = batch * drafts;
        check_shape(OP, "q", &q.shape(), &[rows, vocabulary])?;
        check_shape(OP, "draft", draft.shape(), &[batch, drafts])?;
        check_shape(OP, "distances", distances.shape(), &[vocabulary, vocabulary])?;
        if !(0.0..=1.0).contains(&window.band) {
            return Err(Error::value(OP, "band", window.band, "0 to 1"));
        }
        let (logits, draft, distances) = (logits.contiguous()?, draft.contiguous()?, distances.contiguous()?);
        let width = 1 + window.below + window.above;
        let tokens = match device.handle() {
            #[cfg(feature = "cuda")]
            Handle::Cuda(cuda) => {
                let tokens = Tensor::empty(device, &[rows, width])?;
                let [draft, distances] = [draft.cuda_operand(), distances.cuda_operand()];
                let groups = tokens.cuda_operand();
                cuda::nearby(&cuda.stream(), logits.cuda_operand(), q, draft, distances, window, groups)?;
                tokens
            }
            #[cfg(feature = "wgpu")]
            Handle::Wgpu(gpu) => {
                let tokens = Tensor::empty(device, &[rows, width])?;
                gpu.record(|recorder| {
                    let [draft, distances] = [draft.operand(), distances.operand()];
                    wgpu::nearby(recorder, logits.operand(), q, draft, distances, window, tokens.operand())
                })?;
                tokens
            }
            _ => {
                let (draft, distances) = (host(&draft), distances.host().as_slice().expect("contiguous"));
                let wide: Vec<f32> =
                    logits.host().as_slice().expect("contiguous").iter().map(|logit| logit.to_f32()).collect();
                let each = |((logits, q), draft): ((&[f32], &[u32]), &u32)| {
                    reference::nearby(logits, q, *draft, distances, window)
                };
                let tokens = wide.chunks(vocabulary).zip(q.host_rows()).zip(draft).flat_map(each).collect();
                Tensor::from_vec(device, &[rows, width], tokens)?
            }
        };
        Ok(Self { tokens, by_token: false, relaxed: None })
    }

    /// `[rows, width]`: a row per token of the vocabulary, or, if the groups are [`Self::nearby`], one per draft.
    #[must_use]
    pub fn tokens(&self) -> &Tensor<u32> {
        &self.tokens
    }
}

fn host(tensor: &Tensor<u32>) -> &[u32] {
    tensor.host().as_slice().expect("contiguous")
}

/// Verifies drafts against the present distribution of each place.
///
/// | operand  | shape                          | element |
/// |----------|--------------------------------|---------|
/// | `p`      | `batch * drafts` rows          | weights |
/// | `q`      | `batch * places` rows          | weights |
/// | `draft`  | `[batch, drafts]`              | u32     |
///
/// `p` is what the drafts were drawn from, `q` the present distribution of each place; places are as many as drafts, or
/// one more, whose token follows the whole draft. A draft `x` passes iff `u < q[x] / p[x]`, or by its group. At the
/// first place that does not pass stands a token drawn from `max(q - p, 0)`; then, without groups, each token has
/// exactly the law of `q`, whatever `p` was.
///
/// # Errors
/// [`Error::Shape`] if the operands do not fit each other; [`Error::Value`] if a given number is outside [0, 1) or, on
/// host devices, a row of `q` is all 0; [`Error::Place`] if the operands are on different devices.
///
/// # Source
/// Leviathan et al. 2022, arXiv:2211.17192, section 2.3.
pub fn verify(
    p: &Weights,
    q: &Weights,
    draft: &Tensor<u32>,
    groups: Option<&Groups>,
    rule: Rule,
    draws: &VerifyDraws,
) -> Result<Verified> {
    const OP: &str = "verify";
    let &[batch, drafts] = draft.shape() else {
        return Err(Error::shape(OP, "draft", draft.shape(), "[batch, drafts]"));
    };
    let device = draft.device();
    device.check_same(OP, "p", p.tensor().device())?;
    device.check_same(OP, "q", q.tensor().device())?;
    let [rows, vocabulary] = q.shape();
    let places = if rows == batch * (drafts + 1) && batch > 0 { drafts + 1 } else { drafts };
    check_shape(OP, "q", &q.shape(), &[batch * places, vocabulary])?;
    check_shape(OP, "p", &p.shape(), &[batch * drafts, vocabulary])?;
    if let Some(groups) = groups {
        device.check_same(OP, "groups", groups.tokens.device())?;
        let rows = if groups.by_token { vocabulary } else { batch * drafts };
        check_shape(OP, "groups", &groups.tokens.shape()[..1], &[rows])?;
    }
    let words = match draws {
        VerifyDraws::Philox(drawn) => drawn.words(OP, device, batch, places)?,
        VerifyDraws::Given { fresh, accept, couple } => {
            let mut words = Vec::with_capacity(3 * rows);
            for given in [fresh, accept, couple] {
                if given.len() != rows {
                    return Err(Error::shape(OP, "draws", &[given.len()], format!("[{rows}]: one per place")));
                }
                words.extend(sample::fractions(OP, given)?);
            }
            Tensor::from_vec(device, &[3, batch, places], words)?
        }
    };
    let draft = draft.contiguous()?;
    match device.handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let verified = Verified::empty(device, batch, places)?;
            let coupled = Tensor::<u32>::empty(device, &[batch, places])?;
            let fresh = Tensor::<u32>::empty(device, &[batch, places])?;
            let (stream, draft) = (cuda.stream(), draft.cuda_operand());
            let outputs = [verified.kept.cuda_operand(), coupled.cuda_operand(), fresh.cuda_operand()];
            cuda::couple(&stream, [p, q], draft, words.cuda_operand(), groups, outputs)?;
            cuda::settle(&stream, draft, [outputs[1], outputs[2]], Some(rule), &verified)?;
            Ok(verified)
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let verified = Verified::empty(device, batch, places)?;
            let coupled = Tensor::<u32>::empty(device, &[batch, places])?;
            let fresh = Tensor::<u32>::empty(device, &[batch, places])?;
            gpu.record(|recorder| {
                let outputs = [verified.kept.operand(), coupled.operand(), fresh.operand()];
                wgpu::couple(recorder, [p, q], draft.operand(), words.operand(), groups, outputs)?;
                wgpu::settle(recorder, draft.operand(), [coupled.operand(), fresh.operand()], Some(rule), &verified)
            })?;
            Ok(verified)
        }
        _ => {
            let (draft, words) = (host(&draft), host(&words));
            let (q, p) = (host(q.tensor()), host(p.tensor()));
            let each = |(): &mut (), row: usize| {
                let place = row % places;
                let draft_row = row / places * drafts + place;
                let group = groups.filter(|_| place < drafts).map(|groups| {
                    let row = if groups.by_token { draft[draft_row] as usize } else { draft_row };
                    let width = groups.tokens.shape()[1];
                    // A draft that is not in the vocabulary has no group.
                    let tokens = host(&groups.tokens).get(row * width..).unwrap_or(&[]);
                    reference::Group { tokens: &tokens[..width.min(tokens.len())], relaxed: groups.relaxed }
                });
                let drafted = (place < drafts).then(|| (draft[draft_row], &p[draft_row * vocabulary..][..vocabulary]));
                let words = [words[row], words[rows + row], words[2 * rows + row]];
                reference::couple(drafted, &q[row * vocabulary..][..vocabulary], group, words)
                    .ok_or_else(|| Error::value(OP, "q", format!("all 0 in row {row}"), "one weight above 0"))
            };
            let coupled = sample::cpu_rows(device, rows, rows * vocabulary, each)?;
            Verified::from_host(device, batch, places, |sequence| {
                let own = &coupled[sequence * places..][..places];
                let kept = own.iter().map(|place| u32::from(place.kept)).collect();
                (kept, reference::settle(&draft[sequence * drafts..][..drafts], own, rule))
            })
        }
    }
}

impl Verified {
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    fn empty(device: &crate::Device, batch: usize, places: usize) -> Result<Self> {
        Ok(Self {
            kept: Tensor::empty(device, &[batch, places])?,
            accepted: Tensor::empty(device, &[batch])?,
            settled: Tensor::empty(device, &[batch])?,
            next: Tensor::empty(device, &[batch])?,
            tokens: Tensor::empty(device, &[batch, places])?,
        })
    }

    fn from_host(
        device: &crate::Device,
        batch: usize,
        places: usize,
        each: impl FnMut(usize) -> (Vec<u32>, reference::Settled),
    ) -> Result<Self> {
        let (kept, settled): (Vec<_>, Vec<_>) = (0..batch).map(each).unzip();
        let per_sequence = |value: &dyn Fn(&reference::Settled) -> u32| {
            Tensor::from_vec(device, &[batch], settled.iter().map(value).collect())
        };
        Ok(Self {
            kept: Tensor::from_vec(device, &[batch, places], kept.concat())?,
            accepted: per_sequence(&|settled| settled.accepted)?,
            settled: per_sequence(&|settled| (settled.accepted + 1).min(places as u32))?,
            next: per_sequence(&|settled| settled.next)?,
            tokens: Tensor::from_vec(
                device,
                &[batch, places],
                settled.iter().flat_map(|settled| settled.tokens.clone()).collect(),
            )?,
        })
    }
}

/// Compares drafts with the tokens that a deterministic rule gives now: a draft is kept iff it equals its own.
///
/// # Errors
/// [`Error::Shape`] if `draft` and `tokens` have not the same two axes; [`Error::Place`] if they are on different
/// devices.
fn same(draft: &Tensor<u32>, tokens: &Tensor<u32>) -> Result<Verified> {
    const OP: &str = "verify";
    let &[batch, places] = tokens.shape() else {
        return Err(Error::shape(OP, "tokens", tokens.shape(), "[batch, places]"));
    };
    tokens.device().check_same(OP, "draft", draft.device())?;
    check_shape(OP, "draft", draft.shape(), tokens.shape())?;
    let device = tokens.device();
    let (draft, tokens) = (draft.contiguous()?, tokens.contiguous()?);
    match device.handle() {
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let verified = Verified::empty(device, batch, places)?;
            let fresh = tokens.cuda_operand();
            cuda::settle(&cuda.stream(), draft.cuda_operand(), [fresh, fresh], None, &verified)?;
            Ok(verified)
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let verified = Verified::empty(device, batch, places)?;
            gpu.record(|recorder| {
                let fresh = tokens.operand();
                wgpu::settle(recorder, draft.operand(), [fresh, fresh], None, &verified)
            })?;
            Ok(verified)
        }
        _ => Verified::from_host(device, batch, places, |sequence| {
            let own = sequence * places..(sequence + 1) * places;
            let places: Vec<_> = host(&draft)[own.clone()]
                .iter()
                .zip(&host(&tokens)[own.clone()])
                .map(|(draft, token)| reference::Coupled { kept: draft == token, coupled: *token, fresh: *token })
                .collect();
            let kept = places.iter().map(|place| u32::from(place.kept)).collect();
            (kept, reference::settle(&host(&draft)[own], &places, Rule::Fresh))
        }),
    }
}

/// Greedy Jacobi decoding, one step: the next iterate is the largest logit of every row, and a draft is kept iff it is
/// that. The settled tokens are those of decoding one after another.
///
/// | operand  | shape                         | element        | layout |
/// |----------|-------------------------------|----------------|--------|
/// | `logits` | `[batch, places, vocabulary]` | f32, f16, bf16 | any    |
/// | `draft`  | `[batch, places]`             | u32            | any    |
///
/// Row `i` of the logits follows the drafts before it.
///
/// # Errors
/// [`Error::Shape`] if the operands do not fit; otherwise as [`sample::argmax`].
///
/// # Source
/// Song et al. 2021, arXiv:2002.03629, section 3.
pub fn greedy_verify<T: Float>(logits: &Tensor<T>, draft: &Tensor<u32>) -> Result<Verified> {
    let (rows, shape) = rows_of_places("greedy_verify", logits)?;
    same(draft, &sample::argmax(&rows)?.reshape(&shape)?)
}

/// `[batch, places, vocabulary]` as rows, and the places.
fn rows_of_places<T: Float>(op: &'static str, logits: &Tensor<T>) -> Result<(Tensor<T>, [usize; 2])> {
    let &[batch, places, vocabulary] = logits.shape() else {
        return Err(Error::shape(op, "logits", logits.shape(), "[batch, places, vocabulary]"));
    };
    Ok((logits.reshape(&[batch * places, vocabulary])?, [batch, places]))
}

/// Greedy Jacobi decoding of a whole window.
#[derive(Debug, Clone)]
pub struct GreedyLoop {
    /// `[batch, places]`: what decoding one token after another gives.
    pub tokens: Tensor<u32>,
    /// How many forward passes it took.
    pub iterations: usize,
}

/// Iterates [`greedy_verify`] from `start` until an iterate repeats. Each pass settles at least one more token, so
/// there are at most as many passes as places, and one that repeats.
///
/// `forward` gives the logits `[batch, places, vocabulary]` of an iterate `[batch, places]`; row `i` may depend only on
/// the tokens before `i`. One number per sequence comes back from the device for each pass.
///
/// # Errors
/// What `forward` gives; otherwise as [`greedy_verify`].
///
/// # Source
/// Song et al. 2021, arXiv:2002.03629, algorithm 1.
pub fn greedy_loop<T: Float, E: From<Error>>(
    start: &Tensor<u32>,
    mut forward: impl FnMut(&Tensor<u32>) -> std::result::Result<Tensor<T>, E>,
) -> std::result::Result<GreedyLoop, E> {
    let mut tokens = start.clone();
    let places = start.shape().last().copied().unwrap_or(0);
    let mut iterations = 0;
    loop {
        let verified = greedy_verify(&forward(&tokens)?, &tokens)?;
        iterations += 1;
        let repeated = verified.accepted.to_vec()?.iter().all(|accepted| *accepted as usize == places);
        tokens = verified.tokens;
        // A forward pass that looks ahead might never repeat.
        if repeated || iterations > places {
            return Ok(GreedyLoop { tokens, iterations });
        }
    }
}

/// Gumbel coupling, one step: with the noise of a position the same in every round, sampling is deterministic, and
/// Jacobi decoding gives the tokens of sampling one after another by [`sample::race`] with the same noise.
///
/// `q` are the present weights of `[batch, places]`, `noise` as in [`sample::race`] with a row per place: it must depend
/// on the position alone.
///
/// # Errors
/// As [`sample::race`]; [`Error::Shape`] if `draft` has not one token per row of `q`.
///
/// # Source
/// So et al. 2025, arXiv:2510.24211 (MC-SJD), section 4.
pub fn gumbel_verify(q: &Weights, draft: &Tensor<u32>, noise: &Draws) -> Result<Verified> {
    same(draft, &sample::race(q, noise)?.reshape(draft.shape())?)
}

/// The window of a decoder: the drafts, and what they were drawn from.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// `[batch, drafts]`.
    pub tokens: Tensor<u32>,
    /// `batch * drafts` rows.
    pub weights: Weights,
}

/// From the logits of a forward pass over a window to what becomes of the window: guidance, temperature, top-k, top-p,
/// acceptance and drawing anew, all where the logits are. What it gives as a proposal is the window of the next step, to
/// be shifted by the settled tokens.
///
/// | operand               | shape                         | element        | layout |
/// |-----------------------|-------------------------------|----------------|--------|
/// | `logits`, `uncond`    | `[batch, places, vocabulary]` | f32, f16, bf16 | any    |
///
/// Places are as many as drafts, or one more. After the first place that is not kept the tokens were drawn from rows of
/// logits whose context has changed: as drafts they are as good as any, for the next step tests them.
///
/// # Errors
/// As [`sample::weigh`] and [`verify`].
///
/// # Source
/// Teng et al. 2024, arXiv:2410.01699, algorithm 1 (SJD); So et al. 2025, arXiv:2510.24211 (MC-SJD), for
/// [`Rule::Coupled`].
pub fn step<T: Float>(
    logits: &Tensor<T>,
    guide: Option<Guide<'_, T>>,
    filter: &Filter,
    proposal: &Proposal,
    groups: Option<&Groups>,
    rule: Rule,
    draws: &VerifyDraws,
) -> Result<(Verified, Proposal)> {
    const OP: &str = "step";
    let (rows, _) = rows_of_places(OP, logits)?;
    let uncond = guide.map(|guide| rows_of_places(OP, guide.uncond)).transpose()?;
    let guide = guide.zip(uncond.as_ref()).map(|(guide, (uncond, _))| Guide { uncond, ..guide });
    let weights = sample::weigh(&rows, guide, filter)?;
    let verified = verify(&proposal.weights, &weights, &proposal.tokens, groups, rule, draws)?;
    let proposal = Proposal { tokens: verified.tokens.clone(), weights };
    Ok((verified, proposal))
}
