// Linear layers on Hopper (sm_90a), fused with what follows them; after prelude.cuh and hopper.cuh.
//
//     D[rows, columns] = activation(A[rows, inner] * W[columns, inner]^T + bias)            or, NORM:
//     D = layer_norm(A * W^T + bias + residual) * gain + beta      over whole rows
//
//     vecmill_gemm_sm90     (TensorMap a, TensorMap w, TensorMap d, const float* bias,
//                            u32 rows, u32 columns, u32 inner)
//     vecmill_gemm_norm_sm90(TensorMap a, TensorMap w, TensorMap d, TensorMap residual,
//                            const float* bias, const float* gain, const float* beta,
//                            float epsilon, u32 rows, u32 columns, u32 inner)
//
// One module is one configuration, by macros:
//     ROW_BLOCKS       1 or 2 times 64 rows per warpgroup
//     TILE_COLUMNS     64, 128, 192, 256 or 384; ROW_BLOCKS * TILE_COLUMNS at most 384
//     PING_PONG        1: the two warpgroups take turns, a tile each; 0: they share each tile
//     STAGES           depth of the ring of operand blocks, 64 values of K each
//     SLOTS            2 KiB buffers per warp for the output; divides ROW_BLOCKS * TILE_COLUMNS / 64
//     CLUSTER_ROWS     blocks that share W, neighbours along rows
//     CLUSTER_COLUMNS  blocks that share A, neighbours along columns
//     RESIDENT         0, or at least inner / 64: W's block stays in shared memory while the rows
//                      pass; needs CLUSTER_ROWS 1
//     EPILOGUE         IDENTITY, GELU, ... of enum Activation
//     NORM             1: the second kernel; columns == TILE_COLUMNS * CLUSTER_COLUMNS
//
// Block: 384 threads. Grid: a multiple of the cluster size, at most what is resident at once.
// Dynamic shared memory: SHARED_BYTES below. T is f16 or bf16. `inner` and `columns` are multiples
// of 8, `rows` any; `bias` may be null, not with NORM. `residual` may be D's own memory.
//
// Tensor maps: 2-D of T, {columns, rows}, swizzle 128 bytes, zero fill. Boxes, {columns, rows}:
//     a             {64, TILE_ROWS / CLUSTER_COLUMNS}
//     w             {64, TILE_COLUMNS / CLUSTER_ROWS}, half of it if that exceeds 256
//     d, residual   {64, 16}
//
// The choice: one thread loads, two warpgroups multiply. In ping-pong a tile's epilogue hides
// behind the other warpgroup's tile; the ring hands blocks over in the order of tiles, and a turn
// barrier keeps a warpgroup from waiting for a phase that isn't the ring's next. Each warp converts
// and stores its own 16 rows, 64 columns at a time, so that the epilogue has no block-wide barrier.

#ifdef T_F32
#error "the operands are f16 or bf16"
#endif

constexpr int K_BLOCK = 64;
constexpr int PIECE_COLUMNS = 64;
constexpr int PIECE_ROWS = 16;
constexpr u32 PIECE_BYTES = PIECE_ROWS * SWIZZLE_ROW;
constexpr int CONSUMERS = 2;
constexpr int CONSUMER_WARPS = 8;
constexpr int WARPS_PER_STAGE = PING_PONG ? 4 : 8;

constexpr int GROUP_ROWS = 64 * ROW_BLOCKS;
constexpr int TILE_ROWS = PING_PONG ? GROUP_ROWS : CONSUMERS * GROUP_ROWS;
// Instructions along N, and their width.
constexpr int PARTS = TILE_COLUMNS > 256 ? 2 : 1;
constexpr int PART = TILE_COLUMNS / PARTS;
constexpr int PIECES_PER_ROW = TILE_COLUMNS / PIECE_COLUMNS;
constexpr int PIECES = ROW_BLOCKS * PIECES_PER_ROW;

constexpr int CLUSTER = CLUSTER_ROWS * CLUSTER_COLUMNS;
constexpr int A_SHARE = TILE_ROWS / CLUSTER_COLUMNS;
constexpr int W_SHARE = TILE_COLUMNS / CLUSTER_ROWS;
constexpr int W_BOXES = W_SHARE > 256 ? 2 : 1;

