#include <cooperative_groups.h>
#include <cstdio>
#include <cuda_pipeline.h>
namespace cg = cooperative_groups;

// What each thread has to say.
extern "C" __global__ void memory_print(int count) {
    if (threadIdx.x < count) printf("thread %d of block %u: %5.2f %s %x %lld%%\n", threadIdx.x, blockIdx.x, threadIdx.x * 0.25, "ok", 255u - threadIdx.x, -5ll);
}

// Dynamic shared memory, reversed.
extern "C" __global__ void memory_dynamic(int *values) {
    extern __shared__ int shared[];
    shared[threadIdx.x] = values[threadIdx.x];
    __syncthreads();
    values[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__constant__ float coefficients[4] = {1.f, -2.f, 0.5f, 3.f};
__device__ int calls = 5;
__device__ float table[3][2] = {{1, 2}, {3, 4}, {5, 6}};

// Constants, variables of the module, and a pointer into them.
extern "C" __global__ void memory_variables(const float *x, float *out) {
    int i = threadIdx.x;
    float v = x[i];
    out[i] = ((coefficients[3] * v + coefficients[2]) * v + coefficients[1]) * v + coefficients[i % 4] + table[i % 3][i % 2];
    if (i == 0) atomicAdd(&calls, 1);
}

// Tiles of a block: sums of 16 threads, and a block's barrier.
extern "C" __global__ void memory_groups(const int *values, int *out) {
    __shared__ int sums[16];
    cg::thread_block block = cg::this_thread_block();
    cg::thread_block_tile<16> tile = cg::tiled_partition<16>(block);
    int sum = values[block.thread_rank()];
    for (int offset = tile.size() / 2; offset; offset /= 2) sum += tile.shfl_down(sum, offset);
    if (tile.thread_rank() == 0) sums[tile.meta_group_rank()] = sum;
    block.sync();
    if (block.thread_rank() < tile.meta_group_size()) out[block.thread_rank()] = sums[block.thread_rank()];
    out[16 + block.thread_rank()] = tile.any(values[block.thread_rank()] > 900) * 1000 + tile.meta_group_rank();
}

// A copy to shared memory that goes on by itself until it is waited for.
extern "C" __global__ void memory_async(const int4 *in, int4 *out) {
    __shared__ int4 place[128];
    __pipeline_memcpy_async(&place[threadIdx.x], &in[128 * blockIdx.x + threadIdx.x], sizeof(int4));
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    int4 value = place[127 - threadIdx.x];
    value.x += 1;
    out[128 * blockIdx.x + threadIdx.x] = value;
}

// The sieve of Eratosthenes, a byte per number.
extern "C" __global__ void memory_sieve(unsigned char *composite, int limit) {
    for (int p = 2; p * p < limit; p++) {
        bool prime = composite[p] == 0;
        __syncthreads();
        if (prime)
            for (int i = p * p + p * threadIdx.x; i < limit; i += p * blockDim.x) composite[i] = 1;
        __syncthreads();
    }
}

// A lock that one thread of each block takes.
__device__ int lock = 0;

extern "C" __global__ void memory_lock(int *counter) {
    if (threadIdx.x == 0) {
        while (atomicCAS(&lock, 0, 1) != 0) {}
        __threadfence();
        *(volatile int *)counter = *(volatile int *)counter + blockIdx.x + 1;
        __threadfence();
        atomicExch(&lock, 0);
    }
}
