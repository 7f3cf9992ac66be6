//% import "include/element.wgsl" as element
//% set width = 64
// normalise: bring each row to mean 0 and variance 1, then scale and shift it per channel.
//
//     y[r, i] = (x[r, i] - mean) / sqrt(variance + eps) * weight[c] + bias[c]
//     c = (r % per_cycle) * (len / run) + i / run
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements, y's is even; eps in the unit of x^2
//     1 x        [rows, len] ${ dtype }, contiguous
//     2 weight   [channels] f32, contiguous; anything if has_weight is 0
//     3 bias     likewise
//     4 y        as x, but other memory: WebGPU forbids the alias
// Dispatch: a workgroup of ${ width } per row, or per two rows if len is odd; folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 4 * width } bytes.
//
// Layer norm has rows of one token, per_cycle 1 and run 1; group norm has rows of one group of channels of
// one picture, per_cycle groups and run places. Two passes over the row, the mean first: the variance from
// distances to the mean loses no digits where the mean is far from 0. Half types lie two to a word: with
// an odd len a row ends inside a word, so one workgroup takes both rows that share it.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Ba et al. 2016, arXiv:1607.06450, eq. 4; Wu and He 2018, arXiv:1803.08494, eq. 7.
struct Params {
    rows: u32,
    len: u32,
    per_cycle: u32,
    run: u32,
    y_offset: u32,
    x_offset: u32,
    weight_offset: u32,
    bias_offset: u32,
    has_weight: u32,
    has_bias: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<${ element.storage(dtype) }>;

var<workgroup> partial: array<f32, ${ width }>;

${ element.functions(dtype) }
// The sum of all invocations' values, in all invocations.
fn sum_over_workgroup(value: f32, invocation: u32) -> f32 {
    // The last sum must not be overwritten before all have read it.
    workgroupBarrier();
    partial[invocation] = value;
    workgroupBarrier();
    for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
        if invocation < distance {
            partial[invocation] += partial[invocation + distance];
        }
        workgroupBarrier();
    }
    return partial[0];
}

@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let rows_together = 1u + (params.len & 1u);
    let first_row = (workgroup.x + workgroup.y * workgroups.x) * rows_together;
    if first_row >= params.rows {
        return;
    }
    let row_count = min(rows_together, params.rows - first_row);

    var means: array<f32, 2>;
    var scales: array<f32, 2>;
    for (var r = 0u; r < row_count; r++) {
        let start = params.x_offset + (first_row + r) * params.len;
        var sum = 0.0;
        for (var i = invocation; i < params.len; i += ${ width }u) {
            sum += ${ element.load(dtype, "x", "start + i") };
        }
        let mean = sum_over_workgroup(sum, invocation) / f32(params.len);
        var squares = 0.0;
        for (var i = invocation; i < params.len; i += ${ width }u) {
            let distance = ${ element.load(dtype, "x", "start + i") } - mean;
            squares += distance * distance;
        }
        let variance = sum_over_workgroup(squares, invocation) / f32(params.len);
        means[r] = mean;
        scales[r] = inverseSqrt(variance + params.eps);
    }

    let start = params.x_offset + first_row * params.len;
    let count = row_count * params.len;
    for (var i = 2u * invocation; i < count; i += ${ 2 * width }u) {
        var pair: array<f32, 2>;
        for (var k = 0u; k < 2u; k++) {
            if i + k < count {
                let r = select(0u, 1u, i + k >= params.len);
                let channel = ((first_row + r) % params.per_cycle) * (params.len / params.run)
                    + (i + k - r * params.len) / params.run;
                var value = (${ element.load(dtype, "x", "start + i + k") } - means[r]) * scales[r];
                if params.has_weight != 0u {
                    value *= weight[params.weight_offset + channel];
                }
                if params.has_bias != 0u {
                    value += bias[params.bias_offset + channel];
                }
                pair[k] = value;
            }
        }
        let at = params.y_offset + first_row * params.len + i;
        ${ element.store_pair(dtype, "y", "at", "params.y_offset + first_row * params.len + count", "pair[0]", "pair[1]") }
    }
}
