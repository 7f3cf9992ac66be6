//% import "include/element.wgsl" as element
// activation: apply a function to each value.
//
/*% if function == "silu" %*/
//     y[i] = x[i] / (1 + exp(-x[i]))
/*% elif function == "gelu" %*/
//     y[i] = x[i] * (1 + erf(x[i] / sqrt(2))) / 2
/*% elif function == "gelu_tanh" %*/
//     y[i] = x[i] * (1 + tanh(sqrt(2 / pi) * (x[i] + 0.044715 * x[i]^3))) / 2
/*% elif function == "relu" %*/
//     y[i] = max(x[i], 0)
/*% elif function == "sigmoid" %*/
//     y[i] = 1 / (1 + exp(-x[i]))
/*% elif function == "softplus" %*/
//     y[i] = ln(1 + exp(x[i]))
/*% else %*/
//     y[i] = tanh(x[i])
/*% endif %*/
//
// Bindings, group 0:
//     0 params   see the struct; offsets count elements, y's is even
//     1 x        ${ dtype }, contiguous
//     2 y        as x, but other memory: WebGPU forbids the alias
// Dispatch: an invocation per two elements of y, in workgroups of 64, folded over x and y.
// Needs: WebGPU's defaults. Workgroup memory: none.
//
// Two elements to an invocation, since two of a half type share a word. A NaN comes through as it is, by
// its bits, since a device may compare it as it likes. Arguments of exp are held to where it is finite.
//
// Variants: function silu, gelu, gelu_tanh, relu, sigmoid, tanh, softplus; dtype f32, f16, bf16 (the half
// types as u32 pairs).
// Source: gelu: Hendrycks and Gimpel 2016, arXiv:1606.08415. silu: Elfwing, Uchibe and Doya 2017,
// arXiv:1702.03118.
struct Params {
    x_offset: u32,
    y_offset: u32,
    elements: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read_write> y: array<${ element.storage(dtype) }>;

${ element.functions(dtype) }
/*% if function in ["silu", "sigmoid", "gelu_tanh"] %*/
fn sigmoid(value: f32) -> f32 {
    return 1.0 / (1.0 + exp(min(-value, 88.0)));
}

/*% endif %*/
fn apply(value: f32) -> f32 {
/*% if function == "silu" %*/
    return value * sigmoid(value);
/*% elif function == "gelu" %*/
    // x times the normal distribution's function, which is half of erfc: the fit of Numerical Recipes (2nd
    // edition, section 6.2), whose error of 1.2e-7 is relative, so that the tail keeps its digits.
    let z = min(abs(value) * 0.70710678, 13.0);
    let t = 1.0 / (1.0 + 0.5 * z);
    var fit = 0.17087277;
    /*% for factor in ["-0.82215223", "1.48851587", "-1.13520398", "0.27886807", "-0.18628806", "0.09678418", "0.37409196", "1.00002368", "-1.26551223"] %*/
    fit = fit * t + ${ factor };
    /*% endfor %*/
    let tail = 0.5 * t * exp(max(fit - z * z, -87.0));
    if value > 0.0 {
        return value * (1.0 - tail);
    }
    return value * tail;
/*% elif function == "gelu_tanh" %*/
    // (1 + tanh(u)) / 2 is sigmoid(2 u). Beyond 15 it is 0 or 1, and a cube might overflow.
    let held = clamp(value, -15.0, 15.0);
    return value * sigmoid(1.5957691 * (held + 0.044715 * held * held * held));
/*% elif function == "relu" %*/
    return max(value, 0.0);
/*% elif function == "sigmoid" %*/
    return sigmoid(value);
/*% elif function == "softplus" %*/
    // max(x, 0) + ln(1 + e) with e = exp(-|x|), so that nothing overflows; ln(1 + e) is 2 atanh(e / (2 + e)),
    // whose argument is at most a third.
    let e = exp(max(-abs(value), -87.0));
    let part = e / (2.0 + e);
    let square = part * part;
    var series = 1.0 / 13.0;
    /*% for odd in [11, 9, 7, 5, 3, 1] %*/
    series = series * square + 1.0 / ${ odd }.0;
    /*% endfor %*/
    return max(value, 0.0) + 2.0 * part * series;
/*% else %*/
    // Near 0 the quotient loses digits, so there it is the series.
    if abs(value) < 0.25 {
        let square = value * value;
        return value * ((((62.0 / 2835.0 * square - 17.0 / 315.0) * square + 2.0 / 15.0) * square - 1.0 / 3.0) * square + 1.0);
    }
    return 1.0 - 2.0 / (exp(2.0 * clamp(value, -15.0, 15.0)) + 1.0);
/*% endif %*/
}

fn value_at(index: u32) -> f32 {
    if index >= params.elements {
        return 0.0;
    }
    let value = ${ element.load(dtype, "x", "params.x_offset + index") };
    if (bitcast<u32>(value) & 0x7fffffffu) > 0x7f800000u {
        return value;
    }
    return apply(value);
}

@compute @workgroup_size(64)
fn ${ entry }(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let first = 2u * ((workgroup.x + workgroup.y * workgroups.x) * 64u + invocation);
    if first >= params.elements {
        return;
    }
    let a = value_at(first);
    let b = value_at(first + 1u);
    ${ element.store_pair(dtype, "y", "params.y_offset + first", "params.y_offset + params.elements", "a", "b") }
}