constexpr u32 A_BYTES = TILE_ROWS * SWIZZLE_ROW;
constexpr u32 W_BYTES = TILE_COLUMNS * SWIZZLE_ROW;
constexpr u32 STAGE_BYTES = A_BYTES + (RESIDENT ? 0 : W_BYTES);
constexpr bool EXCHANGE = NORM && CLUSTER_COLUMNS > 1;
constexpr u32 EXCHANGE_BYTES = GROUP_ROWS * CLUSTER_COLUMNS * 8;

// Shared memory, from an address divisible by 1024.
constexpr u32 PANEL = STAGES * STAGE_BYTES;
constexpr u32 SLOT_AREA = PANEL + RESIDENT * W_BYTES;
constexpr u32 EXCHANGE_AREA = SLOT_AREA + CONSUMER_WARPS * SLOTS * PIECE_BYTES;
constexpr u32 FULL = EXCHANGE_AREA + (EXCHANGE ? 2 * CONSUMERS * EXCHANGE_BYTES : 0);
constexpr u32 EMPTY = FULL + 8 * STAGES;
constexpr u32 PANEL_FULL = EMPTY + 8 * STAGES;
constexpr u32 PANEL_EMPTY = PANEL_FULL + 8 * RESIDENT;
constexpr u32 TURN = PANEL_EMPTY + 8;
constexpr u32 RESIDUAL_FULL = TURN + 8 * CONSUMERS;
constexpr u32 EXCHANGE_FULL = RESIDUAL_FULL + (NORM ? 8 * CONSUMER_WARPS * SLOTS : 0);
// The rest is for aligning the start.
constexpr u32 SHARED_BYTES = EXCHANGE_FULL + 8 * 2 * CONSUMERS + SWIZZLE_ATOM;

static_assert(ROW_BLOCKS * TILE_COLUMNS <= 384, "the accumulators exceed the registers");
static_assert(PIECES % SLOTS == 0, "slots are reused in one order across tiles");
static_assert(A_SHARE % 8 == 0 && W_SHARE / W_BOXES % 8 == 0, "boxes are whole swizzle atoms");
static_assert(!RESIDENT || CLUSTER_ROWS == 1, "resident W has no multicast");
static_assert(SHARED_BYTES <= 227 * 1024, "too much shared memory");

struct Tile {
    u32 row, column;  // of its first element
    bool new_panel;
};

// The tiles of this block in their order. The blocks of a cluster go through theirs in step, past
// the end of the tensor too. Streaming, columns pass fastest, so that A is read once from device
// memory; with W resident, rows do, in one range of all tiles per cluster.
struct Schedule {
    u32 row_groups, column_groups, first, step, count;
    u32 row_rank, column_rank;

    __device__ Schedule(u32 rows, u32 columns) {
        const u32 rank = CLUSTER > 1 ? cluster_rank() : 0;
        row_rank = rank / CLUSTER_COLUMNS;
        column_rank = rank % CLUSTER_COLUMNS;
        constexpr u32 GROUP_OF_ROWS = TILE_ROWS * CLUSTER_ROWS;
        constexpr u32 GROUP_OF_COLUMNS = TILE_COLUMNS * CLUSTER_COLUMNS;
        row_groups = (rows + GROUP_OF_ROWS - 1) / GROUP_OF_ROWS;
        column_groups = (columns + GROUP_OF_COLUMNS - 1) / GROUP_OF_COLUMNS;
        const u32 tiles = row_groups * column_groups;
        const u32 cluster = blockIdx.x / CLUSTER;
        const u32 clusters = gridDim.x / CLUSTER;
        if (RESIDENT) {
            const u32 longer = tiles % clusters;
            step = 1;
            first = tiles / clusters * cluster + min(cluster, longer);
            count = tiles / clusters + (cluster < longer);
        } else {
            step = clusters;
            first = cluster;
            count = tiles > first ? (tiles - first + step - 1) / step : 0;
        }
    }

