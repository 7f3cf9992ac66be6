// Logarithms in integers: written alike in ops/sample/logarithm.rs. After include/wide.wgsl.

// -log2(mantissa / 2^32) in units of 2^-62, for a mantissa of at least 2^31. Within 2^-26 of its size.
fn octaves(mantissa: u32) -> vec2<u32> {
    var m = mantissa;
    var half = vec2<u32>(0u);
    // Below sqrt(1/2): half an octave less.
    if m < 3037000500u {
        let doubled = product(m, 3037000500u);
        m = (doubled.y << 1u) | (doubled.x >> 31u);
        half = vec2<u32>(0u, 0x20000000u);
    }
    let t = 0u - m;
    // -log2(1 - t) / t in units of 2^-30, the highest power first.
    var series = 607083381u;
    series = 71873120u + high(t, series);
    series = 350381167u + high(t, series);
    series = 382906653u + high(t, series);
    series = 516579655u + high(t, series);
    series = 774536938u + high(t, series);
    series = 1549082017u + high(t, series);
    return add(product(t, series), half);
}

// -log2(fraction / 2^32) in units of 2^-56: an exponential variable from a random word. 0 stands for 1.
fn exponential(fraction: u32) -> vec2<u32> {
    let word = max(fraction, 1u);
    let zeros = countLeadingZeros(word);
    let below = octaves(word << zeros);
    return vec2<u32>((below.x >> 6u) | (below.y << 26u), (below.y >> 6u) + (zeros << 24u));
}

// log2 of a number above 0, in units of 2^-24.
fn log2_of(number: vec2<u32>) -> u32 {
    let upper = number.y > 0u;
    let zeros = countLeadingZeros(select(number.x, number.y, upper));
    var mantissa = number.x << zeros;
    if upper && zeros > 0u {
        mantissa = (number.y << zeros) | (number.x >> (32u - zeros));
    } else if upper {
        mantissa = number.y;
    }
    // The number is 2^(bits) times the mantissa over 2^32.
    let bits = select(32u, 64u, upper) - zeros;
    return (bits << 24u) - (octaves(mantissa).y >> 6u);
}

// -ln(-ln u) in units of 2^-24, for u the fraction over 2^32: a Gumbel variable from a random word.
fn gumbel_of(fraction: u32) -> i32 {
    let arrival = exponential(fraction);
    // -log2 of the exponential, which is in units of 2^-56, and -log2(ln 2).
    let octaves = 0x38000000 + 8871228 - i32(log2_of(arrival));
    // ln 2 times 2^32.
    let size = i32(high(u32(abs(octaves)), 2977044472u));
    return select(size, -size, octaves < 0);
}

