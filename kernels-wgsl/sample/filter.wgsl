//% import "include/element.wgsl" as element
//% set width = 256
// filter: what a filter keeps of each row, and the probabilities over that.
//
//     kept[r, i] = 1 where token i may be drawn, else 0
//     probabilities[r, i] = weight(i) / the sum of the kept weights where it is kept, else 0
//
// Bindings, group 0:
//     0 params         see the struct; offsets count elements; top_k at least 1; top_p in units of 2^-32, 0 keeps all
//     1 x              [rows, vocabulary] ${ dtype }, contiguous, vocabulary at most 2^18
//     2 probabilities  [rows, vocabulary] f32, contiguous
//     3 kept           [rows, vocabulary] u32, contiguous; all 0 for a row with a NaN, +inf or nothing but -inf
// Dispatch: a workgroup of ${ width } per row, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 12 * width } bytes.
//
// The weights and what is kept of them are those of the kernel `sample`, word for word; only the last step differs.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
struct Params {
    rows: u32,
    vocabulary: u32,
    x_offset: u32,
    probabilities_offset: u32,
    kept_offset: u32,
    top_k: u32,
    top_p: u32,
    least: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read_write> probabilities: array<f32>;
@group(0) @binding(3) var<storage, read_write> kept: array<u32>;

var<workgroup> counts: array<u32, ${ width }>;
var<workgroup> masses: array<vec2<u32>, ${ width }>;

//% include "include/wide.wgsl"
//% include "sample/kept_functions.wgsl"
fn key_at(row: u32, token: u32) -> u32 {
    let at = params.x_offset + row * params.vocabulary + token;
    return order(${ element.load(dtype, "x", "at") });
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

//% include "sample/kept_body.wgsl"
    let whole = f32(total.y) * 4294967296.0 + f32(total.x);
    rank = first_rank;
    for (var token = start; token < end; token++) {
        let key = key_at(row, token);
        let heavy = weight(key, largest);
        let keep = !bad && (key > last || (key == last && rank < equals)) && heavy >= params.least;
        if key == last {
            rank += 1u;
        }
        let at = row * params.vocabulary + token;
        kept[params.kept_offset + at] = select(0u, 1u, keep);
        probabilities[params.probabilities_offset + at] = select(0.0, f32(heavy) / whole, keep);
    }
}
