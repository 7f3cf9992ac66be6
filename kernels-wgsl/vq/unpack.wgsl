// unpack: the digits of numbers.
//
//     digits[n, c] = floor(indices[n] / base[c]) mod levels[c]
//
// Bindings, group 0:
//     0 params    see the struct; offsets count elements
//     1 indices   [vectors] u32, contiguous
//     2 bases     [channels, 2] u32: what a digit counts, and how many levels it has
//     3 digits    [vectors, channels] u32
// Dispatch: an invocation per digit, in workgroups of 64, folded over x and y.
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
@group(0) @binding(1) var<storage, read> indices: array<u32>;
@group(0) @binding(2) var<storage, read> bases: array<u32>;
@group(0) @binding(3) var<storage, read_write> digits: array<u32>;

@compute @workgroup_size(64)
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let at = (workgroup.x + workgroup.y * workgroups.x) * 64u + invocation;
    if at >= params.vectors * params.channels {
        return;
    }
    let basis = params.bases_offset + 2u * (at % params.channels);
    let index = indices[params.indices_offset + at / params.channels];
    digits[params.digits_offset + at] = index / bases[basis] % bases[basis + 1u];
}
