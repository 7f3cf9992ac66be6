//% import "include/element.wgsl" as element
// swiglu: scale a value by the silu of its gate.
//
//     y[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements, y's is even
//     1 gate     ${ dtype }, contiguous
//     2 up       as gate
//     3 y        as gate, but other memory: WebGPU forbids the alias
// Dispatch: an invocation per two elements of y, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Two elements to an invocation, since two of a half type share a word. The argument of exp is held to
// where it is finite.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
struct Params {
    gate_offset: u32,
    up_offset: u32,
    y_offset: u32,
    elements: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> up: array<${ element.storage(dtype) }>;
@group(0) @binding(3) var<storage, read_write> y: array<${ element.storage(dtype) }>;

${ element.functions(dtype) }
fn value_at(index: u32) -> f32 {
    if index >= params.elements {
        return 0.0;
    }
    let opening = ${ element.load(dtype, "gate", "params.gate_offset + index") };
    let value = ${ element.load(dtype, "up", "params.up_offset + index") };
    return opening / (1.0 + exp(min(-opening, 88.0))) * value;
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
    ${ element.store_pair(dtype, "y", "params.y_offset + first", "params.y_offset + params.elements", "a", "b") }
}
