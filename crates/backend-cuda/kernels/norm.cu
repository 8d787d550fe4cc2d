// Layer normalisation of rows that are a sum: of table rows (embed), or of a linear layer's output
// and its residual (add_norm); and of rows for which it was deferred (normalize). Follows moments.cuh.
//
//     vecmill_embed_<capacity>(const u32* ids, const u32* places,
//                              const T* word_table, const T* position_table, const T* type_table,
//                              const float* gain, const float* bias, T* output, u8* operand,
//                              u32 rows, u32 columns, float epsilon)
//         output = norm(word_table[ids] + position_table[position] + type_table[type])
//         A place has the type, 0 or 1, in its highest bit, and the position in the others.
//         `position_table` and `type_table` may be null. Ids and places are trusted.
//
//     vecmill_add_norm_<capacity>(const T* input, const T* residual, T* sum,
//                                 const float* gain, const float* bias, T* output, u8* operand,
//                                 u32 rows, u32 columns, float epsilon, u32 backwards)
//         output = norm(input + residual)
//         `residual` may be null. So may `sum`, else it gets the sum; then what is normalised is the
//         sum as it was rounded, so that bits are those of two kernels.
//         `backwards`: the last rows first, as those that the kernel before wrote last are still in L2.
//
//     vecmill_normalize(const T* input, const float2* moments, const float* gain, const float* bias,
//                       T* output, u32 rows, u32 columns, float epsilon, u32 backwards)
//         output = norm(x), where input is x times gain, and `moments` has of each row's quarters
//         the sum of x and the sum of its squares. Columns fill 16-byte vectors and 4 equal parts.
//
// `operand`, with -DFP8_OUTPUT=1: the output in e4m3 times E4M3_SCALE, rounded once; may be null.
// <capacity>: the smallest of 256, 512, 768, 1024 and 4096 that is at least `columns`, for columns
//     that fill 16-byte vectors (multiples of 8, of 4 for f32); `any` for all others.
// Grid: any number of blocks, which share the rows. ceil(rows / R) are enough; R, the rows that a
//     block does at a time, is 1 for 4096 and else 4. Beyond 16 per multiprocessor more only repeat
//     the loading of gain and bias.
// Block: 128 threads. Dynamic shared memory: none.
// Alignment: 16 bytes for all pointers. Output must not overlap the inputs. rows, columns >= 1.
//
// The choice: a row stays in registers, up to 32 values per thread, so that it is read once and its
// variance is the mean of squared deviations, which doesn't cancel. One warp per row needs no
// barrier; only rows above 1024 are shared by four. A row's bits depend on nothing but the row.

constexpr int BLOCK = 128;

// One warp's sum, or the whole block's.
template <int THREADS>
__device__ __forceinline__ float row_sum(float value) {
    if constexpr (THREADS == WARP) {
        return warp_sum(value);
    } else {
        __shared__ float partials[THREADS / WARP];
        return block_sum(value, partials, THREADS / WARP);
    }
}

// How a row is dealt to threads: thread t holds vectors t, t + THREADS, t + 2 * THREADS, ...
template <int CAPACITY>
struct Layout {
    static constexpr int THREADS = CAPACITY > 1024 ? BLOCK : WARP;
    static constexpr int SLOTS = CAPACITY / (THREADS * VECTOR);
    static constexpr u32 ROWS_PER_BLOCK = BLOCK / THREADS;
};

// The rows that are summed; the second or the third may be null, and then is left out.
struct Addends {
    const T* first;
    const T* second;
    const T* third;
};

__device__ __forceinline__ void load_floats(const float* from, float (&values)[VECTOR]) {
#pragma unroll
    for (int i = 0; i < VECTOR; i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(from + i);
        values[i] = four.x;
        values[i + 1] = four.y;
        values[i + 2] = four.z;
        values[i + 3] = four.w;
    }
}

// x = the sum; vectors behind the row's end become zero.
template <int SLOTS, int THREADS>
__device__ __forceinline__ void load_sum(
    Addends row, u32 thread, u32 columns, float (&x)[SLOTS][VECTOR]
) {
    uint4 bits[SLOTS][3] = {};
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const u32 column = (thread + slot * THREADS) * VECTOR;
        if (column < columns) {
            bits[slot][0] = load_bits(row.first + column);
            if (row.second) {
                bits[slot][1] = load_bits(row.second + column);
            }
            if (row.third) {
                bits[slot][2] = load_bits(row.third + column);
            }
        }
    }
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        unpack_vector(bits[slot][0], x[slot]);
#pragma unroll
        for (int addend = 1; addend < 3; ++addend) {
            if (!(addend == 1 ? row.second : row.third)) {
                continue;
            }
            float other[VECTOR];
            unpack_vector(bits[slot][addend], other);
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                x[slot][i] += other[i];
            }
        }
    }
}

