struct Params {
    q_strides: vec4<u32>,
    k_strides: vec4<u32>,
    v_strides: vec4<u32>,
    bias_or_pages_strides: vec4<u32>,
    given_strides: vec4<u32>,
    q_offset: u32,
    k_offset: u32,
    v_offset: u32,
    bias_or_pages_offset: u32,
    given_offset: u32,
    words_offset: u32,
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
    visibility: u32,
    ranges_batch_stride: u32,
    starts_at: u32,
    entries_at: u32,
    bits_at: u32,
    blocks_batch_stride: u32,
    page_size: u32,
    segments: u32,
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
//% if paged
@group(0) @binding(4) var<storage, read> bias_or_pages: array<u32>;
//% else
@group(0) @binding(4) var<storage, read> bias_or_pages: array<f32>;
//% endif
@group(0) @binding(5) var<storage, read> words: array<u32>;
@group(0) @binding(6) var<storage, read> given: array<u32>;

// The queries, and in the end what the rows add up to.
var<workgroup> query_rows: array<f32, ${ rows * tile * slots }>;
var<workgroup> scores: array<f32, ${ rows * tile }>;
var<workgroup> weights: array<f32, ${ rows * tile }>;

// In place of where bits are: every query sees every key.
const ALL = 0xffffffffu;
// Below every score that matters; of no weight beside any other.
const LOWEST = -3.0e38;

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

//% if paged
// Where a key of this batch entry lies among the pages.
fn row_of(key: u32, batch: u32, strides: vec4<u32>) -> u32 {
    let at = params.bias_or_pages_offset + batch * params.bias_or_pages_strides.x + key / params.page_size;
    return bias_or_pages[at] * strides.x + key % params.page_size * strides.z;
}
//% else
fn row_of(key: u32, batch: u32, strides: vec4<u32>) -> u32 {
    return batch * strides.x + key * strides.z;
}
//% endif