    __device__ Tile operator[](u32 index) const {
        const u32 tile = first + index * step;
        const u32 row_group = RESIDENT ? tile % row_groups : tile / column_groups;
        const u32 column_group = RESIDENT ? tile / row_groups : tile % column_groups;
        return {(row_group * CLUSTER_ROWS + row_rank) * TILE_ROWS,
                (column_group * CLUSTER_COLUMNS + column_rank) * TILE_COLUMNS,
                index == 0 || row_group == 0};
    }
};

// A place in the ring of stages.
struct Ring {
    u32 stage = 0, phase = 0;

    __device__ void skip(u32 blocks) {
        stage += blocks;
        phase ^= stage / STAGES & 1;
        stage %= STAGES;
    }

    __device__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
};

// ---- The loading thread ----

__device__ __forceinline__ void load_w(u32 to, const TensorMap& w, u32 k, u32 row, u32 barrier,
                                       const Schedule& schedule) {
    constexpr int BOX_ROWS = W_SHARE / W_BOXES;
    u32 blocks = 0;
#pragma unroll
    for (int i = 0; i < CLUSTER_ROWS; ++i) {
        blocks |= 1u << (i * CLUSTER_COLUMNS + schedule.column_rank);
    }
#pragma unroll
    for (int box = 0; box < W_BOXES; ++box) {
        const u32 offset = schedule.row_rank * W_SHARE + box * BOX_ROWS;
        if (CLUSTER_ROWS > 1) {
            tensor_load_multicast(to + offset * SWIZZLE_ROW, w, k, row + offset, barrier, blocks);
        } else {
            tensor_load(to + offset * SWIZZLE_ROW, w, k, row + offset, barrier);
        }
    }
}

__device__ __forceinline__ void load_a(u32 to, const TensorMap& a, u32 k, u32 row, u32 barrier,
                                       const Schedule& schedule) {
    const u32 offset = schedule.column_rank * A_SHARE;
    if (CLUSTER_COLUMNS > 1) {
        const u32 blocks = ((1u << CLUSTER_COLUMNS) - 1) << (schedule.row_rank * CLUSTER_COLUMNS);
        tensor_load_multicast(to + offset * SWIZZLE_ROW, a, k, row + offset, barrier, blocks);
    } else {
        tensor_load(to, a, k, row, barrier);
    }
}

__device__ __forceinline__ void load_tiles(u32 shared, const TensorMap& a, const TensorMap& w,
                                           const Schedule& schedule, u32 k_blocks) {
    Ring ring;
    u32 panels = 0;
    for (u32 index = 0; index < schedule.count; ++index) {
        const Tile tile = schedule[index];
        const bool load_panel = RESIDENT && tile.new_panel;
        if (load_panel && panels++ > 0) {
            barrier_wait(shared + PANEL_EMPTY, panels & 1);
        }
        for (u32 block = 0; block < k_blocks; ++block) {
            const u32 k = block * K_BLOCK;
            if (load_panel) {
                const u32 full = shared + PANEL_FULL + 8 * block;
                barrier_arrive_expect(full, W_BYTES);
                load_w(shared + PANEL + block * W_BYTES, w, k, tile.column, full, schedule);
            }
            const u32 full = shared + FULL + 8 * ring.stage;
            const u32 stage = shared + ring.stage * STAGE_BYTES;
            barrier_wait(shared + EMPTY + 8 * ring.stage, ring.phase ^ 1);
            barrier_arrive_expect(full, STAGE_BYTES);
            load_a(stage, a, k, tile.row, full, schedule);
            if (!RESIDENT) {
                load_w(stage + A_BYTES, w, k, tile.column, full, schedule);
            }
            ring.advance();
        }
    }
}

// ---- The multiplying warpgroups ----

typedef float Accumulators[ROW_BLOCKS][PARTS][PART / 2];

// The four values of an 8x8 matrix pair: two neighbours in row lane / 4, two in 8 rows below.
__device__ __forceinline__ float* quad(Accumulators& values, int row_block, int matrix) {
    constexpr int PER_PART = PART / 8;
    return &values[row_block][matrix / PER_PART][matrix % PER_PART * 4];
}

