// Self-attention within packed sequences on Hopper (sm_90a):
// output = softmax(Q K^T / sqrt(HEAD_SIZE)) V for every sequence and head.
//
//     vecmill_attention_sm90(TensorMap qkv, const u32* starts, Output* output,
//                            u32 sequences, u32 heads, u32 rows, u32 slots, u32 slots_each,
//                            u32 backwards, Window window)
//         qkv `[tokens, 3 * hidden]`, output `[tokens, hidden]`, hidden = heads * HEAD_SIZE
//
// Text before this file: prelude.cuh, mma.cuh, hopper.cuh, sequences.cuh, softmax.cuh.
// Macros: -DHEAD_SIZE=<32 or 64>; -DT_F16 or -DT_BF16; -DWINDOWED=1 where the window is not the whole
//     sequence: tiles outside a job's are not loaded, those outside a warpgroup's not multiplied.
// rows: 64, 128 or 256, queries of a job; results don't depend on it. Many read keys and values
//     from L2 less often, few make more jobs.
// slots, slots_each: as attention.cu has them for blocks of so many rows.
// backwards: the last jobs first, as those rows that the kernel before wrote last are still in L2.
// Grid: at most heads * slots blocks, and at most what is resident at once, one per multiprocessor.
// Block: 640 threads. Dynamic shared memory: SHARED_BYTES.
// Tensor map: 2-D of T, {3 * hidden, tokens}, box {HEAD_SIZE, 64}, swizzle of 2 * HEAD_SIZE bytes,
//     zero fill.
// Alignment: 16 bytes. Sequences may be empty; heads >= 1; 3 * hidden * longest < 2^32.
//
// The choice: one warp loads tiles of 64 rows into two rings, far ahead and across jobs, so that
// memory is never idle; four warpgroups take the query tiles in turns, so that one's products hide
// another's exponentials. All of them pass every stage, also those they have no use for: that keeps
// one order for all. Weights are operands in registers, as they come out of softmax.
// A row's bits depend on its sequence alone: key tiles begin at the sequence's start.

constexpr int TILE = 64;
constexpr u32 GROUPS = 4;
constexpr int CONSUMERS = GROUPS * WARPGROUP;
constexpr int BLOCK = CONSUMERS + WARPGROUP;

constexpr u32 ROW_BYTES = HEAD_SIZE * sizeof(T);
constexpr u32 TILE_BYTES = TILE * ROW_BYTES;
constexpr u32 QUERY_STAGES = 64 * 1024 / TILE_BYTES;
constexpr u32 KEY_STAGES = 128 * 1024 / TILE_BYTES;

static_assert(HEAD_SIZE == 32 || HEAD_SIZE == 64, "a row is what a swizzle spans");

// Query rows of one head of one sequence; no keys: there are no more jobs. `keys` are the sequence's.
struct alignas(16) Job {
    u32 begin;
    u32 keys;
    u32 first;
    u32 head;
};

// Shared memory, from an address divisible by 1024.
constexpr u32 KEY_TILES_AT = QUERY_STAGES * TILE_BYTES;
constexpr u32 QUERY_BARRIERS = KEY_TILES_AT + KEY_STAGES * TILE_BYTES;
constexpr u32 KEY_BARRIERS = QUERY_BARRIERS + 16 * QUERY_STAGES;
// One beside each stage of queries; a job's is beside its first.
constexpr u32 JOBS = KEY_BARRIERS + 16 * KEY_STAGES;
// The rest is for aligning the start.
constexpr u32 SHARED_BYTES = JOBS + sizeof(Job) * QUERY_STAGES + SWIZZLE_ATOM;

static_assert(SHARED_BYTES <= 227 * 1024, "too much shared memory");

// A ring of tiles in shared memory and a role's place in it.
template <u32 COUNT>
struct Tiles {
    u32 first, barriers;
    RingOf<COUNT> at = {};

    __device__ __forceinline__ u32 tile() const { return first + at.stage * TILE_BYTES; }
    __device__ __forceinline__ u32 full() const { return barriers + 8 * at.stage; }
    __device__ __forceinline__ u32 empty() const { return full() + 8 * COUNT; }

    // For one warp.
    __device__ __forceinline__ void init_barriers() const {
        static_assert(COUNT <= WARP, "each lane has a stage");
        if (threadIdx.x < COUNT) {
            barrier_init(barriers + 8 * threadIdx.x, 1);
            barrier_init(barriers + 8 * (COUNT + threadIdx.x), CONSUMERS / WARP);
        }
    }

    // ---- The loading thread's ----

    __device__ __forceinline__ void await_empty() const { barrier_wait(empty(), at.phase ^ 1); }

    __device__ __forceinline__ void load(const TensorMap& qkv, u32 column, u32 row) {
        await_empty();
        barrier_arrive_expect(full(), TILE_BYTES);
        tensor_load(tile(), qkv, column, row, full());
        at.advance();
    }

    // ---- The computing warps' ----

    __device__ __forceinline__ void await() const { barrier_wait(full(), at.phase); }

