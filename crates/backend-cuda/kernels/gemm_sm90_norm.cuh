// Residual and layer normalisation behind a product; follows gemm_sm90_epilogue.cuh.
//
// - the residual: loaded by the warp that adds it, into the slots that its pieces are stored from
// - WHOLE_ROWS: normalised rows, by exchanging moments in the cluster
// - DEFER: sums, of which whoever reads them normalises as they are read
// - `finish`, all of it, called by each warp

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

// Adds a value to a sum of such, and its square to a sum of those.
__device__ __forceinline__ void add_moments(float2& sums, float value) {
    sums.x += value;
    sums.y = fmaf(value, value, sums.y);
    // Here, not after all pieces, which would keep all values in registers.
    asm volatile("" : "+f"(sums.x), "+f"(sums.y));
}

// Waits for a piece's residual; `parities` has one bit per slot.
__device__ __forceinline__ void await_residual(u32 shared, u32 warp, int index, u32& parities) {
    const u32 place = warp * SLOTS + index % SLOTS;
    barrier_wait(shared + RESIDUAL_FULL + 8 * place, parities >> index % SLOTS & 1);
    parities ^= 1u << index % SLOTS;
}

#endif

#if NORM == 1

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

// Adds bias and residual to all values, and sums of this lane's part of each row the distances from
// its first value: one pass, without the cancellation of plain squares.
__device__ __forceinline__ void add_residual(Accumulators& values, const TensorMap& residual,
                                             const Vectors& vectors, u32 shared, u32 warp,
                                             const MatrixRows& rows, u32 row, u32 column,
                                             u32& parities, float2 (&row_sums)[ROW_BLOCKS][2]) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int index = 0; index < PIECES; ++index) {
        const Piece piece = piece_at(index, row, column);
        await_residual(shared, warp, index, parities);
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            u32 matrices[4];
            load_matrices(rows.at[pair] + index % SLOTS * PIECE_BYTES, matrices);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int matrix = piece.first_matrix + 2 * pair + half;
                float* four = quad(values, piece.row_block, matrix);
                const float2 add = vectors(0, matrix);
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
                    add_moments(row_sums[piece.row_block][i / 2], four[i] - pivots[i / 2 * 2]);
                }
            }
        }
        __syncwarp();
        if (lane == 0 && index + SLOTS < PIECES) {
            load_residual(residual, shared, warp, index + SLOTS, row, column);
        }
    }
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
                                       const Vectors& vectors, u32 warp, u32, u32 row, u32 column,
                                       u32 turn, u32& parities, const Schedule& schedule) {
    const MatrixRows rows(shared, warp);
    float2 moments[ROW_BLOCKS][2] = {};
    add_residual(sums, with.residual, vectors, shared, warp, rows, row, column, parities, moments);
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
        of_row = scale_of(of_row.x, of_row.y * SHARE, with.epsilon);
    }
    const u32 slots = shared + SLOT_AREA + warp * SLOTS * PIECE_BYTES;
    const auto normalise = [&](float* four, int row_block, int matrix) {
        const float2 gain = vectors(1, matrix);
        const float2 beta = vectors(2, matrix);
        const float2 upper = moments[row_block][0], lower = moments[row_block][1];
        four[0] = fmaf(fmaf(four[0], upper.y, upper.x), gain.x, beta.x);
        four[1] = fmaf(fmaf(four[1], upper.y, upper.x), gain.y, beta.y);
        four[2] = fmaf(fmaf(four[2], lower.y, lower.x), gain.x, beta.x);
        four[3] = fmaf(fmaf(four[3], lower.y, lower.x), gain.y, beta.y);
    };
    store_pieces(sums, with.d, slots, rows, row, column, normalise, [](const Piece&) {});
}

#elif NORM == 2

// Stores a piece, and loads the residual of another into the slot of the piece before, which has
// been read by then.
__device__ __forceinline__ void store_and_load(const Operands& with, u32 shared, u32 warp,
                                               int index, u32 row, u32 column) {
    const Piece piece = piece_at(index, row, column);
    const u32 slot = shared + SLOT_AREA + (warp * SLOTS + index % SLOTS) * PIECE_BYTES;
    fence_async_shared();
    __syncwarp();
    if (threadIdx.x % WARP == 0) {
        tensor_store(with.d, piece.column, piece.row, slot);
        store_commit();
        const int next = index - 1 + SLOTS;
        if (index > 0 && next < PIECES) {
            store_wait_read<1>();
            load_residual(with.residual, shared, warp, next, row, column);
        }
    }
    __syncwarp();
}

// Adds bias and residual to a quad's values: `residual` has the pairs of both rows and `scales`, with
// DEFERRED, what normalises them.
__device__ __forceinline__ void add_residual(float* four, const Vectors& vectors, int matrix,
                                             const u32* residual, const float2* scales) {
    const float2 bias = vectors(0, matrix);
#if DEFERRED
    const float2 gain = vectors(2, matrix), beta = vectors(3, matrix);
    const float2 add = make_float2(bias.x + beta.x, bias.y + beta.y);
#endif
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float low, high;
        unpack2(residual[half], low, high);
#if DEFERRED
        four[2 * half] += fmaf(low, scales[half].y, fmaf(scales[half].x, gain.x, add.x));
        four[2 * half + 1] += fmaf(high, scales[half].y, fmaf(scales[half].x, gain.y, add.y));
#else
        four[2 * half] += bias.x + low;
        four[2 * half + 1] += bias.y + high;
#endif
    }
}

// Stores sums times gain, piece by piece over their residuals, and moments of the sums themselves.
__device__ __forceinline__ void finish(Accumulators& sums, const Operands& with, u32 shared,
                                       const Vectors& vectors, u32 warp, u32 first_row, u32 row,
                                       u32 column, u32, u32& parities, const Schedule&) {
    const u32 lane = threadIdx.x % WARP;
    const MatrixRows rows(shared, warp);
#pragma unroll
    for (int row_block = 0; row_block < ROW_BLOCKS; ++row_block) {
        float2 scales[2], moments[2] = {};
#if DEFERRED
        load_scales(vectors, first_row + row_block * 64, with.columns, with.epsilon, scales);
#endif
#pragma unroll
        for (int along = 0; along < PIECES_PER_ROW; ++along) {
            const int index = row_block * PIECES_PER_ROW + along;
            const u32 slot = index % SLOTS * PIECE_BYTES;
            await_residual(shared, warp, index, parities);
#pragma unroll
            for (int pair = 0; pair < PAIRS; ++pair) {
                u32 residual[4];
                load_matrices(rows.at[pair] + slot, residual);
                // All lanes have theirs before any is overwritten.
                __syncwarp();
                const int matrix = along * (PIECE_COLUMNS / 8) + 2 * pair;
                float* two[2] = {quad(sums, row_block, matrix), quad(sums, row_block, matrix + 1)};
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float* four = two[i];
                    add_residual(four, vectors, matrix + i, residual + 2 * i, scales);
                    const float2 gain = vectors(1, matrix + i);
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        add_moments(moments[j / 2], four[j]);
                        four[j] *= j % 2 == 0 ? gain.x : gain.y;
                    }
                }
                store_quads(rows.at[pair] + slot, two[0], two[1]);
            }
            store_and_load(with, shared, warp, index, row, column);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const u32 of_row = row + row_block * 64 + lane / 4 + half * 8;
            const float2 of_part = sum_lanes(moments[half]);
            if (lane % 4 == 0 && of_row < with.rows) {
                with.output_moments[of_row * ROW_PARTS + column / TILE_COLUMNS] = of_part;
            }
        }
    }
}

#endif
