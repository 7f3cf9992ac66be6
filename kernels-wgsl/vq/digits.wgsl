//% import "include/element.wgsl" as element
// digits: the level of each channel, for quantizers without a codebook.
//
//     width > 0:  bounded = tanh(x + shift) * width - offset, digit = round(bounded) + half
//     width = 0:  bounded = x, digit = 1 iff x > 0
//
// Bindings, group 0:
//     0 params    see the struct; offsets count elements, bounded's is even
//     1 x         [vectors, channels] ${ dtype }, contiguous
//     2 bounds    [channels, 4] f32: shift, width, offset, half
//     3 bounded   as x, other memory
//     4 digits    [vectors, channels] u32
// Dispatch: an invocation per two elements, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Half types lie two to a word, so each invocation makes two neighbours. round() takes halves to even.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Mentzer et al. 2023, arXiv:2309.15505, sec. 3.1; Yu et al. 2023, arXiv:2310.05737, eq. 3.
struct Params {
    elements: u32,
    channels: u32,
    x_offset: u32,
    bounds_offset: u32,
    bounded_offset: u32,
    digits_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> bounds: array<f32>;
@group(0) @binding(3) var<storage, read_write> bounded: array<${ element.storage(dtype) }>;
@group(0) @binding(4) var<storage, read_write> digits: array<u32>;

${ element.functions(dtype) }
// The bounded value; the digit is written.
fn element_at(index: u32) -> f32 {
    let bound = params.bounds_offset + 4u * (index % params.channels);
    let width = bounds[bound + 1u];
    var value = ${ element.load(dtype, "x", "params.x_offset + index") };
    if width == 0.0 {
        digits[params.digits_offset + index] = u32(value > 0.0);
        return value;
    }
    // tanh overflows on some drivers; beyond 15 it is 1 to the last bit.
    value = tanh(clamp(value + bounds[bound], -15.0, 15.0)) * width - bounds[bound + 2u];
    digits[params.digits_offset + index] = u32(round(value) + bounds[bound + 3u]);
    return value;
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
    let a = element_at(first);
    var b = 0.0;
    if first + 1u < params.elements {
        b = element_at(first + 1u);
    }
    let at = params.bounded_offset + first;
    ${ element.store_pair(dtype, "bounded", "at", "params.bounded_offset + params.elements", "a", "b") }
}
