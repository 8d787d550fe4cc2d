// A transformer's whole feed-forward block on Hopper (sm_90a); after prelude.cuh and hopper.cuh.
//
//     Y = layer_norm(X + activation(X W1^T + b1) W2^T + b2) * gain + beta
//         X, Y [rows, HIDDEN], W1 [inner, HIDDEN], W2 [HIDDEN, inner]
//
//     vecmill_feed_forward_sm90(TensorMap x, TensorMap w1, TensorMap w2, TensorMap y,
//                               const float* b1, const float* b2, const float* gain,
//                               const float* beta, float epsilon, u32 rows, u32 inner)
//
// One module is one configuration, by macros:
//     HIDDEN    256 or 384
//     CLUSTER   1 or 2 blocks that share the weights they load
//     EPILOGUE  GELU, ... of enum Activation
//
// Block: 256 threads. Grid: a multiple of CLUSTER, at most what is resident at once. Dynamic shared
// memory: SHARED_BYTES. T is f16 or bf16. `rows` is any, `inner` a multiple of 64; Y may be X.
// Alignment: 16 bytes.
//
// Tensor maps: 2-D, {columns, rows}, swizzle 128 bytes, zero fill. Boxes, {columns, rows}:
//     x {64, 64}    w1 {64, 64 / CLUSTER}    w2 {64, 128 / CLUSTER}    y {64, 16}
//
// The choice: what is between the products never leaves the registers, where the first one's sums
// become the second one's operand. Two warpgroups have 64 rows each: X stays in shared memory, Y in
// registers, while all weights pass, 64 of `inner` at a time. The sums of Y begin with the residual,
// so that X's place is free for the next rows before Y is done. The warpgroups take turns in
// beginning the first product, which keeps one's activation beside the other's products. Their sums
// need all registers there are: no warp is left to load, and the second warpgroup, which is the last
// to read a stage of the ring, has it loaded again.

#ifdef T_F32
#error "the operands are f16 or bf16"
#endif

constexpr u32 GROUPS = 2;
constexpr u32 BLOCK = GROUPS * WARPGROUP;
constexpr u32 GROUP_ROWS = 64;
constexpr u32 GROUP_WARPS = WARPGROUP / WARP;
constexpr u32 TILE_ROWS = GROUPS * GROUP_ROWS;
// Of `inner`.
constexpr u32 CHUNK = 64;
constexpr u32 BOX_COLUMNS = SWIZZLE_ROW / sizeof(T);
constexpr u32 BOXES = HIDDEN / BOX_COLUMNS;
constexpr int STEPS = SWIZZLE_ROW / 32;
constexpr u32 STEP = 32 >> 4;
// Parts of a product, a stage of weights each: along the inner dimension of the first product,
// along the columns of the second.
constexpr u32 PART = 128;
constexpr int PARTS = HIDDEN / PART;
constexpr int PART_BOXES = PART / BOX_COLUMNS;
constexpr u32 WARP_ROWS = 16;

// 64 rows of a box: of X, or of W1.
constexpr u32 BOX_BYTES = 64 * SWIZZLE_ROW;
constexpr u32 X_BYTES = BOXES * BOX_BYTES;
constexpr u32 STAGE_BYTES = PART * SWIZZLE_ROW;
constexpr u32 SLOT_BYTES = WARP_ROWS * SWIZZLE_ROW;
// A chunk and a part: what is loaded instead of a part that was read is the next part in the next
// chunk.
constexpr u32 STAGES = 2 * PARTS + 1;

// Shared memory, from an address divisible by 1024: X of each group, ring, slots, a slot per warp for output,
// barriers.
constexpr u32 RING = GROUPS * X_BYTES;
constexpr u32 SLOT_AREA = RING + STAGES * STAGE_BYTES;
constexpr u32 FULL = SLOT_AREA + GROUPS * GROUP_WARPS * SLOT_BYTES;
constexpr u32 EMPTY = FULL + 8 * STAGES;
constexpr u32 X_FULL = EMPTY + 8 * STAGES;
constexpr u32 TURN = X_FULL + 8 * GROUPS;
// The rest is for aligning the start.
constexpr u32 SHARED_BYTES = TURN + 8 * GROUPS + SWIZZLE_ATOM;

