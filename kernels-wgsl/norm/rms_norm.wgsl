//% import "include/element.wgsl" as element
//% set width = 64
// rms_norm: bring each row to root mean square 1, then scale it by a weight per channel.
//
//     y[r, c] = x[r, c] * weight[c] / sqrt(mean over c of x[r, c]^2 + eps)
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements, y's is even; eps in the unit of x^2
//     1 x        [rows, channels] ${ dtype }, contiguous
//     2 weight   [channels] f32, contiguous; anything if has_weight is 0
//     3 y        as x, but other memory: WebGPU forbids the alias
// Dispatch: a workgroup of ${ width } per row, or per two rows if channels is odd; folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 4 * width } bytes.
//
// Each invocation sums the squares of every ${ width }-th channel in f32, a tree in workgroup memory adds
// these sums, then the row is read again and written scaled. Half types lie two to a word: with an odd
// number of channels a row ends inside a word, so one workgroup takes both rows that share it.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4; eps is ours, for rows of zeros.
struct Params {
    rows: u32,
    channels: u32,
    y_offset: u32,
    x_offset: u32,
    weight_offset: u32,
    has_weight: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<${ element.storage(dtype) }>;

var<workgroup> partial: array<f32, ${ width }>;

${ element.functions(dtype) }
fn weight_of(channel: u32) -> f32 {
    if params.has_weight == 0u {
        return 1.0;
    }
    return weight[params.weight_offset + channel];
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

    var scales: array<f32, 2>;
    for (var r = 0u; r < row_count; r++) {
        let start = params.x_offset + (first_row + r) * params.channels;
        var sum = 0.0;
        for (var c = invocation; c < params.channels; c += ${ width }u) {
            let value = ${ element.load(dtype, "x", "start + c") };
            sum += value * value;
        }
        partial[invocation] = sum;
        workgroupBarrier();
        for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
            if invocation < distance {
                partial[invocation] += partial[invocation + distance];
            }
            workgroupBarrier();
        }
        scales[r] = inverseSqrt(partial[0] / f32(params.channels) + params.eps);
        // The next row's sums must not overwrite this one's before all have read it.
        workgroupBarrier();
    }

    let start = params.x_offset + first_row * params.channels;
    let count = row_count * params.channels;
    for (var i = 2u * invocation; i < count; i += ${ 2 * width }u) {
        var pair: array<f32, 2>;
        for (var k = 0u; k < 2u; k++) {
            if i + k < count {
                let row = select(0u, 1u, i + k >= params.channels);
                let value = ${ element.load(dtype, "x", "start + i + k") };
                pair[k] = value * scales[row] * weight_of(i + k - row * params.channels);
            }
        }
        let at = params.y_offset + first_row * params.channels + i;
        ${ element.store_pair(dtype, "y", "at", "params.y_offset + first_row * params.channels + count", "pair[0]", "pair[1]") }
    }
}
