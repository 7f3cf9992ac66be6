//% import "include/element.wgsl" as element
//% set width = 64
// ssd: the state space recurrence of Mamba-2.
//
//     h[t] = exp(dt[t] A) h[t - 1] + dt[t] x[t] B[t]^T;  y[t] = h[t] C[t] + D x[t]
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements, those of what is written are 0
//     1 x        [batch, seq, heads, head_dim] ${ dtype }, contiguous, as are all
//     2 dt       [batch, seq, heads] ${ dtype }, positive
//     3 b        [batch, seq, groups, states] ${ dtype }; head h has group h / (heads / groups)
//     4 c        as b
//     5 a_and_d  [2, heads] f32: A, negative, and D
//     6 state    [batch, heads, head_dim, states] f32: h before the first position, and after the last
//     7 y        as x, but f32
// Dispatch: an invocation per channel of a head in workgroups of ${ width }, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Each invocation has one row of h and takes the positions one after another.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Dao and Gu 2024, arXiv:2405.21060, equation 2 and section 7.
struct Params {
    batch: u32,
    seq: u32,
    heads: u32,
    head_dim: u32,
    groups: u32,
    states: u32,
    x_offset: u32,
    dt_offset: u32,
    b_offset: u32,
    c_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> dt: array<${ element.storage(dtype) }>;
@group(0) @binding(3) var<storage, read> b: array<${ element.storage(dtype) }>;
@group(0) @binding(4) var<storage, read> c: array<${ element.storage(dtype) }>;
@group(0) @binding(5) var<storage, read> a_and_d: array<f32>;
@group(0) @binding(6) var<storage, read_write> state: array<f32>;
@group(0) @binding(7) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let index = (workgroup.x + workgroup.y * workgroups.x) * ${ width }u + invocation;
    if index >= params.batch * params.heads * params.head_dim {
        return;
    }
    let channel = index % params.head_dim;
    let head = index / params.head_dim % params.heads;
    let entry_of_batch = index / params.head_dim / params.heads;
    let group = head / (params.heads / params.groups);
    let through = a_and_d[params.heads + head];
    for (var position = 0u; position < params.seq; position++) {
        let at = entry_of_batch * params.seq + position;
        let x_at = (at * params.heads + head) * params.head_dim + channel;
        let dt_at = params.dt_offset + at * params.heads + head;
        let own = ${ element.load(dtype, "x", "params.x_offset + x_at") };
        let time = ${ element.load(dtype, "dt", "dt_at") };
        let factor = exp(time * a_and_d[head]);
        var sum = through * own;
        for (var n = 0u; n < params.states; n++) {
            let shared_at = (at * params.groups + group) * params.states + n;
            let s = index * params.states + n;
            let h = fma(time * own, ${ element.load(dtype, "b", "params.b_offset + shared_at") }, factor * state[s]);
            state[s] = h;
            sum = fma(h, ${ element.load(dtype, "c", "params.c_offset + shared_at") }, sum);
        }
        y[x_at] = sum;
    }
}
