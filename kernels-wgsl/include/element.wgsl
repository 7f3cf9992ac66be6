/*#
Reading and writing elements of any float type; import as `element`.

A storage array of f32 holds one element each; f16 and bf16 lie two to a u32, the lower half first, so that no device
feature is needed and a whole word is the least that can be written. Kernels compute in f32. i8, four to a u32, can
be loaded but not stored.

    element.storage(dtype)                the type of a storage array's entries
    element.load(dtype, array, index)     an element as f32
    element.store_pair(dtype, array, index, count, a, b)
                                          elements `index` (even) and `index + 1`, the second only if below `count`
    element.functions(dtype)              what store_pair calls; once per kernel
    element.each_pair(entry, dtype, width, compute)
                                          the entry point of a kernel in which an invocation writes two elements of `y`,
                                          `compute(at)` of `params.elements` from `params.y_offset` (even) on
#*/
/*% macro storage(dtype) -%*/
${ "f32" if dtype == "f32" else "u32" }
/*%- endmacro %*/
/*% macro load(dtype, array, index) -%*/
/*% if dtype == "f32" %*/${ array }[${ index }]
/*%- elif dtype == "f16" %*/unpack2x16float(${ array }[(${ index }) >> 1u])[(${ index }) & 1u]
/*%- elif dtype == "i8" %*/f32(extractBits(bitcast<i32>(${ array }[(${ index }) >> 2u]), ((${ index }) & 3u) << 3u, 8u))
/*%- else %*/bitcast<f32>((${ array }[(${ index }) >> 1u] >> (((${ index }) & 1u) << 4u)) << 16u)
/*%- endif %*/
/*%- endmacro %*/
/*% macro store_pair(dtype, array, index, count, a, b) -%*/
/*% if dtype == "f32" %*/${ array }[${ index }] = ${ a };
    if (${ index }) + 1u < ${ count } {
        ${ array }[(${ index }) + 1u] = ${ b };
    }
/*%- else %*/${ array }[(${ index }) >> 1u] = round_to_half(${ a }) | (round_to_half(${ b }) << 16u);
/*%- endif %*/
/*%- endmacro %*/
/*% macro functions(dtype) -%*/
/*% if dtype == "bf16" -%*/
// The bits of a bf16: the upper half of an f32, rounded to nearest, ties to even. A NaN stays one.
fn round_to_half(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}
/*%- elif dtype == "f16" -%*/
// The bits of an f16, rounded to nearest, ties to even. pack2x16float may round either way.
fn round_to_half(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return sign | 0x7e00u;
    }
    // From 65520 on, half way to what would be the next value, it is infinity.
    if magnitude >= 0x477ff000u {
        return sign | 0x7c00u;
    }
    if magnitude >= 0x38800000u {
        let rebased = magnitude - 0x38000000u;
        return sign | ((rebased + 0xfffu + ((rebased >> 13u) & 1u)) >> 13u);
    }
    // Below 2^-25, or at it where the tie goes to zero.
    if magnitude <= 0x33000000u {
        return sign;
    }
    let shift = 126u - (magnitude >> 23u);
    let mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    let half = (1u << (shift - 1u)) - 1u;
    return sign | ((mantissa + half + ((mantissa >> shift) & 1u)) >> shift);
}
/*%- endif %*/
/*%- endmacro %*/
/*% macro each_pair(entry, dtype, width, compute) -%*/
@compute @workgroup_size(${ width })
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let at = 2u * ((workgroup.x + workgroup.y * workgroups.x) * ${ width }u + invocation);
    if at >= params.elements {
        return;
    }
    let a = ${ compute }(at);
    var b = 0.0;
    if at + 1u < params.elements {
        b = ${ compute }(at + 1u);
    }
    let first = params.y_offset + at;
    let end = params.y_offset + params.elements;
    ${ store_pair(dtype, "y", "first", "end", "a", "b") }
}
/*%- endmacro %*/
