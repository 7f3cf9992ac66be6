// C = A B in tiles of 16 by 16; sizes need not be multiples of 16.
extern "C" __global__ void product_tiled(const float *a, const float *b, float *c, int rows, int columns, int inner) {
    __shared__ float a_tile[16][16], b_tile[16][17];
    int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
    float sum = 0;
    for (int start = 0; start < inner; start += 16) {
        int k = start + threadIdx.x;
        a_tile[threadIdx.y][threadIdx.x] = row < rows && k < inner ? a[row * inner + k] : 0.f;
        k = start + threadIdx.y;
        b_tile[threadIdx.y][threadIdx.x] = column < columns && k < inner ? b[k * columns + column] : 0.f;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 16; i++) sum += a_tile[threadIdx.y][i] * b_tile[i][threadIdx.x];
        __syncthreads();
    }
    if (row < rows && column < columns) c[row * columns + column] = sum;
}

// The transpose of a matrix, through shared memory with a padded row.
extern "C" __global__ void product_transpose(const float *in, float *out, int rows, int columns) {
    __shared__ float tile[32][33];
    int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
    for (int i = 0; i < 32; i += 8)
        if (x < columns && y + i < rows) tile[threadIdx.y + i][threadIdx.x] = in[(y + i) * columns + x];
    __syncthreads();
    x = blockIdx.y * 32 + threadIdx.x;
    y = blockIdx.x * 32 + threadIdx.y;
    for (int i = 0; i < 32; i += 8)
        if (x < rows && y + i < columns) out[(y + i) * rows + x] = tile[threadIdx.x][threadIdx.y + i];
}