// x = (x - mean) / sqrt(variance + epsilon)
template <int SLOTS, int THREADS>
__device__ __forceinline__ void standardize(
    float (&x)[SLOTS][VECTOR], u32 thread, u32 columns, float epsilon
) {
    // Multiplied by, not divided by: half an ulp for a tenth of the instructions.
    const float share = 1.0f / (float)columns;
    float sum = 0.0f;
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            sum += x[slot][i];
        }
    }
    const float mean = row_sum<THREADS>(sum) * share;
    float squares = 0.0f;
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const bool held = (thread + slot * THREADS) * VECTOR < columns;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            x[slot][i] = held ? x[slot][i] - mean : 0.0f;
            squares = fmaf(x[slot][i], x[slot][i], squares);
        }
    }
    const float scale = rsqrtf(fmaf(row_sum<THREADS>(squares), share, epsilon));
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            x[slot][i] *= scale;
        }
    }
}

// Stores the sum, if that is wanted, and leaves it as it was rounded.
template <int SLOTS, int THREADS>
__device__ __forceinline__ void keep_sum(
    T* sum, u32 thread, u32 columns, float (&x)[SLOTS][VECTOR]
) {
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const u32 column = (thread + slot * THREADS) * VECTOR;
        if (column < columns) {
            const uint4 bits = pack_vector(x[slot]);
            *reinterpret_cast<uint4*>(sum + column) = bits;
            unpack_vector(bits, x[slot]);
        }
    }
}

// `addends(row)` finds the rows to sum. Gain and bias stay in registers from row to row.
template <int CAPACITY, class Find>
__device__ __forceinline__ void normalize_rows(
    Find addends, T* sums, const float* gain_row, const float* bias_row, T* output, u8* operand,
    u32 rows, u32 columns, float epsilon, u32 backwards
) {
    constexpr int THREADS = Layout<CAPACITY>::THREADS;
    constexpr int SLOTS = Layout<CAPACITY>::SLOTS;
    constexpr u32 ROWS_PER_BLOCK = Layout<CAPACITY>::ROWS_PER_BLOCK;
    const u32 thread = threadIdx.x % THREADS;
    float gain[SLOTS][VECTOR];
    float bias[SLOTS][VECTOR];
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const u32 column = (thread + slot * THREADS) * VECTOR;
        if (column < columns) {
            load_floats(gain_row + column, gain[slot]);
            load_floats(bias_row + column, bias[slot]);
        }
    }
    u32 turn = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / THREADS;
    for (; turn < rows; turn += gridDim.x * ROWS_PER_BLOCK) {
        const u32 row = backwards ? rows - 1 - turn : turn;
        float x[SLOTS][VECTOR];
        load_sum<SLOTS, THREADS>(addends(row), thread, columns, x);
        const u64 at = (u64)row * columns;
        if (sums) {
            keep_sum<SLOTS, THREADS>(sums + at, thread, columns, x);
        }
        standardize<SLOTS, THREADS>(x, thread, columns, epsilon);
#pragma unroll
        for (int slot = 0; slot < SLOTS; ++slot) {
            const u32 column = (thread + slot * THREADS) * VECTOR;
            if (column < columns) {
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) {
                    x[slot][i] = fmaf(x[slot][i], gain[slot][i], bias[slot][i]);
                }
                store_vector(output + at + column, x[slot]);
#if FP8_OUTPUT
                if (operand) {
                    store_vector_e4m3(operand + at + column, x[slot]);
                }
#endif
            }
        }
    }
}

// For rows of any length and alignment: one warp per row, which reads it three times, the second
// and third from a cache.
template <class Find>
__device__ __forceinline__ void normalize_any_rows(
    Find addends, T* sums, const float* gain, const float* bias, T* output, u8* operand, u32 rows,
    u32 columns, float epsilon, u32 backwards
) {
    const u32 lane = threadIdx.x % WARP;
    u32 turn = blockIdx.x * (BLOCK / WARP) + threadIdx.x / WARP;
    for (; turn < rows; turn += gridDim.x * (BLOCK / WARP)) {
        const u32 row = backwards ? rows - 1 - turn : turn;
        Addends from = addends(row);
        const u64 at = (u64)row * columns;
        const auto x = [&](u32 column) {
            float sum = to_float(from.first[column]);
            sum = from.second ? sum + to_float(from.second[column]) : sum;
            return from.third ? sum + to_float(from.third[column]) : sum;
        };
        if (sums) {
            // Each lane reads again what it has written itself.
            for (u32 column = lane; column < columns; column += WARP) {
                sums[at + column] = from_float(x(column));
            }
            from = Addends{sums + at, nullptr, nullptr};
        }
        float sum = 0.0f;
        for (u32 column = lane; column < columns; column += WARP) {
            sum += x(column);
        }
        const float mean = warp_sum(sum) / (float)columns;
        float squares = 0.0f;
        for (u32 column = lane; column < columns; column += WARP) {
            const float deviation = x(column) - mean;
            squares = fmaf(deviation, deviation, squares);
        }
        const float scale = rsqrtf(warp_sum(squares) / (float)columns + epsilon);
        for (u32 column = lane; column < columns; column += WARP) {
            const float y = fmaf((x(column) - mean) * scale, gain[column], bias[column]);
            output[at + column] = from_float(y);
#if FP8_OUTPUT
            if (operand) {
                operand[at + column] = to_e4m3(y);
            }
#endif
        }
    }
}

