// One step of heat on a grid whose border stays, with a halo in shared memory.
extern "C" __global__ void stencil_heat(const float *in, float *out, int width, int height) {
    __shared__ float tile[18][18];
    int x = blockIdx.x * 16 + threadIdx.x, y = blockIdx.y * 16 + threadIdx.y;
    for (int i = threadIdx.y * 16 + threadIdx.x; i < 18 * 18; i += 256) {
        int from_x = min(max((int)blockIdx.x * 16 + i % 18 - 1, 0), width - 1);
        int from_y = min(max((int)blockIdx.y * 16 + i / 18 - 1, 0), height - 1);
        tile[i / 18][i % 18] = in[from_y * width + from_x];
    }
    __syncthreads();
    if (x >= width || y >= height) return;
    float centre = tile[threadIdx.y + 1][threadIdx.x + 1];
    bool border = x == 0 || y == 0 || x == width - 1 || y == height - 1;
    float around = tile[threadIdx.y][threadIdx.x + 1] + tile[threadIdx.y + 2][threadIdx.x + 1] +
                   tile[threadIdx.y + 1][threadIdx.x] + tile[threadIdx.y + 1][threadIdx.x + 2];
    out[y * width + x] = border ? centre : centre + 0.2f * (around - 4 * centre);
}

// How often z^2 + c stays bounded: lanes leave the loop one by one.
extern "C" __global__ void stencil_mandelbrot(int *steps, int width, int height) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    float real = 3.f * x / width - 2.f, imaginary = 2.f * y / height - 1.f, a = 0, b = 0;
    int step = 0;
    while (step < 100 && a * a + b * b < 4) {
        float next = __fadd_rn(__fsub_rn(__fmul_rn(a, a), __fmul_rn(b, b)), real);
        b = __fadd_rn(__fmul_rn(2 * a, b), imaginary);
        a = next;
        step++;
    }
    steps[y * width + x] = step;
}
