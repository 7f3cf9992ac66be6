// Batcher's bitonic sort of 512 keys in shared memory.
extern "C" __global__ void sort_bitonic(unsigned int *keys) {
    __shared__ unsigned int shared[512];
    unsigned int thread = threadIdx.x;
    shared[thread] = keys[blockIdx.x * 512 + thread];
    for (unsigned int size = 2; size <= 512; size *= 2) {
        for (unsigned int stride = size / 2; stride; stride /= 2) {
            __syncthreads();
            unsigned int other = thread ^ stride;
            if (other > thread) {
                bool ascending = (thread & size) == 0;
                unsigned int a = shared[thread], b = shared[other];
                if ((a > b) == ascending) {
                    shared[thread] = b;
                    shared[other] = a;
                }
            }
        }
    }
    __syncthreads();
    keys[blockIdx.x * 512 + thread] = shared[thread];
}

// Each thread sorts 16 values in an array of its own.
extern "C" __global__ void sort_in_local_memory(int *values) {
    int own[16];
    int *mine = values + 16 * (blockIdx.x * blockDim.x + threadIdx.x);
    for (int i = 0; i < 16; i++) {
        int value = mine[i], at = i;
        while (at > 0 && own[at - 1] > value) {
            own[at] = own[at - 1];
            at--;
        }
        own[at] = value;
    }
    for (int i = 0; i < 16; i++) mine[i] = own[i];
}
