// Counts bytes: atomics in shared memory, then in global memory.
extern "C" __global__ void histogram_bytes(const unsigned char *bytes, unsigned int *counts, int size) {
    __shared__ unsigned int local[256];
    local[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x)
        atomicAdd(&local[bytes[i]], 1);
    __syncthreads();
    if (local[threadIdx.x]) atomicAdd(&counts[threadIdx.x], local[threadIdx.x]);
}

// Every atomic operation on 32 and 64 bits, on one cell each.
extern "C" __global__ void histogram_atomics(unsigned int *cells, unsigned long long *wide, double *sum) {
    unsigned int thread = blockIdx.x * blockDim.x + threadIdx.x;
    atomicMin(&cells[0], 1000 - thread);
    atomicMax(&cells[1], thread * 3);
    atomicAnd(&cells[2], ~(1u << thread % 32));
    atomicOr(&cells[3], 1u << thread % 32);
    atomicXor(&cells[4], thread);
    atomicSub(&cells[5], 2);
    atomicInc(&cells[6], 9);
    atomicDec(&cells[7], 9);
    atomicMin((int *)&cells[8], -(int)thread);
    atomicAdd(&wide[0], 1ull << 33);
    atomicMax(&wide[1], (unsigned long long)thread << 40);
    unsigned long long seen = 0, next;
    do {
        next = seen;
        seen = atomicCAS(&wide[2], next, next + thread);
    } while (seen != next);
    atomicAdd(sum, 0.5 * thread);
    atomicExch(&cells[9], 77);
}