#define EMBED(NAME, NORMALIZE)                                                                     \
    extern "C" __global__ void __launch_bounds__(BLOCK) NAME(                                      \
        const u32* __restrict__ ids, const u32* __restrict__ places,                               \
        const T* __restrict__ word_table, const T* __restrict__ position_table,                    \
        const T* __restrict__ type_table, const float* __restrict__ gain,                          \
        const float* __restrict__ bias, T* __restrict__ output, u8* __restrict__ operand,          \
        u32 rows, u32 columns, float epsilon                                                       \
    ) {                                                                                            \
        const auto addends = [=](u32 row) {                                                        \
            const u32 place = places[row];                                                         \
            const u64 position = place & 0x7fffffff;                                               \
            return Addends{                                                                        \
                word_table + (u64)ids[row] * columns,                                              \
                position_table ? position_table + position * columns : nullptr,                    \
                type_table ? type_table + (place >> 31) * columns : nullptr,                       \
            };                                                                                     \
        };                                                                                         \
        await_previous_kernel();                                                                   \
        NORMALIZE(addends, nullptr, gain, bias, output, operand, rows, columns, epsilon, 0);       \
    }

#define ADD_NORM(NAME, NORMALIZE)                                                                  \
    extern "C" __global__ void __launch_bounds__(BLOCK) NAME(                                      \
        const T* __restrict__ input, const T* __restrict__ residual, T* __restrict__ sum,          \
        const float* __restrict__ gain, const float* __restrict__ bias, T* __restrict__ output,    \
        u8* __restrict__ operand, u32 rows, u32 columns, float epsilon, u32 backwards              \
    ) {                                                                                            \
        const auto addends = [=](u32 row) {                                                        \
            const u64 from = (u64)row * columns;                                                   \
            return Addends{input + from, residual ? residual + from : nullptr, nullptr};           \
        };                                                                                         \
        await_previous_kernel();                                                                   \
        NORMALIZE(                                                                                 \
            addends, sum, gain, bias, output, operand, rows, columns, epsilon, backwards           \
        );                                                                                         \
    }

EMBED(vecmill_embed_256, normalize_rows<256>)
EMBED(vecmill_embed_512, normalize_rows<512>)
EMBED(vecmill_embed_768, normalize_rows<768>)
EMBED(vecmill_embed_1024, normalize_rows<1024>)
EMBED(vecmill_embed_4096, normalize_rows<4096>)
EMBED(vecmill_embed_any, normalize_any_rows)

ADD_NORM(vecmill_add_norm_256, normalize_rows<256>)
ADD_NORM(vecmill_add_norm_512, normalize_rows<512>)
ADD_NORM(vecmill_add_norm_768, normalize_rows<768>)
ADD_NORM(vecmill_add_norm_1024, normalize_rows<1024>)
ADD_NORM(vecmill_add_norm_4096, normalize_rows<4096>)
ADD_NORM(vecmill_add_norm_any, normalize_any_rows)

// One warp per row, which reads it once.
extern "C" __global__ void __launch_bounds__(BLOCK) vecmill_normalize(
    const T* __restrict__ input, const float2* __restrict__ moments, const float* __restrict__ gain,
    const float* __restrict__ bias, T* __restrict__ output, u32 rows, u32 columns, float epsilon,
    u32 backwards
) {
    const u32 lane = threadIdx.x % WARP;
    await_previous_kernel();
    u32 turn = blockIdx.x * (BLOCK / WARP) + threadIdx.x / WARP;
    for (; turn < rows; turn += gridDim.x * (BLOCK / WARP)) {
        const u32 row = backwards ? rows - 1 - turn : turn;
        const float2 sums = sum_lanes(moments[(u64)row * ROW_PARTS + lane % ROW_PARTS]);
        const float share = 1.0f / (float)columns;
        const float scale = rsqrtf(variance_of(sums, share) + epsilon);
        const float shift = -sums.x * share * scale;
        const u64 at = (u64)row * columns;
        for (u32 column = lane * VECTOR; column < columns; column += WARP * VECTOR) {
            float x[VECTOR], gains[VECTOR], biases[VECTOR];
            unpack_vector(load_bits(input + at + column), x);
            load_floats(gain + column, gains);
            load_floats(bias + column, biases);
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                x[i] = fmaf(x[i], scale, fmaf(shift, gains[i], biases[i]));
            }
            store_vector(output + at + column, x);
        }
    }
}