static_assert(HIDDEN <= 384 && HIDDEN % PART == 0, "the sums exceed the registers");
static_assert(CHUNK / CLUSTER % 8 == 0 && PART / CLUSTER % 8 == 0, "boxes are whole swizzle atoms");
static_assert(SHARED_BYTES <= 227 * 1024, "too much shared memory");

struct Operands {
    const TensorMap &x, &w1, &w2, &y;
    const float *b1, *b2, *gain, *beta;
    float epsilon;
    u32 rows, chunks;
};

typedef RingOf<STAGES> Ring;
constexpr u32 NOTHING = ~0u;
typedef float Inner[CHUNK / 2];
typedef float Sums[PARTS][PART / 2];
// Of the second product: fragments of 16 x 16 for each warp.
typedef u32 Factors[STEPS][4];

// The tiles of this block; those of a cluster go through theirs in step, past the last row too.
struct Schedule {
    u32 first, step, count;

    __device__ explicit Schedule(u32 rows) {
        constexpr u32 TOGETHER = CLUSTER * TILE_ROWS;
        const u32 all = (rows + TOGETHER - 1) / TOGETHER;
        const u32 cluster = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
        const u32 rank = CLUSTER > 1 ? cluster_rank() : 0;
        first = cluster * TOGETHER + rank * TILE_ROWS;
        step = clusters * TOGETHER;
        count = all > cluster ? (all - cluster + clusters - 1) / clusters : 0;
    }
};

// ---- Loads, by one thread each ----

enum Product { UP, DOWN };

// This block's share of a box goes to all blocks of the cluster.
__device__ __forceinline__ void load_share(u32 to, const TensorMap& weights, u32 column, u32 row,
                                           u32 box_rows, u32 full) {
    if (CLUSTER > 1) {
        const u32 offset = cluster_rank() * (box_rows / CLUSTER);
        tensor_load_multicast(to + offset * SWIZZLE_ROW, weights, column, row + offset, full,
                              (1 << CLUSTER) - 1);
    } else {
        tensor_load(to, weights, column, row, full);
    }
}

// The weights of a product's part for the chunk that begins at `first` of `inner`.
__device__ __forceinline__ void load_weights(const Operands& with, u32 shared, u32 stage,
                                             Product product, u32 part, u32 first) {
    const u32 to = shared + RING + stage * STAGE_BYTES, full = shared + FULL + 8 * stage;
    barrier_arrive_expect(full, STAGE_BYTES);
    if (product == UP) {
#pragma unroll
        for (u32 box = 0; box < PART_BOXES; ++box) {
            load_share(to + box * BOX_BYTES, with.w1, part * PART + box * BOX_COLUMNS, first, CHUNK,
                       full);
        }
    } else {
        load_share(to, with.w2, first, part * PART, PART, full);
    }
}

// A group's rows.
__device__ __forceinline__ void load_rows(const Operands& with, u32 shared, u32 group, u32 row) {
    const u32 full = shared + X_FULL + 8 * group;
    barrier_arrive_expect(full, X_BYTES);
#pragma unroll
    for (u32 box = 0; box < BOXES; ++box) {
        tensor_load(shared + group * X_BYTES + box * BOX_BYTES, with.x, box * BOX_COLUMNS, row,
                    full);
    }
}

// ---- The products ----

// The columns of a lane's values are 8 * matrix + this, and the next.
__device__ __forceinline__ u32 lane_column() { return threadIdx.x % 4 * 2; }

// Of a vector that begins at this lane's first column.
__device__ __forceinline__ float2 load_pair(const float* lane_values, int matrix) {
    return __ldg(reinterpret_cast<const float2*>(lane_values + matrix * 8));
}

// The four values of an 8x8 matrix pair: two neighbours in row lane / 4, two in 8 rows below.
__device__ __forceinline__ float* quad(Sums& sums, int matrix) {
    return &sums[matrix / (PART / 8)][matrix % (PART / 8) * 4];
}

