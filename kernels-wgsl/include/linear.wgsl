/*#
What the kernels of linear share: the operands, and how a sum becomes an output; import as `shared`. The order of
summation, which they must share too, is:

    A row's inputs are cut into segments of params.segment, a multiple of 16 that leaves at most 32 segments. A
    segment is summed from its first input to its last, each step one fma; then the segments' sums are added from the
    first to the last.
#*/
/*% macro declarations(element, dtype, weight_dtype) -%*/
struct Params {
    batch: u32,
    rows: u32,
    inputs: u32,
    outputs: u32,
    segment: u32,
    x_offset: u32,
    weight_offset: u32,
    weight_stride: u32,
    scale_offset: u32,
    bias_offset: u32,
    y_offset: u32,
    has_scale: u32,
    has_bias: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<${ element.storage(dtype) }>;
@group(0) @binding(2) var<storage, read> weight: array<${ element.storage(weight_dtype) }>;
@group(0) @binding(3) var<storage, read> scale: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<${ element.storage(dtype) }>;

${ element.functions(dtype) }
fn finished(sum: f32, output: u32) -> f32 {
    var factor = 1.0;
    if params.has_scale != 0u {
        factor = scale[params.scale_offset + output];
    }
    var addend = 0.0;
    if params.has_bias != 0u {
        addend = bias[params.bias_offset + output];
    }
    return fma(sum, factor, addend);
}
/*%- endmacro %*/