    // The barrier by which to release this stage.
    __device__ __forceinline__ u32 advance() {
        const u32 barrier = empty();
        at.advance();
        return barrier;
    }

    __device__ __forceinline__ void pass(u32 stages);
};

// This warp has no more use for the stage.
__device__ __forceinline__ void release(u32 barrier) {
    if (threadIdx.x % WARP == 0) {
        barrier_arrive(barrier);
    }
}

template <u32 COUNT>
__device__ __forceinline__ void Tiles<COUNT>::pass(u32 stages) {
    for (u32 i = 0; i < stages; ++i) {
        await();
        release(advance());
    }
}

// What each role has of its own.
struct Role {
    Tiles<QUERY_STAGES> queries;
    Tiles<KEY_STAGES> keys;
    u32 jobs;

    __device__ __forceinline__ explicit Role(u32 shared)
        : queries{shared, shared + QUERY_BARRIERS},
          keys{shared + KEY_TILES_AT, shared + KEY_BARRIERS},
          jobs(shared + JOBS) {}

    __device__ __forceinline__ Job& job() const {
        return static_cast<Job*>(__cvta_shared_to_generic(jobs))[queries.at.stage];
    }
};

__device__ __forceinline__ u32 tiles_of(u32 rows) { return (rows + TILE - 1) / TILE; }

// `rows` are a whole job's.
__device__ __forceinline__ u32 query_tiles(const Job& job, u32 rows) {
    return tiles_of(min(rows, job.keys - job.first));
}

// ---- The loading warp ----

// Query tiles, then by turns tiles of keys and of values.
__device__ __forceinline__ void load_job(Role& role, const TensorMap& qkv, const Job& job, u32 rows,
                                         u32 hidden, Window window) {
    role.queries.await_empty();
    role.job() = job;
    const u32 column = job.head * HEAD_SIZE;
    const u32 tiles = query_tiles(job, rows);
    for (u32 tile = 0; tile < tiles; ++tile) {
        role.queries.load(qkv, column, job.begin + job.first + tile * TILE);
    }
    const u32 end = window.end(job.first + rows - 1, job.keys);
    for (u32 key = window.begin(job.first, TILE); key < end; key += TILE) {
        role.keys.load(qkv, column + hidden, job.begin + key);
        role.keys.load(qkv, column + 2 * hidden, job.begin + key);
    }
}

__device__ __forceinline__ void load_jobs(Role& role, const TensorMap& qkv, const u32* starts,
                                          u32 sequences, u32 heads, u32 rows, u32 slots,
                                          u32 slots_each, bool backwards, Window window) {
    const bool leads = threadIdx.x % WARP == 0;
    for (u32 turn = blockIdx.x; turn < heads * slots; turn += gridDim.x) {
        const u32 index = backwards ? heads * slots - 1 - turn : turn;
        const Tile tile = find_tile(starts, sequences, slots_each, index / heads, rows);
        if (leads && tile.first < tile.length) {
            const Job job{tile.begin, tile.length, tile.first, index % heads};
            load_job(role, qkv, job, rows, heads * HEAD_SIZE, window);
        }
        __syncwarp();
    }
    if (leads) {
        role.queries.await_empty();
        role.job().keys = 0;
        barrier_arrive(role.queries.full());
    }
}

// ---- The computing warpgroups ----

// Zeros in place of a tile's rows from `valid` on: these values' weights are 0, and 0 * NaN would
// not be 0. Other warpgroups may do the same at the same time, or already multiply these zeros.
__device__ __forceinline__ void clear_behind(u32 tile, u32 valid) {
    u8* const bytes = static_cast<u8*>(__cvta_shared_to_generic(tile));
    for (u32 place = valid * ROW_BYTES + threadIdx.x % WARPGROUP * 16; place < TILE_BYTES;
         place += WARPGROUP * 16) {
        *reinterpret_cast<uint4*>(bytes + place) = make_uint4(0, 0, 0, 0);
    }
    fence_async_shared();
    warpgroup_sync(1 + threadIdx.x / WARPGROUP);
}

typedef Weighted<1, HEAD_SIZE / 8> Rows;
typedef float Outputs[HEAD_SIZE / 2];
typedef float Scores[1][TILE / 8][4];
typedef float Products[TILE / 2];

// The product of a tile of queries with one of keys; earlier products are complete, too.
__device__ __forceinline__ void multiply_keys(Scores& scores, Outputs& outputs, u32 queries,
                                              u32 keys) {
    Products& products = reinterpret_cast<Products&>(scores[0]);
    const u64 queries_at = matrix_descriptor<ROW_BYTES>(queries);
    const u64 keys_at = matrix_descriptor<ROW_BYTES>(keys);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < HEAD_SIZE / STEP; ++step) {
        wgmma(products, queries_at + 2 * step, keys_at + 2 * step, step > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(products);
    pin(outputs);
}

// Begins outputs += weights * values.
__device__ __forceinline__ void multiply_values(Outputs& outputs, const Scores& weights,
                                                u32 values) {
    u32 factors[TILE / STEP][4];
#pragma unroll
    for (int step = 0; step < TILE / STEP; ++step) {
        pack_weights(factors[step], weights[0], step);
    }
    const u64 values_at = matrix_descriptor<ROW_BYTES>(values);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < TILE / STEP; ++step) {
        wgmma<true>(outputs, factors[step], values_at + step * (STEP * ROW_BYTES >> 4), 1);
    }
    wgmma_commit();
}

