//% set width = 256
// couple: whether a draft may stay, and the tokens that stand for it if not.
//
//     kept[r]    = 1 where u < min(1, Q[r] / P[r]), else 0
//     coupled[r] = a token drawn from max(q[r] - p[r], 0), from q[r] if that is 0 everywhere or there is no draft
//     fresh[r]   = a token drawn from q[r]
//
// Q and P are the probabilities under q and p of the draft, or of its group.
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements; width 0 without groups; by_token 1 if groups has a row per token
//                of the vocabulary; relaxed 1 if a group moves its mass to the draft; bound in units of 2^-32, all ones for none
//     1 p        [batch, drafts, vocabulary] u32: weights that the drafts were drawn by, each at most 2^30
//     2 q        [batch, places, vocabulary] u32: present weights; places is drafts or drafts + 1, vocabulary at most 2^18
//     3 draft    [batch, drafts] u32
//     4 words    [3, batch, places] u32: random words to draw fresh tokens by, to accept by, to draw coupled tokens by
//     5 groups   [batch * drafts or vocabulary, width] u32: tokens that pass for the draft, the draft first, then the
//                nearest first; 0xffffffff fills up; not read without groups
//     6 kept     [batch, places] u32; 0 where there is no draft
//     7 coupled  [batch, places] u32; 0xffffffff if q[r] is all 0
//     8 fresh    as coupled
// Dispatch: a workgroup of ${ width } per row of q, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 28 * width } bytes.
//
// Nothing is divided: with totals A of p and B of q, q / B - p / A is taken times A B, as q A - p B in integers of three
// words, and so are both sides of the acceptance. What is drawn has exactly the law of q, in every backend by the same
// token. Each invocation adds up a stretch of the row; the one whose stretch holds a target walks it. A relaxed group
// takes the mass of its tokens, as far as that of the others is within the bound, to the draft; then these are not
// drawn when the draft is rejected.
//
// Source: Leviathan et al. 2022, arXiv:2211.17192, section 2.3; Teng et al. 2024, arXiv:2410.01699, algorithm 1; groups: So
// et al. 2025, arXiv:2508.07747; relaxed: Jang et al. 2024, arXiv:2410.03355, section 4.
struct Params {
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

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> p: array<u32>;
@group(0) @binding(2) var<storage, read> q: array<u32>;
@group(0) @binding(3) var<storage, read> draft: array<u32>;
@group(0) @binding(4) var<storage, read> words: array<u32>;
@group(0) @binding(5) var<storage, read> groups: array<u32>;
@group(0) @binding(6) var<storage, read_write> kept: array<u32>;
@group(0) @binding(7) var<storage, read_write> coupled: array<u32>;
@group(0) @binding(8) var<storage, read_write> fresh: array<u32>;

var<workgroup> p_masses: array<vec2<u32>, ${ width }>;
var<workgroup> q_masses: array<vec2<u32>, ${ width }>;
var<workgroup> lower: array<vec2<u32>, ${ width }>;
var<workgroup> upper: array<u32, ${ width }>;

//% include "include/wide.wgsl"
//% include "include/wider.wgsl"
// What a token has more under q than under p.
fn excess(p_at: u32, q_at: u32, total_p: vec2<u32>, total_q: vec2<u32>) -> vec3<u32> {
    return excess_wide(product_wide(total_p, q[q_at]), product_wide(total_q, p[p_at]));
}

@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let row = workgroup.x + workgroup.y * workgroups.x;
    if row >= params.rows {
        return;
    }
    let place = row % params.places;
    let drafted = place < params.drafts;
    let draft_row = row / params.places * params.drafts + min(place, max(params.drafts, 1u) - 1u);
    let p_start = params.p_offset + draft_row * params.vocabulary;
    let q_start = params.q_offset + row * params.vocabulary;
    let stretch = (params.vocabulary + ${ width - 1 }u) / ${ width }u;
    let start = min(invocation * stretch, params.vocabulary);
    let end = min(start + stretch, params.vocabulary);

    var own_p = vec2<u32>(0u);
    var own_q = vec2<u32>(0u);
    for (var token = start; token < end; token++) {
        own_q = add(own_q, vec2<u32>(q[q_start + token], 0u));
        if drafted {
            own_p = add(own_p, vec2<u32>(p[p_start + token], 0u));
        }
    }
    p_masses[invocation] = own_p;
    q_masses[invocation] = own_q;
    workgroupBarrier();
    var total_p = vec2<u32>(0u);
    var total_q = vec2<u32>(0u);
    var before = vec2<u32>(0u);
    for (var other = 0u; other < ${ width }u; other++) {
        if other == invocation {
            before = total_q;
        }
        total_p = add(total_p, p_masses[other]);
        total_q = add(total_q, q_masses[other]);
    }

