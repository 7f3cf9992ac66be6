//% set width = 64
// mixture_draw: candidates drawn from a Gaussian mixture for each row, or one of them.
//
//     y[r, i, c] = mean[r, g, c] + exp(log_variance[r, g, c] / 2) temperature normals[r, i, g, c],  g = chosen[r, i]
//
// Bindings, group 0:
//     0 params      see the struct; offsets count elements; one 0 or 1
//     1 parameters  [rows, (2 values + 1) components] f32, contiguous: means, log variances, logits, each component by
//                   component
//     2 chosen      [rows, candidates] u32, contiguous
//     3 normals     [rows, candidates, components, values] f32, contiguous
//     4 kept        [rows] u32, contiguous: the candidate that is drawn; not read unless `one`
//     5 y           [rows, count, values] f32; count is 1 if `one`, else candidates
// Dispatch: an invocation per element of y in workgroups of ${ width }, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Numbers beyond the last component or candidate are held to it.
//
// Source: Zhao et al. 2025, arXiv:2503.02883, section 3.3.
struct Params {
    elements: u32,
    count: u32,
    candidates: u32,
    components: u32,
    values: u32,
    parameters_offset: u32,
    chosen_offset: u32,
    normals_offset: u32,
    kept_offset: u32,
    y_offset: u32,
    one: u32,
    temperature: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parameters: array<f32>;
@group(0) @binding(2) var<storage, read> chosen: array<u32>;
@group(0) @binding(3) var<storage, read> normals: array<f32>;
@group(0) @binding(4) var<storage, read> kept: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let at = (workgroup.x + workgroup.y * workgroups.x) * ${ width }u + invocation;
    if at >= params.elements {
        return;
    }
    let value = at % params.values;
    let row = at / params.values / params.count;
    var candidate = at / params.values % params.count;
    if params.one != 0u {
        candidate = min(kept[params.kept_offset + row], params.candidates - 1u);
    }
    let place = row * params.candidates + candidate;
    let component = min(chosen[params.chosen_offset + place], params.components - 1u);
    let spread = params.components * params.values;
    let mean = params.parameters_offset + row * (2u * spread + params.components) + component * params.values + value;
    let normal = normals[params.normals_offset + place * spread + component * params.values + value];
    let deviation = exp(0.5 * parameters[mean + spread]);
    y[params.y_offset + at] = fma(deviation * params.temperature, normal, parameters[mean]);
}
