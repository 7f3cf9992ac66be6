//% import "include/element.wgsl" as element
//% set width = 64
// l2_normalise: divide each row by its L2 norm, or by 1e-12 if that is larger.
//
//     y[r, c] = x[r, c] / max(sqrt(sum over c of x[r, c]^2), 1e-12)
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements, y's is even
//     1 x        [rows, channels] ${ dtype }, contiguous
//     2 y        as x, but other memory: WebGPU forbids the alias
// Dispatch: a workgroup of ${ width } per row, or per two rows if channels is odd; folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 4 * width } bytes.
//
// Each invocation sums the squares of every ${ width }-th channel in f32, a tree in workgroup memory adds
// these sums, then the row is read again and written scaled. Half types lie two to a word: with an odd
// number of channels a row ends inside a word, so one workgroup takes both rows that share it.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Henry et al. 2020, arXiv:2010.04245; 1e-12 as in PyTorch's normalize.
struct Params {
    rows: u32,
    channels: u32,
    y_offset: u32,
    x_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read_write> y: array<${ element.storage(dtype) }>;

var<workgroup> partial: array<f32, ${ width }>;

${ element.functions(dtype) }
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
        // A NaN must come through, which max() need not let it.
        let norm = sqrt(partial[0]);
        scales[r] = 1.0 / norm;
        if norm < 1e-12 {
            scales[r] = 1e12;
        }
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
                pair[k] = value * scales[row];
            }
        }
        let at = params.y_offset + first_row * params.channels + i;
        ${ element.store_pair(dtype, "y", "at", "params.y_offset + first_row * params.channels + count", "pair[0]", "pair[1]") }
    }
}
