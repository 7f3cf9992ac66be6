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

// Of numbers whose product fits three words.
fn product_of_wide(a: vec2<u32>, b: vec2<u32>) -> vec3<u32> {
    let upper = product_wide(a, b.y);
    return add_wide(product_wide(a, b.x), vec3<u32>(0u, upper.xy));
}

// floor(a * fraction / 2^32).
fn share_wide(a: vec3<u32>, fraction: u32) -> vec3<u32> {
    let lower = add_wide(vec3<u32>(high(a.x, fraction), 0u, 0u), vec3<u32>(product(a.y, fraction), 0u));
    return add_wide(lower, vec3<u32>(0u, product(a.z, fraction)));
}

// a - b, or 0 if that is negative.
fn excess_wide(a: vec3<u32>, b: vec3<u32>) -> vec3<u32> {
    if less_wide(a, b) {
        return vec3<u32>(0u);
    }
    let borrow = select(0u, 1u, a.x < b.x);
    let middle = a.y - b.y - borrow;
    let borrow_middle = select(0u, 1u, a.y < b.y || (a.y == b.y && borrow == 1u));
    return vec3<u32>(a.x - b.x, middle, a.z - b.z - borrow_middle);
}