    // The draft's mass, or its group's; `members` of the group count.
    var keep = false;
    var members = 0u;
    var token_there = 0xffffffffu;
    if drafted {
        token_there = draft[params.draft_offset + draft_row];
    }
    // A draft that is not in the vocabulary has no group.
    let known = token_there < params.vocabulary;
    let group = params.groups_offset + select(draft_row, token_there, params.by_token != 0u) * params.width;
    if drafted {
        var mass_p = vec2<u32>(0u);
        var mass_q = vec2<u32>(0u);
        if known {
            mass_p.x = p[p_start + token_there];
            mass_q.x = q[q_start + token_there];
        }
        // The bound is on the mass of the others.
        let limit = select(share(total_q, params.bound).xy, total_q, params.bound == 0xffffffffu);
        var others = vec2<u32>(0u);
        for (members = 1u; members < params.width && known; members++) {
            let member = groups[group + members];
            if member >= params.vocabulary {
                break;
            }
            let more = add(others, vec2<u32>(q[q_start + member], 0u));
            if less(limit, more) {
                break;
            }
            others = more;
            if params.relaxed == 0u {
                mass_p = add(mass_p, vec2<u32>(p[p_start + member], 0u));
            }
        }
        mass_q = add(mass_q, others);
        let chance = words[params.words_offset + params.rows + row];
        keep = less_wide(share_wide(product_of_wide(mass_p, total_q), chance), product_of_wide(mass_q, total_p));
    }
    members = select(0u, members, params.relaxed != 0u);

    // The excess of each stretch; of a relaxed group's other tokens it does not count.
    var own = vec3<u32>(0u);
    if drafted {
        for (var token = start; token < end; token++) {
            own = add_wide(own, excess(p_start + token, q_start + token, total_p, total_q));
        }
        for (var index = 1u; index < members; index++) {
            let member = groups[group + index];
            if member >= start && member < end {
                own = excess_wide(own, excess(p_start + member, q_start + member, total_p, total_q));
            }
        }
    }
    lower[invocation] = own.xy;
    upper[invocation] = own.z;
    workgroupBarrier();
    var before_excess = vec3<u32>(0u);
    var total = vec3<u32>(0u);
    for (var other = 0u; other < ${ width }u; other++) {
        if other == invocation {
            before_excess = total;
        }
        total = add_wide(total, vec3<u32>(lower[other], upper[other]));
    }
    let some = any(total != vec3<u32>(0u));

    if invocation == 0u {
        kept[params.kept_offset + row] = select(0u, 1u, keep);
        if all(total_q == vec2<u32>(0u)) {
            coupled[params.coupled_offset + row] = 0xffffffffu;
            fresh[params.fresh_offset + row] = 0xffffffffu;
        }
    }
    // Without an excess the coupled token is drawn as a fresh one, by its own word.
    for (var which = 0u; which < 2u; which++) {
        let goal = share(total_q, words[params.words_offset + 2u * which * params.rows + row]).xy;
        if (which == 1u && some) || less(goal, before) || !less(goal, add(before, own_q)) {
            continue;
        }
        var sum = before;
        var token = start;
        for (; token < end; token++) {
            sum = add(sum, vec2<u32>(q[q_start + token], 0u));
            if less(goal, sum) {
                break;
            }
        }
        if which == 0u {
            fresh[params.fresh_offset + row] = token;
        } else {
            coupled[params.coupled_offset + row] = token;
        }
    }
    let goal = share_wide(total, words[params.words_offset + 2u * params.rows + row]);
    if some && !less_wide(goal, before_excess) && less_wide(goal, add_wide(before_excess, own)) {
        var token = start;
        for (; token < end; token++) {
            var counts = true;
            for (var index = 1u; index < members; index++) {
                counts = counts && groups[group + index] != token;
            }
            if counts {
                before_excess = add_wide(before_excess, excess(p_start + token, q_start + token, total_p, total_q));
                if less_wide(goal, before_excess) {
                    break;
                }
            }
        }
        coupled[params.coupled_offset + row] = token;
    }
}
