//% set each = 32 // bits
// copy_parts: move elements of less than a word from any layout into whole words.
//
//     y[i0, .., i7] = x[i0, .., i7]
//
// Bindings, group 0:
//     0 params   see the struct; shape, x_strides and x_offset count elements; y_shape, y_strides and y_offset count
//                words of 4 bytes
//     1 x        elements of ${ bits } bits, ${ each } to a word, the lowest bits first; any layout of at most 8 axes
//     2 y        words of as many elements in row-major order, any layout in which no two words coincide; other memory
//                than x
// Dispatch: an invocation per word of y, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Axes are padded to eight with leading ones. A word is written whole, since a part cannot be: where the elements end
// within the last one, what lies behind them is written back.
//
// Variants: bits 8, 16.
struct Params {
    shape: array<vec4<u32>, 2>,
    x_strides: array<vec4<u32>, 2>,
    y_shape: array<vec4<u32>, 2>,
    y_strides: array<vec4<u32>, 2>,
    x_offset: u32,
    y_offset: u32,
    elements: u32,
    words: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

fn element(index: u32) -> u32 {
    var rest = index;
    var at = params.x_offset;
    for (var axis = 7i; axis >= 0i; axis--) {
        let length = params.shape[axis >> 2u][axis & 3i];
        at += (rest % length) * params.x_strides[axis >> 2u][axis & 3i];
        rest /= length;
    }
    return extractBits(x[at / ${ each }u], ${ bits }u * (at % ${ each }u), ${ bits }u);
}

@compute @workgroup_size(64)
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let word = (workgroup.x + workgroup.y * workgroups.x) * 64u + invocation;
    if word >= params.words {
        return;
    }
    var rest = word;
    var to_word = params.y_offset;
    for (var axis = 7i; axis >= 0i; axis--) {
        let length = params.y_shape[axis >> 2u][axis & 3i];
        to_word += (rest % length) * params.y_strides[axis >> 2u][axis & 3i];
        rest /= length;
    }
    let first = ${ each }u * word;
    let count = min(params.elements - first, ${ each }u);
    var bits = y[to_word];
    for (var part = 0u; part < count; part++) {
        bits = insertBits(bits, element(first + part), ${ bits }u * part, ${ bits }u);
    }
    y[to_word] = bits;
}