// Where this lane's row of two 8x8 matrices beside each other begins in a warp's 16 swizzled rows;
// `pair` counts along columns.
__device__ __forceinline__ u32 matrix_row(u32 rows, int pair) {
    const u32 lane = threadIdx.x % WARP;
    return (rows + lane % 16 * SWIZZLE_ROW + (lane / 16 ^ lane % 8) * 16) ^ pair * 32;
}

// Tells all blocks that load into this one's stage that this warp has read it.
__device__ __forceinline__ void release(u32 shared, u32 stage) {
    const u32 lane = threadIdx.x % WARP;
    const u32 empty = shared + EMPTY + 8 * stage;
    if (CLUSTER == 1) {
        if (lane == 0) {
            barrier_arrive(empty);
        }
    } else if (lane < CLUSTER) {
        barrier_arrive_remote(cluster_address(empty, lane));
    }
}

// The residual and the bias.
__device__ __forceinline__ void begin(Sums& sums, const float* bias, u32 rows) {
    const float* lane_bias = bias + lane_column();
#pragma unroll
    for (int pair = 0; pair < HIDDEN / 16; ++pair) {
        u32 matrices[4];
        load_matrices(matrix_row(rows, pair % 4) + pair / 4 * BOX_BYTES, matrices);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float2 add = load_pair(lane_bias, 2 * pair + half);
            float* four = quad(sums, 2 * pair + half);
            unpack2(matrices[2 * half], four[0], four[1]);
            unpack2(matrices[2 * half + 1], four[2], four[3]);
            four[0] += add.x;
            four[1] += add.y;
            four[2] += add.x;
            four[3] += add.y;
        }
    }
}

// Where a warpgroup is in the stream of weights.
struct Stream {
    const Operands& with;
    u32 shared;
    Ring ring;
    // Where the next chunk begins, in the one thread that loads it.
    u32 next;

    // Goes through a product's parts. One stays in flight while the next stage is awaited, and its
    // stage is loaded again after it.
    template <Product PRODUCT, typename Multiply>
    __device__ __forceinline__ void each_part(Multiply multiply) {
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            barrier_wait(shared + FULL + 8 * ring.stage, ring.phase);
            wgmma_fence();
            multiply(part, matrix_descriptor(shared + RING + ring.stage * STAGE_BYTES));
            wgmma_commit();
            if (part > 0) {
                wgmma_wait<1>();
                release(shared, ring.before().stage);
            }
            if (next != NOTHING) {
                const Ring read = ring.before();
                barrier_wait(shared + EMPTY + 8 * read.stage, read.phase);
                load_weights(with, shared, read.stage, PRODUCT, part, next);
            }
            __syncwarp();
            ring.advance();
        }
    }

    // After the last part.
    __device__ __forceinline__ void release_last() { release(shared, ring.before().stage); }
};

// inner = X W1^T for a chunk of W1. The other group's turn comes as soon as this one's products are
// under way.
__device__ __forceinline__ void multiply_up(Inner& inner, Stream& weights, u32 x, u32 next_turn) {
    weights.each_part<UP>([&](int part, u64 w1) {
        const u64 rows = matrix_descriptor(x) + (part * PART_BOXES * BOX_BYTES >> 4);
#pragma unroll
        for (int box = 0; box < PART_BOXES; ++box) {
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                const u32 offset = (box * BOX_BYTES >> 4) + step * STEP;
                wgmma(inner, rows + offset, w1 + offset, part + box + step > 0);
            }
        }
    });
    if (threadIdx.x % WARP == 0) {
        barrier_arrive(next_turn);
    }
    wgmma_wait<0>();
    pin(inner);
    weights.release_last();
}

