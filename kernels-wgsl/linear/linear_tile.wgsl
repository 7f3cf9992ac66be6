//% import "include/element.wgsl" as element
//% import "include/linear.wgsl" as shared
//% set tile = 64
//% set chunk = 16
//% set pitch = tile + 1
// linear_tile: multiply each row by a matrix stored by outputs, and add a bias; for many rows.
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
//     5 y        [batch, rows, outputs] ${ dtype }, contiguous; other memory than x; outputs is even unless f32
// Dispatch: workgroups of 256; ceil(outputs / ${ tile }) along x, ceil(rows / ${ tile }) along y, batch along z.
// Needs: WebGPU's defaults. Workgroup memory: ${ 2 * 4 * chunk * pitch } bytes.
//
// A workgroup makes ${ tile } rows by ${ tile } outputs, an invocation 4 by 4 of them in registers. The inputs pass
// through workgroup memory ${ chunk } at a time, as ${ chunk } lines of ${ tile } rows and of ${ tile } outputs, one place longer than
// that, so that neighbours write to different banks. The order of the sums is that of linear.wgsl: one
// segment after the other, so a segment's end, always a chunk's too, moves its sum to the total.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs); weight_dtype also i8 (four to a u32).
// Source: none; the plain sum.
${ shared.declarations(element, dtype, weight_dtype) }
var<workgroup> x_tile: array<f32, ${ chunk * pitch }>;
var<workgroup> weight_tile: array<f32, ${ chunk * pitch }>;

@compute @workgroup_size(256)
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let first_output = workgroup.x * ${ tile }u;
    let first_row = workgroup.y * ${ tile }u;
    let entry_row = workgroup.z * params.rows;
    let x_start = params.x_offset + entry_row * params.inputs;
    let weight_start = params.weight_offset + workgroup.z * params.weight_stride;
    let my_output = 4u * (invocation % 16u);
    let my_row = 4u * (invocation / 16u);

    var totals: array<vec4<f32>, 4>;
    var sums: array<vec4<f32>, 4>;
    var segment_end = params.segment;
    for (var first = 0u; first < params.inputs; first += ${ chunk }u) {
        for (var e = invocation; e < ${ chunk * tile }u; e += 256u) {
            let i = first + e % ${ chunk }u;
            let line = e / ${ chunk }u;
            let place = (e % ${ chunk }u) * ${ pitch }u + line;
            var value = 0.0;
            if i < params.inputs && first_row + line < params.rows {
                let at = x_start + (first_row + line) * params.inputs + i;
                value = ${ element.load(dtype, "x", "at") };
            }
            x_tile[place] = value;
            value = 0.0;
            if i < params.inputs && first_output + line < params.outputs {
                let at = weight_start + (first_output + line) * params.inputs + i;
                value = ${ element.load(weight_dtype, "weight", "at") };
            }
            weight_tile[place] = value;
        }
        workgroupBarrier();
        for (var k = 0u; k < ${ chunk }u; k++) {
            let w = k * ${ pitch }u + my_output;
            let weights = vec4(weight_tile[w], weight_tile[w + 1u], weight_tile[w + 2u], weight_tile[w + 3u]);
            let r = k * ${ pitch }u + my_row;
            //% for row in range(4)
            sums[${ row }] = fma(vec4(x_tile[r + ${ row }u]), weights, sums[${ row }]);
            //% endfor
        }
        if first + ${ chunk }u == segment_end {
            for (var row = 0u; row < 4u; row++) {
                totals[row] += sums[row];
                sums[row] = vec4(0.0);
            }
            segment_end += params.segment;
        }
        // The next chunk must not overwrite what another invocation still reads.
        workgroupBarrier();
    }
    for (var r = 0u; r < 4u; r++) {
        let row = first_row + my_row + r;
        if row < params.rows {
            let total = totals[r] + sums[r];
            let start = params.y_offset + (entry_row + row) * params.outputs;
            for (var j = 0u; j < 4u; j += 2u) {
                let output = first_output + my_output + j;
                if output < params.outputs {
                    let a = finished(total[j], output);
                    let b = finished(total[j + 1u], min(output + 1u, params.outputs - 1u));
                    ${ element.store_pair(dtype, "y", "start + output", "start + params.outputs", "a", "b") }
                }
            }
        }
    }
}
