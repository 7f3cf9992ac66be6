//% import "include/element.wgsl" as element
// codes: the codes of digits, for quantizers without a codebook.
//
//     y[n, c] = (digits[n, c] - offset[c]) * scale[c]
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements, y's is even
//     1 digits   [vectors, channels] u32, contiguous
//     2 scales   [channels, 2] f32: offset, scale
//     3 y        [vectors, channels] ${ dtype }, contiguous
// Dispatch: an invocation per two elements, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Half types lie two to a word, so each invocation makes two neighbours.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Mentzer et al. 2023, arXiv:2309.15505, sec. 3.1; Zhao et al. 2024, arXiv:2406.07548, sec. 4.1.
struct Params {
    elements: u32,
    channels: u32,
    digits_offset: u32,
    scales_offset: u32,
    y_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> digits: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<${ element.storage(dtype) }>;

${ element.functions(dtype) }
fn code_at(index: u32) -> f32 {
    let scale = params.scales_offset + 2u * (index % params.channels);
    return (f32(digits[params.digits_offset + index]) - scales[scale]) * scales[scale + 1u];
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
    let a = code_at(first);
    var b = 0.0;
    if first + 1u < params.elements {
        b = code_at(first + 1u);
    }
    let at = params.y_offset + first;
    ${ element.store_pair(dtype, "y", "at", "params.y_offset + params.elements", "a", "b") }
}
