// Of three words; after include/wide.wgsl.
fn add_wide(a: vec3<u32>, b: vec3<u32>) -> vec3<u32> {
    let lower = add(a.xy, b.xy);
    return vec3<u32>(lower, a.z + b.z + select(0u, 1u, less(lower, a.xy)));
}

fn less_wide(a: vec3<u32>, b: vec3<u32>) -> bool {
    return a.z < b.z || (a.z == b.z && less(a.xy, b.xy));
}

fn product_wide(a: vec2<u32>, b: u32) -> vec3<u32> {
    let upper = add(product(a.y, b), vec2<u32>(high(a.x, b), 0u));
    return vec3<u32>(a.x * b, upper);
}
