// A transformer's whole feed-forward block on Hopper (sm_90a); after feed_forward_sm90_tiles.cuh.
//
//     Y = layer_norm(X + activation(X W1^T + b1) W2^T + b2) * gain + beta
//         X, Y [rows, HIDDEN], W1 [inner, HIDDEN], W2 [HIDDEN, inner]
//
//     vecmill_feed_forward_sm90(TensorMap x, TensorMap w1, TensorMap w2, TensorMap y,
//                               const float* b1, const float* b2, const float* gain,
//                               const float* beta, float epsilon, u32 rows, u32 inner,
//                               u32 backwards)
//
// `backwards`: the last rows first, as those which the kernel before wrote last are still in L2.
//
// One module is one configuration, by macros:
//     HIDDEN    256 or 384
//     EPILOGUE  GELU, ... of enum Activation
//
// Block: 256 threads. Grid: any, best one block per multiprocessor and none without rows. Dynamic
// shared memory: SHARED_BYTES. T is f16 or bf16. `rows` is any, `inner` a multiple of 64; Y may be
// X. Alignment: 16 bytes.
//
// Tensor maps: 2-D, {columns, rows}, swizzle 128 bytes, zero fill. Boxes, {columns, rows}:
//     x {64, 64}    w1 {64, 64}    w2 {64, 128}    y {64, 16}
//
// The choice: what is between the products never leaves the registers, where the first one's sums
// become the second one's operand. Two warpgroups have 64 rows each: X stays in shared memory, Y in
// registers, while all weights pass, 64 of `inner` at a time. The sums of Y begin with the
// residual, so that X's place is free for the next rows before Y is done. The warpgroups take turns
// in beginning the first product, which keeps one's activation beside the other's products. Their
// sums need all registers there are: no warp is left to load, and the second warpgroup, which is
// the last to read a stage of the ring, has it loaded again at once. How soon it comes back is what
// the products wait for.

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

// inner = X W1^T for a chunk of W1. The other group's turn comes as soon as this one's products are
// under way.
__device__ __forceinline__ void multiply_up(Inner& inner, Stream& weights, u32 x, u32 next_turn) {
    weights.each_part(0, [&](int part, u64 w1) {
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
    weights.give_back(PARTS - 1);
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
    weights.each_part(PARTS, [&](int part, u64 w2) {
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
    weights.give_back(CHUNK_PARTS - 1);
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
    Stream weights{with, shared, {}, 0, 0};
    if (leads && schedule.count > 0) {
        load_rows(with, shared, group, schedule[0] + group * GROUP_ROWS);
        if (group == GROUPS - 1) {
            weights.begin(schedule.count * with.chunks);
        }
    }
    __syncwarp();
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
            barrier_wait(shared + TURN + 8 * group, turn);
            turn ^= 1;
            Inner inner;  // the first product replaces it
            multiply_up(inner, weights, x, shared + TURN + 8 * (group ^ 1));
            if (last && !last_tile) {
                // All warps of the group have read X.
                warpgroup_sync(1 + group);
                if (leads) {
                    load_rows(with, shared, group, schedule[index + 1] + group * GROUP_ROWS);
                }
                __syncwarp();
            }
            Factors factors;
            convert(factors, inner, with.b1 + chunk * CHUNK);
            multiply_down(sums, factors, weights);
        }
        finish(sums, with, shared + SLOT_AREA + warp * SLOT_BYTES,
               schedule[index] + warp * WARP_ROWS);
    }
    if (threadIdx.x % WARP == 0) {
        store_wait_read<0>();
    }
}

// ---- The kernel ----

extern "C" __global__ void __launch_bounds__(BLOCK, 1) vecmill_feed_forward_sm90(
    const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w1,
    const __grid_constant__ TensorMap w2,
    const __grid_constant__ TensorMap y,
    const float* __restrict__ b1, const float* __restrict__ b2, const float* __restrict__ gain,
    const float* __restrict__ beta, float epsilon, u32 rows, u32 inner, u32 backwards) {
    extern __shared__ u8 dynamic_shared[];
    const u32 shared = (shared_address(dynamic_shared) + SWIZZLE_ATOM - 1) & ~(SWIZZLE_ATOM - 1);
    const Operands with{x, w1, w2, y, b1, b2, gain, beta, epsilon, rows, inner / CHUNK};
    if (threadIdx.x == 0) {
        tensor_prefetch(x);
        tensor_prefetch(w1);
        tensor_prefetch(w2);
        tensor_prefetch(y);
        init_barriers(shared);
    }
    __syncthreads();
    await_previous_kernel();
    compute_tiles(with, shared, Schedule(rows, backwards));
}
