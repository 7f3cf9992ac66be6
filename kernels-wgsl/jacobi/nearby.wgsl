//% import "include/element.wgsl" as element
//% set width = 256
// nearby: the group of a draft, from the tokens whose logits are next to its own.
//
// With the tokens of row r in the order of their logits, the lower index first among equals: the `below` just before the
// draft, the draft, and the `above` just after, of these the ones with |q[r, i] - q[r, draft]| < band in probability
// and distances[draft, i] < reach. Without `below` tokens before it the draft is alone.
//
// Bindings, group 0:
//     0 params     see the struct; offsets count elements; band in units of 2^-32, all ones for 1
//     1 logits     [rows, vocabulary] ${ dtype }, contiguous
//     2 q          [rows, vocabulary] u32: weights, each at most 2^30, vocabulary at most 2^18
//     3 draft      [rows] u32
//     4 distances  [vocabulary, vocabulary] f32: between the codes of the tokens
//     5 groups     [rows, 1 + below + above] u32: the draft, then the others; 0xffffffff fills up
// Dispatch: a workgroup of ${ width } per row, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 8 * width } bytes.
//
// Each neighbour is found by a pass over the row: the largest of those smaller than the last, or the reverse. They are few.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: So et al. 2025, arXiv:2508.07747, and its code.
struct Params {
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

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> q: array<u32>;
@group(0) @binding(3) var<storage, read> draft: array<u32>;
@group(0) @binding(4) var<storage, read> distances: array<f32>;
@group(0) @binding(5) var<storage, read_write> groups: array<u32>;

// A token's place in the order, as (order of the logit, token); or a sum of weights.
var<workgroup> pairs: array<vec2<u32>, ${ width }>;

//% include "include/wide.wgsl"
// Ordered as the logits are; both zeros are equal.
fn order(logit: f32) -> u32 {
    let bits = bitcast<u32>(logit);
    if (bits & 0x7fffffffu) == 0u {
        return 0x80000000u;
    }
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

fn place_of(row: u32, token: u32) -> vec2<u32> {
    let at = params.x_offset + row * params.vocabulary + token;
    return vec2<u32>(order(${ element.load(dtype, "logits", "at") }), token);
}

fn sooner(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x < b.x || (a.x == b.x && a.y < b.y);
}

// The place just before `last`, or just after; token 0xffffffff if there is none.
fn neighbour(row: u32, last: vec2<u32>, after: bool, invocation: u32) -> vec2<u32> {
    let none = select(vec2<u32>(0u, 0xffffffffu), vec2<u32>(0xffffffffu, 0xffffffffu), after);
    var best = none;
    for (var token = invocation; token < params.vocabulary; token += ${ width }u) {
        let here = place_of(row, token);
        let beyond = select(sooner(here, last), sooner(last, here), after);
        let nearer = best.y == 0xffffffffu || select(sooner(best, here), sooner(here, best), after);
        if beyond && nearer {
            best = here;
        }
    }
    // The pairs of the last call may still be read.
    workgroupBarrier();
    pairs[invocation] = best;
    workgroupBarrier();
    for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
        if invocation < distance {
            let a = pairs[invocation];
            let b = pairs[invocation + distance];
            let nearer = select(sooner(a, b), sooner(b, a), after);
            if b.y != 0xffffffffu && (a.y == 0xffffffffu || nearer) {
                pairs[invocation] = b;
            }
        }
        workgroupBarrier();
    }
    return pairs[0];
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
    let q_start = params.q_offset + row * params.vocabulary;
    var mass = vec2<u32>(0u);
    for (var token = invocation; token < params.vocabulary; token += ${ width }u) {
        mass = add(mass, vec2<u32>(q[q_start + token], 0u));
    }
    pairs[invocation] = mass;
    workgroupBarrier();
    for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
        if invocation < distance {
            pairs[invocation] = add(pairs[invocation], pairs[invocation + distance]);
        }
        workgroupBarrier();
    }
    let total = pairs[0];
    // A difference is below the band iff it is less than this; weights are whole, so a rest counts as one.
    let band_share = share(total, params.band);
    let limit = select(add(band_share.xy, vec2<u32>(band_share.z, 0u)), total, params.band == 0xffffffffu);

    let token = min(draft[params.draft_offset + row], params.vocabulary - 1u);
    let own = q[q_start + token];
    let group = params.groups_offset + row * (1u + params.below + params.above);
    var members = 1u;
    var place = place_of(row, token);
    for (var index = 0u; index < params.below + params.above; index++) {
        if index == params.below {
            place = place_of(row, token);
        }
        let after = index >= params.below;
        let found = neighbour(row, place, after, invocation);
        place = select(place, found, found.y != 0xffffffffu);
        if invocation == 0u {
            if found.y == 0xffffffffu {
                // Fewer than `below` before it: alone.
                if !after {
                    members = 0x80000000u;
                }
            } else {
                let theirs = q[q_start + found.y];
                let close = less(vec2<u32>(max(own, theirs) - min(own, theirs), 0u), limit);
                let at = params.distances_offset + token * params.vocabulary + found.y;
                if close && distances[at] < params.reach && members < 0x80000000u {
                    groups[group + members] = found.y;
                    members += 1u;
                }
            }
        }
    }
    if invocation == 0u {
        groups[group] = token;
        if members >= 0x80000000u {
            members = 1u;
        }
        for (; members < 1u + params.below + params.above; members++) {
            groups[group + members] = 0xffffffffu;
        }
    }
}
