struct Pair {
    float low, high;
    char tag;
};

__device__ __noinline__ Pair order(float a, float b, char tag) {
    Pair pair;
    pair.low = a < b ? a : b;
    pair.high = a < b ? b : a;
    pair.tag = tag + 1;
    return pair;
}

__device__ __noinline__ float spread(Pair pair) { return pair.high - pair.low + pair.tag; }

// Structures by value, into functions and out of them.
extern "C" __global__ void functions_structures(const float *a, const float *b, float *out) {
    int i = threadIdx.x;
    out[i] = spread(order(a[i], b[i], (char)(i % 5)));
}

__device__ int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

// Recursion, to a depth that differs between lanes.
extern "C" __global__ void functions_recursion(int *out) { out[threadIdx.x] = fibonacci(threadIdx.x % 12); }

// A dense switch and 64-bit division.
extern "C" __global__ void functions_switch(const int *codes, const long long *a, const long long *b, long long *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    long long x = a[i], y = b[i], z = 0;
    switch (codes[i]) {
    case 0: z = x + y; break;
    case 1: z = x - y; break;
    case 2: z = x * y; break;
    case 3: z = x / y; break;
    case 4: z = x % y; break;
    case 5: z = (long long)((unsigned long long)x / (unsigned long long)y); break;
    case 6: z = x >> (y & 63); break;
    case 7: z = x ^ y; break;
    default: z = -1;
    }
    out[i] = z;
}

// Steps until 1 in Collatz's sequence.
extern "C" __global__ void functions_collatz(unsigned int *steps) {
    unsigned long long value = blockIdx.x * blockDim.x + threadIdx.x + 1;
    unsigned int count = 0;
    while (value != 1) {
        value = value % 2 ? 3 * value + 1 : value / 2;
        count++;
    }
    steps[blockIdx.x * blockDim.x + threadIdx.x] = count;
}
