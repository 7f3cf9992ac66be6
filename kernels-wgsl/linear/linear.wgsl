//% import "include/element.wgsl" as element
//% import "include/linear.wgsl" as shared
//% set segments = 32
//% set together = 8
// linear: multiply each row by a matrix stored by outputs, and add a bias.
//
//     y[b, r, o] = scale[o] * sum over i of x[b, r, i] * weight[b, o, i] + bias[o]
//
// Bindings, group 0:
//     0 params   see the struct; offsets and the stride count elements, y's offset is even; weight_stride
//                is from one entry of the batch to the next, 0 if they share the weight; segment as below
//     1 x        [batch, rows, inputs] ${ dtype }, contiguous
//     2 weight   [batch or 1, outputs, inputs] ${ weight_dtype }, contiguous
//     3 scale    [outputs] f32; anything if has_scale is 0: then it is 1
//     4 bias     [outputs] f32; anything if has_bias is 0: then it is 0
//     5 y        [batch, rows, outputs] ${ dtype }, contiguous; other memory than x
// Dispatch: a workgroup of ${ segments * together } per ${ together } elements of y, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 4 * segments * together } bytes.
//
// For few rows: ${ segments } invocations share a dot product, a segment of the inputs each. A segment is a multiple
// of 16 inputs that leaves at most ${ segments } segments; it is summed from first to last, each step one fma, and
// then the segments' sums are added from first to last. linear_tile adds in the same order, so that a row
// gives the same bits alone and among others. Elements of y are taken in pairs, since two of a half type
// share a word; a pair may span two rows.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs); weight_dtype also i8 (four to a u32).
// Source: none; the plain sum.
${ shared.declarations(element, dtype, weight_dtype) }
var<workgroup> partial: array<f32, ${ segments * together }>;

fn dot_product(row: u32, output: u32, first: u32, last: u32) -> f32 {
    let x_start = params.x_offset + row * params.inputs;
    let weight_start = params.weight_offset + (row / params.rows) * params.weight_stride + output * params.inputs;
    var sum = 0.0;
    for (var i = first; i < last; i++) {
        sum = fma(${ element.load(dtype, "x", "x_start + i") }, ${ element.load(weight_dtype, "weight", "weight_start + i") }, sum);
    }
    return sum;
}

@compute @workgroup_size(${ segments * together })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let count = params.batch * params.rows * params.outputs;
    let start = (workgroup.x + workgroup.y * workgroups.x) * ${ together }u;
    let mine = start + invocation / ${ segments }u;
    var sum = 0.0;
    if mine < count {
        let row = mine / params.outputs;
        let first = min((invocation % ${ segments }u) * params.segment, params.inputs);
        let last = min(first + params.segment, params.inputs);
        sum = dot_product(row, mine - row * params.outputs, first, last);
    }
    partial[invocation] = sum;
    workgroupBarrier();
    let at = start + 2u * invocation;
    if invocation < ${ together // 2 }u && at < count {
        var pair: array<f32, 2>;
        for (var k = 0u; k < 2u; k++) {
            var total = 0.0;
            for (var s = 0u; s < ${ segments }u; s++) {
                total += partial[(2u * invocation + k) * ${ segments }u + s];
            }
            pair[k] = finished(total, (at + k) % params.outputs);
        }
        ${ element.store_pair(dtype, "y", "params.y_offset + at", "params.y_offset + count", "pair[0]", "pair[1]") }
    }
}
