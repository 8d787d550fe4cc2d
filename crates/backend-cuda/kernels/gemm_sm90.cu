// Linear layers on Hopper (sm_90a), fused with what follows them; after prelude.cuh, moments.cuh,
// hopper.cuh, gemm_sm90_tiles.cuh, gemm_sm90_epilogue.cuh and gemm_sm90_norm.cuh.
//
//     D[rows, columns] = activation(A[rows, inner] * W[columns, inner]^T + bias), or with GATED 1:
//     D[rows, columns / 2] = activation(gate) * up, where A * W^T + bias has 8 gates and the 8 ups that
//         belong to them by turns, or with NORM 1:
//     D = layer_norm(A * W^T + bias + residual) * gain + beta      over whole rows, or with NORM 2:
//     D = (A * W^T + bias + residual) * gain, and moments of the sums
//
//     vecmill_gemm_sm90      (TensorMap a, TensorMap w, TensorMap d, const float* bias,
//                             u32 rows, u32 columns, u32 inner, u32 backwards,
//                             const float2* moments, float epsilon)
//                             with ROTATED 1 then: u32 turned, const u32* positions, Turns turns)
//     vecmill_gemm_norm_sm90 (TensorMap a, TensorMap w, TensorMap d, TensorMap residual,
//                             const float* bias, const float* gain, const float* beta,
//                             float epsilon, u32 rows, u32 columns, u32 inner, u32 backwards)
//     vecmill_gemm_defer_sm90(TensorMap a, TensorMap w, TensorMap d, TensorMap residual,
//                             const float* bias, const float* gain, float2* output_moments,
//                             const float2* moments, const float* residual_gain,
//                             const float* residual_beta, float epsilon,
//                             u32 rows, u32 columns, u32 inner, u32 backwards)
//
// **A deferred normalisation** (as in FlashNorm, arXiv:2407.09577, here of layer norms): rows are
// kept as u = gain * s, where s is the sum, with the moments of s; norm(s) = scale * (u - mean * gain)
// + beta, where scale is the inverse of the deviation. With DEFERRED 1 what is read, A or with NORM 2
// the residual, are such rows. Then
//     norm(s) * W^T + bias = scale * (u * W^T) - scale * mean * (W * gain) + (W * beta + bias),
// so W stays as it is, and `bias` has for each column W * gain and W * beta + bias.
// Moments: of each row 4 equal parts of its columns, for each the sum of s and the sum of its squares.
//
// `backwards`: the last rows first, as those which the kernel before wrote last are still in L2.
//
// One module is one configuration, by macros:
//     ROW_BLOCKS       1 or 2 times 64 rows per warpgroup
//     TILE_COLUMNS     64, 128, 192, 256 or 384; ROW_BLOCKS * TILE_COLUMNS at most 384
//     PING_PONG        1: the two warpgroups take turns, a tile each; 0: they share each tile
//     STAGES           depth of the ring of operand blocks, 128 bytes of K each
//     SLOTS            buffers per warp for 16 rows of 64 columns of the output; divides
//                      ROW_BLOCKS * TILE_COLUMNS / 64
//     CLUSTER_ROWS     blocks that share W, neighbours along rows
//     CLUSTER_COLUMNS  blocks that share A, neighbours along columns
//     RESIDENT         0, or at least the number of blocks of K: W's block stays in shared memory while the rows
//                      pass; needs CLUSTER_ROWS 1
//     EPILOGUE         IDENTITY, GELU, ... of enum Activation
//     GATED            1: neighbouring tiles of 8 columns become one; a thread has both, at the same place
//     ROTATED          1: of the first `turned` columns each 64 are a head that is turned by its row's position,
//                      as in rotate.cu; positions count from that of the first row. For 16-bit outputs
//     NORM             1: the second kernel; columns == TILE_COLUMNS * CLUSTER_COLUMNS
//                      2: the third; columns == TILE_COLUMNS * 4, SLOTS above 1
//     DEFERRED         1: input or residual are unnormalised, see above; not with NORM 1
//     FP8              1: A and W are e4m3. `bias` has two values for each column: what the product
//                      is multiplied by, and the bias
//     FP8_OUTPUT       1: D is e4m3, values times E4M3_SCALE
//
// Block: 384 threads. Grid: a multiple of the cluster size, at most what is resident at once.
// Dynamic shared memory: SHARED_BYTES of gemm_sm90_tiles.cuh. T is f16 or bf16. Rows of all
// matrices are multiples of 16 bytes, `rows` is any. Alignment: 16 bytes.
//
// Tensor maps: 2-D, {columns, rows}, swizzle 128 bytes, zero fill. Boxes, {columns, rows}:
//     a             {128 bytes, TILE_ROWS / CLUSTER_COLUMNS}
//     w             {128 bytes, TILE_COLUMNS / CLUSTER_ROWS}, half of it if that exceeds 256
//     d, residual   {64, 16}, {32, 16} with GATED 1; the swizzle is as many bytes as the box is wide
//
// Tensor cores add e4m3 products with some 14 bits, here over all of K: an error of up to 2^-13 of
// the partial sums with every 32 terms, where rounding the operands costs up to 2^-4 of each term.
//
// The choice: one thread loads, two warpgroups multiply. In ping-pong a tile's epilogue hides
// behind the other warpgroup's tile; the ring hands blocks over in the order of tiles, and a turn
// barrier keeps a warpgroup from waiting for a phase that isn't the ring's next. Each warp converts
// and stores its own 16 rows, 64 columns at a time, so that the epilogue has no block-wide barrier.

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

