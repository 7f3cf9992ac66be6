//% import "include/element.wgsl" as element
//% set width = 256
// weigh: the integer weight of each token under guidance and a filter.
//
//     weights[r, i] = 2^30 * exp((x[r, i] - the largest x of row r) / temperature) where token i may be drawn, else 0
//     x = base + scale (cond - uncond), base being uncond or cond; x = cond without guidance, or where one of both is -inf
//
// Bindings, group 0:
//     0 params    see the struct; offsets count elements; guidance 0 none, 1 base uncond, 2 base cond; top_k at least 1;
//                 top_p and typical in units of 2^-32, 0 keeps all; ones all bits 1
//     1 cond      [rows, vocabulary] ${ dtype }, contiguous, vocabulary at most 2^18
//     2 uncond    as cond; not read without guidance
//     3 weights   [rows, vocabulary] u32, contiguous; all 0 for a row with a NaN, +inf or nothing but -inf
// Dispatch: a workgroup of ${ width } per row, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 16 * width } bytes.
//
// The weights are those of the kernel `sample`, word for word. What orders the logits is first written where the
// weights will be, so that the many passes of a filter read one word each. Then, after the other filters, typical
// sampling keeps the tokens whose information is nearest to the entropy. With d the distance of a logit from the
// largest, in octaves, that is |d - the mean of d|: the normaliser is in both and cancels.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: typical sampling: Meister et al. 2022, arXiv:2202.00666, section 4.
struct Params {
    rows: u32,
    vocabulary: u32,
    x_offset: u32,
    uncond_offset: u32,
    weights_offset: u32,
    guidance: u32,
    top_k: u32,
    top_p: u32,
    least: u32,
    typical: u32,
    ones: u32,
    factor: f32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cond: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> uncond: array<${ element.storage(dtype) }>;
@group(0) @binding(3) var<storage, read_write> weights: array<u32>;

var<workgroup> counts: array<u32, ${ width }>;
var<workgroup> masses: array<vec2<u32>, ${ width }>;
var<workgroup> wide_masses: array<u32, ${ width }>;

//% include "include/wide.wgsl"
//% include "include/wider.wgsl"
//% include "sample/kept_functions.wgsl"
fn key_at(row: u32, token: u32) -> u32 {
    return weights[params.weights_offset + row * params.vocabulary + token];
}

fn guided(row: u32, token: u32) -> f32 {
    let at = row * params.vocabulary + token;
    let conditional = ${ element.load(dtype, "cond", "params.x_offset + at") };
    // What is ruled out with the condition stays out, and what is without it stays as it is: not -inf minus -inf.
    if params.guidance == 0u || order(conditional) <= 0x007fffffu {
        return conditional;
    }
    let unconditional = ${ element.load(dtype, "uncond", "params.uncond_offset + at") };
    if order(unconditional) == 0x007fffffu {
        return conditional;
    }
    // The integer operation keeps the product from being fused with the sum, which rounds otherwise.
    let step = bitcast<f32>(bitcast<u32>((conditional - unconditional) * params.scale) & params.ones);
    return select(conditional, unconditional, params.guidance == 1u) + step;
}

// How far a kept token's distance is from the mean, the nearest largest; 0 for a token that is not kept.
fn nearness(key: u32, largest: u32, mean: u32) -> u32 {
    let fixed = distance(key, largest);
    if fixed == 0xffffffffu {
        return 0u;
    }
    return 0x80000000u - select(fixed - mean, mean - fixed, fixed < mean);
}

// The weight of what is at least as near.
fn mass_as_near(row: u32, threshold: u32, largest: u32, mean: u32, invocation: u32) -> vec2<u32> {
    var mass = vec2<u32>(0u);
    for (var token = invocation; token < params.vocabulary; token += ${ width }u) {
        let key = key_at(row, token);
        if nearness(key, largest, mean) >= threshold {
            mass = add(mass, vec2<u32>(weight(key, largest), 0u));
        }
    }
    return whole(0u, mass, invocation).xy;
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
    for (var token = invocation; token < params.vocabulary; token += ${ width }u) {
        weights[params.weights_offset + row * params.vocabulary + token] = order(guided(row, token));
    }
    storageBarrier();

//% include "sample/kept_body.wgsl"
    // From here on each invocation changes its own stretch; 0 stands for a token that is not kept.
    let row_start = params.weights_offset + row * params.vocabulary;
    rank = first_rank;
    for (var token = start; token < end; token++) {
        let key = key_at(row, token);
        let keep = !bad && (key > last || (key == last && rank < equals)) && weight(key, largest) >= params.least;
        if key == last {
            rank += 1u;
        }
        weights[row_start + token] = select(0u, key, keep);
    }
    storageBarrier();
    workgroupBarrier();
    if params.typical > 0u {
        // The mean distance: the sum of weight * distance in three words, divided bit by bit by the sum of weights.
        var moment = vec3<u32>(0u);
        for (var token = start; token < end; token++) {
            let key = key_at(row, token);
            let heavy = weight(key, largest);
            if heavy > 0u {
                moment = add_wide(moment, vec3<u32>(product(heavy, distance(key, largest)), 0u));
            }
        }
        masses[invocation] = moment.xy;
        wide_masses[invocation] = moment.z;
        workgroupBarrier();
        moment = vec3<u32>(0u);
        for (var other = 0u; other < ${ width }u; other++) {
            moment = add_wide(moment, vec3<u32>(masses[other], wide_masses[other]));
        }
        var mean = 0u;
        for (var bit = 0x10000000u; bit > 0u; bit >>= 1u) {
            if !less_wide(moment, product_wide(total, mean | bit)) {
                mean |= bit;
            }
        }
        // As for top-p: the last nearness that is kept, and how many of those equal to it.
        let target_share = share(total, params.typical);
        let limit = add(target_share.xy, vec2<u32>(target_share.z, 0u));
        var found = 0u;
        for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
            if !less(mass_as_near(row, found | bit, largest, mean, invocation), limit) {
                found |= bit;
            }
        }
        var before_equals = mass_as_near(row, found + 1u, largest, mean, invocation);
        // Equals may differ in weight (one on each side of the mean), so their weights before a stretch are summed.
        var own = vec2<u32>(0u);
        for (var token = start; token < end; token++) {
            let key = key_at(row, token);
            if nearness(key, largest, mean) == found {
                own = add(own, vec2<u32>(weight(key, largest), 0u));
            }
        }
        workgroupBarrier();
        masses[invocation] = own;
        workgroupBarrier();
        for (var other = 0u; other < invocation; other++) {
            before_equals = add(before_equals, masses[other]);
        }
        for (var token = start; token < end; token++) {
            let key = key_at(row, token);
            let near = nearness(key, largest, mean);
            let keep = near > found || (near == found && less(before_equals, limit));
            if near == found {
                before_equals = add(before_equals, vec2<u32>(weight(key, largest), 0u));
            }
            weights[row_start + token] = select(0u, key, keep);
        }
    }
    for (var token = start; token < end; token++) {
        weights[row_start + token] = weight(key_at(row, token), largest);
    }
}
