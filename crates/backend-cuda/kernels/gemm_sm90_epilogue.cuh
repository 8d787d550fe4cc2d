// What happens to a tile after its products; follows gemm_sm90_tiles.cuh.
//
// - pieces: how a warp stages and stores its 16 rows of each row block, 64 columns at a time
// - moments of rows, and with DEFERRED what normalises rows that are read
// - without NORM `finish`, all of it, called by each warp

#if ROTATED
// Of each pair of a head: turns per position. By value.
struct Turns {
    float per_position[HEAD_PAIRS];
};
#else
struct Turns;
#endif

struct Operands {
    const TensorMap &a, &w, &d, &residual;
    const float *bias, *gain, *beta;
    float epsilon;
    u32 rows, columns, inner, backwards;
    // Of rows that are read unnormalised, and of those that are written so.
    const float2* moments;
    float2* output_moments;
    const float *residual_gain, *residual_beta;
    // With ROTATED.
    u32 turned;
    const u32* positions;
    const Turns* turns;
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

constexpr int PAIRS = STORED_COLUMNS / 16;

// Where this lane's row of 8x8 matrices begins in a warp's first slot, for each pair of matrices
// along columns: rows 0 to 15 of the first, then of the second; of e4m3, where its two columns of
// the first begin. Few addresses and constant offsets from them keep the epilogues within the
// registers.
//
// A swizzle of 128, 64 or 32 bytes exchanges 16 bytes of a row by the number of its 128 bytes.
struct MatrixRows {
    u32 at[PAIRS];

    __device__ static u32 swizzled(u32 chunk, u32 row) {
        constexpr u32 CHUNKS = PIECE_ROW_BYTES / 16, ROWS = SWIZZLE_ROW / PIECE_ROW_BYTES;
        return chunk ^ row / ROWS % CHUNKS;
    }

    __device__ MatrixRows(u32 shared, u32 warp) {
        const u32 lane = threadIdx.x % WARP;
#if FP8_OUTPUT
        const u32 row = lane / 4;
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            at[pair] = shared + SLOT_AREA + warp * SLOTS * PIECE_BYTES + row * PIECE_ROW_BYTES +
                       swizzled(pair, row) * 16 + lane % 4 * 2;
        }
#else
        const u32 row = lane % 16;
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            at[pair] = shared + SLOT_AREA + warp * SLOTS * PIECE_BYTES + row * PIECE_ROW_BYTES +
                       swizzled(2 * pair + lane / 16, row) * 16;
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

// Vectors of a tile, in shared memory: of its columns one after the other, then moments of its rows.
// They come by the copy engine: from global memory, where caches hold them badly, each warp would
// wait for them again and again between its stores.
struct Vectors {
    u32 lane_columns, rows;

    // Those of the tile `index` of this block, when they are there.
    __device__ Vectors(u32 shared, u32 index) {
        const u32 set = index % 2;
        barrier_wait(shared + VECTORS_FULL + 8 * set, index / 2 & 1);
        u32 at = shared + VECTOR_AREA + set * VECTOR_SET_BYTES;
        // So that nothing is loaded earlier.
        asm volatile("" : "+r"(at));
        // The columns of a quad are 8 * matrix + 2 * lane.
        lane_columns = at + threadIdx.x % 4 * 2 * sizeof(float);
        rows = at + VECTORS * VECTOR_BYTES;
    }

    // This lane's columns of the vector of that number.
    __device__ float2 operator()(int vector, int matrix) const {
        return load_shared_floats(lane_columns + vector * VECTOR_BYTES + matrix * 32);
    }

    // Of two vectors whose values alternate: those of both, column by column.
    __device__ void both(int matrix, float2& first, float2& second) const {
        const u32 at = lane_columns + threadIdx.x % 4 * 2 * sizeof(float) + matrix * 64;
        asm("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
            : "=f"(first.x), "=f"(second.x), "=f"(first.y), "=f"(second.y)
            : "r"(at));
    }

    __device__ void release(u32 shared, u32 index) const {
        __syncwarp();
        if (threadIdx.x % WARP == 0) {
            barrier_arrive(shared + VECTORS_EMPTY + 8 * (index % 2));
        }
    }
};

// Gates become what they let through of the ups beside them.
__device__ __forceinline__ void let_through(float* gate, const float* up) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        gate[i] = activate<EPILOGUE>(gate[i]) * up[i];
    }
}

