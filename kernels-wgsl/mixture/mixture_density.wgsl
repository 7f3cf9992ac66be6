//% set width = 64
// mixture_density: the natural logarithm of each candidate's density under the Gaussian mixture of its row.
//
//     y[r, i] = ln sum over g of w[r, g] prod over c of N(x[r, i, c]; mean[r, g, c], exp(log_variance[r, g, c]))
//     w[r] = softmax(logits[r])
//
// Bindings, group 0:
//     0 params      see the struct; offsets count elements
//     1 parameters  [rows, (2 values + 1) components] f32, contiguous: means, log variances, logits, each component by
//                   component
//     2 x           [rows, candidates, values] f32, contiguous
//     3 y           [rows, candidates] f32
// Dispatch: an invocation per candidate in workgroups of ${ width }, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// A mixture has few components and values, so an invocation goes through them all by itself. Both sums of exponentials,
// the joint one and that of the logits, are kept over the largest term so far and scaled when a larger one comes.
//
// Source: Zhao et al. 2025, arXiv:2503.02883, section 3.2.
struct Params {
    places: u32,
    candidates: u32,
    components: u32,
    values: u32,
    parameters_offset: u32,
    x_offset: u32,
    y_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parameters: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let place = (workgroup.x + workgroup.y * workgroups.x) * ${ width }u + invocation;
    if place >= params.places {
        return;
    }
    let spread = params.components * params.values;
    let means = params.parameters_offset + place / params.candidates * (2u * spread + params.components);
    let first = params.x_offset + place * params.values;
    // Largest terms, and sums of exponentials over them: joint, logits.
    var most = vec2<f32>(-3.4028234e38);
    var sums = vec2<f32>(0.0);
    for (var component = 0u; component < params.components; component++) {
        let logit = parameters[means + 2u * spread + component];
        var exponent = 0.0;
        for (var value = 0u; value < params.values; value++) {
            let at = means + component * params.values + value;
            let log_variance = parameters[at + spread];
            let distance = x[first + value] - parameters[at];
            // ln(2 pi)
            exponent += distance * distance * exp(-log_variance) + log_variance + 1.837877066;
        }
        let terms = vec2<f32>(logit - 0.5 * exponent, logit);
        let larger = max(most, terms);
        sums = sums * exp(most - larger) + exp(terms - larger);
        most = larger;
    }
    let logs = most + log(sums);
    y[params.y_offset + place] = logs.x - logs.y;
}
