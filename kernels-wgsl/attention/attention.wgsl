//% import "include/element.wgsl" as element
//% set tile = 64
//% set slots = 4
// attention: softmax-weighted sums of the values, each query over the keys it sees.
//
//     s[j] = cap(scale * sum over c of q[i, c] * k[j, c]) + bias[i, j], cap(x) = softcap * tanh(x / softcap)
//     y[i, c] = sum over j of exp(s[j]) * v[j, c] / sum over j of exp(s[j]), over the j that i sees
//     lse[i] = ln(sum over j of exp(s[j]))
//
// Bindings, group 0:
//     0 params   see the struct; strides and offsets count elements: of batch, head, row (and key)
//     1 q        [batch, heads, q_len, head_dim] ${ dtype }, last axis contiguous, head_dim at most ${ tile * slots }
//     2 k        [batch, heads / group, k_len, head_dim], likewise
//     3 v        as k
//     4 bias     [batch, heads, q_len, k_len] f32 by strides, 0 where it repeats; anything if has_bias is 0
//     5 ranges   the first key a query sees and one past the last: u32 pairs, [1 or batch, q_len, 2], contiguous;
//                anything if ranges_differ is 0: then it is first_key, end_key for all
//     6 given    [batch, q_len, k_len] bytes by strides, 0 hides a key; anything if has_given is 0
//     7 y        rows of y_stride elements in the order of q; rows start on even elements
//     8 lse      [batch, heads, q_len] f32, contiguous
// Dispatch: a workgroup of ${ tile } per ${ rows } queries of one head, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 4 * rows * tile * (slots + 2) } bytes.
//
// Keys come in tiles of ${ tile } that start on multiples of it. For the scores an invocation takes a key of the
// tile and all queries; for the sums it takes every ${ tile }-th channel and all queries. In between, the weights lie
// in workgroup memory, where each invocation finds the largest score and the sum for itself. A tile that a
// query does not see multiplies its sums by exp(0): so a query's result depends on nothing but the query.
// Whatever is hidden has no score at all, rather than an infinite one, which WGSL does not promise to keep.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs); rows 1 (decoding), 8.
// Source: Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135.
struct Params {
    q_strides: vec4<u32>,
    k_strides: vec4<u32>,
    v_strides: vec4<u32>,
    bias_strides: vec4<u32>,
    given_strides: vec4<u32>,
    q_offset: u32,
    k_offset: u32,
    v_offset: u32,
    bias_offset: u32,
    given_offset: u32,
    ranges_offset: u32,
    y_offset: u32,
    y_stride: u32,
    lse_offset: u32,
    count: u32,
    heads: u32,
    group: u32,
    q_len: u32,
    head_dim: u32,
    has_bias: u32,
    has_given: u32,
    ranges_differ: u32,
    ranges_batch_stride: u32,
    first_key: u32,
    end_key: u32,
    scale: f32,
    softcap: f32,
    minus_infinity: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> k: array<${ element.storage(dtype) }>;
@group(0) @binding(3) var<storage, read> v: array<${ element.storage(dtype) }>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> ranges: array<u32>;
@group(0) @binding(6) var<storage, read> given: array<u32>;
@group(0) @binding(7) var<storage, read_write> y: array<${ element.storage(dtype) }>;
@group(0) @binding(8) var<storage, read_write> lse: array<f32>;

// The queries, and in the end the results.
var<workgroup> query_rows: array<f32, ${ rows * tile * slots }>;
var<workgroup> scores: array<f32, ${ rows * tile }>;
var<workgroup> weights: array<f32, ${ rows * tile }>;

// Below every score that matters; of no weight beside any other.
const LOWEST = -3.0e38;

${ element.functions(dtype) }
fn capped(score: f32) -> f32 {
    if params.softcap == 0.0 {
        return score;
    }
    let x = score / params.softcap;
    // tanh overflows on some drivers; a NaN goes through it.
    if x > 15.0 {
        return params.softcap;
    }
    if x < -15.0 {
        return -params.softcap;
    }
    return params.softcap * tanh(x);
}

@compute @workgroup_size(${ tile })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let number = workgroup.x + workgroup.y * workgroups.x;
    if number >= params.count {
        return;
    }
    let blocks = (params.q_len + ${ rows - 1 }u) / ${ rows }u;
    let first_query = number % blocks * ${ rows }u;
    let head = number / blocks % params.heads;
    let batch = number / blocks / params.heads;
    let head_dim = params.head_dim;
    let query_count = min(${ rows }u, params.q_len - first_query);

    var starts: array<u32, ${ rows }>;
    var ends: array<u32, ${ rows }>;
    var first_key = 0xffffffffu;
    var end_key = 0u;
    for (var r = 0u; r < query_count; r++) {
        starts[r] = params.first_key;
        ends[r] = params.end_key;
        if params.ranges_differ == 1u {
            let at = params.ranges_offset + batch * params.ranges_batch_stride + 2u * (first_query + r);
            starts[r] = ranges[at];
            ends[r] = ranges[at + 1u];
        }
        if starts[r] < ends[r] {
            first_key = min(first_key, starts[r]);
            end_key = max(end_key, ends[r]);
        }
    }

    let q_start = params.q_offset + batch * params.q_strides.x + head * params.q_strides.y;
    // Loops over the queries have a constant length, to be unrolled; those beyond the last are zeros.
    for (var i = invocation; i < ${ rows }u * head_dim; i += ${ tile }u) {
        var value = 0.0;
        if i < query_count * head_dim {
            let at = q_start + (first_query + i / head_dim) * params.q_strides.z + i % head_dim;
            value = ${ element.load(dtype, "q", "at") };
        }
        query_rows[i] = value;
    }
    workgroupBarrier();