// Tells all blocks that load into this one's stage that this warp has read it.
__device__ __forceinline__ void release(u32 shared, u32 stage, const Schedule& schedule) {
    const u32 lane = threadIdx.x % WARP;
    const u32 empty = shared + EMPTY + 8 * stage;
    if (CLUSTER == 1) {
        if (lane == 0) {
            barrier_arrive(empty);
        }
    } else if (lane < CLUSTER && (lane / CLUSTER_COLUMNS == schedule.row_rank ||
                                  lane % CLUSTER_COLUMNS == schedule.column_rank)) {
        barrier_arrive_remote(cluster_address(empty, lane));
    }
}

// One product at a time stays in flight while the next stage is awaited.
__device__ __forceinline__ void multiply(Accumulators& sums, u32 shared, Ring& ring, u32 k_blocks,
                                         u32 first_row, u32 panel_phase, const Schedule& schedule) {
    u32 previous = 0;
#pragma unroll 1
    for (u32 block = 0; block < k_blocks; ++block) {
        barrier_wait(shared + FULL + 8 * ring.stage, ring.phase);
        if (RESIDENT) {
            barrier_wait(shared + PANEL_FULL + 8 * block, panel_phase);
        }
        const u32 stage = shared + ring.stage * STAGE_BYTES;
        const u64 a = matrix_descriptor(stage + first_row * SWIZZLE_ROW);
        const u64 w = matrix_descriptor(RESIDENT ? shared + PANEL + block * W_BYTES : stage + A_BYTES);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < K_BLOCK / 16; ++k) {
#pragma unroll
            for (int row_block = 0; row_block < ROW_BLOCKS; ++row_block) {
#pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    wgmma(sums[row_block][part], a + (row_block * 64 * SWIZZLE_ROW >> 4) + 2 * k,
                          w + (part * PART * SWIZZLE_ROW >> 4) + 2 * k, k > 0 || block > 0);
                }
            }
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (block > 0) {
            release(shared, previous, schedule);
        }
        previous = ring.stage;
        ring.advance();
    }
    if (PING_PONG && threadIdx.x % WARP == 0) {
        const u32 other = threadIdx.x / WARPGROUP == 1 ? 1 : 0;
        barrier_arrive(shared + TURN + 8 * other);
    }
    wgmma_wait<0>();
#pragma unroll
    for (int row_block = 0; row_block < ROW_BLOCKS; ++row_block) {
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            pin(sums[row_block][part]);
        }
    }
    release(shared, previous, schedule);
}

// ---- Epilogues: a warp's 16 rows of each row block, piece by piece ----

struct Piece {
    u32 row, column;
    int row_block, first_matrix;
};

// `row` and `column` are the first of this warp and this tile.
__device__ __forceinline__ Piece piece_at(int index, u32 row, u32 column) {
    const int row_block = index / PIECES_PER_ROW;
    const int along = index % PIECES_PER_ROW;
    return {row + row_block * 64, column + along * PIECE_COLUMNS, row_block,
            along * (PIECE_COLUMNS / 8)};
}

constexpr int PAIRS = PIECE_COLUMNS / 16;

// Where this lane's row of 8x8 matrices begins in a warp's first slot, for each pair of matrices
// along columns: rows 0 to 15 of the first, then of the second. Few addresses and constant offsets
// from them keep the epilogues within the registers.
struct MatrixRows {
    u32 at[PAIRS];

    __device__ MatrixRows(u32 shared, u32 warp) {
        const u32 lane = threadIdx.x % WARP;
        const u32 row = lane % 16;
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            const u32 chunk = (2 * pair + lane / 16) ^ row % 8;
            at[pair] = shared + SLOT_AREA + warp * SLOTS * PIECE_BYTES + row * SWIZZLE_ROW + chunk * 16;
        }
    }
};

// Of a vector that begins at this lane's first column.
__device__ __forceinline__ float2 load_pair(const float* lane_values, int matrix) {
    return *reinterpret_cast<const float2*>(lane_values + matrix * 8);
}

// The columns of a quad are 8 * matrix + this.
__device__ __forceinline__ u32 lane_column() { return threadIdx.x % 4 * 2; }

