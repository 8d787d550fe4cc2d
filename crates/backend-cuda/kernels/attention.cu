// Self-attention within packed sequences on tensor cores:
// output = softmax(Q K^T / sqrt(HEAD_SIZE) + bias) V for every sequence and head.
//
//     vecmill_attention_<rows>(const T* qkv, const u32* starts, Output* output,
//                              u32 sequences, u32 heads, u32 slots_each, Window window)
//     vecmill_attention_<rows>_biased(the same, then const float* bias, u32 reach)
//         qkv `[tokens, 3 * hidden]`, output `[tokens, hidden]`, hidden = heads * HEAD_SIZE,
//         bias `[heads, 2 * reach + 1]` by min(max(key - query, -reach), reach) + reach; where it is
//         null, ALiBi's
//
// Text before this file: prelude.cuh, mma.cuh, sequences.cuh, softmax.cuh.
// Macros: -DHEAD_SIZE=<multiple of 16, at most 128>; -DT_F16, or -DT_BF16 from sm_80 on; -DWINDOWED=1 where
//     the window is not the whole sequence: tiles outside it are skipped. Everything else is
//     attention_any.cu's.
// <rows>: 64 or 128 queries per block. 128 reads keys and values from L2 less often, but fills a
//     device only with large batches. 128 exists for HEAD_SIZE <= 64.
// Grid: heads * slots blocks. Let each = ceil(longest / rows), packed = tokens / rows + sequences,
//     rounded down. If sequences * each <= packed: slots = sequences * each, slots_each = each.
//     Else slots = packed, slots_each = 0.
// Block: 128 threads. Dynamic shared memory: none; biased: 4 * (2 * reach + 1) bytes, reach <= 750.
// Alignment: 16 bytes. Sequences may be empty; heads >= 1; 3 * hidden * longest < 2^32.
//
// The choice: attention is bound by memory at 128 tokens, at 512 by tensor cores (head size 64) or
// exponentials (32). So nothing is read twice at 128: one block has all queries of its head, and
// all loads are under way before the first result is needed; several small blocks per multiprocessor
// overlap each other's loads and arithmetic. Softmax is online, over tiles of KEYS keys. A row's
// bits depend on its sequence alone: the tiles and the order within them are the same whatever
// <rows> is and whoever the neighbours are.
//
// Q K^T may sum its columns in any order, if Q and K agree. Here lane t of four takes the columns
// that make its fragments one 16-byte load, of Q from device memory and of K from shared memory.

constexpr int BLOCK = 128;
constexpr int WARPS = BLOCK / WARP;

// Keys per tile, and tiles in shared memory.
#ifndef KEYS
#define KEYS 32
#endif
#ifndef STAGES
#define STAGES (HEAD_SIZE <= 64 ? 4 : 2)
#endif

static_assert(HEAD_SIZE % 16 == 0 && HEAD_SIZE <= 128, "attention_any.cu takes other head sizes");

// How many matrix instructions' depths one load of a lane serves.
constexpr int LOAD_STEPS = HEAD_SIZE % 32 == 0 ? 2 : 1;
constexpr int LOADS = HEAD_SIZE / (STEP * LOAD_STEPS);
// A lane's columns per load; the other three's are beside them.
constexpr int LANE_COLUMNS = STEP * LOAD_STEPS / 4;
constexpr int COLUMN_TILES = HEAD_SIZE / 8;
constexpr int KEY_TILES = KEYS / 8;

// Strides that keep the rows which one access touches in different banks: two rows per load of K,
// eight rows per matrix of V.
constexpr int KEY_STRIDE = HEAD_SIZE + (HEAD_SIZE % 64 == 0 ? 32 : 0);
constexpr int VALUE_STRIDE = HEAD_SIZE + 8;

struct alignas(16) Stage {
    T keys[KEYS * KEY_STRIDE];
    T values[KEYS * VALUE_STRIDE];
};

// A warp's 16 * ROW_TILES queries and what is known of them so far.
template <int ROW_TILES>
struct Rows : Weighted<ROW_TILES, COLUMN_TILES> {
    u32 queries[ROW_TILES][LOADS * LOAD_STEPS][4];
};

template <int ROW_TILES>
using Scores = float[ROW_TILES][KEY_TILES][4];

__device__ __forceinline__ void load_words(const T* from, u32 (&words)[2 * LOAD_STEPS]) {
    if constexpr (LOAD_STEPS == 2) {
        const uint4 bits = *reinterpret_cast<const uint4*>(from);
        words[0] = bits.x;
        words[1] = bits.y;
        words[2] = bits.z;
        words[3] = bits.w;
    } else {
        const uint2 bits = *reinterpret_cast<const uint2*>(from);
        words[0] = bits.x;
        words[1] = bits.y;
    }
}

// Rows behind the sequence's end repeat its last one and are not stored.
template <int ROW_TILES>
__device__ __forceinline__ void start_rows(Rows<ROW_TILES>& rows, const Head& head, u32 first) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const u32 row = min(first + m * 16 + half * 8 + lane / 4, head.length - 1);
            const T* from = head.queries + row * head.stride + lane % 4 * LANE_COLUMNS;