// The sums of 16 columns in two 8x8 matrices are a fragment of the next product's operand.
__device__ __forceinline__ void convert(Factors& factors, const Inner& inner, const float* bias) {
    const float* lane_bias = bias + lane_column();
#pragma unroll
    for (int matrix = 0; matrix < CHUNK / 8; ++matrix) {
        const float2 add = load_pair(lane_bias, matrix);
        const float* four = &inner[matrix * 4];
        u32* words = &factors[matrix / 2][matrix % 2 * 2];
        words[0] = pack2(activate<EPILOGUE>(four[0] + add.x), activate<EPILOGUE>(four[1] + add.y));
        words[1] = pack2(activate<EPILOGUE>(four[2] + add.x), activate<EPILOGUE>(four[3] + add.y));
    }
}

// sums += factors W2^T for a chunk of W2.
__device__ __forceinline__ void multiply_down(Sums& sums, const Factors& factors, Stream& weights) {
    weights.each_part<DOWN>([&](int part, u64 w2) {
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            wgmma<false>(sums[part], factors[step], w2 + step * STEP, 1);
        }
    });
    wgmma_wait<0>();
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        pin(sums[part]);
    }
    weights.release_last();
}

// Over the 4 lanes that share a row.
__device__ __forceinline__ float row_sum(float value) {
    value += __shfl_xor_sync(ALL_LANES, value, 1);
    return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

// Leaves distances from the row's mean; `scales` are what makes their variance 1, for the upper
// and the lower row of the quads.
__device__ __forceinline__ void centre(Sums& sums, float epsilon, float (&scales)[2]) {
    float totals[4] = {}, squares[4] = {};
#pragma unroll
    for (int i = 0; i < HIDDEN / 2; ++i) {
        totals[i % 4] += sums[i / (PART / 2)][i % (PART / 2)];
    }
    const float upper = row_sum(totals[0] + totals[1]) * (1.0f / HIDDEN);
    const float lower = row_sum(totals[2] + totals[3]) * (1.0f / HIDDEN);
#pragma unroll
    for (int i = 0; i < HIDDEN / 2; ++i) {
        float& value = sums[i / (PART / 2)][i % (PART / 2)];
        value -= i % 4 < 2 ? upper : lower;
        squares[i % 4] = fmaf(value, value, squares[i % 4]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float variance = row_sum(squares[2 * i] + squares[2 * i + 1]) * (1.0f / HIDDEN);
        scales[i] = rsqrtf(variance + epsilon);
    }
}

// Normalises, converts and stores a warp's 16 rows from `row` on, 64 columns at a time.
__device__ __forceinline__ void finish(Sums& sums, const Operands& with, u32 slot, u32 row) {
    const bool leads = threadIdx.x % WARP == 0;
    const float* lane_gain = with.gain + lane_column();
    const float* lane_beta = with.beta + lane_column();
    float scales[2];
    centre(sums, with.epsilon, scales);
#pragma unroll
    for (int box = 0; box < (int)BOXES; ++box) {
        if (leads) {
            store_wait_read<0>();
        }
        __syncwarp();
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            u32 matrices[4];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int matrix = box * 8 + pair * 2 + half;
                const float2 gain = load_pair(lane_gain, matrix);
                const float2 beta = load_pair(lane_beta, matrix);
                const float* four = quad(sums, matrix);
                matrices[2 * half] = pack2(fmaf(four[0] * scales[0], gain.x, beta.x),
                                           fmaf(four[1] * scales[0], gain.y, beta.y));
                matrices[2 * half + 1] = pack2(fmaf(four[2] * scales[1], gain.x, beta.x),
                                               fmaf(four[3] * scales[1], gain.y, beta.y));
            }
            store_matrices(matrix_row(slot, pair), matrices);
        }
        fence_async_shared();
        __syncwarp();
        if (leads) {
            tensor_store(with.y, box * BOX_COLUMNS, row, slot);
            store_commit();
        }
    }
}

