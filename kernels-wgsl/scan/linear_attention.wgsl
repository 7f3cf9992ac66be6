//% import "include/element.wgsl" as element
//% set width = 64
// linear_attention: attention without a softmax, as a recurrence.
//
//     s[t] = decay s[t - 1] + f(k[t]) v[t]^T;  y[t] = f(q[t]) s[t], over denominators[t] if there are any
//     or, not causal, y[t] = f(q[t]) s[last]
//
// Bindings, group 0:
//     0 params        see the struct; offsets count elements, those of what is written are 0; each flag 0 or 1
//     1 q             [lines, seq, key_dim] ${ dtype }, contiguous, as are all; a line is a head of a batch entry
//     2 k             as q
//     3 v             [lines, seq, value_dim] ${ dtype }; with `ones` not read: value_dim is 1, and v is 1
//     4 decay         [heads] f32; not read without has_decay
//     5 denominators  [lines, seq] f32; not read without has_denominators
//     6 state         [lines, key_dim, value_dim] f32: s before the first position, and after the last
//     7 y             [lines, seq, value_dim] f32
// Dispatch: an invocation per column of a line's values in workgroups of ${ width }, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Each invocation has one column of s and takes the positions one after another, so that a sum's order depends on nothing
// else. The same kernel with v = 1 gives the denominators f(q[t]) z[t].
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
// Source: Katharopoulos et al. 2020, arXiv:2006.16236, equations 16 to 20; decay: Sun et al. 2023, arXiv:2307.08621.
struct Params {
    lines: u32,
    heads: u32,
    seq: u32,
    key_dim: u32,
    value_dim: u32,
    q_offset: u32,
    k_offset: u32,
    v_offset: u32,
    decay_offset: u32,
    causal: u32,
    features: u32,
    ones: u32,
    has_decay: u32,
    has_denominators: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> k: array<${ element.storage(dtype) }>;
@group(0) @binding(3) var<storage, read> v: array<${ element.storage(dtype) }>;
@group(0) @binding(4) var<storage, read> decay: array<f32>;
@group(0) @binding(5) var<storage, read> denominators: array<f32>;
@group(0) @binding(6) var<storage, read_write> state: array<f32>;
@group(0) @binding(7) var<storage, read_write> y: array<f32>;

// elu + 1, or the number itself.
fn feature(x: f32) -> f32 {
    if params.features == 0u {
        return x;
    }
    if x > 0.0 {
        return x + 1.0;
    }
    return exp(x);
}

fn add_position(line: u32, column: u32, position: u32, factor: f32) {
    let at = line * params.seq + position;
    var value = 1.0;
    if params.ones == 0u {
        let v_at = params.v_offset + at * params.value_dim + column;
        value = ${ element.load(dtype, "v", "v_at") };
    }
    for (var d = 0u; d < params.key_dim; d++) {
        let k_at = params.k_offset + at * params.key_dim + d;
        let s = (line * params.key_dim + d) * params.value_dim + column;
        state[s] = fma(feature(${ element.load(dtype, "k", "k_at") }), value, factor * state[s]);
    }
}

fn read_position(line: u32, column: u32, position: u32) {
    let at = line * params.seq + position;
    var sum = 0.0;
    for (var d = 0u; d < params.key_dim; d++) {
        let q_at = params.q_offset + at * params.key_dim + d;
        let s = (line * params.key_dim + d) * params.value_dim + column;
        sum = fma(feature(${ element.load(dtype, "q", "q_at") }), state[s], sum);
    }
    if params.has_denominators != 0u {
        sum /= denominators[at];
    }
    y[at * params.value_dim + column] = sum;
}

@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let index = (workgroup.x + workgroup.y * workgroups.x) * ${ width }u + invocation;
    if index >= params.lines * params.value_dim {
        return;
    }
    let line = index / params.value_dim;
    let column = index % params.value_dim;
    var factor = 1.0;
    if params.has_decay != 0u {
        factor = decay[params.decay_offset + line % params.heads];
    }
    for (var position = 0u; position < params.seq; position++) {
        add_position(line, column, position, factor);
        if params.causal != 0u {
            read_position(line, column, position);
        }
    }
    if params.causal == 0u {
        for (var position = 0u; position < params.seq; position++) {
            read_position(line, column, position);
        }
    }
}