// A tile of queries from `row` on with the keys of a job that it sees, of `keys`. The last product of
// values stays in flight while the next tile of keys is awaited and multiplied.
__device__ __forceinline__ void attend(Rows& rows, u32 queries, Tiles<KEY_STAGES>& ring, u32 keys,
                                       u32 row, Window window) {
    const float scale = LOG2_E / sqrtf((float)HEAD_SIZE);
    const u32 begin = window.begin(row, TILE), end = window.end(row + TILE - 1, keys);
    Outputs& outputs = reinterpret_cast<Outputs&>(rows.outputs[0]);
    u32 in_use = 0;
#pragma unroll 1
    for (u32 key = begin; key < end; key += TILE) {
        Scores scores;
        ring.await();
        multiply_keys(scores, outputs, queries, ring.tile());
        release(ring.advance());
        if (key > begin) {
            release(in_use);
        }
        const int warp_row = row + threadIdx.x % WARPGROUP / WARP * 16;
        hide(scores, window, (int)key - warp_row);
        const u32 valid = keys - key;
        if (valid < TILE) {
            weigh<true>(scores, rows, scale, valid);
        } else {
            weigh<false>(scores, rows, scale, valid);
        }
        ring.await();
        if (valid < TILE) {
            clear_behind(ring.tile(), valid);
        }
        multiply_values(outputs, scores, ring.tile());
        in_use = ring.advance();
    }
    wgmma_wait<0>();
    pin(outputs);
    release(in_use);
}

// `own`: which of the job's query tiles is this warpgroup's; `rows_each` are a whole job's.
__device__ __forceinline__ void compute_tile(Role& role, const Job& job, u32 own, u32 tiles,
                                             Output* output, u32 rows_each, u32 hidden,
                                             Window window) {
    role.queries.pass(own);
    role.queries.await();
    const u32 queries = role.queries.tile();
    const u32 in_use = role.queries.advance();
    role.queries.pass(tiles - own - 1);
    Rows rows;
    rows.clear();
    const u32 row = job.first + own * TILE;
    const u32 before = window.begin(row, TILE) - window.begin(job.first, TILE);
    const u32 end = window.end(row + TILE - 1, job.keys);
    const u32 job_end = window.end(job.first + rows_each - 1, job.keys);
    role.keys.pass(2 * (before / TILE));
    attend(rows, queries, role.keys, job.keys, row, window);
    role.keys.pass(2 * (tiles_of(job_end) - tiles_of(end)));
    release(in_use);
    Output* const to = output + (u64)job.begin * hidden + job.head * HEAD_SIZE;
    const u32 warp = threadIdx.x % WARPGROUP / WARP;
    store_rows(rows, Head{nullptr, to, 3 * hidden, hidden, job.keys},
               row + warp * 16);
}

__device__ __forceinline__ void compute_jobs(Role& role, Output* output, u32 rows, u32 hidden,
                                             Window window) {
    // Tiles before this job, counted by all warpgroups alike.
    u32 turn = 0;
    while (true) {
        role.queries.await();
        const Job job = role.job();
        if (job.keys == 0) {
            return;
        }
        const u32 tiles = query_tiles(job, rows);
        const u32 own = (threadIdx.x / WARPGROUP - turn) % GROUPS;
        turn += tiles;
        if (own < tiles) {
            compute_tile(role, job, own, tiles, output, rows, hidden, window);
        } else {
            role.queries.pass(tiles);
            const u32 begin = window.begin(job.first, TILE);
            role.keys.pass(2 * tiles_of(window.end(job.first + rows - 1, job.keys) - begin));
        }
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 1) vecmill_attention_sm90(
    const __grid_constant__ TensorMap qkv, const u32* __restrict__ starts, Output* __restrict__ output,
    u32 sequences, u32 heads, u32 rows, u32 slots, u32 slots_each, u32 backwards, Window window
) {
    extern __shared__ u8 dynamic_shared[];
    Role role((shared_address(dynamic_shared) + SWIZZLE_ATOM - 1) & ~(SWIZZLE_ATOM - 1));
    if (threadIdx.x < WARP) {
        tensor_prefetch(qkv);
        role.queries.init_barriers();
        role.keys.init_barriers();
        barrier_init_fence();
    }
    __syncthreads();
    await_previous_kernel();
    if (threadIdx.x >= CONSUMERS) {
        registers_shrink<32>();
        if (threadIdx.x < CONSUMERS + WARP) {
            load_jobs(role, qkv, starts, sequences, heads, rows, slots, slots_each, backwards,
                      window);
        }
    } else {
        registers_grow<112>();
        compute_jobs(role, output, rows, heads * HEAD_SIZE, window);
    }
}
