//% import "include/element.wgsl" as element
//% set width = 64
//% set chunk = 1024
//% set most = 256
// nearest_list: the codes nearest to each vector and their distances, in ascending order.
//
//     cosine = 0:  distance = sum over d of (x[n, d] - codebook[g, i, d])^2, ascending
//     cosine = 1:  distance = (x[n] . codebook[g, i]) / (|x[n]| |codebook[g, i]|), descending; g = n mod groups
//
// Bindings, group 0:
//     0 params      see the struct; offsets count elements
//     1 x           [vectors, dim] ${ dtype }, contiguous
//     2 codebook    [groups, codes, dim] f32, contiguous
//     3 indices     [vectors, count] u32, count at most ${ most } and at most codes
//     4 distances   [vectors, count] f32
// Dispatch: a workgroup of ${ width } per vector, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 4 * chunk + 8 * most + 8 * width + 4 } bytes.
//
// Distances of ${ chunk } codes at a time lie in workgroup memory. The smallest is taken out of them and put into the
// list of the best as long as it belongs there: a tree finds it, at equal distance the lower index. Most chunks end
// with the first that does not belong, so that the cost is that of the distances.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: van den Oord et al. 2017, arXiv:1711.00937, eq. 1; Yu et al. 2021, arXiv:2110.04627, sec. 3.2.
struct Params {
    vectors: u32,
    groups: u32,
    codes: u32,
    dim: u32,
    count: u32,
    cosine: u32,
    x_offset: u32,
    codebook_offset: u32,
    indices_offset: u32,
    distances_offset: u32,
    not_a_number: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> codebook: array<f32>;
@group(0) @binding(3) var<storage, read_write> indices: array<u32>;
@group(0) @binding(4) var<storage, read_write> distances: array<f32>;

// Of no code: above any distance.
const NONE = 3.4e38;

var<workgroup> of_chunk: array<f32, ${ chunk }>;
var<workgroup> best: array<f32, ${ most }>;
var<workgroup> best_index: array<u32, ${ most }>;
var<workgroup> least: array<f32, ${ width }>;
var<workgroup> least_at: array<u32, ${ width }>;
var<workgroup> found: u32;
var<workgroup> go_on: u32;

fn distance_to(vector: u32, code: u32) -> f32 {
    let x_at = params.x_offset + vector * params.dim;
    let code_at = params.codebook_offset + (vector % params.groups * params.codes + code) * params.dim;
    var sum = 0.0;
    var squares = 0.0;
    for (var d = 0u; d < params.dim; d++) {
        let value = ${ element.load(dtype, "x", "x_at + d") };
        let code_value = codebook[code_at + d];
        if params.cosine != 0u {
            sum -= value * code_value;
            squares += code_value * code_value;
        } else {
            let difference = value - code_value;
            sum += difference * difference;
        }
    }
    if params.cosine != 0u && squares > 0.0 {
        sum /= sqrt(squares);
    }
    // What is no finite number is near to nothing.
    if (bitcast<u32>(sum) & 0x7f800000u) == 0x7f800000u {
        return NONE;
    }
    return sum;
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
    if invocation == 0u {
        found = 0u;
    }
    for (var first = 0u; first < params.codes; first += ${ chunk }u) {
        for (var slot = invocation; slot < ${ chunk }u; slot += ${ width }u) {
            of_chunk[slot] = NONE;
            if first + slot < params.codes {
                of_chunk[slot] = distance_to(vector, first + slot);
            }
        }
        for (var round = 0u; round < params.count; round++) {
            // Each invocation looks at the slots that it filled itself.
            var mine = NONE;
            var mine_at = ${ chunk }u;
            for (var slot = invocation; slot < ${ chunk }u; slot += ${ width }u) {
                if of_chunk[slot] < mine {
                    mine = of_chunk[slot];
                    mine_at = slot;
                }
            }
            least[invocation] = mine;
            least_at[invocation] = mine_at;
            workgroupBarrier();
            for (var reach = ${ width // 2 }u; reach > 0u; reach >>= 1u) {
                if invocation < reach {
                    let other = least[invocation + reach];
                    let other_at = least_at[invocation + reach];
                    if other < least[invocation] || (other == least[invocation] && other_at < least_at[invocation]) {
                        least[invocation] = other;
                        least_at[invocation] = other_at;
                    }
                }
                workgroupBarrier();
            }
            if invocation == 0u {
                let candidate = least[0];
                go_on = 0u;
                if candidate < NONE && (found < params.count || candidate < best[params.count - 1u]) {
                    // Those of the list have lower indices: at equal distance they stay before it.
                    found = min(found + 1u, params.count);
                    var place = found - 1u;
                    while place > 0u && candidate < best[place - 1u] {
                        best[place] = best[place - 1u];
                        best_index[place] = best_index[place - 1u];
                        place--;
                    }
                    best[place] = candidate;
                    best_index[place] = first + least_at[0];
                    go_on = 1u;
                }
            }
            if workgroupUniformLoad(&go_on) == 0u {
                break;
            }
            if least_at[0] % ${ width }u == invocation {
                of_chunk[least_at[0]] = NONE;
            }
            workgroupBarrier();
        }
    }
    workgroupBarrier();

    for (var place = invocation; place < params.count; place += ${ width }u) {
        var index = 0u;
        var value = bitcast<f32>(params.not_a_number);
        if place < found {
            index = best_index[place];
            value = best[place];
            if params.cosine != 0u {
                let x_at = params.x_offset + vector * params.dim;
                var squares = 0.0;
                for (var d = 0u; d < params.dim; d++) {
                    let element = ${ element.load(dtype, "x", "x_at + d") };
                    squares += element * element;
                }
                value = -value / max(sqrt(squares), 1e-12);
            }
        }
        indices[params.indices_offset + vector * params.count + place] = index;
        distances[params.distances_offset + vector * params.count + place] = value;
    }
}