// Stores what `value(quad, row_block, matrix)` leaves in each quad.
template <typename Value>
__device__ __forceinline__ void store_pieces(Accumulators& values, const TensorMap& d, u32 slots,
                                             const MatrixRows& rows, u32 row, u32 column,
                                             Value value) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int index = 0; index < PIECES; ++index) {
        const Piece piece = piece_at(index, row, column);
        const u32 slot = slots + index % SLOTS * PIECE_BYTES;
        if (lane == 0) {
            store_wait_read<SLOTS - 1>();
        }
        __syncwarp();
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            u32 packed[4];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int matrix = piece.first_matrix + 2 * pair + half;
                float* four = quad(values, piece.row_block, matrix);
                value(four, piece.row_block, matrix);
                packed[2 * half] = pack2(four[0], four[1]);
                packed[2 * half + 1] = pack2(four[2], four[3]);
            }
            store_matrices(rows.at[pair] + index % SLOTS * PIECE_BYTES, packed[0], packed[1], packed[2], packed[3]);
        }
        fence_async_shared();
        __syncwarp();
        if (lane == 0) {
            tensor_store(d, piece.column, piece.row, slot);
            store_commit();
        }
    }
}

#if NORM

__device__ __forceinline__ void load_residual(const TensorMap& residual, u32 shared, u32 warp,
                                              int index, u32 row, u32 column) {
    const Piece piece = piece_at(index, row, column);
    const u32 slot = warp * SLOTS + index % SLOTS;
    const u32 full = shared + RESIDUAL_FULL + 8 * slot;
    barrier_arrive_expect(full, PIECE_BYTES);
    tensor_load(shared + SLOT_AREA + slot * PIECE_BYTES, residual, piece.column, piece.row, full);
}

// The first pieces, as soon as the slots' last contents are stored: their latency hides behind
// the products.
__device__ __forceinline__ void prefetch_residual(const TensorMap& residual, u32 shared, u32 warp,
                                                  u32 row, u32 column) {
    if (threadIdx.x % WARP == 0) {
        store_wait_read<0>();
#pragma unroll
        for (int index = 0; index < SLOTS; ++index) {
            load_residual(residual, shared, warp, index, row, column);
        }
    }
    __syncwarp();
}

// Sums, of this lane's part of each row, distances and squared distances from its first value: one
// pass, without the cancellation of plain squares. `parities` has one bit per slot.
__device__ __forceinline__ void add_residual(Accumulators& values, const TensorMap& residual,
                                             const float* bias, u32 shared, u32 warp,
                                             const MatrixRows& rows, u32 row, u32 column,
                                             u32& parities, float2 (&row_sums)[ROW_BLOCKS][2]) {
    const u32 lane = threadIdx.x % WARP;
    const float* lane_bias = bias + column + lane_column();
#pragma unroll
    for (int index = 0; index < PIECES; ++index) {
        const Piece piece = piece_at(index, row, column);
        const u32 place = warp * SLOTS + index % SLOTS;
        barrier_wait(shared + RESIDUAL_FULL + 8 * place, parities >> index % SLOTS & 1);
        parities ^= 1u << index % SLOTS;
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            u32 matrices[4];
            load_matrices(rows.at[pair] + index % SLOTS * PIECE_BYTES, matrices);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int matrix = piece.first_matrix + 2 * pair + half;
                float* four = quad(values, piece.row_block, matrix);
                const float2 add = load_pair(lane_bias, matrix);
                float low, high;
                unpack2(matrices[2 * half], low, high);
                four[0] += add.x + low;
                four[1] += add.y + high;
                unpack2(matrices[2 * half + 1], low, high);
                four[2] += add.x + low;
                four[3] += add.y + high;
                const float* pivots = quad(values, piece.row_block, 0);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float2& of_row = row_sums[piece.row_block][i / 2];
                    const float distance = four[i] - pivots[i / 2 * 2];
                    of_row.x += distance;
                    of_row.y = fmaf(distance, distance, of_row.y);
                    asm volatile("" : "+f"(of_row.x), "+f"(of_row.y));
                }
            }
        }
        __syncwarp();
        if (lane == 0 && index + SLOTS < PIECES) {
            load_residual(residual, shared, warp, index + SLOTS, row, column);
        }
    }
}

