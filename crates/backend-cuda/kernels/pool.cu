// One row per sequence out of one row per token, and that row made ready for its reader.
//
//     vecmill_pool_<mean|max>[_f32](const T* input, const u32* starts, Out* output, u32 columns)
//         Grid: sequences * ceil(columns / C) blocks, where C is 8 * VECTOR (VECTOR is 8, or 4 for
//         f32) if columns is a multiple of VECTOR, and else 32. Block: 256 threads.
//
//     vecmill_pool_<cls|last>[_f32](const T* input, const u32* starts, Out* output, u32 columns)
//         Grid: one block per sequence. Block: 256 threads.
//
//     vecmill_finish(const float* pooled, float* output,
//                    u32 sequences, u32 columns, u32 dimensions, u32 normalize)
//         output[sequences, dimensions]: the first `dimensions` <= columns of each pooled row,
//         divided by their length unless `normalize` is 0. In place if dimensions = columns.
//         Grid: ceil(sequences / 4) blocks. Block: 128 threads.
//
// Sequence i is rows starts[i] to starts[i + 1] of `input`; one without rows gives zeros. Out is T,
// or f32 with `_f32`, which `vecmill_finish` reads. Alignment: 16 bytes. Dynamic shared memory:
// none.
//
// The choice: a block takes 128 bytes of every row of one sequence, 32 rows at a time, so that one
// long sequence is spread over the device and many short ones fill it. How rows are dealt to
// threads depends on the sequence alone, so its bits do too.

constexpr int BLOCK = 256;
constexpr int FINISH_BLOCK = 128;
// Rows that a thread loads before it uses the first.
constexpr int IN_FLIGHT = 8;

struct Mean {
    static __device__ __forceinline__ float start() { return 0.0f; }
    static __device__ __forceinline__ float fold(float total, float x) { return total + x; }
    static __device__ __forceinline__ float finish(float total, u32 rows) {
        return total / (float)rows;
    }
};

struct Max {
    // Minus infinity.
    static __device__ __forceinline__ float start() { return __int_as_float(0xff800000); }
    // NaN wins: it must not vanish from a result.
    static __device__ __forceinline__ float fold(float largest, float x) {
        return x > largest || x != x ? x : largest;
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

template <class Out>
__device__ __forceinline__ void store_as(Out* to, float value) {
    if constexpr (sizeof(Out) == sizeof(float)) {
        *to = value;
    } else {
        *to = from_float(value);
    }
}

// Folds rows `row`, `row + ROWS`, ... before `end`; `input` points to this thread's first column.
template <class Fold, int WIDTH>
__device__ __forceinline__ void fold_rows(
    const T* input, u32 row, u32 end, u32 columns, float (&folded)[WIDTH]
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
                    folded[j] = Fold::fold(folded[j], values[j]);
                }
            }
        }
    }
}

template <class Fold, int WIDTH, class Out>
__device__ __forceinline__ void pool_tile(
    const T* input, const u32* starts, Out* output, u32 columns
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
        fold_rows<Fold, WIDTH>(input + tile_column + lane_column, row, end, columns, folded);
    }
#pragma unroll
    for (int lanes = Shape::LANES; lanes < WARP; lanes *= 2) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            folded[j] = Fold::fold(folded[j], __shfl_xor_sync(ALL_LANES, folded[j], lanes));
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
            result = Fold::fold(result, partials[warp][threadIdx.x]);
        }
        result = end > start ? Fold::finish(result, end - start) : 0.0f;
        store_as(output + (u64)sequence * columns + column, result);
    }
}

template <class Fold, class Out>
__device__ __forceinline__ void pool_all(
    const T* input, const u32* starts, Out* output, u32 columns
) {
    if (columns % VECTOR == 0) {
        pool_tile<Fold, VECTOR>(input, starts, output, columns);
    } else {
        pool_tile<Fold, 1>(input, starts, output, columns);
    }
}

template <bool LAST, class Out>
__device__ __forceinline__ void pool_one(
    const T* input, const u32* starts, Out* output, u32 columns
) {
    const u32 start = starts[blockIdx.x];
    const u32 end = starts[blockIdx.x + 1];
    const T* from = input + (u64)(LAST ? end - 1 : start) * columns;
    Out* to = output + (u64)blockIdx.x * columns;
    for (u32 column = threadIdx.x; column < columns; column += BLOCK) {
        store_as(to + column, end > start ? to_float(from[column]) : 0.0f);
    }
}

#define POOL(NAME, OUT, POOL_AS)                                                                   \
    extern "C" __global__ void __launch_bounds__(BLOCK, 4) NAME(                                   \
        const T* __restrict__ input, const u32* __restrict__ starts, OUT* __restrict__ output,     \
        u32 columns                                                                                \
    ) {                                                                                            \
        await_previous_kernel();                                                                   \
        POOL_AS(input, starts, output, columns);                                                   \
    }

POOL(vecmill_pool_mean, T, pool_all<Mean>)
POOL(vecmill_pool_mean_f32, float, pool_all<Mean>)
POOL(vecmill_pool_max, T, pool_all<Max>)
POOL(vecmill_pool_max_f32, float, pool_all<Max>)
POOL(vecmill_pool_cls, T, pool_one<false>)
POOL(vecmill_pool_cls_f32, float, pool_one<false>)
POOL(vecmill_pool_last, T, pool_one<true>)
POOL(vecmill_pool_last_f32, float, pool_one<true>)

// One warp per sequence. f64, as on the host: squares of f32 may over- and underflow f32.
extern "C" __global__ void __launch_bounds__(FINISH_BLOCK) vecmill_finish(
    const float* pooled, float* output, u32 sequences, u32 columns, u32 dimensions, u32 normalize
) {
    await_previous_kernel();
    const u32 sequence = (blockIdx.x * FINISH_BLOCK + threadIdx.x) / WARP;
    if (sequence >= sequences) {
        return;
    }
    const u32 lane = threadIdx.x % WARP;
    const float* from = pooled + (u64)sequence * columns;
    float* to = output + (u64)sequence * dimensions;
    double scale = 1.0;
    if (normalize) {
        double squares = 0.0;
        for (u32 column = lane; column < dimensions; column += WARP) {
            squares += (double)from[column] * from[column];
        }
#pragma unroll
        for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
            squares += __shfl_xor_sync(ALL_LANES, squares, lanes);
        }
        // As in PyTorch's `normalize`: the floor keeps zeros from becoming NaN.
        scale = 1.0 / fmax(sqrt(squares), 1e-12);
    }
    for (u32 column = lane; column < dimensions; column += WARP) {
        to[column] = (float)(from[column] * scale);
    }
}
