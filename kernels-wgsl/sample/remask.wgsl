//% set width = 256
// remask: the least confident of the places that were masked are masked again.
//
//     count[b] = max(1, min(most, masked[b] - 1)), or 0 if nothing is masked or in the last step
//     y[b, i] = 0xffffffff if fewer than count[b] masked places of b are less confident than i, else sampled[b, i]
//
// Bindings, group 0:
//     0 params      see the struct; offsets count elements; last is 1 in the last step
//     1 tokens      [batch, places] u32, 0xffffffff where a place is masked
//     2 sampled     [batch, places] u32
//     3 confidence  [batch, places] i32; not read where a token is known
//     4 y           [batch, places] u32
//     5 counts      [batch] u32
// Dispatch: a workgroup of ${ width } per sequence, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 4 * width } bytes.
//
// Among equals the lower index is the less confident. A place's rank is counted, places * places comparisons: for the
// few hundred places of a picture that is less than the many passes of a sort.
//
// Source: Chang et al. 2022, arXiv:2202.04200, section 3.2; the least and most as in its code.
struct Params {
    batch: u32,
    places: u32,
    tokens_offset: u32,
    sampled_offset: u32,
    confidence_offset: u32,
    y_offset: u32,
    counts_offset: u32,
    most: u32,
    last: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;
@group(0) @binding(2) var<storage, read> sampled: array<u32>;
@group(0) @binding(3) var<storage, read> confidence: array<i32>;
@group(0) @binding(4) var<storage, read_write> y: array<u32>;
@group(0) @binding(5) var<storage, read_write> counts: array<u32>;

var<workgroup> masked: array<u32, ${ width }>;

@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let sequence = workgroup.x + workgroup.y * workgroups.x;
    if sequence >= params.batch {
        return;
    }
    let first = sequence * params.places;
    var some = 0u;
    for (var place = invocation; place < params.places; place += ${ width }u) {
        some += select(0u, 1u, tokens[params.tokens_offset + first + place] == 0xffffffffu);
    }
    masked[invocation] = some;
    workgroupBarrier();
    for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
        if invocation < distance {
            masked[invocation] += masked[invocation + distance];
        }
        workgroupBarrier();
    }
    some = masked[0];
    let count = select(max(min(params.most, max(some, 1u) - 1u), 1u), 0u, params.last != 0u || some == 0u);
    if invocation == 0u {
        counts[params.counts_offset + sequence] = count;
    }
    for (var place = invocation; place < params.places; place += ${ width }u) {
        var again = tokens[params.tokens_offset + first + place] == 0xffffffffu;
        if again {
            let own = confidence[params.confidence_offset + first + place];
            var below = 0u;
            for (var other = 0u; other < params.places; other++) {
                let theirs = confidence[params.confidence_offset + first + other];
                let less = theirs < own || (theirs == own && other < place);
                if less && tokens[params.tokens_offset + first + other] == 0xffffffffu {
                    below += 1u;
                }
            }
            again = below < count;
        }
        y[params.y_offset + first + place] = select(sampled[params.sampled_offset + first + place], 0xffffffffu, again);
    }
}
