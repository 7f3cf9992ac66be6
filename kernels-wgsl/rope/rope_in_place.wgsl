//% import "include/element.wgsl" as element
// rope_in_place: turn pairs of channels by the angles of their position, where they lie.
//
//     (a, b) -> (a cos - b sin, a sin + b cos), by the table's row of the position
//
// Bindings, group 0:
//     0 params      see the struct; strides and offsets count elements
//     1 x           [batch, heads, seq, head_dim] ${ dtype }, last axis contiguous; for half types strides and
//                   offset are even, and so are the pairs if interleaved is 0
//     2 cos_table   [batch, seq, pairs] f32, last axis contiguous; a batch stride of 0 repeats it
//     3 sin_table   likewise
// Dispatch: an invocation per unit, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// A unit is two neighbouring pairs of a row: interleaved their four channels lie side by side, half-split
// two and two. Either way one invocation alone reads and writes each word of half types that it touches.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
struct Params {
    x_strides: vec4<u32>,
    units: u32,
    heads: u32,
    seq: u32,
    pairs: u32,
    interleaved: u32,
    cos_batch_stride: u32,
    cos_stride: u32,
    sin_batch_stride: u32,
    sin_stride: u32,
    x_offset: u32,
    cos_offset: u32,
    sin_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> cos_table: array<f32>;
@group(0) @binding(3) var<storage, read> sin_table: array<f32>;

${ element.functions(dtype) }
@compute @workgroup_size(64)
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let unit = (workgroup.x + workgroup.y * workgroups.x) * 64u + invocation;
    if unit >= params.units {
        return;
    }
    let row_units = (params.pairs + 1u) / 2u;
    let row = unit / row_units;
    let pair = 2u * (unit % row_units);
    let position = row % params.seq;
    let batch = row / params.seq / params.heads;
    let start = params.x_offset
        + dot(vec3(batch, row / params.seq % params.heads, position), params.x_strides.xyz);
    // Where the words begin: of both members of the first pair and then the second, or of both pairs' first
    // members and then their second.
    var lower = start + 2u * pair;
    var upper = lower + 2u;
    if params.interleaved == 0u {
        lower = start + pair;
        upper = lower + params.pairs;
    }
    let both = pair + 1u < params.pairs;
    let l0 = ${ element.load(dtype, "x", "lower") };
    var l1 = 0.0;
    var u0 = 0.0;
    var u1 = 0.0;
    if both || params.interleaved == 1u {
        l1 = ${ element.load(dtype, "x", "lower + 1u") };
    }
    if both || params.interleaved == 0u {
        u0 = ${ element.load(dtype, "x", "upper") };
    }
    if both {
        u1 = ${ element.load(dtype, "x", "upper + 1u") };
    }

    let cos_at = params.cos_offset + batch * params.cos_batch_stride + position * params.cos_stride + pair;
    let sin_at = params.sin_offset + batch * params.sin_batch_stride + position * params.sin_stride + pair;
    let cos0 = cos_table[cos_at];
    let sin0 = sin_table[sin_at];
    var cos1 = 0.0;
    var sin1 = 0.0;
    if both {
        cos1 = cos_table[cos_at + 1u];
        sin1 = sin_table[sin_at + 1u];
    }
    if params.interleaved == 1u {
        let a = l0 * cos0 - l1 * sin0;
        let b = l0 * sin0 + l1 * cos0;
        ${ element.store_pair(dtype, "x", "lower", "lower + 2u", "a", "b") }
        if both {
            let c = u0 * cos1 - u1 * sin1;
            let d = u0 * sin1 + u1 * cos1;
            ${ element.store_pair(dtype, "x", "upper", "upper + 2u", "c", "d") }
        }
    } else {
        let count = 1u + u32(both);
        let a = l0 * cos0 - u0 * sin0;
        let b = l1 * cos1 - u1 * sin1;
        ${ element.store_pair(dtype, "x", "lower", "lower + count", "a", "b") }
        let c = l0 * sin0 + u0 * cos0;
        let d = l1 * sin1 + u1 * cos1;
        ${ element.store_pair(dtype, "x", "upper", "upper + count", "c", "d") }
    }
}
