// Inclusive sums of 256 values per block, Hillis and Steele's way, between two buffers.
extern "C" __global__ void scan_inclusive(const int *in, int *out) {
    __shared__ int buffer[2][256];
    int thread = threadIdx.x, from = 0;
    buffer[0][thread] = in[blockIdx.x * 256 + thread];
    __syncthreads();
    for (int offset = 1; offset < 256; offset *= 2) {
        int to = 1 - from;
        buffer[to][thread] = buffer[from][thread] + (thread >= offset ? buffer[from][thread - offset] : 0);
        from = to;
        __syncthreads();
    }
    out[blockIdx.x * 256 + thread] = buffer[from][thread];
}

// The same with shuffles: a scan per warp, then of the warps' sums.
extern "C" __global__ void scan_by_warps(const int *in, int *out) {
    __shared__ int sums[8];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int value = in[blockIdx.x * 256 + threadIdx.x];
    for (int offset = 1; offset < 32; offset *= 2) {
        int other = __shfl_up_sync(0xffffffff, value, offset);
        if (lane >= offset) value += other;
    }
    if (lane == 31) sums[warp] = value;
    __syncthreads();
    if (warp == 0) {
        int sum = lane < 8 ? sums[lane] : 0;
        for (int offset = 1; offset < 8; offset *= 2) {
            int other = __shfl_up_sync(0xffffffff, sum, offset);
            if (lane >= offset) sum += other;
        }
        if (lane < 8) sums[lane] = sum;
    }
    __syncthreads();
    out[blockIdx.x * 256 + threadIdx.x] = value + (warp ? sums[warp - 1] : 0);
}
