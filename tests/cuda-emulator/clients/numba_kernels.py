"""Kernels that numba-cuda compiles: a guarded map, a reduction in shared memory, atomics, a tiled product."""

import math
import warnings

import numpy as np
from numba import cuda, float32

# Few blocks leave a real GPU idle; the emulator does not mind.
warnings.filterwarnings("ignore")
TILE = 8


@cuda.jit
def scaled_sum(factor, x, y):
    i = cuda.grid(1)
    if i < x.size:
        y[i] += factor * math.exp(x[i])


@cuda.jit
def block_sums(x, sums):
    shared = cuda.shared.array(64, float32)
    thread = cuda.threadIdx.x
    i = cuda.grid(1)
    shared[thread] = x[i] if i < x.size else 0
    cuda.syncthreads()
    step = 32
    while step > 0:
        if thread < step:
            shared[thread] += shared[thread + step]
        cuda.syncthreads()
        step //= 2
    if thread == 0:
        sums[cuda.blockIdx.x] = shared[0]


@cuda.jit
def histogram(values, counts):
    i = cuda.grid(1)
    if i < values.size:
        cuda.atomic.add(counts, values[i], 1)


@cuda.jit
def product(a, b, y):
    left = cuda.shared.array((TILE, TILE), float32)
    right = cuda.shared.array((TILE, TILE), float32)
    column, row = cuda.grid(2)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    total = float32(0)
    for tile in range((a.shape[1] + TILE - 1) // TILE):
        inner = tile * TILE
        left[ty, tx] = a[row, inner + tx] if row < a.shape[0] and inner + tx < a.shape[1] else 0
        right[ty, tx] = b[inner + ty, column] if inner + ty < b.shape[0] and column < b.shape[1] else 0
        cuda.syncthreads()
        for k in range(TILE):
            total += left[ty, k] * right[k, tx]
        cuda.syncthreads()
    if row < y.shape[0] and column < y.shape[1]:
        y[row, column] = total


def main():
    random = np.random.default_rng(0)
    x = random.standard_normal(1000).astype(np.float32)
    y = np.ones_like(x)
    on_device = cuda.to_device(y)
    scaled_sum[8, 128](np.float32(0.5), cuda.to_device(x), on_device)
    np.testing.assert_allclose(on_device.copy_to_host(), y + np.float32(0.5) * np.exp(x), rtol=1e-5)

    sums = cuda.device_array(16, np.float32)
    block_sums[16, 64](cuda.to_device(x), sums)
    padded = np.pad(x, (0, 24)).reshape(16, 64)
    np.testing.assert_allclose(sums.copy_to_host(), padded.sum(axis=1), rtol=1e-4, atol=1e-4)

    values = random.integers(0, 10, 1000).astype(np.int64)
    counts = cuda.to_device(np.zeros(10, np.int32))
    histogram[8, 128](cuda.to_device(values), counts)
    np.testing.assert_array_equal(counts.copy_to_host(), np.bincount(values, minlength=10))

    a = random.standard_normal((19, 23)).astype(np.float32)
    b = random.standard_normal((23, 17)).astype(np.float32)
    y = cuda.device_array((19, 17), np.float32)
    product[(3, 3), (TILE, TILE)](cuda.to_device(a), cuda.to_device(b), y)
    np.testing.assert_allclose(y.copy_to_host(), a @ b, rtol=1e-4, atol=1e-4)
    print("numba-cuda: as expected")


main()
