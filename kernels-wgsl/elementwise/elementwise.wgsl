//% import "include/element.wgsl" as element
// elementwise: add multiples of two tensors, or multiply them, element by element.
//
//     y[i0, .., i7] = alpha * a[i0, .., i7] + beta * b[i0, .., i7]     if multiply is 0
//     y[i0, .., i7] = a[i0, .., i7] * b[i0, .., i7]                    otherwise
//
// Bindings, group 0:
//     0 params   see the struct; shape, strides and offsets count elements, y's offset is even
//     1 a        ${ dtype }, contiguous
//     2 b        ${ dtype }, any layout of at most 8 axes; a stride of 0 repeats an axis; dense if b_dense is 1
//     3 y        as a, but other memory than a and b
// Dispatch: an invocation per two elements of y, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Axes are padded to eight with leading ones. Two elements to an invocation, since two of a half type
// share a word.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: none.
struct Params {
    shape: array<vec4<u32>, 2>,
    b_strides: array<vec4<u32>, 2>,
    a_offset: u32,
    b_offset: u32,
    y_offset: u32,
    elements: u32,
    b_dense: u32,
    multiply: u32,
    alpha: f32,
    beta: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> b: array<${ element.storage(dtype) }>;
@group(0) @binding(3) var<storage, read_write> y: array<${ element.storage(dtype) }>;

${ element.functions(dtype) }
fn value_at(index: u32) -> f32 {
    if index >= params.elements {
        return 0.0;
    }
    var b_element = params.b_offset;
    if params.b_dense != 0u {
        b_element += index;
    } else {
        var rest = index;
        for (var axis = 7i; axis >= 0i; axis--) {
            let length = params.shape[axis >> 2u][axis & 3i];
            b_element += (rest % length) * params.b_strides[axis >> 2u][axis & 3i];
            rest /= length;
        }
    }
    let left = ${ element.load(dtype, "a", "params.a_offset + index") };
    let right = ${ element.load(dtype, "b", "b_element") };
    if params.multiply != 0u {
        return left * right;
    }
    return params.alpha * left + params.beta * right;
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
    let one = value_at(first);
    let two = value_at(first + 1u);
    ${ element.store_pair(dtype, "y", "params.y_offset + first", "params.y_offset + params.elements", "one", "two") }
}
