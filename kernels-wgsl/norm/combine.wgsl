//% import "include/element.wgsl" as element
// combine: what adaptive layer norm does around a block, element by element.
//
//     gated = 0:  y = x * (1 + a) + b     (modulate)
//     gated = 1:  y = x + a * b           (gated add)
//
// Bindings, group 0:
//     0 params   see the struct; strides and offsets count elements, y's offset is even
//     1 x        [batch, seq, channels] ${ dtype }, contiguous
//     2 a        the same shape, any strides; a stride of 0 repeats an axis
//     3 b        likewise
//     4 y        as x, but other memory: WebGPU forbids the alias
// Dispatch: an invocation per two elements, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Peebles and Xie 2022, arXiv:2212.09748, section 3.2.
struct Params {
    rows: u32,
    seq: u32,
    channels: u32,
    gated: u32,
    y_offset: u32,
    x_offset: u32,
    a_offset: u32,
    b_offset: u32,
    a_batch_stride: u32,
    a_seq_stride: u32,
    a_stride: u32,
    b_batch_stride: u32,
    b_seq_stride: u32,
    b_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> a: array<${ element.storage(dtype) }>;
@group(0) @binding(3) var<storage, read> b: array<${ element.storage(dtype) }>;
@group(0) @binding(4) var<storage, read_write> y: array<${ element.storage(dtype) }>;

${ element.functions(dtype) }
fn value_at(index: u32) -> f32 {
    let row = index / params.channels;
    if row >= params.rows {
        return 0.0;
    }
    let channel = index % params.channels;
    let picture = row / params.seq;
    let place = row % params.seq;
    let a_at = params.a_offset + picture * params.a_batch_stride + place * params.a_seq_stride
        + channel * params.a_stride;
    let b_at = params.b_offset + picture * params.b_batch_stride + place * params.b_seq_stride
        + channel * params.b_stride;
    let x_value = ${ element.load(dtype, "x", "params.x_offset + index") };
    let a_value = ${ element.load(dtype, "a", "a_at") };
    let b_value = ${ element.load(dtype, "b", "b_at") };
    if params.gated != 0u {
        return x_value + a_value * b_value;
    }
    return x_value * (1.0 + a_value) + b_value;
}

@compute @workgroup_size(64)
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let first = 2u * ((workgroup.x + workgroup.y * workgroups.x) * 64u + invocation);
    let count = params.rows * params.channels;
    if first >= count {
        return;
    }
    let first_value = value_at(first);
    let second_value = value_at(first + 1u);
    let at = params.y_offset + first;
    ${ element.store_pair(dtype, "y", "at", "params.y_offset + count", "first_value", "second_value") }
}
