//% set width = 256
// draw: one token per row, by the inverse of the cumulative weights in index order.
//
//     y[r] = the first token whose cumulative weight exceeds fractions[r] / 2^32 of the whole
//
// Bindings, group 0:
//     0 params     see the struct; offsets count elements
//     1 weights    [rows, vocabulary] u32, contiguous, each at most 2^30, vocabulary at most 2^18
//     2 fractions  [rows] u32
//     3 y          [rows] u32; 0xffffffff for a row of zeros
// Dispatch: a workgroup of ${ width } per row, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 8 * width } bytes.
//
// Each invocation adds up a stretch of the row in 64 bits; the one whose stretch holds the target walks it.
struct Params {
    rows: u32,
    vocabulary: u32,
    weights_offset: u32,
    fractions_offset: u32,
    y_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> fractions: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

var<workgroup> masses: array<vec2<u32>, ${ width }>;

//% include "include/wide.wgsl"
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
    let row_start = params.weights_offset + row * params.vocabulary;
    let stretch = (params.vocabulary + ${ width - 1 }u) / ${ width }u;
    let start = min(invocation * stretch, params.vocabulary);
    let end = min(start + stretch, params.vocabulary);
    var mass = vec2<u32>(0u);
    for (var token = start; token < end; token++) {
        mass = add(mass, vec2<u32>(weights[row_start + token], 0u));
    }
    masses[invocation] = mass;
    workgroupBarrier();
    var before = vec2<u32>(0u);
    var total = vec2<u32>(0u);
    for (var other = 0u; other < ${ width }u; other++) {
        if other == invocation {
            before = total;
        }
        total = add(total, masses[other]);
    }
    let goal = share(total, fractions[params.fractions_offset + row]).xy;
    if total.x == 0u && total.y == 0u {
        if invocation == 0u {
            y[params.y_offset + row] = 0xffffffffu;
        }
    } else if !less(goal, before) && less(goal, add(before, mass)) {
        var token = start;
        for (; token < end; token++) {
            before = add(before, vec2<u32>(weights[row_start + token], 0u));
            if less(goal, before) {
                break;
            }
        }
        y[params.y_offset + row] = token;
    }
}
