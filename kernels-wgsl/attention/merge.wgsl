//% import "include/element.wgsl" as element
// merge: attention over all keys from attention over parts of them.
//
//     merged[row] = ln(sum over p of exp(lse[p, row]))
//     y[row, c] = sum over p of exp(lse[p, row] - merged[row]) * parts[p, row, c]
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements, y's is even
//     1 parts    [parts, rows, head_dim] ${ dtype }, contiguous
//     2 lse      [parts, rows] f32, contiguous
//     3 y        [rows, head_dim] ${ dtype }, contiguous, other memory
//     4 merged   [rows] f32
// Dispatch: an invocation per two elements of y, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Each invocation goes over the parts for itself: they are few. A part that saw nothing is found by the bits of its
// lse and left out, so that no infinity is computed with.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Dao et al. 2022, arXiv:2205.14135, section 3.1.
struct Params {
    elements: u32,
    rows: u32,
    head_dim: u32,
    parts: u32,
    parts_offset: u32,
    lse_offset: u32,
    y_offset: u32,
    merged_offset: u32,
    minus_infinity: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<${ element.storage(dtype) }>;
@group(0) @binding(4) var<storage, read_write> merged: array<f32>;

${ element.functions(dtype) }
// An element; with channel 0 the row's lse is written too.
fn element_at(index: u32) -> f32 {
    let row = index / params.head_dim;
    var largest = -3.0e38;
    for (var p = 0u; p < params.parts; p++) {
        let term = lse[params.lse_offset + p * params.rows + row];
        if bitcast<u32>(term) != params.minus_infinity {
            largest = max(largest, term);
        }
    }
    var sum = 0.0;
    var mixed = 0.0;
    for (var p = 0u; p < params.parts; p++) {
        let term = lse[params.lse_offset + p * params.rows + row];
        if bitcast<u32>(term) != params.minus_infinity {
            let weight = exp(term - largest);
            sum += weight;
            let at = params.parts_offset + p * params.elements + index;
            mixed = fma(weight, ${ element.load(dtype, "parts", "at") }, mixed);
        }
    }
    let seen = (bitcast<u32>(sum) & 0x7fffffffu) != 0u;
    if index % params.head_dim == 0u {
        var value = bitcast<f32>(params.minus_infinity);
        if seen {
            value = largest + log(sum);
        }
        merged[params.merged_offset + row] = value;
    }
    if seen {
        return mixed / sum;
    }
    return 0.0;
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
    let at = params.y_offset + first;
    ${ element.store_pair(dtype, "y", "at", "params.y_offset + params.elements", "a", "b") }
}
