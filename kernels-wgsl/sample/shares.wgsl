//% set width = 256
// shares: what each weight is of its row's sum.
//
//     probabilities[r, i] = weights[r, i] / the sum of row r, or 0 if that is 0;  kept[r, i] = 1 if weights[r, i] > 0, else 0
//
// Bindings, group 0:
//     0 params         see the struct; offsets count elements
//     1 weights        [rows, vocabulary] u32, contiguous, each at most 2^30, vocabulary at most 2^18
//     2 probabilities  [rows, vocabulary] f32, contiguous
//     3 kept           [rows, vocabulary] u32, contiguous
// Dispatch: a workgroup of ${ width } per row, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 8 * width } bytes.
//
// The sum is exact, in 64 bits.
struct Params {
    rows: u32,
    vocabulary: u32,
    weights_offset: u32,
    probabilities_offset: u32,
    kept_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read_write> probabilities: array<f32>;
@group(0) @binding(3) var<storage, read_write> kept: array<u32>;

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
    let total = f32(masses[0].y) * 4294967296.0 + f32(masses[0].x);
    for (var token = invocation; token < params.vocabulary; token += ${ width }u) {
        let at = row * params.vocabulary + token;
        let heavy = weights[params.weights_offset + at];
        kept[params.kept_offset + at] = min(heavy, 1u);
        probabilities[params.probabilities_offset + at] = select(0.0, f32(heavy) / max(total, 1.0), heavy > 0u);
    }
}