#pragma unroll
            for (int i = 0; i < LOADS; ++i) {
                u32 words[2 * LOAD_STEPS];
                load_words(from + i * 4 * LANE_COLUMNS, words);
#pragma unroll
                for (int step = 0; step < LOAD_STEPS; ++step) {
                    u32(&fragment)[4] = rows.queries[m][i * LOAD_STEPS + step];
                    fragment[half] = words[2 * step];
                    fragment[2 + half] = words[2 * step + 1];
                }
            }
        }
    }
    rows.clear();
}

// One thread's part in filling stages: one 16-byte column of every PASS_ROWS-th row.
struct Loader {
    static constexpr u32 CHUNKS = HEAD_SIZE / VECTOR;
    static constexpr u32 PASS_ROWS = BLOCK / CHUNKS;

    const T* keys;
    u32 row;
    u32 column;

    __device__ __forceinline__ explicit Loader(const Head& head)
        : row(threadIdx.x / CHUNKS), column(threadIdx.x % CHUNKS * VECTOR) {
        keys = head.queries + head.hidden + row * head.stride + column;
    }

    // Keys and values from `first` on, if they are below `end`. Those behind the sequence's end are
    // zeros: their weights are 0, and 0 * NaN would not be 0.
    __device__ __forceinline__ void fill(Stage& stage, const Head& head, u32 first, u32 end) const {
        if (first < end) {
            const T* from = keys + first * head.stride;
#pragma unroll
            for (u32 pass = 0; pass < KEYS; pass += PASS_ROWS) {
                const u32 to = row + pass;
                if ((BLOCK % CHUNKS == 0 || row < PASS_ROWS) &&
                    (KEYS % PASS_ROWS == 0 || to < KEYS)) {
                    const bool exists = first + to < head.length;
                    copy_async(&stage.keys[to * KEY_STRIDE + column], from, exists);
                    copy_async(
                        &stage.values[to * VALUE_STRIDE + column], from + head.hidden, exists
                    );
                }
                from += PASS_ROWS * head.stride;
            }
        }
        end_copy_group();
    }
};

// Only scores of tiles that begin below `valid` keys are computed.
template <bool CUT, int ROW_TILES>
__device__ __forceinline__ void multiply_keys(
    Scores<ROW_TILES>& scores, const Rows<ROW_TILES>& rows, const Stage& stage, u32 valid
) {
    const u32 lane = threadIdx.x % WARP;
    const T* key = &stage.keys[lane / 4 * KEY_STRIDE + lane % 4 * LANE_COLUMNS];
#pragma unroll
    for (int n = 0; n < KEY_TILES; ++n) {
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                scores[m][n][i] = 0.0f;
            }
        }
        if (CUT && n / 2 * STEP >= valid) {
            continue;
        }
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            u32 words[2 * LOAD_STEPS];
            load_words(key + n * 8 * KEY_STRIDE + i * 4 * LANE_COLUMNS, words);
#pragma unroll
            for (int step = 0; step < LOAD_STEPS; ++step) {
#pragma unroll
                for (int m = 0; m < ROW_TILES; ++m) {
                    multiply_add(
                        scores[m][n], rows.queries[m][i * LOAD_STEPS + step], words[2 * step],
                        words[2 * step + 1]
                    );
                }
            }
        }
    }
}

// scores = scores * scale + bias; `distance` is the first key's from the warp's first row.
template <int ROW_TILES>
__device__ __forceinline__ void add_bias(
    Scores<ROW_TILES>& scores, float scale, const DistanceBias& bias, int distance
) {
    const int lane = threadIdx.x % WARP;
    const int own = distance + lane % 4 * 2 - lane / 4;
    const bool near = bias.values && distance - (16 * ROW_TILES - 1) >= -bias.reach &&
                      distance + KEYS - 1 <= bias.reach;
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
        for (int n = 0; n < KEY_TILES; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = own + n * 8 + i % 2 - m * 16 - i / 2 * 8;
                const float added = near ? bias.values[at + bias.reach] : bias.at(at);
                scores[m][n][i] = fmaf(scores[m][n][i], scale, added);
            }
        }
    }
}

// outputs += weights * values.
template <bool CUT, int ROW_TILES>
__device__ __forceinline__ void multiply_values(
    Rows<ROW_TILES>& rows, const Scores<ROW_TILES>& weights, const Stage& stage, u32 valid
) {
    const u32 lane = threadIdx.x % WARP;
    const T* value = &stage.values[lane % 16 * VALUE_STRIDE + lane / 16 * 8];
#pragma unroll
    for (int k = 0; k < KEYS / STEP; ++k) {
        if (CUT && k * STEP >= valid) {
            continue;
        }
        u32 factors[ROW_TILES][4];
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) {
            pack_weights(factors[m], weights[m], k);
        }
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n += 2) {
            u32 words[4];
            load_transposed(words, value + k * STEP * VALUE_STRIDE + n * 8);
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m) {
                multiply_add(rows.outputs[m][n], factors[m], words[0], words[1]);
                multiply_add(rows.outputs[m][n + 1], factors[m], words[2], words[3]);
            }
        }
    }
}