    let key_head = head / params.group;
    let k_start = params.k_offset + batch * params.k_strides.x + key_head * params.k_strides.y;
    let v_start = params.v_offset + batch * params.v_strides.x + key_head * params.v_strides.y;
    let bias_start = params.bias_offset + batch * params.bias_strides.x + head * params.bias_strides.y;
    let given_start = params.given_offset + batch * params.given_strides.x;

    var largest: array<f32, ${ rows }>;
    var sums: array<f32, ${ rows }>;
    var mixed: array<f32, ${ rows * slots }>;
    for (var r = 0u; r < ${ rows }u; r++) {
        largest[r] = LOWEST;
    }

    for (var tile = first_key / ${ tile }u * ${ tile }u; tile < end_key; tile += ${ tile }u) {
        let key = tile + invocation;
        var dots: array<f32, ${ rows }>;
        if key >= first_key && key < end_key {
            let row = k_start + key * params.k_strides.z;
            for (var c = 0u; c < head_dim; c++) {
                let element = ${ element.load(dtype, "k", "row + c") };
                for (var r = 0u; r < ${ rows }u; r++) {
                    dots[r] = fma(query_rows[r * head_dim + c], element, dots[r]);
                }
            }
        }
        var visible: array<bool, ${ rows }>;
        for (var r = 0u; r < ${ rows }u; r++) {
            let query = first_query + r;
            visible[r] = r < query_count && key >= starts[r] && key < ends[r];
            var score = capped(dots[r] * params.scale);
            if visible[r] && params.has_bias == 1u {
                let term = bias[bias_start + query * params.bias_strides.z + key * params.bias_strides.w];
                visible[r] = bitcast<u32>(term) != params.minus_infinity;
                score += term;
            }
            if visible[r] && params.has_given == 1u {
                let at = given_start + query * params.given_strides.y + key * params.given_strides.z;
                visible[r] = ((given[at >> 2u] >> (8u * (at & 3u))) & 0xffu) != 0u;
            }
            scores[r * ${ tile }u + invocation] = LOWEST;
            if visible[r] {
                scores[r * ${ tile }u + invocation] = score;
            }
        }
        workgroupBarrier();

        var shrink: array<f32, ${ rows }>;
        for (var r = 0u; r < ${ rows }u; r++) {
            var most = largest[r];
            for (var j = 0u; j < ${ tile }u; j++) {
                most = max(most, scores[r * ${ tile }u + j]);
            }
            shrink[r] = exp(largest[r] - most);
            largest[r] = most;
            var weight = 0.0;
            if visible[r] {
                weight = exp(scores[r * ${ tile }u + invocation] - most);
            }
            weights[r * ${ tile }u + invocation] = weight;
        }
        workgroupBarrier();

        for (var r = 0u; r < ${ rows }u; r++) {
            var sum = 0.0;
            for (var j = 0u; j < ${ tile }u; j++) {
                sum += weights[r * ${ tile }u + j];
            }
            sums[r] = fma(sums[r], shrink[r], sum);
            for (var slot = 0u; slot < ${ slots }u; slot++) {
                mixed[r * ${ slots }u + slot] *= shrink[r];
            }
        }
        let from_key = max(tile, first_key) - tile;
        let to_key = min(tile + ${ tile }u, end_key) - tile;
        for (var slot = 0u; slot < ${ slots }u; slot++) {
            let channel = slot * ${ tile }u + invocation;
            if channel < head_dim {
                var at = v_start + (tile + from_key) * params.v_strides.z + channel;
                for (var j = from_key; j < to_key; j++) {
                    let element = ${ element.load(dtype, "v", "at") };
                    for (var r = 0u; r < ${ rows }u; r++) {
                        let weight = weights[r * ${ tile }u + j];
                        // What is hidden adds nothing, even if it is NaN.
                        if (bitcast<u32>(weight) & 0x7fffffffu) != 0u {
                            let to_slot = r * ${ slots }u + slot;
                            mixed[to_slot] = fma(weight, element, mixed[to_slot]);
                        }
                    }
                    at += params.v_strides.z;
                }
            }
        }
    }

    // The last tile's scores are long read, so the queries may go.
    workgroupBarrier();
    for (var r = 0u; r < query_count; r++) {
        for (var slot = 0u; slot < ${ slots }u; slot++) {
            let channel = slot * ${ tile }u + invocation;
            if channel < head_dim {
                var value = 0.0;
                if (bitcast<u32>(sums[r]) & 0x7fffffffu) != 0u {
                    value = mixed[r * ${ slots }u + slot] / sums[r];
                }
                query_rows[r * head_dim + channel] = value;
            }
        }
    }
    workgroupBarrier();

    let first_row = (batch * params.heads + head) * params.q_len + first_query;
    let pairs = (head_dim + 1u) / 2u;
    for (var i = invocation; i < query_count * pairs; i += ${ tile }u) {
        let r = i / pairs;
        let channel = 2u * (i % pairs);
        let a = query_rows[r * head_dim + channel];
        var b = 0.0;
        if channel + 1u < head_dim {
            b = query_rows[r * head_dim + channel + 1u];
        }
        let row = params.y_offset + (first_row + r) * params.y_stride;
        let at = row + channel;
        ${ element.store_pair(dtype, "y", "at", "row + head_dim", "a", "b") }
    }
    for (var r = 0u; r < query_count; r++) {
        if invocation == r {
            var value = bitcast<f32>(params.minus_infinity);
            if (bitcast<u32>(sums[r]) & 0x7fffffffu) != 0u {
                value = largest[r] + log(sums[r]);
            }
            lse[params.lse_offset + first_row + r] = value;
        }
    }
}
