//% import "include/element.wgsl" as element
//% set tile = 64
//% set pitch = tile + 1
//% set vectors = 4
//% set codes = 8
//% set lines = tile // codes
// nearest_tile: the code nearest to each vector, the lowest index among equals; for many vectors.
//
//     cosine = 0:  y[n] = argmin over i of sum over d of (x[n, d] - codebook[i, d])^2
//     cosine = 1:  y[n] = argmax over i of (x[n] . codebook[i]) / |codebook[i]|
//
// Bindings, group 0:
//     0 params    see the struct; offsets count elements
//     1 x         [vectors, dim] ${ dtype }, contiguous
//     2 codebook  [codes, dim] f32, contiguous
//     3 y         [vectors] u32
// Dispatch: a workgroup of ${ lines * tile // vectors } per ${ tile } vectors, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 2 * 4 * 16 * pitch + 8 * tile * lines } bytes.
//
// A workgroup goes over the codes ${ tile } at a time. 16 channels of its vectors and of these codes pass through workgroup
// memory, as 4 lines of ${ tile } places of 4 channels, one place longer than that, so that neighbours write to different
// banks. An invocation sums ${ vectors } vectors against every ${ lines }-th code in registers and keeps the best; of the ${ lines } that share
// a vector the best is taken at the end. Distances are summed as in nearest.wgsl, so that a vector has the same code alone
// and among others.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: van den Oord et al. 2017, arXiv:1711.00937, eq. 1; Yu et al. 2021, arXiv:2110.04627, sec. 3.2.
//% include "vq/nearest_declarations.wgsl"
var<workgroup> x_tile: array<vec4<f32>, ${ 4 * pitch }>;
var<workgroup> code_tile: array<vec4<f32>, ${ 4 * pitch }>;
// The best of each of the invocations that share a vector.
var<workgroup> distances: array<f32, ${ tile * lines }>;
var<workgroup> indices: array<u32, ${ tile * lines }>;

@compute @workgroup_size(${ lines * tile // vectors })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let first_vector = (workgroup.x + workgroup.y * workgroups.x) * ${ tile }u;
    if first_vector >= params.vectors {
        return;
    }
    let my_vector = ${ vectors }u * (invocation / ${ lines }u);
    let my_code = invocation % ${ lines }u;
    //% for v in range(vectors)
    // Above any distance; who has no code keeps it.
    var best_${ v } = 3.4e38;
    var index_${ v } = 0xffffffffu;
    //% endfor
    for (var first_code = 0u; first_code < params.codes; first_code += ${ tile }u) {
        //% for c in range(codes)
        var squares_${ c } = 0.0;
        //% for v in range(vectors)
        var sum_${ v }_${ c } = 0.0;
        //% endfor
        //% endfor
        for (var first = 0u; first < params.dim; first += 16u) {
            // The last channels must not be overwritten while another invocation still reads them.
            workgroupBarrier();
            for (var e = invocation; e < ${ 4 * tile }u; e += ${ lines * tile // vectors }u) {
                let d = first + 4u * (e % 4u);
                let line = e / 4u;
                let place = (e % 4u) * ${ pitch }u + line;
                // What is beyond the last is 0 in both, and adds nothing.
                var values = vec4<f32>();
                if first_vector + line < params.vectors {
                    let at = params.x_offset + (first_vector + line) * params.dim + d;
                    //% for k in range(4)
                    if d + ${ k }u < params.dim {
                        values[${ k }] = ${ element.load(dtype, "x", "at + " ~ k ~ "u") };
                    }
                    //% endfor
                }
                x_tile[place] = values;
                values = vec4<f32>();
                if first_code + line < params.codes {
                    let at = params.codebook_offset + (first_code + line) * params.dim + d;
                    //% for k in range(4)
                    if d + ${ k }u < params.dim {
                        values[${ k }] = codebook[at + ${ k }u];
                    }
                    //% endfor
                }
                code_tile[place] = values;
            }
            workgroupBarrier();
            for (var k = 0u; k < ${ 4 * pitch }u; k += ${ pitch }u) {
                //% for c in range(codes)
                let code_${ c } = code_tile[k + my_code + ${ c * lines }u];
                //% endfor
                if params.cosine != 0u {
                    //% for c in range(codes)
                    squares_${ c } = with_product(squares_${ c }, code_${ c }, code_${ c });
                    //% endfor
                    //% for v in range(vectors)
                    let vector_${ v } = -x_tile[k + my_vector + ${ v }u];
                    //% for c in range(codes)
                    sum_${ v }_${ c } = with_product(sum_${ v }_${ c }, vector_${ v }, code_${ c });
                    //% endfor
                    //% endfor
                } else {
                    //% for v in range(vectors)
                    let vector_${ v } = x_tile[k + my_vector + ${ v }u];
                    //% for c in range(codes)
                    sum_${ v }_${ c } = with_distance(sum_${ v }_${ c }, vector_${ v }, code_${ c });
                    //% endfor
                    //% endfor
                }
            }
        }
        //% for c in range(codes)
        if first_code + my_code + ${ c * lines }u < params.codes {
            //% for v in range(vectors)
            let distance_${ v } = finished(sum_${ v }_${ c }, squares_${ c });
            if distance_${ v } < best_${ v } {
                best_${ v } = distance_${ v };
                index_${ v } = first_code + my_code + ${ c * lines }u;
            }
            //% endfor
        }
        //% endfor
    }
    //% for v in range(vectors)
    distances[(my_vector + ${ v }u) * ${ lines }u + my_code] = best_${ v };
    indices[(my_vector + ${ v }u) * ${ lines }u + my_code] = index_${ v };
    //% endfor
    workgroupBarrier();
    if invocation < ${ tile }u && first_vector + invocation < params.vectors {
        var best = distances[invocation * ${ lines }u];
        // A vector with a NaN is nearest to nothing.
        var index = indices[invocation * ${ lines }u];
        for (var other = invocation * ${ lines }u + 1u; other < (invocation + 1u) * ${ lines }u; other++) {
            if distances[other] < best || (distances[other] == best && indices[other] < index) {
                best = distances[other];
                index = indices[other];
            }
        }
        y[params.y_offset + first_vector + invocation] = select(index, 0u, index == 0xffffffffu);
    }
}
