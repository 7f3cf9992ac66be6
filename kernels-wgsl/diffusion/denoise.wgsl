//% import "include/element.wgsl" as element
//% set width = 64
// denoise: one step of a diffusion, from the network's prediction of the noise.
//
//     x0 = from_x x - from_epsilon epsilon, held to a magnitude of bound if that is not 0
//     with a learned variance (DDPM), model = [epsilon | v]:
//         mean = mean_x0 x0 + mean_x x;  log_variance = lerp(least, most, (v + 1) / 2);  y = mean + exp(log_variance / 2) amount noise
//     with a given one (DDIM), model = epsilon:
//         y = mean = mean_x0 x0 + mean_epsilon epsilon, + amount noise
//
// Bindings, group 0:
//     0 params        see the struct; offsets count elements, those of the outputs are 0; learned 0 or 1; amount 0 adds no noise
//     1 x             [rows, channels] ${ dtype }, contiguous
//     2 model         [rows, channels], or [rows, 2 channels] with a learned variance
//     3 noise         as x; not read if amount is 0
//     4 x0            as x, but other memory, as are all outputs
//     5 mean          as x
//     6 log_variance  as x; written with a learned variance
//     7 y             as x
// Dispatch: an invocation per two elements in workgroups of ${ width }, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// The coefficients come from the schedule in f64, so that what cancels at its noisy end is not lost in f32.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Nichol and Dhariwal 2021, arXiv:2102.09672, equations 9 to 15; Song et al. 2020, arXiv:2010.02502, equation 12.
struct Params {
    elements: u32,
    channels: u32,
    x_offset: u32,
    model_offset: u32,
    noise_offset: u32,
    learned: u32,
    from_x: f32,
    from_epsilon: f32,
    mean_x0: f32,
    mean_x: f32,
    mean_epsilon: f32,
    least: f32,
    most: f32,
    amount: f32,
    bound: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> model: array<${ element.storage(dtype) }>;
@group(0) @binding(3) var<storage, read> noise: array<${ element.storage(dtype) }>;
@group(0) @binding(4) var<storage, read_write> x0: array<${ element.storage(dtype) }>;
@group(0) @binding(5) var<storage, read_write> mean: array<${ element.storage(dtype) }>;
@group(0) @binding(6) var<storage, read_write> log_variance: array<${ element.storage(dtype) }>;
@group(0) @binding(7) var<storage, read_write> y: array<${ element.storage(dtype) }>;

${ element.functions(dtype) }
// x0, mean, log_variance, y.
fn outputs(at: u32) -> vec4<f32> {
    let own = ${ element.load(dtype, "x", "params.x_offset + at") };
    let row = at / params.channels;
    // With a learned variance a row of the model is twice as long.
    let epsilon_at = params.model_offset + at + row * params.channels * params.learned;
    let epsilon = ${ element.load(dtype, "model", "epsilon_at") };
    var clean = fma(params.from_x, own, -params.from_epsilon * epsilon);
    if params.bound > 0.0 && abs(clean) > params.bound {
        clean = sign(clean) * params.bound;
    }
    let middle = fma(params.mean_x0, clean, fma(params.mean_x, own, params.mean_epsilon * epsilon));
    var variance = 0.0;
    var result = middle;
    if params.learned != 0u {
        let v_at = epsilon_at + params.channels;
        let share = (${ element.load(dtype, "model", "v_at") } + 1.0) * 0.5;
        variance = fma(share, params.most, (1.0 - share) * params.least);
    }
    if params.amount != 0.0 {
        let drawn = ${ element.load(dtype, "noise", "params.noise_offset + at") };
        result += exp(0.5 * variance) * params.amount * drawn;
    }
    return vec4<f32>(clean, middle, variance, result);
}

@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let at = 2u * ((workgroup.x + workgroup.y * workgroups.x) * ${ width }u + invocation);
    if at >= params.elements {
        return;
    }
    let a = outputs(at);
    var b = vec4<f32>(0.0);
    if at + 1u < params.elements {
        b = outputs(at + 1u);
    }
    ${ element.store_pair(dtype, "x0", "at", "params.elements", "a.x", "b.x") }
    ${ element.store_pair(dtype, "mean", "at", "params.elements", "a.y", "b.y") }
    if params.learned != 0u {
        ${ element.store_pair(dtype, "log_variance", "at", "params.elements", "a.z", "b.z") }
    }
    ${ element.store_pair(dtype, "y", "at", "params.elements", "a.w", "b.w") }
}
