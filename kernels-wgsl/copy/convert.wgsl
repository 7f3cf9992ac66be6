//% import "include/element.wgsl" as element
// convert: change the float type, rounding to nearest, ties to even, and make the layout dense.
//
//     y[i0, .., i7] = x[i0, .., i7]
//
// Bindings, group 0:
//     0 params   see the struct; shape, strides and offsets count elements, y's offset is even
//     1 x        ${ from }, any layout of at most 8 axes
//     2 y        ${ to }, contiguous; other memory than x
// Dispatch: an invocation per two elements of y, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Axes are padded to eight with leading ones. Two elements to an invocation, since two of a half type
// share a word.
//
// Variants: from, to f32, f16, bf16 (the half types as u32 pairs).
struct Params {
    shape: array<vec4<u32>, 2>,
    x_strides: array<vec4<u32>, 2>,
    x_offset: u32,
    y_offset: u32,
    elements: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(from) }>;
@group(0) @binding(2) var<storage, read_write> y: array<${ element.storage(to) }>;

${ element.functions(to) }
fn value_at(index: u32) -> f32 {
    if index >= params.elements {
        return 0.0;
    }
    var rest = index;
    var from_element = params.x_offset;
    for (var axis = 7i; axis >= 0i; axis--) {
        let length = params.shape[axis >> 2u][axis & 3i];
        from_element += (rest % length) * params.x_strides[axis >> 2u][axis & 3i];
        rest /= length;
    }
    return ${ element.load(from, "x", "from_element") };
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
    let a = value_at(first);
    let b = value_at(first + 1u);
    let at = params.y_offset + first;
    ${ element.store_pair(to, "y", "at", "params.y_offset + params.elements", "a", "b") }
}
