// One row per sequence out of one row per token.
//
//     vecmill_pool_<mean|mean_sqrt|weighted|max>(
//         const T* input, const u32* starts, T* output, u32 columns, u32 width, u32 first)
//         Grid: sequences * ceil(columns / C) blocks, where C is 8 * VECTOR (VECTOR is 8, or 4 for
//         f32) if columns is a multiple of VECTOR, and else 32. Block: 256 threads.
//
//     vecmill_pool_<cls|last>(
//         const T* input, const u32* starts, T* output, u32 columns, u32 width, u32 first)
//         Grid: one block per sequence. Block: 256 threads.
//
// Sequence i is rows starts[i] to starts[i + 1] of `input`; one without rows gives zeros. Its result
// goes into `columns` columns of row i of `output`, which has `width` of them, from column `first` on:
// so several poolings stand beside each other.
// Alignment: 16 bytes. Dynamic shared memory: none. The rest, cutting rows and dividing them by their
// length, differs from request to request, and is the host's.
//
// The choice: a block takes 128 bytes of every row of one sequence, 32 rows at a time, so that one
// long sequence is spread over the device and many short ones fill it. How rows are dealt to
// threads depends on the sequence alone, so its bits do too.

constexpr int BLOCK = 256;
// Rows that a thread loads before it uses the first.
constexpr int IN_FLIGHT = 8;

// A way of pooling: `take` adds a row's number, the `index`th of its sequence, to what was folded so
// far, and `join` adds what another thread folded.
struct Sum {
    static __device__ __forceinline__ float start() { return 0.0f; }
    static __device__ __forceinline__ float take(float total, float x, u32) { return total + x; }
    static __device__ __forceinline__ float join(float a, float b) { return a + b; }
};

struct Mean : Sum {
    static __device__ __forceinline__ float finish(float total, u32 rows) {
        return total / (float)rows;
    }
};

struct MeanSqrt : Sum {
    static __device__ __forceinline__ float finish(float total, u32 rows) {
        return total / sqrtf((float)rows);
    }
};

// The first token counts once, the second twice, and so on.
struct Weighted : Sum {
    static __device__ __forceinline__ float take(float total, float x, u32 index) {
        return total + (float)(index + 1) * x;
    }
    static __device__ __forceinline__ float finish(float total, u32 rows) {
        return total / ((float)rows * ((float)rows + 1.0f) * 0.5f);
    }
};

struct Max {
    // Minus infinity.
    static __device__ __forceinline__ float start() { return __int_as_float(0xff800000); }
    // NaN wins: it must not vanish from a result.
    static __device__ __forceinline__ float join(float largest, float x) {
        return x > largest || x != x ? x : largest;
    }
    static __device__ __forceinline__ float take(float largest, float x, u32) {
        return join(largest, x);
    }
    static __device__ __forceinline__ float finish(float largest, u32) { return largest; }
};

// What a block covers at a time: ROWS rows, and LANES lanes side by side with WIDTH columns each.
template <int WIDTH>
struct Tile {
    static constexpr int LANES = WIDTH == 1 ? WARP : 8;
    static constexpr int COLUMNS = LANES * WIDTH;
    static constexpr int ROWS = BLOCK / LANES;
};

// WIDTH neighbours, as they lie in memory.
template <int WIDTH>
struct Bits {
    uint4 vector;
    __device__ __forceinline__ void load(const T* from) { vector = load_bits(from); }
    __device__ __forceinline__ void unpack(float (&values)[WIDTH]) const {
        unpack_vector(vector, values);
    }
};

template <>
struct Bits<1> {
    T value;
    __device__ __forceinline__ void load(const T* from) { value = *from; }
    __device__ __forceinline__ void unpack(float (&values)[1]) const {
        values[0] = to_float(value);
    }
};

