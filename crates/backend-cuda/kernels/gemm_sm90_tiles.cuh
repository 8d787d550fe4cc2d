// What gemm_sm90.cu's configuration means, and how tiles are dealt out; follows hopper.cuh.
//
// - constants derived from the macros, and the layout of shared memory
// - `Schedule`, the tiles of a block, and `Ring`, a place in its stages
// - `Accumulators`, a thread's part of a warpgroup's products

#ifdef T_F32
#error "the operands are f16 or bf16"
#endif

#ifndef GATED
#define GATED 0
#endif
#ifndef ROTATED
#define ROTATED 0
#endif

constexpr int K_BLOCK = SWIZZLE_ROW / (FP8 ? sizeof(u8) : sizeof(T));
// Instructions along a block of K, which take 32 bytes each.
constexpr int K_STEPS = SWIZZLE_ROW / 32;
constexpr int PIECE_COLUMNS = 64;
// Values of NORM.
constexpr int WHOLE_ROWS = 1, DEFER = 2;
constexpr int PIECE_ROWS = 16;
// Of a head that is turned, which is a piece.
constexpr int HEAD_PAIRS = PIECE_COLUMNS / 2;
// Columns of a piece as it is stored.
constexpr int STORED_COLUMNS = GATED ? PIECE_COLUMNS / 2 : PIECE_COLUMNS;
constexpr u32 PIECE_ROW_BYTES = STORED_COLUMNS * (FP8_OUTPUT ? sizeof(u8) : sizeof(T));
constexpr u32 PIECE_BYTES = PIECE_ROWS * PIECE_ROW_BYTES;
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
constexpr bool EXCHANGE = NORM == WHOLE_ROWS && CLUSTER_COLUMNS > 1;
constexpr u32 EXCHANGE_BYTES = GROUP_ROWS * CLUSTER_COLUMNS * 8;
// What the epilogue reads for each of a tile's columns, and for each row.
constexpr int VECTORS = NORM == WHOLE_ROWS ? 3 : NORM == DEFER ? 2 + 2 * DEFERRED : 1 + (FP8 || DEFERRED);
constexpr u32 VECTOR_BYTES = TILE_COLUMNS * sizeof(float);
constexpr u32 ROW_BYTES = DEFERRED * ROW_PARTS * sizeof(float2);
constexpr u32 VECTOR_SET_BYTES = VECTORS * VECTOR_BYTES + TILE_ROWS * ROW_BYTES;

// Shared memory, from an address divisible by 1024.
constexpr u32 PANEL = STAGES * STAGE_BYTES;
constexpr u32 SLOT_AREA = PANEL + RESIDENT * W_BYTES;
constexpr u32 EXCHANGE_AREA = SLOT_AREA + CONSUMER_WARPS * SLOTS * PIECE_BYTES;
constexpr u32 VECTOR_AREA = EXCHANGE_AREA + (EXCHANGE ? 2 * CONSUMERS * EXCHANGE_BYTES : 0);
constexpr u32 FULL = VECTOR_AREA + 2 * VECTOR_SET_BYTES;
constexpr u32 EMPTY = FULL + 8 * STAGES;
constexpr u32 PANEL_FULL = EMPTY + 8 * STAGES;
constexpr u32 PANEL_EMPTY = PANEL_FULL + 8 * RESIDENT;
constexpr u32 TURN = PANEL_EMPTY + 8;
constexpr u32 RESIDUAL_FULL = TURN + 8 * CONSUMERS;
constexpr u32 EXCHANGE_FULL = RESIDUAL_FULL + (NORM ? 8 * CONSUMER_WARPS * SLOTS : 0);
constexpr u32 VECTORS_FULL = EXCHANGE_FULL + 8 * 2 * CONSUMERS;
constexpr u32 VECTORS_EMPTY = VECTORS_FULL + 8 * 2;
constexpr u32 TURNS = VECTORS_EMPTY + 8 * 2;
// The rest is for aligning the start.
constexpr u32 SHARED_BYTES = TURNS + ROTATED * HEAD_PAIRS * sizeof(float) + SWIZZLE_ATOM;

static_assert(!NORM && !DEFERRED || !FP8 && !FP8_OUTPUT, "normalised rows are of T alone");
static_assert(!NORM && !ROTATED || !GATED, "what is gated has no norm behind it, nor is it turned");
static_assert(!ROTATED || !NORM && !FP8_OUTPUT && EPILOGUE == IDENTITY, "what is turned is stored");
static_assert(TURNS % 8 == 0, "turns are loaded two by two");
static_assert(NORM != WHOLE_ROWS || !DEFERRED, "whole rows have no deferred residual");
static_assert(NORM != DEFER || SLOTS > 1, "a slot's residual is loaded behind the next slot's store");
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
    bool backwards;

    __device__ Schedule(u32 rows, u32 columns, bool backwards) : backwards(backwards) {
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
        const u32 turn = RESIDENT ? tile % row_groups : tile / column_groups;
        const u32 row_group = backwards ? row_groups - 1 - turn : turn;
        const u32 column_group = RESIDENT ? tile / row_groups : tile % column_groups;
        return {(row_group * CLUSTER_ROWS + row_rank) * TILE_ROWS,
                (column_group * CLUSTER_COLUMNS + column_rank) * TILE_COLUMNS,
                index == 0 || turn == 0};
    }
};

typedef RingOf<STAGES> Ring;

typedef float Accumulators[ROW_BLOCKS][PARTS][PART / 2];

// The four values of an 8x8 matrix pair: two neighbours in row lane / 4, two in 8 rows below.
__device__ __forceinline__ float* quad(Accumulators& values, int row_block, int matrix) {
    constexpr int PER_PART = PART / 8;
    return &values[row_block][matrix / PER_PART][matrix % PER_PART * 4];
}
