//% import "include/element.wgsl" as element
//% set width = 64
// guide: classifier-free guidance, with one scale or a scale per row.
//
//     y[r, i] = base + scale (cond[r, i] - uncond[r, i]), base being uncond or cond;  cond[r, i] where one of both is -inf
//
// Bindings, group 0:
//     0 params  see the struct; offsets count elements; y_offset even; ones all bits 1
//     1 cond    [rows, length] ${ dtype }, contiguous
//     2 uncond  as cond
//     3 scales  [rows] f32; not read unless per_row is 1
//     4 y       as cond, but other memory
// Dispatch: an invocation per two elements in workgroups of ${ width }, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// In f32 the result is what the kernel `weigh` weighs, bit by bit.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Ho and Salimans 2022, arXiv:2207.12598, equation 6.
struct Params {
    elements: u32,
    length: u32,
    cond_offset: u32,
    uncond_offset: u32,
    scales_offset: u32,
    y_offset: u32,
    per_row: u32,
    base_cond: u32,
    ones: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cond: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> uncond: array<${ element.storage(dtype) }>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<${ element.storage(dtype) }>;

${ element.functions(dtype) }
fn guided(at: u32) -> f32 {
    let conditional = ${ element.load(dtype, "cond", "params.cond_offset + at") };
    let unconditional = ${ element.load(dtype, "uncond", "params.uncond_offset + at") };
    // Compared as bits, since a compiler may assume that there are no infinities.
    if bitcast<u32>(conditional) == 0xff800000u || bitcast<u32>(unconditional) == 0xff800000u {
        return conditional;
    }
    var scale = params.scale;
    if params.per_row != 0u {
        scale = scales[params.scales_offset + at / params.length];
    }
    // The integer operation keeps the product from being fused with the sum, which rounds otherwise.
    let step = bitcast<f32>(bitcast<u32>((conditional - unconditional) * scale) & params.ones);
    return select(unconditional, conditional, params.base_cond != 0u) + step;
}

${ element.each_pair(entry, dtype, width, "guided") }
