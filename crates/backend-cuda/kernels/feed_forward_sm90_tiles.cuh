// How feed_forward_sm90.cu deals out its work and gets at it; follows hopper.cuh.
//
// - the sizes of tiles, and the layout of shared memory
// - `Schedule`, the tiles of a block; loads of their rows and of weights, by one thread each
// - `Stream`, a warpgroup's way through the weights

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
constexpr u32 SLOTS_BYTES = GROUPS * GROUP_WARPS * SLOT_BYTES;

// Shared memory, from an address divisible by 1024: X of each group, ring, a slot per warp for
// output, barriers. The ring has as many stages as there is room for.
constexpr u32 RING = GROUPS * X_BYTES;
constexpr u32 MOST_SHARED_BYTES = 227 * 1024;
constexpr u32 STAGES = (MOST_SHARED_BYTES - RING - SLOTS_BYTES - 2 * SWIZZLE_ATOM) / STAGE_BYTES;
constexpr u32 SLOT_AREA = RING + STAGES * STAGE_BYTES;
constexpr u32 FULL = SLOT_AREA + SLOTS_BYTES;
constexpr u32 EMPTY = FULL + 8 * STAGES;
constexpr u32 X_FULL = EMPTY + 8 * STAGES;
constexpr u32 TURN = X_FULL + 8 * GROUPS;
// The rest is for aligning the start.
constexpr u32 SHARED_BYTES = TURN + 8 * GROUPS + SWIZZLE_ATOM;

static_assert(HIDDEN <= 384 && HIDDEN % PART == 0, "the sums exceed the registers");
static_assert(SHARED_BYTES <= MOST_SHARED_BYTES, "too much shared memory");

struct Operands {
    const TensorMap &x, &w1, &w2, &y;
    const float *b1, *b2, *gain, *beta;
    float epsilon;
    u32 rows, chunks;
};

typedef RingOf<STAGES> Ring;
typedef float Inner[CHUNK / 2];
typedef float Sums[PARTS][PART / 2];
// Of the second product: fragments of 16 x 16 for each warp.
typedef u32 Factors[STEPS][4];

// The tiles of this block in their order.
struct Schedule {
    u32 tiles, count;
    bool backwards;

    __device__ Schedule(u32 rows, bool backwards) : backwards(backwards) {
        tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
        count = tiles > blockIdx.x ? (tiles - blockIdx.x + gridDim.x - 1) / gridDim.x : 0;
    }

    // The first row of a tile.
    __device__ u32 operator[](u32 index) const {
        const u32 tile = blockIdx.x + index * gridDim.x;
        return (backwards ? tiles - 1 - tile : tile) * TILE_ROWS;
    }
};

// ---- Loads, by one thread each ----

// Parts of a chunk, those of the first product first, go through the ring.
constexpr u32 CHUNK_PARTS = 2 * PARTS;

// A part's weights for the chunk that begins at `first` of `inner`.
__device__ __forceinline__ void load_weights(const Operands& with, u32 shared, u32 stage, u32 part,
                                             u32 first) {
    const u32 to = shared + RING + stage * STAGE_BYTES, full = shared + FULL + 8 * stage;
    barrier_arrive_expect(full, STAGE_BYTES);
    if (part < PARTS) {
#pragma unroll
        for (u32 box = 0; box < PART_BOXES; ++box) {
            tensor_load(to + box * BOX_BYTES, with.w1, part * PART + box * BOX_COLUMNS, first,
                        full);
        }
    } else {
        tensor_load(to, with.w2, first, (part - PARTS) * PART, full);
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

__device__ __forceinline__ void init_barriers(u32 shared) {
    for (int i = 0; i < STAGES; ++i) {
        barrier_init(shared + FULL + 8 * i, 1);
        barrier_init(shared + EMPTY + 8 * i, GROUPS * GROUP_WARPS);
    }
    for (u32 i = 0; i < GROUPS; ++i) {
        barrier_init(shared + X_FULL + 8 * i, 1);
        barrier_init(shared + TURN + 8 * i, GROUP_WARPS);
    }
    barrier_init_fence();
}

// Tells the thread that loads into a stage that this warp has read it.
__device__ __forceinline__ void release(u32 shared, u32 stage) {
    if (threadIdx.x % WARP == 0) {
        barrier_arrive(shared + EMPTY + 8 * stage);
    }
}

// Where a warpgroup is in the stream of weights.
struct Stream {
    const Operands& with;
    u32 shared;
    Ring ring;
    // In the one thread that loads: chunks that are not loaded yet, and where the first of them
    // begins, of which some parts may be.
    u32 left, next;

    // Fills the ring.
    __device__ __forceinline__ void begin(u32 chunks) {
        left = chunks;
#pragma unroll 1
        for (u32 stage = 0; stage < STAGES; ++stage) {
            if (left > 0) {
                load(stage, stage % CHUNK_PARTS);
            }
        }
    }

    // Goes through a product's parts, `first` and those behind it. One stays in flight while the
    // next stage is awaited.
    template <typename Multiply>
    __device__ __forceinline__ void each_part(u32 first, Multiply multiply) {
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            barrier_wait(shared + FULL + 8 * ring.stage, ring.phase);
            wgmma_fence();
            multiply(part, matrix_descriptor(shared + RING + ring.stage * STAGE_BYTES));
            wgmma_commit();
            if (part > 0) {
                wgmma_wait<1>();
                give_back(first + part - 1);
            }
            ring.advance();
        }
    }

    // The stage before, whose part was read: it is loaded again at once.
    __device__ __forceinline__ void give_back(u32 part) {
        const Ring read = ring.before();
        release(shared, read.stage);
        if (left > 0) {
            barrier_wait(shared + EMPTY + 8 * read.stage, read.phase);
            load(read.stage, (part + STAGES) % CHUNK_PARTS);
        }
        __syncwarp();
    }

    __device__ __forceinline__ void load(u32 stage, u32 part) {
        load_weights(with, shared, stage, part, next);
        if (part == CHUNK_PARTS - 1) {
            left -= 1;
            next = next + CHUNK < with.chunks * CHUNK ? next + CHUNK : 0;
        }
    }
};
