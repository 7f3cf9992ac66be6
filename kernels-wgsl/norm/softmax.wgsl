//% import "include/element.wgsl" as element
//% set width = 64
// softmax: make each row a distribution.
//
//     y[r, c] = exp(x[r, c] - largest) / sum over c of exp(x[r, c] - largest)
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements, y's is even
//     1 x        [rows, channels] ${ dtype }, contiguous
//     2 y        as x, but other memory: WebGPU forbids the alias
// Dispatch: a workgroup of ${ width } per row, or per two rows if channels is odd; folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 4 * width } bytes.
//
// Two passes over the row, the largest value first, then a third that writes. An entry of negative infinity
// counts as 0, told by its bits since WGSL promises nothing for arithmetic on it; a row of nothing else is
// all 0. Half types lie two to a word: with odd channels a row ends inside a word, so one workgroup takes
// both rows that share it.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
struct Params {
    rows: u32,
    channels: u32,
    y_offset: u32,
    x_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read_write> y: array<${ element.storage(dtype) }>;

const LOWEST = -3.4028234e38;

var<workgroup> partial: array<f32, ${ width }>;

${ element.functions(dtype) }
fn term(value: f32, largest: f32) -> f32 {
    if bitcast<u32>(value) == 0xff800000u {
        return 0.0;
    }
    return exp(value - largest);
}

@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let rows_together = 1u + (params.channels & 1u);
    let first_row = (workgroup.x + workgroup.y * workgroups.x) * rows_together;
    if first_row >= params.rows {
        return;
    }
    let row_count = min(rows_together, params.rows - first_row);

    var largests: array<f32, 2>;
    var scales: array<f32, 2>;
    for (var r = 0u; r < row_count; r++) {
        let start = params.x_offset + (first_row + r) * params.channels;
        var largest = LOWEST;
        for (var c = invocation; c < params.channels; c += ${ width }u) {
            largest = max(largest, ${ element.load(dtype, "x", "start + c") });
        }
        partial[invocation] = largest;
        workgroupBarrier();
        for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
            if invocation < distance {
                partial[invocation] = max(partial[invocation], partial[invocation + distance]);
            }
            workgroupBarrier();
        }
        largest = partial[0];
        // The sums must not overwrite the largest value before all have read it; likewise below.
        workgroupBarrier();

        var sum = 0.0;
        for (var c = invocation; c < params.channels; c += ${ width }u) {
            let value = ${ element.load(dtype, "x", "start + c") };
            sum += term(value, largest);
        }
        partial[invocation] = sum;
        workgroupBarrier();
        for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
            if invocation < distance {
                partial[invocation] += partial[invocation + distance];
            }
            workgroupBarrier();
        }
        largests[r] = largest;
        scales[r] = 0.0;
        // By its bits: a comparison may take a NaN for 0.
        if (bitcast<u32>(partial[0]) << 1u) != 0u {
            scales[r] = 1.0 / partial[0];
        }
        workgroupBarrier();
    }

    let start = params.x_offset + first_row * params.channels;
    let count = row_count * params.channels;
    for (var i = 2u * invocation; i < count; i += ${ 2 * width }u) {
        var pair: array<f32, 2>;
        for (var k = 0u; k < 2u; k++) {
            if i + k < count {
                let r = select(0u, 1u, i + k >= params.channels);
                let value = ${ element.load(dtype, "x", "start + i + k") };
                pair[k] = term(value, largests[r]) * scales[r];
            }
        }
        let at = params.y_offset + first_row * params.channels + i;
        ${ element.store_pair(dtype, "y", "at", "params.y_offset + first_row * params.channels + count", "pair[0]", "pair[1]") }
    }
}
