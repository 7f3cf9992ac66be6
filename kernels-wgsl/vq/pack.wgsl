// pack: digits as one number each.
//
//     indices[n] = sum over c of digits[n, c] * base[c]
//
// Bindings, group 0:
//     0 params    see the struct; offsets count elements
//     1 digits    [vectors, channels] u32, contiguous
//     2 bases     [channels, 2] u32: what a digit counts, and how many levels it has
//     3 indices   [vectors] u32
// Dispatch: an invocation per vector, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Source: positional notation with a radix for each digit.
struct Params {
    vectors: u32,
    channels: u32,
    digits_offset: u32,
    bases_offset: u32,
    indices_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> digits: array<u32>;
@group(0) @binding(2) var<storage, read> bases: array<u32>;
@group(0) @binding(3) var<storage, read_write> indices: array<u32>;

@compute @workgroup_size(64)
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let vector = (workgroup.x + workgroup.y * workgroups.x) * 64u + invocation;
    if vector >= params.vectors {
        return;
    }
    var index = 0u;
    for (var c = 0u; c < params.channels; c++) {
        let digit = digits[params.digits_offset + vector * params.channels + c];
        index += digit * bases[params.bases_offset + 2u * c];
    }
    indices[params.indices_offset + vector] = index;
}
