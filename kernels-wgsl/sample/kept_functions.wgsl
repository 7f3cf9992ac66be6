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

// (largest - logit) * factor in units of 2^-24; largest and logit as `order` gives them. All ones from 31 on, and for -inf.
fn distance(key: u32, largest: u32) -> u32 {
    // -inf.
    if key <= 0x007fffffu {
        return 0xffffffffu;
    }
    if key == largest {
        return 0u;
    }
    let difference = logit(largest) - logit(key);
    let octaves = difference * params.factor;
    // From 31 on; the bits of positive numbers are ordered as they are.
    if bitcast<u32>(octaves) >= 0x41f80000u {
        return 0xffffffffu;
    }
    return u32(octaves * 16777216.0);
}

// 2^30 * 2^-distance.
fn weight(key: u32, largest: u32) -> u32 {
    let fixed = distance(key, largest);
    if fixed == 0xffffffffu {
        return 0u;
    }
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
    return whole(count, mass, invocation);
}

// The sums of all invocations.
fn whole(count: u32, mass: vec2<u32>, invocation: u32) -> vec3<u32> {
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