// What the epilogue reads for the tile's columns and rows. Behind the tensor's end it is not there,
// and what comes of it is not stored.
__device__ __forceinline__ void load_vectors(const Operands& with, u32 shared, const Tile& tile,
                                             u32 index) {
    constexpr u32 ALTERNATING = !NORM && VECTORS == 2 ? 2 : 1;  // vectors in one
    const u32 set = index % 2, full = shared + VECTORS_FULL + 8 * set;
    const u32 to = shared + VECTOR_AREA + set * VECTOR_SET_BYTES;
    const u32 columns = min(with.columns - min(tile.column, with.columns), (u32)TILE_COLUMNS);
    const u32 rows = min(with.rows - min(tile.row, with.rows), (u32)TILE_ROWS);
    const u32 bytes = columns * sizeof(float) * ALTERNATING;
    barrier_wait(shared + VECTORS_EMPTY + 8 * set, (index / 2 & 1) ^ 1);
    barrier_arrive_expect(full, VECTORS / ALTERNATING * bytes + rows * ROW_BYTES);
    const float* vectors[4] = {with.bias, with.gain, NORM == DEFER ? with.residual_gain : with.beta,
                               with.residual_beta};
    if (columns > 0) {
#pragma unroll
        for (int i = 0; i < VECTORS / ALTERNATING; ++i) {
            bulk_load(to + i * VECTOR_BYTES, vectors[i] + tile.column * ALTERNATING, bytes, full);
        }
    }
    if (DEFERRED && rows > 0) {
        const float2* moments = with.moments + tile.row * ROW_PARTS;
        bulk_load(to + VECTORS * VECTOR_BYTES, moments, rows * ROW_BYTES, full);
    }
}

__device__ __forceinline__ void load_tiles(const Operands& with, u32 shared,
                                           const Schedule& schedule, u32 k_blocks) {
    const TensorMap &a = with.a, &w = with.w;
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
        // Now, not first: by then the warpgroup that computes the tile has mostly done with the set.
        load_vectors(with, shared, tile, index);
    }
}

