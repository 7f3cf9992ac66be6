#include <cuda.h>
#include <cuda/barrier>
#include <cuda/ptx>
#include <cstdint>

#pragma nv_diag_suppress static_var_with_dynamic_init
namespace ptx = cuda::ptx;
using Barrier = cuda::barrier<cuda::thread_scope_block>;

// Sums of chunks that bulk copies bring into two places in turn, by a barrier of libcu++.
extern "C" __global__ void hopper_chunks(const int *values, int *sums, int chunks) {
    __shared__ alignas(16) int place[2][256];
    __shared__ Barrier arrived[2];
    if (threadIdx.x == 0) {
        init(&arrived[0], blockDim.x);
        init(&arrived[1], blockDim.x);
        ptx::fence_proxy_async(ptx::space_shared);
    }
    __syncthreads();
    Barrier::arrival_token tokens[2];
    auto load = [&](int chunk) {
        Barrier &barrier = arrived[chunk % 2];
        if (threadIdx.x == 0) {
            cuda::memcpy_async(place[chunk % 2], values + 256 * chunk, cuda::aligned_size_t<16>(1024), barrier);
            tokens[chunk % 2] = cuda::device::barrier_arrive_tx(barrier, 1, 0);
        } else {
            tokens[chunk % 2] = barrier.arrive();
        }
    };
    int sum = 0;
    load(0);
    for (int chunk = 0; chunk < chunks; chunk++) {
        if (chunk + 1 < chunks) load(chunk + 1);
        arrived[chunk % 2].wait(std::move(tokens[chunk % 2]));
        for (int i = threadIdx.x; i < 256; i += blockDim.x) sum += place[chunk % 2][i] * (chunk + 1);
        __syncthreads();
    }
    atomicAdd(&sums[threadIdx.x % 4], sum);
}

// A tile of 32 by 32 floats, transposed: in and out by tensor maps.
extern "C" __global__ void hopper_transpose(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to) {
    __shared__ alignas(128) float in[32][32];
    __shared__ alignas(128) float out[32][32];
    __shared__ uint64_t barrier;
    int x = blockIdx.x * 32, y = blockIdx.y * 32;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(&barrier, 1);
        ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const int32_t at[2] = {x, y};
        ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, &in, &from, at, &barrier);
        ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &barrier, sizeof(in));
    }
    while (!ptx::mbarrier_try_wait_parity(&barrier, 0)) {}
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) out[i % 32][i / 32] = in[i / 32][i % 32];
    ptx::fence_proxy_async(ptx::space_shared);
    __syncthreads();
    if (threadIdx.x == 0) {
        const int32_t at[2] = {y, x};
        ptx::cp_async_bulk_tensor(ptx::space_global, ptx::space_shared, &to, at, &out);
        ptx::cp_async_bulk_commit_group();
        ptx::cp_async_bulk_wait_group_read(ptx::n32_t<0>());
    }
}

__device__ uint64_t descriptor(const void *tile) {
    uint64_t address = __cvta_generic_to_shared(tile);
    // Rows of 128 bytes, swizzled, in groups of 8.
    return (address & 0x3ffff) >> 4 | 1ull << 16 | (1024ull >> 4) << 32 | 1ull << 62;
}

// 64 by 16 results from 64 by 64 and 16 by 64 halves, with one warpgroup.
extern "C" __global__ void hopper_product(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map, float *c) {
    extern __shared__ __align__(1024) unsigned char tiles[];
    unsigned char *a = tiles, *b = tiles + 8192;
    __shared__ uint64_t barrier;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(&barrier, 1);
        ptx::fence_proxy_async();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const int32_t at[2] = {0, 0};
        ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &barrier, 8192 + 2048);
        ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, a, &a_map, at, &barrier);
        ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, b, &b_map, at, &barrier);
    }
    while (!ptx::mbarrier_try_wait_parity(&barrier, 0)) {}
    float d[8];
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int k = 0; k < 4; k++) {
        asm volatile(
            "{ .reg .pred add; setp.ne.b32 add, %10, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, add, 1, 1, 0, 0; }"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
            : "l"(descriptor(a + 32 * k)), "l"(descriptor(b + 32 * k)), "r"(k));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int i = 0; i < 8; i++) c[16 * (row + i / 2 % 2 * 8) + column + i / 4 * 8 + i % 2] = d[i];
}