// Mean, and sum of squared distances from it, of a row's part, from those of two halves of `count`
// values each.
__device__ __forceinline__ float2 merge(float2 one, float2 other, float count) {
    const float distance = one.x - other.x;
    const float between = distance * distance * (0.5f * count);
    return make_float2(0.5f * (one.x + other.x), one.y + other.y + between);
}

// The same of this tile's part of a row, from the sums of distances and of squared distances
// from `pivot` of this lane's part; 4 lanes get the same.
__device__ __forceinline__ float2 row_moments(float2 sums, float pivot) {
    constexpr float COUNT = TILE_COLUMNS / 4;
    const float offset = sums.x * (1.0f / COUNT);
    float2 moments = make_float2(pivot + offset, fmaf(-sums.x, offset, sums.y));
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) {
        const float mean = __shfl_xor_sync(ALL_LANES, moments.x, lanes);
        const float squares = __shfl_xor_sync(ALL_LANES, moments.y, lanes);
        moments = merge(moments, make_float2(mean, squares), COUNT * lanes);
    }
    return moments;
}

// Moments of whole rows from those of all blocks along the row. `turn` counts the calls. Two sets
// of buffers suffice: a block sends its turn + 2 only after it received all of turn + 1, which the
// others sent after reading turn.
__device__ __forceinline__ void exchange_moments(float2 (&moments)[ROW_BLOCKS][2], u32 shared,
                                                 u32 turn, const Schedule& schedule) {
    const u32 lane = threadIdx.x % WARP;
    const u32 thread = threadIdx.x % WARPGROUP;
    const u32 set = (turn & 1) * CONSUMERS + threadIdx.x / WARPGROUP - 1;
    const u32 full = shared + EXCHANGE_FULL + 8 * set;
    const u32 first_row = thread / WARP * 16 + lane / 4;
    const u32 from = shared + EXCHANGE_AREA + set * EXCHANGE_BYTES + first_row * CLUSTER_COLUMNS * 8;
    if (thread == 0) {
        barrier_arrive_expect(full, EXCHANGE_BYTES);
    }
    if (lane % 4 < CLUSTER_COLUMNS) {
        const u32 rank = schedule.row_rank * CLUSTER_COLUMNS + lane % 4;
        const u32 to = cluster_address(from, rank) + schedule.column_rank * 8;
        const u32 signal = cluster_address(full, rank);
#pragma unroll
        for (int i = 0; i < 2 * ROW_BLOCKS; ++i) {
            const u32 offset = (i / 2 * 64 + i % 2 * 8) * CLUSTER_COLUMNS * 8;
            const float2 own = moments[i / 2][i % 2];
            store_remote(to + offset, own.x, own.y, signal);
        }
    }
    barrier_wait(full, turn >> 1 & 1);
#pragma unroll
    for (int i = 0; i < 2 * ROW_BLOCKS; ++i) {
        const u32 offset = (i / 2 * 64 + i % 2 * 8) * CLUSTER_COLUMNS * 8;
        float2 parts[CLUSTER_COLUMNS];
        float mean = 0.0f;
#pragma unroll
        for (int rank = 0; rank < CLUSTER_COLUMNS; ++rank) {
            parts[rank] = load_shared_pair(from + offset + rank * 8);
            mean += parts[rank].x * (1.0f / CLUSTER_COLUMNS);
        }
        float squares = 0.0f;
#pragma unroll
        for (int rank = 0; rank < CLUSTER_COLUMNS; ++rank) {
            const float distance = parts[rank].x - mean;
            squares += fmaf(TILE_COLUMNS * distance, distance, parts[rank].y);
        }
        moments[i / 2][i % 2] = make_float2(mean, squares);
    }
}

#endif

// ---- The kernel ----

struct Operands {
    const TensorMap &a, &w, &d, &residual;
    const float *bias, *gain, *beta;
    float epsilon;
    u32 rows, columns, inner;
};

