// What happens to a tile after its products; follows gemm_sm90_tiles.cuh.
//
// - pieces: how a warp stages and stores its 16 rows of each row block, 64 columns at a time
// - with NORM: residual, moments of rows, their exchange in the cluster
// - `finish`, all of it, called by each warp

struct Operands {
    const TensorMap &a, &w, &d, &residual;
    const float *bias, *gain, *beta;
    float epsilon;
    u32 rows, columns, inner, backwards;
};

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
// along columns: rows 0 to 15 of the first, then of the second; of e4m3, where its two columns of
// the first begin. Few addresses and constant offsets from them keep the epilogues within the
// registers.
struct MatrixRows {
    u32 at[PAIRS];

    __device__ MatrixRows(u32 shared, u32 warp) {
        const u32 lane = threadIdx.x % WARP;
#if FP8_OUTPUT
        const u32 row = lane / 4;
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            const u32 chunk = pair ^ row / 2 % 4;
            at[pair] = shared + SLOT_AREA + warp * SLOTS * PIECE_BYTES + row * PIECE_ROW_BYTES +
                       chunk * 16 + lane % 4 * 2;
        }
#else
        const u32 row = lane % 16;
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            const u32 chunk = (2 * pair + lane / 16) ^ row % 8;
            at[pair] = shared + SLOT_AREA + warp * SLOTS * PIECE_BYTES + row * SWIZZLE_ROW +
                       chunk * 16;
        }
#endif
    }
};

// Puts two quads beside each other into shared memory; `row` is one of MatrixRows.
__device__ __forceinline__ void store_quads(u32 row, const float* first, const float* second) {
#if FP8_OUTPUT
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const u32 to = row + half * 8 * PIECE_ROW_BYTES;
        store_shared(to, pack2_e4m3(first[2 * half], first[2 * half + 1]));
        store_shared(to + 8, pack2_e4m3(second[2 * half], second[2 * half + 1]));
    }
#else
    const u32 matrices[4] = {pack2(first[0], first[1]), pack2(first[2], first[3]),
                             pack2(second[0], second[1]), pack2(second[2], second[3])};
    store_matrices(row, matrices);
#endif
}

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
            const int matrix = piece.first_matrix + 2 * pair;
            float* first = quad(values, piece.row_block, matrix);
            float* second = quad(values, piece.row_block, matrix + 1);
            value(first, piece.row_block, matrix);
            value(second, piece.row_block, matrix + 1);
            store_quads(rows.at[pair] + index % SLOTS * PIECE_BYTES, first, second);
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
                    // Here, not after all pieces, which would keep all distances in registers.
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
    const u32 from =
        shared + EXCHANGE_AREA + set * EXCHANGE_BYTES + first_row * CLUSTER_COLUMNS * 8;
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

__device__ __forceinline__ void finish(Accumulators& sums, const Operands& with, u32 shared,
                                       u32 warp, u32 row, u32 column, u32 turn, u32& parities,
                                       const Schedule& schedule) {
    const MatrixRows rows(shared, warp);
    float2 moments[ROW_BLOCKS][2] = {};
    add_residual(sums, with.residual, with.bias, shared, warp, rows, row, column, parities,
                 moments);
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
    const auto normalise = [&](float* four, int row_block, int matrix) {
        const float2 gain = load_pair(lane_gain, matrix);
        const float2 beta = load_pair(lane_beta, matrix);
        const float2 upper = moments[row_block][0], lower = moments[row_block][1];
        four[0] = fmaf(fmaf(four[0], upper.y, upper.x), gain.x, beta.x);
        four[1] = fmaf(fmaf(four[1], upper.y, upper.x), gain.y, beta.y);
        four[2] = fmaf(fmaf(four[2], lower.y, lower.x), gain.x, beta.x);
        four[3] = fmaf(fmaf(four[3], lower.y, lower.x), gain.y, beta.y);
    };
    store_pieces(sums, with.d, slots, rows, row, column, normalise);
}

#else

__device__ __forceinline__ void finish(Accumulators& sums, const Operands& with, u32 shared,
                                       u32 warp, u32 row, u32 column, u32, u32&, const Schedule&) {
    const MatrixRows rows(shared, warp);
    const u32 slots = shared + SLOT_AREA + warp * SLOTS * PIECE_BYTES;
    constexpr int PER_COLUMN = FP8 ? 2 : 1;
    const float* lane_bias = with.bias + PER_COLUMN * (column + lane_column());
    // The columns that have a bias, from this lane's first on.
    const int biased = with.bias ? (int)(with.columns - column - lane_column()) : 0;
    const auto scale_add_and_activate = [&](float* four, int, int matrix) {
        float2 scale = make_float2(1.0f, 1.0f), add = make_float2(0.0f, 0.0f);
        if (matrix * 8 < biased) {
#if FP8
            const float4 both = *reinterpret_cast<const float4*>(lane_bias + matrix * 16);
            scale = make_float2(both.x, both.z);
            add = make_float2(both.y, both.w);
#else
            add = load_pair(lane_bias, matrix);
#endif
        }
        four[0] = activate<EPILOGUE>(fmaf(four[0], scale.x, add.x));
        four[1] = activate<EPILOGUE>(fmaf(four[1], scale.y, add.y));
        four[2] = activate<EPILOGUE>(fmaf(four[2], scale.x, add.x));
        four[3] = activate<EPILOGUE>(fmaf(four[3], scale.y, add.y));
    };
    store_pieces(sums, with.d, slots, rows, row, column, scale_add_and_activate);
}

#endif
