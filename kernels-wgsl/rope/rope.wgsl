//% import "include/element.wgsl" as element
// rope: turn pairs of channels by the angles of their position.
//
//     (a, b) -> (a cos - b sin, a sin + b cos), by the table's row of the position
//
// Bindings, group 0:
//     0 params      see the struct; strides and offsets count elements
//     1 x           [batch, heads, seq, head_dim] ${ dtype }, last axis contiguous
//     2 cos_table   [batch, seq, pairs] f32, last axis contiguous; a batch stride of 0 repeats it
//     3 sin_table   likewise
//     4 y           as x, other memory; contiguous, or an even head_dim and for half types even strides and offset
// Dispatch: an invocation per two elements of y, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Pair j is channels 2 j and 2 j + 1 if interleaved is 1, else j and j + pairs; channels beyond all pairs
// are copied. Half types lie two to a word, so each invocation makes two neighbours, whatever pairs they
// belong to. y may be a part of a cache: then the turned keys go where attention reads them.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
struct Params {
    x_strides: vec4<u32>,
    y_strides: vec4<u32>,
    elements: u32,
    heads: u32,
    seq: u32,
    head_dim: u32,
    pairs: u32,
    interleaved: u32,
    cos_batch_stride: u32,
    cos_stride: u32,
    sin_batch_stride: u32,
    sin_stride: u32,
    x_offset: u32,
    cos_offset: u32,
    sin_offset: u32,
    y_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> cos_table: array<f32>;
@group(0) @binding(3) var<storage, read> sin_table: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<${ element.storage(dtype) }>;

${ element.functions(dtype) }
// Batch entry, head, position and channel of an element.
fn place(index: u32) -> vec4<u32> {
    let row = index / params.head_dim;
    return vec4(row / params.seq / params.heads, row / params.seq % params.heads, row % params.seq, index % params.head_dim);
}

fn turned(at: vec4<u32>) -> f32 {
    let channel = at.w;
    let start = params.x_offset + dot(at.xyz, params.x_strides.xyz);
    let value = ${ element.load(dtype, "x", "start + channel") };
    if channel >= 2u * params.pairs {
        return value;
    }
    var pair = channel >> 1u;
    var second = channel & 1u;
    var partner = channel ^ 1u;
    if params.interleaved == 0u {
        second = u32(channel >= params.pairs);
        pair = channel - second * params.pairs;
        partner = pair + (1u - second) * params.pairs;
    }
    let other = ${ element.load(dtype, "x", "start + partner") };
    let cosine = cos_table[params.cos_offset + at.x * params.cos_batch_stride + at.z * params.cos_stride + pair];
    let sine = sin_table[params.sin_offset + at.x * params.sin_batch_stride + at.z * params.sin_stride + pair];
    if second == 1u {
        return other * sine + value * cosine;
    }
    return value * cosine - other * sine;
}

@compute @workgroup_size(64)
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let first = 2u * ((workgroup.x + workgroup.y * workgroups.x) * 64u + invocation);
    if first >= params.elements {
        return;
    }
    let here = place(first);
    let a = turned(here);
    var b = 0.0;
    if first + 1u < params.elements {
        b = turned(place(first + 1u));
    }
    // The neighbour of the last channel is the next row's first only where rows lie without gaps.
    let at = params.y_offset + dot(here.xyz, params.y_strides.xyz) + here.w;
    ${ element.store_pair(dtype, "y", "at", "at + params.elements - first", "a", "b") }
}
