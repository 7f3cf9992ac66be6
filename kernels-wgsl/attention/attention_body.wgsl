    let blocks = (params.q_len + ${ rows - 1 }u) / ${ rows }u;
//% if split
    let segment = number % params.segments;
    let block_number = number / params.segments;
//% else
    let block_number = number;
//% endif
    let first_query = block_number % blocks * ${ rows }u;
    let head = block_number / blocks % params.heads;
    let batch = block_number / blocks / params.heads;
    let head_dim = params.head_dim;
    let query_count = min(${ rows }u, params.q_len - first_query);

    var starts: array<u32, ${ rows }>;
    var ends: array<u32, ${ rows }>;
    var first_key = 0xffffffffu;
    var end_key = 0u;
    for (var r = 0u; r < query_count; r++) {
        starts[r] = params.first_key;
        ends[r] = params.end_key;
        if params.visibility > 0u {
            let at = params.words_offset + batch * params.ranges_batch_stride + 2u * (first_query + r);
            starts[r] = words[at];
            ends[r] = words[at + 1u];
        }
        if starts[r] < ends[r] {
            first_key = min(first_key, starts[r]);
            end_key = max(end_key, ends[r]);
        }
    }

    let q_start = params.q_offset + batch * params.q_strides.x + head * params.q_strides.y;
    // Loops over the queries have a constant length, to be unrolled; those beyond the last are zeros.
    for (var i = invocation; i < ${ rows }u * head_dim; i += ${ tile }u) {
        var value = 0.0;
        if i < query_count * head_dim {
            let at = q_start + (first_query + i / head_dim) * params.q_strides.z + i % head_dim;
            value = ${ element.load(dtype, "q", "at") };
        }
        query_rows[i] = value;
    }
    workgroupBarrier();

    let key_head = head / params.group;
    let k_start = params.k_offset + key_head * params.k_strides.y;
    let v_start = params.v_offset + key_head * params.v_strides.y;
//% if not paged
    let bias_start = params.bias_or_pages_offset + batch * params.bias_or_pages_strides.x
        + head * params.bias_or_pages_strides.y;
//% endif
    let given_start = params.given_offset + batch * params.given_strides.x;

    // Of the segment that is being summed, and of those before it.
    var largest: array<f32, ${ rows }>;
    var sums: array<f32, ${ rows }>;
    var mixed: array<f32, ${ rows * slots }>;
    for (var r = 0u; r < ${ rows }u; r++) {
        largest[r] = LOWEST;
    }
//% if not split
    var all_largest = largest;
    var all_sums: array<f32, ${ rows }>;
    var all_mixed: array<f32, ${ rows * slots }>;
    var segment = 0u;
