// copy: move words from one layout to another.
//
//     y[i0, .., i7] = x[i0, .., i7]
//
// Bindings, group 0:
//     0 params   see the struct; shape, strides and offsets count words of 4 bytes
//     1 x        words, any layout of at most 8 axes
//     2 y        words, any layout in which no two places coincide; other memory than x
// Dispatch: an invocation per word, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Axes are padded to eight with leading ones. An element type of 2 bytes or 1 is copied by words too,
// where its layouts fall on whole words; the launcher halves or quarters them.
struct Params {
    shape: array<vec4<u32>, 2>,
    x_strides: array<vec4<u32>, 2>,
    y_strides: array<vec4<u32>, 2>,
    x_offset: u32,
    y_offset: u32,
    words: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(64)
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    var rest = (workgroup.x + workgroup.y * workgroups.x) * 64u + invocation;
    if rest >= params.words {
        return;
    }
    var from_word = params.x_offset;
    var to_word = params.y_offset;
    for (var axis = 7i; axis >= 0i; axis--) {
        let length = params.shape[axis >> 2u][axis & 3i];
        let at = rest % length;
        rest /= length;
        from_word += at * params.x_strides[axis >> 2u][axis & 3i];
        to_word += at * params.y_strides[axis >> 2u][axis & 3i];
    }
    y[to_word] = x[from_word];
}