#if NORM
__device__ __forceinline__ void finish(Accumulators& sums, const Operands& with, u32 shared,
                                       u32 warp, u32 row, u32 column, u32 turn, u32& parities,
                                       const Schedule& schedule) {
    const MatrixRows rows(shared, warp);
    float2 moments[ROW_BLOCKS][2] = {};
    add_residual(sums, with.residual, with.bias, shared, warp, rows, row, column, parities, moments);
#pragma unroll
    for (int i = 0; i < 2 * ROW_BLOCKS; ++i) {
        float2& of_row = moments[i / 2][i % 2];
        of_row = row_moments(of_row, quad(sums, i / 2, 0)[i % 2 * 2]);
    }
    if (EXCHANGE) {
        exchange_moments(moments, shared, turn, schedule);
    }
#pragma unroll
    for (int i = 0; i < 2 * ROW_BLOCKS; ++i) {
        constexpr float SHARE = 1.0f / (TILE_COLUMNS * CLUSTER_COLUMNS);
        float2& of_row = moments[i / 2][i % 2];
        of_row.y = rsqrtf(fmaf(of_row.y, SHARE, with.epsilon));
        of_row.x *= -of_row.y;
    }
    const u32 slots = shared + SLOT_AREA + warp * SLOTS * PIECE_BYTES;
    const float* lane_gain = with.gain + column + lane_column();
    const float* lane_beta = with.beta + column + lane_column();
    store_pieces(sums, with.d, slots, rows, row, column, [&](float* four, int row_block, int matrix) {
        const float2 gain = load_pair(lane_gain, matrix);
        const float2 beta = load_pair(lane_beta, matrix);
        const float2 upper = moments[row_block][0], lower = moments[row_block][1];
        four[0] = fmaf(fmaf(four[0], upper.y, upper.x), gain.x, beta.x);
        four[1] = fmaf(fmaf(four[1], upper.y, upper.x), gain.y, beta.y);
        four[2] = fmaf(fmaf(four[2], lower.y, lower.x), gain.x, beta.x);
        four[3] = fmaf(fmaf(four[3], lower.y, lower.x), gain.y, beta.y);
    });
}
#else
__device__ __forceinline__ void finish(Accumulators& sums, const Operands& with, u32 shared,
                                       u32 warp, u32 row, u32 column, u32, u32&, const Schedule&) {
    const MatrixRows rows(shared, warp);
    const u32 slots = shared + SLOT_AREA + warp * SLOTS * PIECE_BYTES;
    const float* lane_bias = with.bias + column + lane_column();
    // The columns that have a bias, from this lane's first on.
    const int biased = with.bias ? (int)(with.columns - column - lane_column()) : 0;
    store_pieces(sums, with.d, slots, rows, row, column, [&](float* four, int, int matrix) {
        const float2 add = matrix * 8 < biased ? load_pair(lane_bias, matrix) : make_float2(0.0f, 0.0f);
        four[0] = activate<EPILOGUE>(four[0] + add.x);
        four[1] = activate<EPILOGUE>(four[1] + add.y);
        four[2] = activate<EPILOGUE>(four[2] + add.x);
        four[3] = activate<EPILOGUE>(four[3] + add.y);
    });
}
#endif

__device__ __forceinline__ void consume_tiles(const Operands& with, u32 shared, u32 k_blocks,
                                              const Schedule& schedule) {
    const u32 consumer = threadIdx.x / WARPGROUP - 1;
    const u32 warp = threadIdx.x / WARP - 4;
    const u32 first_row = PING_PONG ? 0 : consumer * GROUP_ROWS;
    Ring ring;
    u32 panel_phase = 1, turn = 0, parities = 0;
    for (u32 index = 0; index < schedule.count; ++index) {
        const Tile tile = schedule[index];
        if (RESIDENT && tile.new_panel) {
            panel_phase ^= 1;
            if (index > 0 && threadIdx.x % WARP == 0) {
                barrier_arrive(shared + PANEL_EMPTY);
            }
        }
        if (PING_PONG && index % CONSUMERS != consumer) {
            ring.skip(k_blocks);
            continue;
        }
        const u32 row = tile.row + first_row + warp % 4 * PIECE_ROWS;
#if NORM
        prefetch_residual(with.residual, shared, warp, row, tile.column);
#endif
        if (PING_PONG) {
            // The first warpgroup's first turn is free.
            barrier_wait(shared + TURN + 8 * consumer, (turn + consumer + 1) & 1);
        }
        // Not outside of the loop: the last tile's values would stay alive in registers.
        Accumulators sums;
        multiply(sums, shared, ring, k_blocks, first_row, panel_phase, schedule);
        finish(sums, with, shared, warp, row, tile.column, turn, parities, schedule);
        ++turn;
    }
    if (threadIdx.x % WARP == 0) {
        store_wait_read<0>();
    }
}

