//% set width = 64
// fractions: a random number per row.
//
//     y[r] = the first word of philox4x32(seed, [streams[r], position, 0]), the lower words first
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements
//     1 streams  [rows, 2] u32, the lower word first: one per row, such as the picture's number
//     2 y        [rows] u32
// Dispatch: an invocation per row in workgroups of ${ width }, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
struct Params {
    rows: u32,
    streams_offset: u32,
    y_offset: u32,
    seed_low: u32,
    seed_high: u32,
    position: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> streams: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

//% include "include/wide.wgsl"
//% include "include/philox.wgsl"
@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let row = (workgroup.x + workgroup.y * workgroups.x) * ${ width }u + invocation;
    if row >= params.rows {
        return;
    }
    let stream = params.streams_offset + 2u * row;
    let counter = vec4<u32>(streams[stream], streams[stream + 1u], params.position, 0u);
    y[params.y_offset + row] = philox(vec2<u32>(params.seed_low, params.seed_high), counter).x;
}
