// Philox 4x32 with 10 rounds, as in Random123: four random words that depend on the key and the counter alone. After
// include/wide.wgsl.
fn philox(key: vec2<u32>, counter: vec4<u32>) -> vec4<u32> {
    var k = key;
    var c = counter;
    for (var round = 0u; round < 10u; round++) {
        let product0 = product(c.x, 0xd2511f53u);
        let product1 = product(c.z, 0xcd9e8d57u);
        c = vec4<u32>(product1.y ^ c.y ^ k.x, product1.x, product0.y ^ c.w ^ k.y, product0.x);
        k += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return c;
}

