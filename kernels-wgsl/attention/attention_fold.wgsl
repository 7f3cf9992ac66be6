//% import "include/element.wgsl" as element
//% from "attention/segments.wgsl" import fold
//% set width = 64
// attention_fold: add what the segments of the keys add to each query.
//
//     y[row, c] = sum over s of exp(most[s]) * mixed[s, c] / sum over s of exp(most[s]) * sum[s]
//     lse[row] = ln(sum over s of exp(most[s]) * sum[s])
//
// Bindings, group 0:
//     0 params   see the struct; strides and offsets count elements
//     1 parts    [rows, segments, head_dim + 2] f32, from attention_split: most, sum, then mixed
//     2 y        rows of y_stride elements; rows start on even elements
//     3 lse      [rows] f32
// Dispatch: a workgroup of ${ width } per row, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// An invocation makes two neighbouring channels, since half types lie two to a word, and goes over the segments for
// itself, in ascending order, as attention does.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Dao et al. 2023, "Flash-Decoding for long-context inference".
struct Params {
    rows: u32,
    segments: u32,
    head_dim: u32,
    parts_offset: u32,
    y_offset: u32,
    y_stride: u32,
    lse_offset: u32,
    minus_infinity: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<${ element.storage(dtype) }>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;

${ element.functions(dtype) }
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
    let start = params.parts_offset + row * params.segments * (params.head_dim + 2u);
    for (var channel = 2u * invocation; channel < params.head_dim; channel += ${ 2 * width }u) {
        var largest = -3.0e38;
        var sum = 0.0;
        var a = 0.0;
        var b = 0.0;
        for (var segment = 0u; segment < params.segments; segment++) {
            let part = start + segment * (params.head_dim + 2u);
                ${ fold("largest", "sum", "parts[part]", "parts[part + 1u]") }
            let addend = parts[part + 2u + channel] * there;
            a = fma(a, here, addend);
            if channel + 1u < params.head_dim {
                let next = parts[part + 3u + channel] * there;
                b = fma(b, here, next);
            }
        }
        let seen = (bitcast<u32>(sum) & 0x7fffffffu) != 0u;
        if seen {
            a /= sum;
            b /= sum;
        } else {
            a = 0.0;
            b = 0.0;
        }
        let at = params.y_offset + row * params.y_stride + channel;
        ${ element.store_pair(dtype, "y", "at", "at - channel + params.head_dim", "a", "b") }
        if channel == 0u {
            var value = bitcast<f32>(params.minus_infinity);
            if seen {
                value = largest + log(sum);
            }
            lse[params.lse_offset + row] = value;
        }
    }
}
