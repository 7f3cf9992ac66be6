// Keeps the values that are odd, in order within a warp: ballot, population count, one atomic per warp.
extern "C" __global__ void warp_filter(const int *values, int *kept, int *count, int size) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int value = i < size ? values[i] : 0;
    unsigned int odd = __ballot_sync(0xffffffff, value & 1);
    int lane = threadIdx.x % 32, start = 0;
    if (lane == 0 && odd) start = atomicAdd(count, __popc(odd));
    start = __shfl_sync(0xffffffff, start, 0);
    if (value & 1) kept[start + __popc(odd & ((1u << lane) - 1))] = value;
}

// Groups of lanes with the same key: sums within each, by its first lane.
extern "C" __global__ void warp_groups(const int *keys, const int *values, int *sums) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned int same = __match_any_sync(0xffffffff, keys[i]);
    int sum = __reduce_add_sync(same, values[i]);
    int most = __reduce_max_sync(0xffffffff, values[i]);
    bool leader = (same & ((1u << threadIdx.x % 32) - 1)) == 0;
    sums[i] = leader ? sum : -most;
    if (__all_sync(0xffffffff, keys[i] == 3)) sums[i] = 1234567;
}

// Sums of segments of 8 lanes by butterflies; every lane gets its segment's.
extern "C" __global__ void warp_segments(const float *values, float *sums) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float sum = values[i];
    for (int mask = 4; mask; mask /= 2) sum += __shfl_xor_sync(0xffffffff, sum, mask, 8);
    sums[i] = sum;
}