#if ROTATED

// Where epilogues find them: their lanes read different ones at a time. A barrier must follow.
__device__ __forceinline__ void keep_turns(u32 shared, const Turns& turns) {
    if (threadIdx.x < HEAD_PAIRS) {
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared + TURNS + threadIdx.x * 4),
                     "f"(turns.per_position[threadIdx.x])
                     : "memory");
    }
}

// Cosine and sine of `position` times `turns`, of which whole ones are taken off: what remains is rounded
// once, to 2^-25, and its cosine and sine are within 2^-20.5, a thirtieth of f16's rounding.
__device__ __forceinline__ float2 cosine_and_sine(float position, float turns) {
    constexpr float ROUNDS = 12582912.0f;  // 1.5 * 2^23: sums with it are whole
    const float whole = fmaf(position, turns, ROUNDS) - ROUNDS;
    const float angle = 6.28318531f * fmaf(position, turns, -whole);
    float2 result;
    asm("cos.approx.ftz.f32 %0, %1;" : "=f"(result.x) : "f"(angle));
    asm("sin.approx.ftz.f32 %0, %1;" : "=f"(result.y) : "f"(angle));
    return result;
}

__device__ __forceinline__ void turn(float& x, float& y, float position, float turns) {
    const float2 by = cosine_and_sine(position, turns);
    const float turned = fmaf(x, by.x, -(y * by.y));
    y = fmaf(y, by.x, x * by.y);
    x = turned;
}

// The highest bit is a token's type.
constexpr u32 POSITION = 0x7fffffff;

// The positions of this lane's rows of each row block, of a warp whose first row is `row`.
struct Positions {
    float of[ROW_BLOCKS][2];

    __device__ Positions(const Operands& with, u32 row) {
        const u32 lane = threadIdx.x % WARP;
        const u32 first = with.positions[0] & POSITION;
#pragma unroll
        for (int row_block = 0; row_block < ROW_BLOCKS; ++row_block) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const u32 at = row + row_block * 64 + half * 8 + lane / 4;
                const u32 position = with.positions[min(at, with.rows - 1)] & POSITION;
                of[row_block][half] = (float)(position - first);
            }
        }
    }
};

// Turns a head: the four matrices of its first half with those of its second.
__device__ __forceinline__ void turn_head(Accumulators& values, const Piece& piece, u32 shared,
                                          const float (&positions)[2]) {
    const u32 at = shared + TURNS + threadIdx.x % 4 * 2 * sizeof(float);
#pragma unroll
    for (int i = 0; i < HEAD_PAIRS / 8; ++i) {
        const float2 turns = load_shared_floats(at + i * 32);
        float* x = quad(values, piece.row_block, piece.first_matrix + i);
        float* y = quad(values, piece.row_block, piece.first_matrix + i + HEAD_PAIRS / 8);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            turn(x[2 * half], y[2 * half], positions[half], turns.x);
            turn(x[2 * half + 1], y[2 * half + 1], positions[half], turns.y);
        }
    }
}

#endif

// Stores what `value(quad, row_block, matrix)` leaves in each quad, gated if that is so, or with ROTATED
// what `turn(piece)` then makes of a piece.
template <typename Value, typename Turn>
__device__ __forceinline__ void store_pieces(Accumulators& values, const TensorMap& d, u32 slots,
                                             const MatrixRows& rows, u32 row, u32 column,
                                             Value value, Turn turn) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int index = 0; index < PIECES; ++index) {
        const Piece piece = piece_at(index, row, column);
        const u32 slot = slots + index % SLOTS * PIECE_BYTES;
        if (lane == 0) {
            store_wait_read<SLOTS - 1>();
        }
        __syncwarp();
        const auto value_of = [&](int matrix) {
            value(quad(values, piece.row_block, matrix), piece.row_block, matrix);
        };
#if ROTATED
#pragma unroll
        for (int i = 0; i < PIECE_COLUMNS / 8; ++i) {
            value_of(piece.first_matrix + i);
        }
        turn(piece);
#endif
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            constexpr int EACH = GATED ? 2 : 1;
            const int matrix = piece.first_matrix + 2 * EACH * pair;
#pragma unroll
            for (int i = 0; i < (ROTATED ? 0 : 2 * EACH); ++i) {
                value_of(matrix + i);
            }
            float* first = quad(values, piece.row_block, matrix);
            float* second = quad(values, piece.row_block, matrix + EACH);
#if GATED
            let_through(first, quad(values, piece.row_block, matrix + 1));
            let_through(second, quad(values, piece.row_block, matrix + 3));
#endif
            store_quads(rows.at[pair] + index % SLOTS * PIECE_BYTES, first, second);
        }
        fence_async_shared();
        __syncwarp();
        if (lane == 0) {
            tensor_store(d, GATED ? piece.column / 2 : piece.column, piece.row, slot);
            store_commit();
        }
    }
}