//% endif

    // The tiles to visit: consecutive ones, or a list of entries.
    let first_tile = first_key / ${ tile }u;
    var tile_count = 0u;
    if first_key < end_key {
        tile_count = (end_key + ${ tile - 1 }u) / ${ tile }u - first_tile;
    }
    var entry_at = 0u;
    if params.visibility == 2u {
        let block = batch * params.blocks_batch_stride + first_query / ${ block }u;
        let start = words[params.words_offset + params.starts_at + block];
        tile_count = words[params.words_offset + params.starts_at + block + 1u] - start;
        entry_at = params.words_offset + params.entries_at + 2u * start;
    }
    for (var n = 0u; n <= tile_count; n++) {
        let done = n == tile_count;
        var tile = (first_tile + n) * ${ tile }u;
        var bits_at = ALL;
        if params.visibility == 2u && !done {
            tile = words[entry_at + 2u * n] * ${ tile }u;
            bits_at = words[entry_at + 2u * n + 1u];
        }
//% if split
        if done {
            break;
        }
        if tile / ${ segment_keys }u != segment {
            continue;
        }
//% else
        if done || tile / ${ segment_keys }u != segment {
            for (var r = 0u; r < ${ rows }u; r++) {
                ${ fold("all_largest[r]", "all_sums[r]", "largest[r]", "sums[r]") }
                for (var slot = r * ${ slots }u; slot < (r + 1u) * ${ slots }u; slot++) {
                    let addend = mixed[slot] * there;
                    all_mixed[slot] = fma(all_mixed[slot], here, addend);
                    mixed[slot] = 0.0;
                }
                largest[r] = LOWEST;
                sums[r] = 0.0;
            }
            segment = tile / ${ segment_keys }u;
        }
        if done {
            break;
        }
//% endif
        let key = tile + invocation;
        var dots: array<f32, ${ rows }>;
        if key >= first_key && key < end_key {
            let row = k_start + row_of(key, batch, params.k_strides);
            for (var c = 0u; c < head_dim; c++) {
                let element = ${ element.load(dtype, "k", "row + c") };
                for (var r = 0u; r < ${ rows }u; r++) {
                    dots[r] = fma(query_rows[r * head_dim + c], element, dots[r]);
                }
            }
        }
        var visible: array<bool, ${ rows }>;
        for (var r = 0u; r < ${ rows }u; r++) {
            let query = first_query + r;
            visible[r] = r < query_count && key >= starts[r] && key < ends[r];
            if visible[r] && bits_at != ALL {
                let row = bits_at * ${ block }u + query % ${ block }u;
                let word = words[params.words_offset + params.bits_at + 2u * row + invocation / 32u];
                visible[r] = ((word >> (invocation % 32u)) & 1u) == 1u;
            }
            var score = capped(dots[r] * params.scale);
//% if not paged
            if visible[r] && params.has_bias == 1u {
                let at = bias_start + query * params.bias_or_pages_strides.z + key * params.bias_or_pages_strides.w;
                let term = bias_or_pages[at];
                visible[r] = bitcast<u32>(term) != params.minus_infinity;
                score += term;
            }
//% endif
            if visible[r] && params.has_given == 1u {
                let at = given_start + query * params.given_strides.y + key * params.given_strides.z;
                visible[r] = ((given[at >> 2u] >> (8u * (at & 3u))) & 0xffu) != 0u;
            }
            scores[r * ${ tile }u + invocation] = LOWEST;
            if visible[r] {
                scores[r * ${ tile }u + invocation] = score;
            }
        }
        workgroupBarrier();

        var shrink: array<f32, ${ rows }>;
        for (var r = 0u; r < ${ rows }u; r++) {
            var most = largest[r];
            for (var j = 0u; j < ${ tile }u; j++) {
                most = max(most, scores[r * ${ tile }u + j]);
            }
            shrink[r] = exp(largest[r] - most);
            largest[r] = most;
            var weight = 0.0;
            if visible[r] {
                weight = exp(scores[r * ${ tile }u + invocation] - most);
            }
            weights[r * ${ tile }u + invocation] = weight;
        }
        workgroupBarrier();

        for (var r = 0u; r < ${ rows }u; r++) {
            var sum = 0.0;
            for (var j = 0u; j < ${ tile }u; j++) {
                sum += weights[r * ${ tile }u + j];
            }
            sums[r] = fma(sums[r], shrink[r], sum);
            for (var slot = 0u; slot < ${ slots }u; slot++) {
                mixed[r * ${ slots }u + slot] *= shrink[r];
            }
        }
        let from_key = max(tile, first_key) - tile;
        let to_key = max(min(tile + ${ tile }u, end_key), tile) - tile;
        for (var slot = 0u; slot < ${ slots }u; slot++) {
            let channel = slot * ${ tile }u + invocation;
            if channel < head_dim {
                for (var j = from_key; j < to_key; j++) {
                    let at = v_start + row_of(tile + j, batch, params.v_strides) + channel;
                    let element = ${ element.load(dtype, "v", "at") };
                    for (var r = 0u; r < ${ rows }u; r++) {
                        let weight = weights[r * ${ tile }u + j];
                        // What is hidden adds nothing, even if it is NaN.
                        if (bitcast<u32>(weight) & 0x7fffffffu) != 0u {
                            let to_slot = r * ${ slots }u + slot;
                            mixed[to_slot] = fma(weight, element, mixed[to_slot]);
                        }
                    }
                }
            }
        }
    }
