//% set width = 64
// settle: what a window of tokens is after it was verified.
//
//     accepted[b] = how many of the first drafts are kept
//     y[b, i]     = the draft where it is accepted, coupled at the first place that is not, then the tokens of `rule`
//     settled[b]  = min(accepted[b] + 1, places): these tokens are final
//     next[b]     = y[b, accepted[b]], or 0xffffffff if every place is accepted
//
// Bindings, group 0:
//     0 params    see the struct; offsets count elements; rule 0 fresh tokens, 1 kept drafts and coupled tokens, 2 fresh tokens
//                 everywhere, and a draft is kept if it equals its own
//     1 draft     [batch, drafts] u32
//     2 kept      [batch, places] u32, places being drafts or drafts + 1; written by rule 2
//     3 coupled   [batch, places] u32
//     4 fresh     [batch, places] u32
//     5 y         [batch, places] u32
//     6 accepted  [batch] u32
//     7 settled   [batch] u32
//     8 next      [batch] u32
// Dispatch: an invocation per sequence in workgroups of ${ width }, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Source: Teng et al. 2024, arXiv:2410.01699, algorithm 1; So et al. 2025, arXiv:2510.24211, for rule 1; Song et al. 2021,
// arXiv:2002.03629, for rule 2.
struct Params {
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

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> draft: array<u32>;
@group(0) @binding(2) var<storage, read_write> kept: array<u32>;
@group(0) @binding(3) var<storage, read> coupled: array<u32>;
@group(0) @binding(4) var<storage, read> fresh: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<u32>;
@group(0) @binding(6) var<storage, read_write> accepted: array<u32>;
@group(0) @binding(7) var<storage, read_write> settled: array<u32>;
@group(0) @binding(8) var<storage, read_write> next: array<u32>;

@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let sequence = (workgroup.x + workgroup.y * workgroups.x) * ${ width }u + invocation;
    if sequence >= params.batch {
        return;
    }
    var first = params.places;
    var token_there = 0xffffffffu;
    for (var place = 0u; place < params.places; place++) {
        let at = sequence * params.places + place;
        var old = 0xffffffffu;
        if place < params.drafts {
            old = draft[params.draft_offset + sequence * params.drafts + place];
        }
        let now = fresh[params.fresh_offset + at];
        var keep = old == now && place < params.drafts;
        var token = now;
        if params.rule == 2u {
            kept[params.kept_offset + at] = select(0u, 1u, keep);
        } else {
            keep = kept[params.kept_offset + at] != 0u;
            if place < first || params.rule == 1u {
                token = coupled[params.coupled_offset + at];
                if keep {
                    token = old;
                }
            }
        }
        if !keep && first == params.places {
            first = place;
            token_there = token;
        }
        y[params.y_offset + at] = token;
    }
    accepted[params.accepted_offset + sequence] = first;
    settled[params.settled_offset + sequence] = min(first + 1u, params.places);
    next[params.next_offset + sequence] = token_there;
}
