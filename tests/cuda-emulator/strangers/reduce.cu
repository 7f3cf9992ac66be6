// Sums: a tree in shared memory, then shuffles in the last warp, then one atomic addition per block.
extern "C" __global__ void reduce_sum(const float *values, float *total, int count) {
    __shared__ float partial[256];
    int thread = threadIdx.x;
    float sum = 0;
    for (int i = blockIdx.x * blockDim.x + thread; i < count; i += gridDim.x * blockDim.x) sum += values[i];
    partial[thread] = sum;
    __syncthreads();
    for (int half = blockDim.x / 2; half >= 32; half /= 2) {
        if (thread < half) partial[thread] += partial[thread + half];
        __syncthreads();
    }
    if (thread < 32) {
        sum = partial[thread];
        for (int offset = 16; offset; offset /= 2) sum += __shfl_down_sync(0xffffffff, sum, offset);
        if (thread == 0) atomicAdd(total, sum);
    }
}

// The last block to finish adds up what the others left: a ticket from an atomic, and fences.
__device__ unsigned int tickets = 0;

extern "C" __global__ void reduce_last_block(const float *values, float *partials, float *total, int count) {
    __shared__ float partial[128];
    __shared__ bool last;
    int thread = threadIdx.x;
    float sum = 0;
    for (int i = blockIdx.x * 128 + thread; i < count; i += gridDim.x * 128) sum += values[i];
    partial[thread] = sum;
    __syncthreads();
    for (int half = 64; half; half /= 2) {
        if (thread < half) partial[thread] += partial[thread + half];
        __syncthreads();
    }
    if (thread == 0) {
        partials[blockIdx.x] = partial[0];
        __threadfence();
        last = atomicInc(&tickets, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && thread == 0) {
        volatile float *all = partials;
        float sum = 0;
        for (int block = 0; block < gridDim.x; block++) sum += all[block];
        *total = sum;
    }
}
