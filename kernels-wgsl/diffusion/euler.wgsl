//% import "include/element.wgsl" as element
//% set width = 64
// euler: one step along a velocity, with guidance.
//
//     y = x + step (uncond + scale (velocity - uncond));  y = x + step velocity without guidance
//
// Bindings, group 0:
//     0 params    see the struct; offsets count elements; y_offset even; guided 0 or 1
//     1 x         [elements] ${ dtype }, contiguous
//     2 velocity  as x
//     3 uncond    as x; not read without guidance
//     4 y         as x, but other memory
// Dispatch: an invocation per two elements in workgroups of ${ width }, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Lipman et al. 2022, arXiv:2210.02747; Euler's method.
struct Params {
    elements: u32,
    x_offset: u32,
    velocity_offset: u32,
    uncond_offset: u32,
    y_offset: u32,
    guided: u32,
    step: f32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> velocity: array<${ element.storage(dtype) }>;
@group(0) @binding(3) var<storage, read> uncond: array<${ element.storage(dtype) }>;
@group(0) @binding(4) var<storage, read_write> y: array<${ element.storage(dtype) }>;

${ element.functions(dtype) }
fn moved(at: u32) -> f32 {
    var v = ${ element.load(dtype, "velocity", "params.velocity_offset + at") };
    if params.guided != 0u {
        let base = ${ element.load(dtype, "uncond", "params.uncond_offset + at") };
        v = fma(params.scale, v - base, base);
    }
    return fma(params.step, v, ${ element.load(dtype, "x", "params.x_offset + at") });
}

${ element.each_pair(entry, dtype, width, "moved") }
