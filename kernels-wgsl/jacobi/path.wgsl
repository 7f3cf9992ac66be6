//% set width = 256
// path: how far drafts of a diffusion head are accepted, by the densities of their denoising paths.
//
//     r[b, i] = sum over steps and channels of ln N(x; q) - ln N(x; p), the Gaussians of each step under both models
//     kept[b, i] = 1 where u[b, i] < exp(min(r[b, i], 0)), else 0, as where r[b, i] is a NaN
//     accepted[b] = how many of the first are kept
//
// Bindings, group 0:
//     0 params    see the struct; offsets count elements, those of the outputs are 0
//     1 x         [batch, drafts, terms] f32, contiguous: the states that were drawn, a term per step and channel
//     2 p         [2, batch, drafts, terms] f32, contiguous: the draft model's means, then its log variances
//     3 q         as p: the target model's
//     4 u         [batch, drafts] f32 in [0, 1)
//     5 r         [batch, drafts] f32
//     6 kept      [batch, drafts] u32
//     7 accepted  [batch] u32
// Dispatch: a workgroup of ${ width } per sequence, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 4 * width } bytes.
//
// The constant of the Gaussians is in both and cancels. Each invocation adds every ${ width }-th term, then a tree adds up.
//
// Source: Wang et al. 2024, arXiv:2411.11925, section 4.
struct Params {
    batch: u32,
    drafts: u32,
    terms: u32,
    x_offset: u32,
    p_offset: u32,
    q_offset: u32,
    u_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> p: array<f32>;
@group(0) @binding(3) var<storage, read> q: array<f32>;
@group(0) @binding(4) var<storage, read> u: array<f32>;
@group(0) @binding(5) var<storage, read_write> r: array<f32>;
@group(0) @binding(6) var<storage, read_write> kept: array<u32>;
@group(0) @binding(7) var<storage, read_write> accepted: array<u32>;

var<workgroup> sums: array<f32, ${ width }>;

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
    let whole = params.batch * params.drafts * params.terms;
    var first = params.drafts;
    for (var place = 0u; place < params.drafts; place++) {
        let row = sequence * params.drafts + place;
        var sum = 0.0;
        for (var term = invocation; term < params.terms; term += ${ width }u) {
            let at = row * params.terms + term;
            let from_p = x[params.x_offset + at] - p[params.p_offset + at];
            let from_q = x[params.x_offset + at] - q[params.q_offset + at];
            let spread_p = p[params.p_offset + whole + at];
            let spread_q = q[params.q_offset + whole + at];
            sum += 0.5 * (from_p * from_p * exp(-spread_p) + spread_p - from_q * from_q * exp(-spread_q) - spread_q);
        }
        // The sums of the last place may still be read.
        workgroupBarrier();
        sums[invocation] = sum;
        workgroupBarrier();
        for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
            if invocation < distance {
                sums[invocation] += sums[invocation + distance];
            }
            workgroupBarrier();
        }
        if invocation == 0u {
            let number = (bitcast<u32>(sums[0]) & 0x7fffffffu) <= 0x7f800000u;
            let keep = number && u[params.u_offset + row] < exp(min(sums[0], 0.0));
            r[row] = sums[0];
            kept[row] = select(0u, 1u, keep);
            if !keep {
                first = min(first, place);
            }
        }
    }
    if invocation == 0u {
        accepted[sequence] = first;
    }
}
