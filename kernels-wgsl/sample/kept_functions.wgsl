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

// Ordered as the logits are; both zeros are equal.
fn order(logit: f32) -> u32 {
    let bits = bitcast<u32>(logit);
    if (bits & 0x7fffffffu) == 0u {
        return 0x80000000u;
    }
    if (bits >> 31u) == 1u {
        return ~bits;
    }
    return bits | 0x80000000u;
}

// 2^30 * 2^(-(largest - logit) * factor); largest and logit as `order` gives them.
fn weight(key: u32, largest: u32) -> u32 {
    // -inf.
    if key <= 0x007fffffu {
        return 0u;
    }
    if key == largest {
        return 0x40000000u;
    }
    let distance = logit(largest) - logit(key);
    let octaves = distance * params.factor;
    // From 31 on; the bits of positive numbers are ordered as they are.
    if bitcast<u32>(octaves) >= 0x41f80000u {
        return 0u;
    }
    let fixed = u32(octaves * 16777216.0);
    let z = fixed << 8u;
    // ln(2)^k / k! times 2^32, the highest k first.
    var series = 2u;
    series = 30u - high(z, series);
    series = 437u - high(z, series);
    series = 5676u - high(z, series);
    series = 65510u - high(z, series);
    series = 661577u - high(z, series);
    series = 5726720u - high(z, series);
    series = 41309550u - high(z, series);
    series = 238388332u - high(z, series);
    series = 1031764991u - high(z, series);
    series = 2977044472u - high(z, series);
    return (0x40000000u - (high(z, series) >> 2u)) >> (fixed >> 24u);
}

fn logit(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, (key >> 31u) == 1u));
}

fn key_at(row: u32, token: u32) -> u32 {
    let at = params.x_offset + row * params.vocabulary + token;
    return order(${ element.load(dtype, "x", "at") });
}

// How many logits are at least `threshold` (z), and their weight (x, y).
fn at_least(row: u32, threshold: u32, largest: u32, invocation: u32, weigh: bool) -> vec3<u32> {
    var count = 0u;
    var mass = vec2<u32>(0u);
    for (var token = invocation; token < params.vocabulary; token += ${ width }u) {
        let key = key_at(row, token);
        if key >= threshold {
            count += 1u;
            if weigh {
                mass = add(mass, vec2<u32>(weight(key, largest), 0u));
            }
        }
    }
    // The sums of the last call may still be read.
    workgroupBarrier();
    counts[invocation] = count;
    masses[invocation] = mass;
    workgroupBarrier();
    for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
        if invocation < distance {
            counts[invocation] += counts[invocation + distance];
            masses[invocation] = add(masses[invocation], masses[invocation + distance]);
        }
        workgroupBarrier();
    }
    return vec3<u32>(masses[0], counts[0]);
}

