// Self-attention within packed sequences for f32, and for what attention.cu doesn't take: 16-bit
// values with other head sizes, bf16 before sm_80.
//
//     vecmill_attention_any(const T* qkv, const u32* starts, Output* output,
//                           u32 sequences, u32 heads, u32 slots_each, Window window)
//     vecmill_attention_any_biased(the same, then const float* bias, u32 reach)
//         as in attention.cu
//
// Text before this file: prelude.cuh, sequences.cuh. Macros: -DHEAD_SIZE=<1..1024>; -DWINDOWED=1 where the
//     window is not the whole sequence.
// Grid: as in attention.cu, with 32 rows per block.
// Block: HEAD_SIZE rounded up to a power of two, at least 32 threads. Dynamic shared memory: none;
//     biased: 4 * (2 * reach + 1) bytes.
// Alignment: 16 bytes. Sequences may be empty; heads >= 1; 3 * hidden * longest < 2^32.
//
// The choice: all arithmetic in f32 on the ordinary units. Some lanes share a row's columns; each
// holds the same columns of several rows, so that one read of a key or value from shared memory
// serves all of them. A row's bits depend on its sequence alone.

__device__ constexpr int round_up_to_power_of_two(int number) {
    int power = 1;
    while (power < number) {
        power *= 2;
    }
    return power;
}

static_assert(HEAD_SIZE >= 1 && HEAD_SIZE <= 1024, "a block holds at most 1024 columns");

constexpr int ROWS = 32;
constexpr int BLOCK = round_up_to_power_of_two(HEAD_SIZE < 32 ? 32 : HEAD_SIZE);
// Lanes that share a row, and the rows that each of them works on.
constexpr int PARTS = BLOCK / 8 < WARP ? BLOCK / 8 : WARP;
constexpr int ROWS_EACH = ROWS * PARTS / BLOCK;
// A row in chunks of four columns: lane p of a row has chunks p, p + PARTS, ...; those behind the
// row's end are zeros.
constexpr int CHUNKS_EACH = (HEAD_SIZE + 4 * PARTS - 1) / (4 * PARTS);
constexpr int CHUNKS = CHUNKS_EACH * PARTS;
// Keys in shared memory, and keys between two corrections of what was summed so far.
constexpr int KEYS = CHUNKS <= 32 ? 32 : 1024 / CHUNKS;
constexpr int GROUP = 4;
static_assert(KEYS % GROUP == 0, "no group of keys is cut");

// Columns 4 * chunk to 4 * chunk + 3 of a row.
__device__ __forceinline__ float4 load_chunk(const T* row, u32 chunk) {
    float values[4] = {};
    const T* from = row + 4 * chunk;
    if constexpr (HEAD_SIZE % 4 != 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (4 * chunk + i < HEAD_SIZE) {
                values[i] = to_float(from[i]);
            }
        }
    } else if (4 * chunk < HEAD_SIZE) {
#ifdef T_F32
        return *reinterpret_cast<const float4*>(from);
#else
        const uint2 bits = *reinterpret_cast<const uint2*>(from);
        unpack2(bits.x, values[0], values[1]);
        unpack2(bits.y, values[2], values[3]);
#endif
    }
    return make_float4(values[0], values[1], values[2], values[3]);
}

__device__ __forceinline__ void store_chunk(Output* row, u32 chunk, const float4& sum,
                                            float factor) {
    const float values[4] = {sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor};
    Output* to = row + 4 * chunk;
    if constexpr (HEAD_SIZE % 4 != 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (4 * chunk + i < HEAD_SIZE) {
#if FP8_OUTPUT
                to[i] = to_e4m3(values[i]);
#else
                to[i] = from_float(values[i]);
#endif
            }
        }
    } else if (4 * chunk < HEAD_SIZE) {
#if FP8_OUTPUT
        *reinterpret_cast<u32*>(to) =
            pack2_e4m3(values[0], values[1]) | (u32)pack2_e4m3(values[2], values[3]) << 16;
#elif defined(T_F32)
        *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
#else
        *reinterpret_cast<uint2*>(to) =
            make_uint2(pack2(values[0], values[1]), pack2(values[2], values[3]));
#endif
    }
}