// What normalises a row, but for gain and bias, value * y + x, from its mean and its variance.
__device__ __forceinline__ float2 scale_of(float mean, float variance, float epsilon) {
    const float scale = rsqrtf(variance + epsilon);
    return make_float2(-mean * scale, scale);
}

#if DEFERRED

// Those of this lane's rows of a row block, which begins at the tile's row `row`; `columns` are those
// of whole rows.
__device__ __forceinline__ void load_scales(const Vectors& vectors, u32 row, u32 columns,
                                            float epsilon, float2 (&scales)[2]) {
    const u32 lane = threadIdx.x % WARP;
    const float share = 1.0f / (float)columns;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const u32 of_row = row + lane / 4 + half * 8;
        const u32 part = of_row * ROW_PARTS + lane % ROW_PARTS;
        const float2 sums = sum_lanes(load_shared_floats(vectors.rows + part * sizeof(float2)));
        scales[half] = scale_of(sums.x * share, variance_of(sums, share), epsilon);
    }
}

#endif

#if !NORM

// `first_row` is this warp's first within the tile.
__device__ __forceinline__ void finish(Accumulators& sums, const Operands& with, u32 shared,
                                       const Vectors& vectors, u32 warp, u32 first_row, u32 row,
                                       u32 column, u32, u32&, const Schedule&) {
    const MatrixRows rows(shared, warp);
    const u32 slots = shared + SLOT_AREA + warp * SLOTS * PIECE_BYTES;
#if DEFERRED
    float2 scales[ROW_BLOCKS][2];
#pragma unroll
    for (int row_block = 0; row_block < ROW_BLOCKS; ++row_block) {
        load_scales(vectors, first_row + row_block * 64, with.inner, with.epsilon,
                    scales[row_block]);
    }
#endif
    const auto scale_add_and_activate = [&](float* four, int row_block, int matrix) {
#if DEFERRED
        float2 mean, add;  // what the mean is multiplied by, and what is added
        vectors.both(matrix, mean, add);
        const float2 upper = scales[row_block][0], lower = scales[row_block][1];
        four[0] = fmaf(four[0], upper.y, fmaf(upper.x, mean.x, add.x));
        four[1] = fmaf(four[1], upper.y, fmaf(upper.x, mean.y, add.y));
        four[2] = fmaf(four[2], lower.y, fmaf(lower.x, mean.x, add.x));
        four[3] = fmaf(four[3], lower.y, fmaf(lower.x, mean.y, add.y));
#elif FP8
        float2 scale, add;
        vectors.both(matrix, scale, add);
        four[0] = fmaf(four[0], scale.x, add.x);
        four[1] = fmaf(four[1], scale.y, add.y);
        four[2] = fmaf(four[2], scale.x, add.x);
        four[3] = fmaf(four[3], scale.y, add.y);
#else
        const float2 add = vectors(0, matrix);
        four[0] += add.x;
        four[1] += add.y;
        four[2] += add.x;
        four[3] += add.y;
#endif
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            four[i] = GATED ? four[i] : activate<EPILOGUE>(four[i]);
        }
    };
#if ROTATED
    const Positions positions(with, row);
#endif
    const auto turn = [&](const Piece& piece) {
#if ROTATED
        if (piece.column < with.turned) {
            turn_head(sums, piece, shared, positions.of[piece.row_block]);
        }
#endif
    };
    store_pieces(sums, with.d, slots, rows, row, column, scale_add_and_activate, turn);
}

#endif
