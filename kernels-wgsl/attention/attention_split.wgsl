//% import "include/element.wgsl" as element
//% from "attention/segments.wgsl" import segment_keys
//% set tile = 64
//% set slots = 4
//% set block = 16
//% set rows = 1
//% set paged = keys == "paged"
//% set split = true
// attention_split: what one segment of the keys adds to a query, for attention with few queries and many keys.
//
//     s[j] as in attention; of the segment: most = max of s[j], sum = sum over j of exp(s[j] - most),
//     mixed[c] = sum over j of exp(s[j] - most) * v[j, c]
//
// Bindings, group 0:
//     0 to 6     as attention
//     7 parts    [batch, heads, q_len, segments, head_dim + 2] f32: most, sum, then mixed
// Dispatch: a workgroup of ${ tile } per query of one head and segment of ${ segment_keys } keys, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 4 * rows * tile * (slots + 2) } bytes.
//
// One workgroup per query leaves most of a GPU idle while a cache of thousands of keys is read. What each segment
// adds is computed as attention does it, and attention_fold adds them as attention does: the results are equal.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs); paged.
// Source: Dao et al. 2023, "Flash-Decoding for long-context inference".
//% include "attention/attention_declarations.wgsl"
@group(0) @binding(7) var<storage, read_write> parts: array<f32>;

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

    let row = (batch * params.heads + head) * params.q_len + first_query;
    let part = params.y_offset + (row * params.segments + segment) * (head_dim + 2u);
    if invocation == 0u {
        parts[part] = largest[0];
        parts[part + 1u] = sums[0];
    }
    for (var slot = 0u; slot < ${ slots }u; slot++) {
        let channel = slot * ${ tile }u + invocation;
        if channel < head_dim {
            parts[part + 2u + channel] = mixed[slot];
        }
    }
}