__device__ __forceinline__ void scale_chunk(float4& chunk, float factor) {
    chunk.x *= factor;
    chunk.y *= factor;
    chunk.z *= factor;
    chunk.w *= factor;
}

__device__ __forceinline__ float dot(const float4& a, const float4& b, float sum) {
    return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
}

__device__ __forceinline__ void add_scaled(float4& sum, const float4& value, float factor) {
    sum.x = fmaf(value.x, factor, sum.x);
    sum.y = fmaf(value.y, factor, sum.y);
    sum.z = fmaf(value.z, factor, sum.z);
    sum.w = fmaf(value.w, factor, sum.w);
}

struct Stage {
    float4 keys[KEYS * CHUNKS];
    float4 values[KEYS * CHUNKS];
};

// One lane's part of its rows, and what is known of them so far.
struct Rows {
    float4 queries[ROWS_EACH][CHUNKS_EACH];
    float4 outputs[ROWS_EACH][CHUNKS_EACH];
    float largest[ROWS_EACH];
    float totals[ROWS_EACH];
};

// Row `i` of this thread, from the block's first.
__device__ __forceinline__ u32 own_row(int i) {
    return threadIdx.x / PARTS + i * (ROWS / ROWS_EACH);
}

// Queries in units of log2. Rows behind the sequence's end repeat its last one and are not stored.
__device__ __forceinline__ void start_rows(Rows& rows, const Head& head, u32 first) {
    const float scale = LOG2_E / sqrtf((float)HEAD_SIZE);
#pragma unroll
    for (int r = 0; r < ROWS_EACH; ++r) {
        const T* row = head.queries + min(first + own_row(r), head.length - 1) * head.stride;
#pragma unroll
        for (int c = 0; c < CHUNKS_EACH; ++c) {
            rows.queries[r][c] = load_chunk(row, c * PARTS + threadIdx.x % PARTS);
            scale_chunk(rows.queries[r][c], scale);
            rows.outputs[r][c] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        rows.largest[r] = minus_infinity();
        rows.totals[r] = 0.0f;
    }
}

// Keys and values from `first` on; those behind the sequence's end are zeros: their weights are 0,
// and 0 * NaN would not be 0.
__device__ __forceinline__ void fill(Stage& stage, const Head& head, u32 first) {
    for (u32 i = threadIdx.x; i < KEYS * CHUNKS; i += BLOCK) {
        const u32 key = first + i / CHUNKS;
        float4 chunks[2] = {};
        if (key < head.length) {
            const T* row = head.queries + key * head.stride + head.hidden;
            chunks[0] = load_chunk(row, i % CHUNKS);
            chunks[1] = load_chunk(row + head.hidden, i % CHUNKS);
        }
        stage.keys[i] = chunks[0];
        stage.values[i] = chunks[1];
    }
}

using Scores = float[ROWS_EACH][GROUP];

// Products of all rows with the keys from `keys` on; the lanes of a row get the same bits.
__device__ __forceinline__ void multiply_keys(
    Scores& scores, const Rows& rows, const float4* keys
) {
#pragma unroll
    for (int k = 0; k < GROUP; ++k) {
#pragma unroll
        for (int r = 0; r < ROWS_EACH; ++r) {
            scores[r][k] = 0.0f;
        }
#pragma unroll
        for (int c = 0; c < CHUNKS_EACH; ++c) {
            const float4 key = keys[k * CHUNKS + c * PARTS + threadIdx.x % PARTS];
#pragma unroll
            for (int r = 0; r < ROWS_EACH; ++r) {
                scores[r][k] = dot(rows.queries[r][c], key, scores[r][k]);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS_EACH; ++r) {
#pragma unroll
            for (int lanes = PARTS / 2; lanes > 0; lanes /= 2) {
                scores[r][k] += __shfl_xor_sync(ALL_LANES, scores[r][k], lanes);
            }
        }
    }
}

// Scores become weights exp2(score - largest); what was summed so far is corrected to the new
// largest score.
__device__ __forceinline__ void weigh(Scores& scores, Rows& rows) {
#pragma unroll
    for (int r = 0; r < ROWS_EACH; ++r) {
        float largest = rows.largest[r];
#pragma unroll
        for (int k = 0; k < GROUP; ++k) {
            largest = fmaxf(largest, scores[r][k]);
        }
        const float before = rows.largest[r];
        rows.largest[r] = largest;
        // Until a row sees its first key, all its weights are 0.
        largest = WINDOWED && largest == minus_infinity() ? 0.0f : largest;
        const float correction = exp2_approx(before - largest);
        rows.totals[r] *= correction;
#pragma unroll
        for (int k = 0; k < GROUP; ++k) {
            scores[r][k] = exp2_approx(scores[r][k] - largest);
            rows.totals[r] += scores[r][k];
        }
#pragma unroll
        for (int c = 0; c < CHUNKS_EACH; ++c) {
            scale_chunk(rows.outputs[r][c], correction);
        }
    }
}

__device__ __forceinline__ void multiply_values(
    Rows& rows, const Scores& weights, const float4* values
) {
#pragma unroll
    for (int k = 0; k < GROUP; ++k) {
#pragma unroll
        for (int c = 0; c < CHUNKS_EACH; ++c) {
            const float4 value = values[k * CHUNKS + c * PARTS + threadIdx.x % PARTS];
#pragma unroll
            for (int r = 0; r < ROWS_EACH; ++r) {
                add_scaled(rows.outputs[r][c], value, weights[r][k]);
            }
        }
    }
}

template <bool BIASED>
__device__ __forceinline__ void attention(
    const T* qkv, const u32* starts, Output* output, u32 sequences, u32 heads, u32 slots_each,
    Window window, const float* table, u32 reach
) {
    __shared__ Stage stage;
    extern __shared__ float shared_bias[];
    const Tile tile = find_tile(starts, sequences, slots_each, blockIdx.x / heads, ROWS);
    if (tile.first >= tile.length) {
        return;
    }
    const u32 index = blockIdx.x % heads;
    const Head head = find_head(qkv, output, tile, heads, index);
    DistanceBias bias = {};
    if constexpr (BIASED) {
        bias = DistanceBias::load(shared_bias, table, reach, index, heads);
    }
    Rows rows;
    start_rows(rows, head, tile.first);
    const u32 end = window.end(tile.first + ROWS - 1, tile.length);
    for (u32 first_key = window.begin(tile.first, KEYS); first_key < end; first_key += KEYS) {
        __syncthreads();
        fill(stage, head, first_key);
        __syncthreads();
        for (u32 key = 0; key < KEYS && first_key + key < end; key += GROUP) {
            Scores scores;
            multiply_keys(scores, rows, stage.keys + key * CHUNKS);
#pragma unroll
            for (int k = 0; k < GROUP; ++k) {
                const u32 at = first_key + key + k;
#pragma unroll
                for (int r = 0; r < ROWS_EACH; ++r) {
                    const int distance = (int)at - (int)(tile.first + own_row(r));
                    if constexpr (BIASED) {
                        scores[r][k] += bias.at(distance);
                    }
                    const bool seen = at < tile.length && window.shows(distance);
                    scores[r][k] = seen ? scores[r][k] : minus_infinity();
                }
            }
            weigh(scores, rows);
            multiply_values(rows, scores, stage.values + key * CHUNKS);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS_EACH; ++r) {
        const u32 row = tile.first + own_row(r);
        Output* to = head.output + row * head.hidden;
        if (row < tile.length) {
#pragma unroll
            for (int c = 0; c < CHUNKS_EACH; ++c) {
                const u32 chunk = c * PARTS + threadIdx.x % PARTS;
                store_chunk(to, chunk, rows.outputs[r][c], 1.0f / rows.totals[r]);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK) vecmill_attention_any(
    const T* __restrict__ qkv, const u32* __restrict__ starts, Output* __restrict__ output,
    u32 sequences, u32 heads, u32 slots_each, Window window
) {
    await_previous_kernel();
    attention<false>(qkv, starts, output, sequences, heads, slots_each, window, nullptr, 0);
}

extern "C" __global__ void __launch_bounds__(BLOCK) vecmill_attention_any_biased(
    const T* __restrict__ qkv, const u32* __restrict__ starts, Output* __restrict__ output,
    u32 sequences, u32 heads, u32 slots_each, Window window, const float* __restrict__ bias,
    u32 reach
) {
    await_previous_kernel();
    attention<true>(qkv, starts, output, sequences, heads, slots_each, window, bias, reach);
}
