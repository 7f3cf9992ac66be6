//% set width = 256
// confidence: how sure a masked place is of the token drawn for it.
//
//     sampled[r] = tokens[r] where it is known, else drawn[r]
//     y[r] = ln p(drawn[r]) + factor * gumbel[r] in units of 2^-22, or the largest number where tokens[r] is known
//
// Bindings, group 0:
//     0 params    see the struct; offsets count elements; factor in units of 2^-24; given 1 if noise is Gumbel noise
//     1 weights   [rows, vocabulary] u32, contiguous, each at most 2^30, vocabulary at most 2^18
//     2 tokens    [rows] u32, 0xffffffff where a place is masked
//     3 drawn     [rows] u32, 0xffffffff where there was nothing to draw from
//     4 noise     [rows] u32: Gumbel noise in units of 2^-24, as a two's complement, or random words to make it from
//     5 sampled   [rows] u32
//     6 y         [rows] i32
// Dispatch: a workgroup of ${ width } per row, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 8 * width } bytes.
//
// All in integers, so that the order of the places is the same everywhere. The probability is the drawn weight over
// the sum of the row.
//
// Source: Chang et al. 2022, arXiv:2202.04200, section 3.2; the noise as in its code.
struct Params {
    rows: u32,
    vocabulary: u32,
    weights_offset: u32,
    tokens_offset: u32,
    drawn_offset: u32,
    noise_offset: u32,
    sampled_offset: u32,
    y_offset: u32,
    factor: u32,
    given: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> tokens: array<u32>;
@group(0) @binding(3) var<storage, read> drawn: array<u32>;
@group(0) @binding(4) var<storage, read> noise: array<u32>;
@group(0) @binding(5) var<storage, read_write> sampled: array<u32>;
@group(0) @binding(6) var<storage, read_write> y: array<i32>;

var<workgroup> masses: array<vec2<u32>, ${ width }>;

//% include "include/wide.wgsl"
//% include "include/logarithm.wgsl"
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
    var mass = vec2<u32>(0u);
    for (var token = invocation; token < params.vocabulary; token += ${ width }u) {
        mass = add(mass, vec2<u32>(weights[params.weights_offset + row * params.vocabulary + token], 0u));
    }
    masses[invocation] = mass;
    workgroupBarrier();
    for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
        if invocation < distance {
            masses[invocation] = add(masses[invocation], masses[invocation + distance]);
        }
        workgroupBarrier();
    }
    if invocation > 0u {
        return;
    }
    let known = tokens[params.tokens_offset + row];
    let token = drawn[params.drawn_offset + row];
    sampled[params.sampled_offset + row] = select(known, token, known == 0xffffffffu);
    if known != 0xffffffffu || token == 0xffffffffu {
        y[params.y_offset + row] = 0x7fffffff;
        return;
    }
    let heavy = weights[params.weights_offset + row * params.vocabulary + token];
    // Octaves below 1 in units of 2^-24, then natural ones of 2^-22.
    let below = log2_of(masses[0]) - log2_of(vec2<u32>(heavy, 0u));
    let information = i32(high(below, 2977044472u) >> 2u);
    var gumbel = i32(noise[params.noise_offset + row]);
    if params.given == 0u {
        gumbel = gumbel_of(noise[params.noise_offset + row]);
    }
    let scaled = product(u32(abs(gumbel)), params.factor);
    let magnitude = i32(min((scaled.y << 6u) | (scaled.x >> 26u), 0x3fffffffu));
    let bounded = select(magnitude, 0x3fffffff, scaled.y >= 0x01000000u);
    y[params.y_offset + row] = select(bounded, -bounded, gumbel < 0) - information;
}
