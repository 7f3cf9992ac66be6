//% set width = 64
// words: three random words for each place of each sequence.
//
//     y[k, b, i] = word k of philox4x32(seed, [streams[b], starts[b] + i, round]), the lower words first
//
// Bindings, group 0:
//     0 params     see the struct; offsets count elements
//     1 sequences  [batch, 3] u32: the stream of each sequence, the lower word first, and the position of its first place
//     2 y          [3, batch, places] u32
// Dispatch: an invocation per place in workgroups of ${ width }, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
struct Params {
    batch: u32,
    places: u32,
    sequences_offset: u32,
    y_offset: u32,
    seed_low: u32,
    seed_high: u32,
    round: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> sequences: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

//% include "include/wide.wgsl"
//% include "include/philox.wgsl"
@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let place = (workgroup.x + workgroup.y * workgroups.x) * ${ width }u + invocation;
    let places = params.batch * params.places;
    if place >= places {
        return;
    }
    let sequence = params.sequences_offset + 3u * (place / params.places);
    let position = sequences[sequence + 2u] + place % params.places;
    let counter = vec4<u32>(sequences[sequence], sequences[sequence + 1u], position, params.round);
    let drawn = philox(vec2<u32>(params.seed_low, params.seed_high), counter);
    for (var word = 0u; word < 3u; word++) {
        y[params.y_offset + word * places + place] = drawn[word];
    }
}
