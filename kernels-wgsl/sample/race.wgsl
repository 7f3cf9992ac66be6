//% set width = 256
// race: one token per row, by Gumbel-max.
//
//     y[r] = the token of the largest ln(weights[r, i]) - ln(-ln(u[r, i])), the lowest index among equals
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements
//     1 weights  [rows, vocabulary] u32, contiguous, each at most 2^30
//     2 noise    [rows, vocabulary] u32, u in units of 2^-32; or, if params.drawn is 1, [rows, 2] u32: the stream of each
//                row, the lower word first
//     3 y        [rows] u32; 0xffffffff for a row of zeros
// Dispatch: a workgroup of ${ width } per row, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 16 * width } bytes.
//
// The token is the first to arrive where each arrives after e / weight, e = -log2(u): the smallest such quotient, found by
// multiplying crosswise in integers of three words, so that it is the same token everywhere. Drawn noise is Philox's
// of seed and counter [stream, position, 2^31 + i / 4], word i mod 4.
//
// Source: Maddison, Tarlow and Minka 2014, arXiv:1411.0030, section 2.
struct Params {
    rows: u32,
    vocabulary: u32,
    weights_offset: u32,
    noise_offset: u32,
    y_offset: u32,
    drawn: u32,
    seed_low: u32,
    seed_high: u32,
    position: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> noise: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

// The winner of each invocation: its arrival (lower, upper), weight and token. Weight 0 if there is none.
var<workgroup> winners: array<vec4<u32>, ${ width }>;

//% include "include/wide.wgsl"
//% include "include/wider.wgsl"
//% include "include/philox.wgsl"
//% include "include/logarithm.wgsl"
fn first(a: vec4<u32>, b: vec4<u32>) -> vec4<u32> {
    if a.z == 0u || b.z == 0u {
        return select(a, b, a.z == 0u);
    }
    let of_a = product_wide(a.xy, b.z);
    let of_b = product_wide(b.xy, a.z);
    let later = less_wide(of_b, of_a) || (!less_wide(of_a, of_b) && b.w < a.w);
    return select(a, b, later);
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
    var winner = vec4<u32>(0u, 0u, 0u, 0xffffffffu);
    // Four tokens share a block of random words.
    for (var block = invocation; block < (params.vocabulary + 3u) / 4u; block += ${ width }u) {
        var words = vec4<u32>(0u);
        if params.drawn != 0u {
            let stream = params.noise_offset + 2u * row;
            let counter = vec4<u32>(noise[stream], noise[stream + 1u], params.position, 0x80000000u | block);
            words = philox(vec2<u32>(params.seed_low, params.seed_high), counter);
        }
        for (var lane = 0u; lane < 4u; lane++) {
            let token = 4u * block + lane;
            if token >= params.vocabulary {
                break;
            }
            let at = row * params.vocabulary + token;
            let heavy = weights[params.weights_offset + at];
            if heavy == 0u {
                continue;
            }
            var word = words[lane];
            if params.drawn == 0u {
                word = noise[params.noise_offset + at];
            }
            winner = first(winner, vec4<u32>(exponential(word), heavy, token));
        }
    }
    winners[invocation] = winner;
    workgroupBarrier();
    for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
        if invocation < distance {
            winners[invocation] = first(winners[invocation], winners[invocation + distance]);
        }
        workgroupBarrier();
    }
    if invocation == 0u {
        y[params.y_offset + row] = winners[0].w;
    }
}
