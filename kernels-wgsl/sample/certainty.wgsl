//% set width = 256
// certainty: how sure each row of weights is.
//
//     largest[r] = the largest probability of row r;  entropy[r] = - sum over i of p[r, i] ln p[r, i]
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements, those of the outputs are 0
//     1 weights  [rows, vocabulary] u32, contiguous, each at most 2^30, vocabulary at most 2^18
//     2 largest  [rows] f32; 0 for a row of zeros
//     3 entropy  [rows] f32, natural units; 0 for a row of zeros
// Dispatch: a workgroup of ${ width } per row, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 12 * width } bytes.
//
// With w the weight over the largest, the entropy is ln(sum of w) - (sum of w ln w) / sum of w,
// which has no small difference of large numbers.
struct Params {
    rows: u32,
    vocabulary: u32,
    weights_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read_write> largest: array<f32>;
@group(0) @binding(3) var<storage, read_write> entropy: array<f32>;

var<workgroup> most: array<u32, ${ width }>;
var<workgroup> sums: array<vec2<f32>, ${ width }>;

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
    let start = params.weights_offset + row * params.vocabulary;
    var own = 0u;
    for (var token = invocation; token < params.vocabulary; token += ${ width }u) {
        own = max(own, weights[start + token]);
    }
    most[invocation] = own;
    workgroupBarrier();
    for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
        if invocation < distance {
            most[invocation] = max(most[invocation], most[invocation + distance]);
        }
        workgroupBarrier();
    }
    let scale = 1.0 / f32(max(most[0], 1u));
    var sum = vec2<f32>(0.0);
    for (var token = invocation; token < params.vocabulary; token += ${ width }u) {
        let w = f32(weights[start + token]) * scale;
        if w > 0.0 {
            sum += vec2<f32>(w, w * log(w));
        }
    }
    sums[invocation] = sum;
    workgroupBarrier();
    for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
        if invocation < distance {
            sums[invocation] += sums[invocation + distance];
        }
        workgroupBarrier();
    }
    if invocation == 0u {
        let total = max(sums[0].x, 1.0);
        largest[row] = select(0.0, 1.0 / total, most[0] > 0u);
        entropy[row] = log(total) - sums[0].y / total;
    }
}
