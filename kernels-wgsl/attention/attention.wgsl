//% import "include/element.wgsl" as element
//% set tile = 64
//% set slots = 4
//% set block = 16
//% set paged = keys == "paged"
//% set split = false
//% from "attention/segments.wgsl" import fold, segment_keys
// attention: softmax-weighted sums of the values, each query over the keys it sees.
//
//     s[j] = cap(scale * sum over c of q[i, c] * k[j, c]) + bias[i, j], cap(x) = softcap * tanh(x / softcap)
//     y[i, c] = sum over j of exp(s[j]) * v[j, c] / sum over j of exp(s[j]), over the j that i sees
//     lse[i] = ln(sum over j of exp(s[j]))
//
// Bindings, group 0:
//     0 params   see the struct; strides and offsets count elements: of batch, head, row (and key)
//     1 q        [batch, heads, q_len, head_dim] ${ dtype }, last axis contiguous, head_dim at most ${ tile * slots }
//     2 k        [batch, heads / group, k_len, head_dim], likewise; paged: [pages, heads / group, page_size, head_dim]
//     3 v        as k
//     4 bias     [batch, heads, q_len, k_len] f32 by strides, 0 where it repeats; anything if has_bias is 0.
//                Paged: pages, [batch, most pages] u32; key j is slot j mod page_size of page j / page_size of its row
//     5 words    the mask; anything if visibility is 0: then all see the keys from first_key to before end_key.
//                From 1 on: the first key of each query and one past its last, [1 or batch, q_len, 2]. If it is 2,
//                from starts_at: of each block of ${ block } queries the first entry, and one past the last block's;
//                from entries_at: of each entry a tile and where its bits are, or 0xffffffff if all are seen; from
//                bits_at: ${ block } pairs of words, a bit for each key of the tile
//     6 given    [batch, q_len, k_len] bytes by strides, 0 hides a key; anything if has_given is 0
//     7 y        rows of y_stride elements in the order of q; rows start on even elements
//     8 lse      [batch, heads, q_len] f32, contiguous
// Dispatch: a workgroup of ${ tile } per ${ rows } queries of one head, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 4 * rows * tile * (slots + 2) } bytes.
//
// Keys come in tiles of ${ tile } that start on multiples of it; where there are entries, no others are visited. For
// the scores an invocation takes a key of the tile and all queries; for the sums it takes every ${ tile }-th channel and
// all queries. In between, the weights lie in workgroup memory, where each invocation finds the largest score and
// the sum for itself. A tile that a query does not see multiplies its sums by exp(0): so a query's result depends
// on nothing but the query. Keys are summed in segments of ${ segment_keys }, which are then added up one after another:
// attention_split, which gives a segment to each workgroup, adds alike and gives the same bits.
// Whatever is hidden has no score at all, rather than an infinite one, which WGSL does not promise to keep.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs); rows 1 (decoding), 8; paged.
// Source: Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135.
//% include "attention/attention_declarations.wgsl"
@group(0) @binding(7) var<storage, read_write> y: array<${ element.storage(dtype) }>;
@group(0) @binding(8) var<storage, read_write> lse: array<f32>;

${ element.functions(dtype) }
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
//% include "attention/attention_body.wgsl"

    // The last tile's scores are long read, so the queries may go.
    workgroupBarrier();
    for (var r = 0u; r < query_count; r++) {
        for (var slot = 0u; slot < ${ slots }u; slot++) {
            let channel = slot * ${ tile }u + invocation;
            if channel < head_dim {
                var value = 0.0;
                if (bitcast<u32>(all_sums[r]) & 0x7fffffffu) != 0u {
                    value = all_mixed[r * ${ slots }u + slot] / all_sums[r];
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
            if (bitcast<u32>(all_sums[r]) & 0x7fffffffu) != 0u {
                value = all_largest[r] + log(all_sums[r]);
            }
            lse[params.lse_offset + first_row + r] = value;
        }
    }
}
