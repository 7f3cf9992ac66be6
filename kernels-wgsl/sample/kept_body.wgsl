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