__device__ __forceinline__ void init_barriers(u32 shared) {
    constexpr int SHARING = CLUSTER_ROWS + CLUSTER_COLUMNS - 1;
    for (int i = 0; i < STAGES; ++i) {
        barrier_init(shared + FULL + 8 * i, 1);
        barrier_init(shared + EMPTY + 8 * i, WARPS_PER_STAGE * SHARING);
    }
    for (int i = 0; i < RESIDENT; ++i) {
        barrier_init(shared + PANEL_FULL + 8 * i, 1);
    }
    barrier_init(shared + PANEL_EMPTY, CONSUMER_WARPS);
    for (int i = 0; i < CONSUMERS; ++i) {
        barrier_init(shared + TURN + 8 * i, 4);
    }
    for (u32 barrier = RESIDUAL_FULL; barrier < EXCHANGE_FULL; barrier += 8) {
        barrier_init(shared + barrier, 1);
    }
    for (int i = 0; i < 2 * CONSUMERS; ++i) {
        barrier_init(shared + EXCHANGE_FULL + 8 * i, 1);
    }
    barrier_init_fence();
}

__device__ __forceinline__ void run(const Operands& with) {
    extern __shared__ u8 dynamic_shared[];
    const u32 shared = (shared_address(dynamic_shared) + SWIZZLE_ATOM - 1) & ~(SWIZZLE_ATOM - 1);
    const Schedule schedule(with.rows, with.columns);
    const u32 k_blocks = (with.inner + K_BLOCK - 1) / K_BLOCK;
    if (threadIdx.x == 0) {
        tensor_prefetch(with.a);
        tensor_prefetch(with.w);
        tensor_prefetch(with.d);
        init_barriers(shared);
    }
    __syncthreads();
    if (CLUSTER > 1) {
        cluster_sync();
    }
    if (threadIdx.x < WARPGROUP) {
        registers_shrink<40>();
        if (threadIdx.x == 0) {
            load_tiles(shared, with.a, with.w, schedule, k_blocks);
        }
        __syncwarp();
    } else {
        registers_grow<232>();
        consume_tiles(with, shared, k_blocks, schedule);
    }
    // A block's shared memory must outlive what the others send to it.
    if (CLUSTER > 1) {
        cluster_sync();
    }
}

#if CLUSTER_ROWS * CLUSTER_COLUMNS > 1
#define SHAPE __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(WARPGROUP * (1 + CONSUMERS), 1)
#else
#define SHAPE __launch_bounds__(WARPGROUP * (1 + CONSUMERS), 1)
#endif

#if NORM
extern "C" __global__ void SHAPE vecmill_gemm_norm_sm90(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap w,
    const __grid_constant__ TensorMap d, const __grid_constant__ TensorMap residual,
    const float* bias, const float* gain, const float* beta, float epsilon, u32 rows, u32 columns,
    u32 inner) {
    run({a, w, d, residual, bias, gain, beta, epsilon, rows, columns, inner});
}
#else
extern "C" __global__ void SHAPE vecmill_gemm_sm90(const __grid_constant__ TensorMap a,
                                                   const __grid_constant__ TensorMap w,
                                                   const __grid_constant__ TensorMap d,
                                                   const float* bias, u32 rows, u32 columns,
                                                   u32 inner) {
    run({a, w, d, d, bias, nullptr, nullptr, 0.0f, rows, columns, inner});
}
#endif
