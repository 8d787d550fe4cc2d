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
static_assert(SHARED_BYTES <= 227 * 1024, "too much shared memory");

struct Operands {
    const TensorMap &x, &w1, &w2, &y;
    const float *b1, *b2, *gain, *beta;
    float epsilon;
    u32 chunks;
};

typedef RingOf<STAGES> Ring;
constexpr u32 NOTHING = ~0u;
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

enum Product { UP, DOWN };

// The weights of a product's part for the chunk that begins at `first` of `inner`.
__device__ __forceinline__ void load_weights(const Operands& with, u32 shared, u32 stage,
                                             Product product, u32 part, u32 first) {
    const u32 to = shared + RING + stage * STAGE_BYTES, full = shared + FULL + 8 * stage;
    barrier_arrive_expect(full, STAGE_BYTES);
    if (product == UP) {
#pragma unroll
        for (u32 box = 0; box < PART_BOXES; ++box) {
            tensor_load(to + box * BOX_BYTES, with.w1, part * PART + box * BOX_COLUMNS, first,
                        full);
        }
    } else {
        tensor_load(to, with.w2, first, part * PART, full);
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
