//% import "include/element.wgsl" as element
//% set width = 256
// sample: one token per row, drawn from what a filter keeps.
//
//     y[r] = the first kept token whose cumulative weight exceeds fractions[r] / 2^32 of the kept weight
//
// Bindings, group 0:
//     0 params     see the struct; offsets count elements; top_k at least 1; top_p in units of 2^-32, 0 keeps all
//     1 x          [rows, vocabulary] ${ dtype }, contiguous, vocabulary at most 2^18
//     2 fractions  [rows] u32
//     3 y          [rows] u32; 0xffffffff for a row with a NaN, +inf or nothing but -inf
// Dispatch: a workgroup of ${ width } per row, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: ${ 12 * width } bytes.
//
// A weight is an integer: one subtraction and one multiplication of f32, which every device rounds alike, then
// integer arithmetic alone, so that the draw is that of every other backend. Sums are in 64 bits, as vec2 with the
// lower word first. What top-k and top-p keep is the start of the descending order: its last logit is found bit by
// bit, a pass over the row each, and of the logits equal to it those of lowest index are kept. At last each
// invocation adds up a stretch of the row, and the one whose stretch holds the target walks it.
//
// Variants: dtype f32, f16, bf16 (the half types as u32 pairs).
struct Params {
    rows: u32,
    vocabulary: u32,
    x_offset: u32,
    fractions_offset: u32,
    y_offset: u32,
    top_k: u32,
    top_p: u32,
    least: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> fractions: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

var<workgroup> counts: array<u32, ${ width }>;
var<workgroup> masses: array<vec2<u32>, ${ width }>;

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

@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let row = workgroup.x + workgroup.y * workgroups.x;
    if row >= params.rows {
        return;
    }

    // The largest logit. +inf and NaN of either sign lie outside the keys of finite numbers and -inf.
    var largest = 0u;
    for (var token = invocation; token < params.vocabulary; token += ${ width }u) {
        let key = key_at(row, token);
        largest = max(largest, select(key, 0xffffffffu, key < 0x007fffffu));
    }
    counts[invocation] = largest;
    workgroupBarrier();
    for (var distance = ${ width // 2 }u; distance > 0u; distance >>= 1u) {
        if invocation < distance {
            counts[invocation] = max(counts[invocation], counts[invocation + distance]);
        }
        workgroupBarrier();
    }
    largest = counts[0];
    let bad = largest >= 0xff800000u || largest <= 0x007fffffu;

    // Kept are the logits above `last`, and the first `equals` of those equal to it.
    var last = 0u;
    var equals = 0xffffffffu;
    if params.top_k == 1u {
        last = largest;
        equals = 1u;
    } else if params.top_k < params.vocabulary {
        for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
            if at_least(row, last | bit, largest, invocation, false).z >= params.top_k {
                last |= bit;
            }
        }
        equals = params.top_k - at_least(row, last + 1u, largest, invocation, false).z;
    }
    if params.top_p > 0u {
        var total = at_least(row, last + 1u, largest, invocation, true).xy;
        if last > 0u {
            total = add(total, product(weight(last, largest), equals));
        }
        let target_share = share(total, params.top_p);
        let limit = add(target_share.xy, vec2<u32>(target_share.z, 0u));
        var found = 0u;
        for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
            let mass = at_least(row, found | bit, largest, invocation, true).xy;
            if (found | bit) <= last || !less(mass, limit) {
                found |= bit;
            }
        }
        let above = at_least(row, found + 1u, largest, invocation, true).xy;
        let each = weight(found, largest);
        // As many as have less than the limit before them.
        var some = 0u;
        for (var bit = 0x40000u; bit > 0u; bit >>= 1u) {
            if less(add(above, product((some | bit) - 1u, each)), limit) {
                some |= bit;
            }
        }
        equals = select(some, min(some, equals), found == last);
        last = found;
    }

    // Each invocation's stretch: first how many equals lie before it, then what it weighs.
    let stretch = (params.vocabulary + ${ width - 1 }u) / ${ width }u;
    let start = min(invocation * stretch, params.vocabulary);
    let end = min(start + stretch, params.vocabulary);
    var count = 0u;
    for (var token = start; token < end; token++) {
        if key_at(row, token) == last {
            count += 1u;
        }
    }
    workgroupBarrier();
    counts[invocation] = count;
    workgroupBarrier();
    var rank = 0u;
    for (var other = 0u; other < invocation; other++) {
        rank += counts[other];
    }
    let first_rank = rank;
    var mass = vec2<u32>(0u);
    for (var token = start; token < end; token++) {
        let key = key_at(row, token);
        let heavy = weight(key, largest);
        if (key > last || (key == last && rank < equals)) && heavy >= params.least {
            mass = add(mass, vec2<u32>(heavy, 0u));
        }
        if key == last {
            rank += 1u;
        }
    }
    masses[invocation] = mass;
    workgroupBarrier();
    var before = vec2<u32>(0u);
    var total = vec2<u32>(0u);
    for (var other = 0u; other < ${ width }u; other++) {
        if other == invocation {
            before = total;
        }
        total = add(total, masses[other]);
    }
    let goal = share(total, fractions[params.fractions_offset + row]).xy;
    if bad {
        if invocation == 0u {
            y[params.y_offset + row] = 0xffffffffu;
        }
    } else if !less(goal, before) && less(goal, add(before, mass)) {
        rank = first_rank;
        var token = start;
        for (; token < end; token++) {
            let key = key_at(row, token);
            let heavy = weight(key, largest);
            if (key > last || (key == last && rank < equals)) && heavy >= params.least {
                before = add(before, vec2<u32>(heavy, 0u));
                if less(goal, before) {
                    break;
                }
            }
            if key == last {
                rank += 1u;
            }
        }
        y[params.y_offset + row] = token;
    }
}