// Folds rows `row`, `row + ROWS`, ... before `end` of a sequence that begins at `start`; `input`
// points to this thread's first column.
template <class Fold, int WIDTH>
__device__ __forceinline__ void fold_rows(
    const T* input, u32 start, u32 row, u32 end, u32 columns, float (&folded)[WIDTH]
) {
    constexpr int ROWS = Tile<WIDTH>::ROWS;
    for (; row < end; row += IN_FLIGHT * ROWS) {
        Bits<WIDTH> bits[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; ++i) {
            if (row + i * ROWS < end) {
                bits[i].load(input + (u64)(row + i * ROWS) * columns);
            }
        }
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; ++i) {
            if (row + i * ROWS < end) {
                float values[WIDTH];
                bits[i].unpack(values);
#pragma unroll
                for (int j = 0; j < WIDTH; ++j) {
                    folded[j] = Fold::take(folded[j], values[j], row + i * ROWS - start);
                }
            }
        }
    }
}

template <class Fold, int WIDTH>
__device__ __forceinline__ void pool_tile(
    const T* input, const u32* starts, T* output, u32 columns, u32 width, u32 first
) {
    using Shape = Tile<WIDTH>;
    __shared__ float partials[BLOCK / WARP][Shape::COLUMNS];
    const u32 tiles = (columns + Shape::COLUMNS - 1) / Shape::COLUMNS;
    const u32 sequence = blockIdx.x / tiles;
    const u32 tile_column = blockIdx.x % tiles * Shape::COLUMNS;
    const u32 lane_column = threadIdx.x % Shape::LANES * WIDTH;
    const u32 start = starts[sequence];
    const u32 end = starts[sequence + 1];
    float folded[WIDTH];
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
        folded[j] = Fold::start();
    }
    if (tile_column + lane_column < columns) {
        const u32 row = start + threadIdx.x / Shape::LANES;
        const T* from = input + tile_column + lane_column;
        fold_rows<Fold, WIDTH>(from, start, row, end, columns, folded);
    }
#pragma unroll
    for (int lanes = Shape::LANES; lanes < WARP; lanes *= 2) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            folded[j] = Fold::join(folded[j], __shfl_xor_sync(ALL_LANES, folded[j], lanes));
        }
    }
    if (threadIdx.x % WARP < Shape::LANES) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            partials[threadIdx.x / WARP][lane_column + j] = folded[j];
        }
    }
    __syncthreads();
    const u32 column = tile_column + threadIdx.x;
    if (threadIdx.x < Shape::COLUMNS && column < columns) {
        float result = partials[0][threadIdx.x];
#pragma unroll
        for (int warp = 1; warp < BLOCK / WARP; ++warp) {
            result = Fold::join(result, partials[warp][threadIdx.x]);
        }
        result = end > start ? Fold::finish(result, end - start) : 0.0f;
        output[(u64)sequence * width + first + column] = from_float(result);
    }
}

template <class Fold>
__device__ __forceinline__ void pool_all(
    const T* input, const u32* starts, T* output, u32 columns, u32 width, u32 first
) {
    if (columns % VECTOR == 0) {
        pool_tile<Fold, VECTOR>(input, starts, output, columns, width, first);
    } else {
        pool_tile<Fold, 1>(input, starts, output, columns, width, first);
    }
}

template <bool LAST>
__device__ __forceinline__ void pool_one(
    const T* input, const u32* starts, T* output, u32 columns, u32 width, u32 first
) {
    const u32 start = starts[blockIdx.x];
    const u32 end = starts[blockIdx.x + 1];
    const T* from = input + (u64)(LAST ? end - 1 : start) * columns;
    T* to = output + (u64)blockIdx.x * width + first;
    for (u32 column = threadIdx.x; column < columns; column += BLOCK) {
        to[column] = from_float(end > start ? to_float(from[column]) : 0.0f);
    }
}

#define POOL(NAME, POOL_AS)                                                                        \
    extern "C" __global__ void __launch_bounds__(BLOCK, 4) NAME(                                   \
        const T* __restrict__ input, const u32* __restrict__ starts, T* __restrict__ output,       \
        u32 columns, u32 width, u32 first                                                          \
    ) {                                                                                            \
        await_previous_kernel();                                                                   \
        POOL_AS(input, starts, output, columns, width, first);                                     \
    }

POOL(vecmill_pool_mean, pool_all<Mean>)
POOL(vecmill_pool_mean_sqrt, pool_all<MeanSqrt>)
POOL(vecmill_pool_weighted, pool_all<Weighted>)
POOL(vecmill_pool_max, pool_all<Max>)
POOL(vecmill_pool_cls, pool_one<false>)
POOL(vecmill_pool_last, pool_one<true>)
