//% import "include/element.wgsl" as element
// conv2d: convolve a grid with a kernel, without flipping it; places outside the grid count as 0.
//
//     y[b, o, r, c] = bias[o] + sum over i, u, v of
//         x[b, i, r * stride + u - top, c * stride + v - left] * weight[o, i, u, v]
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements, y's is even
//     1 x        [batch, channels_in, height, width] ${ dtype }, contiguous
//     2 weight   [channels_out, channels_in, kernel_height, kernel_width] ${ weight_dtype }, contiguous
//     3 bias     [channels_out] f32, contiguous; anything if has_bias is 0
//     4 y        [batch, channels_out, rows, columns] ${ dtype }, contiguous
// Dispatch: an invocation per two elements of y, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Neighbouring invocations share a kernel and read neighbouring places, so both come from the cache. An
// output is summed over channels, then rows, then columns of the kernel, in f32.
//
// Variants: dtype, weight_dtype f32, f16, bf16 (the half types as u32 pairs).
struct Params {
    count: u32,
    channels_in: u32,
    height: u32,
    width: u32,
    channels_out: u32,
    kernel_height: u32,
    kernel_width: u32,
    rows: u32,
    columns: u32,
    stride: u32,
    top: u32,
    left: u32,
    y_offset: u32,
    x_offset: u32,
    weight_offset: u32,
    bias_offset: u32,
    has_bias: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> weight: array<${ element.storage(weight_dtype) }>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<${ element.storage(dtype) }>;

${ element.functions(dtype) }
fn value_at(index: u32) -> f32 {
    if index >= params.count {
        return 0.0;
    }
    let column = index % params.columns;
    let row = (index / params.columns) % params.rows;
    let plane = index / (params.columns * params.rows);
    let output = plane % params.channels_out;
    let picture = plane / params.channels_out;

    var sum = 0.0;
    if params.has_bias != 0u {
        sum = bias[params.bias_offset + output];
    }
    var kernel_at = params.weight_offset
        + output * params.channels_in * params.kernel_height * params.kernel_width;
    for (var i = 0u; i < params.channels_in; i++) {
        let plane_at = params.x_offset + (picture * params.channels_in + i) * params.height * params.width;
        for (var u = 0u; u < params.kernel_height; u++) {
            // Above the grid this wraps to a large number, which is outside as well.
            let from_row = row * params.stride + u - params.top;
            for (var v = 0u; v < params.kernel_width; v++) {
                let from_column = column * params.stride + v - params.left;
                if from_row < params.height && from_column < params.width {
                    let at = plane_at + from_row * params.width + from_column;
                    let x_value = ${ element.load(dtype, "x", "at") };
                    let weight_value = ${ element.load(weight_dtype, "weight", "kernel_at + v") };
                    sum += x_value * weight_value;
                }
            }
            kernel_at += params.kernel_width;
        }
    }
    return sum;
}

@compute @workgroup_size(64)
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let first = 2u * ((workgroup.x + workgroup.y * workgroups.x) * 64u + invocation);
    if first >= params.count {
        return;
    }
    let a = value_at(first);
    let b = value_at(first + 1u);
    let at = params.y_offset + first;
    ${ element.store_pair(dtype, "y", "at", "params.y_offset + params.count", "a", "b") }
}
