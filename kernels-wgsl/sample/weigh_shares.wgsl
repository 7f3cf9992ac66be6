//% set width = 256
// weigh_shares: the integer weight of each token from its probability, or any other measure of share.
//
//     weights[r, i] = x[r, i] * 2^(29 - e), rounded down, with e the exponent of the largest x of row r
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements
//     1 x        [rows, vocabulary] f32, contiguous, finite, none negative
//     2 weights  [rows, vocabulary] u32, contiguous; all 0 for a row with any other number, or of zeros
// Dispatch: a workgroup of ${ width } per row, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 4 * width } bytes.
//
// The largest weight is 2^29 to 2^30. The numbers are taken apart as bits, so nothing is rounded but what falls below 1.
struct Params {
    rows: u32,
    vocabulary: u32,
    x_offset: u32,
    weights_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> weights: array<u32>;

var<workgroup> most: array<u32, ${ width }>;

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
    // Bits of positive numbers are ordered as they are; NaN, infinity and negative numbers but -0 are above them.
    var largest = 0u;
    for (var token = invocation; token < params.vocabulary; token += ${ width }u) {
        let bits = x[params.x_offset + row * params.vocabulary + token];
        largest = max(largest, select(bits, 0u, bits == 0x80000000u));
    }
    most[invocation] = largest;
    workgroupBarrier();
    for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
        if invocation < distance {
            most[invocation] = max(most[invocation], most[invocation + distance]);
        }
        workgroupBarrier();
    }
    largest = most[0];
    let bad = largest >= 0x7f800000u;
    for (var token = invocation; token < params.vocabulary; token += ${ width }u) {
        let at = row * params.vocabulary + token;
        let bits = x[params.x_offset + at];
        // A subnormal number has the exponent of the least normal one, and no leading bit.
        let exponent = max((bits >> 23u) & 0xffu, 1u);
        let mantissa = (bits & 0x7fffffu) | select(0u, 0x800000u, exponent > 1u || (bits >> 23u) == 1u);
        let below = max(largest >> 23u, 1u) - exponent;
        weights[params.weights_offset + at] = select((mantissa << 6u) >> min(below, 31u), 0u, bad || below > 31u);
    }
}
