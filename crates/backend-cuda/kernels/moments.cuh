// Rows whose normalisation is deferred: gemm_sm90.cu writes them, and says what they are; norm.cu
// reads them too. Follows prelude.cuh.

// Of each so many equal parts have their sum and their sum of squares.
constexpr int ROW_PARTS = 4;

// Of a row, from those sums and 1 / columns. What cancels where the mean is far from zero is far less
// than what the rows lost when they were rounded.
__device__ __forceinline__ float variance_of(float2 sums, float share) {
    const float mean = sums.x * share;
    return fmaxf(fmaf(-mean, mean, sums.y * share), 0.0f);
}

// The sums of all four lanes of a group.
__device__ __forceinline__ float2 sum_lanes(float2 sums) {
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) {
        sums.x += __shfl_xor_sync(0xffffffff, sums.x, lanes);
        sums.y += __shfl_xor_sync(0xffffffff, sums.y, lanes);
    }
    return sums;
}
