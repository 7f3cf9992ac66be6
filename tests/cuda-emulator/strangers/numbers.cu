#include <cuda_bf16.h>
#include <cuda_fp16.h>

// A polynomial, roots and the libraries' functions in f64.
extern "C" __global__ void numbers_f64(const double *x, double *out) {
    int i = threadIdx.x;
    double v = x[i];
    out[4 * i] = ((v * 0.5 + 1.25) * v - 3.0) * v + 0.125;
    out[4 * i + 1] = sqrt(fabs(v)) / (1.0 + v * v);
    out[4 * i + 2] = exp(-v * v) + log(1.0 + fabs(v));
    out[4 * i + 3] = sin(v) * cos(v) + pow(fabs(v), 1.5);
}

// The same functions in f32, and the fast ones.
extern "C" __global__ void numbers_f32(const float *x, float *out) {
    int i = threadIdx.x;
    float v = x[i];
    out[8 * i] = sinf(v);
    out[8 * i + 1] = cosf(v);
    out[8 * i + 2] = expf(v);
    out[8 * i + 3] = logf(fabsf(v) + 1);
    out[8 * i + 4] = powf(fabsf(v), 0.75f);
    out[8 * i + 5] = tanhf(v);
    out[8 * i + 6] = erff(v);
    out[8 * i + 7] = __expf(v) + __fdividef(v, 3.f) + rsqrtf(fabsf(v) + 1) + fmodf(v, 0.7f);
}

// a x + y in pairs of halves, and a comparison.
extern "C" __global__ void numbers_half(const __half2 *x, const __half2 *y, __half2 *out, float a) {
    int i = threadIdx.x;
    __half2 factor = __float2half2_rn(a);
    __half2 sum = __hfma2(factor, x[i], y[i]);
    out[2 * i] = sum;
    out[2 * i + 1] = __halves2half2(hsqrt(__habs(__low2half(sum))), __hgt(__high2half(sum), __low2half(x[i])) ? __half(1.f) : __half(-2.f));
}

extern "C" __global__ void numbers_bfloat(const __nv_bfloat16 *x, const __nv_bfloat16 *y, __nv_bfloat16 *out) {
    int i = threadIdx.x;
    __nv_bfloat16 product = __hmul(x[i], y[i]);
    __nv_bfloat16 sum = __hadd(product, __float2bfloat16(0.5f));
    out[3 * i] = product;
    out[3 * i + 1] = sum;
    out[3 * i + 2] = __float2bfloat16(__bfloat162float(x[i]) / 3.f);
}

// Bits and bytes.
extern "C" __global__ void numbers_bits(const unsigned int *x, unsigned int *out) {
    int i = threadIdx.x;
    unsigned int v = x[i], w = v * 2654435761u;
    out[8 * i] = __brev(v);
    out[8 * i + 1] = __clz(v) | __popc(v) << 8 | __ffs(v) << 16;
    out[8 * i + 2] = __byte_perm(v, w, 0x3715);
    out[8 * i + 3] = __funnelshift_l(v, w, i);
    out[8 * i + 4] = __umulhi(v, w);
    out[8 * i + 5] = __uhadd(v, w);
    out[8 * i + 6] = __vadd2(v, w);
    out[8 * i + 7] = __usad(v, w, 5) ^ __mul24((int)v, (int)w);
}
