//% import "include/element.wgsl" as element
//% set width = 64
// watermark: adds a bias to the logits of a green list that the token before chooses.
//
//     y[r, i] = x[r, i] + bias where word i mod 4 of philox4x32(key, [before[r], 0, 0, i / 4]) < green, else x[r, i]
//
// Bindings, group 0:
//     0 params  see the struct; offsets count elements; y_offset even; green in units of 2^-32, all ones for every token
//     1 x       [rows, vocabulary] ${ dtype }, contiguous
//     2 before  [rows] u32
//     3 y       as x, but other memory
// Dispatch: an invocation per two elements in workgroups of ${ width }, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Kirchenbauer et al. 2023, arXiv:2301.10226, algorithm 2.
struct Params {
    elements: u32,
    vocabulary: u32,
    x_offset: u32,
    before_offset: u32,
    y_offset: u32,
    key_low: u32,
    key_high: u32,
    green: u32,
    bias: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> before: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<${ element.storage(dtype) }>;

${ element.functions(dtype) }
//% include "include/wide.wgsl"
//% include "include/philox.wgsl"
fn biased(at: u32) -> f32 {
    let token = at % params.vocabulary;
    let counter = vec4<u32>(before[params.before_offset + at / params.vocabulary], 0u, 0u, token / 4u);
    let word = philox(vec2<u32>(params.key_low, params.key_high), counter)[token % 4u];
    let logit = ${ element.load(dtype, "x", "params.x_offset + at") };
    return logit + select(0.0, params.bias, word < params.green || params.green == 0xffffffffu);
}

${ element.each_pair(entry, dtype, width, "biased") }