// One stage of keys and values.
template <bool CUT, int ROW_TILES, bool BIASED>
__device__ __forceinline__ void attend(
    Rows<ROW_TILES>& rows, const Stage& stage, u32 valid, float scale, const DistanceBias& bias,
    Window window, int distance
) {
    Scores<ROW_TILES> scores;
    multiply_keys<CUT, ROW_TILES>(scores, rows, stage, valid);
    if constexpr (BIASED) {
        add_bias<ROW_TILES>(scores, scale, bias, distance);
        scale = 1.0f;
    }
    hide(scores, window, distance);
    weigh<CUT>(scores, rows, scale, valid);
    multiply_values<CUT, ROW_TILES>(rows, scores, stage, valid);
}

template <int ROW_TILES, bool BIASED>
__device__ __forceinline__ void attention(
    const T* qkv, const u32* starts, Output* output, u32 sequences, u32 heads, u32 slots_each,
    Window window, const float* table, u32 reach
) {
    constexpr u32 WARP_ROWS = 16 * ROW_TILES;
    __shared__ Stage stages[STAGES];
    extern __shared__ float shared_bias[];
    const Tile tile =
        find_tile(starts, sequences, slots_each, blockIdx.x / heads, WARPS * WARP_ROWS);
    if (tile.first >= tile.length) {
        return;
    }
    const u32 index = blockIdx.x % heads;
    const Head head = find_head(qkv, output, tile, heads, index);
    const Loader loader(head);
    const u32 begin = window.begin(tile.first, KEYS);
    const u32 end = window.end(tile.first + WARPS * WARP_ROWS - 1, tile.length);
#pragma unroll
    for (u32 i = 0; i < STAGES; ++i) {
        loader.fill(stages[i], head, begin + i * KEYS, end);
    }
    DistanceBias bias = {};
    if constexpr (BIASED) {
        bias = DistanceBias::load(shared_bias, table, reach, index, heads);
    }
    // Lane 0's, so that the compiler knows it to be the whole warp's.
    const u32 warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0);
    const u32 first = tile.first + warp * WARP_ROWS;
    Rows<ROW_TILES> rows;
    start_rows(rows, head, first);

    const float scale = LOG2_E / sqrtf((float)HEAD_SIZE);
    for (u32 key = begin; key < end; key += KEYS) {
        if (key == begin) {
            wait_for_copy_groups<STAGES - 1>();
        } else {
            wait_for_copy_groups<STAGES - 2>();
        }
        __syncthreads();
        const u32 turn = (key - begin) / KEYS;
        if (turn > 0) {
            // The stage that all warps are done with.
            loader.fill(stages[(turn - 1) % STAGES], head, key + (STAGES - 1) * KEYS, end);
        }
        if (first >= tile.length || WINDOWED && (key + KEYS <= window.begin(first, 1) ||
                                                 key >= window.end(first + WARP_ROWS - 1, end))) {
            continue;
        }
        const Stage& stage = stages[turn % STAGES];
        const u32 valid = tile.length - key;
        const int distance = (int)key - (int)first;
        if (valid >= KEYS) {
            attend<false, ROW_TILES, BIASED>(rows, stage, valid, scale, bias, window, distance);
        } else {
            attend<true, ROW_TILES, BIASED>(rows, stage, valid, scale, bias, window, distance);
        }
    }
    if (first < tile.length) {
        store_rows(rows, head, first);
    }
}

// Blocks per multiprocessor to leave registers for.
#ifndef BLOCKS_64
#define BLOCKS_64 (HEAD_SIZE <= 32 ? 6 : HEAD_SIZE <= 64 ? 4 : 3)
#endif
#ifndef BLOCKS_128
#define BLOCKS_128 (HEAD_SIZE <= 32 ? 4 : 2)
#endif

#define ATTENTION(ROWS, BLOCKS)                                                                    \
    extern "C" __global__ void __launch_bounds__(BLOCK, BLOCKS) vecmill_attention_##ROWS(          \
        const T* __restrict__ qkv, const u32* __restrict__ starts, Output* __restrict__ output,    \
        u32 sequences, u32 heads, u32 slots_each, Window window                                    \
    ) {                                                                                            \
        await_previous_kernel();                                                                   \
        attention<ROWS / (16 * WARPS), false>(                                                     \
            qkv, starts, output, sequences, heads, slots_each, window, nullptr, 0                  \
        );                                                                                         \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(BLOCK, BLOCKS) vecmill_attention_##ROWS##_biased( \
        const T* __restrict__ qkv, const u32* __restrict__ starts, Output* __restrict__ output,    \
        u32 sequences, u32 heads, u32 slots_each, Window window, const float* __restrict__ bias,   \
        u32 reach                                                                                  \
    ) {                                                                                            \
        await_previous_kernel();                                                                   \
        attention<ROWS / (16 * WARPS), true>(                                                      \
            qkv, starts, output, sequences, heads, slots_each, window, bias, reach                 \
        );                                                                                         \
    }

ATTENTION(64, BLOCKS_64)
#if HEAD_SIZE <= 64
ATTENTION(128, BLOCKS_128)
#endif
