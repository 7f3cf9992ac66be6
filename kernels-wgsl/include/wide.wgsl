// Unsigned integers of two words, as vec2, and of three, as vec3; the lowest word first.
// The upper word of a product.
fn high(a: u32, b: u32) -> u32 {
    let low_low = (a & 0xffffu) * (b & 0xffffu);
    let high_low = (a >> 16u) * (b & 0xffffu);
    let low_high = (a & 0xffffu) * (b >> 16u);
    let middle = (low_low >> 16u) + (high_low & 0xffffu) + (low_high & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (high_low >> 16u) + (low_high >> 16u) + (middle >> 16u);
}

fn add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn less(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

fn product(a: u32, b: u32) -> vec2<u32> {
    return vec2<u32>(a * b, high(a, b));
}

// floor(total * fraction / 2^32), and in z whether there is a rest.
fn share(total: vec2<u32>, fraction: u32) -> vec3<u32> {
    let whole = add(product(total.y, fraction), vec2<u32>(high(total.x, fraction), 0u));
    return vec3<u32>(whole, select(0u, 1u, total.x * fraction != 0u));
}