__device__ __forceinline__ void compute_tiles(const Operands& with, u32 shared,
                                              const Schedule& schedule) {
    const u32 group = threadIdx.x / WARPGROUP;
    const u32 warp = threadIdx.x / WARP;
    const u32 x = shared + group * X_BYTES;
    const bool leads = threadIdx.x % WARPGROUP == 0;
    u32 row = schedule.first + group * GROUP_ROWS;
    if (leads && schedule.count > 0) {
        load_rows(with, shared, group, row);
        if (group == GROUPS - 1) {
#pragma unroll 1
            for (u32 stage = 0; stage < 2 * PARTS; ++stage) {
                load_weights(with, shared, stage, stage < PARTS ? UP : DOWN, stage % PARTS, 0);
            }
        }
    }
    __syncwarp();
    Stream weights{with, shared, {}, NOTHING};
    // The first group's first turn is free.
    u32 turn = group ^ 1;
#pragma unroll 1
    for (u32 index = 0; index < schedule.count; ++index) {
        const bool last_tile = index + 1 == schedule.count;
        barrier_wait(shared + X_FULL + 8 * group, index & 1);
        Sums sums;
        begin(sums, with.b2, x + warp % GROUP_WARPS * SLOT_BYTES);
#pragma unroll 1
        for (u32 chunk = 0; chunk < with.chunks; ++chunk) {
            const bool last = chunk + 1 == with.chunks;
            weights.next = NOTHING;
            if (threadIdx.x == BLOCK - WARPGROUP && !(last && last_tile)) {
                weights.next = last ? 0 : (chunk + 1) * CHUNK;
            }
            barrier_wait(shared + TURN + 8 * group, turn);
            turn ^= 1;
            Inner inner;  // the first product replaces it
            multiply_up(inner, weights, x, shared + TURN + 8 * (group ^ 1));
            if (last && !last_tile) {
                // All warps of the group have read X.
                warpgroup_sync(1 + group);
                if (leads) {
                    load_rows(with, shared, group, row + schedule.step);
                }
                __syncwarp();
            }
            Factors factors;
            convert(factors, inner, with.b1 + chunk * CHUNK);
            multiply_down(sums, factors, weights);
        }
        finish(sums, with, shared + SLOT_AREA + warp * SLOT_BYTES,
               row + warp % GROUP_WARPS * WARP_ROWS);
        row += schedule.step;
    }
    if (threadIdx.x % WARP == 0) {
        store_wait_read<0>();
    }
}

// ---- The kernel ----

__device__ __forceinline__ void init_barriers(u32 shared) {
    for (int i = 0; i < STAGES; ++i) {
        barrier_init(shared + FULL + 8 * i, 1);
        barrier_init(shared + EMPTY + 8 * i, GROUPS * GROUP_WARPS * CLUSTER);
    }
    for (u32 i = 0; i < GROUPS; ++i) {
        barrier_init(shared + X_FULL + 8 * i, 1);
        barrier_init(shared + TURN + 8 * i, GROUP_WARPS);
    }
    barrier_init_fence();
}

#if CLUSTER > 1
#define SHAPE __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(BLOCK, 1)
#else
#define SHAPE __launch_bounds__(BLOCK, 1)
#endif

extern "C" __global__ void SHAPE vecmill_feed_forward_sm90(
    const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w1,
    const __grid_constant__ TensorMap w2, const __grid_constant__ TensorMap y,
    const float* __restrict__ b1, const float* __restrict__ b2, const float* __restrict__ gain,
    const float* __restrict__ beta, float epsilon, u32 rows, u32 inner) {
    extern __shared__ u8 dynamic_shared[];
    const u32 shared = (shared_address(dynamic_shared) + SWIZZLE_ATOM - 1) & ~(SWIZZLE_ATOM - 1);
    const Operands with{x, w1, w2, y, b1, b2, gain, beta, epsilon, rows, inner / CHUNK};
    const Schedule schedule(rows);
    if (threadIdx.x == 0) {
        tensor_prefetch(x);
        tensor_prefetch(w1);
        tensor_prefetch(w2);
        tensor_prefetch(y);
        init_barriers(shared);
    }
    __syncthreads();
    if (CLUSTER > 1) {
        cluster_sync();
    }
    compute_tiles(with, shared, schedule);
    // A block's shared memory must outlive what the others send to it.
    if (CLUSTER > 1) {
        cluster_sync();
    }
}