// ---- The multiplying warpgroups ----

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
        const u64 w =
            matrix_descriptor(RESIDENT ? shared + PANEL + block * W_BYTES : stage + A_BYTES);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < K_STEPS; ++k) {
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

// ---- The kernel ----

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
        Accumulators sums;  // the first product replaces them
        multiply(sums, shared, ring, k_blocks, first_row, panel_phase, schedule);
        const Vectors vectors(shared, index);
        finish(sums, with, shared, vectors, warp, first_row + warp % 4 * PIECE_ROWS, row,
               tile.column, turn, parities, schedule);
        vectors.release(shared, index);
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
    for (int i = 0; i < 2; ++i) {
        barrier_init(shared + VECTORS_FULL + 8 * i, 1);
        barrier_init(shared + VECTORS_EMPTY + 8 * i, WARPS_PER_STAGE);
    }
    barrier_init_fence();
}

__device__ __forceinline__ void run(const Operands& with) {
    extern __shared__ u8 dynamic_shared[];
    const u32 shared = (shared_address(dynamic_shared) + SWIZZLE_ATOM - 1) & ~(SWIZZLE_ATOM - 1);
    const Schedule schedule(with.rows, with.columns, with.backwards);
    const u32 k_blocks = (with.inner + K_BLOCK - 1) / K_BLOCK;
    if (threadIdx.x == 0) {
        tensor_prefetch(with.a);
        tensor_prefetch(with.w);
        tensor_prefetch(with.d);
        tensor_prefetch(with.residual);
        init_barriers(shared);
    }
#if ROTATED
    keep_turns(shared, *with.turns);
#endif
    __syncthreads();
    if (CLUSTER > 1) {
        cluster_sync();
    }
    await_previous_kernel();
    if (threadIdx.x < WARPGROUP) {
        registers_shrink<40>();
        if (threadIdx.x == 0) {
            load_tiles(with, shared, schedule, k_blocks);
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

#if NORM == 1
extern "C" __global__ void SHAPE vecmill_gemm_norm_sm90(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap w,
    const __grid_constant__ TensorMap d, const __grid_constant__ TensorMap residual,
    const float* bias, const float* gain, const float* beta, float epsilon, u32 rows, u32 columns,
    u32 inner, u32 backwards) {
    run({a, w, d, residual, bias, gain, beta, epsilon, rows, columns, inner, backwards});
}
#elif NORM == 2
extern "C" __global__ void SHAPE vecmill_gemm_defer_sm90(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap w,
    const __grid_constant__ TensorMap d, const __grid_constant__ TensorMap residual,
    const float* bias, const float* gain, float2* output_moments, const float2* moments,
    const float* residual_gain, const float* residual_beta, float epsilon, u32 rows, u32 columns,
    u32 inner, u32 backwards) {
    run({a, w, d, residual, bias, gain, nullptr, epsilon, rows, columns, inner, backwards, moments,
         output_moments, residual_gain, residual_beta});
}
#elif ROTATED
extern "C" __global__ void SHAPE vecmill_gemm_sm90(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap w,
    const __grid_constant__ TensorMap d, const float* bias, u32 rows, u32 columns, u32 inner,
    u32 backwards, const float2* moments, float epsilon, u32 turned, const u32* positions,
    const __grid_constant__ Turns turns) {
    run({a, w, d, d, bias, nullptr, nullptr, epsilon, rows, columns, inner, backwards, moments,
         nullptr, nullptr, nullptr, turned, positions, &turns});
}
#else
extern "C" __global__ void SHAPE vecmill_gemm_sm90(const __grid_constant__ TensorMap a,
                                                   const __grid_constant__ TensorMap w,
                                                   const __grid_constant__ TensorMap d,
                                                   const float* bias, u32 rows, u32 columns,
                                                   u32 inner, u32 backwards,
                                                   const float2* moments, float epsilon) {
    run({a, w, d, d, bias, nullptr, nullptr, epsilon, rows, columns, inner, backwards, moments});
}
#endif
