//% import "include/element.wgsl" as element
// embedding: look up a row of a table for each id.
//
//     y[r, c] = scale[ids[r]] * table[ids[r], c]
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements, y's is even
//     1 ids      [rows] u32, contiguous
//     2 table    [entries, channels] ${ table_dtype }, contiguous
//     3 scale    [entries] f32; anything if has_scale is 0: then it is 1
//     4 y        [rows, channels] ${ dtype }, contiguous
// Dispatch: an invocation per two elements of y, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Two elements to an invocation, since two of a half type share a word; they may be of two rows. An id
// beyond the table gives a row of zeros, and nothing is read for it.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs); table_dtype also i8 (four to a u32).
// Source: none.
struct Params {
    entries: u32,
    channels: u32,
    elements: u32,
    ids_offset: u32,
    table_offset: u32,
    scale_offset: u32,
    y_offset: u32,
    has_scale: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<${ element.storage(table_dtype) }>;
@group(0) @binding(3) var<storage, read> scale: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<${ element.storage(dtype) }>;

${ element.functions(dtype) }
fn value_at(index: u32) -> f32 {
    if index >= params.elements {
        return 0.0;
    }
    let row = index / params.channels;
    let id = ids[params.ids_offset + row];
    if id >= params.entries {
        return 0.0;
    }
    let at = params.table_offset + id * params.channels + (index - row * params.channels);
    let value = ${ element.load(table_dtype, "table", "at") };
    if params.has_scale == 0u {
        return value;
    }
    return value * scale[params.scale_offset + id];
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
