//! The definition, in exact integers: plain loops over rows of weights. The CPU runs the same on its threads.

use super::Rule;
use crate::sample::integer::draw;

/// What passes for a draft.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// The draft first, then the nearest first.
    pub tokens: &'a [u32],
    /// In a relaxed group the mass of its tokens moves to the draft, as far as that of the others is within this share
    /// (over 2^32) of the whole; `None` in a group that is accepted as one.
    pub relaxed: Option<u32>,
}

/// What [`super::verify`] says of one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coupled {
    /// Whether the draft may stay.
    pub kept: bool,
    /// Drawn from what `q` has more than `p`; from `q` if that is nothing, or there is no draft.
    pub coupled: u32,
    /// Drawn from `q`.
    pub fresh: u32,
}

fn total(weights: &[u32]) -> u128 {
    weights.iter().map(|weight| u128::from(*weight)).sum()
}

/// One place: `drafted` is the draft with the weights it was drawn by, `words` are to draw a fresh token by, to accept
/// by, to draw a coupled token by. None if `q` is all 0.
#[must_use]
pub fn couple(drafted: Option<(u32, &[u32])>, q: &[u32], group: Option<Group<'_>>, words: [u32; 3]) -> Option<Coupled> {
    let fresh = draw(q, words[0])?;
    let otherwise = draw(q, words[2])?;
    let Some((draft, p)) = drafted else {
        return Some(Coupled { kept: false, coupled: otherwise, fresh });
    };
    let (total_p, total_q) = (total(p), total(q));
    let weight = |weights: &[u32], token: u32| u128::from(weights.get(token as usize).copied().unwrap_or(0));
    let (mut mass_p, mut mass_q) = (weight(p, draft), weight(q, draft));
    let mut moved: &[u32] = &[];
    if let Some(group) = group {
        let limit = match group.relaxed {
            Some(bound) if bound < u32::MAX => (total_q * u128::from(bound)) >> 32,
            _ => total_q,
        };
        let others = group.tokens.get(1..).unwrap_or(&[]);
        let mut mass = 0;
        let mut count = 0;
        for member in others.iter().take_while(|member| (**member as usize) < q.len()) {
            if mass + weight(q, *member) > limit {
                break;
            }
            mass += weight(q, *member);
            count += 1;
            if group.relaxed.is_none() {
                mass_p += weight(p, *member);
            }
        }
        mass_q += mass;
        if group.relaxed.is_some() {
            moved = &others[..count];
        }
    }
    // u < Q / P, with the totals taken over to the other side.
    let kept = (mass_p * total_q * u128::from(words[1])) >> 32 < mass_q * total_p;
    let excess: Vec<u128> = (0..)
        .zip(p.iter().zip(q))
        .map(|(token, (p, q))| match moved.contains(&token) {
            true => 0,
            false => (u128::from(*q) * total_p).saturating_sub(u128::from(*p) * total_q),
        })
        .collect();
    let target = (excess.iter().sum::<u128>() * u128::from(words[2])) >> 32;
    let mut sum = 0;
    let coupled = (0..).zip(&excess).find_map(|(token, excess)| {
        sum += excess;
        (sum > target).then_some(token)
    });
    Some(Coupled { kept, coupled: coupled.unwrap_or(otherwise), fresh })
}

/// What a window of one sequence is after it was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Per place.
    pub tokens: Vec<u32>,
    /// The drafts before the first that is not kept.
    pub accepted: u32,
    /// The token at that place; `u32::MAX` if there is none.
    pub next: u32,
}

/// One sequence; there may be one place more than drafts.
#[must_use]
pub fn settle(draft: &[u32], places: &[Coupled], rule: Rule) -> Settled {
    let accepted = places.iter().take_while(|place| place.kept).count();
    let token = |(index, place): (usize, &Coupled)| match rule {
        Rule::Fresh if index > accepted => place.fresh,
        _ if place.kept => draft[index],
        _ => place.coupled,
    };
    let tokens: Vec<u32> = places.iter().enumerate().map(token).collect();
    let next = tokens.get(accepted).copied().unwrap_or(u32::MAX);
    Settled { tokens, accepted: accepted as u32, next }
}

/// The group of a draft by its logits: [`super::Groups::nearby`].
#[must_use]
pub fn nearby(logits: &[f32], q: &[u32], draft: u32, distances: &[f32], window: super::Window) -> Vec<u32> {
    let token = (draft as usize).min(logits.len() - 1);
    let mut ranked: Vec<usize> = (0..logits.len()).collect();
    ranked.sort_by_key(|token| (crate::sample::integer::order(logits[*token]), *token));
    let rank = ranked.iter().position(|ranked| *ranked == token).expect("every token has a rank");
    let total = total(q);
    let close = |other: &usize| {
        let difference = u128::from(q[token].abs_diff(q[*other]));
        let within = match window.band_fraction() {
            u32::MAX => difference < total,
            band => difference << 32 < total * u128::from(band),
        };
        within && distances[token * logits.len() + *other] < window.reach
    };
    let mut group = vec![token as u32];
    if rank >= window.below {
        let below = ranked[rank - window.below..rank].iter().rev();
        let above = ranked[rank + 1..].iter().take(window.above);
        group.extend(below.chain(above).filter(|other| close(other)).map(|other| *other as u32));
    }
    group.resize(1 + window.below + window.above, u32::MAX);
    group
}
