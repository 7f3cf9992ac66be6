//% import "include/element.wgsl" as element
//% set width = 64
// nearest: the code nearest to each vector, the lowest index among equals.
//
//     cosine = 0:  y[n] = argmin over i of sum over d of (x[n, d] - codebook[i, d])^2
//     cosine = 1:  y[n] = argmax over i of (x[n] . codebook[i]) / |codebook[i]|
//
// Bindings, group 0:
//     0 params    see the struct; offsets count elements
//     1 x         [vectors, dim] ${ dtype }, contiguous
//     2 codebook  [codes, dim] f32, contiguous
//     3 y         [vectors] u32
// Dispatch: a workgroup of ${ width } per vector, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 8 * width } bytes.
//
// Each invocation keeps the best of every ${ width }-th code, then a tree keeps the best of all: at equal
// distance the lower index. No distance is written to memory. Every code is summed in the same order, so
// equal codes tie exactly; what is beyond the last of four channels is 0 in both, and adds nothing.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: van den Oord et al. 2017, arXiv:1711.00937, eq. 1; Yu et al. 2021, arXiv:2110.04627, sec. 3.2.
//% include "vq/nearest_declarations.wgsl"
var<workgroup> distances: array<f32, ${ width }>;
var<workgroup> indices: array<u32, ${ width }>;

fn distance_to(vector: u32, code: u32) -> f32 {
    let x_at = params.x_offset + vector * params.dim;
    let code_at = params.codebook_offset + code * params.dim;
    var sum = 0.0;
    var squares = 0.0;
    for (var d = 0u; d < params.dim; d += 4u) {
        var values = vec4<f32>();
        var code_values = vec4<f32>();
        //% for k in range(4)
        if d + ${ k }u < params.dim {
            values[${ k }] = ${ element.load(dtype, "x", "x_at + d + " ~ k ~ "u") };
            code_values[${ k }] = codebook[code_at + d + ${ k }u];
        }
        //% endfor
        if params.cosine != 0u {
            sum = with_product(sum, -values, code_values);
            squares = with_product(squares, code_values, code_values);
        } else {
            sum = with_distance(sum, values, code_values);
        }
    }
    return finished(sum, squares);
}

@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let vector = workgroup.x + workgroup.y * workgroups.x;
    if vector >= params.vectors {
        return;
    }
    // Above any distance; invocations without a code keep it.
    var best = 3.4e38;
    var best_index = 0xffffffffu;
    for (var code = invocation; code < params.codes; code += ${ width }u) {
        let distance = distance_to(vector, code);
        if distance < best {
            best = distance;
            best_index = code;
        }
    }
    distances[invocation] = best;
    indices[invocation] = best_index;
    workgroupBarrier();
    for (var reach = ${ width // 2 }u; reach > 0u; reach >>= 1u) {
        if invocation < reach {
            let other = distances[invocation + reach];
            let other_index = indices[invocation + reach];
            if other < distances[invocation]
                || (other == distances[invocation] && other_index < indices[invocation]) {
                distances[invocation] = other;
                indices[invocation] = other_index;
            }
        }
        workgroupBarrier();
    }
    if invocation == 0u {
        // A vector with a NaN is nearest to nothing.
        var index = indices[0];
        if index == 0xffffffffu {
            index = 0u;
        }
        y[params.y_offset + vector] = index;
    }
}
