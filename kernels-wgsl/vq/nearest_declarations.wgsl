struct Params {
    vectors: u32,
    codes: u32,
    dim: u32,
    cosine: u32,
    x_offset: u32,
    codebook_offset: u32,
    y_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> codebook: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

// The sum with the squared distances of four more channels, one after the other.
fn with_distance(sum: f32, x: vec4<f32>, code: vec4<f32>) -> f32 {
    let apart = x - code;
    return with_product(sum, apart, apart);
}

fn with_product(sum: f32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

fn finished(sum: f32, squares: f32) -> f32 {
    if params.cosine != 0u && squares > 0.0 {
        return sum / sqrt(squares);
    }
    return sum;
}
