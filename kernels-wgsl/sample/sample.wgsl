//% import "include/element.wgsl" as element
//% set width = 256
// sample: one token per row, drawn from what a filter keeps.
//
//     y[r] = the first kept token whose cumulative weight exceeds fractions[r] / 2^32 of the kept weight
//
// Bindings, group 0:
//     0 params     see the struct; offsets count elements; top_k at least 1; top_p in units of 2^-32, 0 keeps all
//     1 x          [rows, vocabulary] ${ dtype }, contiguous, vocabulary at most 2^18
//     2 fractions  [rows] u32
//     3 y          [rows] u32; 0xffffffff for a row with a NaN, +inf or nothing but -inf
// Dispatch: a workgroup of ${ width } per row, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 12 * width } bytes.
//
// A weight is an integer: one subtraction and one multiplication of f32, which every device rounds alike, then
// integer arithmetic alone, so that the draw is that of every other backend. Sums are in 64 bits, as vec2 with the
// lower word first. What top-k and top-p keep is the start of the descending order: its last logit is found bit by
// bit, a pass over the row each, and of the logits equal to it those of lowest index are kept. At last each
// invocation adds up a stretch of the row, and the one whose stretch holds the target walks it.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
struct Params {
    rows: u32,
    vocabulary: u32,
    x_offset: u32,
    fractions_offset: u32,
    y_offset: u32,
    top_k: u32,
    top_p: u32,
    least: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> fractions: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

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
    let goal = share(total, fractions[params.fractions_offset + row]).xy;
    if bad {
        if invocation == 0u {
            y[params.y_offset + row] = 0xffffffffu;
        }
    } else if !less(goal, before) && less(goal, add(before, mass)) {
        rank = first_rank;
        var token = start;
        for (; token < end; token++) {
            let key = key_at(row, token);
            let heavy = weight(key, largest);
            if (key > last || (key == last && rank < equals)) && heavy >= params.least {
                before = add(before, vec2<u32>(heavy, 0u));
                if less(goal, before) {
                    break;
                }
            }
            if key == last {
                rank += 1u;
            }
        }
        y[params.y_offset + row] = token;
    }
}
