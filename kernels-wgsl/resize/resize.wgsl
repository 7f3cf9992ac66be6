//% import "include/element.wgsl" as element
// resize: change the size of each plane of a picture, by any rule that works along rows and columns alike.
//
//     y[p, r, c] = sum over u, v of x[p, first(r) + u, first(c) + v] * row_weight(r)[u] * column_weight(c)[v]
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements, y's is even
//     1 x        [planes, height, width] ${ dtype }, contiguous
//     2 plan     [rows + columns, 2] u32: the first place read, and where in weights its run starts
//     3 weights  [weight_count] f32: a run per row of y, then a run per column
//     4 y        [planes, rows, columns] ${ dtype }, contiguous
// Dispatch: an invocation per two elements of y, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// The host decides what each place reads: nearest, linear, cubic and area differ only in their runs of
// weights, a few dozen numbers that all invocations share.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
struct Params {
    count: u32,
    height: u32,
    width: u32,
    rows: u32,
    columns: u32,
    weight_count: u32,
    y_offset: u32,
    x_offset: u32,
    plan_offset: u32,
    weights_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> plan: array<u32>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<${ element.storage(dtype) }>;

${ element.functions(dtype) }
// The first place read, where the run of weights starts, and where it ends.
fn run_of(entry: u32) -> vec3<u32> {
    let at = params.plan_offset + 2u * entry;
    var end = params.weight_count;
    if entry + 1u < params.rows + params.columns {
        end = plan[at + 3u];
    }
    return vec3<u32>(plan[at], plan[at + 1u], end);
}

fn value_at(index: u32) -> f32 {
    if index >= params.count {
        return 0.0;
    }
    let row = run_of((index / params.columns) % params.rows);
    let column = run_of(params.rows + index % params.columns);
    let plane = index / (params.columns * params.rows);
    var sum = 0.0;
    for (var v = column.y; v < column.z; v++) {
        var mixed = 0.0;
        for (var u = row.y; u < row.z; u++) {
            let at = params.x_offset + (plane * params.height + row.x + u - row.y) * params.width
                + column.x + v - column.y;
            mixed += weights[params.weights_offset + u] * ${ element.load(dtype, "x", "at") };
        }
        sum += weights[params.weights_offset + v] * mixed;
    }
    return sum;
}

@compute @workgroup_size(64)
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let first = 2u * ((workgroup.x + workgroup.y * workgroups.x) * 64u + invocation);
    if first >= params.count {
        return;
    }
    let a = value_at(first);
    let b = value_at(first + 1u);
    let at = params.y_offset + first;
    ${ element.store_pair(dtype, "y", "at", "params.y_offset + params.count", "a", "b") }
}
